"""Reading comprehension by seq2seq: several passages vote on every token of one answer.

    python task_reading_comprehension_by_seq2seq.py train     # the demo: a minute, Final 0.97
    python task_reading_comprehension_by_seq2seq.py eval      # score validation once more
    python task_reading_comprehension_by_seq2seq.py predict questions.json    # `id<TAB>answer`
    python task_reading_comprehension_by_seq2seq.py predict -    # JSON records as they come
    python task_reading_comprehension_by_seq2seq.py predict --question=... --passage=...
    python task_reading_comprehension_by_seq2seq.py export model    # for TensorFlow Serving

BERT-wwm under a UniLM mask reads `[CLS] passage [SEP] question [SEP]` and writes `answer [SEP]`.
Method: Su Jianlin, https://kexue.fm/archives/7115 (2019). With BERT-wwm he reports on his
validation split of SogouQA: Accuracy 0.7259005836184343, F1 0.813860036706151,
Final 0.7698803101622926.

Edit the constants and rerun, or give one once as --name=value; from Python, `load_reader(topk=4)`.
Without the real files the embedded demo is used, see data/README.md.
"""

import collections
import contextlib
import json
import math
import os
import re
import sys
from typing import Literal

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # not there with PYTHONSAFEPATH
from evaluate_sogou import Tally, UserError, escaped, evaluate, exit_status, log, read_text
from support import settings
from support.settings import MayDiffer, Path, Positive, Trained, Whole


@settings.constants
class Constants:
    """Edit a value and rerun, or give it once as --name=value; the type says what is allowed."""

    # MayDiffer: an interrupted run may be continued with another value
    # Trained: unless another is given, the one of `train`, kept in `output_dir`, holds for reading
    # files; 'auto' means data/, or data/demo/ as long as data/ holds none of the real files
    data_dir: MayDiffer[Path] = 'auto'  # of WebQA.json, SogouQA.json, perhaps qid_answer_expand
    train_data: MayDiffer[Path] = 'auto'  # other files to train on, with commas; no split then
    valid_data: MayDiffer[Path] = 'auto'  # and one to validate on
    config_path: MayDiffer[Path] = 'auto'  # BERT's configuration; 'auto': bert_config.json there
    checkpoint_path: MayDiffer[Path] = 'auto'  # 'auto': bert_model.ckpt there; '': random weights
    dict_path: MayDiffer[Path] = 'auto'  # BERT's vocabulary; 'auto': vocab.txt there
    output_dir: MayDiffer[Path] = 'output'  # everything that is written goes into this folder
    # lengths, in tokens
    max_p_len: Trained[Whole[3]] = 256  # passage, its [CLS] and [SEP] included
    passage_stride: Trained[Whole[0]] = 0  # tokens to the next window of a long one; 0: it is cut
    max_q_len: Trained[Whole[2]] = 64  # question, its [SEP] included
    max_a_len: Trained[Whole[1]] = 32  # answer, its [SEP] included; training shares the sum
    # training
    batch_size: Whole[1] = 32  # pairs per update; lower it when memory runs out
    epochs: MayDiffer[Whole[1]] = 8  # of each question one passage is drawn in an epoch
    learning_rate: Positive = 1e-5  # of Adam
    best_by: Literal['final', 'loss'] = 'final'  # weights kept: best Final; lowest loss
    valid_sample: Whole[1] = 100  # validation questions scored after every epoch
    warmup_steps: Whole[0] = 0  # updates over which the learning rate rises; 0: none
    decay_steps: Whole[0] = 0  # updates over which it then falls to 0; 0: it stays
    accumulate_steps: MayDiffer[Whole[1]] = 1  # parts of a batch, one by one; more: less memory
    backup_minutes: MayDiffer[Positive] = 10.0  # at most so much work is lost when interrupted
    seed: Whole[0] = 42  # of the split, the draws, dropout and random weights
    # reading
    mode: Trained[Literal['extractive', 'generative']] = 'extractive'  # pieces; any text
    topk: Whole[1] = 1  # beam width
    no_answer_bias: float = 0.0  # e^bias times the probability that a passage has no answer
    vote: Literal['token', 'answer'] = 'token'  # on each token; on the answers of single passages
    precision: Literal['float32', 'bfloat16'] = 'float32'  # exact; faster where hardware has it
    report: MayDiffer[Whole[0]] = 1000  # questions shown in report.html; 0: none


