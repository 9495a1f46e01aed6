"""A BERT: its vocabulary, configuration and weights, and bert4keras's model of them."""

import json
import os
import re

import numpy as np

from evaluate_sogou import UserError

from . import checkpoints
from .files import digest, plainly_named, read_text
from .keras2 import bert4keras, keras, tf
from .paths import ORIGINAL
from .process import first_line, log
from .trained import WEIGHTS, is_reader, unusable
from .unilm import variables_of

TYPES = 2  # of tokens, that are told apart: source and answer
COUNT = 1, 2**20
SIZES = {  # {name: (the least, the most, perhaps what is meant where it is not given)}
    'vocab_size': COUNT, 'max_position_embeddings': COUNT, 'num_hidden_layers': (1, 100),
    'hidden_size': COUNT, 'num_attention_heads': COUNT, 'intermediate_size': COUNT,
    'embedding_size': (*COUNT, None), 'type_vocab_size': (TYPES, 2**20, None),
    'hidden_dropout_prob': (0.0, 0.99, 0.0), 'initializer_range': (0.0, 0.99, 0.02),
}  # fmt: skip
# of bert4keras and Keras, about a configuration
ERRORS = ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
# Keras's names of what transformers calls so; by leaky_relu, say, it means another function
ACTIVATIONS = {
    **{name: name for name in ('gelu', 'gelu_erf', 'gelu_tanh', 'relu', 'tanh', 'swish', 'mish')},
    'gelu_python': 'gelu_erf', 'gelu_new': 'gelu_tanh', 'gelu_fast': 'gelu_tanh', 'silu': 'swish',
    'gelu_accurate': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_python_tanh': 'gelu_tanh',
}  # fmt: skip
OF_TOKENS = 'bert/embeddings/word_embeddings', 'cls/predictions/output_bias'
OF_TYPES = 'bert/embeddings/token_type_embeddings'


def load_tokenizer(path):
    """Read a vocabulary and simplify it: no ##-pieces of Chinese, no tokens that never occur.

    As BERT counts, each line is a token, a blank one too; of equal ones the last counts. Returns
    (tokenizer, keep_tokens, size): WordPieces of the simplified vocabulary, its ids in the full
    one, a list of int, and the size of the full one. Raises UserError where it is none.
    """
    tokens = _read_tokens(path)
    missing = [token for token in SPECIAL if token not in tokens]
    if missing:
        expected = 'expected the vocab.txt of a BERT, one token a line'
        raise unusable(path, f'lacks {", ".join(missing)}', expected)
    ids = {token: i for i, token in enumerate(tokens)}
    kept = dict.fromkeys(SPECIAL)
    kept.update(dict.fromkeys(token for token in sorted(ids, key=ids.get) if _may_occur(token)))
    simplified = {token: i for i, token in enumerate(kept)}
    return WordPieces(simplified), [ids[token] for token in kept], len(tokens)


def _read_tokens(path):
    """Return the tokens of a vocab.txt, or a tokenizer.json, by their ids. Raises UserError."""
    text = read_text(path)
    if not path.endswith('.json'):
        # not splitlines: U+2028 is a token of Google's vocabularies, if a blank one
        return [line.strip() for line in text.removesuffix('\n').split('\n')]
    try:
        model = json.loads(text)['model']
        kind = model.get('type', 'WordPiece'), model['continuing_subword_prefix']
        if kind != ('WordPiece', '##'):  # early versions do not say
            raise ValueError(f'of kind {kind[0]}, with {kind[1]}')
        tokens = {i: token for token, i in model['vocab'].items()}
        # where a token had two ids, the first is nobody's
        return [tokens.get(i, f'[id {i}]') for i in range(min(max(tokens), 2**20) + 1)]
    except ERRORS as error:
        what = f'no vocabulary of a BERT ({type(error).__name__}: {first_line(error)})'
        raise unusable(path, what, 'give that of a WordPiece with ## as dict_path') from None


