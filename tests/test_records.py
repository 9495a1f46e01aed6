"""support/records.py: datasets found in the wild, what is said of them (damage: test_fuzzing)."""

import json
import os
import pathlib
import threading

import pytest
from conftest import record, record_of, refusal

from evaluate_sogou import Reference, UserError
from support import records
from support.paths import Files

MARK = '\ufeff'
LACK = 'records lack something and cannot be used: record'
FILES = Files(['WebQA.json'], ['SogouQA.json'], *['some file'] * 4, demo=False)
ODD = record_of(('Ａ…\t \u3000', '北京 上海'), question='😀', question_id='0')


@pytest.fixture
def read(tmp_path, capsys):
    """A function that writes JSON and reads it, all or as a line: (records, what is said)."""

    def read(data, labelled=True, encoding='ascii', passage_text=records.AS_IT_STANDS, line=0):
        path = tmp_path / 'some.json'
        path.write_text(json.dumps(data, ensure_ascii=encoding == 'ascii'), encoding=encoding)
        if line:
            return records.parse_line(path.read_bytes(), line, passage_text)
        try:
            loaded = records.load_questions(str(path), passage_text, labelled)
        except UserError as error:
            assert str(error).startswith(f'{path}: ') and '\n' not in str(error)
            return str(error).removeprefix(f'{path}: ')
        out, err = capsys.readouterr()
        assert not out and err.startswith(f'{path}: ' * bool(err))
        return loaded, err.removeprefix(f'{path}: ')

    return read


FLAT = {'context': '甲', 'question': '谁？', 'answer': '甲'}


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize('encoding', ['utf-8', 'gb18030'])
@pytest.mark.parametrize('indent', [None, 1])
def test_lines_are_read_as_a_list_is_and_other_formats_and_encodings_named(
    tmp_path, labelled, encoding, indent
):
    """With the command that converts them where there is one, for a shell, and only there."""
    data, path, convert = [record('a'), record('b')], tmp_path / 'so me.json', 'data/convert.py'
    given = [data, [FLAT], [{'question': '谁？', 'about': '甲'}], {'data': data}]
    for values in given:
        lines = values if isinstance(values, list) else [values]
        text = '\n'.join(json.dumps(each, ensure_ascii=False, indent=indent) for each in lines)
        path.write_text(text, encoding=encoding)
        if (values, encoding) == (data, 'utf-8'):
            assert records.load_questions(str(path), labelled=labelled) == data
        else:
            line = refusal(lambda: records.load_questions(str(path), labelled=labelled))
            command = f"; convert it: python {convert} '{path}' NEW.json"
            assert line.endswith(command) == (values is not given[2]) == (convert in line)
    path.write_text(text[:-9], encoding='utf-8')
    assert '; download it again' in refusal(records.load_questions, str(path))


def test_whole_number_is_an_id_and_the_same_as_its_digits(read):
    """It stays as it is; 0 is one too."""
    data = [{**record('a'), 'id': number} for number in (7, 0, -3)]
    assert read(data) == (data, '') and read(data[1], line=1) == data[1]
    assert [*records.dataset_answers(data)] == [*map(records.id_of, data)] == ['7', '0', '-3']
    records.require_data(data, data[1:2], FILES)
    assert read([data[0], record('7')]) == "2 records have the id '7'; ids must differ"
    for wrong in 1.0, True, [7]:
        assert read([{**record('a'), 'id': wrong}]).startswith('record 1 of 1: "id": expected a ')


def with_passages(*passages):
    return {**record('a'), 'passages': [*passages]}


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize(
    ('data', 'said'),
    [
        *((data, 'no records of questions; ') for data in ([], {'id': 'a'}, [{'query': '谁'}])),
        ([record('a'), ['b']], "record 2 of 2: expected a record, {...}, got ['b']"),
        ([record('a', 7)], 'record 1 of 1: "question": expected a text, "...", got 7'),
        ([{**record('a'), 'passages': {}}], 'record 1 of 1: "passages": expected a list, '),
        ([with_passages({'passage': '在', 'answer': ''}, 7)], 'record 1 of 1: passage 2: expec'),
        ([record_of((None, ''))], 'record 1 of 1: "passage" of passage 1: expected a text, '),
        ([record('a'), record('b'), record('a')], "2 records have the id 'a'; ids must differ"),
        *(([record(f'b{each}')], 'record 1 of 1: "id" holds a tab, ') for each in f'\t\n{MARK}'),
        ([record('a', 'x\ud800')], 'record 1 of 1: "question": holds half a character'),
    ],
)
def test_what_is_no_dataset_names_file_record_and_defect(read, labelled, data, said):
    line = read(data, labelled)
    assert line.startswith(said)
    assert ('; convert it: python data/convert.py ' in line) == ('"id" holds' in said)


