"""support/formats.py and data/convert.py: public files become ours, traps and all."""

import collections
import gzip
import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, record_of, refusal, write_json
from runs import call

from evaluate_sogou import UserError, evaluate, load_official_answers
from support import formats, records

sys.path.insert(0, os.path.join(ROOT, 'data'))
import convert

COMMAND = os.path.join(ROOT, 'data', 'convert.py')

# what is in each real piece: format, questions, answered ones, passages, answered ones
PIECES = {
    'cmrc2018_dev.json': ('CMRC2018', 6, 6, 6, 6),
    'cmrc2018_squad_style_dev.json': ('SQuAD', 6, 6, 6, 6),
    'DRCD_dev.json': ('SQuAD', 6, 6, 6, 6),
    'dureader2_search.dev.json': ('DuReader 2.0', 4, 3, 49, 7),
    'dureader2_search.test.json': ('DuReader 2.0', 3, 0, 15, 0),
    'webqa_v1_test_file_example.json.gz': ('WebQA in tokens', 4, 3, 22, 9),
    'webqa_kexue_me_test.ann.json': ('WebQA in texts', 6, 4, 6, 4),
    'RGB_zh_int.json': ('RGB', 4, 4, 59, 26),
    'RGB_zh_refine.json': ('RGB', 5, 5, 29, 14),
    'RGB_zh_fact.json': ('RGB', 4, 4, 23, 10),
    'DomainRAG_basic_qa.jsonl': ('DomainRAG', 5, 4, 5, 4),
    'DomainRAG_time_sensitive.jsonl': ('DomainRAG', 3, 2, 3, 2),
    'DomainRAG_basic_qa_retrieved_bm25.jsonl': ('DomainRAG', 2, 2, 7, 6),
    'DomainRAG_conversation_qa.jsonl': ('DomainRAG', 2, 1, 2, 1),
    'DuReaderQG_dev.json': ('flat lines', 5, 4, 5, 4),
    'FiD_ctxs_en_nq-open-oracle.jsonl.gz': ('FiD or DPR', 4, 4, 4, 4),
}
each_piece = pytest.mark.parametrize('name', PIECES)


def piece_of(shared, name):
    """The path of a real piece."""
    path = os.path.join(shared, 'formats', name)
    if not os.path.isfile(path):
        pytest.skip(f'the real piece is not at hand: {path}')
    return path


def convert_file(path, negatives=0, seed=42):
    """The Converted of a file."""
    converted = convert.convert(formats.read(path))
    convert.add_negatives(converted, negatives, seed)
    return converted


@pytest.fixture
def convert_records(tmp_path):
    """Convert records, written as a JSON list, or as its `data`; returns Converted."""

    def convert_records(*values, as_data=False):
        write_json(tmp_path / 'given.json', {'data': values} if as_data else values)
        return convert_file(str(tmp_path / 'given.json'))

    return convert_records


def given_by(record):
    """The (passage, answer) pairs of a record."""
    return [(passage['passage'], passage['answer']) for passage in record['passages']]


def answers_of(converted):
    """The answers of all passages."""
    return [answer for record in converted.records for _, answer in given_by(record)]


def left_out(converted):
    """{reason: how many}, without those of which there are none."""
    return {reason: count for reason, count in converted.left_out.items() if count}


def is_held(answer, passage):
    """Whether training finds an answer in a passage, said once more."""
    for separator in ' 、；，':
        passage = passage.replace(separator, ',')
    return all(part in passage for part in answer.split(' '))


def check(converted):
    """What holds for all that was converted, whatever it was made of."""
    ids = [record['id'] for record in converted.records]
    assert ids and len({*ids}) == len(ids) and [*converted.accepted] == ids
    for entry in converted.records:
        assert [*entry] == ['id', 'question', 'passages']
        assert entry['question'].strip() and entry['passages']
        assert entry['id'] and not re.search('[\t\n\r]', entry['id'])
        for passage, answer in given_by(entry):
            assert passage.strip() and is_held(answer, passage) and answer == answer.strip()


# -------------------------------------------------------------------------------- the real pieces


@each_piece
def test_every_real_piece_converts(shared, name, tmp_path, capsys):
    """And our own loader has nothing to say about it."""
    path = piece_of(shared, name)
    converted = convert_file(path)
    check(converted)
    answered = [answer for answer in answers_of(converted) if answer]
    of_questions = [any(answer for _, answer in given_by(each)) for each in converted.records]
    counts = len(of_questions), sum(of_questions), len(answers_of(converted)), len(answered)
    assert (formats.name_of_format(path), *counts) == PIECES[name]
    convert.write(str(tmp_path / 'ours.json'), converted)
    assert records.load_questions(tmp_path / 'ours.json') == converted.records
    assert capsys.readouterr() == ('', '')


@each_piece
def test_what_a_passage_gives_is_what_training_makes_of_it(shared, name, script):
    constants, rng = script.Constants(max_p_len=100_000), np.random.default_rng(0)
    for entry in convert_file(piece_of(shared, name)).records:
        for passage in entry['passages']:
            single = {**entry, 'passages': [passage]}
            *_, target = script.training_pair(single, rng, constants)
            assert target == passage['answer'].replace(' ', ',')


@each_piece
def test_standard_answers_score_1(shared, name, tmp_path):
    """Of every question that has an accepted answer; without any, there is no such file."""
    converted = convert_file(piece_of(shared, name))
    convert.write(str(tmp_path / 'ours.json'), converted)
    path = tmp_path / 'ours.json.answers'
    assert (
        path.exists() == any(converted.accepted.values()) == (name != 'dureader2_search.test.json')
    )
    if path.exists():
        references = load_official_answers(path)
        assert [*references] == [entry['id'] for entry in converted.records]
        lines = [f'{key}\t{right.answer}\n' for key, right in references.items() if right.answer]
        (tmp_path / 'predictions').write_text(''.join(lines), encoding='utf-8')
        assert evaluate(tmp_path / 'predictions', references)['Final'] == 1


