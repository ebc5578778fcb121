"""NUTS on tiny models against the exact posterior, and as a fit."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from conftest import TOL
from dirichlet_oracle import exact_posterior
from goodness_of_fit import MIN_P_VALUE
from invariants import effective_size
from numpy.testing import assert_allclose
from pyro.infer import NUTS
from scipy import stats

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.nuts import fit_nuts, nuts_cost
from chmm_pyro.inference.result import log_likelihood
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 1])
OBS, ACTIONS = [0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1]
QUICK = {"num_iters": 6, "num_warmup": 6, "num_chains": 2, "progress": False}


def small():
    return SequenceBatch.from_arrays(OBS, ACTIONS)


def ragged():
    return SequenceBatch.from_arrays([OBS, OBS[:3], [1]], [ACTIONS, ACTIONS[:2], []])


def assert_means_are_exact(draws, exact):
    for values, expected in ((draws, exact.transition_mean), (draws**2, exact.transition_square)):
        error = np.array(
            [
                values[(..., *at)].std() / effective_size(values[(..., *at)]) ** 0.5
                for at in np.ndindex(expected.shape)
            ]
        ).reshape(expected.shape)
        z = (values.mean((0, 1)) - expected) / error
        assert np.abs(z).max() < stats.norm.isf(MIN_P_VALUE / z.size), z


@pytest.mark.parametrize(
    ("num_iters", "alpha"),
    [
        pytest.param(120, 1.0, id="fast"),
        pytest.param(2000, 1.0, id="flat", marks=pytest.mark.slow),
        pytest.param(2000, 0.3, id="sparse", marks=pytest.mark.slow),
    ],
)
def test_posterior_means_are_exact(num_iters, alpha):
    batch = SequenceBatch.from_arrays(OBS)
    model = BayesianCHMM(CLONES, 1, alpha)
    exact = exact_posterior((2, 1), model.concentration({}), OBS, [0] * 5)
    fit = fit_nuts(
        model, batch, num_iters=num_iters, num_warmup=60, num_chains=2, progress=False, seed=1
    )
    assert fit.draws["diverging"].sum() <= 2
    assert_means_are_exact(fit.draws["transition"].numpy(), exact)


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ({"action_model": "joint", "learn_initial": True}, ragged),
        ({"learn_actions": True, "hyperprior": (2.0, 2.0), "sticky": 0.5}, small),
        ({"stick_concentration": 1.0, "learn_initial": True}, ragged),
        ({"emission_concentration": (5.0, 0.5)}, small),
        ({"enumerated": True}, small),
    ],
    ids=["joint", "hierarchical", "sticks", "emission", "enumerated"],
)
def test_every_prior_is_sampled(options, batch):
    model, batch = BayesianCHMM(CLONES, 2, 0.8, **options), batch()
    fit = fit_nuts(model, batch, **QUICK)
    for name in model.public_names:
        assert fit.draws[name].shape[:2] == (2, 6)
        assert fit.draws[name].isfinite().all()
    values = model.values_of({name: fit.draws[name][:, -1] for name in model.public_names})
    hmm = model.distribution(batch, model.parameters_of(values).beside(batch))
    log_prob = hmm.log_prob(batch.obs).reshape(2, -1).sum(-1)
    assert_allclose(fit.draws["log_prob"][:, -1], log_prob, **EXACT)
    log_joint = log_prob + model.log_prior(values)
    assert_allclose(fit.draws["log_joint"][:, -1], log_joint, rtol=1e-6)
    assert (fit.draws["num_used"] >= 1).all()


def test_result_follows_the_contract():
    model = BayesianCHMM(CLONES, 2, 1.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit = fit_nuts(model, small(), seed=5, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(fit.model, PointCHMM) and fit.prior_model is model
    assert (fit.num_iters, fit.num_warmup, fit.interrupted) == (6, 6, False)
    assert len(fit.objective_history) == len(fit.log_prob_history) == len(fit.seconds_history) == 6
    assert len(fit.settings["step_sizes"]) == 2 and fit.settings["seed"] == 5
    assert_allclose(log_likelihood(fit.model, small()), fit.draws["log_prob"].max(), **EXACT)
    again = fit_nuts(model, small(), seed=5, **QUICK)
    assert torch.equal(fit.draws["transition"], again.draws["transition"])
    other = fit_nuts(model, small(), seed=6, **QUICK)
    assert not torch.equal(fit.draws["transition"], other.draws["transition"])


def test_chains_start_where_they_are_told():
    point = PointCHMM(CLONES, 2, seed=1, dtype=torch.float64)
    fitted = fit_em(point, small(), num_iters=10, pseudocount=0.5, progress=False)
    model = BayesianCHMM(CLONES, 2, 1.5)
    fit = fit_nuts(model, small(), start=fitted, **QUICK)
    assert (fit.draws["log_prob"] > fitted.log_prob_history[-1] - 10).all()
    impossible = PointCHMM.from_counts(CLONES, torch.eye(3).expand(2, 3, 3))
    with pytest.raises(ValueError, match="impossible under the start"):
        fit_nuts(model, small(), start=impossible, **QUICK)


@pytest.mark.slow
def test_enumerated_chains_are_the_collapsed_ones_at_a_price():
    """Up to ten steps both can be run; the same seed then walks the same way."""
    obs, actions = [0, 1, 0, 0, 1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0, 0, 1, 1]
    batch = SequenceBatch.from_arrays(obs, actions)
    collapsed, enumerated = (
        fit_nuts(
            BayesianCHMM(CLONES, 2, 1.0, enumerated=written_out),
            batch,
            num_iters=30,
            num_warmup=30,
            num_chains=1,
            progress=False,
        )
        for written_out in (False, True)
    )
    first = slice(0, 10)
    assert_allclose(
        enumerated.draws["transition"][:, first], collapsed.draws["transition"][:, first], rtol=1e-3
    )
    seconds = [
        fit.settings["estimated_cost"]["seconds_per_gradient"] for fit in (collapsed, enumerated)
    ]
    print(f"ms a gradient: collapsed {seconds[0] * 1e3:.2f}, enumerated {seconds[1] * 1e3:.2f}")
    assert seconds[1] > 3 * seconds[0]


@pytest.mark.slow
def test_spawned_chains_are_those_of_one_process():
    model = BayesianCHMM(CLONES, 2, 1.0)
    here, spawned = (fit_nuts(model, small(), num_workers=workers, **QUICK) for workers in (1, 2))
    assert torch.equal(here.draws["transition"], spawned.draws["transition"])


def test_interruption_keeps_whole_chains(monkeypatch):
    steps = []

    def interrupted(kernel, params):
        steps.append(1)
        if len(steps) in interruptions:
            signal.raise_signal(signal.SIGINT)
        return sample(kernel, params)

    sample = NUTS.sample
    monkeypatch.setattr(NUTS, "sample", interrupted)
    model = BayesianCHMM(CLONES, 2, 1.0)
    interruptions = {15}  # the second chain's third step
    fit = fit_nuts(model, small(), **QUICK)
    assert fit.interrupted and fit.draws["transition"].shape[:2] == (1, 6)
    steps.clear()
    interruptions = {9}
    fit = fit_nuts(model, small(), **QUICK)
    assert fit.interrupted and fit.draws["transition"].shape[:2] == (1, 3)
    assert (fit.num_warmup, fit.num_iters) == (6, 3)


def test_cost_grows_with_what_is_asked():
    model = BayesianCHMM(CLONES, 2, 1.0, learn_initial=True, hyperprior=(1.0, 1.0))
    cost = nuts_cost(model, small(), num_iters=100, num_warmup=100, num_chains=2)
    assert cost.num_parameters == 2 * 3 * 2 + 2 + 1
    expected = cost.seconds_per_gradient * cost.gradients_per_draw * 200 * 2
    assert_allclose(cost.seconds, expected, rtol=1e-9)
    assert 0 < cost.seconds_per_gradient < 1


BAD = {
    "num_iters": ({"num_iters": 0}, "num_iters = 0"),
    "num_workers": ({"num_workers": 0}, "num_workers = 0"),
    "target_accept": ({"target_accept": 1.0}, "target_accept = 1.0"),
    "max_tree_depth": ({"max_tree_depth": 0}, "max_tree_depth = 0"),
    "too large": ({"max_parameters": 11}, "12 free parameters, expected at most"),
    "too long": ({"max_hours": 1e-9}, "use fewer draws"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fit_nuts(BayesianCHMM(CLONES, 2, 1.0), small(), **{**QUICK, **options})


def test_large_models_are_refused_with_an_alternative():
    model = BayesianCHMM(CloneStructure([20, 20]), 2, 0.5)
    with pytest.raises(ValueError, match=r"3,120 free parameters.*hours.*use fit_gibbs"):
        fit_nuts(model, small(), progress=False)
    with pytest.raises(TypeError, match="expected BayesianCHMM"):
        fit_nuts(PointCHMM(CLONES, 2), small(), progress=False)
