"""Gibbs sampling against the exact posterior, and as a fit."""

from __future__ import annotations

import math
import signal

import numpy as np
import pytest
import torch
from conftest import TOL
from dirichlet_oracle import exact_posterior
from goodness_of_fit import MIN_P_VALUE
from numpy.testing import assert_allclose
from scipy import stats

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference import gibbs as gibbs_module
from chmm_pyro.inference.conjugate import (
    draw_log_dirichlet,
    draw_tables,
    path_counts,
)
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 2])
OBS, ACTIONS = [0, 1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0]
QUICK = {"num_iters": 20, "num_warmup": 5, "num_chains": 2, "progress": False}


def small():
    return SequenceBatch.from_arrays(OBS, ACTIONS)


def ragged():
    return SequenceBatch.from_arrays([OBS, OBS[:3], [1]], [ACTIONS, ACTIONS[:2], []])


def test_posterior_means_are_exact():
    model = BayesianCHMM(CLONES, 2, 0.6, sticky=0.4)
    exact = exact_posterior((2, 2), model.concentration({}), OBS, ACTIONS)
    fit = fit_gibbs(
        model, small(), num_iters=200, num_warmup=20, num_chains=30, progress=False, seed=1
    )
    draws = fit.draws["transition"].numpy()
    # Sweeps are nearly independent on so little data; ten to a batch.
    for values, expected in ((draws, exact.transition_mean), (draws**2, exact.transition_square)):
        means = values.reshape(-1, 10, *draws.shape[2:]).mean(1)
        error = means.std(0) / math.sqrt(len(means))
        z = (means.mean(0) - expected) / error
        assert np.abs(z).max() < stats.norm.isf(MIN_P_VALUE / z.size), z


def test_evidence_of_the_drawn_densities():
    """The harmonic identity E[1 / p(x | T)] = 1 / p(x), through ``log_prob`` of the draws."""
    model = BayesianCHMM(CLONES, 2, 2.0)
    exact = exact_posterior((2, 2), model.concentration({}), OBS, ACTIONS)
    fit = fit_gibbs(
        model, small(), num_iters=200, num_warmup=20, num_chains=30, progress=False, seed=2
    )
    inverse = np.exp(-fit.draws["log_prob"].numpy().reshape(-1) + exact.log_evidence)
    assert_allclose(inverse.mean(), 1.0, rtol=0.0, atol=5 * inverse.std() / math.sqrt(3000))


@pytest.mark.parametrize("batch", [small, ragged], ids=["single", "ragged"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"action_model": "joint", "learn_initial": True},
        {"learn_actions": True},
        {"hyperprior": (2.0, 2.0), "sticky": 0.5},
        {"stick_concentration": 1.0, "hyperprior": (2.0, 2.0), "learn_initial": True},
        {"emission_concentration": (5.0, 0.5)},
    ],
    ids=["plain", "joint", "actions", "hierarchical", "sticks", "emission"],
)
def test_every_prior_is_sampled(options, batch):
    model = BayesianCHMM(CLONES, 2, **{"concentration": 0.5, **options})
    fit = fit_gibbs(model, batch(), seed=3, **QUICK)
    for name in model.public_names:
        assert fit.draws[name].shape[:2] == (2, 20)
        assert fit.draws[name].isfinite().all()
        assert fit.draws[name][0].std(0).max() > 0
    values = model.values_of({name: fit.draws[name] for name in model.public_names})
    flat = {site: value.flatten(0, 1) for site, value in values.items()}
    hmm = model.distribution(fit.data, model.parameters_of(flat).beside(fit.data))
    log_prob = hmm.log_prob(fit.data.obs)
    log_prob = log_prob if fit.data.single else log_prob.sum(-1)
    assert_allclose(fit.draws["log_prob"].flatten(), log_prob, **EXACT)
    log_joint = log_prob + model.log_prior(flat)
    kept = log_joint.isfinite()  # probabilities below 1e-308 are zero among the draws
    assert kept.sum() > 10
    assert_allclose(fit.draws["log_joint"].flatten()[kept], log_joint[kept], rtol=1e-6)
    bits = -float(log_prob.max()) / (math.log(2) * fit.data.num_observed)
    assert_allclose(fit.bits_per_step, bits, **EXACT)
    assert (fit.draws["num_used"] >= 1).all() and (fit.draws["num_used"] <= 2).all()


