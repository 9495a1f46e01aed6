"""support/spans.py: from tokens back to the characters of the passage, and long ones in windows."""

import types

import pytest
from conftest import refusal, write_small
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bert import load_tokenizer
from support.spans import Window, find_span, windows_of


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    """The tokenizer of the vocabulary of the folder `small`."""
    return load_tokenizer(str(write_small(tmp_path_factory.mktemp('small')) / 'vocab.txt'))[0]


def find(tokenizer, passage, answer, **options):
    """The span of an answer, (start, end) in the passage's tokens or token ids."""
    token_ids = tokenizer.encode(passage, **options)[0]
    if isinstance(answer, tuple):
        answer = token_ids[1:-1][slice(*answer)]
    return find_span(tokenizer, passage, Window(0, 0, token_ids), answer)


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
    constants = types.SimpleNamespace(max_p_len=max_p_len, passage_stride=stride)
    return windows_of(p_token_ids, constants)


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
        assert {*text} == {i for window in windows for i in window.token_ids[1:-1]}
    else:
        what = 'passage_stride = 5: leaves tokens unread; at most 4'
        assert refusal(cut, [[2, *text, 3]], 6, 5) == what


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_place_in_a_window_is_that_of_the_whole_passage(tokenizer, stride):
    """Whatever stands before it, white space and characters outside the vocabulary too."""
    passage, answer = '中 𠮷国\t北京，上\u3000海AB在20年北京', tokenizer.encode('北京')[0][1:-1]
    windows = cut([tokenizer.encode(passage)[0]], 5, stride)
    found = {find_span(tokenizer, passage, window, answer) for window in windows} - {None}
    assert {passage[slice(*span)] for span in found} == {'北京'}
    assert (5, 7) in found and (stride > 2 or (len(passage) - 2, len(passage)) in found)
