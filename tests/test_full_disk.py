"""A disk that is full at any moment of any command: one line, nothing half-written, and on."""

import contextlib
import io
import os
import re
import resource
import runpy
import shutil
import sys
import types

import numpy as np
import pytest
from conftest import ROOT, write_json
from runs import AT_WORK, RESULTS, call, fill, half_written, options, results

import evaluate_sogou

pytestmark = pytest.mark.usefixtures('built_once')
COMMANDS = 'train', 'eval', 'predict', 'export', 'score', 'convert'
KINDS = 'bytes', 'room'  # no file may be longer than; no room in the file system but
DISK = types.SimpleNamespace(folder=None, begun=0)  # where writes are counted, and how many were


@pytest.fixture(scope='module', autouse=True)
def hearing():
    """Count what is begun to be written in a folder, and let the disk be full from one on."""

    def hear(event, arguments):
        if DISK.folder is None or event not in ('open', 'os.mkdir', 'os.rename'):
            return
        path, writes = arguments[0], event != 'open' or arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and isinstance(path, str) and os.path.abspath(path).startswith(DISK.folder):
            DISK.begun += 1
            if DISK.begun == DISK.at:
                folder, DISK.folder = DISK.folder, None
                DISK.full()
                DISK.folder = folder

    sys.addaudithook(hear)  # for good


@contextlib.contextmanager
def full_disk(kind, folder, at, left):
    """Let the disk be full from the `at`-th thing on that is written, but for `left` bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ballast = folder / 'ballast'

    def full():
        if kind == 'bytes':
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
        else:
            fill(ballast, but=left // 4096 * 4096)

    vars(DISK).update(folder=str(folder / 'output'), begun=0, at=at, full=full)
    try:
        yield
    finally:
        DISK.folder = None
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        ballast.unlink(missing_ok=True)


def run_command(script, study, folder, command):
    output = folder / 'output'
    if command not in ('score', 'convert'):
        named = {'predict': [study / 'SogouQA.json'], 'export': [output / 'model']}.get(command, [])
        return call(script, command, *named, *options(study, output, epochs=2, report=5))
    path, *arguments = {
        'score': ['evaluate_sogou.py', output / 'predictions.tsv', output / 'scored.tsv',
                  f'--answers={folder / "answers"}'],
        'convert': ['data/convert.py', folder / 'given.json', output / 'new.json'],
    }[command]  # fmt: skip
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [path, *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if command == 'score':
                status = evaluate_sogou.main()
            else:
                with pytest.raises(SystemExit) as ended:
                    runpy.run_path(os.path.join(ROOT, path), run_name='__main__')
                status = ended.value.code
    return status, out.getvalue().splitlines()[-1:], err.getvalue()


def contents(output):
    """All files of an output folder that must be alike, {name: bytes}; no curves. Probabilities are
    rounded, their digest is left out: the questions read together are others after a rest."""
    found = {}
    for path in sorted(output.rglob('*')):
        if path.is_file() and not re.search('tensorboard|saved_model.pb|fingerprint.pb', str(path)):
            content = re.sub(b'"/[^"]*/output"', b'"HERE"', path.read_bytes())
            if path.suffix in ('.jsonl', '.html'):
                number = rb'\d\.\d{4,}(e-\d+)?|\d\.?\d*e-\d+'
                content = re.sub(number, lambda match: b'%.3g' % float(match[0]), content)
            content = re.sub(rb'"predictions": "\w{64}"', b'', content)
            found[str(path.relative_to(output))] = content
    return found


@pytest.fixture(scope='module')
def stages(script, study, tmp_path_factory):
    """A run with room enough: before and after each command the output folder, and counts."""
    folder, found = tmp_path_factory.mktemp('full_disk'), {}
    rgb = {'id': 0, 'query': '谁？', 'answer': ['北京'], 'positive': ['在北京'], 'negative': ['是']}
    write_json(folder / 'given.json', rgb)
    answers = ''.join(f'S{i}\t北京\t北京|上海\n' for i in range(20))
    (folder / 'answers').write_text(answers, encoding='utf-8')
    (folder / 'output').mkdir()
    for command in COMMANDS:
        before = shutil.copytree(folder / 'output', folder / f'before_{command}')
        with full_disk('', folder, None, 0):
            status, last_line, err = run_command(script, study, folder, command)
        assert status == 0, err
        after = shutil.copytree(folder / 'output', folder / f'after_{command}')
        stage = {'before': before, 'after': after, 'begun': DISK.begun, 'last_line': last_line}
        found[command] = types.SimpleNamespace(**stage)
    return found


@pytest.fixture
def fails(script, study, stages, request, tmp_path):
    """A function that runs a command that finds the disk full, looks at what is there, and runs it
    again with room. It returns whether the command failed: there may have been room."""

    def check(command, kind, at, left):
        folder = request.getfixturevalue('little_room') if kind == 'room' else tmp_path
        stage, output = stages[command], folder / 'output'
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(stage.before, output)
        for name in 'given.json', 'answers':
            shutil.copy(stage.before.parent / name, folder)
        before, whole = contents(output), contents(stage.after)
        with full_disk(kind, folder, at, left):
            status, last_line, err = run_command(script, study, folder, command)
        case = f'{command}, {kind}, {at} of {stage.begun}, {left} left: {err[-1500:]}'
        if status:
            line, after = err.splitlines()[-1], contents(output)
            assert (status, last_line) == (2, []) and 'Traceback' not in err, case
            assert str(output) in line and re.search('make room|choose another', line), case
            assert not list(output.rglob(half_written('*'))), case
            for name in after:
                if not re.search(rf'{AT_WORK}|log.csv|{RESULTS[0]}', name):
                    assert after[name] in (before.get(name), whole.get(name)), f'{name}; {case}'
            assert before.keys() <= {*after, *whole}, case
            if RESULTS[0] in after:  # and the best weights so far can be read
                script.load_reader(data_dir=str(study), checkpoint_path='', output_dir=str(output))
            again, last_line, err = run_command(script, study, folder, command)
            assert again == 0, f'{case}; again: {err[-1000:]}'
        assert last_line == stage.last_line, case
        assert contents(output) == whole or command == 'train', case
        if command == 'train':
            assert results(output, []) == results(stage.after, []), case
        return status != 0

    return check


@pytest.mark.parametrize('kind', KINDS)
def test_full_disk_is_said_and_costs_nothing(stages, fails, kind):
    """In the middle of each command."""
    commands = COMMANDS if kind == 'bytes' else ('train', 'predict')
    failed = [fails(each, kind, (stages[each].begun + 1) // 2, 0) for each in commands]
    assert all(failed)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_full_disk_at_any_moment_costs_nothing(stages, fails, capsys, kind):
    """At each moment of each command; and at random ones, but for a random number of bytes."""
    rng = np.random.default_rng(KINDS.index(kind))
    cases = [(each, at + 1, 0) for each in COMMANDS for at in range(stages[each].begun)]
    for each in COMMANDS * 17:
        at = int(rng.integers(stages[each].begun)) + 1
        cases.append((each, at, int(10 ** rng.uniform(0, 5.5))))
    failed = sum(fails(each, kind, at, left) for each, at, left in cases)
    with capsys.disabled():
        print(f' {len(cases)} moments, {failed} of them without room ', end='')
