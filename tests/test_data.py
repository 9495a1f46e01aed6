"""DESIGN §3 as the script has it: split, training pairs, lengths, loss and optimizer."""

import collections
import dataclasses
import json
import os

import numpy as np
import pytest
from conftest import (
    VOCABULARY,
    build_small_model,
    record,
    record_of,
    refusal,
    small_files,
    write_json,
)
from reference_training import build_train_model

from support import bert, records
from support.answers import NO_ANSWER, Found
from support.batches import Batches
from support.keras2 import bert4keras, tf


def test_sizes_of_the_original(script):
    names = 'max_p_len', 'max_q_len', 'max_a_len', 'learning_rate', 'batch_size', 'epochs'
    constants = script.Constants()
    assert [getattr(constants, name) for name in names] == [256, 64, 32, 1e-5, 32, 8]


# --------------------------------------------------------------------------------------- the split


@pytest.fixture
def constants(script, tmp_path):
    """Constants whose output folder is empty."""
    return script.Constants(output_dir=str(tmp_path))


@pytest.fixture
def sogouqa():
    """Ten records."""
    return [record(f'S{i}') for i in range(10)]


def test_every_third_position_of_the_saved_order_is_for_validation(
    script, constants, sogouqa, tmp_path
):
    _, valid_data = script.split([], sogouqa, constants)
    random_order = json.loads((tmp_path / 'random_order.json').read_text(encoding='utf-8'))
    assert sorted(random_order) == list(range(10)) != random_order
    assert valid_data == [sogouqa[random_order[i]] for i in (0, 3, 6, 9)]


def test_saved_order_is_used_again(script, constants, sogouqa, tmp_path):
    """Also one that another seed drew, or another program."""
    path = tmp_path / 'random_order.json'
    _, first = script.split([], sogouqa, constants)
    constants = dataclasses.replace(constants, seed=constants.seed + 1)
    assert script.split([], sogouqa, constants)[1] == first
    write_json(path, list(range(10)))
    _, valid_data = script.split([], sogouqa, constants)
    assert [record['id'] for record in valid_data] == ['S0', 'S3', 'S6', 'S9']
    assert json.loads(path.read_text(encoding='utf-8')) == list(range(10))


def test_order_depends_on_the_seed(script, constants, sogouqa, tmp_path):
    orders = []
    for seed in 1, 1, 2:
        script.split([], sogouqa, dataclasses.replace(constants, seed=seed))
        orders.append((tmp_path / 'random_order.json').read_bytes())
        (tmp_path / 'random_order.json').unlink()
    assert orders[0] == orders[1] != orders[2]


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


def test_training_is_the_rest_twice_and_webqa_once(script, constants, sogouqa):
    webqa = [record('W0'), record('W1')]
    train_data, valid_data = script.split(webqa, sogouqa, constants)
    validation = {record['id'] for record in valid_data}
    expected = {f'S{i}': 2 for i in range(10) if f'S{i}' not in validation}
    counted = collections.Counter(record['id'] for record in train_data)
    assert counted == {**expected, 'W0': 1, 'W1': 1}


@pytest.mark.parametrize('lacking', ['id', 'question', 'passages'])
def test_incomplete_records_are_left_out_of_training(script, constants, sogouqa, lacking, tmp_path):
    """They keep their place in the order all the same."""
    write_json(tmp_path / 'random_order.json', list(range(10)))
    for i in 3, 4:
        del sogouqa[i][lacking]
    webqa = [record('W0'), {**record('W1'), lacking: None}]
    train_data, valid_data = script.split(webqa, sogouqa, constants)
    expected = ['S1', 'S2', 'S5', 'S7', 'S8'] * 2 + ['W0']
    assert sorted(record['id'] for record in train_data) == sorted(expected)
    assert valid_data == [sogouqa[i] for i in (0, 3, 6, 9)]


