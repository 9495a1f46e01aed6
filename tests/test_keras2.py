"""support/keras2.py: Keras 2 is there for bert4keras under its old name, and nobody hears of it."""

import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

FLOAT16 = '{"floatx": "float16", "epsilon": 0.001, "image_data_format": "channels_first"}'
NEWS = 'F0000 cpu_feature_guard.cc:227] The TensorFlow library was compiled to use AVX.\n'


def python(code, *arguments, cwd, before=(), **environment):
    """Run lines of Python as a process, perhaps by a command. Modules in `cwd` come first."""
    environment = {**os.environ, 'PYTHONPATH': ROOT, 'PYTHONDONTWRITEBYTECODE': '1', **environment}
    return subprocess.run(
        [*before, sys.executable, '-c', code, *arguments],
        cwd=cwd, env=environment, capture_output=True, encoding='utf-8', check=False,
    )  # fmt: skip


def test_import_says_nothing_and_heeds_nothing_that_is_meant_for_other_programs(tmp_path):
    """Neither their command line, nor variables, nor what configures Keras; all stays for them.

    TensorFlow itself would say a lot, past Python; what is said afterwards is heard again.
    """
    code = """
import os, task_reading_comprehension_by_seq2seq as script
from support.keras2 import bert4keras, keras
os.write(2, b'the end')
backend = keras.backend
print(backend.floatx(), backend.epsilon(), backend.image_data_format(), keras.__name__)
print(bert4keras.backend.is_tf_keras, bert4keras.backend.do_recompute)
names = 'TF_KERAS', 'RECOMPUTE', 'KERAS_HOME', 'TF_CPP_MIN_LOG_LEVEL'
names += 'PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION', 'TF_XLA_FLAGS'
print(*(os.environ.get(name) for name in names))
"""
    for folder in '.keras', 'elsewhere':
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'keras.json').write_text(FLOAT16, encoding='utf-8')
    others = {
        'HOME': str(tmp_path), 'KERAS_HOME': str(tmp_path / 'elsewhere'), 'TF_KERAS': '1',
        'RECOMPUTE': 'often', 'TF_USE_LEGACY_KERAS': '0', 'KERAS_BACKEND': 'torch',
        'SETUPTOOLS_USE_DISTUTILS': 'stdlib', 'TF_CPP_MIN_LOG_LEVEL': '0', 'TF2_BEHAVIOR': '0',
        'PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION': 'cpp', 'TF_XLA_FLAGS': '--nonsense',
    }  # fmt: skip
    before = {*tmp_path.rglob('*')}
    done = python(code, '--topk=0', 'learn', cwd=tmp_path, **others)
    assert (done.returncode, done.stderr) == (0, 'the end')
    of_keras, of_bert4keras, left = done.stdout.splitlines()
    assert of_keras == 'float32 1e-07 channels_last tf_keras'
    assert of_bert4keras == 'False False'
    assert left == f'1 often {others["KERAS_HOME"]} 0 cpp None'
    assert {*tmp_path.rglob('*')} == before


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


SWITCHES = 'TF_ENABLE_ONEDNN_OPTS', 'TF_CPU_ALLOCATOR_USE_BFC'
TELL_SWITCHES = f'raise ImportError(" ".join(os.environ[name] for name in {SWITCHES}))'
WARN = 'import warnings; warnings.warn("old", DeprecationWarning); raise ImportError("reached")'
SPEAK = f'os.write(2, {NEWS.encode()!r})'
HEARD = re.escape(NEWS)


@pytest.mark.parametrize(
    ('tensorflow', 'environment', 'status', 'heard'),
    [
        # warnings of the packages are no errors, though the user wants to hear of his own
        (WARN, {'PYTHONWARNINGS': 'error'}, 1, 'Traceback.*ImportError: reached\n'),
        # what makes it fast is set before it looks; what the user has set stands
        (TELL_SWITCHES, {}, 1, 'Traceback.*ImportError: 1 true\n'),
        (TELL_SWITCHES, dict.fromkeys(SWITCHES, '0'), 1, 'Traceback.*ImportError: 0 0\n'),
        (f'{SPEAK}\nraise ImportError', {}, 1, f'{HEARD}Traceback.*'),
        # where it dies in its own code, that is told
        ('os.abort()', {}, -signal.SIGABRT, 'Fatal Python error: Aborted.*tensorflow.py.*'),
        # what does not fit is lost, and nothing waits for ever
        ('os.write(2, bytes(10**6))\nraise ImportError', {}, 1, '\0+Traceback.*'),
    ],
)
def test_what_tensorflow_says_is_heard_where_its_import_fails(
    tmp_path, monkeypatch, tensorflow, environment, status, heard
):
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'tensorflow.py').write_text(f'import os\n{tensorflow}\n', encoding='utf-8')
    done = python('import support.keras2', cwd=tmp_path, **environment)
    assert done.returncode == status
    assert re.fullmatch(heard, done.stderr, re.DOTALL), done.stderr


@pytest.mark.skipif(os.name != 'posix', reason='needs a shell')
def test_import_needs_no_descriptor_2(tmp_path):
    """Nor may a file that is opened later be taken for standard error."""
    (tmp_path / 'tensorflow.py').write_text('raise ImportError', encoding='utf-8')
    code = """
import os
try:
    import support.keras2
except ImportError:
    print(os.open('some.txt', os.O_CREAT) > 2)
"""
    done = python(code, cwd=tmp_path, before=['bash', '-c', 'exec "$0" "$@" 2>&-'])
    assert (done.returncode, done.stdout, done.stderr) == (0, 'True\n', '')


@pytest.mark.parametrize(
    ('cpuinfo', 'is_told'),
    [('flags\t\t: fpu sse4_2 avx2\n' * 2, True), ('flags\t\t: fpu avx avx2\n', False),
     ('Features\t: fp asimd\n', False), (None, False)],
)  # fmt: skip
def test_processor_on_which_tensorflow_crashes_is_told_of_before(tmp_path, cpuinfo, is_told):
    """Where that can be known: on Linux, of an x86-64."""
    (tmp_path / 'tensorflow.py').write_text('raise ImportError', encoding='utf-8')
    if cpuinfo:
        (tmp_path / 'cpuinfo').write_text(cpuinfo, encoding='utf-8')
    code = """
import builtins, os
plain_open = builtins.open
def other_open(path, *arguments, **options):
    return plain_open('cpuinfo' if path == '/proc/cpuinfo' else path, *arguments, **options)
builtins.open = other_open
import support.keras2
"""
    first, *_ = python(code, cwd=tmp_path).stderr.splitlines()
    assert first.startswith('the processor lacks AVX' if is_told else 'Traceback')
