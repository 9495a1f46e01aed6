"""Questions read together: each source once, its keys and values kept for the tokens written.

Under the mask no source token sees the answer (https://arxiv.org/abs/1905.03197). So keys and
values of a source are computed once, and those of each token that is written are added.
"""

import functools
import os
import re
import typing

import numpy as np

from evaluate_sogou import UserError

from .keras2 import tf
from .unilm import UniLM


class Cache(typing.NamedTuple):
    """What was read and written so far, and whose it is; the rows are by the lengths of sources.

    Of the sources each layer has keys and values in two parts, padded to the longest of each.
    """

    owners: np.ndarray  # int [rows], which of the searches each row is of
    numbers: np.ndarray  # int [rows], which source, of all searches
    lengths: np.ndarray  # int32 [rows], tokens of each source
    sources: list  # for each layer two pairs of float32 [rows of the part, heads, longest, size]
    beams: list  # for each layer a pair of float32 [rows, heads, beams, written, size]

    def keep(self, rows):
        """Return a Cache of some rows only, in place of this one; rows: int [rows], ascending."""
        first = len(self.sources[0][0][0])
        of_parts = rows[rows < first], rows[rows >= first] - first
        for i, parts in enumerate(self.sources):  # layer by layer, or both are held at once
            pairs = zip(parts, of_parts, strict=True)
            self.sources[i] = [tuple(tf.gather(x, some) for x in pair) for pair, some in pairs]
        beams = [tuple(tf.gather(x, rows) for x in pair) for pair in self.beams]
        of_rows = (x[rows] for x in (self.owners, self.numbers, self.lengths))
        return Cache(*of_rows, self.sources, beams)


class Search:
    """The search of one question, a generator that is sent what follows on its sources.

    It first yields its sources, lists of token ids; each is read once, however often it is given.
    Then it yields its hypotheses, a list of answers.Hypothesis of one length.
    """

    def __init__(self, generator):
        self.generator, self.hypotheses, self.result = generator, None, None
        given = [*map(tuple, next(generator))]
        self.sources = [*dict.fromkeys(given)]
        numbers = {source: number for number, source in enumerate(self.sources)}
        self.which = np.array([numbers[source] for source in given], int)  # [given]

    @property
    def tokens(self):
        """How many tokens are read."""
        return sum(map(len, self.sources))

    def send(self, probas):
        """Go on; probas: float32 [sources, beams, vocab], of each that is still there."""
        if len(self.which) > len(probas):
            probas = tf.gather(probas, self.which)
        try:
            self.hypotheses = self.generator.send(probas)
        except StopIteration as end:
            self.hypotheses, self.result = None, end.value

    def keep(self, kept):
        """Go on with some of the sources only; kept: bool [sources]."""
        self.which = (np.cumsum(kept) - 1)[self.which[kept[self.which]]]
        self.sources = [source for source, stays in zip(self.sources, kept, strict=True) if stays]


