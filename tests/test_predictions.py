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
from runs import (
    AT_WORK,
    RESULTS,
    Killed,
    Process,
    options,
    position,
    results,
    shard,
    varied_record,
)

import evaluate_sogou
from evaluate_sogou import Reference
from support import predictions
from support.predictions import predict_stream, predict_to_file
from support.records import dataset_answers

IDS = 'abcdefg'
ANSWERS = dict(
    zip(IDS, ['北京', '北京市', '海', '', '上\t海\n\u2028', '天津\x00', '重'], strict=True)
)
REFERENCES = {name: Reference('上海', ('上海', '北京', '重庆天津')) for name in IDS}
UNFINISHED = shard('some', unfinished=True)


# --------------------------------------------------------------------- with a reader that is none


class Reader:
    """Predicts what is in ANSWERS, and keeps the ids of the records that it is asked.

    lives: after so many predictions it is killed; before: called with an id before each.
    """

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
    """Return a function that predicts for records of some ids; returns those asked, and Joined."""

    def predict_some(reader=None, ids=IDS, name=tmp_path / 'some', **options):
        reader, joined = reader or Reader(), None
        data = [{'id': each, 'passages': []} for each in ids]
        with contextlib.suppress(Killed):
            joined = predict_to_file(reader, data, str(name), **options)
        return reader.asked, joined

    return predict_some


def killed(*_):
    """Stands in for what is called when the kill comes."""
    raise Killed


def lines_of(ids=IDS):
    """What the .tsv has of these ids: what would break a line is a space."""
    return ''.join(f'{name}\t{re.sub("[^一-鿿]", " ", ANSWERS[name])}\n' for name in ids)


def read(path):
    """The text of a file."""
    return path.read_bytes().decode()


def entries_of(path):
    """What a file of lines of JSON holds."""
    return [json.loads(line) for line in read(path).split('\n')[:-1]]


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_score_is_that_of_the_file_and_of_the_page_bit_for_bit(predict, tmp_path, world_size):
    """However many share the questions. What has no id has a line of JSON alone, and no score."""
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


def test_predictions_are_scored_once_each(predict, tmp_path, monkeypatch):
    """For the bar, for the score and for the page."""
    scored, score_answer = [], evaluate_sogou.score_answer

    def counted(answer, reference):
        scored.append(answer)
        return score_answer(answer, reference)

    monkeypatch.setattr(predictions, 'score_answer', counted)
    predict(references=REFERENCES, page=str(tmp_path / 'page.html'))
    assert len(scored) == len(IDS) == len({*scored})


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
        (lambda lines: [b''.join(lines)[:-1]], 2),
        (lambda lines: [b''.join(lines)[:-29]], 2),  # in the middle of a character
        (lambda lines: lines[:3], 2),
        (lambda lines: [*lines[:2], lines[2].replace(b'\xe4', b'\xe5'), *lines[3:]], 1),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 1),
        (lambda lines: [*lines[:2], *lines[3:]], 1),
        (lambda lines: [*lines[:3], *lines[2:]], 2),
        (lambda lines: [*lines[:2], b'{}\n', *lines[2:]], 1),
        (lambda lines: [*lines[:3], b'\n', *lines[3:]], 2),
        (lambda lines: [b'{"origin": "other"}\n', *lines[1:]], 0),
    ],
)
def test_what_follows_damage_is_predicted_again(predict, tmp_path, change, kept, complete):
    """Of a shard that says that it is complete, everything; here it waits for another."""
    options = {'ids': 'bebebebe', 'shard': (1, 2)} if complete else {'ids': 'eeee'}
    predict(Reader(lives=4 if complete else 3), **options)
    [path] = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b''.join(change(lines))
    path.write_bytes(damaged)
    asked, joined = predict(**options)
    again = 0 if damaged == b''.join(lines) else 4
    assert asked == 'e' * (again if complete else 4 - kept)
    assert complete or joined.tab_separated == lines_of('eeee')


def test_each_line_is_on_the_disk_before_the_next_is_asked_for(predict, tmp_path, monkeypatch):
    """A kill loses at most the prediction that was being written, and so does a power cut."""
    on_the_disk, fsync = [], os.fsync

    def logged_fsync(descriptor):
        fsync(descriptor)
        on_the_disk.append(os.fstat(descriptor).st_size)

    def before(name):
        content = (tmp_path / UNFINISHED).read_bytes()
        assert content.count(b'\n') == 1 + IDS.index(name)  # the first is the origin
        assert on_the_disk[-1:] == [len(content)]

    monkeypatch.setattr(os, 'fsync', logged_fsync)
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


# ---------------------------------------------------------------------------------- several at once


