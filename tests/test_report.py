"""support/report.py: an answer as text; what the page says, and how it behaves in a browser."""

import json
import math
import re
import shutil
import time
import types

import pytest
from conftest import record_of

from evaluate_sogou import Reference, Tally, score_answer
from support import report
from support.answers import Answer, Candidate, Vote
from support.process import one_line

GOLD = Reference('北京', ('北京',))
TOKENIZER = types.SimpleNamespace(ids_to_tokens=lambda ids: [*map(chr, ids)])
CHROMIUM, DRIVER = '/usr/bin/chromium', '/usr/bin/chromedriver'


# --------------------------------------------------------------------------------- one, as text

LEFT = Vote(no_answer_prob=0.9876, has_answer=False, token_probs=[], preferred=[])
NOTHING = Candidate('', None, None, None, [], None, None, True)
BEGUN = Candidate('北', 0, 1, 2, [7], 0.125, -3.0, finished=False)


def answer_of(votes, text='北京', passage=0, start=1, others=()):
    """An Answer that stands in a passage from `start` on."""
    first = Candidate(text, passage, start, start + len(text), [*map(ord, text)], 0.5, -1.0, True)
    tokens = [*text, '[SEP]']
    return Answer(
        *first[:-1], tokens, [0.5] * len(tokens), [[]] * len(tokens), [first, *others], votes
    )


def vote(*token_probs):
    """That of a passage that took part."""
    return Vote(0.1, True, [*token_probs], [])


def lines_of(answer, passages):
    """The lines of an Answer; a token is a character."""
    return report.as_text(answer, passages, TOKENIZER).split('\n')


@pytest.mark.parametrize(
    ('passages', 'answer', 'lines'),
    [
        # in the order of the votes, each with its number as given; who left comes last
        (['天津北京', '在北京。', '在北京市，北京'],
         answer_of([LEFT, vote(0.5, 0.5, 1.0), vote(0.9, 0.8, 1.0)], passage=2),
         ['answer: 北京 (score 0.500)',
          'passage 3 votes: 北 0.90  京 0.80  [SEP] 1.00', '  在[北京]市，北京',
          'passage 2 votes: 北 0.50  京 0.50  [SEP] 1.00', '  在[北京]。',
          'passage 1 left: no answer 0.99', '  天津北京']),
        # other candidates follow the answer; a passage without probabilities was not asked
        (['在北京'], answer_of([vote()], others=[NOTHING._replace(score=0.25), BEGUN]),
         ['answer: 北京 (score 0.500)', '    or: (none) (score 0.250)',
          '    or: 北 (score 0.125), not finished', 'passage 1', '  在[北京]']),
        (['天津'], Answer(*NOTHING[:-1], [], [], [], [NOTHING], [LEFT]),
         ['answer: (none)', 'passage 1 left: no answer 0.99', '  天津']),
    ],
)  # fmt: skip
def test_answer_comes_first_then_passages_by_their_votes(passages, answer, lines):
    assert lines_of(answer, passages) == lines


def test_passages_give_no_commands_to_the_terminal():
    """The place is that of the answer all the same."""
    passages, text = ['\x1b\x9b北\x1b[2J\u2028京', '\x07'], '北\x1b[2J\u2028京'
    lines = lines_of(answer_of([vote(1.0), LEFT], text, start=2), passages)
    assert lines[0] == 'answer: 北 [2J 京 (score 0.500)'
    assert (lines[2], lines[4]) == ('    [北 [2J 京]', '   ')


# --------------------------------------------------------------------------------- many, as a page


def predicted(record, text='', place=(None, None, None), left=(), probs=(), others=()):
    """Return the prediction for a record; left: {number of a passage: its no_answer_prob};
    probs: {number: token_probs}, 0.5 each if not given; others: further (text, finished)."""
    score, left, probs = {'score': 0.875, 'log_score': -1.25}, dict(left), dict(probs)
    candidates = [{'text': text, **score, 'finished': True}]
    candidates += [{'text': each, **score, 'finished': finished} for each, finished in others]
    votes = [
        {'no_answer_prob': left.get(i, 0.1), 'has_answer': i not in left,
         'token_probs': [] if i in left else probs.get(i, [0.5] * (len(text) + 1))}
        for i in range(len(record['passages']))
    ]  # fmt: skip
    return {
        'id': record['id'], 'question': record['question'], 'text': text, **score,
        **dict(zip(('passage', 'start', 'end'), place, strict=True)),
        'token_ids': [*map(ord, text)], 'candidates': candidates, 'votes': votes,
    }  # fmt: skip


