"""How weights are kept: files of a BERT's, read and written by their names in Google's BERT."""

import contextlib
import functools
import glob
import json
import math
import os
import re

import numpy as np
import safetensors

from . import files
from .files import durable_write, plainly_named, read_text
from .keras2 import tf
from .paths import SHARDS
from .process import first_line
from .trained import unusable

# of the libraries that read them
ERRORS = (
    OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError,
    safetensors.SafetensorError, tf.errors.OpError,
)  # fmt: skip
DOWNLOAD = 'download it again, see data/README.md'
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
    (r'/weight$', '/kernel'),
)
# what makes one of Hugging Face's of these
WRITTEN = (
    (r'_embeddings$', '_embeddings/weight'),
    (r'/layer_(\d+)/', r'/layer/\1/'),
    (r'/(kernel|gamma)$', '/weight'),
    (r'/beta$', '/bias'),
    (r'/output_bias$', '/bias'),
    (r'/', '.'),
)


@contextlib.contextmanager
def opened(path):
    """Open a BERT's weights: model.safetensors, tf_model.h5, shards, or TensorFlow's checkpoint.

    Yields {Google's name: function that reads the value, float32}, and the digest of its BERT that
    `save` was given, if any. Raises UserError where it is none of these.
    """
    file, variables, described = path, {}, None
    with contextlib.ExitStack() as stack:
        try:
            for file in _files(path):
                names, read, described = _open(file, stack)
                for name in names:
                    known = _renamed(name, RULES)
                    value = functools.partial(_read, file, read, name)
                    # what is shared stands in some files twice
                    if known in variables and not np.array_equal(variables[known](), value()):
                        what = f'{known} stands in it twice with other values, once as {name}'
                        raise unusable(file, what, 'take the weights of one BERT alone')
                    variables[known] = value
        except ERRORS as error:
            what = f'no weights of a BERT ({first_line(error)})'
            raise unusable(file, what, DOWNLOAD) from None
        yield variables, described


def _files(path):
    """Return the paths of all shards, or of the only file."""
    if not path.endswith(SHARDS):
        return [path]
    names = dict(json.loads(read_text(path))['weight_map']).values()
    return [os.path.join(os.path.dirname(path), name) for name in sorted({*names})]


def _renamed(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def save(path, variables, described):
    """Write model.safetensors, all or nothing, of {Google's name: tf.Variable} of a BERT.

    described: a digest of its configuration and vocabulary. One weight after another, which takes
    no memory; the library writes under names of its own, which a kill would leave behind. Its form:
    https://github.com/huggingface/safetensors#format. Raises UserError where it cannot be written.
    """
    header, end = {'__metadata__': {'format': 'pt', 'bert': described}}, 0
    for name, variable in variables.items():
        shape = list(variable.shape)
        begin, end = end, end + 4 * math.prod(shape)
        shape = shape[::-1] if name.endswith('/kernel') else shape
        entry = {'dtype': 'F32', 'shape': shape, 'data_offsets': [begin, end]}
        header[_renamed(name, WRITTEN)] = entry
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with durable_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for name, variable in variables.items():
            value = variable.numpy()
            value = value.T if name.endswith('/kernel') else value
            file.write(np.ascontiguousarray(value, '<f4'))  # or it would be written as it lies


def refuse_foreign_weights(path):
    """Raise UserError where a file of some weights is packed, a pointer or of another kind."""
    allowed = files.SAFETENSORS if path.endswith('.safetensors') else files.HDF5
    for part in [path] if os.path.isfile(path) else glob.glob(f'{glob.escape(path)}.[di]*'):
        content = files.read_bytes(part, 1000)
        if part == path or content.isascii():  # numbers may look like anything
            files.refuse_foreign(part, content, allowed)


def _open(path, stack):
    """Return the names of all values, a function that reads one by its name, and the digest."""
    refuse_foreign_weights(path)
    if path.endswith('.safetensors'):
        file = stack.enter_context(safetensors.safe_open(path, 'numpy'))
        return list(file.keys()), file.get_tensor, (file.metadata() or {}).get('bert')
    if path.endswith('.h5'):
        import h5py  # not before keras2 has said that Keras's own files are opened without locks

        file, entries = stack.enter_context(h5py.File(path, locking=False)), []
        file.visit(entries.append)
        names = [name for name in entries if isinstance(file[name], h5py.Dataset)]
        return names, lambda name: file[name][()], None
    reader = tf.train.load_checkpoint(stack.enter_context(plainly_named(path)))
    return list(reader.get_variable_to_shape_map()), reader.get_tensor, None


def _read(path, read, name):
    try:
        value = np.asarray(read(name))
        if value.dtype.kind in 'iu':
            raise ValueError('whole numbers: it is quantized')
        value = value.astype(np.float32, copy=False)
    except ERRORS as error:
        what = f'{name} cannot be read ({first_line(error)})'
        raise unusable(path, what, DOWNLOAD) from None
    if not np.isfinite(value).all():
        raise unusable(path, f'{name} holds what is no number', DOWNLOAD)
    # PyTorch's linear layers have a row for each output
    is_transposed = name.endswith('weight') and _renamed(name, RULES).endswith('/kernel')
    return value.T if is_transposed else value
