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
from bert4keras.backend import K
from bert4keras.layers import Loss
from bert4keras.models import build_transformer_model
from bert4keras.snippets import sequence_padding
from bert4keras.tokenizers import Tokenizer, load_vocab
from tqdm import tqdm

from evaluate_sogou import (
    Parser,
    Tally,
    UserError,
    dataset_answers,
    defects,
    evaluate,
    load_official_answers,
    load_questions,
    read_text,
    score_answer,
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
demo_constants = {'batch_size': (32, 64), 'learning_rate': (1e-5, 1e-3)}


# ---------------------------------------------------------------------------------------------------- files


class Files(typing.NamedTuple):
    """The paths that a command reads, and whether they are the demo's."""

    webqa: str
    sogouqa: str
    config: str
    checkpoint: str
    vocabulary: str
    official_answers: str
    demo: bool


def locate_files():
    """Return the Files that the constants mean; none need exist."""
    data = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')

    def files_in(folder, demo):
        def choose(constant, name):
            return os.path.join(folder, name) if constant == 'auto' else constant

        return Files(
            os.path.join(folder, 'WebQA.json'),
            os.path.join(folder, 'SogouQA.json'),
            choose(config_path, 'bert_config.json'),
            choose(checkpoint_path, 'bert_model.ckpt'),
            choose(dict_path, 'vocab.txt'),
            os.path.join(folder, 'qid_answer_expand'),
            demo,
        )

    real = files_in(data if data_dir == 'auto' else data_dir, demo=False)
    untouched = {data_dir, config_path, checkpoint_path, dict_path} == {'auto'}
    if untouched and not any(map(exists, real[:5])):
        return files_in(os.path.join(data, 'demo'), demo=True)
    return real


def exists(path):
    """Whether a file, or a checkpoint of that name, exists."""
    return os.path.isfile(path) or os.path.isfile(f'{path}.index')


def require(*paths):
    """Raise UserError that lists what is missing of `paths`."""
    missing = [path for path in paths if path and not exists(path)]
    if missing:
        raise UserError(f'missing: {", ".join(missing)}; data/README.md says where to download it')


def output_path(name):
    """Return the path of a file in `output_dir`."""
    return os.path.join(output_dir, name)


def write_json(name, value):
    """Write a value as JSON into `output_dir`, all or nothing."""
    write_text(output_path(name), json.dumps(value, ensure_ascii=False, indent=4) + '\n')


def log(message):
    """Print one line to standard error."""
    print(message, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------- data


def read_dataset(path, labelled=True):
    """Read a dataset with `load_questions` and name, in one line, the records that lack something."""
    records = load_questions(path, labelled)
    named = [f'{i} (no {", no ".join(defects(record))})' for i, record in enumerate(records, 1) if defects(record)]
    if named:
        first = f'record {", ".join(named[:10])}{", ..." if len(named) > 10 else ""}'
        cut_off = '; the file looks cut off' if defects(records[-1]) else ''
        log(f'{path}: {len(named)} of {len(records)} records lack something and are not trained on: {first}{cut_off}')
    return records


def split(webqa, sogouqa):
    """Split SogouQA by the random order saved in `output_dir`: every third position is for validation.

    Returns (training records: the complete ones of the rest of SogouQA twice + WebQA, validation records).
    Raises UserError where the saved order is of other data.
    """
    path = output_path('random_order.json')
    if os.path.exists(path):
        try:
            random_order = json.loads(read_text(path))
            if sorted(random_order) != list(range(len(sogouqa))) or not all(type(i) is int for i in random_order):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise UserError(f'{path}: no order of {len(sogouqa)} records; delete it or change output_dir') from None
    else:
        random_order = np.random.default_rng(seed).permutation(len(sogouqa)).tolist()
        write_json('random_order.json', random_order)
    valid_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 == 0]
    rest = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 != 0]
    return [record for record in rest + rest + webqa if not defects(record)], valid_data


