"""support/bert.py: vocabulary, checkpoint, configuration, and the weights that are kept."""

import importlib.metadata
import itertools
import json
import os
import re

import h5py
import numpy as np
import pytest
from conftest import VOCABULARY, draw, refusal, write_json

from evaluate_sogou import UserError
from support import bert
from support.keras2 import bert4keras, tf
from support.settings import Files

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']


# ---------------------------------------------------------------------------------- the vocabulary


@pytest.mark.parametrize('vocabulary', [VOCABULARY, VOCABULARY[::-1]])
def test_vocabulary_is_simplified(tmp_path, vocabulary):
    """[PAD] [UNK] [CLS] [SEP] come first wherever they stood; ##-pieces of Chinese are gone."""
    (tmp_path / 'vocab.txt').write_text('\n'.join(vocabulary), encoding='utf-8')
    tokenizer, keep_tokens, size = bert.load_tokenizer(str(tmp_path / 'vocab.txt'))
    tokens = [tokenizer.id_to_token(i) for i in range(len(keep_tokens))]
    kept = [token for token in vocabulary if token[0] != '[' and token != '##中']
    assert size == len(vocabulary)
    assert tokens == [*SPECIAL, *kept]  # and neither [unused1] nor [MASK]
    assert tokens == [vocabulary[i] for i in keep_tokens]


def test_real_vocabulary_is_simplified(shared):
    """13,584 of 21,128 are left, as in every example of bert4keras."""
    _, keep_tokens, size = bert.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    assert (len(keep_tokens), size, keep_tokens[:4]) == (13584, 21128, [0, 100, 101, 102])


def test_tokenizer_lowers_case(small):
    tokenizer, _, _ = bert.load_tokenizer(str(small / 'vocab.txt'))
    assert tokenizer.tokenize('AB犇中') == ['[CLS]', 'ab', '犇', '中', '[SEP]']


@pytest.mark.skipif(
    importlib.metadata.version('bert4keras') != '0.8.1', reason='later versions have another rule'
)
def test_words_are_cut_as_bert4keras_cuts_them(tmp_path):
    """Version 0.11.5 makes one [UNK] of a word with an unknown piece, or of over 200 letters."""
    pieces = ['##a', '##b', '##bc', '##cab', '##中']
    vocabulary = [*SPECIAL, *'abc', 'ab', 'abca', *pieces]
    (tmp_path / 'vocab.txt').write_text('\n'.join(vocabulary), encoding='utf-8')
    ours, _, _ = bert.load_tokenizer(str(tmp_path / 'vocab.txt'))
    theirs = bert4keras.tokenizers.Tokenizer(ours._token_dict, do_lower_case=True)
    for length in range(1, 8):
        for word in map(''.join, itertools.product('abcé', repeat=length)):
            assert ours._word_piece_tokenize(word) == theirs._word_piece_tokenize(word), word


def test_long_word_is_cut_in_time_that_grows_with_its_length(small):
    """Pages hold addresses and encoded pictures of 100,000 letters."""

    class Counted(dict):
        def __contains__(self, token):
            lookups.append(token)
            return super().__contains__(token)

    tokenizer, _, _ = bert.load_tokenizer(str(small / 'vocab.txt'))
    tokenizer._token_dict, lookups = Counted(tokenizer._token_dict), []
    assert len(tokenizer.tokenize('abz' * 1000)) > 2000
    assert len(lookups) <= 3000 * max(map(len, VOCABULARY))


@pytest.mark.parametrize('lacking', SPECIAL)
def test_vocabulary_without_a_special_token_is_refused(tmp_path, lacking):
    path = tmp_path / 'vocab.txt'
    path.write_text('\n'.join(token for token in VOCABULARY if token != lacking), encoding='utf-8')
    message = refusal(bert.load_tokenizer, str(path))
    assert message.startswith(f'{path}: ')
    assert [token for token in SPECIAL if token in message] == [lacking]


