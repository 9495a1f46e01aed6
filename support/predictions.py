"""Predictions for many questions, a JSON record each: kept, continued, shared out, joined."""

import collections
import glob
import inspect
import itertools
import json
import os
import time

from tqdm import tqdm

from evaluate_sogou import Tally, UserError, score_answer

from .answers import Answer, as_dict
from .files import cannot_write, digest, lock, read_text, write_durably
from .paths import is_lasting
from .process import escaped, log, one_line, rank_and_world_size
from .records import id_of, parse_line, unanswerable
from .report import as_html
from .trained import fixed
from .truncation import cut_off


def of_records(data, answers, warnings):
    """Yield the prediction for each record, a dict that JSON can hold: an Answer, or an error.

    answers: a function of an iterator of those records that can be answered, to their Answers;
    warnings: a function of a record and its Answer, to a list of str, which is left out if empty.
    """
    found = answers(record for record in data if not unanswerable(record))
    for record in data:
        told, said = {'text': '', 'error': unanswerable(record)}, []
        if not told['error']:
            answer = next(found)
            told, said = as_dict(answer), warnings(record, answer)
        told = {**told, 'warnings': said} if said else told
        yield {'id': record.get('id'), 'question': record.get('question'), **told}


def score_of(prediction, references):
    """Return the Score of a prediction, None where its right answer is not known.

    references: {id: Reference}, or None.
    """
    name = id_of(prediction)
    if not references or not name:
        return None
    return score_answer(one_line(prediction['text']), references[name])


# What all predictions come to: a line `id<TAB>answer` for each that has an id; Accuracy, F1, Final,
# total, Answered and, where some questions have no right answer, Unanswerable and Answerable in a
# dict, None where right answers are not known; for each answer whether it was cut off.
Joined = collections.namedtuple('Joined', 'tab_separated score are_cut')


def predict_to_file(
    reader, data, name, shard=(0, 1), source=None, references=None, page=None, with_page=True,
    dataset=None, comparison=None,
):  # fmt: skip
    """Write the prediction for every record to NAME.jsonl, the answers to NAME.tsv, and the page.

    NAME.json says what they are of. An interrupted run is continued. reader: ReadingComprehension;
    shard: (rank, world size) of this process: several share the questions, and the first one joins
    the shards; source: path of the questions, if no other's predictions may replace those for them;
    references: {id: Reference}, or None where right answers are not known; page: path of the page,
    or None; with_page: whether it is made, or an earlier one only goes; dataset: path of the
    questions, to be told; comparison: Comparison to be completed, or None. Returns Joined, None but
    in the first process.
    """
    refuse_others(name, source)
    provenance = provenance_of(reader, data)
    script = read_text(inspect.getfile(type(reader)))  # the vote, and whatever else was edited
    origin = digest([provenance, script, *data])
    rank, world_size = shard
    shards = [Shard(name, k, world_size, data, origin, source) for k in range(world_size)]
    with lock(shards[rank].path):
        own = shards[rank].complete(reader.predict)
        if rank:
            return None
        lines = [b''] * len(data)
        for k, each in enumerate(shards):
            lines[k::world_size] = own if k == rank else each.wait()
        joined = join(scored(data, lines, references), references)
        if comparison:
            comparison.complete(
                [of_it for *_, of_it in scored(data, lines, references)], provenance
            )
        write_durably(f'{name}.tsv', joined.tab_separated)
        for warning in cut_off('answers', joined.are_cut, 'max_a_len', reader.constants):
            log(f'{name}.tsv: {warning}')
        if page and with_page and reader.constants.report:
            told = reader.tokenizer, reader.constants, dataset, comparison
            cases = scored(data, lines, references)
            write_durably(page, as_html(cases, references, joined.score, *told))
        elif page and os.path.exists(page):
            os.remove(page)
            log(f'{page}: removed, as it was of earlier answers; --report=1000 makes another')
        # last: a run that is interrupted before may still be compared with the earlier ones
        text = b''.join(lines).decode()
        provenance.update(dataset=dataset, predictions=digest([text]))
        write_durably(f'{name}.json', json.dumps(provenance, ensure_ascii=False, indent=4) + '\n')
        write_durably(f'{name}.jsonl', text)
        for path in shards_of(name):
            os.remove(path)
    return joined


