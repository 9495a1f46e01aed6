"""The official score: its rules one by one, checked by hand, then all together, on bytes."""

import bz2
import collections
import glob
import gzip
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, record_of, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate_sogou
from evaluate_sogou import (
    PUNCTUATION,
    Reference,
    Tally,
    escaped,
    load_official_answers,
    log,
    norm,
    score_answer,
)

ANSWERS = '1\t北京\t北京市|北京\n2\t中国人民\t中国|中国人民\n3\t巴西、印度\t巴西印度\n'
PREDICTIONS = '1\t北京\n2\t中国人\n3\t\n'
SCORER = os.path.join(ROOT, 'evaluate_sogou.py')


@pytest.fixture
def files(tmp_path):
    """A folder of answers to three questions and predictions: one right, one nearly, one empty."""
    (tmp_path / 'answers').write_text(ANSWERS, encoding='utf-8')
    (tmp_path / 'predictions').write_text(PREDICTIONS, encoding='utf-8')
    return tmp_path


def run(*arguments, scorer=SCORER, python=sys.executable, before=(), **environment):
    """Run evaluate_sogou.py, or a copy, as a process, perhaps by a command."""
    return subprocess.run(
        [*(before or [python]), *map(str, [scorer, *arguments])],
        env={**os.environ, **environment}, capture_output=True, encoding='utf-8', timeout=60,
    )  # fmt: skip


def result(*arguments, **options):
    """Run evaluate_sogou.py and return the JSON of its last line."""
    process = run(*arguments, **options)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def failure(*arguments, **options):
    """Run evaluate_sogou.py, which must fail as promised; return its one line."""
    process = run(*arguments, **options)
    assert (process.returncode, process.stdout) == (2, '')
    assert 'Traceback' not in process.stderr and process.stderr.endswith('\n')
    [line] = process.stderr.splitlines()
    return line


def listing(folder):
    """All that lies under a folder, with the contents of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


# --------------------------------------------------------------------------------------- one answer


def test_half_width():
    """U+FF00 and U+FF5F stand just outside the range; ｱ is a half-width letter all the same."""
    assert norm('ＡＺａｚ０９') == 'azaz09'
    assert norm('\uff01\uff5e\u3000') == ''
    assert norm('\uff00\uff5fｱ') == '\uff00\uff5fｱ'


def test_half_width_comes_before_punctuation():
    """＃ and ＋ are not on the official list, # and + are."""
    assert '＃' not in PUNCTUATION and norm('ｃ＃＋＋') == 'c'


def test_punctuation_counts_as_nothing():
    """Neither the hyphen of U+2013 nor ⑴ is on the official list."""
    assert norm('《北京》·“上海”…\x7f￠') == '北京上海'
    assert norm('北–京⑴') == '北–京⑴'


def test_only_ascii_has_lower_case():
    """K is the Kelvin sign, which str.lower() makes a plain k."""
    assert norm('AbÉΩÇİ\u212a') == 'abÉΩÇİ\u212a'


def test_only_ascii_is_white_space():
    """str.split() would also take U+001C, U+0085, U+00A0, U+2003 and U+2028."""
    assert norm(' 北\t\n\r\v\f京 ') == '北京'
    assert norm('北\x1c\x85\u00a0\u2003\u2028京') == '北\x1c\x85\u00a0\u2003\u2028京'


def test_answer_is_stripped_of_ascii_white_space():
    """A space left at the end would be one more, empty, part of a list."""
    assert score_answer(' \t印度 巴西\r\n', Reference('巴西 印度', ('巴西印度',))).correct
    assert not score_answer('印度 巴西\u00a0', Reference('巴西 印度', ('巴西印度',))).correct


def test_empty_answer_is_wrong():
    """Even where a variant is nothing but punctuation."""
    reference = Reference('。', ('。', ''))
    for empty in '', ' \t\r\n\v\f':
        assert score_answer(empty, reference) == (False, 0, 0, 0, None)
    assert score_answer('！', reference) == (True, 0, 0, 0, None)


