"""Sequences packed one after another, without padding, and back.

Linear layers work on packed tokens, [tokens, width]; only attention pads them.
"""

import typing

import numpy as np

from .keras2 import tf


class Padding(typing.NamedTuple):
    """Where each of some packed tokens stands when padded, and both ways between."""

    places: tf.Tensor  # int32 [tokens, 2], row and column of each
    height: tf.Tensor  # int32, rows
    longest: tf.Tensor  # int32, columns

    def pad(self, x):
        """Return [height, longest, width], filled up with 0, of packed x, [tokens, width]."""
        return tf.scatter_nd(self.places, x, [self.height, self.longest, x.shape[-1]])

    def unpad(self, x):
        """Return packed [tokens, width] of x, [height, longest, width]."""
        return tf.gather_nd(x, self.places)


def blocks(starts, lengths, size):
    """Cut packed sequences into blocks of `size` tokens, the last of each sequence filled up.

    starts, lengths: int [rows], where each sequence begins and its tokens. Returns the row that
    each block is of, where in it the block begins and how many tokens it has, int32 [blocks], and
    which these are, int32 [blocks, size].
    """
    counts = -(-lengths // size)  # [rows], blocks of each
    owners = np.repeat(np.arange(len(lengths)), counts)  # [blocks]
    number = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]  # [blocks], in its row
    begins = size * number
    filled = np.minimum(lengths[owners] - begins, size)
    inside = np.arange(size) * (np.arange(size) < filled[:, None])  # [blocks, size]
    slots = (starts[owners] + begins)[:, None] + inside
    return [x.astype(np.int32) for x in (owners, begins, filled, slots)]
