"""Every file that is read, damaged or of another shape: the right result, or one line that helps.

Of each kind of file a few inputs are tried; with -m slow many, and what became of them is printed.
"""

import collections
import contextlib
import copy
import functools
import itertools
import json
import os
import random
import re
import shutil
import time
import types

import numpy as np
import pytest
from conftest import ROOT, VOCABULARY, draw, record, record_of, refusal, write_json, write_small
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Killed, call, change_config
from support.lost import tell_what_is_lost

from evaluate_sogou import (
    UserError,
    evaluate,
    load_official_answers,
    score_answer,
)
from support import bert, records
from support.checkpoints import opened
from support.keras2 import keras, tf
from support.predictions import Part, digest_of
from support.resume import Backups, State
from support.settings import BEST, check, configure, locate_files, write_config

COUNTS = [pytest.param(20, id='few'), pytest.param(800, id='many', marks=pytest.mark.slow)]
SECONDS = 60  # after which reading counts as a hang
CURE = re.compile('; |expected')
ODD_CHARACTERS = '\0\t\n\r "\\{}[]/,:0123456789.-eE|｜，\x85\u2028\u200b\ufeff国éＡ😀'


def outcome(read, named, seconds=SECONDS):
    """Return 'right', or 'refused' where it is by one line that names a file and a cure."""
    begun, told = time.monotonic(), 'right'
    try:
        read()
    except UserError as error:
        told, message = 'refused', str(error)
        assert len(message.splitlines()) == 1 and str(named) in message, message
        assert CURE.search(message.replace(str(named), '')), message
    assert time.monotonic() - begun < seconds
    return told


def mutated(content, rng):
    """Damage some bytes; of a text its characters too, so that it is still UTF-8."""
    if rng.random() < 0.5:
        with contextlib.suppress(UnicodeDecodeError):
            text = [*content.decode()]
            damage(text, rng, lambda size: rng.choices(ODD_CHARACTERS, k=size))
            return ''.join(text).encode()
    content = bytearray(content)
    damage(content, rng, rng.randbytes)
    return bytes(content)


def damage(content, rng, draw):
    """Truncate, flip, delete, repeat, insert, swap and fill pieces of a list or of bytes."""
    for _ in range(rng.choice([1, 1, 1, 1, 2, 4, 16])):
        size, length = rng.choice([1, 1, 2, 8, 64, 1000]), max(len(content), 1)
        start, other = rng.randrange(length), rng.randrange(length)
        piece, another = content[start : start + size], content[other : other + size]
        how = rng.randrange(7)
        if how == 0:
            del content[start:]
        elif how == 1 and isinstance(content, bytearray):
            content[start : start + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in piece[:1])
        elif how == 2:
            del content[start : start + size]
        elif how == 3:
            content[other:other] = piece
        elif how == 4:
            content[start:start] = draw(size)
        elif how == 5:
            content[start : start + size], content[other : other + size] = another, piece
        else:
            content[start : start + size] = draw(1) * len(piece)


# ------------------------------------------------------------------------------- what reads a file

KINDS = {}


def kind(function):
    """Register a function of a place that returns (path of a sound file, what reads it)."""
    KINDS[function.__name__.replace('_', ' ')] = function
    return function


@pytest.fixture(scope='module')
def place(script, tmp_path_factory):
    """A folder with a tiny BERT: folder, its settings.Files, model and script."""
    folder = write_small(tmp_path_factory.mktemp('place'))
    change_config(folder, num_hidden_layers=1, max_position_embeddings=40)
    files = locate_files(script.Constants(data_dir=str(folder), checkpoint_path=''))
    found = types.SimpleNamespace(folder=folder, files=files, script=script)
    found.model = build(found)
    draw(found.model, 0)
    return found


def build(place, checkpoint=None):
    """Build the BERT of a place."""
    _, keep_tokens, size = bert.load_tokenizer(place.files.vocabulary)
    model = bert.build_bert(place.files, checkpoint, keep_tokens, size, 40)
    assert model.get_layer('Embedding-Token').embeddings.shape[0] == len(keep_tokens)
    return model


