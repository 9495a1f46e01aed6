"""The script as its users meet it: train, eval, predict, and what they may do wrong."""

import csv
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, build_small_model, record, write_json

SCRIPT = os.path.join(ROOT, 'task_reading_comprehension_by_seq2seq.py')


def run(*arguments, script=SCRIPT):
    """Run the script as a process. Returns subprocess.CompletedProcess."""
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, encoding='utf-8', check=False
    )


def last_line(text):
    return json.loads(text.splitlines()[-1])


# ---------------------------------------------------------------------------------------------- the demo


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """(output folder, what `train` said) after the demo as a newcomer runs it."""
    folder = tmp_path_factory.mktemp('demo') / 'output'
    done = run('train', f'--output_dir={folder}')
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done


def test_demo_learns_to_read(demo):
    """No name of a validation question occurs in training: without reading, Final would be near 0."""
    _, done = demo
    assert last_line(done.stdout)['Final'] >= 0.95
    assert last_line(done.stdout)['total'] == 400
    assert 'demo' in done.stderr.splitlines()[0] and 'data/README.md' in done.stderr.splitlines()[0]
    assert 'Traceback' not in done.stderr


def test_eval_prints_the_final_of_train(demo):
    folder, done = demo
    predictions = (folder / 'predictions.tsv').read_bytes()
    (folder / 'predictions.tsv').unlink()
    again = run('eval', f'--output_dir={folder}')
    assert again.returncode == 0
    assert last_line(again.stdout) == last_line(done.stdout)
    assert (folder / 'predictions.tsv').read_bytes() == predictions
    assert 'Final=' in again.stderr  # the running score


def test_evaluate_sogou_prints_the_same_score(demo):
    folder, done = demo
    arguments = [os.path.join(ROOT, 'evaluate_sogou.py'), str(folder / 'predictions.tsv')]
    answers = os.path.join(ROOT, 'data', 'demo', 'qid_answer_expand')
    score = subprocess.run(
        [sys.executable, *arguments, '--answers', answers],
        capture_output=True,
        encoding='utf-8',
        check=True,
    )
    assert last_line(score.stdout) == last_line(done.stdout)


