"""support/unilm.py and reading.py: read once, packed, they predict what the full model does."""

import itertools
import json
import types

import numpy as np
import pytest
from conftest import build_small_model, draw, forward_pass_of, refusal, write_json

import support.unilm
from support.answers import Hypothesis
from support.keras2 import tf
from support.reading import CachedUniLM, in_groups
from support.unilm import Padding, UniLM, standardize, with_slope

PAD, CLS, END = 0, 2, 3
CLOSE = {'rtol': 1e-4, 'atol': 1e-6}


def everything(probas):
    return np.ones(len(probas), bool)


def random_source(rng, length):
    return [CLS, *rng.integers(4, 31, length - 2).tolist(), END]


def searching(sources, *plan):
    """A search that asks what it was told to; returns all that it was sent."""
    seen = [(yield sources)]
    for hypotheses in plan:
        seen.append((yield hypotheses))
    return [probas.numpy() for probas in seen]


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
    return model, CachedUniLM(model, script.unilm_mask), Full(model)


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

    Some sources are given twice. Where there is no room for a question's sources, they are read
    again for each token. Else a written [PAD] is what bert4keras masks: as a query, as a key, or
    as both.
    """
    model, unilm, full = bert
    monkeypatch.setattr(CachedUniLM, 'tokens_cached', room)
    monkeypatch.setattr(CachedUniLM, 'tokens_at_once', at_once)
    draw(model, seed)
    rng, steps, sources, plans = np.random.default_rng(seed), (1, 6, 1, 2, 1, 5, 1, 3), [], []
    for count in steps:
        lengths = rng.choice([2, 31, 32, 33, 50, 64, 65, 100, 300], rng.integers(2, 6))
        some = [random_source(rng, length) for length in lengths]
        sources.append([*some, some[0]] if count == 2 else some)
        hypotheses = [Hypothesis()]
        pad = PAD if room else 1
        plans.append([hypotheses := extend(hypotheses, rng, pad) for _ in range(count)])
    first = [full.predict(some)[:, 0, 5] for some in sources]
    ranked, calls = np.sort(np.concatenate(first)), []
    least = ranked[len(ranked) // 2 :][:2].mean()  # between two, or rounding would decide
    leaving = sources[0][np.argmin(first[0])]  # of another question too, which has none that stays

    def has_answer(probas):
        calls.append(probas.shape)
        return probas[:, 5].numpy() >= least

    plans = [plan if max(stays) >= least else [] for plan, stays in zip(plans, first, strict=True)]
    searches = [searching(some, *plan) for some, plan in zip(sources, plans, strict=True)]
    searches += [searching([]), searching([leaving])]
    found = unilm.search_together(searches, has_answer)
    assert (len(calls) > 3) == (at_once < 1536)
    assert found[-2][0].shape[:2] == (0, 1) and found[-1][0].shape[:2] == (1, 1)
    written = 0
    for some, plan, stays, seen in zip(sources, plans, first, found, strict=False):
        np.testing.assert_allclose(seen[0], full.predict(some), **CLOSE)
        staying = [*itertools.compress(some, stays >= least)]
        for hypotheses, probas in zip(plan, seen[1:], strict=True):
            output_ids = [each.token_ids for each in hypotheses]
            written += sum(token_ids[-1] == PAD for token_ids in output_ids)
            np.testing.assert_allclose(probas, full.predict(staying, output_ids), **CLOSE)
    assert written > 2 or not room


def extend(hypotheses, rng, pad):
    """Extend some at random, as a search might; [PAD] and [UNK] may be written too, and [CLS]."""
    extended, width = [], rng.integers(1, 5)
    tokens = rng.choice([pad, 1, CLS, 9, 10, 25], width).tolist()
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
    plan = [beams(answer[:length]) for length in range(1, 4)]
    [found] = reading.search_together([searching(sources, *plan)], everything)
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
    sources = [random_source(rng, n) for n in (40, 8)]
    search = searching(sources, beams([9], [10]))
    [found] = CachedUniLM(model, script.unilm_mask).search_together([search], everything)
    np.testing.assert_allclose(found[0], full.predict(sources), **CLOSE)
    np.testing.assert_allclose(found[1], full.predict(sources, [[9], [10]]), **CLOSE)


def test_bfloat16_is_nearly_float32_and_follows_the_weights(script, bert):
    """It reads copies of the weights, which must not outlive an update."""
    model, unilm, _ = bert
    rng = np.random.default_rng(0)
    sources = [[random_source(rng, n) for n in rng.integers(3, 42, 10)] for _ in range(5)]
    unilms = unilm, CachedUniLM(model, script.unilm_mask, 'bfloat16')

    def probabilities(unilm):
        searches = [searching(some, beams([9])) for some in sources]
        found = unilm.search_together(searches, everything)
        return [np.concatenate(probas) for probas in zip(*found, strict=True)]

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
    unilm, rng = CachedUniLM(bert[0], script.unilm_mask), np.random.default_rng(0)
    for _ in range(50):
        sources = [[10] * length for length in rng.integers(2, 300, rng.integers(1, 40))]
        unilm.search_together([searching(sources)], everything)
    padded = [shape for shape in shapes if shape[2] > 1]  # not those of the last layer
    for tokens, rows, longest in padded:
        assert tokens % 32 == 0 and rows % 4 == 0 and longest % 32 == 0
    assert len({(rows, longest) for _, rows, longest in padded}) < len(padded) / 3


# ------------------------------------------------------------------------------------- gradients


def plainly_standardized(x):
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    return centred / tf.sqrt(tf.math.reduce_variance(x, -1, keepdims=True) + 1e-3)


def gelu(x):
    return tf.nn.gelu(x, approximate=False)


@pytest.mark.parametrize(
    ('plain', 'ours'),
    [(plainly_standardized, lambda x: standardize(x, 1e-3)), (gelu, with_slope(gelu))],
    ids=['standardize', 'with_slope'],
)
def test_gradient_written_by_hand_is_the_automatic_one(plain, ours):
    """It keeps less for the gradient, and must not differ but by rounding."""
    rng, found = np.random.default_rng(0), []
    x, weights = (tf.constant(rng.normal(size=[5, 7]), tf.float32) for _ in range(2))
    for function in plain, ours:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(weights * y)
        found.append((y.numpy(), tape.gradient(loss, x).numpy()))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


# ------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ('sizes', 'groups'),
    [
        ([3, 3, 1], [[3, 3], [1]]),
        ([3, 7, 1, 8, 2, 4, 1], [[3], [7], [1], [8], [2, 4], [1]]),
        ([9, 9], [[9], [9]]),
        ([0, 6, 0, 7, 0], [[0, 6, 0], [7], [0]]),
        ([], []),
    ],
)
def test_groups_are_of_consecutive_questions_up_to_the_limit(sizes, groups):
    """One that is larger alone is a group of its own; none is empty, none is lost."""
    questions = (types.SimpleNamespace(tokens=size) for size in sizes)
    found = [[question.tokens for question in group] for group in in_groups(questions, 6)]
    assert found == groups