def test_second_run_is_refused_and_the_first_goes_on(predict):
    def before(name):
        if name == 'b':
            assert 'another run is at work here' in refusal(predict)

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


@pytest.mark.parametrize('total', [0, 1, 5, 6])
def test_shards_are_joined_in_the_order_of_the_records(predict, tmp_path, monkeypatch, total):
    """The first process waits for the others; when they are there, it predicts nothing twice.

    What an interrupted run of more or fewer has left goes; the folder's name is no pattern.
    """
    folder, work = tmp_path / 'a[1]', functools.partial(predict, ids=IDS[:total])
    work = functools.partial(work, name=folder / 'some')
    folder.mkdir()
    (folder / shard('some', 1, 2, unfinished=True)).touch()

    with monkeypatch.context() as patch:
        patch.setattr(time, 'sleep', killed)
        assert work(shard=(0, 3)) == (IDS[:total][::3], None)
    for rank in 2, 1:
        assert work(shard=(rank, 3)) == (IDS[:total][rank::3], None)
    asked, joined = work(shard=(0, 3))
    assert (asked, joined.tab_separated) == ('', lines_of(IDS[:total]))
    assert [each['id'] for each in entries_of(folder / 'some.jsonl')] == [*IDS[:total]]
    assert sorted(os.listdir(folder)) == ['some.jsonl', 'some.tsv']


def test_shard_of_a_process_with_other_weights_is_not_waited_for(predict, tmp_path, monkeypatch):
    """One that was there before is, as its process will replace it."""

    def meanwhile(weights):
        monkeypatch.setattr(time, 'sleep', lambda _: predict(Reader(weights), shard=(1, 2)))

    predict(Reader(b'2'), shard=(1, 2))
    meanwhile(b'1')
    assert predict(shard=(0, 2))[1].tab_separated == lines_of()
    meanwhile(b'2')
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


def test_file_that_holds_no_answers_to_another_is_replaced_or_named(predict, tmp_path):
    (tmp_path / 'some.jsonl').write_text('{"file": null}\n', encoding='utf-8')
    predict(ids='a', source='/a/some.json')
    assert entries_of(tmp_path / 'some.jsonl')[0]['file'] == '/a/some.json'
    (tmp_path / shard('some')).mkdir()
    assert f'{shard("some")}: cannot be read' in refusal(predict)


# ----------------------------------------------------------------------------- records as they come


@pytest.fixture
def pipe():
    """(what is written to, the stream that is read)."""
    reads, writes = os.pipe()
    with open(reads, encoding='utf-8') as stream, open(writes, 'wb', buffering=0) as file:
        yield file, stream


def answers_to(stream, groups=None):
    """Yield the question of each record as its answer; keep those that came together."""

    def predict(data):
        if groups is not None:
            groups.append([record['question'] for record in data])
        return ({'text': record['question']} for record in data)

    return predict_stream(stream, predict, lambda passage: passage['passage'])


def question(text):
    """The line of a record."""
    return json.dumps({'question': text, 'passages': ['北京']}, ensure_ascii=False).encode()


def test_records_are_answered_as_they_come(pipe):
    """One by one while the pipe stays open; those that come faster are read together."""
    (file, stream), groups = pipe, []
    answers = answers_to(stream, groups)
    file.write(question('一') + b'\n')
    assert next(answers)['text'] == '一'
    file.write(question('二')[:9])  # a piece of a line is no record yet
    file.write(question('二')[9:] + b'\n' + question('三') + b'\r\n' + question('四'))
    assert [next(answers)['text'] for _ in range(2)] == ['二', '三']
    long = '北' * 100_000  # more than a pipe holds at once; the last line has no end
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(lambda: (file.write(b'\n' + question(long)), file.close()))
        assert [each['text'] for each in answers] == ['四', long]
    assert groups == [['一'], ['二', '三'], ['四'], [long]]


def test_bad_line_has_an_error_in_its_place(pipe):
    file, stream = pipe
    bad = {
        b'[1': 'line 2: not JSON',
        b'[1]': 'line 3 is a list; expected {"id"',
        b'': 'line 4: not JSON',
        b'"\xff"': 'line 5: not JSON',
        b'{"question": 7}': 'line 6: "question" is a number',
        b'{"passages": [7]}': 'line 7: passage 1 is a number',
    }
    file.write('\ufeff'.encode() + b'\n'.join([question('一'), *bad, question('二')]))
    file.close()
    first, *errors, last = answers_to(stream)
    assert (first, last) == ({'text': '一'}, {'text': '二'})
    for entry, beginning in zip(errors, bad.values(), strict=True):
        assert [*entry] == ['error'] and entry['error'].startswith(beginning)
        assert '\n' not in entry['error']


