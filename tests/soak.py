"""A soak of `predict -`: does it stay as fast and as small as it begins, whatever it is given?

    python tests/soak.py OUTPUT_DIR QUESTIONS.json [--minutes=60] [--seed=0]

Sends random questions of a file, one by one and in bursts, bad lines among them, to a reader that
`train` has left in OUTPUT_DIR. Standard error gets a line a minute, standard output a line of JSON:
memory at start (after a first minute, or a tenth of the time) and end, its slope, p50 and p99 of
the seconds to the answer, and failures. The exit status is 1 if there was any. Linux only.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, 'task_reading_comprehension_by_seq2seq.py')
BAD_LINES = (
    b'', b'{', b'[]', b'null', b'\xff\xfe', b'{"question": 1, "passages": []}', b'[' * 100_000,
    b'{"question": "a", "passages": "b"}', b'{"question": "\\ud800", "passages": ["a"]}',
)  # fmt: skip


class Reader:
    """A `predict -` at work: lines go in, as many come out."""

    def __init__(self, output_dir):
        command = [sys.executable, SCRIPT, 'predict', '-', f'--output_dir={output_dir}']
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, lines):
        """Send lines at once. Returns [(seconds to the answer, the answer, a dict), ...]."""
        begun, told = time.monotonic(), []
        # a burst may be more than a pipe holds while answers wait to be read
        writer = threading.Thread(target=self._send, args=[b''.join(b'%s\n' % x for x in lines)])
        writer.start()
        for _ in lines:
            answer = self.process.stdout.readline()
            if not answer:
                raise EOFError(f'it ended with status {self.process.wait()}')
            told.append((time.monotonic() - begun, json.loads(answer)))
        writer.join()
        return told

    def _send(self, content):
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def memory(self):
        """Return the resident bytes."""
        with open(f'/proc/{self.process.pid}/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    def end(self):
        """Close its standard input. Returns the exit status."""
        self.process.stdin.close()
        return self.process.wait(60)


def draw_lines(records, rng):
    """Draw what is sent at once: a list of (line, id that must be answered or None if bad)."""
    lines = []
    for _ in range(1 if rng.random() < 0.7 else rng.randrange(2, 65)):
        if rng.random() < 0.05:
            lines.append((rng.choice(BAD_LINES), None))
            continue
        record = {**rng.choice(records), 'id': f'{rng.random()}'}
        passages = record['passages']
        record['passages'] = rng.choices(passages, k=rng.randrange(1, 2 * len(passages) + 1))
        lines.append((json.dumps(record, ensure_ascii=rng.random() < 0.5).encode(), record['id']))
    return lines


def soak(reader, records, minutes, rng):
    """Ask until the time is over. Returns what is reported, a dict."""
    seconds, failures, begun = [], 0, time.monotonic()
    memory, shown = [], begun  # (lines so far, bytes)
    warm = begun + min(60, 6 * minutes)
    while time.monotonic() < begun + 60 * minutes:
        lines = draw_lines(records, rng)
        answers = reader.ask([line for line, _ in lines])
        for (took, told), (_, name) in zip(answers, lines, strict=True):
            seconds.append(took)
            is_right = 'error' in told if name is None else told.get('id') == name
            failures += not is_right or (name is not None and 'error' in told)
        if time.monotonic() > warm:
            memory.append((len(seconds), reader.memory()))
        if time.monotonic() > shown + 60:
            shown = time.monotonic()
            minute, megabytes = (shown - begun) / 60, reader.memory() >> 20
            said = f'{minute:.0f} minutes, {len(seconds)} lines, {failures} failures'
            print(f'{said}, {megabytes} MB', file=sys.stderr, flush=True)
    asked, resident = np.array(memory, float).T
    p50, p99 = np.percentile(seconds, [50, 99])
    told = {
        'start_mb': resident[0] / 1e6, 'end_mb': resident[-1] / 1e6,
        'bytes_per_line': np.polyfit(asked, resident, 1)[0], 'p50_seconds': p50, 'p99_seconds': p99,
    }  # fmt: skip
    told = {name: round(float(value), 4) for name, value in told.items()}
    return {'lines': len(seconds), 'failures': failures, **told}


def main():
    """Run the command line."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_stands)
    for name in 'output_dir', 'questions':
        parser.add_argument(name)
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    records = json.loads(pathlib.Path(options.questions).read_text(encoding='utf-8'))
    reader = Reader(options.output_dir)
    reader.ask([b'{}'])  # it is ready
    told = soak(reader, records, options.minutes, random.Random(options.seed))
    told['status'] = reader.end()
    print(json.dumps(told))
    return 1 if told['failures'] or told['status'] else 0


if __name__ == '__main__':
    sys.exit(main())
