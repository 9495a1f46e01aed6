"""Datasets, read and checked: records of a question, its passages and their answers."""

import collections
import json
import operator
import os
import re
import shlex
import subprocess
import sys
import typing

from evaluate_sogou import Reference, UserError, load_official_answers

from .files import digest, read_text, write_durably
from .paths import DATA, FILE_NAMES, is_lasting
from .process import log, rank_and_world_size
from .trained import READER

SEPARATORS = '[ 、；，]'  # each is read as a comma, see `unify_separators` of the script
# as some public files have it
NO_ANSWERS = {'no_answer', 'no answer', 'noanswer', 'no answer present.', 'unanswerable', '无答案'}
HALF_CHARACTER = '[\ud800-\udfff]'  # a lone surrogate
AS_IT_STANDS = operator.itemgetter('passage')


def load_questions(path, passage_text=AS_IT_STANDS, labelled=True):
    """Read a list or lines of {"id", "question", "passages": [{"passage", "answer"}, ...]}.

    passage_text: a function of a passage, a dict, to what is read of it, which takes the place of
    its "passage". Records that lack an id, a question or passages are kept, see `defects`, and
    named in one line. An answer that is a list becomes its parts, separated by one space; one that
    says that there is none becomes ''; unless `labelled`, so does one that is missing or of another
    type. Raises UserError for anything else, with the command where data/convert.py knows it.
    """
    try:
        records = _load_json(path)
        for number, record in enumerate(records, 1):
            place = f'{path}: record {number} of {len(records)}'
            _check_record(record, place, passage_text, labelled)
        if all(map(unanswerable, records)):
            expected = 'expected a list of {"id", "question", "passages"}, see data/README.md'
            raise UserError(f'{path}: no records of questions; {expected}')
    except UserError as error:
        command = [sys.executable, os.path.join(DATA, 'convert.py'), '--', path]
        if not is_lasting(path):  # a pipe has nothing more to read
            raise
        known = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if known.returncode:  # else it has told what it would do
            raise
        what, name = str(error).partition('; ')[0], shlex.quote(str(path))
        raise UserError(f'{what}; convert it: python data/convert.py {name} NEW.json') from None
    _require_other_ids(path, records)
    lacking = [number for number, record in enumerate(records, 1) if defects(record)]
    if lacking:
        lack = f'{len(lacking)} of {len(records)} records lack something'
        unused = ' and cannot be used' if labelled else ''
        first = f'record {lacking[0]} has {defects(records[lacking[0] - 1])}'
        cut_off = '; the file looks cut off' if lacking == [len(records)] else ''
        log(f'{path}: {lack}{unused}: {first}{cut_off}')
    return records


def _require_other_ids(path, records):
    ids = collections.Counter(map(id_of, filter(id_of, records)))
    for question_id, count in ids.most_common(1):
        if count > 1:
            raise UserError(f'{path}: {count} records have the id {question_id!r}; ids must differ')


def _load_json(path):
    text = read_text(path)
    try:
        records = [*values_of(text, json.JSONDecoder())]
        records = records[0] if [*map(type, records)] == [list] else records
        for record in records:
            json.dumps(record)  # what Python reads, it might be too deep for it to write
    except (RecursionError, ValueError) as error:
        cure = 'download it again, see data/README.md'
        raise UserError(f'{path}: not JSON ({error}); {cure}') from None
    return records


def values_of(text, decoder):
    """Yield the values of a text of JSON, one or several, lines for instance."""
    gap, position = re.compile('[\\s\ufeff]*'), 0
    while (position := gap.match(text, position).end()) < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value