if __name__ == '__main__':
    # mistakes and --help are answered before TensorFlow is imported, which takes seconds
    settings.read_early(Constants, __doc__)

import numpy as np

from support import bert, lost, process, records, report, serving, terminal
from support.answers import NO_ANSWER, Found, Written, as_record, describe, score_of
from support.batches import Batches, in_groups
from support.files import alone_in, first_line, make_folder, write_durably
from support.keras2 import bert4keras, keras, tf
from support.predictions import Part, answer_part, answer_stream, fingerprint_of, one_line
from support.spans import window_starts, windows_of
from support.training import Run, Trainer, choose_strategy
from support.unilm import UniLM

# -------------------------------------------------------------------------------------------- data


def load_data(path, constants, labelled=True):
    """Read a dataset, and say what of it will not be read or learnt: see support/lost.py."""
    data = records.load_questions(path, labelled)
    size, stride = constants.max_p_len - 2, constants.passage_stride
    lost.tell_what_is_lost(path, data, unify_separators, size, stride)
    return data


def split(webqa, sogouqa, constants):
    """Split SogouQA by a random order, saved in `output_dir`: every third is for validation.

    webqa, sogouqa: lists of records. Returns (training records: the complete ones of the rest of
    SogouQA twice and of WebQA, validation records). Where `valid_data` is given, they are what
    webqa and sogouqa hold.
    """
    if constants.valid_data != 'auto':
        return records.complete(webqa), sogouqa
    path = os.path.join(constants.output_dir, 'random_order.json')
    random_order = records.load_order(path, len(sogouqa))
    if random_order is None:
        rng = np.random.default_rng(constants.seed)
        random_order = rng.permutation(len(sogouqa)).tolist()
        if process.worker_position()[0] == 0:
            write_durably(path, json.dumps(random_order) + '\n')
    valid_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 == 0]
    train_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 != 0]
    return records.complete(train_data + train_data + webqa), valid_data


def unify_separators(passage):
    """Replace each space, 、, ； and ， by a comma: one character for one, so offsets survive."""
    return re.sub(' |、|；|，', ',', passage)


def draw_window(passage, rng, constants):
    """Draw one of the windows that are read of a passage; here its tokens are its characters."""
    starts = window_starts(len(passage), constants.max_p_len - 2, constants.passage_stride)
    return passage[starts[rng.integers(len(starts))] :]


def training_pair(record, rng, constants):
    """Draw a passage of a record and decide what the answer should be (the post's generator).

    The passage's own label does not: it is the first of all the answers whose parts it holds.

    record: a complete one; rng: NumPy Generator. Returns (passage, question, final_answer), str.
    """
    passages = record['passages']
    passage = unify_separators(passages[rng.integers(len(passages))]['passage'])
    if constants.passage_stride:
        passage = draw_window(passage, rng, constants)
    readable = passage[: constants.max_p_len - 2]  # characters, as in the original
    for answer in (p['answer'] for p in passages if p['answer']):
        if all(part in readable for part in answer.split(' ')):
            return passage, record['question'], answer.replace(' ', ',')
    return passage, record['question'], ''


def encode_pair(tokenizer, passage, question, answer, constants):
    """Return token_ids and segment_ids, lists of int, of a pair as `training_pair` draws it."""
    p_token_ids, p_segment_ids = tokenizer.encode(passage, maxlen=constants.max_p_len)
    maxlen = constants.max_q_len + constants.max_a_len + 1  # with a [CLS], which is dropped
    qa_token_ids, qa_segment_ids = tokenizer.encode(question, answer, maxlen=maxlen)
    return p_token_ids + qa_token_ids[1:], p_segment_ids + qa_segment_ids[1:]


