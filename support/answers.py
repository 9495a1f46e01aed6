"""What the reader tells of an answer: text, place, scores, rivals, votes; not how it is found."""

import math
import typing

import numpy as np

from . import spans


class Written(typing.NamedTuple):
    """What a beam has written, and what each passage that took part gave to it."""

    token_ids: list  # of int, without [SEP]
    score: float | None  # between 0 and 1; None where nobody voted or more is to be written
    log_score: float | None  # sum of the logarithms of the votes
    probas: list  # for each token, its [SEP] included, float32 [passages]; NaN where not asked
    finished: bool  # with [SEP]


NO_ANSWER = Written([], None, None, [], True)  # where nobody voted


class Found(typing.NamedTuple):
    """What was found for a question."""

    passages: dict  # {token ids: how often given} of those that took part
    no_answer: dict  # {token ids: probability of [SEP] as the first token} of all
    candidates: list  # of Written, the answer first

    @property
    def answer(self):
        """The best candidate."""
        return self.candidates[0]


class Candidate(typing.NamedTuple):
    """An answer that was possible, and where it stands, None if nowhere."""

    text: str  # passages[passage][start:end], where it stands there; see `without_invisible`
    passage: int | None  # its number
    start: int | None
    end: int | None
    token_ids: list
    score: float | None  # between 0 and 1, see `score_of`; None where all passages left
    log_score: float | None  # sum of the logarithms of the votes
    finished: bool  # whether [SEP] was written


class Vote(typing.NamedTuple):
    """What a passage said about the answer."""

    no_answer: float  # the probability of [SEP] as its first token
    took_part: bool  # or it left
    probas: list  # for each token of the answer, its [SEP] included, the passage's probability


class Answer(typing.NamedTuple):
    """The answer: a Candidate's fields, all `candidates`, itself the first, and each one's vote."""

    text: str
    passage: int | None
    start: int | None
    end: int | None
    token_ids: list
    score: float | None
    log_score: float | None
    candidates: list  # of Candidate: the answer, others that ended, others that did not
    votes: list  # of Vote, one for each passage


def score_of(probas, counts):
    """Return how sure passages are of what was written: 1 where all that speak are certain.

    The geometric mean over the tokens of sum_i p_i^2 / sum_i p_i, which does not grow with the
    number of passages as the vote does.

    probas: float32 [tokens, passages]; counts: float32 [passages], how often each was given.
    """
    probas = np.asarray(probas, np.float64)
    sums = np.maximum((counts * probas).sum(1), 1e-300)  # [tokens]
    return float(np.prod((counts * probas**2).sum(1) / sums) ** (1 / len(probas)))


def without_invisible(text):
    """Return a text as a person would write it: without what cannot be seen, ends stripped.

    The joiner of emoji, U+200D, stays.
    """
    return text.translate({0x200B: None, 0x2060: None, 0xFEFF: None, 0xA0: ' '}).strip()


def describe(found, passages, unified, windows, tokenizer):
    """Return the Answer.

    found: a Found; passages, unified: lists of str, as given and as tokenized, character
    by character; windows: a list of spans.Window, what was read of them.
    """
    keys = [tuple(window.token_ids) for window in windows]
    rows = {token_ids: row for row, token_ids in enumerate(found.passages)}
    candidates = []
    for written in found.candidates:
        agreed = np.nan_to_num(np.prod(np.array(written.probas, np.float64), 0))  # [rows]
        voters = [i for i, key in enumerate(keys) if key in rows]
        voters.sort(key=lambda i, agreed=agreed: -agreed[rows[keys[i]]])  # of equal ones the first
        text, place = tokenizer.decode(written.token_ids), (None, None, None)
        for i in voters:
            number = windows[i].passage
            span = spans.find_span(tokenizer, unified[number], windows[i], written.token_ids)
            if span:
                text, place = passages[number][slice(*span)], (number, *span)
                text = without_invisible(text)
                break
        token_ids, score, log_score, _, finished = written
        candidates.append(Candidate(text, *place, token_ids, score, log_score, finished))
    votes = _votes(found, len(passages), windows)
    return Answer(*candidates[0][:-1], candidates, votes)


def _votes(found, passages, windows):
    """Return the Vote of each of so many passages, that of its surest window."""
    rows = {token_ids: row for row, token_ids in enumerate(found.passages)}
    told = [[] for _ in range(passages)]
    for window in windows:
        key = tuple(window.token_ids)
        given = [float(proba[rows[key]]) for proba in found.answer.probas if key in rows]
        asked = not np.isnan(given).any()
        vote = Vote(float(found.no_answer[key]), key in rows, given if asked else [])
        told[window.passage].append(vote)

    def sure(vote):
        return vote.took_part, math.prod(vote.probas), -vote.no_answer

    return [max(votes, key=sure) for votes in told]


def as_record(record, answer, error):
    """Return what is told of a record, a dict that JSON can hold: an Answer, or an error."""
    told = {'id': record.get('id'), 'question': record.get('question')}
    if error:
        return {**told, 'text': '', 'error': error}
    told.update(answer._asdict())
    for name in 'candidates', 'votes':
        told[name] = [each._asdict() for each in told[name]]
    return told
