"""The official score of SogouQA: Accuracy, F1 and their mean, Final.

    python evaluate_sogou.py PREDICTIONS [OUTPUT] [--answers FILE]     against the official answers
    python evaluate_sogou.py PREDICTIONS [OUTPUT] --dataset FILE.json  against the passages' own answers

PREDICTIONS has one `id<TAB>answer` a line. OUTPUT, if given, gets seven columns: id, answer, 1 or 0, F1,
precision, recall, the variant that gave the best F1. The last line of standard output is one JSON object.

The rules are those of the evaluation tool that Sogou published with the data, to the last bit, although
that tool is Python 2: text is Unicode here and bytes there, so only ASCII counts as white space and as case.

Here also lies what else of the project needs no TensorFlow: datasets are read, files written whole, and a predictions
file continued or shared among workers.
"""

import argparse
import collections
import contextlib
import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
import typing

# The official list of punctuation, 128 characters; in a comparison each counts as a space.
PUNCTUATION = (
    '`^~<=>|_-,;:!?/.\'"()[]{}@$*\\&#%+\x7f'
    '…‰※•—‖‘’“”№←↑→↓∴∨∵∶∩∈∑√∞≯≡≮≤≥≈≌⊥⊙⌒□◆◇◎●★☆♀♂¨°·§¤±'
    '\u3000、。〃々〈〉《》「」『』【】〓〔〕〖〗÷×′▲″△∠≠■ˇˉ￣￥＿！＄（），．：；？～﹑￠'
)
ASCII_WHITE_SPACE = ' \t\n\r\v\f'
OFFICIAL_ANSWERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', 'qid_answer_expand')


class UserError(Exception):
    """Something the user can mend: one line that names the place and the cure."""


class Reference(typing.NamedTuple):
    """What counts as right for one question: the standard answer and all accepted variants, in file order."""

    answer: str
    variants: tuple


class Score(typing.NamedTuple):
    """The official verdict on one answer; `variant` is the one of the best F1, or None."""

    correct: bool
    f1: float
    precision: float
    recall: float
    variant: str | None


# ------------------------------------------------------------------------------------------- the score


def _half_width(character):
    code = ord(character)
    if code == 0x3000:
        return ' '
    return chr(code - 0xFEE0) if 0xFF01 <= code <= 0xFF5E else character


def _ascii_lower(character):
    return character.lower() if character.isascii() else character


def _blank(character):
    return ' ' if character in PUNCTUATION else character


def _normal(character):
    character = _blank(_ascii_lower(_half_width(character)))
    return '' if character in ASCII_WHITE_SPACE else character


# Every rule works on single characters, so each chain of rules is one translation table.
_AFFECTED = {*PUNCTUATION, *map(chr, range(0x80)), *map(chr, range(0xFF01, 0xFF5F))}
_LOWER_BLANK = {ord(character): _ascii_lower(_blank(character)) for character in _AFFECTED}
_NORMAL = {ord(character): _normal(character) for character in _AFFECTED}


def norm(text):
    """Return `text` half-width, lower-cased (ASCII only), without punctuation and ASCII white space."""
    return text.translate(_NORMAL)


def parts(text):
    """Return the set of the normal forms of the parts of a list, whatever punctuation joins them."""
    return {norm(part) for part in text.translate(_LOWER_BLANK).split(' ')}


def score_answer(answer, reference):
    """Score one answer by the official rules.

    answer: str, as predicted; reference: a Reference. Returns a Score.
    """
    answer = answer.strip(ASCII_WHITE_SPACE)
    if not answer:
        return Score(False, 0.0, 0.0, 0.0, None)
    variants = dict.fromkeys([*reference.variants, *map(norm, reference.variants)])
    # without a single variant, nothing is right
    correct = bool(variants) and (norm(answer) in variants or parts(answer) == parts(reference.answer))
    best = Score(correct, 0.0, 0.0, 0.0, None)
    answer_characters = collections.Counter(norm(answer))
    for variant in variants:
        variant_characters = collections.Counter(norm(variant))
        common = (answer_characters & variant_characters).total()
        if common:
            precision = common / answer_characters.total()
            recall = common / variant_characters.total()
            f1 = 2 * precision * recall / (precision + recall)
            if f1 > best.f1:
                best = Score(correct, f1, precision, recall, variant)
    return best


class Tally:
    """The running means over the answers scored so far."""

    def __init__(self):
        self.total, self.correct, self.f1 = 0, 0, 0.0

    def add(self, answer, reference):
        """Score one answer with `score_answer` and count it. Returns the Score."""
        score = score_answer(answer, reference)
        self.total += 1
        self.correct += score.correct
        self.f1 += score.f1
        return score

    def result(self):
        """Return {'Accuracy', 'F1', 'Final', 'total'}; all 0 where nothing was scored."""
        accuracy = self.correct / self.total if self.total else 0.0
        f1 = self.f1 / self.total if self.total else 0.0
        return {'Accuracy': accuracy, 'F1': f1, 'Final': (accuracy + f1) / 2, 'total': self.total}


