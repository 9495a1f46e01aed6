"""The script as its users meet it: train, eval, predict, and what they may do wrong."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from conftest import ROOT, record, write_json, write_small

from support.settings import locate_files

SCRIPT = os.path.join(ROOT, 'task_reading_comprehension_by_seq2seq.py')
SCORER = os.path.join(ROOT, 'evaluate_sogou.py')
DEMO = os.path.join(ROOT, 'data', 'demo')
README = os.path.join(ROOT, 'README.md')


def read(path):
    """The text of a file."""
    with open(path, encoding='utf-8') as file:
        return file.read()


def run(*arguments, script=SCRIPT, before=(sys.executable,), **environment):
    """Run the script, or another, as a process. Returns subprocess.CompletedProcess."""
    return subprocess.run(
        [*before, script, *map(str, arguments)],
        env={**os.environ, **environment}, capture_output=True, encoding='utf-8', check=False,
    )  # fmt: skip


def call(script, *arguments):
    """Run the script in this process. Returns (exit status, standard output, standard error)."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding='utf-8') for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        status = script.main([*map(str, arguments)])
    for stream in streams:
        stream.flush()
    return status, *(stream.buffer.getvalue().decode() for stream in streams)


def last_line(text):
    return json.loads(text.splitlines()[-1])


@pytest.fixture(scope='module', autouse=True)
def demo_training(request, tmp_path_factory):
    """The demo as a newcomer runs it, a process that trains while the first tests are at work."""
    if not any('demo' in item.fixturenames for item in request.session.items):
        yield None  # no test that was chosen wants it
        return
    folder = tmp_path_factory.mktemp('demo')
    # nice to the tests, or they wait for it rather than it for them
    command = ['nice', '-n', '5', sys.executable, SCRIPT, 'train']
    with open(folder / 'out.txt', 'wb') as out, open(folder / 'err.txt', 'wb') as err:
        command += [f'--output_dir={folder / "output"}']
        process = subprocess.Popen(command, stdout=out, stderr=err)
    yield folder, process
    process.kill()
    process.wait()


@pytest.fixture(scope='module')
def demo(demo_training):
    """(output folder, standard output, standard error) of the newcomer's run."""
    folder, process = demo_training
    status = process.wait()
    out, err = ((folder / name).read_text(encoding='utf-8') for name in ('out.txt', 'err.txt'))
    assert status == 0, err[-2000:]
    return folder / 'output', out, err


# ------------------------------------------------------------------- answered before TensorFlow is


@pytest.fixture(scope='module')
def no_tensorflow(tmp_path_factory):
    """An environment whose TensorFlow cannot be imported."""
    folder = tmp_path_factory.mktemp('no_tensorflow')
    (folder / 'tensorflow.py').write_text('raise ImportError("TensorFlow was imported")')
    return {'PYTHONPATH': str(folder)}


def test_work_needs_tensorflow(no_tensorflow):
    """Or the tests below would prove nothing."""
    done = run('eval', **no_tensorflow)
    assert (done.returncode, done.stdout) == (2, '')
    reason = 'a package cannot be used (ImportError: TensorFlow was imported)'
    cure = f'{sys.executable} -m pip install -r requirements.txt'
    assert done.stderr == f'{reason}; {cure}\n'


def test_wrong_python_is_told_what_it_lacks():
    """Without a traceback; help and mistakes come first."""
    bare = [sys.executable, '-I', '-S']  # nothing that is installed, nor the folder of the script
    done = run('eval', before=bare)
    assert (done.returncode, done.stdout) == (2, '')
    [line] = done.stderr.splitlines()
    named = 'missing: numpy, tensorflow, tf-keras, bert4keras, '
    assert line.startswith(named) and 'pip install -r requirements.txt' in line
    assert run('--help', before=bare).returncode == 0
    assert "invalid choice: 'learn'" in run('learn', before=bare).stderr


def test_keras_without_its_docstrings_is_not_tried():
    done = run('eval', before=[sys.executable, '-OO'], PYTHONOPTIMIZE='2')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == '-OO: takes away docstrings that Keras needs; run without\n'


def test_help_lists_commands_and_constants(script, no_tensorflow):
    """As they stand in the script, each with its allowed values and a comment."""
    done = run('--help', **no_tensorflow)
    assert (done.returncode, done.stderr) == (0, '')
    assert all(command in done.stdout for command in ('train', 'eval', 'predict', 'export'))
    described = dict(re.findall(r'^    (\w+): .* = .*  # (.*)$', done.stdout, re.MULTILINE))
    assert list(described) == [field.name for field in dataclasses.fields(script.Constants)]
    assert all(described.values())


def test_help_may_hold_any_character(checkout, no_tensorflow):
    """A comment of the user's own, say, where standard output is not UTF-8 by itself."""
    edit(checkout, 'topk: Whole[1] = 1  # beam width', 'topk: Whole[1] = 1  # 束宽')
    done = run('--help', script=checkout, **no_tensorflow, PYTHONIOENCODING='ascii')
    assert done.returncode == 0 and '# 束宽' in done.stdout, done.stderr


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ([], 'the following arguments are required: command'),
        (['learn'], "invalid choice: 'learn'"),
        (['train', '--top_k=2'], '--top_k=2: unknown; the nearest constant is --topk='),
        (['train', '--topk=two'], "argument --topk: invalid int value: 'two'"),
        (['train', '--topk=0'], 'topk = 0: expected a whole number of at least 1'),
        (['eval', 'more.json'], 'more.json: eval takes nothing more'),
        (['predict'], 'predict takes FILE, - or --question= with one --passage= or more'),
        # a name in another encoding, as those of a Windows archive are
        (['train', '数据'.encode('gbk')], r'\udcca\udcfd\udcbe\udcdd: train takes nothing more'),
    ],
)
def test_mistyped_command_line_is_answered_before_tensorflow_is_imported(
    no_tensorflow, arguments, named
):
    command = [os.fsencode(sys.executable), os.fsencode(SCRIPT), *map(os.fsencode, arguments)]
    done = subprocess.run(command, env={**os.environ, **no_tensorflow}, capture_output=True)
    assert (done.returncode, done.stdout) == (2, b'')
    [line] = done.stderr.decode().splitlines()
    assert named in line


