"""support/answers.py: scores, candidates, votes and places, of what was found."""

import json

import numpy as np
import pytest

from support.answers import NO_ANSWER, Found, Written, as_record, describe, score_of
from support.spans import Window

CLS, END = 2, 3


def test_score_by_hand():
    """One certain passage and ten have the same: 1; one that wavers costs the more."""
    ones = np.ones(1)
    assert score_of([[1.0], [1.0]], ones) == 1 == score_of([[1.0] * 10], np.ones(10))
    assert score_of([[1.0], [1.0]], 3 * ones) == 1
    assert score_of([[0.9, 0.3]], np.ones(2)) == pytest.approx((0.81 + 0.09) / 1.2)
    assert score_of([[0.9, 0.3]], np.array([1, 2])) == pytest.approx((0.81 + 0.18) / 1.5)
    assert score_of([[0.5], [0.125]], ones) == pytest.approx(0.25)
    assert score_of([[0.0], [0.5]], ones) == 0  # where nothing with a vote was left


@pytest.fixture
def described(script, small_bert):
    """Return a function that describes what was found in some passages."""
    _, tokenizer = small_bert

    def describe_candidates(passages, silent, *candidates):
        p_token_ids = [tokenizer.encode(passage)[0] for passage in passages]
        numbers = dict.fromkeys(map(tuple, p_token_ids))
        took_part = {ids: 1 for k, ids in enumerate(numbers) if k not in silent}
        no_answer = {ids: np.float32(k / 8) for k, ids in enumerate(numbers)}
        written = []
        for text, finished, probas in candidates:
            token_ids = tokenizer.encode(text)[0][1:-1]
            written.append(Written(token_ids, 0.5, -1.0, np.float32(probas), finished))
        found = Found(took_part, no_answer, written or [NO_ANSWER])
        windows = [Window(i, 0, token_ids) for i, token_ids in enumerate(p_token_ids)]
        return describe(found, passages, passages, windows, tokenizer)

    return describe_candidates


def test_place_is_where_the_passage_that_voted_most_has_it(described):
    """By the product over all tokens; of equal ones the earlier, without a place the next."""
    passages = ['北京在', '在北京', '人口', '北京']
    probas = [[0.9, 0.8, 0.1, 0.8], [0.1, 0.5, 0.9, 0.5], [0.9, 0.9, 0.9, 0.9]]
    answer = described(passages, [], ('北京', True, probas))
    assert answer[:4] == ('北京', 1, 1, 3)
    probas[1] = [0.1, 0.4, 1.0, 0.5]
    assert described(passages, [], ('北京', True, probas))[:4] == ('北京', 3, 0, 2)
    without_first = [row[1:] for row in probas]
    assert described(passages, [0], ('北京', True, without_first))[:4] == ('北京', 3, 0, 2)
    probas = [[0.5, 0.4, 1.0, 0.3], [0.5, 0.5, 1.0, 0.5], [0.5, 0.9, 1.0, 0.5]]
    assert described(passages, [], ('北京', True, probas))[:4] == ('北京', 1, 1, 3)  # by [SEP]
    probas = [[0.1, 0.1, 1.0, 0.1]] * 3  # the passage that is surest does not hold it
    assert described(passages, [], ('北京', True, probas))[:4] == ('北京', 0, 0, 2)
    text, *place = described(['人口'], [], ('北京', True, [[1.0]] * 3))[:4]
    assert text == '北京' and place == [None] * 3


def test_votes_are_in_the_order_of_the_passages(described):
    """A passage given twice has the same twice; one that left says so and nothing more."""
    answer = described(
        ['北京', '人口', '北京', '在北'], [1], ('北', True, [[0.5, 0.25], [1.0, 0.5]])
    )
    assert [vote.no_answer for vote in answer.votes] == [0.0, 0.125, 0.0, 0.25]
    assert [vote.took_part for vote in answer.votes] == [True, False, True, True]
    given = [vote.probas for vote in answer.votes]
    assert given == [[0.5, 1.0], [], [0.5, 1.0], [0.25, 0.5]]


def test_passage_that_was_not_asked_has_no_probabilities(described):
    """Where whole answers are voted on: what it would have given to another's is not known."""
    answer = described(['北京', '人口'], [], ('人口', True, [[np.nan, 0.5], [np.nan, 0.5]]))
    assert [vote.probas for vote in answer.votes] == [[], [0.5, 0.5]]
    assert answer[:4] == ('人口', 1, 0, 2)


def test_answer_is_its_first_candidate_and_fits_json(described):
    """Also where all passages leave: its scores are null."""
    probas = [[0.5], [0.5]]
    answer = described(['北京'], [], ('北', True, probas), ('京', False, probas[:1]))
    assert answer[:7] == answer.candidates[0][:7]
    assert [x.finished for x in answer.candidates] == [True, False]
    assert [x.text for x in answer.candidates] == ['北', '京']
    json.dumps(answer)
    answer = described(['北京'], [0])
    assert answer[:7] == ('', None, None, None, [], None, None) and len(answer.candidates) == 1
    assert not answer.votes[0].took_part
    assert 'null' in json.dumps(answer)


def test_record_of_an_answer_has_all_of_it(described):
    """Under the same names, and nothing that JSON has no word for."""
    probas = [[0.5, 0.25], [1.0, 0.5]]
    answer = described(['北京', '在'], [], ('北', True, probas), ('京', False, probas[:1]))
    told = as_record({'id': 'a', 'question': '谁？', 'passages': []}, answer, '')
    assert [*told] == ['id', 'question', *answer._fields]
    candidates, votes = told.pop('candidates'), told.pop('votes')
    assert [*told.values()] == ['a', '谁？', *answer[:-2]]
    assert candidates == [candidate._asdict() for candidate in answer.candidates]
    assert votes == [vote._asdict() for vote in answer.votes] and votes[0]['probas'] == [0.5, 1.0]
    assert json.loads(json.dumps([told, candidates, votes])) == [told, candidates, votes]


def test_record_that_was_not_answered_says_why():
    told = as_record({'passages': []}, None, 'no question')
    assert told == {'id': None, 'question': None, 'text': '', 'error': 'no question'}
