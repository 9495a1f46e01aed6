"""The trained reader as TensorFlow's SavedModel, which others can serve; not how it is trained."""

import json
import os

from evaluate_sogou import UserError

from .files import durable_write, first_line, make_folder, plainly_named
from .keras2 import tf
from .unilm import UniLM


class NextToken(tf.Module):
    """One pass over whole sequences, by the variables of bert4keras's model.

    In float32, and without a cache: a server keeps nothing from one request to the next.
    """

    def __init__(self, model, mask):
        super().__init__()
        self.variables_of_bert = model.weights
        self.unilm = UniLM(model, mask)
        ids, counts = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)
        signature = [
            tf.TensorSpec(spec.shape, spec.dtype, name)
            for spec, name in ((ids, 'token_ids'), (counts, 'lengths'), (counts, 'source_lengths'))
        ]
        self.predict = tf.function(self._predict, input_signature=signature, autograph=False)

    def _predict(self, token_ids, lengths, source_lengths):
        """Return the probabilities of the token after the last one, {'probas': [rows, vocab]}.

        token_ids: int32 [rows, length], passage, question and answer so far, filled up with any;
        lengths: int32 [rows], tokens of each; source_lengths: those of passage and question.
        """
        packed = tf.boolean_mask(token_ids, tf.sequence_mask(lengths, tf.shape(token_ids)[1]))
        x, _ = self.unilm.run_layers(packed, lengths, source_lengths)  # [predictions, width]
        last = tf.cumsum(lengths - source_lengths + 1) - 1  # [rows]
        return {'probas': tf.nn.softmax(self.unilm.logits(tf.gather(x, last)))}


def export(folder, reader, mask):
    """Write a SavedModel to a new folder, with vocab.txt, the tokens by their ids, and constants.

    reader: ReadingComprehension; mask: see `UniLM`. Raises UserError where the folder exists or
    cannot be written.
    """
    if os.path.exists(folder):
        raise UserError(f'{folder}: exists; choose another folder, or remove it')
    make_folder(os.path.dirname(os.path.abspath(folder)))  # TensorFlow Serving wants NAME/1
    with durable_write(folder) as temporary:
        module = NextToken(reader.model, mask)
        try:
            os.mkdir(temporary)
            with plainly_named(os.path.join(temporary, 'vocab.txt')) as plain:
                signatures = {'serving_default': module.predict}
                tf.saved_model.save(module, os.path.dirname(plain), signatures)
        except tf.errors.OpError as error:
            raise OSError(first_line(error)) from None
        tokens = ''.join(f'{token}\n' for token in reader.tokenizer._token_dict)
        constants = json.dumps(vars(reader.constants))
        for name, text in ('vocab.txt', tokens), ('constants.json', constants):
            with open(os.path.join(temporary, name), 'w', encoding='utf-8') as file:
                file.write(text)
