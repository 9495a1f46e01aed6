"""Breaks the rules of the method, the score and the files, one at a time: a test must notice each.

    python tests/break_rules.py               # all rules, minutes; status 1 if one is not noticed
    python tests/break_rules.py vote windows  # those whose names hold one of the words

Each rule is broken in a copy of the project, where the quick tests named beside it are run; before,
they all have to pass in a copy with nothing broken.
"""

import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECONDS = 300  # that tests may take

SCRIPT, SCORE = 'task_reading_comprehension_by_seq2seq.py', 'evaluate_sogou.py'
ANSWERS, BATCHES, BERT = 'support/answers.py', 'support/batches.py', 'support/bert.py'
FILES, PREDICTIONS, RESUME = 'support/files.py', 'support/predictions.py', 'support/resume.py'
SPANS, TRAINING, UNILM = 'support/spans.py', 'support/training.py', 'support/unilm.py'

# name of the rule, file, text that is there once, what takes its place, tests one of which fails
# fmt: off
RULES = [
    # ------------------------------------------------------------------------------------ the data
    ('split: every third is for validation', SCRIPT,
     'if i % 3 == 0]', 'if i % 3 == 1]',
     'test_data.py::test_every_third_position_of_the_saved_order_is_for_validation'),
    ('split: a saved order is used again', SCRIPT,
     'random_order = records.load_order(path, len(sogouqa))', 'random_order = None',
     'test_data.py::test_saved_order_is_used_again'),
    ('split: the rest of SogouQA twice', SCRIPT,
     'train_data + train_data + webqa', 'train_data + webqa',
     'test_data.py::test_training_is_the_rest_twice_and_webqa_once'),
    ('split: incomplete records are not trained on', SCRIPT,
     'return records.complete(train_data', 'return list(train_data',
     'test_data.py::test_incomplete_records_are_left_out_of_training'),
    ('pairs: a space becomes a comma', SCRIPT,
     "' |、|；|，'", "'、|；|，'",
     'test_data.py::test_separators_become_commas_one_for_one'),
    ('pairs: no other punctuation becomes a comma', SCRIPT,
     "' |、|；|，'", "' |、|；|，|。'",
     'test_data.py::test_separators_become_commas_one_for_one'),
    ('pairs: any passage is drawn', SCRIPT,
     'passages[rng.integers(len(passages))]', 'passages[0]',
     'test_data.py::test_every_passage_is_drawn_equally_often'),
    ('pairs: the first answer that is held', SCRIPT,
     "(p['answer'] for p in passages if p['answer'])",
     "(p['answer'] for p in reversed(passages) if p['answer'])",
     'test_data.py::test_target_is_the_first_of_all_answers_that_the_passage_holds'),
    ('pairs: answers of all passages, not the own one', SCRIPT,
     "(p['answer'] for p in passages if p['answer'])",
     "(p['answer'] for p in passages if p['answer'] and p['passage'] == passage)",
     'test_data.py::test_target_is_the_first_of_all_answers_that_the_passage_holds'),
    ('pairs: all parts are held', SCRIPT,
     'if all(part in readable', 'if any(part in readable',
     'test_data.py::test_all_parts_of_a_list_must_occur'),
    ('pairs: held within max_p_len - 2', SCRIPT,
     'readable = passage[: constants.max_p_len - 2]', 'readable = passage[: constants.max_p_len]',
     'test_data.py::test_answer_must_end_within_what_is_read'),
    ('pairs: spaces of the target become commas', SCRIPT,
     "answer.replace(' ', ',')", 'answer',
     'test_data.py::test_all_parts_of_a_list_must_occur'),
    ('lengths: passage', SCRIPT,
     'maxlen=constants.max_p_len)', 'maxlen=constants.max_p_len + 1)',
     'test_data.py::test_lengths_and_segments_of_a_pair'),
    ('lengths: question and answer together', SCRIPT,
     'constants.max_q_len + constants.max_a_len + 1', 'constants.max_q_len + constants.max_a_len',
     'test_data.py::test_lengths_and_segments_of_a_pair'),
    ('lengths: question that is read', SCRIPT,
     'maxlen=constants.max_q_len + 1)', 'maxlen=constants.max_q_len)',
     'test_data.py::test_question_and_passages_are_cut_when_reading'),
    ('lengths: passage that is read', SPANS,
     'token_ids, size - 2', 'token_ids, size - 1',
     'test_data.py::test_question_and_passages_are_cut_when_reading'),
    ('lengths: segment 1 is the answer alone', SCRIPT,
     'p_segment_ids + qa_segment_ids[1:]', 'p_segment_ids + [1] * len(qa_segment_ids[1:])',
     'test_data.py::test_lengths_and_segments_of_a_pair'),
    ('windows: any of them is drawn', SCRIPT,
     'starts[rng.integers(len(starts))]', 'starts[0]',
     'test_data.py::test_one_of_the_windows_of_a_long_passage_is_drawn'),
    ('windows: none begins after the one that reaches the end', SPANS,
     'max(length - size + stride, 1)', 'max(length, 1)',
     'test_spans.py::test_windows_end_with_the_one_that_reaches_the_end'),
    ('windows: a new one after every stride', SPANS,
     '1), stride) if stride', '1), size) if stride',
     'test_spans.py::test_windows_end_with_the_one_that_reaches_the_end'),
    ('vocabulary: order of the special tokens', BERT,
     "'[CLS]', '[SEP]']", "'[SEP]', '[CLS]']",
     'test_bert.py::test_vocabulary_is_simplified'),
    ('vocabulary: simplified', BERT,
     ' if _may_occur(token)', '',
     'test_bert.py::test_vocabulary_is_simplified'),
    ('vocabulary: rows of the full one', BERT,
     '[ids[token] for token in kept]', '[*range(len(kept))]',
     'test_bert.py::test_vocabulary_is_simplified'),
    ('vocabulary: lower case', BERT,
     'do_lower_case=True', 'do_lower_case=False',
     'test_bert.py::test_tokenizer_lowers_case'),
    ('loss: of answer tokens only', TRAINING,
     "batch['Input-Token'], batch['Input-Segment']",
     "batch['Input-Token'], tf.maximum(*(tf.roll(batch['Input-Segment'], -i, 1) for i in (0, 1)))",
     'test_data.py::test_loss_by_hand'),
    ('loss: of the last [SEP] too', TRAINING,
     'return self.cross_entropy(labels, self.unilm.logits(x))',
     'return self.cross_entropy(labels, self.unilm.logits(x)) * tf.cast(labels != 3, tf.float32)',
     'test_data.py::test_loss_by_hand'),
    ('loss: mean over the tokens of the batch', TRAINING,
     'tf.reduce_sum(self.losses(*part, drop)) / total',
     'tf.reduce_mean(self.losses(*part, drop)) / self.accumulate_steps',
     'test_data.py::test_loss_by_hand'),
    ('loss: epsilon of Adam', SCRIPT,
     'epsilon=1e-6', 'epsilon=1e-7',
     'test_data.py::test_optimizer_is_adam_as_bert4keras_has_it'),
    ('loss: learning rate', SCRIPT,
     'learning_rate: Positive = 1e-5', 'learning_rate: Positive = 2e-5',
     'test_data.py::test_sizes_of_the_original'),
    ('loss: no answer token sees a later one', UNILM,
     '(columns <= query_positions[:, :, None])', '(columns <= query_positions[:, :, None] + 1)',
     'test_unilm.py::test_packed_answers_are_predicted_as_by_the_full_forward_pass'),
    ('loss: learning rate that falls', SCRIPT,
     'schedule[constants.warmup_steps + constants.decay_steps]', 'schedule[constants.decay_steps]',
     'test_training.py::test_learning_rate_rises_and_falls'),
    ('batches: each question once an epoch', BATCHES,
     '.permutation(len(self.records))', '.integers(len(self.records), size=len(self.records))',
     'test_batches.py::test_every_question_comes_once_an_epoch'),
    ('batches: of like length', BATCHES,
     '        pairs.sort(key=lambda pair: len(pair[1]))\n', '',
     'test_batches.py::test_batches_are_of_like_length_within_a_window_and_in_a_random_order'),
    # ------------------------------------------------------------------------------------- reading
    ('passages: one leaves by its most probable token', SCRIPT,
     'tf.argmax(self.biased(probas), -1) != self.end_id',
     'self.biased(probas)[:, self.end_id] <= 0.5',
     'test_reading.py::test_sep_need_not_be_probable_for_a_passage_to_leave'),
    ('passages: one leaves at the first step only', SCRIPT,
     'biased = predicted if beams.output_ids[0]',
     'ends = (tf.argmax(predicted, -1) == self.end_id)[..., None]\n'
     '                biased = tf.where(ends, 0.0, predicted) if beams.output_ids[0]',
     'test_reading.py::test_best_beam_that_ends_is_the_answer_at_once'),
    ('passages: one that left does not vote', SCRIPT,
     'return tf.argmax(self.biased(probas), -1) != self.end_id,', 'return probas[:, 0] < 2,',
     'test_reading.py::test_passage_whose_first_token_is_sep_leaves_for_good'),
    ('extractive: what goes on in a passage', SCRIPT,
     'self.places.append(places[parent][goes_on] + 1)',
     'self.places.append(np.arange(len(self.text)))',
     'test_reading.py::test_extractive_answer_is_a_run_of_passage_tokens'),
    ('extractive: passages that remain', SCRIPT,
     'for passage in self.passages for i', 'for passage in self.no_answer for i',
     'test_reading.py::test_extractive_answer_is_a_run_of_passage_tokens'),
    ('extractive: question tokens do not count', SCRIPT,
     'if self.extractive else 1.0',
     'if self.extractive else 1.0\n'
     '                if self.extractive:\n'
     '                    allowed[:, encoded[i][1]] = 1',
     'test_reading.py::test_question_tokens_do_not_count_as_passage'),
    ('extractive: [SEP] is allowed', SCRIPT,
     'allowed[:, self.end_id] = 1', 'allowed[:, self.end_id] = 0',
     'test_reading.py::test_extractive_answer_is_a_run_of_passage_tokens'),
    ('generative: no rule', SCRIPT,
     ' if self.extractive else 1.0', '',
     'test_reading.py::test_extractive_rule_comes_before_the_choice'),
    ('vote: 1 + the sum', SCRIPT,
     '/ (1 + tf.reduce_sum(weighted, 0))', '/ tf.reduce_sum(weighted, 0)',
     'test_reading.py::test_passage_given_three_times_votes_three_times'),
    ('vote: squares', SCRIPT,
     'tf.reduce_sum(weighted * probas, 0)', 'tf.reduce_sum(weighted, 0)',
     'test_reading.py::test_vote_by_hand'),
    ('vote: a repeated passage counts as often', SCRIPT,
     'weighted = counts * probas', 'weighted = probas',
     'test_reading.py::test_passage_given_three_times_votes_three_times'),
    ('vote: log(s + 1e-12)', SCRIPT,
     'tf.math.log(votes + 1e-12)', 'tf.math.log(votes + 1e-9)',
     'test_reading.py::test_token_without_a_vote_is_kept_only_when_no_other_is_left'),
    ('vote on answers: 1 + the sum', SCRIPT,
     'squares / (1 + total)', 'squares / total',
     'test_reading.py::test_whole_answers_are_voted_on_by_hand'),
    ('vote on answers: squares', SCRIPT,
     'counts @ confidences**2', 'counts @ confidences',
     'test_reading.py::test_whole_answers_are_voted_on_by_hand'),
    ('vote on answers: a repeated passage counts as often', SCRIPT,
     'counts, candidates = np.array([*passages.values()]), []',
     'counts, candidates = np.ones(len(passages)), []',
     'test_reading.py::test_whole_answers_are_voted_on_by_hand'),
    ('beams: scores add up', SCRIPT,
     'sums = logs + np.array(scores)[:, None]', 'sums = logs + 0 * np.array(scores)[:, None]',
     'test_reading.py::test_scores_add_up_and_the_best_come_first'),
    ('beams: the best of all beams', SCRIPT,
     'top_k(order, min(width, beams * vocab))', 'top_k(order[:vocab], min(width, vocab))',
     'test_reading.py::test_scores_add_up_and_the_best_come_first'),
    ('beams: of equal ones the earlier beam', SCRIPT,
     'tf.where(votes > 0, sums, sums - 1e9)',
     'tf.where(votes > 0, sums, sums - 1e9) + 1e-9 * np.arange(beams)[:, None]',
     'test_reading.py::test_ties_go_to_the_earlier_beam_then_the_lower_token'),
    ('beams: of equal ones the lower token', SCRIPT,
     'tf.where(votes > 0, sums, sums - 1e9)',
     'tf.where(votes > 0, sums, sums - 1e9) + 1e-9 * np.arange(vocab)',
     'test_reading.py::test_ties_go_to_the_earlier_beam_then_the_lower_token'),
    ('beams: no token without a vote while another is left', SCRIPT,
     'tf.where(votes > 0, sums, sums - 1e9)', 'sums',
     'test_reading.py::test_token_without_a_vote_is_kept_only_when_no_other_is_left'),
    ('beams: the width shrinks', SCRIPT,
     'self.width = len(self.written)', 'self.width = self.topk',
     'test_reading.py::test_finished_beam_that_is_not_best_is_dropped_and_the_width_shrinks'),
    ('beams: one that ends and is not the best is dropped', SCRIPT,
     'not best.finished and len', 'not any(beam.finished for beam in extended) and len',
     'test_reading.py::test_finished_beam_that_is_not_best_is_dropped_and_the_width_shrinks'),
    ('beams: the best one that ends is the answer', SCRIPT,
     'not best.finished and len', 'bool(self.written) and len',
     'test_reading.py::test_best_beam_that_ends_is_the_answer_at_once'),
    ('beams: max_a_len', SCRIPT,
     'len(best.token_ids) < max_a_len', 'len(best.token_ids) <= max_a_len',
     'test_reading.py::test_answer_stops_at_max_a_len'),
    ('bias: at the first step only', SCRIPT,
     'predicted if beams.output_ids[0] else self.biased(predicted)', 'self.biased(predicted)',
     'test_reading.py::test_bias_makes_passages_leave_or_stay_and_the_vote_follow'),
    ('bias: for passages that leave', SCRIPT,
     'tf.argmax(self.biased(probas), -1)', 'tf.argmax(probas, -1)',
     'test_reading.py::test_bias_makes_passages_leave_or_stay_and_the_vote_follow'),
    ('place: the largest product', ANSWERS,
     '-agreed[rows[keys[i]]]', '0 * agreed[rows[keys[i]]]',
     'test_answers.py::test_place_is_where_the_passage_that_voted_most_has_it'),
    ('place: the product with [SEP]', ANSWERS,
     'np.array(written.probas, np.float64)', 'np.array(written.probas[:-1], np.float64)',
     'test_answers.py::test_place_is_where_the_passage_that_voted_most_has_it'),
    ('place: of equal ones the earlier passage', ANSWERS,
     'i for i, key in enumerate(keys) if', 'i for i, key in reversed([*enumerate(keys)]) if',
     'test_answers.py::test_place_is_where_the_passage_that_voted_most_has_it'),
    ('place: the earlier start', SPANS,
     'range(len(text) - length + 1) if', 'reversed(range(len(text) - length + 1)) if',
     'test_spans.py::test_first_of_several_places'),
    ('text: without what cannot be seen', ANSWERS,
     'text = without_invisible(text)', 'pass',
     'test_reading.py::test_text_is_without_what_cannot_be_seen'),
    ('reading: what is read again keeps its order', UNILM,
     'order = np.argsort(cache.given)', 'order = np.arange(len(cache.given))',
     'test_unilm.py::test_writing_predicts_what_the_full_forward_pass_does'),
    ('reading: what there is no room for is not remembered', UNILM,
     'if room >= 0 or not packed.pairs:', 'if True:',
     'test_unilm.py::test_writing_predicts_what_the_full_forward_pass_does'),
    ('text: as it stands in the passage', ANSWERS,
     'passages[number][slice(*span)]', 'unified[number][slice(*span)]',
     'test_reading.py::test_answer_is_given_as_it_stands_in_the_passage'),
    # --------------------------------------------------------------------------------------- score
    ('score: half width', SCORE,
     '(HALF_WIDTH, LOWER_CASE,', '(LOWER_CASE,',
     'test_score.py::test_half_width'),
    ('score: only ASCII has lower case', SCORE,
     'text = text.translate(table)', 'text = text.translate(table).lower()',
     'test_score.py::test_only_ascii_has_lower_case'),
    ('score: list of punctuation', SCORE,
     '…‰※•—‖', '…‰※•—',
     'test_score.py::test_punctuation_is_the_official_list '
     'test_score.py::test_punctuation_counts_as_nothing'),
    ('score: white space is removed', SCORE,
     "ASCII_WHITE_SPACE = ' \\t\\n\\r\\v\\f'", "ASCII_WHITE_SPACE = ' \\t\\n\\r'",
     'test_score.py::test_only_ascii_is_white_space'),
    ('score: no other white space is', SCORE,
     'dict.fromkeys(map(ord, ASCII_WHITE_SPACE))',
     "dict.fromkeys(map(ord, ASCII_WHITE_SPACE + '\\u2003'))",
     'test_score.py::test_only_ascii_is_white_space'),
    ('score: an answer is stripped', SCORE,
     'answer = answer.strip(ASCII_WHITE_SPACE)', 'answer = answer.strip()',
     'test_score.py::test_answer_is_stripped_of_ascii_white_space'),
    ('score: an empty answer is wrong', SCORE,
     '    if not answer:\n', '    if answer is None:\n',
     'test_score.py::test_empty_answer_is_wrong'),
    ('score: a list in any order', SCORE,
     'ours in variants or parts(answer) == parts(reference.answer)', 'ours in variants',
     'test_score.py::test_correct_as_a_list_in_any_order'),
    ('score: a list is split at single spaces', SCORE,
     "text.translate(BLANK).split(' ')", 'text.translate(BLANK).split()',
     'test_score.py::test_list_is_split_at_single_spaces'),
    ('score: norms of the variants', SCORE,
     '[*reference.variants, *map(norm, reference.variants)]', 'reference.variants',
     'test_score.py::test_correct_by_the_norm_of_a_variant'),
    ('score: F1 with multiplicity', SCORE,
     'collections.Counter(ours) & collections.Counter(theirs)',
     'collections.Counter(set(ours)) & collections.Counter(set(theirs))',
     'test_score.py::test_f1_counts_characters_with_multiplicity'),
    ('score: the best F1 of all variants', SCORE,
     'if f1 > best.f1:', 'if best.variant is None:',
     'test_score.py::test_f1_is_the_best_over_the_variants'),
    ('score: the list is that of the standard answer', SCORE,
     'parts(answer) == parts(reference.answer)',
     'parts(answer) in [parts(text) for text in (reference.answer, *reference.variants)]',
     'test_score.py::test_list_must_be_that_of_the_standard_answer'),
    ('score: nothing is right without a variant', SCORE,
     'correct = bool(variants) and is_right', 'correct = is_right',
     'test_score.py::test_nothing_is_right_without_a_variant'),
    ('score: means over all lines', SCORE,
     'self.total += 1', 'self.total += bool(answer)',
     'test_score.py::test_means_over_the_lines_and_final'),
    ('score: Final', SCORE,
     "'Final': (accuracy + f1) / 2", "'Final': (accuracy * f1) ** 0.5",
     'test_score.py::test_means_over_the_lines_and_final'),
    ('score: six decimals', SCORE,
     '{score.f1:f}', '{score.f1:.5f}',
     'test_score.py::test_seven_columns'),
    ('score: an unknown id is an error', SCORE,
     "raise UserError(f'{place}; give the answers to these questions')", 'continue',
     'test_score.py::test_unknown_id'),
    ('score: exactly one tab', SCORE,
     'if len(fields) != columns:', 'if len(fields) < columns:',
     'test_score.py::test_line_without_exactly_one_tab'),
    # --------------------------------------------------------------------------------------- files
    ('files: whole or not at all', SCORE,
     "temporary = os.path.join(os.path.dirname(target), f'.unfinished.{os.path.basename(path)}')",
     'temporary = target',
     'test_files.py::test_what_is_broken_off_leaves_no_trace'),
    ('files: a link that is given stays one', SCORE,
     'target = os.path.realpath(path) if follow else path', 'target = path',
     'test_score.py::test_output_goes_to_what_a_link_stands_for'),
    ('files: a link in the output folder is not followed', FILES,
     'with whole(path, follow=False)', 'with whole(path)',
     'test_files.py::test_link_is_replaced_and_what_it_names_is_left_alone'),
    ('files: on the disk when they appear', FILES,
     '                    _sync(written)', '                    continue',
     'test_files.py::test_all_is_on_the_disk_when_it_appears'),
    ('locks: one holder', FILES,
     'fcntl.LOCK_EX |', 'fcntl.LOCK_SH |',
     'test_files.py::test_second_run_is_refused_as_long_as_the_first_is_at_work'),
    ('locks: what the file holds is left', FILES,
     'else os.O_RDWR | os.O_CREAT', 'else os.O_RDWR | os.O_CREAT | os.O_TRUNC',
     'test_files.py::test_lock_leaves_what_the_file_holds'),
    ('locks: training', SCRIPT,
     'if worker else alone_in(constants.output_dir):', ':',
     'test_resume.py::test_second_run_in_a_folder_is_refused'),
    ('locks: a deleted file lets nobody in', FILES,
     'with alone(folder), alone(', 'with alone(',
     'test_files.py::test_training_is_alone_in_its_folder_though_its_lock_is_removed'),
    ('locks: answers', PREDICTIONS,
     'alone(unfinished) as check_in_place,', 'contextlib.nullcontext(int) as check_in_place,',
     'test_predictions.py::test_second_run_on_a_part_is_refused'),
    ('answers: only those of the same origin are continued', PREDICTIONS,
     'if origin != self.origin.encode():', 'if False:',
     'test_predictions.py::test_part_of_other_questions_is_started_afresh_and_says_so'),
    ('answers: what follows damage is answered again', PREDICTIONS,
     "if written != b'%08x", "if None == b'%08x",
     'test_predictions.py::test_what_follows_damage_is_answered_again'),
    ('answers: a file that is no longer in place is missed', PREDICTIONS,
     "                check_in_place()", "                ''",
     'test_predictions.py::test_part_removed_at_work_is_not_joined'),
    ('answers: each is on the disk before the next', PREDICTIONS,
     '                    os.fsync(file.fileno())\n', '',
     'test_predictions.py::test_each_line_is_on_the_disk_before_the_next_is_asked_for'),
    ('answers: every worker has its own', PREDICTIONS,
     'data[part.worker :: part.workers]', 'data[:: part.workers]',
     'test_predictions.py::test_two_workers_predict_what_one_does'),
    ('answers: the origin holds the weights', PREDICTIONS,
     '(model.weights if model else ())', '()',
     'test_predictions.py::test_other_weights_data_or_order_have_another_fingerprint'),
    ('weights: as they were written', BERT,
     '        _check_seal(path)\n', '',
     'test_bert.py::test_weights_that_are_not_as_they_were_written_are_refused'),
    ('weights: only of the same BERT', BERT,
     "if file.attrs.get('bert') != described:", 'if False:',
     'test_bert.py::test_best_weights_that_do_not_fit_are_refused'),
    ('weights: the later ones of equally good ones', SCRIPT,
     'if quality >= self.run.state.best:', 'if quality > self.run.state.best:',
     'test_commands.py::test_best_weights_are_kept_by_best_by'),
    # ------------------------------------------------------------------------------------- backups
    ('backups: whole or not at all', RESUME,
     'with durable(path) as folder:', 'with contextlib.nullcontext(path) as folder:',
     'test_resume.py::test_backup_that_is_broken_off_leaves_the_one_before'),
    ('backups: of finite weights', RESUME,
     '        self.check()\n', '',
     'test_training.py::test_weights_that_are_not_finite_are_not_backed_up'),
    ('backups: the newest is restored', RESUME,
     'backup, afresh = self.paths()[-1]', 'backup, afresh = self.paths()[0]',
     'test_resume.py::test_newest_backup_is_taken_and_older_ones_are_removed'),
    ('backups: position', RESUME,
     "State(**saved['state'])", "State(**{**saved['state'], 'step': 0})",
     'test_resume.py::test_state_is_restored_to_the_last_field'),
    ('backups: best quality', RESUME,
     "State(**saved['state'])", "State(**{**saved['state'], 'best': -math.inf})",
     'test_resume.py::test_state_is_restored_to_the_last_field'),
    ('backups: optimizer', TRAINING,
     'tf.train.Checkpoint(bert=trainer.trained, optimizer=trainer.optimizer)',
     'tf.train.Checkpoint(bert=trainer.trained)',
     'test_resume.py::test_everything_that_training_knows_survives'),
    ('backups: losses of the epoch so far', RESUME,
     "State(**saved['state'])", "State(**{**saved['state'], 'losses': 0.0})",
     'test_resume.py::test_state_is_restored_to_the_last_field'),
    ('backups: log of the epochs so far', RESUME,
     "State(**saved['state'])", "State(**{**saved['state'], 'log': []})",
     'test_resume.py::test_state_is_restored_to_the_last_field'),
    ('backups: only of the same first weights', SCRIPT,
     "        'the first weights': fingerprint_of(model),\n", '',
     'test_resume.py::test_run_that_began_with_other_weights_is_not_continued'),
    ('backups: only of the same BERT', SCRIPT,
     "        'the BERT': bert.describe_bert(files),\n", "        'the BERT': '',\n",
     'test_commands.py::test_weights_of_a_bert_that_would_fit_are_refused_too'),
    ('backups: only of the same data', SCRIPT,
     "        'the data': fingerprint_of(None, train_data + valid_data),\n", '',
     'test_resume.py::test_run_with_other_constants_or_data_is_not_continued'),
    ('backups: only of the same run', RESUME,
     'if before != value:', 'if False:',
     'test_resume.py::test_run_with_other_constants_or_data_is_not_continued'),
    ('backups: the same draws again', BATCHES,
     'rng = np.random.default_rng([seed, epoch, number])', 'rng = np.random.default_rng()',
     'test_batches.py::test_batches_depend_on_the_seed_and_their_number_alone'),
    ('backups: the same dropout again', TRAINING,
     'tf.cast(self.optimizer.iterations, tf.int32)',
     'tf.random.uniform([], 0, 1 << 30, tf.int32)',
     'test_training.py::test_dropout_is_drawn_by_seed_and_update_alone'),
]
# fmt: on


