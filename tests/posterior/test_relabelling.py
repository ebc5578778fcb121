"""Clones renumbered across draws: planted numberings come back, and R-hat says what is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOL
from numpy.testing import assert_allclose, assert_array_equal
from worlds import exact_model

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.posterior.draws import DIMS, posterior_draws
from chmm_pyro.posterior.relabelling import relabel, state_rhat
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
ROOM = Room([[0, 1, 0], [1, 0, 1]])
ALL_PRIORS = {"learn_initial": True, "stick_concentration": 2.0, "learn_actions": True}


@pytest.fixture(scope="module")
def room_fit():
    """Draws around the true map of a room, which chains do not leave in so few sweeps."""
    batch = ROOM.random_walk(200, seed=0).batch()
    truth, _ = exact_model(ROOM, pseudocount=0.01)
    model = BayesianCHMM(truth.clones, 4, 0.2, **ALL_PRIORS)
    return fit_gibbs(
        model, batch, num_iters=10, num_warmup=5, num_chains=3, start=truth, progress=False
    )


def renumbered(fit, seed, *, by_chain=False):
    """The fit with the clones of every draw (or chain) renumbered at random, and the old states."""
    clones = fit.prior_model.clones
    rng = np.random.default_rng(seed)
    chains, draws = fit.draws["transition"].shape[:2]
    old = np.empty((chains, draws, clones.num_states), dtype=int)
    for chain in range(chains):
        for draw in range(draws):
            for symbol in range(clones.num_symbols):
                own = np.arange(clones.num_states)[clones.states(symbol)]
                old[chain, draw, own] = rng.permutation(own)
        if by_chain:
            old[chain] = old[chain, 0]
    values = {name: value.clone() for name, value in fit.draws.items()}
    for name, dims in DIMS.items():
        for axis, dim in enumerate(dims):
            if name in values and dim in ("state", "new_state"):
                for at in np.ndindex(chains, draws):
                    values[name][at] = values[name][at].index_select(axis, torch.tensor(old[at]))
    return replace(fit, draws=values), old


def test_a_planted_numbering_is_recovered(room_fit):
    planted, old = renumbered(room_fit, seed=1)
    found = relabel(planted)
    assert found.converged
    # State k was called old[k] before it was planted: one numbering of the original for all draws.
    composed = np.take_along_axis(old, found.permutations, axis=-1)
    assert (composed == composed[0, 0]).all()
    order = torch.from_numpy(composed[0, 0])
    original = room_fit.draws
    expected = original["transition"].index_select(3, order).index_select(4, order)
    assert torch.equal(found.draws.values["transition"], expected)
    for name in ("initial", "clone_weights"):
        assert torch.equal(found.draws.values[name], original[name].index_select(2, order))
    for name in ("actions", "log_prob", "num_used"):
        assert torch.equal(found.draws.values[name], original[name])


def test_rhat_falls_to_that_of_the_original(room_fit):
    planted, _ = renumbered(room_fit, seed=2, by_chain=True)
    found = relabel(planted)
    assert found.agreement_before.mean() < 0.7 < 0.95 < found.agreement.mean()
    assert found.rhat_before.usage.max() > 1.5 > 1.2 > found.rhat.usage.max()
    assert found.rhat_before.worst > found.rhat.worst
    original = state_rhat(posterior_draws(room_fit))
    assert_allclose(found.rhat.worst, original.worst, rtol=0.2)


def test_what_does_not_depend_on_the_numbering_stays(room_fit):
    planted, _ = renumbered(room_fit, seed=3)
    found = relabel(planted)
    model = found.draws.model
    flat = {name: found.draws.values[name].flatten(0, 1) for name in model.public_names}
    hmm = model.distribution(planted.data, model.parameters_of(model.values_of(flat)))
    assert_allclose(hmm.log_prob(planted.data.obs), planted.draws["log_prob"].flatten(), **EXACT)
    assert_array_equal(found.draws.num_used, planted.draws["num_used"])
    symbols = model.clones.symbol_of_state
    assert_array_equal(symbols[found.draws.paths], symbols[found.before.paths])


def test_the_result_gets_the_new_draws(room_fit):
    planted, _ = renumbered(room_fit, seed=4)
    found = relabel(planted)
    result = found.result(planted)
    assert result.draws is found.draws.values
    best = np.unravel_index(int(result.draws["log_prob"].argmax()), found.draws.shape)
    assert_allclose(
        result.model.transition.table().values.exp().detach(),
        result.draws["transition"][best],
        rtol=1e-9,
    )
    with pytest.raises(ValueError, match=r"result has draws of .*3, 5.*expected \(3, 10\).*all"):
        found.result(replace(planted, draws={k: v[:, :5] for k, v in planted.draws.items()}))


def test_chains_of_a_real_run_come_together():
    """Eight chains from the prior number the clones of 0 at random; relabelled they agree."""
    batch = SequenceBatch.from_arrays([0, 0, 1, 0, 2] * 20)
    model = BayesianCHMM(CloneStructure([3, 1, 1]), 1, 0.3)
    fit = fit_gibbs(model, batch, num_iters=40, num_warmup=60, num_chains=8, progress=False, seed=1)
    found = relabel(fit)
    assert found.agreement_before.mean() < 0.8 < 0.97 < found.agreement.mean()
    assert found.rhat_before.worst > 1.5
    assert found.rhat.worst < 1.1


def test_missing_observations_and_one_draw():
    walk = Room([[0, 0, 1]]).random_walk(60, seed=0).batch()
    obs = walk.flat_obs.clone()
    obs[::7] = -1
    fit = fit_gibbs(
        BayesianCHMM(CloneStructure([2, 1]), 4, 0.3),
        replace(walk, flat_obs=obs),
        num_iters=1,
        num_warmup=5,
        num_chains=1,
        progress=False,
    )
    found = relabel(fit)
    assert_array_equal(found.permutations[0, 0], [0, 1, 2])
    assert found.agreement.tolist() == [[1.0]]
