"""The command line over a class of constants: types, checks, overrides, and the files they mean.

A constant's type says what is allowed: `Whole[1]`, `Positive`, `Path`, a Literal, or plain int,
float, str, bool.
"""

import argparse
import collections
import dataclasses
import difflib
import inspect
import json
import math
import os
import platform
import re
import signal
import sys
import typing

from evaluate_sogou import Parser, UserError, exit_status, log, read_text

from .files import write_durably
from .process import prepare_process, require_packages

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'data')


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


# a run may be resumed with another value of these
MAY_DIFFER = (
    'data_dir', 'train_data', 'valid_data', 'config_path', 'checkpoint_path', 'dict_path',
    'output_dir', 'epochs', 'accumulate_steps', 'backup_minutes', 'report',
)  # fmt: skip
# what was trained is read with the values that it was trained with, unless others are given
TRAINED = 'max_p_len', 'passage_stride', 'max_q_len', 'max_a_len', 'mode'


def check_names(constants):
    """Raise UserError where one of the lists above has a name that no constant has."""
    unknown = [name for name in MAY_DIFFER + TRAINED if name not in rules(constants)]
    if unknown:
        line = f'{", ".join(unknown)}: no constant has this name'
        raise UserError(f'{line}; mend MAY_DIFFER and TRAINED in support/settings.py')


def fixed(constants):
    """Return {name: value} of the constants that a run must be resumed with."""
    every = vars(constants).items()
    return {name: value for name, value in every if name not in MAY_DIFFER}


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
        config = os.path.join(chosen.output_dir, CONFIG)
        for name, value in _trained_with(chosen, config).items():
            if name not in overrides and getattr(chosen, name) != value:
                changes[name] = value, f'by {config}'
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


def _trained_with(constants, config):
    """Return {name: value} of the constants in TRAINED as `write_config` wrote them."""
    if not os.path.exists(config):
        return {}
    try:
        trained = json.loads(read_text(config))['constants']
        values = {name: trained[name] for name in TRAINED if name in trained}
        check(dataclasses.replace(constants, **values))
    except (ValueError, TypeError, KeyError, RecursionError, UserError) as error:
        what = f'not what train writes ({type(error).__name__}: {error})'
        raise UserError(f'{config}: {what}; copy it again from where it was trained') from None
    return values


# --------------------------------------------------------------------------------------- the files


FILE_NAMES = {
    'webqa': 'WebQA.json', 'sogouqa': 'SogouQA.json', 'config': 'bert_config.json',
    'checkpoint': 'bert_model.ckpt', 'vocabulary': 'vocab.txt',
    'official_answers': 'qid_answer_expand',
}  # fmt: skip
CONFIG = 'config.json'  # what `train` says of itself in `output_dir`; of Hugging Face's, a BERT's
BEST = 'best_model.weights.h5'


class Files(collections.namedtuple('Files', [*FILE_NAMES, 'demo'])):
    """The paths that the constants mean, none of which need exist, and whether it is the demo."""


def locate_files(constants, command='train'):
    """Return the Files that a command means: the demo's as long as data/ holds no real ones.

    Configuration and vocabulary stand beside the weights that are meant, where they stand there:
    those of a checkpoint, or the trained ones, which all but `train` need.
    """
    given = {
        'config': constants.config_path,
        'checkpoint': _weights(constants.checkpoint_path),
        'vocabulary': constants.dict_path,
    }
    weights = given['checkpoint'] if given['checkpoint'] not in ('auto', '') else None
    if command != 'train':
        weights = os.path.join(constants.output_dir, BEST)
    named = {constants.data_dir, *given.values()} - {'auto'}
    if is_trained(given['checkpoint']):  # on any data, also the demo's
        named.remove(given['checkpoint'])
    real = [os.path.join(DATA, name) for name in list(FILE_NAMES.values())[:5]]
    folder, demo_folder = constants.data_dir, os.path.join(DATA, 'demo')
    demo = not named and os.path.isdir(demo_folder) and not any(map(exists, real))
    if folder == 'auto':
        folder = demo_folder if demo else DATA
    files = Files(*(os.path.join(folder, name) for name in FILE_NAMES.values()), demo)
    if weights:
        files = files._replace(**_beside(weights))
    if command == 'train' and (constants.train_data == 'auto') != (constants.valid_data == 'auto'):
        raise UserError('train_data and valid_data: give both, or none')
    if constants.valid_data != 'auto':
        answers = f'{constants.valid_data}.answers'  # as data/convert.py calls them
        files = files._replace(sogouqa=constants.valid_data, official_answers=answers)
    if constants.train_data != 'auto':
        files = files._replace(webqa=constants.train_data)
    return files._replace(**{name: path for name, path in given.items() if path != 'auto'})