@pytest.fixture
def checkout(tmp_path):
    """The script of a copy of the project."""
    for name in 'task_reading_comprehension_by_seq2seq.py', 'evaluate_sogou.py':
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    shutil.copytree(os.path.join(ROOT, 'support'), tmp_path / 'support')
    shutil.copytree(DEMO, tmp_path / 'data' / 'demo')
    return tmp_path / 'task_reading_comprehension_by_seq2seq.py'


def edit(script, old, new):
    """Edit one place of a script."""
    text = script.read_text(encoding='utf-8')
    assert text.count(old) == 1
    script.write_text(text.replace(old, new), encoding='utf-8')


@pytest.mark.parametrize(
    ('name', 'value'),
    [('topk', 'None'), ('output_dir', 'None'), ('valid_sample', '[100]'), ('epochs', 'True')],
)
def test_constant_edited_in_the_script_to_a_wrong_type_is_named(
    checkout, no_tensorflow, name, value
):
    [line] = re.findall(rf'^    {name}: .*$', checkout.read_text(encoding='utf-8'), re.MULTILINE)
    edit(checkout, line, re.sub(' = .*', f' = {value}', line))
    done = run('train', script=checkout, **no_tensorflow)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith(f'{name} = {value}: expected')
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(
    not os.path.exists('/proc/self/maps'), reason='only Linux tells how far a process has come'
)
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_before_the_script_has_begun_ends_it_without_a_word(number):
    """Nor does SIGTERM, which is taken as Ctrl-C later, end it with a traceback."""
    with subprocess.Popen([sys.executable, SCRIPT, 'eval'], stderr=subprocess.PIPE) as process:
        while b'libtensorflow' not in pathlib.Path(f'/proc/{process.pid}/maps').read_bytes():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.stderr.read() == b''
    assert process.returncode == -number


# ------------------------------------------------------------------------------------ small models


def small_options(folder):
    return [
        f'--data_dir={folder}', '--checkpoint_path=', f'--output_dir={folder / "output"}',
        '--epochs=2', '--max_a_len=4', '--batch_size=4',
    ]  # fmt: skip


@pytest.fixture
def on_small(script, small):
    """Run a command of the script on the folder `small`; as `call`, which returns the rest."""
    return lambda command, *more: call(script, command, *small_options(small), *more)


@pytest.fixture(scope='module')
def first_training(script, tmp_path_factory):
    """(a folder like `small`, exit status, standard output, standard error) of its `train`."""
    folder = write_small(tmp_path_factory.mktemp('small'))
    return folder, *call(script, 'train', *small_options(folder))


@pytest.fixture
def trained(first_training, small):
    """The folder `small` after `train`."""
    shutil.copytree(first_training[0] / 'output', small / 'output')
    return small


def test_train_without_checkpoint_says_so_and_eval_agrees(first_training, trained, on_small):
    folder, status, out, err = first_training
    assert status == 0, err
    assert 'random weights' in err
    assert f"data_dir = '{folder}' instead of 'auto'" in err and 'epochs = 2 instead of 8' in err
    assert 'demo' not in err
    assert 'answers in' in err and 'SogouQA.json' in err  # what it is scored against
    assert list(last_line(out)) == ['Accuracy', 'F1', 'Final', 'total', 'Answered']
    assert last_line(out)['total'] == 2
    assert on_small('eval')[:2] == (0, out)


def test_epochs_show_answers_with_their_gold(first_training):
    *_, err = first_training
    assert err.count('gold: 北京') == 2 * 2  # two validation questions, two epochs


@pytest.mark.parametrize(('best_by', 'kept'), [('final', [1, 3]), ('loss', [1, 2])])
def test_best_weights_are_kept_by_best_by(script, monkeypatch, best_by, kept):
    """By Final a tie goes to the later epoch, which has learnt longer."""
    from support.resume import State

    saved, finals, losses = [], iter([0.5, 0.2, 0.5]), [0.9, 0.8, 0.85]
    monkeypatch.setattr(script.Evaluator, 'evaluate', lambda _: {'val_Final': next(finals)})
    monkeypatch.setattr(script.bert, 'save_best', lambda *given: saved.append((epoch, *given)))
    training = types.SimpleNamespace(state=State(), fixed={'the BERT': 'some BERT'})
    reader = types.SimpleNamespace(model='the model')
    constants = script.Constants(best_by=best_by, output_dir='folder')
    evaluator = script.Evaluator(reader, [record('a')], {}, training, constants)
    for epoch, loss in enumerate(losses, 1):
        logs = {'loss': loss}
        evaluator.on_epoch_end(epoch - 1, logs)
        assert 'val_Final' in logs
    assert saved == [(epoch, 'folder', 'the model', 'some BERT') for epoch in kept]


def test_official_answers_are_used_where_they_lie_in_the_data_folder(trained, on_small):
    lines = ''.join(f'S{i}\t北京\t北京\n' for i in range(6))
    (trained / 'qid_answer_expand').write_text(lines, encoding='utf-8')
    status, _, err = on_small('train')
    assert status == 0 and 'official answers in' in err
    (trained / 'qid_answer_expand').write_text(lines.replace('S3', 'S9'), encoding='utf-8')
    status, _, err = on_small('eval')
    assert status == 2 and "'S3'" in err.splitlines()[-1]


def test_record_without_question_is_reported_and_still_counted(on_small, small):
    """In validation it gets the empty answer, which the official score counts as wrong."""
    data = [record(f'S{i}', question=None) for i in range(5)]
    write_json(small / 'SogouQA.json', [*data, record('S5')])
    (small / 'output').mkdir()
    write_json(small / 'output' / 'random_order.json', [*range(6)])
    status, out, err = on_small('train', '--epochs=1')
    assert status == 0, err
    assert '5 of 6 records' in err and 'record 1 (no question)' in err
    scores = dict.fromkeys(['Accuracy', 'F1', 'Final', 'Answered'], 0.0)
    assert last_line(out) == {**scores, 'total': 2}
    assert err.count('has no question; it gets the empty answer') == 2


