"""DESIGN §3 as the script has it: split, training pairs, lengths, loss and optimizer."""

import collections
import dataclasses
import json
import os

import numpy as np
import pytest
from conftest import (
    VOCABULARY,
    draw,
    record,
    record_of,
    refusal,
    small_files,
    write_json,
)
from reference_training import build_train_model

from support import bert, records
from support.keras2 import keras, tf
from support.training import Batches, pad


def test_sizes_of_the_original(script):
    constants = script.Constants()
    assert (constants.max_p_len, constants.max_q_len, constants.max_a_len) == (256, 64, 32)
    assert (constants.learning_rate, constants.batch_size, constants.epochs) == (1e-5, 32, 8)


# --------------------------------------------------------------------------------------- the split


@pytest.fixture
def constants(script, tmp_path):
    """Constants whose output folder is empty."""
    return script.Constants(output_dir=str(tmp_path))


@pytest.fixture
def sogouqa():
    """Ten records."""
    return [record(f'S{i}') for i in range(10)]


def test_saved_order_is_used_again(script, constants, sogouqa, tmp_path):
    """Also one that another seed drew, or another program; every third place is validation."""
    path, orders = tmp_path / 'random_order.json', []
    for seed in 1, 1, 2:
        constants = dataclasses.replace(constants, seed=seed)
        _, first = script.split([], sogouqa, constants)
        order = json.loads(path.read_text(encoding='utf-8'))
        assert sorted(order) == [*range(10)] != order
        assert first == [sogouqa[order[i]] for i in (0, 3, 6, 9)]
        assert script.split([], sogouqa, dataclasses.replace(constants, seed=3))[1] == first
        orders.append(order)
        path.unlink()
    assert orders[0] == orders[1] != orders[2]
    write_json(path, [*range(10)])
    _, valid_data = script.split([], sogouqa, constants)
    assert valid_data == [sogouqa[i] for i in (0, 3, 6, 9)]
    assert json.loads(path.read_text(encoding='utf-8')) == [*range(10)]


def test_only_the_first_worker_saves_the_order(script, constants, sogouqa, tmp_path, monkeypatch):
    """The others draw the same one, be the folder shared or not."""
    _, alone = script.split([], sogouqa, constants)
    (tmp_path / 'random_order.json').unlink()
    for worker in 1, 0:
        cluster = {'worker': ['127.0.0.1:1', '127.0.0.1:2']}
        position = {'cluster': cluster, 'task': {'type': 'worker', 'index': worker}}
        monkeypatch.setenv('TF_CONFIG', json.dumps(position))
        assert script.split([], sogouqa, constants)[1] == alone
        assert (tmp_path / 'random_order.json').exists() == (worker == 0)


@pytest.mark.parametrize('lacking', [None, 'id', 'question', 'passages'])
def test_training_is_the_rest_twice_and_webqa_once(script, constants, sogouqa, lacking, tmp_path):
    """Incomplete records are left out; they keep their place in the order all the same."""
    write_json(tmp_path / 'random_order.json', [*range(10)])
    webqa = [record('W0'), record('W1')]
    for incomplete in (sogouqa[3], sogouqa[4]) if lacking else ():
        del incomplete[lacking]
    if lacking:
        webqa[1][lacking] = None
    train_data, valid_data = script.split(webqa, sogouqa, constants)
    expected = ['S1', 'S2', 'S4', 'S5', 'S7', 'S8'] * 2 + ['W0', 'W1']
    expected = [name for name in expected if not lacking or name not in ('S4', 'W1')]
    assert sorted(record['id'] for record in train_data) == sorted(expected)
    assert valid_data == [sogouqa[i] for i in (0, 3, 6, 9)]


def test_own_data_to_validate_on_is_not_split(script, constants, sogouqa, tmp_path):
    constants = dataclasses.replace(constants, valid_data='valid.json')
    webqa = [record('W0'), {**record('W1'), 'question': None}]
    assert script.split(webqa, sogouqa, constants) == (webqa[:1], sogouqa)
    assert not (tmp_path / 'random_order.json').exists()