def require_order(constants):
    """Raise UserError where validation questions are to be split off in an order that has gone."""
    order = os.path.join(constants.output_dir, 'random_order.json')
    if constants.valid_data == 'auto' and not os.path.exists(order):
        raise UserError(f'{order}: no such file; copy it from where the weights were trained')


def train_paths(constants, files):
    """Return the paths of the data to train on beside SogouQA, or instead of it."""
    return [files.webqa] if constants.train_data == 'auto' else constants.train_data.split(',')


def is_trained(path):
    """Whether a path is that of the weights that `train` keeps."""
    return path.endswith('.weights.h5')


def _weights(path):
    """Return which file is meant by a folder of Hugging Face's, or any file of a checkpoint.

    Raises UserError for a pickle, which may do anything when it is read.
    """
    if os.path.isdir(path):
        names = 'model.safetensors', 'tf_model.h5', FILE_NAMES['checkpoint'], BEST
        names = *names, 'pytorch_model.bin'
        there = [name for name in names if exists(os.path.join(path, name))]
        path = os.path.join(path, (there or names)[0])
    if path.endswith('.bin'):
        folder = os.path.dirname(path) or '.'
        model = f"BertForPreTraining.from_pretrained('{folder}').save_pretrained('{folder}')"
        convert = f'python -c "from transformers import BertForPreTraining; {model}"'
        what = 'a pickle, which may run any program; convert it'
        raise UserError(f'{path}: {what}, where torch and transformers are installed: {convert}')
    return re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)


def _beside(weights):
    """Return {'config', 'vocabulary'}, as far as they stand beside some weights."""
    folder, found = os.path.dirname(weights), {}
    # what `train` calls config.json is something else
    names = [('config', FILE_NAMES['config']), ('vocabulary', FILE_NAMES['vocabulary'])]
    if not is_trained(weights):
        names.insert(0, ('config', CONFIG))
    for name, filename in names:
        if os.path.isfile(os.path.join(folder, filename)):
            found[name] = os.path.join(folder, filename)
    return found


def exists(path):
    """Whether a file, or a checkpoint of that name, exists."""
    return os.path.isfile(path) or os.path.isfile(f'{path}.index')


def require(*paths):
    """Raise UserError that lists what is missing of `paths`; '' means that none is needed."""
    missing = [path for path in paths if path and not exists(path)]
    if missing:
        cure = 'data/README.md says where to download it, or check the path'
        raise UserError(f'missing: {", ".join(missing)}; {cure}')


def write_config(constants, files, packages):
    """Write what a trained reader needs elsewhere into `output_dir`.

    Its BERT's configuration and vocabulary, and in config.json constants, files and the versions of
    these packages.
    """
    for name in 'config', 'vocabulary':
        text = read_text(getattr(files, name))
        write_durably(os.path.join(constants.output_dir, FILE_NAMES[name]), text)
    versions = {package.__name__: package.__version__ for package in packages}
    versions['python'] = platform.python_version()
    used = {'constants': vars(constants), 'files': files._asdict(), 'versions': versions}
    text = json.dumps(used, ensure_ascii=False, indent=4)
    write_durably(os.path.join(constants.output_dir, CONFIG), f'{text}\n')