# ------------------------------------------------------------------------------------------- the files


def read_text(path):
    """Return a UTF-8 file without byte order mark. Raises UserError where it is missing, unreadable or not UTF-8."""
    try:
        with open(path, encoding='utf-8', newline='') as file:
            return file.read().removeprefix('\ufeff')  # Windows editors begin a file with it
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not UTF-8 at byte {error.start}; save it as UTF-8') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None


@contextlib.contextmanager
def whole(path):
    """Let a file or a folder be written under another name; it takes its place complete and synced, or not at all.

    Yields the other name. Raises UserError where it cannot be written.
    """
    target = os.path.realpath(path)  # a link stays one
    temporary = os.path.join(os.path.dirname(target), f'.unfinished.{os.path.basename(path)}')
    try:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            yield path  # a device or a pipe, which nothing can take the place of
            return
        _remove(temporary)  # of a run that was killed
        yield temporary
        names = [os.path.join(temporary, name) for name in os.listdir(temporary)] if os.path.isdir(temporary) else []
        for name in *names, temporary:
            _sync(name)
        os.replace(temporary, target)
        _sync(os.path.dirname(target))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # h5py's own has several lines
        raise UserError(f'{path}: cannot be written ({reason}); make room or choose another') from None
    finally:
        _remove(temporary)


def _remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot do so with folders
            raise
    finally:
        os.close(descriptor)


def write_text(path, text):
    """Write a UTF-8 file, all of it or nothing. Raises UserError where it cannot be written."""
    # names of files may be in another encoding
    with (
        whole(path) as temporary,
        open(temporary, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file,
    ):
        file.write(text)


@contextlib.contextmanager
def alone(path):
    """Be the only run that holds a file, made if need be, until the end. Raises UserError where another one does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what is open for writing
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); choose another output_dir') from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'{path}: another run is at work here; wait for its end, or choose another output_dir'
            ) from None
        except OSError as error:  # some file systems have no locks
            log(f'{path}: cannot be locked ({error.strerror}); let no other run work here')
        yield
    finally:
        os.close(descriptor)


class Part:
    """A worker's part of a predictions file, written line by line: whatever interrupts it, it is continued.

    Worker k of n has the records k, k + n, k + 2n, ..., a line each, empty for a record without id. The file's first
    line is `fingerprint`; a part with another one, of other weights or other data, is started afresh.
    """

    def __init__(self, path, fingerprint, worker, workers):
        self.path, self.fingerprint, self.workers = path, fingerprint, workers
        self.name = self._name(worker)
        done, begun = (self._lines(name) for name in (self.name, f'{self.name}.unfinished'))
        self.lines, self.is_complete = (begun or []) if done is None else done, done is not None
        if done is None and begun is None and os.path.exists(f'{self.name}.unfinished'):
            log(f'{path}: begun with other weights, constants or questions; it is started afresh')

    def _name(self, worker):
        return f'{self.path}.{worker}-of-{self.workers}'

    def _lines(self, name):
        try:
            with open(name, 'rb') as file:
                content = file.read()
            complete = content[: content.rfind(b'\n') + 1]  # after the last line feed, half a line at most
            header, *lines = complete.decode('utf-8').split('\n')[:-1]
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise UserError(f'{name}: cannot be read ({error.strerror}); remove it') from None
        return lines if header == self.fingerprint else None

    def write(self, lines):
        """Add the rest of the lines as they come; at the end the part is complete."""
        if self.is_complete:
            return
        unfinished = f'{self.name}.unfinished'
        try:
            with alone(unfinished), open(unfinished, 'a', encoding='utf-8', newline='') as file:
                if (self._lines(unfinished) or []) != self.lines:
                    raise UserError(f'{self.path}: another run has been at work here; run again')
                kept = ''.join(f'{line}\n' for line in (self.fingerprint, *self.lines))
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
            raise UserError(f'{self.path}: cannot be written ({error.strerror}); make room and run again') from None

    def join(self):
        """Wait for the parts of all workers, write them as one file in the order of the records, remove all parts."""
        names, parts = [self._name(worker) for worker in range(self.workers)], [None]
        while None in parts:
            parts = [self._lines(name) for name in names]
            if None in parts:
                log(f'waiting for {", ".join(n for n, part in zip(names, parts, strict=True) if part is None)}')
                time.sleep(5)
        records = itertools.chain.from_iterable(itertools.zip_longest(*parts, fillvalue=''))
        write_text(self.path, ''.join(f'{line}\n' for line in records if line))
        for name in glob.glob(f'{glob.escape(self.path)}.*-of-*'):  # also of a run with more or fewer workers
            os.remove(name)


def fingerprint(contents):
    """Return the SHA-256, in hexadecimal, of all bytes and arrays that `contents` yields."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def worker_position():
    """Return (k, n): this is worker k of n by TF_CONFIG, 0 of 1 without. Raises UserError where it makes no sense."""
    if 'TF_CONFIG' not in os.environ:
        return 0, 1
    try:
        config = json.loads(os.environ['TF_CONFIG'])
        workers = [(kind, i) for kind in ('chief', 'worker') for i in range(len(config['cluster'].get(kind, [])))]
        return workers.index((config['task']['type'], int(config['task']['index']))), len(workers)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            'TF_CONFIG: expected {"cluster": {"worker": [host:port, ...]}, "task": {"type", "index"}}'
        ) from None


