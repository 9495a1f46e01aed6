"""The weights that a BERT is published with, by their names in Google's BERT; not their use."""

import contextlib
import functools
import re

import h5py
import numpy as np
import safetensors

from evaluate_sogou import UserError

from .files import first_line, plainly_named
from .keras2 import tf

# of the libraries that read them
ERRORS = (
    OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError,
    safetensors.SafetensorError, tf.errors.OpError,
)  # fmt: skip
CURE = 'download it again, see data/README.md'
# what makes a name of Hugging Face's, PyTorch's or TensorFlow's, one of Google's
RULES = (
    (r':0$', ''),
    (r'\.', '/'),
    (r'^(.*\bbert/)?(?=(embeddings|encoder|pooler)/)', 'bert/'),
    (r'^.*cls/(?=(predictions|seq_relationship)/)', 'cls/'),
    (r'/layer(_/_|/)(\d+)/', r'/layer_\2/'),
    (r'/LayerNorm/weight$', '/LayerNorm/gamma'),
    (r'/LayerNorm/bias$', '/LayerNorm/beta'),
    (r'_embeddings/(weight|embeddings)$', '_embeddings'),
    (r'^cls/predictions/(decoder/)?bias$', 'cls/predictions/output_bias'),
)


@contextlib.contextmanager
def opened(path):
    """Open a BERT's weights: model.safetensors, tf_model.h5, or TensorFlow's checkpoint.

    Yields {Google's name: function that reads the value, float32}. Raises UserError where it is
    none of these.
    """
    with contextlib.ExitStack() as stack:
        try:
            names, read = _open(path, stack)
        except ERRORS as error:
            what = f'no weights of a BERT ({first_line(error)})'
            raise UserError(f'{path}: {what}; {CURE}') from None
        variables = {}
        for name in names:
            known = name
            for pattern, replacement in RULES:
                known = re.sub(pattern, replacement, known)
            # PyTorch's linear layers have a row for each output
            is_transposed = known.endswith('/weight')
            known = re.sub('/weight$', '/kernel', known)
            variables[known] = functools.partial(_read, path, read, name, is_transposed)
        yield variables


def _open(path, stack):
    """Return the names of all values and a function that reads one by its name."""
    if path.endswith('.safetensors'):
        file = stack.enter_context(safetensors.safe_open(path, 'numpy'))
        return list(file.keys()), file.get_tensor
    if path.endswith('.h5'):
        file, names = stack.enter_context(h5py.File(path)), []

        def note(name, entry):
            if isinstance(entry, h5py.Dataset) and isinstance(name, str):  # bytes: no text
                names.append(name)

        file.visititems(note)
        return names, lambda name: file[name][()]
    reader = tf.train.load_checkpoint(stack.enter_context(plainly_named(path)))
    return list(reader.get_variable_to_shape_map()), reader.get_tensor


def _read(path, read, name, is_transposed):
    try:
        value = np.asarray(read(name), np.float32)
    except ERRORS as error:
        what = f'{name} cannot be read ({first_line(error)})'
        raise UserError(f'{path}: {what}; {CURE}') from None
    if not np.isfinite(value).all():
        raise UserError(f'{path}: {name} holds what is no number; {CURE}')
    return value.T if is_transposed else value
