"""A run of training, resumed exactly where it was interrupted: its state, backups and signals."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import shutil
import signal
import sys
import time

import numpy as np

from evaluate_sogou import UserError

from . import bert, files, trained
from .keras2 import bert4keras, keras, tf
from .process import first_line, is_terminal, log, rank_and_world_size, takes_signals
from .records import questions_digest
from .training import Batches

# what may come of a damaged backup
ERRORS = OSError, ValueError, TypeError, LookupError, AssertionError, tf.errors.OpError


@dataclasses.dataclass(eq=False)
class State(tf.train.experimental.PythonState):
    """Where a run stands: what a backup keeps beside weights and optimizer, as JSON."""

    step: int = 0  # updates made
    losses: float = 0.0  # sum of those of this epoch
    best: float = -math.inf  # quality of the best weights so far
    log: list = dataclasses.field(default_factory=list)  # a row for each finished epoch
    # {name: value} of what must not differ in the run that continues
    fixed: dict = dataclasses.field(default_factory=dict)

    def serialize(self):
        """Return everything as a str."""
        return json.dumps(dataclasses.asdict(self))

    def deserialize(self, text):
        """Take everything from what `serialize` returned."""
        vars(self).update(json.loads(text))


def backups_in(folder, prefix=''):
    """Return the paths of all backups, oldest first; prefix: a pattern before their names."""
    pattern = rf'{prefix}backup-\d+-\d+'
    found = os.listdir(folder) if os.path.isdir(folder) else []  # a worker's own need not be there
    names = [name for name in found if re.fullmatch(pattern, name)]
    names.sort(key=lambda name: [int(number) for number in name.split('-')[1:]])
    return [os.path.join(folder, name) for name in names]


def restore(folder, checkpoint, others=None):
    """Go back to the newest backup. Returns its path, or None where there is none.

    checkpoint: tf.train.Checkpoint of a State, as `state`, and of what is trained; others: {name of
    what is fixed as a digest: what a backup with another was made with, in words}. Raises UserError
    where the backup is of another run, or damaged: TensorFlow has checksums.
    """
    if not backups_in(folder):
        return None
    backup, saved = backups_in(folder)[-1], State()
    afresh = 'start afresh with another output_dir'
    try:
        with files.plainly_named(os.path.join(backup, 'checkpoint')) as path:
            # what differs is named before weights do not fit
            tf.train.Checkpoint(state=saved).read(path).expect_partial()
            for name, value in checkpoint.state.fixed.items():
                before = saved.fixed.get(name)
                if before != value:
                    made = f'{name} = {before!r}, now {value!r}'
                    if others and name in others:
                        made = f'{others[name]} (reader.json there names its files)'
                    raise UserError(f'{backup}: made with {made}; change that back, or {afresh}')
            checkpoint.read(path).assert_existing_objects_matched()
    except ERRORS as error:
        raise UserError(f'{backup}: damaged ({first_line(error)}); {afresh}') from None
    return backup


def write_backup(folder, checkpoint):
    """Write a backup, a folder, unless there is one of this moment; then remove all others.

    It is whole and on the disk before they go; neither Keras's BackupAndRestore nor TensorFlow's
    CheckpointManager sees to that.
    """
    path = os.path.join(folder, f'backup-{checkpoint.state.step}-{len(checkpoint.state.log)}')
    if not os.path.exists(path):
        with files.durable_write(path) as unfinished:
            os.mkdir(unfinished)
            with files.plainly_named(os.path.join(unfinished, 'checkpoint')) as plain:
                checkpoint.write(plain)
    for other in backups_in(folder, r'(\.unfinished\.)?'):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)


class Run:
    """A training to its end, by Keras's `fit`, in as many processes as it takes.

    An epoch's end is made again unless it was backed up whole, so a run that was interrupted at any
    moment ends as if it had not been.

    encode: a function of a record and a NumPy Generator to token_ids and segment_ids, of a training
    pair; train_data, valid_data: lists of records; used: the paths.Files that are used.
    """

    def __init__(self, trainer, encode, train_data, valid_data, strategy, used, constants):
        self.trainer, self.strategy, self.constants = trainer, strategy, constants
        self.model, self.described = trainer.trained, bert.bert_digest(used)
        self.batches = Batches(train_data, encode, constants)
        rank, self.workers = rank_and_world_size()
        self.is_chief = rank == 0  # the worker that writes
        fixed = {
            **trained.fixed(constants),
            'the BERT': self.described,
            'the first weights': files.digest(self.model.weights),
            'the data': files.digest(train_data + valid_data),
        }
        self.state, self.board, self.asked = State(fixed=fixed), None, False
        everything = {'state': self.state, 'bert': self.model, 'optimizer': trainer.optimizer}
        self.checkpoint, self.backed_up_at = tf.train.Checkpoint(**everything), time.monotonic()
        data, first = ', '.join([*used.webqa, *used.sogouqa]), used.checkpoint or 'random ones'
        others = {
            'the BERT': f'another BERT than {used.config} and {used.vocabulary}',
            'the first weights': f'other first weights than {first}',
            'the data': f'other data than {data}',
        }
        backup = restore(constants.output_dir, self.checkpoint, others)
        if backup:
            total = self.batches.steps * constants.epochs
            is_complete = self.state.step >= total and len(self.state.log) >= constants.epochs
            done = f'continuing after update {self.state.step} of {total} from {backup}'
            if is_complete:
                done = f'{backup}: training is complete; for more of it raise epochs'
            log(f'{done}; to start afresh, choose another output_dir or delete this one')
        mine = int(files.digest([self.state.serialize()])[:12], 16)
        if self.mean_of_workers(mine) != mine:
            what = 'the workers begin with different backups, data or constants'
            raise UserError(f'{constants.output_dir}: {what}; share it among them')
        if self.is_chief:
            folder, packages = constants.output_dir, [tf, keras, bert4keras, np]
            # a complete training that is run again with fewer epochs stays what it is
            epochs = max(constants.epochs, len(self.state.log))
            kept, left_out = (
                dataclasses.replace(constants, epochs=epochs),
                questions_digest(valid_data),
            )
            trained.describe(folder, *bert.describe(used), kept, used, packages, left_out)
        log(f'{len(train_data)} questions to train on, {len(valid_data)} to validate')

    def mean_of_workers(self, number):
        """Return the mean of a whole number of each worker; all of them must come here."""
        if self.workers == 1:
            return number
        return int(self._total(int(number))) / self.strategy.num_replicas_in_sync

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.int64)])
    def _total(self, number):
        return self.strategy.reduce('SUM', self.strategy.run(tf.identity, [number]), axis=None)

    def keep_if_best(self, quality):
        """Keep the weights where their quality, a number, is not below that of those kept."""
        if quality >= self.state.best:
            self.state.best = quality
            bert.save_best(self.constants.output_dir, self.model, self.described)

    @contextlib.contextmanager
    def listening(self):
        """Take SIGINT and SIGTERM as the question to stop, the second one as the order."""

        def ask(*_):
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            log('stopping after this update; once more to stop at once')

        numbers = (signal.SIGINT, signal.SIGTERM) if takes_signals() else ()
        handlers = {number: signal.signal(number, ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def stop_if_asked(self):
        """Raise KeyboardInterrupt if the run was asked to stop."""
        if self.asked:
            done = f'stopped after update {self.state.step}'
            raise KeyboardInterrupt(f'{done}; run the same command to continue')

    def fit(self, evaluator):
        """Train to the end; the first worker calls `evaluator.on_epoch_end`, as Keras does."""
        end_epoch = functools.partial(self.end_epoch, evaluator)
        hooks = {'on_batch_end': self.after_update, 'on_epoch_end': end_epoch}
        state, steps, epochs = self.state, self.batches.steps, self.constants.epochs
        # Keras's progress is no result
        with self.listening(), contextlib.redirect_stdout(sys.stderr):
            if state.step and state.step == (len(state.log) + 1) * steps:
                end_epoch(len(state.log), {})  # interrupted while it was scored
            while state.step < epochs * steps:
                epoch, start = divmod(state.step, steps)
                dataset = functools.partial(self.batches.dataset, state.step)
                self.trainer.fit(
                    self.strategy.distribute_datasets_from_function(dataset),
                    steps_per_epoch=steps - start,
                    initial_epoch=epoch,
                    epochs=epoch + 1 if start else epochs,  # the rest of one, or all
                    verbose=1 if is_terminal(sys.stderr) else 2,
                    callbacks=[keras.callbacks.LambdaCallback(**hooks)],
                )
            self.back_up()  # removes what a kill may have left
            self.stop_if_asked()  # or all of validation would be scored first

    def after_update(self, _, logs):
        """Count an update, then back up when it is time, or stop if that was asked for.

        All workers stop after the same update. Raises UserError where it has gone wrong.
        """
        state, loss = self.state, logs['loss']
        if logs.pop('outside'):
            what = 'CrossEntropy: y_mask gives a weight to tokens outside the answer'
            raise UserError(f'{what}; support/training.py predicts the answer alone')
        state.step += 1
        state.losses += loss
        self._show('batch_loss', loss, state.step)
        asked = self.mean_of_workers(self.asked)
        is_due = time.monotonic() - self.backed_up_at >= 60 * self.constants.backup_minutes
        if asked or is_due or not math.isfinite(loss):
            self.back_up()
        if asked:
            self.asked = True
            self.stop_if_asked()

    def end_epoch(self, evaluator, epoch, logs):
        """Score and log an epoch; back up before and after it.

        Its loss is the mean of all its updates, in whichever process.
        """
        logs.pop('outside', None)  # no result
        logs['loss'] = self.state.losses / self.batches.steps
        self.back_up()
        if self.is_chief:
            evaluator.on_epoch_end(epoch, logs)
        self.state.log.append({'epoch': epoch + 1, **logs})
        self.state.losses = 0.0
        if self.is_chief:
            rows = [self.state.log[0], *(row.values() for row in self.state.log)]
            text = ''.join(','.join(map(str, row)) + '\n' for row in rows)
            files.write_durably(os.path.join(self.constants.output_dir, 'log.csv'), text)
        for name, value in logs.items():
            self._show(f'epoch_{name}', value, epoch)
        self.back_up()

    def back_up(self):
        """Write a backup, the first worker for all. Raises UserError where training diverged."""
        self.backed_up_at = time.monotonic()
        sums = (weight.numpy().sum() for weight in self.model.weights)
        if not np.isfinite([self.state.losses, *sums]).all():
            what = f'after update {self.state.step} loss or weights are not finite'
            raise UserError(f'{what}; lower learning_rate and choose another output_dir')
        if self.is_chief:
            write_backup(self.constants.output_dir, self.checkpoint)

    def _show(self, name, value, step):
        """Add a value to what TensorBoard shows; made again after a kill, it is the same.

        Keras's own callback counts updates anew in each process, and loses an epoch in a kill.
        """
        if not self.is_chief:
            return
        folder = os.path.join(self.constants.output_dir, 'tensorboard')
        try:
            if not self.board:  # one file for all: TensorBoard looks into no older one
                self.board = tf.summary.create_file_writer(os.fsencode(folder))
            with self.board.as_default():
                tf.summary.scalar(name, value, step)
            self.board.flush()
        except tf.errors.OpError as error:
            raise files.cannot_write(folder, error) from None