@pytest.mark.parametrize(
    'name',
    ['cmrc2018_dev.json', *(pytest.param(name, marks=pytest.mark.slow) for name in PIECES)],
)
def test_every_real_piece_can_be_trained_on_and_answered(script, shared, name, tmp_path):
    """Two epochs of the small trained BERT, in windows; only an unlabelled one has nothing."""
    ours = tmp_path / 'ours.json'
    convert.write(str(ours), convert_file(piece_of(shared, name), negatives=2))
    options = [
        f'--output_dir={tmp_path / "output"}', '--passage_stride=128', '--epochs=2',
        f'--checkpoint_path={shared}/tiny_bert', f'--dict_path={shared}/vocab.txt',
    ]  # fmt: skip
    data = [f'--train_data={ours}', f'--valid_data={ours}']
    status, out, err = call(script, 'train', *data, *options)
    assert status == 0, err[-2000:]
    score = json.loads(out[-1])
    _, questions, *_ = PIECES[name]
    assert score['total'] == questions
    status, _, err = call(script, 'predict', ours, *options)
    assert status == 0, err[-2000:]
    lines = (tmp_path / 'output' / 'answers_to_ours.tsv').read_text(encoding='utf-8').splitlines()
    ids = [entry['id'] for entry in json.loads(ours.read_text(encoding='utf-8'))]
    assert [line.split('\t')[0] for line in lines] == ids
    assert lines == (tmp_path / 'output' / 'predictions.tsv').read_text('utf-8').splitlines()


@each_piece
def test_damaged_files_convert_or_are_refused_in_one_line(shared, name, tmp_path):
    """Keys that are gone, values of another type, bytes that are gone, other or there twice."""
    source, rng = piece_of(shared, name), random.Random(name)
    with open(source, 'rb') as file:
        content = file.read()
    path = str(tmp_path / 'damaged')
    outcomes = collections.Counter()
    for _ in range(200):
        with open(path, 'wb') as file:
            file.write(damaged(content, rng))
        try:
            converted = convert_file(path)
            check(converted)
            json.dumps(converted.records, ensure_ascii=False).encode()
            outcomes['converted'] += 1
        except UserError as error:
            assert str(error).startswith(f'{path}: ') and len(str(error).splitlines()) == 1
            outcomes['refused'] += 1
        assert formats.name_of_format(path) in {None, *(row.name for row in formats.FORMATS)}
    assert min(outcomes['converted'], outcomes['refused']) > 10, outcomes


def damaged(content, rng):
    """A file's bytes with something wrong: in the bytes, or in the values of its JSON."""
    kind = rng.choice(['cut', 'flip', 'twice', 'delete', 'delete', 'type', 'type', 'type'])
    place = rng.randrange(len(content))
    if kind == 'cut':
        return content[:place]
    if kind == 'flip':
        flipped = bytes([content[place] ^ 1 << rng.randrange(8)])
        return content[:place] + flipped + content[place + 1 :]
    if kind == 'twice':
        end = rng.randrange(place, len(content))
        return content[:end] + content[place:]
    text = (gzip.decompress(content) if content[:2] == b'\x1f\x8b' else content).decode()
    try:
        values = [json.loads(text)]
    except json.JSONDecodeError:
        values = [json.loads(line) for line in text.split('\n') if line]
    parent, key = rng.choice([*places_in(values)])
    if kind == 'delete':
        del parent[key]
    else:
        parent[key] = rng.choice([None, True, 7, 0.5, '', 'x', [], ['x'], {}, {'x': 'x'}, [[]]])
    return '\n'.join(map(json.dumps, values)).encode()


def places_in(value):
    """Every (list or dict, key) within a value."""
    if isinstance(value, (list, dict)):
        for key in [*value] if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places_in(value[key])


# ----------------------------------------------------------------------- answers and where they are


def cmrc(context, *answers, question_id='D_QUERY_1', question='谁？'):
    """A record of CMRC2018 with one question."""
    asked = {'query_text': question, 'query_id': question_id, 'answers': [*answers]}
    return {'context_id': 'D', 'context_text': context, 'qas': [asked], 'title': ''}


def flat(context, answer, question='谁？', **more):
    """A line of question, passage and answer."""
    return {'context': context, 'answer': answer, 'question': question, **more}


@pytest.mark.parametrize(
    ('context', 'answers', 'given', 'missed'),
    [
        ('甲是乙。', ['丙', '乙', '甲'], '乙', 1),  # the first that is there
        ('甲是乙。', ['是乙', '乙'], '是乙', 0),
        ('甲是乙', ['乙。'], '乙', 0),  # a full stop that was added
        ('甲是乙。', ['乙。'], '乙。', 0),
        ('甲是乙', ['乙 。'], '乙', 0),
        ('那是 1999年', [' 1999年', '\u30001999年 '], '1999年', 0),  # outer spaces
        ('蓝、白、红三色', ['蓝、白、红'], '蓝 白 红', 0),  # its own separators
        ('蓝，白；红 三色', ['白；红'], '白 红', 0),
        ('红、白、蓝', ['蓝、白、红'], '蓝 白 红', 0),  # each part by itself
        ('蓝、白、红', ['蓝、白、绿'], '', 1),
        ('蓝、白、红', ['蓝白红'], '', 1),
        ('共a,b两个', ['a,b'], 'a,b', 0),
        ('蓝、白', ['蓝,白'], '蓝,白', 0),  # as training sees the passage
        ('May 18, 2018', ['May 18, 2018'], 'May 18, 2018', 0),
        ('甲', [], '', 0),
        ('no_answer', ['no_answer', 'No Answer', '无答案', '', ' ', '、', None], '', 0),
    ],
)
def test_answer_is_the_first_that_the_passage_holds(
    convert_records, context, answers, given, missed
):
    """As training looks for it; the passage stays as it is."""
    converted = convert_records(cmrc(context, *answers))
    assert given_by(converted.records[0]) == [(context, given)]
    assert converted.sought[False] == missed


@pytest.mark.parametrize(
    ('context', 'answer', 'given'),
    [
        ('2008年11月12日首次登场', 39764.0, '2008年11月12日'),
        ('2008年11月12日首次登场', '39764.0', '2008年11月12日'),
        ('共39764人', 39764.0, '39764'),
        ('2008年11月13日首次登场', 39764.0, ''),
        ('占第147位', 147.0, '147'),
        ('占第1470位', 147.0, ''),  # another number
        ('占第2147位', 147.0, ''),
        ('收费4.9元', 4.9, '4.9'),
        ('收费5元', 4.9, ''),
        ('版本2.0', 2.0, '2.0'),
        ('有1999人', 1999, '1999'),
        ('有1999人', 1e300, ''),
        ('有12345678人', 12345678.0, '12345678'),  # no date
    ],
)
def test_numbers_of_a_spreadsheet_are_read_as_the_context_has_them(
    convert_records, context, answer, given
):
    """A date's serial, a whole number with `.0`; what the context lacks is nobody's answer."""
    converted = convert_records(cmrc(context, answer))
    assert answers_of(converted) == [given]
    assert converted.sought == {bool(given): 1}
    if given or str(answer).endswith('.0'):
        assert converted.accepted['D_QUERY_1'] == [given] * bool(given)


