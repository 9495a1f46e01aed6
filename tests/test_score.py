"""The official score: its rules one by one, checked by hand, then all together, on bytes."""

import collections
import glob
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

import evaluate_sogou
from evaluate_sogou import PUNCTUATION, Reference, Score, norm, score_answer

ANSWERS = '1\t北京\t北京市|北京\n2\t中国人民\t中国|中国人\r民\n3\t巴西、印度\t巴西印度\n'
PREDICTIONS = '1\t北京\n2\t 中国人\r\n3\t\n'
COLUMNS = (
    '1\t北京\t1\t1.000000\t1.000000\t1.000000\t北京\n'
    '2\t中国人\t0\t0.857143\t1.000000\t0.750000\t中国人 民\n'
    '3\t\t0\t0.000000\t0.000000\t0.000000\tNone\n'
)
SCORE = (
    '{"Accuracy": 0.3333333333333333, "F1": 0.6190476190476191, '
    '"Final": 0.47619047619047616, "total": 3}\n'
)
ALL_RIGHT = '{"Accuracy": 1.0, "F1": 1.0, "Final": 1.0, "total": 1}\n'
SCORER = os.path.join(ROOT, 'evaluate_sogou.py')
GIVEN = '--answers', 'answers'
TO_ANSWERS, WRITTEN = ('predictions', *GIVEN), ('predictions', 'output', *GIVEN)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The folder of work, with what is to be scored: one right, one nearly, one empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'answers').write_text(ANSWERS, encoding='utf-8')
    (tmp_path / 'predictions').write_text(PREDICTIONS, encoding='utf-8')
    (tmp_path / 'part').write_text('1\t北京\n', encoding='utf-8')
    (tmp_path / 'others').write_text('北\t北京\n', encoding='utf-8')
    return tmp_path


@pytest.fixture(params=['this', '3.8'])
def python(request):
    """The path of this Python, and of the oldest that can score."""
    if request.param == 'this':
        return sys.executable
    found = glob.glob(os.path.expanduser('~/.pyenv/versions/3.8*/bin/python'))
    path = next(iter(found), shutil.which('python3.8'))
    return path or pytest.skip('there is no Python 3.8 here')


def run(*arguments, scorer=SCORER, before=(sys.executable,), **environment):
    """Run evaluate_sogou.py, or a copy, as a process, by Python or another command."""
    return subprocess.run(
        [*before, *map(str, [scorer, *arguments])],
        env={**os.environ, **environment}, capture_output=True, encoding='utf-8', timeout=60,
    )  # fmt: skip


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
    """A question answered twice counts twice, and this is said; no file is written unasked."""
    with open('predictions', 'a', encoding='utf-8') as file:
        file.write('3\t印度，巴西\n')
    before, (accuracy, f1) = listing(files), (2 / 4, (1 + 6 / 7 + 0 + 1) / 4)
    process = run(*TO_ANSWERS)
    means = [('Accuracy', accuracy), ('F1', f1), ('Final', (accuracy + f1) / 2), ('total', 4)]
    assert [*json.loads(process.stdout).items()] == [(name, approx(mean)) for name, mean in means]
    several = "predictions: 1 ids stand in several lines, such as '3'; each line counts\n"
    assert (process.stderr, listing(files)) == (several + ALL, before)


def test_seven_columns(files):
    """No CR breaks a line. A link stays one, a pipe and a device as /dev/null too."""
    (files / 'link').symlink_to('output')
    (files / '.unfinished.output').symlink_to('predictions')  # somebody else's
    os.mkfifo('pipe')
    reader = os.open('pipe', os.O_RDONLY | os.O_NONBLOCK)
    for output in 'output', 'link':
        (files / 'output').write_text('earlier', encoding='utf-8')
        assert run('predictions', output, *GIVEN).stdout == SCORE
        assert (files / 'output').read_text(encoding='utf-8') == COLUMNS
    assert run('predictions', 'pipe', *GIVEN).stdout == SCORE
    assert os.read(reader, 10000).decode() == COLUMNS
    os.close(reader)
    assert (files / 'link').is_symlink() and (files / 'pipe').is_fifo()


