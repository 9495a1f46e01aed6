"""support/paths.py: which files the constants mean."""

import dataclasses
import os
import re
import types

import pytest
from conftest import refusal, write_small
from runs import RESULTS, call, options

from support import paths
from support.paths import locate_files
from support.predictions import place_of

BEST, CHECKPOINT = RESULTS[0], 'bert_model.ckpt'
DATA = f'{CHECKPOINT}.data-00000-of-00001'
EARLIER = 'best_model.weights.h5'


@pytest.mark.parametrize(
    ('there', 'missing'),
    [
        ('qid_answer_expand', None),
        ('WebQA.json', ['SogouQA.json', 'bert_config.json', CHECKPOINT, 'vocab.txt']),
        # a checkpoint is there when its index is
        (f'{CHECKPOINT}.index', ['WebQA.json', 'SogouQA.json', 'bert_config.json', 'vocab.txt']),
    ],
)
def test_demo_is_used_as_long_as_none_of_the_real_files_is_there(
    script, monkeypatch, tmp_path, there, missing
):
    monkeypatch.setattr(paths, 'DATA', str(tmp_path))
    (tmp_path / 'demo').mkdir()
    (tmp_path / there).touch()
    files = locate_files(script.Constants())
    assert files.demo == (missing is None) == files.webqa[0].endswith('demo/WebQA.json')
    if missing:
        needed = *files.webqa, *files.sogouqa, *files[2:5], ''  # '': none is needed
        line = refusal(paths.require, *needed)
        assert line.startswith('missing: ') and '; data/README.md' in line
        found = [path.rpartition('/')[2] for path in line.partition(';')[0].split(', ')]
        assert found == missing


def test_files_lie_in_the_data_folder_unless_given(script):
    """Answers beside the data to validate on; a comma in the name of a folder separates nothing."""
    for name in 'data_dir', 'config_path', 'checkpoint_path', 'dict_path':
        files = locate_files(script.Constants(**{name: 'mine'}))  # none of the demo's instead
        assert not files.demo
        assert any(path.startswith('mine') for path in (*files.webqa, *files[2:5]))
    constants = script.Constants(data_dir='a,b', dict_path='b/c.txt', checkpoint_path='')
    files = locate_files(constants)
    names = 'WebQA.json', 'SogouQA.json', 'bert_config.json', 'qid_answer_expand'
    webqa, sogouqa, config, answers = (f'a,b/{name}' for name in names)
    assert files == ([webqa], [sogouqa], config, '', 'b/c.txt', [answers], False)
    own = {'train_data': 'b.json,c.json', 'valid_data': 'd,e.json'}
    for given, train, split in (
        ([*own], ['b.json', 'c.json'], ['d,e.json']), (['train_data'], [], ['b.json', 'c.json']),
    ):  # fmt: skip
        constants = script.Constants(data_dir='a', **{name: own[name] for name in given})
        answers = [f'{path}.answers' for path in split]
        for command in 'train', 'eval':
            files = locate_files(constants, command)
            assert (files.webqa, files.sogouqa, files.official_answers) == (train, split, answers)
    valid_alone = script.Constants(valid_data='d.json')
    assert refusal(locate_files, valid_alone).startswith('valid_data: give train_data too')
    assert locate_files(valid_alone, 'eval').sogouqa == ['d.json']


@pytest.mark.parametrize(('there', 'meant'), [(f'{CHECKPOINT}.index', CHECKPOINT), (BEST, BEST)])
def test_folder_and_each_file_of_a_checkpoint_mean_all_of_it(script, tmp_path, there, meant):
    (tmp_path / there).touch()
    for given in '', meant, *([f'{meant}.index', f'{meant}.meta', DATA] if meant != there else []):
        files = locate_files(script.Constants(checkpoint_path=str(tmp_path / given)))
        assert files.checkpoint == str(tmp_path / meant)


