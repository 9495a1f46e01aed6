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

from .console import Parser, exit_status, log
from .files import read_text
from .paths import DATA, locate_files
from .process import prepare_process, require_packages
from .trained import READER, check_names, not_as_written, trained_constants

# --------------------------------------------------------------------------------------- the types


class Rule(typing.NamedTuple):
    """What a type allows: in words, and a test of a value of the right Python type."""

    expected: str
    allows: typing.Callable


class Whole:
    """Whole[n] is the type of a whole number of at least n."""

    def __class_getitem__(cls, least):
        rule = Rule(f'a whole number of at least {least}', lambda value: least <= value < 2**31)
        return typing.Annotated[int, rule]


Positive = typing.Annotated[float, Rule('a number above 0', lambda value: 0 < value < math.inf)]
Path = typing.Annotated[str, Rule('a path in quotes', lambda value: True)]
PLAIN = {
    int: Rule('a whole number', lambda value: True),
    float: Rule('a number', math.isfinite),
    str: Rule('a text in quotes', lambda value: True),
    bool: Rule('True or False', lambda value: True),
}


def constants(owner):
    """Make a class of constants a frozen dataclass; what it cannot be is an error of one line."""
    try:
        for name, (_, rule) in rules(owner).items():
            value = getattr(owner, name)
            if type(value).__hash__ is None:  # a list, say, which dataclasses refuse
                raise UserError(f'{name} = {value!r:.80}: expected {rule.expected}')
    except UserError as error:
        log(error)
        sys.exit(2)
    return dataclasses.dataclass(frozen=True)(owner)


def rules(constants):
    """Return {name: (Python type, Rule)} of a class of constants."""
    found = {}
    for name, hint in typing.get_type_hints(constants, include_extras=True).items():
        rule = PLAIN.get(hint)
        if typing.get_origin(hint) is typing.Annotated:
            hint, rule = typing.get_args(hint)
        elif typing.get_origin(hint) is typing.Literal:
            choices = typing.get_args(hint)
            rule = Rule(' or '.join(map(repr, choices)), choices.__contains__)
            hint = type(choices[0])
        if not rule:
            raise UserError(f'{name}: {hint} is no type for a constant, see support/settings.py')
        found[name] = hint, rule
    return found


def check(constants):
    """Raise UserError for a constant of the wrong type or range."""
    for name, (python, rule) in rules(type(constants)).items():
        value = getattr(constants, name)
        of_type = type(value) is python or (python is float and type(value) is int)
        if not of_type or not rule.allows(value):
            raise UserError(f'{name} = {value!r:.80}: expected {rule.expected}')


# -------------------------------------------------------------------------------- the command line


class CommandLine(typing.NamedTuple):
    """What a command line says."""

    command: str
    path: str | None  # the questions of predict, '-' for standard input; the folder of export
    question: str | None  # of predict, with its passages, a list of str
    passages: list | None
    overrides: dict  # {constant: value}
    constants: object  # the ones in effect
    files: tuple  # the Files that they mean


COMMANDS = {
    'train': 'nothing more',
    'eval': 'nothing more',
    'predict': 'FILE, - or --question= with one --passage= or more',
    'export': 'FOLDER',
}


def read_command_line(constants, description, arguments=None):
    """Read a command line, and say in a line each what differs from the constants as they stand.

    constants: the class; description: what --help prints above its source; arguments: a list of
    str, None for the process's own. Returns a CommandLine. Raises UserError for what it cannot
    read, and where anything else is in the way of work, see `require_packages`.
    """
    *own, overrides = parse(constants, description, arguments)
    chosen, files, notes = configure(constants, overrides, own[0])
    require_packages()
    for note in notes:
        log(note)
    return CommandLine(*own, overrides, chosen, files)


def parse(constants, description, arguments=None):
    """Return the first fields of a CommandLine, down to the overrides."""
    parser = Parser(
        usage='%(prog)s {train,eval,predict FILE,export FOLDER} [--constant=value ...]',
        description=description,
        epilog=inspect.getsource(constants),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hidden = {'help': argparse.SUPPRESS}
    # with names that no constant can have
    parser.add_argument('(command)', metavar='command', choices=[*COMMANDS], **hidden)
    parser.add_argument('(path)', metavar='path', nargs='?', **hidden)
    parser.add_argument('--question', dest='(question)', **hidden)
    parser.add_argument('--passage', dest='(passages)', action='append', **hidden)
    names = rules(constants)
    for name, (python, _) in names.items():
        convert = true_or_false if python is bool else python
        parser.add_argument(f'--{name}', type=convert, default=argparse.SUPPRESS, **hidden)
    options, unknown = parser.parse_known_intermixed_args(arguments)
    overrides = vars(options)
    own = [overrides.pop(f'({name})') for name in ('command', 'path', 'question', 'passages')]
    surplus = unknown and not unknown[0].startswith('-')
    if surplus or not _is_complete(*own):
        command, path, *_ = own
        last = ''.join(f'{word}: ' for word in [*filter(None, [path]), *unknown][-1:])
        takes = f'{command} takes {COMMANDS[command]}'
        raise UserError(f'{last}{takes}; see --help')
    if unknown:
        name = unknown[0].removeprefix('--').partition('=')[0]
        nearest = difflib.get_close_matches(name, names, 1, 0)[0]
        nearest = f'the nearest constant is --{nearest}='
        raise UserError(f'{unknown[0]}: unknown; {nearest}, see --help')
    return *own, overrides


def _is_complete(command, path, question, passages):
    """Whether a command has all that it takes, and nothing else."""
    has_path, asks = path is not None, bool(question and passages)
    if command == 'predict' and not has_path:
        return asks
    says_more = question is not None or passages is not None
    return has_path == (command in ('predict', 'export')) and not says_more


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
    'put a Chinese BERT there, see data/README.md.'
)


def configure(constants, overrides, command='train'):
    """Make the constants that are meant: those of the class, the overrides, the demo's own.

    All but `train` take those in TRAINED, configuration and vocabulary from `output_dir`, where
    `train` has left them. constants: the class; overrides: {name: value}. Returns (an object of the
    class, Files, a list of lines that say what differs from the class). Raises UserError for a
    value that is not allowed.
    """
    check_names(constants)
    chosen = constants(**overrides)
    check(chosen)
    notes = []
    for name, value in overrides.items():
        usual = getattr(constants, name)
        notes.append(f'{name} = {value!r}' + f' instead of {usual!r}' * (value != usual))
    files = locate_files(chosen, command)
    changes = {}
    if command != 'train':
        reader = os.path.join(chosen.output_dir, READER)
        trained = trained_constants(chosen.output_dir)
        try:
            check(dataclasses.replace(chosen, **trained))
        except UserError as error:
            raise not_as_written(reader, error) from None
        for name, value in trained.items():
            if name not in overrides and getattr(chosen, name) != value:
                changes[name] = value, f'by {reader}'
    reads_demo = chosen.valid_data == 'auto'
    if files.demo and (command == 'train' or (command == 'eval' and reads_demo)):
        notes.insert(0, DEMO if reads_demo else DEMO_BERT)
        own_values = json.loads(read_text(os.path.join(DATA, 'demo', 'constants.json')))
        for name, own in own_values.items():
            if name not in overrides and getattr(chosen, name) == own['instead_of']:
                changes[name] = own['value'], 'for the demo'
    for name, (value, why) in changes.items():
        notes.append(f'{name} = {value!r} instead of {getattr(chosen, name)!r}, {why}')
        chosen = dataclasses.replace(chosen, **{name: value})
    return chosen, files, notes
