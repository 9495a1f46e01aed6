"""support/unilm.py: what is read once and packed predicts what bert4keras's full model predicts.

Under other masks too; with it go support/packing.py and the layers of support/layers.py.
"""

import itertools
import json

import numpy as np
import pytest
from conftest import build_small_model, draw, forward_pass_of, refusal, write_json

import support.unilm
from support.answers import Hypothesis
from support.keras2 import tf
from support.packing import Padding
from support.unilm import UniLM

PAD, CLS, END = 0, 2, 3
CLOSE = {'rtol': 1e-4, 'atol': 1e-6}


def everything(probas):
    return np.ones(len(probas), bool)


def random_source(rng, length):
    return [CLS, *rng.integers(4, 31, length - 2).tolist(), END]


def beams(*output_ids):
    """Hypotheses that extend the first one before."""
    return [Hypothesis([*token_ids]) for token_ids in output_ids]


class Full:
    """What the full forward pass predicts; every source is read again for every token."""

    def __init__(self, model):
        self.forward = forward_pass_of(model)

    def predict(self, sources, written=((),)):
        """Return float32 [sources, beams, vocab], the probabilities of what follows each beam."""
        rows = [[*source, *beam] for source in sources for beam in written]
        segments = [[0] * len(source) + [1] * len(beam) for source in sources for beam in written]
        probas = self.forward(rows, segments)
        last = [probas[i, len(row) - 1] for i, row in enumerate(rows)]
        return np.reshape(last, [len(sources), len(written), -1])


@pytest.fixture(scope='module')
def traced(script, small_bert):
    """A model, its UniLM and its full forward pass, which are traced but once."""
    model, _ = small_bert
    return model, UniLM(model, script.unilm_mask), Full(model)


@pytest.fixture
def bert(traced):
    """The same with weights drawn anew."""
    draw(traced[0], 0)
    return traced


# -------------------------------------------------------------------------------- read, then write


@pytest.mark.parametrize(
    ('seed', 'room', 'at_once'), [(0, 2**15, 1536), (1, 2**15, 300), (2, 600, 150), (0, 0, 150)]
)
def test_reading_and_writing_predict_what_the_full_forward_pass_does(
    bert, monkeypatch, seed, room, at_once
):
    """Several questions at once, of other widths, beams that fork and end; each stops when it will.

    A block has 32 tokens; only what stays is cached, and what there is no room for is read again
    for each token. A written [PAD] is what bert4keras masks: as a query or as a key or as both.
    """
    model, unilm, full = bert
    monkeypatch.setattr(UniLM, 'tokens_cached', room)
    monkeypatch.setattr(UniLM, 'tokens_at_once', at_once)
    draw(model, seed)
    rng, steps, sources = np.random.default_rng(seed), (1, 6, 1, 2, 1, 5, 1, 3), []
    for _ in steps:
        lengths = rng.choice([2, 31, 32, 33, 50, 64, 65, 100, 300], rng.integers(2, 6))
        sources.append([random_source(rng, length) for length in lengths])
    first = [full.predict(some)[:, 0, 5] for some in sources]
    least, calls = np.median(np.concatenate(first)), []
    leaving = sources[0][np.argmin(first[0])]  # of another question too, which has none that stays

    def has_answer(probas):
        calls.append(probas.shape)
        return probas[:, 5].numpy() >= least

    probas, kept, cache = unilm.read([*sources, [], [leaving]], has_answer)
    assert (len(calls) > 3) == (at_once < 1536)
    kept = [some.tolist() for some in kept]
    assert kept == [*((some >= least).tolist() for some in first), [], [False]]
    for predicted, some in zip(probas, sources, strict=False):
        np.testing.assert_allclose(predicted, full.predict(some)[:, 0], **CLOSE)
    sources = [[*itertools.compress(*pair)] for pair in zip(sources, kept, strict=False)]
    rows, written = [len(cache.of_question)], 0
    hypotheses = {i: [Hypothesis()] for i, some in enumerate(sources) if some}
    assert (cache.cached < rows[0]) == (room < 1000)
    for step in range(6):
        before = {i: some for i, some in hypotheses.items() if steps[i] > step}
        hypotheses = {i: extend(some, rng) for i, some in before.items()}
        probas, cache = unilm.write(cache, hypotheses)
        assert probas.keys() == hypotheses.keys()
        for i, some in hypotheses.items():
            output_ids = [each.token_ids for each in some]
            written += sum(token_ids[-1] == PAD for token_ids in output_ids)
            np.testing.assert_allclose(probas[i], full.predict(sources[i], output_ids), **CLOSE)
        rows.append(len(cache.of_question))
    assert written > 2 and rows[-1] <= rows[0] / 2  # what is finished is not kept


