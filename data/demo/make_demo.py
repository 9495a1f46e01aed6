"""Write everything else in this folder: a small invented corpus, its vocabulary and a tiny BERT.

    python data/demo/make_demo.py    # 15 minutes on two cores, nearly all of them for the BERT

Every person, company, book, film and town is invented. No name of a question stands in another
question, so a model cannot remember an answer: it has to read it. The BERT has learnt what a BERT
learns, to fill the gap in a sentence, here with the help of a passage beside it. It has seen no
question and no name of the corpus.
"""

import json
import os
import random
import re
import sys

import numpy as np

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(FOLDER)))
from support.keras2 import bert4keras, keras, tf
from task_reading_comprehension_by_seq2seq import unify_separators

# ---------------------------------------------------------------------------------------- constants
# fmt: off
seed = 7115
sogou_questions = 1200     # every one has an answer; a third of them is for validation
webqa_questions = 2400     # for training only
unanswered = 0.1           # share of the WebQA questions that no passage answers
contradicted = 0.15        # share of the questions with one passage against the others
repeated = 0.25            # share of the questions with a passage given twice
listed = 0.25              # share of the questions about several things whose answer is a list
rare = 0.02                # share of the names with a character outside the vocabulary
copying_steps = 500        # updates of the BERT on copying, which cloze tests need ...
cloze_steps = 5500         # ... and on cloze tests
tests_per_update = 64
copying_rate = 2e-3        # learning rates: 100 updates of warm-up, falling over the second half
cloze_rate = 1e-3
bert_config = {
    'attention_probs_dropout_prob': 0.0, 'hidden_act': 'gelu', 'hidden_dropout_prob': 0.0,
    'hidden_size': 128, 'initializer_range': 0.08, 'intermediate_size': 256,
    'max_position_embeddings': 512, 'num_attention_heads': 4, 'num_hidden_layers': 3,
    'type_vocab_size': 2,
}
own_values = {             # of the script's constants, as long as they stand there as they do today
    'batch_size': {'instead_of': 32, 'value': 64},
    'epochs': {'instead_of': 8, 'value': 3},
    'learning_rate': {'instead_of': 1e-5, 'value': 3e-4},
}

SURNAMES = (
    '赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦许何吕施张孔曹严华金魏陶姜戚谢邹喻柏窦章苏潘葛范彭郎鲁韦'
    '马苗凤方俞任袁柳'
)
NAME_CHARACTERS = (
    '安邦宝碧冰波博才彩灿苍昌畅超朝琛晨诚承澄驰初川春慈聪翠达丹德登迪典鼎定东冬栋端敦多恩尔帆凡芳'
    '菲飞丰风峰锋芙福辅富甘刚高歌耕公功古谷冠光广桂国果海涵汉翰豪浩和荷赫鹤恒宏虹鸿厚湖虎花怀环焕'
    '辉惠慧火霁吉纪佳家嘉坚剑健江娇杰洁婕捷今锦进京晶景静镜久菊娟军君俊骏开凯康可克宽坤岚澜朗乐雷'
    '蕾黎礼立丽利莉莲良亮林琳霖玲灵凌岭流龙隆露璐洛绿满曼茂梅美萌梦绵民敏明鸣铭茉墨牧沐慕楠南妮宁'
    '凝诺暖磐培佩鹏平萍朴普奇琦启千谦倩乔巧青清晴庆琼秋泉群然仁荣容蓉融如茹儒瑞润若森杉珊善尚韶少'
    '绍深圣胜诗石时实世守书舒淑树双爽水思松素泰棠涛腾天田庭婷亭通彤桐同图望维伟苇文雯闻汶武希熙溪'
    '霞夏仙先贤香祥翔向晓孝笑心昕欣新馨信星兴雄秀旭宣轩雪勋雅亚烟延岩炎艳燕阳瑶遥叶怡宜艺亦逸音银'
    '英盈莹颖永勇优友幼宇羽雨语玉育裕元园原远月悦跃云芸韵泽展哲珍真振正政之知智中忠舟洲竹壮卓姿子'
    '紫自祖左佐'
)
RARE_CHARACTERS = '喆堃犇翀燚赟祎頔翯骉垚晸湉甯芃暐玥瑢㛃䶮𠮷𣲗'  # never in vocab.txt
ENDINGS = {
    'company': ['科技公司', '食品公司', '电器公司'],
    'town': [*'市县镇州'],
    'river': [*'河江溪'],
}
FEW = {
    'province': '河北 山西 辽宁 吉林 江苏 浙江 安徽 福建 江西 山东 '
                '河南 湖北 湖南 广东 四川 贵州 云南 陕西 甘肃 青海',
    'profession': '画家 医生 律师 记者 厨师 建筑师 工程师 摄影师 '
                  '作曲家 植物学家 钢琴家 飞行员 翻译 木匠 诗人 船长',
    'food': '绿茶 米酒 年糕 面条 蜜桃 腊肉 豆腐 葡萄 柑橘 竹笋 香菇 火腿 核桃 红枣 莲藕 板栗',
    'goods': '手机 酸奶 手表 钢琴 电池 雨伞 相机 书包 台灯 牙膏 果汁 饼干 耳机 皮鞋 冰箱 音箱',
}

