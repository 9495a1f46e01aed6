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
TOKENIZER = types.SimpleNamespace(  # a token is a character, but for those of Latin words
    ids_to_tokens=lambda ids: [*ids],
    tokenize=lambda text: ['[CLS]', *re.findall('[a-z]+|.', text), '[SEP]'],
    encode=lambda text: (TOKENIZER.tokenize(text), None),
)
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
    return report.as_text(answer, passages).split('\n')


@pytest.mark.parametrize(
    ('passages', 'answer', 'lines'),
    [
        # in the order of the votes, each with its number as given; who left comes last
        (['天津北京', '在北京。', '在北京市，北京'],
         answer_of([LEFT, vote(0.5, 0.5, 1.0), vote(0.9, 0.8, 1.0)], passage=2),
         ['answer: 北京 (score 0.500)',
          'passage 3 votes: 北 0.90  京 0.80  [SEP] 1.00', '  在[北京]市，[北京]',
          'passage 2 votes: 北 0.50  京 0.50  [SEP] 1.00', '  在[北京]。',
          'passage 1 left: no answer 0.99', '  天津[北京]']),
        # equal ones once; a list of names, however they are joined; its place is marked to the end
        (['(甲、乙)', '甲；乙丙', '(甲、乙)'],
         answer_of([vote(1.0), vote(0.9), vote(1.0)], '甲、乙)', start=1),
         ['answer: 甲、乙) (score 0.500)', 'passage 1 = 3 votes: 甲 1.00', '  ([甲、乙)]',
          'passage 2 votes: 甲 0.90', '  [甲；乙]丙']),
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


def predicted(record, text='', place=(None, None, None), left=(), probs=(), others=(), prefer=()):
    """Return the prediction for a record; left: {number of a passage: its no_answer_prob};
    probs: {number: token_probs}, 0.5 each if not given; others: further (text, finished);
    prefer: {number: what it preferred, a str}, the answer itself if not given."""
    score, left, probs = {'score': 0.875, 'log_score': -1.25}, dict(left), dict(probs)
    candidates = [{'text': text, **score, 'finished': True}]
    candidates += [{'text': each, **score, 'finished': finished} for each, finished in others]
    tokens, prefer = [*text, '[SEP]'], dict(prefer)
    votes = [
        {'no_answer_prob': left.get(i, 0.1), 'has_answer': i not in left,
         'token_probs': [] if i in left else probs.get(i, [0.5] * len(tokens)),
         'preferred': [] if i in left else [*prefer.get(i, text), '[SEP]']}
        for i in range(len(record['passages']))
    ]  # fmt: skip
    return {
        'id': record['id'], 'question': record['question'], 'text': text, **score,
        **dict(zip(('passage', 'start', 'end'), place, strict=True)),
        'tokens': tokens, 'token_votes': [0.25] * len(tokens), 'next_tokens': [[]] * len(tokens),
        'candidates': candidates, 'votes': votes,
    }  # fmt: skip


def page_of(cases, references=None, shown=1000, comparison=None, **settings):
    """Return the page of (record, its prediction) pairs; a token is a character."""
    settings = {'max_p_len': 256, 'passage_stride': 0, 'vote': 'token', **settings}
    constants = types.SimpleNamespace(report=shown, output_dir='of/run', epochs=8, **settings)
    scored, tally = [], Tally()
    for record, prediction in cases:
        score = None
        if record['id'] in (references or ()):
            score = score_answer(one_line(prediction['text']), references[record['id']])
            tally.add(score)
        scored.append((record, prediction, score))
    score = {**tally.result(), 'Answered': 0.75} if references else None
    told = constants, 'of/data.json', comparison
    return report.as_html(iter(scored), references, score, TOKENIZER, *told)


def content_of(page):
    return json.loads(re.search('id="data">(.*?)</script>', page, re.DOTALL)[1])


def shown_of(record, prediction, reference=GOLD, **settings):
    """Return what a page has of its only question."""
    page = page_of([(record, prediction)], {record['id']: reference}, **settings)
    return content_of(page)['questions'][0]


def judged(*arguments, **settings):
    shown = shown_of(*arguments, **settings)
    return (*shown['labels'],)


def test_first_questions_are_shown_and_all_are_counted():
    answers = {'a': '北京', 'b': '北京市', 'c': '上海', 'd': ''}
    records = [record_of(('在北京市', '北京'), question_id=each) for each in answers]
    cases = [(each, predicted(each, answers[each['id']])) for each in records]
    without_id = {**records[0], 'id': None}
    cases.append((without_id, predicted(without_id, '北京')))
    content = content_of(page_of(cases, dict.fromkeys(answers, GOLD), shown=2))
    outcomes = ['right', 'partly right', 'wrong', 'answered', 'no answer']
    assert content['filters']['outcome'] == [[outcome, 1, ''] for outcome in outcomes]
    assert [each['id'] for each in content['questions']] == ['a', 'b'] and content['total'] == 5
    kinds = [(kind, count) for kind, count, _ in content['filters']['kind']]
    assert kinds == [('found in part, or with more', 1), ('misread', 2)]
    assert (content['run'], content['dataset']) == ('of/run', 'of/data.json')
    assert content['settings'] == {'vote': 'token', 'max_p_len': 256, 'passage_stride': 0}
    content = content_of(page_of(cases))
    assert content['score'] is None and not content['filters']['kind']
    assert content['filters']['outcome'] == [['answered', 4, ''], ['no answer', 1, '']]
    assert all('gold' not in question for question in content['questions'])


@pytest.mark.parametrize(
    'answer, gold, left, prefer, kind',
    [
        ('北，\x01 京', '北京', '', '', None),  # scored as a line of predictions
        ('Élan', 'élAN', '', '', 'other characters only'),  # although no passage holds it either
        ('天', '天津', '', '', 'no passage holds it'),
        ('3', '5', '', '', 'no passage holds it'),  # neither of 1.5, 15 and 1,500 is 5
        ('在北京', '北京', '01', '', 'found in part, or with more'),
        ('北', '北京', '', '', 'found in part, or with more'),
        ('1', '15', '', '', 'misread'),  # no part of it
        ('上海', '北京', '01', '', 'all that hold it left'),
        ('', '北京', '012', '', 'all that hold it left'),
        ('上海', '北京', '0', '上海', 'misread'), ('，', '北京', '0', '在', 'misread'),
        ('上海', '北京', '0', '北', 'outvoted'), ('', '北京', '0', '北', 'outvoted'),
        # where the two part, whatever was preferred before
        ('在天津', '在北京', '1', '北北', 'outvoted'), ('在天津', '在北京', '1', '在上', 'misread'),
        # the one with the longest common beginning, or either of two
        ('在，天', '在北京|北京', '1', '北京', 'misread'), ('上', '海|北京', '', '海', 'outvoted'),
    ],
)  # fmt: skip
def test_what_went_wrong(answer, gold, left, prefer, kind):
    """The first kind that fits. Every passage that holds 北京 votes as `prefer` says."""
    record = record_of(('在北，京', ''), ('北京15', '北京'), ('上海1.5，1,500', ''))
    left = {int(i): 0.9 for i in left}
    preferred = dict.fromkeys(range(2), prefer) if prefer else {}
    prediction = predicted(record, answer, left=left, prefer=preferred)
    outcome, *found = judged(record, prediction, Reference(gold, tuple(gold.split('|'))))
    assert found == [kind] * bool(kind) and (outcome == 'right') == (kind is None)


def test_where_answers_are_voted_on_a_passage_chose_all_up_to_where_they_part():
    """By itself each wrote another beginning, so one token alone says nothing."""
    record = record_of(('在北京', '北京'), ('上海', ''))
    for wrote, kind in ('北京', 'outvoted'), ('在京', 'misread'):
        prediction = predicted(record, '北海', probs={0: []}, prefer={0: wrote})
        prediction.update(token_votes=[], next_tokens=[])
        shown = shown_of(record, prediction)
        assert (shown['labels'][1], shown['step'], shown['expected']) == (kind, 1, ['京'])


@pytest.mark.parametrize(
    ('length', 'settings', 'kind'),
    [(6, {}, 'misread'), (5, {}, 'cut off before it'), (3, {'passage_stride': 2}, 'misread')],
)
def test_only_what_is_read_of_a_passage_holds_an_answer(length, settings, kind):
    """Tokens of the passage, characters or not. With windows all is read."""
    record = record_of(('seven，，，北京北京', '北京'), ('天津', ''))
    prediction = predicted(record, '天津')
    assert judged(record, prediction, max_p_len=length + 2, **settings) == ('wrong', kind)


def test_votes_are_those_on_these_passages():
    """An incomplete record has none; the script can be changed to ask something else of one.
    Nothing holds the empty answer."""
    record = {'id': 'a', 'passages': [{'passage': '在北京'}]}
    prediction = {'id': 'a', 'question': None, 'text': '', 'error': 'no question'}
    for passages in record['passages'], None:
        told = judged({**record, 'passages': passages}, prediction)
        assert told == ('no answer', 'not asked')
    prediction = predicted(record_of(('在上海', ''), ('重庆', '')), '上海', (0, 1, 3))
    shown = shown_of(record, prediction)
    assert shown['labels'] == ['wrong', 'not asked']
    passage = {'numbers': [0], 'pieces': [['在', ''], ['北京', 'right']], 'label': ''}
    assert shown['passages'] == [passage]
    record, empty = record_of(('在，北京', '')), Reference('', ('，',))
    assert judged(record, predicted(record, '北京'), empty) == ('wrong', 'no passage holds it')


@pytest.mark.parametrize(
    ('text', 'passage', 'found'),
    [
        ('ＢＢc', 'a bB。C bbc', ['bB。C', 'bbc']), ('甲,乙', '甲、 乙；甲乙', ['甲、 乙', '甲乙']),
        ('5', '5，15，1.5，1,500，5', ['5', '5']), ('1500', '１，５００元', ['１，５００']),
        ('400', '400，800米', ['400']),  # a list
        ('15', '1.5', []), ('6', '2005.6.1', ['6']), ('5', '在5.', ['5']), ('，', '，', []),
        ('aa', 'aaa', ['aa', 'aa']), ('十', '𠮷十İ', ['十']),
        ('《甲》', '《甲》、甲》', ['《甲》', '甲》']),  # what does not count belongs to it too
    ],
)  # fmt: skip
def test_places_are_where_the_score_sees_a_text(text, passage, found):
    """Width, case, separators do not count; a number is found as a whole only."""
    spans = sorted(report.places([text], passage))
    assert [passage[start:end] for start, end in spans] == found


def test_every_passage_that_holds_an_answer_is_marked():
    """The given one and the right ones, also where they overlap."""
    passages = '在北京市', '北，京', '天津和北京', '天津'
    record = record_of(*((passage, '') for passage in passages))
    reference = Reference('京', ('京市', '天津'))
    shown = shown_of(record, predicted(record, '北京', (0, 1, 3)), reference)
    pieces = [each['pieces'] for each in shown['passages']]
    assert {''.join(piece for piece, _ in each): each for each in pieces} == {
        '在北京市': [['在', ''], ['北', 'given'], ['京', 'both'], ['市', 'right']],
        '北，京': [['北，京', 'given']],
        '天津和北京': [['天津', 'right'], ['和', ''], ['北京', 'given']],
        '天津': [['天津', 'right']],
    }  # fmt: skip


def test_passages_are_in_the_order_of_their_votes():
    """As an answer's own: the product of all probabilities; of equal ones the surer, then the
    first; then not asked; then left. Equal passages that voted alike are one."""
    record = record_of(*((f'在{i % 7}北京', '') for i in range(8)))
    probs = {0: [0.5, 0.5, 0.5], 2: [0.9, 0.9, 0.1], 3: [0.1, 0.9, 0.9], 4: [2 / 3] * 3, 6: []}
    prediction = predicted(record, '北京', (2, 2, 4), {1: 0.9, 5: 0.8}, probs, [('', True)])
    prediction['votes'][3]['no_answer_prob'] = 0.05
    prediction['candidates'][0].update(score=1 / 30000, log_score=-math.inf)  # no JSON
    shown = shown_of(record, prediction)
    numbers = [each['numbers'] for each in shown['passages']]
    assert numbers == [[4], [0, 7], [3], [2], [6], [5], [1]]
    assert shown['passages'][0]['token_probs'] == [0.6667] * 3
    numbers = {'score': 3.333e-05, 'log_score': None}
    assert shown['candidates'][0] == {'text': '北京', **numbers, 'finished': True}


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

    def open_page(cases, *arguments, width=1200, address='', **named):
        path = tmp_path / 'report.html'
        path.write_bytes(page_of(cases, *arguments, **named).encode())
        size = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
        chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        chromium.get(f'{path.as_uri()}{address}')
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
        prediction = predicted(record, answer, left={0: 0.9} if i == 2 else {})
        cases.append((record, {**prediction, 'score': 0.9 if i in (0, 4) else i / 10}))
    return show(cases, references, shown=5)


def test_counts_and_filters(five):
    """Filters of a row show the questions of each; rows narrow it. Text is looked for in question,
    id, answers and passages: as it stands there, but for case."""
    outcomes = ['✓ right 2', '≈ partly right 1', '✗ wrong 2', '∅ no answer 1']
    score = ['questions\n6', 'Accuracy\n0.3333', 'F1\n0.4667', 'Final\n0.4000', 'answered\n75.0%']
    assert five.texts('#extent') == ['Shown: 5 of 5 questions, the first of 6; counts are of all.']
    assert five.texts('#outcome button') == outcomes and five.texts('#score div') == score
    assert [text.split('\n')[0] for text in five.texts('#kind button')] == [
        'no passage holds it 1', 'found in part, or with more 1', 'all that hold it left 1',
        'misread 1',
    ]  # fmt: skip
    for row, number, found in (
        ('outcome', 2, '42'), ('outcome', 0, '420'), ('kind', 0, '4'), ('kind', 2, '42')
    ):  # fmt: skip
        five.click(f'#{row} button', number)
        assert five.questions() == found, (row, number)
    assert len(five.texts('[aria-pressed=true]')) == 4
    five.press('/', 'id4')
    assert five.questions() == '4' and five.texts('#extent')[0].startswith('Shown: 1 of 5 questi')
    five.click('#all')
    assert five.questions() == '42130' and not five.run('return search.value')
    # nothing is right and misread: what was pressed last counts
    five.click('#kind button', 3)
    five.click('#outcome button', 0)
    assert five.questions() == '0' and five.texts('[aria-pressed=true]') == ['✓ right 2']
    five.click('#all')
    for text, found in {
        '问题3': '3', 'ID3': '3', 'passage 3': '3', 'beijing': '4', 'ｂｅｉｊｉｎɢ': '4',
        'vasta': '4', '.*': '', 'id3问': '',
    }.items():  # fmt: skip
        five.press('/', 'ESCAPE', text)
        assert five.questions() == found, text


def test_what_is_searched_for_is_marked(five):
    """Wherever it can be seen, also across the borders of other marks; nothing else is."""
    found = 'return [...CSS.highlights.get("found")].map(String)'
    five.press('/', '京市')
    assert five.run(found) == ['京市'] and five.questions() == '42130'
    five.click('.row', 4)
    assert five.run(found) == ['京市'] * 2
    five.press('/', 'ESCAPE', 's')
    assert five.run(found) == ['S', 's', 's']  # of [SEP], and of Passage 0
    five.press('ESCAPE')
    assert five.run(found) == []


def test_mistakes_come_first_and_headings_sort(five):
    """Of each outcome the surest first. Once more turns the order, equal ones stay so."""
    assert five.questions() == '42130'
    for number, found in (4, '40321'), (4, '12340'), (1, '01234'), (1, '43210'), (0, '42130'):
        five.click('#headings button', number)
        assert five.questions() == found, number
    assert five.texts('.row b')[1:] == ['✗ wrong', '≈ partly right', '∅ no answer', '✓ right']


def test_address_opens_a_question_and_opening_one_sets_it(show, five):
    assert five.run('return location.hash') == ''
    five.click('.row', 1)
    assert five.run('return location.hash') == '#Id2'
    five.click('#outcome button', 0)
    five.run('location.hash = "#Id3"')
    time.sleep(0.1)
    assert five.questions() == '42130' and len(five.texts('.details')) == 2
    record = record_of(('在北京', ''), question_id='五 #1')
    page = show([(record, predicted(record, '北京'))], address='?#%E4%BA%94%20%231')
    assert page.texts('.details > p')[0] == 'id: 五 #1'
    assert page.run('return document.title') == 'of/run, of/data.json, answers and votes'
    assert page.texts('header')[0].startswith(
        'Answers and votes, of/run\nof/data.json, vote = token, max_p_len = 256, passage_stride = 0'
    )


def test_keyboard_alone_is_enough(five):
    """The keys that the page names, and Tab and Space for the rest."""
    assert '问题4？' in five.press('j') and '问题2？' in five.press('j', 'j', 'k')
    five.press('ENTER', 'TAB')
    assert len(five.texts('.details')) == 1
    assert five.run('return document.activeElement.ariaLabel') == 'Votes'
    assert '问题4？' in five.press('k') and '问题4？' in five.press('k')  # out of the details
    five.press('/', 'jk/')
    assert five.run('return search.value') == 'jk/' and five.questions() == ''
    assert '问题1？' in five.press('ESCAPE', 'id1', 'TAB', 'TAB', *['TAB'] * 4, 'j')
    assert five.questions() == '1'
    assert '问题1？' in five.press('ESCAPE') and five.questions() == '42130'
    five.run('document.querySelector("h1").tabIndex = -1; document.querySelector("h1").focus()')
    assert five.press('TAB', 'TAB', 'SPACE').startswith('≈ partly') and five.questions() == '1'
    assert five.run('return getComputedStyle(document.activeElement).outlineStyle') == 'solid'


def test_question_opens_to_all_that_is_told(show):
    """𠮷 is one character of Python's. Where the answer parts from the right one, what its token
    had is told: if it is none of the next three, that it was less."""
    record = record_of(
        ('𠮷家，𠮷家', ''), ('𠮷𠮷家和𠮷家', '𠮷家'), ('𠮷野家', ''), ('不', ''), ('不', ''),
    )  # fmt: skip
    prediction = predicted(
        record, '𠮷家', (1, 1, 3), {2: 0.75, 3: 0.8, 4: 0.8},
        {0: [0.5, 0.25, 1e-5], 1: [1.0, 0.9, 0.8]}, [('家', True), ('上海', False)], {0: '𠮷野'},
    )  # fmt: skip
    prediction['candidates'][1]['log_score'] = -1.0
    prediction['next_tokens'][1] = [['家', 0.2], ['a', 0.1], ['b', 0.0002]]
    reference = Reference('𠮷野家', ('𠮷野家', '首都'))
    page = show([(record, prediction)], {'a': reference})
    page.click('.row')
    assert page.texts('.details > p') == [
        'id: a', f'all that hold it left: {report.KINDS["all that hold it left"]}.',
        'Right answer: 𠮷野家; also: 首都', 'Answer given: 𠮷家, in passage 2',
    ]  # fmt: skip
    candidates, votes = (text.replace('\n', ' ') for text in page.texts('table'))
    assert candidates.endswith(
        '𠮷家 0.875 -1.250 家 0.875 -1.000 dropped: it ended while another led '
        '上海 0.875 -1.250 not finished'
    )
    assert votes == (
        'passage 𠮷 0.250 家 0.250 野 below <0.001 [SEP] 0.250 '
        '2 1.000 0.900 0.800 1 0.500 0.250 野 <0.001'
    )
    assert page.texts('.point') == ['家\n0.250\n野 below <0.001', '0.900', '0.250\n野']
    widths = page.styles('.proba', 'backgroundSize')[:4]
    assert [float(re.search('[0-9.]+', each)[0]) for each in widths] == [100, 90, 80, 50]
    assert page.texts('.passages > li > p:first-child') == [
        'Passage 2 voted, with 0.720 for the whole answer labelled: 𠮷家',
        'Passage 1 voted, with <0.001 for the whole answer',
        'Passage 3 left: probability of no answer 0.750',
        'Passage 4 = 5 left: probability of no answer 0.800',
    ]
    inner = 'return [...document.querySelectorAll(".passage")].map((x) => x.innerHTML)'
    given = '<mark class="given" lang="zh">𠮷家</mark>'
    right = '<mark class="right" lang="zh">𠮷野家</mark>'
    marked = [f'𠮷{given}和{given}', f'{given}，{given}', right, '不']
    assert [re.sub('</?span[^>]*>', '', each) for each in page.run(inner)] == marked
    colours = page.styles('.passage mark.given, .passage mark.right', 'backgroundColor')
    assert len({*colours}) == 2
    boxes = 'return [...document.querySelectorAll(".beside > *")].map((x) => x.offsetTop)'
    assert len({*page.run(boxes)}) == 1  # votes beside passages
    page.click('.row')
    assert page.texts('.details') == []


def test_one_candidate_needs_no_table_and_answers_of_single_passages_are_told(show):
    """With vote = 'answer' no token was voted on."""
    record = record_of(('在北京', '北京'), ('上海', ''))
    prediction = predicted(record, '上海', (1, 0, 2), probs={0: []}, prefer={0: '北##京'})
    prediction.update(token_votes=[], next_tokens=[])
    page = show([(record, prediction)], {'a': GOLD})
    page.click('.row')
    assert page.texts('h2') == ['Votes', 'Passages']
    votes = 'passage 上 北 海 [SEP] 2 0.500 0.500 0.500 1 wrote 北京'
    assert page.texts('table')[0].replace('\n', ' ') == votes


def test_what_changed_is_told_and_filtered(show):
    """A changed question shows both answers and both votes; an OTHER may lack them."""
    record = [{**record_of(('在北京', ''), ('上海', '')), 'id': each} for each in '0123']
    record = [{**each, 'question': f'问题{each["id"]}？'} for each in record]
    new = [*map(predicted, record, ['北京', '上海', '上海', '京'])]
    old = [*map(predicted, record, ['上海', '北京', '上海', '海'])]
    old[1] = {name: old[1][name] for name in ('id', 'question', 'text')}
    line = {
        'compared_with': 'before', 'better': 1, 'worse': 1, 'same': 1234,
        'Accuracy': {'difference': -0.0125, 'interval': [-0.03, 0.005]}, 'p': 0.625,
        'constants': {'vote': ['token', 'answer']}, 'weights': 'the same',
    }  # fmt: skip
    comparison = types.SimpleNamespace(  # see support/comparison.py
        others=[(each, score_answer(each['text'], GOLD)) for each in old],
        outcome=['better', 'worse', 'same', 'same'].__getitem__, line=line,
    )  # fmt: skip
    page = show(zip(record, new, strict=True), dict.fromkeys('0123', GOLD), comparison=comparison)
    facts = [text.replace('\n', ' ') for text in page.texts('#compared div')]
    assert facts == [
        'compared with before', 'better 1', 'worse 1', 'same 1,234',
        'Accuracy −0.0125 (−0.0300 to +0.0050)', 'p 0.625', 'constants vote: token → answer',
        'weights the same',
    ]  # fmt: skip
    assert page.texts('#change button') == ['better 1', 'worse 1', 'answers differ 3']
    for number, found in (0, '0'), (1, '10'), (2, '130'):
        page.click('#change button', number)
        assert page.questions() == found, number
    page.press('j', 'ENTER', 'j', 'j', 'ENTER')
    votes = page.texts('.details')
    assert page.texts('.details h2:not(.wide)') == [
        'Votes', 'Before, in before', 'Passages', 'Votes', 'Before, in before', 'Votes before',
        'Passages',
    ]  # fmt: skip
    assert '✓ right 北京' in votes[0] and '✗ wrong 上海' in votes[1]
    page = show(zip(record, new, strict=True), dict.fromkeys('0123', GOLD))
    assert page.texts('#change button') == page.texts('#compared div') == []


def test_record_that_was_not_asked_says_why(show):
    record = {'id': None, 'question': None, 'passages': [{'passage': '在北京', 'answer': '北京'}]}
    page = show([(record, {'id': None, 'question': None, 'text': '', 'error': 'no question'})])
    page.click('.row')
    assert page.texts('.row') == ['∅ no answer\n(no question)\n(none)\n–']
    assert page.texts('.details > p') == ['id: (none)', 'It was not asked: no question.']
    assert page.texts('.passages p') == ['Passage 1 labelled: 北京', '在北京']


def test_silence_where_there_is_no_answer_is_scored_apart(show, monkeypatch):
    """The nested scores are told, too."""
    record, score = record_of(('在北京', '')), {'Accuracy': 0.5, 'F1': 0.5, 'Final': 0.5}
    apart = {'Unanswerable': {'total': 1, 'Silent': 0.25}, 'Answerable': {**score, 'total': 3}}
    monkeypatch.setattr(Tally, 'result', lambda _: {**score, 'total': 4, **apart})
    page = show([(record, predicted(record))], {'a': GOLD})
    assert [text.replace('\n', ' ') for text in page.texts('#score div')][-4:] == [
        'Accuracy of 3 answerable 0.5000', 'F1 of 3 answerable 0.5000',
        'Final of 3 answerable 0.5000', 'silent of 1 unanswerable 25.0%',
    ]  # fmt: skip


def test_thousand_questions_are_there_within_a_second(show):
    cases = []
    for i in range(1000):
        passages = ((f'第{i}个，在北京{"市" * 90}{k}', '北京') for k in range(20))
        record = record_of(*passages, question=f'问题{i}？', question_id=str(i))
        cases.append((record, predicted(record, '北京' if i % 3 else '上海')))
    page = show(cases, dict.fromkeys(map(str, range(1000)), GOLD))
    ready = 'const [page] = performance.getEntriesByType("navigation"), start = performance.now();'
    layout = 'document.querySelector("#questions > :last-child").getBoundingClientRect();'
    took = page.run(f'{ready} {layout} return page.loadEventEnd + performance.now() - start')
    assert took < 1000 and len(page.driver.find_elements('css selector', '.row')) == 1000


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
    assert page.texts('.passage mark')[1] == '<b>'
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
    assert page.run('return document.querySelector(".row").getBoundingClientRect().top') < 500
    assert page.texts('kbd') == []
    assert page.run(beyond, '.row *, .details > *, .passages *') == 0
    page.run('document.querySelector(".wide:has(.votes)").scrollLeft = 1e6')
    assert page.run(beyond, '.votes tr > :last-child') == 0  # the last can be reached
    for scheme, lighter in ('light', 'backgroundColor'), ('dark', 'color'):  # as the system's
        features = {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
        page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', features)
        colours = {name: page.styles('body', name)[0] for name in ('color', 'backgroundColor')}
        brightness = {name: sum(map(int, re.findall(r'\d+', colours[name]))) for name in colours}
        assert brightness.pop(lighter) - sum(brightness.values()) > 500
