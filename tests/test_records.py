"""support/records.py: datasets as they are found in the wild, and what is said about them."""

import gzip
import json
import os

import pytest
from conftest import record, record_of, refusal, write_json

from evaluate_sogou import Reference
from support import records
from support.settings import Files

CUT_OFF = '; the file looks cut off'
FILES = Files('WebQA.json', 'SogouQA.json', *['some file'] * 4, demo=False)


# ------------------------------------------------------------------------------------- the records


def test_complete_records_are_read_as_they_stand(tmp_path):
    """Two \\u escapes may make one character."""
    data = [
        record('Q#1'),
        record_of(('Ａ…\t \u3000', '北京 上海'), question='😀', question_id='0'),
    ]
    (tmp_path / 'some.json').write_text(json.dumps(data), encoding='utf-8')
    assert records.load_questions(tmp_path / 'some.json') == data


@pytest.mark.parametrize(
    ('data', 'complaints'),
    [
        ([record('a'), ['b']], ['record 2 of 2', 'a list']),
        (
            [record_of(('北京', '北京'), ('上海', 5))],
            ['record 1 of 1', '"answer" of passage 2', 'a number'],
        ),
        ([record_of((None, ''))], ['record 1 of 1', '"passage" of passage 1', 'missing or null']),
        ([record('a', 7)], ['record 1 of 1', '"question"', 'a number']),
        ([record('b'), record(True)], ['record 2 of 2', '"id"', 'true or false']),
        ([{**record('a'), 'passages': {}}], ['record 1 of 1', '"passages"', 'a record']),
        ([{**record('a'), 'passages': ['北京']}], ['record 1 of 1', 'passage 1', 'a string']),
        (
            [{**record('a'), 'passages': [{'passage': '北京'}]}],
            ['record 1 of 1', '"answer" of passage 1', 'missing'],
        ),
        ([record('a'), record('b'), record('a')], ['record 3 of 3', "'a'", 'record 1']),
        ([record('a'), record('b\tc')], ['record 2 of 2', '"id"', 'tab']),
        ([record('b\nc')], ['record 1 of 1', '"id"', 'line break']),
        ([record('\ufeffb')], ['record 1 of 1', '"id"', 'byte order mark']),
        (
            [record_of(('北京', ['北', 5]))],
            ['record 1 of 1', '"answer" of passage 1: part 2 is a number'],
        ),
        ([record_of(('北京', {}))], ['record 1 of 1', '"answer" of passage 1 is a record']),
        ([record('a', 'x\ud800')], ['record 1 of 1', '"question"', 'surrogate']),
        ([record_of(('\udfff', ''))], ['record 1 of 1', '"passage" of passage 1', 'surrogate']),
        ([], ['at least one']),
        ({'id': 'a'}, ['list of records']),
    ],
)
def test_bad_input_names_file_and_record(tmp_path, data, complaints):
    path = tmp_path / 'bad.json'
    path.write_text(json.dumps(data), encoding='utf-8')
    message = refusal(records.load_questions, str(path))
    assert message.startswith(f'{path}: ')
    assert all(complaint in message for complaint in complaints), message


def test_not_json_names_line_and_column(tmp_path):
    (tmp_path / 'bad.json').write_text('[{"id": "a"},\n {"id": "b"', encoding='utf-8')
    message = refusal(records.load_questions, str(tmp_path / 'bad.json'))
    assert message.startswith(f'{tmp_path / "bad.json"}: not JSON at line 2, column 12')


@pytest.mark.parametrize('text', ['[' * 100_000, f'[{"9" * 5000}]'])
def test_json_that_python_cannot_read_is_named(tmp_path, text):
    """Nested too deeply, or a number of too many digits."""
    (tmp_path / 'bad.json').write_text(text, encoding='utf-8')
    message = refusal(records.load_questions, str(tmp_path / 'bad.json'))
    assert message.startswith(f'{tmp_path / "bad.json"}: nested too deeply, or a number too long')


def test_questions_to_predict_need_no_answers(tmp_path):
    passages = [{'passage': '北京'}, {'passage': '上海', 'answer': None}]
    write_json(tmp_path / 'questions.json', [{'id': 'a', 'question': '谁', 'passages': passages}])
    expected = record_of(('北京', ''), ('上海', ''), question='谁')
    assert records.load_questions(tmp_path / 'questions.json', labelled=False) == [expected]


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize(
    ('answer', 'read'),
    [
        (['北京', '上海'], '北京 上海'),
        (['北京'], '北京'),
        ([' 北京 ', '', ' ', 'New York'], '北京 New York'),
        ([], ''),
    ],
)
def test_parts_of_an_answer_may_be_a_list(tmp_path, labelled, answer, read):
    """As they are written where they are a text: separated by one space."""
    write_json(tmp_path / 'some.json', [record_of(('北京', answer))])
    expected = [record_of(('北京', read))]
    assert records.load_questions(tmp_path / 'some.json', labelled) == expected


