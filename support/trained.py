"""A trained reader: the folder that `train` leaves, one of Hugging Face's, but for its weights."""

import dataclasses
import json
import os
import platform

from evaluate_sogou import UserError

from .files import read_text, write_durably

WEIGHTS = 'model.safetensors'
CONFIG = 'config.json'
VOCABULARY = 'vocab.txt'
READER = 'reader.json'  # by which a trained reader is told from a plain BERT
AGAIN = 'copy it again from where it was trained, or train in another output_dir'
# a run may be resumed with another value of these
MAY_DIFFER = (
    'data_dir', 'train_data', 'valid_data', 'config_path', 'checkpoint_path', 'dict_path',
    'output_dir', 'epochs', 'accumulate_steps', 'backup_minutes', 'report',
)  # fmt: skip
# what was trained is read with the values that it was trained with, unless others are given
TRAINED = 'max_p_len', 'passage_stride', 'max_q_len', 'max_a_len', 'mode', 'seed'
# so are these, which change nothing then, but are told with the answers
TRAINING = (
    'batch_size', 'epochs', 'learning_rate', 'best_by', 'valid_sample', 'warmup_steps',
    'decay_steps',
)  # fmt: skip
# which questions `eval` scores; the first that is not 'auto' decides
QUESTIONS = 'valid_data', 'train_data', 'data_dir'


def fixed(constants):
    """Return {name: value} of the constants that a run must be resumed with."""
    every = vars(constants).items()
    return {name: value for name, value in every if name not in MAY_DIFFER}


def check_names(constants):
    """Raise UserError where one of the lists above has a name that no constant has."""
    names = {field.name for field in dataclasses.fields(constants)}
    unknown = [name for name in MAY_DIFFER + TRAINED + TRAINING + QUESTIONS if name not in names]
    if unknown:
        line = f'{", ".join(unknown)}: no constant has this name'
        raise UserError(f'{line}; mend the lists in support/trained.py')


def is_reader(path):
    """Whether a path is that of a trained reader, its folder or a file in it."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    return path != '' and os.path.isfile(os.path.join(folder, READER))


def unusable(path, what, cure):
    """Return the UserError for a file; cure: what helps where it is none of a trained reader's."""
    return UserError(f'{path}: {what}; {AGAIN if is_reader(path) else cure}')


def describe(folder, sizes, tokens, constants, files, packages, left_out=None):
    """Write all but the weights of a trained reader.

    sizes: of its BERT, a dict with Hugging Face's names; tokens: of its vocabulary, a list of str.
    In reader.json stand the constants, the files used, the versions of these packages, and
    left_out, a digest of the questions that are not trained on, if it is given.
    """
    config = {
        'model_type': 'bert', 'architectures': ['BertForMaskedLM'], 'tie_word_embeddings': True,
        **sizes,
    }  # fmt: skip
    # or transformers would add a [MASK], of which the weights know nothing
    tokenizer = {'tokenizer_class': 'BertTokenizer', 'do_lower_case': True, 'mask_token': None}
    versions = {package.__name__: package.__version__ for package in packages}
    versions['python'] = platform.python_version()
    kept = vars(constants).copy()
    for name in QUESTIONS:  # `eval` may be started in another folder
        if kept[name] != 'auto':
            paths = kept[name].split(',') if name == 'train_data' else [kept[name]]
            kept[name] = ','.join(map(os.path.abspath, paths))
    used = {'constants': kept, 'files': files._asdict(), 'versions': versions}
    used['left_out'] = left_out
    write_durably(os.path.join(folder, VOCABULARY), ''.join(f'{token}\n' for token in tokens))
    contents = (CONFIG, config), ('tokenizer_config.json', tokenizer), (READER, used)
    for name, content in contents:
        text = json.dumps(content, ensure_ascii=False, indent=4)
        write_durably(os.path.join(folder, name), f'{text}\n')


def trained_constants(path, constants, check, with_questions):
    """Return {name: value} of the constants that are by a reader.json; {} where there is none.

    Those are the ones in TRAINED and TRAINING and, with_questions, the one of QUESTIONS that
    decides, unless the script names it. check: raises UserError for an object like `constants` with
    values that are not allowed. Raises UserError where it is not as `describe` wrote it.
    """
    if not os.path.exists(path):
        return {}
    text = read_text(path)
    try:
        written = json.loads(text)['constants']
        trained = {name: written[name] for name in TRAINED + TRAINING if name in written}
        for name in QUESTIONS if with_questions else ():
            own, value = getattr(constants, name), written.get(name, 'auto')
            if own != 'auto' or value != 'auto':
                trained.update({name: value} if own == 'auto' else {})
                break
        check(dataclasses.replace(constants, **trained))
    except (UserError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        what = f'not what train writes ({type(error).__name__}: {error})'
        raise UserError(f'{path}: {what}; {AGAIN}') from None
    return trained