@pytest.mark.parametrize('end', ['', '\n'])
def test_lines_are_counted_as_bert_counts_them(tmp_path, end):
    """A blank line is a token, so is U+2028 alone, where splitlines would see two lines; of equal
    ones the last counts; Windows' ends of lines are no part of a token."""
    tokens = [*SPECIAL, 'a', '', 'b', '\u2028', 'a', '中']
    (tmp_path / 'vocab.txt').write_bytes(('\r\n'.join(tokens) + end).encode())
    tokenizer, keep_tokens, size = bert.load_tokenizer(str(tmp_path / 'vocab.txt'))
    assert size == len(tokens)
    ids = {token: keep_tokens[i] for token, i in tokenizer._token_dict.items()}
    assert ids == {**{token: i for i, token in enumerate(SPECIAL)}, 'b': 6, '': 7, 'a': 8, '中': 9}
    assert sorted(keep_tokens) == keep_tokens


@pytest.mark.parametrize('change', [lambda text: text + '\n', lambda text: text[:-3]])
def test_line_too_many_or_too_few_is_named(small, change):
    """Not the checkpoint, which is right."""
    path = small / 'vocab.txt'
    path.write_text(change(path.read_text(encoding='utf-8')), encoding='utf-8')
    lines = path.read_text(encoding='utf-8').removesuffix('\n').count('\n') + 1
    assert abs(lines - len(VOCABULARY)) == 1
    assert refusal(build, small).startswith(f'{path}: line {lines} is the last, but {small}')


# ---------------------------------------------------------------------------------- the checkpoint


def build(folder, checkpoint='', longest=352):
    """Build the BERT of the folder `small`; return it with keep_tokens."""
    _, keep_tokens, size = bert.load_tokenizer(str(folder / 'vocab.txt'))
    files = Files(*[''] * 6, demo=False)._replace(
        config=str(folder / 'bert_config.json'), vocabulary=str(folder / 'vocab.txt')
    )
    return bert.build_bert(files, checkpoint, keep_tokens, size, longest), keep_tokens


def change_config(folder, **changes):
    """Change values of the configuration; returns its path."""
    path = folder / 'bert_config.json'
    write_json(path, {**json.loads(path.read_text(encoding='utf-8')), **changes})
    return path


def bert_variables(folder):
    """Random values for all that a BERT of the small configuration holds, layer by layer."""
    sizes = json.loads((folder / 'bert_config.json').read_text(encoding='utf-8'))
    hidden, inner, vocabulary = (
        sizes[name] for name in ('hidden_size', 'intermediate_size', 'vocab_size')
    )
    dense = {'kernel': [hidden, hidden], 'bias': [hidden]}
    norm = {'beta': [hidden], 'gamma': [hidden]}
    blocks = {
        'attention/self/query': dense,
        'attention/self/key': dense,
        'attention/self/value': dense,
        'attention/output/dense': dense,
        'attention/output/LayerNorm': norm,
        'intermediate/dense': {'kernel': [hidden, inner], 'bias': [inner]},
        'output/dense': {'kernel': [inner, hidden], 'bias': [hidden]},
        'output/LayerNorm': norm,
    }
    embeddings = {
        'word_embeddings': [vocabulary, hidden],
        'token_type_embeddings': [2, hidden],
        'position_embeddings': [sizes['max_position_embeddings'], hidden],
    }
    groups = {'bert/embeddings': embeddings, 'bert/embeddings/LayerNorm': norm}
    for i in range(sizes['num_hidden_layers']):
        groups.update({f'bert/encoder/layer_{i}/{name}': shapes for name, shapes in blocks.items()})
    groups['cls/predictions/transform/dense'] = dense
    groups['cls/predictions/transform/LayerNorm'] = norm
    groups['cls/predictions'] = {'output_bias': [vocabulary]}
    rng, variables = np.random.default_rng(0), {}
    for group, shapes in groups.items():
        for name, shape in shapes.items():
            variables[f'{group}/{name}'] = rng.normal(size=shape).astype(np.float32)
    return variables


