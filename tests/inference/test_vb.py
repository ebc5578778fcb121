"""Variational Bayes: its bound against the exact evidence, and as a fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import TOL
from dirichlet_oracle import exact_posterior
from numpy.testing import assert_allclose
from torch.testing import assert_close

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.inference.guides import starting_concentrations
from chmm_pyro.inference.vb import evidence_bound, fit_vb
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 2])
OBS, ACTIONS = [0, 1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0]

OPTIONS = {
    "plain": {},
    "sparse": {"concentration": 0.05, "sticky": 0.3},
    "joint": {"action_model": "joint", "learn_initial": True},
    "actions": {"learn_actions": True, "learn_initial": True},
    "emission": {"emission_concentration": (5.0, 0.5)},
}


def small():
    return SequenceBatch.from_arrays(OBS, ACTIONS)


def ragged():
    return SequenceBatch.from_arrays([OBS, OBS[2:5], [1]], [ACTIONS, ACTIONS[:2], []])


def make(name):
    return BayesianCHMM(CLONES, 2, **{"concentration": 0.7, **OPTIONS[name]})


@pytest.mark.parametrize("batch", [small, ragged], ids=["single", "ragged"])
@pytest.mark.parametrize("name", OPTIONS)
def test_bound_never_falls(name, batch):
    fit = fit_vb(make(name), batch(), num_iters=60, progress=False, seed=1)
    rises = np.diff(fit.objective_history)
    assert rises.min() > -1e-10 * np.abs(fit.objective_history).max()
    assert rises[0] > 1e-3


def test_bound_is_below_the_evidence_and_exact_without_choice():
    model = make("plain")
    exact = exact_posterior((2, 2), model.concentration({}), OBS, ACTIONS).log_evidence
    bound = fit_vb(model, small(), num_iters=200, progress=False).objective_history[-1]
    assert exact - 3 < bound < exact
    # One clone each: paths are certain, so the approximation is the posterior.
    certain = BayesianCHMM(CloneStructure([1, 1]), 2, 0.7)
    exact = exact_posterior((1, 1), certain.concentration({}), OBS, ACTIONS)
    fit = fit_vb(certain, small(), num_iters=3, progress=False)
    assert_allclose(fit.objective_history[-1], exact.log_evidence, **EXACT)
    mean = fit.model.transition.table().values.exp().detach()
    assert_allclose(mean, exact.transition_mean, **EXACT)


def test_actions_and_starts_add_their_own_evidence():
    """With one clone of each symbol everything is Polya urns."""
    batch = ragged()
    model = BayesianCHMM(CloneStructure([1, 1]), 2, 0.7, learn_actions=True, learn_initial=True)
    plain = BayesianCHMM(CloneStructure([1, 1]), 2, 0.7)
    whole, rows = (
        fit_vb(one, batch, num_iters=3, progress=False).objective_history[-1]
        for one in (model, plain)
    )
    # Nine actions, five of them 0, and starts 0, 1, 1, under uniform Dirichlets; uniform starts.
    number = [ACTIONS.count(0) + 1, ACTIONS.count(1) + 1]
    actions = math.lgamma(number[0] + 1) + math.lgamma(number[1] + 1) - math.lgamma(sum(number) + 2)
    starts = math.lgamma(1 + 1) + math.lgamma(2 + 1) - math.lgamma(3 + 2)
    assert_allclose(whole - rows, actions + starts + 3 * math.log(2), **EXACT)


def test_counts_are_those_of_the_digamma_weighted_paths():
    model, batch = make("plain"), small()
    rows = starting_concentrations(model, batch, seed=3)
    _, counts = evidence_bound(model, batch, rows)
    weights = torch.digamma(rows["log_transition"])
    weights = weights - torch.digamma(rows["log_transition"].sum(-1, keepdim=True))
    paths = torch.cartesian_prod(*(torch.arange(2) + 2 * x for x in OBS))
    scores = weights[torch.tensor(ACTIONS), paths[:, :-1], paths[:, 1:]].sum(-1).softmax(0)
    expected = torch.zeros_like(weights)
    for t, action in enumerate(ACTIONS):
        expected[action].index_put_((paths[:, t], paths[:, t + 1]), scores, accumulate=True)
    assert_close(counts["log_transition"], expected, **EXACT)


def test_emission_counts_add_up():
    model = make("emission")
    batch = SequenceBatch.from_arrays([0, 1, MISSING, 1], [0, 1, 0])
    _, counts = evidence_bound(model, batch, starting_concentrations(model, batch))
    assert_close(counts["log_emission"].sum(0), torch.tensor([1.0, 2.0]).double(), **EXACT)


def test_minibatch_statistics_are_unbiased():
    model, batch = make("joint"), ragged()
    rows = starting_concentrations(model, batch)
    bound, counts = evidence_bound(model, batch, rows)
    parts = [evidence_bound(model, part.batch, rows) for part in batch.minibatches(1)]
    assert_allclose(np.mean([part[0] for part in parts]), bound, **EXACT)
    for site, count in counts.items():
        assert_close(sum(part[1][site] for part in parts) / len(parts), count, **EXACT)


def test_natural_gradient_steps_reach_the_full_optimum():
    rng = np.random.default_rng(0)
    walks = [np.tile([0, 1, 0, 2], 6)[rng.integers(4) :] for _ in range(30)]
    batch = SequenceBatch.from_arrays(walks)
    model = BayesianCHMM(CloneStructure([2, 1, 1]), 1, 0.5)
    full = fit_vb(model, batch, num_iters=60, progress=False).objective_history
    assert full[-1] > full[0] + 100
    fit = fit_vb(model, batch, num_iters=200, batch_size=6, progress=False)
    rows = {site: fit.guide.rows(site).detach() for site in model.sites}
    bound, _ = evidence_bound(model, batch, rows)
    assert full[-1] - 0.01 < bound < full[-1] + 1e-5


def test_tolerance_stops_at_the_fixed_point():
    fit = fit_vb(make("plain"), small(), num_iters=500, tol=1e-9, progress=False)
    assert fit.converged and fit.num_iters < 500
    rows = {site: fit.guide.rows(site).detach() for site in fit.prior_model.sites}
    bound, counts = evidence_bound(fit.prior_model, small(), rows)
    assert_close(rows["log_transition"], 0.7 + counts["log_transition"], rtol=1e-3, atol=1e-4)
    assert_allclose(bound, fit.objective_history[-1], rtol=1e-9)


def test_result_follows_the_contract():
    model = make("joint")
    fit = fit_vb(model, ragged(), num_iters=5, num_draws=7, progress=False)
    assert isinstance(fit.model, PointCHMM) and fit.prior_model is model
    assert fit.draws["transition"].shape == (1, 7, 2, 4, 4)
    assert fit.draws["initial"].shape == (1, 7, 4)
    assert fit.draws["log_joint"].shape == (1, 7)
    assert fit.log_prob_history is None and len(fit.objective_history) == 5
    mean = fit.guide.rows("log_transition").detach()
    mean = (mean / mean.sum(-1, keepdim=True)).view(4, 2, 4).transpose(0, 1)
    assert_close(fit.model.transition.table().values.exp().detach(), mean, **EXACT)


def test_starts_from_a_point_model():
    point = PointCHMM(CLONES, 2, seed=4, dtype=torch.float64)
    fit = fit_vb(make("plain"), small(), start=point, num_iters=1, progress=False)
    _, _, counts = point.distribution(small()).expected_counts(small().obs)
    rows = {"log_transition": 0.7 + counts}
    bound, _ = evidence_bound(make("plain"), small(), rows)
    assert_allclose(fit.objective_history[0], bound, **EXACT)


BAD = {
    "num_iters": ({"num_iters": 0}, "num_iters = 0"),
    "tol": ({"tol": -1.0}, "tol = -1"),
    "batch_size": ({"batch_size": 0}, "batch_size = 0"),
    "delay": ({"delay": -1.0}, "delay = -1"),
    "forgetting": ({"forgetting": 0.5}, "forgetting = 0.5"),
    "num_draws": ({"num_draws": -1}, "num_draws = -1"),
    "noisy tol": ({"tol": 0.1, "batch_size": 1}, "tol was given with batch_size"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fit_vb(make("plain"), ragged(), **{"progress": False, **options})


def test_hyperparameters_are_refused():
    for options in ({"hyperprior": (1.0, 1.0)}, {"stick_concentration": 1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            fit_vb(BayesianCHMM(CLONES, 2, 0.5, **options), small(), progress=False)
    with pytest.raises(TypeError, match="expected BayesianCHMM"):
        fit_vb(PointCHMM(CLONES, 2), small(), progress=False)
