"""The script as its users meet it: train, eval, predict, export, and what they may do wrong."""

import concurrent.futures
import contextlib
import csv
import importlib.util
import io
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
import runs
from conftest import ROOT, VOCABULARY, record, write_json, write_small
from runs import outputs

from support import bert, paths, settings
from support.files import digest
from support.resume import Run, State

pytestmark = pytest.mark.usefixtures('built_once')
SCRIPT = pathlib.Path(ROOT, 'task_reading_comprehension_by_seq2seq.py')
SCORER, DEMO = SCRIPT.with_name('evaluate_sogou.py'), pathlib.Path(ROOT, 'data', 'demo')
BEST, ORDER = 'output/model.safetensors', 'output/random_order.json'
UNUSED = '[unused1]', '[MASK]', '##中'  # by the simplified vocabulary
# another order, which does not show in the weights
REVERSED = '\n'.join(token for token in VOCABULARY[::-1] if token not in UNUSED)
INSTALL = f'{sys.executable} -m pip install -r requirements.txt'
BROKEN = 'a package is missing or broken'


def run(*arguments, script=SCRIPT, before=(sys.executable,), **environment):
    """Run the script, or another, as a process. Returns subprocess.CompletedProcess."""
    return subprocess.run(
        [*before, script, *arguments], env={**os.environ, **environment}, capture_output=True,
        encoding='utf-8', check=False,
    )  # fmt: skip


def read_json(path):
    return json.loads(path.read_text(encoding='utf-8'))


def last_line(text):
    return json.loads(text.splitlines()[-1])


