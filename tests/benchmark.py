"""Measure reading and training against the original's way, on the same weights, and the start.

    python tests/benchmark.py reading [--precision=bfloat16] [--topk=K] [--peer_python=PATH]
    python tests/benchmark.py training [--precision=bfloat16]
    python tests/benchmark.py start

The last line of standard output is one JSON object. Each way has a process of its own; in a round
they work one after the other, and a figure is the median over the rounds. `ratio` compares with the
original as TensorFlow's users get it, `ratio_same_switches` with what support/keras2.py sets. The
model is of BERT-base size with random weights, made to behave like trained ones (see
`make_decisive`); questions are real where ../shared/data is at hand, else of the same lengths.
"""

import argparse
import contextlib
import json
import os
import shutil
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
from reference_training import build_train_model

import task_reading_comprehension_by_seq2seq as task
from support import bert, paths, records, trained
from support.answers import Question
from support.keras2 import keras, tf
from support.reading import in_groups
from support.training import pad

VOCABULARY_SIZE = 13584  # of the simplified Chinese vocabulary
SEP = 3
WEIGHTS = 'weights.h5'  # what the processes are given
BERT_BASE = {
    'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12,
    'intermediate_size': 3072, 'hidden_act': 'gelu', 'max_position_embeddings': 512,
    'type_vocab_size': 2, 'hidden_dropout_prob': 0.1, 'initializer_range': 0.02,
}  # fmt: skip
ORIGINALS = {  # environment of each; '' is TensorFlow's default, which its users get
    'original': {'TF_ENABLE_ONEDNN_OPTS': '', 'TF_CPU_ALLOCATOR_USE_BFC': ''},
    'same_switches': {},
}


def load_token_ids(path, count, constants):
    """Return (p_token_ids, q_token_ids) of `count` questions, evenly spread over a file, if any."""
    if path:
        encoder = task.ReadingComprehension.__new__(task.ReadingComprehension)
        encoder.tokenizer = bert.load_tokenizer(os.path.join(SHARED, 'vocab.txt'))[0]
        encoder.constants = constants
        data = records.complete(records.load_questions(path))
        chosen = np.linspace(0, len(data) - 1, count).astype(int)
        encoded = [encoder.encode(*task.asked(data[i])) for i in chosen]
        return [(question.p_token_ids, question.q_token_ids) for question in encoded]
    rng = np.random.default_rng(0)

    def text(length):
        return rng.integers(100, VOCABULARY_SIZE, length).tolist()

    lengths = np.exp(rng.normal(4.2, 0.9, [count, 12]))
    lengths = np.clip(lengths, 5, constants.max_p_len - 2).astype(int)
    return [([[2, *text(length), SEP] for length in row], [*text(12), SEP]) for row in lengths]


