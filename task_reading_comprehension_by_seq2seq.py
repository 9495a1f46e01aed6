"""Reading comprehension by seq2seq: several passages vote on every token of one answer.

    python task_reading_comprehension_by_seq2seq.py train                   # learn, keep the best weights, score them
    python task_reading_comprehension_by_seq2seq.py eval                    # score validation with the best weights
    python task_reading_comprehension_by_seq2seq.py predict questions.json  # print `id<TAB>answer` lines

BERT-wwm under a UniLM mask reads `[CLS] passage [SEP] question [SEP]` and writes `answer [SEP]`.
Method: Su Jianlin, https://kexue.fm/archives/7115 (2019). With BERT-wwm he reports on his validation split of
SogouQA: Accuracy 0.7259005836184343, F1 0.813860036706151, Final 0.7698803101622926.
Edit the constants and rerun, or give one once as --name=value. Without the real files the embedded demo is used.
"""

import argparse
import collections
import contextlib
import difflib
import json
import math
import os
import platform
import re
import sys
import typing
import unicodedata
import warnings

# bert4keras needs Keras 2, today's tf-keras, under the name `keras` and with a version that ends in `tf`.
os.environ['TF_USE_LEGACY_KERAS'] = '1'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
_stderr = os.dup(2)
with open(os.devnull, 'w', encoding='utf-8') as _nowhere:
    os.dup2(_nowhere.fileno(), 2)  # no setting silences what TensorFlow says while it is imported
try:
    import tensorflow as tf
    import tf_keras as keras
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
keras.__version__ += '-tf'
sys.modules['keras'] = keras
for _name in 'activations', 'backend', 'callbacks', 'initializers', 'layers', 'models', 'optimizers', 'utils':
    sys.modules[f'keras.{_name}'] = getattr(keras, _name)

import bert4keras
import numpy as np
from bert4keras.layers import Loss
from bert4keras.models import build_transformer_model
from bert4keras.tokenizers import Tokenizer, load_vocab
from tqdm import tqdm

from evaluate_sogou import (
    Parser,
    Tally,
    UserError,
    defects,
    evaluate,
    load_questions,
    load_references,
    log,
    read_text,
    write_text,
)

# ----------------------------------------------------------------------------------------------- constants
# fmt: off
# files; 'auto' means data/, or data/demo/ as long as data/ holds none of the real files
data_dir = 'auto'           # folder of WebQA.json, SogouQA.json and, if at hand, qid_answer_expand
config_path = 'auto'        # BERT's configuration; 'auto': bert_config.json in data_dir
checkpoint_path = 'auto'    # BERT's weights; 'auto': bert_model.ckpt in data_dir; '': start from random weights
dict_path = 'auto'          # BERT's vocabulary; 'auto': vocab.txt in data_dir
output_dir = 'output'       # everything that is written goes into this folder
# lengths, in tokens
max_p_len = 256             # passage, its [CLS] and [SEP] included
max_q_len = 64              # question, its [SEP] included
max_a_len = 32              # answer, its [SEP] included
# training
batch_size = 32             # pairs per update; lower it when memory runs out
epochs = 8                  # times that every question is drawn from
learning_rate = 1e-5        # of Adam
best_by = 'final'           # weights kept: 'final', best Final of an epoch; 'loss', lowest loss, as the original
valid_sample = 100          # validation questions scored after every epoch
seed = 42                   # of the split, the draws, dropout and random weights; any whole number from 0
# reading
mode = 'extractive'         # 'extractive', the answer stands in a passage; 'generative', any text
topk = 1                    # beam width
# fmt: on
# ------------------------------------------------------------------------------------------------- the end
constants = [name for name, value in globals().items() if not name.startswith('_') and type(value) in (int, float, str)]
# {constant: (its value above, the one for the demo's tiny model as long as it has that value)}
file_names = {
    'webqa': 'WebQA.json', 'sogouqa': 'SogouQA.json', 'config': 'bert_config.json', 'checkpoint': 'bert_model.ckpt',
    'vocabulary': 'vocab.txt', 'official_answers': 'qid_answer_expand',
}  # fmt: skip
demo_constants = {'batch_size': (32, 64), 'learning_rate': (1e-5, 3e-4)}


# ---------------------------------------------------------------------------------------------------- files


def locate_files():
    """Return {what it is: path} of the files that the constants mean, none of which need exist, and 'demo': bool."""
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
    given = {'config': config_path, 'checkpoint': checkpoint_path, 'vocabulary': dict_path}

    def files_in(folder, demo):
        files = {name: os.path.join(folder, file_name) for name, file_name in file_names.items()}
        return {**files, **{name: path for name, path in given.items() if path != 'auto'}, 'demo': demo}

    files = files_in(here if data_dir == 'auto' else data_dir, demo=False)
    if {data_dir, *given.values()} == {'auto'} and not any(map(exists, list(files.values())[:5])):
        return files_in(os.path.join(here, 'demo'), demo=True)
    return files


def exists(path):
    """Whether a file, or a checkpoint of that name, exists."""
    return os.path.isfile(path) or os.path.isfile(f'{path}.index')


def require(*paths):
    """Raise UserError that lists what is missing of `paths`."""
    missing = [path for path in paths if path and not exists(path)]
    if missing:
        raise UserError(f'missing: {", ".join(missing)}; data/README.md says where to download it')


# ----------------------------------------------------------------------------------------------------- data