# -------------------------------------------------------------------------------- model and loss


def build_model(files, checkpoint, constants):
    """Build BERT under a UniLM mask, with the simplified vocabulary.

    files: settings.Files; checkpoint: path, '' for random weights, None for zeros. Returns
    (bert4keras's Keras model, its tokenizer). It holds the weights that support/unilm.py uses.
    """
    tokenizer, keep_tokens, size = bert.load_tokenizer(files.vocabulary)
    longest = constants.max_p_len + constants.max_q_len + constants.max_a_len
    return bert.build_bert(files, checkpoint, keep_tokens, size, longest), tokenizer


def build_trainer(model, constants):
    """Return what trains a model: Adam on the mean loss of all answer tokens, [SEP] included."""

    def cross_entropy(labels, logits):  # int32 [answer tokens], float32 [answer tokens, vocab]
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

    # fused, three times as fast on a CPU as the optimizer of the same name outside `legacy`
    optimizer = keras.optimizers.legacy.Adam(constants.learning_rate, epsilon=1e-6)
    if constants.warmup_steps or constants.decay_steps:
        schedule = {constants.warmup_steps: 1.0}
        if constants.decay_steps:
            schedule[constants.warmup_steps + constants.decay_steps] = 0.0
        rate, piecewise_linear = constants.learning_rate, bert4keras.backend.piecewise_linear
        optimizer.learning_rate = lambda: rate * piecewise_linear(optimizer.iterations, schedule)
    return Trainer(model, cross_entropy, optimizer, constants)


# ------------------------------------------------------------------------------------------ reader


def vote(probas, counts):
    """Make one score per token out of several passages' probabilities (kexue.fm/archives/7115).

    s(w) = sum_i p_i(w)^2 / (1 + sum_i p_i(w)): a passage that is sure counts more than others.

    probas: float32 [passages, beams, vocab]; counts: float32 [passages, 1, 1], how often each was
    given. Returns float32 [beams, vocab].
    """
    weighted = counts * probas  # [passages, beams, vocab]
    return tf.reduce_sum(weighted * probas, 0) / (1 + tf.reduce_sum(weighted, 0))  # [beams, vocab]


def best_of(votes, scores, width):
    """Find the best `width` of beams x vocabulary.

    A token whose vote is 0 is never taken while another is left; ties go to the earlier beam, then
    the lower token id.

    votes: float32 [beams, vocab]; scores: list of float, of the beams. Returns lists of the new
    scores, of the beams that are extended and of the tokens: all that leaves the device.
    """
    beams, vocab = votes.shape
    logs = tf.cast(tf.math.log(votes + 1e-12), tf.float64)
    sums = logs + np.array(scores)[:, None]  # float64 [beams, vocab]
    order = tf.reshape(tf.where(votes > 0, sums, sums - 1e9), [-1])  # [beams * vocab]
    best = tf.math.top_k(order, min(width, beams * vocab)).indices  # [width]
    parents, tokens = np.divmod(best.numpy(), vocab)
    sums = tf.gather(tf.reshape(sums, [-1]), best)
    return sums.numpy().tolist(), parents.tolist(), tokens.tolist()


def given_to(probas, parents, tokens):
    """Return what each passage gave to a token after a beam, float32 [passages, len(tokens)].

    probas: float32 [passages, beams, vocab]; parents, tokens: lists of int.
    """
    by_token = tf.reshape(probas, [probas.shape[0], -1])  # [passages, beams * vocab]
    chosen = np.array(parents) * probas.shape[-1] + np.array(tokens)
    return tf.gather(by_token, chosen, axis=1).numpy()


