"""Tasks on several threads: torch's own, or a pool where those cannot be had."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest
import torch

numba_threads = pytest.importorskip(
    "chmm_pyro._kernels.numba_threads", reason="threads are for compiled loops"
)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["pool", "torch"], autouse=True)
def threads(request, monkeypatch):
    if request.param == "pool":
        monkeypatch.setattr(numba_threads, "_openmp", None)
    elif numba_threads._openmp is None:
        pytest.skip("this torch has no GNU OpenMP")
    return request.param


def test_every_task_runs_once():
    done = []
    numba_threads.run([lambda i=i: done.append(i) for i in range(50)])
    assert sorted(done) == list(range(50))


def test_two_tasks_run_at_the_same_time():
    both = threading.Barrier(2, timeout=60)
    numba_threads.run([both.wait, both.wait])


def test_two_callers_do_not_wait_for_each_other():
    every = threading.Barrier(4, timeout=60)

    def call():
        torch.set_num_threads(2)  # OpenMP counts for each caller
        numba_threads.run([every.wait, every.wait])

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not every.broken


def test_an_error_reaches_the_caller():
    def fail():
        raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted"):
        numba_threads.run([fail, lambda: None])
    with pytest.raises(ZeroDivisionError, match="planted"):
        numba_threads.run([lambda: None, fail])


def _run_in_child(queue):
    done = []
    numba_threads.run([lambda: done.append(1), lambda: done.append(2)])
    queue.put(sorted(done))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    numba_threads.run([lambda: None, lambda: None])  # threads that the child will not have
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_run_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60) == [1, 2]
    finally:
        child.join(timeout=60)
        child.kill()


def test_work_is_cut_into_equal_parts():
    work = np.array([1e6, 1.0, 1.0, 1e6, 1.0])
    assert numba_threads.chunks(work) == [(0, 3), (3, 5)]
    assert numba_threads.chunks(np.array([1.0, 1.0])) == [(0, 2)]
