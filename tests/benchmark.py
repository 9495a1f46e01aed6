"""Measure the reader against the original's way of reading, both in one run, on the same weights.

    python tests/benchmark.py reading [--data=FILE] [--questions=N] [--topk=K]

The last line of standard output is one JSON object. The model is of BERT-base size with random weights, made to behave
like trained ones (see `make_decisive`); questions are real where ../shared/data is at hand, else of the same lengths.
"""

import argparse
import json
import os
import resource
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
    below = model.layers[[layer.name for layer in model.layers].index('MLM-Dense') - 1]
    last = task.keras.models.Model(model.inputs, below.output)
    first, later = [], []
    for p_token_ids, q_token_ids in questions[:10]:
        for token_ids in p_token_ids[:4]:
            source, answer = token_ids + q_token_ids, token_ids[1:5]
            batch = [np.array([source + answer]), np.array([[0] * len(source) + [1] * len(answer)])]
            hidden = last(batch).numpy()[0]
            first.append(hidden[len(source) - 1])
            later += list(hidden[len(source) :])
    first, later = np.array(first), np.array(later)
    shift = later.mean(0) - first.mean(0)  # tells answers from sources
    spread = np.linalg.svd(first - first.mean(0), full_matrices=False)[2][0]  # tells sources from each other
    table, dense = model.get_layer('Embedding-Token').embeddings, model.get_layer('MLM-Dense')
    values, (kernel, offsets) = table.numpy(), dense.get_weights()
    values[:, 0] = np.arange(VOCABULARY_SIZE) == SEP
    table.assign(values)
    bias = model.get_layer('MLM-Bias').weights[0]
    bias.assign(-4.0 * (np.arange(VOCABULARY_SIZE) == SEP))  # unless that unit speaks up, [SEP] does not win
    low, high = 0.0, 1.0
    for _ in range(8):
        stop = (low + high) / 2  # share of the tokens after which [SEP] follows

        def gap(weight, stop=stop):
            direction = spread + weight * shift
            return np.quantile(later @ direction, 1 - stop) - np.quantile(first @ direction, 0.45)

        weights = np.linspace(-2, 2, 4001) * np.std(first @ spread) / (shift @ shift)
        direction = spread + min(weights, key=lambda weight: abs(gap(weight))) * shift
        volume = 40 / np.std(first @ direction)
        kernel[:, 0], offsets[0] = volume * direction, -volume * np.quantile(first @ direction, 0.45)
        dense.set_weights([kernel, offsets])
        length = np.mean([len(search.answer) for search in reader.beam_search(questions[:5], 1) if search.remaining])
        print(f'[SEP] after {stop:.3f} of the tokens: answers of {length:.1f}', file=sys.stderr, flush=True)
        if 3.5 <= length <= 5.5:
            return
        low, high = (stop, high) if length > 4.5 else (low, stop)
    raise SystemExit('these random weights cannot be made to behave; draw others')


def matmul_rate():
    """Return the operations per second of a float32 product of the model's own size."""
    a, b = tf.random.normal([2048, 768]), tf.random.normal([768, 3072])
    times = []
    for _ in range(10):
        start = time.perf_counter()
        tf.matmul(a, b).numpy()
        times.append(time.perf_counter() - start)
    return 2 * 2048 * 768 * 3072 / statistics.median(times)


def operations(questions):
    """Return the multiplications and additions it takes to read every distinct source once, all layers."""
    width, layers = BERT_BASE['hidden_size'], BERT_BASE['num_hidden_layers']
    linear = 2 * (4 * width**2 + 2 * width * BERT_BASE['intermediate_size'])
    total = 0
    for p_token_ids, q_token_ids in questions:
        for token_ids in set(map(tuple, p_token_ids)):
            length = len(token_ids) + len(q_token_ids)
            total += layers * length * (linear + 4 * length * width) + 2 * width * VOCABULARY_SIZE
    return total


def peak_alone(which, options):
    """Return the peak resident memory in MB of a process that only reads one way, over 5 questions."""
    command = [sys.executable, __file__, 'reading', f'--alone={which}', '--questions=5', f'--topk={options.topk}']
    done = subprocess.run([*command, f'--data={options.data}'], stdout=subprocess.PIPE, encoding='utf-8', check=True)
    return int(done.stdout)


def reading(options):
    """Compare both ways of reading and print the figures as JSON."""
    questions, model = load_token_ids(options.data, options.questions), build_model()
    reader = task.ReadingComprehension(model, argparse.Namespace(_token_end_id=SEP))
    make_decisive(model, reader, questions)
    original = OriginalDecoder(model, SEP, task.max_a_len, task.mode)
    if options.alone:
        for question in questions:
            if options.alone == 'original':
                original.answer(*question, options.topk)
            else:
                reader.beam_search([question], options.topk)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    reader.beam_search(questions[:1], options.topk)  # traces
    original.answer(*questions[0], options.topk)
    rounds, same, lengths, remaining = [], [], [], 0
    for start in range(0, len(questions), 5):
        part = questions[start : start + 5]
        times = [time.perf_counter()]
        expected = []
        for question in part:
            expected.append(original.answer(*question, options.topk))
            remaining += len(original.remaining) / len(question[0])
        times.append(time.perf_counter())
        found = [search.answer for search in reader.beam_search(part, options.topk)]
        times.append(time.perf_counter())
        rates = matmul_rate()
        limit = operations(part) / rates
        rounds.append(np.array([times[1] - times[0], times[2] - times[1], limit]) / len(part))
        same += [ours == theirs for ours, theirs in zip(found, expected, strict=True)]
        lengths += map(len, expected)
        print(f'{start + len(part)} questions, seconds each: {rounds[-1].round(3)}', file=sys.stderr, flush=True)
    reference, ours, limit = np.median(rounds, 0)
    print(f'passages with an answer: {remaining / len(questions):.2f}, tokens: {np.mean(lengths):.1f}', file=sys.stderr)
    result = {
        'reference_seconds_per_question': reference,
        'seconds_per_question': ours,
        'ratio': float(np.median([row[0] / row[1] for row in rounds])),
        'identical_answers': float(np.mean(same)),
        'questions': len(questions),
        'peak_rss_mb': peak_alone('reader', options),
        'reference_peak_rss_mb': peak_alone('original', options),
        'matmul_limit_seconds_per_question': limit,
        'fraction_of_limit': float(np.median([row[2] / row[1] for row in rounds])),
    }
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['reading'])
    real = os.path.join(SHARED, 'WebQA.json')
    parser.add_argument('--data', default=real if os.path.exists(real) else '', help='questions; "" makes some up')
    parser.add_argument('--questions', type=int, default=100)
    parser.add_argument('--topk', type=int, default=1)
    parser.add_argument('--alone', help=argparse.SUPPRESS)
    reading(parser.parse_args())


if __name__ == '__main__':
    main()
