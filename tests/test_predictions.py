"""support/predictions.py: a line each, whatever interrupts and however many share the work."""

import concurrent.futures
import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import sys
import time
import types

import numpy as np
import pytest
from conftest import refusal, write_json
from runs import AT_WORK, Killed, Process, options, outputs, position, results, shard, varied_record

import evaluate_sogou
from evaluate_sogou import Reference
from support import predictions, trained
from support.answers import Answer
from support.predictions import predict_stream, predict_to_file, print_stream
from support.records import dataset_answers

IDS = 'abcdefg'
TEXTS = '北京', '北京市', '海', '', '上\t海\n\u2028', '天津\x00', '重'
ANSWERS = dict(zip(IDS, TEXTS, strict=True))
REFERENCES = {name: Reference('上海', ('上海', '北京', '重庆天津')) for name in IDS}
WHOLE = {**dict.fromkeys(Answer._fields), 'id': 'e', 'text': '上海'}
ODD = [  # JSON, but no prediction for 'e', as an editor may leave it
    {}, {'id': 'e'}, {'text': '上海'}, {'id': 'e', 'text': '上海'}, {**WHOLE, 'id': 'f'},
    {**WHOLE, 'id': []}, {**WHOLE, 'text': None}, 7, None, 'text', {'origin': 'x'},
]  # fmt: skip
UNFINISHED = shard('some', unfinished=True)


class Reader:
    """Predicts what is in ANSWERS, and keeps the ids of the records that it is asked; `before` is
    called with each. It is killed after so many predictions as it has lives."""

    tokenizer = types.SimpleNamespace(ids_to_tokens=list)

    def __init__(self, weights=b'1', lives=99, before=lambda name: None, **constants):
        weight = types.SimpleNamespace(numpy=lambda: weights)
        self.model = types.SimpleNamespace(weights=[weight])
        self.constants = types.SimpleNamespace(
            **{'report': 9, 'max_p_len': 9, 'max_a_len': 1, 'epochs': 1, **constants}
        )
        self.lives, self.before, self.asked = lives, before, ''

    def predict(self, records):
        for record in records:
            if len(self.asked) == self.lives:
                raise Killed
            self.before(record['id'])
            self.asked += str(record['id'])[0]
            entry = {**dict.fromkeys(Answer._fields), 'id': record['id'], 'question': '谁？'}
            text = ANSWERS.get(record['id'], '')
            entry = {**entry, 'token_ids': [], 'votes': [], 'text': text}
            yield {**entry, 'candidates': [{'text': text, 'finished': text != '重'}]}


@pytest.fixture
def predict(tmp_path):
    """A function that predicts for records of some ids; returns those asked, and Joined."""

    def predict_some(reader=None, ids=IDS, name=tmp_path / 'some', **options):
        reader, data = reader or Reader(), [{'id': each, 'passages': []} for each in ids]
        with contextlib.suppress(Killed):
            joined = predict_to_file(reader, data, str(name), **options)
            return reader.asked, joined
        return reader.asked, None

    return predict_some


def killed(*_):
    raise Killed


def lines_of(ids=IDS):
    return ''.join(f'{name}\t{re.sub("[^一-鿿]", " ", ANSWERS[name])}\n' for name in ids)


def read(path):
    return path.read_bytes().decode()


def entries_of(path):
    return [json.loads(line) for line in read(path).split('\n')[:-1]]


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_score_is_that_of_the_file_and_of_the_page_bit_for_bit(predict, tmp_path, world_size):
    """What has no id has a line of JSON alone, and no score."""
    ids, page = [*'abc', None, *'defg'], tmp_path / 'page.html'
    common = {'ids': ids, 'references': REFERENCES, 'page': str(page)}
    for rank in reversed(range(world_size)):
        _, joined = predict(shard=(rank, world_size), **common)
        assert (joined is None) == (rank > 0)
    assert read(tmp_path / 'some.tsv') == joined.tab_separated == lines_of()
    expected = evaluate_sogou.evaluate(str(tmp_path / 'some.tsv'), REFERENCES)
    assert joined.score == {**expected, 'Answered': 6 / 7} and 0 < expected['Accuracy'] < 1
    shown = json.loads(re.search('id="data">(.*?)</script>', read(page), re.DOTALL)[1])
    assert shown['score'] == joined.score and shown['total'] == 8
    entries = entries_of(tmp_path / 'some.jsonl')
    assert [each['id'] for each in entries] == ids and entries[5]['text'] == ANSWERS['e']


