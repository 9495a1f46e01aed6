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
import time
import types

import numpy as np
import pytest
from conftest import refusal, write_json
from runs import AT_WORK, Killed, Process, options, position, results, shard, varied_record

import evaluate_sogou
from evaluate_sogou import Reference
from support import predictions
from support.predictions import predict_stream, predict_to_file
from support.records import dataset_answers
from support.trained import CONFIG, READER, VOCABULARY, WEIGHTS

IDS = 'abcdefg'
TEXTS = '北京', '北京市', '海', '', '上\t海\n\u2028', '天津\x00', '重'
ANSWERS = dict(zip(IDS, TEXTS, strict=True))
REFERENCES = {name: Reference('上海', ('上海', '北京', '重庆天津')) for name in IDS}
UNFINISHED = shard('some', unfinished=True)


class Reader:
    """Predicts what is in ANSWERS, and keeps the ids of the records that it is asked; `before` is
    called with each. It is killed after so many predictions as it has lives."""

    tokenizer = types.SimpleNamespace(ids_to_tokens=list)

    def __init__(self, weights=b'1', lives=99, before=lambda name: None, **constants):
        weight = types.SimpleNamespace(numpy=lambda: weights)
        self.model = types.SimpleNamespace(weights=[weight])
        self.constants = types.SimpleNamespace(**{'report': 9, 'max_p_len': 9, **constants})
        self.lives, self.before, self.asked = lives, before, ''

    def predict(self, records):
        for record in records:
            if len(self.asked) == self.lives:
                raise Killed
            self.before(record['id'])
            self.asked += str(record['id'])[0]
            entry = {'id': record['id'], 'question': '谁？', 'passage': None, 'token_ids': []}
            yield {**entry, 'candidates': [], 'votes': [], 'text': ANSWERS.get(record['id'], '')}


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
def test_score_is_that_of_the_file_and_of_the_page_bit_for_bit(
    predict, tmp_path, monkeypatch, world_size
):
    """What has no id has a line of JSON alone, and no score. Where one process does all, it scores
    each once: for the bar, the score and the page."""
    scored, score_answer = [], evaluate_sogou.score_answer
    monkeypatch.setattr(
        predictions, 'score_answer', lambda *given: scored.append(given) or score_answer(*given)
    )
    ids, page = [*'abc', None, *'defg'], tmp_path / 'page.html'
    common = {'ids': ids, 'references': REFERENCES, 'page': str(page)}
    for rank in reversed(range(world_size)):
        _, joined = predict(shard=(rank, world_size), **common)
        assert (joined is None) == (rank > 0)
    assert read(tmp_path / 'some.tsv') == joined.tab_separated == lines_of()
    assert len(scored) == len(IDS) or world_size > 1
    expected = evaluate_sogou.evaluate(str(tmp_path / 'some.tsv'), REFERENCES)
    assert joined.score == {**expected, 'Answered': 6 / 7} and 0 < expected['Accuracy'] < 1
    shown = json.loads(re.search('id="data">(.*?)</script>', read(page), re.DOTALL)[1])
    assert shown['score'] == joined.score and shown['total'] == 8
    entries = entries_of(tmp_path / 'some.jsonl')
    assert [each['id'] for each in entries] == ids and entries[5]['text'] == ANSWERS['e']


def test_page_of_other_predictions_goes(predict, tmp_path):
    """Where none is wanted, too: `report` is 0. Without right answers there is no score."""
    page = tmp_path / 'page.html'
    for report in 9, 0, 0:
        assert predict(Reader(report=report), page=str(page))[1].score is None
        assert page.exists() == (report > 0)


@pytest.mark.parametrize('complete', [False, True])
@pytest.mark.parametrize(
    ('change', 'kept'),
    [
        (lambda lines: lines, 3),  # a kill
        (lambda lines: [b''.join(lines)[:-29]], 2),  # in the middle of a character
        (lambda lines: [*lines[:2], lines[2].replace(b'\xe4', b'\xe5'), *lines[3:]], 1),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 1),
        (lambda lines: [*lines[:2], *lines[3:]], 1),
        (lambda lines: [*lines[:3], *lines[2:]], 2),
        (lambda lines: [b'{"origin": "other"}\n', *lines[1:]], 0),
    ],
)
def test_what_follows_damage_is_predicted_again(predict, tmp_path, change, kept, complete):
    """Of a shard that says that it is complete, everything; here it waits for another."""
    options = {'ids': 'bebebebe', 'shard': (1, 2)} if complete else {'ids': 'eeee'}
    predict(Reader(lives=4 if complete else 3), **options)
    [path] = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(change(lines)))
    asked, joined = predict(**options)
    if complete:
        assert asked == ('' if change(lines) == lines else 'eeee')
    else:
        assert (asked, joined.tab_separated) == ('e' * (4 - kept), lines_of('eeee'))


