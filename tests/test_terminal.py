"""support/terminal.py: an answer and its passages as lines of text."""

import io
import types

import pytest

from support.answers import Answer, Candidate, Vote
from support.terminal import as_text, has_colour, lines_for

LEFT = Vote(0.9876, False, [])


def answer_of(votes, text='北京', passage=0, start=1, others=()):
    """An Answer that stands in a passage from `start` on."""
    first = Candidate(text, passage, start, start + len(text), [7, 8], 0.5, -1.0, True)
    return Answer(*first[:-1], [first, *others], votes)


def test_passages_come_in_the_order_of_their_votes():
    """Each with its number as given, and its probability of each token; who left comes last."""
    votes = [LEFT, Vote(0.1, True, [0.5, 0.5, 1.0]), Vote(0.1, True, [0.9, 0.8, 1.0])]
    passages = ['天津北京', '在北京。', '在北京市，北京']
    text = as_text(passages, answer_of(votes, passage=2), ['北', '京', '[SEP]'], colour=False)
    assert text.splitlines() == [
        'answer: 北京 (score 0.500)',
        'passage 3 votes: 北 0.90  京 0.80  [SEP] 1.00',
        '  在[北京]市，北京',
        'passage 2 votes: 北 0.50  京 0.50  [SEP] 1.00',
        '  在[北京]。',
        'passage 1 left: no answer 0.99',
        '  天津北京',
    ]


def test_candidates_follow_the_answer():
    others = [
        Candidate('', None, None, None, [], 0.25, -2.0, True),
        Candidate('北', 0, 1, 2, [7], 0.125, -3.0, False),
    ]
    text = as_text(['在北京'], answer_of([Vote(0.0, True, [])], others=others), [], colour=False)
    assert text.splitlines() == [
        'answer: 北京 (score 0.500)',
        '    or:  (score 0.250)',
        '    or: 北 (score 0.125), not finished',
        'passage 1',  # it was not asked
        '  在[北京]',
    ]


def test_no_answer_is_said():
    nothing = Candidate('', None, None, None, [], None, None, True)
    answer = Answer(*nothing[:-1], [nothing], [LEFT])
    assert as_text(['天津'], answer, ['[SEP]'], colour=False).splitlines() == [
        'answer: (none)',
        'passage 1 left: no answer 0.99',
        '  天津',
    ]


def test_passages_give_no_commands_to_the_terminal():
    """The place is that of the answer all the same; only the marks are ours."""
    passage = '\x1b\x9b北\x1b[2J\u2028京'
    votes = [Vote(0.1, True, [1.0]), LEFT]
    answer = answer_of(votes, '北\x1b[2J\u2028京', start=2)
    plain = as_text([passage, '\x07'], answer, ['北'], colour=False)
    assert plain.splitlines()[0] == 'answer: 北 [2J 京 (score 0.500)'
    assert plain.splitlines()[2] == '    [北 [2J 京]'
    coloured = as_text([passage, '\x07'], answer, ['北'], colour=True)
    assert coloured.splitlines()[2] == '    \x1b[7m北 [2J 京\x1b[0m'
    assert coloured.splitlines()[4] == '  \x1b[2m \x1b[0m'


def test_lines_give_no_commands_to_a_terminal_and_are_exact_elsewhere():
    lines = 'a\x1b]0;\t北\x9b2J\u202e京\nb\t\n'
    shown = lines_for(types.SimpleNamespace(isatty=lambda: True), lines)
    assert shown == 'a ]0;\t北 2J 京\nb\t\n'
    assert lines_for(io.StringIO(), lines) == lines_for(None, lines) == lines


@pytest.mark.parametrize(
    ('terminal', 'kind', 'coloured'),
    [(True, 'xterm', True), (True, 'dumb', False), (False, 'xterm', False)],
)
def test_colours_are_for_terminals(monkeypatch, terminal, kind, coloured):
    monkeypatch.setenv('TERM', kind)
    assert has_colour(types.SimpleNamespace(isatty=lambda: terminal)) == coloured
    assert not has_colour(io.StringIO()) and not has_colour(None)
