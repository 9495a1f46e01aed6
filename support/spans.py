"""Windows of a passage, and an answer's place in it: from tokens back to characters."""

import typing
import unicodedata


class Window(typing.NamedTuple):
    """A piece of a passage, which is read like a passage."""

    passage: int  # its number
    start: int  # tokens of the passage before it
    token_ids: list  # with [CLS] and [SEP]


def window_starts(length, size, stride):
    """Return where windows of `size` begin in a text, a new one after every `stride`: a range.

    None begins after one that reached the end; stride: 0 for the first window alone.
    """
    return range(0, max(length - size + stride, 1), stride) if stride else range(1)


def windows_of(number, token_ids, size, stride):
    """Cut a passage into Windows of `size` tokens, see `window_starts`.

    number: of the passage; token_ids: with [CLS] and [SEP], as those of a window, which count in
    `size`.
    """
    (first, *text, last), size = token_ids, size - 2
    starts = window_starts(len(text), size, stride)
    return [Window(number, i, [first, *text[i : i + size], last]) for i in starts]


def find_span(tokenizer, passage, window, answer):
    """Find the first place of an answer's tokens in a window of a passage.

    passage: str, as it was tokenized; window: Window; answer: list of int. Returns (start, end), in
    characters of the passage; None where it does not stand there.
    """
    token_ids = window.token_ids
    text, length = token_ids[1:-1], len(answer)
    for start in range(len(text) - length + 1) if answer else ():
        if text[start : start + length] == answer:
            first = window.start + start
            span = _characters(tokenizer, passage, first, first + length)
            if span:
                return span
    return None


def _characters(tokenizer, passage, start, end):
    tokens = tokenizer.tokenize(passage)[1 : end + 1]
    try:
        # İ is the one character whose lower case is two characters
        characters = tokenizer.rematch(passage.replace('İ', 'i'), tokens)
    except ValueError:  # marks in an order that Unicode normalization changes
        return None
    first, last = characters[start][0], characters[end - 1][-1] + 1
    while last < len(passage) and unicodedata.category(passage[last]) == 'Mn':
        last += 1  # an accent written as a character of its own
    return first, last