def load_tokenizer(path):
    """Read a BERT vocabulary and simplify it: no ##-pieces of Chinese, no tokens that never occur.

    Returns (tokenizer, keep_tokens, size): a lower-casing bert4keras Tokenizer of the simplified vocabulary, the
    list of its ids in the full one, and the size of the full one. Raises UserError where it is no vocabulary.
    """
    startswith = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
    tokens = [line.strip() for line in read_text(path).splitlines()]
    missing = [token for token in startswith if token not in tokens]
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
            transformer = build_transformer_model(
                config, model='bert', application='unilm', keep_tokens=keep_tokens, return_keras_model=False
            )
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
    """Cross-entropy of the answer and its [SEP], averaged over all these tokens of the batch.

    From logits, because Keras cuts probabilities off at 1e-7.
    """

    def compute_loss(self, inputs, mask=None):
        """Return a scalar from [token_ids, segment_ids, logits]; segment 1 marks what to predict."""
        y_true, y_mask, y_pred = inputs
        y_true = y_true[:, 1:]  # [batch, length - 1]
        y_mask = y_mask[:, 1:]  # [batch, length - 1]
        y_pred = y_pred[:, :-1]  # [batch, length - 1, vocab], one position behind what it predicts
        loss = K.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)  # [batch, length - 1]
        return K.sum(loss * y_mask) / K.sum(y_mask)


def build_train_model(model):
    """Return the model to `fit`: the same layers with the loss on top, compiled with Adam."""
    output = CrossEntropy(2)([*model.inputs, model.get_layer('MLM-Bias').output])
    train_model = keras.models.Model(model.inputs, output)
    train_model.compile(optimizer=keras.optimizers.Adam(learning_rate, epsilon=1e-6))
    return train_model


def save_best_weights(model):
    """Write the weights into `output_dir`, all or nothing."""
    path, temporary = output_path('best_model.weights.h5'), output_path('.unfinished.weights.h5')
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
    path = output_path('best_model.weights.h5')
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file; run train first, or give its output_dir')
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'{path}: does not fit this model ({first_line(error)}); train again, or use its constants'
        ) from None


# --------------------------------------------------------------------------------------------------- reader


class Answer(typing.NamedTuple):
    """An answer and where it stands: text == passages[passage][start:end], offsets in characters.

    passage, start and end are None where the answer is empty or, generated, stands in no passage.
    """

    text: str
    passage: int | None
    start: int | None
    end: int | None
    token_ids: list
    score: float


