"""support/packing.py: packed tokens, padded and back, and cut into blocks."""

import numpy as np
import pytest

from support.keras2 import tf
from support.packing import Padding, blocks

HEADS, SIZE = 2, 5
ROWS, COLUMNS = np.int32([0, 0, 1, 1, 1, 2]), np.int32([0, 1, 0, 1, 2, 0])


@pytest.fixture
def values():
    """Six tokens packed, [6, heads * size], and padded with 0, [3, heads, 4, size]."""
    packed = np.random.default_rng(0).normal(size=[6, HEADS * SIZE]).astype(np.float32)
    padded = np.zeros([3, HEADS, 4, SIZE], np.float32)
    padded[ROWS, :, COLUMNS] = packed.reshape([6, HEADS, SIZE])
    return packed, padded


def test_padded_tokens_are_in_their_places_and_come_back(values):
    """In whatever order they are packed; what is padding is some number, not NaN."""
    packed, padded = values
    for order in range(6), [3, 0, 5, 1, 2, 4]:
        order = list(order)
        padding = Padding(ROWS[order], COLUMNS[order], [3, HEADS, 4])
        found = padding.pad(packed[order]).numpy()
        np.testing.assert_array_equal(np.where(padded == 0, 0, found), padded)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(padding.unpad(found), packed[order])


def test_padding_adds_nothing_to_the_gradient_of_packing(values):
    """What was unpacked did not look at it, although a gather fills it with something."""
    packed, padded = values
    padding = Padding(ROWS, COLUMNS, [3, HEADS, 4])
    cases = (padding.unpad, padded, packed), (padding.pad, packed, padded)
    for function, x, weights in cases:
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(weights * y)
        np.testing.assert_array_equal(np.where(weights == 0, 0, y), weights)
        np.testing.assert_array_equal(tape.gradient(loss, x), x)


def test_one_trace_serves_any_number_of_tokens(values):
    """There may be none at all."""
    packed, _ = values
    ids = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None, HEADS * SIZE]), ids, ids, ids])
    def both(x, rows, columns, shape):
        padding = Padding(rows, columns, [shape[0], HEADS, shape[1]])
        found = padding.pad(x)
        return found, padding.unpad(found)

    for tokens, height, longest in (6, 3, 4), (2, 1, 2), (0, 0, 32):
        found, back = both(packed[:tokens], ROWS[:tokens], COLUMNS[:tokens], [height, longest])
        assert found.shape == (height, HEADS, longest, SIZE)
        np.testing.assert_array_equal(back, packed[:tokens])


def test_blocks_by_hand():
    """Sequences of 5, 4, 3 and 2 tokens, the second of which is not kept, in blocks of 2."""
    kept = np.array([True, False, True, True])
    owners, filled, slots = blocks(np.array([5, 4, 3, 2]), kept, 2)
    assert owners.tolist() == [0, 0, 0, 1, 1, 2]
    assert filled.tolist() == [2, 2, 1, 2, 1, 2]
    assert slots.tolist() == [[0, 1], [2, 3], [4, 4], [9, 10], [11, 11], [12, 13]]
    assert {some.dtype for some in (owners, filled, slots)} == {np.dtype(np.int32)}


def test_blocks_hold_every_token_once():
    """A block that is not full is filled up with a token there is; no sequence makes no block."""
    rng = np.random.default_rng(0)
    for size in 1, 3, 32:
        for rows in range(8):
            lengths, kept = rng.integers(1, 100, rows), rng.random(rows) < 0.6
            owners, filled, slots = blocks(lengths, kept, size)
            for number, row in enumerate(np.flatnonzero(kept)):
                mine = zip(slots[owners == number], filled[owners == number], strict=True)
                held = np.concatenate([some[:count] for some, count in mine])
                start = lengths[:row].sum()
                assert held.tolist() == [*range(start, start + lengths[row])]
            assert len(set(owners)) == np.count_nonzero(kept)
            assert slots.shape == (len(owners), size) and np.all(slots < lengths.sum())
            assert owners.tolist() == sorted(owners) and np.all(filled > 0)