@pytest.mark.parametrize('answer', [5, ['北京', 5], [['北京']], {'text': '北京'}, False, '\ud800'])
def test_answers_of_questions_to_predict_may_be_anything(tmp_path, answer):
    """Nothing is learnt from them."""
    text = json.dumps([record_of(('北京', answer))])
    (tmp_path / 'some.json').write_text(text, encoding='utf-8')
    expected = record_of(('北京', ''))
    assert records.load_questions(tmp_path / 'some.json', labelled=False) == [expected]
    assert records.parse_line(text[1:-1].encode(), 1) == expected


def test_compressed_dataset_is_to_be_unpacked(tmp_path):
    """One in a public format can be converted as it is."""
    path = tmp_path / 'some.json.gz'
    path.write_bytes(gzip.compress(json.dumps([record('a')]).encode()))
    message = refusal(records.load_questions, str(path))
    assert message == f'{path}: compressed; unpack it with gunzip'
    path.write_bytes(
        gzip.compress('{"context": "甲", "question": "谁？", "answer": "甲"}'.encode())
    )
    assert 'python data/convert.py' in refusal(records.load_questions, str(path))


def test_incomplete_records_are_named_once_in_one_line(tmp_path, capsys):
    """They stay where they are, or the split would move."""
    data = [
        record('a'),
        {**record('b'), 'question': ' '},
        {**record('c'), 'passages': []},
        {'passages': []},
    ]
    write_json(tmp_path / 'some.json', data)
    loaded = records.load_questions(tmp_path / 'some.json')
    assert [entry.get('id') for entry in loaded] == ['a', 'b', 'c', None]
    output, errors = capsys.readouterr()
    [line] = errors.splitlines()
    assert not output and line.startswith(f'{tmp_path / "some.json"}: 3 of 4 records')
    assert line.endswith(
        'record 2 (no question), 3 (no passages), 4 (no id, no question, no passages)' + CUT_OFF
    )


def test_no_more_than_ten_incomplete_records_are_named(tmp_path, capsys):
    write_json(tmp_path / 'some.json', [{'id': None}] * 11 + [record('a')])
    records.load_questions(tmp_path / 'some.json')
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{tmp_path / "some.json"}: 11 of 12 records')
    assert line.endswith(', 10 (no id, no question, no passages), ...')


def test_file_of_records_that_all_lack_something_is_not_cut_off(tmp_path, capsys):
    """Ids, say, which answers need for a line of their own."""
    write_json(tmp_path / 'some.json', [record(None)])
    records.load_questions(tmp_path / 'some.json', labelled=False)
    assert capsys.readouterr().err.endswith('1 of 1 records lack something: record 1 (no id)\n')


@pytest.mark.parametrize('labelled', [True, False])
def test_answer_that_says_that_there_is_none_is_none(tmp_path, capsys, labelled):
    """Or it would count as right where it is predicted."""
    passages = [('a', 'no_answer'), ('b', ' No Answer'), ('c', '北京'), ('no_answer', '无')]
    write_json(tmp_path / 'some.json', [record_of(*passages), record_of(question_id='b')])
    [first, second] = records.load_questions(tmp_path / 'some.json', labelled)
    assert [passage['answer'] for passage in first['passages']] == ['', '', '北京', '无']
    assert second['passages'] == []
    assert (
        '2 answers like "no_answer" are taken as none' in capsys.readouterr().err.splitlines()[-1]
    )
    assert records.dataset_answers([first])['a'] == Reference('北京', ('北京', '无'))


@pytest.mark.parametrize('labelled', [True, False])
def test_file_without_a_question_that_has_passages_is_refused(tmp_path, labelled):
    """It is in another shape; which keys there are says more than that all is missing."""
    write_json(tmp_path / 'some.json', [{'id': 'a', 'query': '谁', 'passages': []}])
    message = refusal(records.load_questions, str(tmp_path / 'some.json'), labelled)
    assert message.startswith(f'{tmp_path / "some.json"}: no record has question and passages')
    assert "keys: 'id', 'query', 'passages'; expected" in message


@pytest.mark.parametrize(
    ('data', 'named'),
    [
        ([{'context_text': '在北京', 'qas': [{'query_text': '谁', 'query_id': 'a'}]}], 'CMRC2018'),
        ({'data': [{'paragraphs': [{'context': '在北京', 'qas': [{'question': '谁'}]}]}]}, 'SQuAD'),
        ({'Q1': {'question': '谁', 'evidences': {}}}, 'WebQA in texts'),
    ],
)
@pytest.mark.parametrize('labelled', [True, False])
def test_public_file_is_named_with_the_command_that_converts_it(tmp_path, data, named, labelled):
    """Rather than answered with nothing."""
    path = tmp_path / 'some.json'
    write_json(path, data)
    message = refusal(records.load_questions, str(path), labelled)
    command = f'python data/convert.py {path} NEW.json'
    assert message == f'{path}: the format of {named}; convert it first: {command}'