@pytest.mark.parametrize('reader', [True, False])
def test_configuration_and_vocabulary_stand_beside_the_weights(
    script, tmp_path, monkeypatch, reader
):
    """What is called config.json beside a checkpoint may be anything; a trained reader's is its
    BERT's, and it is used with any data, also the demo's."""
    for name in 'config.json', 'bert_config.json', 'vocab.txt', BEST, *['reader.json'] * reader:
        (tmp_path / name).touch()
    config = 'config.json' if reader else 'bert_config.json'
    for given in tmp_path, tmp_path / BEST:
        files = locate_files(script.Constants(checkpoint_path=str(given)))
        assert files[2:5] == tuple(str(tmp_path / name) for name in (config, BEST, 'vocab.txt'))
        assert files.demo == reader == files.webqa[0].endswith('demo/WebQA.json')
    files = locate_files(script.Constants(checkpoint_path=str(tmp_path), data_dir='elsewhere'))
    assert not files.demo and files.webqa == ['elsewhere/WebQA.json']
    # where one stands is no matter
    monkeypatch.chdir(tmp_path)
    assert not locate_files(script.Constants(checkpoint_path='')).demo
    # an output folder without them takes those of the data
    assert 'demo/vocab.txt' in locate_files(script.Constants(output_dir='none'), 'eval').vocabulary


A_BERTS = '{"vocab_size": 9, "num_hidden_layers": 1, "hidden_act": "gelu"}'


@pytest.mark.parametrize(
    ('there', 'meant'),  # names in the folder of the weights; configuration, weights, vocabulary
    [
        ('config.json model.safetensors tokenizer.json',
         'config.json model.safetensors tokenizer.json'),
        ('bert_config_large.json roberta_zh_large_model.ckpt.index vocab.txt tokenizer.json',
         'bert_config_large.json roberta_zh_large_model.ckpt vocab.txt'),
        ('rbt3_config.json tokenizer_config.json bert.safetensors bert-vocab.txt',
         'rbt3_config.json bert.safetensors bert-vocab.txt'),
        ('config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors '
         'model.safetensors.index.json vocab.txt',
         'config.json model.safetensors.index.json vocab.txt'),
        ('bert_config.json checkpoint model.ckpt-10000.index model.ckpt-20000.index vocab.txt',
         'bert_config.json model.ckpt-20000 vocab.txt'),
    ],
)  # fmt: skip
def test_names_that_others_give_the_files_of_a_bert_are_known(script, tmp_path, there, meant):
    """The usual ones first, else the only one like it; by the folder, or by any of the weights."""
    bert, data = tmp_path / 'bert', write_small(tmp_path)  # with a BERT of its own
    bert.mkdir()
    for name in there.split():
        (bert / name).write_text(A_BERTS if 'config' in name and 'tok' not in name else '{}')
    if 'checkpoint' in there:
        (bert / 'checkpoint').write_text('model_checkpoint_path: "/gone/model.ckpt-20000"\n')
    weights = [name for name in there.split() if re.search('00|index|safet|checkp', name)]
    expected = tuple(str(bert / name) for name in meant.split())
    for given in '', *(name for name in weights if '10000' not in name):
        constants = script.Constants(data_dir=str(data), checkpoint_path=str(bert / given))
        assert locate_files(constants)[2:5] == expected
    # in the folder of the data too, where what is called as ever comes first
    constants = script.Constants(data_dir=str(bert))
    assert locate_files(constants)[2:5] == expected
    folders = {'config_path': str(bert), 'dict_path': str(bert), 'checkpoint_path': ''}
    files = locate_files(script.Constants(data_dir=str(data), **folders))
    assert (files.config, files.vocabulary) == (expected[0], expected[2])


def test_parts_of_two_berts_are_not_put_together(script, tmp_path):
    """What is not beside weights that are named is missing, although the data has one: the line
    says what was sought, what lies there and which constant names it."""
    data, folder = write_small(tmp_path), tmp_path / 'bert'
    folder.mkdir()
    (folder / BEST).touch()
    named = {'data_dir': str(data), 'checkpoint_path': str(folder)}
    for name in 'a_config.json', 'b_config.json', 'words.txt':
        (folder / name).write_text(A_BERTS)
    files = locate_files(script.Constants(**named))
    line = refusal(paths.require, *files[2:5])
    assert line == (
        f'missing: {folder}/bert_config.json, {folder}/vocab.txt; data/README.md says where to '
        'download it, or check the path; sought bert_config.json, config.json, *config*.json among '
        f'a_config.json, b_config.json, {BEST}, words.txt; config_path may name another; sought '
        f'vocab.txt, tokenizer.json, *vocab*.txt among a_config.json, b_config.json, {BEST}, '
        'words.txt; dict_path may name another'
    )
    given = {'config_path': str(folder / 'a_config.json'), 'dict_path': str(folder / 'words.txt')}
    paths.require(*locate_files(script.Constants(**named, **given))[2:5])
    # those of the data are meant once they are named
    both = {'config_path': files.webqa[0], 'dict_path': str(data / 'vocab.txt')}
    assert locate_files(script.Constants(**named, **both)).vocabulary == f'{data}/vocab.txt'


