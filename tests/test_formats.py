"""data/convert.py and data/formats.py: public files become ours (damage: test_fuzzing.py)."""

import contextlib
import gzip
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, record_of, refusal, write_json
from runs import call

from evaluate_sogou import Reference, evaluate, load_official_answers
from support import records
from support.process import exit_status

sys.path.insert(0, os.path.join(ROOT, 'data'))
import convert
import formats

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


def convert_file(path, negatives=0, seed=42):
    converted = convert.convert(formats.read(str(path)))
    convert.add_negatives(converted, negatives, seed)
    return converted


def right_answers(converted):
    return {name: [*right.variants] for name, right in converted.accepted.items()}


@pytest.fixture
def given(tmp_path):
    """A function that writes bytes, a text, or a value as JSON. Returns the path."""

    def write(content):
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        (tmp_path / 'given').write_bytes(content)
        return str(tmp_path / 'given')

    return write


def pairs_of(record):
    return [(passage['passage'], passage['answer']) for passage in record['passages']]


def is_held(answer, passage):
    """Whether training finds an answer in a passage, said once more."""
    passage = re.sub('[ 、；，]', ',', passage)
    return all(part in passage for part in answer.split(' '))


@pytest.mark.parametrize('name', PIECES)
def test_real_piece_converts_to_what_training_makes_of_it(shared, script, name, tmp_path, capsys):
    """Our own loader and the scorer have nothing to say about it, but of the piece itself."""
    path, ours, answers = f'{shared}/formats/{name}', tmp_path / 'ours', tmp_path / 'ours.answers'
    converted = convert_file(path)
    convert.write(str(ours), converted)
    assert records.load_questions(ours) == converted.records and capsys.readouterr() == ('', '')
    constants, rng = script.Constants(max_p_len=100_000), np.random.default_rng(0)
    for entry in converted.records:
        assert [*entry] == ['id', 'question', 'passages'] and entry['question'].strip()
        for text, answer in pairs_of(entry):
            assert text.strip() and is_held(answer, text) and answer == answer.strip()
            alone = record_of((text, answer), question=entry['question'])
            *_, target = script.training_pair(alone, rng, constants)
            assert target == answer.replace(' ', ',')
    held = [[bool(answer) for _, answer in pairs_of(entry)] for entry in converted.records]
    counts = len(held), sum(map(any, held)), sum(map(len, held)), sum(map(sum, held))
    of_format, *expected = PIECES[name]
    assert (formats.read(path).name, *counts) == (f'{of_format} in UTF-8', *expected)
    assert answers.exists() == (name != 'dureader2_search.test.json')  # which has no answers
    if answers.exists():
        assert [*load_official_answers(answers)] == [entry['id'] for entry in converted.records]
    cure = f'python data/convert.py {path} NEW.json'
    assert refusal(records.load_questions, path).endswith(cure)


@pytest.mark.slow
def test_real_pieces_can_be_trained_on_and_answered(script, shared, tmp_path):
    """Also those with no answers at all; with the small trained BERT, in windows."""
    for name in PIECES:
        convert.write(str(tmp_path / name), convert_file(f'{shared}/formats/{name}', negatives=2))
    for name in 'cmrc2018_dev.json', 'dureader2_search.test.json':
        options = [
            f'--output_dir={tmp_path}/output of {name}', '--passage_stride=128', '--epochs=1',
            f'--checkpoint_path={shared}/tiny_bert', f'--dict_path={shared}/vocab.txt',
            f'--train_data={",".join(str(tmp_path / name) for name in PIECES)}',
            f'--valid_data={tmp_path / name}',
        ]  # fmt: skip
        status, out, err = call(script, 'train', *options)
        assert status == 0 and json.loads(out[-1])['total'] == PIECES[name][1], err[-2000:]
        status, _, err = call(script, 'predict', tmp_path / name, *options)
        assert status == 0, err[-2000:]


def cmrc(context, *answers, question_id='D'):
    asked = {'query_text': '谁？', 'query_id': question_id, 'answers': answers}
    return {'context_id': 'D', 'context_text': context, 'qas': [asked], 'title': ''}


def flat(context, answer, question='谁？', **more):
    return {'context': context, 'answer': answer, 'question': question, **more}


