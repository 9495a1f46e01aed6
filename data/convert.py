"""Convert a public file of questions, passages and answers into the format of data/README.md.

    python data/convert.py INPUT OUTPUT [--negatives=N] [--seed=N]
    python data/convert.py INPUT    # only says what it is

INPUT is told by its keys: CMRC2018, SQuAD (DRCD, DuReader-robust), also as Hugging Face `datasets`
write it, DuReader 2.0, WebQA, RGB, DomainRAG, FiD or DPR, HotpotQA, MuSiQue, MS MARCO, ragas,
LongBench, flat lines, our own; JSON, JSON lines or a table, perhaps gzipped, UTF-8 or GB18030.
All answers that count as right go into OUTPUT.answers, for `evaluate_sogou.py --answers`.
"""

import argparse
import collections
import contextlib
import datetime
import itertools
import json
import os
import random
import re
import sys
import typing

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from evaluate_sogou import Reference, UserError
from support.files import durable_write
from support.process import Parser, log, run
from support.records import SEPARATORS, dataset_answers

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from formats import read

from_spreadsheet = re.compile(r'\d+\.0').fullmatch  # it makes that of dates and whole numbers


class Converted(typing.NamedTuple):
    """A file in our own format, and what there is to say about it."""

    records: list  # of {"id", "question", "passages": [{"passage", "answer"}, ...]}
    accepted: dict  # {id: Reference, what counts as right}
    sought: collections.Counter  # {whether a passage holds it: how many answers}
    left_out: collections.Counter  # {reason: how many}


def reading(answer, passage):
    """Return what a passage holds of what an answer may have been, the likeliest; '' if nothing.

    As training does, all parts are looked for, each by itself, where separators are commas. The
    full stop of a sentence may have been added to the answer; a spreadsheet may have made a number
    of a date, or `.0` of a whole number.
    """
    unified, readings = re.sub(SEPARATORS, ',', passage), [answer]
    if answer.endswith('。'):
        readings.append(answer[:-1].rstrip())
    if from_spreadsheet(answer):
        number = answer[:-2]
        if len(number) < 6:  # of days
            date = datetime.date(1899, 12, 30) + datetime.timedelta(int(number))
            readings.append(f'{date.year}年{date.month}月{date.day}日')
        if re.search(rf'(?<![\d.]){number}(?![\d.])', unified):  # not within another number
            readings.append(number)
    held = (each for each in readings if all(part in unified for part in each.split(' ')))
    return next(held, '')


def convert(source):
    """Let each passage give the first of its answers that it holds; one of our own gives its own.

    source: as `formats.read` returns it. Returns Converted.
    """
    converted = Converted([], {}, collections.Counter(), source.left_out)
    repeats = collections.Counter()
    for number, question in enumerate(source.questions, 1):
        held, passages = {}, []
        for text, answers in question.passages:
            found = {answer: reading(answer, text) for answer in answers}
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
        # a number that a spreadsheet made and no passage holds is nobody's answer
        right = [each for each in question.accepted if each in held or not from_spreadsheet(each)]
        right = [*dict.fromkeys(held.get(answer, answer) for answer in right)]
        converted.accepted[name] = Reference(right[0] if right else '', tuple(right))
    if source.as_it_stands:
        converted.accepted.update(dataset_answers(converted.records))
    return converted


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
        answers = {*filter(None, answers), *converted.accepted[record['id']].variants}
        drawn = rng.sample(pool, min(len(pool), 20 * count + 100))
        fit = (
            text
            for text in drawn
            if text not in own and not any(reading(answer, text) for answer in answers)
        )
        chosen = [{'passage': text, 'answer': ''} for text in itertools.islice(fit, count)]
        record['passages'].extend(chosen)
        converted.left_out['negatives, as no more passages fit'] += count - len(chosen)


def as_official_answers(accepted):
    """Return {id: Reference} as the text of a file like `qid_answer_expand`."""
    lines = []
    for name, right in accepted.items():
        answers = [re.sub('[\t\r\n|]', ' ', answer) for answer in (right.answer, *right.variants)]
        lines.append(f'{name}\t{answers[0]}\t{"|".join(answers[1:])}\n')
    return ''.join(lines)


def write(output, converted):
    """Write the records and, where there are any, the answers: both or neither.

    Answers of earlier records go before the new ones come: what a kill leaves may lack them, but
    are never those of others.
    """
    path = os.path.realpath(output) if os.path.isfile(output) else output  # a link stays one
    answers = f'{output}.answers'
    has_answers = any(right.variants for right in converted.accepted.values())
    with contextlib.ExitStack() as stack:
        if has_answers:
            unfinished = stack.enter_context(durable_write(answers))
            with open(unfinished, 'w', encoding='utf-8') as file:
                file.write(as_official_answers(converted.accepted))
        with durable_write(path) as unfinished:
            with open(unfinished, 'w', encoding='utf-8') as file:
                json.dump(converted.records, file, ensure_ascii=False, indent=1)
                file.write('\n')
            with contextlib.suppress(FileNotFoundError):
                os.remove(answers)
                if not has_answers:
                    log(f'{answers}: removed, as it was of earlier records')


def report(converted):
    """Print what was found and what was left out to standard error, one line each."""
    held = [[bool(each['answer']) for each in entry['passages']] for entry in converted.records]
    questions = f'questions: {len(held)}, answered: {sum(map(any, held))}'
    log(f'{questions}; passages: {sum(map(len, held))}, answered: {sum(map(sum, held))}')
    sought = converted.sought
    log(f'answers that no passage holds: {sought[False]} of {sum(sought.values())}')
    left_out = (f'{reason}: {count}' for reason, count in converted.left_out.items() if count)
    log(f'left out: {"; ".join(left_out) or "nothing"}')
    if not sought and not any(map(any, held)):
        log('no answer in it: there is nothing to train on or to score, only to predict')


def whole_number(text):
    """Return a whole number from 0. Raises argparse.ArgumentTypeError for anything else."""
    if not re.fullmatch('[0-9]{1,9}', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0')
    return int(text)


def main():
    """Run the command line."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=as_it_stands, allow_abbrev=False)
    parser.add_argument('input', metavar='INPUT', type=os.path.expanduser)
    parser.add_argument('output', metavar='OUTPUT', type=os.path.expanduser, nargs='?')
    of_others = 'passages of other questions for each question, which give no answer'
    parser.add_argument('--negatives', metavar='N', type=whole_number, default=0, help=of_others)
    parser.add_argument('--seed', metavar='N', type=whole_number, default=42, help='of the draw')
    options = parser.parse_args()
    source = read(options.input)
    for name in (options.output, f'{options.output}.answers') if options.output else ():
        if os.path.isdir(name):  # noticed before the other file is there
            raise UserError(f'{name}: is a folder; give another OUTPUT')
        if os.path.exists(name) and os.path.samefile(name, options.input):
            raise UserError(f'{name}: is what is to be converted; give another OUTPUT')
    converted = convert(source)
    add_negatives(converted, options.negatives, options.seed)
    if options.output:
        write(options.output, converted)
    log(f'{options.input}: {source.name}')
    report(converted)


if __name__ == '__main__':
    sys.exit(run(main))