def test_complete_files_are_read_in_silence(small, capsys):
    records.load_questions(small / 'WebQA.json')
    assert capsys.readouterr() == ('', '')


def test_last_real_record_is_cut_off(shared, capsys):
    data = records.load_questions(os.path.join(shared, 'SogouQA.json'))
    [line] = capsys.readouterr().err.splitlines()
    assert len(data) == 22 and records.complete(data) == data[:21]
    assert '1 of 22 records' in line and line.endswith('record 22 (no id, no question)' + CUT_OFF)


def test_defects_are_what_is_missing_null_or_empty():
    """A record with any of them is not complete."""
    whole = record('a')
    data = [whole, {**whole, 'id': ''}, {**whole, 'question': None}, {**whole, 'passages': []}, {}]
    assert [*map(records.defects, data)] == [
        [], ['id'], ['question'], ['passages'], ['id', 'question', 'passages']
    ]  # fmt: skip
    assert records.complete(data) == [whole]


# --------------------------------------------------------------------------------------- the order


def test_order_that_was_saved_is_read(tmp_path):
    path = tmp_path / 'random_order.json'
    assert records.load_order(path, 3) is None
    path.write_text('[2, 0, 1]\n', encoding='utf-8')
    assert records.load_order(path, 3) == [2, 0, 1]


@pytest.mark.parametrize(
    'saved',
    [
        '[0, 1, 2]',
        str([*range(11)]),
        str([0, *range(9)]),
        str([0.0, *range(1, 10)]),
        str([*range(2, 10)])[:-1] + ', false, true]',
        '["0"]',
        '[0, "1"]',
        '{}',
        '7',
        '[0, 1',
        '[' * 100_000,
    ],
)
def test_saved_order_of_other_data_is_refused(tmp_path, saved):
    """It is never written over: other results may depend on it."""
    path = tmp_path / 'random_order.json'
    path.write_text(saved, encoding='utf-8')
    message = refusal(records.load_order, str(path), 10)
    assert message.startswith(f'{path}: no order of 10 records; delete it or change output_dir')
    assert path.read_text(encoding='utf-8') == saved


# ------------------------------------------------------------------------------------- the answers


def test_answers_of_the_passages_are_variants_and_the_most_frequent_is_the_standard():
    """No answer is right for a question that no passage answers."""
    data = [
        record_of(('a', '上海'), ('b', '北京'), ('c', ''), ('d', '北京'), question_id='a'),
        record_of(('a', ''), question_id='b'),
        {'id': 'c', 'passages': None},
        {'passages': []},
    ]
    assert records.dataset_answers(data) == {
        'a': Reference('北京', ('上海', '北京')),
        'b': Reference('', ()),
        'c': Reference('', ()),
        None: Reference('', ()),
    }


def test_official_answers_take_precedence_where_they_lie(tmp_path, capsys):
    """Each time one line says what is scored against; a record without id needs no answer."""
    path, data = tmp_path / 'qid_answer_expand', [record('a'), record('b'), {'passages': []}]
    references = records.load_references(str(path), 'SogouQA.json', data)
    assert references == records.dataset_answers(data)
    [line] = capsys.readouterr().err.splitlines()
    assert line == ('scoring against the answers in SogouQA.json: no qid_answer_expand beside it')
    path.write_text('a\t天津\t天津|津\nb\t\t\nc\t1\t1\n', encoding='utf-8')
    references = records.load_references(str(path), 'SogouQA.json', data)
    assert references['a'] == Reference('天津', ('天津', '津')) and set(references) == set('abc')
    [line] = capsys.readouterr().err.splitlines()
    assert line == f'scoring against the official answers in {path}'


def test_official_answers_of_other_questions_are_refused(tmp_path):
    """Or the score would break off in the middle of validation."""
    path = tmp_path / 'qid_answer_expand'
    path.write_text('a\t天津\t天津\n', encoding='utf-8')
    message = refusal(records.load_references, str(path), 'SogouQA.json', [*map(record, 'ab')])
    assert message == f"{path}: lacks the id 'b' of SogouQA.json; move it elsewhere"


# ----------------------------------------------------------------------------------- enough of them


def test_no_record_to_train_on_is_refused():
    message = refusal(records.require_data, [], [record('a')], FILES)
    assert message == 'WebQA.json: no complete record to train on, nor in SogouQA.json'


@pytest.mark.parametrize('valid_data', [[], [{'passages': []}, {'id': None, 'question': '谁'}]])
def test_no_id_to_validate_on_is_refused(valid_data):
    """A record with an id alone is enough: it is scored, as wrong."""
    message = refusal(records.require_data, [record('a')], valid_data, FILES)
    assert message == 'SogouQA.json: no record with an id to validate on'
    records.require_data([record('a')], [*valid_data, {'id': 'b'}], FILES)
