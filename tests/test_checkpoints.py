"""support/checkpoints.py: a BERT as it is published; tests/hugging_face/ is by transformers."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, VOCABULARY, refusal, small_files

from support import bert
from support.checkpoints import opened
from support.settings import locate_files

HUGGING_FACE = os.path.join(ROOT, 'tests', 'hugging_face')
FORMATS = 'model.safetensors', 'tf_model.h5'


@pytest.fixture
def published(tmp_path):
    """A folder as Hugging Face's are, with both formats."""
    folder = tmp_path / 'bert-tiny'
    shutil.copytree(HUGGING_FACE, folder)
    (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    return folder


def built(script, folder, checkpoint):
    """The BERT that `train` begins with, of the full vocabulary."""
    files = locate_files(script.Constants(data_dir=str(folder), checkpoint_path=str(checkpoint)))
    return bert.build_bert(files, files.checkpoint, None, len(VOCABULARY), 100)


@pytest.mark.parametrize('name', FORMATS)
def test_bert_says_what_it_says_in_transformers(script, published, name):
    """Its last hidden states and its logits of masked tokens, to 1e-5."""
    from support.keras2 import keras, tf
    from support.unilm import UniLM

    for other in FORMATS:
        if other != name:
            (published / other).unlink()
    model = built(script, published, published)
    said = np.load(published / 'said.npz')
    inputs = [said['token_ids'], np.zeros_like(said['token_ids'])]
    last = model.get_layer('Transformer-1-FeedForward-Norm').output
    hidden = keras.Model(model.inputs, last).predict(inputs, verbose=0)
    np.testing.assert_allclose(hidden, said['hidden'], atol=1e-5)
    logits = UniLM(model).logits(tf.constant(hidden.reshape([-1, 16]))).numpy()
    np.testing.assert_allclose(logits, said['logits'].reshape(logits.shape), atol=1e-5, rtol=1e-5)
    assert said['hidden'].std() > 0.1 and said['logits'].std() > 0.1


def test_both_formats_hold_the_same(published):
    values = []
    for name in FORMATS:
        with opened(str(published / name)) as variables:
            names = {each for each in variables if 'pooler' not in each and 'seq_' not in each}
            values.append({each: variables[each]() for each in names})
    assert values[0].keys() == values[1].keys() and len(values[0]) == 5 + 2 * 16 + 5
    for name, value in values[0].items():
        np.testing.assert_array_equal(value, values[1][name], name)


@pytest.mark.parametrize(
    'change',
    [
        lambda name: name.removeprefix('bert.'),
        lambda name: re.sub(r'LayerNorm\.weight', 'LayerNorm.gamma', name),
        lambda name: re.sub(r'LayerNorm\.bias', 'LayerNorm.beta', name),
        lambda name: None if 'pooler' in name or 'seq_relationship' in name else name,
        lambda name: re.sub(r'^cls\.predictions\.bias', 'cls.predictions.decoder.bias', name),
    ],
    ids=['no bert.', 'gamma', 'beta', 'no pooler', 'decoder.bias'],
)
def test_names_differ_from_one_version_to_the_next(script, published, change):
    path = published / 'model.safetensors'
    before = [weight.numpy() for weight in built(script, published, path).weights]
    values = safetensors.numpy.load_file(path)
    renamed = {change(name): value for name, value in values.items() if change(name)}
    assert renamed.keys() != values.keys()
    safetensors.numpy.save_file(renamed, path)
    for one, other in zip(before, built(script, published, path).weights, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_decoder_of_its_own_is_not_in_the_way(script, published):
    """Where it is written although it is the embedding."""
    path = published / 'model.safetensors'
    values = safetensors.numpy.load_file(path)
    embedding = values['bert.embeddings.word_embeddings.weight']
    safetensors.numpy.save_file({**values, 'cls.predictions.decoder.weight': embedding}, path)
    built(script, published, path)


def test_half_precision_is_read_as_float32(published):
    path = published / 'model.safetensors'
    values = safetensors.numpy.load_file(path)
    halves = {name: value.astype(np.float16) for name, value in values.items()}
    safetensors.numpy.save_file(halves, path)
    with opened(str(path)) as variables:
        value = variables['bert/encoder/layer_0/attention/self/query/kernel']()
    expected = halves['bert.encoder.layer.0.attention.self.query.weight'].T
    assert value.dtype == np.float32 and (value == expected).all()


def test_bert_without_its_masked_language_model_is_refused(script, published):
    """A reader that begins with a head of zeros would learn nothing for long."""
    path = published / 'model.safetensors'
    values = safetensors.numpy.load_file(path)
    kept = {name: value for name, value in values.items() if not name.startswith('cls.')}
    safetensors.numpy.save_file(kept, path)
    message = refusal(built, script, published, path)
    assert message.startswith(f'{path}: no BERT with its masked language model (no cls/predictions')


@pytest.mark.parametrize('value', [np.float32('nan'), np.float32('inf'), np.float32(1)])
def test_weights_that_are_no_numbers_or_no_matrix_are_refused(script, published, value):
    """Of all the words' the last is not finite, or they are a single number."""
    path, name = published / 'model.safetensors', 'bert.embeddings.word_embeddings.weight'
    values = safetensors.numpy.load_file(path)
    values[name][-1, -1] = value
    said = 'weight holds what is no number'
    if np.isfinite(value):
        values[name], said = np.array(value), 'is (), but bert_config.json means'
    safetensors.numpy.save_file(values, path)
    message = refusal(built, script, published, path)
    assert message.startswith(f'{path}: bert') and said in message and '; ' in message


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('cut', [0, 7, 500, 30_000])
def test_weights_that_were_cut_off_are_named(script, published, name, cut):
    path = published / name
    path.write_bytes(path.read_bytes()[:cut])
    assert refusal(built, script, published, path).startswith(f'{path}: ')


def test_pickle_is_refused_with_the_line_that_converts_it(script, published):
    """It is never opened."""
    for name in FORMATS:
        (published / name).unlink()
    (published / 'pytorch_model.bin').write_bytes(b'')
    for path in published, published / 'pytorch_model.bin':
        message = refusal(built, script, published, path)
        assert message.startswith(f'{published}/pytorch_model.bin: a pickle')
        assert f"save_pretrained('{published}')" in message


def test_configuration_and_vocabulary_stand_beside_the_weights(script, published, small):
    """Whatever is in the data folder; what is given goes first."""
    constants = {'data_dir': str(small), 'checkpoint_path': str(published)}
    files = locate_files(script.Constants(**constants))
    assert files.checkpoint == str(published / 'model.safetensors')
    assert files.config == str(published / 'config.json')
    assert files.vocabulary == str(published / 'vocab.txt')
    assert files.webqa == str(small / 'WebQA.json') and not files.demo
    files = locate_files(script.Constants(**constants, dict_path='mine.txt'))
    assert files.vocabulary == 'mine.txt' and files.config == str(published / 'config.json')
    assert small_files(script, small).config == str(small / 'bert_config.json')


@pytest.mark.parametrize('suffix', ['.index', '.meta', '.data-00000-of-00001', ''])
def test_each_file_of_a_checkpoint_means_all_of_it(script, suffix):
    path = f'a/bert_model.ckpt{suffix}'
    files = locate_files(script.Constants(checkpoint_path=path))
    assert files.checkpoint == 'a/bert_model.ckpt'


@pytest.mark.parametrize('name', ['bert_model.ckpt', 'best_model.weights.h5'])
def test_folder_of_a_checkpoint_or_of_a_reader_means_it(script, tmp_path, name):
    (tmp_path / (f'{name}.index' if name.endswith('ckpt') else name)).touch()
    files = locate_files(script.Constants(checkpoint_path=str(tmp_path)))
    assert files.checkpoint == str(tmp_path / name)


def test_training_begins_with_a_bert_of_hugging_face(script, published, small):
    from runs import call

    arguments = [f'--checkpoint_path={published}', f'--data_dir={small}', '--epochs=1']
    lengths = ['--max_p_len=64', '--max_q_len=16', '--max_a_len=4']
    output = small / 'output'
    status, last_line, err = call(script, 'train', *arguments, *lengths, f'--output_dir={output}')
    assert status == 0, err
    assert json.loads(last_line[0])['total'] == 2
    config = json.loads((output / 'bert_config.json').read_text(encoding='utf-8'))
    assert config['model_type'] == 'bert'
    shutil.rmtree(published)
    question = ['--question=中国人口在哪里？', '--passage=人口在北京']
    status, _, err = call(script, 'predict', *question, f'--output_dir={output}')
    assert status == 0, err
