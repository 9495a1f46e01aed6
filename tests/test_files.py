"""support/files.py: what a power cut, a second run or a strange file system does to files."""

import contextlib
import errno
import fcntl
import os
import runpy
import stat
import sys

import pytest
from conftest import ROOT, refusal
from runs import LOCK, half_written

from evaluate_sogou import UserError
from support.files import durable_write, first_line, folder_lock, lock, make_folder, write_durably


def write(kind, path, text, name='part'):
    """Write a text to a file, or to one of that name in a new folder."""
    if kind == 'folder':
        os.mkdir(path)
        path = os.path.join(path, name)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


@pytest.mark.parametrize('name', ['some.txt', half_written('some.txt')])
@pytest.mark.parametrize('kind', ['file', 'folder', 'nothing', 'device'])
def test_link_is_replaced_and_what_it_names_is_left_alone(tmp_path, name, kind):
    """It may be the weights of another reader, or somebody's trap; the folder may be a link."""
    target = tmp_path / 'mine' if kind != 'device' else '/dev/null'
    if kind in ('file', 'folder'):
        write(kind, target, 'mine')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'output').symlink_to(tmp_path / 'elsewhere')
    before, path = sorted(tmp_path.rglob('*')), tmp_path / 'output' / 'some.txt'
    (tmp_path / 'output' / name).symlink_to(target)
    write_durably(str(path), 'not UTF-8: \udcff')
    assert not path.is_symlink() and path.read_bytes() == b'not UTF-8: \\udcff'
    written = tmp_path / 'elsewhere' / 'some.txt'
    assert sorted(tmp_path.rglob('*')) == sorted([*before, written])
    assert kind != 'file' or target.read_text(encoding='utf-8') == 'mine'


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_is_broken_off_or_killed_leaves_no_trace(tmp_path, monkeypatch, kind):
    """All is on the disk when it appears: first what is in it, then it, and the folder that it
    appears in, or after a power cut it might be empty or not there at all."""
    path, done, fsync, replace = tmp_path / 'some', [], os.fsync, os.replace

    def break_off():
        with pytest.raises(KeyboardInterrupt), durable_write(str(path)) as temporary:
            write(kind, temporary, 'half')
            raise KeyboardInterrupt

    break_off()
    assert os.listdir(tmp_path) == []
    write(kind, tmp_path / half_written('some'), 'half', 'of the killed run')

    def logged_fsync(descriptor):
        for each in tmp_path, *tmp_path.rglob('*'):
            if os.path.samestat(os.stat(each), os.fstat(descriptor)):
                done.append(f'sync {os.path.relpath(each, tmp_path)}')
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', logged_fsync)
    monkeypatch.setattr(os, 'replace', lambda *names: (done.append('appear'), replace(*names)))
    with durable_write(str(path)) as temporary:
        write(kind, temporary, 'new')
    parts = [f'sync {half_written("some")}/part'] if kind == 'folder' else []
    assert done == [*parts, f'sync {half_written("some")}', 'appear', 'sync .']
    if kind == 'file':
        break_off()
        assert path.read_text(encoding='utf-8') == 'new'
    assert os.listdir(tmp_path) == ['some']


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOSPC])
def test_folder_that_cannot_be_synced_is_no_full_disk(tmp_path, monkeypatch, number):
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', fsync)
    is_full = pytest.raises(UserError, match='No space')
    with contextlib.nullcontext() if number == errno.EINVAL else is_full:
        write_durably(str(tmp_path / 'some.txt'), 'text')


def test_folder_is_made_and_what_is_in_the_way_is_named_and_left_alone(tmp_path):
    """A folder in place of a file, with all that lies in it; a file in place of a folder."""
    make_folder(str(tmp_path / 'a' / 'b'))
    (tmp_path / 'file').touch()
    before = sorted(tmp_path.rglob('*'))
    line = refusal(make_folder, str(tmp_path / 'file'))
    assert line.startswith(f'{tmp_path / "file"}: no folder (File exists); choose another')
    for name, reason in ('a', 'Is a directory'), ('nowhere/some.txt', 'No such file or directory'):
        said = f'{tmp_path / name}: cannot be written ({reason}); make room or choose another'
        assert refusal(write_durably, str(tmp_path / name), 'text') == said
    assert sorted(tmp_path.rglob('*')) == before