class ReadingComprehension:
    """Answers a question from several passages; their votes decide every token (kexue.fm/archives/7115).

    model: as `build_model` returns it; tokenizer: as `load_tokenizer` does; mode: 'extractive' or 'generative'.
    """

    def __init__(self, model, tokenizer, mode='extractive'):
        self.model = model
        self.tokenizer = tokenizer
        self.mode = mode
        self.end_id = tokenizer._token_end_id
        rows = tf.TensorSpec([None, None], tf.float32)

        @tf.function(input_signature=[rows, rows, tf.TensorSpec([None], tf.int32)])
        def next_probas(token_ids, segment_ids, lengths):
            probas = model([token_ids, segment_ids], training=False)  # [rows, length, vocab]
            return tf.gather(probas, lengths - 1, batch_dims=1)  # [rows, vocab]

        self._next_probas = next_probas

    def answer(self, question, passages, topk=1):
        """Read the passages and answer the question.

        question: str; passages: list of str; topk: beam width. Returns an Answer.
        """
        unified = [unify_separators(passage) for passage in passages]
        p_token_ids = [self.tokenizer.encode(passage, maxlen=max_p_len)[0] for passage in unified]
        q_token_ids = self.tokenizer.encode(question, maxlen=max_q_len + 1)[0]
        output_ids, score, remaining = self.beam_search(p_token_ids, q_token_ids[1:], topk)
        for i in remaining:
            start = find(output_ids, p_token_ids[i][1:-1])
            if output_ids and start is not None:
                span = self._offsets(unified[i], start, start + len(output_ids))
                if span:
                    return Answer(passages[i][slice(*span)], i, *span, output_ids, score)
        return Answer(self.tokenizer.decode(output_ids), None, None, None, output_ids, score)

    def answers(self, questions, topk=1):
        """Yield an Answer for each (question, passages)."""
        for question, passages in questions:
            yield self.answer(question, passages, topk)

    def beam_search(self, p_token_ids, q_token_ids, topk):
        """Write the answer token by token, keeping the best `topk` beams.

        p_token_ids: a list of token ids for each passage, with [CLS] and [SEP]; q_token_ids: those of the
        question, with [SEP]. Returns (token ids of the answer without [SEP], score, indices of the passages that
        have an answer).
        """
        remaining = list(range(len(p_token_ids)))
        output_ids, output_scores = np.empty([1, 0], int), np.zeros(1)
        for step in range(max_a_len):
            # 1. what each passage predicts after each beam
            sources = [p_token_ids[i] + q_token_ids for i in remaining]
            probas = self.predict(sources, output_ids)  # [passages, beams, vocab]
            if step == 0:
                # 2. a passage whose first token would be [SEP] has no answer and leaves for good
                answerable = probas[:, 0].argmax(-1) != self.end_id  # [passages]
                if not answerable.any():
                    return [], 0.0, []
                probas, remaining = probas[answerable], [i for i in remaining if answerable[i]]
            if self.mode == 'extractive':
                # 3. the answer must stand in a passage
                fragments = [p_token_ids[i][1:-1] for i in remaining]
                probas = probas * allowed_tokens(fragments, output_ids, self.end_id, probas.shape[-1])
            # 4. the passages vote
            votes = vote(probas)  # [beams, vocab]
            # 5. the best beams go on
            output_ids, output_scores = extend_beams(output_ids, output_scores, votes, topk)
            # 6. the best beam ends the search; another finished one is dropped
            best, finished = output_scores.argmax(), output_ids[:, -1] == self.end_id
            if finished[best]:
                return output_ids[best, :-1].tolist(), output_scores[best].item(), remaining
            output_ids, output_scores = output_ids[~finished], output_scores[~finished]
            topk = len(output_ids)
        best = output_scores.argmax()
        return output_ids[best].tolist(), output_scores[best].item(), remaining

    def predict(self, sources, output_ids):
        """Return the probabilities of the next token, float32 [len(sources), len(output_ids), vocab].

        sources: token ids of each passage with the question; output_ids: int [beams, written], the beams so far.
        """
        rows = [source + beam for source in sources for beam in output_ids.tolist()]
        written = output_ids.shape[1]
        probas = []
        for start in range(0, len(rows), batch_size):
            token_ids = rows[start : start + batch_size]
            lengths = np.array([len(row) for row in token_ids])
            segment_ids = [[0] * (length - written) + [1] * written for length in lengths]
            probas.append(self._next_probas(sequence_padding(token_ids), sequence_padding(segment_ids), lengths))
        return np.concatenate(probas).reshape(len(sources), len(output_ids), -1)

    def _offsets(self, passage, start, end):
        """Return the character offsets (start, end) of tokens start to end of a passage, or None."""
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


def find(needle, haystack):
    """Return the first position of a list in another, or None."""
    positions = range(len(haystack) - len(needle) + 1)
    return next((i for i in positions if haystack[i : i + len(needle)] == needle), None)


def allowed_tokens(fragments, output_ids, end_id, vocab):
    """Which tokens may follow each beam: [SEP], and what follows the beam's tokens in a passage.

    fragments: token ids of each passage, without [CLS] and [SEP]; output_ids: int [beams, written].
    Returns bool [beams, vocab].
    """
    allowed = np.zeros([len(output_ids), vocab], bool)
    allowed[:, end_id] = True
    written = output_ids.shape[1]
    for beam, prefix in enumerate(output_ids.tolist()):
        for fragment in fragments:
            for i in range(len(fragment) - written):
                if fragment[i : i + written] == prefix:
                    allowed[beam, fragment[i + written]] = True
    return allowed