def page_of(cases, references=None, read_length=254, shown=1000):
    """Return the page of (record, its prediction) pairs; a token is a character."""
    constants = types.SimpleNamespace(report=shown, max_p_len=read_length + 2)
    scored, tally = [], Tally()
    for record, prediction in cases:
        score = None
        if record['id'] in (references or ()):
            score = score_answer(one_line(prediction['text']), references[record['id']])
            tally.add(score)
        scored.append((record, prediction, score))
    score = {**tally.result(), 'Answered': 0.75} if references else None
    return report.as_html(iter(scored), references, score, TOKENIZER, constants)


def content_of(page):
    return json.loads(re.search('id="data">(.*?)</script>', page, re.DOTALL)[1])


def shown_of(record, prediction, reference=GOLD, read_length=254):
    """Return what a page has of its only question."""
    page = page_of([(record, prediction)], {record['id']: reference}, read_length)
    return content_of(page)['questions'][0]


def judged(*arguments):
    shown = shown_of(*arguments)
    return shown['outcome'], shown['kind']


def test_first_questions_are_shown_and_all_are_counted():
    answers = {'a': '北京', 'b': '北京市', 'c': '上海', 'd': ''}
    records = [record_of(('在北京市', '北京'), question_id=each) for each in answers]
    cases = [(each, predicted(each, answers[each['id']])) for each in records]
    without_id = {**records[0], 'id': None}
    cases.append((without_id, predicted(without_id, '北京')))
    content = content_of(page_of(cases, dict.fromkeys(answers, GOLD), shown=2))
    outcomes = ['right', 'partly right', 'wrong', 'answered', 'no answer']
    assert content['outcomes'] == [[outcome, 1] for outcome in outcomes]
    assert [each['id'] for each in content['questions']] == ['a', 'b'] and content['total'] == 5
    kinds = [(kind, count) for kind, _, count in content['kinds']]
    assert kinds == [('too long', 1), ('outvoted', 2)]
    content = content_of(page_of(cases))
    assert content['score'] is None and not content['kinds']
    assert content['outcomes'] == [['answered', 4], ['no answer', 1]]
    assert all('gold' not in question for question in content['questions'])


@pytest.mark.parametrize(
    'answer, gold, left, kind',
    [
        ('北，\x01 京', '北京', '', None),  # scored as a line of predictions
        ('Élan', 'éLAN', '', 'other characters only'),  # although no passage holds it either
        ('天', '天津', '', 'no passage held the answer'),
        ('在北京', '北京', '', 'too long'), ('在北京', '北京', '01', 'too long'),
        ('北', '北京', '', 'too short'), ('北', '北京', '01', 'too short'),
        ('上海', '北京', '01', 'a passage that holds it left'),
        ('', '北京', '012', 'a passage that holds it left'),
        ('上海', '北京', '0', 'outvoted'), ('', '北京', '0', 'outvoted'),
        ('，', '北京', '', 'outvoted'),  # nothing of it counts: it is no part of anything
    ],
)  # fmt: skip
def test_what_went_wrong(answer, gold, left, kind):
    """The first kind that fits."""
    record = record_of(('在北，京', ''), ('北京', '北京'), ('上海', ''))
    prediction = predicted(record, answer, left={int(i): 0.9 for i in left})
    outcome, found = judged(record, prediction, Reference(gold, (gold,)))
    assert found == kind and (outcome == 'right') == (kind is None)


def test_only_what_is_read_of_a_passage_holds_an_answer():
    """Characters of the passage, not of its normal form. Nothing holds the empty answer."""
    record = record_of(('，，，北京', '北京'))
    wrong, none, empty = (
        predicted(record, '上海'),
        'no passage held the answer',
        Reference('', ('，',)),
    )
    for length, gold, kind in (5, GOLD, 'outvoted'), (4, GOLD, none), (254, empty, none):
        assert judged(record, wrong, gold, length) == ('wrong', kind)


def test_votes_are_those_on_these_passages():
    """An incomplete record has none; the script can be changed to ask something else of one."""
    record = {'id': 'a', 'passages': [{'passage': '在北京'}]}
    prediction = {'id': 'a', 'question': None, 'text': '', 'error': 'no question'}
    for passages, kind in (record['passages'], 'no votes'), (None, 'no passage held the answer'):
        assert judged({**record, 'passages': passages}, prediction) == ('no answer', kind)
    prediction = predicted(record_of(('在上海', ''), ('重庆', '')), '上海', (0, 1, 3))
    shown = shown_of(record, prediction)
    assert shown['kind'] == 'no votes'
    assert shown['passages'] == [{'number': 1, 'pieces': ['在北京'], 'label': None}]


