"""NUTS, Gibbs from dispersed starts and importance sampling find the same posterior."""

from __future__ import annotations

import math

import pytest
import torch
from goodness_of_fit import MIN_P_VALUE
from invariants import invariants
from posterior_agreement import (
    CLONES,
    MODELS,
    NUM_ACTIONS,
    by_chains,
    by_importance,
    compare,
    make,
    walk,
)
from scipy import stats

from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.models.bayesian import BayesianCHMM


def assert_same_means(found, expected):
    limit = stats.norm.isf(MIN_P_VALUE / (2 * len(expected)))
    for name, truth in expected.items():
        one = found[name]
        z = (one.mean - truth.mean) / math.hypot(one.error, truth.error)
        assert abs(z) < limit, (name, one, truth, z)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("num_sweeps", "num_importance"),
    [(150, 100_000), pytest.param(2500, 500_000, marks=pytest.mark.slow)],
    ids=["fast", "full"],
)
def test_gibbs_agrees_with_importance_sampling(name, num_sweeps, num_importance):
    model = make(name)
    batch = walk(model, seed=1)
    expected = by_importance(model, batch, num_importance)
    assert expected["log_prob"].size >= 1000
    fit = fit_gibbs(
        model, batch, num_iters=num_sweeps, num_warmup=50, num_chains=10, progress=False, seed=2
    )
    assert_same_means(by_chains(model, batch, fit.draws), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "hierarchical"])
def test_every_method_against_importance_sampling(name):
    """The rows of ``benchmarks/results/posterior_agreement.csv``."""
    rows = compare(name, 500_000)
    limit = stats.norm.isf(MIN_P_VALUE / (2 * len(rows)))
    for row in rows:
        print(row)
        if row["method"] == "importance":
            assert row["effective_size"] >= 1000
        elif row["method"] in ("Gibbs", "NUTS"):
            assert abs(row["z"]) < limit, row
        elif row["quantity"] in ("log_prob", "next"):
            # Variational posteriors are biased, which the table states; by not much more than the
            # width of the posterior in what they predict.
            assert abs(row["bias_in_deviations"]) < 2, row


def test_planted_error_is_found():
    """Means of a sampler with the wrong concentration do not agree."""
    model = make("plain")
    batch = walk(model, seed=1)
    expected = by_importance(model, batch, 100_000)
    wrong = BayesianCHMM(CLONES, NUM_ACTIONS, 0.7)
    fit = fit_gibbs(
        wrong, batch, num_iters=150, num_warmup=50, num_chains=10, progress=False, seed=2
    )
    with pytest.raises(AssertionError):
        assert_same_means(by_chains(model, batch, fit.draws), expected)


def test_importance_weights_are_those_of_batched_parameters():
    model = make("plain")
    batch = walk(model, seed=1)
    values = model.sample_prior(3)
    found = invariants(model, batch, values)["log_prob"]
    for n in range(3):
        one = model.point({site: value[n] for site, value in values.items()})
        with torch.no_grad():
            expected = float(one.distribution(batch).log_prob(batch.obs))
        assert abs(found[n] - expected) < 1e-9
