"""Files read whole, written whole and to the disk; locks and digests."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile

from evaluate_sogou import UserError

from .process import first_line, is_of_tensorflow, log

GZIP, HDF5, SAFETENSORS = 'a gzip file', 'a file of HDF5', 'a file of safetensors'
TO_JSON = 'import sys, datasets; datasets.Dataset.from_{}(sys.argv[1]).to_json(sys.argv[2])'
# what is no text, the pattern of its first bytes, and what helps; the first that fits counts
FOREIGN = (
    ('a pointer of Git LFS, not the file itself', rb'version https://\S+/spec/v1', 'git lfs pull'),
    ('a web page', rb'\s*<(?i:!doctype html|html)\b', 'download the file itself, by its raw link'),
    (HDF5, rb'\x89HDF\r\n', 'weights are given as checkpoint_path, named *.h5'),
    (SAFETENSORS, rb'.{4}\0{4}\{"', 'weights are given as checkpoint_path, named *.safetensors'),
    ('a text in UTF-16', rb'\xff\xfe|\xfe\xff', 'iconv -f UTF-16 -t UTF-8 < {path} > NEW'),
    (GZIP, rb'\x1f[\x8b\x9d]', 'gunzip < {path} > NEW'),
    ('a bzip2 file', rb'BZh[1-9][1\x17]', 'bunzip2 < {path} > NEW'),
    ('an xz file', rb'\xfd7zXZ\0|\]\0\0', 'unxz < {path} > NEW'),
    ('a Zstandard file', rb'\(\xb5/\xfd', 'unzstd < {path} > NEW'),
    ('a tar archive', rb'.{257}ustar', 'tar -xf {path}'),
    ('a 7z or RAR archive', rb"7z\xbc\xaf'\x1c|Rar!\x1a\x07", '7z x {path}'),
    ('a Parquet file', rb'PAR[1E]', f"python -c '{TO_JSON.format('parquet')}' {{path}} NEW"),
    ('a file of Arrow', rb'\xff{4}...\0', f"python -c '{TO_JSON.format('file')}' {{path}} NEW"),
    ('a file of pickles', rb'\x80[\x02-\x05]|\((lp|dp)\d+\n|PK\x03\x04.{26}[^/]{1,99}/data\.pkl',
     'they may run any program; write what it holds as JSON, weights as model.safetensors'),
    ('a file of Excel, NumPy or the like',
     rb'PK\x03\x04.{26}(\[Content_Types]|_rels/|docProps/|xl/)|\xd0\xcf\x11\xe0|\x93NUMPY|'
     rb'ARROW1|FEA1|SQLite format 3|%PDF-|GGUF|Obj\x01', 'write what it holds as JSON'),
    ('a zip archive', rb'PK(\x03\x04|\x05\x06|\x07\x08)', 'unzip {path}'),
)  # fmt: skip


def refuse_foreign(path, content, allowed=None):
    """Raise UserError where a file is no text by its first bytes, but for `allowed`, GZIP say."""
    fits = [row for row in FOREIGN if re.match(row[1], content, re.DOTALL)]
    if fits and allowed not in (what for what, *_ in fits):
        what, _, cure = fits[0]
        if '> NEW' in cure and re.search(r'\.(tar(\.\w+)?|t[gbx]z2?)$', str(path)):
            cure = 'tar -xf {path}'
        raise UserError(f'{path}: {what}; {cure.format(path=shlex.quote(str(path)))}')


def read_bytes(path, size=-1):
    """Return what a file holds, or its first bytes. Raises UserError where it cannot be read."""
    try:
        with open(path, 'rb') as file:
            return file.read(size)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file; check the path') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); check the path') from None


def decoded(path, content):
    """Return the text of bytes, and its encoding, UTF-8 or GB18030. Raises UserError for others."""
    refuse_foreign(path, content)
    try:
        return content.decode('utf-8-sig'), 'UTF-8'  # Windows editors begin a file with a mark
    except UnicodeDecodeError as error:
        place = f'{path}: not UTF-8 at byte {error.start}'
    # a damaged UTF-8 file may be valid GB18030 too, but most of it is still UTF-8
    mostly = content.decode('utf-8', 'replace')
    if len(re.findall('[^\x00-\x7f\ufffd]', mostly)) < mostly.count('\ufffd'):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode('gb18030'), 'GB18030'
    raise UserError(f'{place}, nor GB18030; download it again, or save it as UTF-8')


def read_text(path):
    """Return a UTF-8 file without byte order mark. Raises UserError where it cannot be read."""
    text, encoding = decoded(path, read_bytes(path))
    if encoding != 'UTF-8':
        cure = f'iconv -f {encoding} -t UTF-8 < {shlex.quote(str(path))} > NEW'
        raise UserError(f'{path}: not UTF-8 but {encoding}; {cure}')
    return text


@contextlib.contextmanager
def durable_write(path):
    """Let a file, or a new folder, appear complete and on the disk, or not at all.

    Its folder is made. A link is replaced: what lies elsewhere, say the weights of another reader,
    stays as it is. A device or a pipe stays one and is written to. Yields the name to write under.
    Raises UserError where it cannot be written, whether Python or TensorFlow says so.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.unfinished.{name}')
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            yield path
            return
        _remove(temporary)  # of a run that was killed
        try:
            yield temporary
            names = os.listdir(temporary) if os.path.isdir(temporary) else []
            for written in [*(os.path.join(temporary, name) for name in names), temporary]:
                _sync(written)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
        _sync(folder)
    except Exception as error:
        if isinstance(error, OSError) or is_of_tensorflow(error):
            raise cannot_write(path, error) from None
        raise