def test_split_by_an_order_of_other_data_is_refused(script, constants, sogouqa, tmp_path):
    """A new order would put questions that were trained on into validation."""
    path = tmp_path / 'random_order.json'
    write_json(path, list(range(9)))
    message = refusal(script.split, [], sogouqa, constants)
    assert message.startswith(f'{path}: no order of 10 records')
    assert json.loads(path.read_text(encoding='utf-8')) == list(range(9))


# --------------------------------------------------------------------------------------- the pairs


def targets(script, record, **constants):
    """Draw from a record until every passage must have come; return {passage: target}."""
    rng, constants = np.random.default_rng(0), script.Constants(**constants)
    draws = 40 * len(record['passages'])
    pairs = {script.training_pair(record, rng, constants) for _ in range(draws)}
    assert {question for _, question, _ in pairs} == {record['question']}
    found = {passage: answer for passage, _, answer in pairs}
    assert len(pairs) == len(found) == len(record['passages'])
    return found


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


def test_separators_become_commas_one_for_one(script):
    """So character offsets survive; no other punctuation and no other white space is touched."""
    passage, unified = 'a、 b；，c;。\u3000\t,、d', 'a,,b,,c;。\u3000\t,,d'
    assert targets(script, record_of((passage, ''))) == {unified: ''}


def test_target_is_the_first_of_all_answers_that_the_passage_holds(script):
    """Not the passage's own label, nor the answer that stands first in it."""
    labelled = record_of(
        ('天津', '天津'), ('在上海', '上海'), ('北京和上海', '北京'), ('重庆', ''), ('北京', '重庆')
    )
    assert targets(script, labelled) == {
        '天津': '天津', '在上海': '上海', '北京和上海': '上海', '重庆': '重庆', '北京': '北京'
    }  # fmt: skip


def test_target_is_empty_where_the_passage_holds_no_answer(script):
    """Even where it is labelled with one; an empty answer elsewhere is none."""
    assert targets(script, record_of(('天津', '上海'), ('重庆', ''))) == {'天津': '', '重庆': ''}


def test_all_parts_of_a_list_must_occur(script):
    """In any order and apart; the spaces of the target become commas."""
    labelled = record_of(
        ('北京', '上海 北京 天津'), ('天津在北京，上海', ''), ('上海北京', '北京 上海')
    )
    assert targets(script, labelled) == {
        '北京': '', '天津在北京,上海': '上海,北京,天津', '上海北京': '北京,上海'
    }  # fmt: skip


def test_answers_are_looked_for_as_they_stand(script):
    """Their separators are not replaced before, so one with a 、 stands in no passage."""
    assert targets(script, record_of(('北京、上海', '北京、上海'))) == {'北京,上海': ''}
    assert targets(script, record_of(('北京、上海', '北京,上海'))) == {'北京,上海': '北京,上海'}


def test_answer_must_end_within_what_is_read(script):
    """[CLS] and [SEP] take two of the places: of 8 six are left for characters."""
    labelled = record_of(('在在在在北京', '北京'), ('在在在在在北京', ''))
    assert targets(script, labelled, max_p_len=8) == {'在在在在北京': '北京', '在在在在在北京': ''}


def test_targets_of_real_questions(script, shared):
    """500 pairs: the rule once more, with offsets; for some the passage's label says otherwise."""
    rng, constants, seen = np.random.default_rng(0), script.Constants(), collections.Counter()
    for real in records.load_questions(os.path.join(shared, 'WebQA.json')):
        passage, question, target = script.training_pair(real, rng, constants)
        labels = {
            p['answer'].replace(' ', ',')
            for p in real['passages']
            if same_text(p['passage'], passage)
        }
        answers = [p['answer'] for p in real['passages'] if p['answer']]
        held = [answer for answer in answers if end_of(answer, passage) <= min(len(passage), 254)]
        assert target == (held[0].replace(' ', ',') if held else '')
        assert question == real['question'] and labels  # else none of the passages was drawn
        seen['empty'] += not target
        seen['not the label'] += target not in labels
    assert 150 < seen['empty'] < 350 and seen['not the label'] > 20


