"""Measure reader and training against the original's way, both in one run, on the same weights and data.

    python tests/benchmark.py reading [--precision=bfloat16] [--data=FILE] [--questions=N] [--topk=K]
    python tests/benchmark.py training [--precision=bfloat16] [--data=FILE]

The last line of standard output is one JSON object. The model is of BERT-base size with random weights, made to behave
like trained ones (see `make_decisive`); questions are real where ../shared/data is at hand, else of the same lengths.
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

tf = task.tf
VOCABULARY_SIZE = 13584  # of the simplified Chinese vocabulary
SEP = 3
BERT_BASE = {
    'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12, 'intermediate_size': 3072,
    'hidden_act': 'gelu', 'max_position_embeddings': 512, 'type_vocab_size': 2, 'hidden_dropout_prob': 0.1,
    'initializer_range': 0.02,
}  # fmt: skip


class OriginalDecoder(ReferenceDecoder):
    """The reference decoder with the original's `model.predict`."""

    def forward(self, batch):
        """Return the probabilities at every position, float32 [rows, length, vocab]."""
        return self.model.predict(batch, verbose=0)


def load_token_ids(path, count):
    """Return `count` questions as (p_token_ids, q_token_ids), evenly spread over a file, or made up without one."""
    if path:
        tokenizer = task.load_tokenizer(os.path.join(SHARED, 'vocab.txt'))[0]
        records = [record for record in task.load_questions(path) if not task.defects(record)]
        chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).astype(int)]
        return [
            (
                [
                    tokenizer.encode(task.unify_separators(p['passage']), maxlen=task.max_p_len)[0]
                    for p in record['passages']
                ],
                tokenizer.encode(record['question'], maxlen=task.max_q_len + 1)[0][1:],
            )
            for record in chosen
        ]
    rng = np.random.default_rng(0)

    def text(length):
        return rng.integers(100, VOCABULARY_SIZE, length).tolist()

    lengths = np.clip(np.exp(rng.normal(4.2, 0.9, [count, 12])), 5, task.max_p_len - 2).astype(int)
    return [([[2, *text(length), SEP] for length in row], [*text(12), SEP]) for row in lengths]


