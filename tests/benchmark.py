"""Measure reader and training against the original's way, in one run, on the same weights.

    python tests/benchmark.py reading [--precision=bfloat16] [--data=FILE] [--topk=K]
    python tests/benchmark.py training [--precision=bfloat16] [--data=FILE]

The last line of standard output is one JSON object. The model is of BERT-base size with random
weights, made to behave like trained ones (see `make_decisive`); questions are real where
../shared/data is at hand, else of the same lengths.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared', 'data')
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tests')]

import numpy as np
from reference_decoder import ReferenceDecoder

import task_reading_comprehension_by_seq2seq as task
from support import batches, bert, records
from support.keras2 import keras, tf
from support.unilm import UniLM

VOCABULARY_SIZE = 13584  # of the simplified Chinese vocabulary
SEP = 3
BERT_BASE = {
    'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12,
    'intermediate_size': 3072, 'hidden_act': 'gelu', 'max_position_embeddings': 512,
    'type_vocab_size': 2, 'hidden_dropout_prob': 0.1, 'initializer_range': 0.02,
}  # fmt: skip


class OriginalDecoder(ReferenceDecoder):
    """The reference decoder with the original's `model.predict`."""

    def forward(self, batch):
        """Return the probabilities at every position, float32 [rows, length, vocab]."""
        return self.model.predict(batch, verbose=0)


def load_tokenizer():
    """Return the tokenizer of the real vocabulary."""
    return bert.load_tokenizer(os.path.join(SHARED, 'vocab.txt'))[0]


def load_token_ids(path, count, constants):
    """Return (p_token_ids, q_token_ids) of `count` questions, evenly spread over a file, if any."""
    if path:
        encoder = task.ReadingComprehension.__new__(task.ReadingComprehension)
        encoder.tokenizer, encoder.constants = load_tokenizer(), constants
        data = records.complete(records.load_questions(path))
        chosen = np.linspace(0, len(data) - 1, count).astype(int)
        return [encoder.encode(*task.asked(data[i])) for i in chosen]
    rng = np.random.default_rng(0)

    def text(length):
        return rng.integers(100, VOCABULARY_SIZE, length).tolist()

    lengths = np.exp(rng.normal(4.2, 0.9, [count, 12]))
    lengths = np.clip(lengths, 5, constants.max_p_len - 2).astype(int)
    return [([[2, *text(length), SEP] for length in row], [*text(12), SEP]) for row in lengths]


