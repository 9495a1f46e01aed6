"""Reading comprehension by seq2seq: several passages vote on every token of one answer.

    python task_reading_comprehension_by_seq2seq.py train     # the demo: a minute, Final 0.98
    python task_reading_comprehension_by_seq2seq.py eval      # score; --compare_with=OTHER: changes
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

import json
import math
import os
import re
import sys
from typing import Literal

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # not there with PYTHONSAFEPATH
from support import settings
from support.settings import Path, Positive, Whole


@settings.constants
class Constants:
    """Edit a value and rerun, or give it once as --name=value; the type says what is allowed."""

    # files; 'auto' means data/, or data/demo/ as long as data/ holds none of the real files
    data_dir: Path = 'auto'  # of WebQA.json, SogouQA.json, perhaps qid_answer_expand
    train_data: Path = 'auto'  # own data instead, files with commas: a tenth is for validation,
    valid_data: Path = 'auto'  # or all of this file
    config_path: Path = 'auto'  # BERT's configuration, to train; 'auto': bert_config.json there
    checkpoint_path: Path = 'auto'  # 'auto': bert_model.ckpt there; '': random weights
    dict_path: Path = 'auto'  # BERT's vocabulary, to train; 'auto': vocab.txt there
    output_dir: Path = 'output'  # everything that is written goes into this folder
    # lengths, in tokens
    max_p_len: Whole[3] = 256  # passage, its [CLS] and [SEP] included
    passage_stride: Whole[0] = 0  # tokens to the next window of a long one; 0: it is cut off
    max_q_len: Whole[2] = 64  # question, its [SEP] included
    max_a_len: Whole[1] = 32  # answer, its [SEP] included; in training the sum counts
    # training
    batch_size: Whole[1] = 32  # pairs per update; lower it when memory runs out
    epochs: Whole[1] = 8  # of each question one passage is drawn in an epoch
    learning_rate: Positive = 1e-5  # of Adam
    best_by: Literal['final', 'loss'] = 'final'  # weights kept: best Final; lowest loss
    valid_sample: Whole[1] = 100  # validation questions scored after every epoch
    warmup_steps: Whole[0] = 0  # updates over which the learning rate rises; 0: none
    decay_steps: Whole[0] = 0  # updates over which it then falls to 0; 0: it stays
    accumulate_steps: Whole[1] = 1  # parts of a batch, one by one; more: less memory
    backup_minutes: Positive = 10.0  # at most so much work is lost when interrupted
    seed: Whole[0] = 42  # of the split, the draws, dropout and random weights
    # reading
    mode: Literal['extractive', 'generative'] = 'extractive'  # pieces of passages; any text
    topk: Whole[1] = 1  # beam width
    no_answer_bias: float = 0.0  # e^bias times the probability that a passage has no answer
    vote: Literal['token', 'answer'] = 'token'  # on each token; on the answers of single passages
    precision: Literal['float32', 'bfloat16'] = 'float32'  # exact; faster where hardware has it
    report: Whole[0] = 1000  # questions shown in report.html; 0: none


if __name__ == '__main__':
    # mistakes and --help are answered before TensorFlow is imported, which takes seconds
    command_line = settings.read_early(Constants, __doc__)

import numpy as np

from evaluate_sogou import Tally
from support import bert, paths, predictions, process, records, serving, training, truncation
from support.answers import Hypothesis, Question, agreed, describe, draw_window, search_result
from support.comparison import load_comparison
from support.keras2 import keras, tf
from support.process import log, print_lines
from support.reading import CachedUniLM, in_groups
from support.report import as_text
from support.resume import Run

# -------------------------------------------------------------------------------------------- data


def passage_text(passage):
    """Return the text that is read of a passage: training, answers and their places are of it.

    passage: dict, as the file has it, or {'passage': str}. It is called once, when a record is
    loaded; its result becomes the 'passage' that the functions below read.
    """
    return passage['passage']


def split(webqa, sogouqa, constants):
    """Split SogouQA by a random order, saved in `output_dir`: every third is for validation.

    webqa, sogouqa: lists of records. Returns (training records: the rest of SogouQA twice and
    WebQA, but what lacks something; validation records). With `train_data` alone sogouqa is of it:
    every tenth is for validation, the rest trains once. With `valid_data` nothing is split: webqa
    is of `train_data`, sogouqa of `valid_data`.
    """
    if constants.valid_data != 'auto':
        return records.complete(webqa), sogouqa
    path = os.path.join(constants.output_dir, 'random_order.json')
    drawn = np.random.default_rng(constants.seed).permutation(len(sogouqa)).tolist()
    random_order = records.saved_order(path, drawn)
    if constants.train_data != 'auto':
        train_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 10 != 0]
        return records.complete(train_data), [sogouqa[j] for j in random_order[::10]]
    valid_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 == 0]
    train_data = [sogouqa[j] for i, j in enumerate(random_order) if i % 3 != 0]
    return records.complete(train_data + train_data + webqa), valid_data


def unify_separators(passage):
    """Replace each space, 、, ； and ， by a comma: one character for one, so offsets survive."""
    return re.sub(records.SEPARATORS, ',', passage)


def training_pair(record, rng, constants):
    """Draw a passage of a record, and find what is to be written about it (the post's generator).

    That is, of the answers given with any passage, the first all of whose parts stand in the drawn
    one, else ''. How the drawn passage itself is labelled does not matter.

    rng: NumPy Generator. Returns (passage, question, final_answer), str.
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


def asked(record):
    """Return what the reader is asked by a record: (question, passages), str and list of str."""
    return record['question'], [p['passage'] for p in record['passages']]


# -------------------------------------------------------------------------------- model and loss


def unilm_mask(query, key, source_length):
    """Say which tokens see which (https://arxiv.org/abs/1905.03197, the post's figure).

    Passage and question (segment 0), the source, see each other and never the answer (segment 1);
    a token of the answer sees the source, itself and what stands before it. Reading and training
    share it: after a change, train anew. query, key: int32, positions of who looks and of what is
    looked at; source_length: int32. Returns bool, of their common shape.
    """
    return (key < source_length) | (key <= query)


def build_model(files, checkpoint, constants):
    """Build BERT with the simplified vocabulary; support/unilm.py computes with its weights.

    checkpoint: path, '' for random weights, None for zeros. Returns (Keras model, its tokenizer).
    """
    tokenizer, keep_tokens, vocabulary_size = bert.load_tokenizer(files.vocabulary)
    longest = constants.max_p_len + constants.max_q_len + constants.max_a_len
    return bert.build_bert(files, checkpoint, keep_tokens, vocabulary_size, longest), tokenizer


class CrossEntropy:
    """The loss: mean cross-entropy of all tokens of the answers of a batch, each [SEP] included."""

    def __init__(self, constants):
        self.constants = constants  # for a loss that has some of its own

    def targets(self, token_ids, segment_ids):
        """Say what each position but the last is to predict, and how much that counts.

        token_ids, segment_ids: int32 [batch, length]. Returns y_true, int32, and y_mask, float32.
        """
        y_true = token_ids[:, 1:]  # the next token, [batch, length - 1]
        y_mask = tf.cast(segment_ids[:, 1:], tf.float32)  # 1 for the answer and its [SEP], else 0
        return y_true, y_mask

    def compute_loss(self, y_true, y_mask, y_pred, total):
        """Return the loss of a part of a batch; those of all parts add up to the mean.

        y_true, y_mask: those of `targets` where a token of an answer is next, all rows joined into
        one, [1, tokens]; y_pred: logits of the position before each, float32 [1, tokens, vocab];
        total: the sum of y_mask over the batch.
        """
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y_true, y_pred)  # [1, tokens]
        return tf.reduce_sum(loss * y_mask) / total


