"""A BERT: its configuration, vocabulary and checkpoint, and the weights that training keeps."""

import json
import os

import h5py
import numpy as np

from evaluate_sogou import UserError, log, read_text

from .checkpoints import opened
from .files import digest, durable_write, first_line, plainly_named
from .keras2 import bert4keras, keras, tf
from .settings import is_trained

LARGEST = {  # sizes of a BERT; larger ones are mistakes, and would take all memory, or hours
    'max_position_embeddings': 2**17, 'num_hidden_layers': 100, 'hidden_size': 2**15,
    'num_attention_heads': 2**10, 'intermediate_size': 2**17, 'embedding_size': 2**15,
    'type_vocab_size': 2**10,
}  # fmt: skip
OPTIONAL = 'embedding_size', 'type_vocab_size'
# of bert4keras and Keras, about a configuration
ERRORS = ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
SEAL = b'\nSHA-256 '  # and the sum follow the weights, where HDF5 does not look
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']


def load_tokenizer(path):
    """Read a vocabulary and simplify it: no ##-pieces of Chinese, no tokens that never occur.

    As BERT counts, each line is a token, a blank one too; of equal ones the last counts. Returns
    (tokenizer, keep_tokens, size): WordPieces of the simplified vocabulary, its ids in the full
    one, a list of int, and the size of the full one. Raises UserError where it is none.
    """
    # not splitlines: U+2028 is a token of Google's vocabularies, if a blank one
    tokens = [line.strip() for line in read_text(path).removesuffix('\n').split('\n')]
    missing = [token for token in SPECIAL if token not in tokens]
    if missing:
        expected = 'expected the vocab.txt of a BERT, one token a line'
        raise UserError(f'{path}: lacks {", ".join(missing)}; {expected}')
    ids = {token: i for i, token in enumerate(tokens)}
    kept = dict.fromkeys(SPECIAL)
    kept.update(dict.fromkeys(token for token in sorted(ids, key=ids.get) if _may_occur(token)))
    simplified = {token: i for i, token in enumerate(kept)}
    return WordPieces(simplified), [ids[token] for token in kept], len(tokens)


def _may_occur(token):
    """Whether bert4keras's rule for a simplified vocabulary keeps a token."""
    tokenizer = bert4keras.tokenizers.Tokenizer
    alone = len(token) <= 1
    return alone or not any(
        tokenizer._is_cjk_character(character) or tokenizer._is_punctuation(character)
        for character in tokenizer.stem(token)
    )


class WordPieces(bert4keras.tokenizers.Tokenizer):
    """bert4keras's lower-casing Tokenizer by the rule of 0.8.1.

    That version takes a minute over a word of 10,000 letters.
    """

    def __init__(self, token_dict):
        super().__init__(token_dict, do_lower_case=True)
        self.longest = max(map(len, token_dict))  # characters of a token

    def _word_piece_tokenize(self, word):
        if word in self._token_dict:  # as most are
            return [word]
        tokens, start = [], 0
        while start < len(word):
            mark = '##' if start else ''
            end = min(start + self.longest, len(word))
            while end > start + 1 and mark + word[start:end] not in self._token_dict:
                end -= 1
            tokens.append(mark + word[start:end])
            start = end
        return tokens


class Blank(bert4keras.models.BERT):
    """bert4keras's BERT without weights of its own: to draw some that are replaced takes long."""

    initializer = keras.initializers.Zeros()


