"""support/predictions.py: answers line by line, whatever interrupts them and however many share."""

import concurrent.futures
import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import re
import shutil
import time
import types

import numpy as np
import pytest
from conftest import refusal, write_json
from runs import Killed, Process, fill, options, position, results, varied_record

from support.keras2 import tf
from support.predictions import Part, answer_stream, digest_of

# ------------------------------------------------------------------------------------------- a part


def part_of(folder, worker=0, workers=1, origin='digest', source=None):
    """The Part of a worker of some.jsonl."""
    return Part(str(folder / 'some'), origin, source, worker, workers)


def told(question_id, text='北'):
    """What is told of a record, as far as it matters here."""
    return {'id': question_id, 'text': text}


def line_of(question_id, text='北'):
    """The line that it has in a file."""
    return json.dumps(told(question_id, text), ensure_ascii=False)


def content_of(folder, extension='jsonl'):
    """The text of a file."""
    return (folder / f'some.{extension}').read_text(encoding='utf-8')


def broken_off(*entries):
    """Yield some entries, then be killed."""
    yield from entries
    raise Killed


def test_parts_become_json_lines_answers_and_a_page(tmp_path):
    """What would break a line is a space in the one, and stays in the other."""
    part = part_of(tmp_path)
    part.write(
        iter([told('a', '北\t京\n\u2028'), told(None), {**told('b', ''), 'error': 'no question'}])
    )
    part.join(str(tmp_path / 'some.html'), lambda entries: f'{[entry["id"] for entry in entries]}')
    lines = content_of(tmp_path).split('\n')
    assert [json.loads(line).get('error') for line in lines[:-1]] == [None, None, 'no question']
    assert json.loads(lines[0])['text'] == '北\t京\n\u2028'
    assert content_of(tmp_path, 'tsv') == 'a\t北 京  \nb\t\n'
    assert content_of(tmp_path, 'html') == "['a', None, 'b']"
    assert sorted(os.listdir(tmp_path)) == ['some.html', 'some.jsonl', 'some.tsv']


def test_part_that_another_run_went_on_with_meanwhile_is_left_alone(tmp_path):
    late, other = part_of(tmp_path), part_of(tmp_path)
    with pytest.raises(Killed):
        other.write(broken_off(told('a')))
    message = refusal(late.write, iter([told('a'), told('b')]))
    assert 'another run has been at work here' in message
    assert part_of(tmp_path).lines == [line_of('a')]


def test_second_run_on_a_part_is_refused(tmp_path, capsys):
    """The first one goes on as if nothing had been."""
    first, second = part_of(tmp_path), part_of(tmp_path)

    def entries():
        yield told('a')
        assert 'another run is at work here' in refusal(second.write, iter([told('b')]))
        yield told('b')

    first.write(entries())
    first.join()
    assert content_of(tmp_path, 'tsv') == 'a\t北\nb\t北\n'
    assert not capsys.readouterr().err


@pytest.mark.parametrize('other', [None, 'answers of another run\n'])
def test_part_removed_at_work_is_not_joined(tmp_path, other):
    """What another run has written in its place so far would pass for all."""
    part, unfinished = part_of(tmp_path), tmp_path / 'some.jsonl.0-of-1.unfinished'

    def entries():
        yield told('a')
        unfinished.unlink()
        if other:
            unfinished.write_text(other, encoding='utf-8')

    assert f'{unfinished}: removed or replaced' in refusal(part.write, entries())
    assert os.listdir(tmp_path) == ([unfinished.name] if other else [])


