"""DESIGN of data and training: split, pairs, lengths, vocabulary, weights and loss, rule by rule."""

import collections
import importlib.metadata
import itertools
import json
import os

import numpy as np
import pytest
from conftest import VOCABULARY, build_small_model, record, write_json

from evaluate_sogou import UserError

CUT_OFF = '; the file looks cut off'


def complete(*passages, question='中国人口在哪里？', question_id='a'):
    """A record of (passage, answer) pairs."""
    passages = [{'passage': passage, 'answer': answer} for passage, answer in passages]
    return {'id': question_id, 'question': question, 'passages': passages}


def refusal(function, *arguments):
    """Call a function that must raise a UserError; return its message, which is one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_sizes_of_the_original(script):
    names = 'max_p_len', 'max_q_len', 'max_a_len', 'learning_rate', 'batch_size', 'epochs'
    assert [getattr(script, name) for name in names] == [256, 64, 32, 1e-5, 32, 8]


# ------------------------------------------------------------------------------------------------- the files


def test_complete_records_are_read_as_they_stand(script, small):
    """Two \\u escapes may make one character."""
    records = [
        record('Q#1'),
        complete(('Ａ…\t \u3000', '北京 上海'), question='😀', question_id='0'),
    ]
    (small / 'some.json').write_text(json.dumps(records), encoding='utf-8')
    assert script.load_questions(small / 'some.json') == records


@pytest.mark.parametrize(
    ('records', 'complaints'),
    [
        ([record('a'), ['b']], ['record 2 of 2', 'a list']),
        (
            [complete(('北京', '北京'), ('上海', 5))],
            ['record 1 of 1', '"answer" of passage 2', 'a number'],
        ),
        ([complete((None, ''))], ['record 1 of 1', '"passage" of passage 1', 'missing or null']),
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
        ([record('a', 'x\ud800')], ['record 1 of 1', '"question"', 'surrogate']),
        ([complete(('\udfff', ''))], ['record 1 of 1', '"passage" of passage 1', 'surrogate']),
        ([], ['at least one']),
        ({'id': 'a'}, ['list of records']),
    ],
)
def test_bad_input_names_file_and_record(script, tmp_path, records, complaints):
    path = tmp_path / 'bad.json'
    path.write_text(json.dumps(records), encoding='utf-8')
    message = refusal(script.load_questions, str(path))
    assert message.startswith(f'{path}: ')
    assert all(complaint in message for complaint in complaints), message


def test_not_json_names_line_and_column(script, tmp_path):
    (tmp_path / 'bad.json').write_text('[{"id": "a"},\n {"id": "b"', encoding='utf-8')
    message = refusal(script.load_questions, str(tmp_path / 'bad.json'))
    assert message.startswith(f'{tmp_path / "bad.json"}: not JSON at line 2, column 12')


def test_questions_to_predict_need_no_answers(script, small):
    passages = [{'passage': '北京'}, {'passage': '上海', 'answer': None}]
    write_json(small / 'questions.json', [{'id': 'a', 'question': '谁', 'passages': passages}])
    expected = complete(('北京', ''), ('上海', ''), question='谁')
    assert script.load_questions(small / 'questions.json', labelled=False) == [expected]


def test_incomplete_records_are_named_once_in_one_line(script, small, capsys):
    """They stay where they are, or the split would move."""
    records = [
        record('a'),
        {**record('b'), 'question': ' '},
        {**record('c'), 'passages': []},
        {'passages': []},
    ]
    write_json(small / 'some.json', records)
    assert len(script.load_questions(small / 'some.json')) == 4
    output, errors = capsys.readouterr()
    [line] = errors.splitlines()
    assert not output and line.startswith(f'{small / "some.json"}: 3 of 4 records')
    assert line.endswith(
        'record 2 (no question), 3 (no passages), 4 (no id, no question, no passages)' + CUT_OFF
    )


def test_file_of_records_that_all_lack_something_is_not_cut_off(script, small, capsys):
    """A file for predict in another format, say."""
    (small / 'some.json').write_text('[{"id": "a", "question": "谁"}]', encoding='utf-8')
    script.load_questions(small / 'some.json', labelled=False)
    assert capsys.readouterr().err.endswith(
        'lack something and cannot be answered: record 1 (no passages)\n'
    )


def test_complete_files_are_read_in_silence(script, small, capsys):
    script.load_questions(small / 'WebQA.json')
    assert capsys.readouterr() == ('', '')


def test_last_real_record_is_cut_off(script, shared, capsys):
    records = script.load_questions(os.path.join(shared, 'SogouQA.json'))
    [line] = capsys.readouterr().err.splitlines()
    assert len(records) == 22
    assert '1 of 22 records' in line and line.endswith('record 22 (no id, no question)' + CUT_OFF)


# ------------------------------------------------------------------------------------------------- the split


@pytest.fixture
def sogouqa(script, tmp_path):
    """Ten records, the output folder being empty."""
    script.output_dir = str(tmp_path)
    return [record(f'S{i}') for i in range(10)]


def test_every_third_position_of_the_saved_order_is_for_validation(script, sogouqa, tmp_path):
    _, valid_data = script.split([], sogouqa)
    random_order = json.loads((tmp_path / 'random_order.json').read_text(encoding='utf-8'))
    assert sorted(random_order) == list(range(10)) != random_order
    assert valid_data == [sogouqa[random_order[i]] for i in (0, 3, 6, 9)]


def test_saved_order_is_used_again(script, sogouqa, tmp_path):
    """Also one that another seed drew, or another program."""
    _, first = script.split([], sogouqa)
    script.seed += 1
    assert script.split([], sogouqa)[1] == first
    write_json(tmp_path / 'random_order.json', list(range(10)))
    assert [record['id'] for record in script.split([], sogouqa)[1]] == ['S0', 'S3', 'S6', 'S9']
    assert json.loads((tmp_path / 'random_order.json').read_text(encoding='utf-8')) == list(
        range(10)
    )


def test_order_depends_on_the_seed(script, sogouqa, tmp_path):
    orders = []
    for seed in 1, 1, 2:
        script.seed = seed
        script.split([], sogouqa)
        orders.append((tmp_path / 'random_order.json').read_bytes())
        (tmp_path / 'random_order.json').unlink()
    assert orders[0] == orders[1] != orders[2]


def test_training_is_the_rest_twice_and_webqa_once(script, sogouqa):
    train_data, valid_data = script.split([record('W0'), record('W1')], sogouqa)
    validation = {record['id'] for record in valid_data}
    expected = {f'S{i}': 2 for i in range(10) if f'S{i}' not in validation}
    assert collections.Counter(record['id'] for record in train_data) == {
        **expected,
        'W0': 1,
        'W1': 1,
    }


@pytest.mark.parametrize('lacking', ['id', 'question', 'passages'])
def test_incomplete_records_are_left_out_of_training(script, sogouqa, lacking, tmp_path):
    """They keep their place in the order all the same."""
    write_json(tmp_path / 'random_order.json', list(range(10)))
    for i in 3, 4:
        del sogouqa[i][lacking]
    webqa = [record('W0'), {**record('W1'), lacking: None}]
    train_data, valid_data = script.split(webqa, sogouqa)
    assert sorted(record['id'] for record in train_data) == sorted(
        ['S1', 'S2', 'S5', 'S7', 'S8'] * 2 + ['W0']
    )
    assert valid_data == [sogouqa[i] for i in (0, 3, 6, 9)]


@pytest.mark.parametrize(
    'saved',
    ['[0, 1, 2]', str([*range(11)]), str([0, *range(9)]), '["0"]', '[0, "1"]', '{}', '7', '[0, 1'],
)
def test_saved_order_of_other_data_is_refused(script, sogouqa, tmp_path, saved):
    path = tmp_path / 'random_order.json'
    path.write_text(saved, encoding='utf-8')
    message = refusal(script.split, [], sogouqa)
    assert message.startswith(f'{path}: ') and '10 records' in message
    assert path.read_text(encoding='utf-8') == saved


# ------------------------------------------------------------------------------------------------- the pairs


def targets(script, record):
    """Draw from a record until every passage must have come; return {passage: target}."""
    rng = np.random.default_rng(0)
    pairs = [script.training_pair(record, rng) for _ in range(40 * len(record['passages']))]
    assert {question for _, question, _ in pairs} == {record['question']}
    assert len(set(pairs)) == len({passage for passage, _, _ in pairs}) == len(record['passages'])
    return {passage: answer for passage, _, answer in pairs}


def test_every_passage_is_drawn_equally_often(script):
    rng = np.random.default_rng(0)
    drawn = collections.Counter(script.training_pair(record('a'), rng)[0] for _ in range(3000))
    assert len(drawn) == 3 and all(abs(count - 1000) < 130 for count in drawn.values())


def test_separators_become_commas_one_for_one(script):
    """So character offsets survive; no other punctuation and no other white space is touched."""
    assert targets(script, complete(('a、 b；，c;。\u3000\t,、d', ''))) == {
        'a,,b,,c;。\u3000\t,,d': ''
    }


def test_target_is_the_first_of_all_answers_that_the_passage_holds(script):
    """Not the passage's own label, nor the answer that stands first in it."""
    labelled = complete(
        ('天津', '天津'), ('在上海', '上海'), ('北京和上海', '北京'), ('重庆', ''), ('北京', '重庆')
    )
    assert targets(script, labelled) == {
        '天津': '天津', '在上海': '上海', '北京和上海': '上海', '重庆': '重庆', '北京': '北京'
    }  # fmt: skip


