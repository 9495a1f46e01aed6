"""support/unilm.py: what is read once and packed predicts what bert4keras's full model predicts."""

import json
import types

import numpy as np
import pytest
from conftest import build_small_model, draw, forward_pass_of

import support.unilm
from support.keras2 import tf
from support.packing import Padding
from support.unilm import UniLM

PAD, CLS, END = 0, 2, 3
CLOSE = {'rtol': 1e-4, 'atol': 1e-6}


def everything(probas):
    return tf.ones(tf.shape(probas)[0], tf.bool), probas[:, END]


def random_source(rng, length):
    return [CLS, *rng.integers(4, 31, length - 2).tolist(), END]


def beams_of(output_ids):
    """Beams that extend the first one before."""
    return types.SimpleNamespace(output_ids=output_ids, parents=[0] * len(output_ids))


class Full:
    """What the full forward pass predicts; every source is read again for every token."""

    def __init__(self, model):
        self.forward = forward_pass_of(model)

    def predict(self, sources, beams=((),)):
        """Return float32 [sources, beams, vocab], the probabilities of what follows each beam."""
        rows = [[*source, *beam] for source in sources for beam in beams]
        segments = [[0] * len(source) + [1] * len(beam) for source in sources for beam in beams]
        probas = self.forward(rows, segments)
        last = [probas[i, len(row) - 1] for i, row in enumerate(rows)]
        return np.reshape(last, [len(sources), len(beams), -1])


@pytest.fixture(scope='module')
def traced(small_bert):
    """A model, its UniLM and its full forward pass, which are traced but once."""
    model, _ = small_bert
    return model, UniLM(model), Full(model)


@pytest.fixture
def bert(traced):
    """The same with weights drawn anew."""
    draw(traced[0], 0)
    return traced


# -------------------------------------------------------------------------------------------- read


def test_read_predicts_what_the_full_forward_pass_does(bert):
    """Of sources in any order and of any length: a block has 32 tokens, one part of them 1,536."""
    _, unilm, full = bert
    rng = np.random.default_rng(0)
    lengths = [[40], [], [300, 2, 31, 32, 33, 300, 64, 65, 2], [7, 6, 5]]
    sources = [[random_source(rng, n) for n in of_question] for of_question in lengths]
    told, probas, _ = unilm.read(sources, everything)
    assert [stays.tolist() for stays, _ in told] == [[True], [], [True] * 9, [True] * 3]
    assert probas.keys() == {0, 2, 3}
    for question, predicted in probas.items():
        np.testing.assert_allclose(predicted, full.predict(sources[question]), **CLOSE)
        np.testing.assert_array_equal(told[question][1], predicted[:, 0, END])


@pytest.mark.parametrize('room', [2**15, 700, 0])
def test_only_sources_that_stay_are_remembered(bert, monkeypatch, room):
    """What `judge` is given are the probabilities of the first token; a question may have none."""
    _, unilm, full = bert
    rng, seen = np.random.default_rng(1), []
    several = [random_source(rng, n) for n in rng.integers(2, 90, 40)]
    expected = full.predict(several)[:, 0]
    median, order = np.median(expected[:, 5]), np.argsort(expected[:, 5])
    questions = [[*range(9)], order[:4].tolist(), [*range(9, 40)]]  # the second keeps none

    def judge(probas):
        seen.append(probas.shape)
        return probas[:, 5] > median, probas[:, 5]

    monkeypatch.setattr(UniLM, 'tokens_at_once', 300)  # so that there are several parts
    monkeypatch.setattr(UniLM, 'tokens_remembered', room)
    told, probas, cache = unilm.read([[several[i] for i in q] for q in questions], judge)
    assert len(seen) > 3 and all(shape[1:] == expected.shape[1:] for shape in seen)
    for question, (stays, number) in zip(questions, told, strict=True):
        assert stays.tolist() == (expected[question, 5] > median).tolist()
        np.testing.assert_allclose(number, expected[question, 5], **CLOSE)
    assert probas.keys() == {0, 2}
    written, _ = unilm.write(cache, {i: beams_of([[9]]) for i in probas})
    for i, predicted in written.items():
        kept = np.array(questions[i])[told[i][0]]
        np.testing.assert_allclose(probas[i][:, 0], expected[kept], **CLOSE)
        after = full.predict([several[source] for source in kept], [[9]])
        np.testing.assert_allclose(predicted, after, **CLOSE)


