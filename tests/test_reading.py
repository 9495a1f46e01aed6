"""DESIGN §4: the six steps by hand, the answer's text, the reader against the reference decoder."""

import collections
import io
import itertools
import json
import math

import numpy as np
import pytest
from conftest import VOCABULARY, draw, forward_pass_of, record_of, refusal, small_files, write_json
from hypothesis import given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from reference_decoder import ReferenceDecoder, SinglePassageDecoder

from support.answers import Hypothesis, without_invisible
from support.keras2 import bert4keras
from support.reading import CachedUniLM, Search
from support.settings import CommandLine

CLS, END = 2, 3


class FixedUniLM:
    """Predicts `probabilities(source, written)`, {token: probability}, for others 0."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def predict(self, sources, written):
        probas = np.zeros([len(sources), len(written), len(VOCABULARY)], np.float32)
        for i, source in enumerate(sources):
            for j, token_ids in enumerate(written):
                for token, proba in self.probabilities([*source], tuple(token_ids)).items():
                    probas[i, j, token] = proba
        return probas

    def search_together(self, generators, has_answer):
        searches = [*map(Search, generators)]
        for search in searches:
            first = self.predict(search.sources, [()])
            search.send(first)
            search.keep(has_answer(first[:, 0]))
            while search.hypotheses:
                written = [hypothesis.token_ids for hypothesis in search.hypotheses]
                search.send(self.predict(search.sources, written))
        return [search.result for search in searches]


class CountedUniLM(CachedUniLM):
    """Counts how often it is traced."""

    traces = 0

    def logits(self, x):
        self.traces += 1
        return super().logits(x)


@pytest.fixture(scope='module')
def traced(script, small_bert):
    """A UniLM that is traced but once."""
    return CountedUniLM(small_bert[0], script.unilm_mask)


@pytest.fixture
def reading(script, small_bert, traced):
    """Return a function that builds a reader, of `small_bert` or of fixed probabilities."""
    draw(small_bert[0], 0)

    def build(probabilities=None, **constants):
        constants = script.Constants(**{'max_a_len': 6, **constants})
        reader = script.ReadingComprehension(*small_bert, constants)
        reader.unilm = FixedUniLM(probabilities) if probabilities else traced
        return reader

    return build


@pytest.fixture
def search(reading):
    """Return a function that searches for the answer in passages, lists of tokens, to [20, SEP].

    predicted: {written: what each passage predicts next, {token: probability}}; whoever asks for
    what it does not hold, or asks a passage of which it is None, fails.
    """

    def search(passages, predicted, topk=1, **constants):
        def probabilities(source, written):
            return predicted[written][passages.index(source[1:-3])]

        reader = reading(probabilities, **constants)
        [result] = reader.search([([[CLS, *p, END] for p in passages], [20, END])], topk)
        return result

    return search


def log_votes(*given):
    """The score of tokens whose probabilities, one of each passage that votes, are these."""
    return sum(math.log(sum(p * p for p in probas) / (1 + sum(probas))) for probas in given)


@pytest.mark.parametrize('topk', [0, -1, 1.5, '2'])
def test_beam_width_is_checked_as_the_constant_is(reading, topk):
    line = refusal(reading().answer, '谁', ['中国'], topk)
    assert line == f'topk = {topk!r}: expected a whole number of at least 1'


# ------------------------------------------------------------------------------------ the six steps

# the rule: passages, what they predict, constants, the answer's tokens, who has an answer, the
# probabilities that it was voted on with
STEPS = {
    'a passage whose first token is SEP leaves for good, as a voter and as a text': (
        [[10, 11], [10, 12]],
        {
            (): [{10: 0.9}, {END: 0.6, 10: 0.4}],
            (10,): [{12: 0.4, 11: 0.3, END: 0.2}, None],
            (10, 11): [{12: 0.4, END: 0.2}, None],
        },
        {}, [10, 11, END], [True, False], [[0.9], [0.3], [0.2]],
    ),
    'SEP need not be probable for that, if no other token is more probable': (
        [[10], [11]],
        {(): [{END: 0.3, 10: 0.25, 11: 0.2}, {END: 0.2, 11: 0.25}], (11,): [None, {END: 1.0}]},
        {}, [11, END], [False, True], [[0.25], [1.0]],
    ),
    'all passages leave, the answer is empty': ([[10]], {(): [{END: 1.0}]}, {}, [], [False], None),
    'without passages too': ([], {(): []}, {}, [], [], None),
    'a passage given three times votes three times': (
        [[10], [11], [10], [10]],
        {(): [{10: 0.6}, {11: 0.7}]},
        {'max_a_len': 1}, [10], [True] * 4, [[0.6, 0, 0.6, 0.6]],
    ),
    'what goes on in no passage is not chosen': (
        [[13, 10, 11]],
        {(): [{10: 0.9}], (10,): [{13: 0.9, 11: 0.2}], (10, 11): [{13: 0.9, END: 0.1}]},
        {}, [10, 11, END], [True], [[0.9], [0.2], [0.1]],
    ),
    'tokens of the question do not count': (
        [[10]], {(): [{20: 0.9, 10: 0.05}], (10,): [{END: 1.0}]},
        {}, [10, END], [True], [[0.05], [1.0]],
    ),
    'but in generative mode they may be written, and any other': (
        [[10]], {(): [{20: 0.9, 10: 0.05}], (20,): [{END: 1.0}]},
        {'mode': 'generative'}, [20, END], [True], [[0.9], [1.0]],
    ),
    'a finished beam that is not the best is dropped, and lets no third one in': (
        [[11, 12, 13, 11, 12, 10]],
        {
            (): [{10: 0.45, 11: 0.5, 12: 0.05}],
            (10,): [{END: 0.9}],
            (11,): [{12: 0.95, END: 0.05}],
            (11, 12): [{10: 0.4, 13: 0.3}],
            (11, 12, 10): [{END: 1.0}],
        },
        {'topk': 2}, [11, 12, 10, END], [True], [[0.5], [0.95], [0.4], [1.0]],
    ),
    'the best beam that ends is the answer at once': (
        [[10, 11, 12]], {(): [{10: 0.6, 11: 0.5}], (10,): [{END: 0.9}], (11,): [{12: 0.8}]},
        {'topk': 2}, [10, END], [True], [[0.6], [0.9]],
    ),
    'after max_a_len tokens the best beam is the answer, though it does not end': (
        [[10, 11, 10, 10]],
        {(): [{10: 0.4, 11: 0.3}], (10,): [{10: 0.4, 11: 0.3}], (11,): [{10: 0.4}]},
        {'topk': 2, 'max_a_len': 2}, [10, 10], [True], [[0.4], [0.4]],
    ),
    'a bias for no answer lets passages leave': (
        [[10], [12]], {(): [{END: 0.3, 10: 0.5}, {END: 0.6, 12: 0.8}]},
        {'no_answer_bias': 2.0}, [], [False, False], None,
    ),
    'or stay; it counts in the vote on the first token, and at the first step alone': (
        [[10, 11], [12, 10]],
        {(): [{END: 0.3, 10: 0.5}, {END: 0.6, 10: 0.2}], (10,): [{END: 0.4, 11: 0.5}, {END: 0.4}]},
        {'no_answer_bias': -2.0, 'max_a_len': 2},
        [10, END], [True, True], [[0.5, 0.2], [0.4, 0.4]],
    ),
}  # fmt: skip


@pytest.mark.parametrize('rule', STEPS)
def test_search_by_hand(search, rule):
    passages, predicted, constants, token_ids, has_answer, given = STEPS[rule]
    result = search(passages, predicted, **constants)
    answer = result.hypotheses[0]
    assert [*answer.token_ids] == token_ids and result.has_answer.tolist() == has_answer
    first = [predicted[()][passages.index(passage)].get(END, 0) for passage in passages]
    assert result.no_answer_prob.tolist() == pytest.approx(first)  # without the bias
    if given is None:
        assert (answer.score, answer.log_score, answer.finished) == (None, None, True)
    else:
        assert answer.log_score == pytest.approx(log_votes(*given), rel=1e-6)
        np.testing.assert_allclose(answer.token_probs, given, rtol=1e-6)
        assert answer.finished == (token_ids[-1] == END)


def test_reasons_are_told_of_each_token(search):
    """Of the beam that wrote it, whatever else was written; only what was allowed counts."""
    predicted = {
        (): [{10: 0.5, 11: 0.4, 14: 0.9}, {11: 0.6, 10: 0.3, 12: 0.1, 13: 0.2}],
        (10,): [{11: 0.8, END: 0.1}, {END: 0.5, 12: 0.4}],
        (11,): [{END: 0.1, 12: 0.05}, {END: 0.2}],
        (10, 11): [{END: 0.9}, {END: 0.8}],
    }
    votes = {token: np.exp(log_votes(probs)) for token, probs in (
        (10, [0.5, 0.3]), (11, [0.4, 0.6]), (13, [0, 0.2]), (12, [0, 0.1]),
    )}  # fmt: skip
    found = search([[10, 11], [11, 13, 10, 12]], predicted, 2).hypotheses[0]
    assert found.token_ids == [10, 11, END]
    assert found.token_votes == pytest.approx([votes[10], 0.64 / 1.8, (0.81 + 0.64) / 2.7])
    tokens = [[token for token, _ in others] for others in found.next_tokens]
    assert tokens == [[11, 13, 12], [END, 12], []]
    assert [vote for _, vote in found.next_tokens[0]] == pytest.approx([*map(votes.get, tokens[0])])
    assert np.transpose(found.preferred).tolist() == [[10, 11, END], [11, END, END]]


def test_passages_that_write_alone_prefer_what_they_wrote(search):
    """Also more than was agreed on; no token was voted on then."""
    predicted = {
        (): [{10: 0.9}, {10: 0.8}, {11: 0.7}, {END: 0.9}],
        (10,): [{END: 0.9}, {END: 0.9}, {}, {}],
        (11,): [{}, {}, {12: 0.5}, {}],
        (11, 12): [{}, {}, {END: 0.9}, {}],
    }
    found = search([[10], [13, 10], [11, 12], [14]], predicted, vote='answer').hypotheses[0]
    assert (found.token_ids, found.token_votes, found.next_tokens) == ([10, END], [], [])
    expected = [[10, END, -1], [10, END, -1], [11, 12, END]]
    assert np.transpose(found.preferred).tolist() == expected


def test_vote_by_hand(script):
    """A sure passage counts more than two that waver; what it predicts after one beam is no vote
    after another."""
    probas = np.float32([[[0.9, 0.5, 0], [0, 0, 0.4]], [[0, 0.5, 0], [0, 0, 0.2]]])
    expected = [[0.81 / 1.9, 0.5 / 2, 0], [0, 0, 0.2 / 1.6]]
    np.testing.assert_allclose(script.vote(probas), expected, rtol=1e-6)


def test_allowed_is_what_follows_a_hypothesis_in_a_passage(script):
    """Each of them in its own places; what stands in the next passage does not follow."""
    text = np.array([10, 11, 12, END, 10, 13, END, 10, 10, 14, END])
    follow = {
        (): [10, 11, 12, 13, 14], (10,): [10, 11, 13, 14], (11,): [12], (10, 11): [12],
        (10, 10): [14], (12,): [], (13, 10): [], (15,): [],
    }  # fmt: skip
    allowed = script.allowed_tokens(text, [Hypothesis([*ids]) for ids in follow], END, 20)
    assert allowed.shape == (len(follow), 20) and {*allowed.ravel()} == {0, 1}
    for row, tokens in zip(allowed, follow.values(), strict=True):
        assert np.flatnonzero(row).tolist() == [END, *tokens]


@pytest.mark.parametrize(
    ('votes', 'before', 'width', 'kept'),
    [
        # ties go to the earlier beam, then the lower token
        ([[0.0, 0.2, 0.4, 0.4], [0.0, 0.4, 0.2, 0.2]], [0.0, 0.0], 3, [(0, 2), (0, 3), (1, 1)]),
        # a beam that is far behind does not win by a high vote; there may be less than the width
        ([[0.1, 0.2], [0.9, 0.0]], [-1.0, -4.0], 9, [(0, 1), (0, 0), (1, 0), (1, 1)]),
        # what has no vote comes last, even where the other is far below log(1e-12)
        ([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]], [0.0, -100.0], 2, [(1, 1), (0, 0)]),
    ],
)
def test_best_extensions_of_all_beams_are_kept(script, votes, before, width, kept):
    votes, probas = np.float32(votes), np.random.default_rng(0).random([2, *np.shape(votes)])
    hypotheses = [Hypothesis([30 + i], x, [[0.5, i]]) for i, x in enumerate(before)]
    extended = script.best_extensions(hypotheses, votes, np.float32(probas), width, end_id=2)
    assert [(each.parent, each.token_ids[-1]) for each in extended] == kept
    for each, (parent, token) in zip(extended, kept, strict=True):
        assert each.token_ids == [30 + parent, token] and each.finished == (token == 2)
        score = before[parent] + np.log(votes[parent, token] + 1e-12)
        assert each.log_score == pytest.approx(score, rel=1e-6)
        expected = [[0.5, parent], probas[:, parent, token]]
        np.testing.assert_allclose(each.token_probs, expected, rtol=1e-6)


def test_candidates_are_the_answer_then_what_was_dropped(search):
    """Two were dropped before the answer came; nothing is written for their sake."""
    predicted = {
        (): [{10: 0.45, 11: 0.4, 12: 0.5}],
        (10,): [{END: 0.9}],
        (11,): [{END: 0.8}],
        (12,): [{13: 0.95, END: 0.05}],
        (12, 13): [{END: 0.9, 10: 0.5}],
    }
    found = search([[12, 13, 10, 11]], predicted, 3).hypotheses
    assert [each.token_ids for each in found] == [[12, 13, END], [10, END], [11, END]]
    for each, probas in zip(found, [[0.5, 0.95, 0.9], [0.45, 0.9], [0.4, 0.8]], strict=True):
        assert each.log_score == pytest.approx(log_votes(*([p] for p in probas)))
        assert each.score == pytest.approx(np.prod(probas) ** (1 / len(probas)))
    assert len(search([[12, 13, 10, 11]], predicted).hypotheses) == 1
    predicted = {written: [{10: 0.6, 11: 0.4}] for written in [(10,), (11,)]}
    predicted[()] = [{10: 0.6, 11: 0.4, END: 0.1}]
    found = search([[10, 11, 10, 10]], predicted, 3, max_a_len=2).hypotheses
    # what does not end comes last, though its votes are more
    found = [(each.token_ids, each.finished) for each in found]
    assert found == [([10, 10], False), ([END], True), ([10, 11], False)]


@pytest.mark.parametrize(
    ('order', 'winner', 'confidences'),
    [
        ([0, 1, 2], 21, [0.45]),  # two that agree and waver against one that is sure
        ([0, 1, 0, 2], 20, [0.3] * 3),  # one given twice counts twice
    ],
)
def test_whole_answers_are_voted_on_by_hand(search, order, winner, confidences):
    given = [([10, 20, 21], 20, 0.6), ([11, 20, 21], 20, 0.6), ([12, 20, 21], 21, 0.9)]
    passages, tokens, probas = zip(*[given[i] for i in order], strict=True)
    after = [{END: 0.5, 22: 0.1}] * len(order)
    pairs = zip(tokens, probas, strict=True)
    first = [{20: 0.01, 21: 0.01, token: proba} for token, proba in pairs]
    predicted = {(): first, (20,): after, (21,): after}
    result = search([*passages], predicted, 2, vote='answer')
    assert result.hypotheses[0].token_ids == [winner, END]
    assert result.hypotheses[0].log_score == pytest.approx(log_votes(confidences), rel=1e-6)
    assert len(result.hypotheses) == len({*tokens}) and result.has_answer.all()
    asked = ~np.isnan(result.hypotheses[0].token_probs[0])
    assert asked.tolist() == [token == winner for token in tokens]


# ----------------------------------------------------------------------------------- text and place


@pytest.fixture(scope='module')
def rereading(script, small_bert):
    """Return a function that lets some tokens of a passage be written, and returns the Answer.

    choose: a function of the passage's tokens to those that are written.
    """
    reader = script.ReadingComprehension(*small_bert, script.Constants())
    silent = reader.tokenizer.encode('天津')[0]

    def read(passage, choose):
        written = []

        def probabilities(source, beam):
            if source[: len(silent)] == silent:
                return {END: 1.0}
            if not written:
                written.extend(choose(source[1 : source.index(END)]))
            return {[*written, END][len(beam)]: 1.0}

        reader.unilm = FixedUniLM(probabilities)
        return reader.answer('?', ['天津', passage])

    return read


@pytest.mark.parametrize(
    ('passage', 'answer', 'text'),
    [
        ('人口在BeiJing，上海', 'BeiJing，上海', None),  # case and punctuation of the passage
        ('中国是𠮷喆的', '𠮷喆', None),  # characters outside the vocabulary
        ('İstanbul在北京、\t上海', '北京、\t上海', None),  # of two in lower case; white space
        ('在cafe\u0301里', 'cafe\u0301', None),  # an accent of its own
        ('ΑΣ在北京', 'ΑΣ', None),  # a capital that has two lower-case forms
        ('ＡＢ在 ', 'ＡＢ', None),
        ('在👨\u200d👩\u200d👧里', '👨\u200d👩\u200d👧', None),  # joined emoji stay whole
        ('在👍🏽❤️里', '👍🏽❤️', None),
        ('在北\u200b京\u2060市\ufeff里', '北\u200b京\u2060市', '北京市'),
        ('在北京\xa0上海里', '北京\xa0上海', '北京 上海'),  # which training reads as a space
        ('在\u200b北京\u200b里', '北京', None),
        ('在\xa0ＡＢ\xa0里', 'ＡＢ', None),
    ],
)
def test_answer_is_given_as_it_stands_in_the_passage(
    small_bert, script, rereading, passage, answer, text
):
    """What cannot be seen is taken out of the text alone, its place keeps it."""
    written = small_bert[1].encode(script.unify_separators(answer))[0][1:-1]
    result, start = rereading(passage, lambda token_ids: written), passage.index(answer)
    assert result[:5] == (text or answer, 1, start, start + len(answer), written)
    assert result[:5] == result.candidates[0][:5] and result.score == 1
    assert result.log_score == pytest.approx((len(written) + 1) * math.log(1 / 2))
    assert [vote.has_answer for vote in result.votes] == [False, True]


@given(st.text(max_size=20), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_text_can_be_read(rereading, text, data):
    """Whatever the characters, an answer is found in the passage or decoded; nothing is raised."""

    def choose(token_ids):
        start = data.draw(st.integers(0, len(token_ids)))
        return token_ids[start : data.draw(st.integers(start, len(token_ids)))]

    answer = rereading(text, choose)
    if answer.passage is not None:
        found = text[answer.start : answer.end]
        assert answer.text and answer.text == without_invisible(found)
        assert answer.text == found or {*found} & {*'\u200b\u2060\ufeff\xa0'}


# -------------------------------------------------------------------------------- what may be asked


def test_passages_may_come_one_by_one_or_as_records(reading):
    """As a program has them; of no passages there is no answer."""
    reader, texts = reading(), ['在北京', '人口是2']
    expected = reader.answer('谁', texts, 2)
    assert expected == reader.answer('谁', iter(texts), np.int64(2))
    assert expected == reader.answer('谁', ({'passage': text, 'answer': ''} for text in texts), 2)
    assert [expected] == [*reader.answers(iter([['谁', tuple(texts)]]), 2)]
    assert reader.answer('谁', [])[:4] == ('', None, None, None)


def test_what_is_read_of_a_passage_is_decided_once(script, reading, monkeypatch, small, capsys):
    """Whether a program, the command line, a file or a stream has it; its place is in that."""

    def whole_passage(source, written):
        return {[*source[1 : source.index(END)], END][len(written)]: 1.0}

    reader = reading(whole_passage, output_dir=str(small))
    monkeypatch.setattr(script, 'load_trained', lambda *_: reader)
    monkeypatch.setattr(script, 'passage_text', lambda p: p.get('title', '中') + p['passage'])
    answer = reader.answer('谁', [{'title': '北京', 'passage': '在上海'}])
    assert answer[:4] == ('北京在上海', 0, 0, 5)
    assert reader.answer('谁', ['在上海']).text == '中在上海'
    titled = record_of(('在上海', ''))
    titled['passages'][0]['title'] = '北京'
    write_json(small / 'file.json', [titled])
    monkeypatch.setattr('sys.stdin', io.StringIO(json.dumps(titled)))
    file, files = str(small / 'file.json'), small_files(script, small)
    line = CommandLine('predict', {}, reader.constants)
    for path, shown in (file, 'a\t北京在上海\n'), ('-', '"text": "北京在上海"'):
        script.predict(reader.constants, files, line._replace(path=path))
        assert shown in capsys.readouterr().out
    line = line._replace(question='谁', passages=['在上海'])
    script.predict(reader.constants, files, line)
    assert '中在上海' in capsys.readouterr().out


def test_answers_come_in_the_order_of_the_questions(reading):
    """However many are read together, and without waiting for those that do not fit any more."""
    reader = reading(lambda source, written: {END: 1.0} if written else {source[1]: 1.0})
    asked, questions = [], [('人口', [character] * 3) for character in '中国北京上海南天津重庆']

    def ask():
        for question in questions:
            asked.append(question)
            yield question

    reader.tokens_together = 60  # three questions of 3 * (3 + 3) tokens
    answers = reader.answers(ask())
    assert next(answers).text == '中' and len(asked) == 4
    assert [answer.text for answer in answers] == list('国北京上海南天津重庆')
    assert next(reading().answers([]), None) is None


def test_answer_beyond_the_length_of_a_passage_is_reached(reading, small_bert):
    """The windows are read and vote like passages; the vote of a passage is that of its surest."""
    written = small_bert[1].encode('北京')[0][1:-1]
    passages = ['中国' * 6 + '人口在北京' + '天津' * 4, '上海']

    def probabilities(source, beam):
        text = source[1 : source.index(END)]
        places = [i for i in range(len(text)) if text[i : i + 2] == written]
        if not places:
            return {END: 0.75}
        return {[*written, END][len(beam)]: 1.0 - 0.125 * (places[0] < 5)}

    for stride, expected in (0, ('', None, None, None)), (4, ('北京', 0, 15, 17)):
        reader = reading(probabilities, max_p_len=12, passage_stride=stride)
        answer = reader.answer('谁', passages)
        assert answer[:4] == expected
    assert answer.votes == [(0.0, True, [1.0] * 3, ['北', '京', '[SEP]']), (0.75, False, [], [])]


# -------------------------------------------------------------------- against the reference decoder

tokens = st.integers(4, 30)
passage_lists = st.lists(st.lists(tokens, max_size=20), max_size=15)
questions_of_a_set = st.lists(
    st.tuples(passage_lists, st.lists(tokens, max_size=8)), min_size=1, max_size=9
)


class CompiledReference(SinglePassageDecoder):
    """The reference decoders; the forward pass is compiled, or 2,000 cases would take an hour."""

    def __init__(self, model):
        super().__init__(model, END, 6, 'generative')
        self.compiled, self.alone = forward_pass_of(model), False

    def forward(self, batch):
        return self.compiled(*batch)

    def vote(self, probas):
        return super().vote(probas) if self.alone else ReferenceDecoder.vote(self, probas)


class Comparison:
    """Compares the reader with the reference decoder, and counts what it has seen."""

    def __init__(self, script, model, tokenizer, unilm):
        self.model, self.unilm, self.seen = model, unilm, collections.Counter()
        self.readers, self.reference = {}, CompiledReference(model)
        variants = {'post': {}, 'bias': {'no_answer_bias': 0.7}, 'answers': {'vote': 'answer'}}
        for mode, name in itertools.product(('extractive', 'generative'), variants):
            constants = script.Constants(max_a_len=6, mode=mode, **variants[name])
            self.readers[mode, name] = script.ReadingComprehension(model, tokenizer, constants)
            self.readers[mode, name].unilm = unilm
        size = script.Constants.max_p_len - 2
        self.longest = np.random.default_rng(0).integers(4, 30, size).tolist()

    def compare(self, mode, topk, seed, drawn):
        """Compare the answers to a set of questions, by the weights of a seed."""
        variant = ('post', 'post', 'bias', 'answers')[(seed + topk) % 4]
        draw(self.model, seed)
        reader, questions = self.readers[mode, variant], []
        self.reference.mode, self.reference.alone = mode, variant == 'answers'
        self.reference.no_answer_bias = reader.constants.no_answer_bias
        for passages, question in drawn:
            passages = passages + passages[: len(question) % 4] + [self.longest] * (seed == 7)
            questions.append(([[CLS, *passage, END] for passage in passages], [*question, END]))
        with pytest.MonkeyPatch.context() as patch:
            if len(questions) % 2:  # most is read again for each token
                patch.setattr(CachedUniLM, 'tokens_cached', 40)
                patch.setattr(CachedUniLM, 'tokens_at_once', 60)
                self.seen['little room'] += 1
            together = reader.search(questions, topk)
        for question, result in zip(questions, together, strict=True):
            answer = result.hypotheses[0]
            if not question[0]:
                assert answer.token_ids == [] and len(result.has_answer) == 0
                self.seen['no passage'] += 1
            elif variant == 'answers':
                written = self.reference.answer_by_vote(*question, topk)
                assert [token for token in answer.token_ids if token != END] == written
            else:
                self.compare_tokens(question, result, topk)
            self.seen[variant] += 1

    def compare_tokens(self, question, result, topk):
        """Compare the answer, who took part, and what a passage gave to the answer."""
        (p_token_ids, q_token_ids), answer, seen = question, result.hypotheses[0], self.seen
        written = self.reference.answer(p_token_ids, q_token_ids, topk)
        remaining = self.reference.remaining.tolist()
        assert np.flatnonzero(result.has_answer).tolist() == remaining
        assert answer.token_ids == written + [END] * (answer.finished and bool(remaining))
        seen['cases'] += 1  # and what may go wrong by itself
        seen['repeated passages'] += len({*map(tuple, p_token_ids)}) < len(p_token_ids)
        seen['one-token passages'] += 3 in map(len, p_token_ids)
        seen['longest passages'] += [CLS, *self.longest, END] in p_token_ids
        seen['all leave'] += not remaining
        seen['some leave'] += 0 < len(remaining) < len(p_token_ids)
        seen['several tokens'] += len(written) > 1
        seen['longest answer'] += len(written) == 6
        if remaining:
            # of float32, over several tokens
            assert answer.log_score == pytest.approx(self.reference.score, abs=1e-5, rel=3e-6)
            given = self.reference.given([*p_token_ids[remaining[-1]], *q_token_ids], written)
            last = [probas[-1] for probas in answer.token_probs]
            assert last == pytest.approx(given[: len(last)], abs=1e-6, rel=1e-4)
        else:
            assert (answer.score, answer.log_score) == (None, None)


@pytest.mark.parametrize(
    ('cases', 'at_once', 'least'), [(30, 3, 1), pytest.param(2000, 80, 20, marks=pytest.mark.slow)]
)
def test_reader_writes_what_the_reference_decoder_writes(
    script, small_bert, traced, cases, at_once, least
):
    """Random questions in sets of 1 to 9, read together; the reference reads each alone."""
    comparison, number = Comparison(script, *small_bert, traced), 0
    while comparison.seen['cases'] < cases or number % 10:  # how many are in a set is drawn too
        mode, topk = ('extractive', 'generative')[number % 2], 1 + number // 2 % 5
        compare = given(st.just(mode), st.just(topk), st.integers(0, 7), questions_of_a_set)
        options = settings(max_examples=at_once, deadline=None, database=None)
        with_seed(number)(options(compare(comparison.compare)))()
        number += 1
    print(dict(comparison.seen))
    assert all(count >= least for count in comparison.seen.values())
    assert traced.traces == 2  # reading once, writing once, whatever the shapes


def test_reference_decoder_writes_what_bert4keras_beam_search_writes(small_bert):
    """The reference's own beam search differs from bert4keras's in ties only."""
    model, _ = small_bert
    decoder = CompiledReference(model)
    rng, lengths = np.random.default_rng(1), set()
    for i in range(15):
        draw(model, i % 6)
        p_token_ids = [[CLS, *rng.integers(4, 30, 8).tolist(), END] for _ in range(4)]
        topk = 1 + i % 3
        ours = decoder.answer(p_token_ids, [5, END], topk)
        decoder.remaining = np.arange(4)
        sources = [[*p, 5, END] for p in p_token_ids]
        original = bert4keras.snippets.AutoRegressiveDecoder.beam_search
        theirs = original(decoder, sources, topk).tolist()
        assert [token for token in theirs if token != END] == ours
        lengths.add(len(ours))
    assert len(lengths) > 2
