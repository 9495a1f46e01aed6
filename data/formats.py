"""Public files of questions, passages and answers, read in the formats they come in.

FORMATS has a row for each: the keys that tell it, the function that makes Questions of a record.
"""

import collections
import contextlib
import functools
import gzip
import itertools
import json
import re
import typing
import zlib

from evaluate_sogou import UserError
from support.records import HALF_CHARACTER, NO_ANSWERS, SEPARATORS

KINDS = {dict: 'a record', list: 'a list', str: 'a string', bool: 'true or false'}
LATIN = '[A-Za-z0-9\u00c0-\u024f]'


class Question(typing.NamedTuple):
    """A question as it is found."""

    id: str  # '' where it has none
    text: str
    passages: list  # of (text, list of the answers it may give)
    accepted: list  # of all answers that count as right, the standard one first


class Format(typing.NamedTuple):
    """A row of FORMATS."""

    name: str
    keys: tuple  # that tell it; `a|b` is either
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
    return re.sub('[\t\r\n]', ' ', _written(record.get(name), name)).strip()


def _answer(value, name='answer'):
    """Return an answer, a text or a list of parts, its parts separated by a space.

    Its own 、, ； and ， become spaces too. Training looks for the parts one by one in a passage
    where each of these is a comma, so a part that kept one would never be found; then it joins the
    parts by commas, which is how they stand there.
    """
    parts = [re.sub(SEPARATORS, ' ', _written(part, name)).strip() for part in _as_list(value)]
    return ' '.join(part for part in parts if part and part.lower() not in NO_ANSWERS)


def _answers(record, name):
    """Return the answers of a list of alternatives, some of which may be {"text": answer}."""
    values = _field(record, name, list)
    values = [value.get('text') if isinstance(value, dict) else value for value in values]
    return [answer for value in values if (answer := _answer(value, name))]


def _spellings(parts, name='answer'):
    """Return all spellings of an answer, given its parts, each a text or a list of spellings."""
    choices = [_answers({name: _as_list(part)}, name) or [''] for part in parts]
    spelt = (' '.join(filter(None, choice)) for choice in itertools.product(*choices))
    return [*filter(None, spelt)]


def _joined_words(value, name):
    """Return a text without the spaces of its segmentation, but for those between Latin words."""
    return re.sub(f'(?<!{LATIN}) +| +(?!{LATIN})', '', _written(value, name))


# ----------------------------------------------------------- readers: always one Question or more


def _read_ours(record, left_out):
    """An answer is what `records.load_questions` makes of it."""
    passages = []
    for passage in _list(record, 'passages'):
        if isinstance(passage.get('answer'), list):
            answer = ' '.join(filter(None, map(str.strip, _list(passage, 'answer', str))))
        else:
            answer = _field(passage, 'answer')
        is_answer = answer and answer.strip().lower() not in NO_ANSWERS
        passages.append((_field(passage, 'passage'), [answer] if is_answer else []))
    yield Question(_id(record), _field(record, 'question'), passages, [])


def _read_context(record, left_out, context='context', question='question', question_id='id'):
    """A context and the questions about it; the offsets of answers are too often wrong."""
    passage = _field(record, context)
    for asked in _list(record, 'qas') or [{}]:  # a context without questions is told of
        answers, text = _answers(asked, 'answers'), _field(asked, question)
        yield Question(_id(asked, question_id), text, [(passage, answers)], answers)


def _read_squad(record, left_out):
    for paragraph in _list(record, 'paragraphs') or [{}]:
        yield from _read_context(paragraph, left_out)


def _read_dureader(record, left_out):
    """Entities come first, which are short; fake answers, found by a program, only in passages."""
    accepted = _answers(record, 'entity_answers') + _answers(record, 'answers')
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
    answer, positive = record.get('answer'), _field(record, 'positive', list)
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


def _read_contexts(record, left_out):
    answers, entries = _answers(record, 'answers'), _list(record, 'ctxs')
    may_give = ([] if entry.get('hasanswer') is False else answers for entry in entries)
    passages = [*zip((_field(entry, 'text') for entry in entries), may_give, strict=True)]
    yield Question(_id(record), _field(record, 'question'), passages, answers)


def _read_flat(record, left_out):
    passage = _field(record, 'context') or _field(record, 'passage')
    text = _field(record, 'question') or _field(record, 'query')
    answers = [*filter(None, [_answer(record.get('answer'))])]
    yield Question(_id(record), text, [(passage, answers)], answers)


CMRC2018 = {'context': 'context_text', 'question': 'query_text', 'question_id': 'query_id'}
FORMATS = [
    Format('our own format', ('question', 'passages'), _read_ours, as_it_stands=True),
    Format('CMRC2018', ('context_text', 'qas'), functools.partial(_read_context, **CMRC2018)),
    Format('SQuAD', ('paragraphs',), _read_squad),
    Format('DuReader 2.0', ('question', 'documents'), _read_dureader),
    Format('WebQA in tokens', ('question_tokens', 'evidences'), _read_webqa_tokens),
    Format('WebQA in texts', ('question', 'evidences'), _read_webqa_texts),
    Format('RGB', ('query', 'answer', 'positive', 'negative'), _read_rgb),
    Format('DomainRAG', ('question', 'positive_reference', 'answers'), _read_domainrag),
    Format('FiD or DPR', ('question', 'ctxs'), _read_contexts),
    Format('flat lines', ('context|passage', 'question|query', 'answer'), _read_flat, by_text=True),
]

# -------------------------------------------------------------------------------------- the file


def _decoded(path):
    """Return the text of a file, gzipped or not, and its encoding."""
    try:
        with open(path, 'rb') as file:
            content = file.read()
        content = gzip.decompress(content) if content.startswith(b'\x1f\x8b') else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path}: cannot be read ({reason})') from None
    try:
        return content.decode('utf-8'), 'UTF-8'
    except UnicodeDecodeError as error:
        place = f'{path}: not UTF-8 at byte {error.start}'
    # a damaged UTF-8 file may be valid GB18030 too, but most of it is still UTF-8
    mostly = content.decode('utf-8', 'replace')
    if len(re.findall('[^\x00-\x7f\ufffd]', mostly)) < mostly.count('\ufffd'):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode('gb18030'), 'GB18030'
    raise UserError(f'{place}, nor GB18030; download it again, or save it as UTF-8')


def _values(text, path):
    """Yield the JSON values of a text, one or several."""
    # a control character in a string spoils nothing; NaN is how tables write that nothing is there
    decoder = json.JSONDecoder(strict=False, parse_constant=lambda name: None)
    gap, position = re.compile('[\\s\ufeff]*'), 0
    try:
        while (position := gap.match(text, position).end()) < len(text):
            value, position = decoder.raw_decode(text, position)
            yield value
    except (RecursionError, ValueError) as error:
        raise UserError(f'{path}: no JSON that can be read ({error}); see data/README.md') from None


def _records(text, path):
    """Yield the records of lists, {"data": list} and {id: record}, and those that stand alone."""
    for value in _values(text, path):
        data = value.get('data') if isinstance(value, dict) else value
        if isinstance(data, list):
            yield from data
        elif value and isinstance(value, dict) and {*map(type, value.values())} == {dict}:
            yield from ({'id': name, **record} for name, record in value.items())
        else:
            yield value


def _format_of(records):
    """Return the Format of the first record that has one, or None."""
    for record in records:
        for known in FORMATS if isinstance(record, dict) else []:
            if all(any(name in record for name in keys.split('|')) for keys in known.keys):
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