@pytest.mark.parametrize(
    ('context', 'answers', 'found', 'missed'),
    [
        ('甲是乙。', ['丙', '乙', '甲'], '乙', 1),  # the first that is there
        ('甲是乙', ['乙 。'], '乙', 0),  # a full stop that was added
        ('甲是乙。', ['乙。'], '乙。', 0),
        ('那是 1999年', [' 1999年', '\u30001999年 '], '1999年', 0),  # outer spaces
        ('蓝、白、红三色', ['蓝、白、红'], '蓝 白 红', 0),  # its own separators
        ('蓝，白；红 三色', ['白；红'], '白 红', 0),
        ('红、白、蓝', ['蓝、白、红'], '蓝 白 红', 0),  # each part by itself
        ('蓝、白、红', ['蓝、白、绿', '蓝白红'], '', 2),
        ('蓝、白', ['蓝,白'], '蓝,白', 0),  # as training sees the passage
        ('May 18, 2018', ['May 18, 2018'], 'May 18, 2018', 0),
        ('no_answer', ['no_answer', 'No Answer', '无答案', '', ' ', '、', None], '', 0),
        # a number of a spreadsheet: a date, or a whole one with `.0`; else it is nobody's answer
        ('2008年11月12日首次登场', [39764.0], '2008年11月12日', 0),
        ('2008年11月13日首次登场', [39764.0], '', 1),
        ('占第147位', [147.0], '147', 0),
        ('占第1470位，第2147位', ['147.0'], '', 1),  # of other numbers
        ('版本2.0', [2.0], '2.0', 0),
        ('有12345678人', [12345678.0], '12345678', 0),  # no date
    ],
)
def test_answer_is_the_first_that_the_passage_holds(given, context, answers, found, missed):
    """As training looks for it; the passage stays as it is."""
    converted = convert_file(given([cmrc(context, *answers)]))
    assert pairs_of(converted.records[0]) == [(context, found)]
    assert converted.sought[False] == missed
    if missed and str(answers[0]).endswith('.0'):
        assert converted.accepted == {'D': Reference('', ())}


def squad(*entries):
    """A file of SQuAD: entries, lists of paragraphs (context, {id: [(answer, start), ...]})."""

    def paragraph(context, asked):
        given = {name: [{'text': x, 'answer_start': at} for x, at in asked[name]] for name in asked}
        qas = [{'question': '谁？', 'id': name, 'answers': given[name]} for name in given]
        return {'context': context, 'id': 'P', 'qas': qas}

    made = [[paragraph(*each) for each in paragraphs] for paragraphs in entries]
    return {'data': [{'paragraphs': each, 'id': 'T', 'title': ''} for each in made]}


def dureader(**more):
    paragraphs = ['甲是乙', '登录'], ['甲 是丙', '']
    documents = [{'title': '丁', 'paragraphs': each} for each in paragraphs]
    return {'documents': documents, 'question': '谁？', 'question_id': 181, **more}


def webqa(*evidences, golden='契诃夫'):
    """A record of WebQA in tokens, of evidences (text, type)."""
    made = []
    for text, kind in evidences:
        made.append({'evidence_tokens': [*text], 'golden_answers': [[*golden]], 'type': kind})
        made[-1]['eecom_features_list'] = [{'other_evi_tokens': ['乙'], 'type': 'positive'}]
        if not kind:
            del made[-1]['type']
    return {'q_key': 'Q', 'question_tokens': ['谁', '？'], 'evidences': made}


def rgb(answer, positive, negative=(), **more):
    passages = {'positive': positive, 'negative': [*negative]}
    return {'id': 0, 'query': '谁？', 'answer': answer, **passages, **more}


def domainrag(contents, answers, retrieved=(), **more):
    reference = [{'title': '丁', 'id': '159', 'date': None, 'contents': contents}]
    found = [{'id': 3, 'contents': text} for text in retrieved]
    more = {'retrieved_psgs': found, **more} if found else more
    return {'question': '谁？', 'positive_reference': reference, 'answers': answers, **more}


def ours(question_id, *passages, question='谁？'):
    """A record of our own; passages: 'text' or 'text→answer'."""
    pairs = [passage.partition('→')[::2] for passage in passages]
    return record_of(*pairs, question=question, question_id=question_id)


def rule(name, value, *expected, accepted=None, left_out=None):
    """A row: what a file holds, our records, accepted answers, and what is left out."""
    return pytest.param(value, [*expected], accepted, left_out, id=name)


CONVERSATION = domainrag('甲 是 乙', ['丙', '乙'], history_qa=[{'question': '谁'}] * 2)
CONVERSATION['positive_reference'] = CONVERSATION['positive_reference'][0]
NO_QUESTION, NO_PASSAGE = 'records without a question', 'records without a passage'
NO_TEXT, FORGED = 'empty passages', 'passages with a forged answer ("positive_wrong")'
OUR_OWN = [ours('a#1', ' 甲、乙\t→甲、乙', '丙→丁'), ours('b', '丙，丁→丙，丁', '甲')]
AGAIN = {**dureader(answers=['登录', '乙']), 'documents': [{'paragraphs': ['甲是乙']}]}
PARTS = [{'passage': '甲乙', 'answer': ['甲 ', '', '乙']}, {'passage': '丙', 'answer': None}]
FOUND = {'法国最高': '法国', '日本': 'no_answer', '儒家': '儒家"'}
EVIDENCES = {f'{text}#0': {'answer': [each], 'evidence': text} for text, each in FOUND.items()}
CTXS = [{'text': 'in 2010', 'hasanswer': told} for told in (True, False)] + [{'text': 'or 2010'}]
IDS = [(7, '7'), ('7#2', '7#2'), ('7', '7#3'), ('7#3', '7#3#2'), (None, '5'), ('', '6'),
       (' a\tb', 'a b'), (1.5, '1.5')]  # fmt: skip
