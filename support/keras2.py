"""Keras 2 set up for bert4keras, quietly: take `tf`, `keras` and `bert4keras` from here."""

import importlib.metadata
import os
import sys

# bert4keras needs today's tf-keras under the name `keras` and with a version that ends in `tf`
os.environ['TF_USE_LEGACY_KERAS'] = '1'
if importlib.metadata.version('bert4keras') != '0.8.1':
    os.environ['TF_KERAS'] = '1'  # for 0.11.5
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# off by default where AVX-512 VNNI is missing: products go piece by piece, and nothing is fused
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
# else large tensors go back to the system, and every operation pays for fresh pages
os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')
_stderr = os.dup(2)
with open(os.devnull, 'w', encoding='utf-8') as _nowhere:
    os.dup2(_nowhere.fileno(), 2)  # no setting silences what TensorFlow says while it is imported
try:
    import tensorflow as tf
    import tf_keras as keras
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
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
