"""DESIGN §4: the six steps by hand, the answer's text, the reader against the reference decoder."""

import collections
import math
import os

import numpy as np
import pytest
from conftest import VOCABULARY, draw, forward_pass_of
from hypothesis import given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from reference_decoder import ReferenceDecoder, SinglePassageDecoder

from evaluate_sogou import UserError
from support.answers import NO_ANSWER, without_invisible
from support.keras2 import bert4keras
from support.unilm import UniLM

CLS, END = 2, 3


class FixedUniLM:
    """Predicts `probabilities(source, beam)`, {token: probability}, for others 0."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def predict(self, sources, beams):
        result = np.zeros([len(sources), len(beams), len(VOCABULARY)], np.float32)
        for i, source in enumerate(sources):
            for j, beam in enumerate(beams):
                for token, probability in self.probabilities(source, tuple(beam)).items():
                    result[i, j, token] = probability
        return result

    def read(self, sources, judge):
        told, probas, cache = [], {}, {}
        for question, of_question in enumerate(sources):
            predicted = self.predict(of_question, [()])
            told.append([np.array(each) for each in judge(predicted[:, 0])])
            stays = told[-1][0]
            if stays.any():
                probas[question] = predicted[stays]
                cache[question] = [of_question[i] for i in np.flatnonzero(stays)]
        return told, probas, cache

    def write(self, cache, beams):
        written = {i: self.predict(cache[i], some.output_ids) for i, some in beams.items()}
        return written, cache


@pytest.fixture(scope='module')
def traced(small_bert):
    """A UniLM that is traced but once."""
    return UniLM(small_bert[0])


@pytest.fixture
def reading(script, small_bert, traced):
    """Return a function that builds a reader, of `small_bert` or of fixed probabilities."""
    draw(small_bert[0], 0)

    def build(probabilities=None, **constants):
        constants = script.Constants(**{'max_a_len': 6, **constants})
        reader = script.ReadingComprehension(*small_bert, constants)
        reader.unilm = FixedUniLM(probabilities) if probabilities else traced
        return reader

    return build


def search(reader, p_token_ids, q_token_ids, topk):
    [found] = reader.search([(p_token_ids, q_token_ids)], topk)
    return found


# ------------------------------------------------------------------------------------ the six steps


def test_vote_by_hand(script):
    """One sure passage (0.9) counts more than two that waver (0.5): 0.81 / 1.9 against 0.5 / 2."""
    probas = np.zeros([2, 1, 4], np.float32)
    probas[0, 0, 1], probas[0, 0, 2], probas[1, 0, 2] = 0.9, 0.5, 0.5
    votes = script.vote(probas, np.ones([2, 1, 1], np.float32))
    np.testing.assert_allclose(votes, [[0, 0.81 / 1.9, 0.5 / 2, 0]], rtol=1e-6)


def test_vote_is_of_each_beam_alone(script):
    """What a passage predicts after one beam is no vote after another."""
    probas = np.float32(
        [[[0.9, 0.0], [0.0, 0.4]], [[0.5, 0.0], [0.0, 0.2]]]
    )  # [passages, beams, 2]
    votes = script.vote(probas, np.ones([2, 1, 1], np.float32))
    np.testing.assert_allclose(votes, [[1.06 / 2.4, 0], [0, 0.2 / 1.6]], rtol=1e-6)


def test_passage_given_three_times_votes_three_times(script, reading):
    """Read once, it outvotes one that is surer; and a passage of another question does not vote."""
    probas = np.float32([[[0.5, 0.1]], [[0.2, 0.3]]])
    votes = script.vote(probas, np.float32([[[3]], [[1]]]))
    expected = [
        (3 * 0.5**2 + 0.2**2) / (1 + 3 * 0.5 + 0.2),
        (3 * 0.1**2 + 0.3**2) / (1 + 3 * 0.1 + 0.3),
    ]
    np.testing.assert_allclose(votes, [expected], rtol=1e-6)
    read = []

    def probabilities(source, beam):
        read.append(tuple(source))
        return {END: 1.0} if beam else {10: 0.6} if source[1] == 10 else {11: 0.7}

    three, one = [CLS, 10, END], [CLS, 11, END]
    reader = reading(probabilities, max_a_len=1)
    found, other = reader.search([([three, one, three, three], [5]), ([one], [5])], 1)
    assert found.answer.token_ids == [10] and found.passages == {tuple(three): 3, tuple(one): 1}
    assert found.answer.log_score == pytest.approx(math.log(3 * 0.6**2 / (1 + 3 * 0.6)))
    assert other.answer.token_ids == [11] and other.answer.log_score == pytest.approx(
        math.log(0.7**2 / 1.7)
    )
    assert read == [(*three, 5), (*one, 5), (*one, 5)]


def test_passage_whose_first_token_is_sep_leaves_for_good(reading):
    """It must not vote on later tokens either, even where it would agree, nor be written from."""
    answering, silent = [CLS, 10, 11, END], [CLS, 10, 12, END]

    def probabilities(source, beam):
        if source[2] == 11:
            return {10: 0.9} if not beam else {12: 0.4, 11: 0.3, END: 0.2}
        return {END: 0.6, 10: 0.4} if not beam else {END: 0.9}

    found = search(reading(probabilities), [answering, silent], [END], 1)
    assert found.answer.token_ids == [10, 11] and found.passages == {tuple(answering): 1}
    votes = 0.9**2 / 1.9, 0.3**2 / 1.3, 0.2**2 / 1.2
    assert found.answer.log_score == pytest.approx(sum(map(math.log, votes)))


def test_sep_need_not_be_probable_for_a_passage_to_leave(reading):
    """It is enough that no other token is more probable."""
    silent, answering = [CLS, 10, END], [CLS, 11, END]

    def probabilities(source, beam):
        if beam:
            return {END: 1.0}
        return {END: 0.3, 10: 0.25, 11: 0.2} if source[1] == 10 else {END: 0.2, 11: 0.25}

    found = search(reading(probabilities), [silent, answering], [END], 1)
    assert found.passages == {tuple(answering): 1} and found.answer.token_ids == [11]


def test_all_passages_leave_the_answer_is_empty(reading):
    reader = reading(lambda source, beam: {END: 1.0})
    found = search(reader, [[CLS, 10, END]], [END], 3)
    assert (found.answer, found.passages) == (NO_ANSWER, {})
    answer = reader.answer('中', ['国'])
    assert answer.text == '' and answer.passage is None


@pytest.mark.parametrize('fixed', [False, True])
def test_question_without_passages_has_the_empty_answer(reading, fixed):
    """Alone or beside one that has some."""
    reader = reading((lambda source, beam: {10: 1.0}) if fixed else None)
    assert (
        search(reader, [], [5, END], 2).answer.token_ids == []
        and reader.answer('中', []).text == ''
    )
    none, some = reader.search([([], [5, END]), ([[CLS, 10, END]], [5, END])], 2)
    assert (none.answer, none.passages) == (NO_ANSWER, {})
    assert some.answer.token_ids == search(reader, [[CLS, 10, END]], [5, END], 2).answer.token_ids


def test_questions_read_together_answer_as_each_alone(reading):
    """Whatever the others: some without passage or answer, with the same passages, long ones."""
    readers = [reading(mode=mode) for mode in ('extractive', 'generative')]
    rng, seen = np.random.default_rng(0), collections.Counter()
    for _ in range(12):
        questions = []
        for _ in range(rng.integers(1, 10)):
            longest = rng.choice([2, 20, 90])
            passages = [
                [CLS, *rng.integers(4, 31, rng.integers(0, longest)).tolist(), END]
                for _ in range(rng.integers(0, 9))
            ]
            question = [*rng.integers(4, 31, 3).tolist(), END]
            questions.append((passages + passages[: rng.integers(0, 3)], question))
        questions.append(questions[0])
        reader, topk = readers[rng.integers(2)], int(rng.integers(1, 6))
        together = reader.search(questions, topk)
        for question, found in zip(questions, together, strict=True):
            [alone] = reader.search([question], topk)
            assert found.answer.token_ids == alone.answer.token_ids
            assert found.passages == alone.passages
            for score in 'score', 'log_score':
                expected = getattr(alone.answer, score)
                if expected is not None:
                    expected = pytest.approx(expected, abs=1e-5, rel=1e-5)
                assert getattr(found.answer, score) == expected
            seen['no passage' if not question[0] else len(found.answer.token_ids)] += 1
    assert seen['no passage'] and seen[0] and seen[1] and seen[6]


def test_answers_come_in_the_order_of_the_questions(reading):
    """However many are read together, and without waiting for those that do not fit any more."""
    reader = reading(lambda source, beam: {END: 1.0} if beam else {source[1]: 1.0})
    asked, questions = [], [('人口', [character] * 3) for character in '中国北京上海南天津重庆']

    def ask():
        for question in questions:
            asked.append(question)
            yield question

    reader.tokens_together = 60  # three questions of 3 * (3 + 3) tokens
    answers = reader.answers(ask())
    assert next(answers).text == '中' and len(asked) == 4
    assert [answer.text for answer in answers] == list('国北京上海南天津重庆')
    assert next(reading(None).answers([]), None) is None


def test_extractive_answer_is_a_run_of_passage_tokens(script):
    """After 10 comes 11 in one passage, 13 in another; 12 follows 11 only; 14 left with its own."""
    beams = script.Beams([[CLS, 10, 11, 12, END], [CLS, 10, 14, END], [CLS, 10, 13, END]], 1, END)
    beams.begin([True, False, True], [0.0, 1.0, 0.0])
    assert np.flatnonzero(beams.allowed(20)[0]).tolist() == [END, 10, 11, 12, 13]
    beams.extend([-1.0], [0], [10], np.ones([2, 1]), 6)
    assert np.flatnonzero(beams.allowed(20)[0]).tolist() == [END, 11, 13]
    beams.extend([-1.0], [0], [11], np.ones([2, 1]), 6)
    assert np.flatnonzero(beams.allowed(20)[0]).tolist() == [END, 12]
    beams.extend([-1.0], [0], [12], np.ones([2, 1]), 6)  # what follows is of the next passage
    assert np.flatnonzero(beams.allowed(20)[0]).tolist() == [END]


def test_each_beam_goes_on_in_its_own_places(script):
    """Also where two beams extend the same one, and where the order of beams changes."""
    beams = script.Beams([[CLS, 10, 11, 12, 10, 13, END]], 2, END)
    beams.begin([True], [0.0])
    beams.extend([-1.0, -2.0], [0, 0], [11, 10], np.ones([1, 2]), 6)
    allowed = beams.allowed(20)
    assert [np.flatnonzero(row).tolist() for row in allowed] == [[END, 12], [END, 11, 13]]
    beams.extend([-1.0, -2.0], [1, 1], [13, 11], np.ones([1, 2]), 6)
    allowed = beams.allowed(20)
    assert [np.flatnonzero(row).tolist() for row in allowed] == [[END], [END, 12]]
    assert beams.output_ids == [[10, 13], [10, 11]] and beams.parents == [1, 1]


def test_extractive_rule_comes_before_the_choice(reading):
    """The reader would rather go on with 13, which follows 10 in no passage."""

    def probabilities(source, beam):
        return {(): {10: 0.9}, (10,): {13: 0.9, 11: 0.2}}.get(beam, {13: 0.9, END: 0.1})

    passage = [CLS, 13, 10, 11, END]
    assert search(reading(probabilities), [passage], [END], 1).answer.token_ids == [10, 11]
    found = search(reading(probabilities, mode='generative'), [passage], [END], 1)
    assert found.answer.token_ids == [10, 13, 13, 13, 13, 13]


def test_question_tokens_do_not_count_as_passage(reading):
    def probabilities(source, beam):
        return {20: 0.9, 10: 0.05} if not beam else {END: 1.0}

    assert search(reading(probabilities), [[CLS, 10, END]], [20, END], 1).answer.token_ids == [10]
    reader = reading(probabilities, mode='generative')
    assert search(reader, [[CLS, 10, END]], [20, END], 1).answer.token_ids == [20]


def test_ties_go_to_the_earlier_beam_then_the_lower_token(script):
    votes = [[0.0, 0.2, 0.4, 0.4], [0.0, 0.4, 0.2, 0.2]]
    _, parents, tokens = script.best_of(np.float32(votes), [0.0, 0.0], 3)
    assert list(zip(parents, tokens, strict=True)) == [(0, 2), (0, 3), (1, 1)]


def test_scores_add_up_and_the_best_come_first(script):
    """A beam that is far behind does not win by a high vote; a width may be more than there is."""
    votes, before = np.float32([[0.1, 0.2], [0.9, 0.0]]), np.array([-1.0, -4.0])
    scores, parents, tokens = script.best_of(votes, before.tolist(), 9)
    assert list(zip(parents, tokens, strict=True)) == [(0, 1), (0, 0), (1, 0), (1, 1)]
    expected = before[:, None] + np.log(votes + 1e-12)
    np.testing.assert_allclose(scores, expected[parents, tokens], rtol=1e-6)


def test_token_without_a_vote_is_kept_only_when_no_other_is_left(script):
    """Even where the other's score is far lower than log(1e-12)."""
    votes = np.float32([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    scores, parents, tokens = script.best_of(votes, [0.0, -100.0], 2)
    assert list(zip(parents, tokens, strict=True)) == [(1, 1), (0, 0)]
    np.testing.assert_allclose(scores, [-100 + np.log(0.5), np.log(1e-12)], rtol=1e-6)


def test_finished_beam_that_is_not_best_is_dropped_and_the_width_shrinks(reading):
    """Beam [10, SEP] is second to [11, 12]: it must neither return later nor let a third one in."""

    def probabilities(source, beam):
        return {
            (): {10: 0.45, 11: 0.5, 12: 0.05},
            (10,): {END: 0.9},
            (11,): {12: 0.95, END: 0.05},
            (11, 12): {10: 0.4, 13: 0.3},
            (11, 12, 10): {END: 1.0},
        }[beam]  # another beam, (10, END) or (11, 12, 13), is a KeyError

    found = search(reading(probabilities), [[CLS, 11, 12, 13, 11, 12, 10, END]], [END], 2)
    assert found.answer.token_ids == [11, 12, 10]


def test_best_beam_that_ends_is_the_answer_at_once(reading):
    """However the others would go on; its score is that with [SEP]."""

    def probabilities(source, beam):
        return {(): {10: 0.6, 11: 0.5}, (10,): {END: 0.9}, (11,): {12: 0.8}}[beam]

    found = search(reading(probabilities), [[CLS, 10, 11, 12, END]], [END], 2)
    assert found.answer.token_ids == [10]
    assert found.answer.log_score == pytest.approx(math.log(0.6**2 / 1.6) + math.log(0.9**2 / 1.9))


def test_answer_stops_at_max_a_len(reading):
    """The best beam is the answer then, though it does not end."""
    reader = reading(lambda source, beam: {10: 1.0}, max_a_len=2)
    assert search(reader, [[CLS, 10, 10, 10, 10, END]], [END], 1).answer.token_ids == [10, 10]
    reader = reading(lambda source, beam: {10: 0.4, 11: 0.3}, max_a_len=2)
    found = search(reader, [[CLS, 10, 11, 10, 10, END]], [END], 3)
    assert found.answer.token_ids == [10, 10] and found.answer.log_score == pytest.approx(
        2 * math.log(0.4**2 / 1.4)
    )


def test_candidates_are_the_answer_then_what_was_dropped(reading):
    """Two were dropped before the answer came; nothing is written for their sake."""

    def probabilities(source, beam):
        return {
            (): {10: 0.45, 11: 0.4, 12: 0.5},
            (10,): {END: 0.9},
            (11,): {END: 0.8},
            (12,): {13: 0.95, END: 0.05},
            (12, 13): {END: 0.9, 10: 0.5},
        }[beam]

    def log_vote(*probas):
        return sum(math.log(p**2 / (1 + p)) for p in probas)

    passage = [CLS, 12, 13, 10, 11, END]
    candidates = search(reading(probabilities), [passage], [END], 3).candidates
    assert [(x.token_ids, x.finished) for x in candidates] == [
        ([12, 13], True), ([10], True), ([11], True),
    ]  # fmt: skip
    given = (0.5, 0.95, 0.9), (0.45, 0.9), (0.4, 0.8)
    for beam, probas in zip(candidates, given, strict=True):
        assert beam.log_score == pytest.approx(log_vote(*probas))
        assert beam.score == pytest.approx(np.prod(probas) ** (1 / len(probas)))
        np.testing.assert_allclose(np.concatenate(beam.probas), probas, rtol=1e-6)
    assert len(search(reading(probabilities), [passage], [END], 1).candidates) == 1


def test_unfinished_answer_is_a_candidate_that_is_not_finished(reading):
    reader = reading(lambda source, beam: {10: 0.6, 11: 0.4}, max_a_len=2)
    found = search(reader, [[CLS, 10, 11, 10, 10, END]], [END], 2)
    kept = [(beam.token_ids, beam.finished) for beam in found.candidates]
    assert kept == [([10, 10], False), ([10, 11], False)]


def test_bias_makes_passages_leave_or_stay_and_the_vote_follow(reading):
    """It counts at the first step alone, there in the vote too; what is told is without it."""

    def probabilities(source, beam):
        if beam:
            return {END: 0.4, 11: 0.5}
        return {END: 0.3, 10: 0.5} if source[1] == 10 else {END: 0.6, 10: 0.2}

    sure, silent = [CLS, 10, 11, END], [CLS, 12, 10, END]
    log_votes = {}
    for bias in -2.0, 0.0, 2.0:
        reader = reading(probabilities, no_answer_bias=bias, max_a_len=2)
        found = search(reader, [sure, silent], [END], 2)
        log_votes[bias] = [len(found.passages), found.answer.token_ids]
        assert list(found.no_answer.values()) == pytest.approx([0.3, 0.6])
    assert log_votes == {-2.0: [2, [10, 11]], 0.0: [1, [10, 11]], 2.0: [0, []]}
    # at the second step it would make [SEP], 0.4 against 0.5, the better one
    reader = reading(probabilities, no_answer_bias=0.5, max_a_len=2)
    assert search(reader, [sure], [END], 1).answer.token_ids == [10, 11]
    # it stays, as another token is more probable still; yet the vote ends the answer at once
    reader = reading(lambda source, beam: {END: 0.3, 10: 0.5, 11: 0.1}, no_answer_bias=0.5)
    found = search(reader, [sure], [END], 3)
    biased = 0.3 * math.exp(0.5)
    ended = [beam for beam in found.candidates if not beam.token_ids]
    assert ended[0].log_score == pytest.approx(math.log(biased**2 / (1 + biased)), rel=1e-6)
    assert ended[0].score == pytest.approx(0.3)


def test_whole_answers_are_voted_on_by_hand(reading):
    """Two that agree and waver against one that is sure; one given twice counts twice."""
    written = {10: (0.6, 0.5), 11: (0.6, 0.5), 12: (0.9, 0.5)}

    def probabilities(source, beam):
        of_passage = written[source[1]]
        token = 20 if source[1] < 12 else 21
        return {token: of_passage[0]} if not beam else {END: of_passage[1], 22: 0.1}

    one, two, three = ([CLS, i, 20, 21, END] for i in (10, 11, 12))
    reader = reading(probabilities, vote='answer')
    for passages, expected in ([one, two, three], [21]), ([one, two, one, three], [20]):
        found = search(reader, passages, [END], 2)
        confidences = {20: [0.3] * (len(passages) - 1), 21: [0.45]}
        votes = {i: sum(c * c for c in some) / (1 + sum(some)) for i, some in confidences.items()}
        assert found.answer.token_ids == expected == [max(votes, key=votes.get)]
        assert found.answer.log_score == pytest.approx(math.log(votes[expected[0]]), rel=1e-6)
        assert len(found.candidates) == 2 and len(found.passages) == 3
    assert search(reader, [one, two], [END], 1).answer.token_ids == [20]
    assert search(reader, [], [END], 1).answer == NO_ANSWER


# ----------------------------------------------------------------------------------- text and place


def writing(tokenizer, passage, written):
    """Probabilities by which this passage writes these tokens, and every other has no answer."""
    start = tokenizer.encode(passage)[0][:-1]

    def probabilities(source, beam):
        if source[: len(start)] != start:
            return {END: 1.0}
        return {[*written, END][len(beam)]: 1.0}

    return probabilities


@pytest.mark.parametrize(
    ('passage', 'answer'),
    [
        ('人口在BeiJing，上海', 'BeiJing，上海'),  # case and punctuation as in the passage
        ('中国是𠮷喆的', '𠮷喆'),  # characters outside the vocabulary
        # a character whose lower case is two; dropped white space
        ('İstanbul在北京、\t上海', '北京、\t上海'),
        ('在cafe\u0301里', 'cafe\u0301'),  # an accent of its own
        ('ΑΣ在北京', 'ΑΣ'),  # a capital that has two lower-case forms
        ('ＡＢ在 ', 'ＡＢ'),
    ],
)
def test_answer_is_given_as_it_stands_in_the_passage(script, small_bert, reading, passage, answer):
    _, tokenizer = small_bert
    start, unified = passage.index(answer), script.unify_separators(passage)
    before = len(tokenizer.tokenize(script.unify_separators(passage[:start]))) - 2
    written = tokenizer.encode(script.unify_separators(answer))[0][1:-1]
    fragment = tokenizer.encode(unified)[0][1:-1]
    assert fragment[before : before + len(written)] == written
    reader = reading(writing(tokenizer, unified, written), max_a_len=32)
    result = reader.answer('谁', ['天津', passage])
    assert result[:5] == (answer, 1, start, start + len(answer), written)
    assert result.score == 1
    assert result.log_score == pytest.approx((len(written) + 1) * math.log(1 / 2))
    assert [vote.took_part for vote in result.votes] == [False, True]


def test_place_is_in_a_passage_that_voted(small_bert, reading):
    """One that has left may hold the answer too; of those that are as sure the first has it."""
    _, tokenizer = small_bert
    written = tokenizer.encode('北京')[0][1:-1]
    reader = reading(writing(tokenizer, '人口在', written))
    passages = ['在北京', '人口在哪里', '人口在 北京北京', '人口在北京']
    assert reader.answer('谁', passages)[:4] == ('北京', 2, 4, 6)


# -------------------------------------------------------------------------- what changes no answer


@pytest.mark.parametrize('vote', ['token', 'answer'])
@pytest.mark.parametrize('topk', [1, 3])
def test_order_and_silent_passages_change_no_answer(reading, small_bert, vote, topk):
    """Nor what is told of it, but for rounding; each passage votes wherever it stands."""
    reader, rng = reading(vote=vote, no_answer_bias=1.0), np.random.default_rng(topk)
    answers = collections.Counter()
    for seed in range(24):
        draw(small_bert[0], seed % 4)
        lengths = rng.integers(1, 25, 6)
        passages = [''.join(rng.choice([*'中国北京上海天津，'], length)) for length in lengths]
        answer = reader.answer('人口在哪里', passages, topk)
        order = rng.permutation(len(passages)).tolist()
        shuffled = reader.answer('人口在哪里', [passages[i] for i in order], topk)
        speaking = [
            text for text, vote in zip(passages, answer.votes, strict=True) if vote.took_part
        ]
        fewer = reader.answer('人口在哪里', speaking, topk)
        for other in shuffled, fewer:
            assert other.text == answer.text and other.token_ids == answer.token_ids
            assert other.score == pytest.approx(answer.score, abs=1e-5)
        back = sorted(range(len(order)), key=order.__getitem__)
        moved = [shuffled.votes[i] for i in back]
        assert [vote.took_part for vote in moved] == [vote.took_part for vote in answer.votes]
        for vote_here, vote_there in zip(answer.votes, moved, strict=True):
            assert vote_there.probas == pytest.approx(vote_here.probas, abs=1e-5)
        answers[bool(answer.text), len(speaking) < len(passages)] += 1
    assert answers[True, True] > 2, answers


# ------------------------------------------------------------------------------ windows of passages


@pytest.mark.parametrize('mode', ['extractive', 'generative'])
@pytest.mark.parametrize(('stride', 'topk'), [(1, 1), (3, 1), (4, 2), (6, 3)])
def test_windows_read_and_vote_like_passages(reading, small_bert, stride, topk, mode):
    """The token ids are those of the reference decoder, given the windows as passages."""
    model, _ = small_bert
    reader = reading(max_p_len=8, passage_stride=stride, mode=mode)
    decoder = ReferenceDecoder(model, END, 6, mode)
    forward = forward_pass_of(model)
    decoder.forward = lambda batch: forward(*batch)
    rng, answers = np.random.default_rng(stride), set()
    for _ in range(8):
        passages = [
            ''.join(rng.choice(list('中国北京上海天津'), rng.integers(1, 20))) for _ in range(3)
        ]
        passages += ['北京' * 6]  # some windows of it are equal, and vote as often
        windows, q_token_ids = reader.encode('人口在哪里', passages)
        p_token_ids = [window.token_ids for window in windows]
        assert len(p_token_ids) > len(passages) and max(map(len, p_token_ids)) == 8
        expected = decoder.answer(p_token_ids, q_token_ids, topk)
        answer = reader.answer('人口在哪里', passages, topk)
        assert answer.token_ids == expected
        answers.add(answer.text)
        assert len(answer.votes) == len(passages)
        if answer.passage is not None:
            text = passages[answer.passage][answer.start : answer.end]
            assert answer.text == text and answer.votes[answer.passage].took_part
    assert len(answers) > 2


def test_answer_beyond_the_length_of_a_passage_is_reached(reading, small_bert):
    """The window that holds it votes, the others say [SEP]; the vote of a passage is its surest."""
    _, tokenizer = small_bert
    written = tokenizer.encode('北京')[0][1:-1]
    passages = ['中国' * 6 + '人口在北京' + '天津' * 4, '上海']

    def probabilities(source, beam):
        text = source[1 : source.index(END)]
        places = [i for i in range(len(text)) if text[i : i + 2] == written]
        if not places:
            return {END: 0.75}
        return {[*written, END][len(beam)]: 1.0 - 0.125 * (places[0] < 5)}

    for stride, expected in (0, ('', None, None, None)), (4, ('北京', 0, 15, 17)):
        reader = reading(probabilities, max_p_len=12, passage_stride=stride)
        answer = reader.answer('谁', passages)
        assert answer[:4] == expected
    vote, other = answer.votes
    assert vote.took_part and vote.probas == [1.0, 1.0, 1.0]
    assert (other.took_part, other.no_answer) == (False, 0.75)


def test_stride_that_would_leave_tokens_unread_is_refused(reading):
    reading(max_p_len=12, passage_stride=10)
    with pytest.raises(UserError, match='passage_stride = 11: '):
        reading(max_p_len=12, passage_stride=11)


def test_passages_may_come_one_by_one_or_as_records(reading):
    """As a program has them; of no passages there is no answer."""
    reader, texts = reading(), ['在北京', '人口是2']
    expected = reader.answer('谁', texts, 2)
    assert expected == reader.answer('谁', iter(texts), np.int64(2))
    assert expected == reader.answer('谁', ({'passage': text, 'answer': ''} for text in texts), 2)
    [answer] = reader.answers(iter([['谁', tuple(texts)]]), 2)
    assert answer == expected
    assert reader.answer('谁', [])[:4] == ('', None, None, None)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (('谁', '中国人口在北京'), TypeError, 'passages: expected a list of str, got a str; give '),
        (('谁', {'passage': '中国'}), TypeError, 'passages: expected a list of str, got a dict'),
        (('谁', ['中国', None]), TypeError, r'passages\[1\]: expected a str, got None'),
        (('谁', [{'text': '中国'}]), TypeError, r'passages\[0\]: expected a str, got None'),
        (('谁', [b'a']), TypeError, r"passages\[0\]: expected a str, got b'a'"),
        (('谁', ['\ud800']), ValueError, r'passages\[0\]: holds half a character'),
        (('谁', 7), TypeError, 'passages: expected a list of str, got a int'),
        ((None, ['中国']), TypeError, 'question: expected a str, got None'),
        (('\udc00', ['中国']), ValueError, 'question: holds half a character'),
        ((' \n', ['中国']), ValueError, 'question: is empty'),
        (('谁', ['中国'], 0), ValueError, 'topk: expected a whole number of at least 1, got 0'),
        (('谁', ['中国'], 1.5), TypeError, 'topk: expected a whole number of at least 1, got 1.5'),
        (('谁', ['中国'], '2'), TypeError, "topk: expected a whole number of at least 1, got '2'"),
    ],
)
def test_what_cannot_be_asked_is_named(reading, arguments, error, message):
    """Rather than answered by chance: each character of a str would be a passage."""
    with pytest.raises(error, match=f'^{message}'):
        reading().answer(*arguments)


