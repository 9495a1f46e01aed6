"""A training: the exact step, whatever shares it, and the run of `fit` that can be interrupted."""

import contextlib
import csv
import functools
import io
import itertools
import json
import math
import os
import sys

import numpy as np

from evaluate_sogou import UserError

from . import trained
from .batches import Batches
from .bert import bert_digest, describe, load_best, save_best
from .console import is_terminal, log
from .files import (
    cannot_write,
    digest,
    digest_of,
    first_line,
    folder_lock,
    make_folder,
    write_durably,
)
from .keras2 import bert4keras, keras, tf
from .process import rank_and_world_size
from .resume import BackUp, Backups, State, Stop
from .unilm import UniLM


@contextlib.contextmanager
def only_one(constants):
    """Be the only training in `output_dir`, which is made; the first worker is, of several.

    Yields TensorFlow's strategy. Raises UserError where another is at work.
    """
    strategy = choose_strategy()  # of several workers, before anything else
    make_folder(constants.output_dir)
    is_chief = rank_and_world_size()[0] == 0
    with folder_lock(constants.output_dir) if is_chief else contextlib.nullcontext():
        keras.utils.set_random_seed(constants.seed)
        yield strategy


def choose_strategy():
    """Return TensorFlow's engine for several machines where TF_CONFIG is set, else for all GPUs."""
    if 'TF_CONFIG' in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    several = len(tf.config.list_logical_devices('GPU')) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


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
        self.stopping = tf.Variable(0.0, trainable=False)  # whether this worker was asked to: 0, 1
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
        """Make one update; returns this replica's share of its loss."""
        token_ids, segment_ids = batch['Input-Token'], batch['Input-Segment']
        replica, weights = tf.distribute.get_replica_context(), self.trained.trainable_weights
        y_true, y_mask = self.cross_entropy.targets(token_ids, segment_ids)
        total = replica.all_reduce('sum', tf.reduce_sum(y_mask))
        update = [self.constants.seed, 0], tf.cast(self.optimizer.iterations, tf.int32)
        update, parts = tf.random.fold_in(*update), self.constants.accumulate_steps
        loss, gradients = 0.0, []
        for i in range(parts):
            number = replica.replica_id_in_sync_group * parts + i
            drop = self._dropout(tf.random.fold_in(update, number))
            # one part after another
            with tf.control_dependencies(gradients), tf.GradientTape() as tape:
                ids = token_ids[i::parts], segment_ids[i::parts]
                targets = y_true[i::parts], y_mask[i::parts]
                part_loss = self.part_loss(*ids, targets, total, drop)
                added = tape.gradient(part_loss, weights)
                added = [tf.convert_to_tensor(gradient) for gradient in added]
                if gradients:
                    added = [old + new for old, new in zip(gradients, added, strict=True)]
                gradients = added
            loss += part_loss
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        outside = tf.reduce_sum(tf.abs(tf.where(segment_ids[:, 1:] > 0, 0.0, y_mask)))
        # Keras adds up those of all replicas
        return {'loss': loss, 'stopping': tf.identity(self.stopping), 'outside': outside}

    def _dropout(self, place):
        """Return a function that drops the same at every try; place: int [2], a seed."""
        numbers, rate = itertools.count(), self.dropout_rate
        if not rate:
            return tf.identity

        def drop(x):
            seed = tf.random.fold_in(place, next(numbers))
            return tf.nn.experimental.stateless_dropout(x, rate, seed)

        return drop


def set_schedule(optimizer, constants):
    """Let the learning rate rise over `warmup_steps` updates, then fall to 0 over `decay_steps`."""
    if constants.warmup_steps or constants.decay_steps:
        schedule = {constants.warmup_steps: 1.0}
        if constants.decay_steps:
            schedule[constants.warmup_steps + constants.decay_steps] = 0.0
        rate, piecewise_linear = constants.learning_rate, bert4keras.backend.piecewise_linear
        optimizer.learning_rate = lambda: rate * piecewise_linear(optimizer.iterations, schedule)


# --------------------------------------------------------------------------------------- callbacks


