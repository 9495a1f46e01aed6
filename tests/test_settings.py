"""support/settings.py: constants by their types, the command line over them, the files meant."""

import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
from typing import Literal

import pytest
from conftest import ROOT, refusal, write_json, write_small

from support import settings
from support.settings import MayDiffer, Path, Positive, Trained, Whole


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
    free_whole: MayDiffer[Whole[1]] = 1
    free_choice: MayDiffer[Literal['a', 'b']] = 'a'
    free_flag: MayDiffer[bool] = True
    kept_whole: Trained[Whole[1]] = 1
    kept_choice: Trained[Literal['a', 'b']] = 'a'


WHOLE, NUMBER, TEXT = 'a whole number', 'a number', 'a text in quotes'


@pytest.mark.parametrize(
    ('name', 'allowed', 'refused', 'expected'),
    [
        ('whole', [2, 2**31 - 1], [1, 2**31, 2.0, '2', True, None], f'{WHOLE} of at least 2'),
        ('positive', [1e-9, 1], [0, -1.0, math.inf, math.nan, '1', True], f'{NUMBER} above 0'),
        ('folder', ['', 'a/b'], [None, 1, b'a'], 'a path in quotes'),
        ('choice', ['one', 'two'], ['three', '', None, ('one',)], "'one' or 'two'"),
        ('level', [1, 2], [0, 3, 1.0, True, '1'], '1 or 2'),
        ('integer', [-5, 0, 10**20], [0.0, '0', False, None], WHOLE),
        ('number', [-0.5, 0, 3], [math.inf, math.nan, '0.1', True, None], NUMBER),
        ('text', ['', '中'], [None, 1, b''], TEXT),
        ('flag', [True, False], [0, 1, 'True', None], 'True or False'),
        ('free_whole', [1, 5], [0, 1.5], f'{WHOLE} of at least 1'),
        ('free_choice', ['a', 'b'], ['c'], "'a' or 'b'"),
        ('free_flag', [True, False], ['no'], 'True or False'),
        ('kept_whole', [1, 5], [0, 1.5], f'{WHOLE} of at least 1'),
        ('kept_choice', ['a', 'b'], ['c'], "'a' or 'b'"),
    ],
)
def test_type_says_what_is_allowed(name, allowed, refused, expected):
    """True is a whole number for Python, and 1.0 is among the choices 1 and 2."""
    for value in allowed:
        settings.check(Sample(**{name: value}))
    for value in refused:
        line = refusal(settings.check, Sample(**{name: value}))
        assert line == f'{name} = {value!r}: expected {expected}'


def test_list_as_a_value_is_one_line(capsys):
    """dataclasses refuses it while the class is made, with a traceback."""
    with pytest.raises(SystemExit) as stop:

        @settings.constants
        class Edited:
            whole: Whole[2] = [3]  # noqa: RUF012, the mistake

    assert stop.value.code == 2
    assert capsys.readouterr().err == 'whole = [3]: expected a whole number of at least 2\n'