def test_target_is_empty_where_the_passage_holds_no_answer(script):
    """Even where it is labelled with one; an empty answer elsewhere is none."""
    assert targets(script, complete(('天津', '上海'), ('重庆', ''))) == {'天津': '', '重庆': ''}


def test_all_parts_of_a_list_must_occur(script):
    """In any order and apart; the spaces of the target become commas."""
    labelled = complete(
        ('北京', '上海 北京 天津'), ('天津在北京，上海', ''), ('上海北京', '北京 上海')
    )
    assert targets(script, labelled) == {
        '北京': '', '天津在北京,上海': '上海,北京,天津', '上海北京': '北京,上海'
    }  # fmt: skip


def test_answers_are_looked_for_as_they_stand(script):
    """Their separators are not replaced before, so one with a 、 stands in no passage."""
    assert targets(script, complete(('北京、上海', '北京、上海'))) == {'北京,上海': ''}
    assert targets(script, complete(('北京、上海', '北京,上海'))) == {'北京,上海': '北京,上海'}


def test_answer_must_end_within_what_is_read(script):
    """[CLS] and [SEP] take two of the places: with 8 the answer must end by the sixth character."""
    script.max_p_len = 8
    assert targets(script, complete(('在在在在北京', '北京'), ('在在在在在北京', ''))) == {
        '在在在在北京': '北京', '在在在在在北京': ''
    }  # fmt: skip