def read_dataset(path, labelled):
    """Read a dataset, and do with it what is done before a model is asked."""
    data = records.load_questions(str(path), labelled)
    for entry in data:
        texts = [entry[name] for name in ('id', 'question') if entry.get(name) is not None]
        assert all(text.strip() and text.encode() for text in texts)
        assert not set(entry.get('id') or '') & set('\t\n\r')
        for passage in entry.get('passages') or []:
            passage['passage'].encode()
            passage['answer'].encode()
    records.dataset_answers(data)
    tell_what_is_lost(str(path), data, str, 10, 3)
    digest_of(None, data)


def write_dataset(path):
    """Write a small dataset of all that is allowed."""
    odd = record_of(('Ａ…\t \u3000在北京 上海', ['北京', '上海']), ('犇😀', '犇'), question_id='😀')
    write_json(path, [record('S#1'), odd, {**record('c'), 'url': {'a': [1.5, None]}}])


@kind
def dataset(place):
    path = place.folder / 'dataset.json'
    write_dataset(path)
    return path, lambda: read_dataset(path, labelled=True)


@kind
def questions_to_predict(place):
    path = place.folder / 'questions.json'
    write_dataset(path)
    return path, lambda: read_dataset(path, labelled=False)


@kind
def line_of_standard_input(place):
    path = place.folder / 'lines'
    write_json(path, record_of(('在北京', '北京'), question_id='a'))

    def read():
        told = records.parse_line(path.read_bytes(), 1)
        if isinstance(told, str):
            raise UserError(f'{path}: {told}')
        json.dumps(told)

    return path, read


@kind
def vocabulary(place):
    path = place.folder / 'mutated' / 'vocab.txt'
    path.parent.mkdir(exist_ok=True)
    shutil.copy(place.folder / 'vocab.txt', path)

    def read():
        tokenizer, keep_tokens, size = bert.load_tokenizer(str(path))
        token_ids, _ = tokenizer.encode('中国Ab犇 20', '\u2028在[SEP]')
        assert max(keep_tokens) < size and max(token_ids) < len(keep_tokens)

    return path, read


@kind
def configuration(place):
    path = place.folder / 'mutated' / 'bert_config.json'
    path.parent.mkdir(exist_ok=True)
    shutil.copy(place.folder / 'bert_config.json', path)
    files = place.files._replace(config=str(path))

    def read():
        keras.backend.clear_session()
        build(types.SimpleNamespace(files=files))
        bert.bert_digest(files)

    return path, read


def checkpoint(place, suffix):
    """A TensorFlow checkpoint, of which one file is damaged; each value has a checksum."""
    folder = place.folder / suffix[:5].replace('.', '')
    folder.mkdir(exist_ok=True)
    path, rng = str(folder / 'bert_model.ckpt'), np.random.default_rng(0)
    values = {f'bert/layer_{i}/kernel': rng.normal(size=[9, i]).astype('f') for i in range(12)}
    tf.raw_ops.SaveV2(
        prefix=path, tensor_names=[*values], shape_and_slices=[''] * 12, tensors=[*values.values()]
    )

    def read():
        with opened(path) as variables:
            for name, value in values.items():
                if name not in variables:
                    raise UserError(f'{path}: lacks it; download it again')
                np.testing.assert_array_equal(variables[name](), value)

    return folder / f'bert_model.ckpt{suffix}', read


@kind
def checkpoint_index(place):
    return checkpoint(place, '.index')


@kind
def checkpoint_data(place):
    return checkpoint(place, '.data-00000-of-00001')


