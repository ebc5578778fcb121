"""Fitting leaves nothing behind: Pyro's store, settings and all random states stay the user's."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch

__all__ = ["Stopwatch", "pyro_scope", "single_thread", "until_interrupted"]

_lock = threading.RLock()  # Pyro's handler stack and parameter store are global


@contextmanager
def pyro_scope(seed: int) -> Iterator[None]:
    """A private, empty parameter store and seeded randomness.

    Models keep their parameters in that store even where the user has asked Pyro for stores of
    each module (``module_local_params``), which Pyro's own optimizers cannot read.
    """
    with (
        _lock,
        torch.random.fork_rng(devices=_cuda_devices()),
        pyro.get_param_store().scope(),
        pyro.settings.context(module_local_params=False),
    ):
        torch.manual_seed(seed)
        yield


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._start


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a loop can finish its update and return.

    A second Ctrl-C interrupts at once.  Outside the main thread signals cannot be caught and
    the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(number, frame):
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        if signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch and the kernels: on tiny tensors handing work over costs the most."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