def build_model():
    """Return bert4keras's BERT-base under the UniLM mask, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, 'bert_config.json')
        with open(config, 'w', encoding='utf-8') as file:
            json.dump({**BERT_BASE, 'vocab_size': VOCABULARY_SIZE}, file)
        task.keras.utils.set_random_seed(0)
        return task.build_model(config, '', None, VOCABULARY_SIZE)


def make_decisive(model, reader, questions):
    """Make random weights behave like trained ones: 45% of passages have an answer, of 3 to 6 tokens on average.

    One unit of the head, which only [SEP] listens to, speaks up where the last layer's output lies on one side of a
    plane. The plane has 55% of the sources on that side, and of the answers' tokens as many as make answers of the
    wanted length; the layers below are left as they were drawn.
    """
    first, later = [], []
    for p_token_ids, q_token_ids in questions[:: max(1, len(questions) // 30)]:
        answers = [token_ids[1:5] for token_ids in p_token_ids]
        sources = [token_ids + q_token_ids for token_ids in p_token_ids]
        rows = [source + answer for source, answer in zip(sources, answers, strict=True)]
        packed = (
            np.concatenate(rows),
            np.array([len(row) for row in rows]),
            np.array([len(row) for row in sources]),
        )
        hidden = iter(reader.unilm.encode(*map(np.int32, packed))[0].numpy())
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
        kernel[:, 0], offsets[0] = (
            volume * direction,
            -volume * np.quantile(first @ direction, 0.45),
        )
        dense.set_weights([kernel, offsets])
        searches = reader.beam_search(questions[:: max(1, len(questions) // 10)], 1)
        length = np.mean([len(search.answer) for search in searches if search.remaining])
        print(
            f'[SEP] after {stop:.3f} of the tokens: answers of {length:.1f}',
            file=sys.stderr,
            flush=True,
        )
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
    """Return the multiplications and additions of one pass over sequences, the vocabulary at `predictions` tokens."""
    width, layers = BERT_BASE['hidden_size'], BERT_BASE['num_hidden_layers']
    linear = 2 * (4 * width**2 + 2 * width * BERT_BASE['intermediate_size'])
    return (
        sum(layers * n * (linear + 4 * n * width) for n in lengths)
        + 2 * predictions * width * VOCABULARY_SIZE
    )


def peak_alone(which, options, *paths):
    """Return the peak resident memory in MB of a process that does nothing but this, one way of the two."""
    command = [
        sys.executable,
        __file__,
        options.what,
        f'--precision={options.precision}',
        f'--alone={which}',
    ]
    arguments = [f'--{name}={getattr(options, name)}' for name in ('topk', 'data', 'questions')]
    arguments += [f'--weights={path}' for path in paths]
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, encoding='utf-8', check=True
    )
    return int(done.stdout)


def say_peak():
    """Print the peak resident memory in MB; getrusage would count what the parent had before it started this."""
    with open('/proc/self/status', encoding='utf-8') as file:
        print(next(int(line.split()[1]) // 1024 for line in file if line.startswith('VmHWM')))


def median_ratio(rounds, above, below):
    return float(np.median(rounds[:, above] / rounds[:, below]))


# --------------------------------------------------------------------------------------------------- reading


def reading(options):
    """Compare both ways of reading and print the figures as JSON."""
    questions, model = load_token_ids(options.data, options.questions), build_model()
    reader = task.ReadingComprehension(model, argparse.Namespace(_token_end_id=SEP))
    original = OriginalDecoder(model, SEP, task.max_a_len, task.mode)
    if options.alone:
        model.load_weights(options.weights)
        questions.sort(key=lambda question: -len(question[0]) * max(map(len, question[0])))
        if options.alone == 'ours':
            list(reader.searches(questions[:16], options.topk))  # the largest decide
        else:
            for question in questions[:16]:
                original.answer(*question, options.topk)
        return say_peak()
    exact = argparse.Namespace(unilm=task.UniLM(model, SEP), beam_search=reader.beam_search)
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
        found = [search.answer for search in reader.searches(part, options.topk)]
        times.append(time.perf_counter())
        sources = {(i, *p, *q) for i, (ps, q) in enumerate(part) for p in map(tuple, ps)}
        limit = operations([len(source) - 1 for source in sources], len(sources)) / matmul_rate(
            options.precision
        )
        rounds.append(np.array([times[1] - times[0], times[2] - times[1], limit]) / len(part))
        different += [start + i for i in range(len(part)) if found[i] != expected[i]]
        lengths += map(len, expected)
        print(
            f'{start + len(part)} questions, seconds each: {rounds[-1].round(3)}',
            file=sys.stderr,
            flush=True,
        )
    rounds = np.array(rounds)
    reference, ours, limit = np.median(rounds, 0)
    print(
        f'passages with an answer: {remaining / len(questions):.2f}, tokens: {np.mean(lengths):.1f}',
        file=sys.stderr,
    )
    print(f'questions with another answer: {different}', file=sys.stderr)
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


# -------------------------------------------------------------------------------------------------- training


def load_batches(path, count):
    """Return `count` batches of 16 pairs, as the original draws them, and the same pairs in batches of like length."""
    task.batch_size, task.window = 16, count
    if path:
        tokenizer = task.load_tokenizer(os.path.join(SHARED, 'vocab.txt'))[0]
        records = [record for record in task.load_questions(path) if not task.defects(record)]
        sorted_batches = task.draw_window(records, tokenizer, 0, 0)
    else:
        rng, pairs = np.random.default_rng(0), []
        for p_token_ids, q_token_ids in load_token_ids('', 16 * count):
            answer = [*rng.integers(100, VOCABULARY_SIZE, rng.integers(0, 8)).tolist(), SEP]
            source = p_token_ids[0] + q_token_ids
            pairs.append((0, source + answer, [0] * len(source) + [1] * len(answer)))
        pairs.sort(key=lambda pair: len(pair[1]))
        sorted_batches = [pairs[i : i + 16] for i in range(0, len(pairs), 16)]
    pairs = [pair for batch in sorted_batches for pair in batch]
    order = np.random.default_rng(1).permutation(len(pairs))
    original_batches = [
        [pairs[i] for i in order[start : start + 16]] for start in range(0, len(pairs), 16)
    ]
    return [[pad(batch) for batch in batches] for batches in (original_batches, sorted_batches)]


def pairs_per_second(path):
    """Return how many pairs the input pipeline delivers per second, over 4 epochs; NaN without real data."""
    if not path:
        return math.nan
    tokenizer = task.load_tokenizer(os.path.join(SHARED, 'vocab.txt'))[0]
    records = [record for record in task.load_questions(path) if not task.defects(record)]
    task.epochs, task.window, start = 4, 64, time.perf_counter()
    count = sum(len(batch['Input-Token']) for batch in task.training_dataset(records, tokenizer))
    return count / (time.perf_counter() - start)


def pad(pairs):
    """Return {'Input-Token', 'Input-Segment'}, int32 [pairs, longest]."""
    longest = max(len(pair[1]) for pair in pairs)
    columns = [
        np.array([[*pair[i], *[0] * (longest - len(pair[i]))] for pair in pairs], np.int32)
        for i in (1, 2)
    ]
    return dict(zip(['Input-Token', 'Input-Segment'], columns, strict=True))


def make_updates(options):
    """Return {which: a function that makes an update with a batch}."""
    updates = {}
    if options.alone != 'ours':
        from reference_training import build_train_model

        train_model = build_train_model(build_model(), task.learning_rate)
        updates['original'] = lambda batch: train_model.train_on_batch(batch)
    if options.alone != 'original':
        trainer = task.Trainer(build_model(), SEP)
        rows = tf.TensorSpec([None, None], tf.int32)
        signature = dict.fromkeys(('Input-Token', 'Input-Segment'), rows)
        step = tf.function(trainer.train_step, input_signature=[signature])
        updates['ours'] = lambda batch: step(batch)['loss'].numpy()
    return updates


def training(options):
    """Compare both ways of training and print the figures as JSON."""
    count, rounds = 4, []
    batches = dict(zip(['original', 'ours'], load_batches(options.data, count), strict=True))
    updates = make_updates(options)
    for which, update in updates.items():
        update(batches[which][0])  # traces
    for _ in range(1 if options.alone else options.rounds):
        row = []
        for which, update in updates.items():
            start = time.perf_counter()
            for batch in batches[which]:
                update(batch)
            row.append(time.perf_counter() - start)
        tokens = [
            np.count_nonzero(row) for batch in batches['ours'] for row in batch['Input-Token']
        ]
        answers = sum(batch['Input-Segment'].sum() for batch in batches['ours'])
        row.append(
            3 * operations(tokens, answers) / matmul_rate(options.precision)
        )  # the gradient costs twice as much
        rounds.append(row)
        print(f'seconds for {16 * count} pairs: {np.round(row, 2)}', file=sys.stderr, flush=True)
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
        pairs_per_second=pairs_per_second(options.data),
    )


def print_json(**figures):
    """Print the figures, the last line of standard output."""
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['reading', 'training'])
    real = os.path.join(SHARED, 'WebQA.json')
    parser.add_argument('--precision', choices=['float32', 'bfloat16'], default='float32')
    parser.add_argument(
        '--data', default=real if os.path.exists(real) else '', help='questions; "" makes some up'
    )
    parser.add_argument('--questions', type=int, default=100, help='to read')
    parser.add_argument('--topk', type=int, default=1, help='beam width of reading')
    parser.add_argument('--rounds', type=int, default=3, help='of training, 64 pairs each')
    parser.add_argument('--alone', help=argparse.SUPPRESS)
    parser.add_argument('--weights', help=argparse.SUPPRESS)
    options = parser.parse_args()
    task.precision = options.precision
    {'reading': reading, 'training': training}[options.what](options)


if __name__ == '__main__':
    main()
