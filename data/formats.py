"""Public files of questions, passages and answers, read in the formats they come in.

FORMATS has a row for each: the keys that tell it, the function that makes Questions of a record.
"""

import collections
import functools
import gzip
import itertools
import json
import re
import typing
import zlib

from evaluate_sogou import UserError
from support.files import GZIP, decoded, read_bytes, refuse_foreign
from support.records import HALF_CHARACTER, NO_ANSWERS, SEPARATORS, values_of

KINDS = {dict: 'a record', list: 'a list', str: 'a string', bool: 'true or false'}
LATIN = '[A-Za-z0-9\u00c0-\u024f]'
# how public files call the same thing
IDS = 'id', '_id', 'query_id', 'question_id', 'qid'
QUESTIONS = 'question', 'query', 'user_input', 'input'
RIGHT = (  # of the first that a record has any of; what stands beside `ground_truth` is a system's
    ('ground_truth', 'ground_truths', 'reference'),
    ('answers', 'answer', 'golden_answers', 'answer_aliases'),
)
NEGATIVES = 'negative_ctxs', 'hard_negative_ctxs'
PASSAGES = (
    'context', 'contexts', 'passage', 'passages', 'paragraphs', 'documents', 'retrieved_contexts',
    'reference_contexts', 'ctxs', 'positive_ctxs', *NEGATIVES,
)  # fmt: skip
TEXTS = (
    'text', 'passage', 'passage_text', 'paragraph_text', 'contents', 'content', 'page_content',
    'context', 'sentences',
)  # fmt: skip
# 0 or false where a passage gives no answer
MARKS = 'hasanswer', 'has_answer', 'is_selected', 'is_supporting'


class Question(typing.NamedTuple):
    """A question as it is found."""

    id: str  # '' where it has none
    text: str
    passages: list  # of (text, list of the answers it may give)
    accepted: list  # of all answers that count as right, the standard one first


class Format(typing.NamedTuple):
    """A row of FORMATS."""

    name: str
    keys: tuple  # that tell it; `a|b` is either, `a.b` a key of what stands under a
    read: typing.Callable  # of a record, a dict, and {reason: what is left out}; yields Questions
    by_text: bool = False  # the same text is the same question, whatever its id
    as_it_stands: bool = False  # a passage's answer is given, not sought


class Source(typing.NamedTuple):
    """What a file holds."""

    name: str  # of its format
    questions: list  # of Question, each id and text once
    as_it_stands: bool  # whether a passage's answer is the one of its list, not to be sought
    left_out: collections.Counter  # {reason: how many}


# ----------------------------------------------------------------------------- pieces of a record


def _typed(value, expected, name):
    """Return a value of the expected type; the empty one where there is none."""
    if value is None:
        return expected()
    if not isinstance(value, expected):
        kind = KINDS.get(type(value), 'a number')
        raise UserError(f'"{name}" is {kind}; expected {KINDS[expected]}')
    if expected is str and re.search(HALF_CHARACTER, value):
        raise UserError(f'"{name}" holds half a character (a lone surrogate); mend the text')
    return value


def _field(record, name, expected=str):
    return _typed(record.get(name), expected, name)


def _list(record, name, of=dict):
    return [_typed(value, of, name) for value in _field(record, name, list)]


def _as_list(value):
    return value if isinstance(value, list) else [value]


def _written(value, name):
    """Return a string or a number as a string."""
    return str(value) if type(value) in (int, float) else _typed(value, str, name)


def _id(record, name='id'):
    return re.sub('[\t\r\n\ufeff]', ' ', _written(record.get(name), name)).strip()


def _answer(value, name='answer'):
    """Return an answer, a text or a list of parts, its parts separated by a space.

    Its own 、, ； and ， become spaces too. Training looks for the parts one by one in a passage
    where each of these is a comma, so a part that kept one would never be found; then it joins the
    parts by commas, which is how they stand there.
    """
    parts = [re.sub(SEPARATORS, ' ', _written(part, name)).strip() for part in _as_list(value)]
    return ' '.join(part for part in parts if part and part.lower() not in NO_ANSWERS)


def _answers(record, name, are_parts=False):
    """Return the answers of a list of alternatives, of {"text": such a list}, or one alone.

    are_parts: whether the list is rather one of parts; a list in it is spellings of one.
    """
    value = record.get(name)
    value = value.get('text', value) if isinstance(value, dict) else value
    values = [
        each.get('text', each) if isinstance(each, dict) else each for each in _as_list(value)
    ]
    alternatives = [values] if are_parts and value == values else map(_as_list, values)
    return [answer for parts in alternatives for answer in _spellings(parts, name)]


