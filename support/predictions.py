"""Predictions for many questions, a JSON record each: kept, continued, shared out, joined."""

import contextlib
import glob
import inspect
import itertools
import json
import os
import sys
import time
import typing
import zlib

from tqdm import tqdm

from evaluate_sogou import Tally, UserError, score_answer

from .console import escaped, log, one_line
from .files import digest_of, lock, read_text, write_durably
from .process import rank_and_world_size
from .records import parse_line, unanswerable
from .report import Page
from .trained import fixed

COMPLETE = '{"complete": true}'  # the last line of a shard, before its checksum


def of_records(data, answers):
    """Yield the prediction for each record, a dict that JSON can hold: an Answer, or an error.

    answers: a function of an iterator of those records that can be answered, to their Answers.
    """
    found = answers(record for record in data if not unanswerable(record))
    for record in data:
        error = unanswerable(record)
        prediction = {'id': record.get('id'), 'question': record.get('question')}
        if error:
            prediction.update(text='', error=error)
        else:
            prediction.update(next(found)._asdict())
            for name in 'candidates', 'votes':
                prediction[name] = [each._asdict() for each in prediction[name]]
        yield prediction


class Joined(typing.NamedTuple):
    """What all predictions come to."""

    tab_separated: str  # a line `id<TAB>answer` for each that has an id
    score: dict | None  # Accuracy, F1, Final, total and Answered, where right answers are known


def predict_to_file(reader, data, name, shard=(0, 1), source=None, references=None, page=None):
    """Write the prediction for every record to NAME.jsonl, the answers to NAME.tsv, and the page.

    An interrupted run is continued. reader: ReadingComprehension; shard: (rank, world size) of this
    process: several share the questions, and the first one joins the shards; source: path of the
    questions, if no other's predictions may replace those for them; references: {id: Reference}, or
    None where right answers are not known; page: path of the page, or None. Returns Joined, None
    but in the first process.
    """
    used = fixed(reader.constants).items()
    script = read_text(inspect.getfile(type(reader)))  # the vote, and whatever else was edited
    origin = digest_of(reader.model, [*used, script], data)
    mine, scores = Shard(name, origin, source, *shard), Scores(references)
    predict_shard(mine, data, reader.predict, scores)
    if mine.rank:
        return None
    lines = mine.join()
    has_page = page and reader.constants.report
    report = Page(references, reader.tokenizer.ids_to_tokens, reader.constants)
    tab_separated, tally = [], Tally()
    for record, line in zip(data, lines, strict=True):
        prediction = json.loads(line)
        score = scores.of(prediction)
        if score:
            tally.add(score)
        if prediction['id']:
            tab_separated.append(f'{prediction["id"]}\t{one_line(prediction["text"])}\n')
        if has_page:
            report.add(record, prediction, score)
    joined = Joined(''.join(tab_separated), None)
    if references is not None:
        answered = sum(not line.endswith('\t\n') for line in tab_separated)
        share = answered / max(len(tab_separated), 1)
        joined = joined._replace(score={**tally.result(), 'Answered': share})
    write_durably(mine.path, ''.join(f'{line}\n' for line in lines))
    write_durably(f'{name}.tsv', joined.tab_separated)
    if has_page:
        write_durably(page, report.as_html(joined.score))
    elif page:
        with contextlib.suppress(FileNotFoundError):
            os.remove(page)  # it is of other predictions
    mine.remove()
    return joined


def place_of(line):
    """Return where the predictions for the FILE of a CommandLine go, arguments of the above."""
    stem, _ = os.path.splitext(os.path.basename(line.path))
    name = os.path.join(line.constants.output_dir, f'answers_to_{stem}')
    place = {'name': name, 'source': os.path.realpath(line.path), 'shard': rank_and_world_size()}
    return {**place, 'page': f'{name}.html' if line.overrides.get('report') else None}


class Scores:
    """The Score of each prediction for a question whose right answers are known, made once.

    references: {id: Reference} or None.
    """

    def __init__(self, references):
        self.references, self.by_id = references, {}

    def of(self, prediction):
        """Return the Score, None where there is none."""
        name = prediction['id']
        if not self.references or not name:
            return None
        if name not in self.by_id:
            answer = one_line(prediction['text'])
            self.by_id[name] = score_answer(answer, self.references[name])
        return self.by_id[name]


# --------------------------------------------------------------------------------------- the shards


