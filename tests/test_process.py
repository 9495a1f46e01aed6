"""support/process.py: streams, signals, packages, and the rank of a process among several."""

import json
import pathlib
import re
import signal
import sys

import pytest
from conftest import ROOT, refusal

from support import process

WORKERS = {'worker': ['a:1', 'b:1']}
WITH_CHIEF = {**WORKERS, 'chief': ['c:1']}


def config(cluster, kind, index):
    """A TF_CONFIG."""
    return json.dumps({'cluster': cluster, 'task': {'type': kind, 'index': index}})


@pytest.mark.parametrize(
    ('text', 'rank'),
    [
        (None, (0, 1)), (config(WORKERS, 'worker', '1'), (1, 2)),
        # the chief, where there is one, is the first
        (config(WITH_CHIEF, 'worker', 0), (1, 3)), (config(WITH_CHIEF, 'chief', 0), (0, 3)),
        *((text, None) for text in ('', '{', '[]', '{}', '1')),
        (config({}, 'worker', 0), None), (config({'worker': 1}, 'worker', 0), None),
        (config(WORKERS, 'worker', 2), None), (config(WORKERS, 'worker', 'one'), None),
        (config(WORKERS, 'worker', 0).replace('index', 'number'), None),
    ],
)  # fmt: skip
def test_rank_is_that_of_the_cluster_or_refused(monkeypatch, text, rank):
    monkeypatch.delenv('TF_CONFIG', raising=False)
    if text is not None:
        monkeypatch.setenv('TF_CONFIG', text)
    if rank:
        assert process.rank_and_world_size() == rank
    else:
        expected = 'TF_CONFIG: expected {"cluster"'
        assert refusal(process.rank_and_world_size).startswith(expected)


def test_sigterm_is_taken_as_ctrl_c_even_without_standard_streams(monkeypatch):
    """As under pythonw, or with `>&-`; it ends jobs on clusters."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in 'stdout', 'stderr':
        monkeypatch.setattr(sys, name, None)
    try:
        process.prepare_process()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_packages_are_there_and_are_those_of_the_requirements(monkeypatch):
    """But for what the tests need; Windows is told that the score works there, and no more."""
    process.require_packages()
    text = pathlib.Path(ROOT, 'requirements.txt').read_text(encoding='utf-8')
    text = text.partition('# for the tests')[0]
    assert {*re.findall(r'^([\w-]+)==', text, re.MULTILINE)} == {*process.PACKAGES}
    monkeypatch.setattr(sys, 'platform', 'win32')
    assert refusal(process.require_packages).startswith('Windows: only the score works here')


def test_failure_of_tensorflow_is_one_line(script, capsys):
    def fail():
        raise script.tf.errors.ResourceExhaustedError(None, None, 'out of memory\nand more')

    assert process.run(fail) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('TensorFlow broke off (out of memory); run the same command')