@pytest.fixture(scope='module')
def rereading(script, small_bert):
    """A reader that writes a given run of the passage's tokens, whatever these are."""
    reader = script.ReadingComprehension(*small_bert, script.Constants())

    def read(passage, choose):
        written = []

        def probabilities(source, beam):
            if not written:
                written.extend(choose(source[1 : source.index(END)]))
            return {[*written, END][len(beam)]: 1.0}

        reader.unilm = FixedUniLM(probabilities)
        return reader.answer('?', [passage])

    return read


@given(st.text(max_size=20), st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_text_can_be_read(rereading, text, data):
    """Whatever the characters, an answer is found in the passage or decoded; nothing is raised."""

    def choose(token_ids):
        start = data.draw(st.integers(0, len(token_ids)))
        return token_ids[start : data.draw(st.integers(start, len(token_ids)))]

    answer = rereading(text, choose)
    if answer.passage is not None:
        found = text[answer.start : answer.end]
        assert answer.text and answer.text == without_invisible(found)
        assert answer.text == found or set(found) & {*'\u200b\u2060\ufeff\xa0'}


@pytest.mark.parametrize(
    ('passage', 'place', 'text'),
    [
        ('在北\u200b京\u2060市\ufeff里', '北\u200b京\u2060市', '北京市'),
        ('在北京\xa0上海里', '北京\xa0上海', '北京 上海'),  # which training reads as a space
        ('在\u200b北京\u200b里', '北京', '北京'),
        ('在👨\u200d👩\u200d👧里', '👨\u200d👩\u200d👧', '👨\u200d👩\u200d👧'),
        ('在👍🏽❤️里', '👍🏽❤️', '👍🏽❤️'),
        ('在é里', 'é', 'é'),
        ('在\xa0ＡＢ\xa0里', 'ＡＢ', 'ＡＢ'),
    ],
)
def test_text_is_without_what_cannot_be_seen(rereading, passage, place, text):
    """Its place keeps it, and emoji that are joined stay whole."""
    answer = rereading(passage, lambda token_ids: token_ids[1:-1])
    assert (answer.text, passage[answer.start : answer.end]) == (text, place)
    assert answer.candidates[0].text == text


# -------------------------------------------------------------------- against the reference decoder

# questions read together: (seed of the weights, mode, topk, [(passages, question), ...])
tokens = st.integers(4, 30)
passages = st.lists(
    st.lists(tokens, max_size=20) | st.lists(tokens, min_size=1, max_size=1),
    min_size=1,
    max_size=15,
)
repeating = passages.flatmap(
    lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=15) | st.just(some)
)
question_sets = st.tuples(
    st.integers(0, 7),
    st.sampled_from(['extractive', 'generative']),
    st.integers(1, 5),
    st.lists(st.tuples(repeating, st.lists(tokens, max_size=8)), min_size=1, max_size=9),
)