def save_checkpoint(folder, variables):
    """Write a TensorFlow checkpoint as BERT comes; return its path."""
    path = str(folder / 'bert_model.ckpt')
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=list(variables),
        shape_and_slices=[''] * len(variables),
        tensors=list(variables.values()),
    )
    return path


def test_weights_of_the_checkpoint_arrive(small):
    """The rows of keep_tokens of the vocabulary, all of the rest, and nothing else."""
    variables = bert_variables(small)
    extra = {'bert/pooler/dense/bias': np.zeros(16, np.float32), 'global_step': np.array(7)}
    model, keep_tokens = build(small, save_checkpoint(small, {**extra, **variables}))
    assert keep_tokens != list(range(len(keep_tokens)))
    of_vocabulary = 'bert/embeddings/word_embeddings', 'cls/predictions/output_bias'
    for weight, (name, value) in zip(model.weights, variables.items(), strict=True):
        expected = value[keep_tokens] if name in of_vocabulary else value
        np.testing.assert_array_equal(weight.numpy(), expected, name)


@pytest.mark.parametrize(
    'name',
    [
        'bert/embeddings/word_embeddings',
        'bert/encoder/layer_1/attention/self/key/bias',
        'cls/predictions/output_bias',
    ],
)
def test_missing_variable_is_named(small, name):
    variables = bert_variables(small)
    del variables[name]
    checkpoint = save_checkpoint(small, variables)
    message = refusal(build, small, checkpoint)
    assert message.startswith(f'{checkpoint}: no BERT with its masked language model (')
    assert name in message


@pytest.mark.parametrize('name', ['bert/embeddings/word_embeddings', 'cls/predictions/output_bias'])
def test_checkpoint_of_another_vocabulary_names_both_sizes(small, name):
    """One that is larger would load without complaint, and mean other tokens."""
    variables = bert_variables(small)
    variables[name] = np.concatenate([variables[name]] * 2)
    checkpoint = save_checkpoint(small, variables)
    message = refusal(build, small, checkpoint)
    assert message.startswith(f'{small / "vocab.txt"}: ')
    last = f'line {len(VOCABULARY)} is the last'
    assert f'{checkpoint} is made for {2 * len(VOCABULARY)} tokens' in message and last in message


@pytest.mark.parametrize(
    ('name', 'shape', 'expected'),
    [
        ('bert/encoder/layer_1/intermediate/dense/kernel', [16, 33], [16, 32]),
        ('bert/embeddings/position_embeddings', [600, 16], [512, 16]),
        ('bert/embeddings/token_type_embeddings', [2, 8], [2, 16]),
        ('bert/encoder/layer_0/attention/self/query/kernel', [16, 8], [16, 16]),
    ],
)
def test_variable_of_another_shape_is_named(small, name, shape, expected):
    variables = {**bert_variables(small), name: np.zeros(shape, np.float32)}
    checkpoint = save_checkpoint(small, variables)
    message = refusal(build, small, checkpoint)
    assert message.startswith(f'{checkpoint}: ')
    assert name in message and str(tuple(shape)) in message and str(tuple(expected)) in message


@pytest.mark.parametrize(
    ('suffix', 'content'),
    [('.data-00000-of-00001', None), ('.index', None), ('.index', b'no index')],
)
def test_not_a_checkpoint(small, suffix, content):
    """Half of one, nothing, or something else under its name."""
    checkpoint = save_checkpoint(small, bert_variables(small))
    os.remove(checkpoint + suffix)
    if content:
        (small / f'bert_model.ckpt{suffix}').write_bytes(content)
    message = refusal(build, small, checkpoint)
    assert re.match(r'\S+: (no weights of a BERT|\S+ cannot be read) \(', message)
    assert message.startswith(f'{checkpoint}: ')


