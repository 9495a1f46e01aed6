"""support/records.py: datasets found in the wild, what is said of them (damage: test_fuzzing)."""

import json

import pytest
from conftest import record, record_of, refusal

from evaluate_sogou import Reference, UserError
from support import records
from support.paths import Files

MARK, CUT_OFF = '\ufeff', '; the file looks cut off'
LACK = 'records lack something and cannot be used: record'
NAMED = ', '.join(f'{number} (no id, no question, no passages)' for number in range(1, 11))
FILES = Files('WebQA.json', 'SogouQA.json', *['some file'] * 4, demo=False)
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


def with_passages(*passages):
    return {**record('a'), 'passages': [*passages]}


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize(
    ('data', 'said'),
    [
        *((data, 'expected a list of records with at least one') for data in ([], {'id': 'a'})),
        ([record('a'), ['b']], 'record 2 of 2 is a list; '),
        ([record('a', 7)], 'record 1 of 1: "question" is a number; '),
        ([{**record('a'), 'passages': {}}], 'record 1 of 1: "passages" is a record; '),
        ([with_passages({'passage': '在', 'answer': ''}, 7)], 'record 1 of 1: passage 2 is a numb'),
        ([record_of((None, ''))], 'record 1 of 1: "passage" of passage 1 is missing or null; '),
        ([record('a'), record('b'), record('a')], "record 3 of 3 has the id 'a' of record 1; "),
        *(([record(f'b{each}')], 'record 1 of 1: "id" holds a tab, ') for each in f'\t\n{MARK}'),
        ([record('a', 'x\ud800')], 'record 1 of 1: "question" holds half a character'),
        ([{'query': '谁'}], "no record has question and passages; keys: 'query'; expected "),
    ],
)
def test_what_is_no_dataset_names_file_record_and_defect(read, labelled, data, said):
    line = read(data, labelled)
    assert line.startswith(said)
    assert ('python data/convert.py ' in line) == said.startswith(('expected', 'no record'))


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
        ({}, '"answer" of passage 1 is missing or null; ', ''),
        ({'answer': ['北', 5]}, '"answer" of passage 1: part 2 is a number; ', ''),
        ({'answer': {}}, '"answer" of passage 1 is a record; ', ''),
        ({'answer': '\ud800'}, '"answer" of passage 1 holds half a character', ''),
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
    assert read([plain]).startswith('record 1 of 1: passage 1 is a string; ')
    assert read(plain, line=7) == with_passages({'passage': '在', 'answer': ''})


@pytest.mark.parametrize('labelled', [True, False])
def test_answer_that_says_that_there_is_none_is_none(read, labelled):
    """Or it would count as right where it is predicted."""
    given = record_of(('a', 'no_answer'), ('b', ' No Answer'), ('c', '北京'), ('no_answer', '无'))
    expected = record_of(('a', ''), ('b', ''), ('c', '北京'), ('no_answer', '无'))
    assert read([given], labelled) == ([expected], '2 answers like "no_answer" are taken as none\n')


@pytest.mark.parametrize(
    ('data', 'said'),
    [
        ([record('a'), record('b', ' '), {**record('c'), 'passages': []}, {'passages': []}],
         f'3 of 4 {LACK} 2 (no question), 3 (no passages), '
         f'4 (no id, no question, no passages){CUT_OFF}\n'),
        ([{'id': None}] * 11 + [record('a')], f'11 of 12 {LACK} {NAMED}, ...\n'),
        ([record(None)], f'1 of 1 {LACK} 1 (no id)\n'),  # all of them: it is not cut off
    ],
)  # fmt: skip
def test_incomplete_records_stay_and_are_named_in_one_line(read, data, said):
    """Or the split would move."""
    loaded, line = read(data)
    assert line == said and [*map(len, loaded)] == [*map(len, data)]
    assert records.complete(loaded) == [each for each in data if each == record('a')]


def test_byte_order_mark_is_no_part_of_the_first_line(read):
    """In another it stands in the middle."""
    assert read(record('a'), encoding='utf-8-sig', line=1) == record('a')
    assert read(record('a'), encoding='utf-8-sig', line=2).startswith('line 2: not JSON')


def test_official_answers_take_precedence_where_they_lie(tmp_path, capsys):
    """Each time one line says what is scored against; a record without id needs no answer."""
    path, data = tmp_path / 'qid_answer_expand', [record('a'), record('b'), {'passages': []}]
    files = FILES._replace(official_answers=str(path))
    assert records.load_references(files, data) == records.dataset_answers(data)
    path.write_text('a\t天津\t天津|津\nb\t\t\nc\t1\t1\n', encoding='utf-8')
    references = records.load_references(files, data)
    assert references['a'] == Reference('天津', ('天津', '津')) and set(references) == set('abc')
    assert capsys.readouterr().err.splitlines() == [
        'scoring against the answers in SogouQA.json: no qid_answer_expand beside it',
        f'scoring against the official answers in {path}',
    ]
    message = refusal(records.load_references, files, [*data, record('d')])
    assert message == f"{path}: lacks the id 'd' of SogouQA.json; move it elsewhere"


def test_no_record_to_train_on_or_no_id_to_validate_on_is_refused():
    """A record with an id alone is enough: it is scored, as wrong."""
    message = refusal(records.require_data, [], [record('a')], FILES)
    assert message == 'WebQA.json: no complete record to train on, nor in SogouQA.json'
    for valid_data in [], [{'passages': []}, {'id': None, 'question': '谁'}]:
        message = refusal(records.require_data, [record('a')], valid_data, FILES)
        assert message == 'SogouQA.json: no record with an id to validate on'
        records.require_data([record('a')], [*valid_data, {'id': 'b'}], FILES)