def extend(hypotheses, rng):
    """Extend some at random, as a search might; [PAD] and [UNK] may be written too, and [CLS]."""
    extended, width = [], rng.integers(1, 5)
    tokens = rng.choice([PAD, 1, CLS, 9, 10, 25], width).tolist()
    for parent, token in zip(
        rng.integers(len(hypotheses), size=width).tolist(), tokens, strict=True
    ):
        extended.append(Hypothesis([*hypotheses[parent].token_ids, token], parent=parent))
    return extended


# -------------------------------------------------------------------- whole sequences, other masks


def causal(query, key, source_length):
    return key <= query


def last_four(query, key, source_length):
    """The source sees itself; the answer what stands before it, of the source the last 4."""
    near = (query < source_length) | (key >= source_length - 4)
    return tf.where(key < source_length, near, key <= query)


def whole(unilm, sources, answers):
    """What is predicted from the end of each source on, [predictions, vocab], in one pass."""
    rows = [[*source, *answer] for source, answer in zip(sources, answers, strict=True)]
    lengths, source_lengths = (np.int32([*map(len, some)]) for some in (rows, sources))
    x, _ = unilm.run_layers(np.concatenate(rows).astype(np.int32), lengths, source_lengths)
    return tf.nn.softmax(unilm.logits(x)).numpy()


@pytest.mark.parametrize('training', [False, True])
def test_packed_answers_are_predicted_as_by_the_full_forward_pass(script, bert, training):
    """From the end of each source on: its tokens see all of it, the answer's what stands before."""
    model, _, full = bert
    rng, expected = np.random.default_rng(5), []
    sources = [random_source(rng, n) for n in (33, 5, 64, 2)]
    answers = [rng.integers(4, 31, n).tolist() for n in (3, 0, 5, 1)]
    for source, answer in zip(sources, answers, strict=True):
        begun = [answer[:length] for length in range(len(answer) + 1)]
        expected += [full.predict([source], [beam])[0, 0] for beam in begun]
    found = whole(UniLM(model, script.unilm_mask, training=training), sources, answers)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize('mask', [causal, last_four])
def test_mask_is_followed_in_reading_writing_and_training(script, small_bert, monkeypatch, mask):
    """Whatever the script says, of what the machinery can follow."""
    draw(small_bert[0], 0)
    rng, constants = np.random.default_rng(8), script.Constants()
    sources = [random_source(rng, n) for n in (40, 70, 9)]
    answer = rng.integers(4, 31, 3).tolist()
    original = script.build_trainer(small_bert[0], constants).unilm
    monkeypatch.setattr(script, 'unilm_mask', mask)
    training = script.build_trainer(small_bert[0], constants).unilm
    reading = script.ReadingComprehension(*small_bert, constants).unilm
    [first], _, cache = reading.read([sources], everything)
    found = [first[:, None]]
    for length in range(1, 4):
        probas, cache = reading.write(cache, {0: beams(answer[:length])})
        found.append(probas[0])
    found = np.concatenate(found, 1)  # [sources, 4, vocab]
    for unilm, same in (reading, True), (training, True), (original, False):
        expected = whole(unilm, sources, [answer] * 3).reshape(found.shape)
        if same:
            np.testing.assert_allclose(found, expected, **CLOSE)
    # the first token is predicted by the source's last one
    assert np.abs(expected - found).max(2)[:, 1:].min() > 1e-3


