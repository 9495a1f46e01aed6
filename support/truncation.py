"""What of questions is lost: characters not in the vocabulary, and tokens that are cut off."""

import collections
import itertools
import re
import unicodedata

from .answers import window_starts
from .bert import load_tokenizer
from .process import log
from .records import unanswerable


def report(path, records, unify, vocabulary, constants):
    """Say in one line, if there is anything to say, what of some records is lost.

    That is what `warnings` tells, and any answer that can never be a target. unify: a function of a
    passage to the text that is read, character by character; vocabulary: path.
    """
    tokenizer, _, _ = load_tokenizer(vocabulary)
    records = [record for record in records if not unanswerable(record)]
    passages = [record['passages'] for record in records]
    # In training the sum counts: of what is longer than its share, more may be learnt than is read
    # or written; what is not is learnt whole, but for a token where both are full.
    answers = [unify(p['answer']) for some in passages for p in some if p['answer']]
    are_cut = [is_longer(answer, constants.max_a_len, tokenizer) for answer in answers]
    texts = [(record['question'], [p['passage'] for p in record['passages']]) for record in records]
    found = warnings(texts, are_cut, unify, tokenizer, constants, least=0.02)
    never = sum(_never_targets(some, unify, constants) for some in passages)
    if never:
        found.append(f'{never} answers can never be learnt, as nothing that is read holds them')
    if found:
        log(f'{path}: {"; ".join(found)}')


def warnings(questions, are_cut, unify, tokenizer, constants, least=0.1):
    """Return what of one question or of many is lost, a list of str.

    questions: list of (question, passages), str and list of str; are_cut: of each answer whether it
    is cut off; unify: see `report`; least: share of unknown characters that is told of.
    """
    passages = [passage for _, some in questions for passage in some]
    questions = [question for question, _ in questions]
    found = _unknown([*questions, *passages], least, unify, tokenizer)
    if not constants.passage_stride:  # windows lose nothing
        size = constants.max_p_len - 2
        cut = [is_longer(unify(passage), size, tokenizer) for passage in passages]
        found += cut_off('passages', cut, 'max_p_len', constants)
    cut = [is_longer(question, constants.max_q_len - 1, tokenizer) for question in questions]
    found += cut_off('questions', cut, 'max_q_len', constants)
    return found + cut_off('answers', are_cut, 'max_a_len', constants)


def cut_off(what, are_cut, constant, constants):
    """Return [how many of some are cut off, and the cure], [] where none is; are_cut: of bool."""
    if not any(are_cut):
        return []
    cure = 'raise it, or give passage_stride' if constant == 'max_p_len' else 'raise it'
    after = f'{constant} = {getattr(constants, constant)} tokens'
    return [f'{sum(are_cut)} of {len(are_cut)} {what} are cut off after {after} ({cure})']


def _unknown(texts, least, unify, tokenizer):
    """Return [what share of the characters is unknown, and the cure], [] where it is below `least`.

    White space does not count; each distinct character is asked for once.
    """
    counts = collections.Counter(itertools.chain.from_iterable(texts))
    counts = {each: count for each, count in counts.most_common() if not each.isspace()}
    unk = tokenizer.token_to_id('[UNK]')
    unknown = [each for each in counts if unk in tokenizer.encode(unify(each))[0]]
    share = sum(map(counts.get, unknown)) / max(sum(counts.values()), 1)
    if share < least or not unknown:
        return []
    lacks = f'the vocabulary lacks {share:.0%} of the characters, such as {" ".join(unknown[:5])}'
    danger = 'each is read as [UNK], like any other'
    return [f'{lacks} ({danger}; train with the vocabulary of a whole BERT that has them)']


def is_longer(text, limit, tokenizer):
    """Whether a text has more tokens than a limit; most texts need not be tokenized for that."""
    # each token has a character, or several, of what the tokenizer makes of the text
    if len(unicodedata.normalize('NFD', text.lower())) <= limit:
        return False
    # each of these characters is a token
    if len(re.findall('[一-鿿，。、；：？！（）《》“”,]', text)) > limit:
        return True
    return len(tokenizer.tokenize(text)) - 2 > limit


def _never_targets(passages, unify, constants):
    """Count the answers whose parts no passage holds where `training_pair` looks for them.

    That is in the characters that are read, or in each window.
    """
    size, windows = constants.max_p_len - 2, []
    for passage in passages:
        text = unify(passage['passage'])
        for start in window_starts(len(text), size, constants.passage_stride):
            windows.append(text[start : start + size])

    def is_held(answer):
        return any(all(part in window for part in answer.split(' ')) for window in windows)

    return sum(not is_held(passage['answer']) for passage in passages if passage['answer'])
