"""The process: its streams, signals, packages, exit status, and its rank among several."""

import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import threading

from evaluate_sogou import UserError

from .console import exit_status, open_closed_streams
from .files import first_line

# {what pip installs: what is imported}
PACKAGES = {
    'numpy': 'numpy', 'tensorflow': 'tensorflow', 'tf-keras': 'tf_keras',
    'bert4keras': 'bert4keras', 'setuptools': 'setuptools', 'tensorboard': 'tensorboard',
    'safetensors': 'safetensors', 'tqdm': 'tqdm',
}  # fmt: skip


def prepare_process():
    """Write UTF-8, and take SIGTERM as Ctrl-C, where that is ours to say."""
    open_closed_streams()
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, 'reconfigure'):  # those of notebooks are of another kind
            # names of files may be in another encoding
            stream.reconfigure(encoding='utf-8', errors='backslashreplace')
    if takes_signals():
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, signal.default_int_handler)


def run(command):
    """Call a function without arguments as all that the process does. Returns the exit status."""
    prepare_process()
    tf = importlib.import_module('.keras2', __package__).tf

    def translated():
        try:
            command()
        except tf.errors.OpError as error:
            cure = 'run the same command, of all workers, to continue'
            raise UserError(f'TensorFlow broke off ({first_line(error)}); {cure}') from None

    return exit_status(translated)


def takes_signals():
    """Whether this is the thread to which signals go."""
    return threading.current_thread() is threading.main_thread()


def require_packages():
    """Import TensorFlow; without docstrings by PYTHONOPTIMIZE, begin anew with them.

    Raises UserError on Windows and where packages are missing or broken.
    """
    if sys.platform == 'win32':
        raise UserError('Windows: only the score works here; for the rest use WSL, see README.md')
    if sys.flags.optimize > 1:  # Keras needs the docstrings
        if os.environ.pop('PYTHONOPTIMIZE', None):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        raise UserError('-OO: takes away docstrings that Keras needs; run without')
    missing = [name for name, module in PACKAGES.items() if not importlib.util.find_spec(module)]
    cure = f'{sys.executable} -m pip install -r requirements.txt'
    if missing:
        raise UserError(f'missing: {", ".join(missing)}; {cure}, or activate their environment')
    try:
        for module in '.keras2', 'safetensors', 'tqdm':
            importlib.import_module(module, __package__)
    except Exception as error:  # whatever two packages that do not fit together lead to
        raise UserError(f'a package cannot be used ({_reason(error)}); {cure}') from None


def _reason(error):
    """Return why an import failed, one line; TensorFlow's own message is a traceback."""
    lines = str(error).strip().splitlines() or ['']
    errors = [line for line in lines if re.match(r'\w*Error: ', line)]
    return errors[-1] if errors else f'{type(error).__name__}: {lines[0]}'


def rank_and_world_size():
    """Return (k, n): this is worker k of n by TF_CONFIG, 0 of 1 without.

    Raises UserError where it makes no sense.
    """
    if 'TF_CONFIG' not in os.environ:
        return 0, 1
    try:
        config = json.loads(os.environ['TF_CONFIG'])
        workers = []
        for kind in 'chief', 'worker':
            workers += [(kind, i) for i in range(len(config['cluster'].get(kind, [])))]
        here = config['task']['type'], int(config['task']['index'])
        return workers.index(here), len(workers)
    except (ValueError, TypeError, KeyError, AttributeError):
        expected = '{"cluster": {"worker": [host:port, ...]}, "task": {"type", "index"}}'
        raise UserError(f'TF_CONFIG: expected {expected}') from None
