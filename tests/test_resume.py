"""support/resume.py: a training ends as if nothing had interrupted it, whatever does."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import types

import numpy as np
import pytest
from conftest import build_small_model, record, refusal, write_json
from runs import (
    ALWAYS,
    CONSTANTS,
    Killed,
    Process,
    call,
    curves,
    distance,
    fill,
    keep_weights,
    options,
    results,
    two_workers,
)

from support import bert, settings
from support.files import alone
from support.keras2 import tf
from support.resume import Backups, State, Stop
from support.training import Log


def assert_undisturbed(output, last_line, undisturbed):
    """Not a byte may differ, nothing may be left over, and TensorBoard has every epoch.

    Of updates it has what a kill left, and what was made again is the same.
    """
    assert results(output, last_line) == undisturbed.results
    assert set(os.listdir(output)) == set(os.listdir(undisturbed.output))
    shown, whole = curves(output), curves(undisturbed.output)
    assert shown.pop('train/batch_loss').items() <= whole.pop('train/batch_loss').items()
    assert shown == whole


# -------------------------------------------------------------------------------------------- kills

# in the order of a training; a backup is made after every update here
MOMENTS = [
    'before random_order.json', 'after config.json', 'before backup-1-0', 'after backup-2-0',
    'after backup-8-0', 'before best_model.weights.h5', 'after best_model.weights.h5',
    'after log.csv', 'after TensorBoard', 'after backup-8-1', 'after backup-16-2',
    'after backup-24-2', 'after backup-24-3', 'before predictions.tsv', 'after predictions.tsv',
]  # fmt: skip


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
    for number, moment in enumerate(MOMENTS, 1):
        image = tmp_path / f'{number}'
        with killed(moment, output, image):
            train(output, backup_minutes=ALWAYS)
        output = image
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 24 of 24' in err
    assert_undisturbed(output, last_line, undisturbed)


def test_training_that_was_killed_ends_as_if_it_had_not_been(study, train, undisturbed, tmp_path):
    """A real kill, in the middle of the second epoch, of a process; another one goes on."""
    output = tmp_path / 'output'
    arguments = options(study, output, backup_minutes=ALWAYS)
    process = Process(tmp_path, 'train', *arguments, changes=['slow_updates()'])
    process.wait_until((output / 'backup-10-1').exists)
    process.kill()
    assert process.process.returncode == -signal.SIGKILL
    assert not (output / 'backup-16-1').exists()
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


def test_everything_that_training_knows_survives(script, study, train, undisturbed, tmp_path):
    """Also the quality of the best weights, without which worse ones could take their place."""
    with open(undisturbed.output / 'backup-24-3' / 'state.json', encoding='utf-8') as file:
        state = State(**json.load(file)['state'])
    rows = (undisturbed.output / 'log.csv').read_text(encoding='utf-8').splitlines()[1:]
    finals = [float(row.split(',')[-1]) for row in rows]
    assert (state.step, state.losses, state.best) == (24, 0.0, max(finals))
    assert [row['val_Final'] for row in state.log] == finals
    trainer, output = trainer_of(script, study), tmp_path / 'output'
    shutil.copytree(undisturbed.output, output)
    again = backups_in(output, trainer)
    again.restore()
    assert again.state == state and again.checkpoint.optimizer.iterations.numpy() == 24


# ------------------------------------------------------------------------------------------ signals


def test_signal_backs_up_and_says_how_to_continue(study, train, undisturbed, tmp_path):
    """Nothing but the signal asks for a backup here; the update it interrupts is finished."""
    output = tmp_path / 'output'
    process = Process(tmp_path, 'train', *options(study, output), changes=['slow_updates()'])
    process.wait_for('Epoch 2/')
    process.process.send_signal(signal.SIGINT)
    assert process.end(130) == [] and 'Traceback' not in process.said()
    stopped = stopped_after(process.said())
    assert list(output.glob(f'backup-{stopped}-1'))

    def terminated(stop, *arguments, original=Stop.on_train_batch_end):
        if stop.backups.state.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        original(stop, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stop, 'on_train_batch_end', terminated)
        status, last_line, err = train(output)
    assert (status, last_line) == (130, []) and f'continuing after update {stopped} of 24' in err
    assert stopped_after(err) == 20 and list(output.glob('backup-20-2'))
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 20 of 24' in err
    assert_undisturbed(output, last_line, undisturbed)


def stopped_after(said):
    """The update that a run says at its end to have stopped after."""
    line = said.strip().splitlines()[-1]
    stopped = re.fullmatch(r'stopped after update (\d+); run the same command to continue', line)
    return int(stopped[1])


def test_signal_while_an_epoch_is_scored_is_heard(script, train, undisturbed, tmp_path):
    """At once, for the backup is made: the rest of the sample is left to the next run.

    So is the score of all validation questions, which takes hours, if the last epoch's is done.
    """
    output = shutil.copytree(undisturbed.stages / 'backup-24-2', tmp_path / 'output')
    before = set(os.listdir(output))

    def interrupt(owner, name, method):
        original = getattr(owner, name)

        def interrupted(*arguments):
            yielded = original(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)
            return yielded

        method.setattr(owner, name, interrupted)

    with pytest.MonkeyPatch.context() as patch:
        interrupt(script.Tally, 'add', patch)
        status, last_line, err = train(output)
    assert (status, last_line, stopped_after(err)) == (130, [], 24)
    assert set(os.listdir(output)) == before
    assert curves(output)['validation/epoch_Final'].keys() == {0, 1}
    with pytest.MonkeyPatch.context() as patch:
        interrupt(script.Evaluator, 'on_epoch_end', patch)
        status, last_line, err = train(output)
    assert (status, last_line, stopped_after(err)) == (130, [], 24)
    assert (output / 'backup-24-3').exists() and not (output / 'predictions.tsv').exists()
    status, last_line, _ = train(output)
    assert status == 0
    assert_undisturbed(output, last_line, undisturbed)


def test_second_signal_ends_at_once(tmp_path, capsys):
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


def test_run_with_other_constants_or_data_is_not_continued(train, study, undisturbed, tmp_path):
    """More epochs are welcome: they continue as if there had been as many from the start."""
    output = tmp_path / 'output'
    assert train(output, epochs=1)[0] == 0
    before = {path: path.read_bytes() for path in output.rglob('*') if path.is_file()}
    shutil.copytree(study, tmp_path / 'data')
    write_json(tmp_path / 'data' / 'WebQA.json', [record(f'W{i}') for i in range(3)])
    for name, value in ('data_dir', tmp_path / 'data'), ('learning_rate', 0.002), ('seed', 2):
        status, last_line, err = train(output, **{name: value})
        error = err.splitlines()[-1]
        assert (status, last_line) == (2, []) and 'Traceback' not in err
        differs = f'{name} = {CONSTANTS.get(name)}, now {value}'
        assert ('the data = ' if name == 'data_dir' else differs) in error
        assert 'change that back, or start afresh with another output_dir' in error
        assert {path: path.read_bytes() for path in before} == before
    status, last_line, _ = train(output)
    assert status == 0
    assert_undisturbed(output, last_line, undisturbed)


def test_run_that_began_with_other_weights_is_not_continued(train, undisturbed, tmp_path):
    """The name of a checkpoint may change, what it holds must not."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    other = undisturbed.output / 'best_model.weights.h5'
    status, last_line, err = train(output, checkpoint_path=other)
    assert (status, last_line) == (2, []) and 'made with the first weights = ' in err
    assert results(output, undisturbed.results['last line']) == undisturbed.results