def build_trainer(model, constants):
    """Return what trains a model: Adam on `CrossEntropy`."""
    # fused, three times as fast on a CPU as the optimizer of the same name outside `legacy`
    optimizer = keras.optimizers.legacy.Adam(constants.learning_rate, epsilon=1e-6)
    return training.Trainer(model, unilm_mask, CrossEntropy(constants), optimizer, constants)


# ------------------------------------------------------------------------------------------ reader


def allowed_tokens(text, hypotheses, end_id, vocab):
    """Mark the tokens that may come next: what follows a hypothesis in some passage, and [SEP].

    text: int [tokens] of all passages that have an answer; each ends in [SEP], so that no answer
    runs into the next. Returns float32 [beams, vocab], 1 where a token is allowed, else 0.
    """
    allowed = np.zeros([len(hypotheses), vocab], np.float32)
    for row, hypothesis in zip(allowed, hypotheses):
        places = np.arange(len(text))  # in the text, where the next token may stand
        for token in hypothesis.token_ids:
            places = places[text[places] == token] + 1
        row[text[places]] = row[end_id] = 1
    return allowed


def vote(probas):
    """Make one vote per token out of several passages' probabilities (kexue.fm/archives/7115).

    s(w) = sum_i p_i(w)^2 / (1 + sum_i p_i(w)): a passage that is sure counts more than others.

    probas: float32 [passages, beams, vocab]. Returns float32 [beams, vocab], 0 for no vote.
    """
    return tf.reduce_sum(probas * probas, 0) / (1 + tf.reduce_sum(probas, 0))