AT_WORK = 'another run is at work here; wait for its end, or choose another output_dir'


def hold(path, held=lock):
    with held(str(path)):
        pass


def test_second_run_is_refused_as_long_as_the_first_is_at_work(tmp_path, capsys):
    """The lock neither changes what the file holds, nor where a link points, nor errors."""
    path, mine = tmp_path / 'some', tmp_path / 'mine'
    write('file', mine, 'mine')
    path.symlink_to(mine)
    with pytest.raises(BlockingIOError), lock(str(path)):
        assert refusal(hold, path) == f'{path}: {AT_WORK}'
        path.write_bytes(b'answers so far')
        raise BlockingIOError
    hold(path)
    assert (path.read_bytes(), mine.read_bytes()) == (b'answers so far', b'mine')
    assert not capsys.readouterr().err
    assert f'{LOCK}: cannot be written' in refusal(hold, tmp_path / 'nowhere' / LOCK)


def test_training_is_alone_in_its_folder_though_its_lock_is_removed(tmp_path):
    """Nor may two on a network file system, which locks files only."""
    with folder_lock(str(tmp_path)):
        for _ in range(2):
            assert refusal(hold, tmp_path, folder_lock) == f'{tmp_path}: {AT_WORK}'
            (tmp_path / LOCK).unlink(missing_ok=True)
    with lock(str(tmp_path / LOCK)):
        assert refusal(hold, tmp_path, folder_lock) == f'{tmp_path / LOCK}: {AT_WORK}'


@pytest.mark.parametrize('number', [None, errno.ENOLCK, errno.EOPNOTSUPP, 524])
def test_training_works_on_network_file_systems(tmp_path, monkeypatch, capsys, number):
    """It is alone wherever files can be locked; one line where nothing can, whatever the reason,
    for all files of a folder. 524, as some file systems of Linux say, has no name."""
    flock = fcntl.flock

    def flock_some(descriptor, operation):
        if number:
            raise OSError(number, os.strerror(number))
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & 3 == 0:  # folders too, on NFS
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', flock_some)
    with folder_lock(str(tmp_path)), lock(str(tmp_path / 'answers')):
        if number:
            reason, nothing = os.strerror(number), 'so nothing guards against a second run'
            what = f'files cannot be locked here ({reason}), {nothing}; start none'
            assert capsys.readouterr().err == f'{tmp_path}: {what}\n'
        else:
            assert refusal(hold, tmp_path, folder_lock) == f'{tmp_path / LOCK}: {AT_WORK}'
    assert not capsys.readouterr().err


def test_windows_which_has_no_such_locks_works_without(tmp_path, monkeypatch, capsys):
    """There the module `fcntl` is missing; what it takes the place of must be said all the same."""
    monkeypatch.setitem(sys.modules, 'fcntl', None)  # then an import raises ImportError
    path = os.path.join(ROOT, 'support', 'files.py')
    hold(tmp_path / LOCK, runpy.run_path(path, run_name='support.files_on_windows')['lock'])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{tmp_path}: files cannot be locked here (')


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        ('\n\n  no room\n  File "framework.py"', 'no room'), ('', 'ValueError'),
        ('{{function_node __wrapped__Save_device_/job}} no room [Op:Save]', 'no room [Op:Save]'),
        ('Graph execution error:\n\nDetected at node x defined at (most recent call last):\n'
         '<stack traces unavailable>\nno room\n\t [[{{node x}}]]', 'no room'),
    ],
)  # fmt: skip
def test_first_line_of_an_error_tells_what_not_where_in_tensorflow(message, expected):
    assert first_line(ValueError(message)) == expected
