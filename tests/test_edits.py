"""The edits that the README shows, each made to a copy of the script and run on the demo."""

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
from conftest import ROOT, write_json

DEMO = os.path.join(ROOT, 'data', 'demo')
VOTE, SMOOTHING, SPLIT, TASK = range(4)
LIMITS = 2, 4, 3, 12  # lines that may change


def readme_edits(heading):
    """The edits of a section of the README: for each a list of diffs, which are lists of lines."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        section = file.read().split(f'\n## {heading}\n')[1].split('\n## ')[0]
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
    """Make an edit; returns the module of the edited script."""
    names = []

    def make(number):
        script = os.path.join(ROOT, 'task_reading_comprehension_by_seq2seq.py')
        with open(script, encoding='utf-8') as file:
            text = edited(file.read(), readme_edits('Edits that people make')[number])
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
    for name, count in ('SogouQA.json', 90), ('WebQA.json', 300):
        with open(os.path.join(DEMO, name), encoding='utf-8') as file:
            write_json(tmp_path / name, json.load(file)[:count])

    def run(module, *arguments):
        options = [f'--data_dir={tmp_path}', f'--output_dir={tmp_path / "output"}', '--epochs=1']
        for name, file in ('config', 'bert_config.json'), ('checkpoint', 'bert_model.ckpt'):
            options.append(f'--{name}_path={os.path.join(DEMO, file)}')
        options += [f'--dict_path={os.path.join(DEMO, "vocab.txt")}', '--learning_rate=3e-4']
        with contextlib.redirect_stdout(io.StringIO()) as out:
            module_status = module_main(module, [*arguments[:1], *options, *arguments[1:]])
        assert module_status == 0
        return out.getvalue()

    return run


def module_main(module, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('support.process.prepare_process', lambda: None)  # which wants real streams
        return module.main(arguments)


def test_edits_are_as_small_as_promised():
    edits = readme_edits('Edits that people make')
    assert len(edits) == len(LIMITS)
    for edit, limit in zip(edits, LIMITS, strict=True):
        for mark in '+-':
            assert sum(line[0] == mark for diff in edit for line in diff) <= limit


def test_chinese_section_shows_the_same_edits():
    assert readme_edits('大家常做的修改') == readme_edits('Edits that people make')


def test_plain_mean_instead_of_the_vote(make, run):
    module = make(VOTE)
    probas = np.float32([[[0.9, 0.1]], [[0.3, 0.7]]])
    votes = module.vote(probas, np.float32([2, 1])[:, None, None])
    np.testing.assert_allclose(votes, [[(1.8 + 0.3) / 3, (0.2 + 0.7) / 3]], rtol=1e-6)
    assert json.loads(run(module, 'train').splitlines()[-1])['Final'] > 0.5


def test_constant_for_label_smoothing(make, run, tmp_path):
    """The type says all: the command line takes it, config.json shows it, a bad one is refused."""
    module = make(SMOOTHING)
    run(module, 'train', '--label_smoothing=0.25')
    config = json.loads((tmp_path / 'output' / 'config.json').read_text(encoding='utf-8'))
    assert config['constants']['label_smoothing'] == 0.25
    assert module_main(module, ['train', '--label_smoothing=much']) == 2

    class Trainer:
        def __init__(self, model, cross_entropy, optimizer, constants):
            self.losses = cross_entropy

    module.Trainer = Trainer
    logits = np.float32([[1.0, 2.0, 4.0]])
    loss = module.build_trainer(None, module.Constants(label_smoothing=0.3)).losses([2], logits)
    log_probas = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(loss, -(log_probas @ [0.1, 0.1, 0.8]), rtol=1e-6)


def test_tenth_for_validation(make, run):
    module = make(SPLIT)
    assert json.loads(run(module, 'train').splitlines()[-1])['total'] == 9


def test_question_out_of_passage_and_answer(make, run, tmp_path):
    """The loss falls, and what `predict` writes are questions."""
    module = make(TASK)
    options = '--epochs=8', '--valid_sample=1', '--batch_size=16', '--learning_rate=1e-3'
    run(module, 'train', *options)
    with open(tmp_path / 'output' / 'log.csv', encoding='utf-8') as file:
        losses = [float(row['loss']) for row in csv.DictReader(file)]
    assert losses == sorted(losses, reverse=True)
    lines = run(module, 'predict', str(tmp_path / 'SogouQA.json'), *options)
    texts = [line.split('\t')[1] for line in lines.splitlines()]
    assert len(texts) == 90 and sum(text.endswith('？') for text in texts) > 45