def change(name, value):
    """A change to a file of the data folder: text, bytes, or None to delete it."""

    def apply(folder):
        path = folder / name
        if value is None:
            path.unlink()
        elif isinstance(value, bytes):
            path.write_bytes(value)
        else:
            path.write_text(value, encoding='utf-8')

    return apply


def web(value):
    return change('WebQA.json', value)


def sogou(**changes):
    """Change the second of two records."""
    records = [record('S1'), {**record('S2'), **changes}]
    return change('SogouQA.json', json.dumps(records, ensure_ascii=False))


def config(**sizes):
    return change('bert_config.json', json.dumps(sizes))


@pytest.mark.parametrize(
    ('mistake', 'arguments', 'named'),
    [
        (web('[{"id": "W1",'), [], ['WebQA.json: not JSON at line 1']),
        (web('[{"id": "国"}]'.encode('gbk')), [], ['WebQA.json: not UTF-8 at byte 9']),
        (web(''), [], ['WebQA.json: not JSON at line 1']),
        (web('{}'), [], ['WebQA.json: expected a list of records']),
        (web('[]'), [], ['WebQA.json: expected a list of records']),
        (web('[[1]]'), [], ['WebQA.json: record 1 of 1 is a list']),
        (web('[' * 100000), [], ['WebQA.json: nested too deeply']),
        (web(f'[{"1" * 5000}]'), [], ['WebQA.json: nested too deeply, or a number too long']),
        (sogou(id='S1'), [], ['SogouQA.json: record 2 of 2', "'S1' of record 1"]),
        (sogou(question=7), [], ['record 2 of 2: "question" is a number']),
        (
            sogou(passages=[{'passage': '京', 'answer': 3}]),
            [],
            ['record 2 of 2: "answer" of passage 1 is a number'],
        ),
        (change('SogouQA.json', None), [], ['missing: ', 'SogouQA.json', 'data/README.md']),
        (change('vocab.txt', None), [], ['missing: ', 'vocab.txt']),
        (change('vocab.txt', 'a\nb\n'), [], ['vocab.txt: lacks [PAD], [UNK], [CLS], [SEP]']),
        (
            change('vocab.txt', '[PAD]\n[UNK]\n[CLS]\n[SEP]\n中\n'),
            [],
            ['vocab.txt: line 5 is the last, but', 'is made for'],
        ),
        (
            change('bert_config.json', '{"vocab_size": 3'),
            [],
            ['bert_config.json: not a BERT configuration'],
        ),
        (config(), [], ['bert_config.json: not a BERT configuration', 'vocab_size']),
        (config(vocab_size=58, max_position_embeddings='512'), [], ["_embeddings is '512', not a"]),
        (
            config(vocab_size=58, max_position_embeddings=512, num_hidden_layers=0),
            [],
            ['bert_config.json: not a BERT configuration', 'num_hidden_layers is 0, not a'],
        ),
        (change('output', 'a file'), [], ['output: no folder (File exists); choose another']),
        (
            None,
            ['--max_q_len=400'],
            ['max_position_embeddings, but 660 tokens are to be read; lower max_p_len'],
        ),
        (None, ['--checkpoint_path=nowhere.ckpt'], ['missing: nowhere.ckpt']),
        (None, ['--data_dir=nowhere'], ['missing: nowhere/WebQA.json, nowhere/SogouQA.json']),
        (None, ['--topk=two'], ['--topk', "invalid int value: 'two'"]),
        (None, ['--topk=0'], ['topk = 0: expected a whole number of at least 1']),
        (None, ['--learning_rate=-1'], ['learning_rate = -1.0: expected a number above 0']),
        (None, ['--mode=free'], ["mode = 'free': expected 'extractive' or 'generative'"]),
        (None, ['--top_k=2'], ['--top_k=2: unknown', '--topk=']),
        (None, ['--seed'], ['--seed: expected one argument']),
        (None, ['more.json'], ['more.json: train takes nothing more']),
        (None, ['more.json', 'files.json'], ['files.json: train takes nothing more']),
    ],
)
def test_mistake_is_one_line_that_names_place_and_cure(on_small, small, mistake, arguments, named):
    """Exit status 2, no traceback, and nothing left half written."""
    if mistake:
        mistake(small)
    before = {*small.rglob('*')}
    status, out, err = on_small('train', *arguments)
    assert (status, out) == (2, '')
    assert all(part in err.splitlines()[-1] for part in named), err
    assert 'Traceback' not in err
    written = {path.name for path in {*small.rglob('*')} - before}
    assert written <= {'output', 'random_order.json', 'train.lock'}


def test_path_given_by_the_user_is_never_replaced(script, tmp_path):
    """By the demo's, say, as long as there are none of the real files."""
    status, _, err = call(script, 'train', '--dict_path=mine.txt', f'--output_dir={tmp_path}')
    assert status == 2 and 'demo' not in err
    assert 'missing: ' in err.splitlines()[-1] and 'mine.txt' in err.splitlines()[-1]


def test_eval_before_train_says_so(on_small):
    status, out, err = on_small('eval')
    assert (status, out) == (2, '')
    assert 'best_model.weights.h5: no such file; run train first' in err


def test_weights_of_another_model_are_refused(trained, on_small):
    config = json.loads((trained / 'bert_config.json').read_text(encoding='utf-8'))
    write_json(trained / 'other.json', {**config, 'hidden_size': 32})
    status, _, err = on_small('eval', f'--config_path={trained / "other.json"}')
    assert status == 2 and 'best_model.weights.h5: does not fit this model' in err.splitlines()[-1]


