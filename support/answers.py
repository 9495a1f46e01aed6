"""A question as it is read, long passages in windows, and its answer; not how it is searched."""

import collections
import math
import typing
import unicodedata

import numpy as np

from evaluate_sogou import UserError


class Question(typing.NamedTuple):
    """A question and its passages, as text and, in windows of `max_p_len` tokens, as token ids."""

    passages: list  # of str
    unified: list  # of str, as they are tokenized, character by character
    windows: list  # for each the number of its passage, and how many of its tokens stand before
    p_token_ids: list  # for each its token ids with [CLS] and [SEP]: it is read like a passage
    q_token_ids: list  # of int, with its [SEP]

    @classmethod
    def of(cls, passages, unified, p_token_ids, q_token_ids, constants):
        """Return the Question whose passages are cut into windows; p_token_ids: of whole ones."""
        windows, pieces, size = [], [], constants.max_p_len - 2
        for number, (first, *text, last) in enumerate(p_token_ids):
            for start in window_starts(len(text), size, constants.passage_stride):
                windows.append((number, start))
                pieces.append([first, *text[start : start + size], last])
        return cls(passages, unified, windows, pieces, q_token_ids)

    @property
    def tokens(self):
        """How many tokens are read."""
        return sum(len(token_ids) + len(self.q_token_ids) for token_ids in self.p_token_ids)


def window_starts(length, size, stride):
    """Return where windows of `size` begin in a text, a new one after every `stride`: a range.

    None begins after one that reached the end; stride: 0 for the first window alone. Raises
    UserError for a stride that would leave some of the text unread.
    """
    if stride > size:
        raise UserError(f'passage_stride = {stride}: leaves tokens unread; at most {size}')
    return range(0, max(length - size + stride, 1), stride) if stride else range(1)


def draw_window(passage, rng, constants):
    """Draw one of the windows that are read of a passage; here its tokens are its characters."""
    starts = window_starts(len(passage), constants.max_p_len - 2, constants.passage_stride)
    return passage[starts[rng.integers(len(starts))] :]


# ---------------------------------------------------------------------------------- what is found


class Hypothesis(typing.NamedTuple):
    """An answer as far as it is written (a beam); nothing so far."""

    token_ids: list = ()  # of int, its [SEP] included once it is finished
    log_score: float | None = 0.0  # sum of the logarithms of the votes; None where nobody voted
    token_probs: list = ()  # for each token that of each passage, float32; NaN where not asked
    finished: bool = False  # it ends in [SEP]
    parent: int = 0  # which of the hypotheses before it extends
    score: float | None = None  # between 0 and 1, see `score_of`, once nothing more is written
    token_votes: list = ()  # of each token, float, see `with_reasons`
    next_tokens: list = ()  # at each token (token id, vote) of the three best others
    preferred: list = ()  # at each token that of each passage alone, int; -1 where it had ended

    @staticmethod
    def with_reasons(extended, hypotheses, votes, voting):
        """Return extended hypotheses, each of which says why its last token was written.

        extended: each one of `hypotheses` and a token; votes: float32 [beams, vocab], by which it
        was chosen; voting: float32 [passages, beams, vocab], by which each passage voted.
        """
        votes, preferred = np.asarray(votes), np.asarray(voting).argmax(-1)  # [passages, beams]
        fourth = min(3, votes.shape[1] - 1)
        best = np.argpartition(-votes, fourth)[:, :4].tolist()  # [beams, 4], in any order
        told = []
        for each in extended:
            beam, token = each.parent, each.token_ids[-1]
            others = [i for i in best[beam] if i != token and votes[beam, i] > 0]
            others = sorted((-float(votes[beam, i]), i) for i in others)[:3]
            before = hypotheses[beam]
            reasons = {
                'token_votes': [*before.token_votes, float(votes[beam, token])],
                'next_tokens': [*before.next_tokens, [(i, -vote) for vote, i in others]],
                'preferred': [*before.preferred, preferred[:, beam]],
            }
            told.append(each._replace(**reasons))
        return told


class SearchResult(typing.NamedTuple):
    """What a search has found for a question."""

    has_answer: np.ndarray  # bool [passages], whether each took part in the vote
    no_answer_prob: np.ndarray  # float32 [passages], of [SEP] as the first token
    hypotheses: list  # the answer first; their token_probs are of the passages that took part


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
    longest = max(len(answer.token_ids) for answer in answers)
    preferred = np.full([longest, len(answers)], -1)
    for column, answer in zip(preferred.T, answers, strict=True):
        column[: len(answer.token_ids)] = answer.token_ids
    # no token was voted on
    told = {'token_votes': [], 'next_tokens': [], 'preferred': [*preferred]}
    return writers[0]._replace(log_score=log_score, score=score, token_probs=[*token_probs], **told)


