"""The READMEs: what they point to exists, and both languages say the same."""

import pathlib
import re

import pytest
from conftest import ROOT

BLOCK = re.compile('^```.*?^```$', re.DOTALL | re.MULTILINE)
READMES = 'README.md', 'README.zh.md', 'data/README.md', 'support/README.md', 'tests/README.md'


def text_of(path):
    return pathlib.Path(ROOT, path).read_text(encoding='utf-8')


def test_both_languages_are_short_and_have_the_same_sections_and_commands():
    texts = [text_of(path) for path in READMES[:2]]
    blocks, sections = ([re.findall(what, x) for x in texts] for what in (BLOCK, r'(?m)^## '))
    assert blocks[0] == blocks[1] and len(blocks[0]) > 9 and sections[0] == sections[1]
    for text, other in zip(texts, ['(README.zh.md)', '(README.md)'], strict=True):
        assert text.count('\n') <= 250 and other in text.splitlines()[2]


@pytest.mark.parametrize('path', READMES)
def test_prose_is_narrow_and_what_is_named_exists(path):
    """Tables, commands and links may be longer. Of a link into a page its heading exists too."""
    text, folder = text_of(path), pathlib.Path(ROOT, path).parent
    lines = re.sub(BLOCK, '', text).splitlines()
    assert not [x for x in lines if len(x) > 120 and not re.match(r'\||    |.*\]\(|`\w+ .*`', x)]
    for name in re.findall(r'`([a-z0-9_/]+\.py)\b', text):
        assert (folder / name).exists() or pathlib.Path(ROOT, name).exists(), name
    for link in re.findall(r'\]\((?!https?:)(.*?)\)', text):
        name, _, anchor = link.partition('#')
        target = folder / (name or pathlib.Path(path).name)
        assert target.exists(), link
        page = '\n' + re.sub(r'[^\w\n -]', '', text_of(target) if anchor else '')
        assert not anchor or f'\n-{anchor}\n' in page.lower().replace(' ', '-'), link
