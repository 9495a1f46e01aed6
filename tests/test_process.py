"""support/process.py: streams, signals and packages of whoever calls, and a worker's position."""

import importlib
import os
import re
import signal
import sys

import pytest
from conftest import ROOT, refusal

from support import process


@pytest.mark.parametrize(
    ('config', 'position'),
    [
        (None, (0, 1)),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}', (0, 1)),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": "1"}}',
         (1, 2)),
        ('{"cluster": {"worker": ["a:1", "b:1"], "chief": ["c:1"]},'
         ' "task": {"type": "worker", "index": 0}}', (1, 3)),
        ('{"cluster": {"worker": ["a:1", "b:1"], "chief": ["c:1"]},'
         ' "task": {"type": "chief", "index": 0}}', (0, 3)),
    ],
)  # fmt: skip
def test_worker_knows_its_position(monkeypatch, config, position):
    """The chief, where there is one, is the first."""
    monkeypatch.delenv('TF_CONFIG', raising=False)
    if config:
        monkeypatch.setenv('TF_CONFIG', config)
    assert process.rank_and_world_size() == position


@pytest.mark.parametrize(
    'config',
    [
        '', '{', '[]', '{}', '1', '{"cluster": {}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "one"}}',
        '{"cluster": {"worker": 1}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}',
    ],
)  # fmt: skip
def test_position_that_makes_no_sense_is_refused(monkeypatch, config):
    monkeypatch.setenv('TF_CONFIG', config)
    assert refusal(process.rank_and_world_size).startswith('TF_CONFIG: expected {"cluster"')


def test_process_is_prepared_even_without_standard_streams(monkeypatch):
    """As under pythonw, or with `>&-`; SIGTERM, which ends jobs on clusters, is taken as Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, 'stdout', None)
    monkeypatch.setattr(sys, 'stderr', None)
    try:
        process.prepare_process()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_packages_are_there():
    process.require_packages()


def test_missing_package_is_named_with_the_cure(monkeypatch):
    """As pip calls it."""
    find_spec = importlib.util.find_spec
    without = 'tf_keras', 'tqdm'
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name in without else find_spec(name)
    )
    line = refusal(process.require_packages)
    assert line.startswith('missing: tf-keras, tqdm; ')
    assert f'{sys.executable} -m pip install -r requirements.txt' in line


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (AttributeError('no such name\nand more'), 'AttributeError: no such name'),
        (TypeError(), 'TypeError: '),
        # as TensorFlow says it
        (ImportError('Traceback:\n  File "a.py"\nImportError: libc.so.6: too old\n\nFailed to'),
         'ImportError: libc.so.6: too old'),
    ],
)  # fmt: skip
def test_broken_package_is_told_in_one_line(monkeypatch, error, reason):
    """Such as two that do not fit together."""

    def fail(*_):
        raise error

    monkeypatch.setattr(importlib, 'import_module', fail)
    line = refusal(process.require_packages)
    assert line.startswith(f'a package cannot be used ({reason}); ')
    assert line.endswith(' -m pip install -r requirements.txt')


def test_windows_is_told_where_the_rest_works(monkeypatch):
    """The score does there."""
    monkeypatch.setattr(sys, 'platform', 'win32')
    assert refusal(process.require_packages).startswith('Windows: only the score works here')


def test_requirements_are_the_packages_that_are_missed():
    """But for those of the tests."""
    with open(os.path.join(ROOT, 'requirements.txt'), encoding='utf-8') as file:
        text = file.read().partition('# for the tests')[0]
    assert {*re.findall(r'^([\w-]+)==', text, re.MULTILINE)} == {*process.PACKAGES}
