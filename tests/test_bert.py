"""support/bert.py: vocabulary, checkpoint, configuration, and the weights that are kept."""

import importlib.metadata
import itertools
import json
import os
from unittest import mock

import numpy as np
import pytest
from conftest import VOCABULARY, draw, refusal, small_files, write_small
from runs import RESULTS, change_config, half_written

from support import bert
from support.keras2 import bert4keras

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
BEST = RESULTS[0]


@pytest.fixture
def tiny(script, small):
    """The folder `small`, its BERT of one layer, which is built sooner."""
    change_config(small, num_hidden_layers=1)
    return small


@pytest.fixture
def build(script, tiny):
    def built(checkpoint=''):
        _, keep_tokens, size = bert.load_tokenizer(str(tiny / 'vocab.txt'))
        return bert.build_bert(small_files(script, tiny), checkpoint, keep_tokens, size, 352)

    return built


@pytest.fixture(scope='module')
def models(script, tmp_path_factory):
    """Two models of the BERT of the folder `tiny`."""
    folder = write_small(tmp_path_factory.mktemp('models'))
    change_config(folder, num_hidden_layers=1)
    files = small_files(script, folder)
    return [script.build_model(files, None, script.Constants())[0] for _ in range(2)]


def load(folder, content):
    path = folder / 'vocab.txt'
    path.write_bytes(content if isinstance(content, bytes) else '\n'.join(content).encode())
    return path, *bert.load_tokenizer(str(path))


@pytest.mark.parametrize('vocabulary', [VOCABULARY, VOCABULARY[::-1]])
def test_vocabulary_is_simplified(tmp_path, vocabulary):
    """[PAD] [UNK] [CLS] [SEP] come first wherever they stood; ##-pieces of Chinese are gone."""
    _, tokenizer, keep_tokens, size = load(tmp_path, vocabulary)
    tokens = [tokenizer.id_to_token(i) for i in range(len(keep_tokens))]
    kept = [token for token in vocabulary if token[0] != '[' and token != '##中']
    assert size == len(vocabulary)
    assert tokens == [*SPECIAL, *kept]  # and neither [unused1] nor [MASK]
    assert tokens == [vocabulary[i] for i in keep_tokens]
    assert tokenizer.tokenize('AB犇中') == ['[CLS]', 'ab', '犇', '中', '[SEP]']
    for lacking in SPECIAL:
        said = f'{tmp_path / "vocab.txt"}: lacks {lacking}; expected the vocab.txt of a BERT, one '
        rest = [token for token in vocabulary if token != lacking]
        assert refusal(load, tmp_path, rest).startswith(said)


def test_real_vocabulary_is_simplified(shared):
    """13,584 of 21,128 are left, as in every example of bert4keras."""
    _, keep_tokens, size = bert.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    assert (len(keep_tokens), size, keep_tokens[:4]) == (13584, 21128, [0, 100, 101, 102])


@pytest.mark.parametrize('end', ['', '\n'])
def test_lines_are_counted_as_bert_counts_them(tmp_path, end):
    """A blank line is a token, so is U+2028 alone, where splitlines would see two lines; of equal
    ones the last counts; Windows' ends of lines are no part of a token."""
    tokens = [*SPECIAL, 'a', '', 'b', '\u2028', 'a', '中']
    _, tokenizer, keep_tokens, size = load(tmp_path, ('\r\n'.join(tokens) + end).encode())
    ids = [(token, keep_tokens[i]) for token, i in tokenizer._token_dict.items()]
    assert ids == [*zip(SPECIAL, range(4), strict=True), ('b', 6), ('', 7), ('a', 8), ('中', 9)]
    assert size == len(tokens)


@pytest.mark.skipif(
    importlib.metadata.version('bert4keras') != '0.8.1', reason='later versions have another rule'
)
def test_words_are_cut_as_bert4keras_cuts_them(tmp_path):
    """Version 0.11.5 makes one [UNK] of a word with an unknown piece, or of over 200 letters."""
    pieces = ['##a', '##b', '##bc', '##cab', '##中']
    _, ours, _, _ = load(tmp_path, [*SPECIAL, *'abc', 'ab', 'abca', *pieces])
    theirs = bert4keras.tokenizers.Tokenizer(ours._token_dict, do_lower_case=True)
    for length in range(1, 7):
        for word in map(''.join, itertools.product('abcé', repeat=length)):
            assert ours._word_piece_tokenize(word) == theirs._word_piece_tokenize(word), word


def test_long_word_is_cut_in_time_that_grows_with_its_length(tmp_path):
    """Pages hold addresses and encoded pictures of 100,000 letters."""
    _, tokenizer, _, _ = load(tmp_path, VOCABULARY)
    words, lookups = tokenizer._token_dict, []
    tokenizer._token_dict = mock.MagicMock()
    tokenizer._token_dict.__contains__.side_effect = lambda x: lookups.append(x) or x in words
    assert len(tokenizer.tokenize('abz' * 1000)) > 2000
    assert 2000 < len(lookups) <= 3000 * max(map(len, VOCABULARY))


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'vocab_size': 99}, 'is made for 99 tokens'),
        ({'max_position_embeddings': 351}, '351 max_position_embeddings, but 352 tokens are to be '
         'read; lower max_p_len, max_q_len or max_a_len'),
        ([], 'not a BERT configuration'),
        ({'num_attention_heads': 3}, 'hidden_size is no multiple of num_attention_heads'),
        ({'hidden_size': 10**9}, 'hidden_size is 1000000000, not a whole number from 1 to 32768'),
        ({'hidden_size': 2**15, 'intermediate_size': 2**17, 'num_hidden_layers': 100},
         'its weights take 4800 GB of memory, and there are '),
        ({'hidden_dropout_prob': 1.0}, 'hidden_dropout_prob is 1.0, not a number of at least 0'),
        ({'initializer_range': '0.02'}, "initializer_range is '0.02', not a number"),
    ],
)  # fmt: skip
def test_configuration_that_does_not_fit_is_named(build, tiny, change, complaint):
    """Or the vocabulary, where a line is too many or too few."""
    path = tiny / 'bert_config.json'
    path.write_text('[]', encoding='utf-8') if change == [] else change_config(tiny, **change)
    said = refusal(build)
    last_line = f'{tiny / "vocab.txt"}: line {len(VOCABULARY)} is the last, but {path} '
    assert said.startswith(last_line if 'made for' in complaint else f'{path}: ')
    assert complaint in said and '; ' in said


