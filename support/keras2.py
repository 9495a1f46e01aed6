"""Keras 2 set up for bert4keras, quietly: take `tf`, `keras` and `bert4keras` from here.

Whatever the environment holds for other programs that use Keras, bert4keras or TensorFlow.
"""

import contextlib
import importlib.metadata
import os
import re
import signal
import sys
import warnings

from .console import open_closed_streams

# what TensorFlow says in good times, of its versions and the machine
GOOD_NEWS = rb'(?m)^(WARNING: All log messages before absl|[IW]\d{4} |To enable the following).*\n?'


@contextlib.contextmanager
def environment(**values):
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def unheard():
    """Keep what is said to descriptor 2 from being heard, unless it ends in an error or a crash.

    No setting silences what TensorFlow says while it is imported, but where a processor lacks an
    instruction these are its last words. So another process has them in keeping.
    """
    if not hasattr(os, 'fork'):  # Windows
        yield
        return
    open_closed_streams()
    reader, writer = os.pipe()
    keeper = os.fork()
    if not keeper:
        _say_last_words(reader, writer)
    os.close(reader)
    stderr = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)  # before the pipe ends, and it would speak
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored
            os.waitpid(keeper, 0)


def _say_last_words(reader, writer):
    """Wait for the end of what is said, then say it, and end this process."""
    try:
        os.close(writer)
        with open(reader, 'rb') as file:
            said = file.read()
        os.write(2, re.sub(GOOD_NEWS, b'', said))
    finally:
        os._exit(0)


# bert4keras needs today's tf-keras under the name `keras` and with a version that ends in `tf`
os.environ['TF_USE_LEGACY_KERAS'] = '1'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
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
with environment(**_own), warnings.catch_warnings():
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

__all__ = ['bert4keras', 'keras', 'tf']
