"""support/comparison.py: what changed since other predictions; `eval --compare_with`."""

import json
import math
import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, refusal
from runs import Killed, outputs, position, shard

import evaluate_sogou
from evaluate_sogou import Reference
from support import predictions
from support.comparison import Comparison, binomial_p, intervals

MEASURES = 'Accuracy', 'F1', 'Final'


@pytest.mark.parametrize(
    ('better', 'worse', 'p'),
    [
        (0, 0, 1), (1, 0, 1), (4, 4, 1), (5, 0, 2 / 32), (0, 10, 2 / 1024), (9, 3, 598 / 4096),
        # by the normal distribution
        (5000, 5300, math.erfc(299 / math.sqrt(10300) / math.sqrt(2))), (20_000, 10_000, 0),
    ],
)  # fmt: skip
def test_p_is_of_the_exact_two_sided_binomial_test(better, worse, p):
    """Also of thousands, whose binomial coefficients no float can hold."""
    assert binomial_p(better, worse) == pytest.approx(p, 1e-3) == binomial_p(worse, better)


@pytest.mark.parametrize('total', [400, 3000])
def test_interval_is_of_the_paired_differences(total):
    """A question's two answers are drawn together: what does not change is no uncertainty."""
    differences = np.random.default_rng(1).choice([-1, 0, 0, 1, 1], [total, 3])
    found = intervals(differences)
    for values, name in zip(differences.T, MEASURES, strict=True):
        mean, half = values.mean(), 1.96 * values.std() / math.sqrt(total)
        assert found[name]['difference'] == pytest.approx(mean, abs=1e-6)
        assert found[name]['interval'] == pytest.approx([mean - half, mean + half], abs=0.003)
    assert intervals(np.ones([total, 3]))['F1'] == {'difference': 1.0, 'interval': [1.0, 1.0]}
    assert intervals(differences) == found


def write(path, *texts, **changes):
    """Write predictions for the questions a, b, ... and return their records."""
    records = [{'id': name, 'question': f'{name}？'} for name in 'abcdefgh'[: len(texts)]]
    records[-1]['id'] = None  # not scored
    lines = [{**each, 'text': text, **changes} for each, text in zip(records, texts, strict=True)]
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines), encoding='utf-8')
    return records


def test_question_is_better_or_worse_by_its_final(tmp_path):
    """An F1 of a third is not the same number for 1 and 5 characters as for 2 and 4."""
    old, new = (
        ('北京', '上海', '北', '甲', '乙一', ''),
        ('北', '北京', '北市', '乙一', '甲', '北京'),
    )
    records = write(tmp_path / 'old.jsonl', *old)
    right = dict.fromkeys('abc', Reference('北京', ('北京',)))
    right.update(dict.fromkeys('de', Reference('', ('甲二三四五', '乙二三四'))))
    compared = Comparison(str(tmp_path / 'old.jsonl'), records, right, 'data')
    scores = [
        evaluate_sogou.score_answer(text, right[x]) for text, x in zip(new, 'abcde', strict=False)
    ]
    assert 0 < abs(scores[3].f1 - compared.others[3][1].f1) < 1e-15
    compared.complete([*scores, None], {})
    outcomes = [*map(compared.outcome, range(6))]
    assert outcomes == ['worse', 'better', 'worse', 'same', 'same', 'same']
    line = compared.line
    assert (line['better'], line['worse'], line['same']) == (1, 2, 2)
    assert [prediction['text'] for prediction, _ in compared.others] == [*old]
    assert line['F1']['difference'] == pytest.approx((1 - 1 / 3 - (2 / 3 - 1 / 2)) / 5, abs=1e-6)


@pytest.fixture
def evaluate(script, study, undisturbed, built_once, tmp_path):
    """Call `eval` in a copy of the output of `undisturbed`, beside another copy, `before`.

    Returns (exit status, lines of standard output, standard error).
    """
    for name in 'output', 'before':
        shutil.copytree(undisturbed.output, tmp_path / name)

    def call(other, output='output', **constants):
        given = {'data_dir': study, 'output_dir': tmp_path / output, **constants}
        arguments = [f'--{name}={value}' for name, value in given.items()]
        status, out, err = outputs(script, 'eval', f'--compare_with={other}', *arguments)
        return status, [*map(json.loads, out.splitlines())], err

    return call


