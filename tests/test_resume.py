"""support/resume.py: a training ends as if nothing had interrupted it, whatever does."""

import contextlib
import os
import re
import shutil
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import runs
from conftest import record, refusal, write_json
from runs import RESULTS, Killed, Process, backup, options, results

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
    shown, whole = runs.curves(output), runs.curves(undisturbed.output)
    assert shown.pop('train/batch_loss').items() <= whole.pop('train/batch_loss').items()
    assert shown == whole


def files_in(folder):
    paths = (path for path in folder.rglob('*') if path.is_file() and path.name != runs.LOCK)
    return {path: path.read_bytes() for path in paths}


# in the order of a training; a backup is made after every update until the third
MOMENTS = f"""before random_order.json, before {backup(1, 0)}, after {backup(8, 0)}, after {BEST},
after log.csv, after TensorBoard, after {backup(8, 1)},
after {backup(24, 3)}, before predictions.tsv, after predictions.tsv"""


@contextlib.contextmanager
def killed(moment, output, image):
    """Kill a training that is run meanwhile; `image` becomes what its output folder is then."""

    def pass_by(passed):
        if passed == moment:
            shutil.copytree(output, image)
            raise Killed

    replace, on_epoch_end = os.replace, Log.on_epoch_end

    def appear(source, target):
        pass_by(f'before {os.path.basename(target)}')
        replace(source, target)
        pass_by(f'after {os.path.basename(target)}')

    def log(*arguments):
        on_epoch_end(*arguments)
        pass_by('after TensorBoard')

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, 'replace', appear)
        patch.setattr(Log, 'on_epoch_end', log)
        yield


def test_training_cut_off_after_a_step_ends_as_if_it_had_not_been(train, undisturbed, tmp_path):
    """An epoch's end has several steps: it is backed up, scored, weights are kept, it is logged,
    and backed up again. None of them may be lost, or be made with what only a later one knows."""
    output = tmp_path / '0'
    for number, moment in enumerate(re.split(r',\s', MOMENTS), 1):
        with killed(moment, output, tmp_path / f'{number}'):
            train(output, backup_minutes=runs.ALWAYS if number < 3 else 10)
        output = tmp_path / f'{number}'
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 24 of 24' in err
    assert_undisturbed(output, last_line, undisturbed)


def test_training_that_was_killed_ends_as_if_it_had_not_been(study, train, undisturbed, tmp_path):
    """A real kill, in the middle of the second epoch, of a process; another one goes on."""
    output = tmp_path / 'output'
    arguments = options(study, output, backup_minutes=runs.ALWAYS)
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

    def start(name):
        arguments = options(study, tmp_path / f'output{name}', backup_minutes=0.001)
        return Process(tmp_path, 'train', *arguments, name=name)

    life, rng, kills = start('whole').life(), np.random.default_rng(0), 0
    while kills < 20:
        number, killed = kills, True
        while killed:
            process = start(number)
            killed = process.killed_after(rng.uniform(0, life) if kills < 20 else 120)
            kills += killed
        assert_undisturbed(tmp_path / f'output{number}', process.end(), undisturbed)
    with capsys.disabled():
        print(f' {kills} kills survived ', end='')


def stopped_after(said):
    line = said.strip().splitlines()[-1]
    return int(
        re.fullmatch(r'stopped after update (\d+); run the same command to continue', line)[1]
    )


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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                owner, name, lambda *given: (original(*given), os.kill(os.getpid(), signal.SIGTERM))
            )
            status, last_line, err = train(output)
        assert (status, last_line, stopped_after(err)) == (130, [], 24)

    interrupted_after(script.Tally, 'add')
    assert set(os.listdir(output)) == before
    assert runs.curves(output)['validation/epoch_Final'].keys() == {0, 1}
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


def test_more_epochs_continue_as_if_there_had_been_as_many_from_the_start(
    train, undisturbed, tmp_path
):
    """In a folder of any name, also one of bytes that are no UTF-8 and of what is a pattern."""
    output = tmp_path / 'a[b]\\\udcff'
    assert train(output, epochs=1)[0] == 0
    with lock(str(output / runs.LOCK)):  # nor may two be at work
        status, _, err = train(output)
        assert status == 2 and 'another run is at work here' in err.splitlines()[-1]
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 8 of 24' in err
    assert results(output, last_line) == undisturbed.results