def build_model():
    """Return bert4keras's BERT-base under the UniLM mask, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        write_json({**BERT_BASE, 'vocab_size': VOCABULARY_SIZE}, folder, 'bert_config.json')
        with open(os.path.join(folder, 'vocab.txt'), 'w', encoding='utf-8') as file:
            file.writelines(f'{number}\n' for number in range(VOCABULARY_SIZE))
        files = paths.locate_files(task.Constants(data_dir=folder))
        keras.utils.set_random_seed(0)
        return bert.build_bert(files, '', None, VOCABULARY_SIZE, longest=512)


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
        lengths = [[*map(len, some)] for some in (rows, sources)]
        packed = map(np.int32, (np.concatenate(rows), *lengths))
        hidden = iter(reader.unilm.run_layers(*packed)[0].numpy())
        for answer in answers:
            first.append(next(hidden))
            later += [next(hidden) for _ in answer]
    first, later = np.array(first), np.array(later)
    shift = later.mean(0) - first.mean(0)  # tells answers from sources
    spread = np.linalg.svd(first - first.mean(0), full_matrices=False)[2][0]  # sources apart
    table, dense = model.get_layer('Embedding-Token').embeddings, model.get_layer('MLM-Dense')
    values, (kernel, offsets) = table.numpy(), dense.get_weights()
    values[:, 0] = np.arange(VOCABULARY_SIZE) == SEP
    table.assign(values)
    bias = model.get_layer('MLM-Bias').weights[0]
    # unless that unit speaks up, [SEP] does not win
    bias.assign(-4.0 * (np.arange(VOCABULARY_SIZE) == SEP))
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
        found = reader.search(questions[:: max(1, len(questions) // 10)], 1)
        length = np.mean([len(answer_of(result)) for result in found if result.has_answer.any()])
        say(f'[SEP] after {stop:.3f} of the tokens: answers of {length:.1f}')
        if 3.5 <= length <= 5.5:
            return
        low, high = (stop, high) if length > 4.5 else (low, stop)
    raise SystemExit('these random weights cannot be made to behave; draw others')


def say(text):
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def write_json(value, folder, name):
    """Write a JSON file, and return its path."""
    path = os.path.join(folder, name)
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(value, file)
    return path


def print_json(figures):
    """Print the figures, the last line of standard output."""
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


# ----------------------------------------------------------------------------------- the processes


class Side:
    """A process that does each round in one way; when it dies, it ends this one."""

    def __init__(self, command, environment):
        streams = dict.fromkeys(('stdin', 'stdout'), subprocess.PIPE)
        environment = {**os.environ, **environment}
        self.process = subprocess.Popen(command, env=environment, encoding='utf-8', **streams)
        self._reply()  # once it is ready

    def ask(self, part):
        """Let it do a round with a part of the data, and return its reply, see `serve`."""
        with contextlib.suppress(BrokenPipeError):  # it died; the reply will tell
            print(json.dumps(part, default=np.ndarray.tolist), file=self.process.stdin, flush=True)
        return self._reply()

    def _reply(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f'{self.process.args} ended with status {self.process.wait()}')
        return json.loads(line)

    def end(self):
        """End the process, and free its memory."""
        self.process.kill()
        self.process.wait()


def start_side(way, options, environment=None):
    """Return the Side that works in one of WAYS, with the same options."""
    given = [f'--{name}={getattr(options, name)}' for name in ('precision', 'topk', 'folder')]
    return Side([sys.executable, __file__, way, *given], environment or {})


def serve(options):
    """Be a Side: for each line of JSON that comes in do a round, and write a line of JSON.

    result: what the work returned; seconds: it took; peak: resident memory in MB, the most so far.
    """
    replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)  # what libraries print must not come between
    work = WAYS[options.what](options)
    print(json.dumps('ready'), file=replies, flush=True)
    for line in sys.stdin:
        part, begin = json.loads(line), time.perf_counter()
        reply = {'result': work(part), 'seconds': time.perf_counter() - begin}
        # getrusage would count the parent's before the start
        with open('/proc/self/status', encoding='utf-8') as file:
            reply['peak'] = next(int(x.split()[1]) // 1024 for x in file if x.startswith('VmHWM'))
        print(json.dumps(reply), file=replies, flush=True)


def interleave(sides, first, parts, size_of, seldom=None):
    """Let the Sides do the parts, one after the other; first: a small part to trace with.

    size_of: a function of a part, its number of questions or pairs; seldom: the name of a Side that
    only does every third part. Returns for each part {name: reply}, with the seconds for one.
    """
    for side in sides.values():
        side.ask(first)
    rounds = []
    for number, part in enumerate(parts):
        asked = {x: side for x, side in sides.items() if x != seldom or number % 3 == 0}
        replies = {name: side.ask(part) for name, side in asked.items()}
        for reply in replies.values():
            reply['seconds'] /= size_of(part)
        shown = {name: round(reply['seconds'], 3) for name, reply in replies.items()}
        say(f'round {number + 1} of {len(parts)}, seconds for one: {shown}')
        rounds.append(replies)
    return rounds


def medians(rounds):
    """Return the medians over the rounds: {name of a Side: seconds}, and {figure: ratio}."""
    names, idle = {name for replies in rounds for name in replies}, {'seconds': np.nan}
    seconds = {name: np.array([x.get(name, idle)['seconds'] for x in rounds]) for name in names}
    ratios = {'ratio': seconds['original'] / seconds['ours']}
    ratios['ratio_same_switches'] = seconds['same_switches'] / seconds['ours']
    if 'peer' in names:
        ratios['peer_ratio'] = seconds['ours'] / seconds['peer']
    return [{name: np.nanmedian(x) for name, x in some.items()} for some in (seconds, ratios)]


# ----------------------------------------------------------------------------------------- reading


def read_together(reader, questions, topk):
    """Yield the SearchResults of questions, as `ReadingComprehension.answers` reads them."""
    questions = (Question([], [], [], p, q) for p, q in questions)
    for group in in_groups(questions, reader.tokens_together):
        yield from reader.search([(each.p_token_ids, each.q_token_ids) for each in group], topk)


def answer_of(result):
    """Return the token ids of the answer that was found, without [SEP]."""
    return [token for token in result.hypotheses[0].token_ids if token != SEP]


def build_reader(precision):
    """Return a ReadingComprehension without a vocabulary."""
    tokenizer = argparse.Namespace(_token_end_id=SEP)
    return task.ReadingComprehension(build_model(), tokenizer, task.Constants(precision=precision))


def ours_reading(options):
    """Return what reads questions as the reader does, and returns the answers."""
    reader = build_reader(options.precision)
    reader.model.load_weights(os.path.join(options.folder, WEIGHTS))
    return lambda part: [answer_of(result) for result in read_together(reader, part, options.topk)]


def original_reading(options):
    """Return what reads questions as the original does, and returns the answers."""
    model, constants = build_model(), task.Constants()
    model.load_weights(os.path.join(options.folder, WEIGHTS))
    decoder = ReferenceDecoder(model, SEP, constants.max_a_len, constants.mode)
    decoder.forward = lambda batch: model.predict(batch, verbose=0)  # as the original calls it
    return lambda part: [decoder.answer(*question, options.topk) for question in part]


def reading_sides(options):
    """Start the processes that read; returns {name: Side}."""
    sides = {'ours': start_side('ours_reading', options)}
    if options.peer_python:
        config = json.dumps({**BERT_BASE, 'vocab_size': VOCABULARY_SIZE})
        program = os.path.join(ROOT, 'tests', 'peer.py')
        sides['peer'] = Side([options.peer_python, program, config, options.precision], {})
    for name, environment in ORIGINALS.items():
        sides[name] = start_side('original_reading', options, environment)
    return sides


def other_answers(rounds):
    """Return how many questions ours answers otherwise than either original that read them."""
    found = []
    for replies in rounds:
        originals = [x['result'] for name, x in replies.items() if name in ORIGINALS]
        found += zip(replies['ours']['result'], *originals, strict=True)
    different = [any(answer != other for other in expected) for answer, *expected in found]
    length = np.mean([len(answer) for answer, *_ in found])
    say(f'answers of {length:.1f} tokens; others: {np.flatnonzero(different)}')
    return sum(different)


def reading(options):
    """Compare both ways of reading 10 questions a round and print the figures as JSON.

    The original with our switches reads in every third round, as it takes long; a peer's seconds
    are those of one pass, of the best of four sizes of a batch.
    """
    questions = load_token_ids(options.data, options.questions, task.Constants())
    with tempfile.TemporaryDirectory() as options.folder:
        reader = build_reader('float32')
        make_decisive(reader.model, reader, load_token_ids(options.data, 100, task.Constants()))
        reader.model.save_weights(os.path.join(options.folder, WEIGHTS))
        parts = [questions[i : i + 10] for i in range(0, len(questions), 10)]
        sides = reading_sides(options)
        rounds = interleave(sides, questions[:1], parts, len, seldom='same_switches')
        for side in sides.values():
            side.end()
        # the largest questions decide, and nothing else in the same process
        questions.sort(key=lambda question: -len(question[0]) * max(map(len, question[0])))
        sides = reading_sides(options)
        peaks = [sides[name].ask(questions[:16])['peak'] for name in ('ours', 'original')]
    seconds, figures = medians(rounds)
    figures |= {
        'reference_seconds_per_question': seconds['original'],
        'seconds_per_question': seconds['ours'], 'questions': len(questions),
        'identical_answers': 1 - other_answers(rounds) / len(questions),
        'peak_rss_mb': peaks[0], 'reference_peak_rss_mb': peaks[1],
    }  # fmt: skip
    if options.peer_python:
        figures['peer_seconds_per_question'] = seconds['peer']
    print_json(figures)


# ---------------------------------------------------------------------------------------- training


def load_batches(path):
    """Return 4 batches of 16 pairs as the original draws them, and 4 of like length."""
    rng, pairs, constants = np.random.default_rng(0), [], task.Constants()
    if path:
        tokenizer = bert.load_tokenizer(os.path.join(SHARED, 'vocab.txt'))[0]
        for record in rng.permutation(records.complete(records.load_questions(path)))[:64]:
            pair = task.training_pair(record, rng, constants)
            pairs.append(task.encode_pair(tokenizer, *pair, constants))
    else:
        for p_token_ids, q_token_ids in load_token_ids(path, 64, constants):
            answer = [*rng.integers(100, VOCABULARY_SIZE, rng.integers(0, 8)).tolist(), SEP]
            source = p_token_ids[0] + q_token_ids
            pairs.append((source + answer, [0] * len(source) + [1] * len(answer)))
    rng.shuffle(pairs)
    alike, starts = sorted(pairs, key=lambda pair: len(pair[0])), range(0, 64, 16)
    return [[pad(some[i : i + 16]) for i in starts] for some in (pairs, alike)]


def each(part, update):
    """Make an update with each batch, as JSON tells it, and return the losses."""
    return [float(update([np.array(rows, np.int32) for rows in batch])) for batch in part]


def ours_training(options):
    """Return what trains on batches of like length."""
    trainer = task.build_trainer(build_model(), task.Constants(precision=options.precision))
    rows = tf.TensorSpec([None, None], tf.int32)
    step = tf.function(trainer.train_step, input_signature=[[rows, rows]])
    return lambda part: each(part[1], lambda batch: step(batch)['loss'])


def original_training(options):
    """Return what trains on batches as the original draws them, in the original's way."""
    train_model = build_train_model(build_model(), task.Constants().learning_rate)
    return lambda part: each(part[0], train_model.train_on_batch)