NONE, EMPTY = Reference('', ()), Reference('', ('',))
RIGHT, STANDARD = Reference('重', ('重', '')), Reference('重', ('',))  # may also be a list's


@pytest.mark.parametrize(
    ('references', 'unanswerable', 'answerable'),
    [
        # of ANSWERS d is silent, 重 is right, 海 in part
        ({'c': REFERENCES['c'], 'd': NONE}, {'total': 1, 'Silent': 1.0}, (0, 2 / 3)),
        ({'a': NONE, 'd': EMPTY, 'b': NONE, 'g': RIGHT}, {'total': 3, 'Silent': 1 / 3}, (1, 1)),
        ({'a': EMPTY, 'd': NONE}, {'total': 2, 'Silent': 0.5}, (0, 0)),
        ({'d': NONE, 'g': STANDARD}, {'total': 1, 'Silent': 1.0}, (1, 0)),
        ({'d': RIGHT, 'g': RIGHT}, None, None),
    ],
)
def test_questions_without_an_answer_are_told_beside_the_official_score(
    predict, references, unanswerable, answerable
):
    """There right silence is wrong. Neither an empty variant nor none is an answer."""
    score = predict(ids=''.join(references), references=references)[1].score
    scores = [evaluate_sogou.score_answer(ANSWERS[x], right) for x, right in references.items()]
    assert score['Accuracy'] == sum(each.correct for each in scores) / len(scores)
    assert score.get('Unanswerable') == unanswerable
    found = score.get('Answerable')
    assert (found and (found['Accuracy'], found['F1'])) == answerable
    assert not found or found['total'] + unanswerable['total'] == score['total']


def test_answers_that_were_stopped_are_told_in_one_line(predict, tmp_path, capsys):
    """They are complete as text, but not as answers; a continued run tells of all."""
    for lives, ids in (1, 'gag'), (9, 'gag'):
        predict(Reader(lives=lives), ids)
    line = (
        f'{tmp_path}/some.tsv: 2 of 3 answers are cut off after max_a_len = 1 tokens (raise it)\n'
    )
    assert capsys.readouterr().err.count(line) == 1


def test_page_of_other_predictions_goes(predict, tmp_path, capsys):
    """Where none is wanted, too: `report` is 0. Without right answers there is no score."""
    page = tmp_path / 'page.html'
    for report, with_page in (9, True), (0, True), (9, True), (9, False), (9, False):
        _, joined = predict(Reader(report=report), page=str(page), with_page=with_page)
        assert joined.score is None and page.exists() == (report > 0 and with_page)
    assert capsys.readouterr().err.count('page.html: removed, as it was of earlier answers') == 2


@pytest.mark.parametrize(
    ('change', 'kept'),
    [
        (lambda content: content, 3),  # a kill between two lines
        (lambda content: content[:-29], 2),  # in the middle of a character
        (lambda content: content[:-29] + bytes(28) + b'\n', 2),  # what a power cut may leave
        (lambda content: content.replace(b'"text":', b'"text"'), 0),  # it was edited
        (lambda content: content + b'[1]\n', 3),
        *((lambda content, x=x: content + b'%b\n' % json.dumps(x).encode(), 3) for x in ODD),
        (lambda content: content[:20], 0),  # in the first line
        (lambda content: b'', 0),
    ],
)
def test_what_was_not_written_to_its_end_is_predicted_again(predict, tmp_path, change, kept):
    predict(Reader(lives=3), 'eeee')
    path = tmp_path / UNFINISHED
    path.write_bytes(change(path.read_bytes()))
    asked, joined = predict(ids='eeee')
    assert (asked, joined.tab_separated) == ('e' * (4 - kept), lines_of('eeee'))


def test_each_line_is_on_the_disk_before_the_next_is_asked_for(predict, tmp_path, monkeypatch):
    """A kill loses at most the prediction that was being written, and so does a power cut."""
    on_the_disk = []

    def before(name):
        content = (tmp_path / UNFINISHED).read_bytes()
        lines = IDS.index(name) and 1 + IDS.index(name)  # the first is the header
        assert content.count(b'\n') == lines and [0, *on_the_disk][-1] == len(content)

    monkeypatch.setattr(os, 'fsync', lambda x: on_the_disk.append(os.fstat(x).st_size))
    assert predict(Reader(before=before))[0] == IDS


