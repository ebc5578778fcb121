"""Gradient training against the EM baseline, on the training walk and on a walk held out."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from conftest import TEST_DATA, load_golden

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room
from chmm_pyro.inference.em import fit_em, log_prior
from chmm_pyro.inference.result import bits_per_step, log_likelihood
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

CASES = ["small", "medium", "large"]


class Baseline(NamedTuple):
    """A golden case with its EM fit from the published initial counts."""

    start: PointCHMM
    walk: SequenceBatch
    held_out: SequenceBatch
    pseudocount: float
    em: Any

    def objective(self, model: PointCHMM) -> float:
        prior = torch.as_tensor(log_prior(model, self.pseudocount))
        return log_likelihood(model, self.walk) + float(prior.detach())


@lru_cache
def baseline(name: str) -> Baseline:
    golden = load_golden(name)
    walk = SequenceBatch.from_arrays(golden.obs, golden.actions, num_actions=4)
    layout = json.loads((TEST_DATA / f"{name}_case.json").read_text())["input"]["room"]
    held_out = Room(layout).random_walk(num_steps=20_000, seed=7).batch()
    kappa = golden.pseudocount
    clones = CloneStructure(golden.num_clones)
    start = PointCHMM.from_counts(clones, golden.counts, pseudocount=kappa)
    em = fit_em(start, walk, num_iters=100, pseudocount=kappa, progress=False)
    return Baseline(start, walk, held_out, kappa, em)


@pytest.mark.parametrize("name", CASES)
def test_likelihood_alone_is_climbed_higher_than_by_em(name):
    """Without a prior; half the updates suffice, and the held-out walk suffers (see below)."""
    base = baseline(name)
    result = fit_svi(base.start, base.walk, num_iters=100, progress=False)
    assert result.bits_per_step < base.em.bits_per_step


# Pseudocounts as multiples of the baseline's, with the updates at each: a prior that is strong at
# first keeps the ascent out of poor optima.  The walks are short (50, 200 and 1,000 steps for 9,
# 27 and 81 states and four actions), so on the held-out walk it matters most which optimum of the
# common MAP objective is found, and no schedule that was tried suits all three: along (3, 1) the
# small case reaches a better training likelihood and MAP objective than EM, but 8 % more bits held
# out.  (At rate 0.01 without annealing, 900 updates come within 1.2 % of EM after as many updates
# on both walks of all three; benchmarks/training_curves.py.)
ANNEALED = {
    "small": [(30, 100), (10, 50), (3, 50), (1, 100)],
    "medium": [(3, 100), (1, 100)],
    "large": [(3, 100), (1, 100)],
}


@lru_cache
def annealed(name: str) -> PointCHMM:
    base = baseline(name)
    model = base.start
    for factor, num_iters in ANNEALED[name]:
        model = fit_svi(
            model,
            base.walk,
            num_iters=num_iters,
            learning_rate=0.3,
            pseudocount=factor * base.pseudocount,
            progress=False,
        ).model
    return model


@pytest.mark.parametrize("name", CASES)
def test_training_walk(name):
    base = baseline(name)
    assert bits_per_step(annealed(name), base.walk) <= 1.01 * base.em.bits_per_step


@pytest.mark.parametrize("name", CASES)
def test_map_objective(name):
    base = baseline(name)
    em = base.objective(base.em.model)
    assert base.objective(annealed(name)) >= em - 0.01 * abs(em)


@pytest.mark.parametrize("name", CASES)
def test_held_out_walk(name):
    base = baseline(name)
    expected = bits_per_step(base.em.model, base.held_out)
    assert bits_per_step(annealed(name), base.held_out) <= 1.01 * expected


# Half the data an update: noisier gradients, so plan more of them.
SEGMENTS = [
    pytest.param(0.0, 120, {}, id="likelihood"),
    pytest.param(0.03, 120, {}, id="MAP"),
    pytest.param(0.03, 480, {"batch_size": 5}, id="MAP in minibatches"),
]


@pytest.mark.parametrize(("pseudocount", "num_iters", "options"), SEGMENTS)
def test_segments_reach_the_full_batch(pseudocount, num_iters, options):
    """Filter states carried over cuts cost less than 1 % of the likelihood in the end."""
    base = baseline("large")
    common = {"pseudocount": pseudocount, "progress": False}
    whole = fit_svi(base.start, base.walk, num_iters=120, **common)
    pieces = fit_svi(
        base.start, base.walk, num_iters=num_iters, segment_length=100, **common, **options
    )
    assert pieces.bits_per_step <= 1.01 * whole.bits_per_step


def test_without_burn_in_segments_do_not_reach_it():
    """What the steps before each segment are for."""
    base = baseline("large")
    options = {"num_iters": 120, "pseudocount": 0.03, "progress": False}
    whole = fit_svi(base.start, base.walk, **options)
    pieces = fit_svi(base.start, base.walk, segment_length=100, burn_in=0, **options)
    assert pieces.bits_per_step > 1.01 * whole.bits_per_step
