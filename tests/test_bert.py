"""support/bert.py: vocabulary, checkpoint, configuration, and the weights that are kept."""

import importlib.metadata
import itertools
import json
import os

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
    """Return a function that builds the BERT of the folder `tiny`."""

    def built(checkpoint='', longest=352):
        _, keep_tokens, size = bert.load_tokenizer(str(tiny / 'vocab.txt'))
        files = small_files(script, tiny)
        return bert.build_bert(files, checkpoint, keep_tokens, size, longest)

    return built


@pytest.fixture(scope='module')
def models(script, tmp_path_factory):
    """Two models of the BERT of the folder `tiny`, for weights to go from one to the other."""
    folder = write_small(tmp_path_factory.mktemp('models'))
    change_config(folder, num_hidden_layers=1)
    files = small_files(script, folder)
    return [script.build_model(files, None, script.Constants())[0] for _ in range(2)]


# ---------------------------------------------------------------------------------- the vocabulary


def load(folder, content):
    """Load a vocabulary, a list of tokens or bytes; returns also its path."""
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
        message = refusal(load, tmp_path, [token for token in vocabulary if token != lacking])
        expected = f'lacks {lacking}; expected the vocab.txt of a BERT, one token a line'
        assert message == f'{tmp_path / "vocab.txt"}: {expected}'


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
    assert size == len(tokens)
    ids = {token: keep_tokens[i] for token, i in tokenizer._token_dict.items()}
    assert ids == {**{token: i for i, token in enumerate(SPECIAL)}, 'b': 6, '': 7, 'a': 8, '中': 9}
    assert sorted(keep_tokens) == keep_tokens


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

    class Counted(dict):
        def __contains__(self, token):
            lookups.append(token)
            return super().__contains__(token)

    _, tokenizer, _, _ = load(tmp_path, VOCABULARY)
    tokenizer._token_dict, lookups = Counted(tokenizer._token_dict), []
    assert len(tokenizer.tokenize('abz' * 1000)) > 2000
    assert len(lookups) <= 3000 * max(map(len, VOCABULARY))


@pytest.mark.parametrize('change', [lambda lines: [*lines, ''], lambda lines: lines[:-1]])
def test_line_too_many_or_too_few_is_named(build, tiny, change):
    """Not the checkpoint, which is right."""
    path, *_, size = load(tiny, '\n'.join([*change(VOCABULARY), '']).encode())
    assert abs(size - len(VOCABULARY)) == 1
    made = f'{tiny / "bert_config.json"} is made for {len(VOCABULARY)} tokens'
    assert refusal(build).startswith(f'{path}: line {size} is the last, but {made}')


# ------------------------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'vocab_size': 99}, 'is made for 99 tokens'),
        ({'vocab_size': None}, 'is made for None tokens'),
        ({'max_position_embeddings': 351}, '351 max_position_embeddings, but 352 tokens are to be '
         'read; lower max_p_len, max_q_len or max_a_len'),
        (None, 'not a BERT configuration'),
        ([], 'not a BERT configuration'),
        ({'hidden_act': 'no such'}, 'not a BERT configuration'),
        ({'hidden_act': 1}, 'hidden_act is 1, not a name'),
        ({'num_hidden_layers': 0}, 'num_hidden_layers is 0, not a whole number from 1 to 100'),
        ({'num_hidden_layers': 10**6}, 'num_hidden_layers is 1000000, not a whole number'),
        ({'num_attention_heads': 3}, 'hidden_size is no multiple of num_attention_heads'),
        ({'hidden_size': 10**9}, 'hidden_size is 1000000000, not a whole number from 1 to 32768'),
        ({'hidden_size': 16.0}, 'hidden_size is 16.0, not a whole number'),
        ({'hidden_size': '16'}, "hidden_size is '16', not a whole number"),
        ({'intermediate_size': None}, 'intermediate_size is None, not a whole number'),
        ({'hidden_size': 2**15, 'intermediate_size': 2**17, 'num_hidden_layers': 100},
         'its weights take 4800 GB of memory, and there are '),
        ({'hidden_dropout_prob': 1.0}, 'hidden_dropout_prob is 1.0, not a number of at least 0'),
        ({'initializer_range': '0.02'}, "initializer_range is '0.02', not a number"),
    ],
)  # fmt: skip
def test_configuration_that_does_not_fit_is_named(build, tiny, change, complaint):
    path = tiny / 'bert_config.json'
    change_config(tiny, **(change or {}))
    if not change:
        path.write_text(str(change), encoding='utf-8')
    message = refusal(build)
    named = tiny / 'vocab.txt' if 'made for' in complaint else path
    assert message.startswith(f'{named}: ') and complaint in message and '; ' in message