def test_accepted_answers_are_kept_whether_a_passage_holds_them_or_not(convert_records):
    """As they are read where one does, and each once."""
    converted = convert_records(cmrc('甲是乙', '丙。', '乙。', '乙', 39764.0, 'no_answer'))
    assert converted.accepted == {'D_QUERY_1': ['丙。', '乙']}


# ------------------------------------------------------------------------------- format by format


def test_questions_about_one_context_become_a_record_each(convert_records):
    value = cmrc('甲是乙', '甲')
    value['qas'].append({'query_text': '什么？', 'query_id': 'D_QUERY_2', 'answers': ['乙']})
    assert convert_records(value).records == [
        record_of(('甲是乙', '甲'), question='谁？', question_id='D_QUERY_1'),
        record_of(('甲是乙', '乙'), question='什么？', question_id='D_QUERY_2'),
    ]


def test_same_text_of_another_id_is_another_question(convert_records):
    """Who 'he' is, the context tells."""
    converted = convert_records(cmrc('甲', '甲'), cmrc('乙', '乙', question_id='E_QUERY_1'))
    assert answers_of(converted) == ['甲', '乙'] and len(converted.records) == 2


def squad(*paragraphs):
    """An entry of "data": paragraphs of (context, {id: answers})."""
    made = []
    for context, asked in paragraphs:
        qas = [
            {
                'question': '谁？',
                'id': name,
                'answers': [
                    {'id': '1', 'text': answer, 'answer_start': start} for answer, start in answers
                ],
            }
            for name, answers in asked.items()
        ]
        made.append({'qas': qas, 'id': 'P', 'context': context})
    return {'paragraphs': made, 'id': 'T', 'title': ''}


def test_offsets_of_squad_are_not_believed(convert_records):
    """-1 where the text is there all the same, or off by one."""
    entry = squad(('甲是乙', {'a': [('乙', -1)], 'b': [('乙', 1)], 'c': [('147.0', -1)]}))
    converted = convert_records(entry, as_data=True)
    assert [entry['id'] for entry in converted.records] == ['a', 'b', 'c']
    assert answers_of(converted) == ['乙', '乙', '']


def test_all_paragraphs_of_squad_are_read(convert_records):
    """In one entry as in several; a context that stands again makes another record."""
    first = squad(('甲', {'a': [('甲', 0)]}), ('甲', {'b': [('甲', 0)]}))
    converted = convert_records(first, squad(('乙', {'c': []})), as_data=True)
    assert [*map(given_by, converted.records)] == [[('甲', '甲')], [('甲', '甲')], [('乙', '')]]


def test_contexts_of_one_id_and_question_become_one_record(convert_records):
    """Where each answered passage was made an entry of its own."""
    entries = [squad((context, {'Q': [('乙', 0)]})) for context in ('甲乙', '乙丙', '甲乙')]
    converted = convert_records(*entries, as_data=True)
    assert converted.records == [
        record_of(('甲乙', '乙'), ('乙丙', '乙'), question='谁？', question_id='Q')
    ]
    assert left_out(converted) == {'passages that came again with their question': 1}


def dureader(**more):
    """A record of DuReader 2.0 with three paragraphs, two of them in one document."""
    documents = [
        {'is_selected': True, 'title': '丁', 'paragraphs': ['甲是乙', '登录']},
        {'is_selected': False, 'title': '丁', 'paragraphs': ['甲 是丙', '']},
    ]
    return {'documents': documents, 'question': '谁？', 'question_id': 181, **more}


def test_paragraphs_of_all_documents_of_dureader_are_passages(convert_records):
    """Titles are none; ids are numbers; the test set has no answers, hence no file of them."""
    converted = convert_records(dureader(segmented_question=['谁', '？']))
    passages = ('甲是乙', ''), ('登录', ''), ('甲 是丙', '')
    assert converted.records == [record_of(*passages, question='谁？', question_id='181')]
    assert left_out(converted) == {'empty passages': 1}
    assert converted.accepted == {'181': []}


def test_dureader_seeks_entities_then_what_people_wrote_then_fake_answers(convert_records):
    """Fake answers are found by a program: they do not count as right."""
    asked = dureader(
        answers=['是的，是乙', '登录'],
        fake_answers=['甲是'],
        entity_answers=[[], ['乙'], ['丙', '甲']],
    )
    converted = convert_records(asked)
    assert answers_of(converted) == ['乙', '登录', '丙 甲']
    assert converted.accepted == {'181': ['乙', '丙 甲', '是的 是乙', '登录']}
    converted = convert_records(
        dureader(answers=['壬'], fake_answers=['甲是'], entity_answers=[[]])
    )
    assert answers_of(converted) == ['甲是', '', ''] and converted.accepted == {'181': ['壬']}


def evidence(text, kind='positive', golden=('契', '诃', '夫')):
    """An evidence of WebQA, in tokens."""
    other = {'other_evi_type': 'positive', 'other_evi_tokens': ['乙']}
    return {
        'evidence_tokens': [*text], 'golden_answers': [[*golden]], 'type': kind,
        'eecom_features_list': [other],
    }  # fmt: skip


def test_golden_answers_of_webqa_hold_only_for_positive_evidences(convert_records):
    """Though they stand on all of them. Tokens of others are no passages, repeats are kept."""
    evidences = [
        evidence('契诃夫写的'),
        evidence('契诃夫没写', 'hit_answer_negative'),
        evidence('谁写的', 'other_negative'),
        evidence('契诃夫写的'),
    ]
    converted = convert_records(
        {'q_key': 'Q', 'question_tokens': ['谁', '？'], 'evidences': evidences}
    )
    passages = (
        ('契诃夫写的', '契诃夫'),
        ('契诃夫没写', ''),
        ('谁写的', ''),
        ('契诃夫写的', '契诃夫'),
    )
    assert converted.records == [record_of(*passages, question='谁？', question_id='Q')]
    assert converted.accepted == {'Q': ['契诃夫']}


