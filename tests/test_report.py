"""support/report.py: what the page says, and how it behaves in a browser."""

import json
import math
import re
import shutil
import weakref

import pytest
from conftest import record_of

from evaluate_sogou import Reference, Tally
from support.report import TEMPLATE, as_page

GOLD = Reference('北京', ('北京',))
CHROMIUM, DRIVER = '/usr/bin/chromium', '/usr/bin/chromedriver'


def told_of(record, text='', place=(None, None, None), left=(), probas=(), others=()):
    """Return what is told of a record; left: {number of a passage: its probability of no answer}.

    probas: {number of a passage: its probabilities}, 0.5 of each token where not given; others:
    further candidates, (text, whether it was finished).
    """
    candidates = [
        {'text': each, 'score': 0.875, 'log_score': -1.25, 'finished': finished}
        for each, finished in ((text, True), *others)
    ]
    votes, left, probas = [], dict(left), dict(probas)
    for i in range(len(record['passages'])):
        given = [] if i in left else probas.get(i, [0.5] * (len(text) + 1))
        votes.append({'no_answer': left.get(i, 0.1), 'took_part': i not in left, 'probas': given})
    return {
        'id': record['id'], 'question': record['question'], 'text': text,
        **dict(zip(('passage', 'start', 'end'), place, strict=True)),
        'token_ids': [*map(ord, text)], 'score': 0.875, 'log_score': -1.25,
        'candidates': candidates, 'votes': votes,
    }  # fmt: skip


def page_of(cases, references=None, read_length=254, shown=1000):
    """Return the page of (record, what is told of it) pairs; a token is a character."""
    data, told = zip(*cases, strict=True)
    return as_page(data, iter(told), references, lambda ids: [*map(chr, ids)], read_length, shown)


def content_of(page):
    """Return the data that a page has."""
    return json.loads(re.search('id="data">(.*?)</script>', page, re.DOTALL)[1])


def judged(record, told, reference=GOLD, read_length=254):
    """Return outcome and kind of the only question."""
    page = page_of([(record, told)], {record['id']: reference}, read_length)
    (question,) = content_of(page)['questions']
    return question['outcome'], question['kind']


# -------------------------------------------------------------------------------- what it says


def test_score_is_the_official_one():
    """Over all that have an answer to compare with; what is answered is a share of the same."""
    answers = {'a': '北京', 'b': '北京市', 'c': '上海', 'd': ''}
    records = [record_of(('在北京市', '北京'), question_id=each) for each in answers]
    cases = [(each, told_of(each, answers[each['id']])) for each in records]
    tally = Tally()
    for answer in answers.values():
        tally.add(answer, GOLD)
    without_id = {**records[0], 'id': None}
    cases.append((without_id, told_of(without_id, '北京')))
    content = content_of(page_of(cases, {None: GOLD, **dict.fromkeys(answers, GOLD)}))
    assert content['score'] == {**tally.result(), 'Answered': 0.75}
    assert content['outcomes'] == [
        ['right', 1], ['partly right', 1], ['wrong', 1], ['answered', 1], ['no answer', 1]
    ]  # fmt: skip
    assert content['total'] == 5


def test_answer_is_scored_as_a_line_of_predictions():
    """There a control character is a space, which does not count."""
    record = record_of(('在北\x01京', '北京'))
    assert judged(record, told_of(record, '北\x01京')) == ('right', None)


@pytest.mark.parametrize(
    'answer, gold, left, kind',
    [
        ('VIII', 'Ⅷ', {}, 'other characters only'),
        ('Élan', 'éLAN', {}, 'other characters only'),  # although no passage holds it either
        ('上海', '天津', {}, 'no passage held the answer'),
        ('天', '天津', {}, 'no passage held the answer'),
        ('在北京', '北京', {}, 'too long'),
        ('在北京', '北京', {0: 0.9, 1: 0.9}, 'too long'),
        ('北', '北京', {}, 'too short'),
        ('北', '北京', {0: 0.9, 1: 0.9}, 'too short'),
        ('上海', '北京', {0: 0.9, 1: 0.9}, 'a passage that holds it left'),
        ('', '北京', {0: 0.9, 1: 0.9, 2: 0.9}, 'a passage that holds it left'),
        ('上海', '北京', {0: 0.9}, 'outvoted'),
        ('上海', '北京', {1: 0.9}, 'outvoted'),
        ('', '北京', {0: 0.9}, 'outvoted'),
        ('，', '北京', {}, 'outvoted'),  # nothing of it counts: it is no part of anything
    ],
)
def test_what_went_wrong(answer, gold, left, kind):
    """Exactly one kind, the first that fits."""
    record = record_of(('在北，京', ''), ('北京', '北京'), ('上海', ''))
    assert judged(record, told_of(record, answer, left=left), Reference(gold, (gold,)))[1] == kind