def best_extensions(hypotheses, votes, probas, width, end_id):
    """Extend hypotheses by a token each: the best `width` of beams x vocabulary.

    A token whose vote is 0 is never taken while another is left; ties go to the earlier beam, then
    the lower token id. votes: float32 [beams, vocab]; probas: float32 [passages, beams, vocab].
    Returns a list of Hypothesis, the best first.
    """
    beams, vocab = votes.shape
    before = np.array([hypothesis.log_score for hypothesis in hypotheses])[:, None]
    log_scores = tf.cast(tf.math.log(votes + 1e-12), tf.float64) + before  # [beams, vocab]
    ranking = tf.where(votes > 0, log_scores, log_scores - 1e9)
    chosen = tf.math.top_k(tf.reshape(ranking, [-1]), min(width, beams * vocab)).indices  # [width]
    log_scores = tf.gather(tf.reshape(log_scores, [-1]), chosen).numpy().tolist()
    token_probs = tf.gather(tf.reshape(probas, [-1, beams * vocab]), chosen, axis=1).numpy().T
    extended = []
    for index, log_score, of_token in zip(chosen.numpy().tolist(), log_scores, token_probs):
        parent, token = divmod(index, vocab)
        token_ids = [*hypotheses[parent].token_ids, token]
        of_tokens = [*hypotheses[parent].token_probs, of_token]  # each [passages]
        extended.append(Hypothesis(token_ids, log_score, of_tokens, token == end_id, parent))
    return extended


def vote_on_answers(results, topk):
    """Let passages vote on the answers that each has written by itself (kexue.fm/archives/5409).

    An answer's vote is `vote` of c, the product of its tokens' probabilities, of those passages
    that wrote it. results: a SearchResult for each single passage. Returns one for all.
    """
    has_answer = np.array([result.has_answer[0] for result in results], bool)
    no_answer_prob = [result.no_answer_prob[0] for result in results]
    answers = [result.hypotheses[0] for result in results if result.has_answer[0]]
    c = np.array([np.prod(answer.token_probs, dtype=float) for answer in answers])
    voted = []
    for token_ids in dict.fromkeys(tuple(answer.token_ids) for answer in answers):
        wrote = np.array([tuple(answer.token_ids) == token_ids for answer in answers])
        log_score = math.log(vote(c[wrote]) + 1e-12)
        score = sum(c[wrote] ** 2) / max(sum(c[wrote]), 1e-300)  # mean of c, weighted by c
        voted.append(agreed(answers, wrote, score, log_score))
    best = max(voted, key=lambda hypothesis: hypothesis.log_score, default=None)
    return search_result(has_answer, no_answer_prob, best, voted, topk)


