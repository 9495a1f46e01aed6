"""support/batches.py: what is drawn and in which order, batches dealt out, questions in groups."""

import itertools
import types

import numpy as np
import pytest

from support.batches import Batches, in_groups, pad
from support.keras2 import tf


def encode(record, rng):
    """Make (token_ids, segment_ids) of a whole number: 3 to 12 tokens, the first one tells it."""
    source, target = rng.integers(1, 10), rng.integers(1, 3)
    drawn = rng.integers(1, 100, source + target).tolist()
    return [1 + record, *drawn], [0] * (1 + source) + [1] * target


def build(records=25, window=3, encode=encode, **constants):
    """Batches of the numbers below `records`; without more 3 epochs of 7, the last of one row."""
    constants = types.SimpleNamespace(**{'batch_size': 4, 'epochs': 3, 'seed': 42, **constants})
    batches = Batches(range(records), encode, constants)
    batches.window = window
    return batches


def read(dataset):
    """The rows of each batch of a dataset: (token_ids, segment_ids) without padding."""
    batches = []
    for batch in dataset.as_numpy_iterator():
        token_ids, segment_ids = batch['Input-Token'], batch['Input-Segment']
        lengths = np.count_nonzero(token_ids, 1)
        rows = zip(token_ids.tolist(), segment_ids.tolist(), lengths, strict=True)
        batches.append([(tokens[:length], segments[:length]) for tokens, segments, length in rows])
    return batches


# ------------------------------------------------------------------------------------- the batches


def test_every_question_comes_once_an_epoch():
    """Also where the last batch is not full; each time drawn otherwise and in another order."""
    batches = read(build().dataset())
    assert len(batches) == 21
    orders, draws = set(), set()
    for start in 0, 7, 14:
        epoch = batches[start : start + 7]
        rows = [token_ids for batch in epoch for token_ids, _ in batch]
        order = [token_ids[0] for token_ids in rows]
        assert sorted(order) == list(range(1, 26))
        assert sorted(map(len, epoch)) == [1, 4, 4, 4, 4, 4, 4]
        orders.add(str(order))
        draws.add(str(sorted(rows)))
    assert len(orders) == len(draws) == 3


def test_every_epoch_draws_each_question_once_and_sorts_windows():
    """Other questions come together in a window than in another epoch."""
    batches, orders, together = build(), set(), set()
    for epoch in range(3):
        windows = [batches.draw_window(epoch, number) for number in range(3)]
        assert [len(window) for window in windows] == [3, 3, 1]
        order = [i for window in windows for batch in window for i, *_ in batch]
        assert sorted(order) == list(range(25))
        orders.add(str(order))
        together.add(frozenset(i for batch in windows[0] for i, *_ in batch))
        for window in windows:
            by_length = sorted([len(token_ids) for _, token_ids, _ in batch] for batch in window)
            assert list(itertools.chain(*by_length)) == sorted(itertools.chain(*by_length))
    assert len(orders) == len(together) == 3


def test_every_window_draws_anew():
    """Not the same passages again, one after another."""

    def encode(record, rng):
        return [int(rng.integers(10**6))], [0]

    batches = build(encode=encode)
    windows = [batches.draw_window(epoch, number) for epoch in range(3) for number in range(3)]
    drawn = [token_ids[0] for window in windows for batch in window for _, token_ids, _ in batch]
    assert len(drawn) == 75 and len(set(drawn)) > 70


def test_pair_comes_with_the_place_of_its_record():
    """Whoever looks for the records of a batch that went wrong goes by it."""
    for i, token_ids, segment_ids in itertools.chain(*build().draw_window(0, 0)):
        assert token_ids[0] == 1 + i and len(token_ids) == len(segment_ids)


def test_batches_are_of_like_length_within_a_window_and_in_a_random_order():
    """Each window is sorted by itself, so an epoch does not begin with all its short pairs."""

    def encode(record, rng):
        return [1] * (1 + record % 6), [0] * (1 + record % 6)

    batches = build(60, window=5, encode=encode)
    spans, firsts = [], []
    for number in range(3):
        lengths = [
            [len(token_ids) for _, token_ids, _ in batch]
            for batch in batches.draw_window(0, number)
        ]
        assert [len(batch) for batch in lengths] == [4] * 5
        ranges = sorted((min(batch), max(batch)) for batch in lengths)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
        spans.append((ranges[0][0], ranges[-1][1]))
        firsts.append([min(batch) for batch in lengths])
    assert all(high - low >= 4 for low, high in spans)
    assert any(first != sorted(first) for first in firsts)