def _accepted(record, parts=None):
    """Return all answers of a record that count as right; parts: the name of a list of parts."""
    said = [str(record.get(name)).lower() for name in ('is_impossible', 'answerable')]
    if said[0] in ('true', '1') or said[1] in ('false', '0'):
        return []
    names = next((names for names in RIGHT if {*names} & {*record}), ())
    return [answer for name in names for answer in _answers(record, name, name == parts)]


def _spellings(parts, name='answer'):
    """Return all spellings of an answer, given its parts, each a text or a list of spellings."""
    choices = [[*filter(None, (_answer(each, name) for each in _as_list(part)))] for part in parts]
    spelt = (' '.join(choice) for choice in itertools.product(*filter(None, choices)))
    return [*filter(None, spelt)]


def _entries(record, name):
    """Yield passages as records; they may be columns, texts, or [title, sentences]."""
    value = record.get(name)
    if isinstance(value, dict):
        columns = {key: column for key, column in value.items() if isinstance(column, list)}
        rows = itertools.zip_longest(*columns.values())
        value = [dict(zip(columns, row, strict=True)) for row in rows] if columns else [value]
    for entry in _as_list(value):
        if isinstance(entry, list) and [*map(type, entry)] == [str, list]:
            entry = dict(zip(('title', 'sentences'), entry, strict=True))
        yield _typed({'text': entry} if isinstance(entry, str) else entry, dict, name)


def _first(record, names):
    return next((name for name in names if record.get(name) is not None), names[0])


def _text(entry):
    """Return the text of a passage, its sentences joined."""
    name = _first(entry, TEXTS)
    if not isinstance(entry.get(name), list):
        return _field(entry, name)
    # some bring their spaces along; Chinese has none
    return re.sub('(?<=[!-~])\n(?=[!-~])', ' ', '\n'.join(_list(entry, name, str))).replace(
        '\n', ''
    )


def _joined_words(value, name):
    """Return a text without the spaces of its segmentation, but for those between Latin words."""
    return re.sub(f'(?<!{LATIN}) +| +(?!{LATIN})', '', _written(value, name))


# ----------------------------------------------------------- readers: always one Question or more


def _read_ours(record, left_out):
    """An answer is what `records.load_questions` makes of it."""
    passages = []
    for passage in _entries(record, 'passages'):
        if isinstance(passage.get('answer'), list):
            answer = ' '.join(filter(None, map(str.strip, _list(passage, 'answer', str))))
        else:
            answer = _field(passage, 'answer')
        is_answer = answer and answer.strip().lower() not in NO_ANSWERS
        passages.append((_text(passage), [answer] if is_answer else []))
    yield Question(_id(record), _field(record, 'question'), passages, [])


def _read_context(record, left_out, context='context', question='question', question_id='id'):
    """A context and the questions about it; the offsets of answers are too often wrong."""
    passage = _field(record, context)
    for asked in _list(record, 'qas') or [{}]:  # a context without questions is told of
        answers, text = _accepted(asked), _field(asked, question)
        yield Question(_id(asked, question_id), text, [(passage, answers)], answers)


def _read_squad(record, left_out):
    for paragraph in _list(record, 'paragraphs') or [{}]:
        yield from _read_context(paragraph, left_out)


def _read_dureader(record, left_out):
    """Entities come first, which are short; fake answers, found by a program, only in passages."""
    accepted = _answers(record, 'entity_answers') + _accepted(record)
    sought = accepted + _answers(record, 'fake_answers')
    documents = _list(record, 'documents')
    passages = [(text, sought) for entry in documents for text in _list(entry, 'paragraphs', str)]
    yield Question(_id(record, 'question_id'), _field(record, 'question'), passages, accepted)


def _read_webqa_tokens(record, left_out):
    """Golden answers stand on every evidence: only those marked positive give them."""
    passages, accepted = [], []
    for evidence in _list(record, 'evidences'):
        golden = _list(evidence, 'golden_answers', list)
        joined = [''.join(_written(token, 'golden_answers') for token in each) for each in golden]
        answers = [*filter(None, map(_answer, joined))]
        text = ''.join(_list(evidence, 'evidence_tokens', str))
        passages.append((text, answers if evidence.get('type') in (None, 'positive') else []))
        accepted += answers
    text = ''.join(_list(record, 'question_tokens', str))
    yield Question(_id(record, 'q_key'), text, passages, accepted)


def _read_webqa_texts(record, left_out):
    evidences = _list({'evidences': [*_field(record, 'evidences', dict).values()]}, 'evidences')
    passages = [(_field(each, 'evidence'), _answers(each, 'answer')) for each in evidences]
    accepted = [answer for _, answers in passages for answer in answers]
    yield Question(_id(record), _field(record, 'question'), passages, accepted)


