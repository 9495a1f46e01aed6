"""What several test files need: the real data where it is at hand, and a BERT of a few hundred weights."""

import json
import os
import sys

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared', 'data')
sys.path.insert(0, ROOT)

VOCABULARY = [
    '[PAD]', '[unused1]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'，,。、；？:·', *'0123456789', *'abcdefgh',
    '##a', '##b', '##1', '##2', '##中', *'中国北京上海南天津重庆的是在哪里人口谁', 'ab', '20',
]  # fmt: skip


@pytest.fixture(scope='session')
def shared():
    """The folder of real questions, vocabulary and official answers."""
    if not os.path.isdir(SHARED):
        pytest.skip(f'the real data is not at hand: no folder {SHARED}')
    return SHARED


@pytest.fixture
def script():
    """The script as a module; the constants that a test changes are set back."""
    import task_reading_comprehension_by_seq2seq as module

    before = {name: getattr(module, name) for name in module.constants}
    yield module
    for name, value in before.items():
        setattr(module, name, value)


@pytest.fixture
def small(tmp_path):
    """A folder with WebQA.json, SogouQA.json, vocab.txt and a tiny bert_config.json; no checkpoint."""
    return write_small(tmp_path)


def write_small(folder):
    """Write the files of the fixture `small`; returns the folder."""
    (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    config = {
        'vocab_size': len(VOCABULARY), 'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2,
        'intermediate_size': 32, 'max_position_embeddings': 512, 'hidden_act': 'gelu', 'type_vocab_size': 2,
        'hidden_dropout_prob': 0.1, 'initializer_range': 0.3,
    }  # fmt: skip
    (folder / 'bert_config.json').write_text(json.dumps(config), encoding='utf-8')
    write_json(folder / 'WebQA.json', [record(f'W{i}') for i in range(4)])
    write_json(folder / 'SogouQA.json', [record(f'S{i}') for i in range(6)])
    return folder


def record(question_id, question='中国人口在哪里？'):
    """A complete record of three passages, the second of which has no answer."""
    passages = [('人口在北京，上海', '北京'), ('天津是的', ''), ('在 北京', '北京')]
    return {
        'id': question_id,
        'question': question,
        'passages': [{'passage': passage, 'answer': answer} for passage, answer in passages],
    }


def write_json(path, value):
    """Write a value as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding='utf-8')


def build_small_model(script, folder, seed=0):
    """Return (model, tokenizer) of the folder `small`, with random weights that make up their mind."""
    tokenizer, keep_tokens, size = script.load_tokenizer(str(folder / 'vocab.txt'))
    model = script.build_model(str(folder / 'bert_config.json'), '', keep_tokens, size)
    draw(model, seed)
    return model, tokenizer


def draw(model, seed):
    """Give a model random weights under which some passages have an answer, of several tokens, and some none."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(size=weight.shape)
        scale = 0.1 if weight.shape.rank == 1 else 0.5 if 'Embedding' in weight.name else 0.3
        weight.assign(1 + 0.1 * values if 'gamma' in weight.name else scale * values)
    end_id = 3  # the simplified vocabulary begins with [PAD] [UNK] [CLS] [SEP]
    bias = model.get_layer('MLM-Bias').weights[0]
    bias.assign(bias.numpy() + 2.0 * (np.arange(bias.shape[0]) == end_id))
