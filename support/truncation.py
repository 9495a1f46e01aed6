"""What of a dataset is cut off, which answers training can never draw as a target, and why."""

import collections
import unicodedata

from .console import log
from .records import complete
from .spans import window_starts


def report(path, records, unify, constants):
    """Say in one line how much of some records is cut off, and which answers are never a target.

    That is any answer whose parts no passage of its question holds, as `training_pair` looks for
    them: in the characters that are read, or in each window. unify: a function of a passage to the
    text in which they are looked for.
    """
    size, stride = constants.max_p_len - 2, constants.passage_stride
    long = labelled = cut_off = passages_in_all = 0
    never = collections.Counter()
    for record in complete(records):
        passages = record['passages']
        passages_in_all += len(passages)
        long += sum(len(p['passage']) > size for p in passages)
        answers = [(number, p['answer']) for number, p in enumerate(passages) if p['answer']]
        if not answers:
            continue
        labelled += len(answers)
        unified = [unify(p['passage']) for p in passages]
        readable = [_windows(text, size, stride) for text in unified]
        unlearnt = collections.Counter()
        for number, answer in answers:
            parts = answer.split(' ')
            if _held(parts, readable[number]):
                continue
            cut_off += _held(parts, [unified[number]])
            unlearnt[answer] += 1
        never += _why_never(unlearnt, readable, unified, unify)
    found = []
    if long and not stride:
        cut = f'{long} of {passages_in_all} passages are cut off after {size} characters'
        found.append(f'{cut}, without --passage_stride')
    if cut_off:
        found.append(f'{cut_off} of {labelled} answers are cut off')
    if never:
        reasons = ', '.join(f'{count} {reason}' for reason, count in never.most_common())
        found.append(f'answers that can never be learnt: {reasons}')
    if found:
        log(f'{path}: {"; ".join(found)}')


def _windows(text, size, stride):
    return [text[start : start + size] for start in window_starts(len(text), size, stride)]


def _held(parts, texts):
    """Whether one of the texts holds all parts."""
    return any(all(part in text for part in parts) for text in texts)


def _folded(text):
    return unicodedata.normalize('NFKC', text).casefold()


def _why_never(answers, readable, unified, unify):
    """Count the reasons for which answers are in nothing that is read of a question's passages.

    answers: {answer: count}; readable, unified: of each passage the windows, and all of it. Returns
    {reason: count} of those that no window holds.
    """
    reasons = collections.Counter()
    if not answers:
        return reasons
    windows = [window for of_passage in readable for window in of_passage]
    searches = [  # what is done to a part, where it is sought, why it is not learnt if it is there
        (str, windows, ''),
        (str, unified, 'cut off'),
        (unify, unified, 'with 、, ； or ， inside'),
        (lambda part: _folded(unify(part)), [*map(_folded, unified)], 'in another width or case'),
    ]
    # one text of all: most parts are nowhere, and there may be thousands of passages
    joined = ['\n'.join(texts) for _, texts, _ in searches]
    for answer, count in answers.items():
        reason = 'in no passage'
        for (change, texts, why), all_texts in zip(searches, joined, strict=True):
            parts = [*map(change, answer.split(' '))]
            if all(part in all_texts for part in parts) and _held(parts, texts):
                reason = why
                break
        if reason:
            reasons[reason] += count
    return reasons
