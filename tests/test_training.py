"""support/training.py: the exact step, whatever shares it, what cannot go on, and the log."""

import csv
import io
import json
import os
import shutil
import types

import numpy as np
import pytest
from conftest import build_small_model, refusal
from runs import (
    ALWAYS,
    RESULTS,
    Process,
    curves,
    distance,
    position,
    two_workers,
)

# --------------------------------------------------------------------------------------- one update


@pytest.fixture
def batch():
    """Nine pairs, padded: {'Input-Token', 'Input-Segment'}."""
    from support.batches import pad

    rng, pairs = np.random.default_rng(0), []
    for _ in range(9):
        source, target = rng.integers(5, 30), rng.integers(1, 5)
        token_ids = rng.integers(4, 30, source + target).tolist()
        pairs.append((0, token_ids, [0] * source + [1] * target))
    return pad(pairs)


def test_batch_computed_in_parts_is_the_same_update(script, small, batch):
    """Also where the parts are of several sizes, or there are fewer rows than parts."""
    from support.keras2 import tf

    models, updates = [build_small_model(script, small)[0] for _ in range(2)], []
    for model, parts in zip(models, (1, 3), strict=True):
        constants = script.Constants(learning_rate=1e-4, accumulate_steps=parts)
        trainer = script.build_trainer(model, constants)
        trainer.dropout_rate = 0
        updates.append(trainer.train_step)
    ids = tf.TensorSpec([None, None], tf.int32)
    signature = {'Input-Token': ids, 'Input-Segment': ids}
    updates[1] = tf.function(updates[1], input_signature=[signature])  # as `fit` runs it
    before = models[0].get_weights()
    for rows in 8, 9, 2, 1, 7:
        some = {name: ids[:rows] for name, ids in batch.items()}
        losses = [update(some)['loss'].numpy() for update in updates]
        assert np.allclose(*losses, rtol=1e-6)
        pairs = zip(*[model.get_weights() for model in models], strict=True)
        # Adam divides by a gradient's own size, so near 0 its rounding counts
        assert max(np.abs(a - b).max() for a, b in pairs) <= 5e-6
    pairs = zip(before, models[0].get_weights(), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 2e-4


def test_dropout_is_drawn_by_seed_and_update_alone(script, small, batch):
    """An update that is made again after an interruption must drop the same.

    Each update and each part of a batch drops something else: the two parts here are alike.
    """
    model, _ = build_small_model(script, small)
    twice = {name: np.repeat(ids[:1], 2, 0) for name, ids in batch.items()}
    weights = model.get_weights()

    def losses(seed, start):
        model.set_weights(weights)
        constants = script.Constants(learning_rate=1e-30, accumulate_steps=2, seed=seed)
        trainer, of_parts = script.build_trainer(model, constants), []
        trainer.optimizer.iterations.assign(start)
        compute = trainer.losses

        def kept(*arguments):
            computed = compute(*arguments)
            of_parts.append(computed.numpy().tolist())
            return computed

        trainer.losses = kept
        for _ in range(3):
            trainer.train_step(twice)
        return of_parts

    first = losses(1, 0)
    assert losses(1, 0) == first and losses(1, 1)[:4] == first[2:]
    assert len({str(loss) for loss in first + losses(2, 0)}) == 12


@pytest.mark.parametrize(('warmup_steps', 'decay_steps'), [(4, 5), (4, 0), (0, 5), (0, 0)])
def test_learning_rate_rises_and_falls(script, study, tmp_path, warmup_steps, decay_steps):
    """Adam moves a weight of constant gradient by the learning rate; a backup knows where it is."""
    from support.batches import Batches
    from support.keras2 import tf
    from support.training import Run

    constants = script.Constants(
        learning_rate=0.1,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        output_dir=str(tmp_path),
    )
    model, _ = build_small_model(script, study)

    def move(updates):
        trainer = script.build_trainer(model, constants)
        batches = Batches([], None, constants)
        run = Run(trainer, batches, tf.distribute.get_strategy(), {}, constants)
        run.begin()
        weight, moves = model.trainable_weights[0], []

        @tf.function
        def update():
            trainer.optimizer.apply_gradients([(tf.ones_like(weight), weight)])

        for _ in range(updates):
            before = weight.numpy()
            update()
            moves.append(np.mean(before - weight.numpy()))
            run.state.step += 1
        run.backups.write()
        return moves

    expected = [0, 0.025, 0.05, 0.075, 0.1, 0.08, 0.06, 0.04, 0.02, 0, 0]
    if not warmup_steps:
        expected = [*expected[4:], 0, 0, 0, 0]
    if not decay_steps:
        expected = [*expected[:warmup_steps], *[0.1] * (11 - warmup_steps)]
    assert np.allclose(move(6) + move(5), expected, atol=1e-5)


# -------------------------------------------------------------------------------- what cannot go on


def test_loss_that_is_not_finite_names_update_and_records(train, undisturbed, tmp_path):
    """The best weights and the last backup are those from before."""
    from support.training import Run

    output = shutil.copytree(undisturbed.stages / 'backup-8-1', tmp_path / 'output')
    kept = {name: (output / name).read_bytes() for name in RESULTS[:2]}
    drawn, begin = [], Run.begin

    def begin_with_nan(run):
        begin(run)
        weight = run.trainer.trained.weights[0]
        weight.assign(weight * np.nan)
        first = run.batches.draw_window(1, 0)[0]
        drawn.extend(run.batches.records[i]['id'] for i, *_ in first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, 'begin', begin_with_nan)
        status, last_line, err = train(output)
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    named = f'the loss of update 9 is nan; records {", ".join(drawn)}'
    cure = 'lower learning_rate and choose another output_dir'
    assert err.splitlines()[-1] == f'{named}; {cure}' and len(drawn) in (1, 4)
    assert kept == {name: (output / name).read_bytes() for name in RESULTS[:2]}
    assert [path.name for path in output.glob('*backup*')] == ['backup-8-1']
    status, last_line, err = train(output)
    assert status == 0 and 'continuing after update 8 of 24' in err


def test_learning_rate_that_is_far_too_high_is_stopped(train, tmp_path):
    status, last_line, err = train(tmp_path / 'output', learning_rate=1e30, warmup_steps=0)
    assert (status, last_line) == (2, [])
    line = err.splitlines()[-1]
    assert 'the loss of update 2 is ' in line and 'lower learning_rate' in line


def test_weights_that_are_not_finite_are_not_backed_up(train, tmp_path, monkeypatch):
    """The loss of the update that made them is still finite."""
    from support.training import Trainer

    train_step = Trainer.train_step

    def poisoned(trainer, batch):
        logs = train_step(trainer, batch)
        weight = trainer.trained.weights[3]
        weight.assign(weight * np.nan)
        return logs

    monkeypatch.setattr(Trainer, 'train_step', poisoned)
    status, _, err = train(tmp_path / 'output', backup_minutes=ALWAYS)
    assert status == 2
    assert 'after update 1 some weights are not finite; records' in err.splitlines()[-1]
    assert not list((tmp_path / 'output').glob('*backup*'))
    assert not (tmp_path / 'output' / RESULTS[0]).exists()


# ------------------------------------------------------------------------------------------ the log


def test_log_of_a_continued_run_is_that_of_one_never_interrupted(script, study, tmp_path):
    """The file is written anew from what the backup keeps, to the last bit of each number."""
    from support.resume import State
    from support.training import Log

    model, _ = build_small_model(script, study)
    rows = [{'loss': 1 / 3, 'val_Final': 0.1}, {'loss': 1e-17, 'val_Final': 2 / 3}]
    text = 'epoch,loss,val_Final\n1,0.3333333333333333,0.1\n2,1e-17,0.6666666666666666\n'
    state, folder = State(), tmp_path / 'output'
    folder.mkdir()
    for epoch, row in enumerate(rows):
        log = Log(state, str(folder))
        log.set_model(model)
        log.on_epoch_end(epoch, dict(row))
        state = State(**json.loads(json.dumps(vars(state))))
        lines = text.splitlines(keepends=True)[: epoch + 2]
        assert (folder / 'log.csv').read_bytes().decode() == ''.join(lines)
        assert curves(folder)['validation/epoch_Final'].keys() == set(range(epoch + 1))
        (folder / 'log.csv').unlink()
    assert list(csv.DictReader(io.StringIO(text)))[1]['loss'] == '1e-17'


def test_tensorboard_shows_updates_and_epochs_under_the_names_of_keras(undisturbed):
    """The mean of the losses of an epoch's 8 updates is that of the epoch."""
    shown = curves(undisturbed.output)
    names = ['epoch_Accuracy', 'epoch_F1', 'epoch_Final']
    validation = {f'validation/{name}' for name in names}
    assert {*shown} == {'train/batch_loss', 'train/epoch_loss', *validation}
    losses = [shown['train/batch_loss'][step] for step in range(1, 25)]
    assert len(shown['train/batch_loss']) == 24
    for epoch in range(3):
        mean = np.mean(losses[8 * epoch : 8 * epoch + 8])
        assert shown['train/epoch_loss'][epoch] == pytest.approx(mean, rel=1e-5)
    assert all(shown[name].keys() == {0, 1, 2} for name in validation)


def test_loss_of_an_epoch_is_the_mean_of_all_its_updates():
    """Those before an interruption count too, and those of the epoch before do not."""
    from support.resume import State
    from support.training import Log, Position

    state = State()
    for losses in [4.0, 1.0], [3.0, 0.0]:
        for loss in losses:
            Position(state, 2).on_train_batch_end(0, {'loss': loss})
            state = State(**json.loads(json.dumps(vars(state))))
        logs = {'loss': losses[-1]}
        Position(state, 2).on_epoch_end(0, logs)
        assert logs['loss'] == sum(losses) / 2
        Log(state, None).on_epoch_end(0, logs)
    assert (state.step, state.losses, [row['loss'] for row in state.log]) == (4, 0.0, [2.5, 1.5])


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


def test_two_workers_learn_what_one_does_and_only_the_first_writes(without_dropout, tmp_path):
    output, arguments, weights = without_dropout
    kept = [tmp_path / f'{k}.npz' for k in range(2)]
    outputs = [tmp_path / f'output{k}' for k in range(2)]
    changes = [[f'keep_weights({str(path)!r})'] for path in kept]
    workers = two_workers(tmp_path, arguments, changes, outputs)
    last_lines = [worker.end() for worker in workers]
    assert distance(weights, kept[0]) <= 1e-5 and distance(*kept) == 0
    assert set(os.listdir(outputs[0])) == set(os.listdir(output)) and os.listdir(outputs[1]) == []
    assert last_lines[0] and not last_lines[1]
    np.testing.assert_allclose(losses(outputs[0]), losses(output), rtol=1e-4)


@pytest.mark.parametrize('differs', [None, 'state', 'fixed'])
def test_begin_of_several_workers_is_compared(script, small, tmp_path, monkeypatch, differs):
    """One that does not share the output folder would go on from the start."""
    from support.batches import Batches
    from support.keras2 import tf
    from support.training import Run

    monkeypatch.setenv('TF_CONFIG', position(1))
    constants = script.Constants(output_dir=str(tmp_path))
    trainer, seen = script.build_trainer(build_small_model(script, small)[0], constants), []

    def begin(step, data):
        def gather(mine, axis):  # of both workers
            seen.append(tf.get_static_value(mine).tolist())
            return tf.constant([*seen[0], *seen[-1]])

        strategy = types.SimpleNamespace(run=lambda function: function(), gather=gather)
        run = Run(trainer, Batches([], None, constants), strategy, {'the data': data}, constants)
        run.state.step = step
        run.begin()

    begin(0, 'a')
    other = {None: (0, 'a'), 'state': (8, 'a'), 'fixed': (0, 'b')}[differs]
    if differs:
        what = 'the workers begin with different backups, data or constants; share it among them'
        assert refusal(begin, *other) == f'{tmp_path}: {what}'
    else:
        begin(*other)


@pytest.mark.slow
def test_workers_that_do_not_begin_alike_are_refused(without_dropout, tmp_path):
    """The same with two processes, over the network."""
    output, arguments, _ = without_dropout
    outputs = [shutil.copytree(output, tmp_path / 'output'), tmp_path / 'not_shared']
    for worker in two_workers(tmp_path, [*arguments, '--epochs=3'], outputs=outputs):
        assert worker.end(2) == [] and 'Traceback' not in worker.said()
        what = 'the workers begin with different backups, data or constants'
        assert what in worker.said().splitlines()[-1]


def test_copies_that_the_first_worker_reads_with_are_its_own(script, train, tmp_path, monkeypatch):
    """As variables of all workers they would let it wait for the others, which do not read."""
    from support.keras2 import tf

    made, UniLM = [], script.UniLM

    def keep(*arguments):
        made.append(UniLM(*arguments))
        return made[-1]

    strategy = tf.distribute.MirroredStrategy(['CPU:0'])
    monkeypatch.setattr(script, 'choose_strategy', lambda: strategy)
    monkeypatch.setattr(script, 'UniLM', keep)
    status, _, err = train(tmp_path / 'output', precision='bfloat16', epochs=1)
    assert status == 0, err
    [reading], shared = made, tf.distribute.DistributedValues
    assert isinstance(reading.head_bias, shared) and reading.copies
    assert not any(isinstance(copy, shared) for copy in reading.copies.values())


@pytest.mark.slow
def test_first_of_two_workers_scores_alone_in_bfloat16(without_dropout, tmp_path):
    """Otherwise it would wait for the other one forever."""
    _, arguments, _ = without_dropout
    for worker in two_workers(tmp_path, [*arguments, '--precision=bfloat16']):
        worker.end(timeout=100)


def test_curves_that_cannot_be_written_are_named(tmp_path):
    """Like any other file, not as something that TensorFlow broke off at."""
    from support.resume import State
    from support.training import Log

    (tmp_path / 'tensorboard').write_text('mine', encoding='utf-8')
    line = refusal(Log(State(), str(tmp_path)).on_train_batch_end, 0, {'loss': 1.0})
    assert line.startswith(f'{tmp_path / "tensorboard"}: cannot be written (')
    assert line.endswith('); make room or choose another')
    assert (tmp_path / 'tensorboard').read_text(encoding='utf-8') == 'mine'
