"""support/keras2.py: Keras 2 is there for bert4keras under its old name, and nobody hears of it."""

import importlib
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT


def python(code, *arguments, cwd, before=(), **environment):
    """Run lines of Python as a process, perhaps by a command. Returns CompletedProcess."""
    environment = {
        **os.environ, 'PYTHONPATH': ROOT, 'PYTHONDONTWRITEBYTECODE': '1', **environment,
    }  # fmt: skip
    return subprocess.run(
        [*before, sys.executable, '-c', code, *arguments],
        cwd=cwd, env=environment, capture_output=True, encoding='utf-8', check=False,
    )  # fmt: skip


def test_import_does_no_work_and_says_nothing(tmp_path):
    """TensorFlow itself would say a lot, past Python; what is said afterwards is heard again."""
    code = """
import os, task_reading_comprehension_by_seq2seq as script
os.write(2, b'the end')
assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0'
"""
    # the command line is another program's, and what it wants to hear of TensorFlow its own
    arguments, loud = ['--topk=0', 'learn'], {'TF_CPP_MIN_LOG_LEVEL': '0'}
    (tmp_path / 'home').mkdir()
    done = python(code, *arguments, cwd=tmp_path, HOME=str(tmp_path / 'home'), **loud)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', 'the end')
    assert [path.name for path in tmp_path.rglob('*')] == ['home']


FLOAT16 = '{"floatx": "float16", "epsilon": 0.001, "image_data_format": "channels_first"}'


@pytest.mark.parametrize(
    ('place', 'config'),
    [
        ('.keras', FLOAT16),
        ('.keras', '{"floatx": "bfloat16", "epsilon": 1, "image_data_format": "odd"}'),
        ('.keras', '[]'),
        ('elsewhere', FLOAT16),
    ],
)
def test_what_is_meant_for_other_programs_changes_nothing(tmp_path, place, config):
    """What the environment says of Keras, and its configuration file; they stay for the others."""
    code = """
import os
from support.keras2 import bert4keras, keras
backend = keras.backend
print(backend.floatx(), backend.epsilon(), backend.image_data_format(), keras.__name__)
print(bert4keras.backend.is_tf_keras, bert4keras.backend.do_recompute)
print(*(os.environ.get(name) for name in ('TF_KERAS', 'RECOMPUTE', 'KERAS_HOME')))
"""
    (tmp_path / place).mkdir()
    (tmp_path / place / 'keras.json').write_text(config, encoding='utf-8')
    given = {
        'HOME': str(tmp_path), 'TF_KERAS': '1', 'RECOMPUTE': 'often', 'TF_USE_LEGACY_KERAS': '0',
        'KERAS_BACKEND': 'torch', 'SETUPTOOLS_USE_DISTUTILS': 'stdlib',
    }  # fmt: skip
    if place != '.keras':
        given['KERAS_HOME'] = str(tmp_path / place)
    done = python(code, cwd=tmp_path, **given)
    assert done.stderr == '', done.stderr[-2000:]
    of_keras, of_bert4keras, left = done.stdout.splitlines()
    assert of_keras == 'float32 1e-07 channels_last tf_keras'
    assert of_bert4keras == 'False False'
    assert left == f'1 often {given.get("KERAS_HOME")}'


def test_keras_may_have_been_imported_before(tmp_path):
    """By a notebook, say: Keras 3 under its own name, and Keras 2 with another configuration."""
    code = """
import keras, tensorflow as tf, tf_keras
tf.keras.layers.Dense, tf_keras.backend.set_floatx('float16')
from support.keras2 import bert4keras
print(bert4keras.backend.keras.__name__, bert4keras.backend.K.floatx())
"""
    done = python(code, cwd=tmp_path, KERAS_BACKEND='tensorflow')
    assert done.stdout == 'tf_keras float32\n', done.stderr


def test_warnings_of_the_packages_are_no_errors(tmp_path):
    """Though the user wants to hear of his own."""
    code = (
        'import warnings; warnings.warn("old", DeprecationWarning); raise ImportError("imported")'
    )
    (tmp_path / 'tensorflow.py').write_text(code)
    path = os.pathsep.join([str(tmp_path), ROOT])
    done = python('import support.keras2', cwd=tmp_path, PYTHONPATH=path, PYTHONWARNINGS='error')
    assert done.stderr.endswith('ImportError: imported\n')


