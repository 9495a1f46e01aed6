"""support/resume.py: a training ends as if nothing had interrupted it; the log."""

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
from conftest import record, refusal, small_files, write_json
from runs import ALWAYS, RESULTS, Killed, Process, backup, options, results

from evaluate_sogou import UserError
from support import bert, resume
from support.files import lock
from support.keras2 import tf
from support.resume import Run, State, restore, write_backup

pytestmark = pytest.mark.usefixtures('built_once')
BEST = RESULTS[0]


def assert_undisturbed(output, last_line, undisturbed):
    """Not a byte may differ, nothing may be left over, and TensorBoard has every epoch.

    Of updates it has what a kill left, and what was made again is the same.
    """
    assert results(output, last_line) == undisturbed.results
    assert set(os.listdir(output)) == set(os.listdir(undisturbed.output))
    shown, whole = runs.curves(output), runs.curves(undisturbed.output)
    assert shown.pop('batch_loss').items() <= whole.pop('batch_loss').items()
    assert shown == whole


def files_in(folder):
    paths = (path for path in folder.rglob('*') if path.is_file() and path.name != runs.LOCK)
    return {path: path.read_bytes() for path in paths}


# in the order of a training; a backup is made after every update until the third
MOMENTS = f"""before random_order.json, before {backup(1, 0)}, after {backup(8, 0)}, after {BEST},
after log.csv, before {backup(8, 1)}, after {backup(8, 1)},
after {backup(24, 3)}, before predictions.tsv, after predictions.tsv"""


@contextlib.contextmanager
def killed(moment, output, image):
    """Kill a training that is run meanwhile; `image` becomes what its output folder is then."""

    def pass_by(passed):
        if passed == moment:
            shutil.copytree(output, image)
            raise Killed

    replace = os.replace

    def appear(source, target):
        pass_by(f'before {os.path.basename(target)}')
        replace(source, target)
        pass_by(f'after {os.path.basename(target)}')

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, 'replace', appear)
        yield


def test_training_cut_off_after_a_step_ends_as_if_it_had_not_been(train, undisturbed, tmp_path):
    """An epoch's end has several steps: it is backed up, scored, weights are kept, it is logged,
    and backed up again. None of them may be lost, or be made with what only a later one knows."""
    output = tmp_path / '0'
    for number, moment in enumerate(re.split(r',\s', MOMENTS), 1):
        with killed(moment, output, tmp_path / f'{number}'):
            train(output, backup_minutes=ALWAYS if number < 3 else 10)
        output = tmp_path / f'{number}'
    status, last_line, err = train(output)
    assert status == 0 and 'continuing' not in err
    assert f'{output / backup(24, 3)}: training is complete; for more of it raise epochs' in err
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


def test_training_is_complete_once_its_last_epoch_is_scored(train, undisturbed, tmp_path):
    """Before that it goes on, although all updates are made."""
    output = shutil.copytree(undisturbed.stages / backup(24, 2), tmp_path / 'output')
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 24 of 24' in err and 'is complete' not in err
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
    output, after_update = tmp_path / 'output', Run.after_update
    for number, step, backed_up in (signal.SIGINT, 10, (10, 1)), (signal.SIGTERM, 20, (20, 2)):

        def signalled(run, batch, logs, number=number, step=step):
            if run.state.step == step - 1:
                os.kill(os.getpid(), number)
            after_update(run, batch, logs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, 'after_update', signalled)
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
    assert runs.curves(output)['epoch_val_Final'].keys() == {0, 1}
    interrupted_after(script.Evaluator, 'on_epoch_end')
    assert (output / backup(24, 3)).exists() and not (output / 'predictions.tsv').exists()
    status, last_line, _ = train(output)
    assert status == 0
    assert_undisturbed(output, last_line, undisturbed)


def test_second_signal_ends_at_once(begin, capsys):
    """Who asks twice does not want to wait for the end of an update."""
    run = begin()
    run.state.step = 3
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with run.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert 'stopping after this update; once more to stop at once' in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt, match='stopped after update 3'):
            run.stop_if_asked()
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


LAST, OTHER = backup(16, 2), Path('../other', backup(24, 3))
INDEX, DATA = 'checkpoint.index', 'checkpoint.data-00000-of-00001'
REFUSED = [  # constants; a file of the backup, and what it holds then, None: it is not there; said
    ({'learning_rate': 0.002}, None, 'learning_rate = 0.003, now 0.002; change that back, or star'),
    ({'data_dir': '../data'}, None,
     'made with other data than ../data/WebQA.json, ../data/SogouQA.json (reader.json there names'),
    ({'checkpoint_path': '../other'}, None,
     f'made with other first weights than ../other/{BEST} (reader.json there names its files); c'),
    ({}, (INDEX, lambda: (OTHER / INDEX).read_bytes()), 'damaged ('),
    ({}, (DATA, lambda: (OTHER / DATA).read_bytes()), 'damaged ('),
    ({}, (INDEX, None), 'damaged ('),
    ({}, (DATA, None), 'damaged ('),
]  # fmt: skip


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
        path, content = output / LAST / change[0], change[1]
        path.write_bytes(content()) if content else path.unlink()
    before = files_in(output)
    status, last_line, err = train(output, **constants)
    line = err.splitlines()[-1]
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    assert line.startswith(str(output)) and message in line
    assert files_in(output) == before


def checkpoint_at(step):
    """What is backed up of a training of one variable."""
    state, weight = State(step, fixed={'seed': 1}), tf.Variable([float(step)] * 50)
    return tf.train.Checkpoint(state=state, weight=weight)


