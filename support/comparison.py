"""Predictions compared with others for the same questions: what changed, and how surely."""

import itertools
import json
import os

import numpy as np

from evaluate_sogou import UserError

from .files import digest, read_text
from .predictions import digest_of_questions, score_of
from .process import rank_and_world_size
from .records import id_of


def load_comparison(path, *given):
    """Return a Comparison; None where no path is given, and for all workers but the first."""
    return None if path is None or rank_and_world_size()[0] else Comparison(path, *given)


class Comparison:
    """What changed since other predictions; those are read at once, and may be replaced later.

    others: list of (prediction, its Score or None) for each record; line: once `complete` was
    called, what is printed, a dict.
    """

    def __init__(self, path, data, references, dataset):
        """Read predictions from their file or its folder, and score them anew.

        data: the records that they must be for; references: {id: Reference}; dataset: path of the
        records. Raises UserError for anything but whole predictions for them, in the same order.
        """
        file = os.path.join(path, 'predictions.jsonl') if os.path.isdir(path) else path
        if not os.path.exists(file):
            cure = 'run eval there to its end, or give another path'
            raise UserError(f'--compare_with={path}: no file {file!r}; {cure}')
        lines = read_text(file).removesuffix('\n').split('\n')
        found = [_prediction(line, f'{file}: line {i}') for i, line in enumerate(lines, 1)]
        pairs = itertools.zip_longest(map(_asked, found), map(_asked, data), fillvalue='nothing')
        for i, (theirs, ours) in enumerate(pairs, 1):
            if theirs != ours:
                what = f'line {i} answers {theirs:.80}, but question {i} of {dataset} is {ours:.80}'
                cure = 'compare answers to the same questions, of the same random_order.json'
                raise UserError(f'{file}: {what}; {cure}')
        self.path, self.made_of = path, _made_of(file, lines)
        if self.made_of and self.made_of['questions'] != digest_of_questions(data):
            cure = f'remove {_beside(file)} to compare all the same'
            raise UserError(f'{file}: made from other passages than {dataset} has now; {cure}')
        self.others = [(prediction, score_of(prediction, references)) for prediction in found]
        if not any(score for _, score in self.others):
            raise UserError(f'{dataset}: no right answer is known, so nothing can be compared')

    def complete(self, scores, made_of):
        """Compare with new predictions: the Score or None of each, and what they are made of."""
        pairs = zip(scores, self.others, strict=True)
        self.differences = np.array([_values(new) - _values(other) for new, (_, other) in pairs])
        scored = [i for i, (_, score) in enumerate(self.others) if score]
        outcomes = [self.outcome(i) for i in scored]
        counts = {each: outcomes.count(each) for each in ('better', 'worse', 'same')}
        changes, p = intervals(self.differences[scored]), binomial_p(*[*counts.values()][:2])
        differing = _differing(self.made_of, made_of)
        self.line = {'compared_with': self.path, **counts, **changes, 'p': p, **differing}

    def outcome(self, i):
        """Say what (correct + F1) / 2 of record i became: better, worse or, also unscored, same."""
        difference = self.differences[i, 2]
        # an F1 that is reached in two ways may differ in its last bit
        return 'better' if difference > 1e-9 else 'worse' if difference < -1e-9 else 'same'


def _prediction(line, place):
    try:
        prediction = json.loads(line)
        if {'id', 'question', 'text'} <= {*prediction} and isinstance(prediction['text'], str):
            return prediction
    except (ValueError, TypeError, RecursionError):
        pass
    raise UserError(f'{place} is no prediction, or not all of it; give a predictions.jsonl')


def _asked(each):
    return f'{id_of(each)!r}, {each.get("question")!r}'


def _beside(file):
    return f'{os.path.splitext(file)[0]}.json'


def _made_of(file, lines):
    """Return what predictions were made of, None where it is not known."""
    try:
        made_of = json.loads(read_text(_beside(file)))
        # a kill between the writes of both leaves that of other predictions
        return made_of if made_of['predictions'] == digest(lines) else None
    except (UserError, ValueError, TypeError, LookupError, RecursionError):
        return None


def _differing(theirs, ours):
    """Return the constants that differ, [theirs, ours], and whether weights and script do."""
    if theirs is None:
        return dict.fromkeys(('constants', 'weights', 'script'), 'not known')
    before, now = theirs['constants'], ours['constants']
    both = {name: [before.get(name), now.get(name)] for name in {**before, **now}}
    told = {
        name: 'the same' if theirs[name] == ours[name] else 'others'
        for name in ('weights', 'script')
    }
    return {'constants': {name: pair for name, pair in both.items() if pair[0] != pair[1]}, **told}


def _values(score):
    """Return what a question adds to Accuracy, F1 and Final, float64 [3]; NaN without a Score."""
    values = (score.correct, score.f1, (score.correct + score.f1) / 2) if score else np.nan
    return np.full(3, values, float)


def intervals(differences, draws=10_000):
    """Return the mean differences and their 95% intervals, by percentile bootstrap.

    differences: float64 [questions, 3], of which as many are drawn, with replacement. Returns
    {'Accuracy': {'difference': float, 'interval': [float, float]}, ...}.
    """
    rng, total, means = np.random.default_rng(0), len(differences), []
    size = max(2**20 // total, 1)  # of a chunk; all at once would take gigabytes
    for start in range(0, draws, size):
        drawn = rng.integers(total, size=[min(size, draws - start), total], dtype=np.int32)
        means.append(differences[drawn].mean(1))  # [size, 3]
    bounds = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0).T  # [3, 2]
    told = zip(('Accuracy', 'F1', 'Final'), differences.mean(0), bounds, strict=True)
    return {
        name: {'difference': mean.round(6).item(), 'interval': interval.round(6).tolist()}
        for name, mean, interval in told
    }


def binomial_p(better, worse):
    """Return the probability of a split at least as uneven by chance: exact, two-sided."""
    total, fewer = better + worse, range(min(better, worse))
    # in how many ways 0, 1, ..., min(better, worse) of all can be chosen
    ways = itertools.accumulate(fewer, lambda n, k: n * (total - k) // (k + 1), initial=1)
    return min(2 * sum(ways) / 2**total, 1.0)