def test_each_line_is_on_the_disk_before_the_next_is_asked_for(predict, tmp_path, monkeypatch):
    """A kill loses at most the prediction that was being written, and so does a power cut."""
    on_the_disk = []

    def before(name):
        content = (tmp_path / UNFINISHED).read_bytes()
        assert content.count(b'\n') == 1 + IDS.index(name)  # the first is the origin
        assert on_the_disk[-1:] == [len(content)]

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
    assert 'some.jsonl: begun with other weights, constants' in capsys.readouterr().err
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


def test_predictions_that_another_run_went_on_with_meanwhile_are_left_alone(tmp_path):
    """Between the moment when what is there is read and that when it is locked."""
    late, other = (predictions.Shard(str(tmp_path / 'some'), 'origin') for _ in range(2))
    other.write(iter([{'id': 'a'}]))
    os.rename(tmp_path / shard('some'), tmp_path / UNFINISHED)
    before = read(tmp_path / UNFINISHED)
    assert 'another run has been at work here' in refusal(late.write, iter([{'id': 'b'}]))
    assert read(tmp_path / UNFINISHED) == before


@pytest.mark.parametrize('other', [None, b'of another run\n'])
def test_predictions_removed_at_work_are_not_joined(predict, tmp_path, other):
    """What another run has written in their place so far would pass for all."""

    def before(name):
        if name == 'b':
            (tmp_path / UNFINISHED).unlink()
            if other:
                (tmp_path / UNFINISHED).write_bytes(other)

    assert f'{UNFINISHED}: removed or replaced' in refusal(predict, Reader(before=before))
    assert os.listdir(tmp_path) == ([UNFINISHED] if other else [])


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
    assert sorted(os.listdir(folder)) == ['some.jsonl', 'some.tsv']


def test_shard_of_a_process_with_other_weights_is_not_waited_for(predict, tmp_path, monkeypatch):
    """One that was there before is, as its process will replace it."""
    predict(Reader(b'2'), shard=(1, 2))
    monkeypatch.setattr(time, 'sleep', lambda _: predict(shard=(1, 2)))
    assert predict(shard=(0, 2))[1].tab_separated == lines_of()
    monkeypatch.setattr(time, 'sleep', lambda _: predict(Reader(b'2'), shard=(1, 2)))
    message = refusal(lambda: predict(shard=(0, 2)))
    assert message.startswith(f'{tmp_path / shard("some", 1, 2)}: answered with other weights')


@pytest.mark.parametrize('state', ['unfinished', 'complete', 'joined', 'of another process'])
def test_answers_to_another_file_are_not_replaced(predict, tmp_path, monkeypatch, state):
    """Not even those of a run that was interrupted; the same file's are."""
    reader = Reader(lives=2 if state == 'unfinished' else 99)
    with monkeypatch.context() as patch:
        if state == 'complete':
            patch.setattr(predictions.Shard, 'join', killed)
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
        b'': 'line 2: not JSON', b'"\xff"': 'line 3: not JSON', b'[1]': 'line 4 is a list',
        b'{"passages": [7]}': 'line 5: passage 1 is a number',
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


def answered(path, *rank_and_world_size):
    """The lines of a .tsv that a process has answered already, in the order of its questions."""
    for unfinished in True, False:
        each = path.with_name(shard(path.stem, *rank_and_world_size, unfinished=unfinished))
        with contextlib.suppress(FileNotFoundError):
            return [f'{a["id"]}\t{a["text"]}' for a in entries_of(each)[1:] if 'complete' not in a]
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
    assert f'{len(lines)} of 3 questions are answered' in err
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
        for name in WEIGHTS, CONFIG, VOCABULARY, READER:
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