def end_of(answer, passage):
    """Where the last part of an answer ends, beyond the passage where one does not occur."""
    return max((passage + part).index(part) + len(part) for part in answer.split(' '))


def same_text(passage, unified):
    """Whether two texts differ in separators alone."""
    same = (a == b or (a in ' 、；，' and b == ',') for a, b in zip(passage, unified, strict=False))
    return len(passage) == len(unified) and all(same)


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


def test_lengths_of_real_pairs(script, shared):
    tokenizer, _, _ = bert.load_tokenizer(os.path.join(shared, 'vocab.txt'))
    longest, rng, constants = 0, np.random.default_rng(0), script.Constants()
    for real in records.load_questions(os.path.join(shared, 'WebQA.json')):
        pair = script.training_pair(real, rng, constants)
        token_ids, segment_ids = script.encode_pair(tokenizer, *pair, constants)
        ends = [i + 1 for i, token in enumerate(token_ids) if token == tokenizer._token_end_id]
        p_len, q_end, end = ends
        assert p_len <= 256 and end == len(token_ids) <= p_len + 64 + 32
        assert segment_ids == [0] * q_end + [1] * (end - q_end)
        longest = max(longest, p_len)
    assert longest == 256


def test_question_and_passages_are_cut_when_reading(script, small, monkeypatch):
    """The question has five places for four tokens and its [SEP], however short the passage."""
    reader = script.ReadingComprehension(
        *build_small_model(script, small), script.Constants(**SHORT)
    )
    seen = []

    def ids(tokens):
        return reader.tokenizer.tokens_to_ids(tokens.split())

    def search(encoded, topk):
        seen.extend(encoded)
        no_answer = [dict.fromkeys(map(tuple, p_token_ids), 1.0) for p_token_ids, _ in encoded]
        return [Found({}, silent, [NO_ANSWER]) for silent in no_answer]

    monkeypatch.setattr(reader, 'search', search)
    questions = [('北京上海天津', ['中', '中国中国中国中国']), ('北京上海', ['中国中国中国'])]
    assert [answer.text for answer in reader.answers(questions)] == ['', '']
    long, question = ids('[CLS] 中 国 中 国 中 国 [SEP]'), ids('北 京 上 海 [SEP]')
    assert seen == [([ids('[CLS] 中 [SEP]'), long], question), ([long], question)]


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


def cross_entropy(probas, token_ids, segment_ids):
    """The mean of -log p over all tokens of segment 1, each predicted one position before."""
    losses = []
    for row, position in zip(*np.nonzero(segment_ids), strict=True):
        losses.append(-np.log(probas[row, position - 1, token_ids[row, position]]))
    return np.mean(losses, dtype=np.float64)


def padded(pairs):
    """Return (token_ids, segment_ids), int32 [pairs, longest], of pairs of lists."""
    columns = zip(*pairs, strict=True)
    return [np.array(bert4keras.snippets.sequence_padding(column), np.int32) for column in columns]


def loss_of(trainer, token_ids, segment_ids):
    """The loss of an update."""
    return trainer.train_step({'Input-Token': token_ids, 'Input-Segment': segment_ids})['loss']


def mean_loss(script, model, token_ids, segment_ids):
    """The mean of the losses of all tokens of the answers, dropout being off."""
    trainer = script.build_trainer(model, script.Constants())
    losses = trainer.losses(tf.constant(token_ids), tf.constant(segment_ids)).numpy()
    assert losses.shape == (segment_ids.sum(),)
    return losses.mean()