def test_checkpoint_that_was_cut_off(small):
    """As an interrupted download leaves it."""
    checkpoint = save_checkpoint(small, bert_variables(small))
    data = small / 'bert_model.ckpt.data-00000-of-00001'
    data.write_bytes(data.read_bytes()[:5000])
    assert re.search(r'bert_model.ckpt: \S+ cannot be read', refusal(build, small, checkpoint))


def test_checkpoint_may_lie_in_a_folder_with_brackets(small):
    (small / 'a[1]\\b').mkdir()
    variables = bert_variables(small)
    model, _ = build(small, save_checkpoint(small / 'a[1]\\b', variables))
    *_, gamma = model.get_layer('MLM-Norm').get_weights()
    np.testing.assert_array_equal(gamma, variables['cls/predictions/transform/LayerNorm/gamma'])


# ------------------------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'vocab_size': 99}, 'is made for 99 tokens'),
        (
            {'max_position_embeddings': 351},
            '351 max_position_embeddings, but 352 tokens are to be read; lower max_p_len',
        ),
        ({'vocab_size': None}, 'is made for None tokens'),
        (None, 'not a BERT configuration'),
        ([], 'not a BERT configuration'),
        ({'hidden_act': 'no such'}, 'not a BERT configuration'),
        ({'num_hidden_layers': 0}, 'not a BERT configuration'),
        ({'num_attention_heads': 0}, 'not a BERT configuration'),
        ({'num_attention_heads': 3}, 'hidden_size is no multiple of num_attention_heads'),
        ({'hidden_size': 10**9}, 'hidden_size is 1000000000, not a whole number from 1 to 32768'),
        ({'hidden_size': -16}, 'hidden_size is -16, not a whole number'),
        ({'hidden_size': 16.0}, 'hidden_size is 16.0, not a whole number'),
        ({'hidden_size': '16'}, "hidden_size is '16', not a whole number"),
        ({'intermediate_size': None}, 'intermediate_size is None, not a whole number'),
        ({'num_hidden_layers': 10**6}, 'num_hidden_layers is 1000000, not a whole number'),
        (
            {'hidden_size': 2**15, 'intermediate_size': 2**17, 'num_hidden_layers': 100},
            'its weights take 4800 GB of memory, and there are ',
        ),
        ({'hidden_dropout_prob': 1.0}, 'hidden_dropout_prob is 1.0, not a number of at least 0'),
        ({'initializer_range': '0.02'}, "initializer_range is '0.02', not a number"),
        ({'hidden_act': 1}, 'hidden_act is 1, not a name'),
    ],
)
def test_configuration_that_does_not_fit(small, change, complaint):
    path = change_config(small, **(change or {}))
    if not change:
        path.write_text(str(change), encoding='utf-8')
    message = refusal(build, small)
    named = small / 'vocab.txt' if 'made for' in complaint else path
    assert message.startswith(f'{named}: ') and complaint in message


def test_sequences_may_fill_all_positions(small):
    change_config(small, max_position_embeddings=40)
    build(small, longest=40)
    assert 'lower max_p_len, max_q_len or max_a_len' in refusal(build, small, '', 41)


@pytest.mark.parametrize('initializer_range', [0.02, 0.3])
def test_random_weights_follow_initializer_range(small, initializer_range):
    """No two matrices alike: alike, queries, keys and values would learn the same."""
    change_config(small, initializer_range=initializer_range)
    model, _ = build(small)
    matrices = [weight.numpy() for weight in model.weights if weight.shape.rank == 2]
    assert len(matrices) == 3 + 2 * 6 + 1
    for matrix in matrices:
        assert abs(matrix).max() <= 2 * initializer_range and abs(matrix.mean()) < initializer_range
    spread = np.concatenate([matrix.ravel() for matrix in matrices]).std()
    assert 0.8 * initializer_range < spread < initializer_range
    assert len({matrix[0, :16].tobytes() for matrix in matrices}) == len(matrices)


