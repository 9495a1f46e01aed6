"""The updates of a training: what each is made from, and its exact step, whatever shares it."""

import contextlib
import functools
import itertools
import math
import os

import numpy as np

from .files import lock
from .keras2 import bert4keras, keras, tf
from .process import rank_and_world_size
from .unilm import UniLM


@contextlib.contextmanager
def only_one(constants):
    """Be the only training in `output_dir`, which is made; the first worker is, of several.

    Yields TensorFlow's strategy: for several machines where TF_CONFIG is set, else for all GPUs.
    Raises UserError where another is at work.
    """
    if rank_and_world_size()[1] > 1:  # before anything else is computed
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif len(tf.config.list_logical_devices('GPU')) > 1:
        strategy = tf.distribute.MirroredStrategy()
    else:
        strategy = tf.distribute.get_strategy()
    path = os.path.join(constants.output_dir, 'train.lock')
    with lock(path) if rank_and_world_size()[0] == 0 else contextlib.nullcontext():
        keras.utils.set_random_seed(constants.seed)
        yield strategy


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

        Returns a list of batches, lists of (token_ids, segment_ids).
        """
        batch_size, seed = self.constants.batch_size, self.constants.seed
        order = np.random.default_rng([seed, epoch]).permutation(len(self.records))
        size = self.window * batch_size
        rng = np.random.default_rng([seed, epoch, number])
        drawn = order[number * size : (number + 1) * size]
        pairs = [self.encode(self.records[i], rng) for i in drawn]
        pairs.sort(key=lambda pair: len(pair[0]))
        batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
        rng.shuffle(batches)
        return batches

    def from_step(self, step, replicas=1):
        """Yield the batches from update `step` to the end, see `pad`, each once per replica."""
        while step < self.constants.epochs * self.steps:
            epoch, start = divmod(step, self.steps)
            rest = self.draw_window(epoch, start // self.window)[start % self.window :]
            for batch in rest:
                yield from [pad(batch)] * replicas
            step += len(rest)

    def dataset(self, step=0, context=None):
        """Return a tf.data.Dataset of `from_step`; context: a tf.distribute.InputContext."""
        context = context or tf.distribute.InputContext()
        replicas = context.num_replicas_in_sync // context.num_input_pipelines  # of this worker
        batches = functools.partial(self.from_step, step, replicas)
        ids = tf.TensorSpec([None, None], tf.int32)
        options = tf.data.Options()
        options.autotune.enabled = False  # its thread may sleep through the end, for up to a minute
        dataset = tf.data.Dataset.from_generator(batches, output_signature=(ids, ids))
        return dataset.prefetch(self.window).with_options(options)


def pad(pairs):
    """Return token_ids and segment_ids, int32 [pairs, longest], padded with 0.

    pairs: list of (token_ids, segment_ids).
    """
    padded = bert4keras.snippets.sequence_padding
    return tuple(np.int32(padded(column)) for column in zip(*pairs, strict=True))


class Trainer(keras.Model):
    """Trains bert4keras's model by a loss that is a mean over all tokens of the answers of a batch.

    The mean is over the whole batch, however many devices and parts it is computed in. Nothing is
    computed that it does not depend on: no padding, no vocabulary but for tokens of the answer.

    model: bert4keras's; mask: see `UniLM`; cross_entropy: what has the methods `targets` and
    `compute_loss`, see `CrossEntropy` of the script; constants: precision, accumulate_steps, seed.
    """

    def __init__(self, model, mask, cross_entropy, optimizer, constants):
        super().__init__()
        self.trained, self.unilm = model, UniLM(model, mask, constants.precision, training=True)
        self.cross_entropy, self.constants = cross_entropy, constants
        dropouts = [layer.rate for layer in model.layers if layer.name == 'Embedding-Dropout']
        self.dropout_rate = sum(dropouts)
        set_schedule(optimizer, constants)
        # now, or a backup could be read but not written
        optimizer._create_all_weights(model.trainable_weights)
        self.compile(optimizer=optimizer)

    def part_loss(self, token_ids, segment_ids, targets, total, drop=tf.identity):
        """Return the loss of a part of a padded batch; targets: y_true and y_mask of the part."""
        lengths = tf.math.count_nonzero(token_ids, 1, dtype=tf.int32)  # [rows]
        answers = tf.reduce_sum(segment_ids, 1)  # [rows]
        # the last [SEP] is predicted only
        is_read = tf.sequence_mask(lengths - 1, tf.shape(token_ids)[1])
        packed = tf.boolean_mask(token_ids, is_read)
        x, _ = self.unilm.run_layers(packed, lengths - 1, lengths - answers, drop)
        predicting = segment_ids[:, 1:] > 0  # [rows, length - 1]
        # as one row, [1, answer tokens]
        y_true, y_mask = (tf.boolean_mask(each, predicting)[None] for each in targets)
        y_pred = self.unilm.logits(x)[None]  # [1, answer tokens, vocab]
        return self.cross_entropy.compute_loss(y_true, y_mask, y_pred, total)

    @tf.autograph.experimental.do_not_convert  # it takes seconds, and there is nothing for it
    def train_step(self, batch):
        """Make one update; returns the loss of those rows of a batch that are this replica's."""
        token_ids, segment_ids = batch
        y_true, y_mask = self.cross_entropy.targets(token_ids, segment_ids)
        total, weights = tf.reduce_sum(y_mask), self.trained.trainable_weights
        context = tf.distribute.get_replica_context()
        replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync
        update = [self.constants.seed, 0], tf.cast(self.optimizer.iterations, tf.int32)
        update, parts = tf.random.fold_in(*update), self.constants.accumulate_steps
        loss, gradients = 0.0, []
        for i in range(parts):
            drop = self._dropout(tf.random.fold_in(update, replica * parts + i))
            rows = slice(replica + replicas * i, None, replicas * parts)
            # one part after another
            with tf.control_dependencies(gradients), tf.GradientTape() as tape:
                ids = token_ids[rows], segment_ids[rows]
                targets = y_true[rows], y_mask[rows]
                part_loss = self.part_loss(*ids, targets, total, drop)
                added = [tf.convert_to_tensor(each) for each in tape.gradient(part_loss, weights)]
                gradients = [*map(tf.add, gradients, added)] if gradients else added
            loss += part_loss
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        outside = tf.reduce_sum(tf.abs(tf.where(segment_ids[:, 1:] > 0, 0.0, y_mask)))
        return {'loss': loss, 'outside': outside}  # Keras adds up those of all replicas

    def _dropout(self, place):
        """Return a function that drops the same at every try; place: int [2], a seed."""
        numbers = itertools.count()

        def drop(x):
            seed = tf.random.fold_in(place, next(numbers))
            return tf.nn.experimental.stateless_dropout(x, self.dropout_rate, seed)

        return drop


def set_schedule(optimizer, constants):
    """Let the learning rate rise over `warmup_steps` updates, then fall to 0 over `decay_steps`."""
    if constants.warmup_steps or constants.decay_steps:
        schedule = {constants.warmup_steps: 1.0}
        if constants.decay_steps:
            schedule[constants.warmup_steps + constants.decay_steps] = 0.0
        rate, piecewise_linear = constants.learning_rate, bert4keras.backend.piecewise_linear
        optimizer.learning_rate = lambda: rate * piecewise_linear(optimizer.iterations, schedule)
