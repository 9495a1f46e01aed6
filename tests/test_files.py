"""support/files.py: what a power cut, a second run or a strange file system does to files."""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import stat
import sys

import numpy as np
import pytest
from conftest import ROOT, refusal

from evaluate_sogou import UserError
from support.files import (
    alone,
    alone_in,
    digest,
    first_line,
    make_folder,
    plainly_named,
    write_durably,
)

# ------------------------------------------------------------------------------------------ durable


def test_text_is_written_as_utf8_and_takes_the_place_of_the_old_one(tmp_path):
    """What a file name holds that is no text must not be in the way."""
    path = tmp_path / 'some.txt'
    for text in '北京\n', 'not UTF-8: \udcff':
        write_durably(str(path), text)
    assert path.read_bytes() == b'not UTF-8: \\udcff' and os.listdir(tmp_path) == ['some.txt']


def test_folder_in_place_of_the_file_is_left_alone(tmp_path):
    """With all that lies in it."""
    (tmp_path / 'log.csv').mkdir()
    (tmp_path / 'log.csv' / 'mine.txt').write_text('mine', encoding='utf-8')
    with pytest.raises(UserError, match='cannot be written'):
        write_durably(str(tmp_path / 'log.csv'), 'text')
    assert [path.name for path in tmp_path.rglob('*')] == ['log.csv', 'mine.txt']


@pytest.mark.parametrize('name', ['some.txt', '.unfinished.some.txt'])
@pytest.mark.parametrize('kind', ['file', 'folder', 'nothing', 'device'])
def test_link_is_replaced_and_what_it_names_is_left_alone(tmp_path, name, kind):
    """It may be the weights of another reader, or somebody's trap."""
    target = tmp_path / 'elsewhere' if kind != 'device' else '/dev/null'
    if kind == 'file':
        target.write_text('mine', encoding='utf-8')
    elif kind == 'folder':
        target.mkdir()
    (tmp_path / 'output').mkdir()
    (tmp_path / 'output' / name).symlink_to(target)
    path = tmp_path / 'output' / 'some.txt'
    write_durably(str(path), 'text')
    assert not path.is_symlink() and path.read_text(encoding='utf-8') == 'text'
    assert os.listdir(tmp_path / 'output') == ['some.txt']
    if kind == 'file':
        assert target.read_text(encoding='utf-8') == 'mine'
    elif kind == 'folder':
        assert not os.listdir(target)
    elif kind == 'nothing':
        assert not target.exists()


def test_folder_may_be_a_link(tmp_path):
    """To another disk, say: that is the user's own."""
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'output').symlink_to(tmp_path / 'elsewhere')
    write_durably(str(tmp_path / 'output' / 'some.txt'), 'text')
    assert (tmp_path / 'output').is_symlink()
    assert (tmp_path / 'elsewhere' / 'some.txt').read_text(encoding='utf-8') == 'text'


def write(kind, path, text, name='part'):
    """Write a text to a file, or to one of that name in a new folder."""
    if kind == 'folder':
        os.mkdir(path)
        path = os.path.join(path, name)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_is_broken_off_leaves_no_trace(tmp_path, kind):
    """A file keeps its old content; a folder of that name never appears."""
    path = tmp_path / 'some'
    if kind == 'file':
        path.write_text('old', encoding='utf-8')
    with pytest.raises(KeyboardInterrupt), durable_write(str(path)) as temporary:
        write(kind, temporary, 'half')
        raise KeyboardInterrupt
    left = [name.read_text(encoding='utf-8') for name in tmp_path.iterdir()]
    assert left == (['old'] if kind == 'file' else [])


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_a_killed_run_left_is_written_anew(tmp_path, kind):
    """Nothing of it may get into what appears."""
    write(kind, tmp_path / '.unfinished.some', 'half', 'of the killed run')
    with durable_write(str(tmp_path / 'some')) as temporary:
        write(kind, temporary, 'new')
    assert os.listdir(tmp_path) == ['some']
    assert kind == 'file' or os.listdir(tmp_path / 'some') == ['part']


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_all_is_on_the_disk_when_it_appears(tmp_path, monkeypatch, kind):
    """A power cut may not leave an empty file of the right name: first what is in it, then it.

    And the folder that it appears in, or after a power cut it might not be there at all.
    """
    done, fsync, replace = [], os.fsync, os.replace

    def logged_fsync(descriptor):
        for path in tmp_path, *tmp_path.rglob('*'):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                done.append(f'sync {os.path.relpath(path, tmp_path)}')
        fsync(descriptor)

    def logged_replace(source, target):
        done.append('appear')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', logged_fsync)
    monkeypatch.setattr(os, 'replace', logged_replace)
    with durable_write(str(tmp_path / 'some')) as temporary:
        write(kind, temporary, 'new')
    parts = ['sync .unfinished.some/part'] if kind == 'folder' else []
    assert done == [*parts, 'sync .unfinished.some', 'appear', 'sync .']


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOSPC])
def test_folder_that_cannot_be_synced_is_no_full_disk(tmp_path, monkeypatch, number):
    """Some file systems sync files only."""
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', fsync)
    is_full = pytest.raises(UserError, match='No space')
    with contextlib.nullcontext() if number == errno.EINVAL else is_full:
        write_durably(str(tmp_path / 'some.txt'), 'text')


