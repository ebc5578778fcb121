"""Large arrays come back once nobody holds them, and never before."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from chmm_pyro._kernels import scratch as module
from chmm_pyro._kernels.scratch import scratch

SIZE = 2**19  # 2 MiB of float32


@pytest.fixture(autouse=True)
def nothing_kept():
    module._kept.buffers.clear()
    yield
    module._kept.buffers.clear()


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again():
    first = scratch(SIZE, np.float32)
    where = address(first)
    del first
    second = scratch(SIZE // 2, np.float64)
    assert address(second) == where and second.dtype == np.float64 and len(second) == SIZE // 2
    second[:] = 1.0  # writable


@pytest.mark.parametrize(
    "held",
    [
        lambda array: array,
        lambda array: array[5:9],
        lambda array: array[::2][3:].reshape(-1, 1),
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[3:],
    ],
    ids=["itself", "slice", "slice of a slice", "tensor", "slice of a tensor"],
)
def test_what_is_held_is_not_lent_again(held):
    kept = held(scratch(SIZE, np.float32))
    kept[:] = 3.0
    for _ in range(module._MOST + 2):
        scratch(SIZE, np.float32)[:] = 0.0
    assert bool((kept == 3.0).all())


def test_only_so_much_is_kept():
    held = [scratch(SIZE, np.float32) for _ in range(module._MOST + 3)]
    assert len({address(array) for array in held}) == len(held)
    assert len(module._kept.buffers) == module._MOST
    del held
    scratch(2 * SIZE, np.float32)  # makes room for itself
    assert len(module._kept.buffers) == module._MOST
    scratch(module._LARGEST + 1, np.uint8)
    scratch(10, np.uint8)
    assert all(
        module._SMALLEST <= len(buffer) <= module._LARGEST for buffer, _ in module._kept.buffers
    )


def test_threads_share_nothing():
    mine = scratch(SIZE, np.float32)
    where = address(mine)
    del mine
    found = []
    thread = threading.Thread(target=lambda: found.append(address(scratch(SIZE, np.float32))))
    thread.start()
    thread.join()
    assert address(scratch(SIZE, np.float32)) == where != found[0]