def provenance_of(reader, data):
    """Return what predictions for records are made of, a dict that JSON can hold."""
    return {
        'constants': {**fixed(reader.constants), 'epochs': reader.constants.epochs},
        'weights': digest(reader.model.weights),
        'questions': digest(map(contents_of, data)),
    }


def contents_of(record):
    """Return the id, the question and the passages of a record, or what it has of them."""
    passages = [each['passage'] for each in record.get('passages') or []]
    return [id_of(record), record.get('question'), passages]


def scored(data, lines, references):
    """Yield (record, prediction, score) of each record, see `score_of`; lines: bytes, of JSON."""
    for record, line in zip(data, lines, strict=True):
        prediction = json.loads(line)
        yield record, prediction, score_of(prediction, references)


def join(cases, references):
    """Return Joined; cases: see `scored`."""
    tab_separated, tally, answerable, silent, are_cut = [], Tally(), Tally(), 0, []
    for _, prediction, score in cases:
        if score:
            tally.add(score)
            reference = references[id_of(prediction)]
            if any([reference.answer, *reference.variants]):
                answerable.add(score)
            else:
                silent += not prediction['text']
        are_cut += [not each['finished'] for each in prediction.get('candidates', [])[:1]]
        if id_of(prediction):
            tab_separated.append(f'{prediction["id"]}\t{one_line(prediction["text"])}\n')
    answered = sum(not line.endswith('\t\n') for line in tab_separated)
    score = {**tally.result(), 'Answered': answered / max(len(tab_separated), 1)}
    if unanswerable := tally.total - answerable.total:
        # there silence is right, though Sogou, which has no such questions, counts it as wrong
        score['Unanswerable'] = {'total': unanswerable, 'Silent': silent / unanswerable}
        score['Answerable'] = answerable.result()
    return Joined(''.join(tab_separated), None if references is None else score, are_cut)


def place_of(line):
    """Return where the predictions for the FILE of a CommandLine go, arguments of the above."""
    stem, _ = os.path.splitext(os.path.basename(line.path))
    name = os.path.join(line.constants.output_dir, f'answers_to_{stem}')
    source = os.path.realpath(line.path) if is_lasting(line.path) else None
    place = {'name': name, 'source': source, 'shard': rank_and_world_size(), 'dataset': line.path}
    return {**place, 'page': f'{name}.html', 'with_page': bool(line.overrides.get('report'))}


# --------------------------------------------------------------------------------------- the shards


class Shard:
    """A process's share of the predictions: whatever interrupts it, it is continued.

    The process of rank k of n has the records k, k + n, k + 2n, ..., a line of JSON each, in a file
    that goes once all are joined. The first line, its header, says of which weights, constants,
    script and questions they are: those of others are made anew.
    """

    def __init__(self, name, rank, world_size, data, origin, source):
        self.path = f'{name}.jsonl.{rank}-of-{world_size}.unfinished'
        self.records, self.of_file = data[rank::world_size], {'file': source} if source else {}
        self.header = _as_line({'origin': origin, **self.of_file})

    def lines(self):
        """Return the header and the lines so far, bytes; [] where there is none or another."""
        try:
            with open(self.path, 'rb') as file:
                if file.readline() != self.header:
                    return []
                pairs = itertools.takewhile(_is_whole, zip(file, self.records, strict=False))
                return [self.header, *(line for line, _ in pairs)]
        except FileNotFoundError:
            return []

    def complete(self, predict):
        """Predict for those records that lack it; a bar shows how many. Returns all lines.

        Each is on the disk before the next is asked for. predict: function of a list of records
        that yields the prediction for each.
        """
        lines = self.lines()
        if not lines and os.path.getsize(self.path):
            log(f'{self.path}: begun with other weights, constants, questions or script; made anew')
        done = max(len(lines) - 1, 0)
        bar = tqdm(initial=done, total=len(self.records), desc='reading', unit='question')
        try:
            with bar, open(self.path, 'a+b') as file:
                file.truncate(sum(map(len, lines)))
                file.write(b'' if lines else self.header)
                for prediction in predict(self.records[done:]):
                    file.write(_as_line({**prediction, **self.of_file}))
                    file.flush()
                    os.fsync(file.fileno())
                    bar.update()
                file.seek(0)
                return file.readlines()[1:]
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def wait(self):
        """Return the lines of all records once they are there; say what is waited for."""
        while len(lines := self.lines()) <= len(self.records):
            log(f'waiting for {self.path}, of the same weights, constants, questions and script')
            time.sleep(5)
        return lines[1:]