def _warn(files, sizes, keep_tokens, size):
    """Say in a line each what may be wrong with a BERT although it fits, see `build_bert`."""
    path, tokens, lines = files.vocabulary, _read_tokens(files.vocabulary), {}
    for number, token in enumerate(tokens, 1):
        lines.setdefault(token, []).append(str(number))
    twice = [token for token in lines if token and len(lines[token]) > 1]
    if twice:
        first, *_, last = lines[twice[0]]
        where = f'{twice[0]!r:.40} in lines {first} and {last}; the last one counts, as in BERT'
        log(f'{path}: tokens that stand twice: {len(twice)}, {where}')
    cased = [tokens[i] for i in keep_tokens or () if tokens[i] not in SPECIAL]
    cased = [token for token in cased if token != token.lower()]
    if cased:
        what = (
            f'tokens with capitals: {len(cased)}, {cased[0]!r:.40} the first; text is lower-cased'
        )
        log(f'{path}: {what} all the same, so they are never read; take an uncased BERT')
    limits = (
        ('tokens', sizes['vocab_size'], size, f"{path} was cut off, or is another BERT's"),
        ('token types', sizes.get('type_vocab_size', 0), TYPES, 'those are not of two texts'),
    )
    for what, whole, used, wrong in limits:
        if whole > used:
            log(f'{files.config}: of {whole} {what} the first {used} are used; wrong if {wrong}')


