"""Files that are either the old ones or the new ones, whatever interrupts the writing."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that readers see its old content or ``data``, never a part.

    The data are on disk before the name points to them, so a crash or a full disk loses nothing.

    Args:
        path: the file; its folder exists.
        data: all of the new content.
    """
    target = Path(path)
    # A sibling, because only renaming within one file system is atomic.
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system can open a folder to make a renaming durable
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
