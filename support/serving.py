"""The trained reader as TensorFlow's SavedModel, which others can serve; not how it is trained."""

import json
import os
import pathlib

from evaluate_sogou import UserError

from .files import durable_write, plainly_named
from .keras2 import tf
from .process import log
from .unilm import UniLM


def servable(model, mask):
    """Return a tf.Module that does one pass over whole sequences: its `predict`.

    In float32, and without a cache: a server keeps nothing from one request to the next. model:
    bert4keras's, whose variables it has; mask: see `UniLM`.
    """
    module, unilm = tf.Module(), UniLM(model, mask)
    ids, counts = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[ids, counts, counts], autograph=False)
    def predict(token_ids, lengths, source_lengths):
        """Return the probabilities of the token after the last one, {'probas': [rows, vocab]}.

        token_ids: int32 [rows, length], passage, question and answer so far, filled up with any;
        lengths: int32 [rows], tokens of each; source_lengths: those of passage and question.
        """
        packed = tf.boolean_mask(token_ids, tf.sequence_mask(lengths, tf.shape(token_ids)[1]))
        probas, _ = unilm.next_token(packed, lengths, source_lengths)
        return {'probas': probas}

    module.variables_of_bert, module.predict = model.weights, predict
    return module


def export(folder, reader, mask):
    """Write a SavedModel to a new folder, with vocab.txt, the tokens by their ids, and constants.

    reader: ReadingComprehension; mask: see `UniLM`. Raises UserError where the folder exists or
    cannot be written.
    """
    if os.path.exists(folder):
        raise UserError(f'{folder}: exists; choose another folder, or remove it')
    tokens = ''.join(f'{token}\n' for token in reader.tokenizer._token_dict)
    texts = {'vocab.txt': tokens, 'constants.json': json.dumps(vars(reader.constants))}
    with durable_write(folder) as temporary:
        os.mkdir(temporary)
        for name, text in texts.items():
            pathlib.Path(temporary, name).write_text(text, encoding='utf-8')
        module = servable(reader.model, mask)
        with plainly_named(os.path.join(temporary, 'vocab.txt')) as plain:
            tf.saved_model.save(module, os.path.dirname(plain), module.predict)
    log(f'{folder}: written, a SavedModel with {" and ".join(texts)}')
