"""Files that survive a power cut, locks, digests, and errors of libraries in one line."""

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

from evaluate_sogou import UserError, atomic_write, cannot_write, log

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


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
            log(f'{path}: cannot be locked ({error.strerror}); let no other run work here')


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


def one_line(text):
    """Return a text without what would break a tab-separated line."""
    return re.sub('[\x00-\x1f\x85\u2028\u2029]', ' ', text)


def first_line(error):
    """Return the first line of an exception's message that tells what, not where in TensorFlow."""
    where = r'^Graph execution error:.*(\n  File [^\n]*|<stack traces unavailable>)\n|\{\{.*?\}\} '
    lines = re.sub(where, '', str(error), flags=re.DOTALL).strip().splitlines()
    return lines[0] if lines else type(error).__name__
