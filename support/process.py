"""The process of a command: what it says, how it ends, its signals, packages and rank."""

import argparse
import contextlib
import importlib
import json
import os
import re
import shlex
import signal
import sys
import threading

from evaluate_sogou import UserError

LINE_BREAKS = '\x00-\x1f\x85\u2028\u2029'  # and tabs
COMMANDS = '\x7f-\x9f\u202a-\u202e\u2066-\u2069'  # beside those, what a terminal follows


def escaped(text):
    """Return a text with what a terminal would take for a command written out, as \\u001b."""
    return re.sub(f'[{LINE_BREAKS}{COMMANDS}]', lambda found: f'\\u{ord(found[0]):04x}', text)


def visible(text):
    """Return a text with a space for what a terminal would take for a command."""
    return re.sub(f'[{LINE_BREAKS}{COMMANDS}]', ' ', text)


def one_line(text):
    """Return a text without what would break a tab-separated line."""
    return re.sub(f'[{LINE_BREAKS}]', ' ', text)


def first_line(error):
    """Return the first line of an exception's message that tells what, not where in TensorFlow."""
    where = r'^Graph execution error:.*(\n  File [^\n]*|<stack traces unavailable>)\n|\{\{.*?\}\} '
    lines = re.sub(where, '', str(error), flags=re.DOTALL).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def log(message):
    """Print one line to standard error, if somebody listens."""
    with contextlib.suppress(BrokenPipeError):
        print(escaped(str(message)), file=sys.stderr, flush=True)


def print_lines(text):
    """Print tab-separated lines, for a terminal without what it would take for a command."""
    if is_terminal(sys.stdout):
        text = '\n'.join('\t'.join(map(visible, line.split('\t'))) for line in text.split('\n'))
    print(text, end='', flush=True)


def is_terminal(stream):
    """Whether what is written to a stream is seen at once; some streams do not know."""
    return hasattr(stream, 'isatty') and stream.isatty()


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are UserErrors."""

    def error(self, message):
        """Raise the UserError, one line."""
        raise UserError(f'{message}; see --help')


def run(command):
    """Call a function without arguments as all that the process does. Returns the exit status."""
    prepare_process()
    return exit_status(command)


def prepare_process():
    """Write UTF-8, and nowhere for a closed stream; take SIGTERM as Ctrl-C, where we may say so.

    Messages would else go into the next file that is opened, or to standard output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free
    for name in 'stdout', 'stderr':
        stream = getattr(sys, name)
        if stream is None or getattr(stream, 'closed', False):
            nowhere = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115, as long as we live
            setattr(sys, name, nowhere)
        elif hasattr(stream, 'reconfigure'):  # those of notebooks are of another kind
            # names of files may be in another encoding
            stream.reconfigure(encoding='utf-8', errors='backslashreplace')
    if takes_signals():
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, signal.default_int_handler)


def takes_signals():
    """Whether this is the thread to which signals go."""
    return threading.current_thread() is threading.main_thread()


def exit_status(command):
    """Call a function without arguments; say in one line what it raises that a user can mend.

    Returns 0; 1 where standard output cannot be written; 2 after other errors; 130 after Ctrl-C.
    """
    try:
        command()
        sys.stdout.flush()
        return 0
    except UserError as error:
        log(error)
        return 2
    except KeyboardInterrupt as interrupt:
        log(str(interrupt) or 'interrupted; run the same command to continue')
        return 130
    except UnicodeEncodeError as error:  # a path
        cure = 'choose another name, or set PYTHONUTF8=1'
        log(f'{error.object}: no name in the encoding of this system, {error.encoding}; {cure}')
        return 2
    except OSError as error:
        if not error.filename:  # whoever reads standard output has seen enough, or it has no room
            with contextlib.suppress(OSError, AttributeError):  # one of a notebook has no number
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        log(f'{error.filename or "standard output"}: {error.strerror or error}')
        return 2 if error.filename else 1
    except Exception as error:
        if not is_of_tensorflow(error):
            raise
        cure = 'run the same command, of all workers, to continue'
        log(f'TensorFlow broke off ({first_line(error)}); {cure}')
        return 2


def is_of_tensorflow(error):
    """Whether an exception is one of `tf.errors`, which need not be imported to know that."""
    return type(error).__module__ == 'tensorflow.python.framework.errors_impl'


def require_packages():
    """Import TensorFlow. Raises UserError where Python or TF_CONFIG cannot be used for it."""
    if sys.platform == 'win32':
        raise UserError('Windows: only the score works here; for the rest use WSL, see README.md')
    if sys.flags.optimize > 1:
        raise UserError('-OO, PYTHONOPTIMIZE=2: Keras needs the docstrings; run without')
    rank_and_world_size()
    try:
        for module in '.keras2', 'safetensors', 'tqdm':
            importlib.import_module(module, __package__)
    except Exception as error:  # whatever two packages that do not fit together lead to
        # TensorFlow's own message is a traceback
        reasons = re.findall(r'^\w*Error: .*', str(error), re.MULTILINE)
        reason = reasons[-1] if reasons else f'{type(error).__name__}: {first_line(error)}'
        python = shlex.quote(sys.executable)
        cure = f'activate their environment, or {python} -m pip install -r requirements.txt'
        raise UserError(f'a package is missing or broken ({reason}); {cure}') from None


def rank_and_world_size():
    """Return (k, n): this is worker k of n by TF_CONFIG, 0 of 1 without one or an empty one.

    Raises UserError for anything else than a chief, if there is one, and workers.
    """
    try:
        config = json.loads(os.environ.get('TF_CONFIG', '').strip() or '{}')
        cluster, workers = config.get('cluster') or {}, []
        if not any(cluster.values()):
            return 0, 1
        for kind, addresses in sorted(cluster.items()):  # the chief first
            allowed = {'chief': 1, 'worker': len(addresses)}.get(kind, 0)
            if addresses[allowed:] or isinstance(addresses, str):
                raise ValueError
            workers += [(kind, i) for i, address in enumerate(addresses) if address.strip()]
        here = config['task']['type'], int(str(config['task']['index']))
        return workers.index(here), len(workers)
    except (ValueError, TypeError, KeyError, AttributeError):
        expected = '{"cluster": {"worker": [host:port, ...]}, "task": {"type", "index"}}'
        raise UserError(f'TF_CONFIG: expected {expected}, or none on one machine') from None