def split(webqa, sogouqa):
    """Split SogouQA by the random order saved in `output_dir`: every third position is for validation.

    Returns (training records: the complete ones of the rest of SogouQA twice + WebQA, validation records).
    Raises UserError where the saved order is of other data.
    """
    path = os.path.join(output_dir, 'random_order.json')
    if os.path.exists(path):
        try:
            random_order = json.loads(read_text(path))
            if sorted(random_order) != list(range(len(sogouqa))) or not all(type(i) is int for i in random_order):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise UserError(f'{path}: no order of {len(sogouqa)} records; delete it or change output_dir') from None
    else:
        random_order = np.random.default_rng(seed).permutation(len(sogouqa)).tolist()
        write_text(path, json.dumps(random_order) + '\n')
    valid_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 == 0]
    rest = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 != 0]
    return [record for record in rest + rest + webqa if not defects(record)], valid_data


def load_tokenizer(path):
    """Read a BERT vocabulary and simplify it: no ##-pieces of Chinese, no tokens that never occur.

    Returns (tokenizer, keep_tokens, size): a lower-casing bert4keras Tokenizer of the simplified vocabulary, the
    list of its ids in the full one, and the size of the full one. Raises UserError where it is no vocabulary.
    """
    startswith = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
    missing = [token for token in startswith if token not in read_text(path).splitlines()]
    if missing:
        raise UserError(f'{path}: lacks {", ".join(missing)}; expected the vocab.txt of a BERT, one token a line')
    token_dict, keep_tokens = load_vocab(path, simplified=True, startswith=startswith)
    return Tokenizer(token_dict, do_lower_case=True), keep_tokens, len(load_vocab(path))


def unify_separators(passage):
    """Replace each space, 、, ； and ， by a comma: one character for one, so offsets survive."""
    return re.sub(' |、|；|，', ',', passage)


def training_pair(record, rng):
    """Draw a passage of a record and decide what the answer should be (kexue.fm/archives/7115, the script).

    Not the passage's own label decides, but the first of all the question's answers whose parts it holds.

    record: a complete record; rng: numpy Generator. Returns (passage, question, final_answer), str.
    """
    passages = record['passages']
    passage = unify_separators(passages[rng.integers(len(passages))]['passage'])
    readable = passage[: max_p_len - 2]
    for answer in (p['answer'] for p in passages if p['answer']):
        if all(part in readable for part in answer.split(' ')):
            return passage, record['question'], answer.replace(' ', ',')
    return passage, record['question'], ''


def encode_pair(tokenizer, passage, question, answer):
    """Return (token_ids, segment_ids), lists of int: `[CLS] passage [SEP] question [SEP] answer [SEP]`."""
    p_token_ids, p_segment_ids = tokenizer.encode(passage, maxlen=max_p_len)
    qa_token_ids, qa_segment_ids = tokenizer.encode(question, answer, maxlen=max_q_len + max_a_len + 1)
    return p_token_ids + qa_token_ids[1:], p_segment_ids + qa_segment_ids[1:]


def training_dataset(train_data, tokenizer):
    """Return a tf.data.Dataset of `epochs` passes over the questions, each in a random order of its own.

    Elements: {'Input-Token', 'Input-Segment'}, int32 [batch_size, longest], padded with 0. What an epoch holds
    depends on `seed` and its number alone.
    """
    signature = {name: tf.TensorSpec([None], tf.int32) for name in ('Input-Token', 'Input-Segment')}

    def pairs(epoch):
        rng = np.random.default_rng([seed, epoch])
        for i in rng.permutation(len(train_data)):
            token_ids, segment_ids = encode_pair(tokenizer, *training_pair(train_data[i], rng))
            yield {'Input-Token': token_ids, 'Input-Segment': segment_ids}

    def batches(epoch):
        dataset = tf.data.Dataset.from_generator(pairs, args=[epoch], output_signature=signature)
        return dataset.padded_batch(batch_size)

    return tf.data.Dataset.range(epochs).flat_map(batches).prefetch(tf.data.AUTOTUNE)


# ---------------------------------------------------------------------------------------------------- model


def build_model(config, checkpoint, keep_tokens, vocabulary_size):
    """Build bert4keras's BERT under a UniLM mask (https://arxiv.org/abs/1905.03197).

    config, checkpoint: paths, checkpoint '' for random weights; keep_tokens: the rows of the vocabulary to keep;
    vocabulary_size: rows it has. Returns a Keras model, [token_ids, segment_ids] [batch, length] to
    probabilities of the next token, float32 [batch, length, len(keep_tokens)]. Raises UserError on a misfit.
    """
    try:
        sizes = json.loads(read_text(config))
        if sizes['vocab_size'] != vocabulary_size:
            raise UserError(
                f'{config}: made for {sizes["vocab_size"]} tokens, but the vocabulary has {vocabulary_size}'
            )
        if sizes['max_position_embeddings'] < max_p_len + max_q_len + max_a_len:
            raise UserError(f'{config}: too few max_position_embeddings; lower max_p_len, max_q_len or max_a_len')
        stddev = float(sizes.get('initializer_range', 0.02))
        with warnings.catch_warnings():  # of initial weights that come out alike; they are drawn anew below
            warnings.simplefilter('ignore')
            options = {'application': 'unilm', 'keep_tokens': keep_tokens, 'return_keras_model': False}
            transformer = build_transformer_model(config, model='bert', **options)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise UserError(f'{config}: not a BERT configuration ({type(error).__name__}: {first_line(error)})') from None
    if checkpoint:
        load_checkpoint(transformer, checkpoint, vocabulary_size)
    else:
        for weight in transformer.model.weights:
            if weight.shape.rank == 2:
                weight.assign(tf.random.truncated_normal(weight.shape, stddev=stddev))
    return transformer.model


