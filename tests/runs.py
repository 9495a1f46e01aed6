"""Runs of the script for the tests of training and reading: in this process, or in one to kill."""

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT, write_json, write_small

RESULTS = 'model.safetensors', 'log.csv', 'predictions.tsv'
CONSTANTS = {
    'checkpoint_path': '', 'epochs': 3, 'max_a_len': 4, 'batch_size': 4, 'learning_rate': 0.003,
    'backup_minutes': 10, 'warmup_steps': 5, 'decay_steps': 60, 'seed': 1,
}  # fmt: skip
BUILT = {}  # see `built_once`
SCRIPT = os.path.join(ROOT, 'task_reading_comprehension_by_seq2seq.py')
ALWAYS = 1e-9  # backup_minutes for a backup after every update, however fast the machine is


# ------------------------------------------------- names of files that are there during a run only

LOCK = 'train.lock'
AT_WORK = r'\.lock$|\.unfinished|backup-|-of-\d'  # any of them


def half_written(name):
    """What is to appear whole under a name."""
    return f'.unfinished.{name}'


def backup(step, epochs):
    """The backup after an update, when so many epochs are logged."""
    return f'backup-{step}-{epochs}'


def shard(name, rank=0, world_size=1, unfinished=False):
    """The share of a process of the predictions."""
    return f'{name}.jsonl.{rank}-of-{world_size}{".unfinished" if unfinished else ""}'


# --------------------------------------------------------------------------------------------- data


def varied_record(name, rng):
    """A record of passages of many lengths; the answers, 北京 or 上海, stand after 在."""
    passages = []
    for _ in range(rng.integers(2, 5)):
        before, after = (
            ''.join(rng.choice(list('中国南天津重庆的是'), rng.integers(12))) for _ in range(2)
        )
        answer = str(rng.choice(['北京', '上海']))
        passages.append({'passage': f'{before}在{answer}{after}', 'answer': answer})
    return {'id': name, 'question': '人口' * rng.integers(1, 4) + '在哪里？', 'passages': passages}


@pytest.fixture(scope='session')
def study(tmp_path_factory):
    """A folder like `small` with a BERT of one layer, which is built sooner.

    There are 29 questions to train on, 8 updates an epoch, one of a single row.
    There are 7 questions to validate: of two workers the first has one more. The second epoch of
    three is the best, so who forgets how good it was keeps the wrong weights.
    """
    folder, rng = write_small(tmp_path_factory.mktemp('study')), np.random.default_rng(0)
    change_config(folder, num_hidden_layers=1)
    write_json(folder / 'WebQA.json', [varied_record(f'W{i}', rng) for i in range(3)])
    write_json(folder / 'SogouQA.json', [varied_record(f'S{i}', rng) for i in range(20)])
    return folder


def change_config(folder, **changes):
    """Change the BERT configuration of a folder."""
    config = json.loads((folder / 'bert_config.json').read_text(encoding='utf-8'))
    write_json(folder / 'bert_config.json', {**config, **changes})


def options(folder, output, **constants):
    """The command line for the data of a folder, into a folder."""
    constants = {'data_dir': folder, **CONSTANTS, 'output_dir': output, **constants}
    return [f'--{name}={value}' for name, value in constants.items()]


def results(output, last_line):
    """Everything that must not depend on interruptions."""
    return {'last line': last_line, **{name: (output / name).read_bytes() for name in RESULTS}}


def curves(output):
    """What TensorBoard shows, {'batch_loss': {step: value}, ...}; a step has one value."""
    from support.keras2 import tf

    shown = {}
    for path in (output / 'tensorboard').rglob('events*'):
        # one that a kill cut off, as TensorBoard knows it
        with contextlib.suppress(tf.errors.DataLossError):
            for content in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(content)
                for value in event.summary.value:
                    curve = shown.setdefault(value.tag, {})
                    number = float(tf.make_ndarray(value.tensor))
                    assert curve.setdefault(event.step, number) == number
    return shown


# ---------------------------------------------------------------------------------- in this process


class Killed(BaseException):
    """Stands in for a kill where a process of its own would take too long."""


def run(script, arguments=None):
    """Run a command line, a list of str or None for the process's own. Returns the exit status."""
    from support import process, settings

    read = settings.read_command_line
    return process.run(
        lambda: script.run_command(read(script.Constants, script.__doc__, arguments))
    )


def call(script, *arguments):
    """Call the script. Returns (exit status, last line of standard output, standard error)."""
    status, out, err = outputs(script, *arguments)
    return status, out.splitlines()[-1:], err


def outputs(script, *arguments):
    """Call the script. Returns (exit status, standard output, standard error)."""
    out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(script, [*map(str, arguments)])
    for stream in out, err:
        stream.flush()
    return status, *(stream.buffer.getvalue().decode() for stream in (out, err))


@pytest.fixture
def train(script, study):
    """Call the script, its `train` unless told otherwise, with the data of `study`; as `call`."""

    def run(output, command='train', **constants):
        return call(script, command, *options(study, output, **constants))

    return run