class Beams:
    """The answer to one question as far as it is written, and the passages that vote on it."""

    def __init__(self, p_token_ids, topk, end_id):
        self.topk = self.width = topk
        self.end_id = end_id
        # a passage given several times is read once and votes as often
        self.passages = collections.Counter(map(tuple, p_token_ids))
        self.written, self.parents, self.ended = [Written([], None, 0.0, [], False)], [0], []
        self.candidates, self.unfinished = [NO_ANSWER], False

    @property
    def output_ids(self):
        """The token ids of each beam, a list of lists of one length."""
        return [beam.token_ids for beam in self.written]

    @property
    def scores(self):
        """The sum of the logarithms of the votes of each beam."""
        return [beam.log_score for beam in self.written]

    def begin(self, stays, no_answer):
        """Let those of the passages vote that stay; without any it is finished.

        stays: list of bool; no_answer: list of float, the probability that a passage has none.
        """
        self.no_answer = dict(zip(self.passages, no_answer))
        pairs = zip(self.passages.items(), stays)
        self.passages = dict(item for item, staying in pairs if staying)
        self.counts = np.array([*self.passages.values()], np.float32)[:, None, None]
        self.unfinished = bool(self.passages)
        # the passages one after another, each with its [SEP]
        self.text = np.array([i for passage in self.passages for i in passage[1:]], int)
        # for each beam, where in the text its next token may stand
        self.places = [np.arange(len(self.text))]

    def allowed(self, vocab):
        """Return float32 [beams, vocab]: 1 for [SEP] and what goes on in a passage, else 0."""
        allowed = np.zeros([len(self.places), vocab], np.float32)
        allowed[:, self.end_id] = 1
        for beam, places in enumerate(self.places):
            allowed[beam, self.text[places]] = 1
        return allowed

    def extend(self, scores, parents, tokens, probas, max_a_len):
        """Go on with the best beams: their scores, the beams they extend and by which tokens.

        probas: float32 [passages, beams], what each passage gave to these tokens.
        """
        before, places, extended = self.written, self.places, []
        self.written, self.parents, self.places = [], [], []
        for score, parent, token, given in zip(scores, parents, tokens, probas.T):
            token_ids, finished = before[parent].token_ids, token == self.end_id
            if not finished:
                token_ids = [*token_ids, token]
            given = [*before[parent].probas, given]  # for each token what each passage gave it
            extended.append(Written(token_ids, None, score, given, finished))
            if finished:  # it is dropped, and the width shrinks
                self.ended.append(extended[-1])
            else:
                self.written.append(extended[-1])
                self.parents.append(parent)
                goes_on = self.text[places[parent]] == token
                self.places.append(places[parent][goes_on] + 1)
        self.width = len(self.written)
        best = extended[np.argmax(scores)]
        self.unfinished = not best.finished and len(best.token_ids) < max_a_len
        if not self.unfinished:
            others = [beam for beam in self.ended + self.written if beam is not best]
            others.sort(key=lambda beam: (not beam.finished, -beam.log_score))
            counts = self.counts[:, 0, 0]
            self.candidates = []
            for beam in [best, *others][: self.topk]:
                score = score_of(beam.probas, counts)
                self.candidates.append(beam._replace(score=score))