@pytest.mark.parametrize(
    'changed', ['num_attention_heads', 'num_hidden_layers', 'hidden_act', 'vocab.txt']
)
def test_weights_of_a_bert_that_would_fit_are_refused_too(trained, on_small, changed):
    """Some layers would be left unused; heads, activation and order of tokens do not show.

    Those in the data folder do not matter to `eval`: it takes those beside the weights.
    """
    if changed == 'vocab.txt':
        text = (trained / 'vocab.txt').read_text(encoding='utf-8')
        (trained / 'vocab.txt').write_text(text.replace('天\n津', '津\n天'), encoding='utf-8')
    else:
        config = json.loads((trained / 'bert_config.json').read_text(encoding='utf-8'))
        other = {'num_attention_heads': 4, 'num_hidden_layers': 1, 'hidden_act': 'relu'}[changed]
        write_json(trained / 'bert_config.json', {**config, changed: other})
    assert on_small('eval')[0] == 0
    status, out, err = on_small('train')
    assert (status, out) == (2, '')
    assert 'made with the BERT = ' in err.splitlines()[-1]
    name = 'vocab.txt' if changed == 'vocab.txt' else 'bert_config.json'
    shutil.copy(trained / name, trained / 'output')
    status, out, err = on_small('eval')
    assert (status, out) == (2, '')
    assert 'bert_config.json or vocab.txt is not the one' in err.splitlines()[-1]
    status, out, err = on_small('train')
    assert (status, out) == (2, '')
    assert 'made with the BERT = ' in err.splitlines()[-1]


def test_failure_of_tensorflow_is_one_line(script, trained, on_small, monkeypatch):
    def fail(*_):
        raise script.tf.errors.ResourceExhaustedError(None, None, 'out of memory\nand more')

    monkeypatch.setattr(script.ReadingComprehension, 'beam_search', fail)
    status, out, err = on_small('eval')
    assert (status, out) == (2, '') and 'Traceback' not in err
    expected = 'TensorFlow broke off (out of memory); run the same command'
    assert err.splitlines()[-1].startswith(expected)


def test_training_in_more_parts_is_continued(trained, on_small):
    """It is the cure where memory ran out, perhaps after the first backup."""
    status, _, err = on_small('train', '--accumulate_steps=2')
    assert status == 0, err
    assert 'continuing after update 6 of 6' in err


def test_files_may_begin_with_a_byte_order_mark(first_training, trained, on_small):
    """They are the same files all the same, so the training is over."""
    lines = ''.join(f'S{i}\t北京\t北京\n' for i in range(6))
    (trained / 'qid_answer_expand').write_text(lines, encoding='utf-8')
    for path in [*trained.iterdir(), trained / 'output' / 'random_order.json']:
        if path.is_file():
            path.write_text('\ufeff' + path.read_text(encoding='utf-8'), encoding='utf-8')
    for command in 'train', 'eval':
        status, out, err = on_small(command)
        assert status == 0, err
        assert last_line(out) == last_line(first_training[2])


def test_names_of_files_may_be_in_another_encoding(script, trained):
    """As those of a Windows archive are: no UTF-8, but a good name."""
    data_dir = trained / os.fsdecode('数据'.encode('gbk'))
    shutil.copytree(trained, data_dir, ignore=shutil.ignore_patterns('output'))
    options = *small_options(trained), f'--data_dir={data_dir}'
    status, _, err = call(script, 'train', *options)
    assert status == 0, err
    config = json.loads((trained / 'output' / 'config.json').read_text(encoding='utf-8'))
    assert config['constants']['data_dir'] == str(data_dir)


def test_saved_order_of_other_data_is_refused(trained, on_small):
    write_json(trained / 'SogouQA.json', [record(f'S{i}') for i in range(7)])
    status, _, err = on_small('eval')
    assert status == 2 and 'random_order.json: no order of 7 records' in err.splitlines()[-1]


def test_order_that_has_gone_is_asked_for(trained, on_small):
    """Another order would score questions that were trained on."""
    order = trained / 'output' / 'random_order.json'
    order.unlink()
    status, out, err = on_small('eval')
    assert (status, out) == (2, '') and not order.exists()
    cure = 'no such file; copy it from where the weights were trained'
    assert err.splitlines()[-1] == f'{order}: {cure}'


def test_nothing_to_train_on_is_named(on_small, small):
    write_json(small / 'WebQA.json', [record(None)])
    write_json(small / 'SogouQA.json', [record('S1')])
    status, _, err = on_small('train')
    assert status == 2 and 'no complete record to train on' in err.splitlines()[-1]


def test_nothing_to_validate_on_is_named_before_training(on_small, small):
    write_json(small / 'SogouQA.json', [record(None)])
    status, _, err = on_small('train')
    assert status == 2
    assert 'SogouQA.json: no record with an id to validate on' in err.splitlines()[-1]
    assert not (small / 'output' / 'log.csv').exists()


@pytest.mark.parametrize(
    ('text', 'named'),
    [('[1]', 'record 1 of 1 is a number'), ('[', 'not JSON'), (None, 'no such file')],
)
def test_predict_names_what_is_wrong_with_its_file(script, tmp_path, text, named):
    path = tmp_path / 'questions.json'
    if text:
        path.write_text(text, encoding='utf-8')
    status, out, err = call(script, 'predict', path)
    assert (status, out) == (2, '') and f'{path}: {named}' in err.splitlines()[-1]


def test_environment_of_other_programs_changes_no_answer(on_small, trained):
    """What bert4keras itself advises, warnings as errors, no docstrings, odd encodings, ..."""
    write_json(trained / 'q.json', [record('a'), record('b')])
    status, out, err = on_small('predict', trained / 'q.json')
    assert status == 0, err
    arguments = 'predict', trained / 'q.json', *small_options(trained)
    others = {
        'TF_KERAS': '1', 'TF_FUNCTION_JIT_COMPILE_DEFAULT': '1', 'PYTHONWARNINGS': 'error',
        'PYTHONOPTIMIZE': '2', 'PYTHONSAFEPATH': '1', 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C',
    }  # fmt: skip
    done = run(*arguments, **others)
    assert (done.returncode, done.stdout) == (0, out), done.stderr


# ------------------------------------------------------------------------- streams of another kind


@pytest.mark.parametrize(
    ('command', 'closed', 'status', 'said'),
    [
        ('train', '>&-', 0, 'questions to train on'),
        ('train', '2>&-', 0, ''),
        ('eval', '>&- 2>&- <&-', 0, ''),
        ('predict -', '<&-', 2, 'standard input: closed; give records'),
        ('learn', '2>&-', 2, ''),
    ],
)
def test_streams_may_be_closed(trained, command, closed, status, said):
    """What is not heard goes nowhere: neither to standard output nor into a file."""
    before = ['sh', '-c', f'exec "$0" "$@" {closed}', sys.executable]
    shutil.rmtree(trained / 'output' if command == 'train' else trained / 'no such folder', True)
    done = run(*command.split(), *small_options(trained), before=before)
    assert done.returncode == status and 'Traceback' not in done.stderr, done.stderr
    assert said in done.stderr and (said or not done.stderr)
    if command == 'train' and closed != '>&-':
        assert done.stdout == f'{json.dumps(last_line(done.stdout))}\n'
    else:
        assert not done.stdout
    if status == 0:
        assert (trained / 'output' / 'predictions.tsv').read_bytes().count(b'\n') == 2