def test_only_what_is_read_of_a_passage_holds_an_answer():
    """Characters of the passage, not of its normal form."""
    record = record_of(('，，，北京', '北京'))
    told = told_of(record, '上海')
    assert judged(record, told, read_length=5)[1] == 'outvoted'
    assert judged(record, told, read_length=4)[1] == 'no passage held the answer'
    assert 'first 4 characters' in page_of([(record, told)], {'a': GOLD}, 4)


def test_nothing_holds_an_answer_that_is_empty():
    """The empty text stands in any passage; without a variant nothing is right."""
    record = record_of(('北京', ''))
    for variants in (), ('',), ('，',):
        told = told_of(record, '上海')
        kind = judged(record, told, Reference('', variants))
        assert kind == ('wrong', 'no passage held the answer')


def test_incomplete_records_have_no_votes():
    """They count, and their passages are still shown."""
    record = {'id': 'a', 'passages': [{'passage': '在北京'}]}
    told = {'id': 'a', 'question': None, 'text': '', 'error': 'no question'}
    assert judged(record, told) == ('no answer', 'no votes')
    (question,) = content_of(page_of([(record, told)]))['questions']
    assert question['passages'] == [{'number': 1, 'pieces': ['在北京']}]
    record = {'id': 'a', 'question': '？', 'passages': None}
    told = {'id': 'a', 'question': '？', 'text': '', 'error': 'no passages'}
    assert judged(record, told) == ('no answer', 'no passage held the answer')


def test_votes_of_other_passages_are_not_taken_for_these():
    """The script can be changed to ask something else of a record."""
    record, asked = record_of(('天津', ''), ('在北京', '北京')), record_of(('在上海', ''))
    told = told_of(asked, '上海', (0, 1, 3))
    assert judged(record, told)[1] == 'no votes'
    (question,) = content_of(page_of([(record, told)]))['questions']
    assert question['place'] is None
    assert [each['pieces'] for each in question['passages']] == [['天津'], ['在北京']]


def test_first_questions_are_kept_and_all_are_counted():
    """One after the other: there may be thousands."""

    class Told(dict):
        """A dict of which one can see whether it is still there."""

    records = [record_of(('在北京', '北京'), question_id=str(i)) for i in range(9)]
    given, alive = [], []

    def tell():
        for record in records:
            told = Told(told_of(record, '北京' if record['id'] < '5' else '上海'))
            given.append(weakref.ref(told))
            alive.append(sum(each() is not None for each in given))
            yield told

    references = {record['id']: GOLD for record in records}
    page = as_page(records, tell(), references, lambda ids: [*map(chr, ids)], 254, 2)
    content = content_of(page)
    assert [each['id'] for each in content['questions']] == ['0', '1'] and content['total'] == 9
    assert content['outcomes'][0] == ['right', 5] and content['kinds'][0][2] == 4
    assert max(alive) <= 2  # the next one, the last one


def test_without_right_answers_nothing_is_judged():
    """Neither right nor wrong; an answer or none."""
    record = record_of(('在北京', '北京'))
    content = content_of(page_of([(record, told_of(record, '北京')), (record, told_of(record))]))
    assert content['score'] is None and not content['kinds']
    assert content['outcomes'] == [['answered', 1], ['no answer', 1]]
    assert all('gold' not in question for question in content['questions'])


def test_passages_are_in_the_order_of_their_votes():
    """The product of all probabilities; of equal ones the first; then not asked; then left."""
    record = record_of(*((f'在{i}北京', '') for i in range(7)))
    probas = {0: [0.5, 0.5, 0.5], 2: [0.9, 0.9, 0.1], 3: [0.1, 0.9, 0.9], 4: [0.6] * 3, 6: []}
    told = told_of(record, '北京', (2, 2, 4), {1: 0.9, 5: 0.8}, probas)
    (question,) = content_of(page_of([(record, told)]))['questions']
    numbers = [each['number'] for each in question['passages']]
    assert numbers == [5, 1, 3, 4, 7, 6, 2]
    assert [each.get('left') for each in question['passages']] == [None] * 5 + [0.8, 0.9]