def test_complete_records_are_read_as_they_stand_and_in_silence(read):
    """Two \\u escapes may make one character; the script says what is read of a passage."""
    assert read([record('Q#1'), ODD]) == ([record('Q#1'), ODD], '')
    asked, expected = (with_passages({'passage': text, 'answer': ''}) for text in ('北', '在北'))
    more = {'passage_text': lambda passage: f'在{passage["passage"]}'}
    assert read([asked], **more) == ([expected], '') and read(asked, line=7, **more) == expected


@pytest.mark.parametrize(
    ('passage', 'labelled', 'unlabelled'),
    [
        ({'answer': ['北京', '上海']}, '北京 上海', '北京 上海'),  # as where they are a text
        ({'answer': [' 北京 ', '', ' ', 'New York']}, '北京 New York', '北京 New York'),
        ({'answer': []}, '', ''),
        ({}, '"answer" of passage 1: expected a text, "...", got nothing', ''),
        ({'answer': ['北', 5]}, '"answer" of passage 1: part 2: expected a text, "...", got 5', ''),
        ({'answer': {}}, '"answer" of passage 1: expected a text, ', ''),
        ({'answer': '\ud800'}, '"answer" of passage 1: holds half a character', ''),
    ],
)
def test_answer_may_be_a_list_or_unlabelled_anything(read, passage, labelled, unlabelled):
    """Where nothing is learnt a passage may be a plain string too."""
    asked = with_passages({'passage': '在', **passage})
    expected = with_passages({'passage': '在', 'answer': unlabelled})
    found = read([asked])
    if 'passage 1' in labelled:
        assert found.startswith(f'record 1 of 1: {labelled}')
    else:
        assert found == ([with_passages({'passage': '在', 'answer': labelled})], '')
    assert read([asked], labelled=False) == ([expected], '') and read(asked, line=7) == expected
    plain = with_passages('在')
    assert read([plain]).startswith('record 1 of 1: passage 1: expected a record, ')
    assert read(plain, line=7) == with_passages({'passage': '在', 'answer': ''})


@pytest.mark.parametrize('labelled', [True, False])
def test_answer_that_says_that_there_is_none_is_none(read, labelled):
    """Or it would count as right where it is predicted."""
    given = record_of(('a', 'no_answer'), ('b', ' No Answer'), ('c', '北京'), ('no_answer', '无'))
    expected = record_of(('a', ''), ('b', ''), ('c', '北京'), ('no_answer', '无'))
    assert read([given], labelled) == ([expected], '')


@pytest.mark.parametrize(
    ('data', 'said'),
    [
        ([record('a'), record('b', ' '), {**record('c'), 'passages': []}],
         f'2 of 3 {LACK} 2 has no question\n'),
        ([record('a'), {'passages': []}],
         f'1 of 2 {LACK} 2 has no id and no question and no passages; the file looks cut off\n'),
        ([{'id': None}] * 11 + [record('a')],
         f'11 of 12 {LACK} 1 has no id and no question and no passages\n'),
    ],
)  # fmt: skip
def test_incomplete_records_stay_and_are_told_of_in_one_line(read, data, said):
    """Or the split would move."""
    loaded, line = read(data)
    assert line == said and [*map(len, loaded)] == [*map(len, data)]
    assert records.complete(loaded) == [each for each in data if each == record('a')]


def test_byte_order_mark_is_no_part_of_the_first_line(read):
    """In another it stands in the middle."""
    assert read(record('a'), encoding='utf-8-sig', line=1) == record('a')
    assert read(record('a'), encoding='utf-8-sig', line=2).startswith('line 2: not JSON')