def test_every_tenth_of_own_data_alone_is_for_validation(script, constants, tmp_path):
    """By the saved order; the rest trains once, but what lacks something, which keeps its place."""
    constants = dataclasses.replace(constants, train_data='own.json')
    own, order = [record(f'{i}') for i in range(23)], [*range(22, -1, -1)]
    script.split([], own, constants)
    drawn = json.loads((tmp_path / 'random_order.json').read_text(encoding='utf-8'))
    assert sorted(drawn) == sorted(order) != drawn
    write_json(tmp_path / 'random_order.json', order)
    own[20]['question'] = own[12]['id'] = None  # the second is one for validation
    train_data, valid_data = script.split([], own, constants)
    assert valid_data == [own[22], own[12], own[2]]
    assert train_data == [own[i] for i in order if i not in (22, 20, 12, 2)]


def test_split_by_an_order_of_other_data_is_refused(script, constants, sogouqa, tmp_path):
    """A new order would put questions that were trained on into validation."""
    path = tmp_path / 'random_order.json'
    write_json(path, [*range(9)])
    line = refusal(script.split, [], sogouqa, constants)
    assert line.startswith(f'{path}: no order of 10 records') and path.read_text()[-2:] == '8]'


# --------------------------------------------------------------------------------------- the pairs


def test_every_passage_is_drawn_equally_often(script):
    rng, constants, drawn = np.random.default_rng(0), script.Constants(), collections.Counter()
    for _ in range(3000):
        passage, _, _ = script.training_pair(record('a'), rng, constants)
        drawn[passage] += 1
    assert len(drawn) == 3 and all(abs(count - 1000) < 130 for count in drawn.values())


def test_one_of_the_windows_of_a_long_passage_is_drawn(script):
    """Those that are read; so answers that lie beyond `max_p_len` become targets."""
    passage = ''.join(chr(0x4E00 + i) for i in range(23))
    record = record_of((passage, passage[20:22]))
    rng, drawn = np.random.default_rng(0), {}
    constants = script.Constants(max_p_len=12, passage_stride=4)
    for _ in range(200):
        text, _, answer = script.training_pair(record, rng, constants)
        drawn.setdefault(passage.index(text), set()).add(answer)
    assert drawn == {0: {''}, 4: {''}, 8: {''}, 12: {passage[20:22]}, 16: {passage[20:22]}}
    rng, same = np.random.default_rng(1), np.random.default_rng(1)
    script.training_pair(record, rng, script.Constants(max_p_len=12))
    same.integers(1)
    assert rng.random() == same.random()  # without a stride nothing more is drawn


# the rule: passages with their labels, the target of each
TARGETS = {
    'separators become commas one for one, no other punctuation and no other white space': (
        [('a、 b；，c;。\u3000\t,、d', '')], {'a,,b,,c;。\u3000\t,,d': ''},
    ),
    'the first of all answers that the passage holds, not its label nor what stands first in it': (
        [('天津', '天津'), ('在上海', '上海'), ('北京和上海', '北京'), ('重庆', ''),
         ('北京', '重庆')],
        {'天津': '天津', '在上海': '上海', '北京和上海': '上海', '重庆': '重庆', '北京': '北京'},
    ),
    'empty where it holds none, even if labelled; an empty answer elsewhere is none': (
        [('天津', '上海'), ('重庆', '')], {'天津': '', '重庆': ''},
    ),
    'all parts of a list, in any order and apart; the spaces of the target become commas': (
        [('北京', '上海 北京 天津'), ('天津在北京，上海', ''), ('上海北京', '北京 上海')],
        {'北京': '', '天津在北京,上海': '上海,北京,天津', '上海北京': '北京,上海'},
    ),
    'answers as they stand: one with a 、 is in no passage, one with a comma is': (
        [('北京、上海', '北京、上海'), ('天津、上海', '天津,上海')],
        {'北京,上海': '', '天津,上海': '天津,上海'},
    ),
    'within what is read: of 12 places [CLS] and [SEP] take two': (
        [('在' * 8 + '北京', '北京'), ('在' * 9 + '北京', '')],
        {'在' * 8 + '北京': '北京', '在' * 9 + '北京': ''},
    ),
}  # fmt: skip


