"""tests/break_rules.py: its table goes with the code; what the tests notice it shows itself."""

import collections
import os

import pytest
from break_rules import RULES, read
from conftest import ROOT


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule[0])
def test_rule_stands_once_where_the_table_says(rule):
    _, file, text, broken, tests = rule
    assert read(file).count(text) == 1 and text != broken
    compile(read(file).replace(text, broken), file, 'exec')
    for word in tests.split():
        name, _, test = word.partition('::')
        if name.startswith('test_') and name.endswith('.py'):
            assert os.path.exists(os.path.join(ROOT, 'tests', name))
            assert f'def {test}' in read(f'tests/{name}')


def test_no_two_rules_are_called_alike():
    counted = collections.Counter(name for name, *_ in RULES)
    assert max(counted.values()) == 1
