"""The joint-distribution test of the Gibbs sampler (Geweke 2004, "Getting it right").

Parameters from the prior and data given them have a joint distribution that sweeps, alternating
with new data given the new parameters, must keep.  Thousands of independent chains of a few sweeps
each, side by side, make that a comparison of two samples of independent draws, so the standard
errors are exact; first and second moments of parameters, data and of both together are compared.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from goodness_of_fit import MIN_P_VALUE
from scipy import stats

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.inference import conjugate, gibbs
from chmm_pyro.inference.gibbs import gibbs_sweep
from chmm_pyro.models.bayesian import BayesianCHMM

CLONES = CloneStructure([2, 1])
ACTIONS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 1])

MODELS = {
    "plain": {"concentration": 0.6},
    "sticky": {"concentration": 0.6, "sticky": 0.8, "hyperprior": (2.0, 2.0)},
    "sticks": {
        "concentration": 0.8,
        "stick_concentration": 0.7,
        "hyperprior": (3.0, 2.0),
        "learn_initial": True,
        "initial_concentration": 0.5,
    },
    "emission": {"concentration": 0.6, "emission_concentration": (2.0, 0.7)},
}


def data_of_chains(obs):
    """One sequence of symbols ``(C, T)`` for each chain, all along the same actions."""
    return SimpleNamespace(obs=obs, actions=ACTIONS, lengths=None)


def joint_draws(model, num_chains):
    values = model.sample_prior(num_chains)
    return values, renewed(model, values)


def renewed(model, values):
    hmm = model.distribution(data_of_chains(None), model.parameters_of(values))
    return data_of_chains(hmm.sample())


def moments(model, values, data):
    """``(C,)`` quantities whose means under the joint distribution are compared."""
    hmm = model.distribution(data, model.parameters_of(values))
    rows = values["log_transition"].exp()
    stay = rows.diagonal(dim1=-2, dim2=-1)
    found = {
        "log_prob": hmm.log_prob(data.obs),
        "squares": rows.square().flatten(1).mean(1),
        "stay": stay.flatten(1).mean(1),
        "to its twin": rows[:, 1, 0, 1],
        "to the other symbol": rows[:, 0, 0, 2],
        "from the other symbol": rows[:, 1, 2, 1],
        "symbol": data.obs.double().mean(1),
        "changes": (data.obs[:, 1:] != data.obs[:, :-1]).double().mean(1),
        "stay where the symbol does": stay[:, 0, 2] * (data.obs[:, :2] == 1).all(1),
    }
    if "concentration" in values:
        found["concentration"] = values["concentration"].log()
    if "log_sticks" in values:
        found["stick"] = values["log_sticks"][:, 0, 0].exp()
        found["start"] = values["log_initial"][:, 0].exp()
    if "log_emission" in values:
        found["emission"] = values["log_emission"][:, 0, 1].exp()
    squares = {f"{name} squared": value.square() for name, value in found.items()}
    return {name: value.numpy() for name, value in {**found, **squares}.items()}


def p_values(model, num_chains, num_sweeps, seed=1):
    """Of each moment: chains after some sweeps against fresh draws."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    values, data = joint_draws(model, num_chains)
    for _ in range(num_sweeps):
        values = gibbs_sweep(model, data, values, generator).values
        swept = moments(model, values, data)
        data = renewed(model, values)
    direct = moments(model, *joint_draws(model, 4 * num_chains))
    found = {}
    for name, expected in direct.items():
        error = math.hypot(*(x.std() / math.sqrt(len(x)) for x in (swept[name], expected)))
        found[name] = 2 * stats.norm.sf(abs(swept[name].mean() - expected.mean()) / error)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("num_chains", "num_sweeps"),
    [(15_000, 3), pytest.param(60_000, 10, marks=pytest.mark.slow)],
    ids=["fast", "full"],
)
def test_joint_distribution_is_kept(name, num_chains, num_sweeps):
    found = p_values(BayesianCHMM(CLONES, 2, **MODELS[name]), num_chains, num_sweeps)
    assert min(found.values()) > MIN_P_VALUE / len(found), found


counted, drawn = conjugate.path_counts, conjugate.draw_log_dirichlet


def transposed(model, batch, states):
    counts = counted(model, batch, states)
    return {**counts, "log_transition": counts["log_transition"].transpose(-1, -2)}


def last_step_forgotten(model, batch, states):
    return counted(model, batch, torch.cat([states[:, :-1], -torch.ones_like(states[:, :1])], 1))


def prior_counted_twice(concentration, generator):
    return drawn(concentration + 0.6, generator)


def all_at_one_table(counts, concentration, generator):
    return np.minimum(counts, 1)


def steps_apart(hmm, obs):
    """Every state from its own posterior, as if the steps were independent."""
    probs = hmm.smooth(obs).dense()
    states = torch.multinomial(probs.flatten(0, -2), 1).view(1, *probs.shape[:-1])
    return states, hmm.log_prob(obs)


WRONG = {
    "transposed counts": ("plain", gibbs, "path_counts", transposed),
    "last step forgotten": ("plain", gibbs, "path_counts", last_step_forgotten),
    "prior twice": ("plain", conjugate, "draw_log_dirichlet", prior_counted_twice),
    "paths": ("plain", CloneHMM, "draw_paths", steps_apart),
    "tables": ("sticks", conjugate, "draw_tables", all_at_one_table),
    "tables of a sticky prior": ("sticky", conjugate, "draw_tables", all_at_one_table),
}


@pytest.mark.parametrize("planted", WRONG)
def test_a_wrong_conditional_is_found(planted, monkeypatch):
    """The same chains and sweeps as the fast test, which every planted error fails."""
    name, owner, function, wrong = WRONG[planted]
    monkeypatch.setattr(owner, function, wrong)
    found = p_values(BayesianCHMM(CLONES, 2, **MODELS[name]), 15_000, 3)
    assert min(found.values()) < MIN_P_VALUE / len(found), found
