"""Exact restart: where training stands, its backups, and the signals that stop it."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import time

from evaluate_sogou import UserError

from .console import log
from .files import digest, durable_write, first_line, plainly_named, read_text
from .keras2 import keras, tf
from .process import takes_signals
from .trained import WEIGHTS

# what may come of a damaged backup
ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, tf.errors.OpError,
)  # fmt: skip


@dataclasses.dataclass
class State:
    """Where training stands."""

    step: int = 0  # updates made
    losses: float = 0.0  # sum of those of this epoch
    best: float = -math.inf  # quality of the best weights so far
    log: list = dataclasses.field(default_factory=list)  # a row for each finished epoch


class Backups:
    """The backups of a training: folders of weights, optimizer and State, written whole.

    Keras's BackupAndRestore keeps neither the best quality nor the log, nor is what it writes
    complete or absent.

    checkpoint: tf.train.Checkpoint of what is trained; state: the State to save and to restore;
    fixed: {name: value} of what must not differ in the run that continues; check: called before
    anything is written; is_chief: others only read.
    """

    def __init__(self, output_dir, checkpoint, state, fixed, check, is_chief):
        self.output_dir, self.checkpoint, self.state = output_dir, checkpoint, state
        self.fixed, self.check, self.is_chief = fixed, check, is_chief
        self.written_at = time.monotonic()

    def paths(self, prefix=''):
        """Return the paths of all backups, oldest first; prefix: a pattern before their names."""
        pattern = rf'{prefix}backup-\d+-\d+'
        names = [name for name in os.listdir(self.output_dir) if re.fullmatch(pattern, name)]
        names.sort(key=lambda name: [int(number) for number in name.split('-')[1:]])
        return [os.path.join(self.output_dir, name) for name in names]

    def restore(self):
        """Go back to the newest backup. Returns its path, or None where there is none.

        Raises UserError where it is of another run, or damaged.
        """
        if not self.paths():
            return None
        backup, afresh = self.paths()[-1], 'start afresh with another output_dir'
        try:
            saved = json.loads(read_text(os.path.join(backup, 'state.json')))
            if saved.pop('digest', None) != _digest(saved, backup):
                raise ValueError('it is not as it was written')
            for name, value in self.fixed.items():
                before = saved['fixed'].get(name)
                if before != value:
                    made = f'{backup}: made with {name} = {before!r}, now {value!r}'
                    raise UserError(f'{made}; change that back, or {afresh}')
            vars(self.state).update(vars(State(**saved['state'])))
            best = os.path.join(self.output_dir, WEIGHTS)
            if self.state.log and not os.path.exists(best):
                raise UserError(f'{best} has gone; put it back, or {afresh}')
            with plainly_named(os.path.join(backup, 'weights')) as path:
                self.checkpoint.read(path).expect_partial()
        except ERRORS as error:
            raise UserError(f'{backup}: damaged ({first_line(error)}); {afresh}') from None
        self._remove_others(backup)  # a kill may have come before
        return backup

    def write(self):
        """Write a backup of the State as it is, unless there is one, then remove the older ones."""
        self.written_at = time.monotonic()
        name = f'backup-{self.state.step}-{len(self.state.log)}'
        path = os.path.join(self.output_dir, name)
        if not self.is_chief or os.path.exists(path):
            return
        self.check()
        with durable_write(path) as folder:
            os.mkdir(folder)
            try:
                with plainly_named(os.path.join(folder, 'weights')) as plain:
                    self.checkpoint.write(plain)
            except tf.errors.OpError as error:
                raise OSError(first_line(error)) from None
            saved = {'state': vars(self.state), 'fixed': self.fixed}
            saved['digest'] = _digest(saved, folder)
            with open(os.path.join(folder, 'state.json'), 'w', encoding='utf-8') as file:
                json.dump(saved, file, ensure_ascii=False)
        self._remove_others(path)

    def _remove_others(self, path):
        for backup in self.paths(r'(\.unfinished\.)?'):
            if self.is_chief and backup != path:
                (os.remove if os.path.islink(backup) else shutil.rmtree)(backup)


def _digest(saved, folder):
    """Return the digest of what state.json holds and of all weights: TensorFlow's index."""
    with open(os.path.join(folder, 'weights.index'), 'rb') as file:
        return digest([json.dumps(saved).encode(), file.read()])


class BackUp(keras.callbacks.Callback):
    """Backs up when it is time and when an epoch ends."""

    def __init__(self, backups, minutes):
        super().__init__()
        self.backups, self.seconds = backups, 60 * minutes

    def on_train_batch_end(self, batch, logs=None):
        """Back up if the last time was long ago."""
        if time.monotonic() - self.backups.written_at >= self.seconds:
            self.backups.write()

    def on_epoch_end(self, epoch, logs=None):
        """Back up."""
        self.backups.write()


class Stop(keras.callbacks.Callback):
    """Ends training, backed up, when a signal asks for it: all workers after the same update.

    Asked twice it ends at once. workers: how many take part in each update; the model's `stopping`
    is how one tells the others, in the next update.
    """

    def __init__(self, backups, workers):
        super().__init__()
        self.backups, self.workers, self.asked = backups, workers, False

    @contextlib.contextmanager
    def listening(self):
        """Take SIGINT and SIGTERM as the question."""
        numbers = (signal.SIGINT, signal.SIGTERM) if takes_signals() else ()
        handlers = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ask(self, *_):
        log('stopping after this update; once more to stop at once')
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, signal.default_int_handler)
        self.asked = True

    def if_asked(self):
        """Raise KeyboardInterrupt if training was asked to stop."""
        if self.asked:
            done = f'stopped after update {self.backups.state.step}'
            raise KeyboardInterrupt(f'{done}; run the same command to continue')

    def on_train_batch_end(self, batch, logs=None):
        """Tell the others; stop once all know it."""
        all_know = bool(logs.pop('stopping'))
        self.asked |= all_know
        if self.asked:
            self.model.stopping.assign(1.0)
            if all_know or self.workers == 1:
                self.backups.write()
                self.if_asked()

    def on_epoch_end(self, epoch, logs=None):
        """Take out what is no result."""
        logs.pop('stopping', None)