def test_golden_answers_of_webqa_count_as_right_where_no_evidence_is_positive(convert_records):
    evidences = [evidence('契诃夫写的', 'hit_answer_negative')]
    converted = convert_records({'q_key': 'Q', 'question_tokens': ['谁'], 'evidences': evidences})
    assert answers_of(converted) == [''] and converted.accepted == {'Q': ['契诃夫']}
    assert converted.sought == {False: 1}


def test_evidences_of_webqa_without_a_type_give_their_golden_answers(convert_records):
    """In the training files a negative has `no_answer` instead."""
    value = evidence('契诃夫写的')
    del value['type']
    converted = convert_records({'q_key': 'Q', 'question_tokens': ['谁'], 'evidences': [value]})
    assert answers_of(converted) == ['契诃夫']


@pytest.mark.parametrize('kind', ['other_negative', None])
def test_no_answer_of_webqa_is_empty(convert_records, kind):
    evidences = [evidence('no_answer', kind, ['no_answer'])]
    converted = convert_records({'q_key': 'Q', 'question_tokens': ['谁'], 'evidences': evidences})
    assert answers_of(converted) == [''] and converted.accepted == {'Q': []}


def test_keys_of_the_other_webqa_are_its_ids(tmp_path):
    """A dict of records, here with an indent."""
    evidences = {
        'Q#00': {'answer': ['法国'], 'evidence': '法国最高'},
        'Q#01': {'answer': ['no_answer'], 'evidence': '日本'},
        'Q#02': {'answer': ['儒家"'], 'evidence': '儒家'},
    }
    text = json.dumps({'Q': {'question': '谁？', 'evidences': evidences}}, indent=2)
    (tmp_path / 'me.json').write_text(text, encoding='utf-8')
    converted = convert_file(str(tmp_path / 'me.json'))
    passages = ('法国最高', '法国'), ('日本', ''), ('儒家', '')
    assert converted.records == [record_of(*passages, question='谁？', question_id='Q')]
    assert converted.accepted == {'Q': ['法国', '儒家"']} and converted.sought[False] == 1


def rgb(answer, positive, negative=(), **more):
    """A record of RGB."""
    passages = {'positive': positive, 'negative': [*negative]}
    return {'id': 0, 'query': '谁？', 'answer': answer, **passages, **more}


@pytest.mark.parametrize(
    ('answer', 'accepted'),
    [
        ('甲', ['甲']),
        (['甲', '乙'], ['甲 乙']),
        ([['甲', '丙']], ['甲', '丙']),
        (['甲', ['乙', '丙']], ['甲 乙', '甲 丙']),
        (['甲', [], ''], ['甲']),
        ([], []),
    ],
)
def test_lists_of_rgb_are_parts_and_lists_in_them_spellings(convert_records, answer, accepted):
    converted = convert_records(rgb(answer, ['丙、甲']))
    assert converted.accepted == {'0': accepted}
    held = {'甲', '丙', '甲 丙'}
    assert answers_of(converted) == [next((each for each in accepted if each in held), '')]


def test_negative_passages_of_rgb_give_nothing_whatever_they_hold(convert_records):
    """A positive that lacks the answer gives nothing either; passages that repeat are kept."""
    converted = convert_records(rgb('甲', ['甲', '乙', '甲'], ['甲', '丙']))
    assert given_by(converted.records[0]) == [
        ('甲', '甲'), ('乙', ''), ('甲', '甲'), ('甲', ''), ('丙', '')
    ]  # fmt: skip


def test_forged_answers_of_rgb_are_never_learnt(convert_records):
    value = rgb('甲', ['甲是'], fakeanswer=['乙'], positive_wrong=['乙是'])
    converted = convert_records(value)
    assert '乙' not in json.dumps(converted.records, ensure_ascii=False)
    assert converted.accepted == {'0': ['甲']}
    assert left_out(converted) == {'passages with a forged answer ("positive_wrong")': 1}


@pytest.mark.parametrize(
    ('first', 'second', 'groups', 'given'),
    [
        (['甲'], ['乙'], [['甲乙', '甲'], ['甲乙', '甲']], ['甲', '甲', '乙', '']),
        (['甲'], [['丙', '乙']], [['甲'], ['乙']], ['甲', '乙']),
        (['甲', '乙'], ['丙'], [['乙甲', '甲'], ['丙']], ['甲 乙', '', '丙']),
        (['甲', '乙', '丙'], [], [['甲'], ['乙'], ['甲丙']], ['甲', '乙', '丙']),
    ],
)
def test_each_list_of_positive_passages_gives_one_of_the_facts_of_rgb(
    convert_records, first, second, groups, given
):
    """No passage holds them all, yet only all of them count as right."""
    value = rgb([*first, *second], groups, asnwer1=first, answer2=second)
    converted = convert_records(value)
    assert answers_of(converted) == given
    assert all('甲 ' in answer for answer in converted.accepted['0'])


@pytest.mark.parametrize('second', [['乙', '丙'], None])
def test_rgb_with_more_lists_than_facts_is_refused(tmp_path, second):
    value = rgb(['甲'], [['甲'], ['乙'], ['丙']], asnwer1=['甲'], answer2=second)
    write_json(tmp_path / 'rgb.json', [rgb('甲', ['甲']), value])
    message = refusal(formats.read, str(tmp_path / 'rgb.json'))
    assert message.startswith(f'{tmp_path / "rgb.json"}: record 2 of RGB: "asnwer1" and "answer2"')


def domainrag(contents, answers, **more):
    """A record of DomainRAG."""
    reference = {'title': '丁', 'id': '159', 'date': None, 'contents': contents}
    return {'question': '谁？', 'positive_reference': [reference], 'answers': answers, **more}


@pytest.mark.parametrize(
    ('segmented', 'joined'),
    [
        ('中 法学院 成立 于 1999 年 ， 共 12.5% 。', '中法学院成立于1999年，共12.5%。'),
        ('用 Visual Basic 6 写 ， 见 New York', '用Visual Basic 6写，见New York'),
        ('2023 - 11 - 04 \n 新  阶段', '2023-11-04\n新阶段'),
        ('Beyoncé Knowles 是 歌手', 'Beyoncé Knowles是歌手'),
    ],
)
def test_word_segmentation_of_domainrag_is_joined(convert_records, segmented, joined):
    """Between Latin words and numbers the spaces stay."""
    answer = segmented[-5:]
    converted = convert_records(domainrag(segmented, [[answer]]))
    [(passage, given)] = given_by(converted.records[0])
    assert passage == joined and given and given in joined


