"""Answers and their votes to look at: many as a page, one as text; not how they are made."""

import base64
import collections
import hashlib
import itertools
import json
import math
import operator
import os
import re
import unicodedata

from evaluate_sogou import norm

from .answers import Vote, as_dict, sureness
from .process import one_line, visible
from .records import SEPARATORS, id_of
from .truncation import is_longer

TEMPLATE = os.path.join(os.path.dirname(__file__), 'report.html')
SETTINGS = 'vote mode topk no_answer_bias precision max_p_len passage_stride max_q_len max_a_len'
KINDS = {  # what went wrong, and what that means; the first one that fits, see `_kind_of`
    'other characters only': 'right but for case, width, accents, punctuation or signs',
    'not asked': 'it was not asked, or not with these passages',
    'no passage holds it': 'no right answer stands in any passage',
    'cut off before it': 'a right answer stands in a passage, behind what is read of it',
    'found in part, or with more': 'a part of a right answer, or one and more',
    'all that hold it left': 'every passage that holds a right answer said that it has none',
    'misread': 'no passage that holds a right answer preferred it where the two part',
    'outvoted': 'a passage that holds a right answer preferred it, the others had more votes',
}
FILTERS = {  # of questions, and what they mean
    'outcome': dict.fromkeys(['right', 'partly right', 'wrong', 'answered', 'no answer'], ''),
    'kind': KINDS,
    'change': dict.fromkeys(['better', 'worse', 'answers differ'], ''),
}
# 1,500 and 1.5 are one number each, 2005.6.1 is three
THOUSANDS = r'\d{1,3}(?:,\d{3})+(?!\d)|[０-９]{1,3}(?:，[０-９]{3})+(?![０-９])'
NUMBER = re.compile(rf'(?<![.．])\d+[.．]\d+(?![.．]?\d)|{THOUSANDS}|\d+')


# ------------------------------------------------------------------------- answers in passages


class _Norm(dict):
    """What `norm` makes of each character, for str.translate: one, or none."""

    def __missing__(self, code):
        return self.setdefault(code, norm(chr(code)))


NORM = _Norm()


def places(texts, passage):
    """Return where texts stand in a passage as the score sees them, a set of (start, end).

    Width, case, punctuation and white space do not count, but belong to it at its ends where they
    are the same. A number is found as a whole only. texts: iterable of str; passage: str.
    """
    plain, kept, found = passage.translate(NORM), None, set()
    for text in texts:
        wanted, ignored = text.translate(NORM), [not NORM[ord(each)] for each in text]
        before = text[: len([*itertools.takewhile(bool, ignored)])]
        after = text[len(text) - len([*itertools.takewhile(bool, reversed(ignored))]) :]
        at = plain.find(wanted) if wanted else -1
        while at >= 0:
            kept = kept or [i for i, each in enumerate(passage) if NORM[ord(each)]]
            start, end = kept[at], kept[at + len(wanted) - 1] + 1
            if _numbers(passage, start, end) == _numbers(text, 0, len(text)):
                start -= len(before) * passage[:start].endswith(before)
                found.add((start, end + len(after) * passage.startswith(after, end)))
            at = plain.find(wanted, at + 1)
    return found


def _numbers(text, start, end):
    """Return the numbers of which a part stands in text[start:end]."""
    if not any(map(str.isdecimal, text[start:end])):
        return []
    first, last = max(start - 50, 0), end + 50  # or many numbers would take minutes
    found = NUMBER.finditer(text[first:last])
    touched = (m for m in found if m.start() < end - first and m.end() > start - first)
    return [unicodedata.normalize('NFKC', m[0]).replace(',', '') for m in touched]


def pieces_of(passage, given, right=()):
    """Cut a passage into [piece, mark] pairs; given, right: (start, end) of the answers in it.

    mark: '', 'given', 'right' or 'both'.
    """
    if not given and not right:
        return [[passage, '']]
    marks = [0] * len(passage)
    for mark, spans in (1, given), (2, right):
        for start, end in spans:
            marks[start:end] = (mark | each for each in marks[start:end])
    pieces, start = [], 0
    for mark, same in itertools.groupby(marks):
        end = start + len([*same])
        pieces.append([passage[start:end], ('', 'given', 'right', 'both')[mark]])
        start = end
    return pieces


