"""Variational fits of Bayesian models: maxima, normal and Dirichlet families, minibatches."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from conftest import TOL
from dirichlet_oracle import exact_posterior
from numpy.testing import assert_allclose
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.guides import guide_draws, make_guide
from chmm_pyro.inference.result import log_likelihood
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.vb import fit_vb
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.simplex import LogDirichlet

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 2])
OBS, ACTIONS = [0, 1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0]
GUIDES = ["AutoDelta", "AutoNormal", "AutoLowRankMultivariateNormal", "Dirichlet"]


def small():
    return SequenceBatch.from_arrays(OBS, ACTIONS)


def ragged():
    return SequenceBatch.from_arrays([OBS, OBS[2:5], [1]], [ACTIONS, ACTIONS[:2], []])


@pytest.mark.parametrize(
    ("options", "batch"),
    [({}, small), ({"learn_initial": True}, ragged), ({"action_model": "joint"}, ragged)],
    ids=["plain", "initial", "joint"],
)
def test_maximum_a_posteriori_is_that_of_em(options, batch):
    """Pseudocount and concentration - 1 are the same prior; both climb to the same maxima."""
    kappa, batch = 0.3, batch()
    alpha = {"concentration": 1 + kappa, "initial_concentration": 1 + kappa}
    bayesian = BayesianCHMM(CLONES, 2, **alpha, **options)
    starts = [PointCHMM(CLONES, 2, seed=s, dtype=torch.float64, **options) for s in range(3)]
    climbs = [
        fit_em(start, batch, num_iters=400, pseudocount=kappa, progress=False) for start in starts
    ]
    em = max(climbs, key=lambda fit: fit.objective_history[-1])
    guide = make_guide("AutoDelta", bayesian, batch, start=em.model)
    stay = fit_svi(bayesian, batch, guide=guide, num_iters=150, learning_rate=0.02, progress=False)
    found = stay.model.transition.table().values.exp().detach()
    expected = em.model.transition.table().values.exp().detach()
    assert_close(found, expected, rtol=0.0, atol=2e-3)
    # Their objectives differ by the normaliser of the prior alone.
    constant = float(bayesian.log_prior(uniform_values(bayesian)))
    constant -= kappa * sum(float(x.sum()) for x in uniform_values(bayesian).values())
    gap = stay.objective_history[-1] - em.objective_history[-1] - constant
    assert abs(gap) < 1e-3
    # From random starts of its own it climbs as high.
    free = [
        fit_svi(bayesian, batch, guide="AutoDelta", num_iters=120, seed=s, progress=False)
        for s in range(3)
    ]
    best = max(fit.objective_history[-1] for fit in free)
    assert abs(best - stay.objective_history[-1]) < 0.05


def uniform_values(model):
    drawn = model.sample_prior()
    return {site: torch.zeros_like(value).log_softmax(-1) for site, value in drawn.items()}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_fits(guide):
    model, batch = BayesianCHMM(CLONES, 2, 1.5, learn_initial=True), ragged()
    fit = fit_svi(
        model, batch, guide=guide, num_iters=150, learning_rate=0.05, num_draws=5, progress=False
    )
    first, last = fit.objective_history[:20].mean(), fit.objective_history[-20:].mean()
    # The Dirichlet guide starts from counts of the data, which are few here.
    assert last > (first - 1 if guide == "Dirichlet" else first + 1)
    assert isinstance(fit.model, PointCHMM) and isinstance(fit.prior_model, BayesianCHMM)
    assert fit.draws["transition"].shape == (1, 5, 2, 4, 4)
    assert fit.draws["log_prob"].shape == fit.draws["log_joint"].shape == (1, 5)
    assert fit.log_prob_history is None
    assert fit.settings["guide"] == guide
    assert log_likelihood(fit.model, batch) > -20
    with torch.no_grad():
        moved = float((fit.draws["transition"][0, 0] - fit.draws["transition"][0, 1]).abs().max())
    assert (moved == 0) == (guide == "AutoDelta")


@pytest.mark.parametrize(
    "options",
    [
        {"hyperprior": (2.0, 2.0)},
        {"stick_concentration": 1.0, "learn_initial": True},
        {"emission_concentration": (5.0, 1.0)},
        {"learn_actions": True},
    ],
    ids=["hierarchical", "sticks", "emission", "actions"],
)
@pytest.mark.parametrize("guide", ["AutoNormal", "Dirichlet"])
def test_every_prior_has_a_guide(options, guide):
    model = BayesianCHMM(CLONES, 2, 0.8, **options)
    fit = fit_svi(
        model, small(), guide=guide, num_iters=60, learning_rate=0.05, num_draws=3, progress=False
    )
    assert set(fit.draws) == {*model.public_names, "log_prob", "log_joint", "num_used"}
    assert np.isfinite(fit.objective_history).all()


def log_weights(model, guide, batch, num_draws):
    """``log p(x, T) - log q(T)`` at draws of a Dirichlet guide."""
    with torch.no_grad():
        posteriors = {site: LogDirichlet(guide.rows(site)) for site in model.sites}
        values = {site: rows.sample((num_draws,)) for site, rows in posteriors.items()}
        parameters = model.parameters_of(values).beside(batch)
        log_p = model.distribution(batch, parameters).log_prob(batch.obs) + model.log_prior(values)
        log_q = sum(
            rows.log_prob(values[site]).reshape(num_draws, -1).sum(1)
            for site, rows in posteriors.items()
        )
    return log_p - log_q


def test_dirichlet_guide_is_tighter_than_variational_bayes_and_below_the_evidence():
    model, batch = BayesianCHMM(CLONES, 2, 0.7), small()
    evidence = exact_posterior((2, 2), model.concentration({}), OBS, ACTIONS).log_evidence
    fixed = fit_vb(model, batch, num_iters=200, progress=False)
    weights = log_weights(model, fixed.guide, batch, 20_000)
    collapsed, error = float(weights.mean()), float(weights.std()) / 20_000**0.5
    # The same rows with the paths summed out exactly.
    assert fixed.objective_history[-1] + 5 * error < collapsed < evidence - 5 * error
    # Weights of draws from a guide estimate the evidence without bias.
    assert abs(float(weights.logsumexp(0)) - np.log(20_000) - evidence) < 0.1
    # The objective of a fit is that bound.
    fit = fit_svi(
        model, batch, guide=fixed.guide, num_iters=150, learning_rate=0.01, progress=False
    )
    spread = fit.objective_history.std() / 150**0.5
    assert abs(fit.objective_history.mean() - collapsed) < 5 * spread + 0.2
    assert float(log_weights(model, fit.guide, batch, 20_000).mean()) > collapsed - 0.1


def test_dirichlet_guide_is_the_posterior_where_paths_are_certain():
    model = BayesianCHMM(CloneStructure([1, 1]), 2, 0.7, learn_initial=True)
    fit = fit_vb(model, small(), num_iters=3, progress=False)
    weights = log_weights(model, fit.guide, small(), 5).numpy()
    assert_allclose(weights, fit.objective_history[-1], **EXACT)
    draws = guide_draws(model, fit.guide, small(), 3)
    values = model.values_of({name: draws[name] for name in model.public_names})
    log_joint = draws["log_prob"] + model.log_prior(values)
    assert_allclose(draws["log_joint"], log_joint, **EXACT)


def test_gradients_over_an_epoch_of_minibatches_are_those_of_all_data():
    """The prior is counted once an epoch: once in the mean over its minibatches."""
    model, batch = BayesianCHMM(CLONES, 2, 1.5), ragged()
    guide = make_guide("AutoDelta", model, batch, seed=1)
    guide(batch)

    def gradient(part):
        guide.zero_grad()
        Trace_ELBO().differentiable_loss(model, guide, part).backward()
        return torch.cat([p.grad.flatten() for p in guide.parameters()])

    parts = [gradient(part.batch) for part in batch.minibatches(1)]
    assert_close(torch.stack(parts).mean(0), gradient(batch), **EXACT)


def test_minibatches_reach_the_same_maximum():
    rng = np.random.default_rng(0)
    walks = [np.tile([0, 1, 0, 2], 4)[rng.integers(4) :] for _ in range(20)]
    batch = SequenceBatch.from_arrays(walks)
    model = BayesianCHMM(CloneStructure([2, 1, 1]), 1, 1.2)
    full, parts = (
        fit_svi(model, batch, guide="AutoDelta", num_iters=200, batch_size=size, progress=False)
        for size in (None, 5)
    )
    assert_allclose(parts.bits_per_step, full.bits_per_step, rtol=0.02)


def test_guides_can_be_instances():
    model = BayesianCHMM(CLONES, 2, 1.5)
    guide = AutoNormal(model, init_scale=0.01)
    fit = fit_svi(model, small(), guide=guide, num_iters=3, progress=False)
    assert fit.guide is not guide and isinstance(fit.guide, AutoNormal)
    assert not list(guide.parameters())  # the caller's was not even set up

    def point_mass(batch):
        pyro.sample("log_transition", pyro.distributions.Delta(rows, event_dim=3))

    rows = model.sample_prior()["log_transition"].requires_grad_()
    with pytest.raises(ValueError, match="no free parameters"):
        fit_svi(model, small(), guide=point_mass, num_iters=3, progress=False)


def test_enumerated_models_have_the_same_objective():
    batch = small()
    found = []
    for enumerated in (False, True):
        model = BayesianCHMM(CLONES, 2, 1.5, enumerated=enumerated)
        fit = fit_svi(model, batch, guide="AutoDelta", num_iters=5, progress=False)
        found.append(fit.objective_history)
    assert_allclose(found[0], found[1], rtol=1e-8)


def test_the_parameter_store_of_the_caller_is_untouched():
    fit_svi(
        BayesianCHMM(CLONES, 2, 1.5),
        small(),
        guide="Dirichlet",
        num_iters=2,
        num_draws=2,
        progress=False,
    )
    assert not list(pyro.get_param_store().keys())


BAD = {
    "no guide": ({"guide": None}, "guide is None"),
    "unknown": ({"guide": "AutoMagic"}, "guide = 'AutoMagic', expected one of"),
    "pseudocount": ({"pseudocount": 0.1}, "pseudocount = 0.1"),
    "entropy": ({"entropy_weight": 0.1}, "entropy_weight = 0.1"),
    "segments": ({"segment_length": 4}, "segment_length = 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fit_svi(
            BayesianCHMM(CLONES, 2, 1.5),
            small(),
            **{"guide": "AutoDelta", "progress": False, **options},
        )


def test_several_batches_would_count_the_prior_twice():
    model = BayesianCHMM(CLONES, 2, 1.5)
    with pytest.raises(ValueError, match="batch holds 2 batches"):
        fit_svi(model, [small(), ragged()], guide="AutoDelta", progress=False)


MODELESS = {
    "concentration": {"concentration": 0.9},
    "initial_concentration": {"learn_initial": True, "initial_concentration": 0.5},
    "action_concentration": {"learn_actions": True, "action_concentration": 0.5},
    "emission_concentration": {"emission_concentration": (2.0, 0.5)},
    "hyperprior": {"hyperprior": (1.0, 1.0)},
    "stick_concentration": {"stick_concentration": 1.0},
}


@pytest.mark.parametrize("argument", MODELESS)
def test_maxima_that_do_not_exist_are_refused(argument):
    model = BayesianCHMM(CLONES, 2, **{"concentration": 1.5, **MODELESS[argument]})
    for guide in ("AutoDelta", AutoDelta(model)):
        with pytest.raises(ValueError, match=f"^{argument}"):
            fit_svi(model, small(), guide=guide, progress=False)


def test_point_models_take_no_named_guide():
    for options in ({"guide": "AutoNormal"}, {"num_draws": 3}):
        with pytest.raises(ValueError, match="expected BayesianCHMM"):
            fit_svi(PointCHMM(CLONES, 2), small(), progress=False, **options)