@pytest.mark.parametrize('sources', [[], [[]], [[], []]])
def test_nothing_to_read(bert, sources):
    _, unilm, _ = bert
    told, probas, cache = unilm.read(sources, everything)
    assert [[len(each) for each in of_question] for of_question in told] == [[0, 0]] * len(sources)
    assert probas == {} and unilm.write(cache, {})[0] == {}


def test_nothing_stays(bert):
    _, unilm, _ = bert
    leaving = lambda probas: (probas[:, 0] < 0, probas[:, 0])  # noqa: E731
    told, probas, cache = unilm.read([[[CLS, 5, END]], [], [[CLS, END]] * 2], leaving)
    assert [stays.tolist() for stays, _ in told] == [[False], [], [False, False]]
    assert probas == {} and unilm.write(cache, {})[0] == {}


# ------------------------------------------------------------------------------------------- write


class Question:
    """A question whose beams are drawn at random, as a search might leave them."""

    def __init__(self, rng, sources, steps):
        self.rng, self.sources, self.steps = rng, sources, steps
        self.output_ids, self.parents = [[]], [0]

    def extend(self, width):
        """Go on with so many beams; [PAD] and [UNK] may be written too, and [CLS]."""
        before = self.output_ids
        self.parents = self.rng.integers(len(before), size=width).tolist()
        tokens = self.rng.choice([PAD, 1, CLS, 9, 10, 25], width).tolist()
        self.output_ids = [
            [*before[parent], token] for parent, token in zip(self.parents, tokens, strict=True)
        ]


@pytest.mark.parametrize(('seed', 'room'), [(0, 2**15), (1, 2**15), (0, 0), (1, 300), (2, 600)])
def test_writing_predicts_what_the_full_forward_pass_does(bert, monkeypatch, seed, room):
    """Several questions at once, of other widths, beams that fork and end; each stops when it will.

    A written [PAD] is what bert4keras masks: as a query or as a key or as both, by its version.
    What there is no room to remember is read again for each token.
    """
    model, unilm, full = bert
    monkeypatch.setattr(UniLM, 'tokens_remembered', room)
    if room < 1000:
        monkeypatch.setattr(UniLM, 'tokens_at_once', 150)
    draw(model, seed)
    rng = np.random.default_rng(seed)
    questions = []
    for steps in 1, 6, 1, 2, 1, 5, 1, 3:
        lengths = rng.choice([2, 31, 32, 33, 50, 64, 65, 100], rng.integers(1, 5))
        sources = [random_source(rng, length) for length in lengths]
        questions.append(Question(rng, sources, steps))
    _, _, cache = unilm.read([question.sources for question in questions], everything)
    rows, written = [len(cache.of_question)], 0
    assert (cache.remembered < rows[0]) == (room < 1000)
    for step in range(6):
        going_on = {i: q for i, q in enumerate(questions) if q.steps > step}
        for question in going_on.values():
            question.extend(rng.integers(1, 5))
            written += sum(beam[-1] == PAD for beam in question.output_ids)
        probas, cache = unilm.write(cache, going_on)
        assert probas.keys() == going_on.keys()
        for i, question in going_on.items():
            expected = full.predict(question.sources, question.output_ids)
            np.testing.assert_allclose(probas[i], expected, **CLOSE)
        rows.append(len(cache.of_question))
    assert written > 5 and rows[-1] < rows[0]


def test_cache_shrinks_with_the_questions(bert):
    """Once half of its rows are of answers that are finished; before, to copy it costs more."""
    _, unilm, full = bert
    rng, rows = np.random.default_rng(3), []
    sources = [[random_source(rng, n) for n in (70, 20)] for _ in range(5)]
    _, _, cache = unilm.read(sources, everything)
    for step, going_on in enumerate([[0, 1, 2, 3, 4], [0, 2, 4], [0, 4], [4]]):
        beams = [[9] * step + [9], [9] * step + [10]]
        probas, cache = unilm.write(cache, {i: beams_of(beams) for i in going_on})
        rows.append(len(cache.of_question))
        for i in going_on:
            np.testing.assert_allclose(probas[i], full.predict(sources[i], beams), **CLOSE)
    assert rows == [10, 10, 4, 2]


# ------------------------------------------------------------------------------------------ encode


