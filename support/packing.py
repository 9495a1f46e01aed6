"""Sequences packed one after another, without padding, and back.

Linear layers work on packed tokens, [tokens, width]; only attention pads them.
"""

import numpy as np

from .keras2 import tf


class Padding:
    """Where each of some packed tokens stands when padded, and both ways between.

    rows, columns: int32 [tokens]; shape: [height, heads, columns] of what is padded. Padding is
    filled with the first token. Each way is a gather of heads, not of tokens, so nothing is
    transposed; and so is its gradient.
    """

    def __init__(self, rows, columns, shape):
        self.shape, (_, self.heads, longest) = shape, shape
        height = rows[:, None] * self.heads + tf.range(self.heads)  # [tokens, heads]
        self.indices = height * longest + columns[:, None]  # [tokens, heads]
        flat = tf.reshape(self.indices, [-1, 1])
        size, ones = [tf.reduce_prod(shape)], tf.ones(tf.size(flat))
        self.slots = tf.scatter_nd(flat, tf.range(tf.size(flat)), size)
        self.filled = tf.scatter_nd(flat, ones, size)

    def pad(self, x):
        """Return padded [height, heads, columns, size] of packed x, [tokens, heads * size]."""

        @tf.custom_gradient
        def function(x):
            return self._pad(x), lambda upstream: self.unpad(upstream)

        return function(x)

    def unpad(self, x):
        """Return packed [tokens, heads * size] of padded x, [height, heads, columns, size]."""

        @tf.custom_gradient
        def function(x):
            filled = tf.reshape(self.filled, [*self.shape, 1])
            return self._unpad(x), lambda upstream: self.pad(upstream) * filled

        return function(x)

    def _pad(self, x):
        size = x.shape[-1] // self.heads
        heads = tf.reshape(x, [-1, size])  # [tokens * heads, size]
        return tf.reshape(tf.gather(heads, self.slots), [*self.shape, size])

    def _unpad(self, x):
        size = x.shape[-1]
        heads = tf.gather(tf.reshape(x, [-1, size]), self.indices)  # [tokens, heads, size]
        return tf.reshape(heads, [-1, self.heads * size])


def blocks(lengths, kept, size):
    """Cut some packed sequences into blocks of `size` tokens, the last of each filled up.

    lengths: int [rows], tokens of each sequence; kept: bool [rows], which ones. Returns which of
    the kept ones each block is of and how many tokens it has, int32 [blocks], and where they stand,
    int32 [blocks, size].
    """
    starts, lengths = (np.cumsum(lengths) - lengths)[kept], lengths[kept]
    counts = -(-lengths // size)  # [kept], blocks of each
    owners = np.repeat(np.arange(len(lengths)), counts)  # [blocks]
    number = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]  # [blocks], in its row
    filled = np.minimum(lengths[owners] - size * number, size)
    inside = np.arange(size) * (np.arange(size) < filled[:, None])  # [blocks, size]
    slots = (starts[owners] + size * number)[:, None] + inside
    return owners.astype(np.int32), filled.astype(np.int32), slots.astype(np.int32)