def test_targets_of_real_questions(script, shared):
    """500 pairs: the rule once more, with offsets; for some the passage's own label says otherwise."""
    rng, seen = np.random.default_rng(0), collections.Counter()
    for real in script.load_questions(os.path.join(shared, 'WebQA.json')):
        passage, question, target = script.training_pair(real, rng)
        labels = {
            p['answer'].replace(' ', ',')
            for p in real['passages']
            if same_text(p['passage'], passage)
        }
        answers = [p['answer'] for p in real['passages'] if p['answer']]
        ends = [
            max((passage + part).index(part) + len(part) for part in answer.split(' '))
            for answer in answers
        ]
        held = [
            answer
            for answer, end in zip(answers, ends, strict=True)
            if end <= min(len(passage), 254)
        ]
        assert target == (held[0].replace(' ', ',') if held else '')
        assert question == real['question'] and labels  # else none of the passages was drawn
        seen['empty'] += not target
        seen['not the label'] += target not in labels
    assert 150 < seen['empty'] < 350 and seen['not the label'] > 20


def same_text(passage, unified):
    """Whether two texts differ in separators alone."""
    same = (a == b or (a in ' 、；，' and b == ',') for a, b in zip(passage, unified, strict=False))
    return len(passage) == len(unified) and all(same)


# ---------------------------------------------------------------------------------------------- the vocabulary


@pytest.mark.parametrize('vocabulary', [VOCABULARY, VOCABULARY[::-1]])
def test_vocabulary_is_simplified(script, tmp_path, vocabulary):
    """[PAD] [UNK] [CLS] [SEP] come first wherever they stood; ##-pieces of Chinese and [unused1] are gone."""
    (tmp_path / 'vocab.txt').write_text('\n'.join(vocabulary), encoding='utf-8')
    tokenizer, keep_tokens, size = script.load_tokenizer(str(tmp_path / 'vocab.txt'))
    tokens = [tokenizer.id_to_token(i) for i in range(len(keep_tokens))]
    kept = [token for token in vocabulary if token[0] != '[' and token != '##中']
    assert size == len(vocabulary)
    assert tokens == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *kept]
    assert tokens == [vocabulary[i] for i in keep_tokens]


def test_real_vocabulary_is_simplified(script, shared):
    """13,584 of 21,128 are left, as in every example of bert4keras."""
    _, keep_tokens, size = script.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    assert (len(keep_tokens), size, keep_tokens[:4]) == (13584, 21128, [0, 100, 101, 102])


def test_tokenizer_lowers_case(script, small):
    tokenizer, _, _ = script.load_tokenizer(str(small / 'vocab.txt'))
    assert tokenizer.tokenize('AB犇中') == ['[CLS]', 'ab', '犇', '中', '[SEP]']


@pytest.mark.skipif(
    importlib.metadata.version('bert4keras') != '0.8.1', reason='later versions have another rule'
)
def test_words_are_cut_as_bert4keras_cuts_them(script, tmp_path):
    """Version 0.11.5 makes one [UNK] of a word with an unknown piece, or of over 200 letters."""
    vocabulary = [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        *'abc',
        'ab',
        'abca',
        '##a',
        '##b',
        '##bc',
        '##cab',
        '##中',
    ]
    (tmp_path / 'vocab.txt').write_text('\n'.join(vocabulary), encoding='utf-8')
    ours, _, _ = script.load_tokenizer(str(tmp_path / 'vocab.txt'))
    theirs = script.Tokenizer(ours._token_dict, do_lower_case=True)
    for length in range(1, 8):
        for word in map(''.join, itertools.product('abcé', repeat=length)):
            assert ours._word_piece_tokenize(word) == theirs._word_piece_tokenize(word), word


