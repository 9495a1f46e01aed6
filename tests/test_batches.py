"""support/batches.py: what is drawn and in which order, batches dealt out, questions in groups."""

import itertools
import types

import numpy as np
import pytest

from support.batches import Batches, in_groups
from support.keras2 import tf


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


def read(dataset):
    """The rows of each batch of a dataset: [token_ids, segment_ids] without padding."""
    batches = []
    for batch in dataset.as_numpy_iterator():
        assert [*batch] == ['Input-Token', 'Input-Segment']
        assert {(ids.dtype, ids.ndim) for ids in batch.values()} == {(np.dtype('int32'), 2)}
        lengths = np.count_nonzero(batch['Input-Token'], 1)
        assert batch['Input-Token'].shape[1] == max([1, *lengths])
        assert not batch['Input-Segment'][batch['Input-Token'] == 0].any()
        rows = zip(*(ids.tolist() for ids in batch.values()), lengths, strict=True)
        batches.append([[tokens[:length], segments[:length]] for tokens, segments, length in rows])
    return batches


def test_every_epoch_has_each_question_once():
    """Drawn otherwise than before, in another order and other company; a pair comes with the place
    of its record, by which that of a batch that went wrong is found."""
    batches, seen = build(), []
    for epoch in range(3):
        windows = [batches.draw_window(epoch, number) for number in range(3)]
        assert [[*map(len, window)] for window in windows[:2]] == [[4] * 3] * 2
        assert [*map(len, windows[2])] == [1] and batches.steps == 7
        pairs = [pair for window in windows for batch in window for pair in batch]
        order = [i for i, *_ in pairs]
        assert sorted(order) == [*range(25)]
        assert all(token_ids[0] == 1 + i for i, token_ids, _ in pairs)
        drawn = {token_ids[1] for _, token_ids, _ in pairs}  # no window draws as another does
        together = frozenset(i for batch in windows[0] for i, *_ in batch)
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
        lengths = [[len(token_ids) for _, token_ids, _ in batch] for batch in window]
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
    for step in range(22):  # within a window, at the end of an epoch, after everything
        assert [*batches.from_step(step)] == every[step:]
    for step in 0, 1, 3, 7, 8, 20, 21:
        expected = [[[*ids] for _, *ids in batch] for batch in every[step:]]
        assert read(build().dataset(step)) == expected


@pytest.mark.parametrize(('workers', 'replicas'), [(1, 2), (3, 3), (2, 4)])
def test_replicas_share_each_batch(workers, replicas):
    """The last batch has one row: all but the first get an empty one, of the same rank."""
    batches, dealt, here = build(), [], replicas // workers
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, replicas)
        dealt.append(read(batches.dataset(context=context)))
    for step, batch in enumerate(read(batches.dataset())):
        shares = [part for parts in dealt for part in parts[step * here : (step + 1) * here]]
        assert shares == [batch[replica::replicas] for replica in range(replicas)]
    assert [len(parts) for parts in dealt] == [21 * here] * workers
    assert [len(batch) for batch in read(build(2).dataset())] == [2] * 3  # fewer than there is room


def test_end_of_training_waits_for_no_tuning():
    """TensorFlow's thread that tunes may sleep for a minute and not notice the end."""
    assert build().dataset().options().autotune.enabled is False


@pytest.mark.parametrize(
    ('sizes', 'groups'),
    [
        ([3, 3, 1], [[3, 3], [1]]),
        ([3, 7, 1, 8, 2, 4, 1], [[3], [7], [1], [8], [2, 4], [1]]),
        ([9, 9], [[9], [9]]),
        ([0, 6, 0, 7, 0], [[0, 6, 0], [7], [0]]),
        ([], []),
    ],
)
def test_groups_are_of_consecutive_questions_up_to_the_limit(sizes, groups):
    """One that is larger alone is a group of its own; none is empty, none is lost."""
    questions = (types.SimpleNamespace(tokens=size) for size in sizes)
    found = [[question.tokens for question in group] for group in in_groups(questions, 6)]
    assert found == groups
