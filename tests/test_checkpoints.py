"""support/checkpoints.py: a BERT's weights in files; tests/hugging_face/ is by transformers."""

import json
import math
import os
import re
import shutil
import signal
import types

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, VOCABULARY, refusal, write_json
from runs import half_written

from support import bert
from support.checkpoints import opened, save
from support.keras2 import keras, tf
from support.paths import locate_files
from support.unilm import UniLM

FORMATS = 'model.safetensors', 'tf_model.h5'
CHECKPOINT, DATA = 'bert_model.ckpt', 'bert_model.ckpt.data-00000-of-00001'
GOOGLE, MANY = 'bert/embeddings/word_embeddings', 2 * len(VOCABULARY)
WORDS = 'bert.embeddings.word_embeddings.weight'


@pytest.fixture
def published(tmp_path):
    """A folder as Hugging Face's are, with both formats; what is in brackets is no pattern."""
    folder = shutil.copytree(os.path.join(ROOT, 'tests', 'hugging_face'), tmp_path / 'a[1]\\b')
    (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    return folder


@pytest.fixture
def build(script, published):
    def built(path, keep_tokens=None):
        files = locate_files(script.Constants(data_dir=str(published), checkpoint_path=str(path)))
        return bert.build_bert(files, files.checkpoint, keep_tokens, len(VOCABULARY), 100)

    return built


def change(folder, changed):
    """Write the weights by a function that changes a dict of them; returns the path."""
    path = folder / FORMATS[0]
    values = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(changed(values) or values, path)
    return path


def configure(folder, **changes):
    """Change the configuration of a folder of Hugging Face's."""
    path = folder / 'config.json'
    write_json(path, {**json.loads(path.read_text(encoding='utf-8')), **changes})


def values_in(path):
    with opened(str(path)) as (variables, described):
        assert described is None
        needed = [name for name in variables if not re.search('pooler|seq_|decoder', name)]
        return {name: variables[name]() for name in needed}


def save_checkpoint(folder, changes):
    """Write the weights as a TensorFlow checkpoint, as BERT comes; returns the path."""
    values = {**values_in(folder / FORMATS[0]), 'global_step': np.array(7), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    lists = {'tensor_names': [*values], 'shape_and_slices': [''] * len(values)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tf.raw_ops.SaveV2(prefix=CHECKPOINT, tensors=[*values.values()], **lists)
    return folder / CHECKPOINT


def test_bert_says_what_it_says_in_transformers(script, build, published):
    model, said = build(published), np.load(published / 'said.npz')
    last = model.get_layer('Transformer-1-FeedForward-Norm').output
    inputs = [said['token_ids'], np.zeros_like(said['token_ids'])]
    hidden = keras.Model(model.inputs, last)(inputs).numpy()
    np.testing.assert_allclose(hidden, said['hidden'], atol=1e-5)
    logits = UniLM(model, script.unilm_mask).logits(tf.constant(hidden.reshape([-1, 16]))).numpy()
    np.testing.assert_allclose(logits, said['logits'].reshape(logits.shape), atol=1e-5, rtol=1e-5)
    assert said['hidden'].std() > 0.1 and said['logits'].std() > 0.1


OF_TOKENS = r'word_embeddings|predictions\.(decoder\.)?bias'


@pytest.mark.parametrize(
    ('config', 'pattern'),
    [({'vocab_size': 64}, OF_TOKENS), ({'vocab_size': 59}, OF_TOKENS),
     ({'type_vocab_size': 3}, 'token_type'), ({'type_vocab_size': 16}, 'token_type')],
)  # fmt: skip
@pytest.mark.parametrize('keep_tokens', [None, [0, 2, 3, 4, 7, 57]])
def test_rows_that_the_configuration_has_by_design_are_left_out(
    build, published, config, pattern, keep_tokens
):
    """Padding, added tokens, further types; others than so many as it says are refused."""

    def added(count):
        return lambda values: {
            name: np.append(value, np.full([count, *value.shape[1:]], 9, 'f'), 0)
            if re.search(pattern, name) else value for name, value in values.items()
        }  # fmt: skip

    expected = build(published, keep_tokens).get_weights()
    [count] = config.values()
    change(published, added(count - (58 if count > 58 else 2)))
    assert re.search('is made for|means', refusal(build, published, keep_tokens))
    configure(published, **config)
    assert all(map(np.array_equal, expected, build(published, keep_tokens).get_weights()))
    change(published, added(1))
    assert re.search('is made for|means', refusal(build, published, keep_tokens))


@pytest.mark.parametrize(
    ('names', 'function'),
    [
        ('gelu_new gelu_fast gelu_pytorch_tanh gelu_python_tanh gelu_accurate gelu_tanh',
         lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
        ('gelu gelu_python gelu_erf', lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5))),
        ('silu swish', lambda x: x / (1 + np.exp(-x))),
    ],
)  # fmt: skip
def test_hidden_act_is_the_function_that_transformers_calls_so(build, published, names, function):
    """The two kinds of gelu differ by 5e-4; the name stays in what is written."""
    x = np.linspace(-6, 6, 4001)
    for name in names.split():
        configure(published, hidden_act=name)
        y = build(published).get_layer('MLM-Dense').activation(tf.constant(x, tf.float32)).numpy()
        assert abs(y - function(x)).max() < 2e-6, name


def test_shards_are_read_as_one_file(build, published):
    """By their folder, their index or any of them; one that is damaged or missing is named."""
    expected, values = build(published), safetensors.numpy.load_file(published / FORMATS[0])
    of_names, index = {}, published / 'model.safetensors.index.json'
    for i in range(3):  # as transformers does it
        shard, part = f'model-{i + 1:05}-of-00003.safetensors', dict([*values.items()][i::3])
        safetensors.numpy.save_file(part, published / shard)
        of_names.update(dict.fromkeys(part, shard))
    write_json(index, {'metadata': {'total_size': 1}, 'weight_map': of_names})
    (published / FORMATS[0]).unlink()
    for given in published, index, published / shard:
        assert all(map(np.array_equal, expected.get_weights(), build(given).get_weights()))
    (published / shard).write_bytes((published / shard).read_bytes()[:-1])
    assert refusal(build, published).startswith(f'{published / shard}: no weights of a BERT (')
    (published / shard).unlink()
    assert shard in refusal(build, published)
    for content in '[]', '{"weight_map": 7}', '{"weight_map": {"a": 7}}':
        index.write_text(content, encoding='utf-8')
        assert refusal(build, published).startswith(f'{index}: no weights of a BERT (')


@pytest.mark.parametrize(
    ('pattern', 'replacement'),
    [
        (None, FORMATS[1]), (None, CHECKPOINT),
        (r'^bert\.', ''), (r'LayerNorm\.weight', 'LayerNorm.gamma'), (r'.*(pooler|seq_rel).*', ''),
        (r'LayerNorm\.bias', 'LayerNorm.beta'), (r'^(cls.predictions)\.bias', r'\1.decoder.bias'),
    ],
)  # fmt: skip
def test_formats_and_versions_hold_the_same(published, pattern, replacement):
    """A decoder that is written although it is the embedding is not in the way."""
    expected, path = values_in(published / FORMATS[0]), published / str(replacement)
    if pattern:
        path = change(published, lambda values: {
            'cls.predictions.decoder.weight': values[WORDS].copy(),
            **{re.sub(pattern, replacement, name) or 'other': values[name] for name in values},
        })  # fmt: skip
    elif replacement == CHECKPOINT:
        save_checkpoint(published, {'global_step': None})
    values = values_in(path)
    values.pop('other', None)
    assert values.keys() == expected.keys() and len(values) == 5 + 2 * 16 + 5
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected[name], name)


def test_checkpoint_arrives_with_the_rows_of_the_vocabulary_that_are_kept(build, published):
    """In half precision it is read as float32."""
    keep_tokens = [0, 2, 3, 4, 7, 9]
    change(published, lambda values: {name: values[name].astype('f2') for name in values})
    whole, kept = build(published / FORMATS[0]), build(save_checkpoint(published, {}), keep_tokens)
    for one, other in zip(whole.get_weights(), kept.get_weights(), strict=True):
        one = one[keep_tokens] if len(one) == len(VOCABULARY) else one
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ('changed', 'said'),
    [
        # a reader that begins with a head of zeros would learn nothing for long
        (lambda values: {name: values[name] for name in values if name[:3] != 'cls'},
         'no BERT with its masked language model (no cls/predictions'),
        (lambda values: values[WORDS].__setitem__((-1, -1), np.inf),
         f'{WORDS} holds what is no number; download it again'),
        (lambda values: {**values, WORDS: values[WORDS].astype('i1')},
         f'{WORDS} cannot be read (whole numbers: it is quantized)'),
        (lambda values: {**values, WORDS: np.zeros([], 'f')}, f'{GOOGLE} is (), but CONFIG means'),
        ({GOOGLE: None}, f'no BERT with its masked language model (no {GOOGLE} in it); data/READ'),
        # more rows would be loaded without complaint, and mean other tokens
        ({GOOGLE: np.zeros([MANY, 16])}, f'CHECKPOINT is made for {MANY} tokens; take both from'),
        ({'cls/predictions/output_bias': np.zeros(MANY)}, f'CHECKPOINT is made for {MANY} tokens'),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_a_berts_are_refused(build, published, changed, said):
    path = (change if callable(changed) else save_checkpoint)(published, changed)
    message = refusal(build, path)
    if 'CHECKPOINT' in said:
        last = f'{published / "vocab.txt"}: line {len(VOCABULARY)} is the last, but '
        assert message.startswith(last + said.replace('CHECKPOINT', str(path)))
    else:
        config = str(published / 'config.json')
        assert message.startswith(f'{path}: {said.replace("CONFIG", config)}')


def test_pickle_is_refused_with_the_line_that_converts_it(build, published):
    for name in FORMATS:
        (published / name).unlink()
    (pickle := published / 'pytorch_model.bin').write_bytes(b'')
    for path in published, pickle:
        message = refusal(build, path)
        assert message.startswith(f'{pickle}: a pickle') and 'save_pretrained(' in message


# ---------------------------------------------------------------------------------- what is written


def test_what_is_written_is_what_transformers_wrote(build, published, tmp_path):
    """Names, rows and columns; not what only its other tasks need."""
    path = tmp_path / FORMATS[0]
    save(str(path), bert.variables_of(build(published)), 'some BERT')
    theirs, ours = (safetensors.numpy.load_file(each) for each in (published / path.name, path))
    assert {*theirs} - {*ours} == {name for name in theirs if re.search('pooler|seq_', name)}
    for name, value in ours.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, theirs[name], name)
    with opened(str(path)) as (_, described):
        assert described == 'some BERT'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs a process that dies')
def test_kill_while_weights_are_written_leaves_the_old_ones(tmp_path):
    """And one name more, which the next ones take: no other is left behind."""
    path = tmp_path / FORMATS[0]
    some = types.SimpleNamespace(shape=[9], numpy=lambda: np.ones(9, np.float32))
    kill = types.SimpleNamespace(shape=[9], numpy=lambda: os.kill(os.getpid(), signal.SIGKILL))
    save(str(path), {'a': some}, 'old')
    old = path.read_bytes()
    child = os.fork()
    if not child:
        save(str(path), {'a': some, 'b': kill, 'c': some}, 'new')
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert path.read_bytes() == old
    assert {*os.listdir(tmp_path)} == {path.name, half_written(path.name)}
    save(str(path), {'a': some}, 'new')
    with opened(str(path)) as (variables, described):
        assert (os.listdir(tmp_path), [*variables], described) == ([path.name], ['a'], 'new')


@pytest.mark.parametrize('kind', ['tf_model.h5', 'best_model.weights'])
def test_file_of_hdf5_is_opened_though_it_is_locked(build, published, kind):
    """As HDF5's own locks would not allow; where a file system has none, it would fail likewise."""
    fcntl = pytest.importorskip('fcntl')
    path = published / kind
    if not path.exists():
        build(published).save_weights(str(path), save_format='h5')
    with open(path, 'rb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        build(path)


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('bert.encoder.layer.2.output.dense.weight', 'it has bert/encoder/layer_2/output/dense/k'),
        ('bert.encoder.layer.0.output.dense.lora_A.weight', 'it has bert/encoder/layer_0/output/'),
        (f'teacher.{WORDS}', f'{GOOGLE} stands in it twice with other values, once as '),
    ],
)
def test_weights_of_more_than_the_bert_that_is_meant_are_refused(published, build, name, said):
    """More layers than the configuration has, an adapter, a second BERT, of which one would win."""
    path = change(published, lambda values: {**values, name: np.zeros([2, 2], np.float32)})
    line = refusal(build, path)
    assert line.startswith(f'{path}: {said}')
