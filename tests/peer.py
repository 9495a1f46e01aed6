"""One pass of PyTorch's extractive BERT over the passages of questions, a Side of `benchmark.py`.

It runs in an environment of its own, which has PyTorch and transformers, and imports nothing of the
project. Arguments: BertConfig's as JSON; precision. A line of JSON that comes in holds questions,
(p_token_ids of each passage, q_token_ids); one that goes out the seconds and the size of a batch.
"""

import json
import os
import sys
import time

import torch
import transformers


def read(model, sequences, size):
    """Read sequences, lists of token ids sorted by length, in padded batches of `size`."""
    for first in range(0, len(sequences), size):
        batch = sequences[first : first + size]
        token_ids = torch.zeros([len(batch), len(batch[-1])], dtype=torch.long)
        mask = torch.zeros_like(token_ids)
        for row, sequence in enumerate(batch):
            token_ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        model(input_ids=token_ids, attention_mask=mask)


def main():
    """Read each distinct passage with its question; the fastest of four sizes of a batch counts."""
    replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)  # what libraries print must not come between
    config, precision = sys.argv[1:]
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as TensorFlow uses
    model = transformers.BertForQuestionAnswering(transformers.BertConfig(**json.loads(config)))
    model.to(getattr(torch, precision)).eval()
    print(json.dumps('ready'), file=replies, flush=True)
    for line in sys.stdin:
        sequences = [[*p, *q] for ps, q in json.loads(line) for p in set(map(tuple, ps))]
        sequences.sort(key=len)
        times = []
        for size in 4, 8, 16, 32:
            start = time.perf_counter()
            with torch.inference_mode():
                read(model, sequences, size)
            times.append((time.perf_counter() - start, size))
        seconds, size = min(times)
        print(json.dumps({'seconds': seconds, 'size': size}), file=replies, flush=True)


if __name__ == '__main__':
    main()