@pytest.mark.parametrize(
    ('other', 'ids'),
    [(Reader(b'2', lives=2), IDS), (Reader(lives=2, topk=2), IDS), (Reader(lives=2), 'bacdefg')],
)
def test_predictions_of_other_weights_constants_or_data_are_not_continued(
    predict, capsys, other, ids
):
    predict(other, ids)
    asked, joined = predict()
    assert f'{UNFINISHED}: begun with other weights, constants' in capsys.readouterr().err
    assert asked == IDS and joined.tab_separated == lines_of()


def test_predictions_of_a_script_edited_meanwhile_are_not_continued(predict, monkeypatch):
    """Half of them would be by the old vote."""
    predict(Reader(lives=2))
    monkeypatch.setattr(predictions, 'read_text', lambda path: 'edited')
    assert predict()[0] == IDS


def test_second_run_is_refused_and_the_first_goes_on(predict):
    def before(name):
        assert name != 'b' or 'another run is at work here' in refusal(predict)

    assert predict(Reader(before=before))[1].tab_separated == lines_of()


@pytest.mark.parametrize('other', [None, b'of another run\n'])
def test_predictions_removed_at_work_are_joined_all_the_same(predict, tmp_path, other):
    """Not what another run has written in their place so far, which would pass for all."""

    def before(name):
        if name == 'b':
            (tmp_path / UNFINISHED).unlink()
            if other:
                (tmp_path / UNFINISHED).write_bytes(other)

    assert predict(Reader(before=before))[1].tab_separated == lines_of()
    assert sorted(os.listdir(tmp_path)) == ['some.json', 'some.jsonl', 'some.tsv']


@pytest.mark.parametrize('total', [0, 1, 5])
def test_shards_are_joined_in_the_order_of_the_records(predict, tmp_path, monkeypatch, total):
    """The first process waits for the others, and predicts nothing twice. What an interrupted run
    of more or fewer has left goes; the folder's name is no pattern."""
    folder, ids = tmp_path / 'a[1]', IDS[:total]
    work = functools.partial(predict, ids=ids, name=folder / 'some')
    folder.mkdir()
    (folder / shard('some', 1, 2, unfinished=True)).touch()
    with monkeypatch.context() as patch:
        patch.setattr(time, 'sleep', killed)
        assert work(shard=(0, 3)) == (ids[::3], None)
    for rank in 2, 1:
        assert work(shard=(rank, 3)) == (ids[rank::3], None)
    asked, joined = work(shard=(0, 3))
    assert (asked, joined.tab_separated) == ('', lines_of(ids))
    assert [each['id'] for each in entries_of(folder / 'some.jsonl')] == [*ids]
    assert sorted(os.listdir(folder)) == ['some.json', 'some.jsonl', 'some.tsv']


def test_shard_of_other_weights_is_not_joined(predict, tmp_path, monkeypatch, capsys):
    """Whether an earlier run has left it or a worker of this one has other weights: the first one
    says that it must have the same, and waits."""
    readers = [Reader(), Reader(b'2')]
    predict(Reader(b'2'), shard=(1, 2))
    monkeypatch.setattr(time, 'sleep', lambda _: predict(readers.pop(), shard=(1, 2)))
    assert predict(shard=(0, 2))[1].tab_separated == lines_of()
    path = tmp_path / shard('some', 1, 2, unfinished=True)
    waiting = f'waiting for {path}, of the same weights, constants, questions and script\n'
    assert capsys.readouterr().err.count(waiting) == 2 and not readers


def test_nobody_else_works_on_a_shard_while_the_others_are_waited_for(predict, monkeypatch):
    def sleep(_):
        assert 'another run is at work here' in refusal(lambda: predict(shard=(0, 2)))
        predict(shard=(1, 2))

    monkeypatch.setattr(time, 'sleep', sleep)
    assert predict(shard=(0, 2))[1].tab_separated == lines_of()