@pytest.fixture(scope='module')
def built_once(script):
    """Let runs in this process take the model of the one before, with the values it had at first.

    To build and to trace one takes five times as long as to train it. That nothing counts which
    only the model knows, and no backup, is for processes that are killed to show.
    """
    from support import bert, trained

    def kept(key, make, *given):
        if key not in BUILT:
            found = make(*given)
            first = [(each, each.numpy()) for each in variables_of(found)]
            BUILT[key] = found, first, given  # which stays, or its id might become another's
        found, first, _ = BUILT[key]
        for variable, value in first:
            variable.assign(value)
        return found

    def variables_of(found):
        if isinstance(found, tuple):  # a model and its tokenizer
            return found[0].weights
        return found.optimizer.variables() if hasattr(found, 'optimizer') else []

    def build_model(files, checkpoint, constants, make=script.build_model):
        key = bert.bert_digest(files), checkpoint, constants.seed
        given = files, checkpoint, constants
        return make(*given) if checkpoint else kept(key, make, *given)

    def build_trainer(model, constants, make=script.build_trainer):
        key = id(model), constants.accumulate_steps, *trained.fixed(constants).items()
        return kept(key, make, model, constants)

    def unilm(model, *arguments, make=script.CachedUniLM):
        return kept((id(model), *arguments), make, model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, 'build_model', build_model)
        patch.setattr(script, 'build_trainer', build_trainer)
        patch.setattr(script, 'CachedUniLM', unilm)
        yield


@pytest.fixture(scope='session')
def undisturbed(script, study, tmp_path_factory):
    """A run that nothing interrupted: its output folder and results.

    In `stages`, a folder, is a copy of the output folder for each backup at the end of an epoch, as
    a kill right after that backup would have left it: backup-8-0, before the first one is scored,
    backup-8-1, after, backup-16-1, ...
    """
    from support import resume

    folder, write = tmp_path_factory.mktemp('undisturbed'), resume.write_backup

    def write_and_copy(output, checkpoint):
        write(output, checkpoint)
        stage = os.path.basename(resume.backups_in(output)[-1])
        shutil.copytree(folder / 'output', folder / 'stages' / stage, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, 'write_backup', write_and_copy)
        status, last_line, err = call(script, 'train', *options(study, folder / 'output'))
    assert status == 0, err
    found = results(folder / 'output', last_line)
    return types.SimpleNamespace(output=folder / 'output', stages=folder / 'stages', results=found)


# -------------------------------------------------------------------------- in a process of its own


@pytest.fixture(scope='session', autouse=True)
def demo_training(request, tmp_path_factory):
    """The demo as a newcomer runs it, a process that trains while other tests are at work."""
    if not any('demo' in item.fixturenames for item in request.session.items):
        yield
        return
    folder = tmp_path_factory.mktemp('demo')
    # nice to the tests, or they wait for it rather than it for them
    command = 'nice', '-n', '5', sys.executable, SCRIPT, 'train', f'--output_dir={folder}/output'
    with open(folder / 'out', 'wb') as out, open(folder / 'err', 'wb') as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
    yield folder, process
    process.kill()
    process.wait()


@pytest.fixture(scope='session')
def demo(demo_training):
    """(output folder, standard output, standard error) of the newcomer's run."""
    folder, process = demo_training
    process.wait()
    out, err = ((folder / name).read_text(encoding='utf-8') for name in ('out', 'err'))
    assert process.returncode == 0, err[-2000:]
    return folder / 'output', out, err


# has imported TensorFlow, which takes seconds; each Process begins as a copy of it
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['runs', 'task_reading_comprehension_by_seq2seq'])


