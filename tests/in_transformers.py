"""Show that transformers opens a trained reader, and that it reads there as it does here.

    python tests/in_transformers.py PYTHON READER [PASSAGES.json]

PYTHON: of an environment with torch and transformers, where a process gets JSON and returns JSON,
and imports nothing of the project; READER: an output folder of `train`; PASSAGES.json: a dataset,
the demo's unless given. Prints a line for each claim; the exit status is 1 if one does not hold.
"""

import json
import os
import subprocess
import sys

THERE = '--there'  # starts the process of the other environment
if THERE in sys.argv:
    import torch
    import transformers
else:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import numpy as np

    import task_reading_comprehension_by_seq2seq as task
    from support import paths, records
    from support.answers import Hypothesis

PASSAGES, PAIRS = 100, 20  # so many are compared, evenly spread over the dataset
BEGINNING = 3  # tokens of an answer that are written, at most
TOLERANCE = 1e-4  # of a probability


def there(folder):
    """Open a folder with transformers; encode and read what comes in on standard input."""
    replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)  # what libraries print must not come between
    asked = json.load(sys.stdin)
    options = {'output_loading_info': True, 'ignore_mismatched_sizes': True}  # they are told
    model, found = transformers.BertForMaskedLM.from_pretrained(folder, **options)
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    kinds, probabilities = ('missing', 'unexpected', 'mismatched'), []
    for row, first in asked['rows']:
        with torch.inference_mode():
            logits = model(**{name: torch.tensor([x]) for name, x in row.items()}).logits
        probabilities.append(logits[0, first:].softmax(-1).tolist())  # [tokens, vocab]
    reply = {
        'wrong': [f'{kind}: {name}' for kind in kinds for name in found[f'{kind}_keys']],
        'weights': len([*model.parameters()]),
        'vocab_size': model.config.vocab_size,
        'tokens': len(tokenizer),
        'ids': [tokenizer(text)['input_ids'] for text in asked['texts']],
        'probabilities': probabilities,
    }
    json.dump(reply, replies)


def spread(items, count):
    """Return `count` of the items, evenly spread, or all where there are fewer."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def known(text, tokenizer):
    """Return a text with a space for each character that the vocabulary lacks."""
    lacks = {x for x in set(text) if tokenizer._token_unk_id in tokenizer.encode(x)[0]}
    return ''.join(' ' if x in lacks else x for x in text)


def pair_of(reader, record, passage):
    """Return the token ids of passage and question, and of the beginning of the answer.

    Where the passage has none, its own beginning is to be written.
    """
    question = reader.encode(record['question'], [passage['passage']])
    answer = task.unify_separators(passage['answer'] or passage['passage'])
    answer_ids = reader.tokenizer.encode(answer)[0][1:-1]
    return question.p_token_ids[0] + question.q_token_ids, answer_ids[:BEGINNING]


def row_of(source, answer):
    """Return what transformers is to read, and the first token after which it is to predict."""
    positions = np.arange(len(source) + len(answer))
    seen = task.unilm_mask(positions[:, None], positions, len(source))  # [tokens, tokens]
    segment_ids = [0] * len(source) + [1] * len(answer)
    row = {'input_ids': source + answer, 'token_type_ids': segment_ids}
    return {**row, 'attention_mask': [seen.tolist()]}, len(source) - 1  # one for all heads


def write(source, answer):
    """Write an answer, whatever is predicted: a search, as `CachedUniLM.search_together` runs it.

    Returns what the reader predicts after the source and after each token of the answer, float32
    [1 + tokens, vocab].
    """
    probas = yield [source]
    predicted = [probas[0, 0]]
    for length in range(1, len(answer) + 1):
        probas = yield [Hypothesis(answer[:length])]
        predicted.append(probas[0, 0])
    return np.array(predicted)


def claims(reader, texts, pairs, theirs):
    """Yield for each claim whether it holds, and the figures; theirs: what `there` returned."""
    wrong, tokens, vocab_size = (theirs[name] for name in ('wrong', 'tokens', 'vocab_size'))
    found = ', '.join(wrong) or 'none missing, unexpected or mismatched'
    yield not wrong, f'{theirs["weights"]} weights: {found}'
    yield tokens == vocab_size, f'{tokens} tokens: vocab_size is {vocab_size}'
    both = [*zip(texts, theirs['ids'], strict=True)]
    others = [text for text, ids in both if reader.tokenizer.encode(text)[0] != ids]
    figures = f'{len(both) - len(others)} of {len(both)} passages have the same ids'
    yield not others, '; not '.join([figures, *(f'{text!r:.60}' for text in others)])
    searches = [write(*pair) for pair in pairs]
    ours = reader.unilm.search_together(searches, lambda probas: np.ones(len(probas), bool))
    both = zip(ours, theirs['probabilities'], strict=True)
    largest = np.max([np.abs(x - y).max() for x, y in both])  # NaN if any is
    figures = f'{sum(map(len, ours))} predictions of {len(pairs)} pairs differ by at most'
    yield largest <= TOLERANCE, f'{figures} {largest:.1e}; {TOLERANCE:.0e} is allowed'


def main(python, folder, path=''):
    """Ask both sides, and print what holds. Returns the exit status."""
    reader = task.load_reader(output_dir=folder, precision='float32')
    path = path or os.path.join(paths.DATA, 'demo', 'SogouQA.json')
    data = records.complete(records.load_questions(path))
    passages = [(record, passage) for record in data for passage in record['passages']]
    pairs = [pair_of(reader, *each) for each in spread(passages, PAIRS)]
    texts = [task.unify_separators(p['passage']) for _, p in spread(passages, PASSAGES)]
    read = [known(text, reader.tokenizer) for text in texts]
    changed = sum(text != other for text, other in zip(texts, read, strict=True))
    print(f'{changed} of {len(texts)} passages get spaces for what the vocabulary lacks')
    asked = json.dumps({'texts': read, 'rows': [row_of(*pair) for pair in pairs]})
    command, offline = [python, __file__, THERE, folder], {**os.environ, 'HF_HUB_OFFLINE': '1'}
    streams = {'input': asked, 'stdout': subprocess.PIPE, 'encoding': 'utf-8'}
    done = subprocess.run(command, env=offline, check=True, **streams)
    told = [*claims(reader, read, pairs, json.loads(done.stdout))]
    for holds, figures in told:
        print(figures if holds else f'FAILED: {figures}')
    return 0 if all(holds for holds, _ in told) else 1


if __name__ == '__main__':
    if THERE in sys.argv:
        there(sys.argv[-1])
    else:
        sys.exit(main(*sys.argv[1:]))