def test_correct_by_a_variant():
    """Any of them will do, a part of one will not."""
    reference = Reference('罗温艾金森', ('罗文艾金森', 'rowanatkinson'))
    assert score_answer('罗温艾金森', reference).correct
    assert score_answer('Rowan ATKINSON', reference).correct
    assert not score_answer('rowan', reference).correct


def test_correct_by_the_norm_of_a_variant():
    reference = Reference('?', ('《罗温·艾金森》 Rowan', 'Ｋ２'))
    assert score_answer('罗温艾金森rowan', reference).correct
    assert score_answer('k2', reference).correct


def test_correct_as_a_list_in_any_order():
    """Whatever punctuation joins the parts, and however often one is named."""
    reference = Reference('巴西、印度 Ａ', ('巴西印度a',))
    for answer in '印度 a 巴西', 'A,印度|巴西', '印度、Ａ、巴西、印度', '巴西\u3000印度。a':
        assert score_answer(answer, reference).correct, answer


def test_list_is_split_at_single_spaces():
    """Two separators leave an empty part; a tab splits nothing, nor ＃, no punctuation as yet."""
    reference = Reference('巴西 印度', ('巴西印度',))
    for between in '  ', '，，', '\t', '＃', '\u00a0':
        assert not score_answer(f'印度{between}巴西', reference).correct, between
    for answer in '印度', '印度 巴西 中国':
        assert not score_answer(answer, reference).correct, answer
    assert score_answer('印度#巴西', reference).correct
    assert score_answer('印度  巴西', Reference('巴西、 印度', ('巴西',))).correct


def test_list_must_be_that_of_the_standard_answer():
    """A list is not looked for among the variants."""
    assert not score_answer('印度 巴西', Reference('中国', ('巴西 印度',))).correct


def test_nothing_is_right_without_a_variant():
    """As for a question that no passage of a dataset answers."""
    assert score_answer('中国', Reference('中国', ())) == (False, 0, 0, 0, None)
    assert score_answer('。', Reference('', ())) == (False, 0, 0, 0, None)


def test_f1_counts_characters_with_multiplicity():
    """红黑 twice over: as sets of characters both would be the same.

    Of a character that both have several times all that both have are common.
    """
    score = score_answer('红红黑', Reference('红黑黑黑', ('红黑黑黑',)))
    assert score == (False, pytest.approx(4 / 7), 2 / 3, 2 / 4, '红黑黑黑')
    score = score_answer('红红黑', Reference('红红黑黑', ('红红黑黑',)))
    assert score == (False, pytest.approx(6 / 7), 1, 3 / 4, '红红黑黑')


def test_f1_is_the_best_over_the_variants():
    """中国 gives 0.8, 中国人民 6 / 7, whichever comes first; so do its precision and recall."""
    best = (False, pytest.approx(6 / 7), 1, 3 / 4, '中国人民')
    for variants in ('中国', '中国人民', '美'), ('中国人民', '中国', '美'):
        assert score_answer('中国人', Reference('?', variants)) == best


def test_f1_compares_norms():
    assert score_answer('《Ａ·B》', Reference('?', ('a b',))) == (True, 1, 1, 1, 'a b')


def test_no_common_character():
    assert score_answer('上海', Reference('北京', ('北京', '北京市'))) == (False, 0, 0, 0, None)


# ---------------------------------------------------------------------------------------- the files


def test_means_over_the_lines_and_final(files):
    """A question answered twice counts twice."""
    with open(files / 'predictions', 'a', encoding='utf-8') as file:
        file.write('3\t印度，巴西\n')
    accuracy, f1 = 2 / 4, (1 + 6 / 7 + 0 + 1) / 4
    expected = {
        'Accuracy': accuracy,
        'F1': pytest.approx(f1),
        'Final': pytest.approx((accuracy + f1) / 2),
        'total': 4,
    }
    assert result(files / 'predictions', '--answers', files / 'answers') == expected