class ReadingComprehension:
    """Answers questions from several passages each; their votes decide every token.

    model, tokenizer: as `build_model` returns them.
    """

    tokens_together = 6144  # so much is read together; less needs less memory

    def __init__(self, model, tokenizer, constants):
        self.model, self.tokenizer, self.constants = model, tokenizer, constants
        self.end_id = tokenizer._token_end_id
        self.unilm = CachedUniLM(model, unilm_mask, constants.precision)

    def answer(self, question, passages, topk=None):
        """Read the passages and answer the question.

        question: str; passages: of str or {'passage': str}; topk: beam width, None for the
        constant. Returns an Answer. Raises UserError for anything else.
        """
        return next(self.answers([records.as_asked(question, passages, passage_text)], topk))

    def answers(self, questions, topk=None):
        """Yield an Answer for each (question, passages), str and list of str, read together."""
        topk = self.constants.topk if topk is None else topk
        topk = settings.changed(self.constants, topk=topk).topk  # checked as the constant is
        encoded = (self.encode(question, passages) for question, passages in questions)
        for group in in_groups(encoded, self.tokens_together):
            results = self.search([(each.p_token_ids, each.q_token_ids) for each in group], topk)
            for each, result in zip(group, results):
                yield describe(result, each, self.tokenizer)

    def encode(self, question, passages):
        """Return the Question: token ids of the question and of what is read of its passages."""
        unified = [unify_separators(passage) for passage in passages]
        p_token_ids = [self.tokenizer.encode(passage)[0] for passage in unified]
        maxlen = self.constants.max_q_len + 1  # with a [CLS], which is dropped
        q_token_ids = self.tokenizer.encode(question, maxlen=maxlen)[0][1:]
        # cut to `max_p_len`, or into windows
        return Question.of(passages, unified, p_token_ids, q_token_ids, self.constants)

    def search(self, pairs, topk):
        """Return the SearchResult of each (p_token_ids, q_token_ids), by either vote."""
        if self.constants.vote == 'token':
            searches = [self.beam_search(*pair, topk) for pair in pairs]
            return self.unilm.search_together(searches, self.answerable)
        alone = {}  # each passage writes an answer by itself; one that stands twice is read once
        for p_token_ids, q_token_ids in pairs:
            for passage in p_token_ids:
                alone[(*passage, *q_token_ids)] = self.beam_search([passage], q_token_ids, topk)
        found = self.unilm.search_together([*alone.values()], self.answerable)
        found = dict(zip(alone, found))
        return [vote_on_answers([found[(*p, *q)] for p in ps], topk) for ps, q in pairs]

    def beam_search(self, p_token_ids, q_token_ids, topk):
        """Write the answer to one question, keeping the `topk` best hypotheses.

        p_token_ids: of each passage or window; q_token_ids: with its [SEP]. A generator: it yields
        the sources, later the hypotheses, and `search_together` sends what each passage predicts
        next, from the second time on each that has an answer. Returns a SearchResult.
        """
        # 1. what each passage predicts as the first token of the answer, [passages, 1, vocab]
        probas = yield [[*passage, *q_token_ids] for passage in p_token_ids]
        # 2. one whose most probable token is [SEP] has no answer and leaves for good
        first = probas[:, 0]  # [passages, vocab]
        has_answer, no_answer_prob = self.answerable(first), first[:, self.end_id]
        if not has_answer.any():
            return search_result(has_answer, no_answer_prob)
        probas = tf.gather(probas, np.flatnonzero(has_answer))
        text = np.concatenate([p[1:] for p, stays in zip(p_token_ids, has_answer) if stays])
        hypotheses, width, dropped = [Hypothesis()], topk, []
        voting = self.with_bias(probas)  # what is voted with; `probas` are reported as they are
        while True:
            # 3. in extractive mode only tokens that go on in some passage keep their probability
            if self.constants.mode == 'extractive':
                voting = voting * allowed_tokens(text, hypotheses, self.end_id, probas.shape[-1])
            # 4. the passages vote; with vote = 'answer' there is but one, which needs no vote
            votes = vote(voting) if self.constants.vote == 'token' else voting[0]
            # 5. the best `topk` of beams x vocabulary go on
            extended = best_extensions(hypotheses, votes, probas, width, self.end_id)
            hypotheses = Hypothesis.with_reasons(extended, hypotheses, votes, voting)
            # 6. the best is the answer if it ends in [SEP], or is full; others that end are dropped
            best = max(hypotheses, key=lambda hypothesis: hypothesis.log_score)
            if best.finished or len(best.token_ids) == self.constants.max_a_len:
                runners_up = dropped + hypotheses
                return search_result(has_answer, no_answer_prob, best, runners_up, topk)
            dropped += [each for each in hypotheses if each.finished]
            hypotheses = [each for each in hypotheses if not each.finished]
            width = len(hypotheses)
            # 1. again, after what each hypothesis has written
            probas = voting = yield hypotheses

    def answerable(self, probas):
        """Say which passages have an answer, bool [passages], by what they predict first.

        probas: of the first token, float32 [passages, vocab].
        """
        return tf.argmax(self.with_bias(probas), -1).numpy() != self.end_id

    def with_bias(self, probas):
        """Return probabilities of the first token, that of [SEP] times e^no_answer_bias."""
        factors = np.ones(probas.shape[-1], np.float32)
        factors[self.end_id] = np.exp(self.constants.no_answer_bias)
        return probas * factors

    def predict(self, data):
        """Yield the prediction for each record, a dict that JSON can hold, see predictions.py."""

        def warnings(record, answer):
            return self.warnings(*asked(record), answer)

        return predictions.of_records(data, lambda some: self.answers(map(asked, some)), warnings)

    def warnings(self, question, passages, answer):
        """Return what of a question or in its Answer is lost, a list of str, see truncation.py."""
        are_cut = [not answer.candidates[0].finished]
        told = unify_separators, self.tokenizer, self.constants
        return truncation.warnings([(question, passages)], are_cut, *told)