EQUAL = {'difference': 0.0, 'interval': [0.0, 0.0]}


@pytest.mark.parametrize('other', ['before', 'before/predictions.jsonl', '~/before', 'output'])
def test_nothing_changes_where_nothing_differs(evaluate, tmp_path, monkeypatch, other):
    """The folder itself, as it was before, is another run too."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    status, (score, line), err = evaluate(other, report=0)
    assert status == 0, err
    assert line == {
        'compared_with': other.replace('~', str(tmp_path)), 'better': 0, 'worse': 0,
        'same': score['total'], **dict.fromkeys(MEASURES, EQUAL), 'p': 1.0, 'constants': {},
        'weights': 'the same',
    }  # fmt: skip


def test_what_differs_is_told_by_name_and_value(evaluate, train, tmp_path):
    """Those of training as the reader was trained, whatever the script says now; no others."""
    constants = {'learning_rate': 0.002, 'epochs': 1, 'report': 0, 'backup_minutes': 9}
    assert train(tmp_path / 'other', **constants)[0] == 0
    status, (_, line), err = evaluate(tmp_path / 'before', 'other', topk=2)
    assert status == 0, err
    expected = {'learning_rate': [0.003, 0.002], 'epochs': [3, 1], 'topk': [1, 2]}
    assert (line['constants'], line['weights']) == (expected, 'others')


@pytest.mark.parametrize(
    'change',
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),  # an editor's
        lambda path: path.write_text('[]', encoding='utf-8'),
        # a kill between the writes of both
        lambda path: edit(path.with_suffix('.jsonl'), '"score": ', '"score":  '),
    ],
)
def test_of_what_others_are_made_may_not_be_known(evaluate, tmp_path, change):
    """That is said, rather than what might be wrong."""
    change(tmp_path / 'before' / 'predictions.json')
    _, (_, line), err = evaluate(tmp_path / 'before')
    assert line['constants'] == line['weights'] == 'not known', err


def edit(path, old, new, count=1):
    """Replace a text in a file."""
    content = path.read_text(encoding='utf-8')
    assert old in content
    path.write_text(content.replace(old, new, count), encoding='utf-8')


def edit_lines(path, change):
    """Change the list of lines of a file, in place."""
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
    change(lines)
    path.write_text(''.join(lines), encoding='utf-8')


def unfinish(path):
    path.rename(path.with_name(shard('predictions', unfinished=True)))


REFUSED = [
    ('', None, "compare_with=: no file ''; "),
    ('none', None, "=none: no file 'none'; run eval there"),
    ('empty', None, "no file 'empty/predictions.jsonl'; "),
    ('before', unfinish, "no file 'before/predictions.jsonl'; run eval there to its end"),
    ('before/predictions.tsv', None, 'line 1 is no prediction'),
    ('before', lambda path: path.write_bytes(path.read_bytes()[:-9]), 'line 7 is no prediction'),
    ('before', lambda path: edit(path, '"text": "', '"text": 7, "": "'), 'line 1 is no prediction'),
    ('before', lambda path: edit_lines(path, lambda x: x.insert(2, '[' * 10**5)), 'line 3 is no '),
    ('before', lambda path: edit_lines(path, list.pop), 'line 7 answers nothing, not '),
    ('before', lambda path: edit_lines(path, lambda x: x.append(x[0])), 'not nothing;'),
    ('before', lambda path: edit_lines(path, list.reverse), "line 1 answers ['S6"),
    ('before', lambda path: edit(path, '"id": "S', '"id": "T'), "line 1 answers ['T1"),
    ('before', lambda path: edit(path, '哪里', '那里'), '那里'),
    ('before', lambda path: edit(path.with_suffix('.json'), '"questions": "', '"questions": "0'),
     'predictions.jsonl: answers from other passages; '),
]  # fmt: skip


@pytest.mark.parametrize(('other', 'change', 'expected'), REFUSED)
def test_what_cannot_be_compared_is_one_line_before_anything_is_read(
    script, evaluate, tmp_path, monkeypatch, other, change, expected
):
    """Not after an hour of reading."""
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, 'build_model', None)
    if change:
        change(tmp_path / 'before' / 'predictions.jsonl')
    written = {path.name: path.read_bytes() for path in (tmp_path / 'output').glob('*.*')}
    status, out, err = evaluate(other)
    assert (status, out) == (2, []) and expected in err.splitlines()[-1]
    assert 'Traceback' not in err and not list((tmp_path / 'output').glob('*unfinished'))
    assert {path.name: path.read_bytes() for path in (tmp_path / 'output').glob('*.*')} == written


def test_nothing_is_compared_where_no_answer_is_right(tmp_path):
    records = write(tmp_path / 'old.jsonl', '北京', '上海')
    for references in None, {}:
        line = refusal(Comparison, str(tmp_path / 'old.jsonl'), records, references, 'data')
        assert 'old.jsonl: no answer is known to be right' in line


def test_only_the_first_worker_compares(evaluate, tmp_path, monkeypatch):
    """The others may not even have what it compares with."""
    monkeypatch.setenv('TF_CONFIG', position(1))
    status, out, err = evaluate(tmp_path / 'none')
    assert (status, out) == (0, []), err


def test_demo_says_what_scipy_says(script, demo, tmp_path):
    """Of the two votes on its 400 questions, answer by answer."""
    shutil.copytree(demo[0], tmp_path / 'output')
    given = f'--output_dir={tmp_path}/output', f'--compare_with={demo[0]}', '--vote=answer'
    status, out, err = outputs(script, 'eval', *given)
    assert status == 0, err
    line, values = json.loads(out.splitlines()[1]), []
    right = evaluate_sogou.load_official_answers(os.path.join(ROOT, 'data/demo/qid_answer_expand'))
    for folder in demo[0], tmp_path / 'output':
        evaluate_sogou.evaluate(str(folder / 'predictions.tsv'), right, str(tmp_path / 'scored'))
        rows = (tmp_path / 'scored').read_text(encoding='utf-8').splitlines()
        values.append(np.array([row.split('\t')[2:4] for row in rows], float))
    accuracy, f1 = (values[1] - values[0]).T
    differences = accuracy, f1, (accuracy + f1) / 2
    assert line['constants'] == {'vote': ['token', 'answer']} and len(accuracy) == 400
    assert (line['better'], line['worse']) == ((accuracy + f1 > 0).sum(), (accuracy + f1 < 0).sum())
    bootstrap = pytest.importorskip('scipy.stats').bootstrap
    for name, each in zip(MEASURES, differences, strict=True):
        interval = bootstrap(
            [each, 0 * each], lambda a, b, axis: (a - b).mean(axis), method='percentile',
            paired=True, n_resamples=10_000, rng=1,
        ).confidence_interval  # fmt: skip
        assert line[name]['interval'] == pytest.approx([*interval], abs=0.002)


CHANGED = {'no_answer_bias': -50.0}


@pytest.mark.parametrize('lost', ['all but one answer', 'all that is written'])
def test_interrupted_eval_compares_with_what_was_there_at_first(
    script, evaluate, tmp_path, monkeypatch, lost
):
    """Its own folder's predictions are replaced last, or it would be compared with itself."""
    _, expected, _ = evaluate(tmp_path / 'before', **CHANGED)
    shutil.rmtree(tmp_path / 'output')
    shutil.copytree(tmp_path / 'before', tmp_path / 'output')
    assert expected[1]['same'] < expected[0]['total']

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if lost == 'all that is written':
            patch.setattr(predictions, 'as_html', killed)
        else:
            patch.setattr(script, 'describe', killed)
        evaluate(tmp_path / 'output', **CHANGED)
    assert (tmp_path / 'output' / shard('predictions', unfinished=True)).exists()
    _, found, _ = evaluate(tmp_path / 'output', **CHANGED)
    assert found[1] == {**expected[1], 'compared_with': str(tmp_path / 'output')}