def test_what_is_no_regular_file_is_there_but_guards_nothing(script, tmp_path):
    """It is read once, so it cannot be what is read again and again."""
    pipe, file, link = (tmp_path / name for name in ('pipe', 'file', 'link'))
    os.mkfifo(pipe)
    file.touch()
    link.symlink_to('file')
    descriptor = f'/dev/fd/{os.open(file, os.O_RDONLY)}'
    for path, guarded in (pipe, None), (descriptor, None), (file, str(file)), (link, str(file)):
        paths.require(str(path))
        line = types.SimpleNamespace(path=str(path), constants=script.Constants(), overrides={})
        assert place_of(line)['source'] == guarded
    for name in 'config_path', 'checkpoint_path', 'dict_path':
        line = refusal(locate_files, script.Constants(**{name: str(pipe)}))
        assert line == f'{pipe}: a pipe, and it is read several times; write it to a file'
    assert 'missing' in refusal(paths.require, str(tmp_path))  # a folder is none


@pytest.mark.parametrize('name', ['best_model.weights', f'{BEST} reader.json'])
def test_reader_is_ours_or_the_original_scripts(script, tmp_path, name):
    """A plain BERT would answer too, and nobody would notice."""
    ours, needed = name.split(), [tmp_path / BEST, tmp_path / 'reader.json']
    constants = script.Constants(output_dir=str(tmp_path), data_dir=str(write_small(tmp_path)))
    for there in ours:
        line = refusal(paths.require_reader, locate_files(constants, 'eval'))
        missing = ', '.join(str(path) for path in needed if not path.exists())
        assert line == f'missing: {missing}; run train first, or give its output_dir'
        (tmp_path / there).touch()
    files = locate_files(dataclasses.replace(constants, dict_path='mine'), 'eval')
    # what stays in an edited script was to train with
    assert files.vocabulary == (str(tmp_path / 'vocab.txt') if BEST in ours else 'mine')
    assert files.checkpoint == str(tmp_path / ours[0])
    paths.require_reader(files._replace(config='', vocabulary=''))


@pytest.mark.parametrize('name', ['vocab.txt', 'config.json', BEST])
def test_training_does_not_write_over_the_bert_that_it_trains_from(script, tmp_path, name):
    """It may be the only copy; a link is no way around."""
    (tmp_path / 'bert').mkdir()
    (tmp_path / 'bert' / name).touch()
    (tmp_path / 'link').symlink_to('bert')
    constant = {'vocab.txt': 'dict_path', 'config.json': 'config_path', BEST: 'checkpoint_path'}
    given = {'output_dir': str(tmp_path / 'link'), constant[name]: str(tmp_path / 'bert' / name)}
    said = f'{tmp_path}/bert/{name}: train would write over it; choose another output_dir'
    assert refusal(locate_files, script.Constants(**given)) == said
    locate_files(script.Constants(**given), 'eval')  # which writes nothing there


def test_output_folder_of_an_earlier_version_is_refused_in_one_line(script, tmp_path):
    """Nothing in it is changed."""
    data, old = write_small(tmp_path), tmp_path / 'old'
    old.mkdir()
    for name in 'config.json', 'bert_config.json', 'vocab.txt', EARLIER, 'random_order.json':
        (old / name).write_text('{"constants": {"topk": 2}}', encoding='utf-8')
    before = {path: path.read_bytes() for path in old.iterdir()}
    what = 'weights in the format of an earlier version, which is no longer read; train again, in'
    predict = ['--question=谁？', '--passage=中国']
    for command, *rest in ['train'], ['eval'], ['predict', *predict], ['export', old / 'new']:
        status, out, err = call(script, command, *rest, *options(data, old))
        assert (status, out) == (2, []) and err == f'{old / EARLIER}: {what} another output_dir\n'
    for given in old, old / EARLIER:
        line = refusal(locate_files, script.Constants(checkpoint_path=str(given)))
        assert line.startswith(f'{old / EARLIER}: {what}')
    assert before == {path: path.read_bytes() for path in old.iterdir()}
    # other weights there are no matter
    (old / f'{CHECKPOINT}.index').touch()
    for given in old, old / CHECKPOINT:
        files = locate_files(script.Constants(checkpoint_path=str(given)))
        assert files.checkpoint == os.path.join(old, CHECKPOINT)