def test_constants_cannot_be_changed():
    """What a run was begun with is what it ends with."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample().whole = 3


def test_first_wrong_constant_is_named():
    assert refusal(settings.check, Sample(whole=0, flag=1)).startswith('whole = 0')


def test_kinds_are_types_taken_apart():
    kinds = settings.kinds(Sample)
    assert list(kinds) == [field.name for field in dataclasses.fields(Sample)]
    assert [kind[0] for kind in kinds.values()] == [
        int, float, str, str, int, int, float, str, bool, int, str, bool, int, str,
    ]  # fmt: skip
    words = {name: kind[2] for name, kind in kinds.items() if kind[2]}
    differ, trained = settings.MAY_DIFFER, settings.TRAINED
    assert words == {
        'free_whole': differ, 'free_choice': differ, 'free_flag': differ, 'kept_whole': trained,
        'kept_choice': trained,
    }  # fmt: skip


def test_fixed_is_what_a_run_must_be_continued_with(script):
    """Neither where things lie, which a folder that was moved changes, nor how long it goes on."""
    may_differ = {
        'data_dir', 'config_path', 'checkpoint_path', 'dict_path', 'output_dir', 'epochs',
        'accumulate_steps', 'backup_minutes', 'report', 'train_data', 'valid_data',
    }  # fmt: skip
    constants = script.Constants(topk=3, epochs=5)
    fixed = settings.fixed(constants)
    assert {*fixed} == {*dataclasses.asdict(constants)} - may_differ
    assert fixed['topk'] == 3 and fixed['learning_rate'] == 1e-5


# -------------------------------------------------------------------------------- the command line


def parse(constants, *arguments):
    """Return (command, path, given) of a command line without a question."""
    line = settings.parse_command_line(arguments, constants, 'What it is for.')
    assert line.question is line.passages is None
    return line.command, line.path, line.given


def test_question_may_have_several_passages():
    """Both may be empty, or begin like an option."""
    arguments = ['predict', '--question=--whole', '--passage=', '--whole=3', '--passage', '北京']
    line = settings.parse_command_line(arguments, Sample, '')
    assert line == ('predict', None, '--whole', ['', '北京'], {'whole': 3})


def test_options_may_stand_before_and_after_the_file_of_questions(script):
    given = parse(script.Constants, 'predict', '--topk=2', 'questions.json', '--seed', '1')
    assert given == ('predict', 'questions.json', {'topk': 2, 'seed': 1})
    assert parse(script.Constants, '--topk=2', 'eval') == ('eval', None, {'topk': 2})


@pytest.mark.parametrize(
    ('written', 'given'),
    [
        ('--whole=3', {'whole': 3}), ('--positive=1e-5', {'positive': 1e-5}),
        ('--folder=', {'folder': ''}), ('--folder=a=b', {'folder': 'a=b'}),
        ('--choice=two', {'choice': 'two'}), ('--level=2', {'level': 2}),
        ('--integer=-3', {'integer': -3}), ('--number=-1', {'number': -1.0}),
        ('--text=--whole=1', {'text': '--whole=1'}),
        ('--flag=True', {'flag': True}), ('--flag=false', {'flag': False}),
        ('--free_flag=False', {'free_flag': False}), ('--free_choice=b', {'free_choice': 'b'}),
    ],
)  # fmt: skip
def test_value_is_read_by_its_type(written, given):
    """bool('False') would be True."""
    assert parse(Sample, 'train', written) == ('train', None, given)
    [(name, value)] = given.items()
    assert type(parse(Sample, 'train', written)[2][name]) is type(value)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['train', '--whole=two'], "--whole: invalid int value: 'two'"),
        (['train', '--level=one'], "--level: invalid int value: 'one'"),
        (['train', '--number=much'], "--number: invalid float value: 'much'"),
        (['train', '--flag=maybe'], "'maybe'"),
        (['train', '--flag='], '--flag'),
        (['train', '--flag'], '--flag: expected one argument'),
        (['train', '--flags=true'], '--flags=true: unknown; the nearest constant is --flag='),
        (['train', '--fla=true'], '--fla=true: unknown; the nearest constant is --flag='),
        (['train', '--Whole', '3'], '--Whole: unknown; the nearest constant is --whole='),
        (['train', '-x'], '-x: unknown; the nearest constant is --'),
        (['learn'], "invalid choice: 'learn'"),
        ([], 'required: command'),
        (['predict'], 'predict takes FILE, - or --question= with one --passage= or more'),
        (['predict', 'a', 'b'], 'b: predict takes FILE, - or'),
        (['predict', 'a', '--question=b', '--passage=c'], 'a: predict takes FILE, - or'),
        (['predict', '--question=b'], 'predict takes FILE, - or'),
        (['predict', '--passage=c'], 'predict takes FILE, - or'),
        (['train', 'a'], 'a: train takes nothing more'),
        (['eval', '--passage=c'], 'eval takes nothing more'),
        (['export'], 'export takes FOLDER'),
        (['export', 'a', 'b'], 'b: export takes FOLDER'),
        (['export', 'a', '--question=b'], 'a: export takes FOLDER'),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments, named):
    """An abbreviation is no name: a constant that is added may make it another's."""
    assert named in refusal(parse, Sample, *arguments)


def test_help_shows_the_source_of_the_constants(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Sample, '--help')
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert 'What it is for.' in text and '{train,eval,predict FILE,export FOLDER}' in text
    assert "\n    choice: Literal['one', 'two'] = 'one'\n" in text