def test_only_a_line_feed_ends_a_line(files):
    """str.splitlines() would also split at U+2028, open() at CR; the last one may be missing.

    The byte order mark that Windows editors put before a file is no part of the first id.
    """
    text = '\ufeff1\t北\u2028京\x85市\r\n1\t北\r京\r\n2\t中国人民\n3\t印度，巴西'
    (files / 'predictions').write_bytes(text.encode())
    measured = json.loads(run(*TO_ANSWERS).stdout)
    assert (measured['Accuracy'], measured['total']) == (3 / 4, 4)


def test_official_answers_are_read_as_they_stand(files):
    """A variant is split off at | only, and the standard answer is no variant of itself."""
    (files / 'answers').write_bytes('\ufeffa#1\tＡ、B|\t《Ａ》|b c|\u00a0\r\n'.encode())
    reference = Reference('Ａ、B|', ('《Ａ》', 'b c', '\u00a0'))
    assert evaluate_sogou.load_official_answers('answers') == {'a#1': reference}


# -------------------------------------------------------------------------------------- the process


ALL = 'predictions: 3 of 3 questions\n'
TO_NOBODY = 'export PYTHONUNBUFFERED=1; (sleep 0.1; RUN) 2>&1 >score | true'
OTHERS, TO_STDOUT, HELP = ['others', *GIVEN], ['predictions', '/dev/stdout', *GIVEN], ['--help']
UNKNOWN = "others: line 1 has the unknown id '\\u5317'; give the answers to these questions"
FULL, BROKEN = (f'standard output: {why}\n' for why in ('No space left on device', 'Broken pipe'))
TOO_LARGE = 'cannot be written (File too large); choose another'


@pytest.mark.parametrize(
    ('shell', 'arguments', 'status', 'out', 'err'),
    [
        # always said: the official answers are of more questions than anyone validates on
        ('RUN', ['part', *GIVEN], 0, ALL_RIGHT, 'part: 1 of 3 questions\n'),
        # what is said to a stream that is closed goes to no other
        ('RUN >&-', WRITTEN, 0, '', ALL),
        ('RUN 2>&-', WRITTEN, 0, SCORE, ''),
        ('RUN <&-', WRITTEN, 0, SCORE, ALL),
        ('RUN >&- 2>&- <&-', WRITTEN, 0, '', ''),
        ('RUN >&-', OTHERS, 2, '', f'{UNKNOWN}\n'),
        ('RUN 2>&-', OTHERS, 2, '', ''),
        ('RUN >&- 2>&- <&-', OTHERS, 2, '', ''),
        # nobody takes the score, or what --help says, or the messages
        ('(sleep 0.1; RUN) | true', TO_ANSWERS, 1, '', ALL + BROKEN),
        ('(sleep 0.1; RUN) | true', HELP, 1, '', BROKEN),
        *[('RUN >/dev/full', TO_ANSWERS, 1, '', ALL + FULL),
          ('RUN >/dev/full', HELP, 1, '', FULL)] * os.path.exists('/dev/full'),
        (f'{TO_NOBODY}; cat score', ['part', *GIVEN], 0, ALL_RIGHT, ''),
        ('(ulimit -f 0; "$0" "$@"); echo $? >status', WRITTEN, 2, '', f'output: {TOO_LARGE}\n'),
        # the columns may go where the score goes
        ('RUN | cat', TO_STDOUT, 0, COLUMNS + SCORE, ALL),
        ('RUN >>score; cat score', TO_STDOUT, 0, COLUMNS + SCORE, ALL),
    ],
)  # fmt: skip
def test_streams_may_be_closed_broken_or_full(files, python, shell, arguments, status, out, err):
    """Nor is there a traceback where an id is not of the encoding, nor half of OUTPUT."""
    (files / 'output').write_text('earlier', encoding='utf-8')
    command = shell.replace('RUN', '("$0" "$@"; echo $? >status)')
    ascii_only = {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}
    before, environment = ['sh', '-c', command, python], {'PYTHONUNBUFFERED': '', **ascii_only}
    done = run(*arguments, before=before, **environment)
    assert (done.stdout, done.stderr) == (out, err)
    assert (files / 'status').read_text() == f'{status}\n'
    scored = COLUMNS if 'output' in arguments and status == 0 else 'earlier'
    assert (files / 'output').read_text(encoding='utf-8') == scored
    assert not (files / '.unfinished.output').exists()


