"""A file of predictions, written line by line, continued and shared out; not how to predict."""

import glob
import itertools
import json
import os
import time

from evaluate_sogou import UserError, log

from .files import alone, fingerprint, write_durably


class Part:
    """A worker's part of a predictions file: whatever interrupts it, it is continued.

    Worker k of n has the records k, k + n, k + 2n, ..., a line each, empty for a record without id.
    The file's first line is `origin`; a part of another one, of other weights or other data, is
    started afresh.
    """

    def __init__(self, path, origin, worker, workers):
        self.path, self.origin, self.workers = path, origin, workers
        self.name = self._name(worker)
        unfinished = f'{self.name}.unfinished'
        lines = self._lines(self.name)
        self.is_complete = lines is not None
        if not self.is_complete:
            lines = self._lines(unfinished)
            if lines is None and os.path.exists(unfinished):
                begun = 'begun with other weights, constants or questions'
                log(f'{path}: {begun}; it is started afresh')
        self.lines = lines or []

    def _name(self, worker):
        return f'{self.path}.{worker}-of-{self.workers}'

    def _lines(self, name):
        try:
            with open(name, 'rb') as file:
                content = file.read()
            content = content[: content.rfind(b'\n') + 1]  # then, half a line at most
            origin, *lines = content.decode('utf-8').split('\n')[:-1]
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise UserError(f'{name}: cannot be read ({error.strerror}); remove it') from None
        return lines if origin == self.origin else None

    def write(self, lines):
        """Add the rest of the lines as they come; at the end the part is complete."""
        if self.is_complete:
            return
        unfinished = f'{self.name}.unfinished'
        try:
            with alone(unfinished), open(unfinished, 'a', encoding='utf-8', newline='') as file:
                if (self._lines(unfinished) or []) != self.lines:
                    raise UserError(f'{self.path}: another run has been at work here; run again')
                kept = ''.join(f'{line}\n' for line in (self.origin, *self.lines))
                file.truncate(len(kept.encode()) if self.lines else 0)
                file.write('' if self.lines else kept)
                for line in lines:
                    file.write(f'{line}\n')
                    file.flush()
                    os.fsync(file.fileno())
                    self.lines.append(line)
                file.flush()
                os.replace(unfinished, self.name)
        except OSError as error:
            reason = f'cannot be written ({error.strerror}); make room and run again'
            raise UserError(f'{self.path}: {reason}') from None

    def join(self):
        """Wait for the parts of all workers, write them as one file in the records' order."""
        names = [self._name(worker) for worker in range(self.workers)]
        while True:
            parts = [self._lines(name) for name in names]
            missing = [name for name, part in zip(names, parts, strict=True) if part is None]
            if not missing:
                break
            log(f'waiting for {", ".join(missing)}')
            time.sleep(5)
        lines = itertools.chain.from_iterable(itertools.zip_longest(*parts, fillvalue=''))
        write_durably(self.path, ''.join(f'{line}\n' for line in lines if line))
        pattern = f'{glob.escape(self.path)}.*-of-*'  # also of a run with more or fewer workers
        for name in glob.glob(pattern):
            os.remove(name)


def fingerprint_of(model, *data):
    """Return the fingerprint of a Keras model's weights, if any, and of lists that JSON can hold.

    Entries and weights are taken one by one: together they are large.
    """
    contents = (json.dumps(entry).encode() for entries in data for entry in entries)
    weights = (weight.numpy() for weight in (model.weights if model else ()))
    return fingerprint(itertools.chain(contents, weights))
