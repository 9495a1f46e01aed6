"""support/files.py: what a power cut, a second run or a strange file system does to files."""

import bz2
import contextlib
import errno
import fcntl
import gzip
import lzma
import os
import pickle
import stat
import tarfile

import pytest
from conftest import refusal
from runs import LOCK, half_written

from evaluate_sogou import UserError
from support import files
from support.files import durable_write, lock, write_durably


def write(kind, path, text, name='part'):
    """Write a text to a file, or to one of that name in a new folder."""
    if kind == 'folder':
        os.mkdir(path)
        path = os.path.join(path, name)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


@pytest.mark.parametrize('name', ['some.txt', half_written('some.txt')])
@pytest.mark.parametrize('kind', ['file', 'folder', 'nothing'])
def test_link_is_replaced_and_what_it_names_is_left_alone(tmp_path, name, kind):
    """It may be the weights of another reader, or somebody's trap; the folder may be a link."""
    target = tmp_path / 'mine'
    if kind != 'nothing':
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


def test_pipe_or_device_stays_one_and_is_written_to(tmp_path):
    """Also through a link, as /dev/stdout is one."""
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'link').symlink_to('pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    write_durably(str(tmp_path / 'link'), 'text')
    assert os.read(reader, 9) == b'text'
    os.close(reader)
    assert sorted(os.listdir(tmp_path)) == ['link', 'pipe'] and (tmp_path / 'pipe').is_fifo()


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
    write_durably(str(tmp_path / 'a' / 'b' / 'file'), 'text')
    hold(tmp_path / 'a' / 'c' / 'lock')
    before = sorted(tmp_path.rglob('*'))
    for name, reason in ('a', 'Is a directory'), ('a/b/file/other', 'File exists'):
        said = f'{tmp_path / name}: cannot be written ({reason}); make room or choose another'
        assert refusal(write_durably, str(tmp_path / name), 'text') == said
    assert refusal(hold, tmp_path / 'a/b/file/other') == said
    assert sorted(tmp_path.rglob('*')) == before


AT_WORK = 'another run is at work here; wait for its end, or choose another output_dir'


def hold(path):
    with lock(str(path)):
        pass


def test_second_run_is_refused_as_long_as_the_first_is_at_work(tmp_path, capsys):
    """What the file holds stays, and what is raised; a file that is left over holds nobody up."""
    path = tmp_path / 'some'
    path.write_bytes(b'half')
    with pytest.raises(BlockingIOError), lock(str(path)):
        assert refusal(hold, path) == f'{path}: {AT_WORK}'
        with open(path, 'ab') as file:
            file.write(b' and half')
        raise BlockingIOError
    hold(path)
    assert path.read_bytes() == b'half and half'
    assert not capsys.readouterr().err


def test_what_a_link_names_is_not_locked(tmp_path):
    (tmp_path / 'link').symlink_to('mine')
    assert f'{tmp_path / "link"}: cannot be written' in refusal(hold, tmp_path / 'link')
    assert os.listdir(tmp_path) == ['link']


@pytest.mark.parametrize('other', [True, False])
def test_file_that_a_run_removes_at_its_end_is_not_held(tmp_path, monkeypatch, other):
    """Another run may hold what has come in its place."""
    path, flock = tmp_path / 'some', fcntl.flock

    def flock_too_late(descriptor, operation):
        path.unlink()
        if other:
            path.touch()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', flock_too_late)
    assert refusal(hold, path) == f'{path}: {AT_WORK}'


@pytest.mark.parametrize('number', [None, errno.ENOLCK, errno.EOPNOTSUPP, 524])
def test_training_works_on_network_file_systems(tmp_path, monkeypatch, capsys, number):
    """It is alone wherever files can be locked; one line where nothing can, whatever the reason.
    524, as some file systems of Linux say, has no name."""
    flock = fcntl.flock

    def flock_some(descriptor, operation):
        if number:
            raise OSError(number, os.strerror(number))
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & 3 == 0:  # as NFS does
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', flock_some)
    path = tmp_path / LOCK
    with lock(str(path)):
        if number:
            reason, nothing = os.strerror(number), 'so nothing guards against a second run'
            what = f'files cannot be locked here ({reason}), {nothing}; start none'
            hold(tmp_path / 'another')  # one line is enough
            assert capsys.readouterr().err == f'{tmp_path}: {what}\n'
        else:
            assert refusal(hold, path) == f'{path}: {AT_WORK}'
    assert not capsys.readouterr().err


ZIP, EMPTY_ZIP = b'PK\3\4' + bytes(26), b'PK\5\6' + bytes(18)
HDF5, SAFETENSORS, LINES = b'\x89HDF\r\n\x1a\n', b'\x40' + bytes(7) + b'{"a": ', '谁？\n在哪里？'
WRITE, RAW = 'write what it holds as JSON', 'download the file itself, by its raw link'


@pytest.mark.parametrize(
    ('content', 'what', 'cure'),
    [
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'a pointer of Git LFS, '
         'not the file itself', 'git lfs pull'),
        (b'\n<!DOCTYPE html>', 'a web page', RAW), (b'<html lang="zh">', 'a web page', RAW),
        (LINES.encode('utf-16'), 'a text in UTF-16', 'iconv -f UTF-16 -t UTF-8 < PATH > NEW'),
        (gzip.compress(b'{}', mtime=0), 'a gzip file', 'gunzip < PATH > NEW'),
        (bz2.compress(b'{}', 1), 'a bzip2 file', 'bunzip2 < PATH > NEW'),
        (bz2.compress(b''), 'a bzip2 file', 'bunzip2 < PATH > NEW'),
        (lzma.compress(b'{}'), 'an xz file', 'unxz < PATH > NEW'),
        (lzma.compress(b'{}', lzma.FORMAT_ALONE), 'an xz file', 'unxz < PATH > NEW'),
        (b'(\xb5/\xfd', 'a Zstandard file', 'unzstd < PATH > NEW'),
        (tarfile.TarInfo('some.json').tobuf(), 'a tar archive', 'tar -xf PATH'),
        (b"7z\xbc\xaf'\x1c", 'a 7z or RAR archive', '7z x PATH'),
        (b'Rar!\x1a\7\1\0', 'a 7z or RAR archive', '7z x PATH'),
        *((archive, 'a zip archive', 'unzip PATH') for archive in (ZIP, EMPTY_ZIP)),
        (ZIP + b'[Content_Types].xml', 'a file of Excel, NumPy or the like', WRITE),
        *((begin, 'a file of Excel, NumPy or the like', WRITE) for begin in [
            b'\xd0\xcf\x11\xe0', b'\x93NUMPY', b'ARROW1\0\0', b'SQLite format 3\0', b'GGUF\3']),
        *((begin, 'a file of pickles', 'they may run any program; ') for begin in [
            *(pickle.dumps(['a'], protocol) for protocol in range(2, 6)), b'(lp0\n',
            ZIP + b'archive/data.pkl']),
        (b'PAR1\x15\4', 'a Parquet file', 'python -c \'import sys, datasets; datasets.Dataset.'
         'from_parquet(sys.argv[1]).to_json(sys.argv[2])\' PATH NEW'),
        (b'\xff\xff\xff\xff\x38\1\0\0\x10', 'a file of Arrow', 'python -c '),
        (HDF5, 'a file of HDF5', 'weights are given as checkpoint_path, named *.h5'),
        *((begin, 'a file of safetensors', 'weights are given as checkpoint_path, named *.s')
          for begin in (SAFETENSORS, b'\x80\2' + SAFETENSORS[2:])),  # 640 bytes of header
        (LINES.encode('gb18030'), 'not UTF-8 but GB18030', 'iconv -f GB18030 -t UTF-8 < PATH > N'),
        (LINES.encode()[:-1], 'not UTF-8 at byte 16, nor GB18030', 'download it again, or save it'),
    ],
)  # fmt: skip
def test_file_that_is_no_text_is_named_with_what_makes_one_of_it(tmp_path, content, what, cure):
    """In words for a shell."""
    path = tmp_path / "it's a file"
    path.write_bytes(content)
    quoted = cure.replace('PATH', f"'{tmp_path}/it'\"'\"'s a file'")
    assert refusal(files.read_text, str(path)).startswith(f'{path}: {what}; {quoted}')


def test_packed_archive_is_unpacked_in_one_step_and_what_is_allowed_is_left_alone(tmp_path):
    for name in 'a.tar.gz', 'a.tgz':
        (tmp_path / name).write_bytes(gzip.compress(b'', mtime=0))
        assert refusal(files.read_text, str(tmp_path / name)).endswith(
            f'; tar -xf {tmp_path / name}'
        )
    files.refuse_foreign('', gzip.compress(b'', mtime=0), files.GZIP)