def read_lines(path, columns, description):
    """Yield (line number, fields) of a tab-separated file. Raises UserError at a line of another width."""
    text = read_text(path)
    if not text:
        raise UserError(f'{path}: empty; expected one {description} a line')
    for number, line in enumerate(text.removesuffix('\n').split('\n'), 1):
        fields = line.split('\t')
        if len(fields) != columns:
            raise UserError(f'{path}: line {number} has {len(fields) - 1} tabs; expected {description}')
        yield number, fields


def load_official_answers(path):
    """Read `qid_answer_expand`: one `id<TAB>answer<TAB>variant|variant` a line. Returns {id: Reference}."""
    references = {}
    for _, (question_id, answer, variants) in read_lines(path, 3, 'id<TAB>answer<TAB>variant|variant'):
        # the official tool strips the whole line, hence the last column
        references[question_id] = Reference(answer, tuple(variants.rstrip(ASCII_WHITE_SPACE).split('|')))
    return references


def dataset_answers(records):
    """Take the answers of a dataset's own passages as variants, the most frequent as standard answer.

    records: as `load_questions` returns them. Returns {id: Reference}; no answer is right for a question that no
    passage answers.
    """
    references = {}
    for record in records:
        answers = collections.Counter(p['answer'] for p in record.get('passages') or [] if p['answer'])
        standard = answers.most_common(1)[0][0] if answers else ''
        references[record.get('id')] = Reference(standard, tuple(answers))
    return references


def log(message):
    """Print one line to standard error."""
    print(message, file=sys.stderr, flush=True)


def report(error):
    """Print an OSError as one line. Returns the exit status: 1 where standard output cannot be written, else 2."""
    if error.filename:
        log(f'{error.filename}: {error.strerror}')
        return 2
    # whoever read standard output has seen enough, or there is no room for it
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    log(f'standard output: {error.strerror or error}')
    return 1


def load_references(official_answers, dataset, records):
    """Return {id: Reference}: the official answers if that file exists, else the passages' own; say which.

    official_answers, dataset: paths; records: those of the dataset. Raises UserError where an id has no answer.
    """
    if not os.path.isfile(official_answers):
        log(f'scoring against the answers in {dataset}: no {os.path.basename(official_answers)} beside it')
        return dataset_answers(records)
    references = load_official_answers(official_answers)
    unknown = [record['id'] for record in records if record.get('id') and record['id'] not in references]
    if unknown:
        raise UserError(f'{official_answers}: lacks the id {unknown[0]!r} of {dataset}; move it elsewhere')
    log(f'scoring against the official answers in {official_answers}')
    return references


def load_questions(path, labelled=True):
    """Read a dataset: a list of {"id", "question", "passages": [{"passage", "answer"}, ...]}.

    Records that lack an id, a question or passages are kept, see `defects`, and named in one line. Unless
    `labelled`, a passage may lack its answer, which becomes ''. Raises UserError for anything else.
    """
    text = read_text(path)
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        place = f'line {error.lineno}, column {error.colno}'
        cure = 'download it again, see data/README.md' if labelled else 'expected the format of data/README.md'
        raise UserError(f'{path}: not JSON at {place} ({error.msg}); {cure}') from None
    except (RecursionError, ValueError):
        raise UserError(f'{path}: nested too deeply, or a number too long; expected a list of records') from None
    if not isinstance(records, list) or not records:
        raise UserError(f'{path}: expected a list of records with at least one, see data/README.md')
    positions = {}
    for number, record in enumerate(records, 1):
        place = f'{path}: record {number} of {len(records)}'
        _check_record(record, place, labelled)
        question_id = record.get('id')
        if question_id in positions:
            raise UserError(f'{place} has the id {question_id!r} of record {positions[question_id]}; ids must differ')
        if question_id is not None:
            positions[question_id] = number
    named = [f'{i} (no {", no ".join(defects(record))})' for i, record in enumerate(records, 1) if defects(record)]
    if named:
        first = f'record {", ".join(named[:10])}{", ..." if len(named) > 10 else ""}'
        cut_off = '; the file looks cut off' if defects(records[-1]) and len(named) < len(records) else ''
        use = 'used' if labelled else 'answered'
        log(f'{path}: {len(named)} of {len(records)} records lack something and cannot be {use}: {first}{cut_off}')
    return records


