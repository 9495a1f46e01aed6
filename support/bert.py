"""A BERT: its configuration, vocabulary and checkpoint, and the weights that training keeps."""

import json
import os

import h5py

from evaluate_sogou import UserError, read_text

from .files import durable, fingerprint, first_line, plainly_named
from .keras2 import bert4keras, keras, tf


def load_tokenizer(path):
    """Read a vocabulary and simplify it: no ##-pieces of Chinese, no tokens that never occur.

    Returns (tokenizer, keep_tokens, size): WordPieces of the simplified vocabulary, its ids in the
    full one, a list of int, and the size of the full one. Raises UserError where it is none.
    """
    startswith = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
    lines = read_text(path).splitlines()
    missing = [token for token in startswith if token not in lines]
    if missing:
        expected = 'expected the vocab.txt of a BERT, one token a line'
        raise UserError(f'{path}: lacks {", ".join(missing)}; {expected}')
    load_vocab, encoding = bert4keras.tokenizers.load_vocab, 'utf-8-sig'  # as `read_text`
    simplified, keep_tokens = load_vocab(path, encoding, simplified=True, startswith=startswith)
    return WordPieces(simplified), keep_tokens, len(load_vocab(path, encoding))


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
        if sizes['vocab_size'] != vocabulary_size:
            raise UserError(
                f'{config}: {_another_vocabulary(sizes["vocab_size"], vocabulary_size)}'
            )
        if sizes['max_position_embeddings'] < longest:
            cure = 'lower max_p_len, max_q_len or max_a_len'
            raise UserError(f'{config}: too few max_position_embeddings; {cure}')
        if sizes['num_hidden_layers'] < 1:
            raise ValueError('num_hidden_layers is below 1')
        stddev = float(sizes.get('initializer_range', 0.02))
        options = {'model': Blank, 'application': 'unilm', 'keep_tokens': keep_tokens}
        # AutoGraph takes seconds, and there is nothing for it
        build = tf.autograph.experimental.do_not_convert(bert4keras.models.build_transformer_model)
        transformer = build(**{**sizes, **options, 'return_keras_model': False})
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        what = f'{type(error).__name__}: {first_line(error)}'
        raise UserError(f'{config}: not a BERT configuration ({what})') from None
    if checkpoint and checkpoint.endswith('.h5'):
        load_weights(checkpoint, transformer.model, describe_bert(files))
    elif checkpoint:
        _load_checkpoint(transformer, checkpoint, vocabulary_size)
    elif checkpoint == '':
        for weight in transformer.model.weights:
            if weight.shape.rank == 2:
                weight.assign(tf.random.truncated_normal(weight.shape, stddev=stddev))
    return transformer.model


def _another_vocabulary(size, vocabulary_size):
    return f'made for {size} tokens, but the vocabulary has {vocabulary_size}'


def _load_checkpoint(transformer, checkpoint, vocabulary_size):
    """Load a TensorFlow BERT checkpoint and check that every weight arrived.

    Raises UserError that names the variable that is missing or does not fit, or the two sizes of
    the vocabulary.
    """
    try:
        with plainly_named(checkpoint) as path:
            for name in 'bert/embeddings/word_embeddings', 'cls/predictions/output_bias':
                size = tf.train.load_variable(path, name).shape[0]
                if size != vocabulary_size:
                    raise UserError(f'{checkpoint}: {_another_vocabulary(size, vocabulary_size)}')
            for layer, names in transformer.variable_mapping().items():
                if layer not in transformer.layers:
                    continue
                weights = transformer.layers[layer].trainable_weights
                for weight, name in zip(weights, names, strict=True):
                    value = transformer.load_variable(path, name)
                    if value.shape != weight.shape:
                        misfit = f'{name} is {value.shape}, but bert_config.json means'
                        raise UserError(f'{checkpoint}: {misfit} {weight.shape}')
                    weight.assign(value)
    except (tf.errors.OpError, ValueError, IndexError) as error:  # names what is missing
        what = f'no BERT with its masked language model ({first_line(error)})'
        raise UserError(f'{checkpoint}: {what}') from None


# ------------------------------------------------------------------------------------ best weights


def describe_bert(files):
    """Return a fingerprint of a BERT's configuration and vocabulary, of settings.Files.

    The weights alone show neither heads nor tokens.
    """
    config = json.dumps(json.loads(read_text(files.config)), sort_keys=True)
    tokens = '\n'.join(read_text(files.vocabulary).split())
    return fingerprint([config.encode(), tokens.encode()])


def save_best(output_dir, model, described):
    """Write the best weights, all or nothing, and which BERT they are of, see `describe_bert`."""
    with durable(os.path.join(output_dir, 'best_model.weights.h5')) as temporary:
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
        except RuntimeError as error:  # what h5py makes of a disk that is full
            raise OSError(first_line(error)) from None


def load_best(output_dir, model, described):
    """Load what `save_best` wrote. Raises UserError where there is none or another BERT's."""
    path = os.path.join(output_dir, 'best_model.weights.h5')
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file; run train first, or give its output_dir')
    load_weights(path, model, described)


def load_weights(path, model, described):
    """Load a file that `save_best` wrote. Raises UserError where it is of another BERT."""
    try:
        with h5py.File(path) as file:
            if file.attrs.get('bert') != described:
                what = 'bert_config.json or vocab.txt is not the one that it was trained with'
                raise ValueError(what)
        model.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        misfit = f'does not fit this model ({first_line(error)})'
        cure = 'use the files and constants it was trained with'
        damaged = 'if it is damaged, train in another output_dir'
        raise UserError(f'{path}: {misfit}; {cure}; {damaged}') from None