def test_long_word_is_cut_in_time_that_grows_with_its_length(script, small):
    """Pages hold addresses and encoded pictures of 100,000 letters."""

    class Counted(dict):
        def __contains__(self, token):
            lookups.append(token)
            return super().__contains__(token)

    tokenizer, _, _ = script.load_tokenizer(str(small / 'vocab.txt'))
    tokenizer._token_dict, lookups = Counted(tokenizer._token_dict), []
    assert len(tokenizer.tokenize('abz' * 1000)) > 2000
    assert len(lookups) <= 3000 * tokenizer.longest


@pytest.mark.parametrize('lacking', ['[PAD]', '[UNK]', '[CLS]', '[SEP]'])
def test_vocabulary_without_a_special_token_is_refused(script, tmp_path, lacking):
    path = tmp_path / 'vocab.txt'
    path.write_text('\n'.join(token for token in VOCABULARY if token != lacking), encoding='utf-8')
    message = refusal(script.load_tokenizer, str(path))
    assert message.startswith(f'{path}: ') and lacking in message
    assert all(
        token == lacking or token not in message for token in ('[PAD]', '[UNK]', '[CLS]', '[SEP]')
    )


# ------------------------------------------------------------------------------------------------ the lengths


@pytest.fixture
def tokenizer(script, small):
    """Of the small vocabulary; a passage takes up to 8 tokens, a question 5, an answer 3."""
    script.max_p_len, script.max_q_len, script.max_a_len = 8, 5, 3
    return script.load_tokenizer(str(small / 'vocab.txt'))[0]


@pytest.mark.parametrize(
    ('passage', 'question', 'answer', 'tokens', 'answer_tokens'),
    [
        ('中', '国', '北京', '[CLS] 中 [SEP] 国 [SEP] 北 京 [SEP]', 3),
        ('中', '国', '', '[CLS] 中 [SEP] 国 [SEP] [SEP]', 1),
        ('一二三四五六', '国', '', '[CLS] 一 二 三 四 五 六 [SEP] 国 [SEP] [SEP]', 1),
        ('一二三四五六七八', '国', '', '[CLS] 一 二 三 四 五 六 [SEP] 国 [SEP] [SEP]', 1),
        # the question may take what the answer leaves, and the other way round; the longer one is cut
        ('中', '一二三四五', '北', '[CLS] 中 [SEP] 一 二 三 四 五 [SEP] 北 [SEP]', 2),
        ('中', '一二三四五六七八', '北', '[CLS] 中 [SEP] 一 二 三 四 五 [SEP] 北 [SEP]', 2),
        ('中', '一', '二三四五六七八', '[CLS] 中 [SEP] 一 [SEP] 二 三 四 五 六 [SEP]', 6),
        (
            '中',
            '一二三四五六七八',
            '二三四五六七八',
            '[CLS] 中 [SEP] 一 二 三 [SEP] 二 三 四 [SEP]',
            4,
        ),
    ],
)
def test_lengths_and_segments_of_a_pair(
    script, tokenizer, passage, question, answer, tokens, answer_tokens
):
    """Each of the three keeps its [SEP] when it is cut; question and answer with theirs take 5 + 3 at most."""
    token_ids, segment_ids = script.encode_pair(tokenizer, passage, question, answer)
    assert token_ids == tokenizer.tokens_to_ids(tokens.split())
    assert segment_ids == [0] * (len(token_ids) - answer_tokens) + [1] * answer_tokens


def test_lengths_of_real_pairs(script, shared):
    tokenizer, _, _ = script.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    longest, rng = 0, np.random.default_rng(0)
    for real in script.load_questions(os.path.join(shared, 'WebQA.json')):
        token_ids, segment_ids = script.encode_pair(tokenizer, *script.training_pair(real, rng))
        p_len, q_end, end = (
            i + 1 for i, token in enumerate(token_ids) if token == tokenizer._token_end_id
        )
        assert p_len <= 256 and end == len(token_ids) <= p_len + 64 + 32
        assert segment_ids == [0] * q_end + [1] * (end - q_end)
        longest = max(longest, p_len)
    assert longest == 256


def test_question_and_passages_are_cut_when_reading(script, tokenizer):
    """The question has five places for four tokens and its [SEP], however short the passage."""
    reader, seen = script.ReadingComprehension.__new__(script.ReadingComprehension), []
    reader.tokenizer = tokenizer
    reader.beam_search = lambda questions, topk: (
        seen.extend(questions) or [script.Search(topk, 3)] * len(questions)
    )
    questions = [('北京上海天津', ['中', '中国中国中国中国']), ('北京上海', ['中国中国中国'])]
    assert [answer.text for answer in reader.answers(questions)] == ['', '']
    long, short = '[CLS] 中 国 中 国 中 国 [SEP]', '[CLS] 中 [SEP]'
    question = tokenizer.tokens_to_ids(['北', '京', '上', '海', '[SEP]'])
    assert seen[0] == ([tokenizer.tokens_to_ids(text.split()) for text in (short, long)], question)
    assert seen[1] == ([tokenizer.tokens_to_ids(long.split())], question)


# ---------------------------------------------------------------------------------------------- the batches