def vote_on_answers(p_token_ids, found_alone, topk):
    """Let the passages of a question vote on whole answers, each by the one that it has written.

    Of c, the product of its tokens' probabilities, sum(c^2) / (1 + sum(c)) is an answer's vote
    (kexue.fm/archives/5409); ties go to the earlier passage.

    found_alone: iterator of the Found of each passage alone. Returns a Found.
    """
    given, no_answer, answers = collections.Counter(map(tuple, p_token_ids)), {}, {}
    for passage, found in zip(given, found_alone):
        no_answer |= found.no_answer
        if found.passages:
            answers[passage] = found.answer
    passages = {passage: given[passage] for passage in answers}
    counts, candidates = np.array([*passages.values()]), []
    for token_ids in dict.fromkeys(tuple(written.token_ids) for written in answers.values()):
        agreeing = [tuple(written.token_ids) == token_ids for written in answers.values()]
        writers = [written for written, agrees in zip(answers.values(), agreeing) if agrees]
        probas = np.full([len(writers[0].probas), len(answers)], np.nan)  # [tokens, passages]
        probas[:, agreeing] = np.concatenate([np.array(w.probas) for w in writers], 1)
        confidences = np.where(agreeing, probas.prod(0), 0)  # [passages]
        squares, total = counts @ confidences**2, counts @ confidences
        score, log_score = squares / max(total, 1e-300), math.log(squares / (1 + total) + 1e-12)
        finished = writers[0].finished
        candidates.append(Written([*token_ids], score, log_score, [*probas], finished))
    candidates.sort(key=lambda written: -written.log_score)  # of equal ones the first
    return Found(passages, no_answer, candidates[:topk] or [NO_ANSWER])


class ReadingComprehension:
    """Answers questions from several passages each; their votes decide every token.

    model, tokenizer: as `build_model` returns them.
    """

    tokens_together = 6144  # questions with no more than so many in all are read together

    def __init__(self, model, tokenizer, constants):
        self.model, self.tokenizer, self.constants = model, tokenizer, constants
        self.end_id, self.extractive = tokenizer._token_end_id, constants.mode == 'extractive'
        self.unilm = UniLM(model, constants.precision)
        stride, most = constants.passage_stride, constants.max_p_len - 2
        if stride > most:
            raise UserError(f'passage_stride = {stride}: leaves tokens unread; at most {most}')

    def answer(self, question, passages, topk=None):
        """Read the passages and answer the question.

        question: str; passages: of str or {'passage': str}; topk: beam width, None for the
        constant. Returns an Answer. Raises TypeError or ValueError for anything else.
        """
        return next(self.answers([(question, passages)], topk))

    def answers(self, questions, topk=None):
        """Yield an Answer for each (question, passages); several questions are read together."""
        topk = records.as_width(topk, self.constants.topk)
        asked = (records.as_asked(*each) for each in questions)
        entries = ((passages, *self.encode(text, passages)) for text, passages in asked)

        def size_of(entry):
            _, windows, q_token_ids = entry
            return sum(len(window.token_ids) + len(q_token_ids) for window in windows)

        for group in in_groups(entries, size_of, self.tokens_together):
            encoded = [([w.token_ids for w in windows], q) for _, windows, q in group]
            found = self.search(encoded, topk)
            for (passages, windows, _), each in zip(group, found):
                unified = [unify_separators(passage) for passage in passages]
                yield describe(each, passages, unified, windows, self.tokenizer)

    def encode(self, question, passages):
        """Return (what is read of the passages, list of Window; q_token_ids, with its [SEP])."""
        encode, constants, windows = self.tokenizer.encode, self.constants, []
        for number, passage in enumerate(passages):
            token_ids = encode(unify_separators(passage))[0]
            size, stride = constants.max_p_len, constants.passage_stride
            windows += windows_of(number, token_ids, size, stride)
        return windows, encode(question, maxlen=constants.max_q_len + 1)[0][1:]

    def search(self, encoded, topk):
        """Return what is found for each of some questions, see `beam_search`, by either vote."""
        if self.constants.vote == 'token':
            return self.beam_search(encoded, topk, vote)
        single = []
        for p_token_ids, q_token_ids in encoded:
            passages = dict.fromkeys(map(tuple, p_token_ids))
            single += [([passage], q_token_ids) for passage in passages]
        found = iter(self.beam_search(single, topk, lambda probas, counts: probas[0]))
        return [vote_on_answers(p_token_ids, found, topk) for p_token_ids, _ in encoded]

    def beam_search(self, encoded, topk, vote):
        """Write the answers of several questions token by token, keeping `topk` beams of each.

        encoded: list of (p_token_ids of each passage or window, q_token_ids); vote: a function like
        the one of this name. Returns a list of Found.
        """
        group, sources = [], []
        for p_token_ids, q_token_ids in encoded:
            beams = Beams(p_token_ids, topk, self.end_id)
            group.append(beams)
            sources.append([[*passage, *q_token_ids] for passage in beams.passages])
        # 1. what each passage predicts, {number of a question: float32 [passages, beams, vocab]}
        # 2. one whose most probable token is [SEP] has no answer and leaves for good
        told, probas, cache = self.unilm.read(sources, self.has_answer)
        for beams, (stays, no_answer) in zip(group, told):
            beams.begin(stays, no_answer)
        while probas:
            for i, predicted in probas.items():
                beams = group[i]
                # 3. in extractive mode only what goes on in a passage is allowed
                allowed = beams.allowed(predicted.shape[-1]) if self.extractive else 1.0
                # 4. the passages vote
                biased = predicted if beams.output_ids[0] else self.biased(predicted)
                votes = vote(biased, beams.counts) * allowed  # [beams, vocab]
                # 5. the best topk of beams x vocabulary go on
                best = best_of(votes, beams.scores, beams.width)
                # 6. the best one is the answer once it ends in [SEP]; others that end are dropped
                given = given_to(predicted, *best[1:])
                beams.extend(*best, given, self.constants.max_a_len)
            # 1. again, after what each beam has written
            unfinished = {i: group[i] for i in probas if group[i].unfinished}
            probas, cache = self.unilm.write(cache, unfinished)
        return [Found(beams.passages, beams.no_answer, beams.candidates) for beams in group]

    def has_answer(self, probas):
        """Return which passages have an answer, bool, and p_i([SEP]), float32, each [passages].

        probas: of the first token, float32 [passages, vocab].
        """
        return tf.argmax(self.biased(probas), -1) != self.end_id, probas[:, self.end_id]

    def biased(self, probas):
        """Return probabilities of the first token, that of [SEP] times e^no_answer_bias."""
        factors = np.ones(probas.shape[-1], np.float32)
        factors[self.end_id] = np.exp(self.constants.no_answer_bias)
        return probas * factors