def test_numbers_have_four_digits():
    """The page is short; what JSON has no word for is left out."""
    record = record_of(('北京', ''))
    told = told_of(record, '北', probas={0: [1 / 3, 1 / 30000]})
    told['candidates'][0].update(score=2 / 3, log_score=-math.inf)
    (question,) = content_of(page_of([(record, told)]))['questions']
    assert question['passages'][0]['probas'] == [0.3333, 3.333e-05]
    assert question['candidates'] == [['北', 0.6667, None, True]]


HOSTILE = '</script><!--<script>alert(1)</script>&lt;{{data}}{{policy}}"\'\u2028\u202e\x00\ud842'


def test_data_cannot_end_its_element():
    """Whatever it holds; half a character can be written to a file too."""
    record = record_of((HOSTILE, HOSTILE), question=HOSTILE, question_id=HOSTILE)
    page = page_of([(record, told_of(record, HOSTILE))], {HOSTILE: Reference(HOSTILE, (HOSTILE,))})
    assert not re.search(
        '[<>&\u2028\ud800-\udfff]', page.split('id="data">')[1].split('</script')[0]
    )
    assert content_of(page)['questions'][0]['question'] == HOSTILE
    assert page.encode() and page.count('</script>') == 2


def test_page_names_nothing_outside():
    """It can be looked at without a network."""
    with open(TEMPLATE, encoding='utf-8') as file:
        assert not re.search(r'https?:|src=|href=|url\(|@import|innerHTML| on\w+=', file.read())


# ---------------------------------------------------------------------------- how it behaves


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    """A Chromium without a window."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='the page is tried with selenium')
    for path in CHROMIUM, DRIVER:
        if not shutil.which(path):
            pytest.skip(f'the page is tried in a browser: no {path}')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in (
        'headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
        'disable-background-networking', 'disable-component-update', 'disable-sync',
        f'user-data-dir={tmp_path_factory.mktemp("chromium")}',
    ):  # fmt: skip
        options.add_argument(f'--{name}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """A page in a browser, spoken to with CSS selectors and keys."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, script, *arguments):
        """Return what a script returns."""
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector):
        """Return the texts of all elements that can be seen."""
        elements = self.driver.find_elements('css selector', selector)
        return [element.text for element in elements if element.is_displayed()]

    def click(self, selector, number=0):
        """Click one of the elements."""
        self.driver.find_elements('css selector', selector)[number].click()

    def press(self, *keys):
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key, key)).perform()

    def search(self, text):
        """Type into the search field, which is emptied first."""
        self.press('/', 'ESCAPE', text)

    def questions(self):
        """Return the questions that can be seen."""
        return self.texts('.row > span:nth-child(2)')

    def focused(self):
        """Return the text of the element that has the focus."""
        return self.driver.switch_to.active_element.text

    def resize(self, width, height=800):
        """Give the page a size, that of a window or of a telephone."""
        size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 500}
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)

    def colours(self, scheme):
        """Return the colours of text and page in a scheme, 'light' or 'dark'."""
        features = [{'name': 'prefers-color-scheme', 'value': scheme}]
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': features})
        style = 'const {color, backgroundColor} = getComputedStyle(document.body);'
        return self.run(f'{style} return [color, backgroundColor]')


@pytest.fixture
def show(chromium, tmp_path):
    """Return a function that opens the page of some cases, see `page_of`. Nothing may complain."""

    def open_page(cases, *arguments, **named):
        path = tmp_path / 'report.html'
        path.write_bytes(page_of(cases, *arguments, **named).encode())
        chromium.get(path.as_uri())
        return page

    page = Page(chromium)
    page.resize(1200)
    yield open_page
    assert chromium.get_log('browser') == []
    assert page.run('return performance.getEntriesByType("resource").length') == 0


