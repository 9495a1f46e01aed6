"""A disk that is full at any moment of any command: one line, nothing half-written, and on."""

import contextlib
import io
import itertools
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
from runs import call, fill, options, results

import evaluate_sogou

WRITES = os.O_WRONLY | os.O_RDWR
COMMANDS = 'train', 'eval', 'predict', 'export', 'score', 'convert'
KINDS = 'bytes', 'room'  # no file may be longer than; no room in the file system but


class Disk:
    """Counts what is begun to be written in a folder, and lets the disk be full from one on."""

    def __init__(self):
        self.folder, self.begun, self.at, self.full = None, 0, None, None
        sys.addaudithook(self._hear)  # for good

    def _hear(self, event, arguments):
        if self.folder is None or event not in ('open', 'os.mkdir', 'os.rename'):
            return
        path = arguments[0]
        if not isinstance(path, str) or not os.path.abspath(path).startswith(self.folder):
            return
        if event != 'open' or arguments[2] & WRITES:
            self.begun += 1
            if self.begun == self.at:
                folder, self.folder = self.folder, None
                self.full()
                self.folder = folder

    @contextlib.contextmanager
    def watched(self, folder, at=None, full=None):
        """Count in a folder; at the beginning of that number call `full`."""
        self.folder, self.begun, self.at, self.full = str(folder), 0, at, full
        try:
            yield self
        finally:
            self.folder = None


@pytest.fixture(scope='module')
def disk():
    """The one Disk of this process."""
    return Disk()