def test_batches_depend_on_the_seed_and_their_number_alone():
    """Not on what was drawn before, or a training that was interrupted would go on otherwise."""
    one, other = build(), build()
    backwards = [other.draw_window(epoch, k) for epoch in (2, 1, 0) for k in (2, 1, 0)]
    assert [one.draw_window(epoch, k) for epoch in range(3) for k in range(3)] == backwards[::-1]
    assert build(seed=43).draw_window(0, 0) != one.draw_window(0, 0)
    assert read(one.dataset()) == read(other.dataset()) != read(build(seed=43).dataset())


def test_data_from_an_update_on_is_the_rest_of_all():
    """Wherever it begins: within a window, at the end of an epoch, after everything."""
    batches = build()
    everything = list(batches.from_step(0))
    assert len(everything) == 21
    for step in range(22):
        assert list(batches.from_step(step)) == everything[step:]
    dealt = read(batches.dataset())
    assert dealt == [[row[1:] for row in batch] for batch in everything]
    for step in 1, 3, 7, 8, 20, 21:
        assert read(batches.dataset(step)) == dealt[step:]


def test_fewer_questions_than_a_batch_holds_make_one():
    """Every epoch; the window, of 64 batches, is then hardly filled."""
    batches = build(2, window=Batches.window)
    assert batches.steps == 1
    assert [sorted(i for i, *_ in batch) for batch in batches.from_step(0)] == [[0, 1]] * 3


# ------------------------------------------------------------------------------------- the dataset


def test_batch_is_a_dict_padded_with_0():
    """Keras 2 takes the names of the model's inputs; a batch is as wide as its longest row."""
    batches, widths = build(), set()
    drawn = batches.from_step(0)
    for batch, pairs in zip(batches.dataset().as_numpy_iterator(), drawn, strict=True):
        assert list(batch) == ['Input-Token', 'Input-Segment']
        assert {values.dtype for values in batch.values()} == {np.dtype('int32')}
        width = max(len(token_ids) for _, token_ids, _ in pairs)
        for name, column in zip(batch, (1, 2), strict=True):
            expected = [pair[column] + [0] * (width - len(pair[column])) for pair in pairs]
            assert batch[name].tolist() == expected
        widths.add(width)
    assert len(widths) > 1


def test_pad_of_an_empty_share_keeps_the_rank():
    """A replica that has nothing to do gets a batch all the same."""
    for values in pad([]).values():
        assert (values.shape, values.dtype) == ((0, 1), np.int32)
    assert pad([(7, [2, 3], [0, 1])])['Input-Segment'].tolist() == [[0, 1]]


@pytest.mark.parametrize(('workers', 'replicas'), [(1, 2), (2, 2), (3, 3), (2, 4)])
def test_replicas_share_each_batch(workers, replicas):
    """The last batch has one row: all but the first get an empty one, of the same rank."""
    batches = build()
    whole, dealt = read(batches.dataset()), []
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, replicas)
        dealt.append(read(batches.dataset(context=context)))
    here = replicas // workers
    assert all(len(parts) == len(whole) * here for parts in dealt)
    for step, batch in enumerate(whole):
        shares = [part for parts in dealt for part in parts[step * here : (step + 1) * here]]
        sizes = [len(batch[replica::replicas]) for replica in range(replicas)]
        assert [len(share) for share in shares] == sizes
        joined = itertools.chain(*itertools.zip_longest(*shares))
        assert [row for row in joined if row is not None] == batch


def test_end_of_training_waits_for_no_tuning():
    """TensorFlow's thread that tunes may sleep for a minute and not notice the end."""
    assert build().dataset().options().autotune.enabled is False


# -------------------------------------------------------------------------------------- the groups


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
def test_groups_are_of_consecutive_entries_up_to_the_limit(sizes, groups):
    """One that is larger alone is a group of its own; none is empty, none is lost."""
    assert list(in_groups(sizes, int, 6)) == groups


def test_groups_come_before_all_entries_are_known():
    """Else nothing would be answered before everything is encoded."""
    entries = iter(range(10))
    groups = in_groups(entries, lambda entry: 1, 2)
    assert next(groups) == [0, 1] and next(entries) == 3