class Divergence(keras.callbacks.Callback):
    """Ends training where loss or weights are not finite, and names the records to look at.

    And where the loss gives a weight to what the Trainer does not compute.
    """

    def __init__(self, trainer, batches, state):
        super().__init__()
        self.trainer, self.batches, self.state = trainer, batches, state

    def on_train_batch_end(self, batch, logs=None):
        """Raise UserError where the loss is not finite, or is of more than the answers."""
        if logs.pop('outside'):
            what = 'CrossEntropy: y_mask gives a weight to tokens outside the answer'
            raise UserError(f'{what}; support/training.py predicts the answer alone')
        if not math.isfinite(logs['loss']):
            step = self.state.step
            raise self._error(step, f'the loss of update {step + 1} is {logs["loss"]}')

    def check_weights(self):
        """Raise UserError where weights are not finite."""
        if not all(np.isfinite(weight.sum()) for weight in self.trainer.trained.get_weights()):
            step = self.state.step
            raise self._error(step - 1, f'after update {step} some weights are not finite')

    def on_epoch_end(self, epoch, logs=None):
        """Take out what is no result."""
        logs.pop('outside', None)

    def _error(self, step, what):
        batch = next(self.batches.from_step(step))
        ids = ', '.join(self.batches.records[i]['id'] for i, *_ in batch)
        cure = 'lower learning_rate and choose another output_dir'
        return UserError(f'{what}; records {ids}; {cure}')


class Position(keras.callbacks.Callback):
    """Counts the updates of the State and averages their losses over an epoch."""

    def __init__(self, state, steps):
        super().__init__()
        self.state, self.steps = state, steps

    def on_train_batch_end(self, batch, logs=None):
        """Count the update."""
        self.state.step += 1
        self.state.losses += float(logs['loss'])

    def on_epoch_end(self, epoch, logs=None):
        """Give the others the mean of all updates, those before an interruption too."""
        logs['loss'] = self.state.losses / self.steps


class Log(keras.callbacks.Callback):
    """Adds an epoch to the State's log, and where there is a folder to log.csv and TensorBoard.

    There the names are Keras's: batch_loss of each update, epoch_loss, and for validation
    epoch_Final and the like.
    """

    def __init__(self, state, output_dir):
        super().__init__()
        self.state, self.output_dir, self.boards = state, output_dir, {}

    @contextlib.contextmanager
    def _written(self):
        """Say as of other files that what TensorBoard shows cannot be written."""
        try:
            yield
        except tf.errors.OpError as error:
            folder = os.path.join(self.output_dir, 'tensorboard')
            raise cannot_write(folder, OSError(first_line(error))) from None

    def _show(self, kind, name, value, step):
        """Add to the one file of 'train' or 'validation': TensorBoard looks into no older one."""
        if kind not in self.boards:
            folder = os.path.join(self.output_dir, 'tensorboard', kind)
            self.boards[kind] = tf.summary.create_file_writer(
                os.fsencode(folder), flush_millis=10_000
            )
        with self.boards[kind].as_default():
            tf.summary.scalar(name, value, step)

    def on_train_batch_end(self, batch, logs=None):
        """Add the loss of the update to TensorBoard; made again, it is the same."""
        if self.output_dir:
            with self._written():
                self._show('train', 'batch_loss', logs['loss'], self.state.step)

    def on_epoch_end(self, epoch, logs=None):
        """Add the epoch."""
        self.state.log.append({'epoch': epoch + 1, **logs})
        self.state.losses = 0.0
        if not self.output_dir:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.state.log[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.state.log)
        write_durably(os.path.join(self.output_dir, 'log.csv'), text.getvalue())
        with self._written():
            for name, value in logs.items():
                kind = 'validation' if name.startswith('val_') else 'train'
                self._show(kind, f'epoch_{name.removeprefix("val_")}', value, epoch)
            for board in self.boards.values():  # a kill would lose what is not written yet
                board.flush()


# --------------------------------------------------------------------------------------------- run