@pytest.fixture
def seven(script, tokenizer):
    """Seven questions, a digit each, of two passages of unlike lengths each."""
    script.batch_size, script.epochs = 3, 4
    return [complete(('北京', '北京'), ('在上海', ''), question=str(i)) for i in range(7)]


def read_epochs(script, records, tokenizer):
    """Return the batches of training_dataset, a list for each epoch."""
    batches = [
        {name: tensor.numpy() for name, tensor in batch.items()}
        for batch in script.training_dataset(records, tokenizer)
    ]
    assert len(batches) == 3 * script.epochs
    return [batches[i : i + 3] for i in range(0, len(batches), 3)]


def rows(epoch):
    return [row.tolist() for batch in epoch for row in batch['Input-Token']]


def test_every_question_comes_once_an_epoch(script, seven, tokenizer):
    """Also where the last batch is not full; each time with another passage and in another order."""
    epochs = read_epochs(script, seven, tokenizer)
    digits = tokenizer.tokens_to_ids('0123456')
    orders = [
        [token for row in rows(epoch) for token in row if token in digits] for epoch in epochs
    ]
    assert all(sorted(order) == digits for order in orders)
    assert len(set(map(tuple, orders))) == len(epochs)
    draws = [sorted(str(row).replace(', 0', '') for row in rows(epoch)) for epoch in epochs]
    assert len(set(map(tuple, draws))) == len(epochs)
    assert all(
        sorted(len(batch['Input-Token']) for batch in epoch) == [1, 3, 3] for epoch in epochs
    )


def test_batches_are_of_like_length_within_a_window_and_in_a_random_order(
    script, tokenizer, monkeypatch
):
    """Each window is sorted by itself, so an epoch does not begin with all its short passages."""
    script.batch_size = 4
    monkeypatch.setattr(script, 'window', 5)
    data = [complete(('中' * (1 + i % 6), ''), question='谁') for i in range(60)]
    spans, firsts = [], []
    for number in range(3):
        lengths = [
            [len(token_ids) for _, token_ids, _ in batch]
            for batch in script.draw_window(data, tokenizer, 0, number)
        ]
        assert len(lengths) == 5
        ranges = sorted((min(batch), max(batch)) for batch in lengths)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
        spans.append((ranges[0][0], ranges[-1][1]))
        firsts.append([min(batch) for batch in lengths])
    assert all(high - low >= 4 for low, high in spans)
    assert any(first != sorted(first) for first in firsts)


def test_batch_is_a_dict_padded_with_0(script, seven, tokenizer):
    """Keras 2 takes the names of the model's inputs; a batch is as wide as its longest row."""
    pairs = [('北京', '北京'), ('在上海', ''), ('在上海', '北京')]
    encoded = [
        script.encode_pair(tokenizer, passage, str(i), answer)
        for i in range(7)
        for passage, answer in pairs
    ]
    widths = set()
    for epoch in read_epochs(script, seven, tokenizer):
        for batch in epoch:
            assert list(batch) == ['Input-Token', 'Input-Segment']
            assert {values.dtype for values in batch.values()} == {np.dtype('int32')}
            length = [np.count_nonzero(row) for row in batch['Input-Token']]
            pairs = zip(
                batch['Input-Token'].tolist(), batch['Input-Segment'].tolist(), length, strict=True
            )
            for token_ids, segment_ids, n in pairs:
                assert (token_ids[:n], segment_ids[:n]) in encoded
                assert not any(token_ids[n:] + segment_ids[n:])
            assert batch['Input-Token'].shape[1] == max(length)
            widths.add(max(length))
    assert len(widths) > 1


def test_batches_depend_on_the_seed(script, seven, tokenizer):
    script.seed = 1
    first, again = (list(map(rows, read_epochs(script, seven, tokenizer))) for _ in range(2))
    script.seed = 2
    assert first == again != list(map(rows, read_epochs(script, seven, tokenizer)))


# ------------------------------------------------------------------------------------------------ the weights


def bert_variables(folder):
    """Random values for all that a BERT checkpoint of the small configuration holds, in the order of the layers."""
    sizes = json.loads((folder / 'bert_config.json').read_text(encoding='utf-8'))
    hidden, inner, vocabulary = (
        sizes['hidden_size'],
        sizes['intermediate_size'],
        sizes['vocab_size'],
    )
    dense, norm = (
        {'kernel': [hidden, hidden], 'bias': [hidden]},
        {'beta': [hidden], 'gamma': [hidden]},
    )
    blocks = {
        'attention/self/query': dense,
        'attention/self/key': dense,
        'attention/self/value': dense,
        'attention/output/dense': dense,
        'attention/output/LayerNorm': norm,
        'intermediate/dense': {'kernel': [hidden, inner], 'bias': [inner]},
        'output/dense': {'kernel': [inner, hidden], 'bias': [hidden]},
        'output/LayerNorm': norm,
    }
    embeddings = {
        'word_embeddings': [vocabulary, hidden],
        'token_type_embeddings': [2, hidden],
        'position_embeddings': [sizes['max_position_embeddings'], hidden],
    }
    groups = {'bert/embeddings': embeddings, 'bert/embeddings/LayerNorm': norm}
    for i in range(sizes['num_hidden_layers']):
        groups.update({f'bert/encoder/layer_{i}/{name}': shapes for name, shapes in blocks.items()})
    groups.update(
        {'cls/predictions/transform/dense': dense, 'cls/predictions/transform/LayerNorm': norm}
    )
    groups['cls/predictions'] = {'output_bias': [vocabulary]}
    shapes = {
        f'{group}/{name}': shape for group, names in groups.items() for name, shape in names.items()
    }
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save_checkpoint(script, folder, variables):
    """Write a TensorFlow checkpoint as BERT comes; return its path."""
    path = str(folder / 'bert_model.ckpt')
    script.tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=list(variables),
        shape_and_slices=[''] * len(variables),
        tensors=list(variables.values()),
    )
    return path


