"""A BERT: its vocabulary, configuration and weights, and bert4keras's model of them."""

import json
import os
import types

import numpy as np

from evaluate_sogou import UserError

from . import checkpoints
from .console import log
from .files import digest, first_line, plainly_named, read_text
from .keras2 import bert4keras, keras, tf
from .paths import ORIGINAL
from .trained import CONFIG, VOCABULARY, WEIGHTS, unusable

LARGEST = {  # sizes of a BERT; larger ones are mistakes, and would take all memory, or hours
    'max_position_embeddings': 2**17, 'num_hidden_layers': 100, 'hidden_size': 2**15,
    'num_attention_heads': 2**10, 'intermediate_size': 2**17, 'embedding_size': 2**15,
    'type_vocab_size': 2**10,
}  # fmt: skip
OPTIONAL = 'embedding_size', 'type_vocab_size'
# of bert4keras and Keras, about a configuration
ERRORS = ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
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
        raise unusable(path, f'lacks {", ".join(missing)}', expected)
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

    files: paths.Files; checkpoint: path, a BERT's or a trained reader's, '' for random weights,
    None for zeros, to be loaded later; keep_tokens: the rows of the vocabulary to keep, None for
    all; vocabulary_size: rows it has; longest: tokens that a sequence may have. Returns a Keras
    model, [token_ids, segment_ids] [batch, length] to probabilities of the next token, float32
    [batch, length, len(keep_tokens)].
    Raises UserError on a misfit.
    """
    config = files.config
    sizes = read_config(config)
    if sizes['vocab_size'] != vocabulary_size:
        raise UserError(_misfit(files, config, sizes['vocab_size'], vocabulary_size))
    if sizes['max_position_embeddings'] < longest:
        has = f'{sizes["max_position_embeddings"]} max_position_embeddings'
        cure = 'lower max_p_len, max_q_len or max_a_len'
        raise UserError(f'{config}: {has}, but {longest} tokens are to be read; {cure}')
    stddev = sizes.pop('initializer_range')
    options = {'model': Blank, 'application': 'unilm', 'keep_tokens': keep_tokens}
    # AutoGraph takes seconds, and there is nothing for it
    build = tf.autograph.experimental.do_not_convert(bert4keras.models.build_transformer_model)
    try:
        model = build(**{**sizes, **options})
    except ERRORS as error:
        raise _no_configuration(config, error) from None
    if checkpoint:
        load_weights(model, files, checkpoint, keep_tokens, vocabulary_size)
    elif checkpoint == '':
        log('no checkpoint: BERT starts from random weights')
        for weight in model.weights:
            if weight.shape.rank == 2:
                weight.assign(tf.random.truncated_normal(weight.shape, stddev=stddev))
    return model


def read_config(path):
    """Return what bert4keras shall know of a configuration, a dict. Raises UserError."""
    try:
        config = json.loads(read_text(path))
        if not isinstance(config, dict):
            raise ValueError('no {"vocab_size", ...}')
        return _checked(config)
    except ERRORS as error:
        raise _no_configuration(path, error) from None


def _no_configuration(path, error):
    """Return the UserError for an exception that came of a configuration."""
    what = f'not a BERT configuration ({type(error).__name__}: {first_line(error)})'
    return unusable(path, what, 'take the one that its BERT came with')


def _checked(config):
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


def variables_of(model):
    """Return {Google's name: tf.Variable} of bert4keras's BERT."""
    count = sum(layer.name.endswith('-FeedForward') for layer in model.layers)
    # all that it asks for
    shape = types.SimpleNamespace(num_hidden_layers=count)
    mapping = bert4keras.models.BERT.variable_mapping(shape)
    variables = {}
    for layer in model.layers:
        if layer.name in mapping:
            variables.update(zip(mapping[layer.name], layer.weights, strict=True))
    return variables


def load_weights(model, files, checkpoint, keep_tokens, vocabulary_size):
    """Load the weights of a BERT, a trained one too, and check that every one arrived.

    Raises UserError that names the variable that is missing or does not fit, or the two sizes of
    the vocabulary, or where weights were trained with another configuration or vocabulary.
    """
    if os.path.basename(checkpoint) == ORIGINAL:
        _load_original(model, checkpoint)
        return
    of_tokens = 'bert/embeddings/word_embeddings', 'cls/predictions/output_bias'
    with checkpoints.opened(checkpoint) as (variables, described):
        if described and described != bert_digest(files):
            others = f'trained with others than {files.config} and {files.vocabulary}'
            cure = 'take the files that lay beside it, or copy it again'
            raise UserError(f'{checkpoint}: {others}; {cure}')
        for name, variable in variables_of(model).items():
            if name not in variables:
                what = f'no BERT with its masked language model (no {name} in it)'
                raise unusable(checkpoint, what, 'data/README.md names some')
            value = variables[name]()
            # a trained reader's are of the simplified vocabulary, as its digest is
            if name in of_tokens and value.ndim and not described:
                if len(value) != vocabulary_size:
                    raise UserError(_misfit(files, checkpoint, len(value), vocabulary_size))
                value = value if keep_tokens is None else value[keep_tokens]
            if value.shape != variable.shape:
                misfit = f'{name} is {value.shape}, but {files.config} means {variable.shape}'
                raise unusable(checkpoint, misfit, 'take both from one BERT')
            variable.assign(value)


def _load_original(model, path):
    """Load what the original script has saved, in Keras's formats."""
    log(f'{path}: without a digest; see that it is of this BERT and vocabulary')
    try:
        with plainly_named(path) as plain:
            status = model.load_weights(plain)
        if status:  # TensorFlow's format loads what it finds
            status.assert_existing_objects_matched()
        if not all(np.isfinite(weight).all() for weight in model.get_weights()):
            raise ValueError('it holds what is no number')
    except (*checkpoints.ERRORS, AssertionError) as error:
        misfit = f'does not fit this model ({first_line(error)})'
        cure = 'use the files and constants it was trained with'
        raise UserError(f'{path}: {misfit}; {cure}') from None


# ------------------------------------------------------------------------------- a trained reader


def describe(files):
    """Return what a trained reader's BERT is: sizes, a dict, and tokens, of its vocabulary."""
    tokenizer, keep_tokens, _ = load_tokenizer(files.vocabulary)
    return {**read_config(files.config), 'vocab_size': len(keep_tokens)}, [*tokenizer._token_dict]


def bert_digest(files):
    """Return a digest of what `describe` says: weights alone show neither heads nor tokens."""
    return digest(json.dumps(part, sort_keys=True).encode() for part in describe(files))


def save_best(output_dir, model, described):
    """Write the best weights, all or nothing; described: `bert_digest` of their BERT."""
    checkpoints.save(os.path.join(output_dir, WEIGHTS), variables_of(model), described)


def load_best(output_dir, model, files):
    """Load what `save_best` wrote into a model; files: the Files that it was made of."""
    names = {'config': CONFIG, 'vocabulary': VOCABULARY}
    paths = {key: os.path.join(output_dir, name) for key, name in names.items()}
    load_weights(model, files._replace(**paths), os.path.join(output_dir, WEIGHTS), None, None)
