"""Datasets, read and checked: records of a question, its passages and their answers."""

import collections
import json
import numbers
import operator
import os
import re
import typing

from evaluate_sogou import Reference, UserError, load_official_answers

from .console import log
from .files import read_text, write_durably
from .process import rank_and_world_size

SEPARATORS = '[ 、；，]'  # each is read as a comma, see `unify_separators` of the script
NO_ANSWERS = {'no_answer', 'no answer', 'noanswer', '无答案'}
HALF_CHARACTER = '[\ud800-\udfff]'  # a lone surrogate
CONVERT = 'of another form it may be one for python data/convert.py {} NEW.json'
DEEPEST = 100  # levels of a record: what Python reads, it might not be able to write
AS_IT_STANDS = operator.itemgetter('passage')


def load_questions(path, passage_text=AS_IT_STANDS, labelled=True):
    """Read a dataset: a list of {"id", "question", "passages": [{"passage", "answer"}, ...]}.

    passage_text: a function of a passage, a dict, to what is read of it, which takes the place of
    its "passage". Records that lack an id, a question or passages are kept, see `defects`, and
    named in one line. An answer that is a list becomes its parts, separated by one space. Unless
    `labelled`, one that is missing or of another type becomes ''. Raises UserError for anything
    else.
    """
    records = _load(path, labelled)
    for record in records:
        _take_text(record, passage_text)
    return records


def _take_text(record, passage_text):
    for passage in record.get('passages') or []:
        passage['passage'] = passage_text(passage)


def _load(path, labelled):
    records = _load_json(path, labelled)
    if not isinstance(records, list) or not records:
        expected = 'expected a list of records with at least one, see data/README.md'
        raise UserError(f'{path}: {expected}; {CONVERT.format(path)}')
    positions = {}
    for number, record in enumerate(records, 1):
        place = f'{path}: record {number} of {len(records)}'
        _check_record(record, place, labelled)
        question_id = record.get('id')
        if question_id in positions:
            first = f'record {positions[question_id]}'
            raise UserError(f'{place} has the id {question_id!r} of {first}; ids must differ')
        if question_id is not None:
            positions[question_id] = number
    if all(map(unanswerable, records)):
        keys = ', '.join(repr(key[:30]) for key in [*records[0]][:10]) or 'none'
        expected = 'expected "id", "question" and "passages"'
        found = f'no record has question and passages; keys: {keys}'
        raise UserError(f'{path}: {found}; {expected}; {CONVERT.format(path)}')
    _name_incomplete(records, path, labelled)
    _take_as_none(records, path)
    return records


def _take_as_none(records, path):
    """Empty the answers that say that there is none, as some public files do, and say so."""
    count = 0
    for record in records:
        for passage in record.get('passages') or []:
            if passage['answer'].strip().lower() in NO_ANSWERS:
                passage['answer'] = ''
                count += 1
    if count:
        log(f'{path}: {count} answers like "no_answer" are taken as none')


def _load_json(path, labelled):
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        place = f'line {error.lineno}, column {error.colno}'
        cure = 'expected the format of data/README.md'
        if labelled:
            cure = 'download it again, see data/README.md'
        if error.msg == 'Extra data':  # JSON lines, say
            cure = CONVERT.format(path)
        raise UserError(f'{path}: not JSON at {place} ({error.msg}); {cure}') from None
    except (RecursionError, ValueError):
        what = 'nested too deeply, or a number too long'
        raise UserError(f'{path}: {what}; expected a list of records') from None


def parse_line(line, number, passage_text):
    """Return the record that a line of JSON holds, bytes, or what is wrong with it, a str.

    number: of the line; passage_text: see `load_questions`. The record is like those that it
    returns, not labelled.
    """
    try:
        record = json.loads(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
        _check_record(record, f'line {number}', labelled=False)
    except UserError as error:
        return str(error)
    except (RecursionError, ValueError) as error:
        return f'line {number}: not JSON ({error}); expected a record, see data/README.md'
    _take_text(record, passage_text)
    return record


def _name_incomplete(records, path, labelled):
    named = []
    for number, record in enumerate(records, 1):
        if defects(record):
            named.append(f'{number} (no {", no ".join(defects(record))})')
    if named:
        first = f'record {", ".join(named[:10])}{", ..." if len(named) > 10 else ""}'
        last_only = defects(records[-1]) and len(named) < len(records)
        cut_off = '; the file looks cut off' if last_only else ''
        lack = f'{len(named)} of {len(records)} records lack something'
        log(f'{path}: {lack}{" and cannot be used" if labelled else ""}: {first}{cut_off}')


def defects(record):
    """Return which of 'id', 'question', 'passages' a record lacks, as a list of names."""
    return [name for name in ('id', 'question', 'passages') if not record.get(name)]


def unanswerable(record):
    """Return why a record cannot be answered, '' where it can."""
    return ' and '.join(f'no {name}' for name in defects(record) if name != 'id')


def complete(records):
    """Return those of the records that lack nothing."""
    return [record for record in records if not defects(record)]


def _check_record(record, place, labelled):
    if not isinstance(record, dict):
        expected = '{"id", "question", "passages"}'
        raise UserError(f'{place} is {_kind(record)}; expected {expected}')
    for name in ('id', 'question'):
        if record.get(name) is not None:
            record[name] = _check_string(record[name], f'{place}: "{name}"')
            if not record[name].strip():
                record[name] = None
    if any(character in (record.get('id') or '') for character in '\t\n\r\ufeff'):
        what = 'a tab, a line break or a byte order mark'
        raise UserError(f'{place}: "id" holds {what}; take it out')
    if _is_nested(record, DEEPEST):
        raise UserError(f'{place} is nested deeper than {DEEPEST} levels; take out what is')
    passages = record.get('passages')
    if passages is not None and not isinstance(passages, list):
        raise UserError(f'{place}: "passages" is {_kind(passages)}; expected a list')
    for number, passage in enumerate(passages or [], 1):
        if not labelled and isinstance(passage, str):
            passages[number - 1] = passage = {'passage': passage}
        if not isinstance(passage, dict):
            expected = '{"passage", "answer"}' if labelled else '{"passage"}'
            raise UserError(f'{place}: passage {number} is {_kind(passage)}; expected {expected}')
        _check_string(passage.get('passage'), f'{place}: "passage" of passage {number}')
        of_passage = f'{place}: "answer" of passage {number}'
        passage['answer'] = _check_answer(passage.get('answer'), of_passage, labelled)


def _check_answer(answer, place, labelled):
    """Return an answer, the parts of a list separated by one space; '' for what is none."""
    try:
        if not isinstance(answer, list):
            return _check_string(answer, place)
        parts = [_check_string(part, f'{place}: part {i}') for i, part in enumerate(answer, 1)]
        return ' '.join(filter(None, map(str.strip, parts)))
    except UserError:
        if labelled:
            raise
        return ''


def _is_nested(value, levels):
    """Whether a value of JSON is nested deeper than so many levels."""
    if not isinstance(value, (dict, list)):
        return False
    values = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_nested(each, levels - 1) for each in values)