def test_standard_input_may_be_closed_or_no_file():
    """As in a notebook; lines end as in a file."""
    groups, stream = [], io.StringIO('\ufeff{"question": "a\u2028b"}\n{"question": "c"}')
    assert [each['text'] for each in answers_to(stream, groups)] == ['a\u2028b', 'c']
    assert len(groups) == 1
    stream.close()
    for closed in None, stream:
        assert refusal(next, answers_to(closed)).startswith('standard input: closed')


# ---------------------------------------------------------------------------------- real processes


def answered(path):
    """The lines of a .tsv that are answered already, in the order of the questions of its shard."""
    for each in path.parent.glob(f'{path.stem}.jsonl.*-of-*'):
        with contextlib.suppress(FileNotFoundError):
            entries = map(json.loads, read(each).split('\n')[1:-1])
            return [f'{each["id"]}\t{each["text"]}' for each in entries if 'complete' not in each]
    return []


def test_two_processes_predict_what_one_does_though_one_is_killed(study, undisturbed, tmp_path):
    """The other waits for it; nothing is answered twice; file and score are the same bytes."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    path = output / 'predictions.tsv'
    whole = read(path).splitlines()
    path.unlink()
    arguments = 'eval', *options(study, output)

    def start(rank, change):
        environment = {'TF_CONFIG': position(rank)}
        return Process(tmp_path, *arguments, changes=[change], name=rank, **environment)

    second = start(1, 'counted_answers(0.3)')
    second.wait_until(lambda: answered(path))
    assert second.kill() == -signal.SIGKILL
    lines = answered(path)
    assert '3 questions to read' in second.said() and lines == whole[1::2][: len(lines)]
    first = start(0, 'impatience()')
    first.wait_for(f'waiting for {output / shard("predictions", 1, 2)}')
    second = start(1, 'impatience()')
    assert second.end() == [] and f'{len(lines)} of 3 questions are answered' in second.said()
    last_line = first.end()
    assert results(output, last_line) == undisturbed.results
    assert {*os.listdir(output)} == {*os.listdir(undisturbed.output)}
    references = dataset_answers(json.loads(read(study / 'SogouQA.json')))
    score = evaluate_sogou.evaluate(str(path), references)
    assert score.items() <= json.loads(last_line[0]).items()


@pytest.mark.slow
def test_reading_killed_at_any_moment_answers_the_rest(study, undisturbed, tmp_path, capsys):
    """As above, 20 times, also while a file is written; eval and predict run at once."""
    rng, total = np.random.default_rng(0), 100
    folder = shutil.copytree(study, tmp_path / 'data')
    write_json(folder / 'SogouQA.json', [varied_record(f'S{i}', rng) for i in range(3 * total)])
    write_json(folder / 'questions.json', [varied_record(f'Q{i}', rng) for i in range(total)])
    names = {'eval': 'predictions.tsv', 'predict': 'answers_to_questions.tsv'}

    def start(command, output):
        output.mkdir(exist_ok=True)
        shutil.copy(undisturbed.output / RESULTS[0], output)
        write_json(output / 'random_order.json', list(range(3 * total)))
        questions = [folder / 'questions.json'] if command == 'predict' else []
        arguments = command, *questions, *options(folder, output)
        return Process(tmp_path, *arguments, changes=['counted_answers(0)'], name=command)

    def lane(command):
        rng, name = np.random.default_rng(0), names[command]
        process, path = start(command, tmp_path / command), tmp_path / command / name
        life = process.life()
        expected = path.read_bytes(), process.out.read_bytes()
        kills = midway = 0
        while kills < 10:
            path, lines = tmp_path / f'{command} {kills}' / name, []
            while True:
                process = start(command, path.parent)
                seconds = rng.uniform(0, life) if kills < 10 else 120
                # every other one while it answers, however fast the machine is
                if kills < 10 and kills % 2 == 0:
                    while process.process.is_alive() and len(answered(path)) < len(lines) + 10:
                        time.sleep(0.01)
                    seconds = 0
                survived = not process.killed_after(seconds)
                asked = re.findall(r'(\d+) questions to read', process.said())
                assert asked in ([], [str(total - len(lines))])
                if survived:
                    break
                kills += 1
                before, lines = lines, answered(path)
                assert lines[: len(before)] == before or path.read_bytes() == expected[0]
                midway += len(before) < len(lines) < total
            process.end()
            assert (path.read_bytes(), process.out.read_bytes()) == expected
            assert not [each for each in os.listdir(path.parent) if re.search(AT_WORK, each)]
        assert midway >= 2
        return kills, midway

    with concurrent.futures.ThreadPoolExecutor() as pool:
        kills, midway = map(sum, zip(*pool.map(lane, names), strict=True))
    with capsys.disabled():
        print(f' {kills} kills survived, {midway} of them while answering ', end='')