def test_result_follows_the_contract():
    model = BayesianCHMM(CLONES, 2, 0.5)
    fit = fit_gibbs(model, small(), thin=4, **QUICK)
    assert fit.draws["transition"].shape == (2, 5, 2, 4, 4)
    assert (fit.num_iters, fit.num_warmup, fit.interrupted) == (20, 5, False)
    assert len(fit.log_prob_history) == len(fit.objective_history) == len(fit.seconds_history) == 25
    assert isinstance(fit.model, PointCHMM) and fit.prior_model is model
    assert fit.settings["method"] == "gibbs"


def test_same_seed_same_draws():
    model = BayesianCHMM(CLONES, 2, 0.5, hyperprior=(1.0, 1.0))
    one, two, other = (fit_gibbs(model, small(), seed=seed, **QUICK) for seed in (5, 5, 6))
    assert torch.equal(one.draws["transition"], two.draws["transition"])
    assert not torch.equal(one.draws["transition"], other.draws["transition"])


def test_thinned_draws_are_every_so_manieth():
    model = BayesianCHMM(CLONES, 2, 0.5)
    every, thinned = (fit_gibbs(model, small(), thin=thin, **QUICK) for thin in (1, 4))
    for name in ("transition", "log_prob", "log_joint", "num_used"):
        assert torch.equal(thinned.draws[name], every.draws[name][:, 3::4])


def test_the_number_of_clones_in_use_is_inferred():
    """A ring of three places with one symbol and one with another, and eight clones for each."""
    batch = SequenceBatch.from_arrays([0, 0, 0, 1] * 50)
    model = BayesianCHMM(CloneStructure([8, 8]), 1, 0.3, stick_concentration=1.0)
    fit = fit_gibbs(
        model, batch, num_iters=100, num_warmup=100, num_chains=4, progress=False, seed=1
    )
    used = fit.draws["num_used"].double().mean((0, 1))
    assert ((used - torch.tensor([3.0, 1.0])).abs() < 1.0).all(), used
    alike = BayesianCHMM(CloneStructure([8, 8]), 1, 0.3)
    assert (alike.prior_predictive(batch, 50).num_used.double().mean(0) > 7.5).all()