@pytest.mark.parametrize('command', ['eval', 'predict'])
def test_reader_that_goes_away_ends_it_in_one_line(trained, command):
    """Also where nothing is written before the end."""
    write_json(trained / 'q.json', [record(f'{i}') for i in range(3)])
    arguments = [command, trained / 'q.json'][: 1 + (command == 'predict')]
    before = ['sh', '-c', '("$0" "$@"; echo $? >&2) | true', sys.executable]
    buffered = {'PYTHONUNBUFFERED': ''}
    done = run(*arguments, *small_options(trained), before=before, **buffered)
    assert done.stderr.endswith('\nstandard output: Broken pipe\n1\n'), done.stderr
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr


class Tee:
    """A stream as notebooks have them: it is written to, and knows nothing else."""

    def __init__(self):
        self.text = ''

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize('stream_of', [Tee, closed_stream, lambda: None])
@pytest.mark.parametrize('command', ['train', 'eval'])
def test_script_works_in_a_notebook_and_in_a_thread(
    script, small, first_training, monkeypatch, stream_of, command
):
    """Where streams are of another kind, and no signal comes."""
    if command == 'eval':
        shutil.copytree(first_training[0] / 'output', small / 'output')
    streams, arguments = [stream_of() for _ in range(2)], [command, *small_options(small)]
    monkeypatch.setattr(sys, 'stdout', streams[0])
    monkeypatch.setattr(sys, 'stderr', streams[1])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        status = pool.submit(script.main, arguments).result()
    assert status == 0
    if stream_of is Tee:
        assert last_line(streams[0].text) == last_line(first_training[2])
        assert 'scoring against the answers' in streams[1].text
    name = os.path.join('output', 'predictions.tsv')
    assert (small / name).read_bytes() == (first_training[0] / name).read_bytes()


def test_error_in_a_notebook_is_its_line(script, small, monkeypatch):
    stream = Tee()
    monkeypatch.setattr(sys, 'stderr', stream)
    assert script.main(['eval', *small_options(small)]) == 2
    assert 'run train first' in stream.text


def test_answers_to_another_file_of_the_same_name_are_not_replaced(on_small, trained):
    """Until they are moved; both files are named."""
    for folder, name in ('one', 'a'), ('other', 'b'):
        (trained / folder).mkdir()
        write_json(trained / folder / 'q.json', [record(name)])
    status, out, err = on_small('predict', trained / 'one' / 'q.json')
    assert status == 0 and out.startswith('a\t'), err
    status, out, err = on_small('predict', trained / 'other' / 'q.json')
    assert (status, out) == (2, '')
    paths = [str(trained / folder / 'q.json') for folder in ('one', 'other')]
    assert all(path in err.splitlines()[-1] for path in paths)
    answers = trained / 'output' / 'answers_to_q.jsonl'
    [told] = map(json.loads, answers.read_text(encoding='utf-8').splitlines())
    assert told['id'] == 'a' and told['file'] == paths[0]
    answers.rename(trained / 'output' / 'moved.jsonl')
    status, out, err = on_small('predict', trained / 'other' / 'q.json')
    assert status == 0 and out.startswith('b\t'), err


def test_everything_that_is_told_is_written(script, trained, on_small):
    """All of an Answer, each in a line of JSON."""
    data = [record('a'), record('b', '谁？'), {'id': 'c'}]
    write_json(trained / 'q.json', data)
    status, _, err = on_small('predict', trained / 'q.json', '--topk=3')
    assert status == 0, err
    lines = (trained / 'output' / 'answers_to_q.jsonl').read_text(encoding='utf-8').splitlines()
    given = {'data_dir': str(trained), 'output_dir': str(trained / 'output')}
    reader = script.load_reader(**given, checkpoint_path='', max_a_len=4, topk=3)
    expected = [*script.answer_records(reader, data)]  # read together, as before
    source = {'file': str(trained / 'q.json')}
    assert [json.loads(line) for line in lines] == [{**told, **source} for told in expected]
    assert len(expected[0]['candidates']) > 1 and len(expected[0]['votes']) == 3
    assert expected[2]['error'] == 'no question and no passages'


def test_report_is_written_by_eval_and_on_request(on_small, trained):
    """A constant says how many questions it shows; 0: none, and none of other answers stays."""
    output = trained / 'output'
    assert (output / 'report.html').exists()
    assert on_small('eval', '--report=0')[0] == 0 and not (output / 'report.html').exists()
    assert on_small('eval')[0] == 0 and (output / 'report.html').exists()
    write_json(trained / 'q.json', [record('a')])
    assert on_small('predict', trained / 'q.json')[0] == 0
    assert not list(output.glob('answers_to_q*.html'))
    assert on_small('predict', trained / 'q.json', '--report=5')[0] == 0
    assert (output / 'answers_to_q.html').exists()


def test_any_files_can_be_trained_and_validated_on(on_small, small):
    """Nothing is split; the answers that count are those beside the file to validate on."""
    for name, ids in ('one', 'ab'), ('two', 'cd'), ('three', 'efg'):
        write_json(small / f'{name}.json', [record(question_id) for question_id in ids])
    lines = ''.join(f'{name}\t天津\t天津|北京|上海\n' for name in 'efg')
    (small / 'three.json.answers').write_text(lines, encoding='utf-8')
    for name in 'WebQA.json', 'SogouQA.json':
        (small / name).unlink()
    data = [f'--train_data={small / "one.json"},{small / "two.json"}']
    data.append(f'--valid_data={small / "three.json"}')
    status, out, err = on_small('train', *data)
    assert status == 0, err
    assert '4 questions to train on, 3 to validate' in err and 'three.json.answers' in err
    assert 'gold: 天津' in err and last_line(out)['total'] == 3
    assert not (small / 'output' / 'random_order.json').exists()
    assert on_small('eval', data[1])[:2] == (0, out)
    status, _, err = on_small('train', f'--train_data={small / "no.json"}', data[1])
    assert status == 2 and err.splitlines()[-1].startswith(f'missing: {small / "no.json"};')


