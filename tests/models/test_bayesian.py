"""Priors, the collapsed program and its draws, against enumeration and the textbook densities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pytest
import reference
import torch
from conftest import TOL
from dirichlet_oracle import exact_posterior
from goodness_of_fit import MIN_P_VALUE, p_value
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from scipy import stats
from torch.testing import assert_close

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.priors import Sticks, block_concentration
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 1])
OBS, ACTIONS = [0, 1, 0, 0, 1], [0, 1, 1, 0]


def single():
    return SequenceBatch.from_arrays(OBS, ACTIONS)


def ragged():
    return SequenceBatch.from_arrays([OBS, [1, 0]], [ACTIONS, [1]])


OPTIONS = {
    "plain": {},
    "sparse": {"concentration": 0.05, "sticky": 0.5},
    "joint": {"action_model": "joint", "learn_initial": True},
    "actions": {"learn_actions": True, "action_concentration": 2.0},
    "hierarchical": {"hyperprior": (2.0, 3.0), "learn_initial": True},
    "sticks": {"stick_concentration": 0.7, "sticky": 0.3, "learn_initial": True},
    "both": {"stick_concentration": 1.5, "hyperprior": (2.0, 1.0)},
}


NOISY = {
    "emission": {"emission_concentration": (3.0, 0.5)},
    "emission and joint": {"emission_concentration": (3.0, 0.5), "action_model": "joint"},
    "emission and actions": {"emission_concentration": (3.0, 0.5), "learn_actions": True},
}


def make(name, **more):
    options = {**OPTIONS, **NOISY}[name]
    return BayesianCHMM(CLONES, 2, **{"concentration": 0.8, **options, **more})


def enumerated(model, values, batch):
    """``log p(x | values)`` by a sum over paths, sequence by sequence."""
    log_initial, log_transition, log_actions, _ = model.parameters_of(values)
    if log_actions is not None:
        log_transition = log_transition + log_actions[:, None, None]
    found = []
    for b in range(batch.num_sequences):
        first, last = int(batch.offsets[b]), int(batch.offsets[b + 1])
        found.append(
            reference.enumerate_paths(
                model.clones.num_clones,
                log_initial,
                log_transition,
                batch.flat_actions[first : last - 1],
                batch.flat_obs[first:last],
            ).log_prob
        )
    return sum(found)


@pytest.mark.parametrize("batch", [single, ragged], ids=["single", "ragged"])
@pytest.mark.parametrize("name", OPTIONS)
def test_program_is_prior_times_enumerated_likelihood(name, batch):
    model, batch = make(name), batch()
    values = model.sample_prior()
    assert tuple(values) == model.sites
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(batch)
    expected = float(model.log_prior(values)) + enumerated(model, values, batch)
    assert_close(float(trace.log_prob_sum()), expected, **EXACT)


@pytest.mark.parametrize("batch", [single, ragged], ids=["single", "ragged"])
@pytest.mark.parametrize("name", [*OPTIONS, *NOISY])
def test_enumerated_program_is_the_collapsed_one(name, batch):
    batch = batch()
    collapsed, stepwise = make(name), make(name, enumerated=True)
    assert stepwise.enumerates and not collapsed.enumerates
    free = {site: value.requires_grad_() for site, value in collapsed.sample_prior().items()}

    def loss_and_gradient(model, elbo):
        # Normalised again, since the step-by-step program renormalises where it is not.
        values = {site: x.log_softmax(-1) if x.ndim else x for site, x in free.items()}
        loss = elbo.differentiable_loss(poutine.condition(model, data=values), _empty, batch)
        return float(loss.detach()), torch.autograd.grad(loss, list(free.values()))

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    found, gradients = loss_and_gradient(stepwise, elbo)
    expected, expected_gradients = loss_and_gradient(collapsed, Trace_ELBO())
    assert_close(found, expected, **EXACT)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert_close(one, other, **TOL["gradient"][torch.float64])


def _empty(batch):
    """No latent variables."""


def test_enumerated_minibatches_are_scaled():
    values = make("plain").sample_prior()
    (part, *_) = ragged().minibatches(1)
    found, expected = (
        elbo.loss(poutine.condition(model, data=values), _empty, part.batch)
        for model, elbo in (
            (make("plain", enumerated=True), TraceEnum_ELBO(max_plate_nesting=1)),
            (make("plain"), Trace_ELBO()),
        )
    )
    assert_close(found, expected, **EXACT)


def test_prior_of_rows_is_a_dirichlet():
    model = BayesianCHMM(CLONES, 2, 0.8, sticky=0.5)
    values = model.sample_prior()
    table = values["log_transition"].exp().numpy()
    alpha = 0.8 + 0.5 * np.eye(3)
    expected = sum(
        stats.dirichlet.logpdf(table[a, i] / table[a, i].sum(), alpha[i])
        for a in range(2)
        for i in range(3)
    )
    assert_close(float(model.log_prior(values)), expected, **EXACT)


def test_hyperprior_multiplies_the_concentration_but_not_the_stickiness():
    model = BayesianCHMM(CLONES, 2, 0.8, sticky=0.5, hyperprior=(2.0, 3.0))
    found = model.concentration({"concentration": torch.tensor([2.0, 0.1], dtype=torch.float64)})
    expected = torch.tensor([1.6, 0.08], dtype=torch.float64)[:, None, None]
    expected = expected + 0.5 * torch.eye(3, dtype=torch.float64)
    assert_close(found, expected.unsqueeze(1).expand(2, 2, 3, 3), **EXACT)


def test_concentration_by_block_and_entry():
    table = block_concentration(CLONES, [[0.1, 1.0], [2.0, 3.0]])
    model = BayesianCHMM(CLONES, 2, table)
    assert_close(model.concentration({})[1], table, **EXACT)
    entries = torch.rand(2, 3, 3, dtype=torch.float64) + 0.1
    assert_close(BayesianCHMM(CLONES, 2, entries).concentration({}), entries, **EXACT)


def test_stick_weights_against_a_loop():
    clones = CloneStructure([3, 1, 2])
    sticks = torch.rand(5, 3, dtype=torch.float64)  # 3 - 1 + 1 - 1 + 2 - 1 sticks
    log_sticks = torch.stack([sticks.log(), (1 - sticks).log()], -1)
    found = Sticks.of(clones).log_weights(log_sticks).exp()
    expected = []
    for one in sticks.tolist():
        rest = iter(one)
        for count in clones.num_clones:
            left = 1.0
            for _ in range(count - 1):
                share = next(rest)
                expected.append(left * share)
                left *= 1 - share
            expected.append(left)
    assert_close(found, torch.tensor(expected, dtype=torch.float64).view(5, 6), **EXACT)


def test_uniform_weights_leave_the_concentration_as_it_is():
    model = BayesianCHMM(CloneStructure([3, 2]), 1, 0.4, stick_concentration=1.0)
    weights = torch.tensor([1 / 3] * 3 + [0.5] * 2, dtype=torch.float64)
    alpha = model.transition_prior.concentration(log_weights=weights.log())
    assert_close(alpha, torch.full_like(alpha, 0.4), **EXACT)


def test_vanishing_sticks_keep_the_concentration_positive():
    model = BayesianCHMM(CloneStructure([70]), 1, 0.1, stick_concentration=0.01)
    values = model.sample_prior()
    assert model.concentration(values).min() >= 1e-30
    assert model.log_prior(values).isfinite()


def test_emission_rows_against_enumeration():
    model = BayesianCHMM(CLONES, 2, 0.8, emission_concentration=(5.0, 0.5), learn_initial=True)
    values = model.sample_prior()
    log_initial, log_transition, _, log_emission = model.parameters_of(values)
    obs = np.array([0, MISSING, 1, 1])
    batch = SequenceBatch.from_arrays(obs, [0, 1, 0])
    evidence = np.where(obs == MISSING, 0.0, log_emission.numpy()[:, obs]).T
    exact = reference.enumerate_paths(
        (2, 1), log_initial, log_transition, [0, 1, 0], np.full(4, MISSING), evidence
    )
    hmm = model.distribution(batch, model.parameters_of(values))
    assert_close(float(hmm.log_prob(batch.obs)), exact.log_prob, **EXACT)
    assert_close(hmm.smooth(batch.obs).dense().numpy(), exact.smooth, **EXACT)
    point = model.point(values).distribution(batch)
    assert_close(float(point.log_prob(batch.obs).detach()), exact.log_prob, **EXACT)


def test_emission_draws_follow_the_table():
    model = BayesianCHMM(CLONES, 2, 0.8, emission_concentration=(3.0, 1.0))
    batch = SequenceBatch.from_arrays([0] * 200, [0] * 199)
    found = model.prior_predictive(batch, 200, seed=1)
    own = torch.tensor(CLONES.symbol_of_state)[found.states]
    # A Dirichlet of 3 for its own symbol and 1 for the other emits its own with 3/4.
    assert_close(float((found.obs == own).double().mean()), 0.75, rtol=0.0, atol=0.06)


@pytest.mark.parametrize("name", OPTIONS)
def test_draws_beside_sequences_are_those_one_by_one(name):
    model, batch = make(name), ragged()
    values = model.sample_prior(3)
    parameters = model.parameters_of(values).beside(batch)
    found = model.distribution(batch, parameters).log_prob(batch.obs)
    assert found.shape == (3, 2)
    for n in range(3):
        one = {site: value[n] for site, value in values.items()}
        assert_close(float(found[n].sum()), enumerated(model, one, batch), **EXACT)
        point = model.point(one).distribution(batch).log_prob(batch.obs)
        assert_close(point.detach(), found[n], **EXACT)
    assert model.log_prior(values).shape == (3,)


@pytest.mark.parametrize("name", OPTIONS)
def test_public_draws_are_probabilities(name):
    model = make(name)
    draws = model.draws_of(model.sample_prior(4))
    rows = draws["transition"].sum(-1)
    if model.action_model == "joint":
        rows = rows.sum(-2)
    assert_close(rows, torch.ones_like(rows), **EXACT)
    assert draws["transition"].shape == (4, 2, 3, 3)
    assert ("initial" in draws) == model.learn_initial
    assert ("concentration" in draws) == ("hyperprior" in OPTIONS[name])
    if "stick_concentration" in OPTIONS[name]:
        assert_close(draws["clone_weights"][:, :2].sum(-1), torch.ones(4).double(), **EXACT)


@pytest.mark.parametrize("name", OPTIONS)
def test_values_come_back_from_public_draws(name):
    model = BayesianCHMM(CloneStructure([3, 1, 2]), 2, **OPTIONS[name])
    values = model.sample_prior(4)
    found = model.values_of(model.draws_of(values))
    assert tuple(found) == model.sites
    for site in model.sites:
        assert_close(found[site].exp(), values[site].exp(), **EXACT)


def test_minibatches_scale_the_likelihood_and_not_the_prior():
    model, batch = make("plain"), ragged()
    values = model.sample_prior()

    def joint(part):
        program = poutine.condition(model, data=values)
        return float(poutine.trace(program).get_trace(part).log_prob_sum())

    parts = [joint(part.batch) for part in batch.minibatches(1)]
    assert_close(sum(parts) / len(parts), joint(batch), **EXACT)


def test_prior_predictive():
    model, batch = make("joint"), ragged()
    found = model.prior_predictive(batch, 50, seed=3)
    assert found.obs.shape == found.states.shape == (50, 2, 5)
    assert found.draws["transition"].shape == (50, 2, 3, 3)
    assert (found.obs[:, 1, 2:] == 0).all()
    inside = torch.arange(5) < batch.lengths[:, None]
    symbol = torch.tensor(CLONES.symbol_of_state)[found.states]
    assert torch.equal(symbol[:, inside], found.obs[:, inside])
    for n in range(50):
        visited = found.states[n][inside].unique()
        expected = [int((visited < 2).sum()), int((visited == 2).sum())]
        assert found.num_used[n].tolist() == expected
    again = model.prior_predictive(batch, 50, seed=3)
    assert torch.equal(found.obs, again.obs)


def test_prior_predictive_sequences_have_their_exact_probability():
    """Parameters and paths integrated out by the mixture over paths of the oracle."""
    model = BayesianCHMM(CLONES, 2, 0.4, sticky=0.3)
    actions = [1, 0, 1]
    blank = SequenceBatch.from_arrays([0] * 4, actions)
    found = model.prior_predictive(blank, 5000, seed=2)
    exact = {
        obs: math.exp(exact_posterior((2, 1), model.concentration({}), obs, actions).log_evidence)
        for obs in itertools.product(range(2), repeat=4)
    }
    assert_close(sum(exact.values()), 1.0, **EXACT)
    assert p_value(map(tuple, found.obs.tolist()), exact) > MIN_P_VALUE


def test_missing_symbols_of_an_enumerated_emission_model():
    values = make("emission").sample_prior()
    batch = SequenceBatch.from_arrays([[0, MISSING, 1, 1], [MISSING, 0]], [[0, 1, 1], [0]])
    found, expected = (
        elbo.loss(poutine.condition(model, data=values), _empty, batch)
        for model, elbo in (
            (make("emission", enumerated=True), TraceEnum_ELBO(max_plate_nesting=1)),
            (make("emission"), Trace_ELBO()),
        )
    )
    assert_close(found, expected, **EXACT)


def test_fewer_clones_are_used_under_smaller_stick_concentrations():
    batch = SequenceBatch.from_arrays([0] * 300)
    used = []
    for stick_concentration in (0.2, 2.0, None):
        model = BayesianCHMM(CloneStructure([12]), 1, 0.5, stick_concentration=stick_concentration)
        used.append(float(model.prior_predictive(batch, 60).num_used.double().mean()))
    assert used[0] + 1 < used[1] < used[2] - 1, used


def test_pyro_replays_the_program():
    model, batch = make("plain"), single()
    pyro.set_rng_seed(4)
    trace = poutine.trace(model).get_trace(batch)
    value = trace.nodes["log_transition"]["value"]
    hmm = poutine.replay(model.distribution, trace=trace)(batch)
    assert torch.equal(hmm.table.values, value)


BAD = {
    "concentration zero": ({"concentration": 0.0}, "concentration\\[0, 0, 0\\] = 0"),
    "concentration entry": (
        {"concentration": torch.tensor([1.0, -1.0, 1.0])},
        "concentration\\[0, 0, 1\\] = -1",
    ),
    "concentration shape": ({"concentration": torch.ones(2)}, "broadcasts to \\(2, 3, 3\\)"),
    "concentration infinite": ({"concentration": math.inf}, "finite"),
    "sticky": ({"sticky": -1.0}, "sticky = -1"),
    "hyperprior": ({"hyperprior": (1.0, 0.0)}, "hyperprior\\[1\\] = 0"),
    "hyperprior length": ({"hyperprior": (1.0,)}, "expected \\(shape, rate\\)"),
    "sticks": ({"stick_concentration": -2.0}, "stick_concentration = -2"),
    "sticks uneven": (
        {"stick_concentration": 1.0, "concentration": torch.tensor([1.0, 2.0, 1.0])},
        "differs from that of the first clone",
    ),
    "initial": ({"initial_concentration": 0.0}, "initial_concentration = 0"),
    "actions": ({"action_concentration": 0.0}, "action_concentration\\[0\\] = 0"),
    "emission": ({"emission_concentration": (1.0, 0.0)}, "emission_concentration"),
    "joint actions": ({"learn_actions": True, "action_model": "joint"}, "learn_actions=True"),
    "action model": ({"action_model": "both"}, "action_model = 'both'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        BayesianCHMM(CLONES, 2, **options)


def test_bad_block_concentration():
    with pytest.raises(ValueError, match=r"values has shape \(3,\)"):
        block_concentration(CLONES, [1.0, 2.0, 3.0])