def score_of(token_probs):
    """Return how sure passages are of what was written: 1 where all that speak are certain.

    The geometric mean over the tokens of sum_i p_i^2 / sum_i p_i, which does not grow with the
    number of passages as the vote does. token_probs: float32 [tokens, passages].
    """
    token_probs = np.asarray(token_probs, np.float64)
    sums = np.maximum(token_probs.sum(1), 1e-300)  # [tokens]
    return float(np.prod((token_probs**2).sum(1) / sums) ** (1 / len(token_probs)))


# ------------------------------------------------------------------------------ what others get


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
    token_probs: list  # of each of the answer's `tokens`, the passage's probability
    preferred: list  # its most probable allowed tokens instead of these, str; see `with_reasons`


# A Candidate's fields; its tokens, str, [SEP] included; of each its vote and the three best others
# with theirs, both empty where answers are voted on; all candidates, itself the first; the Vote of
# each passage.
Answer = collections.namedtuple(
    'Answer',
    [*Candidate._fields[:-1], 'tokens', 'token_votes', 'next_tokens', 'candidates', 'votes'],
)


def as_dict(answer):
    """Return an Answer as JSON has it, of dicts and lists."""
    candidates, votes = ([each._asdict() for each in some] for some in answer[-2:])
    return {**answer._asdict(), 'candidates': candidates, 'votes': votes}


def describe(result, question, tokenizer):
    """Return the Answer; result: the SearchResult of the windows of a Question."""
    candidates = [_candidate(each, result, question, tokenizer) for each in result.hypotheses]
    best, names = result.hypotheses[0], tokenizer.ids_to_tokens
    others = [[[*names([i]), vote] for i, vote in some] for some in best.next_tokens]
    told = names(best.token_ids), [*best.token_votes], others, candidates
    return Answer(*candidates[0][:-1], *told, _votes(result, question, names))


def _candidate(hypothesis, result, question, tokenizer):
    """Return the Candidate, as it stands where the surest window that holds it has it."""
    voters = np.flatnonzero(result.has_answer)
    token_ids = hypothesis.token_ids[:-1] if hypothesis.finished else hypothesis.token_ids
    text, place = tokenizer.decode(token_ids), (None, None, None)
    token_probs = np.reshape(hypothesis.token_probs, [len(hypothesis.token_probs), len(voters)])
    sure = np.nan_to_num(np.prod(token_probs, 0, dtype=np.float64))  # [voters]
    for window in voters[np.argsort(-sure, kind='stable')]:  # of equal ones the first
        (number, before), found_in = question.windows[window], question.p_token_ids[window]
        if span := find_span(tokenizer, question.unified[number], found_in, before, token_ids):
            text, place = question.passages[number][slice(*span)], (number, *span)
            text = without_invisible(text)
            break
    scores = hypothesis.score, hypothesis.log_score
    return Candidate(text, *place, token_ids, *scores, hypothesis.finished)


def _votes(result, question, names):
    """Return the Vote of each passage, that of its surest window; names: of token ids."""
    best = result.hypotheses[0]
    of_passages = (np.transpose(x).tolist() for x in (best.token_probs, best.preferred))
    voters = zip(*of_passages, strict=True)
    judged = zip(question.windows, result.has_answer, result.no_answer_prob, strict=True)
    votes = {}
    for (number, _), has_answer, no_answer_prob in judged:
        token_probs, preferred = next(voters) if has_answer else ([], [])
        token_probs = [] if np.isnan(token_probs).any() else token_probs  # it was not asked
        preferred = names([token for token in preferred if token >= 0])
        vote = Vote(float(no_answer_prob), bool(has_answer), token_probs, preferred)
        votes[number] = max(votes.get(number, vote), vote, key=sureness)
    return [*votes.values()]


def sureness(vote):
    """Return by what Votes are ranked, the surest has the greatest."""
    was_asked = bool(vote.token_probs)
    return vote.has_answer, was_asked, math.prod(vote.token_probs), -vote.no_answer_prob


def without_invisible(text):
    """Return a text as a person would write it: without what cannot be seen, ends stripped.

    The joiner of emoji, U+200D, stays.
    """
    return text.translate({0x200B: None, 0x2060: None, 0xFEFF: None, 0xA0: ' '}).strip()


def find_span(tokenizer, passage, window, before, token_ids):
    """Find the first place of an answer's tokens in a window of a passage.

    passage: str, as it was tokenized; window: its token ids, with [CLS] and [SEP]; before: tokens
    of the passage before it. Returns (start, end), in characters of the passage; None where the
    answer does not stand there.
    """
    length = len(token_ids)
    starts = range(1, len(window) - length if token_ids else 0)
    first = next((i for i in starts if window[i : i + length] == token_ids), None)
    if first is None:
        return None
    tokens = tokenizer.tokenize(passage)[1 : before + first + length]
    try:
        # İ is the one character whose lower case is two characters
        characters = tokenizer.rematch(passage.replace('İ', 'i'), tokens)
    except ValueError:  # marks in an order that Unicode normalization changes
        return None
    start, end = characters[-length][0], characters[-1][-1] + 1
    while end < len(passage) and unicodedata.category(passage[end]) == 'Mn':
        end += 1  # an accent written as a character of its own
    return start, end
