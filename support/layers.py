"""The layers of bert4keras's BERT by name, and functions that keep little for their gradients."""

import typing

from .keras2 import tf


class Dense(typing.NamedTuple):
    """A linear layer: kernel [width, units], bias [units]."""

    kernel: tf.Variable
    bias: tf.Variable


class Norm(typing.NamedTuple):
    """A layer normalization: beta, gamma [width], and what keeps it from dividing by 0."""

    beta: tf.Variable
    gamma: tf.Variable
    epsilon: float


class Layer(typing.NamedTuple):
    """The weights of one of bert4keras's Transformer layers, in its order."""

    query: Dense
    key: Dense
    value: Dense
    attended: Dense
    attended_norm: Norm
    inner: Dense
    outer: Dense
    outer_norm: Norm


def transformer_layers(model):
    """Return the Layers of a model of bert4keras's, from the first to the last."""
    layers = []
    for attention in model.layers:
        if attention.name.endswith('MultiHeadSelfAttention'):
            feed_forward = attention.name.replace('MultiHeadSelfAttention', 'FeedForward')
            weights = attention.weights + model.get_layer(feed_forward).weights
            query, key, value, attended, inner, outer = map(Dense, weights[::2], weights[1::2])
            attended_norm = norm_of(model, f'{attention.name}-Norm')
            outer_norm = norm_of(model, f'{feed_forward}-Norm')
            layer = query, key, value, attended, attended_norm, inner, outer, outer_norm
            layers.append(Layer(*layer))
    return layers


def norm_of(model, name):
    """Return the Norm of the layer of this name."""
    layer = model.get_layer(name)
    return Norm(*layer.weights, layer.epsilon)


def normalize(x, norm):
    """Return x normalized; in fewer operations than bert4keras's layer."""
    return standardize(x, norm.epsilon) * norm.gamma + norm.beta


def standardize(x, epsilon):
    """Return x less its mean, over its standard deviation, of the last axis.

    Its gradient needs no more than the result.
    """

    @tf.custom_gradient
    def function(x):
        x -= tf.reduce_mean(x, -1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + epsilon)  # [..., 1]
        y = x * scale

        def gradient(upstream):
            along = tf.reduce_mean(upstream * y, -1, keepdims=True)  # [..., 1]
            return scale * (upstream - tf.reduce_mean(upstream, -1, keepdims=True) - y * along)

        return y, gradient

    return function(x)


def with_slope(activation):
    """Return the same element-wise function; for the gradient it keeps its slope and no more."""

    @tf.custom_gradient
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = activation(x)
        slope = tape.gradient(y, x)
        return y, lambda upstream: upstream * slope

    return function
