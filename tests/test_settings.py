"""support/settings.py: constants by their types, and the command line over them."""

import dataclasses
import math
import pathlib
from typing import Literal

import numpy as np
import pytest
from conftest import refusal, write_json

from support import settings
from support.settings import Path, Positive, Whole, configure


@settings.constants
class Sample:
    """A constant of each type."""

    whole: Whole[2] = 2
    positive: Positive = 0.5
    folder: Path = 'there'
    choice: Literal['one', 'two'] = 'one'
    level: Literal[1, 2] = 1
    integer: int = -1
    number: float = 0.1
    text: str = ''
    flag: bool = False
    path: str = ''  # as the questions of `predict` are called


@pytest.mark.parametrize(
    ('name', 'allowed', 'refused', 'expected'),
    [
        ('whole', [2, 2**31 - 1], [1, 2**31, 2.0, '2', True, None], 'a whole number of at least 2'),
        ('positive', [1e-9, 1], [0, math.inf, math.nan, '1', True], 'a number above 0'),
        ('folder', ['', 'a/b'], [None, 1, b'a'], 'a path in quotes'),
        ('choice', ['one', 'two'], ['three', '', None, ('one',)], "'one' or 'two'"),
        ('level', [1, 2], [0, 3, 1.0, True, '1'], '1 or 2'),
        ('integer', [-5, 0, 10**20], [0.0, '0', False, None], 'a whole number'),
        ('number', [-0.5, 0, 3], [math.inf, math.nan, '0.1', True, None], 'a number'),
        ('text', ['', '中'], [None, 1, b''], 'a text in quotes'),
        ('flag', [True, False], [0, 1, 'True', None], 'True or False'),
    ],
)
def test_type_says_what_is_allowed(name, allowed, refused, expected):
    """True is a whole number for Python, and 1.0 is among the choices 1 and 2."""
    for value in allowed:
        settings.check(Sample(**{name: value}))
    for value in refused:
        line = refusal(settings.check, Sample(**{name: value}))
        assert line == f'{name} = {value!r}: expected {expected}'


@pytest.mark.parametrize(
    ('given', 'meant'),
    [
        ({'whole': np.int64(2), 'level': np.int32(1), 'integer': np.uint8(7)}, [2, 1, 7]),
        ({'number': np.float32(0.5), 'positive': np.float64(3)}, [0.5, 3.0]),
        ({'flag': np.True_}, [True]),
        ({'number': np.int64(3), 'whole': np.array(4)}, [3, 4]),
        ({'choice': np.str_('two'), 'text': np.str_('~')}, ['two', '~']),
        ({'folder': pathlib.Path('a', 'b')}, ['a/b']),
        ({'folder': pathlib.Path('~', 'a')}, ['HOME/a']), ({'folder': '~'}, ['HOME']),
        ({'folder': '~/a,b,~/c', 'text': '~/a'}, ['HOME/a,b,HOME/c', '~/a']),
        ({'folder': 'a/~'}, ['a/~']),
    ],
)  # fmt: skip
def test_value_of_numpy_or_pathlib_is_taken_as_pythons_own(monkeypatch, given, meant):
    """JSON can hold it then; ~ is a home in paths alone."""
    monkeypatch.setenv('HOME', 'HOME')
    found = settings.plain(Sample(**given))
    settings.check(found)
    values = [getattr(found, name) for name in given]
    assert values == meant and [*map(type, values)] == [*map(type, meant)]
    for wrong in {'whole': np.float64(2)}, {'whole': np.True_}, {'flag': np.int64(1)}:
        assert 'expected' in refusal(settings.check, settings.plain(Sample(**wrong)))


def test_home_is_meant_wherever_a_path_is_given(script, monkeypatch):
    """On the command line, from Python, or edited into the script."""
    monkeypatch.setenv('HOME', '/HOME')
    paths = [parse(*given.split())[1] for given in ('predict ~/a', 'export ~/b', 'predict -')]
    assert paths == ['/HOME/a', '/HOME/b', '-']
    assert settings.parse(Sample, '', ['eval', '--compare_with=~/a']).compare_with == '/HOME/a'
    edited = dataclasses.make_dataclass(
        'Edited', [('data_dir', Path, '~/b')], bases=(script.Constants,), frozen=True
    )
    constants, files, notes = configure(edited, {'output_dir': pathlib.Path('~/c')})
    assert (files.webqa, constants.output_dir) == (['/HOME/b/WebQA.json'], '/HOME/c')
    assert notes == ["output_dir = '/HOME/c' instead of 'output'"]