def hugging_face(place, name):
    """A folder of Hugging Face's; the numbers themselves have no checksum."""
    folder = place.folder / name.partition('.')[2]
    if not folder.exists():
        shutil.copytree(os.path.join(ROOT, 'tests', 'hugging_face'), folder)
        (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    constants = place.script.Constants(data_dir=str(folder), checkpoint_path=str(folder / name))
    files = locate_files(constants)

    def read():
        with opened(files.checkpoint) as variables:
            for value in variables.values():
                assert np.isfinite(value()).all()
        keras.backend.clear_session()
        build(types.SimpleNamespace(files=files), files.checkpoint)

    return folder / name, read


@kind
def safetensors(place):
    return hugging_face(place, 'model.safetensors')


@kind
def header_of_safetensors(place):
    """The first bytes are mutated alone: they say where each value stands."""
    path, read = hugging_face(place, 'model.safetensors')
    values, header = path.read_bytes(), path.parent / 'model.safetensors.header'
    size = 8 + int.from_bytes(values[:8], 'little')
    header.write_bytes(values[:size])

    def read_joined():
        path.write_bytes(header.read_bytes() + values[size:])
        try:
            read()
        except UserError as error:
            raise UserError(f'{header}: {error}') from None

    return header, read_joined


@kind
def hdf5_of_hugging_face(place):
    return hugging_face(place, 'tf_model.h5')


@kind
def best_weights(place):
    """They are sealed: what loads is what was saved."""
    described, expected = bert.bert_digest(place.files), place.model.get_weights()
    bert.save_best(str(place.folder), place.model, described)
    other = build(place)

    def read():
        bert.load_best(str(place.folder), other, described)
        assert all(map(np.array_equal, expected, other.get_weights()))

    return place.folder / BEST, read


def original_weights(place, save_format, suffix=''):
    """What the original script has saved."""
    folder = place.folder / f'original {save_format}{suffix[:5]}'
    folder.mkdir(exist_ok=True)
    place.model.save_weights(str(folder / 'best_model.weights'), save_format=save_format)
    other = build(place)

    def read():
        bert.load_best(str(folder), other, 'some BERT')
        assert all(np.isfinite(weight).all() for weight in other.get_weights())

    return folder / f'best_model.weights{suffix}', read


@kind
def original_hdf5(place):
    return original_weights(place, 'h5')


@kind
def original_index(place):
    return original_weights(place, 'tf', '.index')


@kind
def original_data(place):
    return original_weights(place, 'tf', '.data-00000-of-00001')


@kind
def random_order(place):
    path = place.folder / 'random_order.json'
    write_json(path, np.random.default_rng(0).permutation(12).tolist())

    def read():
        assert sorted(records.load_order(str(path), 12)) == [*range(12)]

    return path, read


OFFICIAL = ''.join(f'Q{i}\t北京 {i}\t北京{i}|Beijing|{i}  \n' for i in range(12))
PREDICTED = ''.join(f'Q{i}\t北京{i}\n' for i in range(12))


@kind
def official_answers(place):
    path, data = place.folder / 'qid_answer_expand', [record(f'Q{i}') for i in range(12)]
    path.write_text(OFFICIAL, encoding='utf-8')

    def read():
        references = records.load_references(str(path), 'SogouQA.json', data)
        for reference in references.values():
            assert 0 <= score_answer('北京 1', reference).f1 <= 1
        assert references.keys() >= {entry['id'] for entry in data}

    return path, read


@kind
def predictions(place):
    path, output = place.folder / 'given.tsv', place.folder / 'scored.tsv'
    path.write_text(PREDICTED, encoding='utf-8')
    (place.folder / 'official').write_text(OFFICIAL, encoding='utf-8')
    references = load_official_answers(place.folder / 'official')

    def read():
        output.write_text('old', encoding='utf-8')
        try:
            result = evaluate(str(path), references, str(output))
        except UserError:
            assert output.read_text(encoding='utf-8') == 'old'
            raise
        rows = output.read_bytes().decode().split('\n')[:-1]
        assert result['total'] == len(rows) and {row.count('\t') for row in rows} == {6}

    return path, read


@kind
def constants_of_a_trained_reader(place):
    path = place.folder / 'output' / 'config.json'
    path.parent.mkdir(exist_ok=True)
    write_json(path, {'constants': vars(place.script.Constants(max_p_len=99)), 'versions': {}})

    def read():
        output = {'output_dir': str(path.parent)}
        check(configure(place.script.Constants, output, 'predict')[0])

    return path, read


def part(place, name, complete):
    """Answers that were interrupted, or are complete: those that are damaged are given again."""
    folder, told = place.folder / name, [{'id': f'Q{i}', 'text': f'北京{i}'} for i in range(9)]
    stem, source = str(folder / 'some'), '/data/some.json'

    def answers(start):
        yield from told[start : None if complete or start else 6]
        if not complete and not start:
            raise Killed

    def begin():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with contextlib.suppress(Killed):
            Part(stem, 'origin', source, 0, 1).write(answers(0))

    begin()
    path = folder / f'some.jsonl.0-of-1{"" if complete else ".unfinished"}'
    expected = [f'{json.dumps({**each, "file": source}, ensure_ascii=False)}\n' for each in told]

    def read():
        begun = Part(stem, 'origin', source, 0, 1)
        begun.write(iter(told[len(begun.lines) :]))
        begun.join()
        assert (folder / 'some.jsonl').read_text(encoding='utf-8') == ''.join(expected)
        lines = (folder / 'some.tsv').read_text(encoding='utf-8').splitlines()
        assert lines == [f'{each["id"]}\t{each["text"]}' for each in told]
        assert sorted(os.listdir(folder)) == ['some.jsonl', 'some.tsv']
        os.remove(folder / 'some.jsonl')
        os.remove(folder / 'some.tsv')

    return path, read


@kind
def unfinished_part(place):
    return part(place, 'unfinished part', complete=False)


@kind
def complete_part(place):
    return part(place, 'complete part', complete=True)


@kind
def answers_to_another_file(place):
    path = place.folder / 'other' / 'some.jsonl'
    path.parent.mkdir(exist_ok=True)
    write_json(path, {'id': 'a', 'text': '北京', 'file': '/data/some.json'})
    return path, lambda: Part(str(path.parent / 'some'), 'origin', '/data/some.json', 0, 1)


def backups_in(folder, value=0.0):
    """The Backups of a training of one variable, and the variable."""
    variable = tf.Variable(value)
    checkpoint = tf.train.Checkpoint(x=variable)
    fixed = {'seed': 1, 'the data': 'some data'}
    return Backups(str(folder), checkpoint, State(), fixed, lambda: None, True), variable


def backup(place, name):
    """A backup, of which one file is damaged; all have checksums."""
    folder = place.folder / f'backup {name[:9]}'
    folder.mkdir(exist_ok=True)
    (folder / BEST).touch()
    backups, _ = backups_in(folder, 7.0)
    backups.state.step, backups.state.best = 8, 0.5
    backups.state.log.append({'epoch': 1, 'loss': 2.5, 'val_Final': 0.5})
    backups.write()

    def read():
        again, variable = backups_in(folder)
        again.restore()
        assert again.state == backups.state and variable.numpy() == 7

    return folder / 'backup-8-1' / name, read


@kind
def state_of_a_backup(place):
    return backup(place, 'state.json')


@kind
def index_of_a_backup(place):
    return backup(place, 'weights.index')


@kind
def weights_of_a_backup(place):
    return backup(place, 'weights.data-00000-of-00001')


# ---------------------------------------------------------------------------------- bytes at random


def named_of(path):
    """What must name a file: of a checkpoint or a backup all that belongs to it."""
    name = path.parent if path.parent.name.startswith('backup-') else path
    return re.sub(r'\.(index|data-00000-of-00001)$', '', str(name))


def heap_is_sound(content, sound):
    """Whether HDF5's heap of texts is as it was, in which the library may search for ever."""
    start = sound.find(b'GCOL')
    return start < 0 or sound[start : start + 4096] in content


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize('name', KINDS)
def test_damaged_file_is_read_right_or_refused_in_one_line(place, capsys, name, count):
    """Neither another exception, nor a hang, nor a piece of a file left behind."""
    path, read = KINDS[name](place)
    sound, told, number = path.read_bytes(), collections.Counter(), 0
    assert outcome(read, named_of(path)) == 'right'
    while told.total() < count:
        number += 1
        content = mutated(sound, random.Random(f'{name} {number}'))
        if name == 'original hdf5' and not heap_is_sound(content, sound):
            continue
        path.write_bytes(content)
        try:
            told[outcome(read, named_of(path))] += 1
        except Exception as error:
            pytest.fail(f'{name}, input {number}: {type(error).__name__}: {error}')
    assert not [*place.folder.rglob('.unfinished*')]
    path.write_bytes(sound)
    if count > 100:
        with capsys.disabled():
            print(f'\n  {name}: {told["right"]} right, {told["refused"]} refused ', end='')


# ----------------------------------------------------------------------------- types at every level

TEXTS = st.text(st.characters(exclude_categories=()), max_size=6) | st.sampled_from(
    ['', ' ', '\ud800', '\0', '北京', '在 北京', '\ufeff', 'a\tb', 'a\nb', '\x85', '9' * 5000]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2, 3, 1.0, 10**9, 2**63, 1e300])