def test_part_is_written_where_nothing_can_be_locked(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    part_of(tmp_path).write(iter([told('a')]))
    assert capsys.readouterr().err.count('let no other run work here') == 1
    assert part_of(tmp_path).is_complete


def test_part_of_other_questions_is_started_afresh_and_says_so(tmp_path, capsys):
    with pytest.raises(Killed):
        part_of(tmp_path, origin='other digest').write(broken_off(told('a')))
    part = part_of(tmp_path)
    said = capsys.readouterr().err
    assert part.lines == [] and 'some.jsonl: begun with other weights, constants' in said
    part.write(iter([]))
    part_of(tmp_path).join()
    assert content_of(tmp_path, 'tsv') == content_of(tmp_path) == ''
    assert not capsys.readouterr().err


@pytest.mark.parametrize('cut', [1, 2, 3, 4, 5, 9, 17])
def test_part_cut_off_anywhere_keeps_its_complete_lines(tmp_path, cut):
    """Also in the middle of a character, of three bytes here."""
    with pytest.raises(Killed):
        part_of(tmp_path).write(broken_off(told('a'), told('b', '上海')))
    unfinished = tmp_path / 'some.jsonl.0-of-1.unfinished'
    unfinished.write_bytes(unfinished.read_bytes()[:-cut])
    part = part_of(tmp_path)
    assert part.lines == [line_of('a')]
    part.write(iter([told('b', '天津')]))
    part.join()
    assert content_of(tmp_path, 'tsv') == 'a\t北\nb\t天津\n'


@pytest.mark.parametrize('complete', [False, True])
@pytest.mark.parametrize(
    ('change', 'kept'),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b'\xe4', b'\xe5'), *lines[3:]], 1),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 1),
        (lambda lines: [*lines[:2], *lines[3:]], 1),
        (lambda lines: [*lines[:3], *lines[2:]], 2),
        (lambda lines: [*lines[:2], b'{}\n', *lines[2:]], 1),
        (lambda lines: [*lines[:3], b'\n', *lines[3:]], 2),
        (lambda lines: lines[:4], 3),
    ],
    ids=['changed', 'swapped', 'lacking', 'twice', 'strange', 'blank', 'cut off'],
)
def test_what_follows_damage_is_answered_again(tmp_path, change, kept, complete):
    """Of a part that says that it is complete, everything."""
    entries = [told(name, '上海') for name in 'abcd']
    with contextlib.nullcontext() if complete else pytest.raises(Killed):
        part_of(tmp_path).write(iter(entries) if complete else broken_off(*entries))
    [path] = tmp_path.iterdir()
    path.write_bytes(b''.join(change(path.read_bytes().splitlines(keepends=True))))
    part = part_of(tmp_path)
    assert part.lines == ([] if complete else [line_of(name, '上海') for name in 'abcd'[:kept]])
    part.write(iter(entries[len(part.lines) :]))
    part.join()
    assert content_of(tmp_path, 'tsv') == ''.join(f'{name}\t上海\n' for name in 'abcd')


def test_each_line_is_on_the_disk_before_the_next_is_asked_for(tmp_path, monkeypatch):
    """A kill loses at most the answer that was being written, and so does a power cut."""
    part, on_the_disk, fsync = part_of(tmp_path), [], os.fsync

    def logged_fsync(descriptor):
        fsync(descriptor)
        on_the_disk.append(os.fstat(descriptor).st_size)

    def entries():
        for lines in [line_of('a')], [line_of('a'), line_of('b')]:
            yield json.loads(lines[-1])
            assert part_of(tmp_path).lines == lines
            [unfinished] = tmp_path.iterdir()
            assert on_the_disk[-1] == unfinished.stat().st_size

    monkeypatch.setattr(os, 'fsync', logged_fsync)
    part.write(entries())
    assert os.listdir(tmp_path) == ['some.jsonl.0-of-1']


def test_complete_part_is_not_written_again(tmp_path):
    """Killed before the parts were joined, nothing is answered twice."""
    part_of(tmp_path).write(iter([told('a')]))
    part = part_of(tmp_path)
    part.write(broken_off())
    part.join()
    assert content_of(tmp_path, 'tsv') == 'a\t北\n'


@pytest.mark.parametrize('total', [0, 1, 5, 6])
def test_parts_of_several_workers_are_joined_in_the_order_of_the_records(tmp_path, total):
    """A record without id keeps its place among the lines of JSON, and has no other."""
    (tmp_path / 'some.jsonl.1-of-2.unfinished').write_text('of two workers, interrupted')
    entries = [told(None if i == 3 else f'{i}') for i in range(total)]
    for worker in 2, 0, 1:
        part_of(tmp_path, worker, 3).write(iter(entries[worker::3]))
    part_of(tmp_path, 0, 3).join()
    assert [json.loads(line) for line in content_of(tmp_path).splitlines()] == entries
    expected = ''.join(f'{i}\t北\n' for i in range(total) if i != 3)
    assert content_of(tmp_path, 'tsv') == expected
    assert sorted(os.listdir(tmp_path)) == ['some.jsonl', 'some.tsv']


def test_part_of_a_worker_with_other_weights_is_not_waited_for(tmp_path, monkeypatch):
    """One that was there before is, as its worker will replace it."""

    def waited(seconds):
        raise TimeoutError

    monkeypatch.setattr(time, 'sleep', waited)
    part_of(tmp_path, 1, 2, origin='other').write(iter([told('b')]))
    first = part_of(tmp_path, 0, 2)
    first.write(iter([told('a')]))
    with pytest.raises(TimeoutError):
        first.join()
    part_of(tmp_path, 1, 2).write(iter([told('b')]))
    first.join()
    assert content_of(tmp_path, 'tsv') == 'a\t北\nb\t北\n'
    first = part_of(tmp_path, 0, 2)
    first.write(iter([told('a')]))
    part_of(tmp_path, 1, 2, origin='other').write(iter([told('b')]))
    message = refusal(first.join)
    assert message.startswith(f'{tmp_path / "some.jsonl.1-of-2"}: answered with other weights')