DPR = {'question': '谁？', 'answers': ['1', '2010'], 'ctxs': CTXS}


@pytest.mark.parametrize(
    ('value', 'expected', 'accepted', 'reasons'),
    [
        rule('accepted answers are kept though no passage holds them, each once, as it is read',
             [cmrc('甲是乙', '丙。', '乙。', '乙', 39764.0, 'no_answer')], ours('D', '甲是乙→乙'),
             accepted={'D': ['丙。', '乙']}),
        rule('questions about one context are a record each; offsets are not believed, -1 or wrong',
             squad([('甲是乙', {'a': [('乙', -1)], 'b': [('乙', 1)], 'c': [('147.0', -1)]})]),
             ours('a', '甲是乙→乙'), ours('b', '甲是乙→乙'), ours('c', '甲是乙')),
        rule('all paragraphs of SQuAD are read; the same text of another id is another question',
             squad([('甲', {'a': [('甲', 0)]}), ('甲', {'b': [('甲', 0)]})], [('乙', {'c': []})]),
             ours('a', '甲→甲'), ours('b', '甲→甲'), ours('c', '乙')),
        rule('contexts of one id and question become one record',
             squad(*([(context, {'Q': [('乙', 0)]})] for context in ('甲乙', '乙丙', '甲乙'))),
             ours('Q', '甲乙→乙', '乙丙→乙'),
             left_out={'passages that came again with their question': 1}),
        rule('paragraphs of all documents of DuReader are passages, titles none; a test set',
             [dureader(segmented_question=['谁', '？'])],
             ours('181', '甲是乙', '登录', '甲 是丙'), accepted={'181': []}, left_out={NO_TEXT: 1}),
        rule('DuReader: entities first, then what people wrote',
             [dureader(answers=['是的，是乙', '登录'], fake_answers=['甲是'],
                       entity_answers=[[], ['乙'], ['丙', '甲']])],
             ours('181', '甲是乙→乙', '登录→登录', '甲 是丙→丙 甲'),
             accepted={'181': ['乙', '丙 甲', '是的 是乙', '登录']}),
        rule('DuReader: fake answers, found by a program, do not count as right',
             [dureader(answers=['壬'], fake_answers=['甲是'], entity_answers=[[]])],
             ours('181', '甲是乙→甲是', '登录', '甲 是丙'), accepted={'181': ['壬']}),
        rule('answers that come with a passage again are not for others',
             [dureader(answers=['壬']), AGAIN], ours('181', '甲是乙→乙', '登录', '甲 是丙')),
        rule('WebQA: of the golden answers on all evidences those of positive ones; repeats stay',
             [webqa(('契诃夫写的', 'positive'), ('契诃夫没写', 'hit_answer_negative'),
                    ('谁写的', 'other_negative'), ('契诃夫写的', 'positive'))],
             ours('Q', '契诃夫写的→契诃夫', '契诃夫没写', '谁写的', '契诃夫写的→契诃夫'),
             accepted={'Q': ['契诃夫']}),
        *(rule('WebQA: they count where none is positive; those of no type, to train on, give them',
               [webqa(('契诃夫写的', kind))], ours('Q', f'契诃夫写的→{held}'),
               accepted={'Q': ['契诃夫']})
          for kind, held in [('hit_answer_negative', ''), (None, '契诃夫')]),
        *(rule('WebQA: no_answer is none', [webqa(('no_answer', kind), golden=['no_answer'])],
               ours('Q', 'no_answer'), accepted={'Q': []}) for kind in ('other_negative', None)),
        rule('keys of the other WebQA are its ids',
             {'Q': {'question': '谁？', 'evidences': EVIDENCES}},
             ours('Q', '法国最高→法国', '日本', '儒家'), accepted={'Q': ['法国', '儒家"']}),
        *(rule('lists of RGB are parts and lists in them spellings', [rgb(answer, ['丙、甲'])],
               ours('0', f'丙、甲→{held}'), accepted={'0': [*accepted]})
          for answer, held, *accepted in [
            ('甲', '甲', '甲'), (['甲', '乙'], '', '甲 乙'), ([['甲', '丙']], '甲', '甲', '丙'),
            (['甲', ['乙', '丙']], '甲 丙', '甲 乙', '甲 丙'), (['甲', [], ''], '甲', '甲'),
            ([], '')]),
        rule('negative passages of RGB give nothing whatever they hold; repeats stay',
             [rgb('甲', ['甲', '乙', '甲'], ['甲', '丙'])],
             ours('0', '甲→甲', '乙', '甲→甲', '甲', '丙')),
        rule('forged answers of RGB are never learnt',
             [rgb('甲', ['甲是'], fakeanswer=['乙'], positive_wrong=['乙是'])],
             ours('0', '甲是→甲'), accepted={'0': ['甲']}, left_out={FORGED: 1}),
        *(rule('each list of positive passages of RGB gives one fact; only all count as right',
               [rgb([*first, *second], lists, asnwer1=[*first], answer2=[*second])],
               ours('0', *held)) for first, second, lists, *held in [
            ('甲', '乙', [['甲乙', '甲'], ['甲乙', '甲']], '甲乙→甲', '甲→甲', '甲乙→乙', '甲'),
            (['甲'], [['丙', '乙']], [['甲'], ['乙']], '甲→甲', '乙→乙'),
            ('甲乙', '丙', [['乙甲', '甲'], ['丙']], '乙甲→甲 乙', '甲', '丙→丙'),
            ('甲乙丙', '', [['甲'], ['乙'], ['甲丙']], '甲→甲', '乙→乙', '甲丙→丙')]),
        *(rule('the segmentation of DomainRAG is joined, but for Latin words and numbers',
               [domainrag(text, [[answer]])], ours('1', f'{joined}→{answer}'))
          for text, answer, joined in [
            ('法学院 成立 于 1999 年 ， 共 12.5% 。', '1999年', '法学院成立于1999年，共12.5%。'),
            ('用 Visual Basic 6 写 ， 见 New York', 'New York', '用Visual Basic 6写，见New York'),
            ('2023 - 11 - 04 \n Beyoncé A 是  歌手', '是歌手', '2023-11-04\nBeyoncé A是歌手')]),
        rule('lists of DomainRAG are alternatives and lists in them parts',
             [domainrag('汉语 、 法语', [['英语'], ['法语', '汉 语']])],
             ours('1', '汉语、法语→法语 汉语'), accepted={'1': ['英语', '法语 汉语']}),
        rule('retrieved passages of DomainRAG come after the given ones; their ids are their own',
             [domainrag('甲 是', [['甲']], ['乙 甲', '甲 是', '丙'])],
             ours('1', '甲是→甲', '乙甲→甲', '丙'),
             left_out={'passages that were given and retrieved': 1}),
        rule('the same question of DomainRAG about another year is another',
             [domainrag('甲', [['甲']], date='2014'), domainrag('乙', [['乙']], date='2023')],
             ours('1', '甲→甲'), ours('2', '乙→乙'), left_out={'years asked about ("date")': 2}),
        rule('conversations of DomainRAG have one reference and a flat list', [CONVERSATION],
             ours('1', '甲是乙→乙'), accepted={'1': ['丙', '乙']},
             left_out={'earlier turns ("history_qa")': 2}),
        rule('contexts without the answer, by `hasanswer`, give none: a 1 stands in 2010 too',
             [{'id': '0', **DPR}, DPR],
             *(ours(name, 'in 2010→1', 'in 2010', 'or 2010→1') for name in '02'),
             accepted={'0': ['1', '2010'], '2': ['1', '2010']}),
        rule('lines of one question become one record, each with an id of its own or a passage',
             [flat('公元前 B.C.', 'B.C.E.', id=6), flat('公元前 B.C.', ' B.C.', id=7),
              flat('公元前 B.C.', 'B.C.', '简写', id=8), flat('B.C.', '', id=9)],
             ours('6', '公元前 B.C.→B.C.', 'B.C.'), ours('8', '公元前 B.C.→B.C.', question='简写'),
             accepted={'6': ['B.C.E.', 'B.C.'], '8': ['B.C.']}),
        rule('flat lines may name passage and query',
             [{'passage': '甲', 'query': '谁？', 'answer': '甲', 'class': 1}], ours('1', '甲→甲')),
        rule('our own format passes as it stands', OUR_OWN, *OUR_OWN,
             accepted={'a#1': ['甲、乙', '丁'], 'b': ['丙，丁']}),
        rule('parts of our own format are separated by one space; an answer may be missing',
             [{'id': 'a', 'question': '谁？', 'passages': [*PARTS, {'passage': '丁'}]}],
             ours('a', '甲乙→甲 乙', '丙', '丁'), accepted={'a': ['甲 乙']}),
        *(rule('what lacks something is left out and told', [flat('甲', '甲'), *lacking],
               ours('1', '甲→甲'), left_out=reasons) for lacking, reasons in [
            ([flat('', '甲'), flat(' \n', '甲')], {NO_TEXT: 2, NO_PASSAGE: 2}),
            ([flat('甲', '甲', ' '), flat('甲', '甲', None)], {NO_QUESTION: 2}),
            ([None, {}, {'id': '2'}], {NO_TEXT: 3, NO_QUESTION: 3})]),
        rule('contexts without a question are told',
             [cmrc('甲', '甲'), *({'context_text': '甲', 'qas': none} for none in ([], None))],
             ours('D', '甲→甲'), left_out={NO_QUESTION: 2}),
        rule('paragraphs without a question too', squad([('甲', {'a': []}), ('乙', {})], []),
             ours('a', '甲'), left_out={NO_QUESTION: 2, NO_TEXT: 1}),
        rule('the format is known though the first record is not',
             [{'about': '甲'}, flat('甲', '甲')], ours('1', '甲→甲')),
        rule('ids become strings that differ, numbers where there are none, without tabs',
             [flat('甲', '', f'{number}？', id=name) for number, (name, _) in enumerate(IDS)],
             *(ours(name, '甲', question=f'{number}？') for number, (_, name) in enumerate(IDS))),
        rule('control characters are read; NaN is nothing, as in a table',
             '{"context": "甲\t\x01\r", "question": "谁？", "answer": NaN}',
             ours('1', '甲\t\x01\r'), accepted={'1': []}),
    ],
)  # fmt: skip
def test_format_by_format(given, value, expected, accepted, reasons):
    converted = convert_file(given(value))
    assert converted.records == expected
    assert accepted is None or right_answers(converted) == accepted
    assert reasons is None or +converted.left_out == reasons