def _read_rgb(record, left_out):
    """Negative passages give no answer, whatever they hold; forged ones are not read.

    Where several facts are asked at once, each list of positive passages gives one of them.
    """
    answer, positive = (
        record.get(_first(record, ('answer', 'answers'))),
        _field(record, 'positive', list),
    )
    accepted = _spellings(_as_list(answer))
    groups = [(positive, accepted)]
    if any(isinstance(group, list) for group in positive):
        first, second = (_field(record, name, list) for name in ('asnwer1', 'answer2'))  # so spelt
        facts = [first, second] if second else [[part] for part in first]
        if len(facts) != len(positive):
            raise UserError('"asnwer1" and "answer2" are not one for each list of "positive"')
        groups = zip(_list(record, 'positive', list), map(_spellings, facts), strict=True)
    passages = [(_typed(text, str, 'positive'), may) for group, may in groups for text in group]
    passages += [(text, []) for text in _list(record, 'negative', str)]
    forged = _field(record, 'positive_wrong', list)
    left_out['passages with a forged answer ("positive_wrong")'] += len(forged)
    yield Question(_id(record), _field(record, 'query'), passages, accepted)


def _read_domainrag(record, left_out):
    """The year asked about and the earlier turns of a conversation have no place in ours."""
    answers = map(_as_list, _field(record, 'answers', list))
    answers = [[_joined_words(part, 'answers') for part in parts] for parts in answers]
    answers = [*filter(None, map(_answer, answers))]
    given = {'positive_reference': _as_list(record.get('positive_reference'))}
    entries = _list(given, 'positive_reference') + _list(record, 'retrieved_psgs')
    texts = {_joined_words(entry.get('contents'), 'contents'): answers for entry in entries}
    left_out['passages that were given and retrieved'] += len(entries) - len(texts)
    left_out['years asked about ("date")'] += bool(record.get('date'))
    left_out['earlier turns ("history_qa")'] += len(_field(record, 'history_qa', list))
    yield Question(_id(record), _field(record, 'question'), [*texts.items()], answers)


def _read_any(record, left_out):
    """A question, its passages and its answers, which stand side by side."""
    answers, passages = _accepted(record, parts='answer'), []
    titles = _titles(record.get('supporting_facts'))
    for name in (name for name in PASSAGES if record.get(name) is not None):
        for entry in _entries(record, name):
            may_give = _answers(entry, 'answer', True) if 'answer' in entry else answers
            if (titles and entry.get('title') not in titles) or name in NEGATIVES:
                may_give = []
            if any(str(entry.get(mark)).lower() in ('false', '0') for mark in MARKS):
                may_give = []
            passages.append((_text(entry), may_give))
    text = _field(record, _first(record, QUESTIONS))
    passages = passages or [('', [])]  # which is told of
    yield Question(_id(record, _first(record, IDS)), text, passages, answers)


def _titles(facts):
    """Return the titles of passages that are needed, by HotpotQA's [title, sentence] or columns."""
    if isinstance(facts, dict):
        return _as_list(facts.get('title'))
    return [each[0] for each in _as_list(facts or []) if isinstance(each, list) and each]


CMRC2018 = {'context': 'context_text', 'question': 'query_text', 'question_id': 'query_id'}
FORMATS = [
    Format('our own format', ('question', 'passages.answer'), _read_ours, as_it_stands=True),
    Format('CMRC2018', ('context_text', 'qas'), functools.partial(_read_context, **CMRC2018)),
    Format('MuSiQue', ('question', 'paragraphs.paragraph_text'), _read_any),
    Format('SQuAD', ('paragraphs',), _read_squad),
    Format('DuReader 2.0', ('question', 'documents.paragraphs'), _read_dureader),
    Format('HotpotQA', ('question', 'context', 'supporting_facts'), _read_any),
    Format('WebQA in tokens', ('question_tokens', 'evidences'), _read_webqa_tokens),
    Format('WebQA in texts', ('question', 'evidences'), _read_webqa_texts),
    Format('RGB', ('query', 'answer|answers', 'positive', 'negative'), _read_rgb),
    Format('DomainRAG', ('question', 'positive_reference', 'answers|answer'), _read_domainrag),
    Format('FiD or DPR', ('question', 'ctxs|positive_ctxs'), _read_any),
    Format('MS MARCO', ('query|question', 'passages.passage_text'), _read_any),
    Format(
        'ragas',
        ('question|user_input', 'contexts|retrieved_contexts|reference_contexts'),
        _read_any,
    ),
    Format('LongBench', ('input', 'context'), _read_any),
    Format('Hugging Face datasets', ('question', 'context', 'answers'), _read_any),
    Format('flat lines', ('context|passage', 'question|query', 'answer'), _read_any, by_text=True),
    Format('questions and passages', ('|'.join(QUESTIONS), '|'.join(PASSAGES)), _read_any),
]