def _may_occur(token):
    """Whether bert4keras's rule for a simplified vocabulary keeps a token."""
    tokenizer = bert4keras.tokenizers.Tokenizer
    return len(token) <= 1 or not any(
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
    config, sizes = files.config, read_config(files.config)
    surplus = sizes['vocab_size'] - vocabulary_size
    if surplus < 0 or (surplus and checkpoint and is_reader(checkpoint)):  # which has none
        raise _misfit(files, config, sizes['vocab_size'], vocabulary_size)
    if sizes['max_position_embeddings'] < longest:
        has = f'{sizes["max_position_embeddings"]} max_position_embeddings'
        cure = 'lower max_p_len, max_q_len or max_a_len'
        raise UserError(f'{config}: {has}, but {longest} tokens are to be read; {cure}')
    _warn(files, sizes, keep_tokens, vocabulary_size)
    stddev = sizes.pop('initializer_range')
    sizes.pop('type_vocab_size', None)  # two, unless told otherwise
    sizes.update(vocab_size=vocabulary_size, hidden_act=ACTIVATIONS[sizes['hidden_act']])
    options = {'model': Blank, 'application': 'unilm', 'keep_tokens': keep_tokens}
    # AutoGraph takes seconds, and there is nothing for it
    build = tf.autograph.experimental.do_not_convert(bert4keras.models.build_transformer_model)
    try:
        model = build(**sizes, **options)
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
    """Return what there is to know of a configuration, a dict. Raises UserError."""
    try:
        config, sizes = json.loads(read_text(path)), {}
        for name, (least, most, *usual) in SIZES.items():
            value = usual[0] if usual and config.get(name) is None else config[name]
            if value is None and usual:
                continue
            if type(value) not in (int, type(least)) or not least <= value <= most:
                a_number = 'a whole number' if type(least) is int else 'a number'
                raise ValueError(f'{name} is {value!r:.80}, not {a_number} from {least} to {most}')
            sizes[name] = value
        if sizes['hidden_size'] % sizes['num_attention_heads']:
            raise ValueError('hidden_size is no multiple of num_attention_heads')
        sizes['hidden_act'] = config['hidden_act']
        if sizes['hidden_act'] not in [*ACTIVATIONS]:
            known = ', '.join(ACTIVATIONS)
            raise ValueError(f'hidden_act is {sizes["hidden_act"]!r:.80}, not one of {known}')
        for name, bert in ('model_type', 'bert'), ('position_embedding_type', 'absolute'):
            if config.get(name, bert) != bert:  # another computation, under the same names
                raise ValueError(f'{name} is {config[name]!r:.80}, not {bert!r}')
        _check_memory(sizes)
    except ERRORS as error:
        raise _no_configuration(path, error) from None
    return sizes


def _check_memory(sizes):
    """Raise ValueError where the weights of a BERT alone take more memory than there is."""
    width, inner = sizes['hidden_size'], sizes['intermediate_size']
    rows = sizes['vocab_size'] + sizes['max_position_embeddings'] + sizes.get('type_vocab_size', 0)
    weights = rows * sizes.get('embedding_size', width)
    weights += sizes['num_hidden_layers'] * width * (4 * width + 2 * inner)
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if 4 * weights > memory:
        needed, there = (f'{size / 2**30:.0f} GB' for size in (4 * weights, memory))
        raise ValueError(f'its weights take {needed} of memory, and there are {there}')


def _no_configuration(path, error):
    """Return the UserError for an exception that came of a configuration."""
    what = f'not a BERT configuration ({type(error).__name__}: {first_line(error)})'
    return unusable(path, what, 'take the one that its BERT came with')


def _misfit(files, path, size, vocabulary_size):
    """Return the UserError for a file made for `size` tokens beside another vocabulary."""
    last = f'{files.vocabulary}: line {vocabulary_size} is the last'
    both = 'take both from one BERT, with no line more or less'
    return UserError(f'{last}, but {path} is made for {size} tokens; {both}')


def load_weights(model, files, checkpoint, keep_tokens=None, vocabulary_size=None):
    """Load the weights of a BERT, a trained one too, and check that every one arrived.

    keep_tokens, vocabulary_size: see `build_bert`; a trained reader needs none. Raises UserError
    that names the variable that is missing or does not fit, or the two sizes of the vocabulary, or
    where weights were trained with another configuration or vocabulary.
    """
    if os.path.basename(checkpoint) == ORIGINAL:
        _load_original(model, checkpoint)
        return
    with checkpoints.opened(checkpoint) as (variables, described):
        if described and described != bert_digest(files):
            others = f'trained with others than {files.config} and {files.vocabulary}'
            cure = 'take the files that lay beside it, or copy it again'
            raise UserError(f'{checkpoint}: {others}; {cure}')
        rows = {}  # {name: (how many there are, which are used)}; of a trained reader all are
        if not described:
            sizes, kept = read_config(files.config), keep_tokens or range(vocabulary_size)
            rows = dict.fromkeys(OF_TOKENS, (sizes['vocab_size'], kept))
            rows[OF_TYPES] = sizes.get('type_vocab_size', TYPES), range(TYPES)
        own = variables_of(model)
        for name in sorted(variables.keys() - own.keys()):
            if re.fullmatch('bert/encoder/layer_.*/(kernel|bias|gamma|beta)', name):
                what = f'it has {name}, for which {files.config} has no place'
                raise unusable(checkpoint, what, 'take both from one BERT')
        for name, variable in own.items():
            if name not in variables:
                what = f'no BERT with its masked language model (no {name} in it)'
                raise unusable(checkpoint, what, 'data/README.md names some')
            value, (size, used) = variables[name](), rows.get(name, (variable.shape[0], ...))
            shape = (size, *variable.shape[1:])
            is_of_tokens = name in OF_TOKENS and rows and value.ndim
            if is_of_tokens and len(value) not in (size, vocabulary_size):
                raise _misfit(files, checkpoint, len(value), vocabulary_size)
            if value.shape != shape:
                misfit = f'{name} is {value.shape}, but {files.config} means {shape}'
                raise unusable(checkpoint, misfit, 'take both from one BERT')
            variable.assign(value[used])


def _load_original(model, path):
    """Load what the original script has saved, in Keras's formats."""
    checkpoints.refuse_foreign_weights(path)
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
    sizes = {**read_config(files.config), 'vocab_size': len(keep_tokens)}
    sizes.update(dict.fromkeys(sizes.keys() & {'type_vocab_size'}, TYPES))
    return sizes, [*tokenizer._token_dict]


def bert_digest(files):
    """Return a digest of what `describe` says: weights alone show neither heads nor tokens."""
    return digest(describe(files))


def save_best(output_dir, model, described):
    """Write the best weights, all or nothing; described: `bert_digest` of their BERT."""
    checkpoints.save(os.path.join(output_dir, WEIGHTS), variables_of(model), described)


def load_best(output_dir, model, files):
    """Load what `save_best` wrote into a model; files: the Files that it was made of."""
    load_weights(model, files, os.path.join(output_dir, WEIGHTS))