HF = {'id': 'a', 'title': '', 'context': '甲是乙', 'question': '谁？'}
FOUND_IN_HF = {'text': ['丙', '乙'], 'answer_start': [9, 2]}
HOTPOT = {'_id': 'a', 'question': '谁？', 'answer': '乙', 'type': 'bridge', 'level': 'hard'}
MARCO = {'query': '谁？', 'query_id': 5, 'query_type': 'PERSON', 'wellFormedAnswers': '[]'}
SELECTED = {'is_selected': [0, 1], 'passage_text': ['乙丙', '甲是乙'], 'url': ['', '']}
MUSIQUE = [{'idx': i, 'title': '', 'paragraph_text': text, 'is_supporting': i > 0}
           for i, text in enumerate(['乙丙', '甲是乙'])]  # fmt: skip
RAGAS = {'question': '谁？', 'answer': '甲', 'contexts': ['甲是乙', '乙丙']}
SAMPLE = {
    'user_input': '谁？',
    'retrieved_contexts': ['甲是乙'],
    'response': '甲',
    'reference': '乙',
}
LONG = {'input': '谁？', 'context': '甲是乙', 'length': 3, 'language': 'zh', '_id': 'a'}
WHO, OURS = {'question': '谁？'}, {'passage': '甲是乙', 'answer': '乙'}
TITLED = {'title': ['丁', '戊'], 'sentences': [['乙丙'], ['甲是', '乙']]}


