"""Predictions compared with earlier ones for the same questions: what changed, and how surely."""

import itertools
import json
import os

import numpy as np

from evaluate_sogou import UserError

from .answers import Answer, Vote
from .files import digest, read_text
from .predictions import contents_of, score_of
from .process import rank_and_world_size
from .records import id_of

SHOWN = 'id', 'question', 'text'  # of any prediction


class Comparison:
    """What changed since other predictions, which are read at once: they may be replaced later.

    others: for each record the other prediction and its Score or None; line: what is printed, a
    dict, once `complete` was called.
    """

    def __init__(self, path, data, references, dataset):
        """Read predictions, a file or its folder, and score them anew.

        data: the records that they must be for; references: {id: Reference}; dataset: what the
        records are of. Raises UserError for anything else.
        """
        file = os.path.join(path, 'predictions.jsonl') if os.path.isdir(path) else path
        if not os.path.exists(file):
            cure = 'run eval there to its end, or give another path'
            raise UserError(f'--compare_with={path}: no file {file!r}; {cure}')
        text, cure = read_text(file), f'compare answers to the questions of {dataset}'
        lines = text.removesuffix('\n').split('\n')
        found = [_prediction(line, file, i) for i, line in enumerate(lines, 1)]
        self.path, self.provenance = path, _provenance_of(f'{os.path.splitext(file)[0]}.json', text)
        for i, pair in enumerate(itertools.zip_longest(found, data), 1):
            theirs, ours = (_asked(each) if each else 'nothing' for each in pair)
            if theirs != ours:
                raise UserError(
                    f'{file}: line {i} answers {theirs!s:.99}, not {ours!s:.99}; {cure}'
                )
        if self.provenance and self.provenance['questions'] != digest(map(contents_of, data)):
            raise UserError(f'{file}: answers from other passages; {cure}')
        self.others = [(prediction, score_of(prediction, references)) for prediction in found]
        if not any(score for _, score in self.others):
            raise UserError(f'{file}: no answer is known to be right, so nothing can be compared')

    def complete(self, scores, provenance):
        """Compare with new predictions: the Score or None of each, and their `provenance`."""
        pairs = zip(scores, self.others, strict=True)
        self.differences = np.array([_values(new) - _values(other) for new, (_, other) in pairs])
        scored = [i for i, (_, score) in enumerate(self.others) if score]
        outcomes = [self.outcome(i) for i in scored]
        counts = {each: outcomes.count(each) for each in ('better', 'worse', 'same')}
        self.line = {
            'compared_with': self.path, **counts, **intervals(self.differences[scored]),
            'p': binomial_p(counts['better'], counts['worse']),
            **_differing(self.provenance, provenance),
        }  # fmt: skip

    def outcome(self, i):
        """Say what (correct + F1) / 2 of record i became: better, worse or, also unscored, same."""
        difference = self.differences[i, 2]
        # an F1 that is reached in two ways may differ in its last bit
        return 'better' if difference > 1e-9 else 'worse' if difference < -1e-9 else 'same'


def load_comparison(path, *given):
    """Return a Comparison; None where no path is given, and for all workers but the first."""
    return None if path is None or rank_and_world_size()[0] else Comparison(path, *given)


def _prediction(line, file, number):
    try:
        prediction = json.loads(line)
        if {*SHOWN} <= {*prediction} and isinstance(prediction['text'], str):
            is_ours = {*Answer._fields} <= {*prediction}
            is_ours &= all({*Vote._fields} == {*vote} for vote in prediction.get('votes', []))
            # of an earlier version, or another's: its votes cannot be shown
            return prediction if is_ours else {name: prediction[name] for name in SHOWN}
    except (ValueError, TypeError, RecursionError):
        pass
    raise UserError(f'{file}: line {number} is no prediction; give a whole predictions.jsonl')


def _asked(record):
    return [id_of(record), record.get('question')]


def _provenance_of(path, text):
    """Return the `provenance` of predictions, a text; None where it is not known."""
    try:
        provenance = json.loads(read_text(path))
        # a kill between the writes of both leaves that of other predictions
        is_whole = isinstance(provenance['constants'], dict) and 'weights' in provenance
        is_whole &= 'questions' in provenance and provenance['predictions'] == digest([text])
        return provenance if is_whole else None
    except (UserError, ValueError, TypeError, LookupError, RecursionError):
        return None


def _differing(theirs, ours):
    """Return the constants that differ, [theirs, ours] of each, and whether the weights do."""
    if theirs is None:
        return {'constants': 'not known', 'weights': 'not known'}
    before, now = theirs['constants'], ours['constants']
    both = {name: [before.get(name), now.get(name)] for name in {**before, **now}}
    both = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    same_weights = theirs['weights'] == ours['weights']
    return {'constants': both, 'weights': 'the same' if same_weights else 'others'}


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