# -------------------------------------------------------------------------------- the command line


def parse(*arguments):
    """Return (command, path, question, passages, overrides) of a command line."""
    line = settings.parse(Sample, 'What it is for.', arguments)
    return line.command, line.path, line.question, line.passages, line.overrides


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        # options stand before and after the file of questions
        ('--whole=3 predict a --level 2', ('predict', 'a', None, None, {'whole': 3, 'level': 2})),
        ('train --positive=1e-5 --number=-1',
         ('train', None, None, None, {'positive': 1e-5, 'number': -1.0})),
        ('train --folder=a=b --text=--whole=1',
         ('train', None, None, None, {'folder': 'a=b', 'text': '--whole=1'})),
        ('export a/1 --flag=false --folder=',
         ('export', 'a/1', None, None, {'flag': False, 'folder': ''})),
        ('predict - --path=b', ('predict', '-', None, None, {'path': 'b'})),
        # question and passages may be empty, or begin like an option
        ('predict --question=--whole --passage= --whole=3 --passage 北京',
         ('predict', None, '--whole', ['', '北京'], {'whole': 3})),
    ],
)  # fmt: skip
def test_value_is_read_by_its_type(arguments, expected):
    """bool('false') would be True."""
    found = parse(*arguments.split())
    assert found == expected
    assert [*map(type, found[-1].values())] == [*map(type, expected[-1].values())]


BOTH = 'predict: give both --question= and --passage=, or a FILE; see --help'
ONE = 'one of the arguments FILE --question is required'


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ('train --level=two', "--level: invalid int value: 'two'"),
        ('train --flag=maybe', "'maybe'"),
        ('train --flag', '--flag: expected one argument'),
        # an abbreviation is no name: a constant that is added may make it another's
        ('train --fla=true', '--fla=true: unknown to train; the nearest constant is --flag='),
        ('train -x', '-x: unknown to train; the nearest constant is --'),
        ('train folders', 'folders: unknown to train; the nearest constant is --folder='),
        ('learn', "invalid choice: 'learn'"), ('', 'required: command'),
        ('predict', ONE), ('predict --passage=c', ONE), ('predict --question=b', BOTH),
        ('predict --question= --passage=c', BOTH), ('predict a --passage=c', BOTH),
        ('predict a --question=b --passage=c', '--question: not allowed with argument FILE'),
        ('predict a b', 'b: unknown to predict; '), ('export', 'required: FOLDER'),
        ('train --compare_with=a', '--compare_with=a: unknown to train; '),
        ('eval --compare_with', '--compare_with: expected one argument'),
        ('export a b', 'b: unknown to export; '), ('eval --passage=c', '--passage=c: unknown to '),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(arguments, named):
    assert named in refusal(parse, *arguments.split())


# ------------------------------------------------------------------------- the constants in effect


def test_every_override_is_said_once(script, small):
    """In the order in which it was given, and nothing else."""
    given = {'data_dir': str(small), 'topk': 4, 'mode': 'generative', 'seed': 42}
    constants, files, notes = configure(script.Constants, given)
    assert constants == script.Constants(**given) and not files.demo
    assert notes == [
        f"data_dir = '{small}' instead of 'auto'", 'topk = 4 instead of 1',
        "mode = 'generative' instead of 'extractive'", 'seed = 42',
    ]  # fmt: skip


def test_demo_constants_give_way_to_the_users(script):
    """Those edited in the script and those on the command line; the rest are the demo's own."""

    @settings.constants
    class Edited(script.Constants):
        batch_size: Whole[1] = 8

    for cls, given, batch_size, rate in (
        (script.Constants, {'learning_rate': 1e-5}, 64, 1e-5), (Edited, {}, 8, 3e-4),
    ):  # fmt: skip
        constants, files, notes = configure(cls, given)
        assert files.demo and notes[0] == settings.DEMO
        assert (constants.batch_size, constants.learning_rate) == (batch_size, rate)
        assert ('batch_size = 64 instead of 32, for the demo' in notes) == (batch_size == 64)
    # where only its BERT is used, its corpus is not spoken of; `eval` uses the trained one
    data = {'train_data': 'a.json', 'valid_data': 'b.json'}
    assert configure(script.Constants, data)[2][0] == settings.DEMO_BERT
    assert len(configure(script.Constants, {'valid_data': 'b.json'}, 'eval')[2]) == 1