@pytest.mark.parametrize('accumulate_steps', [1, 2])
def test_loss_by_hand(script, small, accumulate_steps):
    """1 answer token and 3: of all 4 it is 7 / 4 log 2, where the mean of the rows' means is 6 / 4.

    Also where each row is a part of its own.
    """
    model, _ = build_small_model(script, small)
    constants = script.Constants(accumulate_steps=accumulate_steps)
    trainer = script.build_trainer(model, constants)

    def cross_entropy(labels, logits):
        return tf.where(labels == 4, 1.0, 2.0) * np.log(2) + 0 * logits[:, 0]

    trainer.cross_entropy = cross_entropy
    token_ids, segment_ids = padded(
        [([2, 1, 3, 4], [0, 0, 0, 1]), ([2, 4, 3, 1, 2, 3], [0, 0, 0, 1, 1, 1])]
    )
    loss = loss_of(trainer, token_ids, segment_ids)
    assert float(loss) == pytest.approx(7 / 4 * np.log(2), abs=1e-5)


def test_loss_is_the_cross_entropy_of_answers_alone(script, small):
    """Of bert4keras's own predictions, dropout being off, whatever the order or number of rows."""
    model, _ = build_small_model(script, small)
    rng = np.random.default_rng(0)
    for count in 1, 4, 9:
        pairs = []
        for _ in range(count):
            source, target = rng.integers(2, 20), rng.integers(1, 9)
            token_ids = rng.integers(4, 30, source + target).tolist()
            pairs.append((token_ids, [0] * source + [1] * target))
        token_ids, segment_ids = padded(pairs)
        probas = model.predict([token_ids, segment_ids], verbose=0)
        expected = cross_entropy(probas, token_ids, segment_ids)
        assert mean_loss(script, model, token_ids, segment_ids) == pytest.approx(expected, abs=1e-5)


def test_bfloat16_is_of_the_products_alone(script, small):
    """Loss and gradients are float32, like the weights, and nearly the same."""
    model, _ = build_small_model(script, small)
    token_ids, segment_ids = padded([([*range(4, 20)], [0] * 10 + [1] * 6)] * 3)
    losses, gradients = [], []
    for precision in 'float32', 'bfloat16':
        trainer = script.build_trainer(model, script.Constants(precision=precision))
        trainer.dropout_rate = 0
        trainer.optimizer.apply_gradients = lambda pairs: gradients.append(
            [gradient for gradient, _ in pairs]
        )
        losses.append(loss_of(trainer, token_ids, segment_ids).numpy())
    values = [*losses, *gradients[1], *model.weights]
    assert {tf.as_dtype(value.dtype) for value in values} == {tf.float32}
    assert 0 < abs(losses[1] - losses[0]) < 0.01 * losses[0]
    exact, rough = (
        np.concatenate([np.ravel(gradient) for gradient in column]) for column in gradients
    )
    assert 0 < np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)


def real_batches(script, shared, tokenizer, constants, count=None):
    """The batches of the first real questions."""

    def encode(record, rng):
        pair = script.training_pair(record, rng, constants)
        return script.encode_pair(tokenizer, *pair, constants)

    real = records.load_questions(os.path.join(shared, 'WebQA.json'))[:count]
    return Batches(real, encode, constants).dataset()


def real_files(script, shared):
    """The settings.Files of a real BERT, which is small, and its vocabulary."""
    folder = os.path.join(shared, 'tiny_bert')
    return small_files(script, folder)._replace(
        checkpoint=os.path.join(folder, 'bert_model.ckpt'),
        vocabulary=os.path.join(shared, 'vocab.txt'),
    )