def test_parts_in_a_folder_whose_name_is_a_pattern_are_removed(tmp_path):
    folder = tmp_path / 'output[1]'
    folder.mkdir()
    part = part_of(folder)
    part.write(iter([told('a')]))
    part.join()
    assert sorted(os.listdir(folder)) == ['some.jsonl', 'some.tsv']


def test_part_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'some.jsonl.0-of-1').mkdir()
    assert 'some.jsonl.0-of-1: cannot be read' in refusal(part_of, tmp_path)


@pytest.mark.parametrize('state', ['unfinished', 'complete', 'joined', 'of another worker'])
def test_answers_to_another_file_are_not_replaced(tmp_path, state):
    """Not even those of a run that was interrupted; the same file's are."""
    worker = int(state == 'of another worker')
    part = part_of(tmp_path, worker, worker + 1, source='/a/some.json')
    if state == 'unfinished':
        with pytest.raises(Killed):
            part.write(broken_off(told('a')))
    else:
        part.write(iter([told('a')]))
    if state == 'joined':
        part.join()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    line = refusal(lambda: part_of(tmp_path, source='/b/some.json'))
    assert 'answers to /a/some.json, those to /b/some.json would replace them' in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    part = part_of(tmp_path, origin='other digest', source='/a/some.json')
    part.write(iter([told('b')]))
    part.join()
    assert content_of(tmp_path, 'tsv') == 'b\t北\n'


@pytest.mark.parametrize(
    'text', ['', '[1]\n', 'id\tanswer\n', '{"file": null}\n', '{"file": [1]}\n', '[' * 99999]
)
def test_file_that_holds_no_answers_to_another_is_replaced(tmp_path, text):
    (tmp_path / 'some.jsonl').write_text(text, encoding='utf-8')
    part = part_of(tmp_path, source='/a/some.json')
    part.write(iter([told('a')]))
    part.join()
    assert json.loads(content_of(tmp_path)) == {**told('a'), 'file': '/a/some.json'}


def test_other_weights_data_or_order_have_another_digest():
    """Answers of one may not be continued with the other."""
    data, constants = [{'id': 'a'}, {'id': 'b'}], [['topk', 1]]
    model, other = (types.SimpleNamespace(weights=[tf.Variable([x])]) for x in (0.0, 1.0))
    found = digest_of(model, constants, data)
    assert digest_of(model, constants, data) == found
    others = [
        digest_of(other, constants, data),
        digest_of(None, constants, data),
        digest_of(model, [['topk', 2]], data),
        digest_of(model, constants, data[::-1]),
    ]
    assert len({found, *others}) == 5


# ----------------------------------------------------------------------------- records as they come


@pytest.fixture
def pipe():
    """(what is written to, the stream that is read)."""
    reads, writes = os.pipe()
    with open(reads, encoding='utf-8') as stream, open(writes, 'wb', buffering=0) as file:
        yield file, stream


def echo(groups):
    """Return a function that tells the question of each record, and keeps what came together."""

    def answer(data):
        groups.append([record['question'] for record in data])
        for record in data:
            yield told(record.get('id'), record['question'])

    return answer


def question(text):
    """The line of a record."""
    return json.dumps({'question': text, 'passages': ['北京']}, ensure_ascii=False).encode()


def test_records_are_answered_as_they_come(pipe):
    """One by one while the pipe stays open; those that come faster are read together."""
    file, stream = pipe
    groups = []
    answers = answer_stream(stream, echo(groups))
    file.write(question('一') + b'\n')
    assert next(answers)['text'] == '一'
    file.write(question('二')[:9])  # a piece of a line is no record yet
    file.write(question('二')[9:] + b'\n' + question('三') + b'\r\n' + question('四'))
    assert [next(answers)['text'] for _ in range(2)] == ['二', '三']
    file.close()
    assert [each['text'] for each in answers] == ['四']  # the last one has no end of line
    assert groups == [['一'], ['二', '三'], ['四']]


