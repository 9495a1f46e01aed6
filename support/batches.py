"""Training pairs in batches of like length, and questions in groups that are read together."""

import math

import numpy as np

from .keras2 import bert4keras, tf


class Batches:
    """The batches of a training; what they hold depends on `seed` and their number alone.

    Out of a window of batches in random order the shortest pairs come together, and so on.

    records: to train on, each drawn from once an epoch; encode: a function of a record and a NumPy
    Generator that makes (token_ids, segment_ids), lists of int; constants: as of the script.
    """

    window = 64  # batches that are sorted by length together

    def __init__(self, records, encode, constants):
        self.records, self.encode, self.constants = records, encode, constants
        self.steps = math.ceil(len(records) / constants.batch_size)  # of an epoch

    def draw_window(self, epoch, number):
        """Draw a window of an epoch: batches of like length, in a random order.

        Returns a list of batches, lists of (index in records, token_ids, segment_ids).
        """
        batch_size, seed = self.constants.batch_size, self.constants.seed
        order = np.random.default_rng([seed, epoch]).permutation(len(self.records))
        size = self.window * batch_size
        rng = np.random.default_rng([seed, epoch, number])
        pairs = []
        for i in order[number * size : (number + 1) * size]:
            pairs.append((i, *self.encode(self.records[i], rng)))
        pairs.sort(key=lambda pair: len(pair[1]))
        batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
        rng.shuffle(batches)
        return batches

    def from_step(self, step):
        """Yield the batches from update `step` on, to the end of all epochs."""
        while step < self.constants.epochs * self.steps:
            epoch, start = divmod(step, self.steps)
            rest = self.draw_window(epoch, start // self.window)[start % self.window :]
            yield from rest
            step += len(rest)

    def dataset(self, step=0, context=None):
        """Return a tf.data.Dataset of the batches from update `step` on.

        context: a tf.distribute.InputContext, with which each batch is dealt out to the replicas.
        Elements: {'Input-Token', 'Input-Segment'}, int32 [rows, longest], padded with 0.
        """
        context = context or tf.distribute.InputContext()
        replicas = context.num_replicas_in_sync
        here = replicas // context.num_input_pipelines  # replicas of this worker

        def shares():
            first = context.input_pipeline_id * here
            for batch in self.from_step(step):
                for replica in range(first, first + here):
                    yield pad(batch[replica::replicas])

        ids = tf.TensorSpec([None, None], tf.int32)
        signature = {'Input-Token': ids, 'Input-Segment': ids}
        options = tf.data.Options()
        options.autotune.enabled = False  # its thread may sleep through the end, for up to a minute
        dataset = tf.data.Dataset.from_generator(shares, output_signature=signature)
        return dataset.prefetch(self.window).with_options(options)


def pad(pairs):
    """Return {'Input-Token', 'Input-Segment'}, int32 [pairs, longest], padded with 0.

    pairs: list of (index, token_ids, segment_ids); of none the shape is [0, 1].
    """
    columns = np.zeros([2, 0, 1])
    if pairs:
        _, *columns = zip(*pairs, strict=True)
        columns = [bert4keras.snippets.sequence_padding(column) for column in columns]
    token_ids, segment_ids = (np.asarray(column, np.int32) for column in columns)
    return {'Input-Token': token_ids, 'Input-Segment': segment_ids}


def in_groups(questions, limit):
    """Yield lists of consecutive questions of up to `limit` tokens in all, or of a larger one.

    questions: iterable of spans.Question.
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