@pytest.mark.parametrize('rule', TARGETS)
def test_target_of_a_passage(script, rule):
    labelled, expected = TARGETS[rule]
    rng, constants = np.random.default_rng(0), script.Constants(max_p_len=12)
    real, draws = record_of(*labelled), 40 * len(labelled)
    pairs = {script.training_pair(real, rng, constants) for _ in range(draws)}
    assert sorted(pairs) == sorted((p, real['question'], target) for p, target in expected.items())


# ------------------------------------------------------------------------------------- the lengths

SHORT = {'max_p_len': 8, 'max_q_len': 5, 'max_a_len': 3}


@pytest.mark.parametrize(
    ('passage', 'question', 'answer', 'expected', 'answer_tokens'),
    [
        ('中', '国', '北京', '[CLS] 中 [SEP] 国 [SEP] 北 京 [SEP]', 3),
        ('中', '国', '', '[CLS] 中 [SEP] 国 [SEP] [SEP]', 1),
        ('一二三四五六', '国', '', '[CLS] 一 二 三 四 五 六 [SEP] 国 [SEP] [SEP]', 1),
        ('一二三四五六七八', '国', '', '[CLS] 一 二 三 四 五 六 [SEP] 国 [SEP] [SEP]', 1),
        # the question may take what the answer leaves, and the other way; the longer one is cut
        ('中', '一二三四五', '北', '[CLS] 中 [SEP] 一 二 三 四 五 [SEP] 北 [SEP]', 2),
        ('中', '一二三四五六七八', '北', '[CLS] 中 [SEP] 一 二 三 四 五 [SEP] 北 [SEP]', 2),
        ('中', '一', '二三四五六七八', '[CLS] 中 [SEP] 一 [SEP] 二 三 四 五 六 [SEP]', 6),
        ('中', '一' * 8, '二' * 7, '[CLS] 中 [SEP] 一 一 一 [SEP] 二 二 二 [SEP]', 4),
    ],
)
def test_lengths_and_segments_of_a_pair(
    script, tmp_path, passage, question, answer, expected, answer_tokens
):
    """Each keeps its [SEP] when it is cut; question and answer with theirs take 5 + 3 at most."""
    vocabulary = '\n'.join([*VOCABULARY, *'一二三四五六七八'])
    (tmp_path / 'vocab.txt').write_text(vocabulary, encoding='utf-8')
    tokenizer, _, _ = bert.load_tokenizer(str(tmp_path / 'vocab.txt'))
    constants = script.Constants(**SHORT)
    token_ids, segment_ids = script.encode_pair(tokenizer, passage, question, answer, constants)
    assert tokenizer.ids_to_tokens(token_ids) == expected.split()
    assert segment_ids == [0] * (len(token_ids) - answer_tokens) + [1] * answer_tokens


def test_real_pairs(script, shared):
    """500: the rule of the target once more, with offsets, and the lengths."""
    tokenizer, _, _ = bert.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    longest, empty, rng, constants = 0, 0, np.random.default_rng(0), script.Constants()
    for real in records.load_questions(os.path.join(shared, 'WebQA.json')):
        passage, _, target = pair = script.training_pair(real, rng, constants)
        held = []
        for answer in filter(None, (p['answer'] for p in real['passages'])):
            ends = [(passage + part).index(part) + len(part) for part in answer.split(' ')]
            held += [answer.replace(' ', ',')] * (max(ends) <= min(len(passage), 254))
        assert target == [*held, ''][0]
        token_ids, segment_ids = script.encode_pair(tokenizer, *pair, constants)
        ends = [i + 1 for i, token in enumerate(token_ids) if token == tokenizer._token_end_id]
        p_len, q_end, end = ends
        assert p_len <= 256 and end == len(token_ids) <= p_len + 64 + 32
        assert segment_ids == [0] * q_end + [1] * (end - q_end)
        longest, empty = max(longest, p_len), empty + (not target)
    assert longest == 256 and 150 < empty < 350


