"""support/keras2.py: Keras 2 is there for bert4keras under its old name, and nobody hears of it."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


def python(code, *arguments, cwd, **environment):
    """Run lines of Python as a process. Returns subprocess.CompletedProcess."""
    environment = {
        **os.environ, 'PYTHONPATH': ROOT, 'PYTHONDONTWRITEBYTECODE': '1', **environment,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, '-c', code, *arguments],
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
    done = python(code, *arguments, cwd=tmp_path, **loud)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', 'the end')
    assert list(tmp_path.iterdir()) == []


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


def test_failing_import_is_not_silenced(tmp_path):
    """A TensorFlow that is broken or missing must be heard of."""
    (tmp_path / 'tensorflow.py').write_text('raise ImportError("broken")')
    path = os.pathsep.join([str(tmp_path), ROOT])
    done = python('import support.keras2', cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 1 and done.stderr.endswith('ImportError: broken\n')


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
