"""The official score: its rules one by one, checked by hand, then all together, on bytes."""

import collections
import glob
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, record_of, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

import evaluate_sogou
from evaluate_sogou import PUNCTUATION, Reference, Score, norm, score_answer

ANSWERS = '1\t北京\t北京市|北京\n2\t中国人民\t中国|中国人民\n3\t巴西、印度\t巴西印度\n'
PREDICTIONS = '1\t北京\n2\t中国人\n3\t\n'
COLUMNS = (
    '1\t北京\t1\t1.000000\t1.000000\t1.000000\t北京\n'
    '2\t中国人\t0\t0.857143\t1.000000\t0.750000\t中国人民\n'
    '3\t\t0\t0.000000\t0.000000\t0.000000\tNone\n'
)
SCORER = os.path.join(ROOT, 'evaluate_sogou.py')
ALONE = os.path.join('alone', 'evaluate_sogou.py')  # in a folder where there is nothing else


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The folder of work, with what is to be scored: one right, one nearly, one empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'answers').write_text(ANSWERS, encoding='utf-8')
    (tmp_path / 'predictions').write_text(PREDICTIONS, encoding='utf-8')
    passages = ('', '北京'), ('', ''), ('', '上海 天津'), ('', '上海 天津')
    data = [record_of(*passages, question_id='1'), record_of(('', ''), question_id='2')]
    write_json(tmp_path / 'dataset.json', data)
    (tmp_path / 'alone').mkdir()
    shutil.copy(SCORER, ALONE)
    return tmp_path


TO_ANSWERS = 'predictions', '--answers', 'answers'
WRITTEN = 'predictions', 'output', '--answers', 'answers'
TO_DATASET = 'predictions', '--dataset', 'dataset.json'
ON_ITS_OWN = sys.executable, '-I', '-S'  # without any package


def run(*arguments, scorer=SCORER, python=sys.executable, before=(), **environment):
    """Run evaluate_sogou.py, or a copy, as a process, perhaps by a command."""
    return subprocess.run(
        [*(before or [python]), *map(str, [scorer, *arguments])],
        env={**os.environ, **environment}, capture_output=True, encoding='utf-8', timeout=60,
    )  # fmt: skip


def result(*arguments, **options):
    process = run(*arguments, **options)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture
def call(files, monkeypatch, capsys):
    """Call the command in this process. Returns (exit status, standard output, list of lines)."""

    def call(*arguments):
        monkeypatch.setattr(sys, 'path', [*sys.path])
        monkeypatch.setattr(sys, 'argv', ['evaluate_sogou.py', *arguments])
        status, (out, err) = evaluate_sogou.exit_status(evaluate_sogou.main), capsys.readouterr()
        return status, out, err.splitlines()

    return call


