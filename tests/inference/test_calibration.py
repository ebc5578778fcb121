"""Simulation-based calibration: true parameters rank uniformly among posterior draws.

Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration".
Draws are thinned until they count as independent: to fewer than their effective size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from goodness_of_fit import MIN_P_VALUE
from invariants import effective_size, invariants, invariants_of_draws
from scipy import stats

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.inference.nuts import fit_nuts
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.sequences import SequenceBatch

NUM_STEPS = 12
BLANK = SequenceBatch.from_arrays(np.zeros(NUM_STEPS, int))

# Six free probabilities, and a concentration.
PLAIN = {"concentration": 0.7}
HIERARCHICAL = {"concentration": 1.0, "hyperprior": (2.0, 2.0)}


def gibbs_draws(model, batch, seed):
    return fit_gibbs(
        model, batch, num_iters=24, num_warmup=25, num_chains=16, progress=False, seed=seed
    )


def nuts_draws(model, batch, seed):
    return fit_nuts(
        model, batch, num_iters=64, num_warmup=50, num_chains=1, progress=False, seed=seed
    )


def ranks(options, sampler, num_ranked, num_replicates, first_seed):
    """``(num_replicates,)`` ranks of each invariant among draws, and their effective sizes."""
    model = BayesianCHMM(CloneStructure([2, 1]), 1, **options)
    found, sizes = [], []
    for replicate in range(num_replicates):
        seed = first_seed + replicate
        truth = model.prior_predictive(BLANK, 1, seed=seed)
        batch = SequenceBatch.from_arrays(truth.obs[0])
        true = invariants(model, batch, model.values_of(truth.draws))
        draws = sampler(model, batch, seed).draws
        drawn = invariants_of_draws(model, batch, draws)
        sizes.append([effective_size(values) for values in drawn.values()])
        kept = {
            name: values.reshape(-1)[np.linspace(0, values.size - 1, num_ranked).astype(int)]
            for name, values in drawn.items()
        }
        found.append({name: int((kept[name] < true[name]).sum()) for name in kept})
    return {name: np.array([one[name] for one in found]) for name in found[0]}, np.array(sizes)


def uniformity(ranked, num_ranked):
    """p-value that ranks ``0 .. num_ranked`` are uniform, in as many cells as replicates fill."""
    cells = 8 if len(ranked) >= 80 else 4
    counts = np.bincount(ranked * cells // (num_ranked + 1), minlength=cells)
    return stats.chisquare(counts).pvalue


# Priors, sampler, draws to rank among, replicates of the fast and of the slow test.
CASES = {
    "Gibbs": (PLAIN, gibbs_draws, 31, 60, 400),
    "Gibbs with a hyperprior": (HIERARCHICAL, gibbs_draws, 31, 60, 400),
    "NUTS": (PLAIN, nuts_draws, 15, 10, 200),
}


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_ranks_are_uniform(name, full):
    options, sampler, num_ranked, few, many = CASES[name]
    num_replicates = many if full else few
    found, sizes = ranks(options, sampler, num_ranked, num_replicates, first_seed=1000)
    # Thinned to so many draws, they count as independent.
    assert np.median(sizes) > num_ranked
    p_values = {quantity: uniformity(ranked, num_ranked) for quantity, ranked in found.items()}
    print(f"{name}, {num_replicates} replications: {p_values}")
    assert min(p_values.values()) > MIN_P_VALUE / len(p_values), p_values


def test_a_wrong_prior_is_found():
    """Data and truth from one prior, draws under another."""
    wrong = BayesianCHMM(CloneStructure([2, 1]), 1, 2.0)

    def sampler(model, batch, seed):
        return gibbs_draws(wrong, batch, seed)

    found, _ = ranks(PLAIN, sampler, 31, 60, first_seed=2000)
    assert uniformity(found["square"], 31) < MIN_P_VALUE


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors are handed between threads at a loss."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