# --------------------------------------------------------------------------------------- evaluator


class Evaluator:
    """Scores a sample of the validation questions after every epoch, and keeps the best weights.

    valid_data: list of records; references: {id: Reference}; run: resume.Run.
    """

    def __init__(self, reader, valid_data, references, run):
        self.reader, self.references, self.run = reader, references, run
        self.sample = records.complete(valid_data)[: reader.constants.valid_sample]

    def on_epoch_end(self, epoch, logs):
        """Score, add the score to the logs; of equally good weights the later ones are kept."""
        logs.update(self.evaluate())
        quality = {'final': logs['val_Final'], 'loss': -logs['loss']}
        self.run.keep_if_best(quality[self.reader.constants.best_by])

    def evaluate(self):
        """Show five answers, wrong ones first. Returns {'val_Accuracy', 'val_F1', 'val_Final'}."""
        tally, shown = Tally(), []
        for prediction in self.reader.predict(self.sample):
            self.run.stop_if_asked()
            score = predictions.score_of(prediction, self.references)
            tally.add(score)
            gold = self.references[records.id_of(prediction)].answer
            text = prediction['text'] or '(none)'
            shown.append((score.correct, prediction['question'], text, gold))
        shown.sort()
        for correct, question, text, gold in shown[:3] + shown[3:][-2:]:
            log(f'  {"right" if correct else "WRONG"}  {question}  answer: {text}  gold: {gold}')
        return {f'val_{name}': tally.result()[name] for name in ('Accuracy', 'F1', 'Final')}


# ---------------------------------------------------------------------------------------- commands


def load_data(sources, files, constants, labelled=True):
    """Read datasets, paths, as the reader sees them, and say what of each is cut off."""
    data = []
    for path in sources:
        some = records.load_questions(path, passage_text, labelled)
        truncation.report(path, some, unify_separators, files.vocabulary, constants)
        data += some
    return data