def training(options):
    """Compare both ways of training and print the figures as JSON."""
    part, rounds = load_batches(options.data), []
    first = [some[:1] for some in part]
    ours = start_side('ours_training', options)
    # one original after the other, as each takes 9 GB
    for name, environment in ORIGINALS.items():
        original = start_side('original_training', options, environment)
        sides, parts = {'ours': ours, name: original}, [part] * options.rounds
        rounds += interleave(sides, first, parts, lambda _: 64)
        original.end()
    seconds, figures = medians(rounds)
    figures['reference_samples_per_second'] = 1 / seconds['original']
    figures['samples_per_second'] = 1 / seconds['ours']
    figures['peak_rss_mb'] = rounds[-1]['ours']['peak']
    figures['reference_peak_rss_mb'] = rounds[options.rounds - 1]['original']['peak']
    print_json(figures)


# ------------------------------------------------------------------------------------------- start


def write_models(folder, data):
    """Write the demo as it is before training and, with real data, a BERT-base made decisive.

    Returns {prefix of the figures: (folder of the model, path of the questions)}.
    """
    demo, base = (os.path.join(folder, name) for name in ('demo', 'base'))
    shutil.copytree(os.path.join(paths.DATA, 'demo'), demo)
    models = {'demo_': (demo, os.path.join(demo, 'SogouQA.json'))}
    if data:
        os.mkdir(base)
        size = bert.load_tokenizer(shutil.copy(os.path.join(SHARED, 'vocab.txt'), base))[2]
        write_json({**BERT_BASE, 'vocab_size': size}, base, 'bert_config.json')
        models[''] = base, data
    for prefix, (path, _) in models.items():
        constants = task.Constants(data_dir=path, output_dir=os.path.join(path, 'output'))
        files = paths.locate_files(constants)
        keras.utils.set_random_seed(0)
        model, tokenizer = task.build_model(files, files.checkpoint if prefix else '', constants)
        if not prefix:
            reader = task.ReadingComprehension(model, tokenizer, constants)
            make_decisive(model, reader, load_token_ids(data, 100, constants))
        os.mkdir(constants.output_dir)
        trained.describe(constants.output_dir, *bert.describe(files), constants, files, [])
        bert.save_best(constants.output_dir, model, bert.bert_digest(files))
    return models