class CachedUniLM(UniLM):
    """A UniLM for reading, which keeps keys and values while answers are written.

    Matrices in bfloat16 are copies, made whenever sources are read: to cast them takes as long as
    writing a token. It must not be made under a strategy then: of several workers only one reads.
    """

    tokens_at_once = 1536  # more are hardly faster, and take more memory
    # 74 kB each of BERT-base; what is more, of one question, is read again for each token
    tokens_cached = 32768

    def __init__(self, model, mask, precision='float32'):
        super().__init__(model, mask, precision)
        refuse_fork()
        # as bert4keras did before 0.10
        attention = model.get_layer('Transformer-0-MultiHeadSelfAttention')
        self.vocab = self.weights['cls/predictions/output_bias'].shape[0]
        self.masks_queries = not hasattr(attention, 'normalization')
        self.copied = {}  # {name: float32}
        if self.dtype != tf.float32:
            names = [name for name in self.weights if re.match('bert/.*/kernel', name)]
            self.copied = {name: self.weights[name] for name in names}
            copies = {name: tf.Variable(tf.cast(self.weights[name], self.dtype)) for name in names}
            self.weights.update(copies)
        # dimensions that vary are open, so that nothing is traced twice
        ids = [tf.TensorSpec([None] * rank, tf.int32) for rank in range(4)]
        source = tf.TensorSpec([None, self.heads, None, self.size])
        beam = tf.TensorSpec([None, self.heads, None, None, self.size])
        sources, beams = ([x] * len(self.layers) for x in ([(source, source)] * 2, (beam, beam)))

        def compiled(function, *signature):  # AutoGraph takes seconds, and there is nothing for it
            return tf.function(function, input_signature=signature, autograph=False)

        self._read_graph = compiled(self._read_packed, ids[1], ids[1], ids[1])
        written = ids[1], sources, beams, ids[3], ids[2], ids[1]
        self._write_graph = compiled(self._write_packed, *written)

    def search_together(self, generators, has_answer):
        """Run the searches of several questions in step. Returns a list of what they return.

        generators: of one question each, see `Search`; each is sent the probabilities of the next
        token, float32: first [sources, 1, vocab], then [sources that have an answer, beams, vocab].
        has_answer: a function of the first, [sources, vocab], to bool [sources].
        """
        refuse_fork()
        searches = [*map(Search, generators)]
        for group in in_groups(searches, self.tokens_cached):
            cache = self._begin(group, has_answer)
            while writing := {i: each for i, each in enumerate(group) if each.hypotheses}:
                if cache:
                    shares, cache = self._write(cache, writing)
                else:
                    shares = {i: self._read_again(each) for i, each in writing.items()}
                for i, probas in shares.items():
                    writing[i].send(probas)
        return [search.result for search in searches]

    def _begin(self, searches, has_answer):
        """Read all sources. Returns the Cache of those that have an answer; None of too many."""
        for name, kernel in self.copied.items():  # as it is now
            self.weights[name].assign(tf.cast(kernel, self.dtype))
        sources = [source for search in searches for source in search.sources]
        counts = [len(search.sources) for search in searches]
        lengths = np.array([len(source) for source in sources], np.int32)
        caches = lengths.sum() <= self.tokens_cached
        probas, stay, packed = self._read(sources, lengths, has_answer if caches else None)
        if not caches:
            stay = np.flatnonzero(has_answer(probas))
        owners = np.repeat(np.arange(len(searches)), counts)  # [sources]
        kept = np.isin(np.arange(len(sources)), stay)
        for i, (search, first) in enumerate(zip(searches, tf.split(probas, counts), strict=True)):
            search.send(first[:, None])
            search.keep(kept[owners == i])
        if not packed:
            return None
        return Cache(owners[stay], stay, lengths[stay], *self._split_up(packed, lengths[stay]))

    # ------------------------------------------------------------------------------------- reading

    def _read(self, sequences, source_lengths, has_answer=None):
        """Read sequences, sorted by length, some at a time.

        sequences: lists of token ids, sources or what begins with them; source_lengths: int32
        [sequences]; has_answer: a function of the probabilities of the next token to bool: of the
        others nothing is kept, nor of any without it. Returns these probabilities, float32
        [sequences, vocab], the numbers of those that are kept, by length, and for each part, for
        each layer, their keys and values, float32 [tokens, width].
        """
        lengths = np.array([len(sequence) for sequence in sequences], np.int32)
        order = np.argsort(lengths, kind='stable')
        probas, stay, packed, start = [tf.zeros([0, self.vocab])], [order[:0]], [], 0
        while start < len(order):
            padded = lengths[order[start:]] * np.arange(1, len(order) - start + 1)
            stop = start + max(1, np.count_nonzero(padded <= self.tokens_at_once))
            some = order[start:stop]
            token_ids = np.concatenate([sequences[i] for i in some]).astype(np.int32)
            following, part = self._read_graph(token_ids, lengths[some], source_lengths[some])
            probas.append(following)
            if has_answer:
                stays = has_answer(following)
                tokens = np.flatnonzero(np.repeat(stays, lengths[some]))
                packed.append([tuple(tf.gather(x, tokens) for x in pair) for pair in part])
                stay.append(some[stays])
            start = stop
        probas = tf.gather(tf.concat(probas, 0), np.argsort(order))
        return probas, np.concatenate(stay), packed

    def _read_packed(self, token_ids, lengths, source_lengths):
        # up to four sources of padding, the last of them long, make shapes that recur
        rows, tokens = tf.size(lengths), tf.size(token_ids)
        more = 4 - rows % 4
        last = 1 + -(tokens + more) % self.round_up
        added = tf.concat([tf.ones([more - 1], tf.int32), [last]], 0)
        lengths, source_lengths = (tf.concat([x, added], 0) for x in (lengths, source_lengths))
        token_ids = tf.pad(token_ids, [[0, more - 1 + last]])
        probas, kept = self.next_token(token_ids, lengths, source_lengths)
        return probas[:rows], kept

    def _read_again(self, search):
        """Return what follows on sources without a cache, float32 [sources, beams, vocab].

        A written [PAD] is no padding here.
        """
        written = [hypothesis.token_ids for hypothesis in search.hypotheses]
        sequences = [[*source, *token_ids] for source in search.sources for token_ids in written]
        source_lengths = np.repeat([len(source) for source in search.sources], len(written))
        probas, _, _ = self._read(sequences, source_lengths.astype(np.int32))
        return tf.reshape(probas, [-1, len(written), probas.shape[-1]])

    # ------------------------------------------------------------------------------------- writing

    def _split_up(self, packed, lengths):
        """Return `sources` and `beams` of a Cache, before anything is written.

        packed: see `_read`, it is emptied; lengths: int32 [rows], tokens of each source, ascending.
        """
        starts = np.cumsum(lengths) - lengths
        counts = np.arange(1, len(lengths) + 1)
        padded = counts * lengths + (len(lengths) - counts) * lengths[-1:]
        first = np.argmin(padded) + 1 if len(lengths) else 0  # rows of the first part
        slots = []  # for each part, where each token stands, [rows, longest]
        for rows in slice(None, first), slice(first, None):
            columns = np.arange(lengths[rows].max(initial=1))
            slots.append(starts[rows, None] + np.minimum(columns, lengths[rows, None] - 1))
        sources = []
        for _ in self.layers:  # layer by layer, and what was packed is freed
            pair = [tf.concat(x, 0) for x in zip(*[part.pop(0) for part in packed], strict=True)]
            parts = [tuple(self._split(tf.gather(x, some)) for x in pair) for some in slots]
            sources.append(parts)
        nothing = tf.zeros([len(lengths), self.heads, 1, 0, self.size])
        return sources, [(nothing, nothing)] * len(self.layers)

    def _write(self, cache, writing):
        """Write the last token of each hypothesis.

        writing: {number: Search} of those that go on. Returns {number: the probabilities of the
        next token, float32 [its sources, beams, vocab]} and a longer Cache.
        """
        active = np.flatnonzero(np.isin(cache.owners, [*writing]))
        if len(active) <= len(cache.owners) / 2:  # seldom, as what stays is copied
            cache = cache.keep(active)
        hypotheses = {i: search.hypotheses for i, search in writing.items()}
        length = max(len(some[0].token_ids) for some in hypotheses.values())
        shape = len(cache.owners), max(map(len, hypotheses.values()))
        output_ids, parents = np.zeros([*shape, length], np.int32), np.zeros(shape, np.int32)
        for row, owner in enumerate(cache.owners):
            for beam, hypothesis in enumerate(hypotheses.get(owner, [])):
                output_ids[row, beam] = hypothesis.token_ids
                parents[row, beam] = hypothesis.parent
        order = np.argsort(cache.numbers).astype(np.int32)  # by searches, sources in their order
        probas, beams = self._write_graph(*cache[2:], output_ids, parents, order)
        owners, counts = np.unique(cache.owners, return_counts=True)
        shares = dict(zip(owners.tolist(), tf.split(probas, counts), strict=True))
        for i, some in hypotheses.items():
            if len(some) < shape[1]:  # a slice takes as long as a vote
                shares[i] = shares[i][:, : len(some)]
        return {i: shares[i] for i in hypotheses}, cache._replace(beams=beams)

    def _write_packed(self, lengths, sources, beams, output_ids, parents, order):
        """Return the probabilities, float32 [rows, beams, vocab], and longer `beams`.

        lengths, sources, beams: see `Cache`; output_ids: int32 [rows, beams, length]; parents:
        int32 [rows, beams], which beam of before each goes on; order: int32 [rows], of the
        probabilities.
        """
        rows, width, length = tf.unstack(tf.shape(output_ids))
        counted = tf.ones([rows * width, 1])
        if self.masks_queries:  # bert4keras takes a written [PAD] for padding
            counted = tf.reshape(tf.cast(output_ids[:, :, -1:] != 0, tf.float32), [-1, 1])
        last = lengths + length - 1  # [rows], the position of the query
        last_ids = tf.reshape(output_ids[:, :, -1], [-1])
        x = self.embed(last_ids, 1, tf.repeat(last, width))  # [rows * beams, width]
        outside, hidden = self._masks(lengths, sources[0], output_ids, last)
        longer = []
        for layer, parts, beam in zip(self.layers, sources, beams, strict=True):
            query, *added = (tf.reshape(y, [rows, width, -1]) for y in self.project(x, layer))
            # [rows, heads, beams, size]
            query, *added = map(self._split, (query * self.size**-0.5, *added))
            old = [tf.gather(tensor, parents, axis=2, batch_dims=1) for tensor in beam]
            key, value = (
                tf.concat([a, b[:, :, :, None]], 3) for a, b in zip(old, added, strict=True)
            )
            longer.append((key, value))  # [rows, heads, beams, length, size]
            near = tf.reduce_sum(key * query[:, :, :, None], 4) + hidden
            attended = _attend(query, parts, outside, near, value)
            attended = tf.reshape(self._join(attended), tf.shape(x))
            x = self.finish_layer(x, attended, layer, counted)
        x = tf.gather(tf.reshape(x, [rows, width, -1]), order)
        probas = tf.nn.softmax(self.logits(tf.reshape(x, [rows * width, -1])))
        return tf.reshape(probas, [rows, width, -1]), longer

    def _masks(self, lengths, parts, output_ids, last):
        """Return what to add to the scores of a source's tokens and of the answer's, 0 or -1e12.

        parts: the sources of a layer; last: int32 [rows], the position of the query. Returns for
        each part float32 [its rows, 1, 1, longest], and [rows, 1, beams, length].
        """
        query, length = last[:, None], lengths[:, None]  # [rows, 1]
        outside, first = [], 0
        for key, _ in parts:
            rows = slice(first, first + tf.shape(key)[0])
            columns = tf.range(tf.shape(key)[2])
            seen = self.mask(query[rows], columns, length[rows]) & (columns < length[rows])
            outside.append(tf.where(seen, 0.0, -1e12)[:, None, None])
            first = rows.stop
        key = length + tf.range(tf.shape(output_ids)[2])  # [rows, length]
        seen = self.mask(query, key, length)[:, None] & (output_ids != 0)  # [rows, beams, length]
        return outside, tf.where(seen, 0.0, -1e12)[:, None]