SIMPLE = st.none() | st.booleans() | NUMBERS | TEXTS
FLAT = SIMPLE | st.lists(SIMPLE, max_size=3) | st.dictionaries(TEXTS, SIMPLE, max_size=3)
ANY = FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(TEXTS, FLAT, max_size=3)
# each in one of the places of a value, ... where nothing shall be left
CHANGES = st.lists(st.tuples(st.integers(0, 999), ANY | TEXTS | NUMBERS | st.just(...)), max_size=3)
EXAMPLES = [pytest.param(50, id='few'), pytest.param(1500, id='many', marks=pytest.mark.slow)]


def places_of(value, keys=()):
    """Yield the place of all that a value of JSON holds, a tuple of keys."""
    yield keys
    entries = {dict: dict.items, list: enumerate}.get(type(value), lambda _: [])(value)
    for key, entry in entries:
        yield from places_of(entry, (*keys, key))


def changed(value, changes):
    """Return a value of JSON with some changes."""
    whole = [copy.deepcopy(value)]
    for number, new in changes:
        places = [*places_of(whole)][1:]
        *keys, last = places[number % len(places)] if places else [0]
        inner = functools.reduce(lambda found, key: found[key], keys, whole)
        if new is not ...:
            inner[last] = new
        elif keys:
            del inner[last]
    return whole[0]