def answering(options):
    """Return what answers a record as a user's own program does."""
    given = {'data_dir': options.folder, 'output_dir': os.path.join(options.folder, 'output')}
    reader = task.load_reader(**given, precision=options.precision)
    return lambda record: reader.answer(*task.asked(record)).text


def seconds_of(command):
    """Return the seconds of a process, the command a list of str, from its start to its end."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def first_and_second(folder, data, number, options):
    """Return the seconds of `predict` from cold, and of a question after another one.

    folder: of the model; data: path of the questions, of which two of a middle size are asked.
    """
    found = records.complete(records.load_questions(data))
    found.sort(key=lambda record: sum(len(p['passage']) for p in record['passages']))
    asked = found[len(found) // 2 :][:2]
    # with another name in each round, or the answers would stand there already
    path = write_json(asked[:1], folder, f'question_{number}.json')
    command = [sys.executable, task.__file__, 'predict', path, f'--precision={options.precision}']
    first = seconds_of([*command, f'--data_dir={folder}', f'--output_dir={folder}/output'])
    options.folder = folder
    side = start_side('answering', options)
    _, second = (side.ask(record)['seconds'] for record in asked)
    side.end()
    return first, second


def start(options):
    """Measure one question from cold against TensorFlow's import; print the figures as JSON."""
    rounds, bare = [], [sys.executable, '-c', 'import tensorflow, tf_keras']
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(folder, options.data)
        for number in range(options.rounds):
            figures = {'import_seconds': seconds_of(bare)}
            for prefix, model in models.items():
                first, second = first_and_second(*model, number, options)
                figures[f'{prefix}first_answer_seconds'] = first
                figures[f'{prefix}second_answer_seconds'] = second
            say({name: round(seconds, 2) for name, seconds in figures.items()})
            rounds.append(figures)
    print_json({name: statistics.median(x[name] for x in rounds) for name in rounds[0]})