@pytest.fixture
def five(show):
    """A page of five questions, each with another outcome or kind."""
    answers = ['北京', '北京市', '上海', '', 'BEIJING']
    cases = []
    for i, answer in enumerate(answers):
        record = record_of(
            ('在北京市', '北京'),
            (f'另一个 Passage {i}', ''),
            question=f'问题{i}？',
            question_id=f'Id{i}',
        )
        cases.append((record, told_of(record, answer, left={0: 0.9} if answer == '上海' else {})))
    references = {record['id']: GOLD for record, _ in cases}
    references['Id4'] = Reference('Ｂｅｉｊｉｎɢ', ('天津', '某 VASTA'))
    return show(cases, references)


def test_filter_by_outcome(five):
    """Several together show the questions of each; none shows all."""
    right, partly, wrong, none = five.texts('#outcomes button')
    assert (right, partly, wrong, none) == (
        '✓ right 1', '≈ partly right 1', '✗ wrong 2', '∅ no answer 1'
    )  # fmt: skip
    five.click('#outcomes button', 2)
    assert five.questions() == ['问题2？', '问题4？']
    assert five.texts('#extent') == ['Shown: 2 of 5 questions.']
    five.click('#outcomes button', 0)
    assert five.questions() == ['问题0？', '问题2？', '问题4？']
    pressed = five.run('return [...document.querySelectorAll("[aria-pressed=true]")].length')
    assert pressed == 2
    five.click('#outcomes button', 0)
    five.click('#outcomes button', 2)
    assert len(five.questions()) == 5


def test_filter_by_what_went_wrong(five):
    """Each kind is a filter, together with those by outcome and by text."""
    kinds = [text.split('\n')[0] for text in five.texts('#kinds button')]
    assert kinds == [
        'no passage held the answer 1', 'too long 1', 'a passage that holds it left 1', 'outvoted 1'
    ]  # fmt: skip
    five.click('#kinds button', 0)
    five.click('#kinds button', 2)
    assert five.questions() == ['问题2？', '问题4？']
    five.search('id4')
    assert five.questions() == ['问题4？']
    five.click('#outcomes button', 0)
    assert five.questions() == []
    five.click('#all')
    assert len(five.questions()) == 5 and not five.run('return search.value')


@pytest.mark.parametrize(
    'text, found',
    [
        ('问题3', ['问题3？']), ('ID3', ['问题3？']), ('passage 3', ['问题3？']),
        ('北京市', [f'问题{i}？' for i in range(5)]), ('beijing', ['问题4？']),
        ('ｂｅｉｊｉｎɢ', ['问题4？']),
        ('vasta', ['问题4？']), ('.*', []), ('问题 3', []), ('id3问', []),
    ],
)  # fmt: skip
def test_filter_by_text(five, text, found):
    """Question, id, right and given answer, passages: as it stands there, but for case."""
    five.search(text)
    assert five.questions() == found


def test_page_says_how_many_it_has(show):
    """The counts beside the filters are of all, also of those that are not on it."""
    records = [record_of(('在北京', '北京'), question_id=str(i)) for i in range(4)]
    cases = [(record, told_of(record, '北京')) for record in records]
    page = show(cases, {record['id']: GOLD for record in records}, shown=3)
    extent = 'This page has the first 3 of 4 questions; score and counts are of all.'
    assert page.texts('#extent') == [f'Shown: 3 of 3 questions. {extent}']
    assert page.texts('#outcomes button')[0] == '✓ right 4'
    assert page.texts('#score div') == [
        'questions\n4', 'Accuracy\n1.0000', 'F1\n1.0000', 'Final\n1.0000', 'answered\n100.0%'
    ]  # fmt: skip


def test_answer_is_marked_where_it_stands(show):
    """In its passage at its place only, in others wherever; 𠮷 is one character of Python's."""
    record = record_of(('𠮷𠮷野家和𠮷野家', ''), ('𠮷野家，𠮷野家。', '𠮷野家'), ('野家', ''))
    left = {2: 0.9}
    page = show([(record, told_of(record, '𠮷野家', (0, 5, 8), left))])
    page.click('.row')
    marked = [
        page.run('return arguments[0].innerHTML', each)
        for each in page.driver.find_elements('css selector', '.passage')
    ]
    assert marked == [
        '𠮷𠮷野家和<mark>𠮷野家</mark>', '<mark>𠮷野家</mark>，<mark>𠮷野家</mark>。', '野家'
    ]  # fmt: skip