# -------------------------------------------------------------------------------------- the file


# a control character in a string spoils nothing; NaN is how tables write that nothing is there
DECODER = json.JSONDecoder(strict=False, parse_constant=lambda name: None)


def _decoded(path):
    """Return the text of a file, gzipped or not, and its encoding."""
    content = read_bytes(path)
    refuse_foreign(path, content, GZIP)
    try:
        return decoded(path, gzip.decompress(content) if content[:2] == b'\x1f\x8b' else content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path}: cannot be read ({error}); download it again') from None


def _records(text, path):
    """Yield the records of lists, tables and {id: record}, and those that stand alone."""
    try:
        for value in values_of(text, DECODER):
            yield from _rows(value)
    except (RecursionError, ValueError) as error:
        raise UserError(f'{path}: no JSON that can be read ({error}); see data/README.md') from None


def _rows(value):
    """Return the records in a value of JSON, also as pandas and `datasets` write their tables."""
    data = value.get('data') if isinstance(value, dict) else value
    if isinstance(data, list):
        names = value.get('columns') if isinstance(value, dict) else None
        is_table = isinstance(names, list) and all(isinstance(row, list) for row in data)
        return [dict(zip(map(str, names), row)) for row in data] if is_table else data  # noqa: B905
    columns = [*value.values()] if isinstance(value, dict) else []
    kinds = {*map(type, columns)}
    if kinds == {list} and len(columns) > 1 and len({*map(len, columns)}) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if kinds != {dict}:
        return [value]
    if all(name.isdigit() for column in columns for name in column):
        return [{name: value[name].get(row) for name in value} for row in columns[0]]
    return [{'id': name, **record} for name, record in value.items()]


def _has(record, key):
    name, _, inner = key.partition('.')
    within = _as_list(record.get(name))
    return name in record and (
        not inner or any(type(each) is dict and inner in each for each in within)
    )


def _format_of(records):
    """Return the Format of the records, the first that any of them has, or None."""
    records = [record for record in records if isinstance(record, dict)]
    for known in FORMATS:
        for record in records:
            if all(any(_has(record, name) for name in keys.split('|')) for keys in known.keys):
                return known
    return None


def read(path):
    """Read a file of one of the FORMATS. Returns a Source.

    Raises UserError where it cannot be read, its format is not known, no question has a passage,
    or something is of another type than its format says.
    """
    text, encoding = _decoded(path)
    records = _records(text, path)
    head = [*itertools.islice(records, 100)]  # one of which must be known
    known = _format_of(head)
    if not known:
        keys = next((record for record in head if isinstance(record, dict)), {})
        keys = ', '.join(repr(key[:30]) for key in [*keys][:10]) or 'none'
        names = '; '.join(row.name for row in FORMATS)
        raise UserError(f'{path}: a format that is not known; keys: {keys}; known: {names}')
    questions, left_out = {}, collections.Counter()
    for number, record in enumerate(itertools.chain(head, records), 1):
        try:
            for question in known.read(_typed(record, dict, 'record'), left_out):
                _add(questions, question, known, left_out)
        except UserError as error:
            raise UserError(f'{path}: record {number} of {known.name}: {error}') from None
    if not questions:
        raise UserError(f'{path}: {known.name}, but no question has a passage; is it whole?')
    questions = [*questions.values()]
    return Source(f'{known.name} in {encoding}', questions, known.as_it_stands, left_out)


def _add(questions, question, known, left_out):
    """Add a question to those of before, {key: Question}, or its passages to the same question."""
    passages = [(text, answers) for text, answers in question.passages if text.strip()]
    left_out['empty passages'] += len(question.passages) - len(passages)
    if not question.text.strip() or not passages:
        lack = 'a passage' if question.text.strip() else 'a question'
        left_out[f'records without {lack}'] += 1
        return
    key = question.text if known.by_text else (question.id or len(questions), question.text)
    earlier = questions.setdefault(key, question._replace(passages=[], accepted=[]))
    before = dict(earlier.passages)
    for text, answers in passages:
        if text in before:
            left_out['passages that came again with their question'] += 1
            before[text].extend(answers)
        else:
            earlier.passages.append((text, [*answers]))
    earlier.accepted.extend(question.accepted)