def load_checkpoint(transformer, checkpoint, vocabulary_size):
    """Load a TensorFlow BERT checkpoint and check that every weight arrived.

    Raises UserError that names the variable that is missing or does not fit, or the two vocabulary sizes.
    """
    try:
        for name in 'bert/embeddings/word_embeddings', 'cls/predictions/output_bias':
            size = tf.train.load_variable(checkpoint, name).shape[0]
            if size != vocabulary_size:
                raise UserError(f'{checkpoint}: made for {size} tokens, but the vocabulary has {vocabulary_size}')
        for layer, names in transformer.variable_mapping().items():
            if layer in transformer.layers:
                for weight, name in zip(transformer.layers[layer].trainable_weights, names, strict=True):
                    value = transformer.load_variable(checkpoint, name)
                    if value.shape != weight.shape:
                        raise UserError(
                            f'{checkpoint}: {name} is {value.shape}, but bert_config.json means {weight.shape}'
                        )
                    weight.assign(value)
    except (tf.errors.OpError, ValueError, IndexError) as error:  # names the variable if one is missing
        raise UserError(f'{checkpoint}: no BERT with its masked language model ({first_line(error)})') from None


def first_line(error):
    """Return the first line of an exception's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class CrossEntropy(Loss):
    """Cross-entropy of the answer and its [SEP], averaged over all these tokens of the batch."""

    def compute_loss(self, inputs, mask=None):
        """Return a scalar from [token_ids, segment_ids, logits]; segment 1 marks what to predict."""
        y_true, y_mask, y_pred = inputs
        y_true, y_mask = y_true[:, 1:], y_mask[:, 1:]  # [batch, length - 1]
        y_pred = y_pred[:, :-1]  # [batch, length - 1, vocab], one position behind what it predicts
        # from logits, as probabilities would be cut off at 1e-7
        loss = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)  # [batch, length - 1]
        return tf.reduce_sum(loss * y_mask) / tf.reduce_sum(y_mask)


def build_train_model(model):
    """Return the model to `fit`: the same layers with the loss on top, compiled with Adam."""
    output = CrossEntropy(2)([*model.inputs, model.get_layer('MLM-Bias').output])
    train_model = keras.models.Model(model.inputs, output)
    train_model.compile(optimizer=keras.optimizers.Adam(learning_rate, epsilon=1e-6))
    return train_model


def save_best_weights(model):
    """Write the weights into `output_dir`, all or nothing."""
    path, temporary = (
        os.path.join(output_dir, 'best_model.weights.h5'),
        os.path.join(output_dir, '.unfinished.weights.h5'),
    )
    try:
        model.save_weights(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({first_line(error)}); make room and run again') from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def load_best_weights(model):
    """Load the best weights. Raises UserError where there are none or they are another model's."""
    path = os.path.join(output_dir, 'best_model.weights.h5')
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file; run train first, or give its output_dir')
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'{path}: does not fit this model ({first_line(error)}); use its constants') from None


# --------------------------------------------------------------------------------------------------- reader


class Answer(typing.NamedTuple):
    """An answer and where it stands, None if nowhere: text == passages[passage][start:end]."""

    text: str
    passage: int | None
    start: int | None
    end: int | None
    token_ids: list
    score: float


class Memory(typing.NamedTuple):
    """What UniLM remembers: for each layer keys and values of the sources and of the beams."""

    lengths: np.ndarray  # int32 [rows], tokens of each source
    rows: np.ndarray  # int32 [blocks], whose block of tokens it is
    filled: np.ndarray  # int32 [blocks], how many of its tokens count
    sources: list  # float32 [blocks, heads, block, size]
    beams: list  # float32 [rows, heads, beams, written, size]


