"""An answer's place in its passage: from tokens back to the characters that they were."""

import unicodedata


def find_span(tokenizer, passage, token_ids, answer):
    """Find the first place of an answer's tokens in a passage.

    passage: str, as it was tokenized; token_ids: its token ids with [CLS] and [SEP], perhaps cut;
    answer: list of int. Returns (start, end), in characters; None where it does not stand there.
    """
    text, length = token_ids[1:-1], len(answer)
    for start in range(len(text) - length + 1) if answer else ():
        if text[start : start + length] == answer:
            span = _characters(tokenizer, passage, start, start + length)
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
