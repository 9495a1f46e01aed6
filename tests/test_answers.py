"""support/answers.py: scores, candidates, votes; places in passages, and long ones in windows."""

import json
import types

import numpy as np
import pytest
from conftest import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from support.answers import (
    Hypothesis,
    Question,
    Vote,
    as_dict,
    describe,
    find_span,
    score_of,
    search_result,
    sureness,
    without_invisible,
)

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
            told = {'preferred': [[token] * int(has_answer.sum()) for token in token_ids]}
            found_probs = np.float32(token_probs)
            hypotheses.append(Hypothesis(token_ids, -1.0, found_probs, finished, 0, 0.5, **told))
        best = hypotheses[0] if hypotheses else None
        no_answer_prob = np.arange(len(passages)) / 8
        result = search_result(has_answer, no_answer_prob, best, hypotheses, topk=3)
        windows = [(i, 0) for i in range(len(passages))]
        question = Question(passages, passages, windows, p_token_ids, [5, END])
        return describe(result, question, tokenizer)

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


def test_window_that_wrote_the_answer_stands_for_its_passage():
    """Not one that was never asked, which has no probabilities to multiply."""
    wrote, other = Vote(0.1, True, [0.2, 0.9], ['北', '[SEP]']), Vote(0.0, True, [], ['京'])
    left = Vote(0.9, False, [], [])
    assert sorted([other, left, wrote], key=sureness) == [left, other, wrote]


def test_answer_is_its_first_candidate_and_fits_json(described):
    """Also where all passages leave: its scores are null."""
    answer = described(['北京'], [], ('北', True, [[0.5]] * 2), ('京', False, [[0.5]]))
    assert answer[:7] == answer.candidates[0][:7] == ('北', 0, 0, 1, answer.token_ids, 0.5, -1.0)
    found = [(each.text, each.finished, len(each.token_ids)) for each in answer.candidates]
    assert found == [('北', True, 1), ('京', False, 1)]
    told = json.loads(json.dumps(as_dict(answer)))
    assert [*told['candidates'][1]] == [*[*told][:7], 'finished'] and told['text'] == '北'
    vote = {'no_answer_prob': 0.0, 'has_answer': True, 'token_probs': [0.5] * 2}
    assert told['votes'] == [{**vote, 'preferred': ['北', '[SEP]']}]
    answer = described(['北京'], [0])
    assert answer[:7] == ('', None, None, None, [], None, None) and len(answer.candidates) == 1
    assert answer.votes == [(0.0, False, [], [])] and 'null' in json.dumps(as_dict(answer))


# ------------------------------------------------------------------------------ places and windows


@pytest.fixture(scope='module')
def tokenizer(small_bert):
    """The tokenizer of the vocabulary of the folder `small`."""
    return small_bert[1]


def find(tokenizer, passage, answer, **options):
    """The span of an answer, (start, end) in the passage's tokens or token ids."""
    token_ids = tokenizer.encode(passage, **options)[0]
    if isinstance(answer, tuple):
        answer = token_ids[1:-1][slice(*answer)]
    return find_span(tokenizer, passage, token_ids, 0, answer)


@pytest.mark.parametrize(
    ('passage', 'tokens', 'span'),
    [
        ('中国AB在20年', (2, 3), (2, 4)),  # a token of two characters, in the passage's case
        ('中国ab1在', (2, 4), (2, 5)),  # a word of two tokens
        ('中国ab1在', (3, 4), (4, 5)),  # and its end
        ('天津\t\u3000 北京', (1, 3), (1, 6)),  # white space within is kept ...
        ('天津\t\u3000 北京', (2, 4), (5, 7)),  # ... and that before is not
        ('在cafe\u0301e里', (1, 5), (1, 6)),  # an accent of its own goes with its letter
        ('İİ在北京', (-2, None), (3, 5)),  # each becomes two characters when lower-cased
        ('北海北京的北京', (5, 7), (2, 4)),  # the first place, though a longer run begins before
        ('北北北京', (1, 3), (0, 2)),  # also where places overlap
        ('中\U0001d16d\U0001d165国', (0, 1), (0, 1)),  # marks that Unicode sorts, after which
        ('中\U0001d16d\U0001d165国', (-1, None), None),  # nothing can be matched any more
        ('北京', (0, 0), None),  # the empty answer
    ],
)
def test_characters_of_tokens(tokenizer, passage, tokens, span):
    assert find(tokenizer, passage, tokens) == span


