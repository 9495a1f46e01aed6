"""DESIGN of reading: the six steps on numbers small enough to check by hand, then against the reference decoder."""

import collections
import os
import types

import numpy as np
import pytest
from conftest import build_small_model, draw
from hypothesis import given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from reference_decoder import ReferenceDecoder

END = 3


@pytest.fixture
def small_reader(script, small):
    script.max_a_len = 6
    model, tokenizer = build_small_model(script, small)
    return script.ReadingComprehension(model, tokenizer)


class FixedUniLM:
    """Predicts `probabilities(source, beam)`, a dict of the tokens that have any; remembers the sources themselves."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def predict(self, sources, beams):
        result = np.zeros([len(sources), len(beams[0]), 40], np.float32)
        for i, source in enumerate(sources):
            for j, beam in enumerate(beams[i]):
                for token, probability in self.probabilities(source, tuple(beam)).items():
                    result[i, j, token] = probability
        return result

    def read(self, sources):
        probas = self.predict(sources, [[()]] * len(sources))
        answerable = probas[:, 0].argmax(-1) != END
        return answerable, probas[answerable], [sources[i] for i in np.flatnonzero(answerable)]

    def write(self, memory, output_ids, parents):
        return self.predict(memory, output_ids.tolist()), memory


def fixed(reader, probabilities):
    reader.unilm = FixedUniLM(probabilities)
    return reader


def search(reader, p_token_ids, q_token_ids, topk):
    [found] = reader.beam_search([(p_token_ids, q_token_ids)], topk)
    return found


def test_vote_by_hand(script):
    """One sure passage (0.9) counts more than two that waver (0.5): 0.81 / 1.9 against 0.5 / 2."""
    probas = np.zeros([2, 1, 4], np.float32)
    probas[0, 0, 1], probas[0, 0, 2], probas[1, 0, 2] = 0.9, 0.5, 0.5
    votes = script.vote(probas, np.ones(2, np.float32), [0, 0], 1)
    np.testing.assert_allclose(votes, [[[0, 0.81 / 1.9, 0.5 / 2, 0]]], rtol=1e-6)


def test_passage_given_three_times_votes_three_times(script):
    """And a passage of another question does not vote."""
    probas = np.float32([[[0.5, 0.1]], [[0.2, 0.3]], [[0.9, 0.0]]])
    votes = script.vote(probas, np.float32([3, 1, 1]), [1, 1, 0], 2)
    expected = (3 * 0.5**2 + 0.2**2) / (1 + 3 * 0.5 + 0.2)
    np.testing.assert_allclose(
        votes[1, 0], [expected, (3 * 0.1**2 + 0.3**2) / (1 + 3 * 0.1 + 0.3)], rtol=1e-6
    )
    np.testing.assert_allclose(votes[0, 0], [0.81 / 1.9, 0], rtol=1e-6)


def test_passage_whose_first_token_is_sep_leaves_for_good(small_reader):
    """It must not vote on later tokens either, even where it would agree."""
    answering, silent = [2, 10, 11, END], [2, 10, 12, END]

    def probabilities(source, beam):
        if source[2] == 11:
            return {10: 0.9} if not beam else {11: 0.3, END: 0.2}
        return {END: 0.6, 10: 0.4} if not beam else {END: 0.9}

    found = search(fixed(small_reader, probabilities), [answering, silent], [END], 1)
    assert found.answer[:2] == [10, 11] and found.remaining == [0]


def test_all_passages_leave_the_answer_is_empty(small_reader):
    small_reader = fixed(small_reader, lambda source, beam: {END: 1.0})
    found = search(small_reader, [[2, 10, END]], [END], 3)
    assert (found.answer, found.score, found.remaining) == ([], 0.0, [])
    answer = small_reader.answer('中', ['国'])
    assert answer.text == '' and answer.passage is None


def searching(script, output_ids, scores, passages=()):
    """A Search of passages, lists of tokens, that has written these beams."""
    found = script.Search(len(scores), END)
    for i in range(len(passages)):
        found.begin([i], [[2, *passage, END] for passage in passages])
    found.output_ids, found.scores = output_ids, scores
    return found


def test_questions_read_together_answer_as_each_alone(script, small):
    """Whatever the others: some have no passage, some no answer, some the same passages, some long ones."""
    script.max_a_len = 6
    model, tokenizer = build_small_model(script, small)
    reader = script.ReadingComprehension(model, tokenizer)
    rng, seen = np.random.default_rng(0), collections.Counter()
    for _ in range(12):
        questions = []
        for _ in range(rng.integers(1, 10)):
            longest = rng.choice([2, 20, 90])
            passages = [
                [2, *rng.integers(4, 31, rng.integers(0, longest)).tolist(), END]
                for _ in range(rng.integers(0, 9))
            ]
            questions.append(
                (passages + passages[: rng.integers(0, 3)], [*rng.integers(4, 31, 3).tolist(), END])
            )
        questions.append(questions[0])
        reader.mode, topk = rng.choice(['extractive', 'generative']), int(rng.integers(1, 6))
        together = reader.beam_search(questions, topk)
        for question, found in zip(questions, together, strict=True):
            [alone] = reader.beam_search([question], topk)
            assert (found.answer, found.remaining) == (alone.answer, alone.remaining)
            assert found.score == pytest.approx(alone.score, abs=1e-5, rel=1e-6)
            seen['no passage' if not question[0] else len(found.answer)] += 1
    assert seen['no passage'] and seen[0] and seen[1] and seen[6]


def test_extractive_answer_is_a_run_of_passage_tokens(script):
    """After 10 comes 11 in one passage and 13 in the other; 12 follows 11 only."""
    found = searching(script, [[]], [0.0], [[10, 11, 12], [10, 13]])
    allowed = script.allowed_tokens([found], [1, 1, 20])
    assert np.flatnonzero(allowed[0, 0]).tolist() == [END, 10, 11, 12, 13]
    found.extend(np.array([-1.0]), np.array([0]), np.array([10]))
    allowed = script.allowed_tokens([found], [1, 1, 20])
    assert np.flatnonzero(allowed[0, 0]).tolist() == [END, 11, 13]


def test_question_tokens_do_not_count_as_passage(small_reader):
    small_reader = fixed(
        small_reader, lambda source, beam: {20: 0.9, 10: 0.05} if not beam else {END: 1.0}
    )
    assert search(small_reader, [[2, 10, END]], [20, END], 1).answer == [10]
    small_reader.mode = 'generative'
    assert search(small_reader, [[2, 10, END]], [20, END], 1).answer == [20]


def best_beams(script, scores, votes, topk):
    found = searching(script, [[7]] * len(scores), scores)
    scores, parents, tokens = script.extend_beams([found], np.float32([votes]), topk)
    return scores[0], list(zip(parents[0].tolist(), tokens[0].tolist(), strict=True))


def test_ties_go_to_the_earlier_beam_then_the_lower_token(script):
    votes = [[0.0, 0.2, 0.4, 0.4], [0.0, 0.4, 0.2, 0.2]]
    assert best_beams(script, [0.0, 0.0], votes, 3)[1] == [(0, 2), (0, 3), (1, 1)]


def test_token_without_a_vote_is_kept_only_when_no_other_is_left(script):
    """Even where the other's score is far lower than log(1e-12)."""
    scores, kept = best_beams(script, [0.0, -100.0], [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]], 2)
    assert kept == [(1, 1), (0, 0)]
    np.testing.assert_allclose(scores, [-100 + np.log(0.5), np.log(1e-12)], rtol=1e-6)


