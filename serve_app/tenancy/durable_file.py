"""A small file that outlives its writers: replaced as a whole, written under a lock, mode 0600.

Owns how that is done. Refuses to know what is in it.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def draft(path: Path, content: bytes) -> Path:
    """`content` in a new file beside `path`, safe on the disk; rename or link it into its place."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def replace(path: Path, content: bytes) -> None:
    """Readers find the old content or the new one, never a part. Raises OSError."""
    os.replace(draft(path, content), path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One writer at a time, over all processes of this machine. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    lock = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
