"""The command line over a class of constants: types, checks, overrides.

A constant's type says what is allowed: `Whole[1]`, `Positive`, `Path`, a Literal, or plain int,
float, str, bool.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import math
import os
import signal
import sys
import typing

from evaluate_sogou import UserError

from .files import read_text
from .paths import DATA, locate_files
from .process import Parser, exit_status, log, prepare_process, require_packages
from .trained import QUESTIONS, READER, TRAINING, check_names, trained_constants

# --------------------------------------------------------------------------------------- the types


class Kind(typing.NamedTuple):
    """A type of constants: Python's, what it allows in words, and a test of a value of Python's."""

    python: type
    expected: str
    allows: typing.Callable


class Whole:
    """Whole[n] is the type of a whole number of at least n."""

    def __class_getitem__(cls, least):
        expected = f'a whole number of at least {least}'
        return Kind(int, expected, lambda value: least <= value < 2**31)


Positive = Kind(float, 'a number above 0', lambda value: 0 < value < math.inf)
Path = Kind(str, 'a path in quotes', lambda value: True)
PLAIN = {
    int: Kind(int, 'a whole number', lambda value: True),
    float: Kind(float, 'a number', math.isfinite),
    str: Kind(str, 'a text in quotes', lambda value: True),
    bool: Kind(bool, 'True or False', lambda value: True),
}


def constants(owner):
    """Make a class of constants a frozen dataclass; what it cannot be is an error of one line."""
    try:
        return dataclasses.dataclass(frozen=True)(owner)
    except (TypeError, ValueError) as error:  # no value, or a list, say
        log(f'{owner.__name__}: {error}; give each constant a number, a text, True or False')
        sys.exit(2)


def kinds(constants):
    """Return {name: Kind} of a class of constants."""
    found = {}
    for field in dataclasses.fields(constants):
        kind = field.type if isinstance(field.type, Kind) else PLAIN.get(field.type)
        if typing.get_origin(field.type) is typing.Literal:
            choices = typing.get_args(field.type)
            expected = ' or '.join(map(repr, choices))
            kind = Kind(type(choices[0]), expected, choices.__contains__)
        if not kind:
            what = f'{field.type} is no type for a constant'
            raise UserError(f'{field.name}: {what}, see support/settings.py')
        found[field.name] = kind
    return found


def plain(constants):
    """Return constants with NumPy's scalars and pathlib's paths as Python's own, and ~ as home."""
    values = vars(constants).copy()
    for name, kind in kinds(type(constants)).items():
        value = values[name]
        if getattr(value, 'shape', None) == () and hasattr(value, 'item'):
            value = value.item()
        if kind is Path and isinstance(value, (str, os.PathLike)):
            value = ','.join(map(os.path.expanduser, str(value).split(',')))
        values[name] = value
    return type(constants)(**values)


def check(constants):
    """Raise UserError for a constant of the wrong type or range."""
    for name, kind in kinds(type(constants)).items():
        value = getattr(constants, name)
        is_number = kind.python is float and type(value) is int
        if not (type(value) is kind.python or is_number) or not kind.allows(value):
            raise UserError(f'{name} = {value!r:.80}: expected {kind.expected}')


def changed(constants, **values):
    """Return constants with other values. Raises UserError for one that is not allowed."""
    for name in values.keys() - vars(constants).keys():
        raise UserError(f'{name}: no constant has this name; see Constants in the script')
    chosen = plain(dataclasses.replace(constants, **values))
    check(chosen)
    return chosen


# -------------------------------------------------------------------------------- the command line


class CommandLine(typing.NamedTuple):
    """What a command line says."""

    command: str
    overrides: dict  # {constant: value}
    constants: object = None  # the ones in effect
    files: tuple = None  # the Files that they mean
    path: str | None = None  # the questions of predict, '-' for standard input; export's folder
    question: str | None = None  # of predict, with its passages, a list of str
    passages: list | None = None
    compare_with: str | None = None  # of eval: other predictions, their file or folder


def read_command_line(constants, description, arguments=None):
    """Read a command line, and say in a line each what differs from the constants as they stand.

    constants: the class; description: what --help prints above its source; arguments: a list of
    str, None for the process's own. Returns a CommandLine. Raises UserError for what it cannot
    read, and where anything else is in the way of work, see `require_packages`.
    """
    line = parse(constants, description, arguments)
    chosen, files, notes = configure(constants, line.overrides, line.command)
    require_packages()
    for note in notes:
        log(note)
    return line._replace(constants=chosen, files=files)


