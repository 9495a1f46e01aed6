"""support/trained.py: the folder that `train` leaves, which others can open too."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import safetensors
from conftest import VOCABULARY, record, refusal, small_files, write_json
from runs import RESULTS, call

from support import bert, trained
from support.settings import configure

MAY_DIFFER = {
    'data_dir', 'config_path', 'checkpoint_path', 'dict_path', 'output_dir', 'epochs',
    'accumulate_steps', 'backup_minutes', 'report', 'train_data', 'valid_data',
}  # fmt: skip


def test_fixed_is_what_a_run_must_be_continued_with(script):
    """Neither where things lie, which a folder that was moved changes, nor how long it goes on."""
    constants = script.Constants(topk=3, epochs=5)
    expected = {name: value for name, value in vars(constants).items() if name not in MAY_DIFFER}
    assert trained.fixed(constants) == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        constants.topk = 4


@pytest.mark.parametrize('gone', ['backup_minutes', 'max_q_len'])
def test_name_in_a_list_that_no_constant_has_is_an_error(script, gone):
    """Or who renames a constant would find runs refused, or readers built with another value."""
    kinds = script.Constants.__annotations__.items()
    fields = [(name, kind, getattr(script.Constants, name)) for name, kind in kinds if name != gone]
    line = refusal(configure, dataclasses.make_dataclass('Renamed', fields, frozen=True), {})
    assert line.startswith(
        f'{gone}: no constant has this name; mend the lists in support/trained.py'
    )


@pytest.fixture
def reader(script, small):
    """(the folder that `train` leaves, the model, constants and Files that it was made of)."""
    constants = script.Constants(data_dir=str(small), output_dir=str(small / 'output'), topk=3)
    files = small_files(script, small)
    model, _ = script.build_model(files, '', constants)
    (small / 'output').mkdir()
    trained.describe(constants.output_dir, *bert.describe(files), constants, files, [np])
    bert.save_best(constants.output_dir, model, bert.bert_digest(files))
    return small / 'output', model, constants, files


def test_trained_reader_is_a_folder_of_hugging_face(reader):
    """Its vocabulary is the simplified one: read again, it is the same. See test_checkpoints for
    the weights, in_transformers.py for what transformers says of it."""
    folder, _, constants, files = reader
    contents = {path.name: path.read_text(encoding='utf-8') for path in folder.glob('*.[jt]*')}
    told = {name: json.loads(text) for name, text in contents.items() if name != 'vocab.txt'}
    tokens = [token for token in VOCABULARY if token[0] != '[' and token != '##中']
    tokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *tokens]
    assert contents['vocab.txt'].split('\n') == [*tokens, '']
    given = json.loads((folder.parent / 'bert_config.json').read_text(encoding='utf-8'))
    assert told.pop('config.json') == {
        'model_type': 'bert', 'architectures': ['BertForMaskedLM'], 'tie_word_embeddings': True,
        **given, 'vocab_size': len(tokens),
    }  # fmt: skip
    # transformers would add a [MASK], of which the weights know nothing
    options = {'tokenizer_class': 'BertTokenizer', 'do_lower_case': True, 'mask_token': None}
    assert told.pop('tokenizer_config.json') == options
    used = told.pop('reader.json')
    assert not told and used['versions'].keys() == {'numpy', 'python'}
    assert (used['constants'], used['files']) == (vars(constants), files._asdict())
    with safetensors.safe_open(folder / RESULTS[0], 'numpy') as file:
        assert file.metadata() == {'format': 'pt', 'bert': bert.bert_digest(files)}
    again = files._replace(config=f'{folder}/config.json', vocabulary=f'{folder}/vocab.txt')
    assert bert.describe(again) == bert.describe(files)


def test_paths_of_data_hold_from_any_folder(script, small, monkeypatch):
    """A comma separates those to train on, nothing else; what is not given stays so."""
    monkeypatch.chdir(small)
    given = {'train_data': 'b.json,c/d.json', 'valid_data': 'e,f.json', 'config_path': 'g.json'}
    used = script.Constants(**given)
    trained.describe('.', {}, [], used, small_files(script, small), [])
    written = json.loads((small / 'reader.json').read_text(encoding='utf-8'))['constants']
    absolute = {'train_data': f'{small}/b.json,{small}/c/d.json', 'valid_data': f'{small}/e,f.json'}
    assert written == {**vars(used), **absolute}


def test_trained_reader_is_a_bert_to_train_from(script, reader):
    """Also where configuration and vocabulary in an edited script are still the BERT's own."""
    folder, model, constants, files = reader
    edited = {'config_path': files.config, 'dict_path': files.vocabulary}
    for given in {'checkpoint_path': folder}, {'checkpoint_path': folder / RESULTS[0], **edited}:
        given = {name: str(path) for name, path in given.items()}
        used, found, _ = configure(script.Constants, {'data_dir': constants.data_dir, **given})
        again, _ = script.build_model(found, found.checkpoint, used)
        assert all(map(np.array_equal, again.get_weights(), model.get_weights()))


def test_reader_where_nothing_can_be_written_is_read_there(script, reader, monkeypatch):
    """Its order of validation too: by another, questions would be scored that it was trained on.
    What is written goes to `output_dir`; where that holds a reader, it is the one that is meant."""
    folder, _, constants, _ = reader
    other, questions = folder.parent / 'other', folder.parent / 'q.json'
    other.mkdir()
    for path, order in (folder, [3, 4, 5, 0, 1, 2]), (other, [0, 1, 2, 3, 4, 5]):
        write_json(path / 'random_order.json', order)
    write_json(folder / 'reader.json', {'constants': {'max_q_len': 9}})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    write_json(questions, [record('a')])
    given = [f'--data_dir={constants.data_dir}', '--report=0', '--max_a_len=4']
    given += [f'--checkpoint_path={folder}', f'--output_dir={other}']
    read = f'the trained reader is read from {folder}, where nothing is written'
    for command in ['eval'], ['predict', questions], ['export', folder.parent / 'new']:
        status, _, err = call(script, *command, *given)
        assert (status, err.count(f'{read}\n')) == (0, 1), err
    lines = (other / 'predictions.tsv').read_text(encoding='utf-8').splitlines()
    assert [line.split('\t')[0] for line in lines] == ['S3', 'S0']  # each third by that order
    assert (other / 'answers_to_q.tsv').exists() and (folder.parent / 'new').exists()
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    # by the weights, and from inside the folder; the other way round once both hold one
    monkeypatch.chdir(folder)
    for path, output in (
        (str(folder / RESULTS[0]), other),
        (RESULTS[0], other),
        (str(other), folder),
    ):
        given = {'checkpoint_path': path, 'output_dir': str(output)}
        if output == folder:
            shutil.copytree(folder, other, dirs_exist_ok=True)
        used, found, notes = configure(script.Constants, given, 'predict')
        assert used.max_q_len == 9
        assert os.path.realpath(found.checkpoint) == str(folder / RESULTS[0])
        assert os.path.realpath(found.vocabulary) == str(folder / 'vocab.txt')
        assert any('where nothing is written' in note for note in notes) == (output == other)
