"""Which files the constants mean; what is in them only as far as that tells it."""

import collections
import dataclasses
import glob
import os
import re

from evaluate_sogou import UserError

from .files import read_text
from .trained import AGAIN, CONFIG, READER, VOCABULARY, WEIGHTS, is_reader

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'data')
# in a folder of data
FILE_NAMES = {
    'webqa': 'WebQA.json', 'sogouqa': 'SogouQA.json', 'config': 'bert_config.json',
    'checkpoint': 'bert_model.ckpt', 'vocabulary': VOCABULARY,
    'official_answers': 'qid_answer_expand',
}  # fmt: skip
ORIGINAL = 'best_model.weights'  # what the original script has saved
EARLIER = 'best_model.weights.h5'  # what an earlier version of this one has
SHARDS = '.index.json'  # ends the name of what says which weights are in which of several files
STATE = 'checkpoint'  # TensorFlow's note which of the checkpoints beside it is the last
TRAINED_WEIGHTS, TRAINED_BERT = (WEIGHTS, ORIGINAL, EARLIER), (WEIGHTS, CONFIG, VOCABULARY)
# the constant that names a file of a BERT; its name in a folder, the first that exists, or else
# that of the only one like a pattern
BERT_FILES = {
    'checkpoint': (
        'checkpoint_path', FILE_NAMES['checkpoint'], WEIGHTS, WEIGHTS + SHARDS, 'tf_model.h5',
        'tf_model.h5' + SHARDS, STATE, EARLIER, 'pytorch_model.bin', 'pytorch_model.bin' + SHARDS,
        '*.ckpt*.index', '*.safetensors',
    ),
    'config': ('config_path', FILE_NAMES['config'], CONFIG, '*config*.json'),
    'vocabulary': ('dict_path', VOCABULARY, 'tokenizer.json', '*vocab*.txt'),
}  # fmt: skip


class Files(collections.namedtuple('Files', [*FILE_NAMES, 'demo'])):
    """The paths that the constants mean, none of which need exist, and whether it is the demo.

    Lists of paths: webqa, to train on; sogouqa, to split or, with `valid_data`, to validate on;
    official_answers, those to the questions of each of sogouqa.
    """

    @property
    def dataset(self):
        """What is scored, a str."""
        return ', '.join(self.sogouqa)


def locate_files(constants, command='train'):
    """Return the Files that a command means: the demo's as long as data/ holds no real ones.

    All but `train` mean the weights that it has left in `output_dir` or, where it holds none, in
    `checkpoint_path`. Configuration and vocabulary stand beside weights that are given: those of
    the data may be another BERT's. Raises UserError for weights of another kind, and where `train`
    would write over what it trains from.
    """
    is_training = command == 'train'
    if is_training and constants.train_data == 'auto' and constants.valid_data != 'auto':
        raise UserError('valid_data: give train_data too, or neither')
    given = constants.config_path, constants.checkpoint_path, constants.dict_path
    demo_folder, folder = os.path.join(DATA, 'demo'), constants.data_dir
    # a trained reader is used with any data, also the demo's
    real = folder != 'auto' or not all(path == 'auto' or is_reader(path) for path in given)
    real |= any(exists(os.path.join(DATA, name)) for name in [*FILE_NAMES.values()][:5])
    demo = os.path.isdir(demo_folder) and not real
    if folder == 'auto':
        folder = demo_folder if demo else DATA
    trained = _meant(_first(_reader_folder(constants), TRAINED_WEIGHTS))
    paths, folders = {}, [folder]
    for kind, (constant, *_) in BERT_FILES.items():
        path = getattr(constants, constant)
        if not is_training and (kind == 'checkpoint' or is_reader(trained)):
            path = trained if kind == 'checkpoint' else 'auto'  # a reader has its own
        if path == 'auto':
            found = [_meant(_in_folder(each, kind)) for each in folders]
            paths[kind] = next(filter(exists, found), found[0])
            continue
        paths[kind] = path = _meant(_in_folder(path, kind) if os.path.isdir(path) else path)
        if kind == 'checkpoint' and path and (exists(path) or is_reader(path)):
            # what stands beside weights that are named is meant, not what may be another BERT's
            is_whole = is_training or is_reader(path)
            folders = [os.path.dirname(path), *[folder] * (not is_whole)]
    paths.update(_questions(constants, folder))
    files = Files(**paths, demo=demo)
    if is_training:
        _refuse_overwriting(files, constants.output_dir)
    return files


def _questions(constants, folder):
    """Return {name: list of paths} of those of Files that hold questions and their answers."""
    names = 'webqa', 'sogouqa', 'official_answers'
    paths = {name: [os.path.join(folder, FILE_NAMES[name])] for name in names}
    own = [] if constants.train_data == 'auto' else constants.train_data.split(',')
    if constants.valid_data != 'auto':
        paths.update(webqa=own, sogouqa=[constants.valid_data])
    elif own:
        paths.update(webqa=[], sogouqa=own)
    if own or constants.valid_data != 'auto':  # as data/convert.py calls them
        paths['official_answers'] = [f'{path}.answers' for path in paths['sogouqa']]
    return paths


def _refuse_overwriting(files, output_dir):
    """Raise UserError where a plain BERT that is used stands where the trained reader will."""
    output_dir = os.path.realpath(output_dir)
    written = [os.path.join(output_dir, name) for name in TRAINED_BERT]
    for path in files.config, files.checkpoint, files.vocabulary:
        if os.path.isfile(path) and os.path.realpath(path) in written and not is_reader(path):
            raise UserError(f'{path}: train would write over it; choose another output_dir')