@pytest.mark.parametrize(
    ('known', 'value', 'expected', 'right'),
    [
        ('Hugging Face datasets', [{**HF, 'answers': FOUND_IN_HF}], ['甲是乙→乙'], ['丙', '乙']),
        # tables of pandas and `datasets`, by columns, or with the names of columns apart
        *(('Hugging Face datasets', table, ['甲是乙→乙'], ['乙']) for table in [
            {name: {'0': value} for name, value in {**HF, 'answers': {'text': ['乙']}}.items()},
            {name: [value] for name, value in {**HF, 'answers': {'text': ['乙']}}.items()},
            {'columns': [*HF, 'answers'], 'index': [0], 'data': [[*HF.values(), ['乙']]]}]),
        ('MS MARCO', [{**MARCO, 'answers': ['乙'], 'passages': SELECTED}], ['乙丙', '甲是乙→乙'],
         ['乙']),
        ('MS MARCO', [{**MARCO, 'answers': ['No Answer Present.'], 'passages': [
            {'is_selected': 0, 'passage_text': '乙丙'}]}], ['乙丙'], []),
        ('HotpotQA', [{**HOTPOT, 'supporting_facts': [['戊', 0]], 'context': [
            ['丁', ['乙丙']], ['戊', ['甲是', '乙']]]}], ['乙丙', '甲是乙→乙'], ['乙']),
        ('HotpotQA', [{**HOTPOT, 'supporting_facts': {'title': ['戊'], 'sent_id': [0]},
                       'context': TITLED}], ['乙丙', '甲是乙→乙'], ['乙']),
        ('HotpotQA', [{**HOTPOT, 'supporting_facts': [], 'evidences': [['丁', '是', '乙']],
                       'context': [['戊', ['Who is', 'he?', ' He is.']]]}], ['Who is he? He is.'],
         ['乙']),
        ('MuSiQue', [{**WHO, 'paragraphs': MUSIQUE, 'answer': '丁',
                      'answer_aliases': ['乙'], 'answerable': True}], ['乙丙', '甲是乙→乙'],
         ['丁', '乙']),
        ('MuSiQue', [{**WHO, 'paragraphs': MUSIQUE, 'answer': '乙',
                      'answerable': False}], ['乙丙', '甲是乙'], []),
        # what stands beside the truth is a system's
        *(('ragas', [{**RAGAS, **truth}], ['甲是乙→乙', '乙丙→乙'], ['乙'])
          for truth in ({'ground_truth': '乙'}, {'ground_truths': ['乙']})),
        ('ragas', [RAGAS], ['甲是乙→甲', '乙丙'], ['甲']),
        ('ragas', [SAMPLE], ['甲是乙→乙'], ['乙']),
        ('LongBench', [{**LONG, 'answers': ['丙', '乙']}], ['甲是乙→乙'], ['丙', '乙']),
        ('FiD or DPR', [{**WHO, 'answers': ['乙'], 'positive_ctxs': [{'text': '甲是乙'}],
                         'hard_negative_ctxs': [{'text': '乙丙'}]}], ['甲是乙→乙', '乙丙'], ['乙']),
        *(('FiD or DPR', [{**WHO, 'answers': ['乙'], 'ctxs': [
            {'text': '乙丙', key: no}, {'text': '甲是乙', key: 1}]}], ['乙丙', '甲是乙→乙'], ['乙'])
          for key in ('hasanswer', 'has_answer') for no in (False, 0, 'False', '0')),
        *(('SQuAD', [{'paragraphs': [{'context': '甲是乙', 'qas': [
            {**WHO, key: answers}]}]}], ['甲是乙→乙'], ['乙'])
          for key in ('answer', 'answers') for answers in ('乙', ['乙'], [{'text': '乙'}])),
        # a list of `answer` is parts, one of `answers` alternatives; lists in lists
        ('flat lines', [flat('甲是乙', [['丙', '乙'], '甲'])], ['甲是乙→乙 甲'],
         ['丙 甲', '乙 甲']),
        ('Hugging Face datasets', [{**HF, 'answers': [['丙'], ['乙', '甲']]}], ['甲是乙→乙 甲'],
         ['丙', '乙 甲']),
        ('questions and passages', [{**WHO, 'passages': ['甲是乙', '乙是丁'], 'answer': '乙'}],
         ['甲是乙→乙', '乙是丁→乙'], ['乙']),
        ('our own format', [{**WHO, 'passages': ['甲', OURS]}],
         ['甲', '甲是乙→乙'], ['乙']),
        # to predict from
        ('questions and passages', [{**WHO, 'context': [['丁', ['甲', '乙']]]}], ['甲乙'], []),
        ('questions and passages', [{'query': '谁？', 'documents': ['甲']}], ['甲'], []),
    ],
)  # fmt: skip
def test_what_common_tools_write_is_read(given, tmp_path, known, value, expected, right):
    """As a list and in lines; `train` and `predict` name the command that makes it ours."""
    for content in [value, lines_of(value)] if isinstance(value, list) else [value]:
        path, converted = given(content), convert_file(given(content))
        assert formats.read(path).name == f'{known} in UTF-8'
        [entry] = converted.records
        told = [f'{text}→{answer}' if answer else text for text, answer in pairs_of(entry)]
        assert told == expected and [*right_answers(converted).values()] == [right]
        convert.write(str(tmp_path / 'ours.json'), converted)
        assert records.load_questions(str(tmp_path / 'ours.json')) == converted.records
    said = refusal(records.load_questions, path)
    assert said.endswith(f'; convert it: python data/convert.py {path} NEW.json')


