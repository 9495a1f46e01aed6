"""bert4keras's BERT under a UniLM mask, computed without padding and without reading twice.

Under the mask no source token sees the answer (https://arxiv.org/abs/1905.03197). So keys and
values of a source are computed once, `read`, and those of each new token are added, `write`.
"""

import typing

import numpy as np

from evaluate_sogou import UserError

from .keras2 import tf
from .layers import Dense, norm_of, normalize, transformer_layers, with_slope
from .packing import Padding, blocks


class KeyValues(typing.NamedTuple):
    """For each layer keys and values: of the sources in blocks of tokens, and of the beams."""

    lengths: tf.Tensor  # int32 [rows], tokens of each source
    owners: tf.Tensor  # int32 [blocks], the row that each block is of
    starts: tf.Tensor  # int32 [blocks], where in its source each block begins
    filled: tf.Tensor  # int32 [blocks], tokens of each block
    sources: list  # pairs of float32 [blocks, heads, block, size]
    beams: list  # pairs of float32 [rows, heads, beams, written, size]


class Cache(typing.NamedTuple):
    """What was read and written so far, and which question each row of it is of."""

    of_question: np.ndarray  # int [rows], those with keys and values, then those without
    numbers: np.ndarray  # int [rows], which source each is
    key_values: KeyValues  # of the first rows
    uncached: list  # the sources of the others, of ascending lengths

    def keep(self, rows):
        """Return a Cache of some rows only, in place of this one; rows: int [rows], ascending."""
        cached = self.cached
        uncached = [self.uncached[row] for row in rows[rows >= cached] - cached]
        of_question, numbers, rows = self.of_question[rows], self.numbers[rows], rows[rows < cached]
        lengths, owners, starts, filled = map(np.asarray, self.key_values[:4])
        kept = np.flatnonzero(np.isin(owners, rows))  # [blocks]
        owners = np.searchsorted(rows, owners[kept]).astype(np.int32)
        sources = self.key_values.sources
        for i, pair in enumerate(sources):  # layer by layer, or both are held at once
            sources[i] = tuple(tf.gather(x, kept) for x in pair)
        beams = [tuple(tf.gather(x, rows) for x in pair) for pair in self.key_values.beams]
        blocks = owners, starts[kept], filled[kept]
        return Cache(
            of_question, numbers, KeyValues(lengths[rows], *blocks, sources, beams), uncached
        )

    @property
    def cached(self):
        """The number of rows that have keys and values."""
        return len(self.key_values.lengths)


class Packed(typing.NamedTuple):
    """Keys and values of sources that stay, and the sources that there was no room for."""

    pairs: list  # for each part, for each layer, keys and values, float32 [tokens, width]
    uncached: list  # sources, lists of token ids


