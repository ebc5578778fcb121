"""Compiled loops at the same time (numba releases the GIL), on as many threads as torch uses.

They run on torch's own threads where these are GNU OpenMP's, as in the Linux wheels.  OpenMP's
threads spin for some milliseconds after an operation, waiting for the next: threads beside them
would share cores with the spinning ones and make an update take half as long again.  Elsewhere, and
after a fork, which OpenMP's threads do not survive, there is a pool.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from .denormals import FlushedDenormals

__all__ = ["chunks", "num_threads", "run"]

# Below this many multiply-adds a second thread costs more than it saves.
_PARALLEL_WORK = 300_000

_Task = Callable[[], Any]
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _find_openmp() -> Any:
    """``GOMP_parallel(body, data, num_threads, flags)`` if torch was linked with it, or None."""
    # Torch loads what it was linked with into the global namespace.
    if not torch.backends.openmp.is_available():
        return None
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if os.name == "posix" else None
    if parallel is not None:
        parallel.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
    return parallel


_openmp = _find_openmp()
_pool: ThreadPoolExecutor | None = None


def _forget_threads() -> None:
    global _openmp, _pool
    _openmp = _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(tasks: Sequence[_Task]) -> None:
    """Run tasks at the same time, on this thread and others."""
    if len(tasks) == 1:
        tasks[0]()
    elif _openmp is not None:
        _run_on_openmp(tasks)
    else:
        _run_on_pool(tasks)


def _run_on_openmp(tasks: Sequence[_Task]) -> None:
    waiting = iter(tasks)
    errors: list[BaseException] = []

    def body(_: object) -> None:
        try:
            with FlushedDenormals():
                for task in waiting:  # each goes to one thread
                    task()
        except BaseException as error:
            errors.append(error)

    # A team of another size would cost OpenMP threads that torch's next operation starts anew.
    _openmp(_BODY(body), None, torch.get_num_threads(), 0)
    if errors:
        raise errors[0]


def _run_on_pool(tasks: Sequence[_Task]) -> None:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, "chmm-kernel")
    futures = [_pool.submit(_flushed, task) for task in tasks[:-1]]
    tasks[-1]()
    for future in futures:
        future.result()


def _flushed(task: _Task) -> None:
    with FlushedDenormals():
        task()


def num_threads(work: float) -> int:
    """How many threads so many multiply-adds are worth."""
    # Torch's setting is the one users know; asking numba for its own would overwrite torch's.
    return torch.get_num_threads() if work >= _PARALLEL_WORK else 1


def chunks(work: NDArray[Any]) -> list[tuple[int, int]]:
    """Cut ``range(len(work))`` into one run per thread with about equal work."""
    total = float(work.sum())
    threads = num_threads(total)
    if threads == 1 or len(work) < 2:
        return [(0, len(work))]
    cuts = np.searchsorted(np.cumsum(work), total * np.arange(1, threads) / threads) + 1
    bounds = np.unique(np.concatenate([[0], cuts, [len(work)]])).clip(max=len(work)).tolist()
    return [(lo, hi) for lo, hi in itertools.pairwise(bounds) if hi > lo]
