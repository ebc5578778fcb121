"""No number below ``finfo.tiny`` in passes over sparse tables, and the mode is left alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from chmm_pyro._kernels.denormals import FlushedDenormals
from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM

TINY = float(np.finfo(np.float32).tiny)


def keeps_denormals():
    return bool(torch.tensor(TINY) * 0.5 != 0)


def sparse(num_steps):
    """Of the eight clones that a step reaches, seven weigh exp(-90) to exp(-100)."""
    table = torch.full((1, 8, 8), -90.0) - torch.arange(8.0) * 10 / 8
    table[0].fill_diagonal_(0.0)
    initial = torch.zeros(8)
    initial[1:] = -torch.inf
    return CloneHMM(CloneStructure([8]), initial, table, torch.zeros(num_steps - 1).long())


@pytest.fixture
def compiled(monkeypatch):
    pytest.importorskip("numba", reason="torch operations have no loop over steps to speed up")
    monkeypatch.delenv("CHMM_PYRO_KERNEL", raising=False)


@pytest.mark.usefixtures("compiled")
def test_messages_hold_no_denormal_numbers():
    hmm, obs = sparse(6), torch.zeros(6).long()
    for probs in (hmm.filter(obs).probs, hmm.smooth(obs).probs):
        assert not ((probs > 0) & (probs < TINY)).any()
    assert abs(float(hmm.log_prob(obs))) < 1e-6


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("already", [False, True])
def test_queries_leave_the_mode_of_the_caller_alone(already):
    assert keeps_denormals()
    hmm, obs = sparse(6), torch.zeros(6).long()
    hmm.table.values.requires_grad_()
    try:
        torch.set_flush_denormal(already)
        hmm.log_prob(obs).backward()
        hmm.expected_counts(obs)
        hmm.sample_posterior(obs, 2)
        hmm.posterior_mode(obs)
        assert keeps_denormals() != already
    finally:
        torch.set_flush_denormal(False)


def test_mode_is_restored_after_an_error():
    with pytest.raises(AssertionError), FlushedDenormals():
        assert keeps_denormals()
    assert keeps_denormals()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("on_openmp", [False, True])
def test_threads_of_the_kernels_flush(on_openmp, monkeypatch):
    from chmm_pyro._kernels import numba_threads

    if not on_openmp:
        monkeypatch.setattr(numba_threads, "_openmp", None)
    both = threading.Barrier(2, timeout=60)
    kept = []

    def task():
        both.wait()  # so that one thread cannot run both
        kept.append(keeps_denormals())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with FlushedDenormals():
            numba_threads.run([task, task])
        assert kept == [False, False]
        # Torch's own operations on those threads keep them.
        assert keeps_denormals()
        many = torch.full((1_000_000,), TINY)
        assert bool(((many * 0.5) != 0).all())
    finally:
        torch.set_num_threads(before)