class UniLM:
    """Computes with the variables of bert4keras's model: training it trains the model.

    mask: a function of positions of queries and keys and of the lengths of their sources, int32,
    that says which see which, bool; precision: of the products of linear layers, 'float32' or
    'bfloat16'; all else is float32.
    training: whether a gradient is wanted, and little kept for it. Without, matrices in bfloat16
    are copies, made whenever sources are read: to cast them takes as long as writing a token. It
    must not be made under a strategy then: of several workers only one reads.
    """

    tokens_at_once = 1536  # more are hardly faster, and take more memory
    # 74 kB each of BERT-base; sources beyond them are read again for each token that is written
    tokens_cached = 32768
    block = 32  # tokens of a source that are cached together: more are padding, fewer are slow

    def __init__(self, model, mask, precision='float32', training=False):
        check_mask(mask)
        self.mask = mask
        self.dtype = tf.as_dtype(precision)
        attention = model.get_layer('Transformer-0-MultiHeadSelfAttention')
        self.heads, self.size = attention.heads, attention.key_size
        # as bert4keras did before 0.10
        self.masks_queries = not hasattr(attention, 'normalization')
        self.layers = transformer_layers(model)
        names = 'Embedding-Token', 'Embedding-Segment', 'Embedding-Position'
        self.embeddings = [model.get_layer(name).embeddings for name in names]
        self.embedding_norm = norm_of(model, 'Embedding-Norm')
        mapping = [layer for layer in model.layers if layer.name == 'Embedding-Mapping']
        self.mapping = Dense(*mapping[0].weights) if mapping else None
        self.head = Dense(*model.get_layer('MLM-Dense').weights)
        self.head_norm = norm_of(model, 'MLM-Norm')
        self.head_bias = model.get_layer('MLM-Bias').weights[0]
        self.activation = model.get_layer('MLM-Dense').activation
        self.recomputes, self.copies = training and self.dtype == tf.float32, {}
        if training:
            self.activation = with_slope(self.activation)
        elif self.dtype != tf.float32:
            for matrix in (weight for weight in model.weights if weight.shape.rank == 2):
                self.copies[matrix.ref()] = tf.Variable(tf.cast(matrix, self.dtype))
        self._compile()

    def _compile(self):
        # dimensions that vary are open, so that nothing is traced twice
        ids = [tf.TensorSpec([None] * rank, tf.int32) for rank in range(4)]
        source = tf.TensorSpec([None, self.heads, self.block, self.size])
        beam = tf.TensorSpec([None, self.heads, None, None, self.size])
        sources, beams = ([(x, x)] * len(self.layers) for x in (source, beam))
        key_values = KeyValues(*ids[1:2] * 4, sources, beams)

        def compiled(function, *signature):  # AutoGraph takes seconds, and there is nothing for it
            return tf.function(function, input_signature=signature, autograph=False)

        self._read_graph = compiled(self._read_packed, ids[1], ids[1])
        self._write_graph = compiled(self._write, key_values, ids[3], ids[2])

    # ------------------------------------------------------------------------------------- reading

    def read(self, sources, has_answer):
        """Read the sources of several questions, sorted by length, some at a time.

        sources: for each question a list of sources, lists of token ids; has_answer: a function of
        the probabilities of the first token, float32 [rows, vocab], to bool [rows]: of the others
        nothing is kept. Returns for each question the probabilities, float32 [sources, vocab], and
        which sources are kept, bool [sources], and a Cache of these.
        """
        every = [source for of_question in sources for source in of_question]
        counts = [len(of_question) for of_question in sources]
        if not every:
            nothing = tf.zeros([0, self.head_bias.shape[0]]), np.zeros(0, bool)
            return *([each] * len(sources) for each in nothing), None
        for matrix, copy in self.copies.items():  # as they are now
            copy.assign(tf.cast(matrix.deref(), self.dtype))
        lengths = np.array([len(source) for source in every], np.int32)
        order = np.argsort(lengths, kind='stable')
        probas, kept, packed = self._read_sorted([every[i] for i in order], has_answer)
        stay = order[kept]  # the numbers of the sources that are kept, by length
        first = stay[: len(stay) - len(packed.uncached)]
        back = np.argsort(first)  # the cached ones in the order of the sources again
        key_values = self._key_values(packed.pairs, lengths[first], back)
        numbers = np.concatenate([first[back], stay[len(first) :]])
        of_question = np.repeat(np.arange(len(sources)), counts)[numbers]
        cache = Cache(of_question, numbers, key_values, packed.uncached)
        unsorted = np.argsort(order)
        probas = tf.split(tf.gather(probas, unsorted), counts)
        return probas, np.split(kept[unsorted], np.cumsum(counts)[:-1]), cache

    def _read_sorted(self, sources, has_answer):
        """Return the probabilities, what `has_answer` says, and Packed of what is kept."""
        lengths = np.array([len(source) for source in sources], np.int32)
        probas, kept, packed, room = [], [], Packed([], []), self.tokens_cached
        for start, stop in self._parts(lengths):
            token_ids = np.concatenate(sources[start:stop]).astype(np.int32)
            part_probas, part = self._read_graph(token_ids, lengths[start:stop])
            probas.append(part_probas)
            kept.append(has_answer(part_probas))
            tokens = np.flatnonzero(np.repeat(kept[-1], lengths[start:stop]))
            room -= len(tokens)
            if room >= 0 or not packed.pairs:
                packed.pairs.append([tuple(tf.gather(x, tokens) for x in pair) for pair in part])
            else:
                packed.uncached.extend(sources[start + i] for i in np.flatnonzero(kept[-1]))
        return tf.concat(probas, 0), np.concatenate(kept), packed

    def _parts(self, lengths):
        """Yield start and end of each part that is read at once; lengths: int [rows], ascending."""
        start = 0
        while start < len(lengths):
            padded = lengths[start:] * np.arange(1, len(lengths) - start + 1)
            stop = start + max(1, np.count_nonzero(padded <= self.tokens_at_once))
            yield start, stop
            start = stop

    def _key_values(self, packed, lengths, rows):
        """Return the KeyValues of sources, before anything is written; `packed` is emptied.

        packed: for each part, for each layer, keys and values, [tokens, width]; lengths: int32
        [rows], tokens of each source; rows: int [rows], the order that they are to have.
        """
        starts = np.cumsum(lengths) - lengths
        starts, lengths = starts[rows], lengths[rows]
        *cut, slots = blocks(starts, lengths, self.block)
        sources = []
        for _ in self.layers:  # layer by layer, and what was packed is freed
            columns = zip(*[part.pop(0) for part in packed], strict=True)
            parts = (tf.gather(tf.concat(column, 0), slots) for column in columns)
            sources.append(tuple(map(self._split, parts)))
        nothing = tf.zeros([len(rows), self.heads, 1, 0, self.size])
        beams = [(nothing, nothing)] * len(self.layers)
        return KeyValues(lengths, *cut, sources, beams)

    def _read_packed(self, token_ids, lengths):
        # a source of padding and empty ones make shapes that recur, see `run_layers`
        rows, padding = tf.size(lengths), -tf.size(token_ids) % self.block
        padded = tf.concat([lengths, [padding], tf.zeros([-(rows + 1) % 4], tf.int32)], 0)
        x, packed = self.run_layers(tf.pad(token_ids, [[0, padding]]), padded, padded)
        return tf.nn.softmax(self.logits(x)[:rows]), packed  # [rows, vocab]

    # ------------------------------------------------------------------------------------- writing

    def write(self, cache, hypotheses):
        """Write the last token of each hypothesis.

        hypotheses: {question: a list of answers.Hypothesis of one length, each of which extends one
        of the list before, its `parent`} of the unfinished ones. Returns {question: the
        probabilities of the next token, float32 [its sources, beams, vocab]} and a longer Cache.
        """
        active = np.flatnonzero(np.isin(cache.of_question, list(hypotheses)))
        if len(active) <= len(cache.of_question) / 2:  # seldom, as what stays is copied
            cache = cache.keep(active)
        widths = {question: len(some) for question, some in hypotheses.items()}
        length = max(len(some[0].token_ids) for some in hypotheses.values())
        shape = len(cache.of_question), max(widths.values())
        output_ids, parents = np.zeros([*shape, length], np.int32), np.zeros(shape, np.int32)
        for row, question in enumerate(cache.of_question):
            for beam, hypothesis in enumerate(hypotheses.get(question, [])):
                output_ids[row, beam] = hypothesis.token_ids
                parents[row, beam] = hypothesis.parent
        count, key_values, probas = cache.cached, cache.key_values, []
        if count:
            part_probas, key_values = self._write_graph(
                key_values, output_ids[:count], parents[:count]
            )
            probas.append(part_probas)
        probas += self._write_uncached(cache.uncached, output_ids[count:])
        cache = cache._replace(key_values=key_values)
        return _share_out(tf.concat(probas, 0), cache, widths), cache

    def _write_uncached(self, sources, output_ids):
        """Yield the probabilities of the next token, float32 [rows, beams, vocab], in parts.

        sources: of ascending lengths; output_ids: int32 [rows, beams, length].
        """
        lengths = np.array([len(source) for source in sources], np.int32)
        for start, stop in self._parts(lengths):
            token_ids = np.concatenate(sources[start:stop]).astype(np.int32)
            _, packed = self._read_graph(token_ids, lengths[start:stop])
            key_values = self._key_values([packed], lengths[start:stop], np.arange(stop - start))
            part_ids = output_ids[start:stop]
            rows, beams, longest = part_ids.shape
            parents = np.tile(np.arange(beams, dtype=np.int32), [rows, 1])
            for length in range(1, longest + 1):
                probas, key_values = self._write_graph(key_values, part_ids[:, :, :length], parents)
            yield probas

    def _write(self, key_values, output_ids, parents):
        """Return the probabilities, float32 [rows, beams, vocab], and the longer KeyValues.

        output_ids: int32 [rows, beams, length]; parents: int32 [rows, beams].
        """
        rows, beams, length = tf.unstack(tf.shape(output_ids))
        counted = tf.ones([rows * beams, 1])
        if self.masks_queries:  # bert4keras takes a written [PAD] for padding
            counted = tf.reshape(tf.cast(output_ids[:, :, -1:] != 0, tf.float32), [-1, 1])
        last = key_values.lengths + length - 1  # [rows], the position of the query
        outside, hidden = self._write_masks(key_values, output_ids, last)
        positions = tf.repeat(last, beams)
        x = self.embed(
            tf.reshape(output_ids[:, :, -1], [-1]), 1, positions
        )  # [rows * beams, width]
        longer = []
        pairs = zip(key_values.sources, key_values.beams, strict=True)
        for layer, (source, beam) in zip(self.layers, pairs, strict=True):
            query, *added = (tf.reshape(y, [rows, beams, -1]) for y in self.project(x, layer))
            # [rows, heads, beams, size]
            query, *added = map(self._split, (query * self.size**-0.5, *added))
            old = [tf.gather(tensor, parents, axis=2, batch_dims=1) for tensor in beam]
            pairs = zip(old, added, strict=True)
            key, value = (tf.concat([a, b[:, :, :, None]], 3) for a, b in pairs)
            longer.append((key, value))  # [rows, heads, beams, length, size]
            near = tf.reduce_sum(key * query[:, :, :, None], 4) + hidden
            attended = _attend_blocks(query, source, outside, key_values.owners, near, value)
            attended = tf.reshape(self._join(attended), tf.shape(x))
            x = self.finish_layer(x, attended, layer, counted)
        probas = tf.nn.softmax(self.logits(x))
        return tf.reshape(probas, [rows, beams, -1]), key_values._replace(beams=longer)

    def _write_masks(self, key_values, output_ids, last):
        """Return what to add to the scores of a source's tokens and of the answer's, 0 or -1e12.

        last: int32 [rows], the position of the query. Returns float32 [blocks, 1, 1, block] and
        [rows, 1, beams, length].
        """
        query, length = last[:, None], key_values.lengths[:, None]  # [rows, 1]
        columns = tf.range(self.block)
        of_block = (tf.gather(x, key_values.owners) for x in (query, length))  # [blocks, 1]
        query_of_block, length_of_block = of_block
        key = key_values.starts[:, None] + columns  # [blocks, block]
        seen = self.mask(query_of_block, key, length_of_block)
        seen &= columns < key_values.filled[:, None]
        outside = tf.where(seen, 0.0, -1e12)[:, None, None]
        key = length + tf.range(tf.shape(output_ids)[2])  # [rows, length]
        seen = self.mask(query, key, length)[:, None] & (output_ids != 0)  # [rows, beams, length]
        return outside, tf.where(seen, 0.0, -1e12)[:, None]

    def _split(self, x):
        """Return [rows, heads, columns, size] of x, [rows, columns, width]."""
        rows, columns = tf.unstack(tf.shape(x)[:2])
        return tf.transpose(tf.reshape(x, [rows, columns, self.heads, self.size]), [0, 2, 1, 3])

    def _join(self, x):
        """Return [rows, columns, width] of x, [rows, heads, columns, size]."""
        x = tf.transpose(x, [0, 2, 1, 3])
        return tf.reshape(x, [*tf.unstack(tf.shape(x)[:2]), self.heads * self.size])

    # ---------------------------------------------------------------------------------- the layers

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
        longest += -longest % self.block  # oneDNN keeps 2 MB for each shape that it has seen
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
        # as tensors: a variable that was gathered from is copied whole whenever TensorFlow reads it
        tables = [tf.convert_to_tensor(table) for table in self.embeddings]
        token, segment, position = map(tf.gather, tables, (token_ids, segment_ids, positions))
        x = normalize(token + segment + position, self.embedding_norm)
        return tf.cast(self._dense(x, self.mapping), tf.float32) if self.mapping else x

    def project(self, x, layer):
        """Return queries, keys and values, each float32 [tokens, width]."""
        projections = layer.query, layer.key, layer.value
        return [tf.cast(self._dense(x, dense), tf.float32) for dense in projections]

    def finish_layer(self, x, attended, layer, counted=1.0, drop=tf.identity):
        """Return the output of a layer, [tokens, width], from its input and what it attended to.

        counted: float32 [tokens, 1], 0 where bert4keras masks what was attended to.
        """
        attended = tf.cast(self._dense(attended, layer.attended), tf.float32)
        x = normalize(x + counted * drop(attended), layer.attended_norm)
        inner = self.activation(self._dense(x, layer.inner))  # [tokens, intermediate size]
        outer = tf.cast(self._dense(inner, layer.outer), tf.float32)
        return normalize(x + drop(outer), layer.outer_norm)

    def logits(self, x):
        """Return the logits of the next token, float32 [tokens, vocab], from the last output."""
        x = self.activation(tf.nn.bias_add(tf.matmul(x, self.head.kernel), self.head.bias))
        x = normalize(x, self.head_norm)
        x = tf.matmul(x, self.embeddings[0], transpose_b=True)
        return tf.nn.bias_add(x, self.head_bias)

    def _dense(self, x, dense):
        """Return [tokens, units], in `precision`, of x, [tokens, width]."""
        kernel = self.copies.get(dense.kernel.ref(), dense.kernel)
        x, kernel, bias = (tf.cast(y, self.dtype) for y in (x, kernel, dense.bias))
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)


