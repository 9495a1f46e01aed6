"""support/resume.py: a training ends as if nothing had interrupted it, whatever does."""

import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import types

import numpy as np
import pytest
from conftest import record, refusal, write_json
from runs import (
    ALWAYS,
    LOCK,
    RESULTS,
    Killed,
    Process,
    backup,
    call,
    curves,
    distance,
    fill,
    half_written,
    keep_weights,
    options,
    results,
    two_workers,
)

from support import bert
from support.files import lock
from support.keras2 import tf
from support.resume import Backups, State, Stop
from support.training import Log

pytestmark = pytest.mark.usefixtures('built_once')
BEST = RESULTS[0]


def assert_undisturbed(output, last_line, undisturbed):
    """Not a byte may differ, nothing may be left over, and TensorBoard has every epoch.

    Of updates it has what a kill left, and what was made again is the same.
    """
    assert results(output, last_line) == undisturbed.results
    assert set(os.listdir(output)) == set(os.listdir(undisturbed.output))
    shown, whole = curves(output), curves(undisturbed.output)
    assert shown.pop('train/batch_loss').items() <= whole.pop('train/batch_loss').items()
    assert shown == whole


def files_in(folder):
    """All files, {path: bytes}, but the lock."""
    paths = (path for path in folder.rglob('*') if path.is_file() and path.name != LOCK)
    return {path: path.read_bytes() for path in paths}


# -------------------------------------------------------------------------------------------- kills

# in the order of a training; a backup is made after every update until the fifth
MOMENTS = f"""before random_order.json, after config.json, before {backup(1, 0)},
after {backup(2, 0)}, after {backup(8, 0)}, before {BEST}, after {BEST}, after log.csv,
after TensorBoard, after {backup(8, 1)}, after {backup(16, 2)}, after {backup(24, 2)},
after {backup(24, 3)}, before predictions.tsv, after predictions.tsv"""


@contextlib.contextmanager
def killed(moment, output, image):
    """Kill a training that is run meanwhile at a moment: something appears, or is done.

    `image` becomes a copy of the output folder as it is then, with what is half-written.
    """

    def pass_by(passed):
        if passed == moment:
            shutil.copytree(output, image)
            raise Killed

    replace, on_epoch_end = os.replace, Log.on_epoch_end

    def appear(source, target):
        pass_by(f'before {os.path.basename(target)}')
        replace(source, target)
        pass_by(f'after {os.path.basename(target)}')

    def add(*arguments):
        on_epoch_end(*arguments)
        pass_by('after TensorBoard')

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, 'replace', appear)
        patch.setattr(Log, 'on_epoch_end', add)
        yield


def test_training_cut_off_after_a_step_ends_as_if_it_had_not_been(train, undisturbed, tmp_path):
    """One training, killed again and again, and each time continued from what a kill leaves.

    An epoch's end has several steps: it is backed up, scored, its weights are kept, it is logged,
    and backed up again. None of them may be lost, or be made with what only a later one knows.
    """
    output = tmp_path / '0'
    for number, moment in enumerate(re.split(r',\s', MOMENTS), 1):
        image = tmp_path / f'{number}'
        with killed(moment, output, image):
            train(output, backup_minutes=ALWAYS if number < 5 else 10)
        output = image
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 24 of 24' in err
    assert_undisturbed(output, last_line, undisturbed)


def test_training_that_was_killed_ends_as_if_it_had_not_been(study, train, undisturbed, tmp_path):
    """A real kill, in the middle of the second epoch, of a process; another one goes on."""
    output = tmp_path / 'output'
    arguments = options(study, output, backup_minutes=ALWAYS)
    process = Process(tmp_path, 'train', *arguments, changes=['slow_updates()'])
    process.wait_until((output / backup(10, 1)).exists)
    assert process.kill() == -signal.SIGKILL and not (output / backup(16, 1)).exists()
    status, last_line, err = train(output)
    assert status == 0 and re.search(r'continuing after update 1[0-5] of 24', err)
    assert_undisturbed(output, last_line, undisturbed)


@pytest.mark.slow
def test_training_killed_at_any_moment_ends_as_if_it_had_not_been(
    study, undisturbed, tmp_path, capsys
):
    """Not even a backup that was being written, or weights that were being saved, change a byte."""
    life = Process(tmp_path, 'train', *options(study, tmp_path / 'whole', backup_minutes=0.001))
    life = life.life()

    def lane(number):  # one of two that run at once
        rng, kills = np.random.default_rng(number), 0
        while kills < 10:
            output = tmp_path / f'output{number}-{kills}'
            arguments = options(study, output, backup_minutes=0.001)
            while True:
                process = Process(tmp_path, 'train', *arguments, name=number)
                if not process.killed_after(rng.uniform(0, life) if kills < 10 else 120):
                    break
                kills += 1
            assert_undisturbed(output, process.end(), undisturbed)
        return kills

    with concurrent.futures.ThreadPoolExecutor() as pool:
        kills = sum(pool.map(lane, range(2)))
    with capsys.disabled():
        print(f' {kills} kills survived ', end='')