def test_new_constant_of_each_plain_type_needs_nothing_else(script, capsys):
    @settings.constants
    class More(script.Constants):
        label_smoothing: float = 0.1  # of the loss
        layers_kept: int = 3
        note: str = 'none'
        shuffle: bool = False
        tries: MayDiffer[int] = 1

    assert settings.configure(More, {})[0] == More(batch_size=64, learning_rate=3e-4)
    written = ['--label_smoothing=0.2', '--layers_kept=-1', '--note=a b', '--shuffle=true']
    _, _, given = parse(More, 'train', *written, '--tries=2', '--topk=4')
    constants, _, notes = settings.configure(More, given)
    expected = {
        'label_smoothing': 0.2, 'layers_kept': -1, 'note': 'a b', 'shuffle': True, 'tries': 2,
        'topk': 4,
    }  # fmt: skip
    assert vars(constants).items() >= expected.items()
    assert 'label_smoothing = 0.2 instead of 0.1' in notes
    assert 'shuffle = True instead of False' in notes
    for name, wrong in ('label_smoothing', 'x'), ('layers_kept', 1.5), ('note', 1), ('shuffle', 1):
        line = refusal(settings.configure, More, {name: wrong})
        assert line.startswith(f'{name} = {wrong!r}: expected ')
    assert {*settings.fixed(constants)} >= {'label_smoothing', 'layers_kept', 'note', 'shuffle'}
    assert 'tries' not in settings.fixed(constants)
    line = refusal(parse, More, 'train', '--smoothing=0.2')
    assert 'the nearest constant is --label_smoothing=' in line
    with pytest.raises(SystemExit):
        parse(More, '--help')
    assert 'label_smoothing: float = 0.1  # of the loss' in capsys.readouterr().out


def test_new_constant_of_another_type_is_named(capsys):
    with pytest.raises(SystemExit) as stop:

        @settings.constants
        class Named:
            rates: list = ()

    named = "rates: <class 'list'> is no type for a constant, see support/settings.py\n"
    assert stop.value.code == 2 and capsys.readouterr() == ('', named)


def test_new_constant_may_have_any_name():
    """That of what stands on the command line without one, too."""

    @settings.constants
    class Named:
        command: str = ''
        path: str = ''
        passages: str = ''

    given = {'command': 'a', 'path': 'b', 'passages': 'd'}
    written = [f'--{name}={value}' for name, value in given.items()]
    assert parse(Named, 'train', *written) == ('train', None, given)
    assert parse(Named, 'predict', 'c', *written) == ('predict', 'c', given)


# ------------------------------------------------------------------------- the constants in effect


def test_every_override_is_noted(script, small):
    given = {'data_dir': str(small), 'topk': 4, 'mode': 'generative', 'seed': 42}
    constants, files, notes = settings.configure(script.Constants, given)
    assert constants == script.Constants(**given) and not files.demo
    assert notes == [
        f"data_dir = '{small}' instead of 'auto'",
        'topk = 4 instead of 1',
        "mode = 'generative' instead of 'extractive'",
        'seed = 42',
    ]


@pytest.mark.parametrize(
    ('name', 'value'),
    [('epochs', '8'), ('topk', 1.5), ('seed', True), ('data_dir', None), ('learning_rate', '1')],
)
def test_constant_edited_to_a_wrong_type_is_named(script, name, value):
    edited = dataclasses.make_dataclass(
        'Edited', [(name, script.Constants.__annotations__[name], value)],
        bases=(script.Constants,), frozen=True,
    )  # fmt: skip
    assert refusal(settings.configure, edited, {}).startswith(f'{name} = {value!r}: expected')
    line = refusal(settings.configure, script.Constants, {name: value})
    assert line.startswith(f'{name} = {value!r}: expected')


def test_demo_constants_give_way_to_the_users(script):
    """Those edited in the script and those on the command line; the rest are the demo's own."""

    @settings.constants
    class Edited(script.Constants):
        batch_size: Whole[1] = 8

    constants, files, notes = settings.configure(Edited, {'epochs': 3})
    assert files.demo and 'demo' in notes[0] and 'data/README.md' in notes[0]
    assert constants == Edited(epochs=3, learning_rate=3e-4)
    expected = ['epochs = 3 instead of 8', 'learning_rate = 0.0003 instead of 1e-05, for the demo']
    assert notes[1:] == expected
    constants, _, notes = settings.configure(script.Constants, {'learning_rate': 1e-5})
    assert constants == script.Constants(batch_size=64)
    expected = ['learning_rate = 1e-05', 'batch_size = 64 instead of 32']
    assert [note.removesuffix(', for the demo') for note in notes[1:]] == expected


