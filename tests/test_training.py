"""support/training.py: the exact step, whatever shares it, what cannot go on, and the log."""

import csv
import json
import os
import shutil
import types

import numpy as np
import pytest
from conftest import draw, refusal, small_files
from runs import ALWAYS, RESULTS, Process, curves, distance, position, two_workers

from support import training
from support.batches import pad
from support.keras2 import tf
from support.resume import State

# --------------------------------------------------------------------------------------- one update


@pytest.fixture
def model(small_bert):
    """The model of `small_bert`, weights drawn anew."""
    draw(small_bert[0], 0)
    return small_bert[0]


def test_dropout_is_drawn_by_seed_and_update_alone(script, model, monkeypatch):
    """An update that is made again after an interruption must drop the same.

    Each update and each part of a batch drops something else: the two parts here are alike.
    """
    twice, part_loss = pad([(0, [*range(4, 20)], [0] * 12 + [1] * 4)] * 2), []
    compute = training.Trainer.part_loss

    def kept(*arguments):
        part_loss.append(compute(*arguments))
        return part_loss[-1]

    monkeypatch.setattr(training.Trainer, 'part_loss', kept)

    def losses(seed, start):
        constants = script.Constants(learning_rate=1e-30, accumulate_steps=2, seed=seed)
        trainer, before = script.build_trainer(model, constants), len(part_loss)
        trainer.optimizer.iterations.assign(start)
        for _ in range(3):
            trainer.train_step(twice)
        return [loss.numpy() for loss in part_loss[before:]]

    first = losses(1, 0)
    assert losses(1, 0) == first and losses(1, 1)[:4] == first[2:]
    assert len({*first, *losses(2, 0)}) == 12


@pytest.mark.parametrize(
    ('warmup_steps', 'decay_steps', 'tenths'),
    [
        (4, 5, [0, 0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0, 0]),
        (4, 0, [0, 0.25, 0.5, 0.75, 1, 1, 1]),
        (0, 5, [1, 0.8, 0.6, 0.4, 0.2, 0, 0]),
    ],
)
def test_learning_rate_rises_and_falls(script, model, warmup_steps, decay_steps, tenths):
    """Adam moves a weight of constant gradient by the learning rate."""
    steps = {'warmup_steps': warmup_steps, 'decay_steps': decay_steps}
    trainer = script.build_trainer(model, script.Constants(learning_rate=0.1, **steps))
    weight = model.trainable_weights[0]

    @tf.function
    def update():
        trainer.optimizer.apply_gradients([(tf.ones_like(weight), weight)])

    for expected in tenths:
        before = weight.numpy()
        update()
        assert np.mean(before - weight.numpy()) == pytest.approx(expected / 10, abs=1e-5)


# -------------------------------------------------------------------------------- what cannot go on


def test_loss_that_is_not_finite_names_update_and_records(train, undisturbed, tmp_path):
    """The best weights and the last backup are those from before."""
    output = shutil.copytree(undisturbed.stages / 'backup-8-1', tmp_path / 'output')
    kept = {name: (output / name).read_bytes() for name in RESULTS[:2]}
    drawn, fit = [], training.Run.fit

    def fit_with_nan(run, evaluator):
        weight = run.model.weights[0]
        weight.assign(weight * np.nan)
        drawn.extend(run.batches.records[i]['id'] for i, *_ in next(run.batches.from_step(8)))
        fit(run, evaluator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Run, 'fit', fit_with_nan)
        status, last_line, err = train(output)
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    named = f'the loss of update 9 is nan; records {", ".join(drawn)}'
    cure = 'lower learning_rate and choose another output_dir'
    assert err.splitlines()[-1] == f'{named}; {cure}' and len(drawn) in (1, 4)
    assert kept == {name: (output / name).read_bytes() for name in RESULTS[:2]}
    assert [path.name for path in output.glob('*backup*')] == ['backup-8-1']
    status, _, err = train(output)
    assert status == 0 and 'continuing after update 8 of 24' in err


def test_weights_that_are_not_finite_are_not_backed_up(train, tmp_path, monkeypatch):
    """The loss of the update that made them is still finite."""
    train_step = training.Trainer.train_step

    def poisoned(trainer, batch):
        logs = train_step(trainer, batch)
        weight = trainer.trained.weights[3]
        weight.assign(weight * np.nan)
        return logs

    monkeypatch.setattr(training.Trainer, 'train_step', poisoned)
    status, _, err = train(tmp_path / 'output', backup_minutes=ALWAYS)
    assert status == 2
    assert 'after update 1 some weights are not finite; records' in err.splitlines()[-1]
    assert not [*(tmp_path / 'output').glob('*backup*'), *(tmp_path / 'output').glob(RESULTS[0])]


def test_weight_outside_the_answer_is_refused(script, train, tmp_path, monkeypatch):
    """At whatever update it comes: here that of the one batch of a single row."""

    class Everything(script.CrossEntropy):
        def targets(self, token_ids, segment_ids):
            y_true, y_mask = super().targets(token_ids, segment_ids)
            weight = tf.cast(tf.shape(token_ids)[0] == 1, tf.float32)
            return y_true, tf.maximum(y_mask, weight * tf.cast(token_ids[:, 1:] > 0, tf.float32))

    monkeypatch.setattr(script, 'CrossEntropy', Everything)
    status, last_line, err = train(tmp_path / 'output', backup_minutes=ALWAYS)
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    assert err.splitlines()[-1] == (
        'CrossEntropy: y_mask gives a weight to tokens outside the answer; '
        'support/training.py predicts the answer alone'
    )
    [backup] = (tmp_path / 'output').glob('backup-*-0')  # of the update before
    assert 0 < int(backup.name.split('-')[1]) < 8