class UniLM:
    """bert4keras's model, computed without padding and without reading anything twice.

    Under the UniLM mask no source token sees the answer. So keys and values of a source are computed once, `read`, and
    those of each new token of the answer are added, `write`. Linear layers work on packed tokens, [tokens, width];
    only attention pads. The variables are those of `model`: training it trains this.
    """

    block = 32  # tokens
    tokens_at_once = 2048  # more would leave the processor's cache

    def __init__(self, model, end_id):
        self.layer, self.end_id = model.get_layer, end_id
        self.attentions = [layer.name for layer in model.layers if layer.name.endswith('MultiHeadSelfAttention')]
        attention = self.layer(self.attentions[0])
        self.heads, self.size = attention.heads, attention.key_size
        self.masks_queries = not hasattr(attention, 'normalization')  # as bert4keras did before 0.10
        self.mapping = [layer.weights for layer in model.layers if layer.name == 'Embedding-Mapping']
        self.activation = self.layer('MLM-Dense').activation
        # dimensions that vary are open, so that nothing is traced twice
        ids = [tf.TensorSpec([None] * rank, tf.int32) for rank in range(4)]
        sources, beams = [None, self.heads, self.block, self.size], [None, self.heads, None, None, self.size]
        pairs = [[(tf.TensorSpec(shape),) * 2] * len(self.attentions) for shape in (sources, beams)]
        self._encode = tf.function(self._encode, input_signature=[ids[1], ids[1]])
        self.write = tf.function(self.write, input_signature=[Memory(ids[1], ids[1], ids[1], *pairs), ids[3], ids[2]])

    def read(self, sources):
        """Read sources, lists of token ids sorted by length.

        Returns which have an answer, bool [sources]: their most probable first token is not [SEP]; the probabilities
        of that token, float32 [rows, 1, vocab], and a Memory, both of these sources only.
        """
        lengths, parts, start = np.array([len(source) for source in sources], np.int32), [], 0
        while start < len(sources):
            padded = lengths[start:] * np.arange(1, len(sources) - start + 1)
            stop = start + max(1, np.count_nonzero(padded <= self.tokens_at_once))
            token_ids = np.concatenate(sources[start:stop]).astype(np.int32)
            parts.append(self._encode(token_ids, lengths[start:stop]))
            start = stop
        answerable, probas, kept = tf.nest.map_structure(lambda *tensors: tf.concat(tensors, 0), *parts)
        lengths = lengths[answerable]
        blocks = -(-lengths // self.block)  # [rows]
        rows = np.repeat(np.arange(len(blocks), dtype=np.int32), blocks)  # [blocks]
        before = np.arange(len(rows)) - np.repeat(np.cumsum(blocks) - blocks, blocks)  # [blocks], of the same row
        filled = np.minimum(lengths[rows] - self.block * before, self.block).astype(np.int32)
        nothing = tf.zeros([len(blocks), self.heads, 1, 0, self.size])
        return answerable.numpy(), probas, Memory(lengths, rows, filled, kept, [(nothing, nothing)] * len(kept))

    def _encode(self, token_ids, lengths):
        # token_ids [tokens]: the sources one after another; lengths [rows]
        rows, longest = tf.size(lengths), -(-tf.reduce_max(lengths) // self.block) * self.block
        ends = tf.cumsum(lengths)  # [rows]
        numbers = tf.range(tf.size(token_ids))
        positions = numbers - tf.repeat(ends - lengths, lengths)  # [tokens]
        places = tf.repeat(tf.range(rows) * longest, lengths) + positions  # [tokens], where each is when padded
        slots = tf.scatter_nd(places[:, None], numbers, [rows * longest])
        padding = tf.where(tf.sequence_mask(lengths, longest), 0.0, -1e12)[:, None, None]  # [rows, 1, 1, longest]

        def pad(x):
            x = tf.reshape(tf.gather(x, slots), [rows, longest, self.heads, self.size])
            return tf.transpose(x, [0, 2, 1, 3])  # [rows, heads, longest, size]

        x, kept = self.embed(token_ids, 0, positions), []  # [tokens, width]
        for name in self.attentions:
            query, key, value = self.project(x, name)
            key, value = pad(key), pad(value)
            kept.append((key, value))
            if name == self.attentions[-1]:  # of the last layer, only what predicts the first token
                x, places = tf.gather(x, ends - 1), tf.range(rows)
                query = tf.reshape(tf.gather(query, ends - 1), [rows, self.heads, 1, self.size])
            else:
                query = pad(query)
            scores = tf.matmul(query, key, transpose_b=True) + padding  # [rows, heads, queries, longest]
            attended = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])
            attended = tf.gather(tf.reshape(attended, [-1, self.heads * self.size]), places)  # [tokens, width]
            x = self.finish_layer(x, attended, name)
        probas = self.next_probas(x)  # [rows, vocab]
        answerable = tf.argmax(probas, -1, tf.int32) != self.end_id  # [rows]
        lengths *= tf.cast(answerable, tf.int32)
        used = tf.range(0, longest, self.block) < lengths[:, None]  # [rows, blocks of the longest]

        def blocks(x):
            x = tf.reshape(x, [rows, self.heads, -1, self.block, self.size])
            return tf.boolean_mask(tf.transpose(x, [0, 2, 1, 3, 4]), used)  # [blocks, heads, block, size]

        return answerable, tf.boolean_mask(probas, answerable)[:, None], tf.nest.map_structure(blocks, kept)

    def write(self, memory, output_ids, parents):
        """Write the last token of each beam.

        output_ids: int32 [rows, beams, written], the beams so far; parents: int32 [rows, beams], the one that each
        extends. Returns the probabilities of the next token, float32 [rows, beams, vocab], and the longer Memory.
        """
        rows, beams, written = tf.unstack(tf.shape(output_ids))
        is_pad = tf.cast(output_ids == 0, tf.float32)  # bert4keras takes a written [PAD] for padding
        counted = 1 - is_pad[:, :, -1:] if self.masks_queries else tf.ones([rows, beams, 1])
        hidden = -1e12 * is_pad[:, None]  # [rows, 1, beams, written]
        outside = tf.where(tf.sequence_mask(memory.filled, self.block), 0.0, -1e12)[:, None, None]

        def split(x):
            return tf.transpose(tf.reshape(x, [rows, beams, self.heads, self.size]), [0, 2, 1, 3])

        longer, positions = [], tf.repeat(memory.lengths + written - 1, beams)
        x = self.embed(tf.reshape(output_ids[:, :, -1], [-1]), 1, positions)  # [rows * beams, width]
        for name, source, beam in zip(self.attentions, memory.sources, memory.beams, strict=True):
            query, *added = map(split, self.project(x, name))  # [rows, heads, beams, size]
            old = [tf.gather(tensor, parents, axis=2, batch_dims=1) for tensor in beam]
            key, value = (tf.concat([a, b[:, :, :, None]], 3) for a, b in zip(old, added, strict=True))
            longer.append((key, value))  # [rows, heads, beams, written, size]
            # one softmax over the blocks of the source, far, and the tokens of the beam, near
            near = tf.linalg.matvec(key, query) + hidden  # [rows, heads, beams, written]
            far = tf.matmul(tf.gather(query, memory.rows), source[0], transpose_b=True)
            far += outside  # [blocks, heads, beams, block]
            highest = tf.math.unsorted_segment_max(tf.reduce_max(far, -1), memory.rows, rows)
            highest = tf.maximum(highest, tf.reduce_max(near, -1))  # [rows, heads, beams]
            near, far = tf.exp(near - highest[..., None]), tf.exp(far - tf.gather(highest, memory.rows)[..., None])
            total = tf.math.unsorted_segment_sum(tf.reduce_sum(far, -1), memory.rows, rows) + tf.reduce_sum(near, -1)
            attended = tf.math.unsorted_segment_sum(tf.matmul(far, source[1]), memory.rows, rows)
            attended += tf.linalg.matvec(value, near, transpose_a=True)  # [rows, heads, beams, size]
            attended = tf.transpose(attended / total[..., None], [0, 2, 1, 3])
            attended = tf.reshape(attended, [rows * beams, self.heads * self.size])
            x = self.finish_layer(x, attended, name, tf.reshape(counted, [-1, 1]))
        return tf.reshape(self.next_probas(x), [rows, beams, -1]), memory._replace(beams=longer)

    def dense(self, x, kernel, bias):
        """Return [tokens, units] of x, [tokens, width]."""
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)

    def embed(self, token_ids, segment_id, positions):
        """Return [tokens, width] of token_ids and positions, both [tokens]."""
        x = tf.gather(self.layer('Embedding-Token').embeddings, token_ids)
        x += self.layer('Embedding-Segment').embeddings[segment_id]
        x = self.layer('Embedding-Norm')(x + tf.gather(self.layer('Embedding-Position').embeddings, positions))
        return self.dense(x, *self.mapping[0]) if self.mapping else x

    def project(self, x, name):
        """Return queries, scaled, keys and values, each [tokens, width]."""
        weights = self.layer(name).weights
        query, key, value = (self.dense(x, *weights[i : i + 2]) for i in (0, 2, 4))
        return query * self.size**-0.5, key, value

    def finish_layer(self, x, attended, name, counted=1.0):
        """Return the output of a layer, [tokens, width], from its input and what attention gathered."""
        x = self.layer(f'{name}-Norm')(x + counted * self.dense(attended, *self.layer(name).weights[6:]))
        name = name.replace('MultiHeadSelfAttention', 'FeedForward')
        weights = self.layer(name).weights
        return self.layer(f'{name}-Norm')(x + self.dense(self.activation(self.dense(x, *weights[:2])), *weights[2:]))

    def next_probas(self, x):
        """Return the probabilities of the next token, [tokens, vocab], from the last layer's output."""
        x = self.layer('MLM-Norm')(self.activation(self.dense(x, *self.layer('MLM-Dense').weights)))
        logits = tf.matmul(x, self.layer('Embedding-Token').embeddings, transpose_b=True)
        return tf.nn.softmax(tf.nn.bias_add(logits, self.layer('MLM-Bias').weights[0]))