# ------------------------------------------------------------------------------------------ signals


def stopped_after(said):
    """The update that a run says at its end to have stopped after."""
    line = said.strip().splitlines()[-1]
    stopped = re.fullmatch(r'stopped after update (\d+); run the same command to continue', line)
    return int(stopped[1])


def test_signal_backs_up_and_says_how_to_continue(train, undisturbed, tmp_path):
    """Nothing but the signal asks for a backup here; the update it interrupts is finished."""
    output, on_train_batch_end = tmp_path / 'output', Stop.on_train_batch_end
    for number, step, backed_up in (signal.SIGINT, 10, (10, 1)), (signal.SIGTERM, 20, (20, 2)):

        def signalled(stop, *arguments, number=number, step=step):
            if stop.backups.state.step == step:
                os.kill(os.getpid(), number)
            on_train_batch_end(stop, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stop, 'on_train_batch_end', signalled)
            status, last_line, err = train(output)
        assert (status, last_line, stopped_after(err)) == (130, [], step)
        assert (output / backup(*backed_up)).exists()
        assert ('continuing after update 10 of 24' in err) == (step == 20)
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 20 of 24' in err
    assert_undisturbed(output, last_line, undisturbed)


def test_signal_while_an_epoch_is_scored_is_heard(script, train, undisturbed, tmp_path):
    """At once, for the backup is made: the rest of the sample is left to the next run.

    So is the score of all validation questions, which takes hours, if the last epoch's is done.
    """
    output = shutil.copytree(undisturbed.stages / backup(24, 2), tmp_path / 'output')
    before = set(os.listdir(output))

    def interrupted_after(owner, name):
        original = getattr(owner, name)

        def interrupted(*arguments):
            yielded = original(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)
            return yielded

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            status, last_line, err = train(output)
        assert (status, last_line, stopped_after(err)) == (130, [], 24)

    interrupted_after(script.Tally, 'add')
    assert set(os.listdir(output)) == before
    assert curves(output)['validation/epoch_Final'].keys() == {0, 1}
    interrupted_after(script.Evaluator, 'on_epoch_end')
    assert (output / backup(24, 3)).exists() and not (output / 'predictions.tsv').exists()
    status, last_line, _ = train(output)
    assert status == 0
    assert_undisturbed(output, last_line, undisturbed)


def test_second_signal_ends_at_once(capsys):
    """Who asks twice does not want to wait for the end of an update."""
    stop = Stop(types.SimpleNamespace(state=State(step=3)), workers=1)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert 'stopping after this update; once more to stop at once' in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt, match='stopped after update 3'):
            stop.if_asked()
        with pytest.raises(KeyboardInterrupt, match=r'^$'):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# -------------------------------------------------------------- what a backup is not continued with


def test_more_epochs_continue_as_if_there_had_been_as_many_from_the_start(
    train, undisturbed, tmp_path
):
    """In a folder of any name, also one of bytes that are no UTF-8 and of what is a pattern."""
    output = tmp_path / 'a[b]\\\udcff'
    assert train(output, epochs=1)[0] == 0
    with lock(str(output / LOCK)):  # nor may two be at work
        status, _, err = train(output)
        assert status == 2 and 'another run is at work here' in err.splitlines()[-1]
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 8 of 24' in err
    assert results(output, last_line) == undisturbed.results


def change(name, changed):
    """Change a file of an output folder by a function of its bytes; b'' removes it."""

    def apply(output):
        path = output / name
        content = changed(path.read_bytes())
        path.write_bytes(content) if content else path.unlink()

    return apply


LAST, AS_WRITTEN = backup(16, 2), 'damaged (it is not as it was written); start afresh with another'
STATE, WEIGHTS = f'{LAST}/state.json', f'{LAST}/weights.index'
REFUSED = [
    ({'learning_rate': 0.002}, None, 'learning_rate = 0.003, now 0.002; change that back, or star'),
    ({'seed': 2}, None, 'seed = 1, now 2; change that back, or start afresh with another output_d'),
    ({'data_dir': '../data'}, None, 'made with the data = '),
    ({'checkpoint_path': f'../{BEST}'}, None, 'made with the first weights = '),
    ({}, change(STATE, lambda s: s.replace(b'"step": 16', b'"step": 15')), AS_WRITTEN),
    ({}, change(STATE, lambda s: b'{}'), 'damaged ('),
    ({}, lambda output: shutil.copy(output / '../other/weights.index', output / LAST), AS_WRITTEN),
    ({}, change(WEIGHTS, lambda s: b''), 'damaged ('),
    ({}, change(BEST, lambda s: b''), f'{BEST} has gone; put it back, or start afresh'),
]  # fmt: skip