def trainer_of(script, folder):
    """A Trainer of the BERT of a folder."""
    return script.build_trainer(build_small_model(script, folder)[0], script.Constants())


def backups_in(output, trainer):
    """The Backups of a run that continues what is in a folder: (its Backups, its checkpoint)."""
    checkpoint = tf.train.Checkpoint(bert=trainer.trained, optimizer=trainer.optimizer)
    return Backups(str(output), checkpoint, State(), {}, lambda: None, is_chief=True)


@pytest.fixture(scope='module')
def trainer(script, study):
    """A Trainer like that of `undisturbed`."""
    return trainer_of(script, study)


@pytest.mark.parametrize('damage', ['state.json', 'weights.index', 'weights.data-00000-of-00001'])
@pytest.mark.parametrize('content', [b'', b'[]', None])
def test_damaged_backup_is_named(undisturbed, trainer, tmp_path, damage, content):
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    [backup] = output.glob('backup-*')
    (backup / damage).unlink() if content is None else (backup / damage).write_bytes(content)
    assert str(backup) in refusal(backups_in(output, trainer).restore)


def test_state_that_is_not_as_it_was_written_is_refused(undisturbed, trainer, tmp_path):
    """Though it is one that might have been; nor is a backup of two, state and weights."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    path = output / 'backup-24-3' / 'state.json'
    state = path.read_text(encoding='utf-8')
    path.write_text(state.replace('"step": 24', '"step": 23'), encoding='utf-8')
    assert 'it is not as it was written' in refusal(backups_in(output, trainer).restore)
    path.write_text(state, encoding='utf-8')
    for file in (undisturbed.stages / 'backup-16-2' / 'backup-16-2').glob('weights.*'):
        shutil.copy(file, path.parent)
    assert 'it is not as it was written' in refusal(backups_in(output, trainer).restore)


def test_damaged_backup_ends_training_in_one_line(train, undisturbed, tmp_path):
    """Rather than to start from the beginning, over what is there."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    [backup] = output.glob('backup-*')
    (backup / 'weights.index').write_bytes(b'')
    before = {path: path.read_bytes() for path in output.rglob('*') if path.is_file()}
    status, last_line, err = train(output)
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    assert f'{backup}: damaged (' in err.splitlines()[-1]
    assert {path: path.read_bytes() for path in before} == before