def test_random_state_of_the_caller_is_untouched():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit_gibbs(BayesianCHMM(CLONES, 2, 0.5), small(), **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_chains_go_on_from_an_earlier_result():
    model = BayesianCHMM(CLONES, 2, 0.5, stick_concentration=1.0, hyperprior=(2.0, 2.0))
    first = fit_gibbs(model, small(), **QUICK)
    more = fit_gibbs(model, small(), start=first, **{**QUICK, "num_warmup": 0})
    last = float(first.draws["log_prob"][:, -1].mean())
    assert_allclose(more.log_prob_history[0], last, **EXACT)
    with pytest.raises(ValueError, match="start has 2 chains"):
        fit_gibbs(model, small(), start=first, **{**QUICK, "num_chains": 3})


def test_chains_start_from_many_float32_rows():
    """Such rows sum to one to float32 only, which the prior's float64 support refuses."""
    clones = CloneStructure([100, 100])
    fit = fit_gibbs(
        BayesianCHMM(clones, 2, 0.5), small(), start=PointCHMM(clones, 2, seed=0), **QUICK
    )
    assert np.isfinite(fit.objective_history[0])


def test_chains_start_from_point_fits():
    point = PointCHMM(CLONES, 2, seed=1, dtype=torch.float64)
    fitted = fit_em(point, small(), num_iters=20, pseudocount=0.1, progress=False)
    model = BayesianCHMM(CLONES, 2, 0.5, learn_initial=True)
    for start in (fitted, fitted.model, [fitted.model, fitted.model]):
        fit = fit_gibbs(model, small(), start=start, **QUICK)
        expected = -fitted.bits_per_step * math.log(2) * len(OBS)
        assert_allclose(fit.log_prob_history[0], expected, **EXACT)


def test_interruption_returns_what_was_reached(monkeypatch):
    sweeps = []

    def interrupted(*arguments, **options):
        sweeps.append(1)
        if len(sweeps) == 8:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    original = gibbs_module.gibbs_sweep
    monkeypatch.setattr(gibbs_module, "gibbs_sweep", interrupted)
    fit = fit_gibbs(BayesianCHMM(CLONES, 2, 0.5), small(), **QUICK)
    assert fit.interrupted and (fit.num_warmup, fit.num_iters) == (5, 3)
    assert fit.draws["transition"].shape[:2] == (2, 3)
    sweeps[:] = [1] * 5
    fit = fit_gibbs(BayesianCHMM(CLONES, 2, 0.5), small(), **QUICK)  # during warm-up
    assert (fit.num_warmup, fit.num_iters) == (3, 0)
    assert fit.draws["transition"].shape[:2] == (2, 1)


def test_paths_are_counted():
    model = BayesianCHMM(CLONES, 2, learn_actions=True, emission_concentration=(1.0, 1.0))
    batch = SequenceBatch.from_arrays([[0, -1, 1], [1, 0]], [[1, 0], [1]])
    states = torch.tensor([[[0, 3, 2], [2, 1, -1]], [[1, 0, 2], [3, 0, -1]]])
    found = path_counts(model, batch, states)
    table = np.zeros((2, 2, 4, 4))
    for chain, old, new, action in [(0, 0, 3, 1), (0, 3, 2, 0), (0, 2, 1, 1)]:
        table[chain, action, old, new] += 1
    for chain, old, new, action in [(1, 1, 0, 1), (1, 0, 2, 0), (1, 3, 0, 1)]:
        table[chain, action, old, new] += 1
    assert_allclose(found["log_transition"], table, **EXACT)
    assert found["log_initial"].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert found["log_actions"].tolist() == [[1, 2], [1, 2]]
    assert batch.action_counts(3).tolist() == [1, 2, 0]
    emission = np.zeros((2, 4, 2))
    for chain, state, symbol in [(0, 0, 0), (0, 2, 1), (0, 2, 1), (0, 1, 0)]:
        emission[chain, state, symbol] += 1
    for chain, state, symbol in [(1, 1, 0), (1, 2, 1), (1, 3, 1), (1, 0, 0)]:
        emission[chain, state, symbol] += 1
    assert_allclose(found["log_emission"], emission, **EXACT)


def test_tables_have_their_distribution():
    generator = np.random.default_rng(0)
    alpha, customers, draws = 0.7, 5, 4000
    found = draw_tables(np.full(draws, customers), np.full(draws, alpha), generator)
    seated = alpha / (alpha + np.arange(customers))
    exact = np.ones(1)
    for p in seated:
        exact = np.convolve(exact, [1 - p, p])
    observed = np.bincount(found, minlength=customers + 1)
    assert observed[0] == 0
    assert stats.chisquare(observed[1:], exact[1:] * draws).pvalue > MIN_P_VALUE
    assert draw_tables(np.zeros((2, 3), int), np.ones((2, 3)), generator).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fast_dirichlet_rows(dtype):
    generator = np.random.default_rng(0)
    alpha = np.tile(np.array([0.05, 0.6, 3.0], dtype), (4000, 1))
    draws = draw_log_dirichlet(alpha, generator)
    assert draws.dtype == dtype
    assert_allclose(np.exp(draws).sum(-1), 1.0, rtol=1e-5)
    for j in range(3):
        marginal = stats.beta(alpha[0, j], alpha[0].sum() - alpha[0, j]).cdf
        assert stats.kstest(np.exp(draws[:, j]), marginal).pvalue > MIN_P_VALUE


BAD = {
    "num_iters": ({"num_iters": 0}, "num_iters = 0"),
    "num_warmup": ({"num_warmup": -1}, "num_warmup = -1"),
    "num_chains": ({"num_chains": 0}, "num_chains = 0"),
    "thin": ({"thin": 0}, "thin = 0"),
    "thin too much": ({"thin": 21}, "thin = 21 of num_iters = 20"),
    "memory": ({"max_gigabytes": 1e-6}, "20 draws of 2 chains take .* GB.*raise thin"),
    "start clones": ({"start": PointCHMM(CloneStructure([3, 2]), 2)}, "start is a model of"),
    "start actions": ({"start": PointCHMM(CLONES, 3)}, "and 3 actions"),
    "start joint": ({"start": PointCHMM(CLONES, 2, action_model="joint")}, "action_model='joint'"),
    "start number": ({"start": [PointCHMM(CLONES, 2)] * 3}, "start has 3 models"),
    "start impossible": (
        {"start": PointCHMM.from_counts(CLONES, torch.eye(4).expand(2, 4, 4))},
        "impossible under the start of chain 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fit_gibbs(BayesianCHMM(CLONES, 2, 0.5), small(), **{**QUICK, **options})


def test_models_without_priors_are_refused():
    with pytest.raises(TypeError, match="expected BayesianCHMM"):
        fit_gibbs(PointCHMM(CLONES, 2), small(), **QUICK)