def test_folder_that_is_not_there_is_named(tmp_path):
    path = str(tmp_path / 'nowhere' / 'some.txt')
    expected = f'{path}: cannot be written (No such file or directory); make room or choose another'
    assert refusal(write_durably, path, 'text') == expected


# -------------------------------------------------------------------------------------------- alone


def hold(path):
    """Hold a lock for a moment."""
    with alone(str(path)):
        pass


def test_second_run_is_refused_as_long_as_the_first_is_at_work(tmp_path, capsys):
    path = tmp_path / 'train.lock'
    with alone(str(path)):
        assert 'another run is at work here; wait for its end' in refusal(hold, path)
    hold(path)
    assert not capsys.readouterr().err


def test_lock_leaves_what_the_file_holds(tmp_path):
    path = tmp_path / 'some.tsv.0-of-1.unfinished'
    path.write_text('answers so far', encoding='utf-8')
    hold(path)
    assert path.read_text(encoding='utf-8') == 'answers so far'


def test_lock_is_not_made_where_a_link_points(tmp_path):
    """Who holds the answers so far writes to them."""
    (tmp_path / 'mine').write_text('mine', encoding='utf-8')
    (tmp_path / 'train.lock').symlink_to(tmp_path / 'mine')
    with alone(str(tmp_path / 'train.lock')):
        (tmp_path / 'train.lock').write_text('', encoding='utf-8')
    assert (tmp_path / 'mine').read_text(encoding='utf-8') == 'mine'


def test_lock_leaves_the_errors_of_what_it_guards_alone(tmp_path):
    with pytest.raises(BlockingIOError), alone(str(tmp_path / 'train.lock')):
        raise BlockingIOError


def test_removed_file_is_missed(tmp_path):
    """Another run may hold a new one of its name, and both would take it for theirs."""
    path = tmp_path / 'some.unfinished'
    with alone(str(path)) as check:
        check()
        path.unlink()
        assert refusal(check).startswith(f'{path}: removed or replaced while this run was at work')
        with alone(str(path)) as check_other:
            check_other()
            assert 'removed or replaced' in refusal(check)


def train_in(folder):
    """Hold a folder for a moment."""
    with alone_in(str(folder)):
        pass


def test_training_is_alone_in_its_folder_though_its_lock_is_removed(tmp_path):
    """Nor may two on a network file system, which locks files only."""
    with alone_in(str(tmp_path)):
        assert f'{tmp_path}: another run is at work here' in refusal(train_in, tmp_path)
        (tmp_path / 'train.lock').unlink()
        assert f'{tmp_path}: another run is at work here' in refusal(train_in, tmp_path)
    with alone(str(tmp_path / 'train.lock')):
        assert 'train.lock: another run is at work here' in refusal(train_in, tmp_path)