@pytest.mark.filterwarnings('ignore:The initializer TruncatedNormal')
def test_loss_of_real_pairs(script, shared):
    """16 pairs read by a real BERT, built and loaded by bert4keras itself.

    From probabilities Keras would raise each to 1e-7 at least, and of 13,584 this would show.
    """
    files, constants = real_files(script, shared), script.Constants(batch_size=16, epochs=1)
    model, tokenizer = script.build_model(files, files.checkpoint, constants)
    [batch] = real_batches(script, shared, tokenizer, constants, 16)
    token_ids, segment_ids = batch['Input-Token'].numpy(), batch['Input-Segment'].numpy()
    _, keep_tokens, _ = bert.load_tokenizer(files.vocabulary)
    theirs = bert4keras.models.build_transformer_model(
        files.config, files.checkpoint, application='unilm', keep_tokens=keep_tokens
    )
    probas = theirs.predict([token_ids, segment_ids], verbose=0)
    loss = mean_loss(script, model, token_ids, segment_ids)
    assert loss == pytest.approx(cross_entropy(probas, token_ids, segment_ids), abs=1e-5)
    assert loss < 4  # random weights give log(13,584) = 9.5


def test_optimizer_is_adam_as_bert4keras_has_it(script, small):
    model, _ = build_small_model(script, small)
    optimizer = script.build_trainer(model, script.Constants(learning_rate=0.003)).optimizer
    assert type(optimizer).__name__ == 'Adam'
    values = optimizer.get_config()
    names = 'learning_rate', 'beta_1', 'beta_2', 'epsilon', 'amsgrad'
    assert [float(values[name]) for name in names] == pytest.approx([0.003, 0.9, 0.999, 1e-6, 0])


def test_updates_are_those_of_the_original(script, small):
    """Gradients as well, dropout being off, though the original computes every position."""
    config = json.loads((small / 'bert_config.json').read_text(encoding='utf-8'))
    write_json(small / 'bert_config.json', {**config, 'hidden_dropout_prob': 0.0})
    models = [build_small_model(script, small)[0] for _ in range(2)]
    theirs = build_train_model(models[0], 0.003)
    ours = script.build_trainer(models[1], script.Constants(learning_rate=0.003))
    rng, losses = np.random.default_rng(0), []
    rows = [([*rng.integers(4, 30, n)], [0] * (n - 3) + [1] * 3) for n in (5, 9, 20)]
    token_ids, segment_ids = padded(rows)
    for _ in range(6):
        batch = {'Input-Token': token_ids, 'Input-Segment': segment_ids}
        losses.append((theirs.train_on_batch(batch), float(ours.train_step(batch)['loss'])))
    losses = np.array(losses)
    assert losses[-1, 0] < 0.9 * losses[0, 0]
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], atol=1e-4, rtol=0)
    for weight, other in zip(*[model.get_weights() for model in models], strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:The initializer TruncatedNormal')
def test_training_goes_as_the_original_does(script, shared, tmp_path):
    """200 updates on real pairs, dropout off: losses equal to 1e-4.

    One of the two computes every position of the padded batch.
    """
    files = real_files(script, shared)
    with open(files.config, encoding='utf-8') as file:
        config = {**json.load(file), 'hidden_dropout_prob': 0, 'attention_probs_dropout_prob': 0}
    write_json(tmp_path / 'bert_config.json', config)
    files = files._replace(config=str(tmp_path / 'bert_config.json'))
    constants = script.Constants(max_p_len=48, batch_size=8, learning_rate=1e-4, epochs=4)
    model, tokenizer = script.build_model(files, files.checkpoint, constants)
    theirs = build_train_model(model, constants.learning_rate)
    model, _ = script.build_model(files, files.checkpoint, constants)
    ours = script.build_trainer(model, constants)
    update, losses = tf.function(ours.train_step, reduce_retracing=True), []
    for batch in real_batches(script, shared, tokenizer, constants).take(200):
        losses.append((theirs.train_on_batch(batch), float(update(batch)['loss'])))
    losses = np.array(losses)
    assert len(losses) == 200 and losses[-20:].mean() < 0.8 * losses[:20].mean()
    print(f'largest difference of 200 losses: {abs(losses[:, 0] - losses[:, 1]).max():.1e}')
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], atol=1e-4, rtol=0)