def test_bad_line_has_an_error_in_its_place(pipe):
    file, stream = pipe
    lines = [
        '\ufeff'.encode() + question('一'), b'[1', b'[1]', b'', b'"\xff"', b'{"question": 7}',
        b'{"passages": [7]}', question('二'),
    ]  # fmt: skip
    file.write(lines[0] + b'\n')
    answers = answer_stream(stream, echo([]))
    assert next(answers)['text'] == '一'
    file.write(b''.join(line + b'\n' for line in lines[1:]))
    file.close()
    *bad, last = answers
    assert last['text'] == '二'
    expected = [
        'line 2: not JSON', 'line 3 is a list; expected {"id"', 'line 4: not JSON',
        'line 5: not JSON', 'line 6: "question" is a number', 'line 7: passage 1 is a number',
    ]  # fmt: skip
    for entry, beginning in zip(bad, expected, strict=True):
        assert [*entry] == ['error'] and entry['error'].startswith(beginning)
        assert '\n' not in entry['error']


def test_long_line_is_one_record(pipe):
    """Longer than a pipe holds at once."""
    file, stream = pipe
    text = '北' * 100_000
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(lambda: (file.write(question(text) + b'\n'), file.close()))
        assert [each['text'] for each in answer_stream(stream, echo([]))] == [text]


def test_closed_standard_input_is_named():
    closed = io.StringIO()
    closed.close()
    for stream in None, closed:
        line = refusal(next, answer_stream(stream, echo([])))
        assert line.startswith('standard input: closed')


def test_standard_input_may_be_no_file():
    """As in a notebook; lines end as in a file."""
    groups, stream = [], io.StringIO('\ufeff{"question": "a\u2028b"}\n{"question": "c"}')
    told_of = [*answer_stream(stream, echo(groups))]
    assert [each['text'] for each in told_of] == ['a\u2028b', 'c'] and len(groups) == 1


# ------------------------------------------------------------------------------ kills while reading


def answered(path):
    """Those of the lines of a .tsv that are answered already, in the order of the questions."""
    part = f'{str(path).removesuffix(".tsv")}.jsonl.0-of-1'
    for name in f'{part}.unfinished', part:
        with contextlib.suppress(FileNotFoundError), open(name, encoding='utf-8') as file:
            entries = map(json.loads, file.read().split('\n')[1:-1])
            return [f'{each["id"]}\t{each["text"]}' for each in entries if 'complete' not in each]
    return []


