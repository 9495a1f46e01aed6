"""What a command says, how it is read and how it ends: lines, streams, exit status."""

import argparse
import contextlib
import os
import re
import sys

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


def open_closed_streams():
    """Let what goes to a standard stream that is closed go nowhere.

    Or messages would go into the next file that is opened, or to standard output.
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


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are UserErrors."""

    def error(self, message):
        """Raise the UserError, one line."""
        raise UserError(f'{message}; see --help')

    def exit(self, status=0, message=None):
        """Write what --help has said, or nobody would hear that it could not be written."""
        sys.stdout.flush()
        super().exit(status, message)


def exit_status(command):
    """Call a function without arguments; say in one line what it raises that a user can mend.

    Returns 0; 1 where standard output cannot be written; 2 after other errors; 130 after Ctrl-C.
    """
    open_closed_streams()
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
    except OSError as error:
        if not error.filename:  # whoever reads standard output has seen enough, or it has no room
            with contextlib.suppress(OSError, AttributeError):  # one of a notebook has no number
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        log(f'{error.filename or "standard output"}: {error.strerror or error}')
        return 2 if error.filename else 1
