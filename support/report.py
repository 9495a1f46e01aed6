"""Predictions for many questions, as a page to look at; not how they are made."""

import base64
import collections
import hashlib
import json
import math
import os
import re
import unicodedata

from evaluate_sogou import norm

from .console import one_line

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


class Page:
    """The page: the first questions that are added to it, and the counts of all.

    references: {id: Reference}, or None where right answers are not known; tokens_of: function of a
    list of token ids to a list of str; constants: `report`, how many questions the page has, and
    `max_p_len`, of which it is said how much of a passage is read.
    """

    def __init__(self, references, tokens_of, constants):
        self.references, self.tokens_of = references, tokens_of
        self.size, self.read_length = constants.report, constants.max_p_len - 2
        self.questions, self.outcomes = [], collections.Counter()
        self.kinds = collections.Counter()

    def add(self, record, prediction, score):
        """Add the prediction for a record, and its Score, None where the answer is not known."""
        reference = self.references[prediction['id']] if score else None
        outcome, kind = 'answered' if prediction['text'] else 'no answer', None
        if reference:
            outcome, kind = _judge(record, prediction, reference, score, self.read_length)
        self.outcomes[outcome] += 1
        self.kinds[kind] += 1
        if len(self.questions) < self.size:
            shown = _question(record, prediction, reference, self.tokens_of)
            self.questions.append({**shown, 'outcome': outcome, 'kind': kind})

    def as_html(self, result):
        """Return the page, HTML in one str without any link to something outside.

        result: the score of all as it is printed, None where right answers are not known.
        """
        names = [] if result is None else ['right', 'partly right', 'wrong']
        names += ['answered'] if self.outcomes['answered'] or result is None else []  # not scored
        kinds = [kind for kind in KINDS if self.kinds[kind]]
        content = {
            'total': sum(self.outcomes.values()),
            'score': result,
            'outcomes': [[name, self.outcomes[name]] for name in (*names, 'no answer')],
            'kinds': [[k, KINDS[k].format(self.read_length), self.kinds[k]] for k in kinds],
            'questions': self.questions,
        }
        return _fill_in(content)


def _judge(record, prediction, reference, score, read_length):
    """Return the outcome of a prediction and what went wrong, None if nothing."""
    if score.correct:
        return 'right', None
    passages = [passage['passage'][:read_length] for passage in record.get('passages') or []]
    answer, votes = one_line(prediction['text']), _votes(record, prediction)
    kind = _kind_of(answer, reference.variants, passages, votes)
    wrong = 'wrong' if prediction['text'] else 'no answer'
    return 'partly right' if score.f1 else wrong, kind


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
    has_answer = any(votes[i]['has_answer'] for i in holding)
    return 'outvoted' if has_answer else 'a passage that holds it left'


def _letters(text):
    """Return a text's letters and numbers, however they are written."""
    text = unicodedata.normalize('NFKC', text).casefold()
    return ''.join(each for each in text if unicodedata.category(each)[0] in 'LN')


def _votes(record, prediction):
    """Return the votes, one for each of the record's passages, or none."""
    votes = prediction.get('votes') or []  # of other passages where the script asks otherwise
    return votes if len(votes) == len(record.get('passages') or []) else []


def _question(record, prediction, reference, tokens_of):
    """Return what the page says of a question but how it was judged."""
    entry = {name: prediction.get(name) for name in ('id', 'question', 'text', 'error')}
    if reference:
        entry.update(gold=reference.answer, variants=reference.variants)
    if 'error' not in prediction:
        entry['tokens'] = [*tokens_of(prediction['token_ids']), '[SEP]']
        entry['place'] = prediction['passage'] if _votes(record, prediction) else None
        entry['candidates'] = [
            [each['text'], _rounded(each['score']), _rounded(each['log_score']), each['finished']]
            for each in prediction['candidates']
        ]
    entry['passages'] = [*_passages(record, prediction)]
    return entry


def _passages(record, prediction):
    """Yield each passage, in pieces of which every second one is the answer, by their votes."""
    passages, votes = record.get('passages') or [], _votes(record, prediction)

    def rank(i):  # by what it gave to all tokens; not asked; left
        if not votes[i]['has_answer']:
            return 2, votes[i]['no_answer_prob']
        return (0, -math.prod(votes[i]['token_probs'])) if votes[i]['token_probs'] else (1, 0)

    for i in sorted(range(len(passages)), key=rank if votes else None):
        passage, answer = passages[i]['passage'], prediction['text']
        pieces = re.split(f'({re.escape(answer)})', passage) if answer else [passage]
        if votes and i == prediction['passage']:
            start, end = prediction['start'], prediction['end']
            pieces = [passage[:start], passage[start:end], passage[end:]]
        entry = {'number': i + 1, 'pieces': pieces}
        if passages[i].get('answer'):
            entry['label'] = passages[i]['answer']
        if votes and not votes[i]['has_answer']:
            entry['left'] = _rounded(votes[i]['no_answer_prob'])
        elif votes:
            entry['token_probs'] = [*map(_rounded, votes[i]['token_probs'])]
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
