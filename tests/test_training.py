"""Training and reading, whatever interrupts them: kills, signals, a full disk, several devices and workers."""

import concurrent.futures
import contextlib
import csv
import errno
import fcntl
import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT, build_small_model, record, write_json, write_small

RESULTS = 'best_model.weights.h5', 'log.csv', 'predictions.tsv'
CONSTANTS = {
    'checkpoint_path': '', 'epochs': 4, 'max_a_len': 4, 'batch_size': 4, 'learning_rate': 0.003,
    'backup_minutes': 0.001, 'warmup_steps': 5, 'decay_steps': 90, 'seed': 42,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- processes


def options(folder, output, **constants):
    """The command line for the data of a folder, into a folder."""
    constants = {'data_dir': folder, **CONSTANTS, 'output_dir': output, **constants}
    return [f'--{name}={value}' for name, value in constants.items()]


class Process:
    """The script as a process; `changes`, lines of Python, are made to the module `task` first."""

    def __init__(self, folder, command, *arguments, changes='', name='', **environment):
        self.out, self.err = folder / f'out{name}.txt', folder / f'err{name}.txt'
        lines = f'import task_reading_comprehension_by_seq2seq as task\n{changes}\ntask.sys.exit(task.main())'
        with open(self.out, 'w') as out, open(self.err, 'w') as err:
            self.process = subprocess.Popen(
                [sys.executable, '-c', lines, command, *arguments],
                stdout=out,
                stderr=err,
                env={**os.environ, 'PYTHONPATH': ROOT, **environment},
            )

    def said(self):
        """What it wrote to standard error so far."""
        return self.err.read_text(encoding='utf-8', errors='replace')

    def wait_for(self, text):
        """Wait until it has written `text` to standard error."""
        while text not in self.said():
            assert self.process.poll() is None, self.said()[-2000:]
            time.sleep(0.005)

    def killed_after(self, seconds):
        """Kill it so long after it has imported TensorFlow. Returns whether it was still alive."""
        self.wait_for('\n')
        try:
            self.process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return True

    def life(self):
        """Wait for its end. Returns the seconds since it had imported TensorFlow."""
        self.wait_for('\n')
        begun = time.monotonic()
        self.end()
        return time.monotonic() - begun

    def end(self, status=0, timeout=300):
        """Wait for its end and check its exit status. Returns the last line of standard output."""
        assert self.process.wait(timeout) == status, self.said()[-3000:]
        return self.out.read_text(encoding='utf-8').splitlines()[-1:]


def results(output, last_line):
    """Everything that must not depend on interruptions."""
    return {'last line': last_line, **{name: (output / name).read_bytes() for name in RESULTS}}


# -------------------------------------------------------------------------------------------------- data


def varied_record(name, rng):
    """A record of passages of many lengths; the answers, 北京 or 上海, stand after 在."""
    passages = []
    for _ in range(rng.integers(2, 5)):
        before, after = (
            ''.join(rng.choice(list('中国南天津重庆的是'), rng.integers(12))) for _ in range(2)
        )
        answer = str(rng.choice(['北京', '上海']))
        passages.append({'passage': f'{before}在{answer}{after}', 'answer': answer})
    return {'id': name, 'question': '人口' * rng.integers(1, 4) + '在哪里？', 'passages': passages}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """A folder like `small`: 45 questions to train on, 12 updates of 4 an epoch, one of them of a single row."""
    folder, rng = write_small(tmp_path_factory.mktemp('study')), np.random.default_rng(0)
    write_json(folder / 'WebQA.json', [varied_record(f'W{i}', rng) for i in range(13)])
    write_json(folder / 'SogouQA.json', [varied_record(f'S{i}', rng) for i in range(24)])
    return folder


@pytest.fixture(scope='module')
def undisturbed(study, tmp_path_factory):
    """A run that nothing interrupted: its output folder, results and seconds of life after the import."""
    folder = tmp_path_factory.mktemp('undisturbed')
    process = Process(folder, 'train', *options(study, folder / 'output'))
    life, last_line = process.life(), process.end()
    return types.SimpleNamespace(
        output=folder / 'output', results=results(folder / 'output', last_line), life=life
    )


@pytest.fixture
def train(script, study, capsys):
    """Call `train` in this process. Returns (exit status, last line of standard output, standard error)."""

    def call(output, command='train', **constants):
        try:
            status = script.main([command, *options(study, output, **constants)])
        finally:
            captured = capsys.readouterr()
        return status, captured.out.splitlines()[-1:], captured.err

    return call


class Killed(BaseException):
    """Stands in for a kill where a process of its own would take too long."""


# ------------------------------------------------------------------------------------------ interruptions


@pytest.mark.slow
def test_training_killed_at_any_moment_ends_as_if_it_had_not_been(
    script, study, undisturbed, tmp_path, capsys
):
    """Not even a backup that was being written, or weights that were being saved, may change a byte."""

    def lane(number):  # one of two that run at once
        rng, kills = np.random.default_rng(number), 0
        while kills < 10:
            output = tmp_path / f'output{number}-{kills}'
            start = functools.partial(
                Process, tmp_path, 'train', *options(study, output), name=number
            )
            while (process := start()).killed_after(
                rng.uniform(0, undisturbed.life) if kills < 10 else 120
            ):
                kills += 1
            assert results(output, process.end()) == undisturbed.results
            assert set(os.listdir(output)) == set(os.listdir(undisturbed.output))
            assert scored_epochs(script, output) == {0, 1, 2, 3}
        return kills

    with concurrent.futures.ThreadPoolExecutor() as pool:
        kills = sum(pool.map(lane, range(2)))
    with capsys.disabled():
        print(f' {kills} kills survived ', end='')


COUNTED = """
answers = task.ReadingComprehension.answers
def counted(reader, questions, topk):
    task.log(f'{len(questions)} questions to read')
    return answers(reader, questions, topk)
task.ReadingComprehension.answers = counted
task.ReadingComprehension.tokens_together = 60
"""


def answered(path):
    """The lines that are written already, in the order of the questions."""
    for name in f'{path}.0-of-1.unfinished', f'{path}.0-of-1':
        with contextlib.suppress(FileNotFoundError), open(name, encoding='utf-8') as file:
            return file.read().split('\n')[1:-1]
    return []


@pytest.mark.slow
def test_reading_killed_at_any_moment_answers_the_rest(study, undisturbed, tmp_path, capsys):
    """Nothing is answered twice, and the file is that of a run never killed; eval and predict run at once."""
    rng, total = np.random.default_rng(0), 100
    folder = tmp_path / 'data'
    shutil.copytree(study, folder)
    write_json(folder / 'SogouQA.json', [varied_record(f'S{i}', rng) for i in range(3 * total)])
    write_json(folder / 'questions.json', [varied_record(f'Q{i}', rng) for i in range(total)])

    def start(command, output):
        output.mkdir(exist_ok=True)
        shutil.copy(undisturbed.output / 'best_model.weights.h5', output)
        write_json(output / 'random_order.json', list(range(3 * total)))
        questions = [folder / 'questions.json'] if command == 'predict' else []
        return Process(
            tmp_path, command, *questions, *options(folder, output), changes=COUNTED, name=command
        )

    def lane(command):
        rng, name = (
            np.random.default_rng(0),
            'predictions.tsv' if command == 'eval' else 'answers_to_questions.tsv',
        )
        process = start(command, tmp_path / f'undisturbed {command}')
        life = process.life()
        expected = (
            (tmp_path / f'undisturbed {command}' / name).read_bytes(),
            process.out.read_bytes(),
        )
        kills = midway = 0
        while kills < 10:
            output, lines = tmp_path / f'output {command} {kills}', []
            while True:
                process, seconds = (
                    start(command, output),
                    rng.uniform(0, life) if kills < 10 else 120,
                )
                if (
                    kills < 10 and kills % 2 == 0
                ):  # every other one while it answers, however fast the machine is
                    while (
                        process.process.poll() is None
                        and len(answered(output / name)) < len(lines) + 10
                    ):
                        time.sleep(0.01)
                    seconds = 0
                if not process.killed_after(seconds):
                    break
                kills += 1
                before, lines = lines, answered(output / name)
                assert lines[: len(before)] == before or (output / name).read_bytes() == expected[0]
                assert re.findall(r'(\d+) questions to read', process.said()) in (
                    [],
                    [str(total - len(before))],
                )
                midway += len(before) < len(lines) < total
            process.end()
            assert re.findall(r'(\d+) questions to read', process.said()) in (
                [],
                [str(total - len(lines))],
            )
            assert ((output / name).read_bytes(), process.out.read_bytes()) == expected
            assert not [
                name for name in os.listdir(output) if 'unfinished' in name or '-of-' in name
            ]
        assert midway >= 2
        return kills, midway

    with concurrent.futures.ThreadPoolExecutor() as pool:
        kills, midway = map(sum, zip(*pool.map(lane, ['eval', 'predict']), strict=True))
    with capsys.disabled():
        print(f' {kills} kills survived, {midway} of them while answering ', end='')


@pytest.mark.parametrize(
    ('function', 'calls'),
    [
        ('back_up', [1, 1, 11, 2]),
        ('evaluate_sample', [1, 1]),
        ('save_best_weights', [1, 1, 1]),
        ('write_text', [1, 4]),
    ],
)
def test_training_cut_off_after_a_step_ends_as_if_it_had_not_been(
    script, train, undisturbed, tmp_path, monkeypatch, function, calls
):
    """Of the backups the third cut is before the first epoch is scored, the fourth right after."""
    owner = script.Progress if function == 'back_up' else script
    original = getattr(owner, function)
    for count in calls:
        left = itertools.count(count - 1, -1)

        def cut_off(*arguments, left=left):
            original(*arguments)
            if next(left) == 0:
                raise Killed

        monkeypatch.setattr(owner, function, cut_off)
        with pytest.raises(Killed):
            train(
                tmp_path / 'output', backup_minutes=1e-9
            )  # after every update, however fast the machine is
    monkeypatch.undo()
    if function == 'back_up':
        assert (tmp_path / 'output' / 'backup-12-1').exists()
    status, last_line, err = train(tmp_path / 'output')
    assert status == 0 and 'continuing after update' in err
    assert results(tmp_path / 'output', last_line) == undisturbed.results
    assert scored_epochs(script, tmp_path / 'output') == {0, 1, 2, 3}


def scored_epochs(script, output):
    """The epochs whose Final TensorBoard shows."""
    epochs = set()
    for path in (output / 'tensorboard').rglob('events*'):
        with contextlib.suppress(
            script.tf.errors.DataLossError
        ):  # cut off by a kill, as TensorBoard knows it
            for content in script.tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = script.tf.compat.v1.Event.FromString(content)
                epochs |= {event.step for value in event.summary.value if 'Final' in value.tag}
    return epochs


def test_signal_while_the_last_epoch_is_scored_is_heard(
    script, train, undisturbed, tmp_path, monkeypatch
):
    """The score of all validation questions, which takes hours, is left to the next run."""
    output, original = tmp_path / 'output', script.save_best_weights

    def interrupted(*arguments):
        original(*arguments)
        if list(output.glob('backup-48-*')):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(script, 'save_best_weights', interrupted)
        status, last_line, err = train(output)
    assert (status, last_line) == (130, []) and 'stopped after update 48' in err.splitlines()[-1]
    assert not (output / 'predictions.tsv').exists()
    status, last_line, _ = train(output)
    assert status == 0 and results(output, last_line) == undisturbed.results


SLOWLY = """
train_batch_end = task.Progress.on_train_batch_end
def slowly(*arguments):
    task.time.sleep(0.2)
    train_batch_end(*arguments)
task.Progress.on_train_batch_end = slowly
"""


def test_signal_backs_up_and_says_how_to_continue(study, undisturbed, tmp_path):
    """Nothing but the signal asks for a backup here; the update it interrupts is finished."""
    start = functools.partial(
        Process, tmp_path, 'train', *options(study, tmp_path / 'output', backup_minutes=10)
    )
    for number, moment in (signal.SIGINT, 'Epoch 2/'), (signal.SIGTERM, 'Epoch 3/'):
        process = start(changes=SLOWLY)  # or it would be over before the signal reaches it
        process.wait_for(moment)
        process.process.send_signal(number)
        assert process.end(130) == []
        stopped = re.search(
            r'stopped after update (\d+); run the same command to continue$', process.said().strip()
        )
        assert (
            list((tmp_path / 'output').glob(f'backup-{stopped[1]}-*'))
            and 'Traceback' not in process.said()
        )
    process = start()
    last_line = process.end()
    assert f'continuing after update {stopped[1]} of 48' in process.said()
    assert results(tmp_path / 'output', last_line) == undisturbed.results


def test_run_with_other_constants_or_data_is_not_continued(train, study, undisturbed, tmp_path):
    """More epochs are welcome: they continue as if there had been as many from the start."""
    output = tmp_path / 'output'
    assert train(output, epochs=1)[0] == 0
    before = {path: path.read_bytes() for path in output.rglob('*') if path.is_file()}
    shutil.copytree(study, tmp_path / 'data')
    write_json(tmp_path / 'data' / 'WebQA.json', [record(f'W{i}') for i in range(13)])
    for name, value in ('data_dir', tmp_path / 'data'), ('learning_rate', 0.002), ('seed', 1):
        status, last_line, err = train(output, **{name: value})
        error = err.splitlines()[-1]
        assert (status, last_line) == (2, []) and 'Traceback' not in err
        assert (
            'the data' if name == 'data_dir' else f'{name} = {CONSTANTS.get(name)}, now {value}'
        ) in error
        assert 'change that back, or start afresh with another output_dir' in error
        assert {path: path.read_bytes() for path in before} == before
    status, last_line, _ = train(output)
    assert status == 0 and results(output, last_line) == undisturbed.results


# ----------------------------------------------------------------------------------- what cannot go on


def test_loss_that_is_not_finite_names_update_and_records(script, train, tmp_path, monkeypatch):
    """The best weights and the last backup are those from before."""
    output = tmp_path / 'output'
    assert train(output, epochs=1)[0] == 0
    kept = {name: (output / name).read_bytes() for name in RESULTS}
    drawn = []

    def begin(progress, begin=script.Progress.begin):
        begin(progress)
        progress.trainer.bert.weights[0].assign(progress.trainer.bert.weights[0] * np.nan)
        first = script.draw_window(progress.train_data, progress.tokenizer, 1, 0)[0]
        drawn.extend(progress.train_data[i]['id'] for i, *_ in first)

    with monkeypatch.context() as patch:
        patch.setattr(script.Progress, 'begin', begin)
        status, last_line, err = train(output)
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    cure = 'lower learning_rate and choose another output_dir'
    assert (
        err.splitlines()[-1] == f'the loss of update 13 is nan; records {", ".join(drawn)}; {cure}'
    )
    assert kept == {name: (output / name).read_bytes() for name in RESULTS}
    assert [path.name for path in output.glob('*backup*')] == ['backup-12-1']
    status, _, err = train(output, epochs=2)
    assert status == 0 and 'continuing after update 12 of 24' in err


def test_learning_rate_that_is_far_too_high_is_stopped(train, tmp_path):
    status, last_line, err = train(tmp_path / 'output', learning_rate=1e30, warmup_steps=0)
    assert (status, last_line) == (2, [])
    assert (
        'the loss of update 2 is ' in err.splitlines()[-1]
        and 'lower learning_rate' in err.splitlines()[-1]
    )


def test_weights_that_are_not_finite_are_not_backed_up(script, train, tmp_path, monkeypatch):
    """The loss of the update that made them is still finite."""
    monkeypatch.setattr(script.Trainer, 'train_step', poisoned(script.Trainer.train_step))
    status, _, err = train(tmp_path / 'output')
    assert (
        status == 2
        and 'after update 1 some weights are not finite; records' in err.splitlines()[-1]
    )
    assert (
        not list((tmp_path / 'output').glob('*backup*'))
        and not (tmp_path / 'output' / RESULTS[0]).exists()
    )


def poisoned(train_step):
    """Return a train_step after which one weight is not a number."""

    def step(trainer, batch):
        logs = train_step(trainer, batch)
        trainer.bert.weights[3].assign(trainer.bert.weights[3] * np.nan)
        return logs

    return step


@pytest.mark.parametrize('damage', ['state.json', 'weights.index', 'weights.data-00000-of-00001'])
@pytest.mark.parametrize('content', [b'', b'[]', None])
def test_damaged_backup_is_named(train, undisturbed, tmp_path, damage, content):
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    [backup] = output.glob('backup-*')
    (backup / damage).unlink() if content is None else (backup / damage).write_bytes(content)
    status, last_line, err = train(output)
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    assert str(backup) in err.splitlines()[-1]


def test_best_weights_that_have_gone_are_missed_at_once(train, undisturbed, tmp_path):
    """Not after another epoch, which might not be better than the one that they were of."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    (output / 'best_model.weights.h5').unlink()
    status, _, err = train(output, epochs=9)
    assert status == 2 and 'best_model.weights.h5 has gone' in err.splitlines()[-1]


def test_second_run_in_a_folder_is_refused(script, train, undisturbed, tmp_path, capsys):
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    with script.alone(str(output / 'train.lock')):
        status, _, err = train(output)
    assert status == 2 and 'another run is at work here' in err.splitlines()[-1]
    part = script.Part(str(output / 'some.tsv'), 'fingerprint', 0, 1)
    part.write(iter(['a\t北']))
    first, second = (script.Part(str(output / 'other.tsv'), 'fingerprint', 0, 1) for _ in range(2))
    refused = []

    def lines():
        yield 'a\t北'
        try:
            second.write(iter(['b\t京']))
        except script.UserError as error:
            refused.append(str(error))
        yield 'b\t京'

    first.write(lines())
    first.join()
    assert 'another run' in refused[0] and not capsys.readouterr().err
    assert (output / 'other.tsv').read_text(encoding='utf-8') == 'a\t北\nb\t京\n'


@pytest.mark.parametrize('number', [errno.EBADF, errno.ENOLCK])
def test_lock_works_on_network_file_systems(script, tmp_path, monkeypatch, capsys, number):
    """NFS refuses to lock what is not open for writing; others refuse altogether, which is no reason not to work."""

    def flock(descriptor, _):
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if number != errno.EBADF or mode == os.O_RDONLY:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with script.alone(str(tmp_path / 'train.lock')):
        pass
    part = script.Part(str(tmp_path / 'some.tsv'), 'fingerprint', 0, 1)
    part.write(iter(['a\t北']))
    assert capsys.readouterr().err.count('let no other run work here') == (
        2 if number == errno.ENOLCK else 0
    )


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOSPC])
def test_folder_that_cannot_be_synced_is_no_full_disk(script, tmp_path, monkeypatch, number):
    """Some file systems sync files only."""
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', fsync)
    with (
        contextlib.nullcontext()
        if number == errno.EINVAL
        else pytest.raises(script.UserError, match='No space')
    ):
        script.write_text(str(tmp_path / 'some.txt'), 'text')


def test_lock_leaves_the_errors_of_what_it_guards_alone(script, tmp_path):
    with pytest.raises(BlockingIOError), script.alone(str(tmp_path / 'train.lock')):
        raise BlockingIOError


def test_part_that_another_run_went_on_with_meanwhile_is_left_alone(script, tmp_path):
    late = script.Part(str(tmp_path / 'some.tsv'), 'fingerprint', 0, 1)
    other = script.Part(str(tmp_path / 'some.tsv'), 'fingerprint', 0, 1)

    def lines():
        yield 'a\t北'
        raise Killed

    with pytest.raises(Killed):
        other.write(lines())
    with pytest.raises(script.UserError, match='another run has been at work here'):
        late.write(iter(['a\t北', 'b\t京']))
    assert script.Part(str(tmp_path / 'some.tsv'), 'fingerprint', 0, 1).lines == ['a\t北']


def test_part_of_other_questions_is_started_afresh_and_says_so(script, tmp_path, capsys):
    (tmp_path / 'some.tsv.0-of-1.unfinished').write_text(
        'other fingerprint\na\t北京\n', encoding='utf-8'
    )
    part = script.Part(str(tmp_path / 'some.tsv'), 'fingerprint', 0, 1)
    assert (
        part.lines == []
        and 'some.tsv: begun with other weights, constants' in capsys.readouterr().err
    )
    part.write(iter([]))
    script.Part(str(tmp_path / 'some.tsv'), 'fingerprint', 0, 1).join()
    assert (tmp_path / 'some.tsv').read_bytes() == b'' and not capsys.readouterr().err


@pytest.mark.parametrize('cut', range(1, 9))
def test_part_cut_off_anywhere_keeps_its_complete_lines(script, tmp_path, cut):
    """Also in the middle of a character, of three bytes here."""
    whole = 'fingerprint\na\t北京\nb\t上海\n'.encode()
    (tmp_path / 'some.tsv.0-of-1.unfinished').write_bytes(whole[:-cut])
    part = script.Part(str(tmp_path / 'some.tsv'), 'fingerprint', 0, 1)
    assert part.lines == ['a\t北京']
    part.write(iter(['b\t天津']))
    part.join()
    assert (tmp_path / 'some.tsv').read_text(encoding='utf-8') == 'a\t北京\nb\t天津\n'


@pytest.fixture
def little_room(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / 'little_room'
    folder.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip('needs root, to mount a small file system')
    yield folder
    subprocess.run(['umount', folder], check=True)


def test_training_without_room_keeps_what_it_has_and_goes_on_with_room(
    script, train, undisturbed, little_room, monkeypatch
):
    """Whatever it is that finds the disk full."""
    output, ballast = little_room / 'output', little_room / 'ballast'
    assert train(output, epochs=1)[0] == 0
    best = (output / 'best_model.weights.h5').read_bytes()
    moments = [
        (script, 'write_config'),
        (script.Progress, 'back_up'),
        (script, 'save_best_weights'),
    ]
    for owner, function in moments:
        original = getattr(owner, function)

        def without_room(*arguments, original=original):
            room = os.statvfs(output).f_bavail * os.statvfs(output).f_frsize
            ballast.write_bytes(bytes(room))
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, function, without_room)
            status, last_line, err = train(output)
        assert (status, last_line) == (2, []) and 'Traceback' not in err
        assert re.search(
            r'cannot be written \(.*No space left.*\); make room', err.splitlines()[-1]
        )
        assert not list(output.rglob('.unfinished*'))
        assert (output / 'best_model.weights.h5').read_bytes() == best
        script.load_reader()
        ballast.unlink()
    status, last_line, _ = train(output)
    assert status == 0 and results(output, last_line) == undisturbed.results


@pytest.mark.parametrize('share', [0.3, 0.6, 0.9])
def test_weights_for_which_there_is_little_room_are_not_begun(script, study, little_room, share):
    """HDF5 may crash when the disk is full before the end."""
    model, _ = build_small_model(script, study)
    script.output_dir = str(little_room)
    script.save_best_weights(model, 'some BERT')
    path = little_room / 'best_model.weights.h5'
    before, size = path.read_bytes(), path.stat().st_size
    room = os.statvfs(little_room).f_bavail * os.statvfs(little_room).f_frsize
    (little_room / 'ballast').write_bytes(bytes(room - int(share * size)))
    with pytest.raises(script.UserError, match='No space left'):
        script.save_best_weights(model, 'some BERT')
    assert path.read_bytes() == before and len(list(little_room.iterdir())) == 2
    script.load_best_weights(model, 'some BERT')


@pytest.mark.parametrize('method', ['write', 'join'])
def test_reading_without_room_goes_on_with_room(
    script, train, undisturbed, little_room, monkeypatch, method
):
    output, ballast = (
        shutil.copytree(undisturbed.output, little_room / 'output'),
        little_room / 'ballast',
    )
    (output / 'predictions.tsv').unlink()
    original = getattr(script.Part, method)

    def without_room(*arguments):
        ballast.write_bytes(bytes(os.statvfs(output).f_bavail * os.statvfs(output).f_frsize))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(script.Part, method, without_room)
        status, last_line, err = train(output, 'eval')
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    assert re.search(
        r'predictions.tsv: cannot be written \(No space left.*\); make room', err.splitlines()[-1]
    )
    assert not (output / 'predictions.tsv').exists()
    ballast.unlink()
    status, last_line, err = train(output, 'eval')
    assert status == 0 and results(output, last_line) == undisturbed.results
    assert ('8 of 8 questions are answered already' in err) == (method == 'join')


# ----------------------------------------------------------------------------------- one update and many


def test_batch_computed_in_parts_is_the_same_update(script, study):
    """Also where the parts are of several sizes, or there are fewer rows than parts."""
    script.batch_size, script.learning_rate = 9, 1e-4
    models = [build_small_model(script, study)[0] for _ in range(2)]
    tokenizer = build_small_model(script, study)[1]
    data = json.loads((study / 'WebQA.json').read_text(encoding='utf-8'))
    batch = next(script.training_dataset(data, tokenizer).as_numpy_iterator())
    updates = []
    for model, script.accumulate_steps in zip(models, (1, 4), strict=True):
        trainer = script.Trainer(model, tokenizer._token_end_id)
        trainer.dropout_rate = 0
        signature = {name: script.tf.TensorSpec([None, None], script.tf.int32) for name in batch}
        updates.append(script.tf.function(trainer.train_step, input_signature=[signature]))
    before = models[0].get_weights()
    for rows in 8, 9, 3, 1, 7:
        losses = [
            update({name: ids[:rows] for name, ids in batch.items()})['loss'].numpy()
            for update in updates
        ]
        assert np.allclose(*losses, rtol=1e-6)
        pairs = zip(*[model.get_weights() for model in models], strict=True)
        assert max(np.abs(a - b).max() for a, b in pairs) <= 1e-6
    assert (
        max(np.abs(a - b).max() for a, b in zip(before, models[0].get_weights(), strict=True))
        > 2e-4
    )


@pytest.mark.parametrize('name', ['standardize', 'with_slope'])
def test_gradient_written_by_hand_is_the_automatic_one(script, name):
    """It keeps less for the gradient, and must not differ but by rounding."""
    tf = script.tf
    plain = {
        'standardize': lambda x: (
            (x - tf.reduce_mean(x, -1, keepdims=True))
            / tf.sqrt(tf.math.reduce_variance(x, -1, keepdims=True) + 1e-3)
        ),
        'with_slope': lambda x: tf.nn.gelu(x, approximate=False),
    }[name]
    ours = {
        'standardize': lambda x: script.standardize(x, 1e-3),
        'with_slope': script.with_slope(plain),
    }[name]
    x, weights = (
        tf.constant(np.random.default_rng(seed).normal(size=[5, 7]), tf.float32) for seed in (0, 1)
    )
    found = []
    for function in plain, ours:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(weights * y)
        found.append((y.numpy(), tape.gradient(loss, x).numpy()))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_padding_adds_nothing_to_the_gradient_of_packing(script):
    """What was unpacked did not look at it, although a gather fills it with something."""
    tf, heads, size = script.tf, 2, 5
    rows, columns = np.array([0, 0, 1, 1, 1, 2], np.int32), np.array([0, 1, 0, 1, 2, 0], np.int32)
    packed = np.random.default_rng(0).normal(size=[6, heads * size]).astype(np.float32)
    padded = np.zeros([3, heads, 4, size], np.float32)
    padded[rows, :, columns] = packed.reshape([6, heads, size])
    pad, unpad = script.packing(rows, columns, [3, heads, 4])
    for function, x, weights in (unpad, padded, packed), (pad, packed, padded):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(weights * y)
        np.testing.assert_array_equal(np.where(weights == 0, 0, y), weights)
        np.testing.assert_array_equal(tape.gradient(loss, x), x)


def drawn(script, data, tokenizer, **arguments):
    """All batches of `training_dataset`: for each its rows, (token ids, segment ids) without padding."""
    batches = []
    for batch in script.training_dataset(data, tokenizer, **arguments).as_numpy_iterator():
        token_ids, segment_ids = batch['Input-Token'], batch['Input-Segment']
        lengths = np.count_nonzero(token_ids, 1)
        rows = zip(token_ids.tolist(), segment_ids.tolist(), lengths, strict=True)
        batches.append([(tokens[:length], segments[:length]) for tokens, segments, length in rows])
    return batches


@pytest.fixture
def questions(script, study):
    """(records, tokenizer) for epochs of 7 batches, in windows of 3, the last of a single row."""
    script.batch_size, script.epochs = 4, 3
    rng = np.random.default_rng(1)
    yield (
        [varied_record(f'Q{i}', rng) for i in range(25)],
        script.load_tokenizer(str(study / 'vocab.txt'))[0],
    )


def test_data_from_an_update_on_is_the_rest_of_all(script, questions, monkeypatch):
    monkeypatch.setattr(script, 'window', 3)
    batches = drawn(script, *questions)
    assert len(batches) == 21
    for step in 0, 1, 3, 6, 7, 8, 20, 21:
        assert drawn(script, *questions, step=step) == batches[step:]


def test_end_of_training_waits_for_no_tuning(script, questions):
    """A thread of TensorFlow's, which tunes the pipeline, sleeps for up to a minute and may not notice the end."""
    assert script.training_dataset(*questions).options().autotune.enabled is False


@pytest.mark.parametrize(('workers', 'replicas'), [(1, 2), (2, 2), (3, 3), (2, 4)])
def test_replicas_share_each_batch(script, questions, workers, replicas):
    """The last batch has one row: all but the first get an empty one, of the same rank."""
    batches = drawn(script, *questions)
    contexts = [
        script.tf.distribute.InputContext(workers, worker, replicas) for worker in range(workers)
    ]
    dealt = [drawn(script, *questions, context=context) for context in contexts]
    for step, batch in enumerate(batches):
        here = replicas // workers
        shares = [part for parts in dealt for part in parts[step * here : (step + 1) * here]]
        joined = [row for rows in itertools.zip_longest(*shares) for row in rows if row is not None]
        assert joined == batch
        assert [len(share) for share in shares] == [
            len(batch[replica::replicas]) for replica in range(replicas)
        ]
    assert all(len(parts) == len(batches) * replicas // workers for parts in dealt)


def test_every_epoch_draws_each_question_once_and_sorts_windows(script, questions, monkeypatch):
    monkeypatch.setattr(script, 'window', 3)
    orders = []
    for epoch in range(3):
        windows = [script.draw_window(*questions, epoch, number) for number in range(3)]
        orders.append([i for batches in windows for batch in batches for i, *_ in batch])
        assert sorted(orders[-1]) == list(range(25))
        assert [len(batches) for batches in windows] == [3, 3, 1]
        for batches in windows:
            by_length = sorted([len(token_ids) for _, token_ids, _ in batch] for batch in batches)
            assert list(itertools.chain(*by_length)) == sorted(itertools.chain(*by_length))
    assert len({tuple(order) for order in orders}) == 3


def test_learning_rate_rises_and_falls(script, study, tmp_path):
    """Adam moves a weight of constant gradient by the learning rate; a backup knows where it stood."""
    script.learning_rate, script.warmup_steps, script.decay_steps, script.output_dir = (
        0.1,
        4,
        5,
        str(tmp_path),
    )

    def move(updates):
        model, tokenizer = build_small_model(script, study)
        trainer = script.Trainer(model, tokenizer._token_end_id)
        progress = script.Progress(trainer, tokenizer, [], None, {}, is_chief=True)
        progress.begin()
        weight = model.trainable_weights[0]
        moves = []

        @script.tf.function
        def update():
            trainer.optimizer.apply_gradients([(script.tf.ones_like(weight), weight)])

        for _ in range(updates):
            before = weight.numpy()
            update()
            moves.append(np.mean(before - weight.numpy()))
            progress.state['step'] += 1
        progress.back_up()
        return moves

    rates = [0, 0.025, 0.05, 0.075, 0.1, 0.08, 0.06, 0.04, 0.02, 0, 0]
    assert np.allclose(move(6) + move(5), rates, atol=1e-5)


# ---------------------------------------------------------------------------------------- several workers


def position(worker, ports=(1, 2)):
    """TF_CONFIG of one of two workers."""
    cluster = {'worker': [f'127.0.0.1:{port}' for port in ports]}
    return json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': worker}})


def test_two_workers_predict_what_one_does(script, train, undisturbed, tmp_path, monkeypatch):
    """The first waits for the second, whose part is absent until it is complete."""
    output, part = tmp_path / 'output', tmp_path / 'output' / 'predictions.tsv.1-of-2'
    shutil.copytree(undisturbed.output, output)
    (output / 'predictions.tsv').rename(
        output / 'predictions.tsv.2-of-3.unfinished'
    )  # three workers, interrupted
    original = script.ReadingComprehension.answers

    def cut_off(*arguments):
        yield from itertools.islice(original(*arguments), 2)
        raise Killed

    def wait(seconds):  # meanwhile the second goes on
        assert not part.exists() and not (output / 'predictions.tsv').exists()
        with monkeypatch.context() as patch:
            patch.setenv('TF_CONFIG', position(1))
            status, last_line, err = train(output, 'eval')
        assert (status, last_line) == (0, []) and '2 of 4 questions are answered already' in err
        assert part.exists() and not (output / 'predictions.tsv').exists()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setenv('TF_CONFIG', position(1))
        patch.setattr(script.ReadingComprehension, 'answers', cut_off)
        train(output, 'eval')
    assert not part.exists()
    monkeypatch.setenv('TF_CONFIG', position(0))
    monkeypatch.setattr(time, 'sleep', wait)
    status, last_line, _ = train(output, 'eval')
    assert status == 0 and results(output, last_line) == undisturbed.results
    assert not list(output.glob('predictions.tsv.*'))


def test_two_processes_predict_what_one_does(study, undisturbed, tmp_path):
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    (output / 'predictions.tsv').unlink()
    workers = [
        Process(tmp_path, 'eval', *options(study, output), name=k, TF_CONFIG=position(k))
        for k in (1, 0)
    ]
    last_lines = [worker.end() for worker in workers]
    assert last_lines[0] == [] and results(output, last_lines[1]) == undisturbed.results


def keep_weights(path):
    """A change to the script: keep the weights at the end of training."""
    return f"""
fit = task.fit
def fit_and_keep(trainer, *arguments):
    fit(trainer, *arguments)
    task.np.savez({str(path)!r}, *[weight.numpy() for weight in trainer.bert.weights])
task.fit = fit_and_keep
"""


def distance(path, other):
    """The largest difference between two files of weights."""
    with np.load(path) as weights, np.load(other) as others:
        return max(np.abs(weights[name] - others[name]).max() for name in weights)


TWO_DEVICES = """
task.tf.config.set_logical_device_configuration(
    task.tf.config.list_physical_devices('CPU')[0], [task.tf.config.LogicalDeviceConfiguration()] * 2
)
task.choose_strategy = lambda: task.tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
"""


WITHOUT_END = """
def evaluate_sample(*_):
    task.log('without end')
    task.time.sleep(600)
task.evaluate_sample = evaluate_sample
"""


def free_ports():
    """Two ports of 127.0.0.1 that nobody listens on."""
    with (
        socket.create_server(('127.0.0.1', 0)) as one,
        socket.create_server(('127.0.0.1', 0)) as other,
    ):
        return one.getsockname()[1], other.getsockname()[1]


def two_workers(folder, arguments, changes=('', ''), outputs=None):
    """Start both workers of a training. Returns the processes."""
    ports, outputs = free_ports(), outputs or [folder / 'output'] * 2
    return [
        Process(
            folder,
            'train',
            *arguments,
            f'--output_dir={output}',
            changes=change,
            name=k,
            TF_CONFIG=position(k, ports),
        )
        for k, (change, output) in enumerate(zip(changes, outputs, strict=True))
    ]


@pytest.fixture(scope='module')
def without_dropout(study, tmp_path_factory):
    """`study` without dropout: (output folder, options, weights) of two epochs on one device."""
    folder = tmp_path_factory.mktemp('without_dropout')
    shutil.copytree(study, folder, dirs_exist_ok=True)
    config = json.loads((folder / 'bert_config.json').read_text(encoding='utf-8'))
    write_json(folder / 'bert_config.json', {**config, 'hidden_dropout_prob': 0.0})
    # not faster: Adam turns rounding errors of gradients near 0 into steps that the learning rate multiplies
    arguments = options(folder, folder / 'output', epochs=2, learning_rate=5e-4)
    Process(folder, 'train', *arguments, changes=keep_weights(folder / 'weights.npz')).end()
    return folder / 'output', arguments, folder / 'weights.npz'


def test_two_devices_learn_what_one_does(without_dropout, tmp_path):
    """A batch of each epoch has a single row, so one of them has nothing to do."""
    output, arguments, weights = without_dropout
    changes = TWO_DEVICES + keep_weights(tmp_path / 'weights.npz')
    Process(
        tmp_path, 'train', *arguments, f'--output_dir={tmp_path / "output"}', changes=changes
    ).end()
    assert distance(weights, tmp_path / 'weights.npz') <= 1e-5
    np.testing.assert_allclose(losses(tmp_path / 'output'), losses(output), rtol=1e-4)


def losses(output):
    """The loss of each epoch."""
    with open(output / 'log.csv', encoding='utf-8') as file:
        return [float(row['loss']) for row in csv.DictReader(file)]


def test_two_workers_learn_what_one_does_and_only_the_first_writes(without_dropout, tmp_path):
    output, arguments, weights = without_dropout
    kept, outputs = (
        [tmp_path / f'{k}.npz' for k in range(2)],
        [tmp_path / f'output{k}' for k in range(2)],
    )
    workers = two_workers(tmp_path, arguments, list(map(keep_weights, kept)), outputs)
    last_lines = [worker.end() for worker in workers]
    assert distance(weights, kept[0]) <= 1e-5 and distance(*kept) == 0
    assert set(os.listdir(outputs[0])) == set(os.listdir(output)) and os.listdir(outputs[1]) == []
    assert last_lines[0] and not last_lines[1]
    np.testing.assert_allclose(losses(outputs[0]), losses(output), rtol=1e-4)


def test_workers_that_do_not_begin_alike_are_refused(without_dropout, tmp_path):
    """One that does not share the output folder would go on from the start, with what the others learnt."""
    output, arguments, _ = without_dropout
    outputs = [shutil.copytree(output, tmp_path / 'output'), tmp_path / 'not_shared']
    for worker in two_workers(tmp_path, [*arguments, '--epochs=3'], outputs=outputs):
        assert worker.end(2) == [] and 'Traceback' not in worker.said()
        assert (
            'the workers begin with different backups, data or constants'
            in worker.said().splitlines()[-1]
        )


@pytest.mark.parametrize('asked', [0, 1])
def test_signal_to_one_worker_stops_all_after_the_same_update(without_dropout, tmp_path, asked):
    """A scheduler's warning does not reach all at once; the first one must still be there to back up."""
    _, arguments, weights = without_dropout
    kept = [tmp_path / f'{k}.npz' for k in range(2)]
    workers = two_workers(tmp_path, [*arguments, '--backup_minutes=10'], [SLOWLY, SLOWLY])
    workers[0].wait_for('Epoch 2/')
    workers[asked].process.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.end(130)
    [stopped] = {re.search(r'stopped after update (\d+);', worker.said())[1] for worker in workers}
    assert list((tmp_path / 'output').glob(f'backup-{stopped}-1'))
    workers = two_workers(
        tmp_path, [*arguments, '--backup_minutes=10'], list(map(keep_weights, kept))
    )
    for worker in workers:
        worker.end()
        assert f'continuing after update {stopped} of' in worker.said()
    assert distance(weights, kept[0]) <= 1e-5


def test_first_of_two_workers_scores_alone_in_bfloat16(without_dropout, tmp_path):
    """The copies it reads with must not be variables of both workers, or it would wait for the other one forever."""
    _, arguments, _ = without_dropout
    for worker in two_workers(tmp_path, [*arguments, '--precision=bfloat16'], ['', '']):
        worker.end(timeout=100)


@pytest.mark.parametrize(
    ('victim', 'moment', 'changes'),
    [
        (0, 'Epoch 2/', ['', SLOWLY]),
        (1, 'Epoch 2/', ['', SLOWLY]),
        (0, 'without end', [WITHOUT_END, '']),
    ],
)
def test_worker_whose_fellow_was_killed_ends_and_both_can_be_restarted(
    without_dropout, tmp_path, victim, moment, changes
):
    """TensorFlow notices the broken connection within seconds, also while the other waits for the first one's score."""
    _, arguments, weights = without_dropout
    kept = [tmp_path / f'{k}.npz' for k in range(2)]
    workers = two_workers(tmp_path, arguments, changes)
    workers[0].wait_for(moment)
    workers[victim].process.kill()
    workers[victim].process.wait()
    other = workers[1 - victim]
    other.end(2, timeout=60)
    assert 'Traceback' not in other.said()
    assert re.fullmatch(
        r'TensorFlow broke off \(Collective ops is aborted by: .*\); run the same command, of all workers, to continue',
        other.said().strip().splitlines()[-1],
    )
    workers = two_workers(tmp_path, arguments, list(map(keep_weights, kept)))
    for worker in workers:
        worker.end()
        assert 'continuing after update' in worker.said()
    assert distance(weights, kept[0]) <= 1e-5 and distance(*kept) == 0