def test_lists_of_domainrag_are_alternatives_and_lists_in_them_parts(convert_records):
    """The other way round than in RGB."""
    converted = convert_records(domainrag('汉语 、 法语', [['英语'], ['法语', '汉 语']]))
    assert answers_of(converted) == ['法语 汉语']
    assert converted.accepted == {'1': ['英语', '法语 汉语']}


def test_retrieved_passages_of_domainrag_come_after_the_given_ones(convert_records):
    """Without those which were given, too; the documents' ids are not the question's."""
    retrieved = [{'id': 3, 'contents': text} for text in ('乙 甲', '甲 是', '丙')]
    converted = convert_records(domainrag('甲 是', [['甲']], retrieved_psgs=retrieved))
    passages = ('甲是', '甲'), ('乙甲', '甲'), ('丙', '')
    assert converted.records == [record_of(*passages, question='谁？', question_id='1')]
    assert left_out(converted) == {'passages that were given and retrieved': 1}


def test_same_question_of_domainrag_about_another_year_is_another(convert_records):
    """What a record has no place for is told."""
    values = domainrag('甲', [['甲']], date='2014'), domainrag('乙', [['乙']], date='2023')
    converted = convert_records(*values)
    assert [entry['id'] for entry in converted.records] == ['1', '2']
    assert answers_of(converted) == ['甲', '乙']
    assert left_out(converted) == {'years asked about ("date")': 2}


def test_conversations_of_domainrag_have_one_reference_and_a_flat_list(convert_records):
    value = domainrag('甲 是 乙', ['丙', '乙'], history_qa=[{'question': '谁'}, {'question': '谁'}])
    value['positive_reference'] = value['positive_reference'][0]
    converted = convert_records(value)
    assert given_by(converted.records[0]) == [('甲是乙', '乙')]
    assert converted.accepted == {'1': ['丙', '乙']}
    assert left_out(converted) == {'earlier turns ("history_qa")': 2}


def test_contexts_without_the_answer_give_none(convert_records):
    """By `hasanswer`, where it is told: a 1 stands in 2010 too."""
    ctxs = [{'title': 't', 'text': 'in 2010', 'hasanswer': told} for told in (True, False)]
    value = {'question': 'when', 'answers': ['1', '2010'], 'ctxs': [*ctxs, {'text': 'or 2010'}]}
    converted = convert_records({'id': '0', **value}, value)
    given = [('in 2010', '1'), ('in 2010', ''), ('or 2010', '1')]
    assert [*map(given_by, converted.records)] == [given, given]
    assert converted.accepted == {'0': ['1', '2010'], '2': ['1', '2010']}


def test_lines_of_one_question_become_one_record(convert_records):
    """One line per answer, each with an id of its own, in outer spaces; or one per passage."""
    converted = convert_records(
        flat('公元前 B.C.', 'B.C.E.', id=6),
        flat('公元前 B.C.', ' B.C.', id=7),
        flat('公元前 B.C.', 'B.C.', '简写', id=8),
        flat('B.C.', '', id=9),
    )
    assert converted.records == [
        record_of(('公元前 B.C.', 'B.C.'), ('B.C.', ''), question='谁？', question_id='6'),
        record_of(('公元前 B.C.', 'B.C.'), question='简写', question_id='8'),
    ]
    assert converted.accepted == {'6': ['B.C.E.', 'B.C.'], '8': ['B.C.']}


def test_flat_lines_may_name_passage_and_query(convert_records):
    converted = convert_records({'passage': '甲', 'query': '谁？', 'answer': '甲', 'class': 1})
    assert converted.records == [record_of(('甲', '甲'), question='谁？', question_id='1')]


def test_our_own_format_passes_as_it_stands(tmp_path, capsys):
    """JSON lines too; there are no accepted answers besides the passages' own."""
    data = [
        record_of((' 甲、乙\t', '甲、乙'), ('丙', '丁'), question_id='a#1'),
        record_of(('丙，丁', '丙，丁'), ('甲', ''), question_id='b'),
    ]
    text = ''.join(f'{json.dumps(entry)}\n' for entry in data)
    (tmp_path / 'lines.json').write_text(text, encoding='utf-8')
    converted = convert_file(str(tmp_path / 'lines.json'))
    convert.write(str(tmp_path / 'ours.json'), converted)
    assert records.load_questions(tmp_path / 'ours.json') == data
    assert {*os.listdir(tmp_path)} == {'lines.json', 'ours.json'}
    assert formats.name_of_format(str(tmp_path / 'ours.json')) is None


def test_parts_of_our_own_format_are_separated_by_one_space(convert_records):
    passages = [{'passage': '甲乙', 'answer': ['甲', '乙']}, {'passage': '丙', 'answer': None}]
    converted = convert_records(
        {'id': 'a', 'question': '谁？', 'passages': [*passages, {'passage': '丁'}]}
    )
    assert given_by(converted.records[0]) == [('甲乙', '甲 乙'), ('丙', ''), ('丁', '')]


# ----------------------------------------------------------------------- what is left out, and told


@pytest.mark.parametrize(
    ('values', 'reasons'),
    [
        (
            [flat('', '甲'), flat(' \n', '甲')],
            {'empty passages': 2, 'records without a passage': 2},
        ),
        ([flat('甲', '甲', ' '), flat('甲', '甲', None)], {'records without a question': 2}),
        ([{'id': '2'}], {'empty passages': 1, 'records without a question': 1}),
        ([None, {}], {'empty passages': 2, 'records without a question': 2}),
    ],
)
def test_what_lacks_something_is_left_out_and_told(convert_records, values, reasons):
    converted = convert_records(flat('甲', '甲'), *values)
    assert left_out(converted) == reasons and len(converted.records) == 1


def test_record_of_our_own_that_is_cut_off_is_left_out(convert_records):
    """The last one of the real files is."""
    whole, passages = record_of(('甲', '甲')), [{'passage': '乙', 'answer': ''}]
    converted = convert_records(whole, {'passages': passages})
    assert converted.records == [whole]
    assert left_out(converted) == {'records without a question': 1}


@pytest.mark.parametrize(
    'value',
    [
        {'context_text': '甲', 'qas': []},
        {'context_text': '甲', 'qas': None},
        {'context_text': '甲'},
    ],
)
def test_contexts_without_a_question_are_told(convert_records, value):
    assert left_out(convert_records(cmrc('甲', '甲'), value)) == {'records without a question': 1}
    squads = [squad(('甲', {'a': []}), ('乙', {})), {'paragraphs': []}]
    reasons = left_out(convert_records(*squads, as_data=True))
    assert reasons == {'records without a question': 2, 'empty passages': 1}


