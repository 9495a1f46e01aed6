"""Convert a public file of questions, passages and answers into the format of data/README.md.

    python data/convert.py INPUT OUTPUT [--negatives=N] [--seed=N]

INPUT is told by its keys: CMRC2018, SQuAD (DRCD, DuReader-robust), DuReader 2.0, WebQA, RGB,
DomainRAG, FiD or DPR, flat lines; JSON or JSON lines, perhaps gzipped, UTF-8 or GB18030. All
answers that count as right go into OUTPUT.answers, for `evaluate_sogou.py --answers`.
"""

import argparse
import collections
import datetime
import itertools
import json
import os
import random
import re
import sys
import typing

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from evaluate_sogou import Parser, UserError, atomic_write, exit_status, log
from support.formats import SEPARATORS, read

SPREADSHEET = r'\d+\.0'  # what a spreadsheet makes of a date, or of a whole number


class Converted(typing.NamedTuple):
    """A file in our own format, and what there is to say about it."""

    records: list  # of {"id", "question", "passages": [{"passage", "answer"}, ...]}
    accepted: dict  # {id: list of the answers that count as right, the standard one first}
    sought: collections.Counter  # {whether a passage holds it: how many answers}
    left_out: collections.Counter  # {reason: how many}


def unify(passage):
    """Return a passage as training looks for answers in it: its separators are commas."""
    return re.sub(SEPARATORS, ',', passage)


def reading(answer, unified):
    """Return what a passage holds of what an answer may have been, the likeliest; '' if nothing.

    As training does, all parts are looked for, each by itself. The full stop of a sentence may
    have been added to the answer; a spreadsheet may have made a number of a date, or `.0` of a
    whole number.
    """
    readings = [answer]
    if answer.endswith('。'):
        readings.append(answer[:-1].rstrip())
    if re.fullmatch(SPREADSHEET, answer):
        number = answer[:-2]
        if len(number) < 6:  # of days
            date = datetime.date(1899, 12, 30) + datetime.timedelta(int(number))
            readings.append(f'{date.year}年{date.month}月{date.day}日')
        if re.search(rf'(?<![\d.]){number}(?![\d.])', unified):  # not within another number
            readings.append(number)
    held = (each for each in readings if all(part in unified for part in each.split(' ')))
    return next(held, '')


def convert(source):
    """Let each passage give the first of its answers that it holds.

    source: as `formats.read` returns it. Returns Converted.
    """
    converted = Converted([], {}, collections.Counter(), source.left_out)
    repeats = collections.Counter()
    for number, question in enumerate(source.questions, 1):
        held, passages = {}, []
        for text, answers in question.passages:
            unified = unify(text)
            found = {answer: reading(answer, unified) for answer in answers}
            held.update((answer, as_read) for answer, as_read in found.items() if as_read)
            given = answers if source.as_it_stands else [*filter(None, found.values())]
            passages.append({'passage': text, 'answer': given[0] if given else ''})
        sought = {answer for _, answers in question.passages for answer in answers}
        converted.sought.update(answer in held for answer in sought or {*question.accepted})
        name = question.id or str(number)
        while name in converted.accepted:
            repeats[question.id] += 1
            name = f'{question.id}#{repeats[question.id] + 1}'
        converted.records.append({'id': name, 'question': question.text, 'passages': passages})
        converted.accepted[name] = [*dict.fromkeys(right_answers(question.accepted, held))]
    return converted


def right_answers(accepted, held):
    """Yield accepted answers as they are read, {answer: reading} where a passage holds it."""
    for answer in accepted:
        if answer in held or not re.fullmatch(SPREADSHEET, answer):  # else nobody gave it
            yield held.get(answer, answer)


def add_negatives(converted, count, seed):
    """Add to each record `count` passages of other questions, which give no answer.

    None of them is its own, none holds an answer that counts as right; where there are too few,
    `left_out` tells. The same seed draws the same.
    """
    rng, records = random.Random(seed), converted.records
    pool = [*dict.fromkeys(each['passage'] for record in records for each in record['passages'])]
    for record in records:
        own = {passage['passage'] for passage in record['passages']}
        answers = {re.sub(SEPARATORS, ' ', passage['answer']) for passage in record['passages']}
        answers = {*filter(None, answers), *converted.accepted[record['id']]}
        drawn = rng.sample(range(len(pool)), min(len(pool), 20 * count + 100))
        fit = (
            pool[place]
            for place in drawn
            if pool[place] not in own
            and not any(reading(answer, unify(pool[place])) for answer in answers)
        )
        chosen = [{'passage': text, 'answer': ''} for text in itertools.islice(fit, count)]
        record['passages'].extend(chosen)
        converted.left_out['negatives, as no more passages fit'] += count - len(chosen)


def as_official_answers(accepted):
    """Return {id: list of answers} as the text of a file like `qid_answer_expand`."""
    lines = []
    for name, answers in accepted.items():
        answers = [re.sub('[\t\r\n|]', ' ', answer) for answer in answers] or ['']
        lines.append(f'{name}\t{answers[0]}\t{"|".join(answers)}\n')
    return ''.join(lines)


def write(output, converted):
    """Write the records and, where there are any, the answers: both or neither."""
    with atomic_write(output) as unfinished:
        with open(unfinished, 'w', encoding='utf-8') as file:
            json.dump(converted.records, file, ensure_ascii=False, indent=1)
            file.write('\n')
        if any(converted.accepted.values()):
            answers = as_official_answers(converted.accepted).encode('utf-8')
            with atomic_write(f'{output}.answers') as unfinished, open(unfinished, 'wb') as file:
                file.write(answers)


def report(converted):
    """Print what was found and what was left out to standard error, one line each."""
    passages = [passage for record in converted.records for passage in record['passages']]
    answered = sum(any(p['answer'] for p in record['passages']) for record in converted.records)
    questions = f'questions: {len(converted.records)}, answered: {answered}'
    answered = sum(bool(passage['answer']) for passage in passages)
    log(f'{questions}; passages: {len(passages)}, answered: {answered}')
    sought = converted.sought
    log(f'answers that no passage holds: {sought[False]} of {sum(sought.values())}')
    left_out = (f'{reason}: {count}' for reason, count in converted.left_out.items() if count)
    log(f'left out: {"; ".join(left_out) or "nothing"}')


def whole_number(text):
    """Return a whole number from 0. Raises argparse.ArgumentTypeError for anything else."""
    if not re.fullmatch('[0-9]{1,9}', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0')
    return int(text)


def main():
    """Run the command line."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=as_it_stands, allow_abbrev=False)
    parser.add_argument('input', metavar='INPUT')
    parser.add_argument('output', metavar='OUTPUT')
    of_others = 'passages of other questions for each question, which give no answer'
    parser.add_argument('--negatives', metavar='N', type=whole_number, default=0, help=of_others)
    parser.add_argument('--seed', metavar='N', type=whole_number, default=42, help='of the draw')
    options = parser.parse_args()
    source = read(options.input)
    for name in (options.output, f'{options.output}.answers'):
        if os.path.isdir(name):  # noticed before the other file is there
            raise UserError(f'{name}: is a folder; give another OUTPUT')
        if os.path.exists(name) and os.path.samefile(name, options.input):
            raise UserError(f'{name}: is what is to be converted; give another OUTPUT')
    converted = convert(source)
    add_negatives(converted, options.negatives, options.seed)
    write(options.output, converted)
    log(f'{options.input}: {source.name}')
    report(converted)


if __name__ == '__main__':
    sys.exit(exit_status(main))