@pytest.mark.parametrize(('constants', 'prepare', 'message'), REFUSED)
def test_what_cannot_be_continued_is_refused_and_left_as_it_is(
    train, study, undisturbed, tmp_path, monkeypatch, constants, prepare, message
):
    """Rather than to start from the beginning, over what is there."""
    output = shutil.copytree(undisturbed.stages / LAST, tmp_path / 'output')
    shutil.copytree(undisturbed.output / backup(24, 3), tmp_path / 'other')
    shutil.copy(output / BEST, tmp_path)
    shutil.copytree(study, tmp_path / 'data')
    write_json(tmp_path / 'data' / 'WebQA.json', [record(f'W{i}') for i in range(3)])
    monkeypatch.chdir(output)
    (prepare or str)(output)
    before = files_in(output)
    status, last_line, err = train(output, **constants)
    line = err.splitlines()[-1]
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    assert line.startswith(str(output)) and message in line
    assert files_in(output) == before


def test_newest_backup_is_taken_and_older_ones_are_removed(tmp_path):
    """By numbers, not by letters; with what a killed run left half-written, but nothing else.

    Of a link to somebody's own the link alone.
    """
    state, checkpoint = State(), tf.train.Checkpoint(bert=tf.Variable(0))
    backups = Backups(str(tmp_path), checkpoint, state, {}, lambda: None, is_chief=True)
    assert backups.restore() is None
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'file').touch()
    for state.step in 9, 10:
        backups.write()
        shutil.copytree(tmp_path / backup(state.step, 0), tmp_path / f'kept {state.step}')
    shutil.copytree(tmp_path / 'kept 9', tmp_path / backup(9, 0))
    shutil.copytree(tmp_path / 'kept 9', tmp_path / half_written(backup(11, 0)))
    (tmp_path / backup(1, 0)).symlink_to(tmp_path / 'mine')
    (tmp_path / f'{backup(12, 0)}.zip').write_bytes(b'made by hand')
    state.step = 0
    assert backups.restore() == str(tmp_path / backup(10, 0)) and state.step == 10
    state.step = 11
    backups.write()
    left = {backup(11, 0), f'{backup(12, 0)}.zip', 'kept 9', 'kept 10', 'mine'}
    assert {*os.listdir(tmp_path)} == left and os.listdir(tmp_path / 'mine') == ['file']


def test_weights_for_which_there_is_little_room_are_not_begun(small_bert, little_room):
    """HDF5 may crash when the disk is full before the end."""
    model, path, folder = small_bert[0], little_room / BEST, str(little_room)
    bert.save_best(folder, model, 'some BERT')
    before = path.read_bytes()
    for share in 0.3, 0.6, 0.9:
        fill(little_room / 'ballast', but=int(share * len(before)))
        assert 'No space left' in refusal(bert.save_best, folder, model, 'some BERT')
        (little_room / 'ballast').unlink()
        assert os.listdir(little_room) == [BEST] and path.read_bytes() == before


# -------------------------------------------------------------------------------------- two workers


@pytest.mark.parametrize(
    ('number', 'moment', 'change'),
    [
        pytest.param(0, 'Epoch 2/', 'slow_updates()', marks=pytest.mark.slow),
        (1, 'Epoch 2/', 'slow_updates()'),
        pytest.param(0, 'without end', 'endless_scoring()', marks=pytest.mark.slow),
    ],
)
def test_two_workers_are_killed_and_stopped_and_end_as_if_they_had_not_been(
    script, without_dropout, tmp_path, number, moment, change
):
    """TensorFlow notices within seconds when one is killed, and the other ends in one line.

    Also while it waits for the first one's score. A scheduler does not warn all at once: both
    stop after the same update, the first still there to back up. One alone goes on here, which
    ends with the same weights but for rounding.
    """
    output, (_, arguments, weights) = tmp_path / 'output', without_dropout
    workers = two_workers(tmp_path, arguments, [[change]] * 2)
    workers[0].wait_for(moment)
    workers[number].kill()
    other = workers[1 - number]
    other.end(2, timeout=60)
    broken = r'TensorFlow broke off \(Collective ops is aborted by: .*\); '
    cure = 'run the same command, of all workers, to continue'
    assert re.fullmatch(broken + cure, other.said().strip().splitlines()[-1])
    assert 'Traceback' not in other.said()
    workers = two_workers(tmp_path, arguments, [['slow_updates()']] * 2)
    workers[0].wait_for('Epoch 2/')
    workers[number].send(signal.SIGTERM)
    for worker in workers:
        worker.end(130)
        assert 'continuing after update 8 of 16' in worker.said()
    [stopped] = {stopped_after(worker.said()) for worker in workers}
    assert (output / backup(stopped, 1)).exists() and stopped > 8
    with pytest.MonkeyPatch.context() as patch:
        keep_weights(tmp_path / 'weights.npz', patch.setattr)
        status, _, err = call(script, 'train', *arguments, f'--output_dir={output}')
    assert status == 0 and f'continuing after update {stopped} of 16' in err
    assert distance(weights, tmp_path / 'weights.npz') <= 1e-5