def test_reader_from_python_takes_constants_by_name(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, 'load_trained', lambda constants, files: (constants, files))
    constants, files = script.load_reader(output_dir=str(tmp_path), topk=4)
    assert constants == script.Constants(output_dir=str(tmp_path), topk=4) and files.demo
    assert refusal(lambda: script.load_reader(topk=0)).startswith('topk = 0: expected')
    with pytest.raises(TypeError, match='top_k'):
        script.load_reader(top_k=4)


# --------------------------------------------------------------------------------------- the files


def test_files_lie_in_the_data_folder_unless_given(script):
    constants = script.Constants(data_dir='a', dict_path='b/c.txt', checkpoint_path='')
    files = settings.locate_files(constants)
    assert files == (
        'a/WebQA.json', 'a/SogouQA.json', 'a/bert_config.json', '', 'b/c.txt',
        'a/qid_answer_expand', False,
    )  # fmt: skip


@pytest.fixture
def located(tmp_path):
    """Print, in a copy of the project, the files that the constants mean, or what is missing."""
    shutil.copy(os.path.join(ROOT, 'evaluate_sogou.py'), tmp_path)
    shutil.copytree(os.path.join(ROOT, 'support'), tmp_path / 'support')
    code = """
import types
from support.settings import UserError, locate_files, require
names = 'data_dir', 'train_data', 'valid_data', 'config_path', 'checkpoint_path', 'dict_path'
constants = dict.fromkeys(names, 'auto')
files = locate_files(types.SimpleNamespace(**constants))
try:
    require(*files[:5])
except UserError as error:
    print(files.demo, error)
else:
    print(files.demo, *files)
"""
    (tmp_path / 'data' / 'demo').mkdir(parents=True)

    def run():
        return subprocess.check_output([sys.executable, '-c', code], cwd=tmp_path, encoding='utf-8')

    return run


def test_some_of_the_real_files_are_no_reason_to_use_the_demo(located, tmp_path):
    write_small(tmp_path / 'data' / 'demo')
    (tmp_path / 'data' / 'demo' / 'bert_model.ckpt.index').touch()
    (tmp_path / 'data' / 'README.md').touch()
    assert located().startswith('True ') and 'missing' not in located()
    (tmp_path / 'data' / 'WebQA.json').touch()
    line = located()
    assert line.startswith('False missing: ') and 'data/README.md' in line
    missing = ['SogouQA.json', 'bert_config.json', 'bert_model.ckpt', 'vocab.txt']
    assert re.findall(r'data/([\w.]+)', line.partition(';')[0]) == missing


@pytest.mark.parametrize('name', ['bert_model.ckpt.index', 'vocab.txt', 'bert_config.json'])
def test_each_of_the_real_files_ends_the_demo(located, tmp_path, name):
    """A checkpoint is there when its index is."""
    assert located().startswith('True ')
    (tmp_path / 'data' / name).touch()
    line = located()
    assert line.startswith('False missing: ')
    assert os.path.join('data', name.removesuffix('.index')) not in line.partition(';')[0]


def test_what_is_required_is_missed_by_name(tmp_path):
    (tmp_path / 'there').touch()
    (tmp_path / 'checkpoint.index').touch()
    there = [str(tmp_path / 'there'), str(tmp_path / 'checkpoint'), '']  # '': none is needed
    settings.require(*there)
    line = refusal(settings.require, *there, 'a', str(tmp_path), 'b')
    assert line.startswith(f'missing: a, {tmp_path}, b; data/README.md')


@pytest.fixture
def trained(tmp_path):
    """The options of an output folder as `train` leaves it, with constants that suit nothing."""
    constants = {'whole': 9, 'kept_whole': 7, 'kept_choice': 'b'}
    for name in 'vocab.txt', 'bert_config.json':
        (tmp_path / name).touch()
    write_json(tmp_path / 'config.json', {'constants': constants})
    return {'output_dir': str(tmp_path), 'data_dir': 'elsewhere'}


@settings.constants
class Reading(Sample):
    """With the constants that files are found by."""

    data_dir: MayDiffer[Path] = 'auto'
    train_data: MayDiffer[Path] = 'auto'
    valid_data: MayDiffer[Path] = 'auto'
    config_path: MayDiffer[Path] = 'auto'
    checkpoint_path: MayDiffer[Path] = 'auto'
    dict_path: MayDiffer[Path] = 'auto'
    output_dir: MayDiffer[Path] = 'output'