LINES = [flat('甲\u2028是', '甲', id=1), flat('乙是', '乙', '是谁？', id=2)]


def lines_of(values, end='\n', indent=None):
    return ''.join(json.dumps(each, ensure_ascii=False, indent=indent) + end for each in values)


OTHER = lines_of([flat('甲是乙丙', '甲是', '是谁')]).encode()
OTHER = OTHER.replace('甲'.encode(), b'\x81' + '甲'.encode()[1:], 1)
UNKNOWN = 'a format that is not known; keys: {}; known: our own format; CMRC2018; '


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        *(([flat('甲', '甲'), second], f'record 2 of flat lines: {wrong}') for second, wrong in [
            (flat([7], '甲'), '"context" is a number; expected a record'),
            (flat('甲', {'a': 1}), '"answer" is a record; expected a string'),
            (flat('甲', [[[['甲']]]]), '"answer" is a list; expected a string'),
            (flat('甲', '甲', id=['a']), '"id" is a list; expected a string'),
            (flat('甲', '\ud800'), '"answer" holds half a character'),
            (['甲'], '"record" is a list; expected a record')]),
        *(([rgb(['甲'], [['甲'], ['乙'], ['丙']], asnwer1=['甲'], answer2=second)],
           'record 1 of RGB: "asnwer1" and "answer2" are not one for each list of "positive"')
          for second in (['乙', '丙'], None)),
        ([flat('', '甲')], 'flat lines, but no question has a passage'),  # ours would be empty
        ({'0': {'q': '谁？', 'a': '甲'}}, UNKNOWN.format("'id', 'q', 'a'")),  # of evidence "a"
        ([{'query': '谁？', 'passages': []}], 'questions and passages, but no question has a pas'),
        ({'a\nb': 1}, UNKNOWN.format(r"'a\nb'")),
        *((each, UNKNOWN.format('none')) for each in ([], '', '7 "a"')),
        ([{'context': '甲', 'title': '谁？'}], UNKNOWN.format("'context', 'title'")),
        ({'a' * 99: 1}, UNKNOWN.format(f"'{'a' * 30}'")),
        ('[' + '9' * 5000 + ']', 'no JSON that can be read'),
        (OTHER, 'not UTF-8 at byte 13, nor GB18030'),  # damaged: it would be other characters
        (gzip.compress(b'{}' * 99, mtime=0)[:10] + b'\xff' * 99, 'cannot be read (Error -3'),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_of_no_format_or_of_other_types_is_refused(given, content, said):
    path = given(content)
    assert refusal(formats.read, path).startswith(f'{path}: {said}')