def _attend(query, parts, outside, near, value):
    """Attend to sources and to what is written, in one softmax.

    query: [rows, heads, beams, size]; parts: keys and values of the sources of each part of the
    rows, [its rows, heads, longest, size]; outside: what to add to their scores; near: the scores
    of what is written, [rows, heads, beams, written]; value: its values. Returns the shape of
    `query`.
    """
    attended, of_answer, first = [], [], 0
    for (key, of_source), mask in zip(parts, outside, strict=True):
        rows = slice(first, first + tf.shape(key)[0])
        far = tf.matmul(query[rows], key, transpose_b=True) + mask
        weights = tf.nn.softmax(tf.concat([far, near[rows]], 3))
        far, written = tf.split(weights, [tf.shape(far)[3], tf.shape(near)[3]], 3)
        attended.append(tf.matmul(far, of_source))
        of_answer.append(written)
        first = rows.stop
    of_answer = tf.concat(of_answer, 0)[..., None]  # [rows, heads, beams, written, 1]
    return tf.concat(attended, 0) + tf.reduce_sum(value * of_answer, 3)


@functools.cache
def first_process():
    """Return the id of the process in which the first reader was loaded; a fork inherits it."""
    return os.getpid()


def refuse_fork():
    """Raise UserError in a fork of a process that has a reader: its threads are not in the fork."""
    if os.getpid() != first_process():
        cure = 'load readers after the fork only, or start processes by spawn'
        raise UserError(f'a reader was loaded before this process was forked; {cure}')


def in_groups(questions, limit):
    """Yield lists of consecutive questions of up to `limit` tokens in all, or of a larger one.

    questions: iterable of what has `tokens`.
    """
    group, total = [], 0
    for question in questions:
        if group and total + question.tokens > limit:
            yield group
            group, total = [], 0
        group.append(question)
        total += question.tokens
    if group:
        yield group