def build(script, folder, checkpoint):
    """Build the model of the small configuration and vocabulary; return it with keep_tokens."""
    _, keep_tokens, size = script.load_tokenizer(str(folder / 'vocab.txt'))
    return script.build_model(
        str(folder / 'bert_config.json'), checkpoint, keep_tokens, size
    ), keep_tokens


def test_weights_of_the_checkpoint_arrive(script, small):
    """The rows of keep_tokens of the vocabulary, all of the rest; what else the checkpoint holds is left alone."""
    variables = bert_variables(small)
    extra = {'bert/pooler/dense/bias': np.zeros(16, np.float32), 'global_step': np.array(7)}
    model, keep_tokens = build(
        script, small, save_checkpoint(script, small, {**extra, **variables})
    )
    assert keep_tokens != list(range(len(keep_tokens)))
    for weight, (name, value) in zip(model.weights, variables.items(), strict=True):
        of_vocabulary = name in ('bert/embeddings/word_embeddings', 'cls/predictions/output_bias')
        np.testing.assert_array_equal(
            weight.numpy(), value[keep_tokens] if of_vocabulary else value, name
        )


@pytest.mark.parametrize(
    'name',
    [
        'bert/embeddings/word_embeddings',
        'bert/encoder/layer_1/attention/self/key/bias',
        'cls/predictions/output_bias',
    ],
)
def test_missing_variable_is_named(script, small, name):
    variables = bert_variables(small)
    del variables[name]
    checkpoint = save_checkpoint(script, small, variables)
    message = refusal(build, script, small, checkpoint)
    assert (
        message.startswith(f'{checkpoint}: no BERT with its masked language model (')
        and name in message
    )


@pytest.mark.parametrize('name', ['bert/embeddings/word_embeddings', 'cls/predictions/output_bias'])
def test_checkpoint_of_another_vocabulary_names_both_sizes(script, small, name):
    """One that is larger would load without complaint, and mean other tokens."""
    variables = bert_variables(small)
    variables[name] = np.concatenate([variables[name]] * 2)
    checkpoint = save_checkpoint(script, small, variables)
    message = refusal(build, script, small, checkpoint)
    assert message.startswith(f'{checkpoint}: ')
    assert f'{2 * len(VOCABULARY)} tokens' in message and f'has {len(VOCABULARY)}' in message


@pytest.mark.parametrize(
    ('name', 'shape', 'expected'),
    [
        ('bert/encoder/layer_1/intermediate/dense/kernel', [16, 33], [16, 32]),
        ('bert/embeddings/position_embeddings', [600, 16], [512, 16]),
        ('bert/embeddings/token_type_embeddings', [2, 8], [2, 16]),
        ('bert/encoder/layer_0/attention/self/query/kernel', [16, 8], [16, 16]),
    ],
)
def test_variable_of_another_shape_is_named(script, small, name, shape, expected):
    checkpoint = save_checkpoint(
        script, small, {**bert_variables(small), name: np.zeros(shape, np.float32)}
    )
    message = refusal(build, script, small, checkpoint)
    assert message.startswith(f'{checkpoint}: ')
    assert name in message and str(tuple(shape)) in message and str(tuple(expected)) in message


@pytest.mark.parametrize(
    ('suffix', 'content'),
    [('.data-00000-of-00001', None), ('.index', None), ('.index', b'no index')],
)
def test_not_a_checkpoint(script, small, suffix, content):
    """Half of one, nothing, or something else under its name."""
    checkpoint = save_checkpoint(script, small, bert_variables(small))
    os.remove(checkpoint + suffix)
    if content:
        (small / f'bert_model.ckpt{suffix}').write_bytes(content)
    assert refusal(build, script, small, checkpoint).startswith(
        f'{checkpoint}: no BERT with its masked language model'
    )


