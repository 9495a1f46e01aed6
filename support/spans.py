"""A question as it is read, long passages in windows, and an answer's place in its passage."""

import typing
import unicodedata

from evaluate_sogou import UserError


class Window(typing.NamedTuple):
    """A piece of a passage, which is read like a passage."""

    passage: int  # its number
    start: int  # tokens of the passage before it
    token_ids: list  # with [CLS] and [SEP]


class Question(typing.NamedTuple):
    """A question and its passages, as text and as token ids."""

    passages: list  # of str
    unified: list  # of str, as they are tokenized, character by character
    windows: list  # of Window, what is read of the passages
    q_token_ids: list  # of int, with its [SEP]

    @classmethod
    def of(cls, passages, unified, p_token_ids, q_token_ids, constants):
        """Return the Question whose passages are cut into windows; p_token_ids: of whole ones."""
        return cls(passages, unified, windows_of(p_token_ids, constants), q_token_ids)

    @property
    def p_token_ids(self):
        """The token ids of each window, a list of lists."""
        return [window.token_ids for window in self.windows]

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


def windows_of(p_token_ids, constants):
    """Cut passages into Windows of `max_p_len` tokens, a new one after every `passage_stride`.

    p_token_ids: of whole passages, a list of lists, each with [CLS] and [SEP], as a window.
    """
    windows, size = [], constants.max_p_len - 2
    for number, (first, *text, last) in enumerate(p_token_ids):
        for start in window_starts(len(text), size, constants.passage_stride):
            windows.append(Window(number, start, [first, *text[start : start + size], last]))
    return windows


def find_span(tokenizer, passage, window, token_ids):
    """Find the first place of an answer's tokens in a window of a passage.

    passage: str, as it was tokenized; window: Window; token_ids: of the answer, list of int.
    Returns (start, end), in characters of the passage; None where it does not stand there.
    """
    text, length = window.token_ids[1:-1], len(token_ids)
    for start in range(len(text) - length + 1) if token_ids else ():
        if text[start : start + length] == token_ids:
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