class Process:
    """The script as a process; `changes`, calls of functions below, are made first."""

    started = []  # noqa: RUF012

    def __init__(self, folder, command, *arguments, changes=(), name='', **environment):
        self.out, self.err = folder / f'out{name}.txt', folder / f'err{name}.txt'
        for path in self.out, self.err:
            path.write_bytes(b'')
        arguments, environment = [command, *map(str, arguments)], {**os.environ, **environment}
        given = self.out, self.err, environment, changes, arguments
        self.process = FORKS.Process(target=live, args=given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('PYTHONPATH', os.pathsep.join([ROOT, os.path.dirname(__file__)]))
            self.process.start()
        self.started.append(self)

    def said(self):
        """What it wrote to standard error so far."""
        return self.err.read_text(encoding='utf-8', errors='replace')

    def wait_until(self, condition, seconds=120):
        """Wait until a function returns something true, which must be before the process ends."""
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive() and time.monotonic() < until, self.said()[-2000:]
            time.sleep(0.005)

    def wait_for(self, text):
        """Wait until it has written `text` to standard error."""
        self.wait_until(lambda: text in self.said())

    def send(self, number):
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def kill(self):
        """Kill it, unless it has ended. Returns the exit status, negative if it is a signal's."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode

    def killed_after(self, seconds):
        """Kill it so long after its first words. Returns whether it was still alive."""
        self.wait_for('\n')
        self.process.join(seconds)
        return self.process.is_alive() and self.kill() < 0

    def life(self):
        """Wait for its end. Returns the seconds since its first words."""
        self.wait_for('\n')
        begun = time.monotonic()
        self.end()
        return time.monotonic() - begun

    def end(self, status=0, timeout=120):
        """Wait for its end and check its exit status. Returns the last line of standard output."""
        self.process.join(timeout)
        assert self.process.exitcode == status, self.said()[-3000:]
        return self.out.read_text(encoding='utf-8').splitlines()[-1:]


def live(out, err, environment, changes, arguments):
    """Be a Process."""
    import task_reading_comprehension_by_seq2seq as script

    for path, descriptor in (out, 1), (err, 2):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    for change in changes:
        eval(change)
    sys.exit(run(script, arguments))


@pytest.fixture(autouse=True)
def no_process_is_left():
    """End those that a failed test would have left behind, perhaps waiting for each other."""
    yield
    while Process.started:
        Process.started.pop().kill()


# What a process may change; with the `setattr` of a monkeypatch, in this process too.


def slow_updates(change=setattr):
    """Let updates take long after the first epoch, or all were over before a signal comes."""
    from support.resume import Run

    after_update = Run.after_update

    def slowly(run, batch, logs):
        time.sleep(0.2 if run.state.step > 8 else 0)
        after_update(run, batch, logs)

    change(Run, 'after_update', slowly)


def counted_answers(seconds, change=setattr):
    """Say how many questions are to be read, and read one by one, so many seconds each."""
    from task_reading_comprehension_by_seq2seq import ReadingComprehension, log

    answers = ReadingComprehension.answers

    def counted(reader, questions, topk=None):
        questions = list(questions)
        log(f'{len(questions)} questions to read')
        for answer in answers(reader, iter(questions), topk):
            time.sleep(seconds)
            yield answer

    change(ReadingComprehension, 'answers', counted)
    change(ReadingComprehension, 'tokens_together', 1)


def impatience(change=setattr):
    """Let a worker look more often whether the others' answers are there."""
    from support import predictions

    change(predictions, 'time', types.SimpleNamespace(sleep=lambda _: time.sleep(0.1)))


def endless_scoring(change=setattr):
    """Let the first worker never come back from scoring an epoch."""
    from task_reading_comprehension_by_seq2seq import Evaluator, log

    def evaluate(_):
        log('without end')
        time.sleep(600)

    change(Evaluator, 'evaluate', evaluate)


def keep_weights(path, change=setattr):
    """Keep the weights at the end of training in a file of NumPy's."""
    from support.resume import Run

    fit = Run.fit

    def fit_and_keep(run, evaluator):
        fit(run, evaluator)
        np.savez(path, *[weight.numpy() for weight in run.trainer.trained.weights])

    change(Run, 'fit', fit_and_keep)


def distance(path, other):
    """The largest difference between two files of weights."""
    with np.load(path) as weights, np.load(other) as others:
        return max(np.abs(weights[name] - others[name]).max() for name in weights)


def two_devices():
    """Train on two devices, which are the CPU twice."""
    from support.keras2 import tf

    twice = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0], twice)
    # as if they were GPUs
    tf.config.list_logical_devices = lambda kind, find=tf.config.list_logical_devices: find('CPU')


# ---------------------------------------------------------------------------------- several workers


def position(worker, ports=(1, 2)):
    """TF_CONFIG of one of two workers."""
    cluster = {'worker': [f'127.0.0.1:{port}' for port in ports]}
    return json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': worker}})


def two_workers(folder, arguments, changes=((), ()), outputs=None):
    """Start both workers of a training. Returns the processes."""
    nobody = '127.0.0.1', 0
    with socket.create_server(nobody) as one, socket.create_server(nobody) as other:
        ports = one.getsockname()[1], other.getsockname()[1]  # that nobody listens on
    outputs = outputs or [folder / 'output'] * 2
    processes = []
    for k, (made, output) in enumerate(zip(changes, outputs, strict=True)):
        given = 'train', *arguments, f'--output_dir={output}'
        environment = {'TF_CONFIG': position(k, ports)}
        processes.append(Process(folder, *given, changes=made, name=k, **environment))
    return processes


@pytest.fixture(scope='session')
def without_dropout(script, study, tmp_path_factory):
    """`study` without dropout: (output folder, options, weights) of two epochs on one device."""
    folder = tmp_path_factory.mktemp('without_dropout')
    shutil.copytree(study, folder, dirs_exist_ok=True)
    change_config(folder, hidden_dropout_prob=0.0)
    # not faster: Adam turns rounding errors of gradients near 0 into steps of the learning rate
    arguments = options(folder, folder / 'output', epochs=2, learning_rate=5e-4)
    with pytest.MonkeyPatch.context() as patch:
        keep_weights(folder / 'weights.npz', patch.setattr)
        status, _, err = call(script, 'train', *arguments)
    assert status == 0, err
    return folder / 'output', arguments, folder / 'weights.npz'


# ------------------------------------------------------------------------------------------ no room


@pytest.fixture
def little_room(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / 'little_room'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('needs root, to mount a small file system')
    yield folder
    subprocess.run(['umount', folder], check=True)


def fill(path, but=0):
    """Write a file that takes all room of its file system but so many bytes."""
    room = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize
    path.write_bytes(bytes(room - but))
