"""support/answers.py: scores, candidates, votes and places, of what was found."""

import json

import numpy as np
import pytest

from support.answers import Hypothesis, describe, score_of, search_result, without_invisible
from support.spans import Question, Window

END = 3


def test_score_by_hand():
    """One certain passage and ten have the same: 1; one that wavers costs the more."""
    assert score_of([[1.0], [1.0]]) == score_of([[1.0] * 10]) == 1
    assert score_of([[0.9, 0.3]]) == pytest.approx((0.81 + 0.09) / 1.2)
    assert score_of([[0.9, 0.3, 0.3]]) == pytest.approx((0.81 + 0.18) / 1.5)
    assert score_of([[0.5], [0.125]]) == pytest.approx(0.25)
    assert score_of([[0.0], [0.5]]) == 0  # where nothing with a vote was left


def test_ends_of_a_text_are_stripped():
    assert without_invisible('\xa0\ufeff 北\xa0京 \u200b') == '北 京'


@pytest.fixture
def described(small_bert):
    """Return a function that describes what was found: (text, finished, token_probs) of each."""
    _, tokenizer = small_bert

    def describe_found(passages, silent, *found):
        p_token_ids = [tokenizer.encode(passage)[0] for passage in passages]
        has_answer = np.array([i not in silent for i in range(len(passages))])
        hypotheses = []
        for text, finished, token_probs in found:
            token_ids = tokenizer.encode(text)[0][1:-1] + [END] * finished
            hypotheses.append(
                Hypothesis(token_ids, -1.0, np.float32(token_probs), finished, 0, 0.5)
            )
        best = hypotheses[0] if hypotheses else None
        no_answer_prob = np.arange(len(passages)) / 8
        result = search_result(has_answer, no_answer_prob, best, hypotheses, topk=3)
        windows = [Window(i, 0, token_ids) for i, token_ids in enumerate(p_token_ids)]
        return describe(result, Question(passages, passages, windows, [5, END]), tokenizer)

    return describe_found


@pytest.mark.parametrize(
    ('silent', 'token_probs', 'place'),
    [
        ([], [[0.9, 0.8, 0.1, 0.8], [0.1, 0.5, 0.9, 0.5]], (1, 1, 3)),  # of equal ones the first
        ([], [[0.9, 0.8, 0.1, 0.8], [0.1, 0.4, 1.0, 0.5]], (3, 0, 2)),
        ([0], [[0.8, 0.1, 0.8], [0.4, 1.0, 0.5]], (3, 0, 2)),
        ([0, 1, 2], [[0.1], [0.1]], (3, 0, 2)),  # one that left may hold it too
        ([], [[0.5, 0.4, 1.0, 0.3], [0.1, 0.9, 1.0, 0.5]], (1, 1, 3)),  # by [SEP] too
        ([], [[0.1, 0.1, 1.0, 0.1]] * 2, (0, 0, 2)),  # the surest does not hold it
    ],
)
def test_place_is_where_the_passage_that_is_surest_has_it(described, silent, token_probs, place):
    """By the product over all tokens; the first place there; of a text that is nowhere, none."""
    passages = ['北京在北京', '在北京', '人口', '北京']
    assert described(passages, silent, ('北京', True, token_probs))[:4] == ('北京', *place)
    nowhere = described(['人口'], [], ('北京', True, [[1.0]] * 3))
    assert nowhere[:4] == ('北京', None, None, None)


@pytest.mark.parametrize(
    ('silent', 'token_probs', 'given'),
    [
        ([1], [[0.5, 0.5, 0.25], [1, 1, 0.5]], [[0.5, 1], [], [0.5, 1], [0.25, 0.5]]),
        # one that was not asked, where whole answers are voted on
        ([], [[np.nan, 0.5, 0.5, 0.5]] * 2, [[], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_votes_are_in_the_order_of_the_passages(described, silent, token_probs, given):
    answer = described(['北京', '人口', '北京', '在北'], silent, ('北', True, token_probs))
    assert [vote.no_answer_prob for vote in answer.votes] == [0.0, 0.125, 0.25, 0.375]
    assert [vote.has_answer for vote in answer.votes] == [i not in silent for i in range(4)]
    assert [vote.token_probs for vote in answer.votes] == given


def test_answer_is_its_first_candidate_and_fits_json(described):
    """Also where all passages leave: its scores are null."""
    answer = described(['北京'], [], ('北', True, [[0.5]] * 2), ('京', False, [[0.5]]))
    assert answer[:7] == answer.candidates[0][:7] == ('北', 0, 0, 1, answer.token_ids, 0.5, -1.0)
    found = [(each.text, each.finished, len(each.token_ids)) for each in answer.candidates]
    assert found == [('北', True, 1), ('京', False, 1)]
    json.dumps(answer)
    answer = described(['北京'], [0])
    assert answer[:7] == ('', None, None, None, [], None, None) and len(answer.candidates) == 1
    assert answer.votes == [(0.0, False, [])] and 'null' in json.dumps(answer)