class CompiledReference(SinglePassageDecoder):
    """The reference decoders; the forward pass is compiled, or 2,000 cases would take an hour."""

    def __init__(self, model, max_a_len, mode):
        super().__init__(model, END, max_a_len, mode)
        self.compiled, self.alone = forward_pass_of(model), False

    def forward(self, batch):
        return self.compiled(*batch)

    def vote(self, probas):
        return super().vote(probas) if self.alone else ReferenceDecoder.vote(self, probas)


class Comparison:
    """Compares the reader with the reference decoder, and counts what it has seen."""

    def __init__(self, script, model, tokenizer):
        self.model, self.seen = model, collections.Counter()
        self.readers, self.reference = {}, CompiledReference(model, 6, 'extractive')
        variants = {'post': {}, 'bias': {'no_answer_bias': 0.7}, 'answers': {'vote': 'answer'}}
        unilm = None
        for mode in 'extractive', 'generative':
            for name, changed in variants.items():
                self.constants = script.Constants(max_a_len=6, mode=mode, **changed)
                reader = script.ReadingComprehension(model, tokenizer, self.constants)
                unilm = reader.unilm = unilm or reader.unilm  # traced but once
                self.readers[mode, name] = reader
        size = self.constants.max_p_len - 2
        self.longest = np.random.default_rng(0).integers(4, 30, size).tolist()

    def compare(self, case):
        """Compare the answers to a set of questions, drawn from `question_sets`."""
        seed, mode, topk, drawn = case
        variant = ('post', 'post', 'bias', 'answers')[(seed + topk) % 4]
        reader = self.readers[mode, variant]
        draw(self.model, seed)
        self.reference.mode, questions = mode, []
        self.reference.no_answer_bias = reader.constants.no_answer_bias
        for passages, question in drawn:
            passages = [*passages, self.longest] if seed == 7 else passages
            questions.append(([[CLS, *passage, END] for passage in passages], [*question, END]))
        little_room = len(questions) % 2  # most is read again for each token
        reader.unilm.tokens_remembered = 40 if little_room else UniLM.tokens_remembered
        reader.unilm.tokens_at_once = 60 if little_room else UniLM.tokens_at_once
        self.seen['little room'] += little_room
        together = reader.search(questions, topk)
        for question, found in zip(questions, together, strict=True):
            if variant == 'answers':
                self.compare_vote_on_answers(question, found, topk)
            else:
                self.compare_tokens(question, found, topk)
            self.seen[mode, topk] += 1
            self.seen[variant] += 1

    def compare_tokens(self, question, found, topk):
        """Compare the answer, who took part, and what a passage gave to the answer."""
        p_token_ids, q_token_ids = question
        assert found.answer.token_ids == self.reference.answer(*question, topk)
        remaining = [tuple(p_token_ids[i]) for i in self.reference.remaining]
        assert found.passages == collections.Counter(remaining)
        self.count(p_token_ids, found, len(remaining))
        if not remaining:
            assert found.answer == NO_ANSWER
            return
        # of float32, over several tokens
        assert found.answer.log_score == pytest.approx(self.reference.score, abs=1e-5, rel=3e-6)
        answer, last = found.answer, [*found.passages][-1]
        given = self.reference.given([*last, *q_token_ids], answer.token_ids)
        given = given[: len(answer.probas)]
        assert [x[-1] for x in answer.probas] == pytest.approx(given, abs=1e-6, rel=1e-4)

    def compare_vote_on_answers(self, question, found, topk):
        """Compare the answer that wins."""
        self.reference.alone = True
        assert found.answer.token_ids == self.reference.answer_by_vote(*question, topk)
        self.reference.alone = False

    def count(self, p_token_ids, found, remaining):
        """Count what may go wrong by itself."""
        seen, lengths = self.seen, {*map(len, p_token_ids)}
        seen['cases'] += 1
        seen['repeated passages'] += len({*map(tuple, p_token_ids)}) < len(p_token_ids)
        seen['one-token passages'] += 3 in lengths
        seen['longest passages'] += self.constants.max_p_len in lengths
        seen['all leave'] += not remaining
        seen['some leave'] += 0 < remaining < len(p_token_ids)
        seen['several tokens'] += len(found.answer.token_ids) > 1
        seen['longest answer'] += len(found.answer.token_ids) == self.constants.max_a_len

    def check(self, least):
        """Check that each kind has been seen so often, and every mode with every width."""
        print(dict(self.seen))
        modes = 'extractive', 'generative'
        assert all(self.seen[mode, topk] for mode in modes for topk in (1, 2, 3, 4, 5))
        assert all(count >= least for kind, count in self.seen.items() if isinstance(kind, str))