def test_reading_that_was_killed_answers_the_rest(study, train, undisturbed, tmp_path):
    """Nothing is answered twice, and the file is that of a run never killed."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    (output / 'predictions.tsv').unlink()
    slowly = ['counted_answers(0.3)']
    process = Process(tmp_path, 'eval', *options(study, output), changes=slowly)
    process.wait_until(lambda: len(answered(output / 'predictions.tsv')) >= 2)
    process.kill()
    lines = answered(output / 'predictions.tsv')
    whole = undisturbed.results['predictions.tsv'].decode().splitlines()
    assert '7 questions to read' in process.said() and 2 <= len(lines) < 7 == len(whole)
    assert lines == whole[: len(lines)] and not (output / 'predictions.tsv').exists()
    status, last_line, err = train(output, 'eval')
    assert status == 0 and f'{len(lines)} of 7 questions are answered already' in err
    assert results(output, last_line) == undisturbed.results
    assert set(os.listdir(output)) == set(os.listdir(undisturbed.output))


@pytest.mark.slow
def test_reading_killed_at_any_moment_answers_the_rest(study, undisturbed, tmp_path, capsys):
    """As above, 20 times, also while a file is written; eval and predict run at once."""
    rng, total = np.random.default_rng(0), 100
    folder = tmp_path / 'data'
    shutil.copytree(study, folder)
    write_json(folder / 'SogouQA.json', [varied_record(f'S{i}', rng) for i in range(3 * total)])
    write_json(folder / 'questions.json', [varied_record(f'Q{i}', rng) for i in range(total)])
    names = {'eval': 'predictions.tsv', 'predict': 'answers_to_questions.tsv'}

    def start(command, output):
        output.mkdir(exist_ok=True)
        shutil.copy(undisturbed.output / 'best_model.weights.h5', output)
        write_json(output / 'random_order.json', list(range(3 * total)))
        questions = [folder / 'questions.json'] if command == 'predict' else []
        arguments = command, *questions, *options(folder, output)
        return Process(tmp_path, *arguments, changes=['counted_answers(0)'], name=command)

    def to_read(process):
        return [int(number) for number in re.findall(r'(\d+) questions to read', process.said())]

    def lane(command):
        rng, name = np.random.default_rng(0), names[command]
        process = start(command, tmp_path / f'undisturbed {command}')
        life = process.life()
        path = tmp_path / f'undisturbed {command}' / name
        expected = path.read_bytes(), process.out.read_bytes()
        kills = midway = 0
        while kills < 10:
            output, lines = tmp_path / f'output {command} {kills}', []
            while True:
                process = start(command, output)
                seconds = rng.uniform(0, life) if kills < 10 else 120
                # every other one while it answers, however fast the machine is
                if kills < 10 and kills % 2 == 0:
                    while process.process.poll() is None and (
                        len(answered(output / name)) < len(lines) + 10
                    ):
                        time.sleep(0.01)
                    seconds = 0
                if not process.killed_after(seconds):
                    break
                kills += 1
                before, lines = lines, answered(output / name)
                assert lines[: len(before)] == before or (output / name).read_bytes() == expected[0]
                assert to_read(process) in ([], [total - len(before)])
                midway += len(before) < len(lines) < total
            process.end()
            assert to_read(process) in ([], [total - len(lines)])
            assert ((output / name).read_bytes(), process.out.read_bytes()) == expected
            left = os.listdir(output)
            assert not [name for name in left if 'unfinished' in name or '-of-' in name]
        assert midway >= 2
        return kills, midway

    with concurrent.futures.ThreadPoolExecutor() as pool:
        kills, midway = map(sum, zip(*pool.map(lane, names), strict=True))
    with capsys.disabled():
        print(f' {kills} kills survived, {midway} of them while answering ', end='')


# -------------------------------------------------------------------------------------- two workers


def test_two_workers_predict_what_one_does(script, train, undisturbed, tmp_path, monkeypatch):
    """The first waits for the second, whose part is absent until it is complete."""
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    # three workers, interrupted
    (output / 'predictions.tsv').rename(output / 'predictions.jsonl.2-of-3.unfinished')
    part, original = output / 'predictions.jsonl.1-of-2', script.ReadingComprehension.answers

    def cut_off(*arguments):
        return broken_off(*itertools.islice(original(*arguments), 2))

    def wait(seconds):  # meanwhile the second goes on
        assert not part.exists() and not (output / 'predictions.tsv').exists()
        with monkeypatch.context() as patch:
            patch.setenv('TF_CONFIG', position(1))
            status, last_line, err = train(output, 'eval')
        assert (status, last_line) == (0, []) and '2 of 3 questions are answered already' in err
        assert part.exists() and not (output / 'predictions.tsv').exists()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setenv('TF_CONFIG', position(1))
        patch.setattr(script.ReadingComprehension, 'answers', cut_off)
        train(output, 'eval')
    assert not part.exists()
    monkeypatch.setenv('TF_CONFIG', position(0))
    monkeypatch.setattr(time, 'sleep', wait)
    status, last_line, err = train(output, 'eval')
    assert status == 0 and f'waiting for {part}' in err
    assert results(output, last_line) == undisturbed.results
    assert not list(output.glob('predictions.jsonl.*'))


def test_two_processes_predict_what_one_does(study, undisturbed, tmp_path):
    output = shutil.copytree(undisturbed.output, tmp_path / 'output')
    (output / 'predictions.tsv').unlink()
    arguments = 'eval', *options(study, output)
    workers = [
        Process(tmp_path, *arguments, changes=['impatience()'], name=k, TF_CONFIG=position(k))
        for k in (1, 0)
    ]
    last_lines = [worker.end() for worker in workers]
    assert last_lines[0] == [] and results(output, last_lines[1]) == undisturbed.results


# ------------------------------------------------------------------------------------------ no room


@pytest.mark.parametrize('method', ['write', 'join'])
def test_reading_without_room_goes_on_with_room(
    train, undisturbed, little_room, monkeypatch, method
):
    output = shutil.copytree(undisturbed.output, little_room / 'output')
    (output / 'predictions.tsv').unlink()
    original = getattr(Part, method)

    def without_room(*arguments):
        fill(little_room / 'ballast')
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Part, method, without_room)
        status, last_line, err = train(output, 'eval')
    assert (status, last_line) == (2, []) and 'Traceback' not in err
    expected = r'predictions.jsonl: cannot be written \(No space left.*\); make room'
    assert re.search(expected, err.splitlines()[-1])
    assert not (output / 'predictions.tsv').exists()
    (little_room / 'ballast').unlink()
    status, last_line, err = train(output, 'eval')
    assert status == 0 and results(output, last_line) == undisturbed.results
    assert ('7 of 7 questions are answered already' in err) == (method == 'join')
