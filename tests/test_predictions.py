"""support/predictions.py: answers line by line, whatever interrupts them and however many share."""

import concurrent.futures
import contextlib
import errno
import fcntl
import itertools
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
from support.predictions import Part, fingerprint_of

# ------------------------------------------------------------------------------------------- a part


def part_of(folder, worker=0, workers=1, origin='fingerprint'):
    """The Part of a worker of some.tsv."""
    return Part(str(folder / 'some.tsv'), origin, worker, workers)


def broken_off(*lines):
    """Yield some lines, then be killed."""
    yield from lines
    raise Killed


def test_part_that_another_run_went_on_with_meanwhile_is_left_alone(tmp_path):
    late, other = part_of(tmp_path), part_of(tmp_path)
    with pytest.raises(Killed):
        other.write(broken_off('a\t北'))
    message = refusal(late.write, iter(['a\t北', 'b\t京']))
    assert 'another run has been at work here' in message
    assert part_of(tmp_path).lines == ['a\t北']


def test_second_run_on_a_part_is_refused(tmp_path, capsys):
    """The first one goes on as if nothing had been."""
    first, second = part_of(tmp_path), part_of(tmp_path)

    def lines():
        yield 'a\t北'
        assert 'another run is at work here' in refusal(second.write, iter(['b\t京']))
        yield 'b\t京'

    first.write(lines())
    first.join()
    assert (tmp_path / 'some.tsv').read_text(encoding='utf-8') == 'a\t北\nb\t京\n'
    assert not capsys.readouterr().err


def test_part_is_written_where_nothing_can_be_locked(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    part_of(tmp_path).write(iter(['a\t北']))
    assert capsys.readouterr().err.count('let no other run work here') == 1
    assert part_of(tmp_path).is_complete


def test_part_of_other_questions_is_started_afresh_and_says_so(tmp_path, capsys):
    begun = 'other fingerprint\na\t北京\n'
    (tmp_path / 'some.tsv.0-of-1.unfinished').write_text(begun, encoding='utf-8')
    part = part_of(tmp_path)
    said = capsys.readouterr().err
    assert part.lines == [] and 'some.tsv: begun with other weights, constants' in said
    part.write(iter([]))
    part_of(tmp_path).join()
    assert (tmp_path / 'some.tsv').read_bytes() == b'' and not capsys.readouterr().err


@pytest.mark.parametrize('cut', range(1, 9))
def test_part_cut_off_anywhere_keeps_its_complete_lines(tmp_path, cut):
    """Also in the middle of a character, of three bytes here."""
    whole = 'fingerprint\na\t北京\nb\t上海\n'.encode()
    (tmp_path / 'some.tsv.0-of-1.unfinished').write_bytes(whole[:-cut])
    part = part_of(tmp_path)
    assert part.lines == ['a\t北京']
    part.write(iter(['b\t天津']))
    part.join()
    assert (tmp_path / 'some.tsv').read_text(encoding='utf-8') == 'a\t北京\nb\t天津\n'


def test_each_line_is_on_the_disk_before_the_next_is_asked_for(tmp_path):
    """A kill loses at most the answer that was being written."""
    part, unfinished = part_of(tmp_path), tmp_path / 'some.tsv.0-of-1.unfinished'

    def lines():
        yield 'a\t北'
        assert unfinished.read_text(encoding='utf-8') == 'fingerprint\na\t北\n'
        yield 'b\t京'
        assert part_of(tmp_path).lines == ['a\t北', 'b\t京']

    part.write(lines())
    assert os.listdir(tmp_path) == ['some.tsv.0-of-1']


def test_complete_part_is_not_written_again(tmp_path):
    """Killed before the parts were joined, nothing is answered twice."""
    part_of(tmp_path).write(iter(['a\t北']))
    part = part_of(tmp_path)
    part.write(broken_off())
    part.join()
    assert (tmp_path / 'some.tsv').read_text(encoding='utf-8') == 'a\t北\n'


@pytest.mark.parametrize('total', [0, 1, 5, 6])
def test_parts_of_several_workers_are_joined_in_the_order_of_the_records(tmp_path, total):
    """A record without id has an empty line, which keeps the place but is not written."""
    (tmp_path / 'some.tsv.1-of-2.unfinished').write_text('of two workers, interrupted')
    lines = ['' if i == 3 else f'{i}\t北' for i in range(total)]
    for worker in 2, 0, 1:
        part_of(tmp_path, worker, 3).write(iter(lines[worker::3]))
    part_of(tmp_path, 0, 3).join()
    expected = ''.join(f'{line}\n' for line in lines if line)
    assert (tmp_path / 'some.tsv').read_text(encoding='utf-8') == expected
    assert os.listdir(tmp_path) == ['some.tsv']


def test_parts_in_a_folder_whose_name_is_a_pattern_are_removed(tmp_path):
    folder = tmp_path / 'output[1]'
    folder.mkdir()
    part = part_of(folder)
    part.write(iter(['a\t北']))
    part.join()
    assert os.listdir(folder) == ['some.tsv']


def test_part_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'some.tsv.0-of-1').mkdir()
    assert 'some.tsv.0-of-1: cannot be read' in refusal(part_of, tmp_path)


def test_other_weights_data_or_order_have_another_fingerprint():
    """Answers of one may not be continued with the other."""
    data, constants = [{'id': 'a'}, {'id': 'b'}], [['topk', 1]]
    model, other = (types.SimpleNamespace(weights=[tf.Variable([x])]) for x in (0.0, 1.0))
    found = fingerprint_of(model, constants, data)
    assert fingerprint_of(model, constants, data) == found
    others = [
        fingerprint_of(other, constants, data),
        fingerprint_of(None, constants, data),
        fingerprint_of(model, [['topk', 2]], data),
        fingerprint_of(model, constants, data[::-1]),
    ]
    assert len({found, *others}) == 5


# ------------------------------------------------------------------------------ kills while reading


def answered(path):
    """The lines that are written already, in the order of the questions."""
    for name in f'{path}.0-of-1.unfinished', f'{path}.0-of-1':
        with contextlib.suppress(FileNotFoundError), open(name, encoding='utf-8') as file:
            return file.read().split('\n')[1:-1]
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
    (output / 'predictions.tsv').rename(output / 'predictions.tsv.2-of-3.unfinished')
    part, original = output / 'predictions.tsv.1-of-2', script.ReadingComprehension.answers

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
    assert not list(output.glob('predictions.tsv.*'))


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
    expected = r'predictions.tsv: cannot be written \(No space left.*\); make room'
    assert re.search(expected, err.splitlines()[-1])
    assert not (output / 'predictions.tsv').exists()
    (little_room / 'ballast').unlink()
    status, last_line, err = train(output, 'eval')
    assert status == 0 and results(output, last_line) == undisturbed.results
    assert ('7 of 7 questions are answered already' in err) == (method == 'join')