def test_passages_are_in_the_order_of_their_votes():
    """The product of all probabilities; of equal ones the first; then not asked; then left."""
    record = record_of(*((f'在{i}北京', '') for i in range(7)))
    probs = {0: [0.5, 0.5, 0.5], 2: [0.9, 0.9, 0.1], 3: [0.1, 0.9, 0.9], 4: [2 / 3] * 3, 6: []}
    prediction = predicted(record, '北京', (2, 2, 4), {1: 0.9, 5: 0.8}, probs)
    prediction['candidates'][0].update(score=1 / 30000, log_score=-math.inf)  # no JSON
    shown = shown_of(record, prediction)
    assert [each['number'] for each in shown['passages']] == [5, 1, 3, 4, 7, 6, 2]
    assert shown['passages'][0]['token_probs'] == [0.6667] * 3
    numbers = {'score': 3.333e-05, 'log_score': None}
    assert shown['candidates'] == [{'text': '北京', **numbers, 'finished': True}]


HOSTILE = '</script><!--<script>alert(1)</script>&lt;{{data}}{{policy}}"\'\u2028\u202e\x00\ud842'


def test_data_cannot_end_its_element_and_page_names_nothing_outside():
    """Whatever it holds; half a character can be written to a file too."""
    record = record_of((HOSTILE, HOSTILE), question=HOSTILE, question_id=HOSTILE)
    references = {HOSTILE: Reference(HOSTILE, (HOSTILE,))}
    page = page_of([(record, predicted(record, HOSTILE))], references)
    before, data, after = re.split('(?<=id="data">)(.*?)(?=</script>)', page, flags=re.DOTALL)
    assert not re.search('[<>&\u2028\ud800-\udfff]', data) and page.encode()
    assert content_of(page)['questions'][0]['question'] == HOSTILE and page.count('</script>') == 2
    assert not re.search(r'https?:|src=|href=|url\(|@import|innerHTML| on\w+=', before + after)