# kind: {attribute: (kind of the value, * where it may be a list; questions; statements)}
FACTS = {
    'person': {
        'birthplace': ('town', '{e}出生在哪里？|{e}的老家在什么地方？|请问{e}是哪里人',
                       '{e}出生于{a}|{e}的老家在{a}|{e}是{a}人'),
        'profession': ('profession', '{e}的职业是什么？|{e}是做什么工作的？|{e}从事什么职业',
                       '{e}是一名{a}|{e}的职业是{a}|{e}多年来当{a}'),
        'teacher': ('person', '{e}的老师是谁？|{e}师从何人？|{e}是跟谁学艺的？',
                    '{e}师从{a}|{e}的老师是{a}|{e}早年拜{a}为师'),
    },
    'company': {
        'founder': ('person', '{e}的创始人是谁？|{e}是谁创办的？|谁创立了{e}？',
                    '{e}由{a}创办|{e}的创始人是{a}|{e}是{a}一手创立的'),
        'seat': ('town', '{e}的总部在哪里？|{e}总部设在哪个城市？|{e}的总部位于什么地方',
                 '{e}的总部位于{a}|{e}把总部设在{a}|{e}总部在{a}'),
        'product': ('goods*', '{e}的主要产品是什么？|{e}主要生产什么？|{e}靠什么产品出名',
                    '{e}的主要产品是{a}|{e}主要生产{a}|{e}靠{a}打开了市场'),
    },
    'book': {
        'author': ('person', '{e}的作者是谁？|{e}是谁写的？|谁写了{e}这本书',
                   '{e}的作者是{a}|{e}由{a}写成|{e}出自作家{a}之手'),
        'published': ('year', '{e}是哪一年出版的？|{e}首次出版是在哪年？|{e}的出版时间是哪一年',
                      '{e}于{a}出版|{e}首次出版是在{a}|{e}的出版时间是{a}'),
    },
    'film': {
        'director': ('person', '{e}的导演是谁？|{e}是谁导演的？|谁执导了{e}',
                     '{e}由{a}执导|{e}的导演是{a}|{e}是{a}导演的作品'),
        'released': ('year', '{e}是哪一年上映的？|{e}什么时候上映？|{e}的上映年份是哪年',
                     '{e}于{a}上映|{e}的上映年份是{a}|{e}在{a}与观众见面'),
        'cast': ('person*', '{e}的主演是谁？|{e}是谁主演的？|{e}有哪些主要演员',
                 '{e}由{a}主演|{e}的主演是{a}|{e}的主要演员为{a}'),
    },
    'town': {
        'province': ('province', '{e}在哪个省？|{e}属于哪个省份？|{e}是哪个省的',
                     '{e}位于{a}省|{e}属于{a}省|{e}地处{a}省境内'),
        'river': ('river', '流经{e}的是哪条河？|{e}有什么河？|哪条河穿过{e}',
                  '{e}有{a}流过|{e}依傍着{a}|{e}境内的河叫{a}'),
        'specialty': ('food*', '{e}的特产是什么？|{e}有什么特产？|{e}以什么特产闻名',
                      '{e}的特产是{a}|{e}盛产{a}|{e}以{a}闻名'),
    },
}
LEADS = [
    '', '', '', '', '答：', '百科词条：', '据介绍，', '网友回答：', '资料显示，', '【简介】', 'A：',
]
TAILS = ['', '', '', '', '...', '更多内容请点击查看。', '希望对你有帮助！', '以上资料仅供参考。']
OFF_TOPIC = [
    '关于{e}的资料正在整理中，请稍后再来。',
    '很多网友都在搜索{e}。',
    '请登录后查看{e}的全部图片和评论。',
]
# fmt: on
# ------------------------------------------------------------------------------------------- corpus