def test_best_weights_that_have_gone_are_missed_at_once(undisturbed, trainer, tmp_path):
    """Not after another epoch, which might not be better than the one that they were of."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    (output / 'best_model.weights.h5').unlink()
    assert 'best_model.weights.h5 has gone' in refusal(backups_in(output, trainer).restore)


def test_newest_backup_is_taken_and_older_ones_are_removed(trainer, tmp_path):
    """By numbers, not by letters; with what a killed run left half-written, but nothing else."""
    backups = backups_in(tmp_path, trainer)
    assert backups.restore() is None
    for step in 9, 10:
        backups.state.step = step
        if step == 10:
            shutil.copytree(tmp_path / 'backup-9-0', tmp_path / 'kept')
        backups.write()
    shutil.copytree(tmp_path / 'kept', tmp_path / 'backup-9-0')
    shutil.copytree(tmp_path / 'kept', tmp_path / '.unfinished.backup-11-0')
    (tmp_path / 'backup-12-0.zip').write_bytes(b'made by hand')
    again = backups_in(tmp_path, trainer)
    assert again.restore() == str(tmp_path / 'backup-10-0') and again.state.step == 10
    again.state.step = 11
    again.write()
    assert set(os.listdir(tmp_path)) == {'backup-11-0', 'backup-12-0.zip', 'kept'}


def test_state_is_restored_to_the_last_field(trainer, tmp_path):
    """The middle of an epoch too, whose losses are not to be forgotten."""
    backups = backups_in(tmp_path, trainer)
    vars(backups.state).update(step=5, losses=1 / 3, best=0.7, log=[{'epoch': 1, 'loss': 1e-17}])
    backups.write()
    (tmp_path / 'best_model.weights.h5').touch()
    again = backups_in(tmp_path, trainer)
    assert again.restore() == str(tmp_path / 'backup-5-1')
    assert again.state == backups.state != State()


def test_backup_that_is_broken_off_leaves_the_one_before(trainer, tmp_path):
    """Whatever breaks it off when its weights are written, and the rest of it is not."""
    backups = backups_in(tmp_path, trainer)
    backups.write()
    backups.state.step, write = 1, backups.checkpoint.write

    def broken_off(path):
        write(path)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(backups.checkpoint, 'write', broken_off)
        backups.write()
    assert os.listdir(tmp_path) == ['backup-0-0']
    again = backups_in(tmp_path, trainer)
    assert again.restore() == str(tmp_path / 'backup-0-0') and again.state == State()


def test_link_named_like_a_backup_is_removed_alone(trainer, tmp_path):
    """What it names is not ours."""
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'mine').touch()
    (tmp_path / 'backup-1-0').symlink_to(tmp_path / 'elsewhere')
    backups = backups_in(tmp_path, trainer)
    backups.state.step = 2
    backups.write()
    assert set(os.listdir(tmp_path)) == {'backup-2-0', 'elsewhere'}
    assert os.listdir(tmp_path / 'elsewhere') == ['mine']


def test_output_folder_may_have_any_name(train, undisturbed, tmp_path):
    """Also one of bytes that are no UTF-8, in which TensorFlow would find nothing."""
    output = tmp_path / 'a[b]\\\udcff'
    assert train(output, epochs=1)[0] == 0
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 8 of 24' in err
    assert results(output, last_line) == undisturbed.results


def test_second_run_in_a_folder_is_refused(train, undisturbed, tmp_path):
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    with alone(str(output / 'train.lock')):
        status, _, err = train(output)
    assert status == 2 and 'another run is at work here' in err.splitlines()[-1]


# ------------------------------------------------------------------------------------------ no room


def test_training_without_room_keeps_what_it_has_and_goes_on_with_room(
    script, study, train, undisturbed, little_room
):
    """Whatever it is that finds the disk full."""
    output, ballast = little_room / 'output', little_room / 'ballast'
    shutil.copytree(undisturbed.stages / 'backup-8-1', output)
    best = (output / 'best_model.weights.h5').read_bytes()
    for owner, name in (settings, 'write_config'), (Backups, 'write'), (bert, 'save_best'):
        original = getattr(owner, name)

        def without_room(*arguments, original=original):
            fill(ballast)
            return original(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, without_room)
            status, last_line, err = train(output)
        assert (status, last_line) == (2, []) and 'Traceback' not in err
        line = err.splitlines()[-1]
        assert re.search(r'cannot be written \(.*No space left.*\); make room', line)
        assert not list(output.rglob('.unfinished*'))
        assert (output / 'best_model.weights.h5').read_bytes() == best
        given = {'data_dir': str(study), 'checkpoint_path': '', 'output_dir': str(output)}
        script.load_reader(**given)
        ballast.unlink()
    status, last_line, _ = train(output)
    assert status == 0
    assert_undisturbed(output, last_line, undisturbed)


@pytest.mark.parametrize('share', [0.3, 0.6, 0.9])
def test_weights_for_which_there_is_little_room_are_not_begun(trainer, little_room, share):
    """HDF5 may crash when the disk is full before the end."""
    model = trainer.trained
    bert.save_best(str(little_room), model, 'some BERT')
    path = little_room / 'best_model.weights.h5'
    before, size = path.read_bytes(), path.stat().st_size
    fill(little_room / 'ballast', but=int(share * size))
    assert 'No space left' in refusal(bert.save_best, str(little_room), model, 'some BERT')
    assert path.read_bytes() == before and len(list(little_room.iterdir())) == 2
    bert.load_best(str(little_room), model, 'some BERT')


# -------------------------------------------------------------------------------------- two workers


@pytest.mark.parametrize('asked', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_signal_to_one_worker_stops_all_after_the_same_update(
    script, without_dropout, tmp_path, asked
):
    """A scheduler does not warn all at once; the first must still be there to back up.

    One worker alone goes on here, which ends with the same weights but for rounding.
    """
    output, (_, arguments, weights) = tmp_path / 'output', without_dropout
    workers = two_workers(tmp_path, arguments, [['slow_updates()']] * 2)
    workers[0].wait_for('Epoch 2/')
    workers[asked].process.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.end(130)
    [stopped] = {stopped_after(worker.said()) for worker in workers}
    assert list(output.glob(f'backup-{stopped}-1'))
    with pytest.MonkeyPatch.context() as patch:
        keep_weights(tmp_path / 'weights.npz', patch.setattr)
        status, _, err = call(script, 'train', *arguments, f'--output_dir={output}')
    assert status == 0 and f'continuing after update {stopped} of 16' in err
    assert distance(weights, tmp_path / 'weights.npz') <= 1e-5


@pytest.mark.parametrize(
    ('victim', 'moment', 'changes'),
    [
        pytest.param(0, 'Epoch 2/', [[], ['slow_updates()']], marks=pytest.mark.slow),
        (1, 'Epoch 2/', [[], ['slow_updates()']]),
        pytest.param(0, 'without end', [['endless_scoring()'], []], marks=pytest.mark.slow),
    ],
)
def test_worker_whose_fellow_was_killed_ends_and_both_can_be_restarted(
    without_dropout, tmp_path, victim, moment, changes
):
    """TensorFlow notices within seconds, also while the other waits for the first one's score."""
    _, arguments, weights = without_dropout
    kept = [tmp_path / f'{k}.npz' for k in range(2)]
    workers = two_workers(tmp_path, arguments, changes)
    workers[0].wait_for(moment)
    workers[victim].kill()
    other = workers[1 - victim]
    other.end(2, timeout=60)
    assert 'Traceback' not in other.said()
    broken = r'TensorFlow broke off \(Collective ops is aborted by: .*\); '
    cure = 'run the same command, of all workers, to continue'
    assert re.fullmatch(broken + cure, other.said().strip().splitlines()[-1])
    changes = [[f'keep_weights({str(path)!r})'] for path in kept]
    workers = two_workers(tmp_path, arguments, changes)
    for worker in workers:
        worker.end()
        assert 'continuing after update' in worker.said()
    assert distance(weights, kept[0]) <= 1e-5 and distance(*kept) == 0