class ReadingComprehension:
    """Answers questions from several passages each; their votes decide every token (kexue.fm/archives/7115).

    model: as `build_model` returns it; tokenizer: as `load_tokenizer` does; mode: 'extractive' or 'generative'.
    """

    tokens_together = 12288  # questions are read together until they have so many

    def __init__(self, model, tokenizer, mode='extractive'):
        self.model, self.tokenizer, self.mode = model, tokenizer, mode
        self.end_id = tokenizer._token_end_id
        self.unilm = UniLM(model, self.end_id)

    def answer(self, question, passages, topk=1):
        """Read the passages and answer the question.

        question: str; passages: list of str; topk: beam width. Returns an Answer.
        """
        return next(self.answers([(question, passages)], topk))

    def answers(self, questions, topk=1):
        """Yield an Answer for each (question, passages); several questions are read together."""
        group, tokens = [], 0
        for number, (question, passages) in enumerate(questions, 1):
            unified = [unify_separators(passage) for passage in passages]
            p_token_ids = [self.tokenizer.encode(passage, maxlen=max_p_len)[0] for passage in unified]
            q_token_ids = self.tokenizer.encode(question, maxlen=max_q_len + 1)[0][1:]
            group.append((passages, p_token_ids, q_token_ids))
            tokens += sum(len(token_ids) + len(q_token_ids) for token_ids in p_token_ids)
            if tokens >= self.tokens_together or number == len(questions):
                searches = self.beam_search([task[1:] for task in group], topk)
                yield from (self._locate(*task[:2], search) for task, search in zip(group, searches, strict=True))
                group, tokens = [], 0

    def beam_search(self, questions, topk):
        """Write the answers of several questions token by token, keeping the best `topk` beams of each.

        questions: list of (p_token_ids, q_token_ids): token ids of each passage, with [CLS] and [SEP], and of the
        question, with [SEP]. Returns a finished Search for each.
        """
        searches = [Search(topk, self.end_id) for _ in questions]
        places = collections.defaultdict(list)  # a passage given several times is read once and votes as often
        for i, (p_token_ids, q_token_ids) in enumerate(questions):
            for j, token_ids in enumerate(p_token_ids):
                places[i, (*token_ids, *q_token_ids)].append(j)
        if not places:
            return searches
        rows = sorted(places, key=lambda row: len(row[1]))
        # 1. what each passage predicts
        answerable, probas, memory = self.unilm.read([source for _, source in rows])  # [passages, beams, vocab]
        # 2. a passage whose first token would be [SEP] has no answer and leaves for good
        rows = [row for row, stays in zip(rows, answerable, strict=True) if stays]
        for i, source in rows:
            searches[i].begin(places[i, source], questions[i][0])
        owners, counts = [i for i, _ in rows], np.array([len(places[row]) for row in rows], np.float32)
        while not all(search.finished for search in searches):
            if searches[0].output_ids[0]:
                # 1. again, after what each beam has written
                output_ids = np.array([searches[i].output_ids for i in owners], np.int32)
                parents = np.array([searches[i].parents for i in owners], np.int32)
                probas, memory = self.unilm.write(memory, output_ids, parents)
            # 4. the passages vote
            votes = vote(probas, counts, owners, len(searches))  # [questions, beams, vocab]
            # 3. in extractive mode what stands in no passage becomes 0, which is the same before the vote and after
            if self.mode == 'extractive':
                votes *= allowed_tokens(searches, votes.shape)
            # 5. the best beams go on
            best = extend_beams(searches, votes, topk)
            # 6. the best beam ends the search; another finished one is dropped
            for search, *values in zip(searches, *best, strict=True):
                search.extend(*values)
        return searches

    def _locate(self, passages, p_token_ids, search):
        length = len(search.answer)
        for i in search.remaining:
            fragment = p_token_ids[i][1:-1]
            for start in range(len(fragment) - length + 1):
                if search.answer and fragment[start : start + length] == search.answer:
                    span = self._offsets(unify_separators(passages[i]), start, start + length)
                    if span:
                        return Answer(passages[i][slice(*span)], i, *span, search.answer, search.score)
        return Answer(self.tokenizer.decode(search.answer), None, None, None, search.answer, search.score)

    def _offsets(self, passage, start, end):
        tokens = self.tokenizer.tokenize(passage)[1 : end + 1]
        try:
            # İ is the one character whose lower case is two characters
            characters = self.tokenizer.rematch(passage.replace('İ', 'i'), tokens)
        except ValueError:  # marks in an order that Unicode normalization changes
            return None
        first, last = characters[start][0], characters[end - 1][-1] + 1
        while last < len(passage) and unicodedata.category(passage[last]) == 'Mn':
            last += 1  # an accent written as a character of its own
        return first, last