def test_seven_columns(files):
    result(files / 'predictions', files / 'output', '--answers', files / 'answers')
    assert (files / 'output').read_bytes().decode() == (
        '1\t北京\t1\t1.000000\t1.000000\t1.000000\t北京\n'
        '2\t中国人\t0\t0.857143\t1.000000\t0.750000\t中国人民\n'
        '3\t\t0\t0.000000\t0.000000\t0.000000\tNone\n'
    )


def test_nothing_is_written_unless_asked_for(files, monkeypatch):
    monkeypatch.chdir(files)
    before = listing(files)
    result(files / 'predictions', '--answers', files / 'answers')
    assert listing(files) == before


def test_last_line_of_standard_output_is_the_json(files):
    process = run(files / 'predictions', '--answers', files / 'answers')
    assert process.stdout.endswith('}\n')
    assert list(json.loads(process.stdout.splitlines()[-1])) == ['Accuracy', 'F1', 'Final', 'total']


def test_only_a_line_feed_ends_a_line(files):
    """str.splitlines() would also split at U+2028, open() at CR; the last one may be missing."""
    text = '1\t北\u2028京\x85市\r\n1\t北\r京\r\n2\t中国人民\n3\t印度，巴西'
    (files / 'predictions').write_bytes(text.encode())
    measured = result(files / 'predictions', '--answers', files / 'answers')
    assert (measured['Accuracy'], measured['total']) == (3 / 4, 4)


def test_official_answers_are_read_as_they_stand(files):
    """A variant is split off at | only, and the standard answer is no variant of itself."""
    (files / 'answers').write_bytes('a#1\tＡ、B|\t《Ａ》|b c|\u00a0\r\n'.encode())
    reference = Reference('Ａ、B|', ('《Ａ》', 'b c', '\u00a0'))
    assert load_official_answers(files / 'answers') == {'a#1': reference}


def test_dataset_instead_of_official_answers(files):
    """Each of the passages' answers is a variant, the most frequent one the standard answer."""
    passages = [('', '北京'), ('', ''), ('', '上海 天津'), ('', '上海 天津')]
    records = [record_of(*passages, question_id='a'), record_of(('', ''), question_id='b')]
    write_json(files / 'dataset.json', records)
    predictions = 'a\t北京\na\t天津 上海\na\t中国\nb\t北京\n'
    (files / 'predictions').write_text(predictions, encoding='utf-8')
    expected = {'Accuracy': 0.5, 'F1': 0.5, 'Final': 0.5, 'total': 4}
    process = run(files / 'predictions', '--dataset', files / 'dataset.json')
    assert (process.returncode, json.loads(process.stdout)) == (0, expected)


@pytest.mark.parametrize(
    ('lines', 'said'),
    [
        ('123', ''),
        ('12', ': 2 of 3 questions'),
        ('11', ": warning: ids that stand in several lines: 1, such as '1'; each line counts"),
        ('3133', ": warning: ids that stand in several lines: 1, such as '3'; each line counts"),
    ],
)
@pytest.mark.parametrize('dataset', [False, True])
def test_part_is_scored_with_a_word_about_the_rest(files, lines, said, dataset):
    """The official answers are of more questions than anyone validates on; a dataset's are not."""
    (files / 'predictions').write_text(''.join(f'{name}\t北京\n' for name in lines), 'utf-8')
    source, part = ['--answers', files / 'answers'], f'{len({*lines})} of 3 questions'
    if dataset:
        data = [record_of(('', '北京'), question_id=name) for name in [*'123', None]]
        write_json(files / 'dataset.json', data)
        source = ['--dataset', files / 'dataset.json']
        part = f'warning: answers to {part} of {files / "dataset.json"}; the others do not count'
    process = run(files / 'predictions', *source)
    assert json.loads(process.stdout)['total'] == len(lines)
    expected = [f'{files / "predictions"}{said}'] if 'warning' in said else []
    if {*lines} < {*'123'}:
        expected.append(f'{files / "predictions"}: {part}')
    lines = process.stderr.splitlines()
    assert [line for line in lines if not line.startswith(f'{files / "dataset.json"}')] == expected


