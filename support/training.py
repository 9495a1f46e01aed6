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

from evaluate_sogou import UserError, cannot_write, log

from .files import fingerprint, first_line, write_durably
from .keras2 import keras, tf
from .process import worker_position
from .resume import BackUp, Backups, State, Stop
from .terminal import is_terminal
from .unilm import UniLM


def choose_strategy():
    """Return TensorFlow's engine for several machines where TF_CONFIG is set, else for all GPUs."""
    if 'TF_CONFIG' in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    several = len(tf.config.list_logical_devices('GPU')) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


class Trainer(keras.Model):
    """Trains bert4keras's model by a loss of answer tokens, averaged over all those of a batch.

    The average is over the whole batch, however many devices and parts it is computed in. Nothing
    is computed that it does not depend on: no padding, no vocabulary but for tokens of the answer.

    model: bert4keras's; cross_entropy: a function of labels, int32 [tokens], and logits, float32
    [tokens, vocab], that returns float32 [tokens]; constants: precision, accumulate_steps, seed.
    """

    def __init__(self, model, cross_entropy, optimizer, constants):
        super().__init__()
        self.trained, self.unilm = model, UniLM(model, constants.precision, training=True)
        self.cross_entropy, self.seed = cross_entropy, constants.seed
        self.accumulate_steps = constants.accumulate_steps
        dropouts = [layer.rate for layer in model.layers if layer.name == 'Embedding-Dropout']
        self.dropout_rate = sum(dropouts)
        # now, or a backup could be read but not written
        optimizer._create_all_weights(model.trainable_weights)
        self.stopping = tf.Variable(0.0, trainable=False)  # whether this worker was asked to: 0, 1
        self.compile(optimizer=optimizer)

    def losses(self, token_ids, segment_ids, drop=tf.identity):
        """Return the loss of each answer token, float32 [answer tokens], of a padded batch."""
        lengths = tf.math.count_nonzero(token_ids, 1, dtype=tf.int32)  # [rows]
        answers = tf.reduce_sum(segment_ids, 1)  # [rows]
        # the last [SEP] is predicted only
        is_read = tf.sequence_mask(lengths - 1, tf.shape(token_ids)[1])
        packed = tf.boolean_mask(token_ids, is_read)
        x, _ = self.unilm.run_layers(packed, lengths - 1, lengths - answers, drop)
        labels = tf.boolean_mask(token_ids, segment_ids > 0)  # [answer tokens]
        return self.cross_entropy(labels, self.unilm.logits(x))

    @tf.autograph.experimental.do_not_convert  # it takes seconds, and there is nothing for it
    def train_step(self, batch):
        """Make one update; returns this replica's share of its loss."""
        token_ids, segment_ids = batch['Input-Token'], batch['Input-Segment']
        replica, weights = tf.distribute.get_replica_context(), self.trained.trainable_weights
        total = replica.all_reduce('sum', tf.cast(tf.reduce_sum(segment_ids), tf.float32))
        update = tf.random.fold_in([self.seed, 0], tf.cast(self.optimizer.iterations, tf.int32))
        loss, gradients = 0.0, []
        for i in range(self.accumulate_steps):
            number = replica.replica_id_in_sync_group * self.accumulate_steps + i
            drop = self._dropout(tf.random.fold_in(update, number))
            # one part after another
            with tf.control_dependencies(gradients), tf.GradientTape() as tape:
                part = (
                    token_ids[i :: self.accumulate_steps],
                    segment_ids[i :: self.accumulate_steps],
                )
                part_loss = tf.reduce_sum(self.losses(*part, drop)) / total
                added = tape.gradient(part_loss, weights)
                added = [tf.convert_to_tensor(gradient) for gradient in added]
                if gradients:
                    added = [old + new for old, new in zip(gradients, added, strict=True)]
                gradients = added
            loss += part_loss
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        # Keras adds up those of all replicas
        return {'loss': loss, 'stopping': tf.identity(self.stopping)}

    def _dropout(self, place):
        """Return a function that drops the same at every try; place: int [2], a seed."""
        numbers, rate = itertools.count(), self.dropout_rate
        if not rate:
            return tf.identity

        def drop(x):
            seed = tf.random.fold_in(place, next(numbers))
            return tf.nn.experimental.stateless_dropout(x, rate, seed)

        return drop


# --------------------------------------------------------------------------------------- callbacks


class Divergence(keras.callbacks.Callback):
    """Ends training where loss or weights are not finite, and names the records to look at."""

    def __init__(self, trainer, batches, state):
        super().__init__()
        self.trainer, self.batches, self.state = trainer, batches, state

    def on_train_batch_end(self, batch, logs=None):
        """Raise UserError where the loss is not finite."""
        if not math.isfinite(logs['loss']):
            step = self.state.step
            raise self._error(step, f'the loss of update {step + 1} is {logs["loss"]}')

    def check_weights(self):
        """Raise UserError where weights are not finite."""
        if not all(np.isfinite(weight.sum()) for weight in self.trainer.trained.get_weights()):
            step = self.state.step
            raise self._error(step - 1, f'after update {step} some weights are not finite')

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

    fixed: {name: value} of what must not differ when it is continued.
    """

    def __init__(self, trainer, batches, strategy, fixed, constants):
        self.trainer, self.batches, self.strategy = trainer, batches, strategy
        self.fixed, self.constants, self.state = fixed, constants, State()
        worker, self.workers = worker_position()
        self.is_chief = worker == 0
        self.divergence = Divergence(trainer, batches, self.state)
        self.backups = Backups(
            constants.output_dir,
            tf.train.Checkpoint(bert=trainer.trained, optimizer=trainer.optimizer),
            self.state,
            fixed,
            check=self.divergence.check_weights,
            is_chief=self.is_chief,
        )
        self.stop = Stop(self.backups, self.workers)

    def begin(self):
        """Go back to the newest backup, if there is one. Raises UserError where workers differ."""
        backup = self.backups.restore()
        if backup:
            updates = f'update {self.state.step} of {self.batches.steps * self.constants.epochs}'
            afresh = 'to start afresh, choose another output_dir or delete this one'
            log(f'continuing after {updates} from {backup}; {afresh}')
        if self.workers == 1:
            return
        text = json.dumps([vars(self.state), self.fixed])
        mine = int(fingerprint([text.encode()])[:15], 16)
        replica = functools.partial(tf.constant, [mine], tf.int64)

        def gather():
            return self.strategy.gather(self.strategy.run(replica), 0)

        if any(tf.function(gather, autograph=False)().numpy() != mine):
            what = 'the workers begin with different backups, data or constants'
            raise UserError(f'{self.constants.output_dir}: {what}; share it among them')

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
