"""Compiled loops at the same time (numba releases the GIL), on as many threads as torch uses."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from .denormals import flush_denormals

__all__ = ["chunks", "num_threads", "run"]

# Below this many multiply-adds a second thread costs more than it saves.
_PARALLEL_WORK = 300_000

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # threads do not survive a fork


os.register_at_fork(after_in_child=_forget_pool)


def run(tasks: Sequence[Callable[[], Any]]) -> None:
    """Run tasks at the same time, the last one on this thread."""
    global _pool
    if len(tasks) > 1 and _pool is None:
        _pool = ThreadPoolExecutor(
            numba.config.NUMBA_NUM_THREADS, "chmm-kernel", initializer=flush_denormals
        )
    futures = [_pool.submit(task) for task in tasks[:-1]] if _pool is not None else []
    tasks[-1]()
    for future in futures:
        future.result()


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
