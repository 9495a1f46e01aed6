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
import functools
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
import typing
import unicodedata
import warnings

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main`, Ctrl-C ends it without a word

# bert4keras needs Keras 2, today's tf-keras, under the name `keras` and with a version that ends in `tf`.
os.environ['TF_USE_LEGACY_KERAS'] = '1'
if importlib.metadata.version('bert4keras') != '0.8.1':
    os.environ['TF_KERAS'] = '1'  # for 0.11.5
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
import h5py
import numpy as np
from bert4keras.backend import piecewise_linear
from bert4keras.models import build_transformer_model
from bert4keras.tokenizers import Tokenizer, load_vocab
from tqdm import tqdm

from evaluate_sogou import Parser, Part, Tally, UserError, alone, defects, evaluate, fingerprint  # isort: skip
from evaluate_sogou import load_questions, load_references, log, read_text, report, whole, worker_position, write_text  # isort: skip

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
max_q_len = 64              # question, its [SEP] included; in training, question and answer have both lengths together
max_a_len = 32              # answer, its [SEP] included
# training
batch_size = 32             # pairs per update; lower it when memory runs out
epochs = 8                  # times that every question is drawn from
learning_rate = 1e-5        # of Adam
best_by = 'final'           # weights kept: 'final', best Final of an epoch; 'loss', lowest loss, as the original
valid_sample = 100          # validation questions scored after every epoch
warmup_steps = 0            # updates over which the learning rate rises; 0: none
decay_steps = 0             # updates over which it then falls to 0; 0: it stays
accumulate_steps = 1        # parts that a batch is computed in, one after another; more of them need less memory
backup_minutes = 10.0       # at most so much work is done twice after an interruption
seed = 42                   # of the split, the draws, dropout and random weights; any whole number from 0
# reading
mode = 'extractive'         # 'extractive', the answer stands in a passage; 'generative', any text
topk = 1                    # beam width
precision = 'float32'       # of products, 'float32', exact; 'bfloat16', faster where the hardware has it
# fmt: on
# ------------------------------------------------------------------------------------------------- the end
constants = [
    name for name, value in globals().items() if not (name[0] == '_' or callable(value) or type(value) is type(os))
]
# {constant: (its value above, the one for the demo's tiny model as long as it has that value)}
demo_constants = {'batch_size': (32, 64), 'learning_rate': (1e-5, 3e-4)}
may_differ = {
    'epochs', 'backup_minutes', 'accumulate_steps', 'output_dir', 'data_dir', 'config_path', 'checkpoint_path',
    'dict_path',
}  # fmt: skip
window = 64  # batches that are sorted by length together
file_names = {
    'webqa': 'WebQA.json', 'sogouqa': 'SogouQA.json', 'config': 'bert_config.json', 'checkpoint': 'bert_model.ckpt',
    'vocabulary': 'vocab.txt', 'official_answers': 'qid_answer_expand',
}  # fmt: skip


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


@contextlib.contextmanager
def plainly_named(checkpoint):
    """Yield a path of a checkpoint without brackets and backslashes, which TensorFlow takes for a pattern."""
    if not set(checkpoint) & set('[]\\'):
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, 'link')
        os.symlink(os.path.abspath(os.path.dirname(checkpoint)), link)
        yield os.path.join(link, os.path.basename(checkpoint))


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
        if worker_position()[0] == 0:
            write_text(path, json.dumps(random_order) + '\n')
    valid_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 == 0]
    rest = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 != 0]
    return [record for record in rest + rest + webqa if not defects(record)], valid_data


def load_tokenizer(path):
    """Read a BERT vocabulary and simplify it: no ##-pieces of Chinese, no tokens that never occur.

    Returns (tokenizer, keep_tokens, size): WordPieces of the simplified vocabulary, its ids in the full one, a list,
    and the size of the full one. Raises UserError where it is no vocabulary.
    """
    startswith = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
    missing = [token for token in startswith if token not in read_text(path).splitlines()]
    if missing:
        raise UserError(f'{path}: lacks {", ".join(missing)}; expected the vocab.txt of a BERT, one token a line')
    encoding = 'utf-8-sig'  # as `read_text`
    token_dict, keep_tokens = load_vocab(path, encoding, simplified=True, startswith=startswith)
    return WordPieces(token_dict), keep_tokens, len(load_vocab(path, encoding))


class WordPieces(Tokenizer):
    """bert4keras's lower-casing Tokenizer by the rule of 0.8.1, which itself takes a minute over 10,000 letters."""

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


def draw_window(train_data, tokenizer, epoch, number):
    """Draw a window of an epoch, `window` batches of like length in a random order; see `training_dataset`.

    Returns a list of batches, lists of (index in train_data, token_ids, segment_ids).
    """
    rng = np.random.default_rng([seed, epoch])
    chosen = rng.permutation(len(train_data))[number * window * batch_size :][: window * batch_size]
    rng = np.random.default_rng([seed, epoch, number])
    pairs = [(i, *encode_pair(tokenizer, *training_pair(train_data[i], rng))) for i in chosen]
    pairs.sort(key=lambda pair: len(pair[1]))
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    rng.shuffle(batches)
    return batches


def training_dataset(train_data, tokenizer, step=0, context=None):
    """Return a tf.data.Dataset of `epochs` passes over the questions from update `step` on, each in a new order.

    Batches are of like length: out of a window in random order the shortest come together, and so on. What they hold
    depends on `seed` and their number alone. With a context, a tf.distribute.InputContext, each is dealt out to the
    replicas. Elements: {'Input-Token', 'Input-Segment'}, int32 [rows, longest], padded with 0.
    """
    context = context or tf.distribute.InputContext()
    replicas, here = context.num_replicas_in_sync, context.num_replicas_in_sync // context.num_input_pipelines
    steps = math.ceil(len(train_data) / batch_size)

    def batches():
        position = step
        while position < epochs * steps:
            epoch, start = divmod(position, steps)
            rest = draw_window(train_data, tokenizer, epoch, start // window)[start % window :]
            for batch in rest:
                for replica in range(context.input_pipeline_id * here, (context.input_pipeline_id + 1) * here):
                    yield pad(batch[replica::replicas])
            position += len(rest)

    def pad(pairs):
        padded = np.zeros([2, len(pairs), max([len(pair[1]) for pair in pairs], default=1)], np.int32)
        for row, (_, *columns) in enumerate(pairs):
            for column, ids in enumerate(columns):
                padded[column, row, : len(ids)] = ids
        return dict(zip(names, padded, strict=True))

    names = 'Input-Token', 'Input-Segment'
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in names}
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread may sleep through the end, for up to a minute
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(window).with_options(options)


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
        if sizes['num_hidden_layers'] < 1:
            raise ValueError('num_hidden_layers is below 1')
        stddev = float(sizes.get('initializer_range', 0.02))
        with warnings.catch_warnings():  # of initial weights that come out alike; they are drawn anew below
            warnings.simplefilter('ignore')
            options = {'model': 'bert', 'application': 'unilm', 'keep_tokens': keep_tokens, 'return_keras_model': False}
            transformer = build_transformer_model(**{**sizes, **options})
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
        with plainly_named(checkpoint) as path:
            for name in 'bert/embeddings/word_embeddings', 'cls/predictions/output_bias':
                size = tf.train.load_variable(path, name).shape[0]
                if size != vocabulary_size:
                    raise UserError(f'{checkpoint}: made for {size} tokens, but the vocabulary has {vocabulary_size}')
            layers, mapping = transformer.layers, transformer.variable_mapping()
            pairs = [zip(layers[i].trainable_weights, mapping[i], strict=True) for i in mapping if i in layers]
            for weight, name in itertools.chain(*pairs):
                value = transformer.load_variable(path, name)
                if value.shape != weight.shape:
                    raise UserError(f'{checkpoint}: {name} is {value.shape}, but bert_config.json means {weight.shape}')
                weight.assign(value)
    except (tf.errors.OpError, ValueError, IndexError) as error:  # names the variable if one is missing
        raise UserError(f'{checkpoint}: no BERT with its masked language model ({first_line(error)})') from None


def first_line(error):
    """Return the first line of an exception's message that is not TensorFlow's account of where it was."""
    where = r'^Graph execution error:.*(\n  File [^\n]*|<stack traces unavailable>)\n|\{\{.*?\}\} '
    return (re.sub(where, '', str(error), flags=re.DOTALL).strip().splitlines() or [type(error).__name__])[0]


class Memory(typing.NamedTuple):
    """What UniLM remembers: for each layer keys and values, of the sources in blocks of tokens, and of the beams."""

    lengths: tf.Tensor  # int32 [rows], tokens of each source
    owners: tf.Tensor  # int32 [blocks], the row that each block is of
    filled: tf.Tensor  # int32 [blocks], tokens of each block
    sources: list  # float32 [blocks, heads, block, size]
    beams: list  # float32 [rows, heads, beams, written, size]

    def keep(self, rows):
        """Return a Memory of some rows only, in place of this one; rows: int [rows], ascending."""
        lengths, owners, filled = map(np.asarray, self[:3])
        kept = np.flatnonzero(np.isin(owners, rows))  # [blocks]
        owners = np.searchsorted(rows, owners[kept]).astype(np.int32)
        for i, pair in enumerate(self.sources):  # layer by layer, or both are held at once
            self.sources[i] = tuple(tf.gather(x, kept) for x in pair)
        beams = [tuple(tf.gather(x, rows) for x in pair) for pair in self.beams]
        return Memory(lengths[rows], owners, filled[kept], self.sources, beams)


class UniLM:
    """bert4keras's model, computed without padding and without reading anything twice.

    Under the UniLM mask no source token sees the answer. So keys and values of a source are computed once, `read`, and
    those of each new token of the answer are added, `write`. Linear layers work on packed tokens, [tokens, width];
    only attention pads. The variables are those of `model`: training it trains this.

    precision: of the products of linear layers, 'float32' or 'bfloat16'; all else is float32.
    """

    tokens_at_once = 1536  # more are hardly faster, and take more memory
    block = 32  # tokens of a source that are remembered together; more would be padding, fewer are slow

    def __init__(self, model, end_id, precision='float32'):
        self.layer, self.end_id, self.dtype = model.get_layer, end_id, tf.as_dtype(precision)
        self.attentions = [layer.name for layer in model.layers if layer.name.endswith('MultiHeadSelfAttention')]
        attention = self.layer(self.attentions[0])
        self.heads, self.size = attention.heads, attention.key_size
        self.masks_queries = not hasattr(attention, 'normalization')  # as bert4keras did before 0.10
        self.mapping = [layer.weights for layer in model.layers if layer.name == 'Embedding-Mapping']
        self.activation = self.layer('MLM-Dense').activation
        self.copies = {}  # see `copy_matrices`
        self.recompute = lambda function: function  # in training, to keep less of attention for the gradient
        # dimensions that vary are open, so that nothing is traced twice
        ids = [tf.TensorSpec([None] * rank, tf.int32) for rank in range(4)]
        sources, beams = [None, self.heads, self.block, self.size], [None, self.heads, None, None, self.size]
        pairs = [[(tf.TensorSpec(shape),) * 2] * len(self.attentions) for shape in (sources, beams)]
        self._read = tf.function(self._read, input_signature=[ids[1], ids[1]])
        self.write = tf.function(self.write, input_signature=[Memory(ids[1], ids[1], ids[1], *pairs), ids[3], ids[2]])

    def encode(self, token_ids, lengths, source_lengths, drop=tf.identity):
        """Run all layers; the last one only where a token of the answer is predicted.

        token_ids: int32 [tokens], one sequence after another; lengths, source_lengths: int32 [rows], tokens of each
        and of those passage and question, answer tokens follow; drop: dropout. Returns the last layer's output from
        the end of each source on, [predictions, width], and each layer's keys and values, [tokens, width].
        """
        rows = tf.repeat(tf.range(tf.size(lengths)), lengths)  # [tokens]
        positions = tf.range(tf.size(token_ids)) - tf.gather(tf.cumsum(lengths, exclusive=True), rows)
        after = positions - tf.gather(source_lengths, rows)  # [tokens], -1 at the end of a source
        predicting = tf.where(after >= -1)[:, 0]  # [predictions]
        longest = tf.reduce_max(tf.concat([[1], lengths], 0))  # there may be no rows
        longest += -longest % self.block  # oneDNN keeps 2 MB for each shape that it has seen
        longest_answer = tf.reduce_max(tf.concat([[0], lengths - source_lengths], 0)) + 1
        pad, unpad = packing(rows, positions, [tf.size(lengths), self.heads, longest])
        ends = tf.gather(rows, predicting), tf.gather(after, predicting) + 1
        pad_last, unpad_last = packing(*ends, [tf.size(lengths), self.heads, longest_answer])

        def attention(pad_queries, unpad_queries, places):  # places: [rows, queries], of padded queries in their row
            seen = (tf.range(longest) < source_lengths[:, None, None]) | (tf.range(longest) <= places[:, :, None])
            mask = tf.where(seen, 0.0, -1e12)[:, None]  # [rows, 1, queries, longest]

            def attend(query, key, value):
                scores = tf.matmul(pad_queries(query), pad(key), transpose_b=True)  # [rows, heads, queries, longest]
                scores = scores * self.size**-0.5 + mask  # in this form oneDNN makes one operation of them
                return unpad_queries(tf.matmul(tf.nn.softmax(scores), pad(value)))  # [queries, width]

            return self.recompute(attend)

        attend = attention(pad, unpad, tf.range(longest)[None])
        x, kept = drop(self.embed(token_ids, tf.cast(after >= 0, tf.int32), positions)), []  # [tokens, width]
        for name in self.attentions:
            query, key, value = self.project(x, name)
            kept.append((key, value))
            if name == self.attentions[-1]:
                x, query = tf.gather(x, predicting), tf.gather(query, predicting)
                attend = attention(pad_last, unpad_last, source_lengths[:, None] - 1 + tf.range(longest_answer))
            x = self.finish_layer(x, attend(query, key, value), name, drop=drop)
        return x, kept

    def copy_matrices(self, weights):
        """Read with copies of the matrices in `precision`, or casting them takes as long as writing a token, each time.

        Must not be called under a strategy: of several workers only one reads, and the others take no part in it.
        """
        if self.dtype != tf.float32:
            matrices = [weight for weight in weights if weight.shape.rank == 2]
            self.copies = {matrix.ref(): tf.Variable(tf.cast(matrix, self.dtype)) for matrix in matrices}

    def read(self, sources):
        """Read sources, lists of token ids sorted by length.

        Returns which have an answer, bool [sources]: their most probable first token is not [SEP]; the probabilities
        of that token, float32 [rows, 1, vocab], and a Memory, both of these sources only.
        """
        for matrix, copy in self.copies.items():  # as they are now
            copy.assign(tf.cast(matrix.deref(), self.dtype))
        lengths, parts, start = np.array([len(source) for source in sources], np.int32), [], 0
        while start < len(sources):
            padded = lengths[start:] * np.arange(1, len(sources) - start + 1)
            stop = start + max(1, np.count_nonzero(padded <= self.tokens_at_once))
            token_ids = np.concatenate(sources[start:stop]).astype(np.int32)
            parts.append(self._read(token_ids, lengths[start:stop]))
            start = stop
        answerable, probas, kept = (list(column) for column in zip(*parts, strict=True))
        del parts
        answerable = tf.concat(answerable, 0).numpy()
        lengths = lengths[answerable]
        owners, filled, slots = blocks(lengths, self.block)

        def in_blocks(tensors):
            return self.split(tf.gather(tf.concat(tensors, 0), slots))

        sources = []
        for _ in self.attentions:  # layer by layer, and what was packed is freed
            sources.append(tuple(map(in_blocks, zip(*[part.pop(0) for part in kept], strict=True))))
        nothing = tf.zeros([len(lengths), self.heads, 1, 0, self.size])
        beams = [(nothing, nothing)] * len(sources)
        return answerable, tf.concat(probas, 0), Memory(lengths, owners, filled, sources, beams)

    def _read(self, token_ids, lengths):
        # a source of padding and empty ones make shapes that recur, see `encode`
        rows, padding = tf.size(lengths), -tf.size(token_ids) % self.block
        padded = tf.concat([lengths, [padding], tf.zeros([-(rows + 1) % 4], tf.int32)], 0)
        x, kept = self.encode(tf.pad(token_ids, [[0, padding]]), padded, padded)
        probas = tf.nn.softmax(self.logits(x)[:rows])  # [rows, vocab]
        answerable = tf.argmax(probas, -1, tf.int32) != self.end_id  # [rows]
        tokens = tf.pad(tf.repeat(answerable, lengths), [[0, padding]])  # [tokens], those that are remembered
        kept = tf.nest.map_structure(lambda x: tf.boolean_mask(x, tokens), kept)
        return answerable, tf.boolean_mask(probas, answerable)[:, None], kept

    def write(self, memory, output_ids, parents):
        """Write the last token of each beam.

        output_ids: int32 [rows, beams, written], the beams so far; parents: int32 [rows, beams], the one that each
        extends. Returns the probabilities of the next token, float32 [rows, beams, vocab], and the longer Memory.
        """
        rows, beams, written = tf.unstack(tf.shape(output_ids))
        # bert4keras takes a written [PAD] for padding
        counted = tf.cast(output_ids[:, :, -1:] != 0, tf.float32) if self.masks_queries else tf.ones([rows, beams, 1])
        outside = tf.where(tf.sequence_mask(memory.filled, self.block), 0.0, -1e12)[:, None, None]
        hidden = tf.where(output_ids == 0, -1e12, 0.0)[:, None]  # [rows, 1, beams, written]
        longer, positions = [], tf.repeat(memory.lengths + written - 1, beams)
        x = self.embed(tf.reshape(output_ids[:, :, -1], [-1]), 1, positions)  # [rows * beams, width]
        for name, source, beam in zip(self.attentions, memory.sources, memory.beams, strict=True):
            query, *added = (tf.reshape(y, [rows, beams, -1]) for y in self.project(x, name))
            query, *added = map(self.split, (query * self.size**-0.5, *added))  # [rows, heads, beams, size]
            old = [tf.gather(tensor, parents, axis=2, batch_dims=1) for tensor in beam]
            key, value = (tf.concat([a, b[:, :, :, None]], 3) for a, b in zip(old, added, strict=True))
            longer.append((key, value))  # [rows, heads, beams, written, size]
            # a softmax over the blocks of a source, [blocks, heads, beams, block], and what is written
            far = tf.matmul(tf.gather(query, memory.owners), source[0], transpose_b=True) + outside
            near = tf.reduce_sum(key * query[:, :, :, None], 4) + hidden  # [rows, heads, beams, written]
            highest = tf.math.segment_max(tf.reduce_max(far, 3), memory.owners)
            highest = tf.maximum(highest, tf.reduce_max(near, 3))[..., None]  # [rows, heads, beams, 1]
            far = tf.exp(far - tf.gather(highest, memory.owners))  # [blocks, heads, beams, block]
            near = tf.exp(near - highest)
            total = tf.math.segment_sum(tf.reduce_sum(far, 3), memory.owners) + tf.reduce_sum(near, 3)
            attended = tf.math.segment_sum(tf.matmul(far, source[1]), memory.owners)  # [rows, heads, beams, size]
            attended += tf.reduce_sum(value * near[..., None], 3)
            attended = tf.reshape(self.join(attended / total[..., None]), tf.shape(x))
            x = self.finish_layer(x, attended, name, tf.reshape(counted, [-1, 1]))
        probas = tf.nn.softmax(self.logits(x))
        return tf.reshape(probas, [rows, beams, -1]), memory._replace(beams=longer)

    def split(self, x):
        """Return [rows, heads, columns, size] of x, [rows, columns, width]."""
        return tf.transpose(tf.reshape(x, [*tf.unstack(tf.shape(x)[:2]), self.heads, self.size]), [0, 2, 1, 3])

    def join(self, x):
        """Return [rows, columns, width] of x, [rows, heads, columns, size]."""
        x = tf.transpose(x, [0, 2, 1, 3])
        return tf.reshape(x, [*tf.unstack(tf.shape(x)[:2]), self.heads * self.size])

    def dense(self, x, kernel, bias, activation=tf.identity):
        """Return [tokens, units], in `precision`, of x, [tokens, width]."""
        x, kernel, bias = (tf.cast(y, self.dtype) for y in (x, self.copies.get(kernel.ref(), kernel), bias))
        return activation(tf.nn.bias_add(tf.matmul(x, kernel), bias))

    def norm(self, x, name):
        """Return x normalized by a layer of this name; in fewer operations than the layer itself."""
        layer = self.layer(name)
        beta, gamma = layer.weights
        return standardize(x, layer.epsilon) * gamma + beta

    def embed(self, token_ids, segment_ids, positions):
        """Return [tokens, width] of token_ids, segment_ids and positions, each [tokens]."""
        names = 'Embedding-Token', 'Embedding-Segment', 'Embedding-Position'
        # as tensors: a variable that was gathered from is copied whole whenever TensorFlow reads it
        tables = [tf.convert_to_tensor(self.layer(name).embeddings) for name in names]
        token, segment, position = map(tf.gather, tables, (token_ids, segment_ids, positions))
        x = self.norm(token + segment + position, 'Embedding-Norm')
        return tf.cast(self.dense(x, *self.mapping[0]), tf.float32) if self.mapping else x

    def project(self, x, name):
        """Return queries, keys and values, each [tokens, width]."""
        weights = self.layer(name).weights
        return [tf.cast(self.dense(x, *weights[i : i + 2]), tf.float32) for i in (0, 2, 4)]

    def finish_layer(self, x, attended, name, counted=1.0, drop=tf.identity):
        """Return the output of a layer, [tokens, width], from its input and what attention gathered."""
        attended = tf.cast(self.dense(attended, *self.layer(name).weights[6:]), tf.float32)
        x = self.norm(x + counted * drop(attended), f'{name}-Norm')
        name = name.replace('MultiHeadSelfAttention', 'FeedForward')
        weights = self.layer(name).weights
        inner = self.dense(x, *weights[:2], self.activation)  # [tokens, intermediate size]
        return self.norm(x + drop(tf.cast(self.dense(inner, *weights[2:]), tf.float32)), f'{name}-Norm')

    def logits(self, x):
        """Return the logits of the next token, float32 [tokens, vocab], from the last layer's output."""
        kernel, bias = self.layer('MLM-Dense').weights
        x = self.activation(tf.nn.bias_add(tf.matmul(x, kernel), bias))
        x = tf.matmul(self.norm(x, 'MLM-Norm'), self.layer('Embedding-Token').embeddings, transpose_b=True)
        return tf.nn.bias_add(x, self.layer('MLM-Bias').weights[0])


def standardize(x, epsilon):
    """Return x less its mean, over its standard deviation, of the last axis; its gradient needs no more than that."""

    @tf.custom_gradient
    def function(x):
        x -= tf.reduce_mean(x, -1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + epsilon)  # [..., 1]
        y = x * scale

        def gradient(upstream):
            along = tf.reduce_mean(upstream * y, -1, keepdims=True)  # [..., 1]
            return scale * (upstream - tf.reduce_mean(upstream, -1, keepdims=True) - y * along)

        return y, gradient

    return function(x)


def with_slope(activation):
    """Return the same element-wise function; it computes its slope at once, and keeps only that for the gradient."""

    @tf.custom_gradient
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = activation(x)
        slope = tape.gradient(y, x)
        return y, lambda upstream: upstream * slope

    return function


def packing(rows, columns, shape):
    """Return two functions, between packed [tokens, width] and padded [height, heads, columns, size].

    rows, columns: int32 [tokens], where each token stands when padded; shape: [height, heads, columns]. Padding is
    filled with the first token. Each function is a gather of heads, not of tokens, so nothing is transposed; and so is
    its gradient.
    """
    _, heads, longest = shape
    places = (rows[:, None] * heads + tf.range(heads)) * longest + columns[:, None]  # [tokens, heads]
    slots = tf.scatter_nd(tf.reshape(places, [-1, 1]), tf.range(tf.size(places)), [tf.reduce_prod(shape)])
    filled = tf.scatter_nd(tf.reshape(places, [-1, 1]), tf.ones(tf.size(places)), [tf.reduce_prod(shape)])

    @tf.custom_gradient
    def pad(x):
        size = x.shape[-1] // heads
        return tf.reshape(tf.gather(tf.reshape(x, [-1, size]), slots), [*shape, size]), lambda upstream: unpad(upstream)

    @tf.custom_gradient
    def unpad(x):
        size = x.shape[-1]
        packed = tf.gather(tf.reshape(x, [-1, size]), places)  # [tokens, heads, size]
        return tf.reshape(packed, [-1, heads * size]), lambda upstream: pad(upstream) * tf.reshape(filled, [*shape, 1])

    return pad, unpad


def blocks(lengths, size):
    """Cut packed sequences into blocks of `size` tokens, the last of each sequence filled up.

    lengths: int32 [rows]. Returns the row that each block is of and how many tokens it has, int32 [blocks], and which
    tokens, int32 [blocks, size].
    """
    counts = -(-lengths // size)  # [rows], blocks of each
    owners = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)  # [blocks]
    number = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]  # [blocks], in its row
    filled = np.minimum(lengths[owners] - size * number, size).astype(np.int32)
    slots = np.zeros([len(owners), size], np.int32)
    slots[np.arange(size) < filled[:, None]] = np.arange(lengths.sum())
    return owners, filled, slots


# ------------------------------------------------------------------------------------------------- training


class Trainer(keras.Model):
    """Trains bert4keras's model by the cross-entropy of answers with their [SEP], averaged over all their tokens.

    The average is over the whole batch, however many devices and `accumulate_steps` it is computed in. Nothing is
    computed that this loss does not depend on: no padding, no vocabulary but where a token of the answer is predicted.
    """

    def __init__(self, bert, end_id):
        super().__init__()
        self.bert, self.unilm = bert, UniLM(bert, end_id, precision)
        self.unilm.activation = with_slope(self.unilm.activation)
        if precision == 'float32':  # what bfloat16 keeps is less
            self.unilm.recompute = tf.recompute_grad
        self.dropout_rate = sum(layer.rate for layer in bert.layers if layer.name == 'Embedding-Dropout')
        # fused, three times as fast on a CPU as the optimizer of the same name outside `legacy`
        optimizer = keras.optimizers.legacy.Adam(learning_rate, epsilon=1e-6)
        if warmup_steps or decay_steps:
            schedule = {warmup_steps: 1.0, **({warmup_steps + decay_steps: 0.0} if decay_steps else {})}
            optimizer.learning_rate = lambda: learning_rate * piecewise_linear(optimizer.iterations, schedule)
        optimizer._create_all_weights(bert.trainable_weights)  # now, or a backup could be read but not written
        self.stopping = tf.Variable(0.0, trainable=False)  # whether this worker was asked to stop, 0 or 1
        self.compile(optimizer=optimizer)

    def losses(self, token_ids, segment_ids, drop=tf.identity):
        """Return the cross-entropy of each answer token, float32 [answer tokens], of a padded batch."""
        lengths, answers = tf.math.count_nonzero(token_ids, 1, dtype=tf.int32), tf.reduce_sum(segment_ids, 1)  # [rows]
        is_read = tf.sequence_mask(lengths - 1, tf.shape(token_ids)[1])  # the last [SEP] is predicted only
        x, _ = self.unilm.encode(tf.boolean_mask(token_ids, is_read), lengths - 1, lengths - answers, drop)
        labels = tf.boolean_mask(token_ids, segment_ids > 0)  # [answer tokens]
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, self.unilm.logits(x))

    def train_step(self, batch):
        """Make one update; returns this replica's share of its loss."""
        token_ids, segment_ids = batch['Input-Token'], batch['Input-Segment']
        replica, weights = tf.distribute.get_replica_context(), self.bert.trainable_weights
        total = replica.all_reduce('sum', tf.cast(tf.reduce_sum(segment_ids), tf.float32))
        update = tf.random.fold_in([seed, 0], tf.cast(self.optimizer.iterations, tf.int32))
        loss, gradients = 0.0, []
        for i in range(accumulate_steps):
            place = tf.random.fold_in(update, replica.replica_id_in_sync_group * accumulate_steps + i)
            with tf.control_dependencies(gradients), tf.GradientTape() as tape:  # one part after another
                part = token_ids[i::accumulate_steps], segment_ids[i::accumulate_steps]
                part_loss = tf.reduce_sum(self.losses(*part, self.dropout(place))) / total
                added = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(part_loss, weights)]
                gradients = [old + new for old, new in zip(gradients, added, strict=True)] if gradients else added
            loss += part_loss
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {'loss': loss, 'stopping': tf.identity(self.stopping)}  # Keras adds up those of all replicas

    def dropout(self, place):
        """Return a function that drops the same whenever an update is made; place: int [2], a seed."""
        numbers, rate = itertools.count(), self.dropout_rate
        if not rate:
            return tf.identity
        return lambda x: tf.nn.experimental.stateless_dropout(x, rate, tf.random.fold_in(place, next(numbers)))


class Progress(keras.callbacks.Callback):
    """Lets training continue exactly where it stopped, and after every epoch scores validation and keeps the best.

    A backup is a folder of weights, optimizer and `state`: updates made, sum of this epoch's losses, the best quality
    so far, a row of the log for each finished epoch. An epoch's end is made again unless it was backed up whole, so a
    run that was interrupted at any moment ends as if it had not been. Keras's BackupAndRestore keeps neither the best
    quality nor the log, nor is what it writes complete or absent.

    settings: what must not differ between a backup and the run that continues it, {name: value}.
    """

    def __init__(self, trainer, tokenizer, train_data, evaluate, settings, is_chief):
        super().__init__()
        self.checkpoint = tf.train.Checkpoint(bert=trainer.bert, optimizer=trainer.optimizer)
        self.tokenizer, self.train_data, self.evaluate, self.trainer = tokenizer, train_data, evaluate, trainer
        self.settings, self.is_chief = settings, is_chief
        self.steps = math.ceil(len(train_data) / batch_size)  # of an epoch
        self.state = {'step': 0, 'losses': 0.0, 'best': -math.inf, 'log': []}
        self.stopping, self.backed_up_at, self.workers = False, time.monotonic(), worker_position()[1]

    def begin(self):
        """Go back to the newest backup, if there is one. Raises UserError where the workers do not begin alike."""
        if backups := self.backups():
            self.restore(backups[-1])
        if self.workers > 1:
            strategy = self.trainer.distribute_strategy
            mine = int(fingerprint([json.dumps([self.state, self.settings]).encode()])[:15], 16)
            replica = functools.partial(tf.constant, [mine], tf.int64)
            gather = tf.function(lambda: strategy.gather(strategy.run(replica), 0), autograph=False)
            if any(gather().numpy() != mine):
                raise UserError(
                    f'{output_dir}: the workers begin with different backups, data or constants; share it among them'
                )

    def restore(self, backup):
        """Go back to a backup. Raises UserError where it is of another run, or damaged."""
        afresh = 'start afresh with another output_dir'
        try:
            saved = json.loads(read_text(os.path.join(backup, 'state.json')))
            for name, value in self.settings.items():
                if saved['settings'].get(name) != value:
                    made = f'{backup}: made with {name} = {saved["settings"].get(name)!r}, now {value!r}'
                    raise UserError(f'{made}; change that back, or {afresh}')
            self.state = saved['state']
            if self.state['log'] and not os.path.exists(os.path.join(output_dir, 'best_model.weights.h5')):
                raise UserError(f'{output_dir}: best_model.weights.h5 has gone; put it back, or {afresh}')
            with plainly_named(os.path.join(backup, 'weights')) as path:
                self.checkpoint.read(path).expect_partial()
        except (tf.errors.OpError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f'{backup}: damaged ({first_line(error)}); {afresh}') from None
        log(
            f'continuing after update {self.state["step"]} of {self.steps * epochs} from {backup}; '
            'to start afresh, choose another output_dir or delete this one'
        )

    def backups(self, prefix=''):
        """Return the paths of all backups, oldest first."""
        names = [name for name in os.listdir(output_dir) if re.fullmatch(rf'{prefix}backup-\d+-\d+', name)]
        names.sort(key=lambda name: [int(number) for number in name.split('-')[1:]])
        return [os.path.join(output_dir, name) for name in names]

    def back_up(self):
        """Write a backup, then remove the older ones."""
        self.backed_up_at = time.monotonic()
        path = os.path.join(output_dir, f'backup-{self.state["step"]}-{len(self.state["log"])}')
        if not self.is_chief or os.path.exists(path):
            return
        if not all(np.isfinite(weight.sum()) for weight in self.trainer.bert.get_weights()):
            raise self.divergence(self.state['step'] - 1, 'after update {} some weights are not finite')
        with whole(path) as folder:
            os.mkdir(folder)
            try:
                self.checkpoint.write(os.path.join(folder, 'weights'))
            except tf.errors.OpError as error:
                raise OSError(first_line(error)) from None
            with open(os.path.join(folder, 'state.json'), 'w', encoding='utf-8') as file:
                json.dump({'state': self.state, 'settings': self.settings}, file, ensure_ascii=False)
        for backup in self.backups('(.unfinished.)?'):
            if backup != path:
                shutil.rmtree(backup)

    def divergence(self, step, what):
        """Return a UserError about an update, in whose place {} stands in `what`, and the records of its batch."""
        pairs = draw_window(self.train_data, self.tokenizer, step // self.steps, step % self.steps // window)
        ids = [self.train_data[i]['id'] for i, *_ in pairs[step % self.steps % window]]
        cure = 'lower learning_rate and choose another output_dir'
        return UserError(f'{what.format(step + 1)}; records {", ".join(ids)}; {cure}')

    def stop(self, *_):
        """Stop after the current update; the second time, at once. A signal handler."""
        log('stopping after this update; once more to stop at once')
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, signal.default_int_handler)
        self.stopping = True

    def stop_if_asked(self):
        """Raise KeyboardInterrupt if a signal came."""
        if self.stopping:
            raise KeyboardInterrupt(f'stopped after update {self.state["step"]}; run the same command to continue')

    def on_train_batch_end(self, batch, logs=None):
        """Count the update; back up if it is time or a signal came. Raises UserError where the loss is not finite."""
        if not math.isfinite(logs['loss']):
            raise self.divergence(self.state['step'], f'the loss of update {{}} is {logs["loss"]}')
        self.state['step'] += 1
        self.state['losses'] += float(logs['loss'])
        agreed = bool(logs.pop('stopping'))
        self.stopping |= agreed
        if self.stopping:  # of several workers all must know it, in the next update, to stop after the same one
            self.trainer.stopping.assign(1.0)
        stops = self.stopping and (agreed or self.workers == 1)
        if stops or time.monotonic() - self.backed_up_at >= 60 * backup_minutes:
            self.back_up()
        if stops:
            self.stop_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        """Score, keep the weights if they are the best, add the epoch to log and TensorBoard."""
        logs.pop('stopping', None)
        logs['loss'] = self.state['losses'] / self.steps
        if self.is_chief:
            self.back_up()
            logs.update(self.evaluate(self.stop_if_asked))
            quality = logs['val_Final'] if best_by == 'final' else -logs['loss']
            if quality >= self.state['best']:
                self.state['best'] = quality
                save_best_weights(self.trainer.bert, self.settings['the BERT'])
        self.state['log'].append({'epoch': epoch + 1, **logs})
        self.state['losses'] = 0.0
        if self.is_chief:
            rows = [','.join(self.state['log'][0]), *(','.join(map(repr, r.values())) for r in self.state['log'])]
            write_text(os.path.join(output_dir, 'log.csv'), ''.join(f'{row}\n' for row in rows))
            board = keras.callbacks.TensorBoard(os.path.join(output_dir, 'tensorboard'), write_graph=False)
            board.set_model(self.trainer)
            board.on_epoch_end(epoch, logs)
            board.on_train_end()  # closes its files; left to `fit`, a kill would lose what is not written yet
            self.back_up()


def describe_bert(files):
    """Return a fingerprint of configuration and vocabulary: weights alone show neither heads nor tokens."""
    config = json.dumps(json.loads(read_text(files['config'])), sort_keys=True)
    return fingerprint([config.encode(), '\n'.join(read_text(files['vocabulary']).split()).encode()])


def save_best_weights(model, bert):
    """Write the weights into `output_dir`, all or nothing, and which BERT they are of, see `describe_bert`."""
    with whole(os.path.join(output_dir, 'best_model.weights.h5')) as temporary:
        try:
            if hasattr(os, 'posix_fallocate'):  # HDF5 may crash where the disk is nearly full; macOS has no such call
                size = 4 * model.count_params() + 4096 * (4 + len(model.weights))  # it adds 2 KB to each weight
                with open(temporary, 'wb') as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            model.save_weights(temporary)
            with h5py.File(temporary, 'r+') as file:
                file.attrs['bert'] = bert
        except RuntimeError as error:  # what h5py makes of a disk that is full
            raise OSError(first_line(error)) from None


def load_best_weights(model, bert):
    """Load the best weights. Raises UserError where there are none or they are another BERT's."""
    path = os.path.join(output_dir, 'best_model.weights.h5')
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file; run train first, or give its output_dir')
    try:
        with h5py.File(path) as file:
            if file.attrs.get('bert') != bert:
                raise ValueError('bert_config.json or vocab.txt is not the one that it was trained with')
        model.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        cure = 'use the files and constants it was trained with; if it is damaged, train in another output_dir'
        raise UserError(f'{path}: does not fit this model ({first_line(error)}); {cure}') from None


# --------------------------------------------------------------------------------------------------- reader


class Answer(typing.NamedTuple):
    """An answer and where it stands, None if nowhere: text == passages[passage][start:end]."""

    text: str
    passage: int | None
    start: int | None
    end: int | None
    token_ids: list
    score: float


class ReadingComprehension:
    """Answers questions from several passages each; their votes decide every token (kexue.fm/archives/7115).

    model: as `build_model` returns it; tokenizer: as `load_tokenizer` does; mode: 'extractive' or 'generative'.
    """

    tokens_together = 6144  # questions with no more than so many in all are read together

    def __init__(self, model, tokenizer, mode='extractive'):
        self.model, self.tokenizer, self.mode = model, tokenizer, mode
        self.end_id = tokenizer._token_end_id
        self.unilm = UniLM(model, self.end_id, precision)
        self.unilm.copy_matrices(model.weights)

    def answer(self, question, passages, topk=1):
        """Read the passages and answer the question.

        question: str; passages: list of str; topk: beam width. Returns an Answer. Raises TypeError where `passages` is
        a str.
        """
        return next(self.answers([(question, passages)], topk))

    def answers(self, questions, topk=1):
        """Yield an Answer for each (question, passages); several questions are read together."""
        encoded, again = itertools.tee((passages, *self.encode(question, passages)) for question, passages in questions)
        searches = self.searches((tokens[1:] for tokens in again), topk)
        yield from (self._locate(*task[:2], search) for task, search in zip(encoded, searches, strict=True))

    def encode(self, question, passages):
        """Return (p_token_ids, q_token_ids): of each passage, with [CLS] and [SEP], and of the question, with [SEP]."""
        if isinstance(passages, str):  # each of its characters would be read as a passage
            raise TypeError('passages: expected a list of str, got a str; give [passage]')
        unified = [unify_separators(passage) for passage in passages]
        p_token_ids = [self.tokenizer.encode(passage, maxlen=max_p_len)[0] for passage in unified]
        return p_token_ids, self.tokenizer.encode(question, maxlen=max_q_len + 1)[0][1:]

    def searches(self, questions, topk):
        """Yield the finished Search of each (p_token_ids, q_token_ids), read up to `tokens_together` at a time."""
        group, tokens = [], 0
        for p_token_ids, q_token_ids in questions:
            size = sum(len(token_ids) + len(q_token_ids) for token_ids in p_token_ids)
            if tokens + size > self.tokens_together:
                yield from self.beam_search(group, topk)
                group, tokens = [], 0
            group.append((p_token_ids, q_token_ids))
            tokens += size
        yield from self.beam_search(group, topk)

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
                # 1. again, after what each beam has written, where the answer is not finished yet
                active = [row for row, i in enumerate(owners) if not searches[i].finished]
                if len(active) <= len(owners) / 2:
                    memory, counts, owners = memory.keep(active), counts[active], [owners[row] for row in active]
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
    """Yield (id, answer), or None, for each record, the answer in a form that fits a tab-separated line.

    What cannot be answered is reported: without question or passages the answer is '', without id there is none.
    """
    say = functools.partial(tqdm.write, file=sys.stderr)  # above the bar
    complete = [record for record in data if not defects(record)]
    answers = reader.answers([(r['question'], [p['passage'] for p in r['passages']]) for r in complete], topk)
    for record in data:
        missing = defects(record)
        if 'id' in missing:
            say(f'a record without id cannot be answered, its question is {record.get("question")!r}')
            yield None
        elif missing:
            say(f'record {record["id"]!r} has no {" and no ".join(missing)}; it gets the empty answer')
            yield record['id'], ''
        else:
            yield record['id'], re.sub('[\x00-\x1f\x85\u2028\u2029]', ' ', next(answers).text)


def contents(data, model):
    """Yield data, as bytes, and weights, one by one: together they are large."""
    yield from (json.dumps(entry).encode() for entry in data)
    yield from (weight.numpy() for weight in model.weights)


def predict_to_file(reader, data, filename, references=None, worker=0, workers=1):
    """Write `id<TAB>answer` for every record of `data`; what an interrupted run has answered is not answered again.

    With `references` a bar shows the score so far. Worker k of n answers every n-th question; the first one waits for
    the others and joins the parts. Returns whether this is the first.
    """
    constants_used = [globals()[name] for name in ('max_p_len', 'max_q_len', 'max_a_len', 'mode', 'topk', 'precision')]
    part = Part(filename, fingerprint(contents([constants_used, *data], reader.model)), worker, workers)
    mine, tally = data[worker::workers], Tally()
    if part.lines:
        log(f'{filename}: {len(part.lines)} of {len(mine)} questions are answered already')
    with tqdm(total=len(mine), desc='reading', unit='question', file=sys.stderr) as progress:

        def show(line):
            progress.update()
            if references and line:
                tally.add(line.split('\t')[1], references[line.split('\t')[0]])
                progress.set_postfix(tally.result(), refresh=False)
            return line

        rest = answer_records(reader, mine[len(list(map(show, part.lines))) :], topk)
        part.write(show('\t'.join(pair) if pair else '') for pair in rest)
    if worker == 0:
        part.join()
    return worker == 0


def evaluate_sample(reader, valid_data, references, between):
    """Score a sample of the validation questions and show five answers, wrong ones first.

    between: called before each answer. Returns {'val_Accuracy', 'val_F1', 'val_Final'}.
    """
    sample = [record for record in valid_data if not defects(record)][:valid_sample]
    tally, answers = Tally(), []
    for record, (question_id, text) in zip(sample, answer_records(reader, sample, topk), strict=True):
        between()
        reference = references[question_id]
        score = tally.add(text, reference)
        answers.append((score.correct, record['question'], text, reference.answer))
    for correct, question, text, gold in sorted(answers)[:3] + sorted(answers)[3:][-2:]:
        log(f'  {"right" if correct else "WRONG"}  {question}  answer: {text or "(none)"}  gold: {gold}')
    return {f'val_{name}': value for name, value in tally.result().items() if name != 'total'}


def score_validation(reader, valid_data, references, worker=0, workers=1):
    """Answer the validation questions into predictions.tsv and print the official score as one JSON line."""
    path = os.path.join(output_dir, 'predictions.tsv')
    if predict_to_file(reader, valid_data, path, references, worker, workers):
        print(json.dumps(evaluate(path, references)))


def choose_strategy():
    """Return TensorFlow's engine for several machines where TF_CONFIG is set, else for all visible GPUs."""
    if 'TF_CONFIG' in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    several = len(tf.config.list_logical_devices('GPU')) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def load_reader():
    """Return the reader that the constants mean, with the best weights of `train`."""
    files = locate_files()
    require(files['config'], files['vocabulary'])
    tokenizer, keep_tokens, vocabulary_size = load_tokenizer(files['vocabulary'])
    model = build_model(files['config'], '', keep_tokens, vocabulary_size)
    load_best_weights(model, describe_bert(files))
    return ReadingComprehension(model, tokenizer, mode)


def make_output_dir():
    """Make the output folder. Raises UserError where that is impossible."""
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f'{output_dir}: cannot be used as output_dir ({error.strerror}); choose another') from None


def write_config(files):
    """Write the constants, files and versions in use to config.json."""
    versions = {package.__name__: package.__version__ for package in (tf, keras, bert4keras, np)}
    versions['python'] = platform.python_version()
    config = {'constants': {name: globals()[name] for name in constants}, 'files': files, 'versions': versions}
    write_text(os.path.join(output_dir, 'config.json'), json.dumps(config, ensure_ascii=False, indent=4) + '\n')


def load_data(files):
    """Return (training records, validation records, references by id) of the files that the constants mean."""
    webqa, sogouqa = load_questions(files['webqa']), load_questions(files['sogouqa'])
    references = load_references(files['official_answers'], files['sogouqa'], sogouqa)
    train_data, valid_data = split(webqa, sogouqa)
    if not train_data:
        raise UserError(f'{files["webqa"]}: no complete record to train on, nor in {files["sogouqa"]}')
    if not any(record.get('id') for record in valid_data):  # or it would be noticed after training
        raise UserError(f'{files["sogouqa"]}: no record with an id to validate on')
    return train_data, valid_data, references


def train_command(files):
    """Train, keep the best weights and score them, as the only run in this output folder."""
    require(*list(files.values())[:5])
    worker, _ = worker_position()
    strategy = choose_strategy()
    make_output_dir()
    with contextlib.nullcontext() if worker else alone(os.path.join(output_dir, 'train.lock')):
        train(files, strategy, worker)


def train(files, strategy, worker):
    """Train from the beginning, or from where an earlier run was interrupted, and score the best weights."""
    keras.utils.set_random_seed(seed)
    train_data, valid_data, references = load_data(files)
    tokenizer, keep_tokens, vocabulary_size = load_tokenizer(files['vocabulary'])
    with strategy.scope():
        model = build_model(files['config'], files['checkpoint'], keep_tokens, vocabulary_size)
        trainer = Trainer(model, tokenizer._token_end_id)
    if not files['checkpoint']:
        log('no checkpoint: BERT starts from random weights')
    reader = ReadingComprehension(model, tokenizer, mode)
    settings = {name: globals()[name] for name in constants if name not in may_differ}
    settings['the BERT'] = describe_bert(files)
    settings['the data'] = fingerprint(contents(train_data + valid_data, model))
    sample = functools.partial(evaluate_sample, reader, valid_data, references)
    progress = Progress(trainer, tokenizer, train_data, sample, settings, is_chief=worker == 0)
    progress.begin()
    if worker == 0:
        write_config(files)
    log(f'{len(train_data)} questions to train on, {len(valid_data)} to validate')
    fit(trainer, strategy, progress)
    if worker == 0:
        load_best_weights(model, settings['the BERT'])
        score_validation(reader, valid_data, references)


def fit(trainer, strategy, progress):
    """Train from where `progress` stands to the end, with Keras's progress bar."""
    state, steps = progress.state, progress.steps
    handlers = {number: signal.signal(number, progress.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras's progress is no result
            if state['step'] and state['step'] == (len(state['log']) + 1) * steps:
                progress.on_epoch_end(len(state['log']), {})  # interrupted while it was scored
            while state['step'] < epochs * steps:
                epoch, position = divmod(state['step'], steps)
                trainer.fit(
                    strategy.distribute_datasets_from_function(
                        functools.partial(training_dataset, progress.train_data, progress.tokenizer, state['step'])
                    ),
                    steps_per_epoch=steps - position,
                    initial_epoch=epoch,
                    epochs=epoch + 1 if position else epochs,  # first the rest of an epoch
                    verbose=1 if sys.stderr.isatty() else 2,
                    callbacks=[progress],
                )
            progress.stop_if_asked()  # or all of validation would be scored first
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def eval_command(files):
    """Score validation with the best weights."""
    require(files['sogouqa'])
    reader = load_reader()
    if not os.path.exists(order := os.path.join(output_dir, 'random_order.json')):
        raise UserError(f'{order}: no such file; copy it from where the weights were trained')
    sogouqa = load_questions(files['sogouqa'])
    references = load_references(files['official_answers'], files['sogouqa'], sogouqa)
    _, valid_data = split([], sogouqa)
    score_validation(reader, valid_data, references, *worker_position())


def predict_command(path):
    """Answer every record of a file of questions; the lines of `id<TAB>answer` are kept in `output_dir` and printed."""
    data = load_questions(path, labelled=False)
    reader = load_reader()
    filename = os.path.join(output_dir, f'answers_to_{os.path.splitext(os.path.basename(path))[0]}.tsv')
    if predict_to_file(reader, data, filename, None, *worker_position()):
        print(read_text(filename), end='', flush=True)


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
    given = vars(options)
    command, questions = given.pop('command'), given.pop('questions')
    if (command == 'predict') == (questions is None) or (unknown and not unknown[0].startswith('-')):
        surplus = ''.join(f'{argument}: ' for argument in [*filter(None, [questions]), *unknown][-1:])
        raise UserError(f'{surplus}predict takes one file of questions, train and eval take none; see --help')
    if unknown:
        name = unknown[0].removeprefix('--').partition('=')[0]
        nearest = difflib.get_close_matches(name, constants, 1, 0)[0]
        raise UserError(f'{unknown[0]}: unknown; the nearest constant is --{nearest}=, see --help')
    return command, questions, given


def check_constants():
    """Raise UserError for a constant of the wrong type or range."""
    choices = {'best_by': ('final', 'loss'), 'mode': ('extractive', 'generative'), 'precision': ('float32', 'bfloat16')}
    least = {'max_p_len': 3, 'max_q_len': 2, 'seed': 0, 'warmup_steps': 0, 'decay_steps': 0}
    for name in constants:
        value, minimum = globals()[name], least.get(name, 1)
        if name in ('learning_rate', 'backup_minutes'):
            right, expected = type(value) in (int, float) and 0 < value < math.inf, 'a number above 0'
        elif name in choices:
            right, expected = value in choices[name], ' or '.join(map(repr, choices[name]))
        elif name.endswith(('_path', '_dir')):
            right, expected = isinstance(value, str), 'a path in quotes'
        else:
            right, expected = type(value) is int and minimum <= value < 2**31, f'a whole number of at least {minimum}'
        if not right:
            raise UserError(f'{name} = {value!r}: expected {expected}')


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
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed
        stream.reconfigure(encoding='utf-8', errors='backslashreplace')  # names of files may be in another encoding
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.default_int_handler)
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
    except tf.errors.OpError as error:
        log(f'TensorFlow broke off ({first_line(error)}); run the same command, of all workers, to continue')
        return 2
    except OSError as error:
        return report(error)
    except KeyboardInterrupt as interrupt:
        log(str(interrupt) or 'interrupted; run the same command to continue')
        return 130


if __name__ == '__main__':
    sys.exit(main())