def test_what_was_trained_keeps_its_own_lengths_and_bert(script, tmp_path):
    """They stand in the output folder, and hold unless another is given; nothing else does.

    What only training used is kept without a word.
    """
    constants = {'max_p_len': 70, 'seed': 7, 'batch_size': 9, 'topk': 9, 'gone': 1}
    kept = {'max_p_len': 70, 'seed': 7, 'batch_size': 9}
    write_json(tmp_path / 'reader.json', {'constants': constants})
    for name in 'vocab.txt', 'config.json', 'bert_config.json':
        (tmp_path / name).touch()
    trained = {'output_dir': str(tmp_path), 'data_dir': 'elsewhere'}
    for command in 'eval', 'predict', 'export':
        constants, files, notes = configure(script.Constants, trained, command)
        assert constants == script.Constants(**kept, **trained)
        assert not any('batch_size' in line for line in notes)
        assert notes[2] == f'max_p_len = 70 instead of 256, by {tmp_path}/reader.json'
        assert files.sogouqa == ['elsewhere/SogouQA.json']
        names = 'config.json', 'model.safetensors', 'vocab.txt'
        assert files[2:5] == tuple(f'{tmp_path}/{name}' for name in names)
    given = {**trained, 'max_p_len': 256, 'dict_path': 'mine.txt'}
    constants, files, _ = configure(script.Constants, given, 'eval')
    assert (constants.max_p_len, constants.seed) == (256, 7)
    assert files.vocabulary == f'{tmp_path}/vocab.txt'  # as it stays in an edited script
    # training does not go by it
    constants, files, _ = configure(script.Constants, trained)
    assert constants == script.Constants(**trained) and files.vocabulary == 'elsewhere/vocab.txt'


READERS = 'b.json', 'a.json', 'data'  # valid_data, train_data and data_dir of a reader.json


@pytest.mark.parametrize(
    ('of_reader', 'given', 'taken'),
    [
        ((*READERS,), {}, {'valid_data': 'b.json'}),
        (('auto', *READERS[1:]), {}, {'train_data': 'a.json'}),
        (('auto', 'auto', 'data'), {}, {'data_dir': 'data'}),
        (('auto',) * 3, {}, {}),
        ((), {}, {}),  # of an earlier version
        # what is given counts, also 'auto', and nothing beside it
        (READERS, {'valid_data': 'c.json'}, {}),
        (('auto', *READERS[1:]), {'valid_data': 'c.json'}, {}),
        (('auto', 'auto', 'data'), {'train_data': 'c.json'}, {}),
        (READERS, {'data_dir': 'c', 'train_data': 'd.json'}, {}),
        (('auto', *READERS[1:]), {'data_dir': 'c'}, {}),
    ],
)
def test_eval_takes_the_questions_of_its_reader_unless_given(
    script, tmp_path, of_reader, given, taken
):
    """In a line each, and only what it uses; no other command looks for them."""
    constants = dict(zip(('valid_data', 'train_data', 'data_dir'), of_reader, strict=False))
    write_json(tmp_path / 'reader.json', {'constants': constants})
    given = {'output_dir': str(tmp_path), **given}
    for command in 'eval', 'predict', 'export':
        expected = {**given, **(taken if command == 'eval' else {})}
        constants, files, notes = configure(script.Constants, given, command)
        assert constants == script.Constants(**expected)
        by = [line for line in notes if line.endswith(f', by {tmp_path}/reader.json')]
        assert by == [
            f"{name} = '{value}' instead of 'auto', by {tmp_path}/reader.json"
            for name, value in taken.items()
            if command == 'eval'
        ]
        assert not any('for the demo' in line for line in notes)
        meant = expected.get('valid_data') or expected.get('train_data')
        assert not meant or files.sogouqa == [meant]
        is_demo = not {*expected} & {'valid_data', 'train_data', 'data_dir'}
        assert (settings.DEMO in notes) == (command == 'eval' and is_demo)


def test_data_of_the_reader_can_be_put_aside(script, tmp_path):
    """By 'auto' too, which is what the script has anyway; else trained questions are scored."""
    write_json(tmp_path / 'reader.json', {'constants': {'train_data': 'a.json'}})
    given = {'output_dir': str(tmp_path), 'train_data': 'auto'}
    constants, files, _ = configure(script.Constants, given, 'eval')
    assert constants.train_data == 'auto' and files.demo and 'a.json' not in files.sogouqa


def test_name_that_no_constant_has_is_refused_from_python_too(script):
    line = refusal(configure, script.Constants, {'topk': 2, 'top_k': 2})
    assert line.startswith('top_k: no constant has this name; ')
