"""One answer and the votes on it, as lines for a terminal; a page of many is in report.py."""

import math
import os
import sys

from .console import is_terminal, visible


def print_answer(answer, passages, tokenizer):
    """Print an Answer; passages: list of str, what was read of them."""
    tokens = [*tokenizer.ids_to_tokens(answer.token_ids), '[SEP]']
    print(as_text(passages, answer, tokens, has_colour(sys.stdout)))


def as_text(passages, answer, tokens, colour):
    """Return an Answer and its passages, those that voted most first, as one str.

    passages: list of str; tokens: of the answer and its [SEP], list of str; colour: whether what is
    marked has another one; without, the answer stands in brackets.
    """
    mark, fade = ('\x1b[7m{}\x1b[0m', '\x1b[2m{}\x1b[0m') if colour else ('[{}]', '{}')
    lines = [f'answer: {visible(answer.text) or "(none)"}{_scored(answer)}']
    for candidate in answer.candidates[1:]:
        finished = '' if candidate.finished else ', not finished'
        lines.append(f'    or: {visible(candidate.text)}{_scored(candidate)}{finished}')

    def rank(i):
        return not answer.votes[i].has_answer, -math.prod(answer.votes[i].token_probs)

    for i in sorted(range(len(passages)), key=rank):
        vote, passage, text = answer.votes[i], visible(passages[i]), visible(answer.text)
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
        votes = '  '.join(f'{visible(token)} {prob:.2f}' for token, prob in pairs)
        lines.append(f'passage {i + 1} votes: {votes}' if votes else f'passage {i + 1}')
        lines.append(f'  {passage}')
    return '\n'.join(lines)


def _scored(candidate):
    return '' if candidate.score is None else f' (score {candidate.score:.3f})'


def has_colour(stream):
    """Whether what is written to a stream is seen in a terminal that knows colours."""
    return is_terminal(stream) and os.environ.get('TERM', 'dumb') != 'dumb'
