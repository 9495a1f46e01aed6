"""support/bert.py: vocabulary, configuration, and the weights that are kept."""

import importlib.metadata
import itertools
import json
import os
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy
from conftest import VOCABULARY, draw, refusal, small_files, write_small
from runs import RESULTS, change_config, half_written

from support import bert, trained
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


def as_json(tokens, **changes):
    """A tokenizer.json of transformers, as far as it counts."""
    vocab = {token: i for i, token in enumerate(tokens)}
    model = {'type': 'WordPiece', 'continuing_subword_prefix': '##', 'vocab': vocab, **changes}
    return json.dumps({'version': '1.0', 'added_tokens': [], 'model': model})


def test_vocabulary_of_a_tokenizer_json_is_that_of_its_vocab_txt(tmp_path):
    """Of a token that stood twice, it has the last id alone; kinds of other models are refused."""
    tokens = [*VOCABULARY, 'ab', '犇']
    _, expected, kept, size = load(tmp_path, tokens)
    path = tmp_path / 'tokenizer.json'
    path.write_text(as_json(tokens), encoding='utf-8')
    found, kept_too, size_too = bert.load_tokenizer(str(path))
    assert (found._token_dict, kept_too, size_too) == (expected._token_dict, kept, size)
    kinds = {'type': 'BPE'}, {'type': 'Unigram', 'vocab': [['a', 0.1]]}, {'vocab': {}}
    kinds += {'continuing_subword_prefix': ''}, {'vocab': {'[PAD]': 'a'}}
    for content in [as_json(tokens, **kind) for kind in kinds] + ['[]', '{}', '{"model": 1}', '{']:
        path.write_text(content, encoding='utf-8')
        said = refusal(bert.load_tokenizer, str(path))
        assert said.startswith(f'{path}: no vocabulary of a BERT (') and '; give that of' in said