def test_random_weights_follow_initializer_range(build, tiny, models):
    """No two matrices alike: alike, queries, keys and values would learn the same.

    Those that are loaded later are not drawn, which takes longer than to read them.
    """
    for initializer_range in 0.02, 0.3:
        change_config(tiny, initializer_range=initializer_range, max_position_embeddings=352)
        matrices = [weight.numpy() for weight in build().weights if weight.shape.rank == 2]
        spread = np.concatenate([matrix.ravel() for matrix in matrices])
        assert len(matrices) == 10 and abs(spread).max() <= 2 * initializer_range
        assert 0.8 * initializer_range < spread.std() < initializer_range
        assert len({matrix[0, :16].tobytes() for matrix in matrices}) == len(matrices)
    for weight in build(None).weights:
        assert (weight.numpy() == ('gamma' in weight.name)).all()


def test_mask_is_that_of_unilm(models):
    """All see the source, before and behind; a token of the answer is seen from there on."""
    draw(models[0], 0)
    token_ids, segment_ids = np.tile(np.arange(5, 13), [9, 1]), np.tile([0] * 5 + [1] * 3, [9, 1])
    token_ids[range(8), range(8)] = 20  # one other token in each row but the last
    probas = models[0]([token_ids, segment_ids]).numpy()
    changed = abs(probas[:8] - probas[8]).max(-1) > 1e-6
    assert changed.tolist() == [[i < 5 or i <= j for j in range(8)] for i in range(8)]


# -------------------------------------------------------------------------------- the best weights


@pytest.mark.parametrize(
    'change',
    [
        {'num_attention_heads': 4}, {'num_hidden_layers': 2}, {'hidden_act': 'relu'},
        ('天\n津', '津\n天'), ('ab\n', 'ab\nac\n'), None,
    ],
)  # fmt: skip
def test_digest_of_a_bert_tells_it_from_others(script, tiny, change):
    """Of all of these the weights would load: heads, activation and tokens do not show in them.

    White space, the order of names, ends of lines or a byte order mark are no difference.
    """
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
    """All of them, into another model of the same BERT; saved again, they are those.

    Where they are a link, they are read, and other weights replace the link.
    """
    best, elsewhere, folder = tmp_path / BEST, tmp_path / 'elsewhere', str(tmp_path)
    path = f'{best}: no such file; run train first, or give its output_dir'
    assert refusal(bert.load_best, folder, None, 'some BERT') == path
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


def test_best_weights_that_do_not_fit_are_refused(models, tmp_path):
    """Those of another BERT too, although they would load; the model is as it was.

    HDF5 has no checksums; a file without a seal, which was changed since, is taken as it is.
    """
    path, (model, other), folder = tmp_path / BEST, models, str(tmp_path)
    draw(model, 0)
    draw(other, 1)
    bert.save_best(folder, model, 'some BERT')
    sound, before = path.read_bytes(), other.get_weights()
    gamma = model.get_layer('MLM-Norm').get_weights()[1].tobytes()
    path.write_bytes(sound.replace(gamma, gamma[::-1]))
    cure = 'use the files and constants it was trained with; if it is damaged, train in another'
    said = f'{path}: does not fit this model (it is not as it was written); {cure}'
    assert refusal(bert.load_best, folder, other, 'some BERT').startswith(said)
    path.write_bytes(sound)
    said = f'{path}: does not fit this model (bert_config.json or vocab.txt is not the one that'
    assert refusal(bert.load_best, folder, other, 'another').startswith(said)
    assert all(map(np.array_equal, before, other.get_weights()))
    path.write_bytes(sound[: -len(bert.SEAL) - 64])
    bert.load_best(folder, other, 'some BERT')
    assert all(map(np.array_equal, model.get_weights(), other.get_weights()))


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