class Names:
    """Draws values of every kind, but no composed name of `used`; if `unique`, none twice."""

    def __init__(self, generator, used, unique):
        self.generator, self.used, self.unique = generator, used, unique

    def value(self, kind):
        """Draw one value of this kind."""
        if kind == 'year':
            return f'{self.generator.randint(1950, 2019)}年'
        if kind in FEW:
            return self.generator.choice(FEW[kind].split())
        while True:
            drawn = self.generator.sample(NAME_CHARACTERS, 4 if kind in ('book', 'film') else 2)
            if kind == 'person':
                drawn = [self.generator.choice(SURNAMES), *drawn[: self.generator.randint(1, 2)]]
            if self.generator.random() < rare:
                drawn[-1] = self.generator.choice(RARE_CHARACTERS)
            name = ''.join(drawn)
            if name not in self.used:
                if self.unique:
                    self.used.add(name)
                if kind in ('book', 'film'):
                    return f'《{name}》'
                return name + self.generator.choice(ENDINGS.get(kind, ['']))

    def answer(self, kind):
        """Draw a value; of a kind marked * now and then a list, two or three joined by spaces."""
        several = kind.endswith('*') and self.generator.random() < listed
        count = self.generator.randint(2, 3) if several else 1
        parts = {}
        while len(parts) < count:
            parts[self.value(kind.rstrip('*'))] = True
        return ' '.join(parts)