CONTAINERS = {
    'list': json.dumps(LINES, ensure_ascii=False, indent=4),
    'escapes': json.dumps(LINES),
    'lines': lines_of(LINES).rstrip(),
    'blank lines, CRLF': '\n\n' + lines_of(LINES, '\r\n \n'),
    'indented records': lines_of(LINES, '', indent=1),
    'dict': json.dumps(dict(enumerate(LINES)), ensure_ascii=False),
}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'gb18030'])
@pytest.mark.parametrize('container', CONTAINERS)
def test_container_and_encoding_make_no_difference(given, container, encoding):
    """Nor does compression; U+2028 ends no line."""
    content = CONTAINERS[container].encode(encoding)
    in_gb = encoding == 'gb18030' and container != 'escapes'
    for path in given(content), given(gzip.compress(content, mtime=0)):
        source = formats.read(path)
        assert source.name == f'flat lines in {"GB18030" if in_gb else "UTF-8"}'
        expected = [ours('1', '甲\u2028是→甲'), ours('2', '乙是→乙', question='是谁？')]
        assert convert.convert(source).records == expected


def test_negatives_are_passages_of_others_without_an_accepted_answer(given):
    """As training would find it; the same seed draws the same."""
    drawn, texts = set(), [*map(''.join, itertools.combinations('甲乙丙丁戊己庚', 3)), '蓝，白']
    path = given([cmrc(each, each[0], '蓝、白', question_id=f'D{each}') for each in texts])
    plain, more = convert_file(path), convert_file(path, negatives=5)
    for before, after in zip(plain.records, more.records, strict=True):
        [own], [first, *added] = pairs_of(before), pairs_of(after)
        assert first == own and len({*added}) == len(added) == 5
        for text, answer in added:
            assert answer == '' and text in {*texts} - {own[0]}
            assert not any(is_held(right, text) for right in right_answers(plain)[before['id']])
        drawn |= {*added}
    assert len(drawn) > 30 and not more.left_out['negatives, as no more passages fit']
    assert convert_file(path, negatives=5).records == more.records
    assert convert_file(path, negatives=5, seed=43).records != more.records


def test_negatives_that_are_wanting_are_told(given):
    """An answer of our own format stands in other separators elsewhere."""
    texts = [('甲、乙', '甲、乙'), ('乙。甲', ''), ('丁,戊', '丁,戊'), ('丁、戊', '')]
    values = [record_of(each, question_id=f'{number}') for number, each in enumerate(texts)]
    converted = convert_file(given(values), negatives=3)
    assert [{text for text, _ in pairs_of(entry)[1:]} for entry in converted.records] == [
        {'丁,戊', '丁、戊'}, {'甲、乙', '丁,戊', '丁、戊'}, {'甲、乙', '乙。甲'},
        {'甲、乙', '乙。甲', '丁,戊'},
    ]  # fmt: skip
    assert +converted.left_out == {'negatives, as no more passages fit': 2}