def test_finished_beam_that_is_not_best_is_dropped_and_the_width_shrinks(small_reader):
    """Beam [10, SEP] finishes second to [11, 12]: it must neither return later nor let a third beam in."""

    def probabilities(source, beam):
        return {
            (): {10: 0.45, 11: 0.5, 12: 0.05},
            (10,): {END: 0.9},
            (11,): {12: 0.95, END: 0.05},
            (11, 12): {END: 0.4, 10: 0.3},
        }[beam]  # a third beam, or (10, END), is a KeyError

    found = search(fixed(small_reader, probabilities), [[2, 11, 12, 10, END]], [END], 2)
    assert found.answer == [11, 12] and found.topk == 1


def test_answer_stops_at_max_a_len(script, small_reader):
    script.max_a_len = 2
    small_reader = fixed(small_reader, lambda source, beam: {10: 1.0})
    assert search(small_reader, [[2, 10, 10, 10, 10, END]], [END], 1).answer == [10, 10]


@pytest.mark.parametrize(
    ('passage', 'answer'),
    [
        ('人口在BeiJing，上海', 'BeiJing，上海'),  # case and punctuation as in the passage
        ('中国是𠮷喆的', '𠮷喆'),  # characters outside the vocabulary
        (
            'İstanbul在北京、\t上海',
            '北京、\t上海',
        ),  # a character whose lower case is two; dropped white space
        ('在cafe\u0301里', 'cafe\u0301'),  # an accent of its own
        ('ΑΣ在北京', 'ΑΣ'),  # a capital that has two lower-case forms
        ('ＡＢ在 ', 'ＡＢ'),
    ],
)
def test_answer_is_given_as_it_stands_in_the_passage(script, small_reader, passage, answer):
    tokenizer = small_reader.tokenizer
    start = passage.index(answer)
    before = len(tokenizer.tokenize(script.unify_separators(passage[:start]))) - 2
    written = tokenizer.encode(script.unify_separators(answer))[0][1:-1]
    fragment = tokenizer.encode(script.unify_separators(passage))[0][1:-1]
    assert fragment[before : before + len(written)] == written
    small_reader.beam_search = lambda questions, topk: [written_search(written, -1.0, [1])]
    result = small_reader.answer('谁', ['天津', passage])
    assert result == (answer, 1, start, start + len(answer), written, -1.0)