class Question:
    """One question under construction: two entities of a kind, and what is true of each.

    It asks about the first.
    """

    def __init__(self, names, joints):
        self.names, self.generator, self.joints = names, names.generator, joints
        kind = self.generator.choice(list(FACTS))
        self.rules = FACTS[kind]
        self.attribute = self.generator.choice(list(self.rules))
        self.entities = [names.value(kind) for _ in range(2)]
        self.facts = []
        for _ in self.entities:
            self.facts.append({name: names.answer(rule[0]) for name, rule in self.rules.items()})
        self.answer = self.facts[0][self.attribute]
        _, questions, _ = self.rules[self.attribute]
        self.text = self.generator.choice(questions.split('|')).format(e=self.entities[0])

    def statement(self, attribute, entity, value):
        """State a fact in one of its phrasings; the parts of a list stand with a joint between."""
        template = self.generator.choice(self.rules[attribute][2].split('|'))
        return template.format(e=entity, a=value.replace(' ', self.generator.choice(self.joints)))

    def sentence(self, which, attributes, facts):
        """State some facts on one entity, which is named once."""
        entity = self.entities[which]
        first, *more = [self.statement(name, entity, facts[name]) for name in attributes]
        clauses = [first, *(re.sub(f'^{entity}的?', '', clause) for clause in more)]
        return '，'.join(clauses) + '。'

    def others(self):
        """Draw one or no attribute beside the one that is asked for."""
        rest = [name for name in self.rules if name != self.attribute]
        return self.generator.sample(rest, self.generator.randint(0, 1))

    def passage(self, sentences):
        """Put sentences in a random order, with what stands around them on a web page."""
        self.generator.shuffle(sentences)
        return self.generator.choice(LEADS) + ''.join(sentences) + self.generator.choice(TAILS)

    def supporting(self, answer):
        """Return a passage that gives this answer, perhaps with the other entity's beside."""
        attributes = [self.attribute, *self.others()]
        self.generator.shuffle(attributes)
        sentences = [self.sentence(0, attributes, {**self.facts[0], self.attribute: answer})]
        if self.generator.random() < 0.1:
            sentences.append(self.sentence(1, [self.attribute], self.facts[1]))
        return {'passage': self.passage(sentences), 'answer': answer}

    def answerless(self):
        """Return a passage on another fact, on the other entity, or on nothing at all."""
        others = [name for name in self.rules if name != self.attribute]
        shape = self.generator.random()
        if shape < 0.2:
            sentences = [self.generator.choice(OFF_TOPIC).format(e=self.entities[0])]
        elif shape < 0.7:
            some = self.generator.sample(others, self.generator.randint(1, len(others)))
            sentences = [self.sentence(0, some, self.facts[0])]
        elif shape < 0.85:
            sentences = [self.sentence(1, [self.generator.choice(others)], self.facts[1])]
        else:
            sentences = [self.sentence(1, [self.attribute], self.facts[1])]
        return {'passage': self.passage(sentences), 'answer': ''}

    def passages(self, answered):
        """Return all passages of the question in a random order."""
        count = self.generator.randint(1, 3) if answered else 4
        passages = [self.answerless() for _ in range(count)]
        if answered:
            passages += [self.supporting(self.answer) for _ in range(self.generator.randint(3, 4))]
        if self.generator.random() < repeated:
            passages.append(dict(self.generator.choice(passages)))
        if answered and self.generator.random() < contradicted:
            passages.append(self.supporting(self.names.answer(self.rules[self.attribute][0])))
        self.generator.shuffle(passages)
        return passages


def consistent(passages):
    """Whether passages hold an answer exactly where labelled with it, most of them the same."""
    answers = [entry['answer'] for entry in passages if entry['answer']]
    for entry in passages:
        for answer in answers:
            holds = all(part in entry['passage'] for part in answer.split())
            if holds != (answer == entry['answer']):
                return False
    return not answers or 2 * max(map(answers.count, answers)) > len(answers)


def make_records(names, count, identify, web):
    """Return `count` records and their answers; as really, WebQA has no spaces and no capitals."""
    records, answers = [], []
    while len(records) < count:
        question = Question(names, '、，' if web else '、， ')
        passages = question.passages(not web or names.generator.random() >= unanswered)
        if web:
            passages = [{**entry, 'passage': entry['passage'].lower()} for entry in passages]
        if consistent(passages):
            record = {'id': identify(len(records)), 'question': question.text}
            records.append({**record, 'passages': passages})
            answers.append(question.answer)
    return records, answers