def test_training_goes_on_from_a_trained_reader(script, trained, on_small):
    """With the weights that it has; those of another BERT are refused."""
    best = trained / 'output' / 'best_model.weights.h5'
    more = [f'--checkpoint_path={best}', f'--output_dir={trained / "more"}']
    files = locate_files(script.Constants(data_dir=str(trained), checkpoint_path=str(best)))
    weights = []
    for checkpoint in str(best), None:
        model, _ = script.build_model(files, checkpoint, script.Constants())
        if not checkpoint:
            model.load_weights(best)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        assert (one == other).all()
    status, out, err = on_small('train', *more)
    assert status == 0, err
    assert 'random weights' not in err and last_line(out)['total'] == 2
    text = (trained / 'vocab.txt').read_text(encoding='utf-8').replace('天\n津', '津\n天')
    (trained / 'other.txt').write_text(text, encoding='utf-8')
    status, _, err = on_small('train', *more, f'--dict_path={trained / "other.txt"}')
    assert status == 2
    assert 'best_model.weights.h5: does not fit this model' in err.splitlines()[-1]


def test_brackets_in_the_name_of_a_folder_are_no_pattern(script, trained):
    """TensorFlow would find neither the checkpoint to begin with nor the backup to continue."""
    folder = trained / 'a[1]\\b'
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns(folder.name))
    status, _, err = call(script, 'train', *small_options(folder))
    assert status == 0, err
    assert 'continuing after update 6 of 6' in err
    shutil.copytree(DEMO, folder / 'demo')
    biases = []
    for data_dir in folder / 'demo', DEMO:
        files = locate_files(script.Constants(data_dir=str(data_dir)))
        model, _ = script.build_model(files, files.checkpoint, script.Constants())
        biases.append(model.get_layer('MLM-Bias').get_weights()[0].tolist())
    assert biases[0] == biases[1] and any(biases[0])


# ---------------------------------------------------------------------------------- real questions


def real_options(shared, folder):
    """The options of a run on the files of a folder with the small trained BERT."""
    return [
        f'--data_dir={folder}', f'--output_dir={folder / "output"}',
        f'--config_path={shared}/tiny_bert/bert_config.json',
        f'--checkpoint_path={shared}/tiny_bert/bert_model.ckpt',
        f'--dict_path={shared}/vocab.txt',
    ]  # fmt: skip


def real_questions(shared, count):
    """The first records of WebQA."""
    with open(os.path.join(shared, 'WebQA.json'), encoding='utf-8') as file:
        return json.load(file)[:count]


def test_real_data_trains_and_evaluates_end_to_end(script, shared, tmp_path):
    """The 22nd record of SogouQA is cut off, as found in the wild."""
    write_json(tmp_path / 'WebQA.json', real_questions(shared, 20))
    shutil.copy(os.path.join(shared, 'SogouQA.json'), tmp_path)
    options = [
        *real_options(shared, tmp_path),
        '--epochs=1', '--max_p_len=64', '--batch_size=16', '--valid_sample=2',
    ]  # fmt: skip
    status, out, err = call(script, 'train', *options)
    assert status == 0, err[-2000:]
    warning = '1 of 22 records lack something and cannot be used: record 22 (no id, no question)'
    assert err.count(warning) == 1 and 'the file looks cut off' in err
    predictions = (tmp_path / 'output' / 'predictions.tsv').read_bytes()
    rows = predictions.decode().splitlines()
    assert len(rows) in (7, 8)  # every third of 22 records, without the one that has no id
    (tmp_path / 'output' / 'predictions.tsv').unlink()
    status, again, err = call(script, 'eval', *options)
    assert (status, again) == (0, out), err[-2000:]
    assert (tmp_path / 'output' / 'predictions.tsv').read_bytes() == predictions


@pytest.mark.slow
def test_fifty_real_questions_can_be_learnt(shared, tmp_path):
    """Trained until it knows them; read as any file of questions, scored by their own answers."""
    for name in 'WebQA.json', 'SogouQA.json':
        write_json(tmp_path / name, real_questions(shared, 50))
    options = [
        *real_options(shared, tmp_path),
        '--epochs=20', '--batch_size=16', '--learning_rate=5e-4', '--decay_steps=160',
        '--best_by=loss', '--valid_sample=5',
    ]  # fmt: skip
    done = run('train', *options)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = run('predict', tmp_path / 'WebQA.json', *options)
    assert answers.returncode == 0, answers.stderr[-2000:]
    (tmp_path / 'predictions').write_text(answers.stdout, encoding='utf-8')
    arguments = [tmp_path / 'predictions', '--dataset', tmp_path / 'WebQA.json']
    score = run(*arguments, script=SCORER)
    assert score.returncode == 0, score.stderr
    print(score.stdout)
    assert last_line(score.stdout)['total'] == 50
    assert last_line(score.stdout)['Final'] >= 0.8


# ----------------------------------------------------------------------------------------- the demo


