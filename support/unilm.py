"""bert4keras's BERT under a UniLM mask, computed without padding and without reading twice.

Under the mask no source token sees the answer (https://arxiv.org/abs/1905.03197). So keys and
values of a source are computed once, `read`, and those of each new token are added, `write`.
"""

import typing

import numpy as np

from .keras2 import tf
from .layers import Dense, norm_of, normalize, transformer_layers, with_slope
from .packing import Padding, blocks


class Memory(typing.NamedTuple):
    """For each layer keys and values: of the sources in blocks of tokens, and of the beams."""

    lengths: tf.Tensor  # int32 [rows], tokens of each source
    owners: tf.Tensor  # int32 [blocks], the row that each block is of
    filled: tf.Tensor  # int32 [blocks], tokens of each block
    sources: list  # pairs of float32 [blocks, heads, block, size]
    beams: list  # pairs of float32 [rows, heads, beams, written, size]


class Cache(typing.NamedTuple):
    """What was read and written so far, and which question each row of it is of."""

    of_question: np.ndarray  # int [rows], the remembered ones, then those that are not
    given: np.ndarray  # int [rows], which source each is
    memory: Memory  # of the first rows
    forgotten: list  # the sources of the others, of ascending lengths

    def keep(self, rows):
        """Return a Cache of some rows only, in place of this one; rows: int [rows], ascending."""
        of_question, given, remembered = self.of_question[rows], self.given[rows], self.remembered
        forgotten = [self.forgotten[row] for row in rows[rows >= remembered] - remembered]
        rows = rows[rows < remembered]
        lengths, owners, filled = map(np.asarray, self.memory[:3])
        kept = np.flatnonzero(np.isin(owners, rows))  # [blocks]
        owners = np.searchsorted(rows, owners[kept]).astype(np.int32)
        sources = self.memory.sources
        for i, pair in enumerate(sources):  # layer by layer, or both are held at once
            sources[i] = tuple(tf.gather(x, kept) for x in pair)
        beams = [tuple(tf.gather(x, rows) for x in pair) for pair in self.memory.beams]
        memory = Memory(lengths[rows], owners, filled[kept], sources, beams)
        return Cache(of_question, given, memory, forgotten)

    @property
    def remembered(self):
        """The number of rows that are remembered."""
        return len(self.memory.lengths)


class Packed(typing.NamedTuple):
    """Keys and values of sources that stay, and the sources that there was no room for."""

    pairs: list  # for each part, for each layer, keys and values, float32 [tokens, width]
    forgotten: list  # sources, lists of token ids