def test_weights_that_are_loaded_later_are_not_drawn(small):
    """It takes longer than to read a file of them; norms stay norms."""
    model, _ = build(small, None)
    for weight in model.get_weights():
        assert weight.ndim == 1 or not weight.any()
    assert (model.get_layer('Embedding-Norm').gamma.numpy() == 1).all()


def test_mask_is_that_of_unilm(small):
    """All see the source, before and behind; a token of the answer is seen from there on."""
    model, _ = build(small)
    draw(model, 0)
    token_ids, segment_ids = np.tile(np.arange(5, 13), [9, 1]), np.tile([0] * 5 + [1] * 3, [9, 1])
    token_ids[range(8), range(8)] = 20  # one other token in each row but the last
    probas = model.predict([token_ids, segment_ids], verbose=0)
    changed = abs(probas[:8] - probas[8]).max(-1) > 1e-6
    assert changed.tolist() == [[i < 5 or i <= j for j in range(8)] for i in range(8)]


# -------------------------------------------------------------------------------- the best weights


def described(folder):
    """What `bert_digest` says of the folder `small`."""
    config, vocabulary = (str(folder / name) for name in ('bert_config.json', 'vocab.txt'))
    return bert.bert_digest(Files('', '', config, '', vocabulary, '', demo=False))


@pytest.mark.parametrize(
    'change',
    [
        {'num_attention_heads': 4},
        {'num_hidden_layers': 1},
        {'hidden_act': 'relu'},
        ('天\n津', '津\n天'),
        ('ab\n', 'ab\nac\n'),
    ],
)
def test_description_of_a_bert_tells_it_from_others(small, change):
    """Of all of these the weights would load: heads, activation and tokens do not show in them."""
    before = described(small)
    if isinstance(change, dict):
        change_config(small, **change)
    else:
        text = (small / 'vocab.txt').read_text(encoding='utf-8')
        (small / 'vocab.txt').write_text(text.replace(*change), encoding='utf-8')
    assert described(small) != before


def test_description_of_a_bert_goes_by_what_is_said(small):
    """Not by white space, the order of names, ends of lines or a byte order mark."""
    before = described(small)
    config = json.loads((small / 'bert_config.json').read_text(encoding='utf-8'))
    text = json.dumps(dict(reversed(config.items())), indent=4)
    (small / 'bert_config.json').write_text(text, encoding='utf-8-sig')
    text = '\r\n'.join(VOCABULARY)
    (small / 'vocab.txt').write_bytes(text.encode('utf-8-sig'))
    assert described(small) == before


def test_best_weights_are_loaded_as_they_were_saved(small):
    """All of them, into another model of the same BERT; saved again, they are those."""
    (model, _), (other, _) = build(small), build(small)
    for seed in 0, 1:
        draw(model, seed)
        bert.save_best(str(small), model, 'some BERT')
        bert.load_best(str(small), other, 'some BERT')
        for weight, loaded in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, loaded)
    assert not list(small.glob('.*'))


def test_best_weights_that_are_not_there_are_asked_for(small):
    message = refusal(bert.load_best, str(small), None, 'some BERT')
    path = small / 'best_model.weights.h5'
    assert message == f'{path}: no such file; run train first, or give its output_dir'


def test_weights_that_are_not_as_they_were_written_are_refused(small):
    """HDF5 has no checksums; one without a seal, which was changed since, is taken as it is."""
    model, _ = build(small)
    path = small / 'best_model.weights.h5'
    draw(model, 0)
    bert.save_best(str(small), model, 'some BERT')
    sound = path.read_bytes()
    gamma = model.get_layer('MLM-Norm').get_weights()[1].tobytes()
    assert sound.count(gamma) == 1
    path.write_bytes(sound.replace(gamma, gamma[::-1]))
    message = refusal(bert.load_best, str(small), model, 'some BERT')
    assert message.startswith(f'{path}: does not fit this model (it is not as it was written)')
    path.write_bytes(sound)
    bert.load_best(str(small), model, 'some BERT')
    path.write_bytes(sound[: -len(bert.SEAL) - 64])
    bert.load_best(str(small), model, 'some BERT')


