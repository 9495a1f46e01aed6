"""The official score of SogouQA: Accuracy, F1 and their mean, Final.

    python evaluate_sogou.py PREDICTIONS [OUTPUT] [--answers FILE]     against the official answers
    python evaluate_sogou.py PREDICTIONS [OUTPUT] --dataset FILE.json  against the passages' own

PREDICTIONS has one `id<TAB>answer` a line. OUTPUT, if given, gets seven columns: id, answer, 1 or
0, F1, precision, recall, the variant that gave the best F1. The score is one line of JSON.

The rules are those of the tool that Sogou published with the data, to the last bit. Its text is
bytes, so only ASCII counts as white space and as case. This file works alone, but for --dataset;
what it shares with the rest, errors of one line and files written whole, is defined here.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import sys
import typing

# The official list of punctuation, 128 characters; in a comparison each counts as a space.
PUNCTUATION = (
    '`^~<=>|_-,;:!?/.\'"()[]{}@$*\\&#%+\x7f'
    '…‰※•—‖‘’“”№←↑→↓∴∨∵∶∩∈∑√∞≯≡≮≤≥≈≌⊥⊙⌒□◆◇◎●★☆♀♂¨°·§¤±'
    '\u3000、。〃々〈〉《》「」『』【】〓〔〕〖〗÷×′▲″△∠≠■ˇˉ￣￥＿！＄（），．：；？～﹑￠'
)
ASCII_WHITE_SPACE = ' \t\n\r\v\f'
PACKED = {  # the first bytes of files that programs have compressed, and what unpacks them
    b'\x1f\x8b': 'gunzip',
    b'PK\x03\x04': 'unzip',
    b'BZh91AY&SY': 'bunzip2',
    b'\xfd7zXZ\x00': 'unxz',
    b'(\xb5/\xfd': 'unzstd',
}
OFFICIAL_ANSWERS = os.path.abspath(os.path.join(__file__, '..', 'data', 'qid_answer_expand'))


class UserError(Exception):
    """Something the user can mend: one line that names the place and the cure."""


class Reference(collections.namedtuple('Reference', 'answer variants')):
    """What counts as right for one question: an answer and all variants, a tuple."""


class Score(typing.NamedTuple):
    """The official verdict on one answer; `variant` is the one of the best F1, or None."""

    correct: bool
    f1: float
    precision: float
    recall: float
    variant: typing.Optional[str]


# --------------------------------------------------------------------------------------- the score

# Every rule works on single characters: {code: what becomes of it}.
HALF_WIDTH = {0x3000: ' ', **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}}
LOWER_CASE = {code: code + 32 for code in range(ord('A'), ord('Z') + 1)}
BLANK = dict.fromkeys(map(ord, PUNCTUATION), ' ')
NO_WHITE_SPACE = dict.fromkeys(map(ord, ASCII_WHITE_SPACE))


def norm(text):
    """Return `text` half-width, lower-cased, without punctuation and white space (ASCII only)."""
    for table in (HALF_WIDTH, LOWER_CASE, BLANK, NO_WHITE_SPACE):
        text = text.translate(table)
    return text


def parts(text):
    """Return the set of the normal forms of the parts of a list, however they are joined."""
    return {norm(part) for part in text.translate(BLANK).split(' ')}


def score_answer(answer, reference):
    """Score one answer, as predicted, against a Reference. Returns a Score."""
    answer = answer.strip(ASCII_WHITE_SPACE)
    if not answer:
        return Score(False, 0.0, 0.0, 0.0, None)
    ours = norm(answer)
    variants = dict.fromkeys([*reference.variants, *map(norm, reference.variants)])
    is_right = ours in variants or parts(answer) == parts(reference.answer)
    correct = bool(variants) and is_right  # without a single variant, nothing is right
    best = Score(correct, 0.0, 0.0, 0.0, None)
    for variant in variants:
        theirs = norm(variant)
        common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
        if common:
            precision, recall = common / len(ours), common / len(theirs)
            f1 = 2 * precision * recall / (precision + recall)
            if f1 > best.f1:
                best = Score(correct, f1, precision, recall, variant)
    return best


class Tally:
    """The running means over some scores."""

    def __init__(self):
        self.total, self.correct, self.f1 = 0, 0, 0.0

    def add(self, score):
        """Count a Score."""
        self.total += 1
        self.correct += score.correct
        self.f1 += score.f1

    def result(self):
        """Return {'Accuracy', 'F1', 'Final', 'total'}; all 0 where nothing was scored."""
        accuracy, f1 = (total / max(self.total, 1) for total in (self.correct, self.f1))
        return {'Accuracy': accuracy, 'F1': f1, 'Final': (accuracy + f1) / 2, 'total': self.total}


def read_lines(path, columns, description):
    """Yield (line number, fields) of a tab-separated file. Raises UserError at another width."""
    text = read_text(path)
    if not text:
        raise UserError(f'{path}: empty; expected one {description} a line')
    lines = text.split('\n')
    for number, line in enumerate(lines[:-1] if text.endswith('\n') else lines, 1):
        fields = line.split('\t')
        if len(fields) != columns:
            place = f'{path}: line {number}'
            raise UserError(f'{place} has {len(fields) - 1} tabs; expected {description}')
        yield number, fields


def load_official_answers(path):
    """Read a file in the format of `qid_answer_expand`. Returns {id: Reference}."""
    references = {}
    for _, (name, answer, variants) in read_lines(path, 3, 'id<TAB>answer<TAB>variant|variant'):
        # the official tool strips the whole line, hence the last column
        variants = variants.rstrip(ASCII_WHITE_SPACE).split('|')
        references[name] = Reference(answer, tuple(variants))
    return references


def evaluate(predictions, references, output=None):
    """Score a predictions file. Returns {'Accuracy', 'F1', 'Final', 'total'}, means over its lines.

    predictions: path; references: {id: Reference}; output: path of the seven columns, or None.
    Raises UserError that names the line for an unknown id or a line without exactly one tab.
    """
    tally, rows = Tally(), []
    for number, (question_id, answer) in read_lines(predictions, 2, 'id<TAB>answer'):
        if question_id not in references:
            place = f'{predictions}: line {number} has the unknown id {question_id!r}'
            raise UserError(f'{place}; give the answers to these questions')
        score = score_answer(answer, references[question_id])
        tally.add(score)
        variant = str(score.variant).translate(dict.fromkeys(map(ord, '\t\r\n'), ' '))
        values = f'{score.correct:d}\t{score.f1:f}\t{score.precision:f}\t{score.recall:f}'
        rows.append(f'{question_id}\t{answer.strip(ASCII_WHITE_SPACE)}\t{values}\t{variant}\n')
    if output:
        if os.path.exists(output) and os.path.samefile(predictions, output):
            raise UserError(f'{output}: holds the predictions themselves; give another OUTPUT')
        write_text(output, ''.join(rows))
    return tally.result()


def tell_of_coverage(predictions, references, dataset):
    """Say where an id stands several times, each of which counts, or not every question counts.

    The official answers are of more questions than a validation has; those of a dataset are not.
    """
    lines = collections.Counter(
        name for _, (name, _) in read_lines(predictions, 2, 'id<TAB>answer')
    )
    repeated = [name for name, count in lines.items() if count > 1]
    if repeated:
        several = f'ids that stand in several lines: {len(repeated):,}, such as {repeated[0]!r}'
        log(f'{predictions}: warning: {several}; each line counts')
    questions = len(references.keys() - {None})  # a record may have no id
    if len(lines) < questions:
        part = f'{len(lines):,} of {questions:,} questions'
        if dataset:
            part = f'warning: answers to {part} of {dataset}; the others do not count'
        log(f'{predictions}: {part}')


# --------------------------------------------------------------------------- files and the command


def read_text(path):
    """Return a UTF-8 file without byte order mark. Raises UserError where it cannot be read."""
    try:
        with open(path, 'rb') as file:
            content = file.read()
        for first_bytes, program in PACKED.items():
            if content.startswith(first_bytes):
                raise UserError(f'{path}: compressed; unpack it with {program}')
        text = content.decode('utf-8')
    except FileNotFoundError:
        raise UserError(f'{path}: no such file; check the path') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not UTF-8 at byte {error.start}; save it as UTF-8') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    return text[1:] if text.startswith('\ufeff') else text  # Windows editors begin a file with it


@contextlib.contextmanager
def atomic_write(path, follow=True):
    """Let a file appear complete or not at all; a folder too, where nothing is of that name.

    follow: whether a link stays one and what it names is replaced, or the link is. Yields another
    name to write it under. Raises UserError where it cannot be written.
    """
    target = os.path.realpath(path) if follow else path
    temporary = os.path.join(os.path.dirname(target), f'.unfinished.{os.path.basename(path)}')
    try:
        if os.path.islink(temporary):  # or what it names would be written
            os.remove(temporary)
        is_ours = not follow and os.path.islink(path)
        usual = is_ours or os.path.isfile(path) or os.path.isdir(path)
        if os.path.exists(path) and not usual:
            yield path  # a device or a pipe, which nothing can take the place of
        else:
            yield temporary
            os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if os.path.isfile(temporary):
            os.remove(temporary)


def cannot_write(path, error):
    """Return the UserError for an OSError that came while a file was written."""
    reason = os.strerror(error.errno) if error.errno else error  # h5py's own has several lines
    return UserError(f'{path}: cannot be written ({reason}); make room or choose another')


def write_text(path, text):
    """Write a UTF-8 file, all of it or nothing. Raises UserError where it cannot be written."""
    with atomic_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(text.encode('utf-8'))


def escaped(text):
    """Return a text with what a terminal would take for a command written out, as \\u001b."""
    commands = '[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]'
    return re.sub(commands, lambda found: f'\\u{ord(found[0]):04x}', text)


def log(message):
    """Print one line to standard error, if somebody listens."""
    with contextlib.suppress(BrokenPipeError):
        print(escaped(str(message)), file=sys.stderr, flush=True)


def open_closed_streams():
    """Let what goes to a standard stream that is closed go nowhere.

    Or messages would go into the next file that is opened, or to standard output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free
    for name in 'stdout', 'stderr':
        stream = getattr(sys, name)
        if stream is None or getattr(stream, 'closed', False):
            nowhere = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115, as long as we live
            setattr(sys, name, nowhere)