@pytest.mark.parametrize(
    ('question', 'passages', 'said'),
    [
        (
            '谁',
            '中国',
            'what is asked: "passages": expected a list, ',
        ),  # each character would be one
        ('谁', 7, 'what is asked: "passages": expected a list, '),
        ('谁', [{'text': '中国'}], 'what is asked: "passage" of passage 1: expected a text, '),
        ('谁', ['中', b'a'], 'what is asked: passage 2: expected a record, '),
        ('谁', ['\ud800'], 'what is asked: "passage" of passage 1: holds half a character'),
        ('谁', None, 'what is asked: no question or no passages'),
        (None, ['中国'], 'what is asked: no question'),
        (' \n', ['中国'], 'what is asked: no question'),
        (7, ['中国'], 'what is asked: "question": expected a text, '),
    ],
)
def test_what_cannot_be_asked_is_named(question, passages, said):
    assert refusal(records.as_asked, question, passages).startswith(said)


def test_what_is_asked_stays_as_it_was_given():
    passage = {'passage': '中国', 'title': '标题'}

    def titled(passage):
        return f'{passage.get("title")}：{passage["passage"]}'

    asked = records.as_asked('谁', (each for each in (passage, '天津')), titled)
    assert asked == ('谁', ['标题：中国', 'None：天津'])
    assert passage == {'passage': '中国', 'title': '标题'}


def test_own_data_is_scored_by_the_files_of_answers_beside_all_of_it(tmp_path, capsys):
    """Said by name, and not called official; two files may not share an id."""
    data, paths = [record('a'), record('b')], [str(tmp_path / name) for name in ('1', '2')]
    answers = [f'{path}.answers' for path in paths]
    files = FILES._replace(sogouqa=paths, official_answers=answers)
    for path, name in zip(answers, 'ab', strict=True):
        own = records.dataset_answers(data)
        assert records.load_references(files, data) == own
        pathlib.Path(path).write_text(f'{name}\t{name}\t{name}\n', encoding='utf-8')
    expected = {name: Reference(name, (name,)) for name in 'ab'}
    assert records.load_references(files, data) == expected
    both, own = ', '.join(answers), f'scoring against the answers in {", ".join(paths)}: no'
    assert capsys.readouterr().err.splitlines() == [
        f'{own} 1.answers beside it', f'{own} 2.answers beside it',
        f'scoring against the answers in {both}',
    ]  # fmt: skip
    line = refusal(records.load_references, files, [*data, record('a')])
    assert line == f"{', '.join(paths)}: 2 records have the id 'a'; ids must differ"


def test_official_answers_take_precedence_where_they_lie(tmp_path, capsys):
    """Each time one line says what is scored against; a record without id needs no answer."""
    path, data = tmp_path / 'qid_answer_expand', [record('a'), record('b'), {'passages': []}]
    files = FILES._replace(official_answers=[str(path)])
    assert records.load_references(files, data) == records.dataset_answers(data)
    path.write_text('a\t天津\t天津|津\nb\t\t\nc\t1\t1\n7\t\t\n', encoding='utf-8')
    data.append({'id': 7})
    references = records.load_references(files, data)
    assert references['a'] == Reference('天津', ('天津', '津')) and set(references) == set('abc7')
    assert capsys.readouterr().err.splitlines() == [
        'scoring against the answers in SogouQA.json: no qid_answer_expand beside it',
        f'scoring against the official answers in {path}',
    ]
    message = refusal(records.load_references, files, [*data, record('d')])
    assert message == f"{path}: lacks the id 'd' of SogouQA.json; move it elsewhere"


def test_no_record_to_train_on_or_no_id_to_validate_on_is_refused():
    """A record with an id alone is enough: it is scored, as wrong."""
    message = refusal(records.require_data, [], [record('a')], FILES)
    assert message == 'WebQA.json, SogouQA.json: no complete record to train on'
    for valid_data in [], [{'passages': []}, {'id': None, 'question': '谁'}]:
        message = refusal(records.require_data, [record('a')], valid_data, FILES)
        what = f'none of the {len(valid_data)} records to validate on has an id'
        assert message == f'SogouQA.json: {what}'
        records.require_data([record('a')], [*valid_data, {'id': 'b'}], FILES)


def test_pipe_that_is_refused_is_not_waited_for(tmp_path):
    """It has been read, and has nothing for convert.py, which would wait for ever."""
    path = tmp_path / 'pipe'
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=['{"data": []}'])
    writer.start()
    assert '; convert it: ' not in refusal(records.load_questions, str(path))
    writer.join()