def build_bert(files, checkpoint, keep_tokens, vocabulary_size, longest):
    """Build bert4keras's BERT under a UniLM mask (https://arxiv.org/abs/1905.03197).

    files: settings.Files; checkpoint: path, a BERT's or of what `save_best` wrote, '' for random
    weights, None for zeros, to be loaded later; keep_tokens: the rows of the vocabulary to keep,
    None for all; vocabulary_size: rows it has; longest: tokens that a sequence may have. Returns a
    Keras model, [token_ids, segment_ids] [batch, length] to probabilities of the next token,
    float32 [batch, length, len(keep_tokens)].
    Raises UserError on a misfit.
    """
    config = files.config
    try:
        sizes = json.loads(read_text(config))
        if not isinstance(sizes, dict):
            raise ValueError('no {"vocab_size", ...}')
        if sizes['vocab_size'] != vocabulary_size:
            raise UserError(_misfit(files, config, sizes['vocab_size'], vocabulary_size))
        sizes = _checked(sizes)
        if sizes['max_position_embeddings'] < longest:
            has = f'{sizes["max_position_embeddings"]} max_position_embeddings'
            cure = 'lower max_p_len, max_q_len or max_a_len'
            raise UserError(f'{config}: {has}, but {longest} tokens are to be read; {cure}')
        stddev = sizes.pop('initializer_range')
        options = {'model': Blank, 'application': 'unilm', 'keep_tokens': keep_tokens}
        # AutoGraph takes seconds, and there is nothing for it
        build = tf.autograph.experimental.do_not_convert(bert4keras.models.build_transformer_model)
        transformer = build(**{**sizes, **options, 'return_keras_model': False})
    except ERRORS as error:
        raise _no_configuration(config, error) from None
    if checkpoint and is_trained(checkpoint):
        load_weights(checkpoint, transformer.model, bert_digest(files))
    elif checkpoint:
        _load_checkpoint(transformer, files, checkpoint, keep_tokens, vocabulary_size)
    elif checkpoint == '':
        log('no checkpoint: BERT starts from random weights')
        for weight in transformer.model.weights:
            if weight.shape.rank == 2:
                weight.assign(tf.random.truncated_normal(weight.shape, stddev=stddev))
    return transformer.model


def _no_configuration(path, error):
    """Return the UserError for an exception that came of a configuration."""
    what = f'{type(error).__name__}: {first_line(error)}'
    cure = 'take the one that its BERT came with'
    return UserError(f'{path}: not a BERT configuration ({what}); {cure}')


def _checked(config):
    """Return what bert4keras shall know of a configuration, a dict. Raises ValueError."""
    sizes = {'vocab_size': int(config['vocab_size'])}
    for name, largest in LARGEST.items():
        value = config.get(name) if name in OPTIONAL else config[name]
        if value is None and name in OPTIONAL:
            continue
        if type(value) is not int or not 1 <= value <= largest:
            raise ValueError(f'{name} is {value!r:.80}, not a whole number from 1 to {largest}')
        sizes[name] = value
    if sizes['hidden_size'] % sizes['num_attention_heads']:
        raise ValueError('hidden_size is no multiple of num_attention_heads')
    for name, usual in ('hidden_dropout_prob', 0.0), ('initializer_range', 0.02):
        value = usual if config.get(name) is None else config[name]
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ValueError(f'{name} is {value!r:.80}, not a number of at least 0 and below 1')
        sizes[name] = value
    sizes['hidden_act'] = config['hidden_act']
    if not isinstance(sizes['hidden_act'], str):
        raise ValueError(f'hidden_act is {sizes["hidden_act"]!r}, not a name')
    _check_memory(sizes)
    return sizes


def _check_memory(sizes):
    """Raise ValueError where the weights of a BERT alone take more memory than there is."""
    width, inner = sizes['hidden_size'], sizes['intermediate_size']
    weights = sizes['vocab_size'] + sizes['max_position_embeddings']
    weights *= sizes.get('embedding_size', width)
    weights += sizes['num_hidden_layers'] * width * (4 * width + 2 * inner)
    try:
        memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):  # some systems do not tell
        return
    if 4 * weights > memory:
        needed, there = (f'{size / 2**30:.0f} GB' for size in (4 * weights, memory))
        raise ValueError(f'its weights take {needed} of memory, and there are {there}')


def _misfit(files, path, size, vocabulary_size):
    """Return what is wrong between a file made for `size` tokens and the vocabulary."""
    made = f'{path} is made for {size!r} tokens'
    has = f'{files.vocabulary}: line {vocabulary_size} is the last, but {made}'
    return f'{has}; take both from one BERT, with no line more or less'


