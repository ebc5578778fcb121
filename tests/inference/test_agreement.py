"""NUTS, Gibbs from dispersed starts and importance sampling find the same posterior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from goodness_of_fit import MIN_P_VALUE
from invariants import effective_size, invariants, invariants_of_draws
from scipy import stats

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.inference.nuts import fit_nuts
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.vb import fit_vb
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.sequences import SequenceBatch

NUM_ACTIONS, NUM_STEPS = 2, 30
CLONES = CloneStructure([2, 2])


def data(model, seed):
    """A walk of 30 steps drawn from the prior."""
    actions = np.random.default_rng(seed).integers(NUM_ACTIONS, size=NUM_STEPS - 1)
    blank = SequenceBatch.from_arrays(np.zeros(NUM_STEPS, int), actions, num_actions=NUM_ACTIONS)
    obs = model.prior_predictive(blank, 1, seed=seed).obs[0]
    return SequenceBatch.from_arrays(obs, actions, num_actions=NUM_ACTIONS)


def by_importance(model, batch, num_draws):
    """Mean, standard error and effective size of each invariant, proposing from the prior."""
    parts = [
        invariants(model, batch, model.sample_prior(20_000)) for _ in range(num_draws // 20_000)
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weights = np.exp(found["log_prob"] - found["log_prob"].max())
    weights /= weights.sum()
    size = 1 / (weights**2).sum()
    summary = {}
    for name, values in found.items():
        mean = float(weights @ values)
        error = math.sqrt(float(weights**2 @ (values - mean) ** 2))
        summary[name] = mean, error
    return summary, size


def by_chains(model, batch, fit):
    """Mean and standard error of each invariant."""
    return {
        name: (float(values.mean()), float(values.std()) / math.sqrt(effective_size(values)))
        for name, values in invariants_of_draws(model, batch, fit.draws).items()
    }


def assert_same_means(found, expected):
    limit = stats.norm.isf(MIN_P_VALUE / (2 * len(expected)))
    for name, (mean, error) in expected.items():
        other, other_error = found[name]
        z = (other - mean) / math.hypot(error, other_error)
        assert abs(z) < limit, (name, other, mean, z)


MODELS = {
    "plain": {"concentration": 0.5},
    "sticky": {"concentration": 0.5, "sticky": 0.5, "learn_initial": True},
    "hierarchical": {"concentration": 1.0, "hyperprior": (2.0, 2.0)},
    "sticks": {"concentration": 0.7, "stick_concentration": 1.0, "learn_initial": True},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "num_sweeps", [150, pytest.param(2500, marks=pytest.mark.slow)], ids=["fast", "full"]
)
def test_gibbs_agrees_with_importance_sampling(name, num_sweeps):
    model = BayesianCHMM(CLONES, NUM_ACTIONS, **MODELS[name])
    batch = data(model, seed=1)
    expected, size = by_importance(model, batch, 20 * num_sweeps // 20 * 800)
    assert size >= 1000
    fit = fit_gibbs(
        model, batch, num_iters=num_sweeps, num_warmup=50, num_chains=10, progress=False, seed=2
    )
    assert_same_means(by_chains(model, batch, fit), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "hierarchical"])
def test_nuts_gibbs_and_importance_sampling_agree(name):
    model = BayesianCHMM(CLONES, NUM_ACTIONS, **MODELS[name])
    batch = data(model, seed=2)
    expected, size = by_importance(model, batch, 1_000_000)
    assert size >= 1000
    gibbs = fit_gibbs(
        model, batch, num_iters=2000, num_warmup=100, num_chains=8, progress=False, seed=3
    )
    nuts = fit_nuts(
        model, batch, num_iters=600, num_warmup=300, num_chains=4, progress=False, seed=4
    )
    found = {"Gibbs": by_chains(model, batch, gibbs), "NUTS": by_chains(model, batch, nuts)}
    print(f"{name}: importance sampling, effective size {size:.0f}")
    for quantity, (mean, error) in expected.items():
        row = [f"importance {mean:.4f} ± {error:.4f}"]
        row += [f"{k} {v[quantity][0]:.4f} ± {v[quantity][1]:.4f}" for k, v in found.items()]
        print(f"  {quantity}: " + ", ".join(row))
    for sampler in found.values():
        assert_same_means(sampler, expected)
    rates = []
    for fit in (gibbs, nuts):
        draws = invariants_of_draws(model, batch, fit.draws)["log_prob"]
        rates.append(effective_size(draws) / fit.wall_time)
    print(f"  effective draws of log_prob per second: Gibbs {rates[0]:.0f}, NUTS {rates[1]:.1f}")


@pytest.mark.slow
def test_variational_posteriors_are_near_and_too_certain():
    """Their bias, stated: the predictive probability is close, its spread is too small."""
    model = BayesianCHMM(CLONES, NUM_ACTIONS, 0.5)
    batch = data(model, seed=2)
    exact = fit_gibbs(
        model, batch, num_iters=2000, num_warmup=100, num_chains=8, progress=False, seed=3
    )
    expected = invariants_of_draws(model, batch, exact.draws)
    fits = {
        "VB": fit_vb(model, batch, num_iters=200, num_draws=2000, progress=False),
        **{
            guide: fit_svi(
                model,
                batch,
                guide=guide,
                num_iters=1500,
                learning_rate=0.02,
                num_draws=1000,
                progress=False,
            )
            for guide in ("Dirichlet", "AutoNormal", "AutoLowRankMultivariateNormal")
        },
    }
    for name, fit in fits.items():
        found = invariants_of_draws(model, batch, fit.draws)
        row = [
            f"{quantity} {values.mean():.3f} ± {values.std():.3f} "
            f"({expected[quantity].mean():.3f} ± {expected[quantity].std():.3f})"
            for quantity, values in found.items()
        ]
        print(f"{name}: " + ", ".join(row))
        assert abs(found["next"].mean() - expected["next"].mean()) < 0.15, name
        assert found["log_prob"].mean() > expected["log_prob"].mean() - 4, name


def test_planted_error_is_found(monkeypatch):
    """Means of a sampler with the wrong concentration do not agree."""
    model = BayesianCHMM(CLONES, NUM_ACTIONS, 0.5)
    batch = data(model, seed=1)
    expected, _ = by_importance(model, batch, 100_000)
    wrong = BayesianCHMM(CLONES, NUM_ACTIONS, 0.7)
    fit = fit_gibbs(
        wrong, batch, num_iters=150, num_warmup=50, num_chains=10, progress=False, seed=2
    )
    with pytest.raises(AssertionError):
        assert_same_means(by_chains(model, batch, fit), expected)


def test_importance_weights_are_those_of_batched_parameters():
    model = BayesianCHMM(CLONES, NUM_ACTIONS, 0.5)
    batch = data(model, seed=1)
    values = model.sample_prior(3)
    found = invariants(model, batch, values)["log_prob"]
    for n in range(3):
        one = model.point({site: value[n] for site, value in values.items()})
        with torch.no_grad():
            expected = float(one.distribution(batch).log_prob(batch.obs))
        assert abs(found[n] - expected) < 1e-9