class Run:
    """A training that continues exactly where it was interrupted, whatever interrupted it.

    An epoch's end is made again unless it was backed up whole, so a run that was interrupted at any
    moment ends as if it had not been.

    encode: a function of a record and a NumPy Generator to token_ids and segment_ids, of a training
    pair; train_data, valid_data: lists of records; files: the settings.Files that are used.
    """

    def __init__(self, trainer, encode, train_data, valid_data, strategy, files, constants):
        self.trainer, self.strategy, self.constants = trainer, strategy, constants
        self.files = files
        self.batches, self.state = Batches(train_data, encode, constants), State()
        self.model, self.described = trainer.trained, bert_digest(files)
        self.fixed = {
            **trained.fixed(constants),
            'the BERT': self.described,
            'the first weights': digest_of(self.model),
            'the data': digest_of(None, train_data + valid_data),
        }
        rank, self.world_size = rank_and_world_size()
        self.is_chief = rank == 0
        self.divergence = Divergence(trainer, self.batches, self.state)
        self.backups = Backups(
            constants.output_dir,
            tf.train.Checkpoint(bert=self.model, optimizer=trainer.optimizer),
            self.state,
            self.fixed,
            check=self.divergence.check_weights,
            is_chief=self.is_chief,
        )
        self.stop = Stop(self.backups, self.world_size)
        self._begin()
        if self.is_chief:
            packages = [tf, keras, bert4keras, np]
            trained.describe(constants.output_dir, *describe(files), constants, files, packages)
        log(f'{len(train_data)} questions to train on, {len(valid_data)} to validate')

    def _begin(self):
        """Go back to the newest backup, if there is one. Raises UserError where workers differ."""
        backup = self.backups.restore()
        if backup:
            updates = f'update {self.state.step} of {self.batches.steps * self.constants.epochs}'
            afresh = 'to start afresh, choose another output_dir or delete this one'
            log(f'continuing after {updates} from {backup}; {afresh}')
        if self.world_size == 1:
            return
        text = json.dumps([vars(self.state), self.fixed])
        mine = int(digest([text.encode()])[:15], 16)
        replica = functools.partial(tf.constant, [mine], tf.int64)

        def gather():
            return self.strategy.gather(self.strategy.run(replica), 0)

        if any(tf.function(gather, autograph=False)().numpy() != mine):
            what = 'the workers begin with different backups, data or constants'
            raise UserError(f'{self.constants.output_dir}: {what}; share it among them')

    def keep_if_best(self, quality):
        """Keep the weights where their quality, a number, is not below that of those kept."""
        if quality >= self.state.best:
            self.state.best = quality
            save_best(self.constants.output_dir, self.model, self.described)

    def load_best(self):
        """Go back to the best weights."""
        load_best(self.constants.output_dir, self.model, self.files)

    def fit(self, evaluator):
        """Train to the end; evaluator: a callback that the first worker calls after an epoch."""
        position = Position(self.state, self.batches.steps)
        callbacks = [self.divergence, position, self.stop]
        if self.is_chief:  # backed up before an epoch is scored, and after
            back_up = BackUp(self.backups, self.constants.backup_minutes)
            epoch_log = Log(self.state, self.constants.output_dir)
            callbacks += [back_up, evaluator, epoch_log, back_up]
        else:
            callbacks += [Log(self.state, None)]
        state, steps = self.state, self.batches.steps
        # Keras's progress is no result
        with self.stop.listening(), contextlib.redirect_stdout(sys.stderr):
            if state.step and state.step == (len(state.log) + 1) * steps:
                # interrupted while it was scored
                ending_epoch = keras.callbacks.CallbackList(callbacks, model=self.trainer)
                ending_epoch.on_epoch_end(len(state.log), {})
            while state.step < self.constants.epochs * steps:
                self._fit_from(*divmod(state.step, steps), callbacks)
            self.stop.if_asked()  # or all of validation would be scored first

    def _fit_from(self, epoch, start, callbacks):
        """Train from update `start` of an epoch: to its end, or from its beginning to the last."""
        dataset = functools.partial(self.batches.dataset, self.state.step)
        self.trainer.fit(
            self.strategy.distribute_datasets_from_function(dataset),
            steps_per_epoch=self.batches.steps - start,
            initial_epoch=epoch,
            epochs=epoch + 1 if start else self.constants.epochs,
            verbose=1 if is_terminal(sys.stderr) else 2,
            callbacks=callbacks,
        )