def by_votes(passages, prediction):
    """Return (numbers, vote) of each passage, the surest vote first, those that left last.

    passages: list of str; prediction: dict, see `predictions.of_records`. Passages that are the
    same, and voted the same, have one entry; vote: dict, None where the script asks about others.
    """
    votes = prediction.get('votes', [])
    if len(votes) != len(passages):
        return [([number], None) for number in range(len(passages))]
    found = {}
    for number, (passage, vote) in enumerate(zip(passages, votes, strict=True)):
        same = passage, vote['no_answer_prob'], *vote['token_probs']
        found.setdefault(same, ([], vote))[0].append(number)
    return sorted(found.values(), key=lambda each: sureness(Vote(**each[1])), reverse=True)


def _given_in(numbers, vote, passages, prediction):
    """Return where the given answer stands in equal passages, and where it was taken from."""
    found = places([prediction['text']], passages[numbers[0]])
    if vote and prediction['passage'] in numbers:
        found.add((prediction['start'], prediction['end']))
    return found


def as_text(answer, passages):
    """Return an Answer and the passages in the order of their votes, the answer in brackets.

    passages: list of str, what was read of them.
    """
    prediction, lines = as_dict(answer), []
    for number, candidate in enumerate(answer.candidates):
        text, score = visible(candidate.text) or '(none)', candidate.score
        line = f'    or: {text}' if number else f'answer: {text}'
        line += '' if score is None else f' (score {score:.3f})'
        lines.append(line if candidate.finished or not number else f'{line}, not finished')
    for numbers, vote in by_votes(passages, prediction):
        said = f' left: no answer {vote["no_answer_prob"]:.2f}'
        if vote['has_answer']:
            pairs = zip(answer.tokens, vote['token_probs'], strict=False)  # or it was not asked
            votes = '  '.join(f'{visible(token)} {prob:.2f}' for token, prob in pairs)
            said = f' votes: {votes}' if votes else ''
        given = _given_in(numbers, vote, passages, prediction)
        pieces = pieces_of(passages[numbers[0]], given)
        text = ''.join(f'[{visible(piece)}]' if mark else visible(piece) for piece, mark in pieces)
        lines += [f'passage {" = ".join(str(each + 1) for each in numbers)}{said}', f'  {text}']
    return '\n'.join(lines)


# ------------------------------------------------------------------------------ what went wrong


def _outcome_of(prediction, score):
    if score and (score.correct or score.f1):
        return 'right' if score.correct else 'partly right'
    if not prediction['text']:
        return 'no answer'
    return 'wrong' if score else 'answered'


def _why_wrong(prediction, variants, passages, held, tokenizer, constants):
    """Return what went wrong, one of KINDS, the first that fits, and what the page says of it.

    Where a right answer can be read, `step` is where the answer given parts from it: their first
    tokens that differ, over the right one with the longest common beginning; the end is the token
    [SEP]. `expected` are the right tokens there. A passage that holds a right answer and voted
    chose it if it preferred one of them at that step; with vote = 'answer', where each passage
    writes by itself, if it also wrote all before it.

    variants: the right answers, str; held: of each passage where they stand, see `places`.
    """
    answer, votes = one_line(prediction['text']), prediction.get('votes') or []
    letters = _letters(answer)
    if letters and letters in map(_letters, variants):
        return 'other characters only', {}
    if 'error' in prediction or len(votes) != len(passages):
        return 'not asked', {}
    if not any(held):
        return 'no passage holds it', {}
    read = [i for i, spans in enumerate(held) if _is_read(passages[i], spans, tokenizer, constants)]
    if not read:
        return 'cut off before it', {}
    tokens, writes_alone = prediction['tokens'], not prediction['token_votes']
    right = {_tokens_of(passages[i], *span, tokenizer) for i in read for span in held[i]}
    same = {each: itertools.takewhile(bool, map(operator.eq, tokens, each)) for each in right}
    common = {each: sum(beginning) for each, beginning in same.items()}
    step = max(common.values())
    nearest = [list(each[: step + 1]) for each in right if common[each] == step]
    needed = slice(0 if writes_alone else step, step + 1)
    preferred = [votes[i]['preferred'][needed] for i in read if votes[i]['has_answer']]
    if places(variants, answer) or any(places([answer], variant) for variant in variants):
        kind = 'found in part, or with more'
    elif not preferred:
        kind = 'all that hold it left'
    else:
        chose = any(each[needed] in preferred for each in nearest)
        kind = 'outvoted' if chose else 'misread'
    told = {'step': step, 'expected': sorted({each[-1] for each in nearest})}
    return kind, {**told, 'next_tokens': prediction['next_tokens'][step : step + 1]}