def _first(folder, names):
    """Return the path of the file in a folder that exists, the first of several or of none."""
    paths = [os.path.join(folder, name) for name in names]
    return next(filter(exists, paths), paths[0])


def _reader_folder(constants):
    """Return the folder of the trained reader: `output_dir`, or `checkpoint_path` where none is."""
    folder, other = constants.output_dir, constants.checkpoint_path
    holds = exists(_first(folder, (*TRAINED_WEIGHTS, READER)))
    if holds or other == 'auto' or not is_reader(other):
        return folder
    return other if os.path.isdir(other) else os.path.dirname(other)


def _in_folder(folder, kind):
    """Return the path of a file of a BERT in its folder, see BERT_FILES."""
    names = BERT_FILES[kind][1:]
    if is_reader(os.path.join(folder, READER)):
        names = [name for name in names if name in TRAINED_BERT]
    path = _first(folder, names)
    like = [other for name in names if '*' in name for other in _glob(folder, name)]
    if kind == 'config':
        like = [other for other in like if '"num_hidden_layers"' in read_text(other)]
    return like[0] if len(like) == 1 and not exists(path) else path


def _glob(folder, pattern):
    return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def _meant(path):
    """Return which weights are meant by any file of them. Raises UserError for what is not read."""
    folder, name = os.path.split(path)
    if exists(path) and os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f'{path}: a pipe, and it is read several times; write it to a file')
    if name == STATE and os.path.isfile(path):
        named = re.search(r'^model_checkpoint_path: "(?:.*/)?(.+)"', read_text(path), re.MULTILINE)
        return os.path.join(folder, named[1]) if named else path
    if name == EARLIER:
        what = 'weights in the format of an earlier version, which is no longer read'
        raise UserError(f'{path}: {what}; train again, in another output_dir')
    path = re.sub(r'-\d{5}-of-\d{5}(\.\w+)$', rf'\1{SHARDS}', path)
    if path.removesuffix(SHARDS).endswith('.bin'):
        folder = folder or '.'
        model = f"BertForPreTraining.from_pretrained('{folder}').save_pretrained('{folder}')"
        convert = f'python -c "from transformers import BertForPreTraining; {model}"'
        what = 'a pickle, which may run any program; convert it'
        raise UserError(f'{path}: {what}, where torch and transformers are installed: {convert}')
    return re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)


def exists(path):
    """Whether a file, a pipe, or a checkpoint of that name exists."""
    is_there = os.path.exists(path) and not os.path.isdir(path)
    return is_there or os.path.isfile(f'{path}.index')


def is_lasting(path):
    """Whether the same file will be there another time: not in a pipe, nor where streams are."""
    stream = r'/dev/std\w+|/(dev|proc/\w+)/fd/\d+'
    return os.path.isfile(path) and not re.fullmatch(stream, os.path.abspath(path))


def require(*paths, constants=None, cure=None):
    """Raise UserError that lists what is missing of `paths`; '' means that none is needed.

    constants: those of them that name data that is missing are told, unless None.
    """
    missing = [path for path in paths if path and not exists(path)]
    if not missing:
        return
    by = {}  # {path: the constant that names it}
    if constants:
        by = {os.path.join(constants.data_dir, name): 'data_dir' for name in FILE_NAMES.values()}
        by.update(dict.fromkeys(constants.train_data.split(','), 'train_data'))
        by[constants.valid_data] = 'valid_data'
        if constants.checkpoint_path in missing:  # the rest of that BERT was sought elsewhere then
            missing = [constants.checkpoint_path]
            by[constants.checkpoint_path] = 'checkpoint_path'
    listed = [f'{path} (named by {by[path]})' if path in by else path for path in missing]
    if {*map(by.get, missing)} <= {'train_data', 'valid_data', 'checkpoint_path'}:
        cure = 'check the path, or give another'
    lines = [f'missing: {", ".join(listed)}']
    lines.append(cure or 'data/README.md says where to download it, or check the path')
    for path in [] if cure else missing:
        there = ', '.join(map(os.path.basename, _glob(os.path.dirname(path), '*')[:9]))
        for constant, *names in BERT_FILES.values():
            if there and os.path.basename(path) in names:
                sought = f'sought {", ".join(names)} among {there}'
                lines.append(f'{sought}; {constant} may name another')
    raise UserError('; '.join(lines))


def require_reader(files):
    """Raise UserError where there is no trained reader, but perhaps a BERT that cannot read."""
    folder, name = os.path.split(files.checkpoint)
    reader = [os.path.join(folder, READER)] if name == WEIGHTS else []
    require(files.checkpoint, *reader, cure='run train first, or give its output_dir')
    require(files.config, files.vocabulary, cure=AGAIN if reader else None)


def in_reader_folder(constants, files):
    """Return constants whose `output_dir` is that of the reader, and of its random order.

    Raises UserError where validation questions are to be split off in an order that has gone.
    """
    folder = os.path.dirname(files.checkpoint)
    if constants.valid_data == 'auto':
        order = os.path.join(folder, 'random_order.json')
        require(order, cure='copy it from where the weights were trained')
    return dataclasses.replace(constants, output_dir=folder)