def exit_status(command):
    """Call a function without arguments; say in one line what it raises that a user can mend.

    Returns 0; 1 where standard output cannot be written; 2 after other errors; 130 after Ctrl-C.
    """
    open_closed_streams()
    try:
        command()
        sys.stdout.flush()
        return 0
    except UserError as error:
        log(error)
        return 2
    except KeyboardInterrupt as interrupt:
        log(str(interrupt) or 'interrupted; run the same command to continue')
        return 130
    except OSError as error:
        if not error.filename:  # whoever reads standard output has seen enough, or it has no room
            with contextlib.suppress(OSError, AttributeError):  # one of a notebook has no number
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        log(f'{error.filename or "standard output"}: {error.strerror or error}')
        return 2 if error.filename else 1


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are UserErrors."""

    def error(self, message):
        """Raise the UserError, one line."""
        raise UserError(f'{message}; see --help')

    def exit(self, status=0, message=None):
        """Write what --help has said, or nobody would hear that it could not be written."""
        sys.stdout.flush()
        super().exit(status, message)


def main():
    """Run the command line: print the score."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=as_it_stands, allow_abbrev=False)
    parser.add_argument('predictions', metavar='PREDICTIONS')
    parser.add_argument('output', metavar='OUTPUT', nargs='?')
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--answers', metavar='FILE', default=OFFICIAL_ANSWERS)
    source.add_argument('--dataset', metavar='FILE.json')
    options = parser.parse_args()
    if options.dataset:
        # or support would have a copy of this module, with a UserError of its own
        sys.modules.setdefault('evaluate_sogou', sys.modules[__name__])
        sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # not where PYTHONSAFEPATH
        try:
            from support.records import dataset_answers, load_questions
        except ImportError:
            raise UserError('support: missing beside this file; --dataset needs it') from None
        references = dataset_answers(load_questions(options.dataset))
    elif options.answers == OFFICIAL_ANSWERS and not os.path.exists(OFFICIAL_ANSWERS):
        raise UserError(
            f'{OFFICIAL_ANSWERS}: no such file; give --answers or --dataset, see README.md'
        )
    else:
        references = load_official_answers(options.answers)
    result = evaluate(options.predictions, references, options.output)
    tell_of_coverage(options.predictions, references, options.dataset)
    print(json.dumps(result, ensure_ascii=False), flush=True)


if __name__ == '__main__':
    sys.exit(exit_status(main))