class Page:
    def __init__(self, driver):
        self.driver, self.run = driver, driver.execute_script

    def texts(self, selector):
        elements = self.driver.find_elements('css selector', selector)
        return [element.text for element in elements if element.is_displayed()]

    def click(self, selector, number=0):
        self.driver.find_elements('css selector', selector)[number].click()

    def press(self, *keys):
        """Press keys, wherever the focus is; return the text of what has it then."""
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key, key)).perform()
        return self.driver.switch_to.active_element.text

    def questions(self):
        """Return the numbers of the questions that can be seen, as one str."""
        return ''.join(re.findall('问题(.)？', ''.join(self.texts('.row > span:nth-child(2)'))))

    def styles(self, selector, name):
        elements = 'return [...document.querySelectorAll(arguments[0])]'
        return self.run(f'{elements}.map((x) => getComputedStyle(x).{name})', selector)


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver', reason='the page is tried with selenium')
    if not shutil.which(CHROMIUM) or not shutil.which(DRIVER):
        pytest.skip(f'the page is tried in a browser: no {CHROMIUM} with its driver')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    offline = '--disable-background-networking --disable-component-update --disable-sync'
    for name in f'--headless=new --no-sandbox --disable-gpu --no-first-run {offline}'.split():
        options.add_argument(name)
    options.add_argument(f'--user-data-dir={tmp_path_factory.mktemp("chromium")}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(chromium, tmp_path):
    """Return a function that opens the page of some cases, see `page_of`. Nothing may complain."""

    def open_page(cases, *arguments, width=1200, **named):
        path = tmp_path / 'report.html'
        path.write_bytes(page_of(cases, *arguments, **named).encode())
        size = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
        chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        chromium.get(path.as_uri())
        return Page(chromium)

    yield open_page
    assert chromium.get_log('browser') == []
    requested = 'return performance.getEntriesByType("resource").length'
    assert chromium.execute_script(requested) == 0


@pytest.fixture
def five(show):
    """A page of five questions, each with another outcome or kind, and a sixth that it lacks."""
    cases, references = [], {f'Id{i}': GOLD for i in range(6)}
    references['Id4'] = Reference('Ｂｅｉｊｉｎɢ', ('天津', '某 VASTA'))
    for i, answer in enumerate(['北京', '北京市', '上海', '', 'BEIJING', '北京']):
        passages = ('在北京市', '北京'), (f'另一个 Passage {i}', '')
        record = record_of(*passages, question=f'问题{i}？', question_id=f'Id{i}')
        cases.append((record, predicted(record, answer, left={0: 0.9} if i == 2 else {})))
    return show(cases, references, shown=5)


def test_counts_and_filters(five):
    """Filters of a row show the questions of each; rows narrow it. Text is looked for in question,
    id, answers and passages: as it stands there, but for case."""
    extent = 'This page has the first 5 of 6 questions; score and counts are of all.'
    outcomes = ['✓ right 2', '≈ partly right 1', '✗ wrong 2', '∅ no answer 1']
    score = ['questions\n6', 'Accuracy\n0.3333', 'F1\n0.4667', 'Final\n0.4000', 'answered\n75.0%']
    assert five.texts('#extent') == [f'Shown: 5 of 5 questions. {extent}']
    assert five.texts('#outcomes button') == outcomes and five.texts('#score div') == score
    assert [text.split('\n')[0] for text in five.texts('#kinds button')] == [
        'no passage held the answer 1', 'too long 1', 'a passage that holds it left 1', 'outvoted 1'
    ]  # fmt: skip
    for row, number, found in (
        ('outcomes', 2, '24'), ('outcomes', 0, '024'), ('kinds', 0, '4'), ('kinds', 2, '24')
    ):  # fmt: skip
        five.click(f'#{row} button', number)
        assert five.questions() == found, (row, number)
    assert len(five.texts('[aria-pressed=true]')) == 4
    five.press('/', 'id4')
    assert five.questions() == '4' and five.texts('#extent')[0].startswith('Shown: 1 of 5 questi')
    five.click('#all')
    assert five.questions() == '01234' and not five.run('return search.value')
    for text, found in {
        '问题3': '3', 'ID3': '3', 'passage 3': '3', 'beijing': '4', 'ｂｅｉｊｉｎɢ': '4',
        'vasta': '4', '.*': '', 'id3问': '',
    }.items():  # fmt: skip
        five.press('/', 'ESCAPE', text)
        assert five.questions() == found, text


def test_keyboard_alone_is_enough(five):
    """The keys that the page names, and Tab and Space for the rest."""
    assert '问题0？' in five.press('j') and '问题1？' in five.press('j', 'j', 'k')
    five.press('ENTER', 'TAB')
    assert len(five.texts('.details')) == 1
    assert five.run('return document.activeElement.ariaLabel') == 'Candidates'
    assert '问题0？' in five.press('k') and '问题0？' in five.press('k')  # out of the details
    five.press('/', 'jk/')
    assert five.run('return search.value') == 'jk/' and five.questions() == ''
    assert '问题2？' in five.press('ESCAPE', 'id2', 'TAB', 'j') and five.questions() == '2'
    assert '问题2？' in five.press('ESCAPE') and five.questions() == '01234'
    five.run('document.querySelector("h1").tabIndex = -1; document.querySelector("h1").focus()')
    assert five.press('TAB', 'TAB', 'SPACE').startswith('≈ partly') and five.questions() == '1'
    assert five.run('return getComputedStyle(document.activeElement).outlineStyle') == 'solid'


def test_question_opens_to_all_that_is_told(show):
    """The answer is marked at its place only, in other passages wherever it stands; 𠮷 is one
    character of Python's."""
    record = record_of(('𠮷家，𠮷家', ''), ('𠮷𠮷家和𠮷家', '𠮷家'), ('天津', ''), ('不', ''))
    prediction = predicted(
        record, '𠮷家', (1, 4, 6), {2: 0.75},
        {0: [0.5, 0.25, 1e-5], 1: [1.0, 0.9, 0.8], 3: []}, [('家', True), ('上海', False)],
    )  # fmt: skip
    page = show([(record, prediction)], {'a': Reference('𠮷家', ('𠮷家', '𠮷野家', '首都'))})
    page.click('.row')
    told = (
        'Right answer: 𠮷家; also: 𠮷野家 | 首都',
        'Answer given: 𠮷家, in passage 2, score 0.875',
    )
    assert page.texts('.details > p') == ['id: a', *told]
    candidates, votes = page.texts('table')
    assert candidates.endswith('𠮷家 0.875 -1.250\n家 0.875 -1.250\n上海 0.875 -1.250 not finished')
    assert votes == 'passage 𠮷 家 [SEP]\n2 1.000 0.900 0.800\n1 0.500 0.250 1e-5'
    widths = page.styles('.proba', 'backgroundSize')[:4]
    assert [float(re.search('[0-9.]+', each)[0]) for each in widths] == [100, 90, 80, 50]
    assert page.texts('.passages > li > p:first-child') == [
        'Passage 2 voted, with 0.720 for the whole answer labelled: 𠮷家',
        'Passage 1 voted, with 1e-6 for the whole answer',
        'Passage 4 took part, but was not asked about this answer',
        'Passage 3 left: probability of no answer 0.750',
    ]
    inner = 'return [...document.querySelectorAll(".passage")].map((x) => x.innerHTML)'
    marked = ['𠮷𠮷家和<mark>𠮷家</mark>', '<mark>𠮷家</mark>，<mark>𠮷家</mark>', '不', '天津']
    assert page.run(inner) == marked
    page.click('.row')
    assert page.texts('.details') == []


def test_record_that_was_not_asked_says_why(show):
    record = {'id': None, 'question': None, 'passages': [{'passage': '在北京', 'answer': '北京'}]}
    page = show([(record, {'id': None, 'question': None, 'text': '', 'error': 'no question'})])
    page.click('.row')
    assert page.texts('.row') == ['∅ no answer\n(no question)\nanswer (none)']
    assert page.texts('.details > p') == ['id: (none)', 'It was not asked: no question.']
    assert page.texts('.passages p') == ['Passage 1 labelled: 北京', '在北京']


def test_hostile_data_is_text(show):
    """Nothing of it is run, even if it became HTML; what cannot be seen is named. From right to
    left it stands so, and what is around it stays where it is."""
    passage = '\u202e<img src=x onerror=alert(1)>\x00\t\u200f<b>粗</b>\ud842'
    record = record_of((passage, HOSTILE), ('שלום 1', ''), question=HOSTILE, question_id='a')
    prediction = predicted(record, '<b>', others=[(HOSTILE, False)])
    page = show([(record, prediction)], {'a': Reference(HOSTILE, (passage, HOSTILE))})
    page.click('.row')
    assert page.texts('.passage') == [
        '[U+202E]<img src=x onerror=alert(1)>[U+0000][U+0009][U+200F]<b>粗</b>[U+D842]', 'שלום 1'
    ]  # fmt: skip
    assert page.texts('mark') == ['<b>']
    shown = '</script><!--<script>alert(1)</script>&lt;{{data}}{{policy}}"\'[U+2028][U+202E]'
    assert page.texts('.row > span:nth-child(2)') == [f'{shown}[U+0000][U+D842]']
    assert page.run('return document.querySelectorAll("script, img, .passage b").length') == 2
    assert page.styles('.passage', 'direction') == ['ltr', 'rtl']
    assert {*page.styles('.passage, .row bdi', 'unicodeBidi')} == {'isolate'}
    assert page.driver.get_log('browser') == []
    page.run("""document.body.setAttribute("onclick", "window.ran = 1"); document.body.click();
        const script = document.createElement("script"); script.textContent = "window.ran = 1";
        document.body.append(script); new Image().src = "http://127.0.0.1:9/";""")
    time.sleep(0.3)  # as long as it takes to ask in vain
    assert page.run('performance.clearResourceTimings(); return window.ran') is None
    refused = [each['message'] for each in page.driver.get_log('browser')]
    assert len(refused) == 3 and all('Content Security Policy' in each for each in refused)


def test_page_never_scrolls_sideways_and_text_stands_out(show):
    """On a phone, what is wide scrolls by itself: a long answer, long words."""
    beyond = 'return [...document.querySelectorAll(arguments[0])].filter((x) => '
    beyond += 'x.getBoundingClientRect().right > innerWidth).length'
    answer = 'W' * 300
    record = record_of(*[(f'第{i}{answer * 3}', answer) for i in range(5)], question='问' * 90)
    prediction = predicted(record, answer, others=[(answer, False)] * 8)
    references = {'a': Reference(answer * 2, (answer * 2,) * 3)}
    page = show([(record, prediction)], references, width=360)
    page.click('.row')
    assert page.run('return document.documentElement.scrollWidth - innerWidth') <= 0
    assert page.run(beyond, '.row *, .details > *, .passages *') == 0
    page.run('document.querySelector(".wide:has(.votes)").scrollLeft = 1e6')
    assert page.run(beyond, '.votes tr > :last-child') == 0  # the last can be reached
    for scheme, lighter in ('light', 'backgroundColor'), ('dark', 'color'):  # as the system's
        features = {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
        page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', features)
        colours = {name: page.styles('body', name)[0] for name in ('color', 'backgroundColor')}
        brightness = {name: sum(map(int, re.findall(r'\d+', colours[name]))) for name in colours}
        assert brightness.pop(lighter) - sum(brightness.values()) > 500
