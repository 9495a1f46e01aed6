"""Answers and their votes to look at: many as a page, one as text; not how they are made."""

import base64
import collections
import hashlib
import json
import math
import os
import re
import unicodedata

from evaluate_sogou import norm

from .answers import as_dict
from .process import one_line, visible
from .records import id_of

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


def by_votes(passages, prediction):
    """Yield (number, pieces, vote) of each passage, first those that gave most to the answer.

    Then come those that were not asked about it, last those that left. passages: list of str;
    prediction: dict, see `predictions.of_records`. Every second one of the pieces is the answer;
    vote: dict, None where the script asks about other passages.
    """
    votes, text = prediction.get('votes') or [], prediction['text']
    if len(votes) != len(passages):
        votes = [None] * len(passages)

    def rank(number):
        vote = votes[number]
        if vote is None:
            return 0, 0
        if not vote['has_answer']:
            return 2, vote['no_answer_prob']
        return (0, -math.prod(vote['token_probs'])) if vote['token_probs'] else (1, 0)

    for number in sorted(range(len(passages)), key=rank):
        passage, vote = passages[number], votes[number]
        pieces = re.split(f'({re.escape(text)})', passage) if text else [passage]
        if vote and number == prediction['passage']:
            start, end = prediction['start'], prediction['end']
            pieces = [passage[:start], passage[start:end], passage[end:]]
        yield number, pieces, vote


def as_text(answer, passages, tokenizer):
    """Return an Answer and the passages in the order of their votes, the answer in brackets.

    passages: list of str, what was read of them.
    """
    tokens, lines = [*tokenizer.ids_to_tokens(answer.token_ids), '[SEP]'], []
    for number, candidate in enumerate(answer.candidates):
        text, score = visible(candidate.text) or '(none)', candidate.score
        line = f'    or: {text}' if number else f'answer: {text}'
        line += '' if score is None else f' (score {score:.3f})'
        lines.append(line if candidate.finished or not number else f'{line}, not finished')
    for number, pieces, vote in by_votes(passages, as_dict(answer)):
        pieces = [*map(visible, pieces)]
        if vote['has_answer']:
            pairs = zip(tokens, vote['token_probs'], strict=False)  # none where it was not asked
            votes = '  '.join(f'{visible(token)} {prob:.2f}' for token, prob in pairs)
            said = f' votes: {votes}' if votes else ''
            pieces[1::2] = (f'[{piece}]' for piece in pieces[1::2])
        else:
            said = f' left: no answer {vote["no_answer_prob"]:.2f}'
        lines += [f'passage {number + 1}{said}', f'  {"".join(pieces)}']
    return '\n'.join(lines)


# ------------------------------------------------------------------------------------------ a page


def as_html(cases, references, score, tokenizer, constants, dataset=None, comparison=None):
    """Return the page of many predictions, HTML in one str without any link to something outside.

    It shows the first `constants.report` of them, and counts all. cases: yields (record, its
    prediction, the Score of that or None), see `predictions.scored`; references: {id: Reference};
    score: of all, as it is printed. Both are None where right answers are not known.
    """
    read_length = constants.max_p_len - 2  # of a passage, in characters
    questions, outcomes, kinds = [], collections.Counter(), collections.Counter()
    for record, prediction, of_it in cases:
        given = [each['passage'] for each in record.get('passages') or []]
        passages = [*by_votes(given, prediction)]
        reference = references[id_of(prediction)] if of_it else None
        outcome, kind = _outcome_of(prediction, of_it), None
        if of_it and not of_it.correct:
            kind = _kind_of(prediction, reference.variants, passages, read_length)
        outcomes[outcome] += 1
        kinds[kind] += 1
        if len(questions) < constants.report:
            told = _told_of(record, prediction, reference, passages, tokenizer)
            questions.append({**told, 'outcome': outcome, 'kind': kind})
    names = [] if score is None else ['right', 'partly right', 'wrong']
    names += ['answered'] if outcomes['answered'] or score is None else []  # not scored
    found = [kind for kind in KINDS if kinds[kind]]
    content = {
        'total': sum(outcomes.values()),
        'score': score,
        'outcomes': [[name, outcomes[name]] for name in (*names, 'no answer')],
        'kinds': [[kind, KINDS[kind].format(read_length), kinds[kind]] for kind in found],
        'questions': questions,
    }
    return _fill_in(content)


def _outcome_of(prediction, score):
    if score and (score.correct or score.f1):
        return 'right' if score.correct else 'partly right'
    if not prediction['text']:
        return 'no answer'
    return 'wrong' if score else 'answered'


def _kind_of(prediction, variants, passages, read_length):
    """Return what went wrong, one of KINDS; passages: see `by_votes`."""
    answer = one_line(prediction['text'])
    ours, letters = norm(answer), _letters(answer)
    if letters and letters in map(_letters, variants):
        return 'other characters only'
    variants, holding = [*filter(None, map(norm, variants))], []  # votes of those that hold one
    for _, pieces, vote in passages:
        text = norm(''.join(pieces)[:read_length])
        if any(variant in text for variant in variants):
            holding.append(vote)
    if not holding:
        return 'no passage held the answer'
    if any(variant in ours for variant in variants):
        return 'too long'
    if ours and any(ours in variant for variant in variants):
        return 'too short'
    if None in holding:
        return 'no votes'
    has_answer = any(vote['has_answer'] for vote in holding)
    return 'outvoted' if has_answer else 'a passage that holds it left'


def _letters(text):
    """Return a text's letters and numbers, however they are written."""
    text = unicodedata.normalize('NFKC', text).casefold()
    return ''.join(each for each in text if unicodedata.category(each)[0] in 'LN')


def _told_of(record, prediction, reference, passages, tokenizer):
    """Return what the page says of a question, but how it was judged; passages: see `by_votes`."""
    names = 'id', 'question', 'text', 'score', 'passage', 'candidates', 'error'
    told = {name: prediction[name] for name in names if name in prediction}
    if reference:
        told.update(gold=reference.answer, variants=reference.variants)
    told['tokens'] = [*tokenizer.ids_to_tokens(prediction.get('token_ids', [])), '[SEP]']
    told['passages'] = []
    for number, pieces, vote in passages:
        label = record['passages'][number].get('answer')
        entry = {'number': number + 1, 'pieces': pieces, 'label': label}
        told['passages'].append({**entry, **(vote or {})})
    return _rounded(told)


def _rounded(value):
    """Return what JSON can hold, numbers with four digits; None for what is no number in JSON."""
    if isinstance(value, float):
        return float(f'{value:.4g}') if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [*map(_rounded, value)] if isinstance(value, list) else value


def _fill_in(content):
    """Return the page with a content that JSON can hold."""
    with open(TEMPLATE, encoding='utf-8') as file:  # not read_text, which refuses pages
        template = file.read()
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'"
    # nothing else is ever run, whatever the data holds
    for name, text in re.findall('<(style|script)>(.*?)</', template, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy += f"; {name}-src 'sha256-{digest}'"
    data = json.dumps(content, ensure_ascii=False, separators=(',', ':'))
    # what HTML or JavaScript might take for its own, and halves of characters
    data = re.sub('[<>&\u2028\u2029\ud800-\udfff]', lambda m: f'\\u{ord(m[0]):04x}', data)
    before, after = template.replace('{{policy}}', policy).split('{{data}}')
    return f'{before}{data}{after}'
