"""Answers to many questions, a JSON record each: kept, continued, shared out; not how to answer."""

import contextlib
import glob
import itertools
import json
import os
import re
import sys
import time
import zlib

from tqdm import tqdm

from evaluate_sogou import Tally, UserError, log

from .files import alone, fingerprint, write_durably
from .records import parse_line

COMPLETE = '{"complete": true}'  # the last line of a part, before its checksum


class Part:
    """A worker's part of the answers to some questions: whatever interrupts it, it is continued.

    Worker k of n has the records k, k + n, k + 2n, ..., a line each, of what was told of it, a dict
    that JSON can hold. The file begins with a line of its origin; a part of another one, of other
    weights or other data, is started afresh. Each line ends in a checksum of all so far, and what
    follows damage is answered again; the last line says that the part is complete.

    name: of the files, without extension; origin: fingerprint; source: path of the questions, whose
    answers no others may replace, or None. Raises UserError where they would.
    """

    def __init__(self, name, origin, source, worker, workers):
        self.name, self.path, self.source = name, f'{name}.jsonl', source
        self.worker, self.workers = worker, workers
        self.origin = json.dumps({'origin': origin, 'file': source}, ensure_ascii=False)
        self._refuse_others()
        self.part = self._part(worker)
        unfinished = f'{self.part}.unfinished'
        lines = self._lines(self.part, complete=True)
        self.is_complete = lines is not None
        if not self.is_complete:
            lines = self._lines(unfinished)
            if lines is None and os.path.exists(unfinished):
                begun = 'begun with other weights, constants or questions'
                log(f'{self.path}: {begun}; it is started afresh')
        self.lines = lines or []  # of before
        self.written_before = {name: written_at(name) for name in self._parts()}

    def _part(self, worker):
        return f'{self.path}.{worker}-of-{self.workers}'

    def _parts(self):
        """Return the names of all parts, also of a run with more or fewer workers."""
        return glob.glob(f'{glob.escape(self.path)}.*-of-*')

    def _refuse_others(self):
        for name in [self.path, *self._parts()] if self.source else []:
            try:
                with open(name, encoding='utf-8') as file:
                    other = json.loads(file.readline()).get('file')
            except (OSError, ValueError, AttributeError, RecursionError):  # nothing of ours
                continue
            if isinstance(other, str) and other != self.source:
                other = one_line(other)
                holds = f'holds the answers to {other}, those to {self.source} would replace them'
                raise UserError(f'{name}: {holds}; move it, or choose another output_dir')

    def _lines(self, name, complete=False):
        """Return the lines of a file as far as they are sound.

        None where it is not there, of another origin, or not complete although it should be.
        """
        try:
            with open(name, 'rb') as file:
                origin, *lines = file.read().split(b'\n')[:-1]  # then, half a line at most
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise UserError(f'{name}: cannot be read ({error.strerror}); remove it') from None
        if origin != self.origin.encode():
            return None
        sound, checksum = [], zlib.crc32(origin)
        for line in lines:
            text, _, written = line.rpartition(b', "checksum": "')
            text += b'}'
            checksum = zlib.crc32(text, checksum)
            if written != b'%08x"}' % checksum:
                break
            if text == COMPLETE.encode():
                return sound
            sound.append(text.decode())
        return None if complete else sound

    def _with_checksums(self, texts):
        """Yield the lines that a file has for these, the first one its origin."""
        checksum = zlib.crc32(self.origin.encode())
        yield f'{self.origin}\n'
        for text in texts:
            checksum = zlib.crc32(text.encode(), checksum)
            yield f'{text[:-1]}, "checksum": "{checksum:08x}"}}\n'

    def write(self, told):
        """Add what is told of the rest as it comes; at the end the part is complete."""
        if self.is_complete:
            return
        unfinished = f'{self.part}.unfinished'
        try:
            with (
                alone(unfinished) as check_in_place,
                open(unfinished, 'a', encoding='utf-8', newline='') as file,
            ):
                if (self._lines(unfinished) or []) != self.lines:
                    raise UserError(f'{self.path}: another run has been at work here; run again')
                kept = sum(len(line.encode()) for line in self._with_checksums(self.lines))
                file.truncate(kept if self.lines else 0)
                texts = itertools.chain(self.lines, self._texts(told), [COMPLETE])
                lines = self._with_checksums(texts)
                for line in itertools.islice(lines, len(self.lines) + 1 if self.lines else 0, None):
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                check_in_place()  # another run's would pass for a complete one
                os.replace(unfinished, self.part)
        except OSError as error:
            reason = f'cannot be written ({error.strerror}); make room and run again'
            raise UserError(f'{self.path}: {reason}') from None

    def _texts(self, told):
        for of_record in told:
            if self.source:
                of_record = {**of_record, 'file': self.source}
            yield json.dumps(of_record, ensure_ascii=False)

    def join(self, page=None, as_page=None):
        """Write what all workers have told, in the records' order, once all are there.

        NAME.jsonl has everything, NAME.tsv the answers, `id<TAB>answer`, and page, a path if given,
        what `as_page` makes of an iterator of what was told.
        """
        names = [self._part(worker) for worker in range(self.workers)]
        while True:
            parts = [self._lines(name, complete=True) for name in names]
            missing = [name for name, part in zip(names, parts, strict=True) if part is None]
            if not missing:
                break
            for name in missing:
                if written_at(name) not in (None, self.written_before.get(name)):
                    other = 'answered with other weights, constants or questions than the first'
                    raise UserError(f'{name}: {other}; give all workers the same')
            log(f'waiting for {", ".join(missing)}')
            time.sleep(5)
        lines = itertools.chain.from_iterable(itertools.zip_longest(*parts))
        lines = [line for line in lines if line is not None]
        write_durably(self.path, ''.join(f'{line}\n' for line in lines))
        answers = (f'{tab_separated(json.loads(line))}\n' for line in lines)
        write_durably(f'{self.name}.tsv', ''.join(line for line in answers if line.strip('\n')))
        if page:
            write_durably(page, as_page(map(json.loads, lines)))
        for name in self._parts():
            os.remove(name)