def test_checkpoint_that_was_cut_off(script, small):
    """As an interrupted download leaves it."""
    checkpoint = save_checkpoint(script, small, bert_variables(small))
    data = small / 'bert_model.ckpt.data-00000-of-00001'
    data.write_bytes(data.read_bytes()[:5000])
    assert 'no BERT with its masked language model' in refusal(build, script, small, checkpoint)


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'vocab_size': 99}, f'made for 99 tokens, but the vocabulary has {len(VOCABULARY)}'),
        ({'max_position_embeddings': 351}, 'too few max_position_embeddings'),
        ({'vocab_size': None}, f'made for None tokens, but the vocabulary has {len(VOCABULARY)}'),
        (None, 'not a BERT configuration'),
        ([], 'not a BERT configuration'),
        ({'hidden_act': 'no such'}, 'not a BERT configuration'),
    ],
)
def test_configuration_that_does_not_fit(script, small, change, complaint):
    path = small / 'bert_config.json'
    config = json.loads(path.read_text(encoding='utf-8'))
    path.write_text(json.dumps({**config, **change}) if change else str(change), encoding='utf-8')
    message = refusal(build, script, small, '')
    assert message.startswith(f'{path}: ') and complaint in message


@pytest.mark.parametrize('initializer_range', [0.02, 0.3])
def test_random_weights_follow_initializer_range(script, small, initializer_range):
    """No two matrices alike: alike, queries, keys and values would learn the same."""
    path = small / 'bert_config.json'
    config = json.loads(path.read_text(encoding='utf-8'))
    path.write_text(
        json.dumps({**config, 'initializer_range': initializer_range}), encoding='utf-8'
    )
    model, _ = build(script, small, '')
    matrices = [weight.numpy() for weight in model.weights if weight.shape.rank == 2]
    assert len(matrices) == 3 + 2 * 6 + 1
    for matrix in matrices:
        assert abs(matrix).max() <= 2 * initializer_range and abs(matrix.mean()) < initializer_range
    assert (
        0.8 * initializer_range
        < np.concatenate([matrix.ravel() for matrix in matrices]).std()
        < initializer_range
    )
    assert len({matrix[0, :16].tobytes() for matrix in matrices}) == len(matrices)


def test_mask_is_that_of_unilm(script, small):
    """The source is seen by all, from both sides; a token of the answer only by itself and what comes after it."""
    model, _ = build_small_model(script, small)
    token_ids, segment_ids = np.tile(np.arange(5, 13), [9, 1]), np.tile([0] * 5 + [1] * 3, [9, 1])
    token_ids[range(8), range(8)] = 20  # one other token in each row but the last
    probas = model.predict([token_ids, segment_ids], verbose=0)
    changed = abs(probas[:8] - probas[8]).max(-1) > 1e-6
    assert changed.tolist() == [[i < 5 or i <= j for j in range(8)] for i in range(8)]


# --------------------------------------------------------------------------------------------------- the loss


def cross_entropy(probas, token_ids, segment_ids):
    """The mean of -log p over all tokens of segment 1, each predicted one position before."""
    losses = [
        -np.log(probas[row, position - 1, token_ids[row, position]])
        for row, position in zip(*np.nonzero(segment_ids), strict=True)
    ]
    return np.mean(losses, dtype=np.float64)


def padded(pairs):
    """Return (token_ids, segment_ids), int32 [pairs, longest], of (token_ids, segment_ids) pairs."""
    return [np.array([[*row, *[0] * (max(map(len, column)) - len(row))] for row in column], np.int32)
            for column in zip(*pairs, strict=True)]  # fmt: skip


def test_loss_by_hand(script, small):
    """1 answer token and 3: the mean over all 4 is 7 / 4 log 2, where the mean of the rows' means is 6 / 4."""
    model, tokenizer = build_small_model(script, small)
    trainer = script.Trainer(model, tokenizer._token_end_id)
    trainer.losses = lambda token_ids, segment_ids, drop: (
        script.tf.constant([1.0, 2.0, 2.0, 2.0]) * np.log(2)
    )
    token_ids, segment_ids = padded(
        [([2, 1, 3, 3], [0, 0, 0, 1]), ([2, 3, 3, 1, 2, 3], [0, 0, 0, 1, 1, 1])]
    )
    trainer.optimizer.apply_gradients = lambda pairs: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.tf, 'convert_to_tensor', lambda gradient: gradient)
        loss = trainer.train_step({'Input-Token': token_ids, 'Input-Segment': segment_ids})['loss']
    assert float(loss) == pytest.approx(7 / 4 * np.log(2), abs=1e-5)


def mean_loss(script, model, token_ids, segment_ids):
    losses = (
        script.Trainer(model, 3)
        .losses(script.tf.constant(token_ids), script.tf.constant(segment_ids))
        .numpy()
    )
    assert losses.shape == (segment_ids.sum(),)
    return losses.mean()