@pytest.mark.parametrize(
    ('tokens', 'config', 'said'),
    [
        (['天空', '##国', '[X]', '', ''], {}, ''),  # what is not kept, and lines of nothing
        (['天', 'x', 'x'], {}, "VOCABULARY: tokens that stand twice: 2, '天' in lines LINE and 59"),
        (['天'] * 99, {}, "VOCABULARY: tokens that stand twice: 1, '天' in lines LINE and 157"),
        (['The', 'Łódź', 'x'], {}, "VOCABULARY: tokens with capitals: 2, 'The' the first; text is"),
        (['x'], {'vocab_size': 64}, 'CONFIG: of 64 tokens the first 59 are used; wrong if '),
        ([], {'type_vocab_size': 3}, 'CONFIG: of 3 token types the first 2 are used; wrong if tho'),
    ],
)  # fmt: skip
def test_what_may_be_wrong_with_a_bert_is_said_in_a_line(
    script, build, tiny, capsys, tokens, config, said
):
    """And it is read as if all were well; what is trained from it has none of it."""
    path = tiny / 'vocab.txt'
    path.write_text('\n'.join([*VOCABULARY, *tokens]) + '\n', encoding='utf-8')
    change_config(tiny, **{'vocab_size': len(VOCABULARY) + len(tokens), **config})
    build()
    line = str(VOCABULARY.index('天') + 1)
    said = said.replace('VOCABULARY', str(path)).replace('CONFIG', str(tiny / 'bert_config.json'))
    *lines, random = capsys.readouterr().err.splitlines()
    assert random.startswith('no checkpoint') and len(lines) == bool(said)
    assert ''.join(lines).startswith(said.replace('LINE', line))
    sizes, tokens = bert.describe(small_files(script, tiny))
    assert (sizes['vocab_size'], sizes['type_vocab_size']) == (len(tokens), 2)


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
        ({'vocab_size': 57}, 'is made for 57 tokens'),
        ({'type_vocab_size': 1}, 'type_vocab_size is 1, not a whole number from 2 to 1048576'),
        ({'position_embedding_type': 'relative_key'}, "position_embedding_type is 'relative_key'"),
        ({'model_type': 'roberta'}, "model_type is 'roberta', not 'bert'"),
        ({'hidden_act': 'leaky_relu'}, "hidden_act is 'leaky_relu', not one of gelu, gelu_erf, "),
        ({'max_position_embeddings': 351}, '351 max_position_embeddings, but 352 tokens are to be '
         'read; lower max_p_len, max_q_len or max_a_len'),
        ([], 'not a BERT configuration'),
        ({'num_attention_heads': 3}, 'hidden_size is no multiple of num_attention_heads'),
        ({'hidden_size': 10**9}, 'hidden_size is 1000000000, not a whole number from 1 to 1048576'),
        ({'num_hidden_layers': 101}, 'num_hidden_layers is 101, not a whole number from 1 to 100'),
        ({'hidden_size': 2**15, 'intermediate_size': 2**17, 'num_hidden_layers': 100},
         'its weights take 4800 GB of memory, and there are '),
        ({'hidden_dropout_prob': 1.0}, 'hidden_dropout_prob is 1.0, not a number from 0.0 to'),
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
def test_weights_are_refused_beside_another_bert_although_they_would_load(
    script, tiny, models, change
):
    """White space, the order of names, ends of lines or a byte order mark are no difference. What
    else may be wrong with them, see test_fuzzing."""
    files, config, path = small_files(script, tiny), tiny / 'bert_config.json', tiny / 'vocab.txt'
    for seed, model in enumerate(models):
        draw(model, seed)
    (saved, model), best = models, tiny / BEST
    bert.save_best(str(tiny), saved, bert.bert_digest(files))
    before, given = model.get_weights(), (model, files, str(best), None, None)
    if isinstance(change, dict):
        change_config(tiny, **change)
    elif change:
        path.write_text(path.read_text(encoding='utf-8').replace(*change), encoding='utf-8')
    else:
        reversed_config = dict(reversed(json.loads(config.read_text(encoding='utf-8')).items()))
        config.write_text(json.dumps(reversed_config, indent=4), encoding='utf-8-sig')
        path.write_bytes('\r\n'.join(VOCABULARY).encode('utf-8-sig'))
        bert.load_weights(*given)
        before = saved.get_weights()
    if change:
        said = f'{best}: trained with others than {config} and {path}; take the files that lay '
        assert refusal(bert.load_weights, *given) == f'{said}beside it, or copy it again'
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.parametrize('embedding_size', [None, 8])
def test_best_weights_are_loaded_as_they_were_saved(script, tiny, embedding_size):
    """Frozen ones too, and the mapping of smaller embeddings. Where they are a link, other weights
    replace the link; whoever may read the other files may read them."""
    change_config(tiny, **({'embedding_size': embedding_size} if embedding_size else {}))
    files, constants, folder = small_files(script, tiny), script.Constants(), tiny / 'output'
    best, elsewhere = folder / BEST, folder / 'elsewhere'
    folder.mkdir()
    trained.describe(str(folder), *bert.describe(files), constants, files, [])
    model, other = (script.build_model(files, None, constants)[0] for _ in range(2))
    for seed in 0, 1, 2:
        draw(model, seed)
        bert.save_best(str(folder), model, bert.bert_digest(files))
        if seed == 1:
            best.rename(elsewhere)
            best.symlink_to('elsewhere')
            model.get_layer('Embedding-Token').trainable = False
        bert.load_best(str(folder), other, files)
        assert all(map(np.array_equal, *(each.get_weights() for each in (model, other))))
    shapes = {name: x.shape for name, x in safetensors.numpy.load_file(best).items()}
    assert len(shapes) == len(model.weights) == 26 + 2 * bool(embedding_size)
    mapping = 'bert.encoder.embedding_hidden_mapping_in.weight'
    assert shapes.get(mapping) == ((16, 8) if embedding_size else None)  # a row for each output
    assert not best.is_symlink() and best.read_bytes() != elsewhere.read_bytes()
    assert best.stat().st_mode == (folder / 'reader.json').stat().st_mode
    assert not list(folder.glob(half_written('*')))


@pytest.mark.parametrize('save_format', ['tf', 'h5'])
def test_weights_of_the_original_script_are_loaded(build, models, tiny, capsys, save_format):
    """`model.save_weights('best_model.weights')`: Keras's own format, or HDF5 without its name."""
    path = tiny / 'best_model.weights'
    draw(models[0], 1)
    models[0].save_weights(str(path), save_format=save_format)
    assert all(map(np.array_equal, models[0].get_weights(), build(str(path)).get_weights()))
    assert 'best_model.weights: without a digest' in capsys.readouterr().err
    change_config(tiny, hidden_size=32)
    assert refusal(build, str(path)).startswith(f'{path}: does not fit this model')