# --------------------------------------------------------------------------------------- evaluator


def asked(record):
    """Return what the reader is asked by a complete record: (question, passages)."""
    return record['question'], [p['passage'] for p in record['passages']]


def answer_records(reader, data):
    """Yield what is told of each record, a dict that JSON can hold: an Answer, or an error."""
    answers = reader.answers(asked(record) for record in data if not records.unanswerable(record))
    for record in data:
        error = records.unanswerable(record)
        yield as_record(record, None if error else next(answers), error)


class Evaluator(keras.callbacks.Callback):
    """Scores a sample of the validation questions after every epoch, and keeps the best weights.

    reader: ReadingComprehension; valid_data: list of records; references: {id: Reference}; run: the
    Run, which knows the best quality so far.
    """

    def __init__(self, reader, valid_data, references, run, constants):
        super().__init__()
        self.reader, self.references, self.run, self.constants = reader, references, run, constants
        self.sample = records.complete(valid_data)[: constants.valid_sample]

    def on_epoch_end(self, epoch, logs=None):
        """Score, add the score to the logs; of equally good weights the later ones are kept."""
        logs.update(self.evaluate())
        quality = {'final': logs['val_Final'], 'loss': -logs['loss']}[self.constants.best_by]
        if quality >= self.run.state.best:
            self.run.state.best = quality
            described = self.run.fixed['the BERT']
            bert.save_best(self.constants.output_dir, self.reader.model, described)

    def evaluate(self):
        """Show five answers, wrong ones first. Returns {'val_Accuracy', 'val_F1', 'val_Final'}."""
        tally, shown = Tally(), []
        for told in answer_records(self.reader, self.sample):
            self.run.stop.if_asked()
            text, reference = one_line(told['text']), self.references[told['id']]
            score = tally.add(text, reference)
            shown.append((score.correct, told['question'], text or '(none)', reference.answer))
        shown.sort()
        for correct, question, text, gold in shown[:3] + shown[3:][-2:]:
            log(f'  {"right" if correct else "WRONG"}  {question}  answer: {text}  gold: {gold}')
        return {f'val_{name}': tally.result()[name] for name in ('Accuracy', 'F1', 'Final')}


