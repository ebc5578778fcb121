"""Compact maps from walks: exact on a small world, reproducible, and honest about failure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chmm_pyro import CloneStructure, SequenceBatch
from chmm_pyro.environments import published_room
from chmm_pyro.inference import consolidate, fit_em, fit_map
from chmm_pyro.models import PointCHMM


@pytest.fixture(scope="module")
def walk():
    return published_room("aliased_4x4").random_walk(8_000, seed=5)


@pytest.fixture(scope="module")
def found(walk):
    return fit_map(walk.batch(), seed=0, progress=False)


def is_exact(model, walk) -> bool:
    """States and places determine each other, and every tried move has the true outcome."""
    states = model.distribution(walk.batch()).posterior_mode(walk.obs).states.numpy()
    places = np.asarray(walk.places)
    pairs = set(zip(states, places, strict=True))
    return len(pairs) == len(set(states)) == len(set(places))


def test_every_place_has_one_state(found, walk):
    assert is_exact(found.model, walk)
    assert found.converged
    assert found.model.clones.num_states == 16
    assert found.bits_per_step < 0.01
    assert (np.diff(found.objective_history) >= 0).all()


def test_a_seed_decides_everything(found, walk):
    again = fit_map(walk.batch(), seed=0, progress=False)
    table = found.model.transition.table().values
    assert torch.equal(again.model.transition.table().values, table)
    assert again.settings["attempts"] == found.settings["attempts"]


def test_repair_tells_mixed_places_apart(walk):
    """Too few clones at the start: states stand for several places until they are repaired."""
    result = fit_map(walk.batch(), num_clones=3, seed=1, progress=False)
    kinds = [attempt["kind"] for attempt in result.settings["attempts"]]
    assert "repair" in kinds
    assert result.settings["attempts"][0]["num_mixed_moves"] > 0
    assert is_exact(result.model, walk)


def test_episodes_are_one_map(walk):
    cut = walk.batch().segments(500).batch
    result = fit_map(cut, seed=0, progress=False)
    assert result.model.clones.num_states == 16
    assert result.converged


def test_consolidation_of_an_em_fit(walk):
    batch = walk.batch()
    start = PointCHMM(CloneStructure([20] * 4), num_actions=4, seed=0)
    fit = fit_em(start, batch, num_iters=60, pseudocount=0.005, progress=False)
    smaller = consolidate(fit, batch)
    report = smaller.settings["report"]
    assert report["merged"]
    assert report["num_states_before"] == 80
    assert report["num_states"] == smaller.model.clones.num_states < report["num_states_used"]
    assert smaller.bits_per_step <= fit.bits_per_step + 0.01


def test_consolidation_that_costs_likelihood_is_undone():
    """Coin flips: two states explain nothing more than one, and no tolerance is overstepped."""
    obs = np.random.default_rng(0).integers(0, 2, 2_000)
    batch = SequenceBatch.from_arrays(obs)
    model = PointCHMM(CloneStructure([3, 3]), num_actions=1, seed=0)
    fit = fit_em(model, batch, num_iters=30, pseudocount=0.01, progress=False)
    smaller = consolidate(fit, batch, tolerance=0.02)
    assert smaller.bits_per_step <= fit.bits_per_step + 0.02
    assert smaller.model.clones.num_states <= 6


def test_bad_options():
    batch = SequenceBatch.from_arrays([0, 1, 0, 1])
    with pytest.raises(ValueError, match="num_clones = 0, expected at least 1"):
        fit_map(batch, num_clones=0, progress=False)
    with pytest.raises(ValueError, match="tolerance = -1"):
        consolidate(PointCHMM(CloneStructure([1, 1]), num_actions=1), batch, tolerance=-1)
