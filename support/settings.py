"""The command line over a class of constants: types, checks, overrides, and the files they mean.

A constant's type says everything about it: `Whole[1]`, `Positive`, `Path`, a Literal, or plain int,
float, str, bool; `MayDiffer[...]` where a run may be continued with another value, `Trained[...]`
where a reader keeps the one that it was trained with.
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


MAY_DIFFER = 'may differ when a run is continued'
Positive = typing.Annotated[float, Rule('a number above 0', lambda value: 0 < value < math.inf)]
Path = typing.Annotated[str, Rule('a path in quotes', lambda value: True)]
MayDiffer = typing.Annotated[typing.TypeVar('T'), MAY_DIFFER]
TRAINED = 'holds for what was trained with it'
Trained = typing.Annotated[typing.TypeVar('T'), TRAINED]
PLAIN = {
    int: Rule('a whole number', lambda value: True),
    float: Rule('a number', math.isfinite),
    str: Rule('a text in quotes', lambda value: True),
    bool: Rule('True or False', lambda value: True),
}


def constants(owner):
    """Make a class of constants a frozen dataclass; what it cannot be is an error of one line."""
    try:
        for name, (_, rule, _) in kinds(owner).items():
            value = getattr(owner, name)
            if type(value).__hash__ is None:  # a list, say, which dataclasses refuse
                raise UserError(f'{name} = {value!r:.80}: expected {rule.expected}')
    except UserError as error:
        log(error)
        sys.exit(2)
    return dataclasses.dataclass(frozen=True)(owner)


def kinds(constants):
    """Return {name: (Python type, Rule, MAY_DIFFER, TRAINED or '')} of a class of constants."""
    found = {}
    for name, hint in typing.get_type_hints(constants, include_extras=True).items():
        marks = ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *marks = typing.get_args(hint)
        rules = [mark for mark in marks if isinstance(mark, Rule)]
        if typing.get_origin(hint) is typing.Literal:
            choices = typing.get_args(hint)
            rules = [Rule(' or '.join(map(repr, choices)), choices.__contains__)]
            hint = type(choices[0])
        if hint not in PLAIN:
            raise UserError(f'{name}: {hint} is no type for a constant, see support/settings.py')
        words = [mark for mark in marks if isinstance(mark, str)]
        found[name] = hint, rules[0] if rules else PLAIN[hint], ''.join(words)
    return found


def check(constants):
    """Raise UserError for a constant of the wrong type or range."""
    for name, (python, rule, _) in kinds(type(constants)).items():
        value = getattr(constants, name)
        of_type = type(value) is python or (python is float and type(value) is int)
        if not of_type or not rule.allows(value):
            raise UserError(f'{name} = {value!r:.80}: expected {rule.expected}')


def fixed(constants):
    """Return {name: value} of the constants that a run must be continued with."""
    every = kinds(type(constants)).items()
    return {name: getattr(constants, name) for name, (*_, word) in every if word != MAY_DIFFER}


# -------------------------------------------------------------------------------- the command line


class CommandLine(typing.NamedTuple):
    """What a command line says."""

    command: str
    path: str | None  # the questions of predict, '-' for standard input; the folder of export
    question: str | None  # of predict, with its passages, a list of str
    passages: list | None
    given: dict  # {constant: value}


COMMANDS = {
    'train': 'nothing more',
    'eval': 'nothing more',
    'predict': 'FILE, - or --question= with one --passage= or more',
    'export': 'FOLDER',
}


def parse_command_line(arguments, constants, description):
    """Read a command line, a list of str or None for the process's own.

    constants: the class; description: what --help prints above its source. Returns a CommandLine.
    Raises UserError for what it cannot read.
    """
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
    names = kinds(constants)
    for name, (python, *_) in names.items():
        convert = true_or_false if python is bool else python
        parser.add_argument(f'--{name}', type=convert, default=argparse.SUPPRESS, **hidden)
    options, unknown = parser.parse_known_intermixed_args(arguments)
    given = vars(options)
    own = [given.pop(f'({name})') for name in ('command', 'path', 'question', 'passages')]
    line = CommandLine(*own, given)
    surplus = unknown and not unknown[0].startswith('-')
    if surplus or not _is_complete(line):
        last = ''.join(f'{word}: ' for word in [*filter(None, [line.path]), *unknown][-1:])
        takes = f'{line.command} takes {COMMANDS[line.command]}'
        raise UserError(f'{last}{takes}; see --help')
    if unknown:
        name = unknown[0].removeprefix('--').partition('=')[0]
        nearest = difflib.get_close_matches(name, names, 1, 0)[0]
        nearest = f'the nearest constant is --{nearest}='
        raise UserError(f'{unknown[0]}: unknown; {nearest}, see --help')
    return line


def _is_complete(line):
    """Whether a command has all that it takes, and nothing else."""
    has_path, asks = line.path is not None, bool(line.question and line.passages)
    if line.command == 'predict' and not has_path:
        return asks
    says_more = line.question is not None or line.passages is not None
    return has_path == (line.command in ('predict', 'export')) and not says_more


def read_early(constants, description):
    """End the process where its command line asks for help or anything is in the way of work."""
    prepare_process()
    for number in signal.SIGINT, signal.SIGTERM:  # which say nothing while TensorFlow is imported
        signal.signal(number, signal.SIG_DFL)

    def read():
        line = parse_command_line(None, constants, description)
        configure(constants, line.given, line.command)
        require_packages()

    status = exit_status(read)
    if status:
        sys.exit(status)


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


def configure(constants, given, command='train'):
    """Make the constants that are meant: those of the class, others given, the demo's own.

    All but `train` take those marked Trained, configuration and vocabulary from `output_dir`, where
    `train` has left them. constants: the class; given: {name: value}. Returns (an object of the
    class, Files, a list of lines that say what differs from the class). Raises UserError for a
    value that is not allowed.
    """
    chosen = constants(**given)
    check(chosen)
    notes = []
    for name, value in given.items():
        usual = getattr(constants, name)
        notes.append(f'{name} = {value!r}' + f' instead of {usual!r}' * (value != usual))
    files = locate_files(chosen, command)
    changes = {}
    if command != 'train':
        config = os.path.join(chosen.output_dir, CONFIG)
        for name, value in _trained_with(chosen, config).items():
            if name not in given and getattr(chosen, name) != value:
                changes[name] = value, f'by {config}'
    reads_demo = chosen.valid_data == 'auto'
    if files.demo and (command == 'train' or (command == 'eval' and reads_demo)):
        notes.insert(0, DEMO if reads_demo else DEMO_BERT)
        own_values = json.loads(read_text(os.path.join(DATA, 'demo', 'constants.json')))
        for name, own in own_values.items():
            if name not in given and getattr(chosen, name) == own['instead_of']:
                changes[name] = own['value'], 'for the demo'
    for name, (value, why) in changes.items():
        notes.append(f'{name} = {value!r} instead of {getattr(chosen, name)!r}, {why}')
        chosen = dataclasses.replace(chosen, **{name: value})
    return chosen, files, notes


def _trained_with(constants, config):
    """Return {name: value} of the constants marked Trained that `write_config` wrote."""
    if not os.path.exists(config):
        return {}
    try:
        written = json.loads(read_text(config))['constants']
        marked = [name for name, (*_, word) in kinds(type(constants)).items() if word == TRAINED]
        values = {name: written[name] for name in marked if name in written}
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