def parse_line(line, number, passage_text):
    """Return the record that a line of JSON holds, bytes, or what is wrong with it, a str.

    number: of the line; passage_text: see `load_questions`. The record is like those that it
    returns, not labelled.
    """
    try:
        record = json.loads(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
    except (RecursionError, ValueError) as error:
        return f'line {number}: not JSON ({error}); expected a record, see data/README.md'
    try:
        _check_record(record, f'line {number}', passage_text, labelled=False)
    except UserError as error:
        return str(error)
    return record


def defects(record, needed=('id', 'question', 'passages')):
    """Return what a record lacks of what is needed, as 'no id and no question', or ''."""
    has = {**record, 'id': id_of(record)}
    return ' and '.join(f'no {name}' for name in needed if not has.get(name))


def id_of(record):
    """Return the id of a record or a prediction as a text: 7 and "7" are one; '' for none."""
    return '' if record.get('id') is None else str(record['id'])


def unanswerable(record):
    """Return why a record cannot be answered, '' where it can."""
    return defects(record, ('question', 'passages'))


def complete(records):
    """Return those of the records that lack nothing."""
    return [record for record in records if not defects(record)]


def _check_record(record, place, passage_text, labelled):
    """Check a record, and make of it, in place, what `load_questions` says."""
    _require(record, dict, place)
    for name in ('id', 'question'):
        is_number = name == 'id' and type(record.get(name)) is int
        if record.get(name) is not None and not is_number:
            _check_text(record[name], f'{place}: "{name}"')
            if not record[name].strip():
                record[name] = None
    if re.search('[\t\n\r\ufeff]', id_of(record)):
        what = 'a tab, a line break or a byte order mark'
        raise UserError(f'{place}: "id" holds {what}; take it out')
    passages = record.get('passages')
    if passages is not None:
        _require(passages, list, f'{place}: "passages"')
    for number, passage in enumerate(passages or [], 1):
        if not labelled and isinstance(passage, str):
            passages[number - 1] = passage = {'passage': passage}
        _require(passage, dict, f'{place}: passage {number}')
        _check_text(passage.get('passage'), f'{place}: "passage" of passage {number}')
        try:
            of_passage = f'{place}: "answer" of passage {number}'
            passage['answer'] = _checked_answer(passage.get('answer'), of_passage)
        except UserError:
            if labelled:
                raise
            passage['answer'] = ''
        passage['passage'] = passage_text(passage)


def _checked_answer(answer, place):
    """Return an answer, the parts of a list separated by one space; '' for what is none."""
    if isinstance(answer, list):
        for number, part in enumerate(answer, 1):
            _check_text(part, f'{place}: part {number}')
        answer = ' '.join(filter(None, map(str.strip, answer)))
    _check_text(answer, place)
    return '' if answer.strip().lower() in NO_ANSWERS else answer


def _check_text(value, place):
    _require(value, str, place)
    if re.search(HALF_CHARACTER, value):
        cure = 'mend the text, or set PYTHONUTF8=1 where it was typed'
        raise UserError(f'{place}: holds half a character (a lone surrogate); {cure}')


def _require(value, kind, place):
    """Raise UserError for a value of JSON that is not of a Python type."""
    if not isinstance(value, kind):
        expected = {dict: 'a record, {...}', list: 'a list, [...]', str: 'a text, "..."'}[kind]
        got = 'nothing' if value is None else f'{value!r:.40}'
        raise UserError(f'{place}: expected {expected}, got {got}')


def as_asked(question, passages, passage_text=AS_IT_STANDS):
    """Return a question and a list of what is read of its passages, str.

    passages: str or {'passage': str}; passage_text: see `load_questions`. Raises UserError for
    anything else, and for an empty question.
    """
    if isinstance(passages, typing.Iterable) and not isinstance(passages, (str, dict)):
        passages = [dict(each) if isinstance(each, dict) else each for each in passages]
    record = {'question': question, 'passages': passages}
    _check_record(record, 'what is asked', passage_text, labelled=False)
    if not record['question'] or passages is None:
        raise UserError('what is asked: no question or no passages')
    return question, [passage['passage'] for passage in record['passages']]


def saved_order(path, drawn):
    """Return the random order of records that is saved at a path; where there is none, save this.

    drawn: list of int; of several workers the first one saves it. Raises UserError where the saved
    one is of other data.
    """
    if not os.path.exists(path):
        if rank_and_world_size()[0] == 0:
            write_durably(path, json.dumps(drawn) + '\n')
        return drawn
    try:
        order = [*map(operator.index, json.loads(read_text(path)))]  # whole numbers
        if sorted(order) != sorted(drawn):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        cure = 'take the data that it was drawn for, or another output_dir'
        raise UserError(f'{path}: no order of {len(drawn)} records; {cure}') from None
    return order


def questions_digest(records):
    """Return the digest of the ids and questions of records, in their order."""
    return digest([id_of(record), record.get('question')] for record in records)


def require_left_out(constants, valid_data):
    """Raise UserError where questions split off are not those that its training left out.

    constants: their `output_dir` is the reader's. With another order of records, say, most of them
    were trained on.
    """
    path = os.path.join(constants.output_dir, READER)
    if constants.valid_data != 'auto' or not os.path.exists(path):
        return
    left_out = json.loads(read_text(path)).get('left_out', None)
    if left_out not in (None, questions_digest(valid_data)):
        what = 'the data is not that of its training, whose questions it would be scored on'
        raise UserError(f'{path}: {what}; take that, or give other questions as valid_data')


def require_data(train_data, valid_data, files):
    """Raise UserError where there is nothing to train on, or no id to validate on."""
    if not train_data:
        both = ', '.join(dict.fromkeys([*files.webqa, *files.sogouqa]))
        raise UserError(f'{both}: no complete record to train on')
    if not any(map(id_of, valid_data)):  # or it would be noticed after training
        what = f'none of the {len(valid_data)} records to validate on has an id'
        raise UserError(f'{files.dataset}: {what}')


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
        references[id_of(record)] = Reference(standard, tuple(answers))
    return references


def load_references(files, records):
    """Return {id: Reference}: of the files of answers if all exist, else the passages' own.

    files: paths.Files; records: those of its sogouqa. Raises UserError where an id has no answer,
    or several records have it.
    """
    paths = ', '.join(files.official_answers)
    _require_other_ids(files.dataset, records)
    missing = [path for path in files.official_answers if not os.path.isfile(path)]
    if missing:
        beside = f'no {os.path.basename(missing[0])} beside it'
        log(f'scoring against the answers in {files.dataset}: {beside}')
        return dataset_answers(records)
    references = {}
    for path in files.official_answers:
        references.update(load_official_answers(path))
    for record in records:
        if id_of(record) and id_of(record) not in references:
            lacks = f'lacks the id {id_of(record)!r} of {files.dataset}'
            raise UserError(f'{paths}: {lacks}; move it elsewhere')
    official = 'official ' * (os.path.basename(paths) == FILE_NAMES['official_answers'])
    log(f'scoring against the {official}answers in {paths}')
    return references