def contents(folder):
    """{path: bytes} of all that lies in a folder."""
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def module_of(path):
    """A file of Python as a module."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ------------------------------------------------------------------- answered before TensorFlow is


@pytest.fixture(scope='module')
def no_tensorflow(tmp_path_factory):
    """An environment whose TensorFlow cannot be imported, and takes its time to say so."""
    folder = tmp_path_factory.mktemp('no_tensorflow')
    said = 'Traceback:\n  File "a.py"\nImportError: libc.so.6: too old\n\nFailed'  # as it says it
    code = f'import os, time; open({str(folder / "begun")!r}, "w"); '
    code += f'time.sleep(float(os.environ.get("SLEEP", 0))); raise ImportError({said!r})'
    (folder / 'tensorflow.py').write_text(code, encoding='utf-8')
    return {'PYTHONPATH': str(folder)}


@pytest.fixture(scope='module')
def edited(tmp_path_factory):
    """Edit one place of a copy of the script, which has beside it what it needs."""
    folder = tmp_path_factory.mktemp('edited')
    for name in 'evaluate_sogou.py', 'support', 'data':
        (folder / name).symlink_to(os.path.join(ROOT, name))

    def edit(old, new):
        text, path = SCRIPT.read_text(encoding='utf-8'), folder / 'edited.py'
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding='utf-8')
        return path

    return edit


@pytest.mark.parametrize(
    ('flags', 'optimize', 'said'),
    [
        ([], '', rf'{BROKEN} \(ImportError: libc.so.6: too old\); activate .*{INSTALL}'),
        # nothing that is installed is found, nor the folder of the script
        (['-I', '-S'], '', rf'{BROKEN} \(PackageNotFoundError: .*{INSTALL}'),
        (['-OO'], '2', '-OO, PYTHONOPTIMIZE=2: Keras needs the docstrings; run without'),
    ],
)
def test_python_that_cannot_work_is_told_what_it_lacks(no_tensorflow, flags, optimize, said):
    """But help comes first."""
    python = {'before': [sys.executable, *flags], 'PYTHONOPTIMIZE': optimize, **no_tensorflow}
    done = run('eval', **python)
    assert (done.returncode, done.stdout) == (2, '')
    assert re.fullmatch(f'{said}\n', done.stderr)
    assert run('--help', **python).returncode == 0


TOPK = 'topk: Whole[1] = 1'


def test_help_lists_commands_and_constants(script, edited, no_tensorflow):
    """As they stand, with comments, of any characters whatever standard output is by itself."""
    path = edited(f'{TOPK}  # beam width', f'{TOPK}  # 束宽')
    done = run('--help', script=path, **no_tensorflow, PYTHONIOENCODING='ascii')
    assert (done.returncode, done.stderr) == (0, '')
    assert all(f' {command}' in done.stdout for command in ('train', 'eval', 'predict', 'export'))
    described = dict(re.findall(r'^    (\w+): .* = .*  # (.*)$', done.stdout, re.MULTILINE))
    assert [*described] == [*vars(script.Constants())]
    assert all(described.values()) and described['topk'] == '束宽'


@pytest.mark.parametrize(
    ('argument', 'edit', 'named'),
    [
        ('--top_k=2', TOPK, '--top_k=2: unknown to train; the nearest constant is --topk='),
        ('--topk=0', TOPK, 'topk = 0: expected a whole number of at least 1'),
        # a name in another encoding, as those of a Windows archive are
        ('数据'.encode('gbk'), TOPK, r'\udcca\udcfd\udcbe\udcdd: unknown to train; the nearest'),
        ('--seed=1', 'topk: Whole[1] = [1]', "Constants: mutable default <class 'list'> for field"),
        ('--seed=1', 'topk: Whole[1]', "Constants: non-default argument 'topk' follows default"),
        ('--seed=1', 'topk: list = ()', "topk: <class 'list'> is no type for a constant"),
    ],
)
def test_mistake_is_answered_before_tensorflow_is_imported(
    no_tensorflow, edited, argument, edit, named
):
    """On the command line and in the script."""
    done = run('train', argument, script=edited(TOPK, edit), **no_tensorflow)
    assert (done.returncode, done.stdout) == (2, '')
    [line] = done.stderr.splitlines()
    assert line.startswith(named)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_before_the_script_has_begun_ends_it_without_a_word(no_tensorflow, number):
    """Nor does SIGTERM, which is taken as Ctrl-C later, end it with a traceback."""
    begun = pathlib.Path(no_tensorflow['PYTHONPATH'], 'begun')
    begun.unlink(missing_ok=True)
    environment, pipe = {**os.environ, **no_tensorflow, 'SLEEP': '60'}, subprocess.PIPE
    command = [sys.executable, SCRIPT, 'eval']
    with subprocess.Popen(command, stderr=pipe, env=environment) as process:
        while not begun.exists():
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


@pytest.fixture(scope='module')
def first_training(script, built_once, tmp_path_factory):
    """(a folder like `small`, standard output, standard error) of `train` in a notebook's thread.

    Streams are of another kind there, and no signal comes.
    """
    folder = write_small(tmp_path_factory.mktemp('small'))
    texts = io.StringIO(), io.StringIO()
    out, err = (types.SimpleNamespace(write=text.write, flush=text.flush) for text in texts)
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with concurrent.futures.ThreadPoolExecutor() as pool, redirected[0], redirected[1]:
        status = pool.submit(runs.run, script, ['train', *small_options(folder)]).result()
    out, err = (text.getvalue() for text in texts)
    assert status == 0, err
    return folder, out, err


@pytest.fixture
def trained(first_training, tmp_path):
    """The folder `small` after `train`."""
    return shutil.copytree(first_training[0], tmp_path, dirs_exist_ok=True)


@pytest.fixture
def on_small(script, trained):
    """Run a command of the script on the folder `trained`; returns `outputs`."""
    return lambda command, *more: outputs(script, command, *small_options(trained), *more)


def test_train_says_what_it_does_and_eval_agrees(first_training, trained, on_small):
    folder, out, err = first_training
    assert 'random weights' in err and 'demo' not in err and 'locked' not in err
    assert err.count(f"data_dir = '{folder}' instead of 'auto'") == 1
    assert re.search('scoring against the answers in .*SogouQA.json', err)
    assert err.count('gold: 北京') == 2 * 2  # two validation questions, two epochs
    assert list(last_line(out)) == ['Accuracy', 'F1', 'Final', 'total', 'Answered']
    assert last_line(out)['total'] == 2
    page = trained / 'output' / 'report.html'
    assert page.exists()
    assert on_small('eval', '--report=0')[:2] == (0, out)
    assert not page.exists()  # or it would be of other answers
    # without its question a record has no answer, which counts as wrong
    write_json(trained / ORDER, [*range(6)])
    reader = read_json(trained / 'output' / 'reader.json')
    write_json(trained / 'output' / 'reader.json', {**reader, 'left_out': None})  # not known
    lacking = [record(f'S{i}', None) for i in range(5)]
    write_json(trained / 'SogouQA.json', [*lacking, record('S5')])
    status, out, err = on_small('eval')
    assert status == 0 and '5 of 6 records' in err and 'record 1 has no question' in err
    assert last_line(out) == {**dict.fromkeys(last_line(out), 0), 'total': 2}


def test_own_data_alone_is_split_and_found_again(script, trained, monkeypatch):
    """By `eval` without an option, from any folder, wherever it writes; the rest was trained on."""
    monkeypatch.chdir(trained)
    write_json(trained / 'own.json', [record(i) for i in range(12)])
    given = *small_options(trained), '--train_data=own.json', '--output_dir=own'
    status, out, err = outputs(script, 'train', *given)
    assert status == 0 and '10 questions to train on, 2 to validate' in err, err
    order = read_json(trained / 'own' / 'random_order.json')
    monkeypatch.chdir(trained / 'own')
    for options in ['--output_dir=.'], ['--output_dir=../other', '--checkpoint_path=.']:
        status, again, err = outputs(script, 'eval', *options)
        assert (status, again) == (0, out), err
        data = f"train_data = '{trained}/own.json' instead of 'auto', by ./reader.json\n"
        assert err.count(data) == 1
        lines = pathlib.Path(options[0][13:], 'predictions.tsv').read_text(encoding='utf-8')
        ids = [line.split('\t')[0] for line in lines.splitlines()]
        assert ids == [str(order[0]), str(order[10])]


@pytest.mark.parametrize(('best_by', 'kept'), [('final', [1, 3]), ('loss', [1, 2])])
def test_best_weights_are_kept_by_best_by(script, monkeypatch, best_by, kept):
    """By Final a tie goes to the later epoch, which has learnt longer."""
    saved, finals = [], iter([0.5, 0.2, 0.5])
    monkeypatch.setattr(script.Evaluator, 'evaluate', lambda _: {'val_Final': next(finals)})
    monkeypatch.setattr(bert, 'save_best', lambda *_: saved.append(epoch))
    run, reader = Run.__new__(Run), types.SimpleNamespace()
    run.constants = reader.constants = script.Constants(best_by=best_by)
    run.state, run.model, run.described = State(), 'the model', 'some BERT'
    evaluator = script.Evaluator(reader, [record('a')], {}, run)
    for epoch, loss in enumerate([0.9, 0.8, 0.85], 1):
        evaluator.on_epoch_end(epoch - 1, {'loss': loss})
    assert saved == kept


@pytest.mark.parametrize(
    ('command', 'changes', 'named'),
    [
        ('train', {'WebQA.json': '[{"id": "W1",'}, r'WebQA.json: not JSON \('),
        ('train --checkpoint_path=no.ckpt', {'SogouQA.json': None},
         r'missing: no.ckpt \(named by checkpoint_path\); check the path, or give another$'),
        ('train', {'vocab.txt': 'a\n'}, r'vocab.txt: lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]'),
        (f'train --checkpoint_path=FOLDER/{BEST} --max_q_len=400', {},
         '660 tokens are to be read; lower max_p_len'),
        # some layers would be left unused; heads and the order of tokens do not show in weights
        ('train', {'bert_config.json': {'num_attention_heads': 4}},
         r'made with another BERT than FOLDER/bert_config.json and FOLDER/vocab.txt \('),
        (f'train --checkpoint_path=FOLDER/{BEST}', {},
         rf'made with other first weights than FOLDER/{BEST} \(reader.json there names'),
        ('train --checkpoint_path=FOLDER/output', {'output/vocab.txt': REVERSED},
         f'{BEST}: trained with others than .*/config.json and .*/vocab.txt; take the files'),
        ('train --train_data=no.json --valid_data=FOLDER/WebQA.json', {},
         r'missing: no.json \(named by train_data\); check the path, or give another$'),
        ('eval --valid_data=/x/dev.json', {},
         r'missing: /x/dev.json \(named by valid_data\); check the path, or give another$'),
        ('eval', {'SogouQA.json': None}, r'missing: FOLDER/SogouQA.json \(named by data_dir\); '),
        ('eval', {BEST: None}, f'missing: .*{BEST}; run train first'),
        ('train --checkpoint_path=FOLDER/output --config_path=FOLDER/bert_config.json', {},
         'output/vocab.txt: line 55 is the last, but .*bert_config.json is made for 58 tokens; '),
        ('eval', {'output/config.json': {'num_attention_heads': 4}},
         f'{BEST}: trained with others than .*/config.json and .*/vocab.txt; take the files'),
        # another order would score questions that were trained on
        ('eval', {ORDER: None}, f'missing: .*{ORDER}; copy it from where the weights were'),
        ('predict FOLDER/q.json', {}, '/q.json: no such file'),
        ('export FOLDER', {}, 'exists; choose another folder'),
    ],
)  # fmt: skip
def test_mistake_is_one_line_that_names_place_and_cure(trained, on_small, command, changes, named):
    """Exit status 2, no traceback; nothing is changed, and nothing left half written.

    changes: {name of a file: all of it, or None to delete it, or a dict of entries of its JSON}
    """
    for name, content in changes.items():
        if content is None:
            (trained / name).unlink()
        elif isinstance(content, dict):
            write_json(trained / name, {**read_json(trained / name), **content})
        else:
            (trained / name).write_text(content, encoding='utf-8')
    before = contents(trained)
    status, out, err = on_small(*command.replace('FOLDER', str(trained)).split())
    assert (status, out) == (2, '')
    named = named.replace('FOLDER', str(trained))
    assert re.search(named, err.splitlines()[-1]) and 'Traceback' not in err, err
    after = contents(trained)
    assert before.items() <= after.items()
    assert {path.name for path in after.keys() - before} <= {'random_order.json', 'train.lock'}


def test_questions_that_were_trained_on_are_not_scored(trained, on_small):
    """In another order of the records most of those split off were."""
    write_json(trained / 'SogouQA.json', read_json(trained / 'SogouQA.json')[::-1])
    status, out, err = on_small('eval')
    assert (status, out) == (2, '') and 'the data is not that of its training' in err


def test_training_goes_on_from_the_weights_of_a_trained_reader(script, trained):
    folder = str(trained / 'output')
    constants = script.Constants(data_dir=str(trained), checkpoint_path=folder)
    files = paths.locate_files(constants)
    model, _ = script.build_model(files, files.checkpoint, constants)
    again = script.load_reader(output_dir=folder).model
    assert digest(model.weights) == digest(again.weights)


def test_everything_that_is_told_is_written_whatever_other_programs_want(script, trained, on_small):
    """All of an Answer, a line of JSON each; a page on request.

    Their environment changes nothing: what bert4keras itself advises, warnings as errors, odd
    encodings. Nor need somebody listen: what is not heard goes nowhere else.
    """
    data, output = [record('a'), record('b', '谁？'), {'id': 'c'}], trained / 'output'
    write_json(trained / 'q.json', data)
    status, out, err = on_small('predict', trained / 'q.json', '--topk=3')
    assert status == 0 and not (output / 'answers_to_q.html').exists(), err
    assert (output / 'answers_to_q.tsv').read_text(encoding='utf-8') == out
    lines = (output / 'answers_to_q.jsonl').read_text(encoding='utf-8').splitlines()
    reader = script.load_reader(output_dir=str(output), data_dir=str(trained), topk=3)
    expected = [{**told, 'file': str(trained / 'q.json')} for told in reader.predict(data)]
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(expected))
    assert len(expected[0]['candidates']) > 1 and len(expected[0]['votes']) == 3
    assert expected[2]['error'] == 'no question and no passages'
    before = contents(trained)
    (output / 'answers_to_q.jsonl').unlink()
    others = {
        'TF_KERAS': '1', 'TF_FUNCTION_JIT_COMPILE_DEFAULT': '1', 'PYTHONWARNINGS': 'error',
        'PYTHONSAFEPATH': '1', 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C',
        'before': ['sh', '-c', 'exec "$0" "$@" 2>&- <&-', sys.executable],
    }  # fmt: skip
    options = *small_options(trained), '--topk=3', '--report=5'
    done = run('predict', trained / 'q.json', *options, **others)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, '')
    assert {path.name for path in contents(trained).keys() - before} == {'answers_to_q.html'}
    assert contents(trained).items() >= before.items()


@pytest.fixture
def without_locks(tmp_path):
    """Run a command as on a file system where `flock` fails with a number; returns what it said."""
    if not sys.platform.startswith('linux') or not shutil.which('cc'):
        pytest.skip('needs Linux and a C compiler, cc, to make flock fail')
    code, library = tmp_path / 'flock.c', tmp_path / 'flock.so'
    failing = 'int flock(int file, int operation) { errno = atoi(getenv("NUMBER")); return -1; }'
    code.write_text(f'#include <errno.h>\n#include <stdlib.h>\n{failing}\n', encoding='utf-8')
    subprocess.run(['cc', '-shared', '-fPIC', '-o', library, code], check=True)
    # what this process has set since it began would help the other
    before = ['env', '-u', 'HDF5_USE_FILE_LOCKING', sys.executable]

    def command(number, *arguments):
        options = {'before': before, 'LD_PRELOAD': str(library), 'NUMBER': str(number)}
        done = run(*arguments, **options)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    return command


def test_every_command_works_where_nothing_can_be_locked(without_locks, small, small_bert):
    """With one line. HDF5 asks for locks of its own: for a BERT in its format, and for what
    the original script has saved."""
    options = f'--data_dir={small}', f'--output_dir={small / "output"}', '--max_p_len=28'
    bert = f'--checkpoint_path={ROOT}/tests/hugging_face/tf_model.h5'
    vocabulary = f'--dict_path={small}/vocab.txt'
    trained = without_locks(37, 'train', bert, vocabulary, '--epochs=1', *options)
    (small / 'original').mkdir()
    small_bert[0].save_weights(small / 'original' / 'best_model.weights', save_format='h5')
    commands = [
        (95, 'eval', *options), (524, 'predict', small / 'WebQA.json', *options),
        (37, 'export', small / 'new', *options[:1], f'--output_dir={small / "original"}'),
    ]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = [trained, *pool.map(lambda command: without_locks(*command), commands)]
    counts = [each.stderr.count('files cannot be locked here (') for each in done]
    assert counts == [1, 1, 1, 0]
    assert done[1].stdout == trained.stdout and done[2].stdout.count('\n') == 4


def test_result_is_written_though_nobody_reads_the_output(script, trained):
    """Whoever calls it then hears one line; nor is anything left to fail at the end of Python."""
    path, err = trained / 'output' / 'predictions.tsv', io.StringIO()
    expected = path.read_bytes()
    path.unlink()
    reader, writer = os.pipe()
    os.close(reader)
    out = open(writer, 'w', encoding='utf-8')  # noqa: SIM115
    with out, contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        assert runs.run(script, ['eval', *small_options(trained)]) == 1
    assert err.getvalue().endswith('\nstandard output: Broken pipe\n')
    assert path.read_bytes() == expected


def test_records_on_standard_input_are_answered_at_once(script, trained, monkeypatch):
    """While the pipe stays open; nothing is written to the disk, and a bad line harms no other."""
    before, asked = contents(trained), '"question": "在哪里？", "passages": ["人口在北京"]}\n'
    (reader, writer), (answers, out) = os.pipe(), os.pipe()
    with (
        open(reader, encoding='utf-8') as questions,
        open(answers, encoding='utf-8') as told,
        open(out, 'w', encoding='utf-8') as stdout,
        contextlib.redirect_stdout(stdout),
        concurrent.futures.ThreadPoolExecutor() as pool,
        open(writer, 'wb', 0) as stdin,  # closed first, or the reader would wait for ever
    ):
        monkeypatch.setattr(sys, 'stdin', questions)
        status = pool.submit(runs.run, script, ['predict', '-', *small_options(trained)])
        for line, named in (
            ('{"id": "a", ' + asked, '"id": "a"'),
            ('{"question"\n', '"error": "line 2: not JSON'),
            ('{' + asked, '"id": null'),
        ):
            stdin.write(line.encode())
            assert select.select([told], [], [], 60)[0] and named in told.readline()
        stdin.close()
        assert status.result() == 0
    assert contents(trained) == before


@pytest.mark.slow
def test_fifty_real_questions_can_be_learnt(script, shared, tmp_path):
    """Trained and scored on the same ones, until it knows them."""
    data = tmp_path / 'fifty.json'
    write_json(data, read_json(pathlib.Path(shared, 'WebQA.json'))[:50])
    status, out, err = outputs(
        script, 'train', f'--train_data={data}', f'--valid_data={data}', '--valid_sample=5',
        f'--checkpoint_path={shared}/tiny_bert', f'--dict_path={shared}/vocab.txt', '--epochs=20',
        '--batch_size=16', '--learning_rate=5e-4', '--decay_steps=160', '--best_by=loss',
        f'--output_dir={tmp_path / "output"}',
    )  # fmt: skip
    assert status == 0, err[-2000:]
    score = last_line(out)
    assert score['total'] == 50 and score['Final'] >= 0.8, score


# ----------------------------------------------------------------------------------------- the demo


@pytest.mark.filterwarnings('ignore:The initializer TruncatedNormal')
@pytest.mark.parametrize('bert', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_demo_is_what_make_demo_writes(script, tmp_path, bert):
    """Same seed, same bytes; but for the weights of its BERT: 4 updates in place of 6,000."""
    make_demo = module_of(DEMO / 'make_demo.py')
    make_demo.FOLDER = str(tmp_path)
    make_demo.copying_steps = make_demo.cloze_steps = make_demo.tests_per_update = 2
    if not bert:
        make_demo.write_bert = lambda *_: None
    make_demo.main()
    written = {path.name for path in tmp_path.iterdir()}
    expected = {path.name for path in DEMO.iterdir() if path.is_file()} - {'make_demo.py'}
    assert written == {name for name in expected if bert or not name.startswith('bert_')}
    for name in written:
        if 'ckpt' not in name:
            assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), name
    if bert:
        read = script.tf.train.load_checkpoint
        paths = [f'{folder}/bert_model.ckpt' for folder in (tmp_path, DEMO)]
        ours, theirs = (read(path).get_variable_to_shape_map() for path in paths)
        assert ours == theirs


def test_demo_learns_to_read(demo, script):
    """No name of a validation question occurs in training: without reading Final is near 0."""
    folder, out, err = demo
    told, predictions = last_line(out), folder / 'predictions.tsv'
    assert told['Final'] >= 0.95 and told['total'] == 400
    answered = 1 - predictions.read_text(encoding='utf-8').count('\t\n') / 400
    assert told.pop('Answered') == answered
    score = run(predictions, '--answers', DEMO / 'qid_answer_expand', script=SCORER)
    assert last_line(score.stdout) == told
    assert err.startswith(f'{settings.DEMO}\n') and 'Traceback' not in err
    # the command line is read once
    for note in f"output_dir = '{folder}' instead of 'output'", 'batch_size = 64 instead of 32':
        assert err.count(note) == 1
    rows = [*csv.DictReader((folder / 'log.csv').read_text(encoding='utf-8').splitlines())]
    assert {'epoch', 'loss', 'val_Accuracy', 'val_F1', 'val_Final'} <= {*rows[0]}
    assert float(rows[-1]['loss']) < float(rows[0]['loss'])
    used = read_json(folder / 'reader.json')
    assert {*used['constants']} == {*vars(script.Constants())}
    assert used['constants']['batch_size'] == 64  # what was used, not what stands in the script
    assert {*used['versions']} == {'python', 'tensorflow', 'tf_keras', 'bert4keras', 'numpy'}
    assert len(read_json(folder / 'random_order.json')) == 1200
    assert any(path.name.startswith('events') for path in (folder / 'tensorboard').rglob('*'))
    names = {re.sub(rf'-\d+-{len(rows)}$', '', path.name) for path in folder.iterdir()}
    assert {name for name in names if not name.startswith('answers_to_')} == {
        'model.safetensors', 'config.json', 'vocab.txt', 'tokenizer_config.json', 'reader.json',
        'random_order.json', 'log.csv', 'predictions.tsv', 'predictions.jsonl', 'predictions.json',
        'report.html', 'tensorboard', 'train.lock', 'backup',
    }  # fmt: skip


def test_question_is_answered_from_python_and_on_the_command_line(demo, script, edited):
    """In plain text, where no terminal shows it: that which is read, as a script may change it."""
    question, passages = '李文秀的老师是谁？', ['李文秀是一名医生。', '据介绍，李文秀师从方𠮷明。']
    reader = script.load_reader(output_dir=str(demo[0]), topk=2)
    answer = reader.answer(question, passages)
    assert str(answer).startswith("Answer(text='方𠮷明', passage=1, start=9, end=12, token_ids=[")
    assert 0.5 < answer.score <= 1 and answer.log_score < 0 and reader.constants.topk == 2
    assert [len(vote.token_probs) for vote in answer.votes] == [0, 4]
    assert 1 <= len(answer.candidates) <= 2 and answer.candidates[0][:7] == answer[:7]
    path = edited("    return passage['passage']\n", "    return passage['passage'].strip('“”')\n")
    passages = f'--passage={passages[0]}', f'--passage=“{passages[1]}”'
    options = f'--question={question}', *passages, f'--output_dir={demo[0]}'
    status, out, err = outputs(module_of(path), 'predict', *options)
    assert status == 0, err
    assert re.fullmatch(
        r'answer: 方𠮷明 \(score 0\.\d{3}\)\n'
        r'passage 2 votes: 方 \S+  \[UNK\] \S+  明 \S+  \[SEP\] \S+\n'
        r'  据介绍，李文秀师从\[方𠮷明\]。\n'
        r'passage 1 left: no answer [01]\.\d\d\n  李文秀是一名医生。\n', out,
    )  # fmt: skip


def test_trained_result_is_one_folder(demo, script, monkeypatch, tmp_path):
    """`predict` needs nothing else, `eval` the data besides."""
    folder, out, _ = demo
    needed = 'model.safetensors', 'config.json', 'vocab.txt', 'reader.json', 'random_order.json'
    for name in needed:
        shutil.copy(folder / name, tmp_path)
    monkeypatch.setattr(paths, 'DATA', str(tmp_path / 'data'))  # as on another machine
    # whatever they lack; a tab in an answer becomes a space
    question = '李文秀的老师是谁？'
    asked = {'question': question, 'passages': ['李文秀的老师是方\t远。']}
    lacking = [{**asked, 'id': 'b', 'question': None}, asked, {**asked, 'id': 'c', 'passages': []}]
    write_json(tmp_path / 'q.json', [{'id': 'a#1', **asked}, *lacking])
    options = [f'--output_dir={tmp_path}']
    status, lines, err = outputs(script, 'predict', tmp_path / 'q.json', *options)
    assert (status, lines) == (0, 'a#1\t方 远\nb\t\nc\t\n'), err
    status, _, err = outputs(script, 'eval', *options)
    assert status == 2 and 'SogouQA.json' in err.splitlines()[-1]
    (tmp_path / 'data').mkdir()
    for name in 'SogouQA.json', 'qid_answer_expand':
        shutil.copy(DEMO / name, tmp_path / 'data')
    status, again, err = outputs(script, 'eval', *options)
    assert (status, last_line(again)) == (0, last_line(out)), err
    assert (tmp_path / 'predictions.tsv').read_bytes() == (folder / 'predictions.tsv').read_bytes()


def test_exported_reader_answers_as_the_readme_says(demo, script, tmp_path):
    """The loop that it shows, in a process without this project, against the reader."""
    status, _, err = outputs(script, 'export', tmp_path / 'model', f'--output_dir={demo[0]}')
    assert status == 0, err
    readme = pathlib.Path(ROOT, 'support', 'README.md').read_text(encoding='utf-8')
    [loop] = re.findall(r'```python\n(import json.*?)```', readme, re.DOTALL)
    loop += 'import sys\nfor asked in json.load(sys.stdin):\n    print(answer(*asked))\n'
    asked = [script.asked(question) for question in read_json(DEMO / 'SogouQA.json')[100:110]]
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, '-c', loop], input=json.dumps(asked), capture_output=True,
        encoding='utf-8', cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    reader = script.load_reader(output_dir=str(demo[0]))
    expected = [reader.tokenizer.decode(answer.token_ids) for answer in reader.answers(asked)]
    assert done.stdout.splitlines() == expected and len({*expected}) > 7