def test_question_and_passages_are_cut_when_reading(script, small_bert):
    """The question has five places for four tokens and its [SEP], however short the passage."""
    reader = script.ReadingComprehension(*small_bert, script.Constants(**SHORT))

    def ids(tokens):
        return reader.tokenizer.tokens_to_ids(tokens.split())

    question = reader.encode('北京上海天津', ['中', '中国中国中国中国'])
    assert question.p_token_ids == [ids('[CLS] 中 [SEP]'), ids('[CLS] 中 国 中 国 中 国 [SEP]')]
    assert question.q_token_ids == ids('北 京 上 海 [SEP]') and question.tokens == 21


def test_model_has_a_position_for_every_token_of_the_longest_pair(script, small):
    config = json.loads((small / 'bert_config.json').read_text(encoding='utf-8'))
    write_json(small / 'bert_config.json', {**config, 'max_position_embeddings': 16})
    files = small_files(script, small)
    script.build_model(files, '', script.Constants(**SHORT))
    for name, value in SHORT.items():
        constants = script.Constants(**{**SHORT, name: value + 1})
        message = refusal(script.build_model, files, '', constants)
        assert message.startswith(f'{files.config}: 16 max_position_embeddings, but 17 ')


# ---------------------------------------------------------------------------------------- the loss


def loss_and_gradients(trainer, batch):
    """The loss of an update, dropout being off, and the gradients that Adam is given."""
    gradients, trainer.dropout_rate = [], 0
    trainer.optimizer.apply_gradients = lambda pairs: gradients.extend(g for g, _ in pairs)
    return trainer.train_step(batch)['loss'].numpy(), gradients


@pytest.mark.parametrize('silent', [1.0, 0.5])
@pytest.mark.parametrize('parts', [1, 3])
def test_loss_is_the_mean_over_all_tokens_of_the_answers(
    script, small_bert, monkeypatch, silent, parts
):
    """Of the whole batch, not a mean of the rows' means, however it is weighed and shared out.

    silent: what a pair weighs whose answer is empty. There may be less rows than parts.
    """

    class Weighed(script.CrossEntropy):
        def targets(self, token_ids, segment_ids):
            y_true, y_mask = super().targets(token_ids, segment_ids)
            is_silent = tf.reduce_sum(y_mask, 1, keepdims=True) == 1
            return y_true, tf.where(is_silent, silent * y_mask, y_mask)

    monkeypatch.setattr(script, 'CrossEntropy', Weighed)
    model, _ = small_bert
    draw(model, 0)
    trainer = script.build_trainer(model, script.Constants(accumulate_steps=parts))
    logits_of = keras.Model(model.inputs, model.get_layer('MLM-Bias').output)
    rng, pairs = np.random.default_rng(0), []
    for answer in 1, 4, 3, 1, 1, 2, 4, 1, 3:
        source = rng.integers(5, 30)
        token_ids = rng.integers(4, 30, source + answer).tolist()
        pairs.append((token_ids, [0] * source + [1] * answer))
    for rows in 9, 2, 1:
        token_ids, segment_ids = pad(pairs[:rows])
        weights = segment_ids * np.where(segment_ids.sum(1, keepdims=True) == 1, silent, 1.0)
        with tf.GradientTape() as tape:
            log_probas = tf.nn.log_softmax(logits_of([token_ids, segment_ids])[:, :-1])
            losses = -tf.gather(log_probas, token_ids[:, 1:], axis=2, batch_dims=2)
            expected = tf.reduce_sum(losses * weights[:, 1:]) / weights.sum()
        loss, gradients = loss_and_gradients(trainer, pad(pairs[:rows]))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        plain = tape.gradient(expected, model.trainable_weights)
        for ours, theirs in zip(gradients, plain, strict=True):
            np.testing.assert_allclose(ours, tf.convert_to_tensor(theirs), rtol=1e-3, atol=1e-5)