def predict_to_file(reader, data, name, share=(0, 1), references=None, source=None, page=None):
    """Write what is told of every record to NAME.jsonl, and `id<TAB>answer` to NAME.tsv.

    An interrupted run is continued. share: (k, n), worker k of n answers every n-th question, and
    the first one joins the parts; references: {id: Reference} or None, with which a bar shows the
    score so far; source: path of the questions, if no other's answers may replace those to them;
    page: path of the report or None. Returns whether this is the first worker.
    """
    worker, workers = share
    fixed = [*settings.fixed(reader.constants).items()]
    origin = fingerprint_of(reader.model, fixed, data)
    part = Part(name, origin, source, worker, workers)
    answer_part(part, data, lambda rest: answer_records(reader, rest), references)
    if worker == 0:
        part.join(page, lambda told: report_of(reader, data, told, references))
    return worker == 0


def report_of(reader, data, told, references):
    """Return the page of report.html, see support/report.py."""
    tokens_of, constants = reader.tokenizer.ids_to_tokens, reader.constants
    read_length = constants.max_p_len - 2  # characters, as in training
    return report.as_page(data, told, references, tokens_of, read_length, constants.report)


# ---------------------------------------------------------------------------------------- commands


def train(constants, files):
    """Train, or continue an interrupted training, keep the best weights and score them."""
    settings.require(*settings.train_paths(constants, files), *files[1:5])
    strategy = choose_strategy()  # of several workers, before anything else
    make_folder(constants.output_dir)
    worker, _ = process.worker_position()
    with contextlib.nullcontext() if worker else alone_in(constants.output_dir):
        train_alone(constants, files, strategy)


def train_alone(constants, files, strategy):
    """Train as the only run in this output folder."""
    keras.utils.set_random_seed(constants.seed)
    paths, sogouqa = settings.train_paths(constants, files), load_data(files.sogouqa, constants)
    webqa = [record for path in paths for record in load_data(path, constants)]
    references = records.load_references(files.official_answers, files.sogouqa, sogouqa)
    train_data, valid_data = split(webqa, sogouqa, constants)
    records.require_data(train_data, valid_data, files)
    with strategy.scope():
        model, tokenizer = build_model(files, files.checkpoint, constants)
        trainer = build_trainer(model, constants)
    if not files.checkpoint:
        log('no checkpoint: BERT starts from random weights')
    reader = ReadingComprehension(model, tokenizer, constants)

    def encode(record, rng):
        return encode_pair(tokenizer, *training_pair(record, rng, constants), constants)

    fixed = {
        **settings.fixed(constants),
        'the BERT': bert.describe_bert(files),
        'the first weights': fingerprint_of(model),
        'the data': fingerprint_of(None, train_data + valid_data),
    }
    batches = Batches(train_data, encode, constants)
    run = Run(trainer, batches, strategy, fixed, constants)
    run.begin()
    if run.is_chief:
        settings.write_config(constants, files, [tf, keras, bert4keras, np])
    log(f'{len(train_data)} questions to train on, {len(valid_data)} to validate')
    run.fit(Evaluator(reader, valid_data, references, run, constants))
    if run.is_chief:
        bert.load_best(constants.output_dir, model, fixed['the BERT'])
        score_validation(reader, valid_data, references)


