"""support/process.py: what is said and to whom, exit status, signals, packages, rank."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import types

import pytest
from conftest import ROOT, UserError, refusal

from support import process

LINE_BREAKS, COMMANDS = '\x00\t\n\r\x07\x1b\x85\u2028\u2029', '\x7f\x9b\u202e\u2066'
PROGRAM = """
import os
from support.process import log, run
def command():
    with open('file', 'w'):
        os.write(2, b'of a library\\n')
    log('said')
    print('shown')
raise SystemExit(run(command))
"""


@pytest.mark.parametrize('found', LINE_BREAKS + COMMANDS)
def test_texts_of_others_break_no_line_and_give_no_commands_to_a_terminal(capsys, found):
    process.log(f'北{found}京')
    assert capsys.readouterr().err.splitlines() == [f'北\\u{ord(found):04x}京']
    assert json.loads(process.escaped(f'"北{found}"')) == f'北{found}'
    assert process.visible(f'北{found}京') == '北 京'
    assert process.one_line(f'北{found}京') == f'北{" " if found in LINE_BREAKS else found}京'


@pytest.mark.parametrize('terminal', [True, False])
def test_lines_are_exact_but_in_a_terminal(monkeypatch, capsys, terminal):
    lines = 'a\x1b]0;\t北\x9b2J\u202e京\nb\t\n'
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal, raising=False)
    process.print_lines(lines)
    assert capsys.readouterr().out == ('a ]0;\t北 2J 京\nb\t\n' if terminal else lines)


@pytest.mark.parametrize(
    ('error', 'status', 'said'),
    [
        (UserError('a\nb'), 2, 'a\\u000ab\n'),
        (KeyboardInterrupt(), 130, 'interrupted; run the same command to continue\n'),
        (KeyboardInterrupt('stopped'), 130, 'stopped\n'),
        (OSError(28, 'full'), 1, 'standard output: full\n'),
        (OSError(13, 'forbidden', 'x'), 2, 'x: forbidden\n'),
        # as with LC_ALL=C, of a path
        (UnicodeEncodeError('ascii', '北', 0, 1, ''), 2, '北: no name in the encoding of this '
         'system, ascii; choose another name, or set PYTHONUTF8=1\n'),
    ],
)  # fmt: skip
def test_error_is_one_line_and_a_status(capsys, error, status, said):
    """So is what comes when the output is flushed."""

    def fail():
        raise error

    assert (process.exit_status(fail), capsys.readouterr().err) == (status, said)
    assert process.exit_status(lambda: None) == 0
    assert refusal(process.Parser().parse_args, ['x']).endswith('; see --help')
    with contextlib.redirect_stdout(types.SimpleNamespace(write=len, flush=fail)):
        assert process.exit_status(lambda: None) == status


def test_message_that_nobody_takes_ends_nothing():
    def broken(_):
        raise BrokenPipeError

    with contextlib.redirect_stderr(types.SimpleNamespace(write=broken)):
        process.log('said')


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


WORKERS = {'worker': ['a:1', 'b:1']}
WITH_CHIEF = {**WORKERS, 'chief': ['c:1']}


def config(cluster, kind, index):
    """A TF_CONFIG."""
    return json.dumps({'cluster': cluster, 'task': {'type': kind, 'index': index}})


@pytest.mark.parametrize(
    ('text', 'rank'),
    [
        (None, (0, 1)), (config(WORKERS, 'worker', '1'), (1, 2)),
        # the chief, where there is one, is the first
        (config(WITH_CHIEF, 'worker', 0), (1, 3)), (config(WITH_CHIEF, 'chief', 0), (0, 3)),
        # as platforms set it on one machine
        *((text, (0, 1)) for text in (
            '', ' ', '{}', '{"cluster": {}}', config({}, 'worker', 0),
            config({'worker': []}, 'worker', 0),
            config({'worker': ['a:1']}, 'worker', 0), config({'chief': ['a:1']}, 'chief', 0))),
        *((text, None) for text in ('{', '[]', '1', 'null', '"a"', '{"cluster": [1]}')),
        # what is neither a chief nor a worker, in the cluster or as the task
        *((config({**WITH_CHIEF, kind: ['d:1']}, *task), None)
          for kind in ('ps', 'evaluator', 'master') for task in [(kind, 0), ('worker', 0)]),
        (config(WORKERS, 'evaluator', 0), None), (config(WITH_CHIEF, 'chief', 1), None),
        (config({**WORKERS, 'chief': ['c:1', 'd:1']}, 'worker', 0), None),
        *((config({'worker': none}, 'worker', 0), None) for none in (1, 'a:1', [1], {'0': ''})),
        *((config(WORKERS, 'worker', none), None) for none in (None, 0.5, -1, True)),
        (config(WORKERS, 'worker', 2), None), (config(WORKERS, 'worker', 'one'), None),
        (config(WORKERS, 'worker', 0).replace('index', 'number'), None),
    ],
)  # fmt: skip
def test_rank_is_that_of_the_cluster_or_refused(monkeypatch, text, rank):
    monkeypatch.delenv('TF_CONFIG', raising=False)
    if text is not None:
        monkeypatch.setenv('TF_CONFIG', text)
    if rank:
        assert process.rank_and_world_size() == rank
    else:
        expected = 'TF_CONFIG: expected {"cluster"'
        assert refusal(process.rank_and_world_size).startswith(expected)


def test_sigterm_is_taken_as_ctrl_c_even_without_standard_streams(monkeypatch):
    """As under pythonw, or with `>&-`; it ends jobs on clusters."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in 'stdout', 'stderr':
        monkeypatch.setattr(sys, name, None)
    try:
        process.prepare_process()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_python_that_cannot_be_used_is_told_why(monkeypatch):
    """Missing and broken packages: tests/test_commands.py."""
    process.require_packages()
    monkeypatch.setattr(sys, 'flags', types.SimpleNamespace(optimize=2))
    assert refusal(process.require_packages).startswith('-OO, PYTHONOPTIMIZE=2: Keras needs')
    monkeypatch.setattr(sys, 'platform', 'win32')
    assert refusal(process.require_packages).startswith('Windows: only the score works here')


def test_failure_of_tensorflow_is_one_line(script, capsys):
    def fail():
        raise script.tf.errors.ResourceExhaustedError(None, None, 'out of memory\nand more')

    assert process.run(fail) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('TensorFlow broke off (out of memory); run the same command')


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        ('\n\n  no room\n  File "framework.py"', 'no room'), ('', 'ValueError'),
        ('{{function_node __wrapped__Save_device_/job}} no room [Op:Save]', 'no room [Op:Save]'),
        ('Graph execution error:\n\nDetected at node x defined at (most recent call last):\n'
         '<stack traces unavailable>\nno room\n\t [[{{node x}}]]', 'no room'),
    ],
)  # fmt: skip
def test_first_line_of_an_error_tells_what_not_where_in_tensorflow(message, expected):
    assert process.first_line(ValueError(message)) == expected
