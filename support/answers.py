"""An answer as others get it: text, place, scores, candidates, votes; not how it is searched."""

import math
import typing

import numpy as np

from .spans import find_span


class Hypothesis(typing.NamedTuple):
    """An answer as far as it is written (a beam); nothing so far."""

    token_ids: list = ()  # of int, its [SEP] included once it is finished
    log_score: float | None = 0.0  # sum of the logarithms of the votes; None where nobody voted
    token_probs: list = ()  # for each token that of each passage, float32; NaN where not asked
    finished: bool = False  # it ends in [SEP]
    parent: int = 0  # which of the hypotheses before it extends
    score: float | None = None  # between 0 and 1, see `score_of`, once nothing more is written


class SearchResult(typing.NamedTuple):
    """What a search has found for a question."""

    has_answer: np.ndarray  # bool [passages], whether each took part in the vote
    no_answer_prob: np.ndarray  # float32 [passages], of [SEP] as the first token
    hypotheses: list  # the answer first; their token_probs are of the passages that took part


class Candidate(typing.NamedTuple):
    """An answer that was possible, and where it stands, None if nowhere."""

    text: str  # passages[passage][start:end], where it stands there; see `without_invisible`
    passage: int | None  # its number
    start: int | None
    end: int | None
    token_ids: list  # without [SEP]
    score: float | None  # between 0 and 1, see `score_of`; None where all passages left
    log_score: float | None  # sum of the logarithms of the votes
    finished: bool  # whether [SEP] was written


class Vote(typing.NamedTuple):
    """What a passage said about the answer."""

    no_answer_prob: float  # the probability of [SEP] as its first token
    has_answer: bool  # or it left
    token_probs: list  # of each token of the answer, its [SEP] included, the passage's probability


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


def search_result(has_answer, no_answer_prob, best=None, runners_up=(), topk=1):
    """Return the SearchResult: the best Hypothesis, then others, at most `topk`, with scores.

    Of the others those that are finished come first. Without a best one the answer is empty.
    """
    best = best or Hypothesis([], None, [], True)
    others = [each for each in runners_up if each is not best]
    others.sort(key=lambda each: (not each.finished, -each.log_score))
    scored = []
    for hypothesis in [best, *others][:topk]:
        if hypothesis.score is None and hypothesis.token_probs:
            hypothesis = hypothesis._replace(score=score_of(hypothesis.token_probs))
        scored.append(hypothesis)
    return SearchResult(has_answer, np.array(no_answer_prob), scored)


def agreed(answers, wrote, score, log_score):
    """Return the Hypothesis that some of several passages have written, each by itself.

    answers: a Hypothesis for each passage; wrote: bool [passages], whose it is.
    """
    writers = [answer for answer, its in zip(answers, wrote, strict=True) if its]
    token_probs = np.full([len(writers[0].token_probs), len(answers)], np.nan)
    token_probs[:, wrote] = np.concatenate([writer.token_probs for writer in writers], 1)
    same = {'log_score': log_score, 'score': score, 'token_probs': [*token_probs]}
    return writers[0]._replace(**same)


def score_of(token_probs):
    """Return how sure passages are of what was written: 1 where all that speak are certain.

    The geometric mean over the tokens of sum_i p_i^2 / sum_i p_i, which does not grow with the
    number of passages as the vote does. token_probs: float32 [tokens, passages].
    """
    token_probs = np.asarray(token_probs, np.float64)
    sums = np.maximum(token_probs.sum(1), 1e-300)  # [tokens]
    return float(np.prod((token_probs**2).sum(1) / sums) ** (1 / len(token_probs)))


def without_invisible(text):
    """Return a text as a person would write it: without what cannot be seen, ends stripped.

    The joiner of emoji, U+200D, stays.
    """
    return text.translate({0x200B: None, 0x2060: None, 0xFEFF: None, 0xA0: ' '}).strip()


def describe(result, question, tokenizer):
    """Return the Answer; result: the SearchResult of the windows of a spans.Question."""
    pairs = zip(question.windows, result.has_answer, strict=True)
    voters, candidates = [window for window, has_answer in pairs if has_answer], []
    for hypothesis in result.hypotheses:
        token_ids = hypothesis.token_ids[:-1] if hypothesis.finished else hypothesis.token_ids
        text, place = tokenizer.decode(token_ids), (None, None, None)
        shape = len(hypothesis.token_probs), len(voters)
        sure = np.prod(np.reshape(hypothesis.token_probs, shape), 0, dtype=np.float64)  # [voters]
        for i in np.argsort(-np.nan_to_num(sure), kind='stable'):  # of equal ones the first
            number = voters[i].passage
            span = find_span(tokenizer, question.unified[number], voters[i], token_ids)
            if span:
                text, place = question.passages[number][slice(*span)], (number, *span)
                text = without_invisible(text)
                break
        scores = hypothesis.score, hypothesis.log_score
        candidates.append(Candidate(text, *place, token_ids, *scores, hypothesis.finished))
    return Answer(*candidates[0][:-1], candidates, _votes(result, question))


def _votes(result, question):
    """Return the Vote of each passage, that of its surest window."""
    of_passages = [[] for _ in question.passages]
    voters = iter(np.transpose(result.hypotheses[0].token_probs).tolist())
    judged = zip(question.windows, result.has_answer, result.no_answer_prob, strict=True)
    for window, has_answer, no_answer_prob in judged:
        token_probs = next(voters) if has_answer else []
        was_asked = not np.isnan(token_probs).any()
        vote = Vote(float(no_answer_prob), bool(has_answer), token_probs if was_asked else [])
        of_passages[window.passage].append(vote)

    def sure(vote):
        return vote.has_answer, math.prod(vote.token_probs), -vote.no_answer_prob

    return [max(votes, key=sure) for votes in of_passages]