def parse(constants, description, arguments=None):
    """Return what a command line says, a CommandLine still without `constants` and `files`."""
    # constants stand anywhere, with a parser of their own: one may be called as what follows is
    options = Parser(
        usage='%(prog)s {train,eval,predict FILE,export FOLDER} [--constant=value ...]',
        description=description,
        epilog=inspect.getsource(constants),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    names = kinds(constants)
    for name, kind in names.items():
        convert = true_or_false if kind.python is bool else kind.python
        options.add_argument(f'--{name}', type=convert, help=argparse.SUPPRESS)
    overrides, rest = options.parse_known_args(arguments)
    parser = Parser(add_help=False)
    commands = parser.add_subparsers(dest='command', required=True)
    alike, home = {'add_help': False, 'allow_abbrev': False}, os.path.expanduser
    commands.add_parser('train', **alike)
    commands.add_parser('eval', **alike).add_argument('--compare_with', metavar='OTHER', type=home)
    predict = commands.add_parser('predict', **alike)
    asked = predict.add_mutually_exclusive_group(required=True)
    asked.add_argument('path', metavar='FILE', nargs='?', type=home)
    asked.add_argument('--question')
    predict.add_argument('--passage', dest='passages', action='append')
    commands.add_parser('export', **alike).add_argument('path', metavar='FOLDER', type=home)
    said, unknown = parser.parse_known_args(rest)
    line = CommandLine(**vars(said), overrides=vars(overrides))
    if unknown:
        name = unknown[0].removeprefix('--').partition('=')[0]
        nearest = difflib.get_close_matches(name, names, 1, 0)[0]
        nearest = f'the nearest constant is --{nearest}='
        raise UserError(f'{unknown[0]}: unknown to {line.command}; {nearest}, see --help')
    if bool(line.question) != bool(line.passages):
        raise UserError('predict: give both --question= and --passage=, or a FILE; see --help')
    return line


def read_early(constants, description):
    """Return the CommandLine of this process, or end it where there is none to follow."""
    prepare_process()
    for number in signal.SIGINT, signal.SIGTERM:  # which say nothing while TensorFlow is imported
        signal.signal(number, signal.SIG_DFL)
    lines = []
    status = exit_status(lambda: lines.append(read_command_line(constants, description)))
    if status:
        sys.exit(status)
    return lines[0]


def true_or_false(text):
    """Return the bool that is written; argparse names this function where it is none."""
    if text.lower() not in ('true', 'false'):
        raise ValueError
    return text.lower() == 'true'


DEMO = (
    'data/ holds none of the real files, so this is the demo, a small invented corpus in '
    'data/demo/. For the real thing put WebQA.json, SogouQA.json and a Chinese BERT there, '
    'see data/README.md.'
)
DEMO_BERT = (
    'data/ holds no BERT, so this is the one of the demo, of very few weights. For the real thing '
    'put a Chinese BERT there, or name one by checkpoint_path, see data/README.md.'
)


def configure(constants, overrides, command='train'):
    """Make the constants that are meant: those of the class, the overrides, the demo's own.

    All but `train` take those in TRAINED and, without a word, in TRAINING, configuration and
    vocabulary from the trained reader, and `eval` its questions, see QUESTIONS. constants: the
    class; overrides: {name: value}. Returns (an object of the class, Files, a list of lines that
    say what differs from the class). Raises UserError for a value that is not allowed.
    """
    check_names(constants)
    usual, chosen = plain(constants()), changed(constants(), **overrides)
    notes = []
    for name in overrides:
        value, other = getattr(chosen, name), getattr(usual, name)
        notes.append(f'{name} = {value!r}' + f' instead of {other!r}' * (value != other))
    files, why, values = locate_files(chosen, command), '', {}
    if command != 'train':
        folder = os.path.dirname(files.checkpoint)
        if os.path.realpath(folder) != os.path.realpath(chosen.output_dir):
            notes.append(f'the trained reader is read from {folder}, where nothing is written')
        reader = os.path.join(folder, READER)
        scores_its_own = command == 'eval' and not overrides.keys() & {*QUESTIONS}
        values = trained_constants(reader, chosen, check, scores_its_own)
        why = f'by {reader}'
        files = locate_files(dataclasses.replace(chosen, **values), command)
    elif files.demo:
        demo = json.loads(read_text(os.path.join(DATA, 'demo', 'constants.json'))).items()
        why, values = (
            'for the demo',
            {
                name: own['value']
                for name, own in demo
                if getattr(chosen, name) == own['instead_of']
            },
        )
    for name, value in values.items():
        if name not in overrides and getattr(chosen, name) != value:
            if command == 'train' or name not in TRAINING:
                notes.append(f'{name} = {value!r} instead of {getattr(chosen, name)!r}, {why}')
            chosen = dataclasses.replace(chosen, **{name: value})
    is_own = chosen.train_data != 'auto' or chosen.valid_data != 'auto'
    if files.demo and (command == 'train' or (command == 'eval' and not is_own)):
        notes.insert(0, DEMO_BERT if is_own else DEMO)
    return chosen, files, notes