def test_reader_writes_what_the_reference_decoder_writes_quickly(script, small_bert):
    """150 random questions like the 2,000 of the slow test."""
    comparison, rng, number = Comparison(script, *small_bert), np.random.default_rng(0), 0
    while comparison.seen['cases'] < 150:
        questions = []
        for _ in range(rng.integers(1, 10)):
            lengths = rng.choice([rng.integers(21), 1, 20], rng.integers(1, 12))
            passages = [rng.integers(4, 31, length).tolist() for length in lengths]
            if rng.integers(2):
                passages = [passages[i] for i in rng.integers(len(passages), size=len(passages))]
            questions.append((passages, rng.integers(4, 31, rng.integers(9)).tolist()))
        mode, topk = ('extractive', 'generative')[number % 2], 1 + number // 2 % 5
        comparison.compare((rng.integers(8), mode, topk, questions))
        number += 1
    comparison.check(2)


@pytest.mark.slow
def test_reader_writes_what_the_reference_decoder_writes(script, small_bert):
    """2,000 random questions in sets of 1 to 9, read together; the reference reads each alone."""
    comparison, examples = Comparison(script, *small_bert), 0
    while comparison.seen['cases'] < 2000:  # how many there are in a set is drawn too
        examples += 1
        options = settings(max_examples=50, deadline=None, database=None)
        with_seed(examples)(options(given(question_sets)(comparison.compare)))()
    comparison.check(20)


