"""support/training.py: what is drawn for an update, its exact step, what shares it, what fails."""

import csv
import itertools
import os
import shutil
import types

import numpy as np
import pytest
from conftest import draw
from runs import ALWAYS, RESULTS, Process, distance, two_workers

from support import training
from support.keras2 import tf
from support.resume import Run
from support.training import Batches, pad

# ------------------------------------------------------------------------------------------ batches


def encode(record, rng):
    """Make (token_ids, segment_ids) of a whole number: 3 to 12 tokens, the first one tells it."""
    source, target = rng.integers(1, 10), rng.integers(1, 3)
    drawn = rng.integers(1, 10**6, source + target).tolist()
    return [1 + record, *drawn], [0] * (1 + source) + [1] * target


def build(records=25, window=3, encode=encode, **constants):
    """Batches of the numbers below `records`; without more 3 epochs of 7, the last of one row."""
    constants = types.SimpleNamespace(**{'batch_size': 4, 'epochs': 3, 'seed': 42, **constants})
    batches = Batches(range(records), encode, constants)
    batches.window = window
    return batches


def read(batches):
    """The rows of each batch: [token_ids, segment_ids] without padding."""
    found = []
    for token_ids, segment_ids in batches:
        assert {(str(ids.dtype), ids.ndim) for ids in (token_ids, segment_ids)} == {('int32', 2)}
        lengths = np.count_nonzero(token_ids, 1)
        assert token_ids.shape[1] == max([1, *lengths])
        assert not segment_ids[token_ids == 0].any()
        rows = zip(token_ids.tolist(), segment_ids.tolist(), lengths, strict=True)
        found.append([[tokens[:length], segments[:length]] for tokens, segments, length in rows])
    return found


def test_every_epoch_has_each_question_once():
    """Drawn otherwise than before, in another order and other company."""
    batches, seen = build(), []
    for epoch in range(3):
        windows = [batches.draw_window(epoch, number) for number in range(3)]
        assert [[*map(len, window)] for window in windows[:2]] == [[4] * 3] * 2
        assert [*map(len, windows[2])] == [1] and batches.steps == 7
        pairs = [pair for window in windows for batch in window for pair in batch]
        order = [token_ids[0] - 1 for token_ids, _ in pairs]
        assert sorted(order) == [*range(25)]
        drawn = {token_ids[1] for token_ids, _ in pairs}  # no window draws as another does
        together = frozenset(token_ids[0] for batch in windows[0] for token_ids, _ in batch)
        seen.append((str(order), together, *drawn))
        assert len(drawn) > 20
    assert len({order for order, *_ in seen}) == len({together for _, together, *_ in seen}) == 3
    assert len({token for _, _, *drawn in seen for token in drawn}) > 70


def test_batches_are_of_like_length_within_a_window_and_in_a_random_order():
    """Each window is sorted by itself, so an epoch does not begin with all its short pairs."""

    def encode(record, rng):
        return [1] * (1 + record % 6), [0] * (1 + record % 6)

    batches, shuffled = build(60, window=5, encode=encode), 0
    for number in range(3):
        window = batches.draw_window(0, number)
        lengths = [[len(token_ids) for token_ids, _ in batch] for batch in window]
        assert [*map(len, lengths)] == [4] * 5
        ranges = sorted((min(batch), max(batch)) for batch in lengths)
        assert all(short[1] <= long[0] for short, long in itertools.pairwise(ranges))
        assert ranges[-1][1] - ranges[0][0] >= 4
        shuffled += lengths != sorted(lengths)
    assert shuffled


def test_batches_depend_on_the_seed_and_their_number_alone():
    """Not on what was drawn before, or a training that was interrupted would go on otherwise."""
    batches = build()
    windows = [batches.draw_window(epoch, k) for epoch in (2, 1, 0) for k in (2, 1, 0)]
    every = [*itertools.chain(*windows[::-1])]
    assert len(every) == 21 and build(seed=43).draw_window(0, 0) != every[:3]
    every = [[[*ids] for ids in batch] for batch in every]
    for step in range(22):  # within a window, at the end of an epoch, after everything
        assert read(batches.from_step(step)) == every[step:]
    for step in 0, 8, 21:
        assert read(build().dataset(step).as_numpy_iterator()) == every[step:]


@pytest.mark.parametrize(('workers', 'replicas'), [(1, 2), (3, 3), (2, 4)])
def test_every_replica_is_given_the_whole_batch(workers, replicas):
    """Of which it takes its own rows, so that all are of the same shape."""
    batches, here = build(), replicas // workers
    whole = [batch for batch in read(batches.from_step(0)) for _ in range(here)]
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, replicas)
        assert read(batches.dataset(context=context).as_numpy_iterator()) == whole


def test_end_of_training_waits_for_no_tuning():
    """TensorFlow's thread that tunes may sleep for a minute and not notice the end."""
    assert build().dataset().options().autotune.enabled is False


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
    twice, part_loss = pad([([*range(4, 20)], [0] * 12 + [1] * 4)] * 2), []
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


def test_loss_that_is_not_finite_ends_it_at_once(train, undisturbed, tmp_path):
    """The best weights and the last backup are those from before."""
    output = shutil.copytree(undisturbed.stages / 'backup-8-1', tmp_path / 'output')
    kept = {name: (output / name).read_bytes() for name in RESULTS[:2]}
    fit = Run.fit

    def fit_with_nan(run, evaluator):
        weight = run.model.weights[0]
        weight.assign(weight * np.nan)
        fit(run, evaluator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, 'fit', fit_with_nan)
        status, last_line, err = train(output)
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    cure = 'lower learning_rate and choose another output_dir'
    assert err.splitlines()[-1] == f'after update 9 loss or weights are not finite; {cure}'
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
    assert 'after update 1 loss or weights are not finite; lower' in err.splitlines()[-1]
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
    assert {*os.listdir(outputs[0])} == {*os.listdir(output)} and not outputs[1].exists()
    assert last_lines[0] and not last_lines[1]
    np.testing.assert_allclose(losses(outputs[0]), losses(output), rtol=1e-4)


@pytest.mark.slow
def test_first_of_two_workers_scores_alone_in_bfloat16(without_dropout, tmp_path):
    """Otherwise it would wait for the other one forever."""
    _, arguments, _ = without_dropout
    for worker in two_workers(tmp_path, [*arguments, '--precision=bfloat16']):
        worker.end(timeout=100)