def build_model():
    """Return bert4keras's BERT-base under the UniLM mask, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, 'bert_config.json')
        with open(config, 'w', encoding='utf-8') as file:
            json.dump({**BERT_BASE, 'vocab_size': VOCABULARY_SIZE}, file)
        keras.utils.set_random_seed(0)
        return bert.build_bert(config, '', None, VOCABULARY_SIZE, longest=512)


def make_decisive(model, reader, questions):
    """Make random weights behave like trained ones: 45% of passages have an answer, of 4 tokens.

    One unit of the head, which only [SEP] listens to, speaks up where the last layer's output lies
    on one side of a plane. The plane has 55% of the sources on that side, and of the answers'
    tokens as many as make answers of the wanted length; the layers below are left as they were.
    """
    first, later = [], []
    for p_token_ids, q_token_ids in questions[:: max(1, len(questions) // 30)]:
        answers = [token_ids[1:5] for token_ids in p_token_ids]
        sources = [token_ids + q_token_ids for token_ids in p_token_ids]
        rows = [source + answer for source, answer in zip(sources, answers, strict=True)]
        lengths, source_lengths = ([len(row) for row in some] for some in (rows, sources))
        packed = map(np.int32, (np.concatenate(rows), lengths, source_lengths))
        hidden = iter(reader.unilm.run_layers(*packed)[0].numpy())
        for answer in answers:
            first.append(next(hidden))
            later += [next(hidden) for _ in answer]
    first, later = np.array(first), np.array(later)
    shift = later.mean(0) - first.mean(0)  # tells answers from sources
    spread = np.linalg.svd(first - first.mean(0), full_matrices=False)[2][
        0
    ]  # tells sources from each other
    table, dense = model.get_layer('Embedding-Token').embeddings, model.get_layer('MLM-Dense')
    values, (kernel, offsets) = table.numpy(), dense.get_weights()
    values[:, 0] = np.arange(VOCABULARY_SIZE) == SEP
    table.assign(values)
    bias = model.get_layer('MLM-Bias').weights[0]
    bias.assign(
        -4.0 * (np.arange(VOCABULARY_SIZE) == SEP)
    )  # unless that unit speaks up, [SEP] does not win
    low, high = 0.0, 1.0
    for _ in range(8):
        stop = (low + high) / 2  # share of the tokens after which [SEP] follows

        def gap(weight, stop=stop):
            direction = spread + weight * shift
            return np.quantile(later @ direction, 1 - stop) - np.quantile(first @ direction, 0.45)

        weights = np.linspace(-2, 2, 4001) * np.std(first @ spread) / (shift @ shift)
        direction = spread + min(weights, key=lambda weight: abs(gap(weight))) * shift
        volume = 40 / np.std(first @ direction)
        threshold = np.quantile(first @ direction, 0.45)
        kernel[:, 0], offsets[0] = volume * direction, -volume * threshold
        dense.set_weights([kernel, offsets])
        found = reader.beam_search(questions[:: max(1, len(questions) // 10)], 1)
        length = np.mean([len(beams.answer) for beams in found if beams.passages])
        say(f'[SEP] after {stop:.3f} of the tokens: answers of {length:.1f}')
        if 3.5 <= length <= 5.5:
            return
        low, high = (stop, high) if length > 4.5 else (low, stop)
    raise SystemExit('these random weights cannot be made to behave; draw others')


def matmul_rate(precision):
    """Return the operations per second of a product of the model's own size."""
    a, b = (tf.cast(tf.random.normal(shape), precision) for shape in ([2048, 768], [768, 3072]))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        tf.matmul(a, b).numpy()
        times.append(time.perf_counter() - start)
    return 2 * 2048 * 768 * 3072 / statistics.median(times)


def operations(lengths, predictions):
    """Return the operations of one pass over sequences, with the vocabulary at some tokens."""
    width, layers = BERT_BASE['hidden_size'], BERT_BASE['num_hidden_layers']
    linear = 2 * (4 * width**2 + 2 * width * BERT_BASE['intermediate_size'])
    head = 2 * predictions * width * VOCABULARY_SIZE
    return sum(layers * n * (linear + 4 * n * width) for n in lengths) + head


def say(text):
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def peak_alone(which, options, *paths):
    """Return the peak resident memory in MB of a process that does it one way of the two."""
    command = [sys.executable, __file__, options.what, f'--alone={which}']
    command.append(f'--precision={options.precision}')
    arguments = [f'--{name}={getattr(options, name)}' for name in ('topk', 'data', 'questions')]
    arguments += [f'--weights={path}' for path in paths]
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, encoding='utf-8', check=True
    )
    return int(done.stdout)