def spoil(path, damage):
    """Do something to the file of the best weights."""
    if damage == 'cut off':
        path.write_bytes(path.read_bytes()[:-3000])
    elif damage == 'no HDF5':
        path.write_bytes(b'no HDF5')
    else:
        with h5py.File(path, 'r+') as file:
            if damage == 'of another BERT':
                file.attrs['bert'] = 'another BERT'
            else:
                del file.attrs['bert']


@pytest.mark.parametrize(
    ('damage', 'named'),
    [
        ('cut off', ''),
        ('no HDF5', ''),
        ('of another BERT', 'bert_config.json or vocab.txt is not the one'),
        ('of an unknown BERT', 'bert_config.json or vocab.txt is not the one'),
    ],
)
def test_best_weights_that_do_not_fit_are_refused(small, damage, named):
    """Those of another BERT too, although they would load; the model is as it was."""
    model, _ = build(small)
    path = small / 'best_model.weights.h5'
    bert.save_best(str(small), model, 'some BERT')
    spoil(path, damage)
    draw(model, 0)
    before = model.get_weights()
    message = refusal(bert.load_best, str(small), model, 'some BERT')
    found = re.escape(f'{path}: does not fit this model (') + f'.*{named}.*'
    assert re.fullmatch(found + r'\); use the files and constants .* another output_dir', message)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_best_weights_of_another_shape_are_refused(small):
    bert.save_best(str(small), build(small)[0], 'some BERT')
    change_config(small, hidden_size=32)
    message = refusal(bert.load_best, str(small), build(small)[0], 'some BERT')
    assert message.startswith(f'{small / "best_model.weights.h5"}: does not fit this model (')


def test_weights_may_be_a_link(small):
    """To another disk, under another name: they are read; other weights replace the link."""
    best, elsewhere = small / 'best_model.weights.h5', small / 'elsewhere'
    model, _ = build(small)
    bert.save_best(str(small), model, 'some BERT')
    best.rename(elsewhere)
    best.symlink_to('elsewhere')
    bert.load_best(str(small), model, 'some BERT')
    before = elsewhere.read_bytes()
    model.weights[0].assign(model.weights[0] + 1)
    bert.save_best(str(small), model, 'some BERT')
    assert not best.is_symlink() and best.read_bytes() != before == elsewhere.read_bytes()
    assert not list(small.glob('.*'))


@pytest.mark.parametrize(
    'error', [OSError(28, 'No space left on device'), RuntimeError('No space left, says HDF5')]
)
def test_full_disk_leaves_the_old_weights(small, error):
    """A file appears when it is complete, or not at all; h5py has errors of its own."""
    (small / 'best_model.weights.h5').write_bytes(b'old')

    class Model:
        weights = ()

        def count_params(self):
            return 0

        def save_weights(self, path):
            with open(path, 'wb') as file:
                file.write(b'half')
            raise error

    with pytest.raises(UserError, match='No space left'):
        bert.save_best(str(small), Model(), '')
    assert (small / 'best_model.weights.h5').read_bytes() == b'old'
    assert not list(small.glob('.*'))


@pytest.mark.parametrize('save_format', ['tf', 'h5'])
def test_weights_of_the_original_script_are_loaded(small, capsys, save_format):
    """`model.save_weights('best_model.weights')`: Keras's own format, or HDF5 without its name."""
    model, other = build(small)[0], build(small)[0]
    draw(model, 1)
    model.save_weights(str(small / 'best_model.weights'), save_format=save_format)
    bert.load_best(str(small), other, 'some BERT')
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert 'best_model.weights: without a digest' in capsys.readouterr().err
    change_config(small, hidden_size=32)
    line = refusal(bert.load_best, str(small), build(small)[0], 'some BERT')
    assert line.startswith(f'{small}/best_model.weights: does not fit this model')
