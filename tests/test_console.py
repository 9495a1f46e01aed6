"""support/console.py: what is said is one line, only to whom it is for, and ends in a status."""

import contextlib
import json
import os
import subprocess
import sys
import types

import pytest
from conftest import ROOT, UserError, refusal

from support import console

LINE_BREAKS, COMMANDS = '\x00\t\n\r\x07\x1b\x85\u2028\u2029', '\x7f\x9b\u202e\u2066'
PROGRAM = """
import os
from support.console import exit_status, log
def command():
    with open('file', 'w'):
        os.write(2, b'of a library\\n')
    log('said')
    print('shown')
raise SystemExit(exit_status(command))
"""


@pytest.mark.parametrize('found', LINE_BREAKS + COMMANDS)
def test_texts_of_others_break_no_line_and_give_no_commands_to_a_terminal(capsys, found):
    console.log(f'北{found}京')
    assert capsys.readouterr().err.splitlines() == [f'北\\u{ord(found):04x}京']
    assert json.loads(console.escaped(f'"北{found}"')) == f'北{found}'
    assert console.visible(f'北{found}京') == '北 京'
    assert console.one_line(f'北{found}京') == f'北{" " if found in LINE_BREAKS else found}京'


@pytest.mark.parametrize('terminal', [True, False])
def test_lines_are_exact_but_in_a_terminal(monkeypatch, capsys, terminal):
    lines = 'a\x1b]0;\t北\x9b2J\u202e京\nb\t\n'
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal, raising=False)
    console.print_lines(lines)
    assert capsys.readouterr().out == ('a ]0;\t北 2J 京\nb\t\n' if terminal else lines)


@pytest.mark.parametrize(
    ('error', 'status', 'said'),
    [
        (UserError('a\nb'), 2, 'a\\u000ab\n'),
        (KeyboardInterrupt(), 130, 'interrupted; run the same command to continue\n'),
        (KeyboardInterrupt('stopped'), 130, 'stopped\n'),
        (OSError(28, 'full'), 1, 'standard output: full\n'),
        (OSError(13, 'forbidden', 'x'), 2, 'x: forbidden\n'),
    ],
)
def test_error_is_one_line_and_a_status(capsys, error, status, said):
    """So is what comes when the output is flushed, that of --help too."""

    def fail():
        raise error

    assert (console.exit_status(fail), capsys.readouterr().err) == (status, said)
    assert console.exit_status(lambda: None) == 0
    assert refusal(console.Parser().parse_args, ['x']).endswith('; see --help')
    with contextlib.redirect_stdout(types.SimpleNamespace(write=len, flush=fail)):
        assert console.exit_status(lambda: None) == status
        assert console.exit_status(lambda: console.Parser().parse_args(['--help'])) == status


def test_message_that_nobody_takes_ends_nothing():
    def broken(_):
        raise BrokenPipeError

    with contextlib.redirect_stderr(types.SimpleNamespace(write=broken)):
        console.log('said')


NATIVE, FULL = 'of a library\nsaid\n', 'standard output: No space left on device\n'


@pytest.mark.parametrize(
    ('stream', 'status', 'out', 'err'),
    [
        ('<&- 2>&-', 0, 'shown\n', ''),
        ('<&- >&-', 0, '', NATIVE),
        *[('>/dev/full', 1, '', NATIVE + FULL)] * os.path.exists('/dev/full'),
    ],
)
def test_streams_may_be_closed_or_full(tmp_path, stream, status, out, err):
    """What is said to one that is closed goes to no other and to no file."""
    command = ['sh', '-c', f'exec "$0" -c "$1" {stream}', sys.executable, PROGRAM]
    environment = {**os.environ, 'PYTHONPATH': ROOT, 'PYTHONUNBUFFERED': ''}
    options = {'cwd': tmp_path, 'env': environment, 'capture_output': True, 'encoding': 'utf-8'}
    done = subprocess.run(command, check=False, **options)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)
    assert (tmp_path / 'file').read_bytes() == b''