@pytest.mark.parametrize(
    ('mask', 'sees'),
    [
        (lambda q, k, n: (k < n) | (k <= q) | (q < n), 'token 0 sees token 1, of the answer'),
        (lambda q, k, n: (k < n) | (k <= q + 1), 'token 0 sees token 1, of the answer'),
        (lambda q, k, n: (k < n) | (q >= n), 'token 0 sees token 1, of the answer'),
        (lambda q, k, n: tf.ones([], tf.bool), 'token 0 sees token 1, of the answer'),
    ],
)
def test_mask_under_which_a_token_sees_a_later_one_of_the_answer_is_refused(
    script, small_bert, monkeypatch, mask, sees
):
    """Before anything is read or trained: keys and values that are kept would be others."""
    monkeypatch.setattr(script, 'unilm_mask', mask)
    for build in (script.build_trainer, script.ReadingComprehension):
        arguments = small_bert if build is script.ReadingComprehension else small_bert[:1]
        line = refusal(build, *arguments, script.Constants())
        assert line.startswith(f'unilm_mask: {sees} to a source of ')
        assert line.endswith('what is read once cannot see what is written later')


# -------------------------------------------------------------------------- models and precision


@pytest.mark.parametrize(
    'change', [{'embedding_size': 8}, {'hidden_act': 'relu', 'num_hidden_layers': 1}]
)
def test_other_configurations_predict_what_the_full_forward_pass_does(script, small, change):
    """A narrower embedding is mapped; with one layer the last is the first."""
    path = small / 'bert_config.json'
    write_json(path, {**json.loads(path.read_text(encoding='utf-8')), **change})
    model, _ = build_small_model(script, small)
    full, rng = Full(model), np.random.default_rng(7)
    unilm = UniLM(model, script.unilm_mask)
    sources = [[random_source(rng, n) for n in (40, 8)]]
    [first], _, cache = unilm.read(sources, everything)
    np.testing.assert_allclose(first, full.predict(sources[0])[:, 0], **CLOSE)
    probas, _ = unilm.write(cache, {0: beams([9], [10])})
    np.testing.assert_allclose(probas[0], full.predict(sources[0], [[9], [10]]), **CLOSE)


def test_bfloat16_is_nearly_float32_and_follows_the_weights(script, bert):
    """It reads copies of the weights, which must not outlive an update."""
    model, unilm, _ = bert
    rng = np.random.default_rng(0)
    sources = [[random_source(rng, n) for n in rng.integers(3, 42, 10)] for _ in range(5)]
    unilms = unilm, UniLM(model, script.unilm_mask, 'bfloat16')

    def probabilities(unilm):
        first, _, cache = unilm.read(sources, everything)
        second, _ = unilm.write(cache, {i: beams([9]) for i in range(5)})
        return [np.concatenate(probas) for probas in (first, [*second.values()])]

    for seed in 0, 1, 2:
        draw(model, seed)
        exact, rough = map(probabilities, unilms)
        assert all(1e-6 < np.mean(abs(a - b)) < 1e-3 for a, b in zip(exact, rough, strict=True))


def test_shapes_of_reading_recur(script, bert, monkeypatch):
    """For each shape of a product oneDNN keeps memory, megabytes with BERT-base."""
    shapes = []

    def recorded(places, height, longest):
        record = lambda *seen: shapes.append([int(size) for size in seen])  # noqa: E731
        tf.py_function(record, [tf.shape(places)[0], height, longest], [])
        return Padding(places, height, longest)

    monkeypatch.setattr(support.unilm, 'Padding', recorded)
    unilm, rng = UniLM(bert[0], script.unilm_mask), np.random.default_rng(0)
    for _ in range(50):
        sources = [[10] * rng.integers(2, 300) for _ in range(rng.integers(1, 40))]
        unilm.read([sources], everything)
    padded = [shape for shape in shapes if shape[2] > 1]  # not those of the last layer
    for tokens, rows, longest in padded:
        assert tokens % 32 == 0 and rows % 4 == 0 and longest % 32 == 0
    assert len({(rows, longest) for _, rows, longest in padded}) < len(padded) / 3