def vocabulary(records):
    """Return the entries of vocab.txt: special ones, characters of the corpus, years, pieces."""
    used = {*SURNAMES, *NAME_CHARACTERS, *json.dumps(records, ensure_ascii=False)}
    used -= {*RARE_CHARACTERS}
    characters = sorted(character for character in used if ord(character) > 0x7F)
    simple = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    pieces = [f'##{character}' for character in simple + characters if character.isalnum()]
    unused = [f'[unused{i}]' for i in range(1, 10)]
    special = ['[PAD]', *unused, '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    years = [str(year) for year in range(1950, 2020)]
    return special + simple + characters + years + pieces


def write_lines(path, lines):
    """Write a text file, one line each."""
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
        file.writelines(f'{line}\n' for line in lines)


def write_corpus(folder):
    """Write both corpus files, the official answers and the vocabulary. Returns the names used."""
    names = Names(random.Random(seed), set(), unique=True)
    sogou, answers = make_records(names, sogou_questions, lambda i: str(10000 + i), web=False)
    webqa, _ = make_records(names, webqa_questions, 'Q_TRN_{:06d}'.format, web=True)
    for name, records in [('SogouQA.json', sogou), ('WebQA.json', webqa)]:
        *lines, last = [json.dumps(record, ensure_ascii=False) for record in records]
        lines = ['[', *(f'{line},' for line in lines), last, ']']
        write_lines(os.path.join(folder, name), lines)
    lines = []
    for record, answer in zip(sogou, answers, strict=True):
        variants = [answer, answer.replace(' ', ''), re.sub('年$', '', answer)]
        lines.append(f'{record["id"]}\t{answer}\t{"|".join(dict.fromkeys(variants))}')
    write_lines(os.path.join(folder, 'qid_answer_expand'), lines)
    write_lines(os.path.join(folder, 'vocab.txt'), vocabulary(sogou + webqa))
    return names.used


# --------------------------------------------------------------------------------------------- BERT


def copying_test(generator, token_ids):
    """Return random tokens, a few of them again as question, and what follows there as answer."""
    text = generator.choices(token_ids, k=generator.randint(8, 32))
    start = generator.randint(0, len(text) - 4)
    return text, text[start : start + 3], text[start + 3 : start + 11]


def cloze_test(names, encode):
    """Return a passage, a sentence with a gap and what belongs there, if known, as token ids."""
    question = Question(names, '，')
    known = names.generator.random() < 0.6
    passage = question.supporting(question.answer) if known else question.answerless()
    sentence = question.statement(question.attribute, question.entities[0], '[MASK]')
    filling = question.answer.replace(' ', ',') if known else ''
    return encode(passage['passage']), encode(sentence), encode(filling)


def batch(tests, cls_id, sep_id):
    """Return token_ids and segment_ids, int32 [tests, length].

    A row is `[CLS] text [SEP] question [SEP] answer [SEP]`.
    """
    rows = []
    for text, question, answer in tests:
        rows.append(([cls_id, *text, sep_id, *question, sep_id], [*answer, sep_id]))
    length = max(len(source) + len(target) for source, target in rows)
    token_ids, segment_ids = np.zeros([2, len(rows), length], 'int32')
    for i, (source, target) in enumerate(rows):
        token_ids[i, : len(source) + len(target)] = source + target
        segment_ids[i, len(source) : len(source) + len(target)] = 1
    return token_ids, segment_ids


def pretrain(transformer, vocabulary_path, used):
    """Teach the BERT to copy, then to fill gaps."""
    tokenizer = bert4keras.tokenizers.Tokenizer(vocabulary_path, do_lower_case=True)
    generator = random.Random(seed + 1)
    names = Names(generator, used, unique=False)
    letters = tokenizer.tokens_to_ids([*NAME_CHARACTERS, *SURNAMES, '[UNK]'])
    mask_id = tokenizer.token_to_id('[MASK]')

    def encode(text):
        before, gap, after = unify_separators(text).partition('[MASK]')
        token_ids = [tokenizer.encode(part)[0][1:-1] for part in (before, after)]
        return token_ids[0] + ([mask_id] if gap else []) + token_ids[1]

    update, steps = training_step(transformer), copying_steps + cloze_steps
    for step in range(steps):
        if step < copying_steps:
            tests = [copying_test(generator, letters) for _ in range(tests_per_update)]
            highest = copying_rate
        else:
            tests = [cloze_test(names, encode) for _ in range(tests_per_update)]
            highest = cloze_rate
        rate = highest * min((step + 1) / 100, 1, 2 * (steps - step) / steps)
        loss = update(*batch(tests, tokenizer._token_start_id, tokenizer._token_end_id), rate)
        if (step + 1) % 100 == 0:
            print(f'{step + 1} of {steps} updates, loss {loss:.3f}', flush=True)


def training_step(transformer):
    """Return a function that makes one update, in which only answers cost time.

    It takes token_ids, segment_ids and the learning rate, and returns the loss.
    """
    layers = transformer.layers
    last = f'Transformer-{bert_config["num_hidden_layers"] - 1}-FeedForward-Norm'
    encoder = keras.models.Model(transformer.model.inputs, transformer.model.get_layer(last).output)
    weights = transformer.model.trainable_weights
    optimizer = keras.optimizers.Adam(epsilon=1e-6)
    rows = tf.TensorSpec([None, None], tf.int32)

    @tf.function(input_signature=[rows, rows, tf.TensorSpec([], tf.float32)])
    def update(token_ids, segment_ids, rate):
        answers = segment_ids[:, 1:] > 0
        with tf.GradientTape() as tape:
            hidden = encoder([token_ids, segment_ids])[:, :-1]  # [tests, length - 1, width]
            hidden = tf.boolean_mask(hidden, answers)  # [answer tokens, width]
            hidden = layers['MLM-Norm'](layers['MLM-Dense'](hidden))
            embeddings = layers['Embedding-Token'].embeddings
            logits = layers['MLM-Bias'](tf.matmul(hidden, embeddings, transpose_b=True))
            labels = tf.boolean_mask(token_ids[:, 1:], answers)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.learning_rate.assign(rate)
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    return update


def save(transformer, prefix):
    """Write the weights as a TensorFlow BERT checkpoint."""
    variables = {}
    for layer, names in transformer.variable_mapping().items():
        if layer in transformer.layers:
            variables.update(zip(names, transformer.layers[layer].trainable_weights, strict=True))
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(variables),
        shape_and_slices=[''] * len(variables),
        tensors=[weight.numpy() for weight in variables.values()],
    )