def listing(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


# --------------------------------------------------------------------------------------- one answer


@pytest.mark.parametrize(
    ('rule', 'text', 'expected'),
    [
        ('half width from U+FF01 to U+FF5E, and U+3000', '\uff01Ａｚ０\uff5e\u3000', 'az0'),
        ('not beside it, nor of half-width letters', '\uff00\uff5fｱ', '\uff00\uff5fｱ'),
        ('half width first: # is on the list, ＃ not', 'ｃ＃＋＋', 'c'),
        ('punctuation is nothing', '《北京》·“上海”…\x7f￠', '北京上海'),
        ('neither U+2013 nor ⑴ is on the list', '北–京⑴', '北–京⑴'),
        ('only ASCII has lower case, not U+212A', 'AbZÉΩÇİ\u212a', 'abzÉΩÇİ\u212a'),
        ('white space of ASCII is nothing', ' 北\t\n\r\v\f\x1c\u2003京', '北\x1c\u2003京'),
    ],
)
def test_norm(rule, text, expected):
    assert norm(text) == expected


ROWAN = '罗温艾金森', ('rowanatkinson',)
NORMED = '?', ('《罗温·艾金森》 Rowan', 'Ｋ２')
LIST, PARTS = ('巴西、印度 Ａ', ('巴西印度a',)), ('巴西 印度', ('巴西印度',))


@pytest.mark.parametrize(
    ('rule', 'answers', 'reference', 'correct'),
    [
        ('not a part of a variant', ['rowan'], ROWAN, False),
        ('the norm of a variant', ['罗温艾金森rowan', 'k2'], NORMED, True),
        ('a list in any order', ['印度 a 巴西', 'A,印度|巴西', '巴西\u3000印度。a'], LIST, True),
        ('however often a part is named', ['印度、Ａ、巴西、印度'], LIST, True),
        ('two separators leave an empty part', ['印度  巴西', '印度，，巴西'], PARTS, False),
        ('also in the standard answer', ['印度  巴西'], ('巴西、 印度', ('巴西',)), True),
        ('neither tab nor ＃ splits it', ['印度\t巴西', '印度＃巴西'], PARTS, False),
        ('# does', ['印度#巴西'], PARTS, True),
        ('neither more nor less', ['印度', '印度 巴西 中国', '印度 巴西\u00a0'], PARTS, False),
        ('no list of a variant', ['印度 巴西'], ('中国', ('巴西 印度',)), False),
        ('stripped, or one part were empty', [' \t印度 巴西\r\n'], PARTS, True),
        ('nothing without a variant', ['中国'], ('中国', ()), False),
        ('nor what is nothing', ['。'], ('', ()), False),
        ('the empty answer is wrong', ['', ' \t\r\n\v\f'], ('。', ('。', '')), False),
        ('but punctuation is not empty', ['！'], ('。', ('。', '')), True),
    ],
)
def test_correct(rule, answers, reference, correct):
    for answer in answers:
        assert score_answer(answer, Reference(*reference)).correct == correct, answer


@pytest.mark.parametrize(
    ('rule', 'answer', 'variants', 'f1', 'precision', 'recall', 'variant'),
    [
        ('with multiplicity', '红红黑', ['红黑黑黑'], 4 / 7, 2 / 3, 2 / 4, '红黑黑黑'),
        ('of both all that both have', '红红黑', ['红红黑黑'], 6 / 7, 1, 3 / 4, '红红黑黑'),
        ('the best', '中国人', ['中国', '中国人民', '美'], 6 / 7, 1, 3 / 4, '中国人民'),
        ('whichever comes first', '中国人', ['中国人民', '中国'], 6 / 7, 1, 3 / 4, '中国人民'),
        ('of norms', '《Ａ·B》', ['a b'], 1, 1, 1, 'a b'),
        ('no common character', '上海', ['北京', ''], 0, 0, 0, None),
        ('no norm of a variant', '！', ['。', ''], 0, 0, 0, None),
    ],
)
def test_f1(rule, answer, variants, f1, precision, recall, variant):
    score = score_answer(answer, Reference('?', tuple(variants)))
    assert score[1:] == (approx(f1), precision, recall, variant)


# ---------------------------------------------------------------------------------------- the files


def test_means_over_the_lines_and_final(files):
    """A question answered twice counts twice; nothing is written unless it is asked for."""
    with open('predictions', 'a', encoding='utf-8') as file:
        file.write('3\t印度，巴西\n')
    before, (accuracy, f1) = listing(files), (2 / 4, (1 + 6 / 7 + 0 + 1) / 4)
    process = run(*TO_ANSWERS)
    means = [('Accuracy', accuracy), ('F1', f1), ('Final', (accuracy + f1) / 2), ('total', 4)]
    assert [*json.loads(process.stdout).items()] == [(name, approx(mean)) for name, mean in means]
    assert listing(files) == before and process.stdout.endswith('}\n')


def test_seven_columns(files):
    """Into what a link stands for, too; and a pipe or a device, /dev/null say, stays one."""
    (files / 'link').symlink_to('output')
    os.mkfifo('pipe')
    reader = os.open('pipe', os.O_RDONLY | os.O_NONBLOCK)
    for output in 'output', 'link':
        (files / 'output').write_text('earlier', encoding='utf-8')
        result('predictions', output, '--answers', 'answers')
        assert (files / 'output').read_text(encoding='utf-8') == COLUMNS
    result('predictions', 'pipe', '--answers', 'answers')
    assert os.read(reader, 10000).decode() == COLUMNS
    os.close(reader)
    assert (files / 'link').is_symlink() and (files / 'pipe').is_fifo()


def test_only_a_line_feed_ends_a_line(files):
    """str.splitlines() would also split at U+2028, open() at CR; the last one may be missing.

    The byte order mark that Windows editors put before a file is no part of the first id.
    """
    text = '\ufeff1\t北\u2028京\x85市\r\n1\t北\r京\r\n2\t中国人民\n3\t印度，巴西'
    (files / 'predictions').write_bytes(text.encode())
    measured = result(*TO_ANSWERS)
    assert (measured['Accuracy'], measured['total']) == (3 / 4, 4)


def test_official_answers_are_read_as_they_stand(files):
    """A variant is split off at | only, and the standard answer is no variant of itself."""
    (files / 'answers').write_bytes('\ufeffa#1\tＡ、B|\t《Ａ》|b c|\u00a0\r\n'.encode())
    reference = Reference('Ａ、B|', ('《Ａ》', 'b c', '\u00a0'))
    assert evaluate_sogou.load_official_answers('answers') == {'a#1': reference}


def test_dataset_instead_of_official_answers(files):
    """Each of the passages' answers is a variant, the most frequent one the standard answer.

    With Python's own library alone, and where the folder of the file is not on its path.
    """
    text = '1\t北京\n1\t天津 上海\n1\t中国\n2\t北京\n'
    (files / 'predictions').write_text(text, encoding='utf-8')
    expected = {'Accuracy': 0.5, 'F1': 0.5, 'Final': 0.5, 'total': 4}
    assert result(*TO_DATASET, before=ON_ITS_OWN) == expected


SEVERAL = "predictions: warning: ids that stand in several lines: 1, such as '3'; each line counts"
OTHERS = (
    'predictions: warning: answers to 2 of 3 questions of dataset.json; the others do not count'
)


@pytest.mark.parametrize(
    ('lines', 'said', 'of_dataset'),
    [
        ('123', [], []),
        ('3133', [SEVERAL, 'predictions: 2 of 3 questions'], [SEVERAL, OTHERS]),
    ],
)
def test_part_is_scored_with_a_word_about_the_rest(files, call, lines, said, of_dataset):
    """The official answers are of more questions than anyone validates on; a dataset's are not."""
    (files / 'predictions').write_text(''.join(f'{name}\t北京\n' for name in lines), 'utf-8')
    data = [record_of(('', '北京'), question_id=name) for name in [*'123', None]]
    write_json(files / 'dataset.json', data)
    for arguments, expected in (TO_ANSWERS, said), (TO_DATASET, of_dataset):
        _, out, err = call(*arguments)
        assert json.loads(out)['total'] == len(lines)
        err = [line for line in err if not line.startswith('dataset.json')]
        assert err == expected


# -------------------------------------------------------------------------------------- the process


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&-', '>&- 2>&- <&-'])
def test_streams_may_be_closed(files, closed):
    """What is said to one goes to no other."""
    before = ['sh', '-c', f'exec "$0" "$@" {closed}', sys.executable]
    done = run(*WRITTEN, before=before)
    assert (done.returncode, done.stderr) == (0, '')
    assert bool(done.stdout) == ('>&-' not in closed.split())
    assert (files / 'output').read_text(encoding='utf-8') == COLUMNS
    (files / 'predictions').unlink()
    done = run(*WRITTEN, before=before)
    said = '' if '2>&-' in closed.split() else 'predictions: no such file; check the path\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, '', said)


@pytest.mark.parametrize('more', [[], ['--help']])
@pytest.mark.parametrize(
    ('shell', 'said'),
    [
        ('(sleep 0.1; "$0" "$@"; echo $? >&2) | true', 'Broken pipe'),
        ('"$0" "$@" >/dev/full; echo $? >&2', 'No space left on device'),  # a device of Linux
    ][: 1 + os.path.exists('/dev/full')],
)
def test_output_that_nobody_takes_ends_it_in_one_line(files, more, shell, said):
    before = ['sh', '-c', shell, sys.executable]
    done = run(*TO_ANSWERS, *more, before=before, PYTHONUNBUFFERED='')
    assert done.stderr == f'standard output: {said}\n1\n'


@pytest.mark.parametrize('command', ['\x1b[2J', '\x9b2J', '\r', '\n', '\u202e', '\x07'])
def test_what_is_said_gives_no_commands_to_a_terminal(capsys, command):
    """Samples, names of files and what they hold come from others; a line stays one line."""
    evaluate_sogou.log(f'北{command}京')
    [said] = capsys.readouterr().err.splitlines()
    assert said == f'北\\u{ord(command[0]):04x}{command[1:]}京'
    text = evaluate_sogou.escaped(json.dumps(f'北{command}', ensure_ascii=False))
    assert json.loads(text) == f'北{command}'


NO_TAB = 'line 2 has 0 tabs; expected id<TAB>answer'


@pytest.mark.parametrize(
    ('arguments', 'name', 'content', 'said'),
    [
        (WRITTEN, 'predictions', f'{PREDICTIONS}x\t北\n', "line 4 has the unknown id 'x'; "),
        (WRITTEN, 'predictions', '1\t北京\n2 中国\n3\t印度\n', NO_TAB),
        (WRITTEN, 'predictions', '1\t北京\n\n3\t印度\n', NO_TAB),
        (WRITTEN, 'predictions', '1\t北京\n2\t\t\n', 'line 2 has 2 tabs; expected '),
        (WRITTEN, 'answers', '1\t北京\t北京\n2\t中国\n', 'line 2 has 1 tabs; expected '),
        (WRITTEN, 'answers', None, 'no such file; '),
        (TO_DATASET, 'dataset.json', '[1]', 'record 1 of 1 is a number; '),
        (['taken', *TO_ANSWERS[1:]], 'taken', None, 'cannot be read'),
        (['predictions', 'taken', *TO_ANSWERS[1:]], 'taken', None, 'cannot be written'),
        (['predictions', 'link', *TO_ANSWERS[1:]], 'link', None, 'holds the predictions themse'),
    ],
)
def test_bad_file_is_one_line_and_nothing_is_written(files, call, arguments, name, content, said):
    """Nor over an earlier output; damage to either file stands in test_fuzzing.py."""
    (files / 'output').write_text('earlier', encoding='utf-8')
    (files / 'taken').mkdir()
    (files / 'link').symlink_to('predictions')
    if content:
        (files / name).write_text(content, encoding='utf-8')
    elif name in WRITTEN:
        (files / name).unlink()
    before = listing(files)
    status, out, [line] = call(*arguments)
    assert (status, out) == (2, '') and line.startswith(f'{name}: {said}')
    assert listing(files) == before


def plain_norm(text):
    """DESIGN's norm, on UTF-8; what bytes call white space and lower case is ASCII's."""
    half = ''.join(
        ' ' if c == '\u3000' else chr(ord(c) - 0xFEE0) if '\uff01' <= c <= '\uff5e' else c
        for c in text.decode()
    )
    return b''.join(plain_blank(half.encode().lower()).split())


def plain_blank(text):
    for mark in PUNCTUATION:
        text = text.replace(mark.encode(), b' ')
    return text


def plain_parts(text):
    return {plain_norm(part) for part in plain_blank(text).lower().split(b' ')}


def plain_f1(answer, variant):
    answer, variant = plain_norm(answer).decode(), plain_norm(variant).decode()
    common = sum(min(answer.count(letter), variant.count(letter)) for letter in set(answer))
    precision, recall = common / max(len(answer), 1), common / max(len(variant), 1)
    return 2 * precision * recall / (precision + recall) if common else 0.0


common = st.sampled_from('中国国人aAＡÉ１|、 ')
odd = st.sampled_from('＃#\u3000\u00a0\u2003\t\r\x1c。·\x7fΩé\u212a')
any_text = st.lists(common | odd, max_size=10).map(''.join) | st.text(max_size=8)


@pytest.mark.parametrize('examples', [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_score_is_what_the_rules_give_on_bytes(examples):
    """Random text: Chinese, full-width, punctuation, odd white space; half are lists, shuffled."""
    seen = collections.Counter()

    @given(any_text, any_text, any_text, st.booleans(), st.randoms(use_true_random=False))
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def compare(answer, standard, variants, shuffled, random):
        if shuffled:
            parts = standard.split(' ')
            random.shuffle(parts)
            answer = random.choice(' 、，#').join(parts)
        score = score_answer(answer, Reference(standard, (*variants.split('|'),)))
        answer, variants = answer.encode().strip(), variants.encode().split(b'|')
        right = [*variants, *map(plain_norm, variants)]
        correct = plain_norm(answer) in right or plain_parts(answer) == plain_parts(
            standard.encode()
        )
        f1 = max(plain_f1(answer, variant) for variant in right) if answer else 0.0
        assert (score.correct, score.f1) == (bool(answer) and correct, f1)
        if f1:
            assert plain_f1(answer, score.variant.encode()) == f1
            assert score.variant.encode() in variants
            assert 2 * score.precision * score.recall / (score.precision + score.recall) == f1
        else:
            assert score == Score(score.correct, 0, 0, 0, None)
        seen[score.correct] += 1
        seen['between'] += 0 < f1 < 1

    compare()
    assert min(seen[True], seen[False], seen['between']) >= examples / 15


def test_punctuation_is_the_official_list(shared):
    """One character a line; the two lines that hold a space change nothing."""
    with open(os.path.join(shared, 'sogou_evaluation', 'punctuation'), encoding='utf-8') as file:
        official = [line.removesuffix('\n') for line in file]
    assert sorted(PUNCTUATION) == sorted(set(official) - {' '})
    assert len(PUNCTUATION) == 128 and '＃' not in PUNCTUATION


def test_official_answers_against_themselves_give_exactly_1(shared, files):
    official = os.path.join(shared, 'sogou_evaluation', 'qid_answer_expand')
    with open(official, encoding='utf-8') as file:
        text = ''.join('{}\t{}\n'.format(*line.split('\t')) for line in file)
    (files / 'predictions').write_text(text, encoding='utf-8')
    expected = {'Accuracy': 1.0, 'F1': 1.0, 'Final': 1.0, 'total': 30000}
    assert result('predictions', '--answers', official) == expected


@pytest.fixture(scope='module')
def python38():
    """The path of a Python 3.8."""
    found = glob.glob(os.path.expanduser('~/.pyenv/versions/3.8*/bin/python'))
    python = next(iter(found), shutil.which('python3.8'))
    return python or pytest.skip('there is no Python 3.8 here')


def test_file_alone_scores_against_the_official_answers(files):
    """Nor does it leave anything in its folder, nor need locks: Windows has no fcntl."""
    (files / 'stand_in').mkdir()
    (files / 'stand_in' / 'fcntl.py').write_text('raise ImportError("no fcntl")')
    stand_in = {'PYTHONPATH': str(files / 'stand_in')}
    expected = result(*TO_ANSWERS)
    for options in {'before': ON_ITS_OWN}, stand_in:
        assert result(*WRITTEN, scorer=ALONE, **options) == expected
        assert (files / 'output').read_text(encoding='utf-8') == COLUMNS
        (files / 'output').unlink()
    assert 'no fcntl' in run('import fcntl', scorer='-c', **stand_in).stderr  # or it were none
    process, said = run(*TO_DATASET, scorer=ALONE), 'support: missing beside this file; '
    assert (process.returncode, process.stdout) == (2, '') and process.stderr.startswith(said)
    assert os.listdir('alone') == ['evaluate_sogou.py']


@pytest.mark.parametrize(
    ('text', 'status'),
    [(f'\ufeff{PREDICTIONS}', 0), ('4\t\n', 2), ('1\n', 2)],
)
def test_python_3_8_gives_the_same_bytes(files, python38, text, status):
    (files / 'predictions').write_text(text, encoding='utf-8')
    outputs = []
    for options in {'scorer': ALONE, 'python': python38}, {}:
        process = run(*WRITTEN, **options)
        assert process.returncode == status, process.stderr
        columns = (files / 'output').read_bytes() if status == 0 else None
        outputs.append((process.stdout, process.stderr, columns))
        (files / 'output').unlink(missing_ok=True)
    assert outputs[0] == outputs[1]


def test_rest_tells_python_3_8_which_versions_it_needs(files, python38):
    """No SyntaxError, whose line says nothing to a user."""
    for name, *arguments in (
        ['task_reading_comprehension_by_seq2seq.py', 'train'],
        ['evaluate_sogou.py', *TO_DATASET],
    ):
        process = run(*arguments, scorer=os.path.join(ROOT, name), python=python38)
        assert (process.returncode, process.stdout, process.stderr.count('\n')) == (2, '', 1)
        assert process.stderr.startswith('Python 3.10 to 3.13 is needed, this is 3.8.')