def test_random_weights_follow_initializer_range(build, tiny, models):
    """No two matrices alike: alike, queries, keys and values would learn the same. Those that are
    loaded later are not drawn, which takes longer than to read them."""
    for initializer_range in 0.02, 0.3:
        change_config(tiny, initializer_range=initializer_range, max_position_embeddings=352)
        matrices = [weight.numpy() for weight in build().weights if weight.shape.rank == 2]
        spread = np.concatenate([matrix.ravel() for matrix in matrices])
        assert len(matrices) == 10 and abs(spread).max() <= 2 * initializer_range
        assert 0.8 * initializer_range < spread.std() < initializer_range
        assert len({matrix[0, :16].tobytes() for matrix in matrices}) == len(matrices)
    for weight in build(None).weights:
        assert (weight.numpy() == ('gamma' in weight.name)).all()


CHANGES = {'num_attention_heads': 4}, {'hidden_act': 'relu'}, ('天\n津', '津\n天'), None


@pytest.mark.parametrize('change', CHANGES)
def test_digest_of_a_bert_tells_it_from_others(script, tiny, change):
    """Of all of these the weights would load. White space, the order of names, ends of lines or a
    byte order mark are no difference."""
    files, config, path = small_files(script, tiny), tiny / 'bert_config.json', tiny / 'vocab.txt'
    before = bert.bert_digest(files)
    if isinstance(change, dict):
        change_config(tiny, **change)
    elif change:
        path.write_text(path.read_text(encoding='utf-8').replace(*change), encoding='utf-8')
    else:
        reversed_config = dict(reversed(json.loads(config.read_text(encoding='utf-8')).items()))
        config.write_text(json.dumps(reversed_config, indent=4), encoding='utf-8-sig')
        path.write_bytes('\r\n'.join(VOCABULARY).encode('utf-8-sig'))
    assert (bert.bert_digest(files) == before) == (change is None)


def test_best_weights_are_loaded_as_they_were_saved(models, tmp_path):
    """Saved again, they are those. Where they are a link, other weights replace the link."""
    best, elsewhere, folder = tmp_path / BEST, tmp_path / 'elsewhere', str(tmp_path)
    said = f'{best}: no such file; run train first, or give its output_dir'
    assert refusal(bert.load_best, folder, None, 'some BERT') == said
    for seed in 0, 1, 2:
        draw(models[0], seed)
        bert.save_best(folder, models[0], 'some BERT')
        if seed == 1:
            best.rename(elsewhere)
            best.symlink_to('elsewhere')
        bert.load_best(folder, models[1], 'some BERT')
        assert all(map(np.array_equal, *(model.get_weights() for model in models)))
    assert not best.is_symlink() and best.read_bytes() != elsewhere.read_bytes()
    assert not list(tmp_path.glob(half_written('*')))


def test_best_weights_of_another_bert_are_refused_although_they_would_load(models, tmp_path):
    """The model is as it was. What else may be wrong with them, see test_fuzzing."""
    draw(models[0], 0)
    draw(models[1], 1)
    bert.save_best(str(tmp_path), models[0], 'some BERT')
    before = models[1].get_weights()
    said = f'{tmp_path / BEST}: does not fit this model (bert_config.json or vocab.txt is not the o'
    assert refusal(bert.load_best, str(tmp_path), models[1], 'another').startswith(said)
    assert all(map(np.array_equal, before, models[1].get_weights()))


@pytest.mark.parametrize('save_format', ['tf', 'h5'])
def test_weights_of_the_original_script_are_loaded(build, models, tiny, capsys, save_format):
    """`model.save_weights('best_model.weights')`: Keras's own format, or HDF5 without its name."""
    path = tiny / 'best_model.weights'
    draw(models[0], 1)
    draw(models[1], 2)
    models[0].save_weights(str(path), save_format=save_format)
    bert.load_best(str(tiny), models[1], 'some BERT')
    assert all(map(np.array_equal, *(model.get_weights() for model in models)))
    assert 'best_model.weights: without a digest' in capsys.readouterr().err
    change_config(tiny, hidden_size=32)
    message = refusal(bert.load_best, str(tiny), build(None), 'some BERT')
    assert message.startswith(f'{path}: does not fit this model')


def test_error_of_hdf5_on_a_full_disk_leaves_the_old_weights(models, tmp_path, monkeypatch):
    """It has errors of its own; elsewhere there may be no room kept for it."""

    def save_weights(path):
        raise RuntimeError('No space left, says HDF5')

    monkeypatch.setattr(models[0], 'save_weights', save_weights)
    (tmp_path / BEST).write_bytes(b'old')
    assert 'No space left' in refusal(bert.save_best, str(tmp_path), models[0], '')
    assert (tmp_path / BEST).read_bytes() == b'old' and os.listdir(tmp_path) == [BEST]