def test_loss_is_the_cross_entropy_of_answers_alone(script, small):
    """Of bert4keras's own predictions, dropout being off, and whatever the order or number of the rows."""
    model, _ = build_small_model(script, small)
    rng = np.random.default_rng(0)
    for count in 1, 4, 9:
        token_ids, segment_ids = padded(
            [
                (rng.integers(4, 30, source + target).tolist(), [0] * source + [1] * target)
                for source, target in zip(
                    rng.integers(2, 20, count), rng.integers(1, 9, count), strict=True
                )
            ]
        )
        expected = cross_entropy(
            model.predict([token_ids, segment_ids], verbose=0), token_ids, segment_ids
        )
        assert mean_loss(script, model, token_ids, segment_ids) == pytest.approx(expected, abs=1e-5)


def test_bfloat16_is_of_the_products_alone(script, small):
    """Loss and gradients are float32, like the weights, and nearly the same."""
    model, _ = build_small_model(script, small)
    token_ids, segment_ids = padded([([*range(4, 20)], [0] * 10 + [1] * 6)] * 3)
    losses, gradients = [], []
    for script.precision in 'float32', 'bfloat16':
        trainer = script.Trainer(model, 3)
        trainer.dropout_rate = 0
        trainer.optimizer.apply_gradients = lambda pairs: gradients.append(
            [gradient for gradient, _ in pairs]
        )
        losses.append(
            trainer.train_step({'Input-Token': token_ids, 'Input-Segment': segment_ids})[
                'loss'
            ].numpy()
        )
    assert {
        script.tf.as_dtype(value.dtype) for value in [*losses, *gradients[1], *model.weights]
    } == {script.tf.float32}
    assert 0 < abs(losses[1] - losses[0]) < 0.01 * losses[0]
    exact, rough = (
        np.concatenate([np.ravel(gradient) for gradient in column]) for column in gradients
    )
    assert 0 < np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.filterwarnings('ignore:The initializer TruncatedNormal')
def test_loss_of_real_pairs(script, shared):
    """16 pairs read by a real BERT, built and loaded by bert4keras itself.

    From probabilities Keras would raise each to 1e-7 at least, which 13,584 of them notice in the third digit.
    """
    from bert4keras.models import build_transformer_model

    config, checkpoint = (
        os.path.join(shared, 'tiny_bert', name) for name in ('bert_config.json', 'bert_model.ckpt')
    )
    tokenizer, keep_tokens, size = script.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    script.batch_size, script.epochs = 16, 1
    real = script.load_questions(os.path.join(shared, 'WebQA.json'))[:16]
    [batch] = script.training_dataset(real, tokenizer)
    token_ids, segment_ids = batch['Input-Token'].numpy(), batch['Input-Segment'].numpy()
    theirs = build_transformer_model(
        config, checkpoint, application='unilm', keep_tokens=keep_tokens
    )
    probas = theirs.predict([token_ids, segment_ids], verbose=0)
    model = script.build_model(config, checkpoint, keep_tokens, size)
    loss = mean_loss(script, model, token_ids, segment_ids)
    assert loss == pytest.approx(cross_entropy(probas, token_ids, segment_ids), abs=1e-5)
    assert loss < 4  # random weights give log(13,584) = 9.5


def test_optimizer_is_adam_as_bert4keras_has_it(script, small):
    script.learning_rate = 0.003
    optimizer = script.Trainer(build_small_model(script, small)[0], 3).optimizer
    assert type(optimizer).__name__ == 'Adam'
    assert (float(optimizer.learning_rate), optimizer.epsilon) == (pytest.approx(0.003), 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:The initializer TruncatedNormal')
def test_training_goes_as_the_original_does(script, shared, tmp_path):
    """200 updates on real pairs, dropout off: losses equal to 1e-4, though one computes every position of the batch."""
    from reference_training import build_train_model

    bert = os.path.join(shared, 'tiny_bert')
    with open(os.path.join(bert, 'bert_config.json'), encoding='utf-8') as file:
        config = {
            **json.load(file),
            'hidden_dropout_prob': 0.0,
            'attention_probs_dropout_prob': 0.0,
        }
    write_json(tmp_path / 'bert_config.json', config)
    tokenizer, keep_tokens, size = script.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    script.max_p_len, script.batch_size, script.learning_rate, script.epochs = 48, 8, 1e-4, 4
    models = [
        script.build_model(
            str(tmp_path / 'bert_config.json'),
            os.path.join(bert, 'bert_model.ckpt'),
            keep_tokens,
            size,
        )
        for _ in range(2)
    ]
    theirs, ours = build_train_model(models[0], script.learning_rate), script.Trainer(models[1], 3)
    real = script.load_questions(os.path.join(shared, 'WebQA.json'))
    update, losses = script.tf.function(ours.train_step, reduce_retracing=True), []
    for batch in script.training_dataset(real, tokenizer).take(200):
        losses.append((theirs.train_on_batch(batch), float(update(batch)['loss'])))
    losses = np.array(losses)
    assert len(losses) == 200 and losses[-20:].mean() < 0.8 * losses[:20].mean()
    print(f'largest difference of 200 losses: {abs(losses[:, 0] - losses[:, 1]).max():.1e}')
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], atol=1e-4, rtol=0)
