"""support/settings.py: constants by their types, the command line over them, the files meant."""

import dataclasses
import math
from typing import Literal

import pytest
from conftest import refusal, write_json

from support import settings
from support.settings import Path, Positive, Whole, configure, locate_files


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
    path: str = ''  # as what stands on the command line without a name is called


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


def test_fixed_is_what_a_run_must_be_continued_with(script):
    """Neither where things lie, which a folder that was moved changes, nor how long it goes on."""
    may_differ = {
        'data_dir', 'config_path', 'checkpoint_path', 'dict_path', 'output_dir', 'epochs',
        'accumulate_steps', 'backup_minutes', 'report', 'train_data', 'valid_data',
    }  # fmt: skip
    constants = script.Constants(topk=3, epochs=5)
    expected = {name: value for name, value in vars(constants).items() if name not in may_differ}
    assert settings.fixed(constants) == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        constants.topk = 4


@pytest.mark.parametrize('gone', ['backup_minutes', 'max_q_len'])
def test_name_in_a_list_that_no_constant_has_is_an_error(script, gone):
    """Or who renames a constant would find runs refused, or readers built with another value."""
    kinds = script.Constants.__annotations__.items()
    fields = [(name, kind, getattr(script.Constants, name)) for name, kind in kinds if name != gone]
    line = refusal(configure, dataclasses.make_dataclass('Renamed', fields, frozen=True), {})
    assert line.startswith(f'{gone}: no constant has this name; mend MAY_DIFFER and TRAINED')


# -------------------------------------------------------------------------------- the command line


def parse(*arguments):
    """Return (command, path, question, passages, overrides) of a command line."""
    return settings.parse(Sample, 'What it is for.', arguments)


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


PREDICT = 'predict takes FILE, - or --question= with one --passage= or more'


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ('train --level=two', "--level: invalid int value: 'two'"),
        ('train --flag=maybe', "'maybe'"),
        ('train --flag', '--flag: expected one argument'),
        # an abbreviation is no name: a constant that is added may make it another's
        ('train --fla=true', '--fla=true: unknown; the nearest constant is --flag='),
        ('train -x', '-x: unknown; the nearest constant is --'),
        ('learn', "invalid choice: 'learn'"), ('', 'required: command'), ('predict', PREDICT),
        ('predict a b', f'b: {PREDICT}'), ('predict a --question=b --passage=c', f'a: {PREDICT}'),
        ('predict --question=b', PREDICT), ('predict --passage=c', PREDICT),
        ('export', 'export takes FOLDER'), ('export a b', 'b: export takes FOLDER'),
        ('eval --passage=c', 'eval takes nothing more'),
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


# --------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize(
    ('there', 'missing'),
    [
        ('qid_answer_expand', None),
        ('WebQA.json', ['SogouQA.json', 'bert_config.json', 'bert_model.ckpt', 'vocab.txt']),
        # a checkpoint is there when its index is
        ('bert_model.ckpt.index', ['WebQA.json', 'SogouQA.json', 'bert_config.json', 'vocab.txt']),
    ],
)
def test_demo_is_used_as_long_as_none_of_the_real_files_is_there(
    script, monkeypatch, tmp_path, there, missing
):
    monkeypatch.setattr(settings, 'DATA', str(tmp_path))
    (tmp_path / 'demo').mkdir()
    (tmp_path / there).touch()
    files = locate_files(script.Constants())
    assert files.demo == (missing is None) and files.webqa.endswith('demo/WebQA.json') == files.demo
    if missing:
        line = refusal(settings.require, *files[:5], '')  # '': none is needed
        assert line.startswith('missing: ') and '; data/README.md' in line
        found = [path.rpartition('/')[2] for path in line.partition(';')[0].split(', ')]
        assert found == missing


def test_files_lie_in_the_data_folder_unless_given(script):
    """Answers beside the data to validate on; a comma in the name of a folder separates nothing."""
    for name in 'data_dir', 'config_path', 'checkpoint_path', 'dict_path':
        files = locate_files(script.Constants(**{name: 'mine'}))  # none of the demo's instead
        assert not files.demo and any(path.startswith('mine') for path in files[:5])
    constants = script.Constants(data_dir='a,b', dict_path='b/c.txt', checkpoint_path='')
    files = locate_files(constants)
    names = 'WebQA.json', 'SogouQA.json', 'bert_config.json', 'qid_answer_expand'
    *paths, answers = (f'a,b/{name}' for name in names)
    assert files == (*paths, '', 'b/c.txt', answers, False)
    assert settings.train_paths(constants, files) == ['a,b/WebQA.json']
    data = {'train_data': 'b.json,c.json', 'valid_data': 'd.json'}
    constants = script.Constants(data_dir='a', **data)
    files = locate_files(constants)
    assert settings.train_paths(constants, files) == ['b.json', 'c.json']
    assert (files.sogouqa, files.official_answers) == ('d.json', 'd.json.answers')
    for name, value in data.items():
        line = refusal(locate_files, script.Constants(**{name: value}))
        assert line == 'train_data and valid_data: give both, or none'
    assert locate_files(script.Constants(valid_data='d.json'), 'eval').sogouqa == 'd.json'


def test_what_was_trained_keeps_its_own_lengths_and_bert(script, tmp_path):
    """They stand in the output folder, and hold unless another is given; nothing else does."""
    for name in 'vocab.txt', 'bert_config.json':
        (tmp_path / name).touch()
    constants = {'max_p_len': 70, 'mode': 'generative', 'topk': 9, 'gone': 1}
    write_json(tmp_path / 'config.json', {'constants': constants})
    trained = {'output_dir': str(tmp_path), 'data_dir': 'elsewhere'}
    for command in 'eval', 'predict', 'export':
        constants, files, notes = configure(script.Constants, trained, command)
        assert constants == script.Constants(max_p_len=70, mode='generative', **trained)
        assert notes[2] == f'max_p_len = 70 instead of 256, by {tmp_path}/config.json'
        assert files.sogouqa == 'elsewhere/SogouQA.json'
        assert files.vocabulary == f'{tmp_path}/vocab.txt'
    given = {**trained, 'max_p_len': 256, 'dict_path': 'mine.txt'}
    constants, files, _ = configure(script.Constants, given, 'eval')
    assert (constants.max_p_len, constants.mode) == (256, 'generative')
    assert (files.vocabulary, files.config) == ('mine.txt', f'{tmp_path}/bert_config.json')
    # training does not go by it
    constants, files, _ = configure(script.Constants, trained)
    assert constants == script.Constants(**trained) and files.vocabulary == 'elsewhere/vocab.txt'
    # but where it goes on from these weights: with their BERT, the data is where it was
    weights = f'{tmp_path}/best_model.weights.h5'
    files = locate_files(script.Constants(checkpoint_path=weights))
    assert files.demo and files[2:4] == (f'{tmp_path}/bert_config.json', weights)
    files = locate_files(script.Constants(checkpoint_path=weights, data_dir='elsewhere'))
    assert not files.demo and files.webqa == 'elsewhere/WebQA.json'
    # an output folder without what travels takes the BERT of the data
    assert 'demo/vocab.txt' in locate_files(script.Constants(output_dir='none'), 'eval').vocabulary