def test_order_of_the_lines_changes_no_score():
    """But for rounding; in the file each answer keeps its line."""
    rng = random.Random(0)
    references = {f'{i}': Reference('北京', ('北京', '北京市', '京')) for i in range(200)}
    answers = [(name, ''.join(rng.choices('北京市海', k=rng.randrange(5)))) for name in references]
    results = []
    for _ in range(3):
        rng.shuffle(answers)
        tally = Tally()
        for name, answer in answers:
            tally.add(answer, references[name])
        results.append(tally.result())
    assert results[1:] == [pytest.approx(results[0], rel=1e-12)] * 2
    assert 0 < results[0]['Accuracy'] < results[0]['F1'] < 1


def test_output_is_not_written_over_the_predictions(files):
    before = listing(files)
    (files / 'link').symlink_to('predictions')
    line = failure(files / 'predictions', files / 'link', '--answers', files / 'answers')
    assert 'holds the predictions themselves' in line
    (files / 'link').unlink()
    assert listing(files) == before


def test_byte_order_mark_is_no_part_of_the_first_id(files):
    """Windows editors put one before every file that they save as UTF-8."""
    expected = result(files / 'predictions', '--answers', files / 'answers')
    for path in files / 'predictions', files / 'answers':  # first in one of them alone
        path.write_text('\ufeff' + path.read_text(encoding='utf-8'), encoding='utf-8')
        assert result(files / 'predictions', '--answers', files / 'answers') == expected


def test_output_goes_to_what_a_link_stands_for(files):
    (files / 'output').write_text('earlier', encoding='utf-8')
    (files / 'link').symlink_to('output')
    result(files / 'predictions', files / 'link', '--answers', files / 'answers')
    assert (files / 'link').is_symlink()
    assert len((files / 'output').read_text(encoding='utf-8').splitlines()) == 3


def test_output_may_be_a_pipe(files):
    """Or a device, /dev/null say: it must not be replaced by a file."""
    os.mkfifo(files / 'pipe')
    reader = os.open(files / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    result(files / 'predictions', files / 'pipe', '--answers', files / 'answers')
    assert len(os.read(reader, 10000).decode().splitlines()) == 3
    os.close(reader)
    assert (files / 'pipe').is_fifo()


@pytest.mark.skipif(
    not os.path.exists('/dev/full'), reason='only Linux has a device that is always full'
)
def test_standard_output_without_room(files):
    command = [sys.executable, SCORER, files / 'predictions', '--answers', files / 'answers']
    with open('/dev/full', 'w', encoding='utf-8') as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding='utf-8')
    assert (process.returncode, process.stderr) == (1, 'standard output: No space left on device\n')


@pytest.mark.skipif(os.name != 'posix', reason='needs a shell')
@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&-', '>&- 2>&- <&-'])
def test_streams_may_be_closed(files, closed):
    """What is said to one goes to no other."""
    arguments = files / 'predictions', files / 'output', '--answers', files / 'answers'
    before = ['sh', '-c', f'exec "$0" "$@" {closed}', sys.executable]
    done = run(*arguments, before=before)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == ('' if '>&-' in closed.split() else run(*arguments).stdout)
    (files / 'predictions').unlink()
    done = run(*arguments, before=before)
    said = (
        ''
        if '2>&-' in closed.split()
        else f'{files / "predictions"}: no such file; check the path\n'
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, '', said)


@pytest.mark.skipif(os.name != 'posix', reason='needs a shell')
@pytest.mark.parametrize('command', ['score', 'help'])
def test_reader_that_goes_away_ends_it_in_one_line(files, command):
    arguments = [files / 'predictions', '--answers', files / 'answers', '--help']
    arguments = arguments[:-1] if command == 'score' else arguments
    before = ['sh', '-c', '(sleep 0.1; "$0" "$@"; echo $? >&2) | true', sys.executable]
    done = run(*arguments, before=before, PYTHONUNBUFFERED='')
    assert done.stderr == 'standard output: Broken pipe\n1\n'