def _load_checkpoint(transformer, files, checkpoint, keep_tokens, vocabulary_size):
    """Load the weights that a BERT is published with and check that every one arrived.

    Raises UserError that names the variable that is missing or does not fit, or the two sizes of
    the vocabulary.
    """
    of_tokens = 'bert/embeddings/word_embeddings', 'cls/predictions/output_bias'
    with opened(checkpoint) as variables:
        for layer, names in transformer.variable_mapping().items():
            if layer not in transformer.layers:
                continue
            weights = transformer.layers[layer].trainable_weights
            for weight, name in zip(weights, names, strict=True):
                if name not in variables:
                    what = f'no BERT with its masked language model (no {name} in it)'
                    raise UserError(f'{checkpoint}: {what}; data/README.md names some')
                value = variables[name]()
                if name in of_tokens and value.ndim:
                    if len(value) != vocabulary_size:
                        raise UserError(_misfit(files, checkpoint, len(value), vocabulary_size))
                    value = value if keep_tokens is None else value[keep_tokens]
                if value.shape != weight.shape:
                    misfit = f'{name} is {value.shape}, but bert_config.json means'
                    cure = 'take both from one BERT'
                    raise UserError(f'{checkpoint}: {misfit} {weight.shape}; {cure}')
                weight.assign(value)


# ------------------------------------------------------------------------------------ best weights


def bert_digest(files):
    """Return a digest of a BERT's configuration and vocabulary, of settings.Files.

    The weights alone show neither heads nor tokens.
    """
    try:
        config = json.dumps(json.loads(read_text(files.config)), sort_keys=True)
    except (RecursionError, ValueError) as error:
        raise _no_configuration(files.config, error) from None
    tokens = '\n'.join(read_text(files.vocabulary).split())
    return digest([config.encode(), tokens.encode()])


def save_best(output_dir, model, described):
    """Write the best weights, all or nothing, and which BERT they are of, see `bert_digest`."""
    with durable_write(os.path.join(output_dir, 'best_model.weights.h5')) as temporary:
        try:
            # HDF5 may crash where the disk is nearly full; macOS has no such call
            if hasattr(os, 'posix_fallocate'):
                # it adds 2 KB to each weight
                size = 4 * model.count_params() + 4096 * (4 + len(model.weights))
                with open(temporary, 'wb') as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            model.save_weights(temporary)
            with h5py.File(temporary, 'r+') as file:
                file.attrs['bert'] = described
            with open(temporary, 'ab') as file:
                file.write(SEAL + _digest_of_file(temporary, file.tell()))
        except RuntimeError as error:  # what h5py makes of a disk that is full
            raise OSError(first_line(error)) from None


def _check_seal(path):
    """Raise ValueError where a file is not as `save_best` has sealed it."""
    with open(path, 'rb') as file:
        size = max(file.seek(0, os.SEEK_END) - len(SEAL) - 64, 0)
        file.seek(size)
        seal = file.read()
    if seal.startswith(SEAL) and seal != SEAL + _digest_of_file(path, size):
        raise ValueError('it is not as it was written')


def _digest_of_file(path, size):
    """Return the digest of the first bytes of a file, bytes."""
    with open(path, 'rb') as file:
        return digest(iter(lambda: file.read(min(size - file.tell(), 2**20)), b'')).encode()


def load_best(output_dir, model, described):
    """Load what `save_best` wrote, or the original script. Raises UserError where there is none."""
    path = os.path.join(output_dir, 'best_model.weights.h5')
    original = path.removesuffix('.h5')
    if os.path.exists(path):
        load_weights(path, model, described)
    elif os.path.isfile(original) or os.path.isfile(f'{original}.index'):
        log(f'{original}: without a digest; see that it is of this BERT and vocabulary')
        load_weights(original, model, None)
    else:
        raise UserError(f'{path}: no such file; run train first, or give its output_dir')


def load_weights(path, model, described):
    """Load a file that `save_best` wrote, or Keras, without a digest, if `described` is None.

    Raises UserError where it is of another BERT.
    """
    try:
        if described is None:
            with plainly_named(path) as plain:
                status = model.load_weights(plain)
            if status:  # TensorFlow's format loads what it finds
                status.assert_existing_objects_matched()
            if not all(np.isfinite(weight).all() for weight in model.get_weights()):
                raise ValueError('it holds what is no number')
            return
        _check_seal(path)
        with h5py.File(path) as file:
            if file.attrs.get('bert') != described:
                what = 'bert_config.json or vocab.txt is not the one that it was trained with'
                raise ValueError(what)
        model.load_weights(path)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        RuntimeError,
        AssertionError,
        tf.errors.OpError,
    ) as error:
        misfit = f'does not fit this model ({first_line(error)})'
        cure = 'use the files and constants it was trained with'
        damaged = 'if it is damaged, train in another output_dir'
        raise UserError(f'{path}: {misfit}; {cure}; {damaged}') from None