def test_tokens_that_stand_nowhere_have_no_place(tokenizer):
    """[CLS] and [SEP] are none of the passage's tokens; what was cut off is not there."""
    token_ids = tokenizer.encode('北京上海')[0]
    for answer in token_ids[:2], token_ids[-2:], token_ids[2:4][::-1], [*token_ids, 5]:
        assert find(tokenizer, '北京上海', answer) is None
    assert find(tokenizer, '', token_ids[1:2]) is None
    for maxlen, span in (6, (2, 4)), (5, None):
        assert find(tokenizer, '北京上海的上海', token_ids[3:5], maxlen=maxlen) == span


@given(st.text('中国北京𠮷喆犇，。 、；「Ａ\t\n\u3000', max_size=30), st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_offsets_are_those_of_the_first_place_with_these_tokens(tokenizer, text, data):
    """Here every character is one token, but white space, which is none."""
    text = text.replace('Ａ', 'Ａ。')  # two of them in a row would be one word
    places = [i for i, character in enumerate(text) if character not in ' \t\n\u3000']
    token_ids = tokenizer.encode(text)[0][1:-1]
    assert len(places) == len(token_ids)
    if places:
        start = data.draw(st.integers(0, len(places) - 1))
        length = data.draw(st.integers(1, len(places) - start))
        answer = token_ids[start : start + length]
        first = next(i for i in range(start + 1) if token_ids[i : i + length] == answer)
        expected = places[first], places[first + length - 1] + 1
        assert find(tokenizer, text, answer) == expected


def cut(p_token_ids, max_p_len, stride):
    """What is read of passages: for each window its passage, the tokens before it, its own."""
    constants = types.SimpleNamespace(max_p_len=max_p_len, passage_stride=stride)
    question = Question.of([], [], p_token_ids, [], constants)
    return [(*place, ids) for place, ids in zip(*question[2:4], strict=True)]


@pytest.mark.parametrize(
    ('tokens', 'stride', 'starts'),
    [
        (0, 0, [0]), (0, 2, [0]), (3, 2, [0]), (4, 2, [0]), (5, 2, [0, 2]), (6, 2, [0, 2]),
        (7, 2, [0, 2, 4]), (9, 4, [0, 4, 8]), (8, 4, [0, 4]), (5, 1, [0, 1]), (20, 0, [0]),
    ],
)  # fmt: skip
def test_windows_end_with_the_one_that_reaches_the_end(tokens, stride, starts):
    """Four tokens each, with [CLS] and [SEP] of their own; together they hold every token."""
    text = [*range(10, 10 + tokens)]
    windows = cut([[2, 3], [2, *text, 3]], 6, stride)
    assert windows[0] == (0, 0, [2, 3])
    assert windows[1:] == [(1, start, [2, *text[start : start + 4], 3]) for start in starts]
    if stride:
        assert {*text} == {i for *_, token_ids in windows for i in token_ids[1:-1]}
    else:
        what = 'passage_stride = 5: leaves tokens unread; at most 4'
        assert refusal(cut, [[2, *text, 3]], 6, 5) == what


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_place_in_a_window_is_that_of_the_whole_passage(tokenizer, stride):
    """Whatever stands before it, white space and characters outside the vocabulary too."""
    passage, answer = '中 𠮷国\t北京，上\u3000海AB在20年北京', tokenizer.encode('北京')[0][1:-1]
    windows = cut([tokenizer.encode(passage)[0]], 5, stride)
    found = {find_span(tokenizer, passage, ids, before, answer) for _, before, ids in windows}
    found.remove(None)
    assert {passage[slice(*span)] for span in found} == {'北京'}
    assert (5, 7) in found and (stride > 2 or (len(passage) - 2, len(passage)) in found)