def test_reference_decoder_writes_what_bert4keras_beam_search_writes(small_bert):
    """The reference's own beam search differs from bert4keras's in ties only."""
    model, _ = small_bert
    decoder = CompiledReference(model, 6, 'generative')
    rng, lengths = np.random.default_rng(1), collections.Counter()
    for i in range(30):
        draw(model, i % 6)
        p_token_ids = [[CLS, *rng.integers(4, 30, 8).tolist(), END] for _ in range(4)]
        topk = 1 + i % 3
        ours = decoder.answer(p_token_ids, [5, END], topk)
        decoder.remaining = np.arange(4)
        sources = [[*p, 5, END] for p in p_token_ids]
        original = bert4keras.snippets.AutoRegressiveDecoder.beam_search
        theirs = original(decoder, sources, topk).tolist()
        assert [token for token in theirs if token != END] == ours
        lengths[len(ours)] += 1
    assert len(lengths) > 2


# ------------------------------------------------------------------------------------------- memory


def resident_memory():
    """Return what this process holds now, in MB; its peak may be an earlier test's."""
    with open('/proc/self/status', encoding='utf-8') as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith('VmRSS'))


@pytest.mark.skipif(
    not os.path.exists('/proc/self/status'), reason='only Linux tells how much memory is held'
)
def test_memory_stays_flat(script, small_bert, monkeypatch):
    """1,000 questions, no two of the same shape: no retracing, no cache that grows."""
    traced, logits = [], UniLM.logits
    monkeypatch.setattr(UniLM, 'logits', lambda *args: traced.append(args) or logits(*args))
    draw(small_bert[0], 0)
    reader = script.ReadingComprehension(*small_bert, script.Constants(max_a_len=4))
    rng, sizes = np.random.default_rng(0), []
    for _ in range(10):
        questions = []
        for _ in range(100):
            lengths = rng.integers(1, 100, rng.integers(1, 12))
            passages = [[CLS, *rng.integers(4, 31, length).tolist(), END] for length in lengths]
            questions.append((passages, [*rng.integers(4, 31, rng.integers(1, 9)).tolist(), END]))
        for start in range(0, 100, 5):
            reader.search(questions[start : start + 5], 1 + start % 3)
            assert len(traced) == 2  # reading once, writing once
        sizes.append(resident_memory())
    print(f'memory after each hundred questions, MB: {[round(size) for size in sizes]}')
    assert sizes[-1] - sizes[2] < 50