# -------------------------------------------------------------------------------- the command line


COMMANDS = {'reading': reading, 'training': training, 'start': start}
WAYS = {  # what the processes are started with
    'ours_reading': ours_reading, 'original_reading': original_reading,
    'ours_training': ours_training, 'original_training': original_training,
    'answering': answering,
}  # fmt: skip


def main():
    """Run the command line."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_stands)
    parser.add_argument('what', choices=[*COMMANDS, *WAYS], metavar='|'.join(COMMANDS))
    real = os.path.join(SHARED, 'WebQA.json')
    default = real if os.path.exists(real) else ''
    parser.add_argument('--precision', choices=['float32', 'bfloat16'], default='float32')
    parser.add_argument('--data', default=default, help='questions; "" makes some up')
    parser.add_argument('--questions', type=int, default=100, help='to read')
    parser.add_argument('--topk', type=int, default=1, help='beam width of reading')
    parser.add_argument('--rounds', type=int, default=5, help='of training 64 pairs; of starting')
    parser.add_argument('--peer_python', help='of an environment with PyTorch and transformers')
    parser.add_argument('--folder', default='', help=argparse.SUPPRESS)
    options = parser.parse_args()
    COMMANDS.get(options.what, serve)(options)


if __name__ == '__main__':
    main()