@contextlib.contextmanager
def full_disk(disk, kind, folder, at, left):
    """Let the disk be full from the `at`-th thing on that is written, but for `left` bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ballast = folder / 'ballast'

    def full():
        if kind == 'bytes':
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
        else:
            fill(ballast, but=left // 4096 * 4096)

    try:
        with disk.watched(folder / 'output', at, full):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        ballast.unlink(missing_ok=True)


def run(script, study, folder, command):
    """Run a command of the small run in a folder; as `runs.call`."""
    output = folder / 'output'
    if command in ('train', 'eval'):
        return call(script, command, *options(study, output, epochs=2))
    if command == 'predict':
        given = options(study, output, report=5)
        return call(script, command, study / 'SogouQA.json', *given)
    if command == 'export':
        return call(script, command, output / 'model', *options(study, output))
    arguments = {
        'score': ['evaluate_sogou.py', output / 'predictions.tsv', output / 'scored.tsv',
                  f'--dataset={study / "SogouQA.json"}'],
        'convert': [os.path.join('data', 'convert.py'), folder / 'given.json', output / 'new.json'],
    }[command]  # fmt: skip
    path, *arguments = map(str, arguments)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [path, *arguments])
        # or it would be another module, with errors of its own
        patch.setitem(sys.modules, 'evaluate_sogou', evaluate_sogou)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if command == 'score':
                status = evaluate_sogou.exit_status(evaluate_sogou.main)
            else:
                with pytest.raises(SystemExit) as ended:
                    runpy.run_path(os.path.join(ROOT, path), run_name='__main__')
                status = ended.value.code
    return status, out.getvalue().splitlines()[-1:], err.getvalue()


def contents(output):
    """All files of an output folder that must be alike, {name: bytes}; no backups, no curves.

    Probabilities are rounded: the questions that are read together are others after a rest.
    """
    found = {}
    for path in sorted(output.rglob('*')):
        if path.is_file() and not re.search('tensorboard|saved_model.pb|fingerprint.pb', str(path)):
            content = re.sub(b'"/[^"]*/output"', b'"HERE"', path.read_bytes())
            if path.suffix in ('.jsonl', '.html'):
                number = rb'\d\.\d{4,}(e-\d+)?|\d\.?\d*e-\d+'
                content = re.sub(number, lambda match: b'%.3g' % float(match[0]), content)
            found[str(path.relative_to(output))] = content
    return found


@pytest.fixture(scope='module')
def small_run(script, study, disk, tmp_path_factory):
    """A small run with room enough: before and after each command the output folder, and counts."""
    folder, stages = tmp_path_factory.mktemp('full_disk'), {}
    rgb = {'id': 0, 'query': '谁？', 'answer': ['北京'], 'positive': ['在北京'], 'negative': ['是']}
    write_json(folder / 'given.json', rgb)
    (folder / 'output').mkdir()
    for command in COMMANDS:
        before = shutil.copytree(folder / 'output', folder / f'before_{command}')
        with disk.watched(folder / 'output'):
            status, last_line, err = run(script, study, folder, command)
        assert status == 0, err
        after = shutil.copytree(folder / 'output', folder / f'after_{command}')
        stages[command] = types.SimpleNamespace(
            before=before, after=after, begun=disk.begun, last_line=last_line
        )
    stages['given'] = folder / 'given.json'
    return stages


def check(script, study, disk, small_run, folder, command, kind, at, left):
    """Run a command that finds the disk full, look at what is there, and run it with room.

    Returns whether it failed: there may have been room enough.
    """
    stage, output = small_run[command], folder / 'output'
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(stage.before, output)
    shutil.copy(small_run['given'], folder / 'given.json')
    before = contents(output)
    with full_disk(disk, kind, folder, at, left):
        status, last_line, err = run(script, study, folder, command)
    case = f'{command}, {kind}, {at} of {stage.begun}, {left} left: {err[-1500:]}'
    if status:
        line = err.splitlines()[-1]
        assert (status, last_line) == (2, []) and 'Traceback' not in err, case
        assert str(output) in line and re.search('make room', line), case
        assert not list(output.rglob('.unfinished*')), case
        after, whole = contents(output), contents(stage.after)
        for name, content in after.items():
            if not re.search(r'backup-|-of-1|\.lock$|\.unfinished$|log.csv|best_model|\.h5$', name):
                assert content in (before.get(name), whole.get(name)), f'{name}; {case}'
        assert before.keys() <= {*after, *whole}, case
        again = run(script, study, folder, command)
        assert again[:2] == (0, stage.last_line), f'{case}; again: {again[2][-1000:]}'
    else:
        assert last_line == stage.last_line, case
    assert contents(output) == contents(stage.after) or command == 'train', case
    if command == 'train':
        assert results(output, []) == results(stage.after, []), case
    return status != 0


@pytest.mark.parametrize('kind', KINDS)
def test_full_disk_is_said_and_costs_nothing(
    script, study, disk, small_run, request, tmp_path, kind
):
    """In the middle of each command."""
    folder = request.getfixturevalue('little_room') if kind == 'room' else tmp_path
    failed = 0
    for command in COMMANDS if kind == 'bytes' else ('train', 'predict'):
        at = (small_run[command].begun + 1) // 2
        failed += check(script, study, disk, small_run, folder, command, kind, at, 0)
    assert failed >= (6 if kind == 'bytes' else 2)  # a last rename needs no room


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_full_disk_at_any_moment_costs_nothing(
    script, study, disk, small_run, request, capsys, tmp_path, kind
):
    """At each moment of each command, and with a random number of bytes left at random ones."""
    folder = request.getfixturevalue('little_room') if kind == 'room' else tmp_path
    rng, cases = np.random.default_rng(KINDS.index(kind)), []
    for command in COMMANDS:
        cases += [(command, at, 0) for at in range(1, small_run[command].begun + 1)]
    for command in itertools.islice(itertools.cycle(COMMANDS), 100):
        at = int(rng.integers(1, small_run[command].begun + 1))
        cases.append((command, at, int(10 ** rng.uniform(0, 5.5))))
    assert len(cases) > 150
    failed = 0
    for command, at, left in cases:
        failed += check(script, study, disk, small_run, folder, command, kind, at, left)
    with capsys.disabled():
        print(f' {len(cases)} moments, {failed} of them without room ', end='')