@pytest.mark.parametrize(
    ('value', 'complaint'),
    [
        (flat(['甲'], '甲'), '"context" is a list; expected a string'),
        (flat('甲', {'a': 1}), '"answer" is a record; expected a string'),
        (flat('甲', [['甲']]), '"answer" is a list; expected a string'),
        (flat('甲', True), '"answer" is true or false; expected a string'),
        (flat('甲', '甲', 7), '"question" is a number; expected a string'),
        (flat('甲', '甲', id=['a']), '"id" is a list; expected a string'),
        (flat('甲', '\ud800'), '"answer" holds half a character'),
        (['甲'], '"record" is a list; expected a record'),
    ],
)
def test_other_types_than_the_formats_are_refused(tmp_path, value, complaint):
    path = tmp_path / 'given.json'
    path.write_text(json.dumps([flat('甲', '甲'), value]), encoding='utf-8')
    message = refusal(formats.read, str(path))
    assert message.startswith(f'{path}: record 2 of flat lines: {complaint}')


def test_file_without_a_question_that_has_a_passage_is_refused(tmp_path):
    """Ours would be an empty list, which cannot be read."""
    write_json(tmp_path / 'given.json', [flat('', '甲')])
    message = refusal(formats.read, str(tmp_path / 'given.json'))
    assert message.startswith(f'{tmp_path / "given.json"}: flat lines, but no question has a')


@pytest.mark.parametrize(
    ('text', 'keys'),
    [
        ('{"0": {"q": "谁？", "a": "甲"}}', "'id', 'q', 'a'"),  # "a" is the evidence: no answer
        ('[{"query": "谁？", "passages": []}]', "'query', 'passages'"),
        ('{"a\\nb": 1}', r"'a\nb'"),
        ('[]', 'none'),
        ('', 'none'),
        ('7 "a"', 'none'),
        ('{"data": {"a": []}}', "'id', 'a'"),
        ('[{"context": "甲", "question": "谁？"}]', "'context', 'question'"),
        (f'{{"{"a" * 99}": 1}}', f"'{'a' * 30}'"),
    ],
)
def test_unknown_formats_are_refused_with_their_keys(tmp_path, text, keys):
    path = tmp_path / 'given.json'
    path.write_text(text, encoding='utf-8')
    message = refusal(formats.read, str(path))
    assert message.startswith(f'{path}: a format that is not known; keys: {keys}; known: our own')
    assert all(row.name in message for row in formats.FORMATS)
    assert formats.name_of_format(str(path)) is None


# ---------------------------------------------------------------------------- containers, encodings

LINES = [flat('甲\u2028是', '甲', id=1), flat('乙是', '乙', '是谁？', id=2)]


def lines_of(values, end='\n'):
    return ''.join(json.dumps(value, ensure_ascii=False) + end for value in values)


CONTAINERS = {
    'list': json.dumps(LINES, ensure_ascii=False),
    'indented': json.dumps(LINES, ensure_ascii=False, indent=4),
    'escapes': json.dumps(LINES),
    'lines': lines_of(LINES),
    'no final newline': lines_of(LINES).rstrip(),
    'CRLF': lines_of(LINES, '\r\n'),
    'blank lines': '\n\n' + lines_of(LINES, '\n \n'),
    'indented records': '\n'.join(json.dumps(each, ensure_ascii=False, indent=1) for each in LINES),
    'dict': json.dumps({'1': {**LINES[0]}, '2': LINES[1]}, ensure_ascii=False),
}


@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'gb18030'])
@pytest.mark.parametrize('container', CONTAINERS)
def test_container_and_encoding_make_no_difference(tmp_path, container, encoding, zipped):
    """Nor does the name; U+2028 ends no line."""
    content = CONTAINERS[container].encode(encoding)
    path = tmp_path / 'given.txt'
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    source = formats.read(str(path))
    in_gb = encoding == 'gb18030' and container != 'escapes'
    assert source.name == f'flat lines in {"GB18030" if in_gb else "UTF-8"}'
    assert convert.convert(source).records == [
        record_of(('甲\u2028是', '甲'), question='谁？', question_id='1'),
        record_of(('乙是', '乙'), question='是谁？', question_id='2'),
    ]
    assert formats.name_of_format(str(path)) == 'flat lines'


def test_single_record_over_many_lines_is_read(tmp_path):
    text = json.dumps(dureader(answers=['乙']), ensure_ascii=False, indent=2)
    (tmp_path / 'given.json').write_text(text, encoding='utf-8')
    assert answers_of(convert_file(str(tmp_path / 'given.json'))) == ['乙', '', '']


def test_control_characters_and_missing_numbers_are_read(tmp_path):
    """A raw tab in a string, NaN where a table had nothing."""
    text = '{"context": "甲\t\x01\r", "question": "谁？", "answer": NaN}'
    (tmp_path / 'given.json').write_text(text, encoding='utf-8', newline='')
    converted = convert_file(str(tmp_path / 'given.json'))
    assert given_by(converted.records[0]) == [('甲\t\x01\r', '')]
    assert converted.accepted == {'1': []}


def test_damaged_utf8_is_not_read_as_gb18030(tmp_path):
    """Which nearly any bytes are, as other characters."""
    content = lines_of([flat('甲是乙丙', '甲是', '是谁')]).encode()
    content = content.replace('甲'.encode(), b'\x81' + '甲'.encode()[1:], 1)
    assert content.decode('gb18030')
    (tmp_path / 'given.json').write_bytes(content)
    message = refusal(formats.read, str(tmp_path / 'given.json'))
    assert message.startswith(f'{tmp_path / "given.json"}: not UTF-8 at byte 13, nor GB18030')


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        (lines_of(LINES).encode()[:-9], 'no JSON that can be read'),
        (b'[' * 100_000, 'no JSON that can be read'),
        (b'[{"id": ' + b'9' * 5000 + b'}]', 'no JSON that can be read'),
        (lines_of(LINES).encode('utf-16'), 'not UTF-8 at byte 0, nor GB18030'),
        (gzip.compress(lines_of(LINES).encode(), mtime=0)[:-9], 'cannot be read'),
        (b'\x1f\x8b no gzip', 'cannot be read (Unknown compression method)'),
        (gzip.compress(b'{}' * 99, mtime=0)[:10] + b'\xff' * 99, 'cannot be read (Error -3'),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, content, complaint):
    path = tmp_path / 'given.json'
    path.write_bytes(content)
    assert refusal(formats.read, str(path)).startswith(f'{path}: {complaint}')