class Search:
    """The beams of one question: where they stand in its passages, which go on, and when one is the answer."""

    def __init__(self, topk, end_id):
        self.topk, self.end_id = topk, end_id
        self.output_ids, self.scores, self.parents = [[]], [0.0], [0]
        self.remaining = []  # indices of the passages that have an answer
        self.text = np.empty(0, int)  # their token ids
        self.places = [self.text]  # for each beam, where in the text its next token may stand
        self.finished, self.answer, self.score = True, [], 0.0  # until a passage has an answer

    def begin(self, passages, p_token_ids):
        """Let some passages take part, indices of the same text; p_token_ids: of all, with [CLS] and [SEP]."""
        self.remaining = sorted(self.remaining + passages)
        self.text = np.concatenate([self.text, p_token_ids[passages[0]][1:]])
        self.places = [np.arange(len(self.text))]
        self.finished = False

    def extend(self, scores, parents, tokens):
        """Go on with the best new beams, best first: their scores, the beams they extend, and by which tokens."""
        best = scores[: self.topk].argmax()
        if not self.finished:
            self.answer, self.score = [*self.output_ids[parents[best]], int(tokens[best])], scores[best].item()
            self.finished = tokens[best] == self.end_id or len(self.answer) == max_a_len
            if tokens[best] == self.end_id:
                self.answer.pop()
        kept = [i for i, token in enumerate(tokens[: self.topk]) if token != self.end_id] or [0]
        self.topk = len(kept)
        kept += kept[:1] * (len(tokens) - self.topk)  # in place of a beam that was dropped, a copy that cannot win
        self.scores = [*scores[kept[: self.topk]], *[-np.inf] * (len(tokens) - self.topk)]
        self.parents, tokens = parents[kept], tokens[kept].tolist()
        self.output_ids = [[*self.output_ids[p], token] for p, token in zip(self.parents, tokens, strict=True)]
        before = [self.places[p][: 0 if self.finished else None] for p in self.parents]
        self.places = [places[self.text[places] == token] + 1 for places, token in zip(before, tokens, strict=True)]


def vote(probas, counts, owners, questions):
    """Make one score per token out of several passages' probabilities (kexue.fm/archives/7115).

    s(w) = sum_i p_i(w)^2 / (1 + sum_i p_i(w)): a passage that is sure counts more than one that is not.

    probas: float32 [passages, beams, vocab]; counts: float32 [passages], how often each was given; owners: int
    [passages], which question's it is; questions: their number. Returns float32 [questions, beams, vocab].
    """
    weighted = counts[:, None, None] * probas  # [passages, beams, vocab]
    squares = tf.math.unsorted_segment_sum(weighted * probas, owners, questions)  # [questions, beams, vocab]
    return squares / (1 + tf.math.unsorted_segment_sum(weighted, owners, questions))


def allowed_tokens(searches, shape):
    """Return float32 of this shape, [questions, beams, vocab]: 1 for [SEP] and what goes on in a passage, else 0."""
    allowed = [
        (i, beam, token)
        for i, search in enumerate(searches)
        for beam, places in enumerate(search.places)
        for token in {search.end_id, *search.text[places].tolist()}
    ]
    return tf.scatter_nd(allowed, tf.ones(len(allowed)), shape)


