"""Float32 over very long sequences of a trained model."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.environments import Room
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.point import PointCHMM

ROOM = Room([[0, 1, 2, 0, 1], [2, 0, 0, 1, 2], [1, 1, 2, 0, 0], [0, 2, 1, 1, 2]])
CLONES = CloneStructure([12, 12, 12])


@lru_cache
def trained(method):
    walk = ROOM.random_walk(num_steps=3000, seed=1).batch()
    model = PointCHMM(CLONES, num_actions=4, seed=0)
    if method == "svi":
        return fit_svi(model, walk, num_iters=100, progress=False).model
    return fit_em(model, walk, num_iters=60, pseudocount=0.01, progress=False).model


def in_precision(model, dtype, batch):
    """The very same parameters, as the float32 model has them, in a given precision."""
    logits = model.transition.logits.detach().to(dtype)
    return CloneHMM(model.clones, model.initial.logits.to(dtype), logits, batch.actions)


@pytest.mark.parametrize("method", ["svi", "em"])
@pytest.mark.parametrize(
    "num_steps", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["1e5", "1e6"]
)
def test_bits_per_step(method, num_steps):
    walk = ROOM.random_walk(num_steps=num_steps, seed=2).batch()
    per_step = math.log(2) * num_steps
    steps = {}
    model = trained(method)
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            hmm = in_precision(model, dtype, walk)
            steps[dtype] = hmm.log_prob_steps(walk.obs).double().numpy()
            value = float(hmm.log_prob(walk.obs))
            assert abs(value - math.fsum(steps[dtype])) / per_step < 1e-6
    bits = {dtype: -math.fsum(terms) / per_step for dtype, terms in steps.items()}
    assert 0.001 < bits[torch.float64] < 2
    assert abs(bits[torch.float32] - bits[torch.float64]) < 1e-6
    # Errors do not build up along the sequence either.
    error = np.abs(steps[torch.float32] - steps[torch.float64])
    assert error[-1000:].max() < 1e-4


@pytest.mark.parametrize("method", ["svi", "em"])
def test_counts_and_paths(method):
    walk = ROOM.random_walk(num_steps=20_000, seed=3).batch()
    found = {}
    model = trained(method)
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            hmm = in_precision(model, dtype, walk)
            found[dtype] = hmm.expected_counts(walk.obs)[2].double(), hmm.posterior_mode(walk.obs)
    single, double = found[torch.float32], found[torch.float64]
    assert (single[0] - double[0]).abs().max() < 1e-4 * double[0].max()
    # Each posterior sums to one within a few units of rounding (1.2e-7), always to the same side.
    assert abs(single[0].sum() / 19_999 - 1) < 3e-6
    assert abs(single[1].score - double[1].score) < 1e-6 * abs(double[1].score)