def test_format_is_known_though_the_first_record_is_not(convert_records):
    assert answers_of(convert_records(None, {'about': '甲'}, flat('甲', '甲'))) == ['甲']


def test_name_of_a_format_is_told_from_the_first_lines(tmp_path):
    """A broken line further on is for whoever converts; a file that is not there has no name."""
    (tmp_path / 'given.json').write_text(lines_of([rgb('甲', ['甲'])]) + '{', encoding='utf-8')
    assert formats.name_of_format(str(tmp_path / 'given.json')) == 'RGB'
    assert formats.name_of_format(str(tmp_path / 'nothing')) is None


# --------------------------------------------------------------------------------------------- ids


def test_ids_become_strings_that_differ(convert_records):
    """Numbers where there are none; no tab or line break, which ours may not hold."""
    ids = [7, '7', None, ' a\tb', '', '7#2', 1.5, 7]
    values = [
        {'id': name, 'question': f'{number}？', 'answers': [], 'ctxs': [{'text': '甲'}]}
        for number, name in enumerate(ids)
    ]
    converted = convert_records(*values)
    check(converted)
    assert [entry['id'] for entry in converted.records] == [
        '7', '7#2', '3', 'a b', '5', '7#2#2', '1.5', '7#3'
    ]  # fmt: skip


def test_id_that_is_told_apart_is_not_that_of_another(convert_records):
    values = [
        flat('甲', '甲', f'{number}？', id=name) for number, name in enumerate(['7', '7#2', '7'])
    ]
    assert [entry['id'] for entry in convert_records(*values).records] == ['7', '7#2', '7#3']


def test_answers_that_come_with_a_passage_again_are_not_for_others(convert_records):
    again = dureader(answers=['登录', '乙'])
    again['documents'] = [{'paragraphs': ['甲是乙']}]
    assert answers_of(convert_records(dureader(answers=['壬']), again)) == ['乙', '', '']


# --------------------------------------------------------------------------------- official answers


def test_answers_file_holds_nothing_that_breaks_it(tmp_path):
    """One line per question, those without answer included; what is harmless counts the same."""
    accepted = {'a': ['甲\t乙|丙', '甲\r\n乙'], 'b': [], 'c': ['丁']}
    converted = convert.Converted([], accepted, collections.Counter(), collections.Counter())
    convert.write(str(tmp_path / 'ours.json'), converted)
    path = tmp_path / 'ours.json.answers'
    assert path.read_bytes().decode() == 'a\t甲 乙 丙\t甲 乙 丙|甲  乙\nb\t\t\nc\t丁\t丁\n'
    assert [*load_official_answers(path)] == ['a', 'b', 'c']


# --------------------------------------------------------------------------------------- negatives


@pytest.fixture
def many(tmp_path):
    """A file of 60 questions, a passage each, of which many hold the answers of others."""
    rng = random.Random(0)
    values = []
    for number in range(60):
        passage = ''.join(rng.choices('甲乙丙丁戊己庚辛壬癸', k=3))
        values.append(cmrc(passage, passage[0], '蓝、白', question_id=f'D{number}'))
    values.append(cmrc('蓝，白', '蓝、白', question_id='D60'))
    write_json(tmp_path / 'many.json', values)
    return str(tmp_path / 'many.json')


def test_negatives_are_passages_of_others_without_an_accepted_answer(many):
    """As training would find it; the same seed draws the same."""
    plain, more = convert_file(many), convert_file(many, negatives=5)
    everything = {text for entry in plain.records for text, _ in given_by(entry)}
    drawn = collections.Counter()
    for before, after in zip(plain.records, more.records, strict=True):
        [own], [first, *added] = given_by(before), given_by(after)
        assert first == own and len({text for text, _ in added}) == len(added) == 5
        for text, answer in added:
            assert answer == '' and text in everything - {own[0]}
            assert not any(is_held(right, text) for right in plain.accepted[before['id']])
            drawn[text] += 1
    assert len(drawn) > 50 and not left_out(more)
    assert convert_file(many, negatives=5).records == more.records
    assert convert_file(many, negatives=5, seed=43).records != more.records


def test_negatives_that_are_wanting_are_told(convert_records, tmp_path):
    convert_records(flat('甲', '甲', '1？'), flat('甲乙', '乙', '2？'), flat('丙', '', '3？'))
    converted = convert_file(str(tmp_path / 'given.json'), negatives=2)
    negatives = [{text for text, _ in given_by(entry)[1:]} for entry in converted.records]
    assert negatives == [{'丙'}, {'甲', '丙'}, {'甲', '甲乙'}]
    assert left_out(converted) == {'negatives, as no more passages fit': 1}


def test_negatives_hold_no_answer_of_our_own_format_either(convert_records, tmp_path):
    """Which stands in other separators there."""
    convert_records(
        record_of(('甲、乙', '甲、乙'), question_id='a'),
        record_of(('乙。甲', ''), question_id='b'),
        record_of(('丁,戊', '丁,戊'), question_id='c'),
        record_of(('丁、戊', ''), question_id='d'),
    )
    converted = convert_file(str(tmp_path / 'given.json'), negatives=3)
    negatives = [{text for text, _ in given_by(entry)[1:]} for entry in converted.records]
    assert negatives[0] == {'丁,戊', '丁、戊'} and negatives[2] == {'甲、乙', '乙。甲'}


# ------------------------------------------------------------------------ contexts of usual length


def test_windows_reach_the_answers_that_are_cut_off(shared, script):
    """Of 100 that stand beyond 254 characters; only six questions are at hand, so some are made.

    They are pieces of the real contexts, as long as answers of CMRC2018 are.
    """
    source = formats.read(piece_of(shared, 'cmrc2018_dev.json'))
    rng, data = np.random.default_rng(0), []
    contexts = [text for question in source.questions for text, _ in question.passages]
    contexts = [script.unify_separators(text) for text in contexts if len(text) > 300]
    while len(data) < 100:
        text, length = contexts[rng.integers(len(contexts))], rng.integers(3, 21)
        start = rng.integers(254, len(text) - length + 1)
        answer = text[start : start + length]
        if answer not in text[:254]:
            data.append(record_of((text, answer)))
    reached = {}
    for stride in 0, 64, 128, 254:
        constants = script.Constants(passage_stride=stride)
        reached[stride] = sum(
            any(script.training_pair(each, rng, constants)[2] for _ in range(40)) for each in data
        )
    assert (reached[0], reached[64], reached[128]) == (0, 100, 100)
    assert 90 < reached[254] < 100  # the windows do not overlap: some answers are divided


