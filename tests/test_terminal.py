"""support/terminal.py: an answer and its passages as lines of text."""

import io
import types

import pytest

from support.answers import Answer, Candidate, Vote
from support.terminal import as_text, has_colour

LEFT = Vote(no_answer_prob=0.9876, has_answer=False, token_probs=[])
NOTHING = Candidate('', None, None, None, [], None, None, True)
BEGUN = Candidate('北', 0, 1, 2, [7], 0.125, -3.0, finished=False)


def answer_of(votes, text='北京', passage=0, start=1, others=()):
    """An Answer that stands in a passage from `start` on."""
    first = Candidate(text, passage, start, start + len(text), [7, 8], 0.5, -1.0, True)
    return Answer(*first[:-1], [first, *others], votes)


def vote(*token_probs):
    """That of a passage that took part."""
    return Vote(0.1, True, [*token_probs])


@pytest.mark.parametrize(
    ('passages', 'answer', 'lines'),
    [
        # in the order of the votes, each with its number as given; who left comes last
        (['天津北京', '在北京。', '在北京市，北京'],
         answer_of([LEFT, vote(0.5, 0.5, 1.0), vote(0.9, 0.8, 1.0)], passage=2),
         ['answer: 北京 (score 0.500)',
          'passage 3 votes: 北 0.90  京 0.80  [SEP] 1.00', '  在[北京]市，北京',
          'passage 2 votes: 北 0.50  京 0.50  [SEP] 1.00', '  在[北京]。',
          'passage 1 left: no answer 0.99', '  天津北京']),
        # other candidates follow the answer; a passage without probabilities was not asked
        (['在北京'], answer_of([vote()], others=[NOTHING._replace(score=0.25), BEGUN]),
         ['answer: 北京 (score 0.500)', '    or:  (score 0.250)',
          '    or: 北 (score 0.125), not finished', 'passage 1', '  在[北京]']),
        (['天津'], Answer(*NOTHING[:-1], [NOTHING], [LEFT]),
         ['answer: (none)', 'passage 1 left: no answer 0.99', '  天津']),
    ],
)  # fmt: skip
def test_answer_comes_first_then_passages_by_their_votes(passages, answer, lines):
    text = as_text(passages, answer, ['北', '京', '[SEP]'], colour=False)
    assert text.splitlines() == lines


@pytest.mark.parametrize(
    ('colour', 'marked', 'faded'),
    [(False, '[北 [2J 京]', ' '), (True, '\x1b[7m北 [2J 京\x1b[0m', '\x1b[2m \x1b[0m')],
)
def test_passages_give_no_commands_to_the_terminal(colour, marked, faded):
    """The place is that of the answer all the same; only the marks are ours."""
    passages, text = ['\x1b\x9b北\x1b[2J\u2028京', '\x07'], '北\x1b[2J\u2028京'
    answer = answer_of([vote(1.0), LEFT], text, start=2)
    lines = as_text(passages, answer, ['北'], colour).split('\n')
    assert lines[0] == 'answer: 北 [2J 京 (score 0.500)'
    assert (lines[2], lines[4]) == (f'    {marked}', f'  {faded}')


@pytest.mark.parametrize(
    ('terminal', 'kind', 'colour'),
    [(True, 'xterm', True), (True, 'dumb', False), (False, 'xterm', False)],
)
def test_only_terminals_get_colours(monkeypatch, terminal, kind, colour):
    """Some streams do not know what they are."""
    monkeypatch.setenv('TERM', kind)
    assert has_colour(types.SimpleNamespace(isatty=lambda: terminal)) == colour
    assert not has_colour(io.StringIO()) and not has_colour(None)
