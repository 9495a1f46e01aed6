"""support/packing.py: packed tokens, padded and back, and cut into blocks."""

import numpy as np
import pytest

from support.keras2 import tf
from support.packing import Padding, blocks

WIDTH = 10
PLACES = np.int32([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0]])


@pytest.fixture
def values():
    """Six tokens packed, [6, width], and padded with 0, [3, 4, width]."""
    packed = np.random.default_rng(0).normal(size=[6, WIDTH]).astype(np.float32)
    padded = np.zeros([3, 4, WIDTH], np.float32)
    padded[PLACES[:, 0], PLACES[:, 1]] = packed
    return packed, padded


def test_padded_tokens_are_in_their_places_and_come_back(values):
    """In whatever order they are packed."""
    packed, padded = values
    for order in range(6), [3, 0, 5, 1, 2, 4]:
        order = list(order)
        padding = Padding(PLACES[order], 3, 4)
        np.testing.assert_array_equal(padding.pad(packed[order]), padded)
        np.testing.assert_array_equal(padding.unpad(padded), packed[order])


def test_one_trace_serves_any_number_of_tokens(values):
    """There may be none at all."""
    packed, _ = values
    number, places = tf.TensorSpec([], tf.int32), tf.TensorSpec([None, 2], tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH]), places, number, number])
    def both(x, *where):
        padding = Padding(*where)
        found = padding.pad(x)
        return found, padding.unpad(found)

    for tokens, height, longest in (6, 3, 4), (2, 1, 2), (0, 0, 32):
        found, back = both(packed[:tokens], PLACES[:tokens], height, longest)
        assert found.shape == (height, longest, WIDTH)
        np.testing.assert_array_equal(back, packed[:tokens])


def test_blocks_by_hand():
    """Sequences of 5, 2 and 4 tokens, the second of which is packed last, in blocks of 2."""
    owners, filled, slots = blocks(np.array([0, 9, 5]), np.array([5, 2, 4]), 2)
    assert owners.tolist() == [0, 0, 0, 1, 2, 2]
    assert filled.tolist() == [2, 2, 1, 2, 2, 2]
    assert slots.tolist() == [[0, 1], [2, 3], [4, 4], [9, 10], [5, 6], [7, 8]]
    assert {some.dtype for some in (owners, filled, slots)} == {np.dtype(np.int32)}


def test_blocks_hold_every_token_once():
    """A block that is not full is filled up with a token there is; no sequence makes no block."""
    rng = np.random.default_rng(0)
    for size in 1, 3, 32:
        for rows in range(8):
            lengths = rng.integers(1, 100, rows)
            order = rng.permutation(rows)  # in which the sequences are packed
            starts = np.zeros(rows, int)
            starts[order] = np.cumsum(lengths[order]) - lengths[order]
            owners, filled, slots = blocks(starts, lengths, size)
            for row in range(rows):
                mine = zip(slots[owners == row], filled[owners == row], strict=True)
                held = np.concatenate([some[:count] for some, count in mine])
                assert held.tolist() == [*range(starts[row], starts[row] + lengths[row])]
            assert slots.shape == (len(owners), size) and np.all(slots < lengths.sum())
            assert owners.tolist() == sorted(owners) and np.all(filled > 0)