def written_at(path):
    """Return when a file was written, in nanoseconds; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_mtime_ns


def one_line(text):
    """Return a text without what would break a tab-separated line."""
    return re.sub('[\x00-\x1f\x85\u2028\u2029]', ' ', text)


def tab_separated(told):
    """Return the line `id<TAB>answer` of what was told of a record; without id it is empty."""
    return f'{told["id"]}\t{one_line(told["text"])}' if told['id'] else ''


def answer_part(part, data, answer, references):
    """Answer those records of a part that are not answered yet, with a bar on standard error.

    data: list of all records; answer: function of a list of records that yields what is told of
    each; references: {id: Reference} or None, with which the bar shows the score so far.
    """
    mine, tally = data[part.worker :: part.workers], Tally()
    if part.lines:
        log(f'{part.path}: {len(part.lines)} of {len(mine)} questions are answered already')
    with tqdm(total=len(mine), desc='reading', unit='question', file=sys.stderr) as progress:

        def show(told):
            progress.update()
            if references and told['id']:
                tally.add(one_line(told['text']), references[told['id']])
                progress.set_postfix(tally.result(), refresh=False)

        def answers():
            for told in answer(mine[len(part.lines) :]):
                show(told)
                note = defect_of(told, f'{os.path.basename(part.name)}.tsv')
                if note:
                    tqdm.write(note, file=sys.stderr)  # above the bar
                yield told

        for line in part.lines:
            show(json.loads(line))
        part.write(answers())


def defect_of(told, name):
    """Return what to say of a record that lacks something, '' if nothing; name: of a file."""
    if not told['id']:
        line = f'a record without id has no line in {name}'
        return f'{line}, its question is {told["question"]!r}'
    if 'error' in told:
        return f'record {told["id"]!r} has {told["error"]}; it gets the empty answer'
    return ''


def answer_stream(stream, answer):
    """Yield what is told of records as they come, a dict for each line: all that is there at once.

    stream: standard input, a JSON record a line; answer: as of `answer_part`. A line that is no
    record gets {'error': what is wrong with it}. Raises UserError where the stream is closed.
    """
    if stream is None or getattr(stream, 'closed', False):
        raise UserError('standard input: closed; give records, one line of JSON each')
    number = 0
    try:
        arriving = _arriving(stream.fileno())
    except (OSError, AttributeError):  # it is no file, but all in memory
        arriving = [stream.read().encode().splitlines()]
    for lines in arriving:
        parsed = [parse_line(line, number + i) for i, line in enumerate(lines, 1)]
        number += len(lines)
        told = answer([record for record in parsed if isinstance(record, dict)])
        for record in parsed:
            yield next(told) if isinstance(record, dict) else {'error': record}


def _arriving(descriptor):
    """Yield lists of lines, bytes, all that have come since the last one."""
    pieces = []
    while piece := os.read(descriptor, 1 << 20):  # waits for a piece, not for all of it
        pieces.append(piece)
        if b'\n' in piece:
            *lines, rest = b''.join(pieces).split(b'\n')
            pieces = [rest]
            yield lines
    if any(pieces):
        yield [b''.join(pieces)]


def fingerprint_of(model, *data):
    """Return the fingerprint of a Keras model's weights, if any, and of lists that JSON can hold.

    Entries and weights are taken one by one: together they are large.
    """
    contents = (json.dumps(entry).encode() for entries in data for entry in entries)
    weights = (weight.numpy() for weight in (model.weights if model else ()))
    return fingerprint(itertools.chain(contents, weights))