def train(constants, files):
    """Train, or continue an interrupted training, keep the best weights and score them."""
    needed = *files.webqa, *files.sogouqa, files.config, files.checkpoint, files.vocabulary
    paths.require(*needed, constants=constants)
    with training.only_one(constants) as strategy:
        sogouqa = load_data(files.sogouqa, files, constants)
        webqa = load_data(files.webqa, files, constants)
        references = records.load_references(files, sogouqa)
        train_data, valid_data = split(webqa, sogouqa, constants)
        records.require_data(train_data, valid_data, files)
        with strategy.scope():
            model, tokenizer = build_model(files, files.checkpoint, constants)
            trainer = build_trainer(model, constants)
        reader = ReadingComprehension(model, tokenizer, constants)

        def draw(record, rng):
            return encode_pair(tokenizer, *training_pair(record, rng, constants), constants)

        run = Run(trainer, draw, train_data, valid_data, strategy, files, constants)
        run.fit(Evaluator(reader, valid_data, references, run))
        if run.is_chief:
            bert.load_best(constants.output_dir, model, files)
            score_validation(reader, valid_data, references, files)


def score_validation(reader, valid_data, references, files, shard=(0, 1), compared=None):
    """Answer the validation questions; print the score, and a Comparison, as a JSON line each."""
    folder = reader.constants.output_dir
    name, page = os.path.join(folder, 'predictions'), os.path.join(folder, 'report.html')
    options = {'dataset': files.dataset, 'references': references, 'comparison': compared}
    joined = predictions.predict_to_file(reader, valid_data, name, shard, page=page, **options)
    if joined:
        print(json.dumps(joined.score))
    if compared:
        print(process.escaped(json.dumps(compared.line, ensure_ascii=False)))


def load_trained(constants, files):
    """Return the reader with the best weights of `train`."""
    paths.require_reader(files)
    model, tokenizer = build_model(files, files.checkpoint, constants)
    return ReadingComprehension(model, tokenizer, constants)


def load_reader(**overrides):
    """Return the reader with the best weights of `train`; overrides: constants, say topk=4."""
    constants, files, _ = settings.configure(Constants, overrides, 'predict')
    return load_trained(constants, files)


def evaluate_best(constants, files, compare_with):
    """Score validation with the best weights; compare_with: path of other predictions, or None."""
    paths.require(*files.sogouqa, constants=constants)
    paths.require_reader(files)
    of_reader = paths.in_reader_folder(constants, files)
    sogouqa = load_data(files.sogouqa, files, constants)
    references = records.load_references(files, sogouqa)
    _, valid_data = split([], sogouqa, of_reader)
    records.require_left_out(of_reader, valid_data)
    compared = load_comparison(compare_with, valid_data, references, files.dataset)
    reader, shard = load_trained(constants, files), process.rank_and_world_size()
    score_validation(reader, valid_data, references, files, shard, compared)


def predict(constants, files, line):
    """Answer a file of questions, standard input, or one question; line: a CommandLine."""
    if line.path == '-':
        reader = load_trained(constants, files)
        predictions.print_stream(sys.stdin, reader.predict, passage_text)
    elif line.path:
        data = load_data([line.path], files, constants, labelled=False)
        reader = load_trained(constants, files)
        joined = predictions.predict_to_file(reader, data, **predictions.place_of(line))
        if joined:
            print_lines(joined.tab_separated)
    else:
        reader = load_trained(constants, files)
        asked_for = records.as_asked(line.question, line.passages, passage_text)
        [answer] = reader.answers([asked_for])
        if warnings := reader.warnings(*asked_for, answer):
            log(f'what is asked: {"; ".join(warnings)}')
        print(as_text(answer, asked_for[1]))


def run_command(line):
    """Run what a command line says; line: settings.CommandLine."""
    constants, files = line.constants, line.files
    if line.command == 'train':
        train(constants, files)
    elif line.command == 'eval':
        evaluate_best(constants, files, line.compare_with)
    elif line.command == 'predict':
        predict(constants, files, line)
    else:
        reader = load_trained(constants, files)
        serving.export(line.path, reader, unilm_mask)


if __name__ == '__main__':
    sys.exit(process.run(lambda: run_command(command_line)))