def vote(probas):
    """Make one score per token out of several passages' probabilities (kexue.fm/archives/7115).

    s(w) = sum_i p_i(w)^2 / (1 + sum_i p_i(w)): a passage that is sure counts more than one that is not.

    probas: float32 [passages, beams, vocab]. Returns float32 [beams, vocab].
    """
    return (probas**2).sum(0) / (1 + probas.sum(0))


def extend_beams(output_ids, output_scores, votes, topk):
    """Keep the best `topk` of beams x vocabulary, best first.

    A token whose vote is 0 is never kept while another is left; ties go to the earlier beam, then the lower id.

    output_ids: int [beams, written]; output_scores: float64 [beams]; votes: float32 [beams, vocab].
    Returns the same two for the new beams, one token longer.
    """
    scores = output_scores[:, None] + np.log(votes + 1e-12)  # [beams, vocab]
    order = np.lexsort((-scores.ravel(), votes.ravel() == 0))[:topk]  # [topk]; stable
    beams, tokens = np.unravel_index(order, scores.shape)
    return np.concatenate([output_ids[beams], tokens[:, None]], 1), scores[beams, tokens]


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


def predict_to_file(reader, data, filename, topk=1, references=None):
    """Answer every record of `data` and write `id<TAB>answer` lines, all or nothing.

    references: {id: Reference} for a running score in the progress bar, or None.
    """
    lines, tally = [], Tally()
    with tqdm(total=len(data), desc='reading', unit='question', file=sys.stderr) as progress:
        for question_id, text in answer_records(reader, data, topk):
            lines.append(f'{question_id}\t{text}\n')
            progress.update()
            if references:
                tally.add(score_answer(text, references[question_id]))
                progress.set_postfix(tally.result(), refresh=False)
    write_text(filename, ''.join(lines))


class Evaluate(keras.callbacks.Callback):
    """After every epoch: scores a sample of validation, shows five answers, keeps the best weights."""

    def __init__(self, reader, valid_data, references):
        super().__init__()
        self.reader = reader
        self.sample = [record for record in valid_data if not defects(record)][:valid_sample]
        self.references = references
        self.best = -math.inf

    def on_epoch_end(self, epoch, logs=None):
        """Score, show, save; add val_Accuracy, val_F1 and val_Final to the epoch's logs."""
        tally, answers = Tally(), []
        texts = answer_records(self.reader, self.sample, topk)
        for record, (question_id, text) in zip(self.sample, texts, strict=True):
            score = score_answer(text, self.references[question_id])
            tally.add(score)
            answers.append((score.correct, record['question'], text, self.references[question_id].answer))
        logs.update({f'val_{name}': value for name, value in tally.result().items() if name != 'total'})
        for correct, question, text, gold in sorted(answers)[:3] + sorted(answers)[3:][-2:]:  # wrong ones first
            log(f'  {"right" if correct else "WRONG"}  {question}  answer: {text or "(none)"}  gold: {gold}')
        quality = logs['val_Final'] if best_by == 'final' else -logs['loss']
        if quality >= self.best:
            self.best = quality
            save_best_weights(self.reader.model)


def load_references(files, sogouqa):
    """Return {id: Reference}: the official answers where they lie in the data folder, else the passages' own."""
    if not os.path.isfile(files.official_answers):
        log(f'scoring against the answers in {files.sogouqa}: no {os.path.basename(files.official_answers)} beside it')
        return dataset_answers(sogouqa)
    references = load_official_answers(files.official_answers)
    unknown = [record['id'] for record in sogouqa if record.get('id') and record['id'] not in references]
    if unknown:
        raise UserError(f'{files.official_answers}: lacks the id {unknown[0]!r} of SogouQA.json; move it elsewhere')
    log(f'scoring against the official answers in {files.official_answers}')
    return references


def score_validation(reader, valid_data, references):
    """Answer the validation questions into predictions.tsv and print the official score as one JSON line."""
    predict_to_file(reader, valid_data, output_path('predictions.tsv'), topk, references)
    print(json.dumps(evaluate(output_path('predictions.tsv'), references)))


