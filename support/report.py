"""What the reader told of many questions, as a page to look at; not how it is found."""

import base64
import collections
import hashlib
import json
import math
import os
import re
import unicodedata

from evaluate_sogou import Tally, norm

from .predictions import one_line

TEMPLATE = os.path.join(os.path.dirname(__file__), 'report.html')
KINDS = {  # what went wrong, and what that means; the first one that fits
    'other characters only': 'right but for case, width, punctuation or signs',
    'no passage held the answer': 'not in the first {} characters of any passage',
    'too long': 'a right answer and more',
    'too short': 'a part of a right answer',
    'no votes': 'it was not asked, or not with these passages',
    'a passage that holds it left': 'and so did all others that hold it',
    'outvoted': 'a passage that holds it voted, another answer won',
}


def as_page(data, told, references, tokens_of, read_length, shown):
    """Return the page, HTML in one str without any link to something outside.

    data: list of records; told: iterable of what the reader told of each, see `answers.as_record`;
    references: {id: Reference}, or None where right answers are not known; tokens_of: function of a
    list of token ids to a list of str; read_length: characters of a passage that are read at most;
    shown: how many questions are on the page, the first ones. Score and counts are over all.
    """
    tally, answered, questions = Tally(), 0, []
    outcomes, kinds = collections.Counter(), collections.Counter()
    for record, of_record in zip(data, told, strict=True):
        reference = references.get(of_record['id']) if references and of_record['id'] else None
        outcome, kind = 'answered' if of_record['text'] else 'no answer', None
        if reference:
            answered += outcome == 'answered'
            outcome, kind = _judge(record, of_record, reference, read_length, tally)
        outcomes[outcome] += 1
        kinds[kind] += 1
        if len(questions) < shown:
            told_of = _question(record, of_record, reference, tokens_of)
            questions.append({**told_of, 'outcome': outcome, 'kind': kind})
    names = [] if references is None else ['right', 'partly right', 'wrong']
    names += ['answered'] if outcomes['answered'] or references is None else []  # not scored
    score = {**tally.result(), 'Answered': answered / max(tally.total, 1)}
    content = {
        'total': sum(outcomes.values()),
        'score': None if references is None else score,
        'outcomes': [[name, outcomes[name]] for name in (*names, 'no answer')],
        'kinds': [[k, KINDS[k].format(read_length), kinds[k]] for k in KINDS if kinds[k]],
        'questions': questions,
    }
    return _fill_in(content)


def _judge(record, of_record, reference, read_length, tally):
    """Score an answer with a Tally. Returns its outcome and what went wrong, None if nothing."""
    answer = one_line(of_record['text'])
    score = tally.add(answer, reference)
    if score.correct:
        return 'right', None
    passages = [passage['passage'][:read_length] for passage in record.get('passages') or []]
    kind = _kind_of(answer, reference.variants, passages, _votes(record, of_record))
    outcome = 'partly right' if score.f1 else 'wrong' if of_record['text'] else 'no answer'
    return outcome, kind


def _kind_of(answer, variants, passages, votes):
    """Return what went wrong, one of KINDS; passages: list of str, what was read of them."""
    letters = _letters(answer)
    if letters and letters in map(_letters, variants):
        return 'other characters only'
    ours, variants = norm(answer), [*filter(None, map(norm, variants))]
    passages = [*map(norm, passages)]
    holding = [i for i, text in enumerate(passages) if any(each in text for each in variants)]
    if not holding:
        return 'no passage held the answer'
    if any(each in ours for each in variants):
        return 'too long'
    if ours and any(ours in each for each in variants):
        return 'too short'
    if not votes:
        return 'no votes'
    took_part = any(votes[i]['took_part'] for i in holding)
    return 'outvoted' if took_part else 'a passage that holds it left'


def _letters(text):
    """Return a text's letters and numbers, however they are written."""
    text = unicodedata.normalize('NFKC', text).casefold()
    return ''.join(each for each in text if unicodedata.category(each)[0] in 'LN')


def _votes(record, of_record):
    """Return the votes, one for each of the record's passages, or none."""
    votes = of_record.get('votes') or []  # of other passages where the script asks otherwise
    return votes if len(votes) == len(record.get('passages') or []) else []


def _question(record, of_record, reference, tokens_of):
    """Return what the page says of a question but how it was judged."""
    entry = {name: of_record.get(name) for name in ('id', 'question', 'text', 'error')}
    if reference:
        entry.update(gold=reference.answer, variants=reference.variants)
    if 'error' not in of_record:
        entry['tokens'] = [*tokens_of(of_record['token_ids']), '[SEP]']
        entry['place'] = of_record['passage'] if _votes(record, of_record) else None
        entry['candidates'] = [
            [each['text'], _rounded(each['score']), _rounded(each['log_score']), each['finished']]
            for each in of_record['candidates']
        ]
    entry['passages'] = [*_passages(record, of_record)]
    return entry


def _passages(record, of_record):
    """Yield each passage, in pieces of which every second one is the answer, by their votes."""
    passages, votes = record.get('passages') or [], _votes(record, of_record)

    def rank(i):  # by what it gave to all tokens; not asked; left
        if not votes[i]['took_part']:
            return 2, votes[i]['no_answer']
        return (0, -math.prod(votes[i]['probas'])) if votes[i]['probas'] else (1, 0)

    for i in sorted(range(len(passages)), key=rank if votes else None):
        passage, answer = passages[i]['passage'], of_record['text']
        pieces = re.split(f'({re.escape(answer)})', passage) if answer else [passage]
        if votes and i == of_record['passage']:
            start, end = of_record['start'], of_record['end']
            pieces = [passage[:start], passage[start:end], passage[end:]]
        entry = {'number': i + 1, 'pieces': pieces}
        if passages[i].get('answer'):
            entry['label'] = passages[i]['answer']
        if votes and not votes[i]['took_part']:
            entry['left'] = _rounded(votes[i]['no_answer'])
        elif votes:
            entry['probas'] = [*map(_rounded, votes[i]['probas'])]
        yield entry


def _rounded(number):
    """Return a number with four digits; None where JSON has none for it, as for log 0."""
    return None if number is None or not math.isfinite(number) else float(f'{number:.4g}')


def _fill_in(content):
    """Return the page with a content that JSON can hold."""
    with open(TEMPLATE, encoding='utf-8') as file:
        template = file.read()
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'"
    for name in 'style', 'script':  # nothing else is ever run, whatever the data holds
        text = re.search(f'<{name}>(.*?)</{name}>', template, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy += f"; {name}-src 'sha256-{digest}'"
    data = json.dumps(content, ensure_ascii=False, separators=(',', ':'))
    # what HTML or JavaScript might take for its own, and halves of characters
    data = re.sub('[<>&\u2028\u2029\ud800-\udfff]', lambda m: f'\\u{ord(m[0]):04x}', data)
    before, after = template.replace('{{policy}}', policy).split('{{data}}')
    return f'{before}{data}{after}'
