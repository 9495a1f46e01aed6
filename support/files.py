"""Files read whole, written whole and to the disk; locks, digests, libraries' errors."""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile

from evaluate_sogou import UserError

from .console import log

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

PACKED = {  # the first bytes of files that programs have compressed, and what unpacks them
    b'\x1f\x8b': 'gunzip',
    b'PK\x03\x04': 'unzip',
    b'BZh91AY&SY': 'bunzip2',
    b'\xfd7zXZ\x00': 'unxz',
    b'(\xb5/\xfd': 'unzstd',
}


def read_text(path):
    """Return a UTF-8 file without byte order mark. Raises UserError where it cannot be read."""
    try:
        with open(path, 'rb') as file:
            content = file.read()
        for first_bytes, program in PACKED.items():
            if content.startswith(first_bytes):
                raise UserError(f'{path}: compressed; unpack it with {program}')
        return content.decode('utf-8-sig')  # Windows editors begin a file with such a mark
    except FileNotFoundError:
        raise UserError(f'{path}: no such file; check the path') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not UTF-8 at byte {error.start}; save it as UTF-8') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); check the path') from None


@contextlib.contextmanager
def atomic_write(path, follow=True):
    """Let a file appear complete or not at all; a folder too, where nothing is of that name.

    follow: whether a link stays one and what it names is replaced, or the link is. Yields another
    name to write it under. Raises UserError where it cannot be written.
    """
    target = os.path.realpath(path) if follow else path
    temporary = os.path.join(os.path.dirname(target), f'.unfinished.{os.path.basename(path)}')
    try:
        if os.path.islink(temporary):  # or what it names would be written
            os.remove(temporary)
        is_ours = not follow and os.path.islink(path)
        usual = is_ours or os.path.isfile(path) or os.path.isdir(path)
        if os.path.exists(path) and not usual:
            yield path  # a device or a pipe, which nothing can take the place of
        else:
            yield temporary
            os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if os.path.isfile(temporary):
            os.remove(temporary)


def cannot_write(path, error):
    """Return the UserError for an OSError that came while a file was written."""
    reason = os.strerror(error.errno) if error.errno else error  # h5py's own has several lines
    return UserError(f'{path}: cannot be written ({reason}); make room or choose another')


@contextlib.contextmanager
def durable_write(path):
    """As `atomic_write`, and what appears is on the disk; it may be a folder too.

    A link is replaced: what lies elsewhere, say the weights of another reader, stays as it is.
    Yields the other name. Raises UserError where it cannot be written.
    """
    try:
        with atomic_write(path, follow=False) as temporary:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
            try:
                yield temporary
                names = os.listdir(temporary) if os.path.isdir(temporary) else []
                for written in [*(os.path.join(temporary, name) for name in names), temporary]:
                    _sync(written)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        _sync(os.path.dirname(os.path.realpath(path)))
    except OSError as error:
        raise cannot_write(path, error) from None


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot do so with folders
            raise
    finally:
        os.close(descriptor)


def make_folder(path):
    """Make a folder where there is none. Raises UserError where that is impossible."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path}: no folder ({error.strerror}); choose another') from None


def write_durably(path, text):
    """As `write_text`, and it is on the disk when it appears."""
    with durable_write(path) as temporary, open(temporary, 'wb') as file:
        file.write(text.encode('utf-8', 'backslashreplace'))  # names of files may be in another


@contextlib.contextmanager
def lock(path):
    """Be the only run that holds a file, made if need be, or a folder.

    Yields a function that raises UserError where the file has since been removed or replaced:
    another run may hold the new one. Raises UserError where another run holds it.
    """
    is_folder = os.path.isdir(path)
    try:
        if os.path.islink(path):  # what it names is not ours
            os.remove(path)
        # NFS locks only what is open for writing
        flags = os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        cure = 'choose another output_dir'
        raise UserError(f'{path}: cannot be written ({error.strerror}); {cure}') from None
    try:
        _lock(descriptor, path, is_folder)
        yield functools.partial(_check_in_place, descriptor, path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_lock(folder):
    """Be the only training in a folder. Raises UserError where another is at work."""
    # the folder: whoever deletes the file lets nobody in; the file: NFS locks no folders
    with lock(folder), lock(os.path.join(folder, 'train.lock')):
        yield


def _check_in_place(descriptor, path):
    try:
        in_place = os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        in_place = False
    if not in_place:
        raise UserError(f'{path}: removed or replaced while this run was at work; run again')


def _lock(descriptor, path, is_folder):
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        cure = 'wait for its end, or choose another output_dir'
        raise UserError(f'{path}: another run is at work here; {cure}') from None
    except OSError as error:  # some file systems have no locks
        if not is_folder:  # NFS has them for files only
            _say_unguarded(os.path.dirname(path) or '.', error.strerror)


@functools.cache  # training locks several files of its folder; one line is enough
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


def digest(contents):
    """Return the SHA-256, in hexadecimal, of all bytes and arrays that `contents` yields."""
    sha256 = hashlib.sha256()
    for content in contents:
        sha256.update(content)
    return sha256.hexdigest()


def digest_of(model, *data):
    """Return the digest of a Keras model's weights, if any, and of lists that JSON can hold.

    Entries and weights are taken one by one: together they are large.
    """
    contents = (json.dumps(entry).encode() for entries in data for entry in entries)
    weights = (weight.numpy() for weight in (model.weights if model else ()))
    return digest(itertools.chain(contents, weights))


def first_line(error):
    """Return the first line of an exception's message that tells what, not where in TensorFlow."""
    where = r'^Graph execution error:.*(\n  File [^\n]*|<stack traces unavailable>)\n|\{\{.*?\}\} '
    lines = re.sub(where, '', str(error), flags=re.DOTALL).strip().splitlines()
    return lines[0] if lines else type(error).__name__