def extend_beams(searches, votes, topk):
    """Find the best `topk` of beams x vocabulary for each question, best first.

    A token whose vote is 0 is never taken while another is left; ties go to the earlier beam, then the lower id.

    votes: float32 [questions, beams, vocab]. Returns scores, float64, the beams they extend and tokens, int32, NumPy
    arrays [questions, topk]: all that leaves the device.
    """
    _, beams, vocab = votes.shape
    scores = tf.cast(tf.math.log(votes + 1e-12), tf.float64)  # [questions, beams, vocab]
    scores += tf.constant([search.scores for search in searches], tf.float64)[:, :, None]
    scores = tf.reshape(scores, [-1, beams * vocab])
    order = tf.where(tf.reshape(votes, scores.shape) > 0, scores, scores - 1e9)
    best = tf.math.top_k(order, min(topk, beams * vocab)).indices  # [questions, topk]
    return tf.gather(scores, best, batch_dims=1).numpy(), (best // vocab).numpy(), (best % vocab).numpy()


# ------------------------------------------------------------------------------------------------- commands


def answer_records(reader, data, topk):
    """Yield (id, answer) for each record, the answer in a form that fits a tab-separated line.

    What cannot be answered is reported: without question or passages the answer is '', without id there is none.
    """
    complete = [record for record in data if not defects(record)]
    answers = reader.answers([(r['question'], [p['passage'] for p in r['passages']]) for r in complete], topk)
    for record in data:
        missing = defects(record)
        if 'id' in missing:
            log(f'a record without id cannot be answered, its question is {record.get("question")!r}')
        elif missing:
            log(f'record {record["id"]!r} has no {" and no ".join(missing)}; it gets the empty answer')
            yield record['id'], ''
        else:
            yield record['id'], re.sub('[\t\n\r]', ' ', next(answers).text)


def predict_to_file(reader, data, filename, references):
    """Write `id<TAB>answer` for every record of `data`, all or nothing; a bar shows the score so far."""
    lines, tally = [], Tally()
    with tqdm(total=len(data), desc='reading', unit='question', file=sys.stderr) as progress:
        for question_id, text in answer_records(reader, data, topk):
            lines.append(f'{question_id}\t{text}\n')
            progress.update()
            tally.add(text, references[question_id])
            progress.set_postfix(tally.result(), refresh=False)
    write_text(filename, ''.join(lines))


class Evaluate(keras.callbacks.Callback):
    """After every epoch: scores a sample of validation, shows five answers, keeps the best weights."""

    def __init__(self, reader, valid_data, references):
        super().__init__()
        self.reader, self.references, self.best = reader, references, -math.inf
        self.sample = [record for record in valid_data if not defects(record)][:valid_sample]

    def on_epoch_end(self, epoch, logs=None):
        """Score, show, save; add val_Accuracy, val_F1 and val_Final to the epoch's logs."""
        tally, answers = Tally(), []
        texts = answer_records(self.reader, self.sample, topk)
        for record, (question_id, text) in zip(self.sample, texts, strict=True):
            reference = self.references[question_id]
            score = tally.add(text, reference)
            answers.append((score.correct, record['question'], text, reference.answer))
        logs.update({f'val_{name}': value for name, value in tally.result().items() if name != 'total'})
        for correct, question, text, gold in sorted(answers)[:3] + sorted(answers)[3:][-2:]:  # wrong ones first
            log(f'  {"right" if correct else "WRONG"}  {question}  answer: {text or "(none)"}  gold: {gold}')
        quality = logs['val_Final'] if best_by == 'final' else -logs['loss']
        if quality >= self.best:
            self.best = quality
            save_best_weights(self.reader.model)


def score_validation(reader, valid_data, references):
    """Answer the validation questions into predictions.tsv and print the official score as one JSON line."""
    predict_to_file(reader, valid_data, os.path.join(output_dir, 'predictions.tsv'), references)
    print(json.dumps(evaluate(os.path.join(output_dir, 'predictions.tsv'), references)))


def load_reader():
    """Return the reader that the constants mean, with the best weights of `train`."""
    files = locate_files()
    require(files['config'], files['vocabulary'])
    tokenizer, keep_tokens, vocabulary_size = load_tokenizer(files['vocabulary'])
    model = build_model(files['config'], '', keep_tokens, vocabulary_size)
    load_best_weights(model)
    return ReadingComprehension(model, tokenizer, mode)


def train_command(files):
    """Train, keep the best weights and score them."""
    require(*list(files.values())[:5])
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f'{output_dir}: cannot be used as output_dir ({error.strerror}); choose another') from None
    keras.utils.set_random_seed(seed)
    webqa, sogouqa = load_questions(files['webqa']), load_questions(files['sogouqa'])
    references = load_references(files['official_answers'], files['sogouqa'], sogouqa)
    train_data, valid_data = split(webqa, sogouqa)
    tokenizer, keep_tokens, vocabulary_size = load_tokenizer(files['vocabulary'])
    model = build_model(files['config'], files['checkpoint'], keep_tokens, vocabulary_size)
    if not files['checkpoint']:
        log('no checkpoint: BERT starts from random weights')
    reader = ReadingComprehension(model, tokenizer, mode)
    versions = {package.__name__: package.__version__ for package in (tf, keras, bert4keras, np)}
    versions['python'] = platform.python_version()
    config = {'constants': {name: globals()[name] for name in constants}, 'files': files, 'versions': versions}
    write_text(os.path.join(output_dir, 'config.json'), json.dumps(config, ensure_ascii=False, indent=4) + '\n')
    if not train_data:
        raise UserError(f'{files["webqa"]}: no complete record to train on, nor in {files["sogouqa"]}')
    log(f'{len(train_data)} questions to train on, {len(valid_data)} to validate')
    with contextlib.redirect_stdout(sys.stderr):  # Keras's progress is no result
        build_train_model(model).fit(
            training_dataset(train_data, tokenizer),
            steps_per_epoch=math.ceil(len(train_data) / batch_size),
            epochs=epochs,
            verbose=1 if sys.stderr.isatty() else 2,
            callbacks=[
                Evaluate(reader, valid_data, references),
                keras.callbacks.CSVLogger(os.path.join(output_dir, 'log.csv')),
                keras.callbacks.TensorBoard(os.path.join(output_dir, 'tensorboard'), write_graph=False),
            ],
        )
    load_best_weights(model)
    score_validation(reader, valid_data, references)


