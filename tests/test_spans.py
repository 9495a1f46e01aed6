"""support/spans.py: from tokens back to the characters of the passage, whatever these are."""

import pytest
from conftest import write_small
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bert import load_tokenizer
from support.spans import Window, find_span, windows_of


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    """The tokenizer of the vocabulary of the folder `small`."""
    return load_tokenizer(str(write_small(tmp_path_factory.mktemp('small')) / 'vocab.txt'))[0]


def find(tokenizer, passage, token_ids, answer):
    """The span of an answer in a passage that is read from its beginning."""
    return find_span(tokenizer, passage, Window(0, 0, token_ids), answer)


def span_of(tokenizer, passage, start, end, **options):
    """Return the span of tokens start to end of a passage, [CLS] not counted."""
    token_ids = tokenizer.encode(passage, **options)[0]
    return find(tokenizer, passage, token_ids, token_ids[1:-1][start:end])


@pytest.mark.parametrize(
    ('passage', 'start', 'end', 'text'),
    [
        ('中国AB在20年', 2, 3, 'AB'),  # a token of two characters, in the passage's case
        ('中国ab1在', 2, 4, 'ab1'),  # a word of two tokens
        ('中国ab1在', 3, 4, '1'),  # and its end
        ('天津\t\u3000 北京', 1, 3, '津\t\u3000 北'),  # white space within is kept ...
        ('天津\t\u3000 北京', 2, 4, '北京'),  # ... and that before is not
        ('在𠮷犇里', 1, 3, '𠮷犇'),  # neither is in the vocabulary
        ('在cafe\u0301e里', 1, 5, 'cafe\u0301'),  # an accent of its own goes with its letter
        ('İİ在北京', -2, None, '北京'),  # each becomes two characters when lower-cased
        ('ΑΣ在', 0, 2, 'ΑΣ'),  # a capital that has two lower-case forms
    ],
)
def test_characters_of_tokens(tokenizer, passage, start, end, text):
    first, last = span_of(tokenizer, passage, start, end)
    assert passage[first:last] == text


def test_first_of_several_places(tokenizer):
    """Also where a longer run begins before it, and where places overlap."""
    assert span_of(tokenizer, '北海北京的北京', 5, 7) == (2, 4)
    assert span_of(tokenizer, '北北北京', 1, 3) == (0, 2)


def test_tokens_that_stand_nowhere_have_no_place(tokenizer):
    """Nor has the empty answer; [CLS] and [SEP] are none of the passage's tokens."""
    token_ids = tokenizer.encode('北京上海')[0]
    for answer in [], token_ids[:2], token_ids[-2:], token_ids[2:4][::-1], [*token_ids, 5]:
        assert find(tokenizer, '北京上海', token_ids, answer) is None
    assert find(tokenizer, '', tokenizer.encode('')[0], token_ids[1:2]) is None


def test_passage_is_searched_as_far_as_it_was_read(tokenizer):
    """What was cut off is not there, though the text goes on."""
    answer = tokenizer.encode('上海')[0][1:-1]
    passage = '北京上海的上海'
    cut = tokenizer.encode(passage, maxlen=6)[0]
    assert find(tokenizer, passage, cut, answer) == (2, 4)
    cut = tokenizer.encode(passage, maxlen=5)[0]
    assert find(tokenizer, passage, cut, answer) is None


def test_marks_that_normalization_puts_in_order_raise_nothing(tokenizer):
    """Unicode sorts the two marks of music after 中, which cannot be matched any more."""
    passage = '中\U0001d16d\U0001d165国'
    assert span_of(tokenizer, passage, 0, 1) == (0, 1)
    assert span_of(tokenizer, passage, -1, None) is None


@given(st.text(max_size=30), st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_can_be_searched(tokenizer, text, data):
    """Whatever the characters, there is a place of some of them, or none; nothing is raised."""
    token_ids = tokenizer.encode(text, maxlen=256)[0]
    if len(token_ids) > 2:
        answer = token_ids[slice(*run(data, len(token_ids) - 2, 1))]
        found = find(tokenizer, text, token_ids, answer)
        assert found is None or 0 <= found[0] < found[1] <= len(text)


@given(st.text('中国北京𠮷喆犇，。 、；「Ａ\t\n\u3000', max_size=30), st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_offsets_are_those_of_the_first_place_with_these_tokens(tokenizer, text, data):
    """Here every character is one token, but white space, which is none."""
    text = text.replace('Ａ', 'Ａ。')  # two of them in a row would be one word
    places = [i for i, character in enumerate(text) if character not in ' \t\n\u3000']
    token_ids = tokenizer.encode(text)[0]
    assert len(places) == len(token_ids) - 2
    if places:
        start, end = run(data, len(places))
        answer = token_ids[1:-1][start:end]
        starts = range(start + 1)
        first = next(i for i in starts if token_ids[1 + i : 1 + i + end - start] == answer)
        expected = places[first], places[first + end - start - 1] + 1
        assert find(tokenizer, text, token_ids, answer) == expected


def run(data, length, first=0):
    """Draw the start and end of some of so many tokens."""
    start = data.draw(st.integers(0, length - 1))
    return first + start, first + data.draw(st.integers(start + 1, length))


# ------------------------------------------------------------------------------------- the windows


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
    windows = windows_of(7, [2, *text, 3], 6, stride)
    assert [window.start for window in windows] == starts
    for window in windows:
        assert window == (7, window.start, [2, *text[window.start : window.start + 4], 3])
    if stride:
        assert {*text} == {i for window in windows for i in window.token_ids[1:-1]}


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_place_in_a_window_is_that_of_the_whole_passage(tokenizer, stride):
    """Whatever stands before it, white space and characters outside the vocabulary too."""
    passage = '中 𠮷国\t北京，上\u3000海AB在20年北京'
    token_ids = tokenizer.encode(passage)[0]
    answer = tokenizer.encode('北京')[0][1:-1]
    found = {
        find_span(tokenizer, passage, window, answer)
        for window in windows_of(0, token_ids, 5, stride)
    }
    assert {passage[slice(*span)] for span in found - {None}} == {'北京'}
    assert found >= {(5, 7)} and (stride > 2 or (len(passage) - 2, len(passage)) in found)