@pytest.fixture(scope='module')
def make_demo():
    """data/demo/make_demo.py as a module."""
    path = os.path.join(DEMO, 'make_demo.py')
    specification = importlib.util.spec_from_file_location('make_demo', path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_demo_corpus_is_what_make_demo_writes(make_demo, monkeypatch, tmp_path):
    """Same seed, same bytes; the checkpoint alone takes too long to write again."""
    monkeypatch.setattr(make_demo, 'FOLDER', str(tmp_path))
    monkeypatch.setattr(make_demo, 'write_bert', lambda *_: None)
    make_demo.main()
    names = {'WebQA.json', 'SogouQA.json', 'qid_answer_expand', 'vocab.txt', 'constants.json'}
    assert {*os.listdir(tmp_path)} == names
    for name in names:
        with open(os.path.join(DEMO, name), 'rb') as file:
            assert file.read() == (tmp_path / name).read_bytes(), name


@pytest.mark.filterwarnings('ignore:The initializer TruncatedNormal')
def test_demo_bert_is_what_make_demo_writes_but_for_its_length(
    make_demo, script, monkeypatch, tmp_path
):
    """4 updates in place of 6,000: the same configuration, and weights that can be read."""
    for name, value in ('copying_steps', 2), ('cloze_steps', 2), ('tests_per_update', 2):
        monkeypatch.setattr(make_demo, name, value)
    shutil.copy(os.path.join(DEMO, 'vocab.txt'), tmp_path)
    make_demo.write_bert(str(tmp_path), set())
    assert read(tmp_path / 'bert_config.json') == read(os.path.join(DEMO, 'bert_config.json'))
    shapes = [
        script.tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
        for prefix in (tmp_path / 'bert_model.ckpt', os.path.join(DEMO, 'bert_model.ckpt'))
    ]
    assert shapes[0] == shapes[1]
    written = {'vocab.txt', 'bert_config.json', 'bert_model.ckpt.index'}
    assert {*os.listdir(tmp_path)} == {*written, 'bert_model.ckpt.data-00000-of-00001'}


def test_demo_corpus_makes_reading_hard(make_demo):
    """No entity is asked about twice; passages repeat or contradict others, or have no answer."""
    webqa, sogouqa = [], []
    for name, records in ('WebQA.json', webqa), ('SogouQA.json', sogouqa):
        with open(os.path.join(DEMO, name), encoding='utf-8') as file:
            records += json.load(file)
    templates = []
    for rules in make_demo.FACTS.values():
        for _, questions, _ in rules.values():
            for question in questions.split('|'):
                templates.append(re.escape(question).replace(re.escape('{e}'), '(.+)'))
    entities = []
    for entry in webqa + sogouqa:
        matches = [re.fullmatch(template, entry['question']) for template in templates]
        entities.append(max(match[1] for match in matches if match))
    assert len(set(entities)) == len(entities) == 3600
    passages = [[p['passage'] for p in entry['passages']] for entry in webqa + sogouqa]
    answers = [[p['answer'] for p in entry['passages']] for entry in webqa + sogouqa]
    assert all(3 <= len(texts) <= 9 for texts in passages)
    assert sum(len(set(texts)) < len(texts) for texts in passages) > 500
    assert sum(len({*some} - {''}) > 1 for some in answers) > 300
    assert sum(not any(some) for some in answers[: len(webqa)]) > 200
    assert all(any(some) for some in answers[len(webqa) :])
    assert sum(any(' ' in answer for answer in some) for some in answers) > 100


def test_demo_learns_to_read(demo):
    """No name of a validation question occurs in training: without reading Final is near 0."""
    _, out, err = demo
    assert last_line(out)['Final'] >= 0.95
    assert last_line(out)['total'] == 400
    assert 'demo' in err.splitlines()[0] and 'data/README.md' in err.splitlines()[0]
    assert 'Traceback' not in err


def test_eval_prints_the_final_of_train(script, demo):
    folder, out, _ = demo
    predictions = (folder / 'predictions.tsv').read_bytes()
    (folder / 'predictions.tsv').unlink()
    status, again, err = call(script, 'eval', f'--output_dir={folder}')
    assert status == 0, err
    assert last_line(again) == last_line(out)
    assert (folder / 'predictions.tsv').read_bytes() == predictions
    assert 'Final=' in err  # the running score


def test_evaluate_sogou_prints_the_same_score(demo):
    folder, out, _ = demo
    answers = os.path.join(DEMO, 'qid_answer_expand')
    score = run(folder / 'predictions.tsv', '--answers', answers, script=SCORER)
    told = last_line(out)
    lines = (folder / 'predictions.tsv').read_text(encoding='utf-8').splitlines()
    empty = sum(line.endswith('\t') for line in lines)
    assert told.pop('Answered') == (400 - empty) / 400 < 1
    assert last_line(score.stdout) == told


def test_output_folder_holds_what_the_readme_says(demo, script):
    folder, *_ = demo
    names = {
        'best_model.weights.h5', 'random_order.json', 'log.csv', 'predictions.tsv', 'config.json',
        'tensorboard', 'train.lock', 'backup-504-8', 'predictions.jsonl', 'report.html',
        'bert_config.json', 'vocab.txt',
    }  # fmt: skip
    assert {name for name in os.listdir(folder) if not name.startswith('answers_to_')} == names
    with open(folder / 'log.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert {'epoch', 'loss', 'val_Accuracy', 'val_F1', 'val_Final'} <= set(rows[0])
    assert float(rows[-1]['loss']) < float(rows[0]['loss'])
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    named = {field.name for field in dataclasses.fields(script.Constants)}
    assert set(config['constants']) == named
    assert config['constants']['batch_size'] == 64  # what was used, not what stands in the script
    assert set(config['versions']) == {'python', 'tensorflow', 'tf_keras', 'bert4keras', 'numpy'}
    assert len(json.loads((folder / 'random_order.json').read_text(encoding='utf-8'))) == 1200
    assert any(path.name.startswith('events') for path in (folder / 'tensorboard').rglob('*'))


def test_three_lines_answer_a_question(demo, script):
    folder, *_ = demo
    reader = script.load_reader(output_dir=str(folder), topk=2)
    passages = ['李文秀是一名医生。', '据介绍，李文秀师从方𠮷明。']
    answer = reader.answer('李文秀的老师是谁？', passages)
    assert str(answer).startswith("Answer(text='方𠮷明', passage=1, start=9, end=12, token_ids=[")
    assert 0.5 < answer.score <= 1 and answer.log_score < 0
    assert [len(vote.probas) for vote in answer.votes] == [0, 4]
    assert 1 <= len(answer.candidates) <= 2 and answer.candidates[0][:7] == answer[:7]
    # tokens do not tell rare characters apart, but the passages' votes do
    passages = ['李文秀的同学是方𪚥明。', '据介绍，李文秀师从方𠮷明。']
    answer = reader.answer('李文秀的老师是谁？', passages)
    assert (answer.text, answer.passage) == ('方𠮷明', 1)
    assert reader.constants.topk == 2


def test_predict_prints_a_line_for_every_question_with_an_id(demo, script, tmp_path):
    """Whatever they lack: a tab in an answer becomes a space, what has no answer is reported."""
    folder, *_ = demo
    question, passages = '李文秀的老师是谁？', [{'passage': '李文秀的老师是方\t远。'}]
    data = [
        {'id': 'a#1', 'question': question, 'passages': passages},
        {'id': 'b', 'passages': passages},
        {'question': '谁？', 'passages': passages},
        {'id': 'c', 'question': '谁？', 'passages': []},
    ]
    write_json(tmp_path / 'questions.json', data)
    path = tmp_path / 'questions.json'
    status, out, err = call(script, 'predict', path, f'--output_dir={folder}')
    assert status == 0, err
    assert out == 'a#1\t方 远\nb\t\nc\t\n'
    assert (folder / 'answers_to_questions.tsv').read_text(encoding='utf-8') == out
    lines = re.split('[\r\n]', err)  # none of them is glued to the progress bar
    assert "record 'b' has no question; it gets the empty answer" in lines
    assert "record 'c' has no passages; it gets the empty answer" in lines
    assert (
        "a record without id has no line in answers_to_questions.tsv, its question is '谁？'"
        in lines
    )


def test_records_on_standard_input_are_answered_at_once(demo, tmp_path):
    """While the pipe stays open; nothing is written to the disk, and a bad line harms no other."""
    folder, *_ = demo
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    asked = {
        'question': '李文秀的老师是谁？',
        'passages': [{'passage': '据介绍，李文秀师从方远明。'}],
    }
    with subprocess.Popen(
        [sys.executable, SCRIPT, 'predict', '-', f'--output_dir={folder}'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        encoding='utf-8',
    ) as process:  # fmt: skip
        for record_id in 'a', None:
            process.stdin.write(json.dumps({'id': record_id, **asked}) + '\n')
            process.stdin.flush()
            told = json.loads(process.stdout.readline())
            assert (told['id'], told['text'], told['passage']) == (record_id, '方远明', 0)
        process.stdin.write('{"question"\n')
        process.stdin.flush()
        assert 'line 3: not JSON' in json.loads(process.stdout.readline())['error']
        rest, err = process.communicate(json.dumps({'id': 'c', 'question': '谁？'}))
    assert process.returncode == 0, err
    assert json.loads(rest) == {'id': 'c', 'question': '谁？', 'text': '', 'error': 'no passages'}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not os.listdir(tmp_path)


def test_question_on_the_command_line_is_answered(demo, script):
    """Plain text, where no terminal shows it."""
    folder, *_ = demo
    passages = ['李文秀是一名医生。', '据介绍，李文秀师从方𠮷明。']
    written = ['--question=李文秀的老师是谁？', *(f'--passage={passage}' for passage in passages)]
    status, out, err = call(script, 'predict', *written, f'--output_dir={folder}')
    assert status == 0, err
    answer, votes, passage, left, other = out.splitlines()
    assert re.fullmatch(r'answer: 方𠮷明 \(score 0\.\d{3}\)', answer)
    assert re.fullmatch(r'passage 2 votes: 方 \S+  \[UNK\] \S+  明 \S+  \[SEP\] \S+', votes)
    assert passage == '  据介绍，李文秀师从[方𠮷明]。'
    assert re.fullmatch(r'passage 1 left: no answer [01]\.\d\d', left)
    assert other == '  李文秀是一名医生。'


@pytest.fixture
def elsewhere(checkout, demo, tmp_path):
    """The script on a machine that has nothing but the project and a trained output folder."""
    folder, *_ = demo
    shutil.rmtree(tmp_path / 'data')
    (tmp_path / 'trained').mkdir()
    for name in ('best_model.weights.h5', 'config.json', 'bert_config.json', 'vocab.txt'):
        shutil.copy(folder / name, tmp_path / 'trained')
    shutil.copy(folder / 'random_order.json', tmp_path / 'trained')
    return checkout


def test_trained_result_is_one_folder(elsewhere, demo, tmp_path):
    """predict and export need nothing else, eval the data besides."""
    _, out, _ = demo
    questions = json.loads(read(os.path.join(DEMO, 'SogouQA.json')))[:3]
    write_json(tmp_path / 'q.json', questions)
    trained = f'--output_dir={tmp_path / "trained"}'
    done = run('predict', tmp_path / 'q.json', trained, script=elsewhere)
    assert done.returncode == 0, done.stderr
    assert [line.split('\t')[0] for line in done.stdout.splitlines()] == ['10000', '10001', '10002']
    done = run('export', tmp_path / 'model', trained, script=elsewhere)
    assert done.returncode == 0 and (tmp_path / 'model' / 'saved_model.pb').exists(), done.stderr
    done = run('eval', trained, script=elsewhere)
    assert done.returncode == 2 and 'SogouQA.json' in done.stderr.splitlines()[-1]
    for name in 'SogouQA.json', 'qid_answer_expand':
        os.makedirs(tmp_path / 'data', exist_ok=True)
        shutil.copy(os.path.join(DEMO, name), tmp_path / 'data')
    done = run('eval', trained, script=elsewhere)
    assert done.returncode == 0, done.stderr
    assert last_line(done.stdout) == last_line(out)


def test_exported_reader_answers_as_the_readme_says(demo, script, tmp_path):
    """The loop that it shows, in a process without this project, against the reader."""
    folder, *_ = demo
    done = call(script, 'export', tmp_path / 'model', f'--output_dir={folder}')
    assert done[0] == 0, done[2]
    [loop] = re.findall(r'```python\n(import json.*?)```', read(README), re.DOTALL)
    questions = json.loads(read(os.path.join(DEMO, 'SogouQA.json')))[100:120]
    asked = [script.asked(record) for record in questions]
    reads = 'import json, sys\nfor asked in json.load(sys.stdin):\n    print(answer(*asked))\n'
    done = subprocess.run(
        [sys.executable, '-c', loop + reads],
        input=json.dumps(asked), capture_output=True, encoding='utf-8', cwd=tmp_path, check=False,
        env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    reader = script.load_reader(output_dir=str(folder))
    expected = [reader.tokenizer.decode(answer.token_ids) for answer in reader.answers(asked)]
    assert done.stdout.splitlines() == expected and len({*expected}) > 15