def explore(value, count, read, path, capsys):
    """Write a value as JSON with some changes, read it, and count what became of it."""
    told = collections.Counter()

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(CHANGES)
    def run(changes):
        path.write_text(json.dumps(changed(value, changes)), encoding='utf-8')
        told[outcome(read, path)] += 1

    run()
    assert told['right'] and told['refused']
    if count > 200:
        with capsys.disabled():
            print(f'\n  {path.name}: {told["right"]} right, {told["refused"]} refused ', end='')


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize('count', EXAMPLES)
def test_dataset_may_hold_any_type_at_any_level(tmp_path, capsys, labelled, count):
    path = tmp_path / 'some.json'
    odd = {
        **record_of(('在北京 上海', ['北京', '上海']), ('犇', '犇')),
        'id': 'b',
        'url': {'a': [1]},
    }
    explore([record('a'), odd], count, lambda: read_dataset(path, labelled), path, capsys)


@pytest.mark.parametrize('count', EXAMPLES)
def test_configuration_may_hold_any_type(place, tmp_path, capsys, count):
    """Sizes that would take all memory too; names that only bert4keras knows are passed over."""
    path = tmp_path / 'bert_config.json'
    sound = json.loads((place.folder / 'bert_config.json').read_text(encoding='utf-8'))
    sound |= {'name': 'some', 'with_pool': True, 'layers': None, 'application': 'lm', 'model': 't5'}
    files = place.files._replace(config=str(path))

    def read():
        keras.backend.clear_session()
        build(types.SimpleNamespace(files=files))
        bert.bert_digest(files)

    explore(sound, count // 3, read, path, capsys)


@pytest.mark.parametrize('count', EXAMPLES)
def test_constants_of_a_trained_reader_may_hold_any_type(script, tmp_path, capsys, count):
    path = tmp_path / 'config.json'

    def read():
        check(configure(script.Constants, {'output_dir': str(tmp_path)}, 'predict')[0])

    kept = {name: getattr(script.Constants, name) for name in ('max_p_len', 'max_a_len', 'mode')}
    explore({'constants': kept, 'versions': {}}, count, read, path, capsys)


@pytest.mark.parametrize('count', EXAMPLES)
def test_random_order_may_hold_any_type(tmp_path, capsys, count):
    path = tmp_path / 'random_order.json'

    def read():
        order = records.load_order(str(path), 3)
        assert sorted(order) == [0, 1, 2] and {*map(type, order)} == {int}

    explore([2, 0, 1], count, read, path, capsys)


# ----------------------------------------------------------------------------- datasets as they are

PAIR = [record('a'), record_of(('在 北京', '北京'), question_id='b')]
SOUND = json.dumps(PAIR, ensure_ascii=False, indent=1)
NESTED = '{"a": ' * 40 + '[' * 60 + ']' * 60 + '}' * 40  # 100 levels


def with_extra(text):
    """The text of a dataset of which a record has something more."""
    return SOUND.replace('"id": "a"', f'"id": "a", "extra": {text}')


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (SOUND.encode('utf-8-sig'), ''),
        (SOUND.replace('\n', '\r\n').encode(), ''),
        (SOUND.encode('utf-16'), 'not UTF-8 at byte 0; save it as UTF-8'),
        (SOUND.encode('utf-16-le'), 'not UTF-8 at byte '),
        (SOUND.encode('gb18030'), 'not UTF-8 at byte '),
        (SOUND.replace('北', '\0').encode(), 'not JSON at line '),
        (SOUND.replace('北', '\\u0000').encode(), ''),
        (
            SOUND.replace('北', '\\ud800').encode(),
            'record 1 of 2: "passage" of passage 1 holds half',
        ),
        (with_extra('9' * 10_000).encode(), 'nested too deeply, or a number too long'),
        (with_extra('[NaN, -Infinity, 1e999]').encode(), ''),
        (SOUND.replace('"a"', 'NaN').encode(), 'record 1 of 2: "id" is a number'),
        (with_extra('0, "id": "c"').encode(), ''),
        (with_extra('0, "id": "\\ufeffa"').encode(), 'record 1 of 2: "id" holds a tab'),
        (with_extra(NESTED[6:-1]).encode(), ''),
        (with_extra(NESTED).encode(), 'record 1 of 2 is nested deeper than 100 levels'),
        (b'[' * 100_000, 'nested too deeply'),
        (b'\0' * 1000, 'not JSON at line 1'),
        (b'', 'not JSON at line 1'),
        (b'[{}]', 'no record has question and passages'),
        (b'{"' + b'x' * 10**6 + b'": 1}', 'expected a list of records'),
        (b'[{"' + b'x' * 10**6 + b'": 1}]', f"keys: '{'x' * 30}'; expected"),
    ],
    ids=range(21),
)
def test_dataset_as_it_may_come_is_read_or_says_why_not(tmp_path, content, said):
    path = tmp_path / 'some.json'
    path.write_bytes(content)
    for labelled in True, False:
        if said:
            message = refusal(read_dataset, str(path), labelled)
            assert message.startswith(f'{path}: ') and said in message and len(message) < 500
        else:
            read_dataset(path, labelled)