def test_folder_that_cannot_be_locked_is_no_reason_to_warn(tmp_path, monkeypatch, capsys):
    """Its file is locked all the same."""
    flock = fcntl.flock

    def flock_files(descriptor, operation):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', flock_files)
    with alone_in(str(tmp_path)):
        assert 'train.lock: another run is at work here' in refusal(train_in, tmp_path)
    assert not capsys.readouterr().err


def test_lock_that_cannot_be_made_is_named(tmp_path):
    message = refusal(hold, tmp_path / 'nowhere' / 'train.lock')
    assert 'train.lock: cannot be written' in message and 'choose another output_dir' in message


@pytest.mark.parametrize('number', [errno.EBADF, errno.ENOLCK])
def test_lock_works_on_network_file_systems(tmp_path, monkeypatch, capsys, number):
    """NFS locks only what is open for writing; others lock nothing, which is no reason to stop."""

    def flock(descriptor, _):
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if number != errno.EBADF or mode == os.O_RDONLY:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', flock)
    hold(tmp_path / 'train.lock')
    said = capsys.readouterr().err
    assert said.count('let no other run work here') == (1 if number == errno.ENOLCK else 0)


def test_windows_which_has_no_such_locks_works_without(tmp_path, monkeypatch, capsys):
    """There the module `fcntl` is missing; what it takes the place of must be said all the same."""
    monkeypatch.setitem(sys.modules, 'fcntl', None)  # then an import raises ImportError
    path = os.path.join(ROOT, 'support', 'files.py')
    spec = importlib.util.spec_from_file_location('support.files_on_windows', path)
    on_windows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(on_windows)
    with on_windows.alone(str(tmp_path / 'train.lock')):
        pass
    [line] = capsys.readouterr().err.splitlines()
    assert 'train.lock: cannot be locked' in line and 'let no other run work here' in line


# ------------------------------------------------------------------------------------- what is left


def test_digest_is_that_of_all_bytes_in_their_order():
    """Of arrays it is that of what they hold."""
    array = np.arange(3, dtype=np.float32)
    expected = hashlib.sha256('北京'.encode() + array.tobytes()).hexdigest()
    assert digest(iter(['北京'.encode(), array])) == expected
    assert digest([array, '北京'.encode()]) != expected


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        ('no room\n  File "framework.py"', 'no room'),
        ('\n\n  no room  \n', 'no room'),
        ('{{function_node __wrapped__Save_device_/job:localhost}} no room [Op:Save]', None),
        ('Graph execution error:\n\nDetected at node x defined at:\n  File "a.py", line 1\n'
         '  File "b.py", line 2\n\nno room\n\t [[{{node x}}]] [Op:y]', 'no room'),
        ('Graph execution error:\n\nDetected at node x defined at (most recent call last):\n'
         '<stack traces unavailable>\nno room\n\t [[{{node x}}]]', 'no room'),
    ],
)  # fmt: skip
def test_first_line_of_an_error_tells_what_not_where_in_tensorflow(message, expected):
    assert first_line(ValueError(message)) == (expected or 'no room [Op:Save]')


def test_error_without_a_message_is_called_by_its_name():
    assert first_line(KeyError()) == 'KeyError'


@pytest.mark.parametrize('name', ['a[1]', 'b\\c', 'd\udcff'])
def test_brackets_and_backslashes_are_no_pattern_and_bytes_are_no_text(tmp_path, name):
    """TensorFlow would look for files that match, or break off."""
    from support.keras2 import tf

    (tmp_path / name).mkdir()
    path = str(tmp_path / name / 'weights')
    written, read = tf.Variable(1), tf.Variable(2)
    with plainly_named(path) as plain:
        tf.train.Checkpoint(weight=written).write(plain)
    assert os.path.exists(f'{path}.index')
    with plainly_named(path) as plain:
        tf.train.Checkpoint(weight=read).read(plain).assert_consumed()
    assert read.numpy() == 1


def test_folder_is_made_or_refused(tmp_path):
    for _ in range(2):
        make_folder(str(tmp_path / 'a' / 'b'))
    assert (tmp_path / 'a' / 'b').is_dir()
    (tmp_path / 'file').touch()
    line = refusal(make_folder, str(tmp_path / 'file'))
    assert line.startswith(f'{tmp_path / "file"}: no folder (File exists); choose another')