def _check_string(value, place):
    if not isinstance(value, str):
        raise UserError(f'{place} is {_kind(value)}; expected a string')
    if re.search(HALF_CHARACTER, value):
        raise UserError(f'{place} holds half a character (a lone surrogate); mend the text')
    return value


def _kind(value):
    if value is None:
        return 'missing or null'
    kinds = {dict: 'a record', list: 'a list', str: 'a string', bool: 'true or false'}
    return kinds.get(type(value), 'a number')


def as_asked(question, passages, passage_text=AS_IT_STANDS):
    """Return a question and a list of what is read of its passages, str.

    passages: str or {'passage': str}; passage_text: see `load_questions`. Raises TypeError or
    ValueError that names what is wrong.
    """
    # each character of a str would be a passage
    if isinstance(passages, (str, bytes, dict)) or not isinstance(passages, typing.Iterable):
        kind = type(passages).__name__
        raise TypeError(f'passages: expected a list of str, got a {kind}; give [passage]')
    passages = [each if isinstance(each, dict) else {'passage': each} for each in passages]
    texts = [passage.get('passage') for passage in passages]
    named = [('question', question), *((f'passages[{i}]', text) for i, text in enumerate(texts))]
    for name, text in named:
        if not isinstance(text, str):
            raise TypeError(f'{name}: expected a str, got {text!r:.40}')
        if re.search(HALF_CHARACTER, text):
            raise ValueError(f'{name}: holds half a character, a lone surrogate')
    if not question.strip():
        raise ValueError('question: is empty')
    return question, [*map(passage_text, passages)]


def as_width(topk, default):
    """Return a beam width, None for the default. Raises TypeError or ValueError."""
    topk = default if topk is None else topk
    expected = f'topk: expected a whole number of at least 1, got {topk!r}'
    if not isinstance(topk, numbers.Integral):
        raise TypeError(expected)
    if topk < 1:
        raise ValueError(expected)
    return int(topk)


def saved_order(path, drawn):
    """Return the random order of records that is saved at a path; where there is none, save this.

    drawn: list of int; of several workers the first one saves it. Raises UserError where the saved
    one is of other data.
    """
    size = len(drawn)
    if not os.path.exists(path):
        if rank_and_world_size()[0] == 0:
            write_durably(path, json.dumps(drawn) + '\n')
        return drawn
    try:
        order = json.loads(read_text(path))
        if sorted(order) != list(range(size)) or not all(type(i) is int for i in order):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        cure = 'delete it or change output_dir'
        raise UserError(f'{path}: no order of {size} records; {cure}') from None
    return order


def require_data(train_data, valid_data, files):
    """Raise UserError where there is nothing to train on, or no id to validate on."""
    if not train_data:
        raise UserError(f'{files.webqa}: no complete record to train on, nor in {files.sogouqa}')
    if not any(record.get('id') for record in valid_data):  # or it would be noticed after training
        raise UserError(f'{files.sogouqa}: no record with an id to validate on')


def dataset_answers(records):
    """Take the answers of a dataset's own passages as variants, the most frequent as standard.

    records: as `load_questions` returns them. Returns {id: Reference}; no answer is right for a
    question that no passage answers.
    """
    references = {}
    for record in records:
        passages = record.get('passages') or []
        answers = collections.Counter(p['answer'] for p in passages if p['answer'])
        standard = answers.most_common(1)[0][0] if answers else ''
        references[record.get('id')] = Reference(standard, tuple(answers))
    return references


def load_references(files, records):
    """Return {id: Reference}: the official answers if that file exists, else the passages' own.

    files: settings.Files; records: those to validate on. Raises UserError where an id has no
    answer.
    """
    official_answers, dataset = files.official_answers, files.sogouqa
    if not os.path.isfile(official_answers):
        name = os.path.basename(official_answers)
        log(f'scoring against the answers in {dataset}: no {name} beside it')
        return dataset_answers(records)
    references = load_official_answers(official_answers)
    for record in records:
        if record.get('id') and record['id'] not in references:
            lacks = f'lacks the id {record["id"]!r} of {dataset}'
            raise UserError(f'{official_answers}: {lacks}; move it elsewhere')
    log(f'scoring against the official answers in {official_answers}')
    return references
