"""support/truncation.py: what is cut off and what can never be learnt, as training has it."""

import numpy as np
import pytest
from conftest import record, record_of

from support import truncation


def said_of(capsys, script, data, size=10, stride=0):
    """What is said of records when so many characters are read."""
    constants = script.Constants(max_p_len=size + 2, passage_stride=stride)
    truncation.report('f.json', data, script.unify_separators, constants)
    return capsys.readouterr().err


def test_what_is_cut_off_is_counted(capsys, script):
    """An answer that another passage holds can still be learnt, though its own is cut off."""
    data = [
        record_of(('天津' * 5 + '北京', '北京'), ('在北京', '')),
        record_of(('天津' * 5 + '北京', '北京'), ('天津' * 5, '天津')),
        record_of(('天津' * 5, '天津')),
        record(None),  # is not used
    ]
    assert said_of(capsys, script, data) == (
        'f.json: 2 of 5 passages are cut off after 10 characters, without --passage_stride; '
        '2 of 4 answers are cut off; '
        'answers that can never be learnt: 1 cut off\n'
    )
    assert '2 of 5 passages are cut off' in said_of(capsys, script, data, 11)
    assert said_of(capsys, script, data, 12) == said_of(capsys, script, data, 10, 5) == ''
    divided = [record_of(('天津天津北京天津天津', '北京'))]
    assert said_of(capsys, script, divided, 5, 4) == ''
    assert said_of(capsys, script, divided, 5, 5) == (
        'f.json: 1 of 1 answers are cut off; answers that can never be learnt: 1 cut off\n'
    )


@pytest.mark.parametrize(
    ('passage', 'answer', 'reason'),
    [
        ('在北京、天津', '北京、天津', 'with 、, ； or ， inside'),
        ('在北京 天津', '北京；天津', 'with 、, ； or ， inside'),
        ('在ＡＢ', 'AB', 'in another width or case'),
        ('在ab、c', 'AB，c', 'in another width or case'),
        ('在北京', '天津', 'in no passage'),
        ('在北京', '北京 天津', 'in no passage'),
        ('在北京', '北 京', ''),
        ('在北京、天津', '北京,天津', ''),
        ('天津' * 5 + '北京', '天 北', 'cut off'),
    ],
)
def test_answers_that_training_never_draws_are_counted_by_reason(
    capsys, script, passage, answer, reason
):
    """Exactly those, whatever it draws."""
    data = [record_of((passage, answer), ('中国', ''))]
    said = said_of(capsys, script, data)
    assert bool(reason) == (f'answers that can never be learnt: 1 {reason}\n' in said)
    constants, rng = script.Constants(max_p_len=12), np.random.default_rng(0)
    drawn = {script.training_pair(data[0], rng, constants)[2] for _ in range(30)}
    assert drawn == ({''} if reason else {'', answer.replace(' ', ',')})