def score_validation(reader, valid_data, references, share=(0, 1)):
    """Answer the validation questions into predictions.tsv; print the score as one JSON line.

    Beside it stands the share of questions whose answer is not empty. report.html shows them.
    """
    folder = reader.constants.output_dir
    name, page = os.path.join(folder, 'predictions'), os.path.join(folder, 'report.html')
    shown = page if reader.constants.report else None
    if predict_to_file(reader, valid_data, name, share, references, page=shown):
        if not shown and os.path.exists(page):
            os.remove(page)  # of other answers
        lines = read_text(f'{name}.tsv').split('\n')[:-1]
        answered = sum(not line.endswith('\t') for line in lines) / max(len(lines), 1)
        print(json.dumps({**evaluate(f'{name}.tsv', references), 'Answered': answered}))


def load_trained(constants, files):
    """Return the reader with the best weights of `train`."""
    settings.require(files.config, files.vocabulary)
    model, tokenizer = build_model(files, None, constants)
    bert.load_best(constants.output_dir, model, bert.describe_bert(files))
    return ReadingComprehension(model, tokenizer, constants)


def load_reader(**given):
    """Return the reader with the best weights of `train`; given: constants, say topk=4."""
    constants, files, _ = settings.configure(Constants, given, 'predict')
    return load_trained(constants, files)


def evaluate_best(constants, files):
    """Score validation with the best weights."""
    settings.require(files.sogouqa)
    reader = load_trained(constants, files)
    order = os.path.join(constants.output_dir, 'random_order.json')
    if constants.valid_data == 'auto' and not os.path.exists(order):
        raise UserError(f'{order}: no such file; copy it from where the weights were trained')
    sogouqa = load_data(files.sogouqa, constants)
    references = records.load_references(files.official_answers, files.sogouqa, sogouqa)
    _, valid_data = split([], sogouqa, constants)
    score_validation(reader, valid_data, references, process.worker_position())


def predict(constants, files, line):
    """Answer a file of questions, standard input, or one question; line: the CommandLine."""
    if line.path == '-':
        reader = load_trained(constants, files)
        for told in answer_stream(sys.stdin, lambda data: answer_records(reader, data)):
            print(escaped(json.dumps(told, ensure_ascii=False)), flush=True)
    elif line.path:
        predict_file(constants, files, line.path, 'report' in line.given)
    else:
        reader = load_trained(constants, files)
        answer = reader.answer(line.question, line.passages)
        tokens = [*reader.tokenizer.ids_to_tokens(answer.token_ids), '[SEP]']
        print(terminal.as_text(line.passages, answer, tokens, terminal.has_colour(sys.stdout)))


def predict_file(constants, files, path, with_report):
    """Answer a file of questions; the answers are kept in `output_dir` and printed."""
    data = load_data(path, constants, labelled=False)
    reader = load_trained(constants, files)
    stem, _ = os.path.splitext(os.path.basename(path))
    name = os.path.join(constants.output_dir, f'answers_to_{stem}')
    page = f'{name}.html' if with_report and constants.report else None
    share, source = process.worker_position(), os.path.realpath(path)
    if predict_to_file(reader, data, name, share, source=source, page=page):
        print(terminal.lines_for(sys.stdout, read_text(f'{name}.tsv')), end='', flush=True)


def run_command(arguments):
    """Run a command line, a list of str or None for the process's own."""
    line = settings.parse_command_line(arguments, Constants, __doc__)
    constants, files, notes = settings.configure(Constants, line.given, line.command)
    for note in notes:
        log(note)
    try:
        if line.command == 'train':
            train(constants, files)
        elif line.command == 'eval':
            evaluate_best(constants, files)
        elif line.command == 'predict':
            predict(constants, files, line)
        else:
            reader = load_trained(constants, files)
            serving.export(line.path, reader.model, reader.tokenizer, constants)
    except tf.errors.OpError as error:
        cure = 'run the same command, of all workers, to continue'
        raise UserError(f'TensorFlow broke off ({first_line(error)}); {cure}') from None


def main(arguments=None):
    """Run a command line, a list of str or None for the process's own. Returns the exit status."""
    process.prepare_process()
    return exit_status(lambda: run_command(arguments))


if __name__ == '__main__':
    sys.exit(main())