def test_dataset_that_ends_anywhere_is_refused(tmp_path):
    """After any byte but those of the last white space."""
    path, content = tmp_path / 'some.json', SOUND.encode()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert outcome(lambda: read_dataset(path, True), path) == 'refused', size


def test_record_is_refused_by_how_deep_it_is_not_by_where_it_is_read(tmp_path):
    """What Python can read, it could not write where its stack is higher."""
    path, told = tmp_path / 'some.json', []
    for depth in [*range(90, 110), *range(700, 1000)]:
        path.write_text(with_extra('[' * depth + ']' * depth), encoding='utf-8')
        told.append(outcome(lambda: read_dataset(path, True), path))
    assert told == ['right'] * 10 + ['refused'] * (len(told) - 10)


@pytest.mark.parametrize(('answer', 'count'), [('天津', 10_000), ('天津{}', 5_000)])
def test_thousands_of_passages_are_looked_through_at_once(tmp_path, answer, count):
    """Also for answers that none of them holds."""
    passages = [(f'人口在北京{i}', answer.format(i)) for i in range(count)]
    long = record_of(('人' * 10**6, '人口'), question_id='b')
    write_json(tmp_path / 'some.json', [record_of(*passages), long])
    read = functools.partial(read_dataset, tmp_path / 'some.json', True)
    assert outcome(read, '', seconds=20) == 'right'


# ------------------------------------------------------------------------------- the whole command


