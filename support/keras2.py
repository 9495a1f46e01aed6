"""Keras 2 set up for bert4keras, quietly: take `tf`, `keras` and `bert4keras` from here.

Whatever the environment holds for other programs that use Keras, bert4keras or TensorFlow.
"""

import contextlib
import faulthandler
import importlib.metadata
import os
import sys
import warnings


@contextlib.contextmanager
def unheard():
    """Keep what goes to descriptor 2 in a pipe, and show it only if an exception comes.

    No setting silences what TensorFlow says while it is imported. What it says before a crash is
    lost; Python's faulthandler tells where that was.
    """
    try:
        os.fstat(2)
    except OSError:  # it is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    stderr = os.dup(2)
    if not faulthandler.is_enabled():
        faulthandler.enable(stderr)  # which stays open for it
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # what would not fit, 64 KiB do, is lost
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
    except BaseException:
        os.dup2(stderr, 2)  # or reading would wait for more
        os.write(2, os.read(reader, 2**16))
        raise
    finally:
        os.dup2(stderr, 2)
        os.close(reader)


def lacks_avx():
    """Whether this is a processor on which TensorFlow's packages crash, as far as Linux says."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        flags = next((line for line in file if line.startswith('flags')), 'avx')  # of x86 alone
        return 'avx' not in flags.split()
    return False


# bert4keras needs today's tf-keras under the name `keras` and with a version that ends in `tf`
os.environ['TF_USE_LEGACY_KERAS'] = '1'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.pop('TF_XLA_FLAGS', None)  # an unknown one ends the process; reading gets slow
# off by default where AVX-512 VNNI is missing: products go piece by piece, and nothing is fused
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
# else large tensors go back to the system, and every operation pays for fresh pages
os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')
# some file systems have no locks
os.environ.setdefault('HDF5_USE_FILE_LOCKING', 'FALSE')
_own = {
    # only 0.11.5 is to take `tensorflow.keras`
    'TF_KERAS': str(int(importlib.metadata.version('bert4keras') != '0.8.1')),
    'RECOMPUTE': '0',
    'SETUPTOOLS_USE_DISTUTILS': 'local',  # bert4keras imports distutils
    'TF_FUNCTION_JIT_COMPILE_DEFAULT': '0',  # XLA cannot compile what reading needs
    'KERAS_HOME': os.devnull,  # no keras.json of other programs is read, nor is one written
}
_unset = ['PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION']  # cpp is in no package any more
_others = {name: os.environ.pop(name) for name in [*_own, *_unset] if name in os.environ}
os.environ.update(_own)
if lacks_avx():
    line = 'the processor lacks AVX, which TensorFlow needs; if it crashes now, use another one'
    print(line, file=sys.stderr, flush=True)
with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # they may be errors
    with unheard():
        import setuptools  # noqa: F401, brings back distutils
        import tensorflow as tf
        import tf_keras as keras

    keras.backend.set_floatx('float32')  # imported before, it may know the others' configuration
    keras.__version__ += '-tf'
    sys.modules['keras'] = keras
    _names = 'activations, backend, callbacks, initializers, layers, models, optimizers, utils'
    for _name in _names.split(', '):
        sys.modules[f'keras.{_name}'] = getattr(keras, _name)

    import bert4keras.backend
    import bert4keras.models
    import bert4keras.snippets
    import bert4keras.tokenizers

for _name in _own:
    del os.environ[_name]
os.environ.update(_others)
__all__ = ['bert4keras', 'keras', 'tf']
