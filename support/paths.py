"""Which files the constants mean; not what is in them."""

import collections
import os
import re

from evaluate_sogou import UserError

from .trained import CONFIG, EARLIER, READER, VOCABULARY, WEIGHTS, is_reader, refuse_earlier

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'data')
FILE_NAMES = {
    'webqa': 'WebQA.json', 'sogouqa': 'SogouQA.json', 'config': 'bert_config.json',
    'checkpoint': 'bert_model.ckpt', 'vocabulary': VOCABULARY,
    'official_answers': 'qid_answer_expand',
}  # fmt: skip
ORIGINAL = 'best_model.weights'  # what the original script has saved


class Files(collections.namedtuple('Files', [*FILE_NAMES, 'demo'])):
    """The paths that the constants mean, none of which need exist, and whether it is the demo."""


def locate_files(constants, command='train'):
    """Return the Files that a command means: the demo's as long as data/ holds no real ones.

    All but `train` mean the weights that it has left in `output_dir`. Configuration and vocabulary
    stand beside the weights, where they stand there. Raises UserError for weights of another kind,
    and where `train` would write over what it trains from.
    """
    refuse_earlier(os.path.join(constants.output_dir, EARLIER))
    given = {
        'config': constants.config_path,
        'checkpoint': _weights(constants.checkpoint_path),
        'vocabulary': constants.dict_path,
    }
    named = {constants.data_dir, *given.values()} - {'auto'}
    if is_reader(constants.checkpoint_path):  # on any data, also the demo's
        named.discard(given['checkpoint'])
    if command != 'train':
        given['checkpoint'] = _weights(constants.output_dir, of_reader=True)
        if is_reader(constants.output_dir):  # which has its own
            given.update(config='auto', vocabulary='auto')
    real = [os.path.join(DATA, name) for name in list(FILE_NAMES.values())[:5]]
    folder, demo_folder = constants.data_dir, os.path.join(DATA, 'demo')
    demo = not named and os.path.isdir(demo_folder) and not any(map(exists, real))
    if folder == 'auto':
        folder = demo_folder if demo else DATA
    files = Files(*(os.path.join(folder, name) for name in FILE_NAMES.values()), demo)
    if given['checkpoint'] not in ('auto', ''):
        files = files._replace(**_beside(given['checkpoint']))
    if command == 'train' and (constants.train_data == 'auto') != (constants.valid_data == 'auto'):
        raise UserError('train_data and valid_data: give both, or none')
    if constants.valid_data != 'auto':
        answers = f'{constants.valid_data}.answers'  # as data/convert.py calls them
        files = files._replace(sogouqa=constants.valid_data, official_answers=answers)
    if constants.train_data != 'auto':
        files = files._replace(webqa=constants.train_data)
    files = files._replace(**{name: path for name, path in given.items() if path != 'auto'})
    if command == 'train':
        _refuse_overwriting(files, constants.output_dir)
    return files


def _refuse_overwriting(files, output_dir):
    """Raise UserError where a plain BERT that is used stands where the trained reader will."""
    for path in files.config, files.checkpoint, files.vocabulary:
        folder, name = os.path.split(path)
        ours = name in (WEIGHTS, CONFIG, VOCABULARY) and os.path.isfile(path)
        there = os.path.realpath(folder) == os.path.realpath(output_dir)
        if ours and there and not is_reader(path):
            raise UserError(f'{path}: train would write over it; choose another output_dir')


def train_paths(constants, files):
    """Return the paths of the data to train on beside SogouQA, or instead of it."""
    return [files.webqa] if constants.train_data == 'auto' else constants.train_data.split(',')


def _weights(path, of_reader=False):
    """Return which file is meant by a folder, or by any file of a checkpoint.

    of_reader: whether it is the folder of a trained reader. Raises UserError for a pickle, which
    may do anything when it is read.
    """
    if path in ('auto', ''):
        return path
    if of_reader or os.path.isdir(path):
        names = WEIGHTS, ORIGINAL
        if not of_reader:
            names = WEIGHTS, 'tf_model.h5', FILE_NAMES['checkpoint'], EARLIER, 'pytorch_model.bin'
        there = [name for name in names if exists(os.path.join(path, name))]
        path = os.path.join(path, (there or names)[0])
    refuse_earlier(path)
    if path.endswith('.bin'):
        folder = os.path.dirname(path) or '.'
        model = f"BertForPreTraining.from_pretrained('{folder}').save_pretrained('{folder}')"
        convert = f'python -c "from transformers import BertForPreTraining; {model}"'
        what = 'a pickle, which may run any program; convert it'
        raise UserError(f'{path}: {what}, where torch and transformers are installed: {convert}')
    return re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)


def _beside(weights):
    """Return {'config', 'vocabulary'}, as far as they stand beside some weights."""
    folder, found = os.path.dirname(weights), {}
    names = [('config', CONFIG), ('config', FILE_NAMES['config']), ('vocabulary', VOCABULARY)]
    if is_reader(weights):
        del names[1]
    for name, filename in names:
        if os.path.isfile(os.path.join(folder, filename)):
            found[name] = os.path.join(folder, filename)
    return found


def exists(path):
    """Whether a file, or a checkpoint of that name, exists."""
    return os.path.isfile(path) or os.path.isfile(f'{path}.index')


def require(*paths):
    """Raise UserError that lists what is missing of `paths`; '' means that none is needed."""
    missing = [path for path in paths if path and not exists(path)]
    if missing:
        cure = 'data/README.md says where to download it, or check the path'
        raise UserError(f'missing: {", ".join(missing)}; {cure}')


def require_reader(files):
    """Raise UserError where there is no trained reader, but perhaps a BERT that cannot read."""
    folder, name = os.path.split(files.checkpoint)
    for needed in (WEIGHTS, READER) if name == WEIGHTS else (name,):
        path = os.path.join(folder, needed)
        if not exists(path):
            raise UserError(f'{path}: no such file; run train first, or give its output_dir')
    require(files.config, files.vocabulary)


def require_order(constants):
    """Raise UserError where validation questions are to be split off in an order that has gone."""
    order = os.path.join(constants.output_dir, 'random_order.json')
    if constants.valid_data == 'auto' and not os.path.exists(order):
        raise UserError(f'{order}: no such file; copy it from where the weights were trained')
