"""The edits that support/README.md shows, each made to a copy of the script and run on the demo."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import sys

import numpy as np
import pytest
import runs
from conftest import ROOT, draw, write_json

DEMO = os.path.join(ROOT, 'data', 'demo')
VOTE, SMOOTHING, SILENT, NUCLEUS, TITLE, SPLIT, TASK = range(7)
LIMITS = 2, 4, 4, 15, 4, 3, 12  # lines that may change


def readme_edits():
    """The edits that are shown: for each a list of diffs, which are lists of lines."""
    with open(os.path.join(ROOT, 'support', 'README.md'), encoding='utf-8') as file:
        section = file.read().split('\n## Edits that people make\n')[1].split('\n## ')[0]
    edits = []
    for text, diff in re.findall(r'(.*?)```diff\n(.*?)```\n', section, re.DOTALL):
        if text.strip():  # what it is about; a diff without belongs to the one before
            edits.append([])
        edits[-1].append(diff.splitlines())
    return edits


def edited(text, edit):
    """Return the script with an edit made, every place of which must be there just once."""
    for diff in edit:
        before, after = ([line[1:] for line in diff if line[0] in marks] for marks in (' -', ' +'))
        before, after = ('\n'.join(lines) + '\n' for lines in (before, after))
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@pytest.fixture
def make(tmp_path):
    """Make an edit, or several; returns the module of the edited script."""
    names = []

    def make(*numbers):
        script = os.path.join(ROOT, 'task_reading_comprehension_by_seq2seq.py')
        with open(script, encoding='utf-8') as file:
            text = file.read()
        for number in numbers:
            text = edited(text, readme_edits()[number])
        path = tmp_path / f'edited{number}.py'
        path.write_text(text, encoding='utf-8')
        specification = importlib.util.spec_from_file_location(path.stem, path)
        module = sys.modules[path.stem] = importlib.util.module_from_spec(specification)
        names.append(path.stem)
        specification.loader.exec_module(module)
        return module

    yield make
    for name in names:
        del sys.modules[name]


@pytest.fixture
def run(tmp_path):
    """Run a command of an edited script on a part of the demo. Returns standard output."""
    for name, count in ('SogouQA.json', 90), ('WebQA.json', 100):
        with open(os.path.join(DEMO, name), encoding='utf-8') as file:
            data = json.load(file)[:count]
        for record in data:
            for number, passage in enumerate(record['passages']):
                passage['title'] = f'标题{number}'  # which nobody reads but the edit for it
        write_json(tmp_path / name, data)

    def run(module, *arguments, status=0):
        options = [f'--data_dir={tmp_path}', f'--output_dir={tmp_path / "output"}', '--epochs=1']
        for name, file in ('config', 'bert_config.json'), ('checkpoint', 'bert_model.ckpt'):
            options.append(f'--{name}_path={os.path.join(DEMO, file)}')
        options += [f'--dict_path={os.path.join(DEMO, "vocab.txt")}', '--learning_rate=3e-4']
        options.append('--valid_sample=5')
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            pytest.MonkeyPatch.context() as patch,
        ):
            # which wants real streams
            patch.setattr('support.process.prepare_process', lambda: None)
            assert runs.run(module, [*arguments[:1], *options, *arguments[1:]]) == status
        return out.getvalue()

    return run


def test_edits_are_as_small_as_promised():
    edits = readme_edits()
    assert len(edits) == len(LIMITS)
    for edit, limit in zip(edits, LIMITS, strict=True):
        for mark in '+-':
            assert sum(line[0] == mark for diff in edit for line in diff) <= limit


def test_plain_mean_instead_of_the_vote(make):
    probas = np.float32([[[0.9, 0.1]], [[0.3, 0.7]]])
    np.testing.assert_allclose(make(VOTE).vote(probas), [[0.6, 0.4]], rtol=1e-6)


def test_constant_for_label_smoothing(make, run):
    """The type says all: the command line takes it, and refuses a bad one; trained with below."""
    module = make(SMOOTHING)
    run(module, 'train', '--label_smoothing=much', status=2)
    cross_entropy = module.CrossEntropy(module.Constants(label_smoothing=0.3))
    logits = np.float32([[[1.0, 2.0, 4.0]]])
    loss = cross_entropy.compute_loss(np.int32([[2]]), np.float32([[1]]), logits, 4.0)
    log_probas = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(loss, -(log_probas[0, 0] @ [0.1, 0.1, 0.8]) / 4, rtol=1e-6)


def test_silent_pairs_weigh_one_half(make):
    """A pair of which [SEP] alone is to be written; one that says something keeps its weight."""
    module = make(SILENT)
    token_ids, segment_ids = np.int32([[2, 9, 3, 3, 0], [2, 9, 3, 8, 3]]), np.int32([[0] * 5] * 2)
    segment_ids[0, 3], segment_ids[1, 3:] = 1, 1
    y_true, y_mask = module.CrossEntropy(module.Constants()).targets(token_ids, segment_ids)
    assert y_true.tolist() == token_ids[:, 1:].tolist()
    np.testing.assert_array_equal(y_mask, [[0, 0, 0.5, 0], [0, 0, 1, 1]])


def test_nucleus_sampling_depends_on_seed_and_question_alone(make, small_bert):
    """Not on the questions that are read together; no two seeds draw the same for all."""
    module, passages = make(NUCLEUS), ['在北京的人口', '上海是天津', '中国2']
    draw(small_bert[0], 0)
    questions = [(question, passages) for question in ('谁', '哪里', '中国人口', '20')]

    reader = module.ReadingComprehension(*small_bert, module.Constants())

    def texts(seed, questions):
        reader.constants = module.Constants(mode='generative', seed=seed, max_a_len=6)
        return [answer.token_ids for answer in reader.answers(questions)]

    together = texts(1, questions)
    assert together == [texts(1, [question])[0] for question in questions] == texts(1, questions)
    assert together != texts(2, questions) and any(together)


def test_title_before_the_text_of_a_passage(make, run, tmp_path):
    """Training, answers, places and page are of the text that is read, wherever it is from.

    Label smoothing is trained with on the way; reader.json shows its constant.
    """
    module = make(SMOOTHING, SILENT, TITLE)
    run(module, 'train', '--label_smoothing=0.25')
    path = tmp_path / 'output' / 'reader.json'
    used = json.loads(path.read_text(encoding='utf-8'))
    assert used['constants']['label_smoothing'] == 0.25
    with open(tmp_path / 'SogouQA.json', encoding='utf-8') as file:
        data = {record['id']: record for record in json.load(file)}
    with open(tmp_path / 'output' / 'predictions.jsonl', encoding='utf-8') as file:
        predictions = [json.loads(line) for line in file]
    placed = [prediction for prediction in predictions if prediction['passage'] is not None]
    for prediction in placed:
        passage = data[prediction['id']]['passages'][prediction['passage']]
        text = f'{passage["title"]}：{passage["passage"]}'
        assert text[prediction['start'] : prediction['end']] == prediction['text']
    assert len(placed) > 10
    assert '标题0：' in (tmp_path / 'output' / 'report.html').read_text(encoding='utf-8')
    question = (
        '李文秀的老师是谁？',
        [{'title': '李文秀', 'passage': '老师是方远明。'}, '没有标题。'],
    )
    asked = f'--question={question[0]}', '--passage=李文秀的老师是方远明。'
    assert '  李文秀的老师是[' in run(module, 'predict', *asked)  # which has no title
    answer = module.load_reader(output_dir=str(tmp_path / 'output')).answer(*question)
    assert '李文秀：老师是方远明。'[answer.start : answer.end] == answer.text != ''


def test_tenth_for_validation(make, tmp_path):
    module = make(SPLIT)
    records = [
        {'id': str(i), 'question': '谁', 'passages': [{'passage': 'a', 'answer': ''}]}
        for i in range(90)
    ]
    train, valid = module.split([], records, module.Constants(output_dir=str(tmp_path)))
    assert (len(train), len(valid)) == (2 * 81, 9)


@pytest.mark.parametrize('epochs', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_question_out_of_passage_and_answer(make, run, tmp_path, epochs):
    """Trained longer, the loss falls, and what `predict` writes are questions."""
    module = make(TASK)
    options = f'--epochs={epochs}', '--batch_size=16', '--learning_rate=1e-3'
    run(module, 'train', *options)
    with open(tmp_path / 'output' / 'log.csv', encoding='utf-8') as file:
        losses = [float(row['loss']) for row in csv.DictReader(file)]
    assert losses == sorted(losses, reverse=True) and len(losses) == epochs
    lines = run(module, 'predict', str(tmp_path / 'SogouQA.json'), *options)
    texts = [line.split('\t')[1] for line in lines.splitlines()]
    assert len(texts) == 90 and (epochs == 1 or sum(text.endswith('？') for text in texts) > 45)
    passages = [{'passage': '甲，在北京', 'answer': '北京'}, {'passage': '乙', 'answer': ''}]
    record = {'question': '在哪里？', 'passages': passages}
    pair = module.training_pair(record, np.random.default_rng(0), module.Constants())
    assert pair == ('甲,在北京', '北京', '在哪里？')
    assert module.asked(record) == ('北京', ['甲，在北京'])