def test_folder_of_the_file_need_not_be_known_to_python(files):
    """As with PYTHONSAFEPATH; a dataset needs more of it."""
    write_json(files / 'dataset.json', [record_of(('北京', '北京'), question_id='1')])
    (files / 'predictions').write_text('1\t北京\n', encoding='utf-8')
    arguments = files / 'predictions', '--dataset', files / 'dataset.json'
    done = run(*arguments, before=[sys.executable, '-I'])
    assert (done.returncode, done.stderr) == (0, '') and '"Final": 1.0' in done.stdout


# ---------------------------------------------------------------------------------------- bad input


def test_unknown_id(files):
    """The line is named, and an earlier output file stays as it was."""
    (files / 'predictions').write_text(f'{PREDICTIONS}x9\t北京\n', encoding='utf-8')
    (files / 'output').write_text('earlier', encoding='utf-8')
    before = listing(files)
    line = failure(files / 'predictions', files / 'output', '--answers', files / 'answers')
    assert line.startswith(f'{files / "predictions"}: line 4 ') and "'x9'" in line
    assert listing(files) == before


@pytest.mark.parametrize('wrong', ['2 中国', '2\t中国\t', '2\t\t', ''])
def test_line_without_exactly_one_tab(files, wrong):
    (files / 'predictions').write_text(f'1\t北京\n{wrong}\n3\t印度\n', encoding='utf-8')
    line = failure(files / 'predictions', '--answers', files / 'answers')
    assert line.startswith(f'{files / "predictions"}: line 2 ')
    assert f'{wrong.count(chr(9))} tabs' in line


def test_line_of_the_answers_without_exactly_two_tabs(files):
    (files / 'answers').write_text('1\t北京\t北京\n2\t中国\n', encoding='utf-8')
    line = failure(files / 'predictions', '--answers', files / 'answers')
    assert line.startswith(f'{files / "answers"}: line 2 ')


@pytest.mark.parametrize('which', ['predictions', 'answers'])
@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        (None, 'no such file'),
        (b'', 'empty'),
        ('1\t北京\t'.encode() + b'\xff\xfe\n', 'not UTF-8 at byte 9'),
    ],
)
def test_file_missing_or_empty_or_not_utf8(files, which, content, complaint):
    (files / which).unlink()
    if content is not None:
        (files / which).write_bytes(content)
    line = failure(files / 'predictions', '--answers', files / 'answers')
    assert line.startswith(f'{files / which}: {complaint}')


