"""support/layers.py: gradients written by hand, and the weights of bert4keras's layers by name."""

import json
import warnings

import numpy as np
import pytest
from conftest import write_small

from support.keras2 import bert4keras, tf
from support.layers import norm_of, normalize, standardize, transformer_layers, with_slope


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


@pytest.fixture(scope='module')
def transformer(tmp_path_factory):
    """bert4keras's own object, which knows the names of a checkpoint; every weight is another."""
    small = write_small(tmp_path_factory.mktemp('small'))
    config = json.loads((small / 'bert_config.json').read_text(encoding='utf-8'))
    config.update(num_hidden_layers=11, hidden_size=4, intermediate_size=6)
    options = {'model': 'bert', 'application': 'unilm', 'return_keras_model': False}
    with warnings.catch_warnings(action='ignore'):  # of weights that come out alike
        transformer = bert4keras.models.build_transformer_model(**config, **options)
    rng = np.random.default_rng(0)
    for weight in transformer.model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return transformer


def test_layers_are_named_as_in_a_checkpoint(transformer):
    """From the first to the last: 2 comes before 10."""
    named = {}
    for layer, names in transformer.variable_mapping().items():
        if layer in transformer.layers:
            weights = transformer.layers[layer].trainable_weights
            named.update(zip(names, weights, strict=True))
    layers = transformer_layers(transformer.model)
    assert len(layers) == 11
    dense = {
        'query': 'attention/self/query',
        'key': 'attention/self/key',
        'value': 'attention/self/value',
        'attended': 'attention/output/dense',
        'inner': 'intermediate/dense',
        'outer': 'output/dense',
    }
    norms = {'attended_norm': 'attention/output/LayerNorm', 'outer_norm': 'output/LayerNorm'}
    for number, layer in enumerate(layers):
        for name, path in dense.items():
            path = f'bert/encoder/layer_{number}/{path}'
            assert getattr(layer, name).kernel is named[f'{path}/kernel']
            assert getattr(layer, name).bias is named[f'{path}/bias']
        for name, path in norms.items():
            path = f'bert/encoder/layer_{number}/{path}'
            assert getattr(layer, name).beta is named[f'{path}/beta']
            assert getattr(layer, name).gamma is named[f'{path}/gamma']
        assert {*layer._fields} == {*dense, *norms}


@pytest.mark.parametrize('name', ['Embedding-Norm', 'Transformer-10-FeedForward-Norm', 'MLM-Norm'])
def test_normalized_as_by_the_layer_of_this_name(transformer, name):
    """Its weights, and its epsilon, which matters where there is little variance."""
    x = np.random.default_rng(1).normal(size=[3, 9, 4], scale=1e-6).astype(np.float32)
    layer = transformer.model.get_layer(name)
    norm = norm_of(transformer.model, name)
    np.testing.assert_allclose(normalize(x, norm), layer(x), rtol=1e-4, atol=1e-5)
    assert np.ptp(layer(x).numpy() - layer.beta.numpy()) > 1e-2
