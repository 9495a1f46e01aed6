"""One answer and the votes on it, as lines for a terminal; a page of many is in report.py."""

import math
import os
import re
import sys


def print_answer(answer, passages, tokenizer):
    """Print an Answer; passages: list of str, what was read of them."""
    tokens = [*tokenizer.ids_to_tokens(answer.token_ids), '[SEP]']
    print(as_text(passages, answer, tokens, has_colour(sys.stdout)))


def print_lines(text):
    """Print lines, for a terminal without what it would take for a command."""
    print(lines_for(sys.stdout, text), end='', flush=True)


def as_text(passages, answer, tokens, colour):
    """Return an Answer and its passages, those that voted most first, as one str.

    passages: list of str; tokens: of the answer and its [SEP], list of str; colour: whether what is
    marked has another one; without, the answer stands in brackets.
    """
    mark, fade = ('\x1b[7m{}\x1b[0m', '\x1b[2m{}\x1b[0m') if colour else ('[{}]', '{}')
    lines = [f'answer: {_visible(answer.text) or "(none)"}{_scored(answer)}']
    for candidate in answer.candidates[1:]:
        finished = '' if candidate.finished else ', not finished'
        lines.append(f'    or: {_visible(candidate.text)}{_scored(candidate)}{finished}')

    def rank(i):
        return not answer.votes[i].has_answer, -math.prod(answer.votes[i].token_probs)

    for i in sorted(range(len(passages)), key=rank):
        vote, passage, text = answer.votes[i], _visible(passages[i]), _visible(answer.text)
        if not vote.has_answer:
            lines.append(f'passage {i + 1} left: no answer {vote.no_answer_prob:.2f}')
            lines.append(f'  {fade.format(passage)}')
            continue
        if i == answer.passage:
            start, end = answer.start, answer.end
            passage = passage[:start] + mark.format(passage[start:end]) + passage[end:]
        elif text:
            passage = passage.replace(text, mark.format(text))
        pairs = zip(tokens, vote.token_probs, strict=False)  # none where it was not asked
        votes = '  '.join(f'{_visible(token)} {prob:.2f}' for token, prob in pairs)
        lines.append(f'passage {i + 1} votes: {votes}' if votes else f'passage {i + 1}')
        lines.append(f'  {passage}')
    return '\n'.join(lines)


def _visible(text):
    """Return a text without what a terminal would take for a command, as long as before."""
    return re.sub('[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]', ' ', text)


def _scored(candidate):
    return '' if candidate.score is None else f' (score {candidate.score:.3f})'


def lines_for(stream, text):
    """Return lines as they are, for a terminal without what it would take for a command."""
    if not is_terminal(stream):
        return text
    return '\n'.join('\t'.join(map(_visible, line.split('\t'))) for line in text.split('\n'))


def has_colour(stream):
    """Whether what is written to a stream is seen in a terminal that knows colours."""
    return is_terminal(stream) and os.environ.get('TERM', 'dumb') != 'dumb'


def is_terminal(stream):
    """Whether what is written to a stream is seen at once; some streams do not know."""
    return hasattr(stream, 'isatty') and stream.isatty()