def _as_line(value):
    text = json.dumps(value, ensure_ascii=False)
    return f'{text}\n'.encode('utf-8', 'backslashreplace')  # names of files may be in another


def _is_whole(pair):
    """Whether of (line, record) the line is the prediction for the record, written to its end.

    What a kill or a power cut leaves is no JSON; what an editor leaves might lack something.
    """
    line, record = pair
    try:
        prediction = json.loads(line)
        needed = {'text'} if 'error' in prediction else {*Answer._fields}
        is_whole = line.endswith(b'\n') and needed <= prediction.keys()
        is_of_record = prediction['id'] == record.get('id') and isinstance(prediction['text'], str)
        return is_whole and is_of_record
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False


def shards_of(name):
    """Return the paths of all shards, also of a run with more or fewer processes."""
    return glob.glob(f'{glob.escape(name)}.jsonl.*-of-*')


def refuse_others(name, source):
    """Raise UserError where predictions for other questions than `source` would be replaced."""
    for path in [f'{name}.jsonl', *shards_of(name)]:
        try:
            with open(path, encoding='utf-8') as file:
                other = json.loads(file.readline())['file']
        except (OSError, ValueError, TypeError, KeyError, RecursionError):  # nothing of ours
            continue
        if other != source:
            those = f'those to {source}' if source else 'others'
            holds = f'holds the answers to {other!s:.500}, {those} would replace them'
            raise UserError(f'{path}: {holds}; move it, or choose another output_dir')


# ----------------------------------------------------------------------------- records as they come


def print_stream(stream, predict, passage_text):
    """Print the predictions for records as they come, see `predict_stream`, a line of JSON each."""
    try:
        for prediction in predict_stream(stream, predict, passage_text):
            print(escaped(json.dumps(prediction, ensure_ascii=False)), flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('interrupted') from None  # nothing is kept to continue with


def predict_stream(stream, predict, passage_text):
    """Yield the prediction for each line as they come: all that are there at once.

    stream: standard input, a JSON record a line; predict: as of `Shard.complete`; passage_text: see
    `records.load_questions`. A line that is no record gets {'error': what is wrong with it}. Raises
    UserError where the stream is closed.
    """
    if stream is None or getattr(stream, 'closed', False):
        raise UserError('standard input: closed; give records, one line of JSON each')
    try:
        arriving = _arriving(stream.fileno())
    except (OSError, AttributeError):  # it is no file, but all in memory
        arriving = [stream.read().encode().splitlines()]
    numbers = itertools.count(1)
    for lines in arriving:
        parsed = [parse_line(line, next(numbers), passage_text) for line in lines]
        predictions = predict([record for record in parsed if isinstance(record, dict)])
        for record in parsed:
            yield next(predictions) if isinstance(record, dict) else {'error': record}


def _arriving(descriptor):
    """Yield lists of lines, bytes, all that have come since the last one."""
    rest = b''
    while piece := os.read(descriptor, 1 << 20):  # waits for a piece, not for all of it
        *lines, rest = (rest + piece).split(b'\n')
        if lines:
            yield lines
    if rest:
        yield [rest]