def test_a_single_passage_stands_in_a_list(small_reader):
    """A str is a sequence too: each of its characters would be a passage."""
    with pytest.raises(TypeError, match='give \\[passage\\]'):
        small_reader.answer('谁', '中国人口在北京')


@given(st.text(max_size=30), st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_can_be_read(tokenizer_only, text, data):
    """Whatever the characters, an answer is either found in the passage or decoded; nothing is raised."""
    reader, token_ids = reader_of(tokenizer_only, text)
    if token_ids:
        answer = write(reader, text, *span(data, token_ids))
        assert answer.passage is None or (
            answer.text and answer.text == text[answer.start : answer.end]
        )


@given(st.text('中国北京𠮷喆犇，。 、；「Ａ\t\n\u3000', max_size=30), st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_offsets_are_those_of_the_first_place_with_these_tokens(tokenizer_only, text, data):
    """Here every character is one token, but the last three, which are none."""
    text = text.replace('Ａ', 'Ａ。')  # two of them in a row would be one word
    reader, token_ids = reader_of(tokenizer_only, text)
    places = [i for i, character in enumerate(text) if character not in '\t\n\u3000']
    assert len(places) == len(token_ids)
    if token_ids:
        start, end = span(data, token_ids)
        answer = write(reader, text, start, end)
        first = next(
            i for i in range(start + 1) if token_ids[i : i + end - start] == token_ids[start:end]
        )
        assert (answer.start, answer.end) == (places[first], places[first + end - start - 1] + 1)


def written_search(answer, score, remaining):
    return types.SimpleNamespace(answer=answer, score=score, remaining=remaining)


def reader_of(tokenizer_only, text):
    script, tokenizer = tokenizer_only
    reader = script.ReadingComprehension.__new__(script.ReadingComprehension)
    reader.tokenizer, reader.mode = tokenizer, 'extractive'
    return reader, tokenizer.encode(script.unify_separators(text), maxlen=script.max_p_len)[0][1:-1]


def span(data, token_ids):
    start = data.draw(st.integers(0, len(token_ids) - 1))
    return start, data.draw(st.integers(start + 1, len(token_ids)))


def write(reader, text, start, end):
    """The answer if the model wrote tokens start to end of the text."""
    reader.beam_search = lambda questions, topk: [
        written_search(questions[0][0][0][1 + start : 1 + end], 0.0, [0])
    ]
    return reader.answer('?', [text])


@pytest.fixture(scope='module')
def tokenizer_only(tmp_path_factory):
    from conftest import VOCABULARY

    import task_reading_comprehension_by_seq2seq as script

    path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
    path.write_text('\n'.join(VOCABULARY), encoding='utf-8')
    return script, script.load_tokenizer(str(path))[0]


# a set of questions read together: (seed of the weights, mode, topk, [(passages, question), ...]), as token ids
tokens = st.integers(4, 30)
passages = st.lists(
    st.lists(tokens, max_size=20) | st.lists(tokens, min_size=1, max_size=1),
    min_size=1,
    max_size=15,
)
repeating = (
    passages.flatmap(lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=15))
    | passages
)
question_sets = st.tuples(
    st.integers(0, 7),
    st.sampled_from(['extractive', 'generative']),
    st.integers(1, 5),
    st.lists(st.tuples(repeating, st.lists(tokens, max_size=8)), min_size=1, max_size=9),
)


class CompiledReference(ReferenceDecoder):
    """The reference decoder; its full forward pass is compiled, or 2,000 cases would take an hour."""

    def __init__(self, script, model, max_a_len):
        super().__init__(model, END, max_a_len, 'extractive')
        rows = script.tf.TensorSpec([None, None], script.tf.int32)
        self.compiled = script.tf.function(
            lambda *batch: model(list(batch), training=False), input_signature=[rows, rows]
        )

    def forward(self, batch):
        return self.compiled(*(np.asarray(ids, np.int32) for ids in batch)).numpy()


@pytest.mark.slow
def test_reader_writes_what_the_reference_decoder_writes(script, small):
    """2,000 random questions in sets of 1 to 9 that are read together; the reference reads each alone."""
    script.max_a_len = 6
    model, tokenizer = build_small_model(script, small)
    reader, reference = (
        script.ReadingComprehension(model, tokenizer),
        CompiledReference(script, model, 6),
    )
    longest = np.random.default_rng(0).integers(4, 30, script.max_p_len - 2).tolist()
    seen = collections.Counter()

    def compare(case):
        seed, reader.mode, topk, questions = case
        draw(model, seed)
        reference.mode = reader.mode
        if seed == 7:
            questions = [([*passages, longest], question) for passages, question in questions]
        questions = [
            ([[2, *p, END] for p in passages], [*question, END]) for passages, question in questions
        ]
        for question, found in zip(questions, reader.beam_search(questions, topk), strict=True):
            assert found.answer == reference.answer(*question, topk)
            assert found.remaining == reference.remaining.tolist()
            assert found.score == pytest.approx(
                reference.score, abs=1e-5, rel=3e-6
            )  # of float32, over several tokens
            p_token_ids, _ = question
            seen['cases'] += 1
            seen['repeated passages'] += len(set(map(tuple, p_token_ids))) < len(p_token_ids)
            seen['one-token passages'] += 3 in map(len, p_token_ids)
            seen['longest passages'] += script.max_p_len in map(len, p_token_ids)
            seen['all leave'] += not found.remaining
            seen['some leave'] += 0 < len(found.remaining) < len(p_token_ids)
            seen['several tokens'] += len(found.answer) > 1
            seen['longest answer'] += len(found.answer) == script.max_a_len
            seen[reader.mode, topk] += 1

    examples = 0
    while seen['cases'] < 2000:  # how many there are in a set is drawn too
        examples += 1
        with_seed(examples)(
            settings(max_examples=50, deadline=None, database=None)(given(question_sets)(compare))
        )()
    print(dict(seen))
    assert all(
        seen[mode, topk] for mode in ('extractive', 'generative') for topk in (1, 2, 3, 4, 5)
    )
    assert all(count >= 20 for kind, count in seen.items() if isinstance(kind, str))


def test_shapes_of_reading_recur(script, small, monkeypatch):
    """For each shape of a product oneDNN keeps memory, megabytes with BERT-base; a tiny model does not show it."""
    tf, packing, shapes = script.tf, script.packing, []

    def recorded(rows, columns, shape):
        tf.py_function(
            lambda *seen: shapes.append([int(size) for size in seen]), [tf.size(rows), *shape], []
        )
        return packing(rows, columns, shape)

    monkeypatch.setattr(script, 'packing', recorded)
    model, tokenizer = build_small_model(script, small)
    reader, rng = script.ReadingComprehension(model, tokenizer), np.random.default_rng(0)
    for _ in range(300):
        reader.unilm.read(
            sorted(([10] * rng.integers(2, 300) for _ in range(rng.integers(1, 40))), key=len)
        )
    padded = [shape for shape in shapes if shape[3] > 1]  # not those of the last layer
    assert all(
        tokens % 32 == 0 and rows % 4 == 0 and longest % 32 == 0
        for tokens, rows, _, longest in padded
    )
    assert len({(rows, longest) for _, rows, _, longest in padded}) <= 60 < len(padded) / 10


def resident_memory():
    """Return what this process holds now, in MB; its peak may be an earlier test's."""
    with open('/proc/self/status', encoding='utf-8') as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith('VmRSS'))


