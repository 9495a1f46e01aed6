"""support/layers.py: gradients written by hand; the rest is compared in test_unilm.py."""

import numpy as np
import pytest

from support.keras2 import tf
from support.layers import standardize, with_slope


def plainly_standardized(x):
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    return centred / tf.sqrt(tf.math.reduce_variance(x, -1, keepdims=True) + 1e-3)


def gelu(x):
    return tf.nn.gelu(x, approximate=False)


@pytest.mark.parametrize(
    ('plain', 'ours'),
    [(plainly_standardized, lambda x: standardize(x, 1e-3)), (gelu, with_slope(gelu))],
    ids=['standardize', 'with_slope'],
)
def test_gradient_written_by_hand_is_the_automatic_one(plain, ours):
    """It keeps less for the gradient, and must not differ but by rounding."""
    rng, found = np.random.default_rng(0), []
    x, weights = (tf.constant(rng.normal(size=[5, 7]), tf.float32) for _ in range(2))
    for function in plain, ours:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(weights * y)
        found.append((y.numpy(), tape.gradient(loss, x).numpy()))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