def _attend_blocks(query, source, outside, owners, near, value):
    """Attend to the blocks of a source and to what is written, in one softmax.

    query: [rows, heads, beams, size]; source: keys and values, [blocks, heads, block, size];
    outside: what to add to the scores of a block; owners: int32 [blocks]; near: the scores of what
    is written, [rows, heads, beams, written]; value: its values. Returns the shape of `query`.
    """
    far = tf.matmul(tf.gather(query, owners), source[0], transpose_b=True) + outside
    highest = tf.math.segment_max(tf.reduce_max(far, 3), owners)
    highest = tf.maximum(highest, tf.reduce_max(near, 3))[..., None]  # [rows, heads, beams, 1]
    far = tf.exp(far - tf.gather(highest, owners))  # [blocks, heads, beams, block]
    near = tf.exp(near - highest)
    total = tf.math.segment_sum(tf.reduce_sum(far, 3), owners) + tf.reduce_sum(near, 3)
    attended = tf.math.segment_sum(tf.matmul(far, source[1]), owners)
    attended += tf.reduce_sum(value * near[..., None], 3)
    return attended / total[..., None]


def _share_out(probas, cache, widths):
    """Return {question: its part of probas, float32 [rows, beams, vocab]}; widths: its beams."""
    of_question = cache.of_question
    if cache.uncached:
        order = np.argsort(cache.numbers)
        probas, of_question = tf.gather(probas, order), of_question[order]
    questions, sizes = np.unique(of_question, return_counts=True)
    shares = dict(zip(questions.tolist(), tf.split(probas, sizes), strict=True))
    for question, width in widths.items():
        if width < probas.shape[1]:  # a slice takes as long as a vote
            shares[question] = shares[question][:, :width]
    return {question: shares[question] for question in widths}


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