def test_switches_are_set_before_tensorflow_looks(tmp_path, monkeypatch):
    """As defaults: what the user has set stands."""
    code = "import os; raise ImportError(f'{os.environ[ONEDNN]} {os.environ[POOL]}')"
    names = "ONEDNN, POOL = 'TF_ENABLE_ONEDNN_OPTS', 'TF_CPU_ALLOCATOR_USE_BFC'"
    (tmp_path / 'tensorflow.py').write_text(f'{names}\n{code}\n')
    own = {'TF_ENABLE_ONEDNN_OPTS': '0', 'TF_CPU_ALLOCATOR_USE_BFC': 'false'}
    for name in own:
        monkeypatch.delenv(name, raising=False)
    path = os.pathsep.join([str(tmp_path), ROOT])
    for given, expected in ({}, '1 true'), (own, '0 false'):
        done = python('import support.keras2', cwd=tmp_path, PYTHONPATH=path, **given)
        assert done.stderr.endswith(f'ImportError: {expected}\n')


# TensorFlow where the processor lacks what it was compiled for, and what it says before
GOOD_NEWS = """WARNING: All log messages before absl::InitializeLog() is called are written
I0000 00:00:1795741913.849812    7288 port.cc:153] oneDNN custom operations are on.
To enable the following instructions: AVX2, rebuild TensorFlow.
"""
LAST_WORDS = 'F0000 cpu_feature_guard.cc:227] The TensorFlow library was compiled to use AVX.\n'


@pytest.mark.parametrize(
    ('end', 'status', 'heard'),
    [
        ('os.abort()', -signal.SIGABRT, LAST_WORDS),
        ('raise ImportError("broken")', 1, LAST_WORDS),
        ('os.kill(os.getpid(), signal.SIGTERM)', -signal.SIGTERM, ''),
    ],
)
def test_last_words_are_heard_and_good_news_are_not(tmp_path, end, status, heard):
    """A process that dies in TensorFlow's own code cannot repeat them."""
    said = (GOOD_NEWS + heard).encode()
    (tmp_path / 'tensorflow.py').write_text(f'import os, signal\nos.write(2, {said!r})\n{end}\n')
    path = os.pathsep.join([str(tmp_path), ROOT])
    done = python('import support.keras2', cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == status
    if status == 1:
        assert done.stderr.endswith('ImportError: broken\n')
    assert done.stderr.startswith(heard) if status == 1 else done.stderr == heard


@pytest.mark.skipif(os.name != 'posix', reason='needs a shell')
@pytest.mark.parametrize('command', ['exec "$0" "$@" 2>&-', 'trap \'\' CHLD; exec "$0" "$@"'])
def test_import_needs_neither_descriptor_2_nor_news_of_children(tmp_path, command):
    """Nor may a file that is opened later be taken for standard error."""
    code = "import os, support.keras2; print(os.open('some.txt', os.O_CREAT) > 2)"
    done = python(code, cwd=tmp_path, before=['bash', '-c', command])
    assert (done.returncode, done.stdout, done.stderr) == (0, 'True\n', '')


def test_keras_2_goes_by_the_name_of_keras():
    """With a version that ends in `tf`, or bert4keras looks for modules that are no more."""
    from support.keras2 import bert4keras, keras

    assert keras is importlib.import_module('tf_keras')
    assert re.fullmatch(r'2\..*tf', keras.__version__)
    by_name = importlib.import_module('keras')  # bert4keras 0.11.5 has its own way to the same
    assert by_name.layers.Layer is keras.layers.Layer
    for name in 'activations', 'backend', 'callbacks', 'initializers', 'models', 'optimizers':
        assert importlib.import_module(f'keras.{name}') is getattr(keras, name)
    assert issubclass(bert4keras.layers.LayerNormalization, keras.layers.Layer)


@pytest.mark.parametrize('name', ['bert4keras', 'keras', 'tf'])
def test_script_uses_what_is_set_up_there(script, name):
    import support.keras2

    assert getattr(script, name) is getattr(support.keras2, name)