def defects(record):
    """Return which of 'id', 'question', 'passages' a record lacks, as a list of names."""
    return [name for name in ('id', 'question', 'passages') if not record.get(name)]


def _check_record(record, place, labelled):
    if not isinstance(record, dict):
        raise UserError(f'{place} is {_kind(record)}; expected {{"id", "question", "passages"}}')
    for name in ('id', 'question'):
        if record.get(name) is not None:
            record[name] = _check_string(record[name], f'{place}: "{name}"')
            if not record[name].strip():
                record[name] = None
    if any(character in (record.get('id') or '') for character in '\t\n\r'):
        raise UserError(f'{place}: "id" holds a tab or a line break; take it out')
    passages = record.get('passages')
    if passages is not None and not isinstance(passages, list):
        raise UserError(f'{place}: "passages" is {_kind(passages)}; expected a list')
    for number, passage in enumerate(passages or [], 1):
        if not isinstance(passage, dict):
            expected = '{"passage", "answer"}' if labelled else '{"passage"}'
            raise UserError(f'{place}: passage {number} is {_kind(passage)}; expected {expected}')
        if not labelled:
            passage['answer'] = passage.get('answer') or ''
        for name in ('passage', 'answer'):
            _check_string(passage.get(name), f'{place}: "{name}" of passage {number}')


def _check_string(value, place):
    if not isinstance(value, str):
        raise UserError(f'{place} is {_kind(value)}; expected a string')
    if not value.isascii() and any('\ud800' <= character <= '\udfff' for character in value):
        raise UserError(f'{place} holds half a character (a lone surrogate); mend the text')
    return value


def _kind(value):
    names = {
        dict: 'a record',
        list: 'a list',
        str: 'a string',
        bool: 'true or false',
        type(None): 'missing or null',
    }
    return names.get(type(value), 'a number')


# ------------------------------------------------------------------------------------------ the command


def evaluate(predictions, references, output=None):
    """Score a predictions file. Returns {'Accuracy', 'F1', 'Final', 'total'}, means over its lines.

    predictions: path; references: {id: Reference}; output: path of the seven columns, or None.
    Raises UserError that names the line for an unknown id or a line without exactly one tab.
    """
    tally, rows = Tally(), []
    for number, (question_id, answer) in read_lines(predictions, 2, 'id<TAB>answer'):
        if question_id not in references:
            raise UserError(
                f'{predictions}: line {number} has the unknown id {question_id!r}; give the answers to these questions'
            )
        score = tally.add(answer, references[question_id])
        variant = str(score.variant).translate(dict.fromkeys(map(ord, '\t\r\n'), ' '))
        values = f'{score.correct:d}\t{score.f1:f}\t{score.precision:f}\t{score.recall:f}'
        rows.append(f'{question_id}\t{answer.strip(ASCII_WHITE_SPACE)}\t{values}\t{variant}\n')
    if output:
        if os.path.exists(output) and os.path.samefile(predictions, output):
            raise UserError(f'{output}: holds the predictions themselves; give another OUTPUT')
        write_text(output, ''.join(rows))
    return tally.result()


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are UserErrors, one line each."""

    def error(self, message):
        """Raise the UserError."""
        raise UserError(f'{message}; see --help')


def main(arguments=None):
    """Run the command line; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument('predictions', metavar='PREDICTIONS')
    parser.add_argument('output', metavar='OUTPUT', nargs='?')
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--answers', metavar='FILE', default=OFFICIAL_ANSWERS, help='default: data/qid_answer_expand')
    source.add_argument('--dataset', metavar='FILE.json', help='take the answers of its passages instead')
    try:
        options = parser.parse_args(arguments)
        if options.dataset:
            references = dataset_answers(load_questions(options.dataset))
        elif options.answers == OFFICIAL_ANSWERS and not os.path.exists(OFFICIAL_ANSWERS):
            raise UserError(f'{OFFICIAL_ANSWERS}: no such file; give --answers FILE or --dataset FILE.json')
        else:
            references = load_official_answers(options.answers)
        result = evaluate(options.predictions, references, options.output)
        print(json.dumps(result, ensure_ascii=False), flush=True)
    except UserError as error:
        log(error)
        return 2
    except OSError as error:
        return report(error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