@pytest.mark.parametrize('command', ['eval', 'predict', 'export'])
def test_what_was_trained_keeps_its_own_lengths_and_bert(trained, command):
    """They stand in the output folder, and hold unless another is given; nothing else does."""
    folder = trained['output_dir']
    constants, files, notes = settings.configure(Reading, trained, command)
    assert constants == Reading(kept_whole=7, kept_choice='b', **trained)
    by = f'by {folder}/config.json'
    expected = [f'kept_whole = 7 instead of 1, {by}', f"kept_choice = 'b' instead of 'a', {by}"]
    assert notes[2:] == expected
    assert files.config == f'{folder}/bert_config.json'
    assert files.vocabulary == f'{folder}/vocab.txt'
    assert files.sogouqa == 'elsewhere/SogouQA.json'
    given = {**trained, 'kept_whole': 1, 'dict_path': 'mine.txt'}
    constants, files, _ = settings.configure(Reading, given, command)
    assert (constants.kept_whole, constants.kept_choice) == (1, 'b')
    assert files.vocabulary == 'mine.txt' and files.config == f'{folder}/bert_config.json'


def test_training_does_not_go_by_what_was_trained(trained):
    constants, files, _ = settings.configure(Reading, trained, 'train')
    assert constants == Reading(**trained) and files.vocabulary == 'elsewhere/vocab.txt'


def test_training_goes_on_from_a_reader_with_the_bert_beside_it(script, trained):
    """The data, also that of the demo, is where it is without."""
    weights = os.path.join(trained['output_dir'], 'best_model.weights.h5')
    _, files, _ = settings.configure(script.Constants, {'checkpoint_path': weights}, 'train')
    assert files.demo and files.checkpoint == weights
    assert files.config == os.path.join(trained['output_dir'], 'bert_config.json')
    given = {'checkpoint_path': weights, 'data_dir': 'elsewhere', 'dict_path': 'mine.txt'}
    _, files, _ = settings.configure(script.Constants, given, 'train')
    assert not files.demo and files.webqa == 'elsewhere/WebQA.json'
    assert files.vocabulary == 'mine.txt'


def test_other_files_to_train_and_validate_on_take_the_place_of_ours(script):
    """Both are needed to train; answers lie beside the one to validate on."""
    given = {'data_dir': 'a', 'train_data': 'b.json,c.json', 'valid_data': 'd.json'}
    constants, files, _ = settings.configure(script.Constants, given, 'train')
    assert settings.train_paths(constants, files) == ['b.json', 'c.json']
    assert (files.sogouqa, files.official_answers) == ('d.json', 'd.json.answers')
    assert files.vocabulary == 'a/vocab.txt'
    for name in 'train_data', 'valid_data':
        line = refusal(settings.configure, script.Constants, {name: 'b.json'}, 'train')
        assert line == 'train_data and valid_data: give both, or none'
    _, files, _ = settings.configure(script.Constants, {'valid_data': 'd.json'}, 'eval')
    assert files.sogouqa == 'd.json'
    constants, files, _ = settings.configure(script.Constants, {'data_dir': 'a,b'}, 'train')
    assert settings.train_paths(constants, files) == ['a,b/WebQA.json']


def test_demo_is_not_spoken_of_where_only_its_bert_is_used(script, monkeypatch, tmp_path):
    shutil.copytree(os.path.join(settings.DATA, 'demo'), tmp_path / 'demo')
    monkeypatch.setattr(settings, 'DATA', str(tmp_path))
    data = {'train_data': 'a.json', 'valid_data': 'b.json'}
    for given, said in ({}, settings.DEMO), (data, settings.DEMO_BERT):
        _, files, notes = settings.configure(script.Constants, given, 'train')
        assert files.demo and notes[0] == said
        assert 'batch_size = 64 instead of 32, for the demo' in notes
    _, _, notes = settings.configure(script.Constants, {'valid_data': 'b.json'}, 'eval')
    assert notes == ["valid_data = 'b.json' instead of 'auto'"]  # its BERT is the trained one


def test_output_folder_without_what_travels_takes_the_bert_of_the_data(script, tmp_path):
    given = {'output_dir': str(tmp_path)}
    _, files, _ = settings.configure(script.Constants, given, 'eval')
    assert files.demo and files.vocabulary.endswith('demo/vocab.txt')


@pytest.mark.parametrize(
    'text', ['{', '[]', '{}', '{"constants": 1}', '{"constants": {"kept_whole": 0}}', '[' * 10**5]
)
def test_config_that_train_did_not_write_is_named(trained, text):
    path = os.path.join(trained['output_dir'], 'config.json')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    assert refusal(settings.configure, Reading, trained, 'predict').startswith(f'{path}: not what')
