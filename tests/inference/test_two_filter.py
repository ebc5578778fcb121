r"""Smoothing by two filters agrees with :meth:`CloneHMM.smooth`.

Briers, Doucet, Maskell 2010, "Smoothing algorithms for state-space models": besides the filter
forwards, an *information* filter runs backwards from the last step.  ``p(x_{t..T} | z_t)`` is no
distribution over states, so it is multiplied by artificial priors ``gamma_t``; with

    gamma_0 = p(z_0),   gamma_{t+1}(z') = sum_z gamma_t(z) T_t(z' | z)

the second filter is the filter of the reversed chain, whose transitions are
``R_t(z | z') = gamma_t(z) T_t(z' | z) / gamma_{t+1}(z')``.  Then

    p(z_t | x) ~ p(z_t | x_{0..t}) * p~(z_t | x_{t+1..T}) / gamma_t(z_t).
"""

from __future__ import annotations

import pytest
import torch
from conftest import TOL
from instances import random_instance
from torch.testing import assert_close

from chmm_pyro.clones import MISSING
from chmm_pyro.distribution import CloneHMM

CASES = {
    "ragged": random_instance((2, 3, 1), 6, 2, seed=1),
    "missing": random_instance((2, 1), 7, 3, seed=2, missing=[0, 3, 6]),
    "zeros": random_instance((3, 3), 7, 2, seed=3, zeros=0.5),
    "evidence": random_instance((2, 2), 6, 2, seed=4, missing=[2], evidence="states"),
    "long": random_instance((4, 3, 2), 200, 2, seed=5, missing=5),
    "two steps": random_instance((2, 2), 2, 1, seed=6),
}


def two_filter_smoother(instance):
    """``(T, S)`` smoothed probabilities."""
    hmm = CloneHMM(instance.clones, **instance.arguments())
    forward = hmm.filter(instance.obs).dense()
    steps = hmm.table.values.exp()[torch.as_tensor(instance.actions)]
    gamma = [hmm.log_initial.exp()]
    for step in steps:
        gamma.append(gamma[-1] @ step)
    gamma = torch.stack(gamma)
    # A state that is never entered has no past; any row will do for it.
    reached = gamma[1:, :, None] > 0
    backwards = (gamma[:-1, :, None] * steps).transpose(-1, -2)
    backwards = torch.where(reached, backwards / gamma[1:, :, None], 1.0)
    count = len(backwards)
    evidence = None if hmm.log_evidence is None else hmm.log_evidence.flip(0)
    reversed_hmm = CloneHMM(
        instance.clones,
        gamma[-1].log(),
        backwards.flip(0).log(),
        torch.arange(count),
        log_evidence=evidence,
    )
    after = reversed_hmm.filter(instance.obs[::-1].copy()).dense().flip(0)
    # What follows step t alone: the information filter of t + 1, moved one step back.
    later = torch.einsum("tj,tji->ti", after[1:], backwards)
    both = forward.clone()
    both[:-1] *= torch.where(gamma[:-1] > 0, later / gamma[:-1], 0.0)
    return both / both.sum(-1, keepdim=True), after


@pytest.mark.parametrize("name", CASES)
def test_two_filters_agree_with_smooth(name):
    instance = CASES[name]
    hmm = CloneHMM(instance.clones, **instance.arguments())
    smoothed = hmm.smooth(instance.obs).dense()
    found, after = two_filter_smoother(instance)
    tolerance = TOL["gradient"][torch.float64]
    assert_close(found, smoothed, **tolerance)
    # At the first step the information filter has seen everything.
    assert_close(after[0], smoothed[0], **tolerance)
    if name != "long":
        assert_close(found, torch.tensor(instance.exact().smooth), **tolerance)
    if len(instance.obs) > 2 and MISSING not in instance.obs[:1]:
        assert (hmm.filter(instance.obs).dense()[:-1] - smoothed[:-1]).abs().max() > 1e-3