def test_question_opens_to_all_that_is_told(show):
    """Right and given answer, candidates, votes of each passage, those that left."""
    record = record_of(('在上海', ''), ('在北京', '北京'), ('天津', ''), ('不', ''))
    told = told_of(
        record, '北京', (1, 1, 3), {2: 0.75},
        {0: [0.5, 0.25, 1e-5], 1: [1.0, 0.9, 0.8], 3: []}, [('北', True), ('上海', False)],
    )  # fmt: skip
    page = show([(record, told)], {'a': Reference('北京', ('北京', '北京市', '首都'))})
    page.click('.row')
    assert page.texts('.details > p') == [
        'id: a', 'Right answer: 北京; also: 北京市 | 首都',
        'Answer given: 北京, in passage 2, score 0.875',
    ]  # fmt: skip
    candidates, votes = page.texts('table')
    assert candidates.split('\n')[1:] == [
        '北京 0.875 -1.250', '北 0.875 -1.250', '上海 0.875 -1.250 not finished'
    ]  # fmt: skip
    assert votes.split('\n') == [
        'passage 北 京 [SEP]', '2 1.000 0.900 0.800', '1 0.500 0.250 1e-5'
    ]  # fmt: skip
    bars = 'return [...document.querySelectorAll(".proba")].map((x) => getComputedStyle(x)'
    widths = page.run(f'{bars}.backgroundSize)')
    assert [float(re.search('[0-9.]+', each)[0]) for each in widths[:4]] == [100, 90, 80, 50]
    assert page.texts('.passages > li > p:first-child') == [
        'Passage 2 voted, with 0.720 for the whole answer labelled: 北京',
        'Passage 1 voted, with 1e-6 for the whole answer',
        'Passage 4 took part, but was not asked about this answer',
        'Passage 3 left: probability of no answer 0.750',
    ]
    colours = page.run(f'{bars.replace(".proba", ".passages > li")}.color)')
    assert colours[0] == colours[1] == colours[2] != colours[3]
    page.click('.row')
    assert page.texts('.details') == []
    page.click('.row')
    assert len(page.texts('.details')) == 1


def test_record_that_was_not_asked(show):
    """It says why, and what there is."""
    record = {'id': None, 'question': None, 'passages': [{'passage': '在北京', 'answer': '北京'}]}
    page = show([(record, {'id': None, 'question': None, 'text': '', 'error': 'no question'})], {})
    assert page.texts('.row') == ['∅ no answer\n(no question)\nanswer (none)']
    page.click('.row')
    assert page.texts('.details > p') == ['id: (none)', 'It was not asked: no question.']
    assert page.texts('.passages p') == ['Passage 1 labelled: 北京', '在北京']


def test_keyboard_alone_is_enough(five):
    """Every key that the page names, and Tab and Space for the rest."""
    five.press('j')
    assert '问题0？' in five.focused()
    five.press('j', 'j', 'k')
    assert '问题1？' in five.focused()
    five.press('ENTER')
    assert len(five.texts('.details')) == 1
    five.press('TAB')
    assert five.run('return document.activeElement.getAttribute("aria-label")') == 'Candidates'
    five.press('k')  # out of the details
    assert '问题0？' in five.focused()
    five.press('k')
    assert '问题0？' in five.focused()
    five.press('/', 'jk/')
    assert five.run('return search.value') == 'jk/' and five.questions() == []
    five.press('ESCAPE')
    assert five.run('return search.value') == '' and len(five.questions()) == 5
    five.press('id2', 'TAB', 'j')
    assert '问题2？' in five.focused() and len(five.questions()) == 1
    five.press('ESCAPE')  # wherever the focus is
    assert '问题2？' in five.focused() and len(five.questions()) == 5
    five.run('document.activeElement.blur(); document.querySelector("h1").tabIndex = -1')
    five.run('document.querySelector("h1").focus()')
    five.press('TAB', 'TAB', 'SPACE')
    assert five.questions() == ['问题1？'] and five.focused().startswith('≈ partly right')
    assert five.run('return getComputedStyle(document.activeElement).outlineStyle') == 'solid'
    five.press('TAB', 'ENTER')
    assert five.questions() == ['问题1？', '问题2？', '问题4？']
    five.press('j', 'j', 'j', 'j')  # over those that are hidden, not beyond the last
    assert '问题4？' in five.focused() and five.run('return document.activeElement.ariaExpanded')
    five.press('j', ' ')
    assert len(five.texts('.details')) == 2