def eval_command(files):
    """Score validation with the best weights."""
    require(files['sogouqa'])
    reader = load_reader()
    sogouqa = load_questions(files['sogouqa'])
    references = load_references(files['official_answers'], files['sogouqa'], sogouqa)
    _, valid_data = split([], sogouqa)
    score_validation(reader, valid_data, references)


def predict_command(path):
    """Print `id<TAB>answer` for every record of a file of questions."""
    data = load_questions(path, labelled=False)
    answers = answer_records(load_reader(), data, topk)
    for question_id, text in tqdm(answers, total=len(data), desc='reading', unit='question', file=sys.stderr):
        print(f'{question_id}\t{text}', flush=True)


def parse_command_line(arguments):
    """Return (command, questions file or None, {constant: value given}). Raises UserError for what it cannot read."""
    with open(__file__, encoding='utf-8') as file:
        block = re.search('# -+ constants\n# fmt: off\n(.*)# fmt: on\n# -+ the end', file.read(), re.DOTALL)[1]
    parser = Parser(
        usage='%(prog)s {train,eval,predict FILE} [--constant=value ...]',
        description=__doc__,
        epilog=f'constants:\n\n{block}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('command', choices=['train', 'eval', 'predict'], help=argparse.SUPPRESS)
    parser.add_argument('questions', nargs='?', help=argparse.SUPPRESS)
    for name in constants:
        parser.add_argument(f'--{name}', type=type(globals()[name]), default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        name = unknown[0].removeprefix('--').partition('=')[0]
        nearest = difflib.get_close_matches(name, constants, 1, 0)[0]
        raise UserError(f'{unknown[0]}: unknown; the nearest constant is --{nearest}=, see --help')
    given = vars(options)
    command, questions = given.pop('command'), given.pop('questions')
    if (command == 'predict') == (questions is None):
        raise UserError('predict takes one file of questions, train and eval take none; see --help')
    return command, questions, given


def check_constants():
    """Raise UserError for a constant of the wrong type or range."""
    least = {'max_p_len': 3, 'max_q_len': 2, 'seed': 0}
    for name in 'max_p_len', 'max_q_len', 'max_a_len', 'batch_size', 'epochs', 'valid_sample', 'topk', 'seed':
        value, minimum = globals()[name], least.get(name, 1)
        if type(value) is not int or not minimum <= value < 2**32:
            raise UserError(f'{name} = {value!r}: expected a whole number of at least {minimum}')
    if type(learning_rate) not in (int, float) or not 0 < learning_rate < math.inf:
        raise UserError(f'learning_rate = {learning_rate!r}: expected a number above 0')
    for name, choices in {'best_by': ('final', 'loss'), 'mode': ('extractive', 'generative')}.items():
        if globals()[name] not in choices:
            raise UserError(f'{name} = {globals()[name]!r}: expected {" or ".join(map(repr, choices))}')
    for name in 'data_dir', 'config_path', 'checkpoint_path', 'dict_path', 'output_dir':
        if not isinstance(globals()[name], str):
            raise UserError(f'{name} = {globals()[name]!r}: expected a path in quotes')


def configure(given):
    """Set the constants given on the command line, then the demo's own if it is used; print every change."""
    changes = [f'{name} = {value!r} instead of {globals()[name]!r}' for name, value in given.items()]
    globals().update(given)
    check_constants()
    files = locate_files()
    if files['demo']:
        log(
            'data/ holds none of the real files, so this is the demo, a small invented corpus in data/demo/. '
            'For the real thing put WebQA.json, SogouQA.json and a Chinese BERT there, see data/README.md.'
        )
        for name, (value, own) in demo_constants.items():
            if name not in given and globals()[name] == value:
                changes.append(f'{name} = {own!r} instead of {value!r}, for the demo')
                globals()[name] = own
    for change in changes:
        log(change)
    return files


def main(arguments=None):
    """Run the command line; returns the exit status."""
    sys.stdout.reconfigure(encoding='utf-8')
    sys.stderr.reconfigure(encoding='utf-8')
    try:
        command, questions, given = parse_command_line(arguments)
        files = configure(given)
        if command == 'train':
            train_command(files)
        elif command == 'eval':
            eval_command(files)
        else:
            predict_command(questions)
        return 0
    except UserError as error:
        log(error)
        return 2
    except BrokenPipeError:  # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        log('interrupted')
        return 130


if __name__ == '__main__':
    sys.exit(main())