def test_output_folder_holds_what_the_readme_says(demo, script):
    folder, _ = demo
    names = {
        'best_model.weights.h5', 'random_order.json', 'log.csv', 'predictions.tsv', 'config.json', 'tensorboard',
        'train.lock', 'backup-504-8',
    }  # fmt: skip
    assert {name for name in os.listdir(folder) if not name.startswith('answers_to_')} == names
    with open(folder / 'log.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert {'epoch', 'loss', 'val_Accuracy', 'val_F1', 'val_Final'} <= set(rows[0])
    assert float(rows[-1]['loss']) < float(rows[0]['loss'])
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    assert set(config['constants']) == set(script.constants)
    assert set(config['versions']) == {'python', 'tensorflow', 'tf_keras', 'bert4keras', 'numpy'}
    assert len(json.loads((folder / 'random_order.json').read_text(encoding='utf-8'))) == 1200
    assert any(path.name.startswith('events') for path in (folder / 'tensorboard').rglob('*'))


def test_three_lines_answer_a_question(demo):
    folder, _ = demo
    lines = f"""
import task_reading_comprehension_by_seq2seq as task
task.output_dir = {str(folder)!r}
from task_reading_comprehension_by_seq2seq import load_reader
reader = load_reader()
print(reader.answer('李文秀的老师是谁？', ['李文秀是一名医生。', '据介绍，李文秀师从方𠮷明。'], topk=2))
"""
    done = subprocess.run(
        [sys.executable, '-c', lines], cwd=ROOT, capture_output=True, encoding='utf-8', check=False
    )
    assert "Answer(text='方𠮷明', passage=1, start=9, end=12, token_ids=[" in done.stdout, (
        done.stderr
    )


def test_predict_prints_a_line_for_every_question_with_an_id(demo, tmp_path):
    """Whatever they lack: a tab in an answer becomes a space, what cannot be answered is reported."""
    folder, _ = demo
    good = {
        'id': 'a#1',
        'question': '李文秀的老师是谁？',
        'passages': [{'passage': '李文秀的老师是方\t远。'}],
    }
    data = [
        good,
        {'id': 'b', 'passages': good['passages']},
        {'question': '谁？', 'passages': good['passages']},
    ]
    write_json(
        tmp_path / 'questions.json', [*data, {'id': 'c', 'question': '谁？', 'passages': []}]
    )
    done = run('predict', str(tmp_path / 'questions.json'), f'--output_dir={folder}')
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'a#1\t方 远\nb\t\nc\t\n'
    assert (folder / 'answers_to_questions.tsv').read_text(encoding='utf-8') == done.stdout
    lines = re.split('[\r\n]', done.stderr)  # none of them is glued to the progress bar
    assert "record 'b' has no question; it gets the empty answer" in lines
    assert "record 'c' has no passages; it gets the empty answer" in lines
    assert "a record without id cannot be answered, its question is '谁？'" in lines


@pytest.fixture(scope='module')
def make_demo():
    path = os.path.join(ROOT, 'data', 'demo', 'make_demo.py')
    specification = importlib.util.spec_from_file_location('make_demo', path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_demo_corpus_is_what_make_demo_writes(make_demo, tmp_path):
    """Same seed, same bytes; the checkpoint alone takes too long to write again."""
    make_demo.write_corpus(str(tmp_path))
    for name in 'WebQA.json', 'SogouQA.json', 'qid_answer_expand', 'vocab.txt':
        with open(os.path.join(ROOT, 'data', 'demo', name), 'rb') as file:
            assert file.read() == (tmp_path / name).read_bytes(), name


def test_demo_corpus_makes_reading_hard(script, make_demo):
    """No entity is asked about twice; passages are repeated, contradict the others, or all have no answer."""
    files = script.locate_files()
    assert files['demo']
    webqa, sogouqa = script.load_questions(files['webqa']), script.load_questions(files['sogouqa'])
    templates = [
        re.escape(template).replace(re.escape('{e}'), '(.+)')
        for rules in make_demo.FACTS.values()
        for _, templates, _ in rules.values()
        for template in templates.split('|')
    ]
    entities = [
        max(
            match[1]
            for template in templates
            if (match := re.fullmatch(template, record['question']))
        )
        for record in webqa + sogouqa
    ]
    assert len(set(entities)) == len(entities) == 3600
    passages = [[p['passage'] for p in record['passages']] for record in webqa + sogouqa]
    answers = [[p['answer'] for p in record['passages']] for record in webqa + sogouqa]
    assert all(3 <= len(texts) <= 9 for texts in passages)
    assert sum(len(set(texts)) < len(texts) for texts in passages) > 500
    assert sum(len({*some} - {''}) > 1 for some in answers) > 300
    assert sum(not any(some) for some in answers[: len(webqa)]) > 200
    assert all(any(some) for some in answers[len(webqa) :])
    assert sum(any(' ' in answer for answer in some) for some in answers) > 100


# ------------------------------------------------------------------------------------------- small models


@pytest.fixture
def call(script, small, capsys):
    """Call the script in this process on the folder `small`. Returns (exit status, standard output and error)."""

    def main(command, *arguments):
        options = [
            f'--data_dir={small}',
            '--checkpoint_path=',
            f'--output_dir={small / "output"}',
            *arguments,
        ]
        status = script.main([command, *options, '--epochs=2', '--max_a_len=4', '--batch_size=4'])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return main


def test_train_without_checkpoint_says_so_and_eval_agrees(call, small):
    status, out, err = call('train')
    assert status == 0, err
    assert 'random weights' in err
    assert f"data_dir = '{small}' instead of 'auto'" in err and 'epochs = 2 instead of 8' in err
    assert 'demo' not in err
    assert 'answers in' in err and 'SogouQA.json' in err  # what it is scored against
    assert (
        list(last_line(out)) == ['Accuracy', 'F1', 'Final', 'total']
        and last_line(out)['total'] == 2
    )
    status, again, _ = call('eval')
    assert status == 0 and last_line(again) == last_line(out)


def test_epochs_show_answers_with_their_gold(call):
    _, _, err = call('train')
    assert err.count('gold: 北京') == 2 * 2  # two validation questions, two epochs


@pytest.mark.parametrize(('best_by', 'kept'), [('final', [1, 3]), ('loss', [1, 2])])
def test_best_weights_are_kept_by_best_by(script, small, best_by, kept):
    """By Final a tie goes to the later epoch, which has learnt longer."""
    script.best_by, script.valid_sample = best_by, 2
    finals, losses = [0.5, 0.2, 0.5], [0.9, 0.8, 0.85]
    saved = []
    model, tokenizer = build_small_model(script, small)
    trainer = script.Trainer(model, tokenizer._token_end_id)
    scores = iter(finals)
    script.output_dir = str(small)
    settings = {'the BERT': ''}
    progress = script.Progress(
        trainer, tokenizer, [record('a')], lambda _: {'val_Final': next(scores)}, settings, True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, 'save_best_weights', lambda *_: saved.append(epoch + 1))
        for epoch in range(3):
            progress.state['losses'] = losses[epoch]
            progress.on_epoch_end(epoch, {})
    assert saved == kept


def test_official_answers_are_used_where_they_lie_in_the_data_folder(call, small):
    lines = ''.join(f'S{i}\t北京\t北京\n' for i in range(6))
    (small / 'qid_answer_expand').write_text(lines, encoding='utf-8')
    status, _, err = call('train')
    assert status == 0 and 'official answers in' in err
    (small / 'qid_answer_expand').write_text(lines.replace('S3', 'S9'), encoding='utf-8')
    status, _, err = call('eval')
    assert status == 2 and "'S3'" in err.splitlines()[-1]


def test_record_without_question_is_reported_and_still_counted(call, small):
    """In validation it gets the empty answer, which the official score counts as wrong."""
    data = [record(f'S{i}') for i in range(6)]
    for entry in data:
        del entry['question']
    write_json(small / 'SogouQA.json', data)
    status, out, err = call('train')
    assert status == 0, err
    assert '6 of 6 records' in err and 'record 1 (no question)' in err
    assert last_line(out) == {'Accuracy': 0.0, 'F1': 0.0, 'Final': 0.0, 'total': 2}
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


def changed_record(**changes):
    return json.dumps([record('S1'), {**record('S2'), **changes}], ensure_ascii=False)


@pytest.mark.parametrize(
    ('mistake', 'arguments', 'named'),
    [
        (change('WebQA.json', '[{"id": "W1",'), [], ['WebQA.json: not JSON at line 1']),
        (
            change('WebQA.json', '[{"id": "国"}]'.encode('gbk')),
            [],
            ['WebQA.json: not UTF-8 at byte 9'],
        ),
        (change('WebQA.json', ''), [], ['WebQA.json: not JSON at line 1']),
        (change('WebQA.json', '{}'), [], ['WebQA.json: expected a list of records']),
        (change('WebQA.json', '[]'), [], ['WebQA.json: expected a list of records']),
        (change('WebQA.json', '[[1]]'), [], ['WebQA.json: record 1 of 1 is a list']),
        (
            change('SogouQA.json', changed_record(id='S1')),
            [],
            ['SogouQA.json: record 2 of 2', "'S1' of record 1"],
        ),
        (
            change('SogouQA.json', changed_record(question=7)),
            [],
            ['record 2 of 2: "question" is a number'],
        ),
        (
            change('SogouQA.json', changed_record(passages=[{'passage': '京', 'answer': 3}])),
            [],
            ['record 2 of 2: "answer" of passage 1 is a number'],
        ),
        (change('SogouQA.json', None), [], ['missing: ', 'SogouQA.json', 'data/README.md']),
        (change('vocab.txt', None), [], ['missing: ', 'vocab.txt']),
        (change('vocab.txt', 'a\nb\n'), [], ['vocab.txt: lacks [PAD], [UNK], [CLS], [SEP]']),
        (
            change('vocab.txt', '[PAD]\n[UNK]\n[CLS]\n[SEP]\n中\n'),
            [],
            ['made for', 'the vocabulary has 5'],
        ),
        (
            change('bert_config.json', '{"vocab_size": 3'),
            [],
            ['bert_config.json: not a BERT configuration'],
        ),
        (
            change('bert_config.json', '{}'),
            [],
            ['bert_config.json: not a BERT configuration', 'vocab_size'],
        ),
        (change('output', 'a file'), [], ['output: cannot be used as output_dir']),
        (None, ['--max_q_len=400'], ['too few max_position_embeddings; lower max_p_len']),
        (
            change(
                'bert_config.json', json.dumps({'vocab_size': 58, 'max_position_embeddings': '512'})
            ),
            [],
            ['TypeError'],
        ),
        (change('WebQA.json', '[' * 100000), [], ['WebQA.json: nested too deeply']),
        (
            change('WebQA.json', f'[{"1" * 5000}]'),
            [],
            ['WebQA.json: nested too deeply, or a number too long'],
        ),
        (None, ['--checkpoint_path=nowhere.ckpt'], ['missing: nowhere.ckpt']),
        (None, ['--data_dir=nowhere'], ['missing: nowhere/WebQA.json, nowhere/SogouQA.json']),
        (None, ['--topk=two'], ['--topk', "invalid int value: 'two'"]),
        (None, ['--topk=0'], ['topk = 0: expected a whole number of at least 1']),
        (None, ['--learning_rate=-1'], ['learning_rate = -1.0: expected a number above 0']),
        (None, ['--mode=free'], ["mode = 'free': expected 'extractive' or 'generative'"]),
        (None, ['--top_k=2'], ['--top_k=2: unknown', '--topk=']),
        (None, ['--seed'], ['--seed: expected one argument']),
        (None, ['more.json'], ['more.json: ', 'train and eval take none']),
        (None, ['more.json', 'files.json'], ['predict takes one file of questions']),
        (
            change(
                'bert_config.json',
                json.dumps(
                    {'vocab_size': 58, 'max_position_embeddings': 512, 'num_hidden_layers': 0}
                ),
            ),
            [],
            ['bert_config.json: not a BERT configuration', 'num_hidden_layers is below 1'],
        ),
    ],
)
def test_mistake_is_one_line_that_names_place_and_cure(call, small, mistake, arguments, named):
    """Exit status 2, no traceback, and nothing left half written."""
    if mistake:
        mistake(small)
    before = sorted(small.rglob('*'))
    status, out, err = call('train', *arguments)
    assert (status, out) == (2, '')
    assert all(part in err.splitlines()[-1] for part in named), err
    assert 'Traceback' not in err
    assert {path.name for path in set(small.rglob('*')) - set(before)} <= {
        'output',
        'random_order.json',
        'train.lock',
    }


@pytest.mark.parametrize(
    ('constant', 'value'),
    [('epochs', '8'), ('topk', 1.5), ('seed', True), ('data_dir', None), ('learning_rate', '1')],
)
def test_constant_edited_to_a_wrong_type_is_named(script, small, capsys, constant, value):
    setattr(script, constant, value)
    assert script.main(['eval']) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'{constant} = {value!r}: expected')


@pytest.mark.parametrize(
    'edited', ['topk = None', 'output_dir = None', 'valid_sample = [100]', 'epochs = True']
)
def test_constant_edited_in_the_script_to_a_wrong_type_is_named(checkout, edited):
    path = checkout / 'task_reading_comprehension_by_seq2seq.py'
    name = edited.split()[0]
    text, count = re.subn(
        f'^{name} = [^ ]+', edited, path.read_text(encoding='utf-8'), flags=re.MULTILINE
    )
    assert count == 1
    path.write_text(text, encoding='utf-8')
    done = run('train', script=str(path))
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.splitlines()[-1].startswith(f'{edited}: expected')


def test_options_may_stand_before_and_after_the_file_of_questions(script):
    given = script.parse_command_line(['predict', '--topk=2', 'questions.json', '--seed', '1'])
    assert given == ('predict', 'questions.json', {'topk': 2, 'seed': 1})


def test_demo_constants_give_way_to_the_users(script, capsys):
    script.batch_size = 8
    assert script.configure({'epochs': 3})['demo']
    assert (script.batch_size, script.epochs, script.learning_rate) == (
        8,
        3,
        script.demo_constants['learning_rate'][1],
    )
    assert 'batch_size' not in capsys.readouterr().err


def test_eval_before_train_says_so(call):
    status, out, err = call('eval')
    assert (status, out) == (2, '')
    assert 'best_model.weights.h5: no such file; run train first' in err


def test_weights_of_another_model_are_refused(call, small):
    assert call('train')[0] == 0
    config = json.loads((small / 'bert_config.json').read_text(encoding='utf-8'))
    write_json(small / 'bert_config.json', {**config, 'hidden_size': 32})
    status, _, err = call('eval')
    assert status == 2 and 'best_model.weights.h5: does not fit this model' in err.splitlines()[-1]


@pytest.mark.parametrize(
    'changed', ['num_attention_heads', 'num_hidden_layers', 'hidden_act', 'vocab.txt']
)
def test_weights_of_a_bert_that_would_fit_are_refused_too(call, small, changed):
    """They would load: some layers are left unused, heads, activation and order of tokens do not show."""
    assert call('train')[0] == 0
    if changed == 'vocab.txt':
        text = (small / 'vocab.txt').read_text(encoding='utf-8')
        (small / 'vocab.txt').write_text(text.replace('天\n津', '津\n天'), encoding='utf-8')
    else:
        config = json.loads((small / 'bert_config.json').read_text(encoding='utf-8'))
        other = {'num_attention_heads': 4, 'num_hidden_layers': 1, 'hidden_act': 'relu'}[changed]
        write_json(small / 'bert_config.json', {**config, changed: other})
    status, out, err = call('eval')
    assert (status, out) == (
        2,
        '',
    ) and 'bert_config.json or vocab.txt is not the one' in err.splitlines()[-1]
    status, out, err = call('train')
    assert (status, out) == (2, '') and 'made with the BERT = ' in err.splitlines()[-1]


def test_failure_of_tensorflow_is_one_line(script, call, monkeypatch):
    assert call('train')[0] == 0

    def fail(*_):
        raise script.tf.errors.ResourceExhaustedError(None, None, 'out of memory\nand more')

    monkeypatch.setattr(script.ReadingComprehension, 'beam_search', fail)
    status, out, err = call('eval')
    assert (status, out) == (2, '') and 'Traceback' not in err
    assert err.splitlines()[-1].startswith(
        'TensorFlow broke off (out of memory); run the same command'
    )


def test_training_in_more_parts_is_continued(call):
    """It is the cure where memory ran out, perhaps after the first backup."""
    assert call('train')[0] == 0
    status, _, err = call('train', '--accumulate_steps=2')
    assert status == 0 and 'continuing after update' in err


def test_files_may_begin_with_a_byte_order_mark(call, small):
    assert call('train')[0] == 0
    (small / 'qid_answer_expand').write_text(
        ''.join(f'S{i}\t北京\t北京\n' for i in range(6)), encoding='utf-8'
    )
    for path in small.iterdir():
        if path.is_file():
            path.write_text('\ufeff' + path.read_text(encoding='utf-8'), encoding='utf-8')
    status, out, err = call('train', f'--output_dir={small / "other"}')
    assert status == 0, err
    assert last_line(out)['total'] == 2


def test_names_of_files_may_be_in_another_encoding(small):
    """As those of a Windows archive are: no UTF-8, but a good name."""
    name = os.fsdecode('数据'.encode('gbk'))
    shutil.copytree(small, small / name)
    arguments = [f'--data_dir={small / name}', '--checkpoint_path=', '--epochs=1', '--max_a_len=4']
    done = run('train', *arguments, f'--output_dir={small / "output"}')
    assert done.returncode == 0, done.stderr
    config = json.loads((small / 'output' / 'config.json').read_text(encoding='utf-8'))
    assert config['constants']['data_dir'] == str(small / name)


def test_saved_order_of_other_data_is_refused(call, small):
    assert call('train')[0] == 0
    write_json(small / 'SogouQA.json', [record(f'S{i}') for i in range(7)])
    status, _, err = call('eval')
    assert status == 2 and 'random_order.json: no order of 7 records' in err.splitlines()[-1]


def test_nothing_to_train_on_is_named(call, small):
    write_json(small / 'WebQA.json', [{'id': 'W1'}])
    write_json(small / 'SogouQA.json', [record('S1')])
    status, _, err = call('train')
    assert status == 2 and 'no complete record to train on' in err.splitlines()[-1]


def test_nothing_to_validate_on_is_named_before_training(call, small):
    write_json(small / 'SogouQA.json', [{**record('S1'), 'id': None}])
    status, _, err = call('train')
    assert (
        status == 2 and 'SogouQA.json: no record with an id to validate on' in err.splitlines()[-1]
    )
    assert not (small / 'output' / 'log.csv').exists()


@pytest.mark.parametrize(
    ('text', 'named'),
    [('[1]', 'record 1 of 1 is a number'), ('[', 'not JSON'), (None, 'no such file')],
)
def test_predict_names_what_is_wrong_with_its_file(script, tmp_path, capsys, text, named):
    path = tmp_path / 'questions.json'
    if text:
        path.write_text(text, encoding='utf-8')
    assert script.main(['predict', str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == '' and f'{path}: {named}' in captured.err.splitlines()[-1]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project, whose data/ a test may fill."""
    for name in 'task_reading_comprehension_by_seq2seq.py', 'evaluate_sogou.py':
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    shutil.copytree(os.path.join(ROOT, 'data', 'demo'), tmp_path / 'data' / 'demo')
    return tmp_path


@pytest.mark.parametrize('name', ['a[1]', 'b\\c'])
def test_brackets_and_backslashes_are_no_pattern(script, tmp_path, name):
    (tmp_path / name).mkdir()
    path, [written, read] = (
        str(tmp_path / name / 'weights'),
        [script.tf.Variable(value) for value in (1, 2)],
    )
    script.tf.train.Checkpoint(weight=written).write(path)
    with script.plainly_named(path) as plain:
        script.tf.train.Checkpoint(weight=read).read(plain).assert_consumed()
    assert read.numpy() == 1


def test_brackets_in_the_name_of_a_folder_are_no_pattern(checkout):
    """TensorFlow would find neither the checkpoint to begin with nor the backup to continue from."""
    name = 'a[1]\\b'
    (checkout / name).mkdir()
    for path in list(checkout.iterdir()):
        if path.name != name:
            path.rename(checkout / name / path.name)
    script, output = (
        checkout / name / 'task_reading_comprehension_by_seq2seq.py',
        checkout / name / 'output',
    )
    for epochs in 1, 2:
        done = run(
            'train',
            f'--epochs={epochs}',
            f'--output_dir={output}',
            '--batch_size=512',
            script=str(script),
        )
        assert done.returncode == 0, done.stderr
    assert 'continuing after update 8 of 16' in done.stderr


def test_some_of_the_real_files_are_no_reason_to_use_the_demo(checkout):
    (checkout / 'data' / 'WebQA.json').write_text('[]', encoding='utf-8')
    done = run('train', script=str(checkout / 'task_reading_comprehension_by_seq2seq.py'))
    assert done.returncode == 2
    assert 'demo' not in done.stderr
    missing = ['SogouQA.json', 'bert_config.json', 'bert_model.ckpt', 'vocab.txt']
    assert all(os.path.join('data', name) in done.stderr for name in missing)
    assert os.path.join('data', 'WebQA.json') not in done.stderr


def test_path_given_by_the_user_is_never_replaced(checkout):
    script = str(checkout / 'task_reading_comprehension_by_seq2seq.py')
    done = run('train', '--dict_path=mine.txt', script=script)
    assert done.returncode == 2 and 'missing: ' in done.stderr and 'mine.txt' in done.stderr


@pytest.mark.skipif(
    not os.path.exists('/proc/self/maps'), reason='only Linux tells how far a process has come'
)
def test_ctrl_c_before_the_script_has_begun_ends_it_without_a_word():
    with subprocess.Popen([sys.executable, SCRIPT, 'eval'], stderr=subprocess.PIPE) as process:
        while b'libtensorflow' not in pathlib.Path(f'/proc/{process.pid}/maps').read_bytes():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b''
    assert process.returncode == -signal.SIGINT


def test_import_does_no_work_and_says_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', 'import task_reading_comprehension_by_seq2seq'],
        env={**os.environ, 'PYTHONPATH': ROOT, 'PYTHONDONTWRITEBYTECODE': '1'},
        cwd=tmp_path,
        capture_output=True,
        encoding='utf-8',
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert list(tmp_path.iterdir()) == []


def test_help_lists_commands_and_constants(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(['--help'])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(command in text for command in ('train', 'eval', 'predict'))
    described = [line.partition('#') for line in text.splitlines() if ' = ' in line]
    assert [line.split(' = ')[0] for line, _, _ in described] == script.constants
    assert all(comment.strip() for _, _, comment in described)


def test_weights_may_be_a_link(script, small):
    """To another disk, under another name: Keras goes by the end of the name."""
    script.output_dir = str(small)
    (small / 'best_model.weights.h5').symlink_to('elsewhere')
    model, _ = build_small_model(script, small)
    script.save_best_weights(model, 'some BERT')
    script.load_best_weights(model, 'some BERT')
    assert (small / 'best_model.weights.h5').is_symlink() and (small / 'elsewhere').is_file()
    assert not list(small.glob('.*'))


def test_full_disk_leaves_the_old_weights(script, small, monkeypatch):
    """A file appears when it is complete, or not at all."""
    script.output_dir = str(small)
    (small / 'best_model.weights.h5').write_bytes(b'old')

    class Model:
        weights = ()

        def count_params(self):
            return 0

        def save_weights(self, path):
            with open(path, 'wb') as file:
                file.write(b'half')
            raise OSError(28, 'No space left on device')

    with pytest.raises(script.UserError, match='No space left'):
        script.save_best_weights(Model(), '')
    assert (small / 'best_model.weights.h5').read_bytes() == b'old'
    assert not list(small.glob('.*'))


def test_real_data_trains_and_evaluates_end_to_end(shared, tmp_path):
    """500 real questions; the 22nd record of SogouQA is cut off, as found in the wild."""
    shutil.copy(os.path.join(shared, 'WebQA.json'), tmp_path)
    shutil.copy(os.path.join(shared, 'SogouQA.json'), tmp_path)
    options = [
        f'--data_dir={tmp_path}', f'--dict_path={shared}/vocab.txt', f'--output_dir={tmp_path / "output"}',
        f'--config_path={shared}/tiny_bert/bert_config.json', f'--checkpoint_path={shared}/tiny_bert/bert_model.ckpt',
        '--epochs=1', '--max_p_len=64', '--batch_size=16', '--valid_sample=2',
    ]  # fmt: skip
    done = run('train', *options)
    assert done.returncode == 0, done.stderr[-2000:]
    warning = '1 of 22 records lack something and cannot be used: record 22 (no id, no question)'
    assert done.stderr.count(warning) == 1 and 'the file looks cut off' in done.stderr
    again = run('eval', *options)
    assert again.returncode == 0 and last_line(again.stdout) == last_line(done.stdout)
    rows = (tmp_path / 'output' / 'predictions.tsv').read_text(encoding='utf-8').splitlines()
    assert len(rows) in (7, 8)  # every third of 22 records, without the one that has no id


@pytest.mark.slow
def test_fifty_real_questions_can_be_learnt(shared, tmp_path):
    """Trained on them until it knows them; read as any file of questions, scored by their own answers."""
    with open(os.path.join(shared, 'WebQA.json'), encoding='utf-8') as file:
        fifty = json.load(file)[:50]
    for name in 'WebQA.json', 'SogouQA.json':
        write_json(tmp_path / name, fifty)
    options = [
        f'--data_dir={tmp_path}', f'--dict_path={shared}/vocab.txt', f'--output_dir={tmp_path / "output"}',
        f'--config_path={shared}/tiny_bert/bert_config.json', f'--checkpoint_path={shared}/tiny_bert/bert_model.ckpt',
        '--epochs=20', '--batch_size=16', '--learning_rate=5e-4', '--decay_steps=160', '--best_by=loss',
        '--valid_sample=5',
    ]  # fmt: skip
    done = run('train', *options)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = run('predict', str(tmp_path / 'WebQA.json'), *options)
    assert answers.returncode == 0, answers.stderr[-2000:]
    (tmp_path / 'predictions').write_text(answers.stdout, encoding='utf-8')
    arguments = [str(tmp_path / 'predictions'), '--dataset', str(tmp_path / 'WebQA.json')]
    score = subprocess.run(
        [sys.executable, os.path.join(ROOT, 'evaluate_sogou.py'), *arguments],
        capture_output=True, encoding='utf-8', check=True,
    )  # fmt: skip
    print(score.stdout)
    assert last_line(score.stdout)['total'] == 50
    assert last_line(score.stdout)['Final'] >= 0.8
