"""The original's training step: bert4keras's model and `Loss`, every position of padded batches."""

from support.keras2 import bert4keras, keras, tf


class CrossEntropy(bert4keras.layers.Loss):
    """Cross-entropy of the answer and its [SEP], averaged over all these tokens of the batch."""

    def compute_loss(self, inputs, mask=None):
        """Return a scalar from [token_ids, segment_ids, logits]; segment 1 is to be predicted."""
        y_true, y_mask, y_pred = inputs
        y_true, y_mask = y_true[:, 1:], y_mask[:, 1:]  # [batch, length - 1]
        y_pred = y_pred[:, :-1]  # [batch, length - 1, vocab], one position behind what it predicts
        # from logits, as probabilities would be cut off at 1e-7
        cross_entropy = keras.losses.sparse_categorical_crossentropy
        loss = cross_entropy(y_true, y_pred, from_logits=True)  # [batch, length - 1]
        return tf.reduce_sum(loss * y_mask) / tf.reduce_sum(y_mask)


def build_train_model(model, learning_rate):
    """Return a model to train on [token_ids, segment_ids], the same layers, with Adam."""
    output = CrossEntropy(2)([*model.inputs, model.get_layer('MLM-Bias').output])
    train_model = keras.models.Model(model.inputs, output)
    train_model.compile(optimizer=keras.optimizers.Adam(learning_rate, epsilon=1e-6))
    return train_model
