"""Large arrays that are used again once nobody holds them.

A fresh array costs a page fault for every 4 KiB: up to a third of an update on a long walk.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["scratch"]

_SMALLEST, _LARGEST = 2**20, 2**26  # bytes of arrays worth keeping
_MOST = 4  # of them in each thread

_Lent = tuple[NDArray[np.uint8], "weakref.ref[NDArray[Any]]"]


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: list[_Lent] = []


_kept = _Kept()


def scratch(size: int, dtype: Any) -> NDArray[Any]:
    """``(size,)`` of any content, like ``np.empty``."""
    num_bytes = size * np.dtype(dtype).itemsize
    if not _SMALLEST <= num_bytes <= _LARGEST:
        return np.empty(size, dtype)
    idle = [at for at, (_, lent) in enumerate(_kept.buffers) if lent() is None]
    for at in idle:
        buffer = _kept.buffers[at][0]
        if num_bytes <= len(buffer):
            array = _lend(buffer, size, dtype)
            _kept.buffers[at] = buffer, weakref.ref(array)
            return array
    if len(_kept.buffers) == _MOST and idle:
        del _kept.buffers[idle[0]]
    buffer = np.empty(num_bytes, np.uint8)
    array = _lend(buffer, size, dtype)
    if len(_kept.buffers) < _MOST:
        _kept.buffers.append((buffer, weakref.ref(array)))
    return array


def _lend(buffer: NDArray[np.uint8], size: int, dtype: Any) -> NDArray[Any]:
    # Slices of an array hold its base instead if that is an array, too; its memory is none.
    return np.frombuffer(buffer.data, dtype, size)