def test_bfloat16_is_of_the_products_alone(script, small_bert):
    """Loss and gradients are float32, like the weights, and nearly the same."""
    model, _ = small_bert
    draw(model, 0)
    losses, gradients, pair = [], [], ([*range(4, 20)], [0] * 10 + [1] * 6)
    for precision in 'float32', 'bfloat16':
        trainer = script.build_trainer(model, script.Constants(precision=precision))
        loss, found = loss_and_gradients(trainer, pad([pair] * 3))
        losses.append(loss)
        gradients.append(found)
    values = [*losses, *gradients[1], *model.weights]
    assert {tf.as_dtype(value.dtype) for value in values} == {tf.float32}
    assert 0 < abs(losses[1] - losses[0]) < 0.01 * losses[0]
    exact, rough = (np.concatenate([*map(np.ravel, column)]) for column in gradients)
    assert 0 < np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.filterwarnings('ignore:The initializer TruncatedNormal')
@pytest.mark.parametrize('updates', [4, pytest.param(200, marks=pytest.mark.slow)])
def test_training_goes_as_the_original_does(script, request, small, updates):
    """Dropout off; the original computes every position of a batch. 200 updates are of a real BERT.

    From probabilities Keras would raise each to 1e-7 at least, and of 13,584 this would show.
    """
    folder = str(small) if updates < 200 else request.getfixturevalue('shared')
    checkpoint, vocabulary, data = (
        '',
        *(os.path.join(folder, n) for n in ('vocab.txt', 'WebQA.json')),
    )
    if updates == 200:
        folder = os.path.join(folder, 'tiny_bert')
        checkpoint = os.path.join(folder, 'bert_model.ckpt')
    with open(os.path.join(folder, 'bert_config.json'), encoding='utf-8') as file:
        config = {**json.load(file), 'hidden_dropout_prob': 0, 'attention_probs_dropout_prob': 0}
    write_json(small / 'bert_config.json', config)
    files = small_files(script, small)._replace(vocabulary=vocabulary)
    constants = script.Constants(max_p_len=48, batch_size=8, learning_rate=1e-4, epochs=6)
    models = [script.build_model(files, checkpoint, constants) for _ in range(2)]
    (model, tokenizer), (other, _) = models
    other.set_weights(model.get_weights())
    theirs, ours = build_train_model(model, 1e-4), script.build_trainer(other, constants)
    values = ours.optimizer.get_config()
    names = 'learning_rate', 'beta_1', 'beta_2', 'epsilon', 'amsgrad'
    assert [float(values[name]) for name in names] == pytest.approx([1e-4, 0.9, 0.999, 1e-6, 0])
    update, losses = tf.function(ours.train_step, reduce_retracing=True), []

    def encode(record, rng):
        pair = script.training_pair(record, rng, constants)
        return script.encode_pair(tokenizer, *pair, constants)

    for batch in Batches(records.load_questions(data), encode, constants).dataset().take(updates):
        losses.append((theirs.train_on_batch([*batch]), float(update(batch)['loss'])))
    losses = np.array(losses)
    print(f'largest difference of the losses: {abs(losses[:, 0] - losses[:, 1]).max():.1e}')
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], atol=1e-4, rtol=0)
    if updates == 200:  # random weights would give log(13,584) = 9.5
        assert losses[-20:].mean() < 0.8 * losses[:20].mean() < 5
    for weights in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(*weights, atol=1e-4, rtol=0)