def _is_read(passage, spans, tokenizer, constants):
    """Whether something of a passage is read, in some window; spans: (start, end) of it."""
    if not spans or constants.passage_stride:
        return bool(spans)
    text = re.sub(SEPARATORS, ',', passage[: min(end for _, end in spans)])
    return not is_longer(text, constants.max_p_len - 2, tokenizer)


def _tokens_of(passage, start, end, tokenizer):
    """Return the tokens of passage[start:end] as they stand there, a tuple that ends in [SEP]."""
    word = re.search('[^\\W一-鿿]*$', passage[:start])[0]  # it may begin within one
    skipped = len(tokenizer.encode(word)[0]) - 2
    text = re.sub(SEPARATORS, ',', word + passage[start:end])
    return tuple(tokenizer.ids_to_tokens(tokenizer.encode(text)[0])[1 + skipped :])


def _letters(text):
    """Return a text's letters and numbers, however they are written."""
    text = unicodedata.normalize('NFKD', text).casefold()
    return ''.join(each for each in text if unicodedata.category(each)[0] in 'LN')


# ------------------------------------------------------------------------------------------ a page


def as_html(cases, references, score, tokenizer, constants, dataset=None, comparison=None):
    """Return the page of many predictions, HTML in one str without any link to something outside.

    It shows the first `constants.report` of them, and counts all. cases: yields (record, its
    prediction, the Score of that or None), see `predictions.scored`; references: {id: Reference};
    score: of all, as it is printed, both None where right answers are not known; dataset: path of
    the questions; comparison: with other predictions, see comparison.py. Both may be None.
    """
    questions, counts = [], collections.Counter()
    for number, (record, prediction, of_it) in enumerate(cases):
        passages = [each['passage'] for each in record.get('passages') or []]
        reference = references[id_of(prediction)] if of_it else None
        held = [places(reference.variants if of_it else [], passage) for passage in passages]
        labels, told = [_outcome_of(prediction, of_it)], {}
        is_rightly_silent = of_it and not prediction['text'] and not any(reference.variants)
        if of_it and not of_it.correct and not is_rightly_silent:
            known = reference.variants, passages, held
            kind, told = _why_wrong(prediction, *known, tokenizer, constants)
            labels.append(kind)
        if comparison:
            changes, told['other'] = _change_of(number, prediction, passages, comparison)
            labels += changes
        counts.update([*labels, 'all'])
        if len(questions) < constants.report:
            told.update(_told_of(record, prediction, reference, passages, held), labels=labels)
            questions.append(_rounded(told))
    options = vars(constants)
    content = {
        'total': counts['all'],
        'score': score,
        'run': options.get('output_dir'),
        'dataset': dataset,
        'settings': {name: options[name] for name in SETTINGS.split() if name in options},
        'compared': comparison.line if comparison else None,
        'filters': {
            group: [[name, counts[name], some[name]] for name in some if counts[name]]
            for group, some in FILTERS.items()
        },
        'questions': questions,
    }
    return _fill_in(content)


def _change_of(number, prediction, passages, comparison):
    """Return [names of filters], and what the page says of the other prediction, perhaps None."""
    other, score = comparison.others[number]
    changes = [comparison.outcome(number)]
    changes += ['answers differ'] if other['text'] != prediction['text'] else []
    if changes == ['same']:
        return [], None
    names = 'text', 'tokens', 'token_votes'
    told = {**{name: other.get(name) for name in names}, 'labels': [_outcome_of(other, score)]}
    told['passages'] = [
        {'numbers': numbers, **(vote or {})} for numbers, vote in by_votes(passages, other)
    ]
    return [each for each in changes if each != 'same'], told


def _told_of(record, prediction, reference, passages, held):
    """Return what the page says of a question, but how it was judged; held: see `_why_wrong`."""
    names = 'id', 'question', 'text', 'score', 'passage', 'tokens', 'token_votes', 'error'
    told = {name: prediction[name] for name in names if name in prediction}
    if reference:
        told.update(gold=reference.answer, variants=reference.variants)
    candidates = prediction.get('candidates', [])
    told.update(candidates=candidates if len(candidates) > 1 else [], passages=[])
    for numbers, vote in by_votes(passages, prediction):
        given = _given_in(numbers, vote, passages, prediction)
        pieces = pieces_of(passages[numbers[0]], given, held[numbers[0]])
        labels = (record['passages'][each].get('answer') for each in numbers)
        entry = {'numbers': numbers, 'pieces': pieces, 'label': next(filter(None, labels), '')}
        told['passages'].append({**entry, **(vote or {})})
    return told


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
