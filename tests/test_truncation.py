"""support/truncation.py: what the vocabulary lacks, what is cut off, what is never drawn."""

import numpy as np
import pytest
from conftest import record_of

from support import truncation
from support.bert import load_tokenizer


@pytest.fixture
def said(capsys, script, small):
    """A function of records and constants: what is said of them."""

    def said(data, **constants):
        vocabulary, constants = str(small / 'vocab.txt'), script.Constants(**constants)
        truncation.report('f.json', data, script.unify_separators, vocabulary, constants)
        return capsys.readouterr().err

    return said


def test_what_is_cut_off_is_counted_in_tokens_and_the_constant_is_named(said):
    """A word or a number is one; [CLS] and [SEP] are some too, but of an answer that is read."""
    data = [
        record_of(('天津' * 4, '天津'), ('ab ' * 7, 'ab 20'), question='谁ab 20'),
        record_of(('天津' * 2 + '是ab', ''), question='谁' * 9),
        {**record_of(('谁', '')), 'id': None},  # can be answered
        {'id': 'd', 'question': '谁', 'passages': []},  # cannot
    ]
    assert said(data, max_p_len=8, max_q_len=3, max_a_len=2) == (
        'f.json: 2 of 4 passages are cut off after max_p_len = 8 tokens '
        '(raise it, or give passage_stride); '
        '3 of 3 questions are cut off after max_q_len = 3 tokens (raise it); '
        '1 of 2 answers are cut off after max_a_len = 2 tokens (raise it); '
        '1 answers can never be learnt, as nothing that is read holds them\n'
    )
    assert '1 of 3 questions' in said(data, max_q_len=9)
    data = [record_of(('天津' * 4, '天津'), question='谁' * 9)]
    assert said(data, max_p_len=10, max_q_len=10, max_a_len=2) == ''
    assert said(data, max_p_len=8, passage_stride=6) == ''  # it is read in windows


@pytest.mark.parametrize('question', ['中' * length for length in range(1, 9)])
def test_whatever_training_cuts_off_is_told(said, script, small, question):
    """There question and answer share what both constants allow; one token where both are full."""
    constants = {'max_q_len': 5, 'max_a_len': 3}
    tokenizer, _, _ = load_tokenizer(str(small / 'vocab.txt'))
    for length in range(1, 9):
        answer, shared = '国' * length, script.Constants(**constants)
        token_ids, _ = script.encode_pair(tokenizer, '国', question, answer, shared)
        line = said([record_of((answer, answer), question=question)], **constants)
        cut = 3 + len(question) + 1 + length + 1 - len(token_ids)
        assert 'cut off' in line or cut == (len(question) == 4 and length == 3)
        assert ('max_q_len' in line) == (len(question) > 4)
        assert ('max_a_len' in line) == (length > 3)


@pytest.mark.parametrize(
    ('question', 'passages', 'lacking', 'examples'),
    [
        ('国' * 49 + '鑫', [''], 0.02, '鑫'),
        ('国' * 50 + '鑫', [''], 0, ''),
        ('国' * 49 + ' \n\u3000' * 50 + '鑫', [''], 0.02, '鑫'),  # white space does not count
        ('国国', ['国国', '国鑫 淼淼'], 3 / 8, '淼 鑫'),
        ('鑫淼焱垚喆翯犇', ['喆'], 1, '喆 鑫 淼 焱 垚'),  # the most frequent, at most five
        ('国', ['AＢé、；' * 9 + '\u200b\x07'], 9 / 48, 'Ｂ'),  # as they are read
        ('国', ['ab 20 a0b'], 0, ''),
        ('国', ['한😀'], 2 / 3, '한 😀'),
        (' ', ['', ' '], 0, ''),
    ],
)
def test_share_of_characters_that_the_vocabulary_lacks(
    said, script, small, question, passages, lacking, examples
):
    """Told of a file from 2% on, of a single question from 10%, in the same words."""
    constants = script.Constants()
    tokenizer, _, _ = load_tokenizer(str(small / 'vocab.txt'))
    asked = [(question, passages)], [False], script.unify_separators, tokenizer, constants
    warning = (
        f'the vocabulary lacks {lacking:.0%} of the characters, such as {examples} (each is read '
        'as [UNK], like any other; train with the vocabulary of a whole BERT that has them)'
    )
    unified = asked[0], asked[1], lambda _: '国', *asked[3:]
    assert truncation.warnings(*unified) == []  # what is read counts
    assert truncation.warnings(*asked) == ([warning] if lacking >= 0.1 else [])
    line = said([record_of(*((each, '') for each in passages), question=question)] * 2)
    assert line == (f'f.json: {warning}\n' if lacking else '')


@pytest.mark.parametrize(
    'text', ['한국', '中é国', 'AB 20', '天，b', 'a\x00\u200b' * 3, 'ﬁ١', '中　国']
)
def test_text_is_longer_than_so_many_tokens_as_the_tokenizer_says(small, text):
    """Though most texts are never shown to it; one character may become several."""
    tokenizer, _, _ = load_tokenizer(str(small / 'vocab.txt'))
    tokens = len(tokenizer.tokenize(text)) - 2
    found = [truncation.is_longer(text, limit, tokenizer) for limit in range(20)]
    assert found == [tokens > limit for limit in range(20)]


@pytest.mark.parametrize('stride', [0, 8])
@pytest.mark.parametrize(
    ('passage', 'answer', 'learnt'),
    [
        ('在北京、天津', '北京、天津', 'never'),  # it is read with commas
        ('在ＡＢ', 'AB', 'never'),
        ('在北京', '北京 天津', 'never'),
        ('在北京', '北 京', 'always'),
        ('在北京、天津', '北京,天津', 'always'),
        ('ab' * 5 + '北京', '北京', 'in windows'),  # characters count, not tokens
        ('天津' * 5 + '北京', '天 北', 'in windows'),
        ('国' + '天津' * 5 + '北京', '国 北', 'never'),  # no window holds both
    ],
)
def test_answers_that_training_never_draws_are_counted(
    said, script, passage, answer, learnt, stride
):
    """Exactly those, whatever it draws."""
    constants = {'max_p_len': 12, 'passage_stride': stride}
    data = [record_of((passage, answer), ('中国', ''))]
    line, rng = said(data, **constants), np.random.default_rng(0)
    constants = script.Constants(**constants)
    drawn = {script.training_pair(data[0], rng, constants)[2] for _ in range(60)}
    if learnt == 'always' or (learnt == 'in windows' and stride):
        assert drawn == {'', answer.replace(' ', ',')} and 'never' not in line
    else:
        assert drawn == {''}
        assert line.endswith('1 answers can never be learnt, as nothing that is read holds them\n')


def test_answer_counts_as_learnt_wherever_it_is_held(said):
    """Another passage of the same question may be drawn."""
    assert said([record_of(('天津' * 9, '北京'), ('在北京', ''))], max_p_len=20) == ''