@pytest.mark.parametrize('training', [False, True])
def test_packed_answers_are_predicted_as_by_the_full_forward_pass(bert, training):
    """From the end of each source on: its tokens see all of it, the answer's what stands before."""
    model, _, full = bert
    rng = np.random.default_rng(5)
    sources = [random_source(rng, n) for n in (33, 5, 64, 2)]
    answers = [rng.integers(4, 31, n).tolist() for n in (3, 0, 5, 1)]
    rows = [source + answer for source, answer in zip(sources, answers, strict=True)]
    lengths, source_lengths = (np.int32([*map(len, some)]) for some in (rows, sources))
    unilm = UniLM(model, training=training)
    x, _ = unilm.run_layers(np.concatenate(rows).astype(np.int32), lengths, source_lengths)
    expected = []
    for source, answer in zip(sources, answers, strict=True):
        begun = [answer[:length] for length in range(len(answer) + 1)]
        expected += [full.predict([source], [beam])[0, 0] for beam in begun]
    np.testing.assert_allclose(tf.nn.softmax(unilm.logits(x)), expected, **CLOSE)


@pytest.mark.parametrize('dropped', [False, True])
def test_gradient_that_little_is_kept_for_is_the_same(bert, dropped):
    """In training attention is computed twice, and of the activation only its slope is kept."""
    model, _, _ = bert
    rng = np.random.default_rng(6)
    ids, lengths = rng.integers(4, 31, 40).astype(np.int32), np.int32([12, 28])
    drop = tf.identity
    if dropped:
        drop = lambda x: tf.nn.experimental.stateless_dropout(x, 0.3, [1, 2])  # noqa: E731
    found = []
    for training in False, True:
        unilm = UniLM(model, training=training)
        with tf.GradientTape() as tape:
            x, _ = unilm.run_layers(ids, lengths, lengths - 4, drop)
            loss = tf.reduce_sum(unilm.logits(x) ** 2)
        found.append([tf.convert_to_tensor(g) for g in tape.gradient(loss, model.weights)])
    for plain, thrifty in zip(*found, strict=True):
        np.testing.assert_allclose(thrifty, plain, rtol=1e-3, atol=1e-4)
    assert max(np.abs(plain).max() for plain in found[0]) > 10


# -------------------------------------------------------------------------------- models, precision


@pytest.mark.parametrize(
    'change', [{'embedding_size': 8}, {'hidden_act': 'relu'}, {'num_hidden_layers': 1}]
)
def test_other_configurations_predict_what_the_full_forward_pass_does(script, small, change):
    """A narrower embedding is mapped; with one layer the last is the first."""
    path = small / 'bert_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), encoding='utf-8')
    model, _ = build_small_model(script, small)
    full, unilm, rng = Full(model), UniLM(model), np.random.default_rng(7)
    sources = [[random_source(rng, n) for n in (40, 8)]]
    _, probas, cache = unilm.read(sources, everything)
    np.testing.assert_allclose(probas[0], full.predict(sources[0]), **CLOSE)
    probas, _ = unilm.write(cache, {0: beams_of([[9], [10]])})
    np.testing.assert_allclose(probas[0], full.predict(sources[0], [[9], [10]]), **CLOSE)


def test_bfloat16_is_nearly_float32_and_follows_the_weights(bert):
    """It reads copies of the weights, which must not outlive an update."""
    model, unilm, _ = bert
    rng = np.random.default_rng(0)
    sources = [[random_source(rng, n) for n in rng.integers(3, 42, 10)] for _ in range(5)]
    unilms = unilm, UniLM(model, 'bfloat16')

    def probabilities(unilm):
        _, first, cache = unilm.read(sources, everything)
        second, _ = unilm.write(cache, {i: beams_of([[9]]) for i in first})
        return [np.concatenate([*probas.values()]) for probas in (first, second)]

    for seed in 0, 1, 2:
        draw(model, seed)
        exact, rough = map(probabilities, unilms)
        assert all(1e-6 < np.mean(abs(a - b)) < 1e-3 for a, b in zip(exact, rough, strict=True))


def test_shapes_of_reading_recur(bert, monkeypatch):
    """For each shape of a product oneDNN keeps memory, megabytes with BERT-base."""
    shapes = []

    def recorded(places, height, longest):
        record = lambda *seen: shapes.append([int(size) for size in seen])  # noqa: E731
        tf.py_function(record, [tf.shape(places)[0], height, longest], [])
        return Padding(places, height, longest)

    monkeypatch.setattr(support.unilm, 'Padding', recorded)
    unilm, rng = UniLM(bert[0]), np.random.default_rng(0)
    for _ in range(120):
        sources = [[10] * rng.integers(2, 300) for _ in range(rng.integers(1, 40))]
        unilm.read([sources], everything)
    padded = [shape for shape in shapes if shape[2] > 1]  # not those of the last layer
    for tokens, rows, longest in padded:
        assert tokens % 32 == 0 and rows % 4 == 0 and longest % 32 == 0
    assert len({(rows, longest) for _, rows, longest in padded}) <= 60 < len(padded) / 4