def cannot_write(path, error):
    """Return the UserError for what was raised while a file was written."""
    reason = os.strerror(error.errno) if getattr(error, 'errno', None) else first_line(error)
    return UserError(f'{path}: cannot be written ({reason}); make room or choose another')


def _remove(path):
    """Remove a file, a link, or a folder with what is in it, if there is one."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.remove(path)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot do so with folders
            raise
    finally:
        os.close(descriptor)


def write_durably(path, text):
    """Write a text to a file by `durable_write`."""
    with durable_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(text.encode('utf-8', 'backslashreplace'))  # names of files may be in another


@contextlib.contextmanager
def lock(path):
    """Be the only run that holds a file, made if need be; one that is left over holds nobody up.

    Its folder is made too. Raises UserError where another run holds it.
    """
    import fcntl  # not above: Windows has none, and is told in one line that this is not for it

    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        # NFS locks only what is open for writing; what a link names is not ours
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.exists(path) or not os.path.samefile(path, descriptor):
            raise BlockingIOError  # another run has ended just now, and removed it
    except BlockingIOError:
        os.close(descriptor)
        cure = 'wait for its end, or choose another output_dir'
        raise UserError(f'{path}: another run is at work here; {cure}') from None
    except OSError as error:  # some file systems have no locks
        _say_unguarded(os.path.dirname(path) or '.', error.strerror)
    try:
        yield
    finally:
        os.close(descriptor)


@functools.cache  # a run locks several files of its folder; one line is enough
def _say_unguarded(folder, reason):
    what = f'files cannot be locked here ({reason}), so nothing guards against a second run'
    log(f'{folder}: {what}; start none')


@contextlib.contextmanager
def plainly_named(checkpoint):
    """Yield a path of a checkpoint in a folder of any name that TensorFlow can take.

    It takes brackets for a pattern, and no bytes that are not UTF-8.
    """
    if re.fullmatch(r'[^\[\]\\\ud800-\udfff]*', checkpoint):
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, 'link')
        os.symlink(os.path.abspath(os.path.dirname(checkpoint)), link)
        yield os.path.join(link, os.path.basename(checkpoint))


def digest(values):
    """Return the SHA-256, in hexadecimal, of values: Keras's weights, and what JSON can hold."""
    sha256 = hashlib.sha256()
    for value in values:  # one by one: together they are large
        is_weight = hasattr(value, 'numpy')
        sha256.update(value.numpy() if is_weight else json.dumps(value, sort_keys=True).encode())
    return sha256.hexdigest()