def test_hostile_data_is_text(show):
    """Nothing of it is run, and what cannot be seen is named."""
    passage = '\u202e<img src=x onerror=alert(1)>\x00\t\u200f<b>粗</b>\ud842'
    record = record_of((passage, HOSTILE), question=HOSTILE, question_id='a')
    told = told_of(record, '<b>', others=[(HOSTILE, False)])
    page = show([(record, told)], {'a': Reference(HOSTILE, (passage, HOSTILE))})
    page.click('.row')
    assert page.texts('.passage') == [
        '[U+202E]<img src=x onerror=alert(1)>[U+0000][U+0009][U+200F]<b>粗</b>[U+D842]'
    ]
    assert page.texts('mark') == ['<b>']
    assert page.questions()[0].startswith('</script><!--<script>alert(1)</script>&lt;{{data}}')
    assert page.questions()[0].endswith('"\'[U+2028][U+202E][U+0000][U+D842]')
    assert page.run('return document.querySelectorAll("script, img, .passage b").length') == 2


def test_direction_of_a_text_is_its_own(show):
    """From right to left it stands so, and what is around it stays where it is."""
    record = record_of(('שלום 1', ''), ('北京 שלום', ''), question='שלום')
    page = show([(record, told_of(record))])
    page.click('.row')
    style = 'return [...document.querySelectorAll(arguments[0])].map((x) => getComputedStyle(x))'
    styles = [page.run(f'{style}.map((x) => x.{name})', '.passage, .row bdi') for name in (
        'direction', 'unicodeBidi'
    )]  # fmt: skip
    assert styles == [['rtl', 'rtl', 'ltr'], ['isolate'] * 3]


def test_nothing_but_its_own_script_can_run(show):
    """Even if the data became HTML: the policy would forbid it."""
    record = record_of(('北京', ''))
    page = show([(record, told_of(record))])
    page.run(
        'document.body.setAttribute("onclick", "window.ran = 1"); document.body.click();'
        'const script = document.createElement("script"); script.textContent = "window.ran = 1";'
        'document.body.append(script);'
    )
    assert page.run('return window.ran') is None
    refused = [each['message'] for each in page.driver.get_log('browser')]
    assert refused and all('Content Security Policy' in each for each in refused)


LOOKS = {
    'a hundred passages': (100, 3, 1, True),
    'an answer of 31 tokens': (12, 31, 1, True),
    'eight candidates': (5, 4, 8, True),
    'no answer': (5, 0, 1, False),
    'long words': (5, 300, 8, True),
}


@pytest.mark.parametrize('width', [360, 1200])
@pytest.mark.parametrize('case', LOOKS)
def test_page_never_scrolls_sideways(show, width, case):
    """What is wide scrolls by itself."""
    passages, length, topk, took_part = LOOKS[case]
    answer = 'W' * length
    record = record_of(
        *[(f'第{i}{answer * 3}', answer) for i in range(passages)], question='问' * 90
    )
    left = {} if took_part else dict.fromkeys(range(passages), 0.9)
    told = told_of(record, answer, left=left, others=[(answer, False)] * (topk - 1))
    page = show([(record, told)], {'a': Reference(answer * 2, (answer * 2,) * 3)})
    page.resize(width)
    page.click('.row')
    assert page.run('return document.documentElement.scrollWidth - innerWidth') <= 0
    assert len(page.texts('.passages > li')) == passages
    beyond = 'return [...document.querySelectorAll(arguments[0])].filter((x) => '
    beyond += 'x.getBoundingClientRect().right > innerWidth).length'
    assert page.run(beyond, '.row *, .details > *, .passages *') == 0
    if took_part:
        assert len(page.texts('.votes tbody tr')) == passages
        page.run('document.querySelector(".wide:has(.votes)").scrollLeft = 1e6')
        assert page.run(beyond, '.votes tr > :last-child') == 0  # the last column can be reached
        heading = 'return document.querySelector(".votes tbody th").getBoundingClientRect().left'
        assert page.run(heading) > 0  # and one sees whose it is


def test_light_and_dark(show):
    """As the system has it, text always stands out."""
    record = record_of(('北京', ''))
    page = show([(record, told_of(record))])
    light, dark = page.colours('light'), page.colours('dark')

    def brightness(colour):
        return sum(map(int, re.findall('[0-9]+', colour)))

    assert brightness(light[1]) - brightness(light[0]) > 500
    assert brightness(dark[0]) - brightness(dark[1]) > 500