def start_weights(transformer):
    """Draw weights from which copying is learnt in minutes: with bert4keras's own it never is.

    Wider random matrices, positions as sines and cosines, and attention that starts by handing on
    what it looks at: its output matrix undoes its value matrix.
    """
    stddev = bert_config['initializer_range']
    for weight in transformer.model.weights:
        if weight.shape.rank == 2:
            weight.assign(tf.random.truncated_normal(weight.shape, stddev=stddev))
    width, positions = bert_config['hidden_size'], np.arange(bert_config['max_position_embeddings'])
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)  # [width / 2]
    angles = positions[:, None] * frequencies  # [positions, width / 2]
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(-1, width)
    transformer.layers['Embedding-Position'].embeddings.assign(0.1 * waves)
    for i in range(bert_config['num_hidden_layers']):
        attention = transformer.layers[f'Transformer-{i}-MultiHeadSelfAttention']
        attention.o_dense.kernel.assign(attention.v_dense.kernel.numpy().T)
    transformer.layers['MLM-Dense'].kernel.assign(np.eye(width))


def write_bert(folder, used):
    """Build the BERT for vocab.txt, pre-train it, and write its configuration and checkpoint."""
    vocabulary_path = os.path.join(folder, 'vocab.txt')
    config_path = os.path.join(folder, 'bert_config.json')
    config = {**bert_config, 'vocab_size': len(bert4keras.tokenizers.load_vocab(vocabulary_path))}
    write_lines(config_path, [json.dumps(config, indent=2, sort_keys=True)])
    keras.utils.set_random_seed(seed)
    transformer = bert4keras.models.build_transformer_model(
        config_path, application='unilm', return_keras_model=False
    )
    start_weights(transformer)
    pretrain(transformer, vocabulary_path, used)
    save(transformer, os.path.join(folder, 'bert_model.ckpt'))


def main():
    """Write the demo's own constants, the corpus, then the BERT."""
    write_lines(os.path.join(FOLDER, 'constants.json'), [json.dumps(own_values, indent=2)])
    write_bert(FOLDER, write_corpus(FOLDER))


if __name__ == '__main__':
    main()
