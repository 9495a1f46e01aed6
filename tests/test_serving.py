"""support/serving.py: a SavedModel that others can serve."""

import json
import os

import numpy as np
import pytest
from conftest import draw, forward_pass_of, refusal

from support.keras2 import tf
from support.serving import export


@pytest.fixture
def exported(script, small_bert, tmp_path):
    """(the model that was exported, what was loaded again, its folder)."""
    model, tokenizer = small_bert
    draw(model, seed=3)
    folder = tmp_path / 'models' / '1'
    export(str(folder), model, tokenizer, script.Constants(max_a_len=7))
    return model, tf.saved_model.load(str(folder)).signatures['serving_default'], folder


def test_signature_gives_the_token_after_the_last_one(exported):
    """Of rows of many lengths, of which some have no answer yet; whatever fills them up."""
    model, serve, _ = exported
    rng = np.random.default_rng(0)
    sources = [rng.integers(4, 40, length).tolist() for length in (3, 9, 5, 40)]
    answers = [rng.integers(4, 40, length).tolist() for length in (0, 4, 1, 0)]
    rows = [source + answer for source, answer in zip(sources, answers, strict=True)]
    segments = [[0] * len(s) + [1] * len(a) for s, a in zip(sources, answers, strict=True)]
    lengths = np.array([len(row) for row in rows])
    token_ids = rng.integers(0, 40, [len(rows), lengths.max() + 2])
    for row, tokens in zip(token_ids, rows, strict=True):
        row[: len(tokens)] = tokens
    given = {'token_ids': token_ids, 'lengths': lengths}
    given['source_lengths'] = np.array([len(source) for source in sources])
    given = {name: tf.constant(value, tf.int32) for name, value in given.items()}
    probas = serve(**given)['probas'].numpy()
    expected = forward_pass_of(model)(rows, segments)[np.arange(len(rows)), lengths - 1]
    np.testing.assert_allclose(probas, expected, rtol=1e-4, atol=1e-6)
    assert (probas.argmax(1) == expected.argmax(1)).all() and len({*probas.argmax(1)}) > 1


def test_signature_is_the_one_that_is_promised(exported):
    _, serve, _ = exported
    takes = {name: (spec.dtype, spec.shape.rank) for name, spec in _inputs(serve).items()}
    assert takes == {
        'token_ids': (tf.int32, 2), 'lengths': (tf.int32, 1), 'source_lengths': (tf.int32, 1),
    }  # fmt: skip
    [(name, gives)] = serve.structured_outputs.items()
    assert name == 'probas' and gives.dtype == tf.float32 and gives.shape.rank == 2


def _inputs(serve):
    return serve.structured_input_signature[1]


def test_vocabulary_and_constants_stand_beside_it(exported, small_bert):
    """The line of a token is its id."""
    *_, folder = exported
    tokens = (folder / 'vocab.txt').read_text(encoding='utf-8').split('\n')[:-1]
    assert tokens == [*small_bert[1]._token_dict] and tokens[:4] == [
        '[PAD]', '[UNK]', '[CLS]', '[SEP]',
    ]  # fmt: skip
    assert small_bert[1]._token_dict['中'] == tokens.index('中')
    constants = json.loads((folder / 'constants.json').read_text(encoding='utf-8'))
    assert constants['max_a_len'] == 7 and constants['mode'] == 'extractive'


def test_folder_that_exists_is_left_alone(script, small_bert, tmp_path):
    (tmp_path / 'mine').mkdir()
    line = refusal(export, str(tmp_path / 'mine'), *small_bert, script.Constants())
    assert line.startswith(f'{tmp_path / "mine"}: exists') and not os.listdir(tmp_path / 'mine')


def test_export_that_fails_leaves_nothing(script, small_bert, tmp_path, monkeypatch):
    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, 'no space')

    monkeypatch.setattr(tf.saved_model, 'save', fail)
    line = refusal(export, str(tmp_path / 'model'), *small_bert, script.Constants())
    assert line.startswith(f'{tmp_path / "model"}: cannot be written (no space)')
    assert not os.listdir(tmp_path)
