"""The six steps of reading (kexue.fm/archives/7115), as slow and plain as they come.

The judge of every faster reader: bert4keras's own decoder class and a full forward pass of
bert4keras's own model, over all passages padded to the longest, for every token of the answer.
"""

import numpy as np

from support.keras2 import bert4keras

AutoRegressiveDecoder = bert4keras.snippets.AutoRegressiveDecoder
sequence_padding = bert4keras.snippets.sequence_padding


class ReferenceDecoder(AutoRegressiveDecoder):
    """Answers from lists of token ids; `score` and `remaining` tell more about the last answer."""

    def __init__(self, model, end_id, max_a_len, mode, no_answer_bias=0.0):
        super().__init__(start_id=None, end_id=end_id, maxlen=max_a_len)
        self.model = model
        self.mode = mode
        self.no_answer_bias = no_answer_bias

    def forward(self, batch):
        """Return the probabilities at every position, float32 [rows, length, vocab]."""
        return self.model(batch, training=False).numpy()

    def answer(self, p_token_ids, q_token_ids, topk):
        """Return the token ids of the answer; arguments as `ReadingComprehension.encode` makes."""
        self.passages = p_token_ids
        self.remaining = np.arange(len(p_token_ids))
        output_ids = self.beam_search([p + q_token_ids for p in p_token_ids], topk).tolist()
        return output_ids[:-1] if output_ids[-1] == self.end_id else output_ids

    @AutoRegressiveDecoder.wraps(default_rtype='probas')
    def predict(self, inputs, output_ids, states):
        """Return the votes, float [beams, vocab]."""
        # step 1: the probability of each next token, given passage, question and the tokens so far
        token_ids, segment_ids = [], []
        for i in self.remaining:
            for source, beam in zip(inputs[i], output_ids, strict=True):
                token_ids.append(np.concatenate([source, beam]))
                segment_ids.append([0] * len(source) + [1] * len(beam))
        batch = [sequence_padding(token_ids), sequence_padding(segment_ids)]
        probas = self.forward(batch)  # [passages * beams, length, vocab]
        probas = np.array([row[len(ids) - 1] for row, ids in zip(probas, token_ids, strict=True)])
        probas = probas.reshape(
            len(self.remaining), len(output_ids), -1
        )  # [passages, beams, vocab]
        # step 2: at first, a passage whose most probable token is [SEP] leaves for good
        if output_ids.shape[1] == 0:
            probas[:, :, self.end_id] *= np.exp(np.float32(self.no_answer_bias))
            answerable = probas[:, 0].argmax(1) != self.end_id
            self.remaining, probas = self.remaining[answerable], probas[answerable]
            if len(self.remaining) == 0:
                return np.eye(probas.shape[-1])[[self.end_id]]
        # step 3: in extractive mode, what stands in no remaining passage after the tokens becomes 0
        if self.mode == 'extractive':
            for beam, ids in enumerate(output_ids.tolist()):
                allowed = {self.end_id}
                for i in self.remaining:
                    passage = self.passages[i][1:-1]
                    for k in range(len(passage) - len(ids)):
                        if passage[k : k + len(ids)] == ids:
                            allowed.add(passage[k + len(ids)])
                for token in range(probas.shape[-1]):
                    if token not in allowed:
                        probas[:, beam, token] = 0
        # step 4: the vote
        self.votes = self.vote(probas)
        return self.votes

    def vote(self, probas):
        """Return the votes, float [beams, vocab], of float32 [passages, beams, vocab]."""
        return (probas**2).sum(0) / (1 + probas.sum(0))

    def beam_search(self, inputs, topk, states=None):
        """bert4keras's beam search, with a rule for ties and for tokens without a vote."""
        inputs = [np.repeat([source], topk, axis=0) for source in inputs]
        output_ids, output_scores = np.empty([1, 0], int), np.zeros(1)
        for _ in range(self.maxlen):
            # step 5: scores add up; the best beams x vocabulary are kept
            sources = [source[: len(output_ids)] for source in inputs]
            log_votes = self.predict(sources, output_ids, None, rtype='logits')[0]
            if len(self.remaining) == 0:
                self.score = 0.0
                return np.array([self.end_id])
            candidates = [
                (
                    self.votes[beam, token] == 0,
                    -(output_scores[beam] + log_votes[beam, token]),
                    beam,
                    token,
                )
                for beam in range(log_votes.shape[0])
                for token in range(log_votes.shape[1])
            ]
            kept = sorted(candidates)[:topk]
            output_ids = np.array([[*output_ids[beam], token] for _, _, beam, token in kept])
            output_scores = np.array([-score for _, score, _, _ in kept])
            # step 6: a best beam that ends in [SEP] is the answer, another one is dropped
            best = output_scores.argmax()
            self.score = output_scores[best]
            ended = output_ids[:, -1] == self.end_id
            if ended[best]:
                return output_ids[best]
            output_ids, output_scores = output_ids[~ended], output_scores[~ended]
            topk = len(output_ids)
        best = output_scores.argmax()
        return output_ids[best]

    def given(self, source, answer):
        """Return what a source gives to each token of an answer, [SEP] included, list of float."""
        written = [*answer, self.end_id]
        token_ids = np.array([source + answer])
        segment_ids = np.array([[0] * len(source) + [1] * len(answer)])
        probas = self.forward([token_ids, segment_ids])[0]
        return [float(probas[len(source) - 1 + k, token]) for k, token in enumerate(written)]


class SinglePassageDecoder(ReferenceDecoder):
    """Lets one passage alone write an answer, by its probabilities."""

    def vote(self, probas):
        """Return the probabilities of the one passage."""
        return probas[0]

    def answer_by_vote(self, p_token_ids, q_token_ids, topk):
        """Return the answer that most passages wrote, each as sure as it was (archives/5409)."""
        confidences = {}
        for passage in p_token_ids:
            answer = self.answer([passage], q_token_ids, topk)
            if len(self.remaining):
                given = self.given(passage + q_token_ids, answer)[: self.maxlen]
                confidences.setdefault(tuple(answer), []).append(np.prod(given))
        votes = {answer: sum(np.square(c)) / (1 + sum(c)) for answer, c in confidences.items()}
        return list(max(votes, key=votes.get)) if votes else []