def read(file):
    """Return the text of a file of the project."""
    with open(os.path.join(ROOT, file), encoding='utf-8') as opened:
        return opened.read()


def copy_project(folder):
    """Copy what git knows of, or would, to FOLDER/main, with the real data beside it."""
    listed = ['git', '-C', ROOT, 'ls-files', '-z', '-co', '--exclude-standard']
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    for name in names.split('\0'):
        if not os.path.isfile(os.path.join(ROOT, name)):
            continue
        target = os.path.join(folder, 'main', name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(os.path.join(ROOT, name), target)
    shared = os.path.join(os.path.dirname(ROOT), 'shared')
    if os.path.isdir(shared):
        os.symlink(os.path.realpath(shared), os.path.join(folder, 'shared'))


def forked(function, *arguments):
    """Call a function in a process that has the libraries already. Returns the process."""
    process = multiprocessing.get_context('fork').Process(target=function, args=arguments)
    process.start()
    return process


def run_tests(folder, tests):
    """Run tests of the copy; what they say goes to FOLDER/said.txt."""
    said = os.open(os.path.join(folder, 'said.txt'), os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(os.path.join(folder, 'main'))
    sys.path[0] = os.path.join(folder, 'main', 'tests')
    for name in list(sys.modules):  # the libraries stay, what stands on them is the copy's
        if name.split('.')[0] in ('support', 'evaluate_sogou'):
            del sys.modules[name]
    options = ['-x', '-q', '-p', 'no:cacheprovider', '-m', 'not slow']
    sys.exit(pytest.main([*options, *(f'tests/{test}' for test in tests.split())]))


def break_rule(rule):
    """Break a rule in a copy of the project. Returns (whether a test noticed, what to say)."""
    _, file, text, broken, tests = rule
    if read(file).count(text) != 1:
        return False, f'STALE: {file} does not hold its text exactly once'
    with tempfile.TemporaryDirectory() as folder:
        copy_project(folder)
        with open(os.path.join(folder, 'main', file), 'w', encoding='utf-8') as opened:
            opened.write(read(file).replace(text, broken))
        process = forked(run_tests, folder, tests)
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            return False, f'UNKNOWN: no result after {SECONDS} seconds'
        with open(os.path.join(folder, 'said.txt'), encoding='utf-8') as opened:
            said = opened.read().strip()
    failed = re.search(r'^FAILED tests/([\w./:]+)', said, re.MULTILINE)
    if failed:
        return True, f'caught by {failed[1]}'
    return False, 'UNKNOWN: ' + said[-300:] if process.exitcode else 'SURVIVED'


def break_rules(rules):
    """Break some rules, with a line about each; the exit status is how many no test noticed."""
    unnoticed = 0
    for rule in rules:
        start = time.monotonic()
        noticed, what = break_rule(rule)
        unnoticed += not noticed
        print(f'{time.monotonic() - start:5.1f} s  {rule[0]}: {what}', flush=True)
    sys.exit(unnoticed)


def main(words):
    """Break the rules whose names hold one of the words, all if there is none; exit status."""
    rules = [rule for rule in RULES if not words or any(word in rule[0] for word in words)]
    if not rules:
        print('no rule is called so')
        return 1
    sys.path.insert(1, ROOT)
    importlib.import_module('support.bert')  # once, with TensorFlow, which takes seconds
    _, file, text, *_ = RULES[0]
    tests = dict.fromkeys(test for *_, tests in rules for test in tests.split())
    _, what = break_rule(('none', file, text, text, ' '.join(tests)))
    if what != 'SURVIVED':
        print(f'no rule was broken yet, but: {what}')
        return 1
    lanes = [forked(break_rules, rules[i::2]) for i in range(2)]
    for lane in lanes:
        lane.join()
    unnoticed = sum(lane.exitcode for lane in lanes)
    print(f'{len(rules) - unnoticed} of {len(rules)} broken rules were noticed')
    return int(bool(unnoticed))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