# ---------------------------------------------------------------------- several questions together


def search_together(unilm, searches, has_answer):
    """Run the searches of several questions in step, which are read and written together.

    searches: list of generators. Each yields its sources, lists of token ids, and is sent the
    probabilities of the first token after each, float32 [sources, 1, vocab]. Then it yields its
    hypotheses, a list of answers.Hypothesis, and is sent those of the next token after the sources
    that have an answer, see `UniLM.read`, float32 [sources, beams, vocab], and so on. Returns a
    list of what they return.
    """
    results, hypotheses, rows = [None] * len(searches), {}, {}

    def send(i, probas):
        try:
            hypotheses[i] = searches[i].send(probas)
        except StopIteration as end:
            results[i] = end.value
            hypotheses.pop(i, None)

    def repeated(probas, numbers):  # a source that stands several times is read once
        return tf.gather(probas, numbers) if len(numbers) > len(probas) else probas

    sources = [[*map(tuple, next(search))] for search in searches]
    distinct = [[*dict.fromkeys(some)] for some in sources]
    first, kept, cache = unilm.read(distinct, has_answer)
    for i, probas in enumerate(first):
        numbers = {source: number for number, source in enumerate(distinct[i])}
        which = np.array([numbers[source] for source in sources[i]], int)  # [sources]
        rows[i] = (np.cumsum(kept[i]) - 1)[which[kept[i][which]]]  # [sources that are kept]
        send(i, repeated(probas, which)[:, None])
    while hypotheses:
        shares, cache = unilm.write(cache, hypotheses)
        for i, probas in shares.items():
            send(i, repeated(probas, rows[i]))
    return results