@pytest.fixture(scope='module')
def output(place):
    """What `train` leaves that a reader needs."""
    folder = place.folder / 'whole command'
    folder.mkdir()
    constants = place.script.Constants(
        output_dir=str(folder), max_p_len=20, max_q_len=9, max_a_len=4, checkpoint_path=''
    )
    write_config(constants, place.files, [])
    bert.save_best(str(folder), place.model, bert.bert_digest(place.files))
    return folder


READER_FILES = BEST, 'config.json', 'bert_config.json', 'vocab.txt'
ANSWERS = [5, None, ['北京', '上海'], [1, ['x']], {}, True, '\ud800', 1e999]
QUESTION = '--question=中国人口在哪里？', '--passage=人口在北京'


def says_why_not(script, *arguments):
    """Call the script, which must refuse; return its line."""
    status, last_line, err = call(script, *arguments)
    assert (status, last_line) == (2, []) and 'Traceback' not in err, err
    return err.splitlines()[-1]


@pytest.mark.parametrize('damaged', READER_FILES)
@pytest.mark.parametrize('content', [b'', b'{}', b'[' * 9999, b'\x1f\x8b', b'\xff', 500])
def test_reader_with_a_damaged_file_says_which(script, output, tmp_path, damaged, content):
    folder = shutil.copytree(output, tmp_path / 'output')
    path, sound = folder / damaged, (folder / damaged).read_bytes()
    path.write_bytes(
        content if isinstance(content, bytes) else sound[: min(content, len(sound) - 9)]
    )
    line = says_why_not(script, 'predict', *QUESTION, f'--output_dir={folder}')
    assert line.startswith(f'{path}: ') and CURE.search(line)
    assert not [*folder.glob('.unfinished*')]


@pytest.mark.parametrize('swapped', [*itertools.combinations(READER_FILES, 2)])
def test_reader_whose_files_are_swapped_says_so(script, output, tmp_path, swapped):
    folder = shutil.copytree(output, tmp_path / 'output')
    one, other = (folder / name for name in swapped)
    one_content = one.read_bytes()
    shutil.move(other, one)
    other.write_bytes(one_content)
    line = says_why_not(script, 'predict', *QUESTION, f'--output_dir={folder}')
    assert line.startswith((f'{one}: ', f'{other}: ')) and CURE.search(line)


def test_questions_without_an_end_are_answered(script, output, tmp_path):
    """Passages by the thousand and of a megabyte, plain strings, answers of any type."""
    passages = [
        '人口在北京',
        {'passage': '在上海'},
        *({'passage': '在', 'answer': x} for x in ANSWERS),
    ]
    data = [
        {'id': 'a\u2028b', 'question': '在哪里？', 'passages': passages},
        {'id': 'b', 'question': '谁' * 10**5, 'passages': ['人口在北京，上海' * 42_000]},
        {'id': 'c', 'question': '谁？', 'passages': [f'在{i}' for i in range(10_000)]},
        {'id': 'd', 'question': '谁？', 'passages': ['', '\0', ' ']},
        {'id': 'e', 'question': '谁？', 'passages': []},
    ]
    (tmp_path / 'questions.json').write_text(json.dumps(data), encoding='utf-8')
    folder = shutil.copytree(output, tmp_path / 'output')
    arguments = 'predict', tmp_path / 'questions.json', f'--output_dir={folder}', '--report=9'
    status, _, err = call(script, *arguments)
    assert status == 0, err
    lines = (folder / 'answers_to_questions.tsv').read_bytes().decode().split('\n')
    assert [line.split('\t')[0] for line in lines] == ['a\u2028b', 'b', 'c', 'd', 'e', '']


def test_share_of_answered_questions_counts_each_once(script, place, tmp_path, capsys):
    """Whatever an id holds that some take for the end of a line."""
    constants = script.Constants(output_dir=str(tmp_path), max_p_len=20, max_q_len=9, max_a_len=4)
    tokenizer, _, _ = bert.load_tokenizer(place.files.vocabulary)
    reader = script.ReadingComprehension(place.model, tokenizer, constants)
    data = [{**record('a\u2028b\x0c'), 'passages': []}, {**record('c\x85d'), 'passages': []}]
    script.score_validation(reader, data, records.dataset_answers(data))
    assert json.loads(capsys.readouterr().out)['Answered'] == 0