@pytest.mark.parametrize('state', ['unfinished', 'complete', 'joined', 'of another process'])
def test_answers_to_another_file_are_not_replaced(predict, tmp_path, monkeypatch, state):
    """Not even those of a run that was interrupted; the same file's are."""
    reader = Reader(lives=2 if state == 'unfinished' else 99)
    with monkeypatch.context() as patch:
        if state == 'complete':
            patch.setattr(predictions.Shard, 'wait', killed)
        predict(reader, source='/a/some.json', shard=(1, 2) if 'another' in state else (0, 1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    line = refusal(lambda: predict(source='/b/some.json'))
    assert 'answers to /a/some.json, those to /b/some.json would replace them' in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert predict(Reader(b'2'), 'g', source='/a/some.json')[1].tab_separated == lines_of('g')


def answers_to(stream, groups):
    """Yield the question of each record as its answer; keep those that came together."""

    def predict(data):
        groups.append([record['question'] for record in data])
        return ({'text': question} for question in groups[-1])

    return predict_stream(stream, predict, lambda passage: passage['passage'])


def question(text):
    return json.dumps({'question': text, 'passages': ['北京']}, ensure_ascii=False).encode()


def test_stream_that_is_interrupted_promises_no_continuation():
    """Nothing of it is kept, unlike what other commands have answered."""

    def interrupted(_):
        raise KeyboardInterrupt
        yield

    stream = io.StringIO('{"question": "谁？", "passages": ["甲"]}\n')
    with pytest.raises(KeyboardInterrupt, match=r'^interrupted$'):
        print_stream(stream, interrupted, lambda passage: passage['passage'])


def test_records_are_answered_as_they_come():
    """One by one while the pipe stays open; those that come faster are read together."""
    reads, writes = os.pipe()
    groups, long = [], '北' * 100_000  # more than a pipe holds at once
    with open(reads, encoding='utf-8') as stream, open(writes, 'wb', buffering=0) as file:
        answers = answers_to(stream, groups)
        file.write(question('一') + b'\n')
        assert next(answers)['text'] == '一'
        file.write(question('二')[:9])  # a piece of a line is no record yet
        file.write(question('二')[9:] + b'\n' + question('三') + b'\r\n' + question('四'))
        assert [next(answers)['text'] for _ in range(2)] == ['二', '三']
        with concurrent.futures.ThreadPoolExecutor() as pool:  # the last line has no end
            pool.submit(lambda: (file.write(b'\n' + question(long)), file.close()))
            assert [each['text'] for each in answers] == ['四', long]
    assert groups == [['一'], ['二', '三'], ['四'], [long]]


def test_bad_line_has_an_error_in_its_place(tmp_path):
    bad = {
        b'': 'line 2: not JSON', b'"\xff"': 'line 3: not JSON', b'[1]': 'line 4: ',
        b'{"passages": [7]}': 'line 5: ',
    }  # fmt: skip
    lines = [question('一'), *bad, question('二')]
    (tmp_path / 'lines').write_bytes('\ufeff'.encode() + b'\n'.join(lines))
    with open(tmp_path / 'lines', encoding='utf-8') as stream:
        first, *errors, last = answers_to(stream, [])
    assert (first, last) == ({'text': '一'}, {'text': '二'})
    for entry, beginning in zip(errors, bad.values(), strict=True):
        assert [*entry] == ['error'] and entry['error'].startswith(beginning)


def test_standard_input_may_be_closed_or_no_file():
    """As in a notebook; lines end as in a file."""
    groups, stream = [], io.StringIO('\ufeff{"question": "a\u2028b"}\n{"question": "c"}')
    assert [each['text'] for each in answers_to(stream, groups)] == ['a\u2028b', 'c']
    assert len(groups) == 1
    stream.close()
    for closed in None, stream:
        assert refusal(next, answers_to(closed, [])).startswith('standard input: closed')


def test_file_standard_input_and_one_question_are_warned_of_in_the_same_words(
    script, undisturbed, built_once, tmp_path, monkeypatch
):
    """Nothing is printed from Python."""
    asked, path = {'question': '鑫在哪里？', 'passages': ['中国在北京', '鑫']}, tmp_path / 'q.json'
    write_json(path, [asked])
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    lengths = {'output_dir': output, 'max_p_len': 6, 'max_q_len': 3, 'max_a_len': 1}
    common = [f'--{name}={value}' for name, value in lengths.items()]
    common.append('--no_answer_bias=-50')  # or it might be silent
    monkeypatch.setattr(sys, 'stdin', io.StringIO(json.dumps(asked)))
    _, out, err = outputs(script, 'predict', '-', *common)
    warnings = json.loads(out)['warnings']
    for warning, beginning in zip(warnings, [
        'the vocabulary lacks 18% of the characters, such as 鑫 (',
        '1 of 2 passages are cut off after max_p_len = 6 tokens (raise it, or',
        '1 of 1 questions are cut off after max_q_len = 3 tokens (raise it)',
        '1 of 1 answers are cut off after max_a_len = 1 tokens (raise it)',
    ], strict=True):  # fmt: skip
        assert warning.startswith(beginning) and warning not in err
    passages = [f'--passage={passage}' for passage in asked['passages']]
    _, _, err = outputs(script, 'predict', f'--question={asked["question"]}', *passages, *common)
    assert f'what is asked: {"; ".join(warnings)}\n' in err
    (output / 'answers_to_q.html').touch()  # of earlier answers, and `--report` is not given
    _, _, err = outputs(script, 'predict', str(path), *common)
    assert not (output / 'answers_to_q.html').exists()
    assert f'{path}: {"; ".join(warnings[:3])}\n' in err
    assert f'{output}/answers_to_q.tsv: {warnings[3]}\n' in err
    [prediction] = entries_of(output / 'answers_to_q.jsonl')
    assert prediction['warnings'] == warnings


def answered(path, *rank_and_world_size):
    """The lines of a .tsv that a process has answered already, in the order of its questions."""
    each = path.with_name(shard(path.stem, *rank_and_world_size, unfinished=True))
    with contextlib.suppress(FileNotFoundError):
        return [f'{answer["id"]}\t{answer["text"]}' for answer in entries_of(each)[1:]]
    return []


def test_two_processes_predict_what_one_does_though_one_is_killed(
    study, train, undisturbed, built_once, tmp_path, monkeypatch
):
    """The other waits for it; nothing is answered twice; file and score are the same bytes."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    path = output / 'predictions.tsv'
    whole = read(path).splitlines()
    path.unlink()
    first, second = (
        Process(tmp_path, 'eval', *options(study, output), changes=[change], name=rank,
                TF_CONFIG=position(rank))
        for rank, change in enumerate(['impatience()', 'counted_answers(0.3)'])
    )  # fmt: skip
    second.wait_until(lambda: answered(path, 1, 2))
    assert second.kill() == -signal.SIGKILL
    lines = answered(path, 1, 2)
    assert '3 questions to read' in second.said() and lines == whole[1::2][: len(lines)]
    first.wait_for(f'waiting for {output / shard("predictions", 1, 2)}')
    with monkeypatch.context() as patch:  # the second again, in this process
        patch.setenv('TF_CONFIG', position(1))
        status, last_line, err = train(output, 'eval')
    assert (status, last_line) == (0, [])
    assert f' {len(lines)}/3 [' in err  # where the bar begins
    last_line = first.end()
    assert results(output, last_line) == undisturbed.results
    assert {*os.listdir(output)} == {*os.listdir(undisturbed.output)}
    references = dataset_answers(json.loads(read(study / 'SogouQA.json')))
    score = evaluate_sogou.evaluate(str(path), references)
    assert score.items() <= json.loads(last_line[0]).items()


@pytest.mark.slow
def test_reading_killed_at_any_moment_answers_the_rest(study, undisturbed, tmp_path, capsys):
    """As above, 20 times, also while a file is written; every other time while it answers."""
    rng, total, kills, midway = np.random.default_rng(0), 100, 0, 0
    folder = shutil.copytree(study, tmp_path / 'data')
    write_json(folder / 'SogouQA.json', [varied_record(f'S{i}', rng) for i in range(3 * total)])

    def start(output):
        output.mkdir(exist_ok=True)
        for name in trained.WEIGHTS, trained.CONFIG, trained.VOCABULARY, trained.READER:
            shutil.copy(undisturbed.output / name, output)
        write_json(output / 'random_order.json', [*range(3 * total)])
        return Process(tmp_path, 'eval', *options(folder, output), changes=['counted_answers(0)'])

    process, path = start(tmp_path / 'whole'), tmp_path / 'whole' / 'predictions.tsv'
    life = process.life()
    expected = path.read_bytes(), process.out.read_bytes()
    while kills < 20:
        path, lines, survived = tmp_path / f'{kills}' / 'predictions.tsv', [], False
        while not survived:
            process = start(path.parent)
            seconds = rng.uniform(0, life) if kills < 20 else 120
            if kills in range(0, 20, 2):
                seconds = 0
                while process.process.is_alive() and len(answered(path)) < len(lines) + 10:
                    time.sleep(0.01)
            survived = not process.killed_after(seconds)
            asked = re.findall(r'(\d+) questions to read', process.said())
            assert asked in ([], [str(total - len(lines))])
            if not survived:
                kills += 1
                before, lines = lines, answered(path)
                assert lines[: len(before)] == before or path.read_bytes() == expected[0]
                midway += len(before) < len(lines) < total
        process.end()
        assert (path.read_bytes(), process.out.read_bytes()) == expected
        assert not [each for each in os.listdir(path.parent) if re.search(AT_WORK, each)]
    assert midway >= 4
    with capsys.disabled():
        print(f' {kills} kills survived, {midway} of them while answering ', end='')