def say_peak():
    """Print the peak resident memory in MB; getrusage would count the parent's before the start."""
    with open('/proc/self/status', encoding='utf-8') as file:
        print(next(int(line.split()[1]) // 1024 for line in file if line.startswith('VmHWM')))


def median_ratio(rounds, above, below):
    return float(np.median(rounds[:, above] / rounds[:, below]))


# ----------------------------------------------------------------------------------------- reading


def read_together(reader, questions, topk):
    """Yield the Beams of questions, as `ReadingComprehension.answers` reads them."""

    def size_of(question):
        p_token_ids, q_token_ids = question
        return sum(len(token_ids) + len(q_token_ids) for token_ids in p_token_ids)

    for group in batches.in_groups(questions, size_of, reader.tokens_together):
        yield from reader.beam_search(group, topk)


def reading(options):
    """Compare both ways of reading and print the figures as JSON."""
    constants, tokenizer = task.Constants(precision=options.precision), argparse.Namespace()
    tokenizer._token_end_id = SEP
    questions, model = load_token_ids(options.data, options.questions, constants), build_model()
    reader = task.ReadingComprehension(model, tokenizer, constants)
    original = OriginalDecoder(model, SEP, constants.max_a_len, constants.mode)
    if options.alone:
        model.load_weights(options.weights)
        questions.sort(key=lambda question: -len(question[0]) * max(map(len, question[0])))
        if options.alone == 'ours':
            list(read_together(reader, questions[:16], options.topk))  # the largest decide
        else:
            for question in questions[:16]:
                original.answer(*question, options.topk)
        return say_peak()
    exact = argparse.Namespace(unilm=UniLM(model), beam_search=reader.beam_search)
    make_decisive(model, exact, questions)
    reader.beam_search(questions[:1], options.topk)  # traces
    original.answer(*questions[0], options.topk)
    rounds, different, lengths, remaining = [], [], [], 0
    for start in range(0, len(questions), 10):
        part = questions[start : start + 10]
        times, expected = [time.perf_counter()], []
        for question in part:
            expected.append(original.answer(*question, options.topk))
            remaining += len(original.remaining) / len(question[0])
        times.append(time.perf_counter())
        found = [beams.answer for beams in read_together(reader, part, options.topk)]
        times.append(time.perf_counter())
        sources = {(i, *p, *q) for i, (ps, q) in enumerate(part) for p in map(tuple, ps)}
        limit = operations([len(source) - 1 for source in sources], len(sources))
        limit /= matmul_rate(options.precision)
        rounds.append(np.array([times[1] - times[0], times[2] - times[1], limit]) / len(part))
        different += [start + i for i in range(len(part)) if found[i] != expected[i]]
        lengths += map(len, expected)
        say(f'{start + len(part)} questions, seconds each: {rounds[-1].round(3)}')
    rounds = np.array(rounds)
    reference, ours, limit = np.median(rounds, 0)
    say(f'passages with an answer: {remaining / len(questions):.2f}, {np.mean(lengths):.1f} tokens')
    say(f'questions with another answer: {different}')
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, 'model.weights.h5')
        model.save_weights(weights)
        peaks = [peak_alone(which, options, weights) for which in ('ours', 'original')]
    return print_json(
        reference_seconds_per_question=reference,
        seconds_per_question=ours,
        ratio=median_ratio(rounds, 0, 1),
        identical_answers=1 - len(different) / len(questions),
        questions=len(questions),
        peak_rss_mb=peaks[0],
        reference_peak_rss_mb=peaks[1],
        matmul_limit_seconds_per_question=limit,
        fraction_of_limit=median_ratio(rounds, 2, 1),
    )


# ---------------------------------------------------------------------------------------- training


def load_training(path, constants):
    """Return the Batches of a file of questions."""
    tokenizer = load_tokenizer()

    def encode(record, rng):
        pair = task.training_pair(record, rng, constants)
        return task.encode_pair(tokenizer, *pair, constants)

    return batches.Batches(records.complete(records.load_questions(path)), encode, constants)


def load_batches(path, count, constants):
    """Return `count` batches of 16 pairs, as the original draws them, and again of like length."""
    if path:
        training_data = load_training(path, constants)
        training_data.window = count
        sorted_batches = training_data.draw_window(0, 0)
    else:
        rng, pairs = np.random.default_rng(0), []
        for p_token_ids, q_token_ids in load_token_ids('', 16 * count, constants):
            answer = [*rng.integers(100, VOCABULARY_SIZE, rng.integers(0, 8)).tolist(), SEP]
            source = p_token_ids[0] + q_token_ids
            pairs.append((0, source + answer, [0] * len(source) + [1] * len(answer)))
        pairs.sort(key=lambda pair: len(pair[1]))
        sorted_batches = [pairs[i : i + 16] for i in range(0, len(pairs), 16)]
    pairs = [pair for batch in sorted_batches for pair in batch]
    order = np.random.default_rng(1).permutation(len(pairs))
    original_batches = []
    for start in range(0, len(pairs), 16):
        original_batches.append([pairs[i] for i in order[start : start + 16]])
    return [[batches.pad(batch) for batch in some] for some in (original_batches, sorted_batches)]


def pairs_per_second(path, constants):
    """Return how many pairs the input pipeline delivers per second; NaN without real data."""
    if not path:
        return math.nan
    training_data, start = load_training(path, constants), time.perf_counter()
    count = sum(len(batch['Input-Token']) for batch in training_data.dataset())
    return count / (time.perf_counter() - start)


def make_updates(options, constants):
    """Return {which: a function that makes an update with a batch}."""
    updates = {}
    if options.alone != 'ours':
        from reference_training import build_train_model

        train_model = build_train_model(build_model(), constants.learning_rate)
        updates['original'] = lambda batch: train_model.train_on_batch(batch)
    if options.alone != 'original':
        trainer = task.build_trainer(build_model(), constants)
        rows = tf.TensorSpec([None, None], tf.int32)
        signature = dict.fromkeys(('Input-Token', 'Input-Segment'), rows)
        step = tf.function(trainer.train_step, input_signature=[signature])
        updates['ours'] = lambda batch: step(batch)['loss'].numpy()
    return updates


def training(options):
    """Compare both ways of training and print the figures as JSON."""
    count, rounds = 4, []
    constants = task.Constants(precision=options.precision, batch_size=16, epochs=4)
    drawn = load_batches(options.data, count, constants)
    drawn = dict(zip(['original', 'ours'], drawn, strict=True))
    updates = make_updates(options, constants)
    for which, update in updates.items():
        update(drawn[which][0])  # traces
    for _ in range(1 if options.alone else options.rounds):
        row = []
        for which, update in updates.items():
            start = time.perf_counter()
            for batch in drawn[which]:
                update(batch)
            row.append(time.perf_counter() - start)
        tokens = [np.count_nonzero(row) for batch in drawn['ours'] for row in batch['Input-Token']]
        answers = sum(batch['Input-Segment'].sum() for batch in drawn['ours'])
        # the gradient costs twice as much
        row.append(3 * operations(tokens, answers) / matmul_rate(options.precision))
        rounds.append(row)
        say(f'seconds for {16 * count} pairs: {np.round(row, 2)}')
    if options.alone:
        return say_peak()
    rounds = np.array(rounds)
    peaks = [peak_alone(which, options) for which in ('ours', 'original')]
    reference, ours, limit = 16 * count / np.median(rounds, 0)
    return print_json(
        reference_samples_per_second=reference,
        samples_per_second=ours,
        ratio=median_ratio(rounds, 0, 1),
        peak_rss_mb=peaks[0],
        reference_peak_rss_mb=peaks[1],
        matmul_limit_samples_per_second=limit,
        fraction_of_limit=median_ratio(rounds, 2, 1),
        pairs_per_second=pairs_per_second(options.data, constants),
    )


def print_json(**figures):
    """Print the figures, the last line of standard output."""
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


def main():
    """Run the command line."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_stands)
    parser.add_argument('what', choices=['reading', 'training'])
    real = os.path.join(SHARED, 'WebQA.json')
    default = real if os.path.exists(real) else ''
    parser.add_argument('--precision', choices=['float32', 'bfloat16'], default='float32')
    parser.add_argument('--data', default=default, help='questions; "" makes some up')
    parser.add_argument('--questions', type=int, default=100, help='to read')
    parser.add_argument('--topk', type=int, default=1, help='beam width of reading')
    parser.add_argument('--rounds', type=int, default=3, help='of training, 64 pairs each')
    parser.add_argument('--alone', help=argparse.SUPPRESS)
    parser.add_argument('--weights', help=argparse.SUPPRESS)
    options = parser.parse_args()
    {'reading': reading, 'training': training}[options.what](options)


if __name__ == '__main__':
    main()
