"""bert4keras's BERT under a UniLM mask, over sequences that are packed one after another.

Linear layers work on packed tokens, [tokens, width]; only attention pads them. Nothing else is
computed that the answer does not depend on, and little is kept for the gradient.
"""

import types
import typing

from evaluate_sogou import UserError

from .keras2 import bert4keras, tf


def check_mask(mask):
    """Raise UserError for a mask under which a token sees one that is written after it.

    What is read once, and what is written, would no longer be what it was.
    """
    query, key, source_length = tf.meshgrid(*[tf.range(48)] * 3, indexing='ij')
    seen = tf.broadcast_to(mask(query, key, source_length), query.shape)
    wrong = tf.where(seen & (key >= source_length) & (key > query)).numpy()
    if len(wrong):
        query, key, source_length = wrong[0]
        sees = f'token {query} sees token {key}, of the answer to a source of {source_length}'
        raise UserError(f'unilm_mask: {sees}; what is read once cannot see what is written later')


class UniLM:
    """Computes with the variables of bert4keras's model: training it trains the model.

    mask: a function of positions of queries and keys and of the lengths of their sources, int32,
    that says which see which, bool; precision: of the products of linear layers, 'float32' or
    'bfloat16'; all else is float32; training: whether a gradient is wanted.
    """

    round_up = 32  # lengths are rounded up to it: oneDNN keeps 2 MB for each shape it has seen

    def __init__(self, model, mask, precision='float32', training=False):
        check_mask(mask)
        self.mask = mask
        self.dtype = tf.as_dtype(precision)
        self.weights = variables_of(model)  # by Google's names, see `variables_of`
        attention = model.get_layer('Transformer-0-MultiHeadSelfAttention')
        self.heads, self.size = attention.heads, attention.key_size
        self.epsilon = model.get_layer('Embedding-Norm').epsilon
        count = sum(name.endswith('/query/kernel') for name in self.weights)
        self.layers = [f'bert/encoder/layer_{i}' for i in range(count)]
        activation = model.get_layer('MLM-Dense').activation
        self.activation = with_slope(activation) if training else activation
        self.recomputes = training and self.dtype == tf.float32

    def run_layers(self, token_ids, lengths, source_lengths, drop=tf.identity):
        """Run all layers; the last one only where a token of the answer is predicted.

        token_ids: int32 [tokens], one sequence after another; lengths, source_lengths: int32
        [rows], tokens of each and of those passage and question, answer tokens follow; drop:
        dropout. Returns the last layer's output from the end of each source on, [predictions,
        width], and each layer's keys and values, [tokens, width].
        """
        rows = tf.repeat(tf.range(tf.size(lengths)), lengths)  # [tokens]
        starts = tf.cumsum(lengths, exclusive=True)
        positions = tf.range(tf.size(token_ids)) - tf.gather(starts, rows)  # [tokens]
        after = positions - tf.gather(source_lengths, rows)  # [tokens], -1 at the end of a source
        predicting = tf.where(after >= -1)[:, 0]  # [predictions]
        longest = tf.reduce_max(tf.concat([[1], lengths], 0))  # there may be no rows
        longest += -longest % self.round_up
        longest_answer = tf.reduce_max(tf.concat([[0], lengths - source_lengths], 0)) + 1
        height = tf.size(lengths)
        keys = Padding(tf.stack([rows, positions], 1), height, longest)
        ends = tf.stack([rows, after + 1], 1)  # [tokens, 2]
        queries = Padding(tf.gather(ends, predicting), height, longest_answer)
        query_positions = tf.range(longest)[None]  # [1, longest], in its row
        attend = self._attention(keys, keys, source_lengths, query_positions)
        segment_ids = tf.cast(after >= 0, tf.int32)
        x, kept = drop(self.embed(token_ids, segment_ids, positions)), []  # [tokens, width]
        for layer in self.layers:
            query, key, value = self.project(x, layer)
            kept.append((key, value))
            if layer is self.layers[-1]:
                x, query = tf.gather(x, predicting), tf.gather(query, predicting)
                query_positions = source_lengths[:, None] - 1 + tf.range(longest_answer)
                attend = self._attention(queries, keys, source_lengths, query_positions)
            x = self.finish_layer(x, attend(query, key, value), layer, drop=drop)
        return x, kept

    def _attention(self, queries, keys, source_lengths, query_positions):
        """Return a function of packed queries, keys and values, each [tokens, width].

        queries, keys: Padding of the queries, and of keys and values; source_lengths: int32 [rows];
        query_positions: int32 [rows, queries], where in its row a padded query stands.
        """
        columns = tf.range(keys.longest)
        seen = self.mask(query_positions[:, :, None], columns, source_lengths[:, None, None])
        mask = tf.where(seen, 0.0, -1e12)[:, None]  # [rows, 1, queries, longest]

        def attend(query, key, value):
            query = self._split(queries.pad(query))  # [rows, heads, queries, size]
            key, value = (self._split(keys.pad(x)) for x in (key, value))
            # [rows, heads, queries, longest]; in this form oneDNN makes one operation of them
            scores = tf.matmul(query, key, transpose_b=True) * self.size**-0.5 + mask
            return queries.unpad(self._join(tf.matmul(tf.nn.softmax(scores), value)))

        return tf.recompute_grad(attend) if self.recomputes else attend

    def embed(self, token_ids, segment_ids, positions):
        """Return [tokens, width] of token_ids, segment_ids and positions, each [tokens]."""
        names = 'word_embeddings', 'token_type_embeddings', 'position_embeddings'
        # as tensors: a variable that was gathered from is copied whole whenever TensorFlow reads it
        tables = [tf.convert_to_tensor(self.weights[f'bert/embeddings/{name}']) for name in names]
        token, segment, position = map(tf.gather, tables, (token_ids, segment_ids, positions))
        x = self._normalize(token + segment + position, 'bert/embeddings')
        mapping = 'bert/encoder/embedding_hidden_mapping_in'
        return self._dense(x, mapping) if f'{mapping}/kernel' in self.weights else x

    def project(self, x, layer):
        """Return queries, keys and values, each float32 [tokens, width]."""
        return [
            self._dense(x, f'{layer}/attention/self/{name}') for name in ('query', 'key', 'value')
        ]

    def finish_layer(self, x, attended, layer, counted=1.0, drop=tf.identity):
        """Return the output of a layer, [tokens, width], from its input and what it attended to.

        counted: float32 [tokens, 1], 0 where bert4keras masks what was attended to.
        """
        attended = self._dense(attended, f'{layer}/attention/output/dense')
        x = self._normalize(x + counted * drop(attended), f'{layer}/attention/output')
        # [tokens, intermediate size], in `precision`
        inner = self.activation(self._dense(x, f'{layer}/intermediate/dense', self.dtype))
        outer = self._dense(inner, f'{layer}/output/dense')
        return self._normalize(x + drop(outer), f'{layer}/output')

    def logits(self, x):
        """Return the logits of the next token, float32 [tokens, vocab], from the last output."""
        head, weights = 'cls/predictions/transform', self.weights
        kernel, bias = weights[f'{head}/dense/kernel'], weights[f'{head}/dense/bias']
        x = self.activation(tf.nn.bias_add(tf.matmul(x, kernel), bias))
        x = self._normalize(x, head)
        x = tf.matmul(x, weights['bert/embeddings/word_embeddings'], transpose_b=True)
        return tf.nn.bias_add(x, weights['cls/predictions/output_bias'])

    def _dense(self, x, name, dtype=tf.float32):
        """Return [tokens, units] of x, [tokens, width]; computed in `precision`."""
        operands = x, self.weights[f'{name}/kernel'], self.weights[f'{name}/bias']
        x, kernel, bias = (tf.cast(y, self.dtype) for y in operands)
        return tf.cast(tf.nn.bias_add(tf.matmul(x, kernel), bias), dtype)

    def _normalize(self, x, name):
        """Return x normalized; in fewer operations than bert4keras's layer."""
        gamma, beta = (self.weights[f'{name}/LayerNorm/{which}'] for which in ('gamma', 'beta'))
        return standardize(x, self.epsilon) * gamma + beta

    def next_token(self, token_ids, lengths, source_lengths):
        """Return what comes after each sequence, and what `run_layers` does; see there.

        That is the probabilities of the next token, float32 [rows, vocab], and each layer's keys
        and values.
        """
        x, kept = self.run_layers(token_ids, lengths, source_lengths)  # [predictions, width]
        last = tf.cumsum(lengths - source_lengths + 1) - 1  # [rows]
        return tf.nn.softmax(self.logits(tf.gather(x, last))), kept

    def _split(self, x):
        """Return [rows, heads, columns, size] of x, [rows, columns, width]."""
        rows, columns = tf.unstack(tf.shape(x)[:2])
        return tf.transpose(tf.reshape(x, [rows, columns, self.heads, self.size]), [0, 2, 1, 3])

    def _join(self, x):
        """Return [rows, columns, width] of x, [rows, heads, columns, size]."""
        x = tf.transpose(x, [0, 2, 1, 3])
        return tf.reshape(x, [*tf.unstack(tf.shape(x)[:2]), self.heads * self.size])


def variables_of(model):
    """Return {Google's name: tf.Variable} of bert4keras's BERT."""
    count = sum(layer.name.endswith('-FeedForward') for layer in model.layers)
    # all that it asks for
    shape = types.SimpleNamespace(num_hidden_layers=count)
    mapping = bert4keras.models.BERT.variable_mapping(shape)
    variables = {}
    for layer in model.layers:
        if layer.name in mapping:
            variables.update(zip(mapping[layer.name], layer.weights, strict=True))
    return variables


# --------------------------------------------------------------------------------- pieces of BERT


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