@pytest.mark.slow
def test_demo_in_the_form_of_cmrc2018_is_learnt_as_well(script, tmp_path):
    """Each passage that answers is a context of its own, and others make up for those that do not.

    Validated like that, and on the demo's own passages.
    """
    demo = os.path.join(ROOT, 'data', 'demo')
    webqa, sogouqa = (
        records.load_questions(os.path.join(demo, name)) for name in ('WebQA.json', 'SogouQA.json')
    )
    output = tmp_path / 'output'
    output.mkdir()
    train, valid = script.split(webqa, sogouqa, script.Constants(output_dir=str(output)))
    for name, data in ('train', train), ('valid', valid):
        write_json(tmp_path / 'cmrc.json', [*contexts_of(data)])
        done = run(tmp_path / 'cmrc.json', tmp_path / f'{name}.json', '--negatives=3')
        assert done.returncode == 0, done.stderr
    write_json(tmp_path / 'demo.json', valid)
    options = [f'--output_dir={output}', f'--train_data={tmp_path / "train.json"}']
    status, out, err = call(script, 'train', *options, f'--valid_data={tmp_path / "valid.json"}')
    assert status == 0, err[-2000:]
    assert json.loads(out[-1])['Final'] >= 0.95
    options = [f'--output_dir={output}', f'--valid_data={tmp_path / "demo.json"}']
    status, out, err = call(script, 'eval', *options)
    assert status == 0, err[-2000:]
    assert json.loads(out[-1])['Final'] >= 0.95  # 0.97 where it is trained as it stands


def contexts_of(data):
    """Yield the passages of records that answer as contexts of CMRC2018."""
    for entry in {entry['id']: entry for entry in data}.values():
        for passage, answer in given_by(entry):
            if answer:
                asked = {'query_id': entry['id'], 'query_text': entry['question']}
                asked['answers'] = [answer] * 3
                yield {'context_id': '', 'context_text': passage, 'qas': [asked], 'title': ''}


# ------------------------------------------------------------------------------------- the command


def run(*arguments):
    """Run the command as a process of nothing but Python's own library."""
    command = [sys.executable, '-I', '-S', COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding='utf-8', check=False)


def test_command_writes_two_files_and_tells_what_it_did(tmp_path):
    given, ours = tmp_path / 'given.jsonl', tmp_path / 'ours.json'
    values = [flat('甲', '甲', '1？'), flat('乙', '丁', '2？'), flat('', '', '3？')]
    given.write_text(lines_of(values), encoding='utf-8')
    done = run(given, ours, '--negatives=1', '--seed=7')
    assert (done.returncode, done.stdout) == (0, '')
    assert done.stderr.splitlines() == [
        f'{given}: flat lines in UTF-8',
        'questions: 2, answered: 1; passages: 4, answered: 1',
        'answers that no passage holds: 1 of 2',
        'left out: empty passages: 1; records without a passage: 1',
    ]
    assert [*map(given_by, records.load_questions(ours))] == [
        [('甲', '甲'), ('乙', '')], [('乙', ''), ('甲', '')]
    ]  # fmt: skip
    answers = (tmp_path / 'ours.json.answers').read_text(encoding='utf-8')
    assert answers == '1\t甲\t甲\n2\t丁\t丁\n'
    assert {*os.listdir(tmp_path)} == {'given.jsonl', 'ours.json', 'ours.json.answers'}


def test_command_draws_by_its_seed(many, tmp_path):
    for seed in 7, 8:
        assert run(many, tmp_path / 'ours.json', '--negatives=5', f'--seed={seed}').returncode == 0
        expected = convert_file(many, negatives=5, seed=seed).records
        assert records.load_questions(tmp_path / 'ours.json') == expected


def test_command_says_where_nothing_was_left_out(tmp_path):
    write_json(tmp_path / 'given.json', [flat('甲', '甲')])
    done = run(tmp_path / 'given.json', tmp_path / 'ours.json')
    assert done.stderr.endswith('\nleft out: nothing\n')


@pytest.mark.parametrize(
    ('arguments', 'complaint'),
    [
        (['nothing', 'ours'], 'nothing: cannot be read (No such file or directory)'),
        (['.', 'ours'], '.: cannot be read (Is a directory)'),
        (['strange', 'ours'], 'strange: a format that is not known'),
        (['cut', 'ours'], 'cut: no JSON that can be read'),
        (['typed', 'ours'], 'typed: record 2 of flat lines: "context" is a number'),
        (['given', 'folder'], 'folder: is a folder'),
        (['given', 'nowhere/ours'], 'nowhere/ours: cannot be written'),
        (['given', 'blocked'], 'blocked.answers: is a folder'),
        (['given', 'given'], 'given: is what is to be converted'),
        (['given.answers', 'given'], 'given.answers: is what is to be converted'),
        (['given'], 'the following arguments are required: OUTPUT; see --help'),
        (['given', 'ours', '--negatives=-1'], "argument --negatives: '-1' is not a whole number"),
        (['given', 'ours', '--negatives=a'], "argument --negatives: 'a' is not a whole number"),
        (['given', 'ours', '--seed=1.5'], "argument --seed: '1.5' is not a whole number"),
        (['given', 'ours', 'more'], 'unrecognized arguments: more; see --help'),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    for name in 'given', 'given.answers':
        write_json(tmp_path / name, [flat('甲', '甲')])
    write_json(tmp_path / 'strange', {'0': {'q': '谁？', 'a': '甲'}})
    write_json(tmp_path / 'typed', [flat('甲', '甲'), flat(7, '甲')])
    (tmp_path / 'cut').write_text('[{"context": "', encoding='utf-8')
    for name in 'folder', 'blocked.answers':
        (tmp_path / name).mkdir()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in os.listdir(tmp_path)}
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, '')
    [line] = done.stderr.splitlines()
    assert line.startswith(complaint)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in os.listdir(tmp_path)} == before
