"""What several test files need: real data where it is at hand, a BERT of a few hundred weights."""

import json
import os
import sys

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared', 'data')
sys.path.insert(0, ROOT)
pytest_plugins = ['runs']  # whole trainings, made once for all files

from evaluate_sogou import UserError

VOCABULARY = [
    '[PAD]', '[unused1]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'，,。、；？:·', *'0123456789',
    *'abcdefgh', '##a', '##b', '##1', '##2', '##中', *'中国北京上海南天津重庆的是在哪里人口谁',
    'ab', '20',
]  # fmt: skip


def pytest_collection_modifyitems(items):
    """What waits for the demo's training comes last; it trains meanwhile."""
    items.sort(key=lambda item: 'demo' in item.fixturenames)


@pytest.fixture(scope='session')
def shared():
    """The folder of real questions, vocabulary and official answers."""
    if not os.path.isdir(SHARED):
        pytest.skip(f'the real data is not at hand: no folder {SHARED}')
    return SHARED


@pytest.fixture(scope='session')
def script():
    """The script as a module."""
    import task_reading_comprehension_by_seq2seq as module

    return module


@pytest.fixture
def small(tmp_path):
    """A folder of WebQA.json, SogouQA.json, vocab.txt and a tiny configuration; no checkpoint."""
    return write_small(tmp_path)


@pytest.fixture(scope='module')
def small_bert(script, tmp_path_factory):
    """(model, tokenizer) of `build_small_model`, built once a file: `draw` weights before use."""
    return build_small_model(script, write_small(tmp_path_factory.mktemp('small')))


def forward_pass_of(model):
    """Return the full forward pass of bert4keras's model, compiled, or random cases take an hour.

    A function of token_ids and segment_ids, lists of rows, to float32 [rows, longest, vocab].
    """
    from support.keras2 import bert4keras, tf

    ids = tf.TensorSpec([None, None], tf.int32)
    call = tf.function(lambda *batch: model([*batch], training=False), input_signature=[ids, ids])
    pad = bert4keras.snippets.sequence_padding
    return lambda *batch: call(*(np.int32(pad(rows)) for rows in batch)).numpy()


def write_small(folder):
    """Write the files of the fixture `small`; returns the folder."""
    (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    config = {
        'vocab_size': len(VOCABULARY), 'hidden_size': 16, 'num_hidden_layers': 2,
        'num_attention_heads': 2, 'intermediate_size': 32, 'max_position_embeddings': 512,
        'hidden_act': 'gelu', 'type_vocab_size': 2, 'hidden_dropout_prob': 0.1,
        'initializer_range': 0.3,
    }  # fmt: skip
    (folder / 'bert_config.json').write_text(json.dumps(config), encoding='utf-8')
    write_json(folder / 'WebQA.json', [record(f'W{i}') for i in range(4)])
    write_json(folder / 'SogouQA.json', [record(f'S{i}') for i in range(6)])
    return folder


def record(question_id, question='中国人口在哪里？'):
    """A complete record of three passages, the second of which has no answer."""
    passages = ('人口在北京，上海', '北京'), ('天津是的', ''), ('在 北京', '北京')
    return record_of(*passages, question=question, question_id=question_id)


def record_of(*passages, question='中国人口在哪里？', question_id='a'):
    """A record of (passage, answer) pairs."""
    passages = [{'passage': passage, 'answer': answer} for passage, answer in passages]
    return {'id': question_id, 'question': question, 'passages': passages}


def refusal(function, *arguments):
    """Call a function that must raise a UserError; return its message, which is one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def write_json(path, value):
    """Write a value as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding='utf-8')


def small_files(script, folder):
    """The paths.Files of the folder `small`."""
    from support.paths import locate_files

    return locate_files(script.Constants(data_dir=str(folder), checkpoint_path=''))


def build_small_model(script, folder, seed=0):
    """Return (model, tokenizer) of the folder `small`, random weights that make up their mind."""
    model, tokenizer = script.build_model(small_files(script, folder), '', script.Constants())
    draw(model, seed)
    return model, tokenizer


def draw(model, seed):
    """Give a model weights under which some passages have an answer, of several tokens."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(size=weight.shape)
        scale = 0.1 if weight.shape.rank == 1 else 0.5 if 'Embedding' in weight.name else 0.3
        weight.assign(1 + 0.1 * values if 'gamma' in weight.name else scale * values)
    end_id = 3  # the simplified vocabulary begins with [PAD] [UNK] [CLS] [SEP]
    bias = model.get_layer('MLM-Bias').weights[0]
    bias.assign(bias.numpy() + 2.0 * (np.arange(bias.shape[0]) == end_id))