def load_reader():
    """Return the reader that the constants mean, with the best weights of `train`."""
    files = locate_files()
    require(files.config, files.vocabulary)
    tokenizer, keep_tokens, vocabulary_size = load_tokenizer(files.vocabulary)
    model = build_model(files.config, '', keep_tokens, vocabulary_size)
    load_best_weights(model)
    return ReadingComprehension(model, tokenizer, mode)


def train_command(files):
    """Train, keep the best weights and score them."""
    require(*files[:5])
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f'{output_dir}: cannot be used as output_dir ({error.strerror}); choose another') from None
    keras.utils.set_random_seed(seed)
    webqa, sogouqa = read_dataset(files.webqa), read_dataset(files.sogouqa)
    references = load_references(files, sogouqa)
    train_data, valid_data = split(webqa, sogouqa)
    tokenizer, keep_tokens, vocabulary_size = load_tokenizer(files.vocabulary)
    model = build_model(files.config, files.checkpoint, keep_tokens, vocabulary_size)
    if not files.checkpoint:
        log('no checkpoint: BERT starts from random weights')
    reader = ReadingComprehension(model, tokenizer, mode)
    write_config(files)
    if not train_data:
        raise UserError(f'{files.webqa}: no complete record to train on, nor in {files.sogouqa}; see data/README.md')
    log(f'{len(train_data)} questions to train on, {len(valid_data)} to validate')
    with contextlib.redirect_stdout(sys.stderr):  # Keras's progress is no result
        build_train_model(model).fit(
            training_dataset(train_data, tokenizer),
            steps_per_epoch=math.ceil(len(train_data) / batch_size),
            epochs=epochs,
            verbose=1 if sys.stderr.isatty() else 2,
            callbacks=[
                Evaluate(reader, valid_data, references),
                keras.callbacks.CSVLogger(output_path('log.csv')),
                keras.callbacks.TensorBoard(output_path('tensorboard'), write_graph=False),
            ],
        )
    load_best_weights(model)
    score_validation(reader, valid_data, references)


def write_config(files):
    """Write the constants, paths and versions in use to config.json."""
    versions = {package.__name__: package.__version__ for package in (tf, keras, bert4keras, np)}
    values = {name: globals()[name] for name in constants}
    versions['python'] = platform.python_version()
    write_json('config.json', {'constants': values, 'files': files._asdict(), 'versions': versions})


def eval_command(files):
    """Score validation with the best weights."""
    require(files.sogouqa)
    reader = load_reader()
    sogouqa = read_dataset(files.sogouqa)
    references = load_references(files, sogouqa)
    _, valid_data = split([], sogouqa)
    score_validation(reader, valid_data, references)


def predict_command(path):
    """Print `id<TAB>answer` for every record of a file of questions."""
    data = read_dataset(path, labelled=False)
    answers = answer_records(load_reader(), data, topk)
    for question_id, text in tqdm(answers, total=len(data), desc='reading', unit='question', file=sys.stderr):
        print(f'{question_id}\t{text}', flush=True)


def parse_command_line(arguments):
    """Return (command, questions file or None, {constant: value given}). Raises UserError for what it cannot read."""
    with open(__file__, encoding='utf-8') as file:
        block = re.search('# -+ constants\n# fmt: off\n(.*)# fmt: on\n# -+ the end', file.read(), re.DOTALL)[1]
    parser = Parser(
        prog=os.path.basename(__file__),
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
    if (command == 'predict') != (questions is not None):
        raise UserError('predict takes one file of questions, train and eval take none; see --help')
    return command, questions, given


def check_constants():
    """Raise UserError for a constant of the wrong type or range."""
    least = {'max_p_len': 3, 'max_q_len': 2, 'max_a_len': 1, 'batch_size': 1, 'epochs': 1, 'valid_sample': 1}
    for name, minimum in {**least, 'topk': 1, 'seed': 0}.items():
        value = globals()[name]
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
    if files.demo:
        log(
            'This is the demo: data/ holds none of the real files, so the small made-up corpus in data/demo/ is used. '
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