@pytest.mark.parametrize(
    ('answers', 'predicted', 'accuracy', 'line'),
    [  # parts may come in any order in the standard answer: the most frequent one, or the first
        (['丙', '甲 乙', ['甲 ', '乙']], '乙、甲', 1, '甲 乙\t丙|甲 乙'),
        (['丙', '甲 乙', '乙 甲'], '丁、丙', 0, '丙\t丙|甲 乙|乙 甲'),
        (['乙。', 'no_answer', '147.0', '甲、乙'], '147', 0, '乙。\t乙。|147.0|甲、乙'),
        (['', ''], '甲', 0, '\t'),
        (['甲\t|\n乙'], '甲乙', 1, '甲   乙\t甲   乙'),
    ],
)
def test_own_format_is_scored_as_before_it_was_converted(
    given, tmp_path, answers, predicted, accuracy, line
):
    """Its passages' answers count, as they stand; negatives do not."""
    asked = record_of(*(('甲', answer) for answer in answers))
    path, output = given([asked, record_of(('丁', '丁'), question_id='b')]), tmp_path / 'ours'
    convert.write(str(output), convert_file(path, negatives=1))
    written = tmp_path / 'ours.answers'
    assert written.read_text(encoding='utf-8') == f'a\t{line}\nb\t丁\t丁\n'
    (tmp_path / 'predicted').write_text(f'a\t{predicted}\n', encoding='utf-8')
    own = records.dataset_answers(records.load_questions(path))
    before, after = (
        evaluate(tmp_path / 'predicted', each) for each in (own, load_official_answers(written))
    )
    assert before == after and after['Accuracy'] == accuracy


def test_command_writes_two_files_and_tells_what_it_did(given, tmp_path):
    """With nothing but Python's own library; no answer breaks the lines of the answers."""
    values = [flat('甲', '甲', '1？'), flat('乙', '丁\t戊|己\r\n庚', '2？'), flat('', '', '3？')]
    values += [flat('辛', '', '4？'), flat('乙甲', '乙', '1？')]
    path, output = given(lines_of(values)), tmp_path / 'ours'
    command = [sys.executable, '-I', '-S', convert.__file__, path, output]
    command += ['--negatives=1', '--seed=7']
    done = subprocess.run(command, capture_output=True, encoding='utf-8')
    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    assert done.stderr.splitlines() == [
        f'{path}: flat lines in UTF-8',
        'questions: 3, answered: 1; passages: 7, answered: 2',
        'answers that no passage holds: 1 of 3',
        'left out: empty passages: 1; records without a passage: 1',
    ]
    assert records.load_questions(output) == convert_file(path, 1, 7).records
    answers = '1\t甲\t甲|乙\n2\t丁 戊 己  庚\t丁 戊 己  庚\n3\t\t\n'
    assert (tmp_path / 'ours.answers').read_bytes().decode() == answers
    assert {*os.listdir(tmp_path)} == {'given', 'ours', 'ours.answers'}


@pytest.mark.parametrize('held', ['甲', ''])
def test_answers_are_never_those_of_other_records(given, tmp_path, monkeypatch, capsys, held):
    """Killed before whatever is renamed or removed, they may be missing; that there are none in the
    end is said."""
    output, answers = tmp_path / 'ours', tmp_path / 'ours.answers'
    converted, found = convert_file(given([flat('甲', held)])), []
    for moment in range(9):
        write_json(output, ['old'])
        answers.write_text('old', encoding='utf-8')
        passed = itertools.count()

        def killed(function, moment=moment, passed=passed):
            def call(*given):
                if next(passed) == moment:
                    raise KeyboardInterrupt
                return function(*given)

            return call

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            for name in 'replace', 'remove':
                patch.setattr(os, name, killed(getattr(os, name)))
            convert.write(str(output), converted)
        texts = [path.read_text(encoding='utf-8') for path in (output, answers) if path.exists()]
        found.append(['old' in text for text in texts])
    assert found[0] == [True, True] and found[-1] == [False] * (2 if held else 1)
    assert [False, True] not in found and [True, False] not in found and len({*map(str, found)}) > 2
    said = f'{answers}: removed, as it was of earlier records\n'
    assert (said in capsys.readouterr().err) == (not held)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['.', 'ours'], '.: cannot be read (Is a directory)'),
        (['given', 'folder'], 'folder: is a folder'),
        (['given', 'given/ours'], 'given/ours.answers: cannot be written (File exists)'),
        (['given', 'blocked'], 'blocked.answers: is a folder'),
        (['given', 'given'], 'given: is what is to be converted'),
        (['given.answers', 'given'], 'given.answers: is what is to be converted'),
        ([], 'the following arguments are required: INPUT; see --help'),
        (['given', 'ours', '--negatives=-1'], "argument --negatives: '-1' is not a whole number"),
    ],
)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    for name in 'given', 'given.answers':
        write_json(tmp_path / name, [flat('甲', '甲')])
    for name in 'folder', 'blocked.answers':
        (tmp_path / name).mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(sys, 'argv', ['convert.py', *arguments])
    status, (out, err) = exit_status(convert.main), capsys.readouterr()
    assert (status, out, err.count('\n')) == (2, '', 1) and err.startswith(said)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
