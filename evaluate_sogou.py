"""The official score of SogouQA: Accuracy, F1 and their mean, Final.

    python evaluate_sogou.py PREDICTIONS [OUTPUT] [--answers FILE]

PREDICTIONS has `id<TAB>answer` lines, FILE `id<TAB>answer<TAB>variant|variant|...`; if not given it
is the official data/qid_answer_expand, and data/convert.py makes others. The score is one line of
JSON; to standard error goes how many of the questions in FILE were answered. OUTPUT gets a line for
each answer: id, answer, 1 or 0, F1, precision, recall, the variant that gave the best F1.

The rules are those of the tool that Sogou published with the data, to the last bit. Its text is
bytes, so only ASCII counts as white space and as case. This file works alone, from Python 3.8 on.
"""

import argparse
import collections
import contextlib
import json
import os
import sys

# The official list of punctuation, 128 characters; in a comparison each counts as a space.
PUNCTUATION = (
    '`^~<=>|_-,;:!?/.\'"()[]{}@$*\\&#%+\x7f'
    '…‰※•—‖‘’“”№←↑→↓∴∨∵∶∩∈∑√∞≯≡≮≤≥≈≌⊥⊙⌒□◆◇◎●★☆♀♂¨°·§¤±'
    '\u3000、。〃々〈〉《》「」『』【】〓〔〕〖〗÷×′▲″△∠≠■ˇˉ￣￥＿！＄（），．：；？～﹑￠'
)
ASCII_WHITE_SPACE = ' \t\n\r\v\f'
OFFICIAL_ANSWERS = os.path.abspath(os.path.join(__file__, '..', 'data', 'qid_answer_expand'))
# What counts as right for one question: the standard answer and a tuple of variants.
Reference = collections.namedtuple('Reference', 'answer variants')
# The official verdict on one answer; `variant` is the one of the best F1, or None.
Score = collections.namedtuple('Score', 'correct f1 precision recall variant')


class UserError(Exception):
    """Something the user can mend: one line that names the place and the cure."""


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
    """Score one answer against a Reference; without variants nothing is right. Returns a Score."""
    answer = answer.strip(ASCII_WHITE_SPACE)
    if not answer:
        return Score(False, 0.0, 0.0, 0.0, None)
    ours = norm(answer)
    variants = dict.fromkeys([*reference.variants, *map(norm, reference.variants)])
    correct = bool(variants) and (ours in variants or parts(answer) == parts(reference.answer))
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


# --------------------------------------------------------------------------- files and the command


def read_lines(path, columns, form):
    """Yield (line number, fields) of a tab-separated UTF-8 file, or raise a UserError."""
    try:
        with open(path, 'rb') as file:
            text = file.read().decode('utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not UTF-8 at byte {error.start}; unpack or convert it') from None
    except OSError as error:
        cure = 'give --answers' if path == OFFICIAL_ANSWERS else 'check the path'
        raise UserError(f'{path}: cannot be read ({error.strerror}); {cure}') from None
    text = text[1:] if text.startswith('\ufeff') else text  # Windows editors begin a file with it
    lines = text.split('\n')
    for number, line in enumerate(lines[:-1] if text.endswith('\n') else lines, 1):
        fields = line.split('\t')
        if len(fields) != columns:
            raise UserError(f'{path}: line {number} has {len(fields) - 1} tabs; expected {form}')
        yield number, fields


def load_official_answers(path):
    """Read a file in the format of `qid_answer_expand`. Returns {id: Reference}."""
    references = {}
    for _, (name, answer, variants) in read_lines(path, 3, 'id<TAB>answer<TAB>variant|variant'):
        # the official tool strips the whole line, hence the last column
        references[name] = Reference(answer, tuple(variants.rstrip(ASCII_WHITE_SPACE).split('|')))
    return references


def evaluate(predictions, references, output=None):
    """Score a predictions file. Returns {'Accuracy', 'F1', 'Final', 'total'}, means over its lines.

    predictions: path; references: {id: Reference}; output: path of the seven columns, or None.
    Raises UserError that names the line for an unknown id or a line without exactly one tab.
    """
    tally, rows, lines = Tally(), [], collections.Counter()
    for number, (question_id, answer) in read_lines(predictions, 2, 'id<TAB>answer'):
        if question_id not in references:
            place = f'{predictions}: line {number} has the unknown id {question_id!r}'
            raise UserError(f'{place}; give the answers to these questions')
        score = score_answer(answer, references[question_id])
        tally.add(score)
        lines[question_id] += 1
        variant = str(score.variant).translate(dict.fromkeys(map(ord, '\t\r\n'), ' '))
        values = f'{score.correct:d}\t{score.f1:f}\t{score.precision:f}\t{score.recall:f}'
        rows.append(f'{question_id}\t{answer.strip(ASCII_WHITE_SPACE)}\t{values}\t{variant}\n')
    if output:
        write_text(output, ''.join(rows))
    if repeated := [name for name, count in lines.items() if count > 1]:
        several = f'{len(repeated)} ids stand in several lines, such as {repeated[0]!r}'
        say(f'{predictions}: {several}; each line counts')
    say(f'{predictions}: {len(lines)} of {len(references)} questions')
    return tally.result()


def write_text(path, text):
    """Write a UTF-8 file, all of it or nothing. Raises UserError where it cannot be written."""
    if path == '/dev/stdout':  # perhaps a file, which must not be replaced before the score
        sys.stdout.buffer.write(text.encode('utf-8'))
        return
    folder, name = os.path.split(os.path.realpath(path))  # a link stays one
    unfinished = os.path.join(folder, f'.unfinished.{name}')
    is_device = os.path.exists(path) and not os.path.isfile(path)  # or a pipe: nothing replaces it
    try:
        if os.path.islink(unfinished):  # or what it names would be written
            os.remove(unfinished)
        with open(path if is_device else unfinished, 'wb') as file:
            file.write(text.encode('utf-8'))
        if not is_device:
            os.replace(unfinished, os.path.join(folder, name))
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); choose another') from None
    finally:
        if os.path.isfile(unfinished):
            os.remove(unfinished)


def say(message):
    """Print one line to standard error, if somebody listens; names may hold what breaks lines."""
    with contextlib.suppress(OSError):
        print(message if message.isprintable() else repr(message), file=sys.stderr)


def refuse(message):
    """Raise the UserError for a command line that argparse cannot read."""
    raise UserError(f'{message}; see --help')


def score_files():
    """Run the command line: print the score."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.error = refuse
    parser.add_argument('predictions', metavar='PREDICTIONS')
    parser.add_argument('output', metavar='OUTPUT', nargs='?')
    parser.add_argument('--answers', metavar='FILE', default=OFFICIAL_ANSWERS)
    parser.add_argument('--dataset', nargs='?', const='', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dataset is not None:
        raise UserError('--dataset: give --answers; data/convert.py makes them of a dataset')
    inputs = map(os.path.realpath, [options.predictions, options.answers])
    if options.output and os.path.realpath(options.output) in inputs:
        raise UserError(f'{options.output}: holds what is to be read; give another OUTPUT')
    right = load_official_answers(options.answers)
    print(json.dumps(evaluate(options.predictions, right, options.output)))


def main():
    """Run all; return 0, 1 where nobody takes the score, 2 after other errors, 130 after Ctrl-C."""
    nowhere = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115, for streams that are closed
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    try:
        try:
            score_files()
        finally:
            sys.stdout.flush()
    except UserError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say('interrupted')
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would say so once more
        say(f'standard output: {error.strerror}')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