class Shard:
    """One process's share of the predictions: whatever interrupts it, it is continued.

    The process of rank k of n has the records k, k + n, k + 2n, ..., a line each. The file begins
    with a line of its origin; a shard of another one, of other weights, data or another script, is
    started afresh. Each line ends in a checksum of all so far, and what follows damage is predicted
    again; the last line says that the shard is complete.

    name: of the files, without extension; origin: digest; source: path of the questions, whose
    predictions no others may replace, or None. Raises UserError where they would.
    """

    def __init__(self, name, origin, source=None, rank=0, world_size=1):
        self.name, self.path, self.source = name, f'{name}.jsonl', source
        self.rank, self.world_size = rank, world_size
        self.origin = json.dumps({'origin': origin, 'file': source}, ensure_ascii=False)
        self._refuse_others()
        self.shard = self._shard(rank)
        unfinished = f'{self.shard}.unfinished'
        lines = self._lines(self.shard, complete=True)
        self.is_complete = lines is not None
        if not self.is_complete:
            lines = self._lines(unfinished)
            if lines is None and os.path.exists(unfinished):
                begun = 'begun with other weights, constants or questions, or another script'
                log(f'{self.path}: {begun}; it is started afresh')
        self.lines = lines or []  # of before
        self.modified_before = {name: modified_at(name) for name in self._shards()}

    def _shard(self, rank):
        return f'{self.path}.{rank}-of-{self.world_size}'

    def _shards(self):
        """Return the names of all shards, also of a run with more or fewer processes."""
        return glob.glob(f'{glob.escape(self.path)}.*-of-*')

    def _refuse_others(self):
        for name in [self.path, *self._shards()] if self.source else []:
            try:
                with open(name, encoding='utf-8') as file:
                    other = json.loads(file.readline()).get('file')
            except (OSError, ValueError, AttributeError, RecursionError):  # nothing of ours
                continue
            if isinstance(other, str) and other != self.source:
                other = one_line(other)[:500]
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
            text, _, expected = line.rpartition(b', "checksum": "')
            text += b'}'
            checksum = zlib.crc32(text, checksum)
            if expected != b'%08x"}' % checksum:
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

    def write(self, predictions):
        """Add the predictions for the rest as they come; at the end the shard is complete."""
        if self.is_complete:
            return
        unfinished = f'{self.shard}.unfinished'
        try:
            with (
                lock(unfinished) as check_in_place,
                open(unfinished, 'a', encoding='utf-8', newline='') as file,
            ):
                if (self._lines(unfinished) or []) != self.lines:
                    raise UserError(f'{self.path}: another run has been at work here; run again')
                kept = sum(len(line.encode()) for line in self._with_checksums(self.lines))
                file.truncate(kept if self.lines else 0)
                texts = itertools.chain(self.lines, self._texts(predictions), [COMPLETE])
                lines = self._with_checksums(texts)
                for line in itertools.islice(lines, len(self.lines) + 1 if self.lines else 0, None):
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                check_in_place()  # another run's would pass for a complete one
                os.replace(unfinished, self.shard)
        except OSError as error:
            reason = f'cannot be written ({error.strerror}); make room and run again'
            raise UserError(f'{self.path}: {reason}') from None

    def _texts(self, predictions):
        for prediction in predictions:
            if self.source:
                prediction = {**prediction, 'file': self.source}
            yield json.dumps(prediction, ensure_ascii=False)

    def join(self):
        """Wait for all shards. Returns the lines of JSON of all, in the records' order."""
        names = [self._shard(rank) for rank in range(self.world_size)]
        while True:
            shards = [self._lines(name, complete=True) for name in names]
            missing = [name for name, lines in zip(names, shards, strict=True) if lines is None]
            if not missing:
                break
            for name in missing:
                if modified_at(name) not in (None, self.modified_before.get(name)):
                    other = 'answered with other weights, constants or questions than the first'
                    raise UserError(f'{name}: {other}; give all workers the same')
            log(f'waiting for {", ".join(missing)}')
            time.sleep(5)
        lines = itertools.chain.from_iterable(itertools.zip_longest(*shards))
        return [line for line in lines if line is not None]

    def remove(self):
        """Remove all shards, once what they are joined to is on the disk."""
        for name in self._shards():
            os.remove(name)


def modified_at(path):
    """Return when a file was last modified, in nanoseconds; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_mtime_ns


def predict_shard(shard, data, predict, scores):
    """Predict for those records of a Shard that lack it, with a bar on standard error.

    data: list of all records; predict: function of a list of records that yields the prediction for
    each; scores: Scores, with which the bar shows the score so far.
    """
    mine, tally = data[shard.rank :: shard.world_size], Tally()
    if shard.lines:
        log(f'{shard.path}: {len(shard.lines)} of {len(mine)} questions are answered already')
    with tqdm(total=len(mine), desc='reading', unit='question', file=sys.stderr) as progress:

        def show(prediction):
            progress.update()
            score = scores.of(prediction)
            if score:
                tally.add(score)
                progress.set_postfix(tally.result(), refresh=False)

        def rest():
            for prediction in predict(mine[len(shard.lines) :]):
                show(prediction)
                note = defect_of(prediction, f'{os.path.basename(shard.name)}.tsv')
                if note:
                    tqdm.write(note, file=sys.stderr)  # above the bar
                yield prediction

        for line in shard.lines:
            show(json.loads(line))
        shard.write(rest())


def defect_of(prediction, name):
    """Return what to say of a record that lacks something, '' if nothing; name: of a file."""
    if not prediction['id']:
        line = f'a record without id has no line in {name}'
        return f'{line}, its question is {prediction["question"]!r}'
    if 'error' in prediction:
        return f'record {prediction["id"]!r} has {prediction["error"]}; it gets the empty answer'
    return ''


# ----------------------------------------------------------------------------- records as they come


def print_stream(stream, predict, passage_text):
    """Print the predictions for records as they come, see `predict_stream`, a line of JSON each."""
    for prediction in predict_stream(stream, predict, passage_text):
        print(escaped(json.dumps(prediction, ensure_ascii=False)), flush=True)


def predict_stream(stream, predict, passage_text):
    """Yield the prediction for each line as they come: all that are there at once.

    stream: standard input, a JSON record a line; predict: as of `predict_shard`; passage_text: see
    `records.load_questions`. A line that is no record gets {'error': what is wrong with it}. Raises
    UserError where the stream is closed.
    """
    if stream is None or getattr(stream, 'closed', False):
        raise UserError('standard input: closed; give records, one line of JSON each')
    number = 0
    try:
        arriving = _arriving(stream.fileno())
    except (OSError, AttributeError):  # it is no file, but all in memory
        arriving = [stream.read().encode().splitlines()]
    for lines in arriving:
        parsed = [parse_line(line, number + i, passage_text) for i, line in enumerate(lines, 1)]
        number += len(lines)
        predictions = predict([record for record in parsed if isinstance(record, dict)])
        for record in parsed:
            yield next(predictions) if isinstance(record, dict) else {'error': record}


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