class UniLM:
    """Computes with the variables of bert4keras's model: training it trains the model.

    precision: of the products of linear layers, 'float32' or 'bfloat16'; all else is float32.
    training: whether a gradient is wanted, and little kept for it. Without, matrices in bfloat16
    are copies, made whenever sources are read: to cast them takes as long as writing a token. It
    must not be made under a strategy then: of several workers only one reads.
    """

    tokens_at_once = 1536  # more are hardly faster, and take more memory
    # 74 kB each of BERT-base; sources beyond them are read again for each token that is written
    tokens_remembered = 32768
    block = 32  # tokens of a source that are remembered together: more are padding, fewer are slow

    def __init__(self, model, precision='float32', training=False):
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
        memory = Memory(ids[1], ids[1], ids[1], sources, beams)

        def compiled(function, *signature):  # AutoGraph takes seconds, and there is nothing for it
            return tf.function(function, input_signature=signature, autograph=False)

        self._read_graph = compiled(self._read_packed, ids[1], ids[1])
        self._write_graph = compiled(self._write, memory, ids[3], ids[2])

    # ------------------------------------------------------------------------------------- reading

    def read(self, sources, judge):
        """Read the sources of several questions, sorted by length, some at a time.

        sources: for each question a list of sources, lists of token ids; judge: a function of the
        probabilities of the first token, float32 [rows, vocab], that tells which are remembered,
        bool [rows], and a number of each, float32 [rows]. Returns for each question what it told,
        of its sources; {question: the probabilities, float32 [remembered, 1, vocab]} where any are;
        and a Cache of them.
        """
        every = [source for of_question in sources for source in of_question]
        counts = [len(of_question) for of_question in sources]
        if not every:
            return [(np.zeros(0, bool), np.zeros(0, np.float32))] * len(sources), {}, None
        for matrix, copy in self.copies.items():  # as they are now
            copy.assign(tf.cast(matrix.deref(), self.dtype))
        lengths = np.array([len(source) for source in every], np.int32)
        order = np.argsort(lengths, kind='stable')
        told, probas, packed = self._read_sorted([every[i] for i in order], judge)
        stay = order[told[0]]  # which source each row of probas is
        first = stay[: len(stay) - len(packed.forgotten)]
        back = np.argsort(first)  # the remembered ones in the given order again
        memory = self._remember(packed.pairs, lengths[first], back)
        rows = np.concatenate([back, np.arange(len(first), len(stay))])
        of_question = np.repeat(np.arange(len(sources)), counts)[stay[rows]]
        cache = Cache(of_question, stay[rows], memory, packed.forgotten)
        ends = np.cumsum(counts)[:-1]
        told = zip(*(np.split(each[np.argsort(order)], ends) for each in told), strict=True)
        probas = tf.gather(probas, rows)[:, None]  # [rows, 1, vocab]
        widths = dict.fromkeys(cache.of_question.tolist(), 1)
        return list(told), _share_out(probas, cache, widths), cache

    def _read_sorted(self, sources, judge):
        """Return what `judge` told, two arrays; of those that stay the probabilities and Packed."""
        lengths = np.array([len(source) for source in sources], np.int32)
        told, probas, packed, room = [], [], Packed([], []), self.tokens_remembered
        for start, stop in self._parts(lengths):
            token_ids = np.concatenate(sources[start:stop]).astype(np.int32)
            part_probas, part = self._read_graph(token_ids, lengths[start:stop])
            told.append([each.numpy() for each in judge(part_probas)])
            part_stays = told[-1][0]
            tokens = np.flatnonzero(np.repeat(part_stays, lengths[start:stop]))
            room -= len(tokens)
            if room >= 0 or not packed.pairs:
                packed.pairs.append([tuple(tf.gather(x, tokens) for x in pair) for pair in part])
            else:
                packed.forgotten.extend(sources[start + i] for i in np.flatnonzero(part_stays))
            probas.append(tf.boolean_mask(part_probas, part_stays))
        told = [np.concatenate(each) for each in zip(*told, strict=True)]
        return told, tf.concat(probas, 0), packed

    def _parts(self, lengths):
        """Yield start and end of each part that is read at once; lengths: int [rows], ascending."""
        start = 0
        while start < len(lengths):
            padded = lengths[start:] * np.arange(1, len(lengths) - start + 1)
            stop = start + max(1, np.count_nonzero(padded <= self.tokens_at_once))
            yield start, stop
            start = stop

    def _remember(self, packed, lengths, rows):
        """Return the Memory of sources, before anything is written; `packed` is emptied.

        packed: for each part, for each layer, keys and values, [tokens, width]; lengths: int32
        [rows], tokens of each source; rows: int [rows], the order that they are to have.
        """
        starts = np.cumsum(lengths) - lengths
        starts, lengths = starts[rows], lengths[rows]
        owners, filled, slots = blocks(starts, lengths, self.block)
        remembered = []
        for _ in self.layers:  # layer by layer, and what was packed is freed
            columns = zip(*[part.pop(0) for part in packed], strict=True)
            parts = (tf.gather(tf.concat(column, 0), slots) for column in columns)
            remembered.append(tuple(map(self._split, parts)))
        nothing = tf.zeros([len(rows), self.heads, 1, 0, self.size])
        beams = [(nothing, nothing)] * len(self.layers)
        return Memory(lengths, owners, filled, remembered, beams)

    def _read_packed(self, token_ids, lengths):
        # a source of padding and empty ones make shapes that recur, see `run_layers`
        rows, padding = tf.size(lengths), -tf.size(token_ids) % self.block
        padded = tf.concat([lengths, [padding], tf.zeros([-(rows + 1) % 4], tf.int32)], 0)
        x, packed = self.run_layers(tf.pad(token_ids, [[0, padding]]), padded, padded)
        return tf.nn.softmax(self.logits(x)[:rows]), packed  # [rows, vocab]

    # ------------------------------------------------------------------------------------- writing

    def write(self, cache, beams):
        """Write the last token of each beam.

        beams: {question: what has `output_ids`, its beams, lists of int of one length, and
        `parents`, the beam that each extends} of the unfinished ones. Returns {question: the
        probabilities of the next token, float32 [its sources, beams, vocab]} and a longer Cache.
        """
        if not beams:
            return {}, cache
        active = np.flatnonzero(np.isin(cache.of_question, list(beams)))
        if len(active) <= len(cache.of_question) / 2:  # seldom, as what stays is copied
            cache = cache.keep(active)
        widths = {question: len(some.output_ids) for question, some in beams.items()}
        written = max(len(some.output_ids[0]) for some in beams.values())
        shape = len(cache.of_question), max(widths.values())
        output_ids, parents = np.zeros([*shape, written], np.int32), np.zeros(shape, np.int32)
        for row, question in enumerate(cache.of_question):
            if question in beams:
                output_ids[row, : widths[question]] = beams[question].output_ids
                parents[row, : widths[question]] = beams[question].parents
        count, memory, probas = cache.remembered, cache.memory, []
        if count:
            written = output_ids[:count], parents[:count]
            part_probas, memory = self._write_graph(memory, *written)
            probas.append(part_probas)
        probas += self._write_forgotten(cache.forgotten, output_ids[count:])
        cache = cache._replace(memory=memory)
        return _share_out(tf.concat(probas, 0), cache, widths), cache

    def _write_forgotten(self, sources, output_ids):
        """Yield the probabilities of the next token, float32 [rows, beams, vocab], in parts.

        sources: of ascending lengths; output_ids: int32 [rows, beams, written].
        """
        lengths = np.array([len(source) for source in sources], np.int32)
        for start, stop in self._parts(lengths):
            token_ids = np.concatenate(sources[start:stop]).astype(np.int32)
            _, packed = self._read_graph(token_ids, lengths[start:stop])
            memory = self._remember([packed], lengths[start:stop], np.arange(stop - start))
            part_ids = output_ids[start:stop]
            rows, beams, written = part_ids.shape
            parents = np.tile(np.arange(beams, dtype=np.int32), [rows, 1])
            for length in range(1, written + 1):
                probas, memory = self._write_graph(memory, part_ids[:, :, :length], parents)
            yield probas

    def _write(self, memory, output_ids, parents):
        """Return the probabilities, float32 [rows, beams, vocab], and the longer Memory.

        output_ids: int32 [rows, beams, written]; parents: int32 [rows, beams].
        """
        rows, beams, written = tf.unstack(tf.shape(output_ids))
        counted = tf.ones([rows * beams, 1])
        if self.masks_queries:  # bert4keras takes a written [PAD] for padding
            counted = tf.reshape(tf.cast(output_ids[:, :, -1:] != 0, tf.float32), [-1, 1])
        filled = tf.sequence_mask(memory.filled, self.block)
        outside = tf.where(filled, 0.0, -1e12)[:, None, None]  # [blocks, 1, 1, block]
        hidden = tf.where(output_ids == 0, -1e12, 0.0)[:, None]  # [rows, 1, beams, written]
        positions = tf.repeat(memory.lengths + written - 1, beams)
        x = self.embed(
            tf.reshape(output_ids[:, :, -1], [-1]), 1, positions
        )  # [rows * beams, width]
        longer = []
        for layer, source, beam in zip(self.layers, memory.sources, memory.beams, strict=True):
            query, *added = (tf.reshape(y, [rows, beams, -1]) for y in self.project(x, layer))
            # [rows, heads, beams, size]
            query, *added = map(self._split, (query * self.size**-0.5, *added))
            old = [tf.gather(tensor, parents, axis=2, batch_dims=1) for tensor in beam]
            pairs = zip(old, added, strict=True)
            key, value = (tf.concat([a, b[:, :, :, None]], 3) for a, b in pairs)
            longer.append((key, value))  # [rows, heads, beams, written, size]
            near = tf.reduce_sum(key * query[:, :, :, None], 4) + hidden
            attended = _attend_blocks(query, source, outside, memory.owners, near, value)
            attended = tf.reshape(self._join(attended), tf.shape(x))
            x = self.finish_layer(x, attended, layer, counted)
        probas = tf.nn.softmax(self.logits(x))
        return tf.reshape(probas, [rows, beams, -1]), memory._replace(beams=longer)

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
        seen = (columns < source_lengths[:, None, None]) | (columns <= query_positions[:, :, None])
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
    if not widths:  # nothing to split
        return {}
    of_question = cache.of_question
    if cache.forgotten:
        order = np.argsort(cache.given)
        probas, of_question = tf.gather(probas, order), of_question[order]
    questions, sizes = np.unique(of_question, return_counts=True)
    shares = dict(zip(questions.tolist(), tf.split(probas, sizes), strict=True))
    for question, width in widths.items():
        if width < probas.shape[1]:  # a slice takes as long as a vote
            shares[question] = shares[question][:, :width]
    return {question: shares[question] for question in widths}