LAST, AS_WRITTEN = backup(16, 2), 'damaged (it is not as it was written); start afresh with another'
STATE, WEIGHTS = f'{LAST}/state.json', f'{LAST}/weights.index'
OTHER = Path('../other', backup(24, 3))
REFUSED = [  # constants; a file, and what it holds then, a function of its bytes; what is said
    ({'learning_rate': 0.002}, None, 'learning_rate = 0.003, now 0.002; change that back, or star'),
    ({'data_dir': '../data'}, None, 'made with the data = '),
    ({'checkpoint_path': '../other'}, None, 'made with the first weights = '),
    ({}, (STATE, lambda sound: sound.replace(b'"step": 16', b'"step": 15')), AS_WRITTEN),
    ({}, (WEIGHTS, lambda sound: (OTHER / 'weights.index').read_bytes()), AS_WRITTEN),
    ({}, (WEIGHTS, None), 'damaged ('),
    ({}, (BEST, None), f'{BEST} has gone; put it back, or start afresh'),
]


@pytest.mark.parametrize(('constants', 'change', 'message'), REFUSED)
def test_what_cannot_be_continued_is_refused_and_left_as_it_is(
    train, study, undisturbed, tmp_path, monkeypatch, constants, change, message
):
    """Rather than to start from the beginning, over what is there."""
    output = shutil.copytree(undisturbed.stages / LAST, tmp_path / 'output')
    shutil.copytree(undisturbed.output, tmp_path / 'other')
    shutil.copytree(study, tmp_path / 'data')
    write_json(tmp_path / 'data' / 'WebQA.json', [record(f'W{i}') for i in range(3)])
    monkeypatch.chdir(output)
    if change:
        path, changed = output / change[0], change[1]
        path.write_bytes(changed(path.read_bytes())) if changed else path.unlink()
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
    (tmp_path / 'mine' / 'sub').mkdir(parents=True)
    for state.step in 9, 10:
        backups.write()
        shutil.copytree(tmp_path / backup(state.step, 0), tmp_path / f'kept {state.step}')
    for name in backup(9, 0), runs.half_written(backup(11, 0)), f'{backup(12, 0)}.zip':
        shutil.copytree(tmp_path / 'kept 9', tmp_path / name)
    (tmp_path / backup(1, 0)).symlink_to(tmp_path / 'mine')
    state.step = 0
    assert backups.restore() == str(tmp_path / backup(10, 0)) and state.step == 10
    state.step = 11
    backups.write()
    left = {backup(11, 0), f'{backup(12, 0)}.zip', 'kept 9', 'kept 10', 'mine'}
    assert {*os.listdir(tmp_path)} == left and os.listdir(tmp_path / 'mine') == ['sub']


def test_weights_for_which_there_is_no_room_leave_those_of_before(small_bert, little_room):
    """However much of them there is room for."""
    model, path, folder = small_bert[0], little_room / BEST, str(little_room)
    bert.save_best(folder, model, 'some BERT')
    before = path.read_bytes()
    for share in 0.3, 0.6, 0.9:
        runs.fill(little_room / 'ballast', but=int(share * len(before)))
        assert 'No space left' in refusal(bert.save_best, folder, model, 'some BERT')
        (little_room / 'ballast').unlink()
        assert os.listdir(little_room) == [BEST] and path.read_bytes() == before


@pytest.mark.parametrize(
    ('number', 'moment', 'change'),
    [
        (1, 'Epoch 2/', 'slow_updates()'),
        pytest.param(0, 'without end', 'endless_scoring()', marks=pytest.mark.slow),
    ],
)
def test_two_workers_are_killed_and_stopped_and_end_as_if_they_had_not_been(
    script, without_dropout, tmp_path, number, moment, change
):
    """When one is killed, the other ends in one line; when one is warned, both stop after the same
    update. One process alone goes on here, to the same weights but for rounding."""
    output, (_, arguments, weights) = tmp_path / 'output', without_dropout
    workers = runs.two_workers(tmp_path, arguments, [[change]] * 2)
    workers[0].wait_for(moment)
    workers[number].kill()
    other = workers[1 - number]
    other.end(2, timeout=60)
    said = r'TensorFlow broke off \(Collective ops is aborted by: .*\); run the same .* to continue'
    assert re.fullmatch(said, other.said().strip().splitlines()[-1])
    assert 'Traceback' not in other.said()
    workers = runs.two_workers(tmp_path, arguments, [['slow_updates()']] * 2)
    workers[0].wait_for('Epoch 2/')
    workers[number].send(signal.SIGTERM)
    for worker in workers:
        worker.end(130)
        assert 'continuing after update 8 of 16' in worker.said()
    [stopped] = {stopped_after(worker.said()) for worker in workers}
    assert (output / backup(stopped, 1)).exists() and stopped > 8
    with pytest.MonkeyPatch.context() as patch:
        runs.keep_weights(tmp_path / 'weights.npz', patch.setattr)
        status, _, err = runs.call(script, 'train', *arguments, f'--output_dir={output}')
    assert status == 0 and f'continuing after update {stopped} of 16' in err
    assert runs.distance(weights, tmp_path / 'weights.npz') <= 1e-5