def test_newest_backup_is_taken_and_older_ones_are_removed(tmp_path):
    """By numbers, not by letters; with what a killed run left half-written, but nothing else."""
    for step in 9, 10:
        write_backup(str(tmp_path), checkpoint_at(step))
        shutil.copytree(tmp_path / backup(step, 0), tmp_path / f'kept {step}')
    for name in backup(9, 0), runs.half_written(backup(11, 0)), f'{backup(12, 0)}.zip':
        shutil.copytree(tmp_path / 'kept 9', tmp_path / name)
    checkpoint = checkpoint_at(0)
    assert restore(str(tmp_path), checkpoint) == str(tmp_path / backup(10, 0))
    assert checkpoint.state.step == checkpoint.weight[0] == 10
    checkpoint.state.step = 11
    write_backup(str(tmp_path), checkpoint)
    assert {*os.listdir(tmp_path)} == {backup(11, 0), f'{backup(12, 0)}.zip', 'kept 9', 'kept 10'}


@pytest.mark.parametrize('name', [INDEX, DATA])
def test_backup_of_which_a_bit_is_flipped_is_refused_or_read_right(tmp_path, name):
    """By TensorFlow's checksums; a few bits of the index mean nothing."""
    write_backup(str(tmp_path), checkpoint_at(8))
    path, rng, refused = tmp_path / backup(8, 0) / name, np.random.default_rng(0), 0
    sound = path.read_bytes()
    for bit in rng.choice(8 * len(sound), 120, replace=False):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        checkpoint = checkpoint_at(0)
        try:
            restore(str(tmp_path), checkpoint)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f'{path.parent}: damaged (') and '\n' not in str(error)
        else:
            state, weight = checkpoint.state, checkpoint.weight
            assert (state.step, state.log) == (8, []) and set(weight.numpy()) == {8.0}
    assert refused > 80


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


# ------------------------------------------------------------------------------------------ the log


@pytest.fixture
def begin(script, small_bert, study, tmp_path):
    """A function that begins a run in `tmp_path`; it may be given other data."""
    constants, files = script.Constants(output_dir=str(tmp_path)), small_files(script, study)
    trainer = script.build_trainer(small_bert[0], constants)

    def run(data=()):
        strategy = tf.distribute.get_strategy()
        return Run(trainer, None, [*data], [], strategy, files, constants)

    return run


def test_log_of_a_continued_run_is_that_of_one_never_interrupted(begin, tmp_path):
    """Written anew from what the backup keeps, to the last bit of each number; the loss is the mean
    of all updates of an epoch, those before an interruption too."""
    text = 'epoch,loss,val_Final\n1,2.5,0.3333333333333333\n2,1e-17,0.6666666666666666\n'
    for epoch, losses in enumerate([[4.0, 1.0], [2e-17, 0.0]]):
        for loss in losses:
            run = begin()  # after an interruption
            run.batches.steps = 2
            run.after_update(0, {'loss': loss, 'outside': 0.0})
            run.back_up()
        evaluator = types.SimpleNamespace(
            on_epoch_end=lambda epoch, logs: logs.update(val_Final=(epoch + 1) / 3)
        )
        run.end_epoch(evaluator, epoch, {'loss': losses[-1], 'outside': 0.0})
        log = (tmp_path / 'log.csv').read_bytes().decode()
        assert log == ''.join(text.splitlines(keepends=True)[: epoch + 2])
        assert runs.curves(tmp_path)['epoch_val_Final'].keys() == {*range(epoch + 1)}
        (tmp_path / 'log.csv').unlink()
    assert (run.state.step, run.state.losses) == (4, 0.0)


def test_tensorboard_shows_updates_and_epochs(undisturbed):
    """The mean of the losses of an epoch's 8 updates is that of the epoch."""
    shown = runs.curves(undisturbed.output)
    validation = {f'epoch_val_{name}' for name in ('Accuracy', 'F1', 'Final')}
    assert {*shown} == {'batch_loss', 'epoch_loss', *validation}
    assert [*shown['batch_loss']] == [*range(1, 25)]
    losses = np.reshape([*shown['batch_loss'].values()], [3, 8])
    for epoch, mean in enumerate(losses.mean(1)):
        assert shown['epoch_loss'][epoch] == pytest.approx(mean, rel=1e-5)
    assert all(shown[name].keys() == {0, 1, 2} for name in validation)


def test_curves_that_cannot_be_written_are_named(begin, tmp_path):
    """Like any other file, not as something that TensorFlow broke off at."""
    (tmp_path / 'tensorboard').write_text('mine', encoding='utf-8')
    line = refusal(begin().after_update, 0, {'loss': 1.0, 'outside': 0.0})
    assert line.startswith(f'{tmp_path / "tensorboard"}: cannot be written (')
    assert line.endswith('); make room or choose another')
    assert (tmp_path / 'tensorboard').read_text(encoding='utf-8') == 'mine'


# ---------------------------------------------------------------------------------- several workers


@pytest.mark.parametrize('other', [None, {'step': 8}, {'data': ['a record']}])
def test_begin_of_several_workers_is_compared(begin, tmp_path, monkeypatch, other):
    """One that does not share the output folder would go on from the start."""
    seen = []

    def mean(_, mine):  # of both workers
        seen.append(mine)
        return (seen[0] + seen[-1]) / 2

    monkeypatch.setattr(Run, 'mean_of_workers', mean)
    begin()
    if not other:
        begin()
        return
    step = other.pop('step', 0)
    monkeypatch.setattr(resume, 'State', lambda **fixed: State(step, **fixed))
    what = 'the workers begin with different backups, data or constants; share it among them'
    assert refusal(lambda: begin(**other)) == f'{tmp_path}: {what}'


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