def test_ctrl_c_ends_it_in_one_line(files):
    os.mkfifo('pipe')
    command = sys.executable, SCORER, 'pipe', *GIVEN
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding='utf-8')
    with open('pipe', 'w', encoding='utf-8'):  # as soon as it has begun to read
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == 'interrupted\n'
    assert process.returncode == 130


@pytest.mark.parametrize(
    ('arguments', 'name', 'content', 'said'),
    [
        (WRITTEN, 'predictions', f'{PREDICTIONS}x\t北\n', "line 4 has the unknown id 'x'; "),
        (WRITTEN, 'predictions', '1\t北京\n\n3\n', 'line 2 has 0 tabs; expected id<TAB>answer'),
        (WRITTEN, 'predictions', '1\t北京\n2\t\t\n', 'line 2 has 2 tabs; expected '),
        (WRITTEN, 'answers', '1\t北京\t北京\n2\t中国\n', 'line 2 has 1 tabs; expected '),
        (WRITTEN, 'answers', '', 'line 1 has 0 tabs; expected '),
        (WRITTEN, 'answers', None, 'cannot be read (No such file or directory); check the path'),
        (['a\n\x1b[2J\x9b', *GIVEN], r"'a\n\x1b[2J\x9b", None, 'cannot be read'),
        (['北\udcff', *GIVEN], r"'北\udcff", None, 'cannot be read'),
        (['taken', *GIVEN], 'taken', None, 'cannot be read'),
        (['predictions', 'taken', *GIVEN], 'taken', None, 'cannot be written'),
        (['predictions', 'link', *GIVEN], 'link', None, 'holds what is to be read'),
        (['predictions', 'answers', *GIVEN], 'answers', ANSWERS, 'holds what is to be read'),
        (['predictions', '--dataset', 'a.json'], '--dataset', None, 'give --answers; data/convert'),
        (['predictions', '--dataset='], '--dataset', None, 'give --answers; data/convert.py'),
        (['predictions', '--answer', 'answers'], 'unrecognized arguments', None, '--answer answe'),
    ],
)
def test_bad_file_is_one_line_and_nothing_is_written(files, python, arguments, name, content, said):
    """Nor over an earlier output; damage to either file stands in test_fuzzing.py."""
    (files / 'output').write_text('earlier', encoding='utf-8')
    (files / 'taken').mkdir()
    (files / 'link').symlink_to('predictions')
    if content is not None:
        (files / name).write_text(content, encoding='utf-8')
    elif name in WRITTEN:
        (files / name).unlink()
    before = listing(files)
    process = run(*arguments, before=[python])
    assert (process.returncode, process.stdout, process.stderr.count('\n')) == (2, '', 1)
    assert process.stderr.startswith(f'{name}: {said}')
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
    score = run('predictions', '--answers', official).stdout
    assert score == ALL_RIGHT.replace('"total": 1', '"total": 30000')


def test_file_alone_scores_against_the_official_answers(files, python):
    """With Python's own library; nor does it leave anything in its folder."""
    (files / 'alone').mkdir()
    alone = shutil.copy(SCORER, 'alone')
    assert run(*WRITTEN, scorer=alone, before=[python, '-I', '-S']).stdout == SCORE
    official = files / 'alone' / 'data' / 'qid_answer_expand'
    said = f'{official}: cannot be read (No such file or directory); give --answers\n'
    assert run('predictions', scorer=alone, before=[python]).stderr == said
    assert os.listdir('alone') == ['evaluate_sogou.py']


@pytest.mark.parametrize('python', ['3.8'], indirect=True)
def test_script_tells_python_3_8_which_versions_it_needs(python):
    """No SyntaxError, whose line says nothing to a user."""
    scorer = os.path.join(ROOT, 'task_reading_comprehension_by_seq2seq.py')
    process = run('train', scorer=scorer, before=[python])
    assert (process.returncode, process.stdout, process.stderr.count('\n')) == (2, '', 1)
    assert process.stderr.startswith('Python 3.10 to 3.13 is needed, this is 3.8.')