def zipped(content):
    """A zip file that holds some bytes as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        file.writestr('x', content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('pack', 'program'),
    [
        (gzip.compress, 'gunzip'),
        (bz2.compress, 'bunzip2'),
        (lzma.compress, 'unxz'),
        (zipped, 'unzip'),
        (lambda content: b'(\xb5/\xfd\x20' + content, 'unzstd'),
    ],
)
def test_compressed_file_is_to_be_unpacked(files, pack, program):
    """Whatever its name; the first bytes tell."""
    for name in 'answers', 'predictions':
        content = (files / name).read_bytes()
        (files / name).write_bytes(pack(content))
        line = failure(files / 'predictions', '--answers', files / 'answers')
        assert line == f'{files / name}: compressed; unpack it with {program}'
        (files / name).write_bytes(content)


def test_folder_in_place_of_a_file(files):
    line = failure(files, '--answers', files / 'answers')
    assert line.startswith(f'{files}: cannot be read')


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        ('[{"id": "1",\n "question"}]', 'not JSON at line 2, column 12'),
        ('', 'not JSON at line 1, column 1'),
        ('{}', 'expected a list of records'),
        ('[1]', 'record 1 of 1 is a number'),
        ('[' * 100_000, 'nested too deeply'),
    ],
)
def test_bad_dataset(files, content, complaint):
    (files / 'dataset.json').write_text(content, encoding='utf-8')
    line = failure(files / 'predictions', '--dataset', files / 'dataset.json')
    assert line.startswith(f'{files / "dataset.json"}: {complaint}')


@pytest.mark.parametrize('place', ['no/such/folder/output', 'taken'])
def test_output_that_cannot_be_written_leaves_nothing_behind(files, place):
    (files / 'taken').mkdir()
    before = listing(files)
    line = failure(files / 'predictions', files / place, '--answers', files / 'answers')
    assert line.startswith(f'{files / place}: cannot be written')
    assert listing(files) == before


# ------------------------------------------------------------------------------ the rules once more


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
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(variant)
    return 2 * precision * recall / (precision + recall)


def plain_score(answer, standard, variants):
    """Return (correct, F1) as the text of DESIGN says, of bytes."""
    answer = answer.strip()
    if not answer:
        return False, 0.0
    variants = [*variants, *[plain_norm(variant) for variant in variants]]
    correct = plain_norm(answer) in variants or plain_parts(answer) == plain_parts(standard)
    return correct, max(plain_f1(answer, variant) for variant in variants)


common = st.sampled_from('中国国人aAＡÉ１|、 ')
odd = st.sampled_from('＃#\u3000\u00a0\u2003\t\r\x1c。·\x7fΩé\u212a')
any_text = st.lists(common | odd, max_size=10).map(''.join) | st.text(max_size=8)


@pytest.mark.parametrize('examples', [400, pytest.param(1500, marks=pytest.mark.slow)])
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
        variants = variants.split('|')
        score = score_answer(answer, Reference(standard, tuple(variants)))
        in_bytes = [variant.encode() for variant in variants]
        correct, f1 = plain_score(answer.encode(), standard.encode(), in_bytes)
        assert (score.correct, score.f1) == (correct, f1)
        if f1:
            assert plain_f1(answer.encode(), score.variant.encode()) == f1
            assert score.variant in variants
            assert 2 * score.precision * score.recall / (score.precision + score.recall) == f1
        else:
            assert score[1:] == (0, 0, 0, None)
        seen[correct] += 1
        seen['between'] += 0 < f1 < 1

    compare()
    assert min(seen[True], seen[False], seen['between']) >= examples / 15


# ------------------------------------------------------------------------------- the official files


def test_punctuation_is_the_official_list(shared):
    """One character a line; the two lines that hold a space change nothing."""
    with open(os.path.join(shared, 'sogou_evaluation', 'punctuation'), encoding='utf-8') as file:
        official = [line.removesuffix('\n') for line in file]
    assert sorted(PUNCTUATION) == sorted(set(official) - {' '})
    assert len(PUNCTUATION) == 128


def test_official_answers_against_themselves_give_exactly_1(shared, tmp_path):
    official = os.path.join(shared, 'sogou_evaluation', 'qid_answer_expand')
    with open(official, encoding='utf-8') as file:
        lines = [line.split('\t') for line in file]
    text = ''.join(f'{line[0]}\t{line[1]}\n' for line in lines)
    (tmp_path / 'predictions').write_text(text, encoding='utf-8')
    expected = {'Accuracy': 1.0, 'F1': 1.0, 'Final': 1.0, 'total': 30000}
    assert result(tmp_path / 'predictions', '--answers', official) == expected


# ----------------------------------------------------------------------------------- the file alone


@pytest.fixture
def alone(tmp_path):
    """The file copied into a folder where there is nothing else."""
    (tmp_path / 'alone').mkdir()
    return shutil.copy(SCORER, tmp_path / 'alone')


@pytest.fixture
def python38():
    """The path of a Python 3.8."""
    found = glob.glob(os.path.expanduser('~/.pyenv/versions/3.8*/bin/python'))
    for python in [*sorted(found), *filter(None, [shutil.which('python3.8')])]:
        version = subprocess.run([python, '--version'], capture_output=True, encoding='utf-8')
        if version.stdout.startswith('Python 3.8.'):
            return python
    pytest.skip('there is no Python 3.8 here')


def test_file_alone_scores_against_the_official_answers(files, alone):
    """Nor does it leave anything in its folder."""
    measured = result(files / 'predictions', '--answers', files / 'answers', scorer=alone)
    assert measured == result(files / 'predictions', '--answers', files / 'answers')
    assert os.listdir(os.path.dirname(alone)) == ['evaluate_sogou.py']


def test_file_alone_needs_no_locks(files, alone):
    """Windows has no fcntl."""
    (files / 'stand_in').mkdir()
    (files / 'stand_in' / 'fcntl.py').write_text('raise ImportError("no fcntl")')
    arguments = files / 'predictions', files / 'output', '--answers', files / 'answers'
    stand_in = {'PYTHONPATH': str(files / 'stand_in')}
    assert result(*arguments, scorer=alone, **stand_in) == result(*arguments)
    assert len((files / 'output').read_text(encoding='utf-8').splitlines()) == 3
    importing = [sys.executable, '-c', 'import fcntl']
    process = subprocess.run(importing, env={**os.environ, **stand_in}, stderr=subprocess.PIPE)
    assert b'no fcntl' in process.stderr  # or it would be no stand-in


def test_file_alone_says_what_a_dataset_needs(files, alone):
    write_json(files / 'dataset.json', [record_of(('', '北京'), question_id='1')])
    line = failure(files / 'predictions', '--dataset', files / 'dataset.json', scorer=alone)
    assert 'support' in line and '--dataset' in line


def test_only_the_standard_library_is_imported(alone):
    """So the score starts at once, whatever else is installed."""
    code = """
