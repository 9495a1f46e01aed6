"""support/serving.py: a SavedModel that others can serve."""

import json
import os

import numpy as np
import pytest
from conftest import draw, forward_pass_of, refusal

from support.keras2 import tf
from support.serving import export


@pytest.fixture
def reader(script, small_bert):
    """A reader of `small_bert`."""
    draw(small_bert[0], seed=3)
    return script.ReadingComprehension(*small_bert, script.Constants(max_a_len=7))


def test_exported_model_gives_the_token_after_the_last_one(script, reader, tmp_path, capsys):
    """Of rows of many lengths, some without an answer yet; whatever fills them up. Beside it stand
    the tokens, each at the line of its id, and the constants; a line says that all is there."""
    folder, rng = tmp_path / 'models' / '1', np.random.default_rng(0)
    export(str(folder), reader, script.unilm_mask)
    said = f'{folder}: written, a SavedModel with vocab.txt and constants.json\n'
    assert capsys.readouterr().err.endswith(said)
    serve = tf.saved_model.load(str(folder)).signatures['serving_default']
    sources = [rng.integers(4, 40, length).tolist() for length in (3, 9, 5, 40)]
    answers = [rng.integers(4, 40, length).tolist() for length in (0, 4, 1, 0)]
    pairs = [*zip(sources, answers, strict=True)]
    rows = [source + answer for source, answer in pairs]
    lengths = np.array([*map(len, rows)])
    token_ids = rng.integers(0, 40, [len(rows), lengths.max() + 2])
    for row, tokens in zip(token_ids, rows, strict=True):
        row[: len(tokens)] = tokens
    given = {'token_ids': token_ids, 'lengths': lengths, 'source_lengths': [*map(len, sources)]}
    answered = serve(**{name: tf.constant(value, tf.int32) for name, value in given.items()})
    [(name, probas)] = answered.items()
    segments = [[0] * len(source) + [1] * len(answer) for source, answer in pairs]
    expected = forward_pass_of(reader.model)(rows, segments)[np.arange(len(rows)), lengths - 1]
    assert name == 'probas' and probas.dtype == tf.float32
    np.testing.assert_allclose(probas, expected, rtol=1e-4, atol=1e-6)
    assert len({*expected.argmax(1)}) > 1
    tokens = (folder / 'vocab.txt').read_text(encoding='utf-8').split('\n')[:-1]
    assert tokens == [*reader.tokenizer._token_dict]
    assert tokens[:4] == ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
    constants = json.loads((folder / 'constants.json').read_text(encoding='utf-8'))
    assert constants['max_a_len'] == 7 and constants['mode'] == 'extractive'


def test_folder_that_exists_is_left_alone(script, reader, tmp_path):
    (tmp_path / 'mine').mkdir()
    line = refusal(export, str(tmp_path / 'mine'), reader, script.unilm_mask)
    assert line.startswith(f'{tmp_path / "mine"}: exists') and not os.listdir(tmp_path / 'mine')