# ------------------------------------------------------------------------------------------ the log


def test_log_of_a_continued_run_is_that_of_one_never_interrupted(tmp_path):
    """Written anew from what the backup keeps, to the last bit of each number; the loss is the mean
    of all updates of an epoch, those before an interruption too."""
    text = 'epoch,loss,val_Final\n1,2.5,0.3333333333333333\n2,1e-17,0.6666666666666666\n'
    state = State()
    for epoch, losses in enumerate([[4.0, 1.0], [2e-17, 0.0]]):
        for loss in losses:
            training.Position(state, 2).on_train_batch_end(0, {'loss': loss})
            state = State(**json.loads(json.dumps(vars(state))))  # interrupted
        logs = {'loss': losses[-1], 'val_Final': (epoch + 1) / 3}
        training.Position(state, 2).on_epoch_end(epoch, logs)
        training.Log(state, str(tmp_path)).on_epoch_end(epoch, logs)
        log = (tmp_path / 'log.csv').read_bytes().decode()
        assert log == ''.join(text.splitlines(keepends=True)[: epoch + 2])
        assert curves(tmp_path)['validation/epoch_Final'].keys() == {*range(epoch + 1)}
        (tmp_path / 'log.csv').unlink()
    assert (state.step, state.losses) == (4, 0.0)


def test_tensorboard_shows_updates_and_epochs_under_the_names_of_keras(undisturbed):
    """The mean of the losses of an epoch's 8 updates is that of the epoch."""
    shown = curves(undisturbed.output)
    validation = {f'validation/epoch_{name}' for name in ('Accuracy', 'F1', 'Final')}
    assert {*shown} == {'train/batch_loss', 'train/epoch_loss', *validation}
    assert [*shown['train/batch_loss']] == [*range(1, 25)]
    losses = np.reshape([*shown['train/batch_loss'].values()], [3, 8])
    for epoch, mean in enumerate(losses.mean(1)):
        assert shown['train/epoch_loss'][epoch] == pytest.approx(mean, rel=1e-5)
    assert all(shown[name].keys() == {0, 1, 2} for name in validation)


def test_curves_that_cannot_be_written_are_named(tmp_path):
    """Like any other file, not as something that TensorFlow broke off at."""
    (tmp_path / 'tensorboard').write_text('mine', encoding='utf-8')
    log = training.Log(State(), str(tmp_path))
    line = refusal(log.on_train_batch_end, 0, {'loss': 1.0})
    assert line.startswith(f'{tmp_path / "tensorboard"}: cannot be written (')
    assert line.endswith('); make room or choose another')
    assert (tmp_path / 'tensorboard').read_text(encoding='utf-8') == 'mine'


# ---------------------------------------------------------------------- several devices and workers


def losses(output):
    """The loss of each epoch."""
    with open(output / 'log.csv', encoding='utf-8') as file:
        return [float(row['loss']) for row in csv.DictReader(file)]


def test_two_devices_learn_what_one_does(without_dropout, tmp_path):
    """A batch of each epoch has a single row, so one of them has nothing to do."""
    output, arguments, weights = without_dropout
    changes = ['two_devices()', f'keep_weights({str(tmp_path / "weights.npz")!r})']
    arguments = [*arguments, f'--output_dir={tmp_path / "output"}']
    Process(tmp_path, 'train', *arguments, changes=changes).end()
    assert distance(weights, tmp_path / 'weights.npz') <= 1e-5
    np.testing.assert_allclose(losses(tmp_path / 'output'), losses(output), rtol=1e-4)


@pytest.mark.slow
def test_two_workers_learn_what_one_does_and_only_the_first_writes(without_dropout, tmp_path):
    output, arguments, weights = without_dropout
    kept = [tmp_path / f'{k}.npz' for k in range(2)]
    outputs = [tmp_path / f'output{k}' for k in range(2)]
    changes = [[f'keep_weights({str(path)!r})'] for path in kept]
    workers = two_workers(tmp_path, arguments, changes, outputs)
    last_lines = [worker.end() for worker in workers]
    assert distance(weights, kept[0]) <= 1e-5 and distance(*kept) == 0
    assert {*os.listdir(outputs[0])} == {*os.listdir(output)} and os.listdir(outputs[1]) == []
    assert last_lines[0] and not last_lines[1]
    np.testing.assert_allclose(losses(outputs[0]), losses(output), rtol=1e-4)


@pytest.mark.parametrize('other', [None, {'step': 8}, {'data': ['a record']}])
def test_begin_of_several_workers_is_compared(script, model, study, tmp_path, monkeypatch, other):
    """One that does not share the output folder would go on from the start."""
    monkeypatch.setenv('TF_CONFIG', position(1))
    constants, seen = script.Constants(output_dir=str(tmp_path)), []
    trainer, files = script.build_trainer(model, constants), small_files(script, study)

    def gather(mine, axis):  # of both workers
        seen.append(tf.get_static_value(mine).tolist())
        return tf.constant([*seen[0], *seen[-1]])

    def begin(step=0, data=()):
        monkeypatch.setattr(training, 'State', lambda: State(step))
        training.Run(trainer, None, [*data], [], strategy, files, constants)

    strategy = types.SimpleNamespace(run=lambda function: function(), gather=gather)
    begin()
    if other:
        what = 'the workers begin with different backups, data or constants; share it among them'
        assert refusal(lambda: begin(**other)) == f'{tmp_path}: {what}'
    else:
        begin()


@pytest.mark.slow
def test_first_of_two_workers_scores_alone_in_bfloat16(without_dropout, tmp_path):
    """Otherwise it would wait for the other one forever."""
    _, arguments, _ = without_dropout
    for worker in two_workers(tmp_path, [*arguments, '--precision=bfloat16']):
        worker.end(timeout=100)