import sys
before = set(sys.modules)
import evaluate_sogou
imported = {name.partition('.')[0] for name in set(sys.modules) - before}
print(*imported - sys.stdlib_module_names)
"""
    for folder in ROOT, os.path.dirname(alone):
        process = subprocess.run(
            [sys.executable, '-c', code], cwd=folder, capture_output=True, encoding='utf-8'
        )
        assert process.stdout.split() == [evaluate_sogou.__name__], process.stderr


@pytest.mark.parametrize(
    ('text', 'status'),
    [
        (PREDICTIONS, 0),
        (f'\ufeff{PREDICTIONS}', 0),
        (f'{PREDICTIONS}4\t\n', 2),
        ('1\n', 2),
        ('', 2),
    ],
)
def test_python_3_8_gives_the_same_bytes(files, alone, python38, text, status):
    """Whatever it has to say."""
    (files / 'predictions').write_text(text, encoding='utf-8')
    arguments = files / 'predictions', files / 'output', '--answers', files / 'answers'
    outputs = []
    for options in {'scorer': alone, 'python': python38}, {}:
        process = run(*arguments, **options)
        assert process.returncode == status, process.stderr
        columns = (files / 'output').read_bytes() if status == 0 else None
        outputs.append((process.stdout, process.stderr, columns))
        assert (files / 'output').exists() == (status == 0)
        (files / 'output').unlink(missing_ok=True)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    'arguments',
    [
        ['task_reading_comprehension_by_seq2seq.py', 'train'],
        ['evaluate_sogou.py', 'predictions', '--dataset', 'dataset.json'],
    ],
)
def test_rest_tells_python_3_8_which_versions_it_needs(python38, arguments):
    """No SyntaxError, whose line says nothing to a user."""
    name, *arguments = arguments
    line = failure(*arguments, scorer=os.path.join(ROOT, name), python=python38)
    assert line.startswith('Python 3.10 to 3.13 is needed, this is 3.8.')


@pytest.mark.parametrize('command', ['\x1b[2J', '\x9b2J', '\r', '\n', '\u202e', '\x07'])
def test_what_is_said_gives_no_commands_to_a_terminal(capsys, command):
    """Samples, names of files and what they hold come from others; a line stays one line."""
    log(f'北{command}京')
    [said] = capsys.readouterr().err.splitlines()
    assert said == f'北\\u{ord(command[0]):04x}{command[1:]}京'
    assert json.loads(escaped(json.dumps(f'北{command}', ensure_ascii=False))) == f'北{command}'