@pytest.mark.skipif(
    not os.path.exists('/proc/self/status'), reason='only Linux tells how much memory is held'
)
def test_memory_stays_flat(script, small):
    """1,000 questions, no two of the same shape: no retracing, no cache that grows."""
    script.max_a_len = 6
    model, tokenizer = build_small_model(script, small)
    reader, rng, sizes = script.ReadingComprehension(model, tokenizer), np.random.default_rng(0), []
    for _ in range(10):
        questions = [
            (
                [
                    [2, *rng.integers(4, 31, rng.integers(1, 100)).tolist(), END]
                    for _ in range(rng.integers(1, 12))
                ],
                [*rng.integers(4, 31, rng.integers(1, 9)).tolist(), END],
            )
            for _ in range(100)
        ]
        for start in range(0, 100, 5):
            reader.beam_search(questions[start : start + 5], 1 + start % 3)
        sizes.append(resident_memory())
    print(f'memory after each hundred questions, MB: {[round(peak) for peak in sizes]}')
    assert sizes[-1] - sizes[2] < 50
    traces = (
        reader.unilm._read.experimental_get_tracing_count(),
        reader.unilm.write.experimental_get_tracing_count(),
    )
    assert traces == (1, 1)


def test_bfloat16_is_nearly_float32_and_follows_the_weights(script, small):
    """It reads copies of the weights, which must not outlive an update."""
    model, tokenizer = build_small_model(script, small)
    rng = np.random.default_rng(0)
    sources = sorted(
        ([2, *rng.integers(4, 30, rng.integers(1, 40)).tolist(), END] for _ in range(50)), key=len
    )
    readers = []
    for script.precision in 'float32', 'bfloat16':
        readers.append(script.ReadingComprehension(model, tokenizer).unilm)

    def probabilities(unilm):
        answerable, first, memory = unilm.read(sources)
        beams = np.zeros([len(memory.lengths), 1], np.int32)
        return answerable, first, unilm.write(memory, beams[:, :, None] + 9, beams)[0]

    for seed in 0, 1, 2:
        draw(model, seed)
        (answerable, *exact), (also_answerable, *rough) = map(probabilities, readers)
        assert answerable.tolist() == also_answerable.tolist()
        assert all(1e-6 < np.mean(abs(a - b)) < 1e-3 for a, b in zip(exact, rough, strict=True))


def test_reference_decoder_writes_what_bert4keras_beam_search_writes(script, small):
    """The reference's own beam search differs from bert4keras's in ties only."""
    from bert4keras.snippets import AutoRegressiveDecoder

    model, _ = build_small_model(script, small)
    rng = np.random.default_rng(1)
    lengths = collections.Counter()
    for i in range(30):
        draw(model, i % 6)
        p_token_ids = [[2, *rng.integers(4, 30, 8).tolist(), END] for _ in range(4)]
        decoder = ReferenceDecoder(model, END, 6, 'generative')
        topk = 1 + i % 3
        ours = decoder.answer(p_token_ids, [5, END], topk)
        decoder.remaining = np.arange(4)
        theirs = AutoRegressiveDecoder.beam_search(
            decoder, [[*p, 5, END] for p in p_token_ids], topk
        ).tolist()
        assert [token for token in theirs if token != END] == ours
        lengths[len(ours)] += 1
    assert len(lengths) > 2
