"""CloneHMM on one sequence against the sum over all clone paths."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from conftest import TOL
from instances import Instance, random_instance
from numpy.testing import assert_allclose
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.distribution import CloneHMM

pytestmark = pytest.mark.usefixtures("kernel")

EXACT = TOL["exact"][torch.float64]
CLONES = [(2, 3, 1), (1, 4)]
STEPS = [1, 2, 5]
KINDS = {
    "plain": {},
    "missing": {"missing": 1},
    "symbol evidence": {"evidence": "symbols", "missing": [0]},
    "state evidence": {"evidence": "states", "missing": 1},
    "zeros": {"zeros": 0.4, "evidence": "states"},
    "joint": {"action_model": "joint"},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_length = pytest.mark.parametrize("steps", STEPS)
every_structure = pytest.mark.parametrize("num_clones", CLONES, ids=str)


def build(case, dtype=torch.float64, requires_grad=False, **changes):
    """The distribution of an instance, and its (perhaps gradient-requiring) arguments."""
    arguments = {**case.arguments(dtype, requires_grad), **changes}
    return CloneHMM(case.clones, **arguments), arguments


@every_structure
@every_length
@every_kind
def test_value_and_gradient(num_clones, steps, kind, dtype):
    case = random_instance(num_clones, steps, 2, seed=steps, **kind)
    hmm, arguments = build(case, dtype, requires_grad=True)
    assert hmm.event_shape == (steps,) and hmm.batch_shape == ()
    value = hmm.log_prob(case.obs)
    assert value.dtype == dtype and value.shape == ()
    oracle = case.arguments(requires_grad=True)
    expected = case.log_prob_torch(oracle)
    tolerance = TOL["exact"][dtype]
    assert_close(value.double(), expected, **tolerance)
    value.backward()
    expected.backward()
    for name in ("initial_logits", "transition_logits", "log_evidence"):
        if arguments[name] is not None:
            assert_close(arguments[name].grad.double(), oracle[name].grad, **tolerance)


@every_structure
@every_length
@every_kind
def test_beliefs(num_clones, steps, kind, dtype):
    case = random_instance(num_clones, steps, 2, seed=10 + steps, **kind)
    hmm, _ = build(case, dtype)
    exact, tolerance = case.exact(), TOL["exact"][dtype]
    terms = hmm.log_prob_steps(case.obs)
    assert_allclose(terms, exact.log_prob_steps, **tolerance)
    assert_close(terms.sum(), hmm.log_prob(case.obs), **tolerance)
    filtered, smoothed = hmm.filter(case.obs), hmm.smooth(case.obs)
    assert_allclose(filtered.dense(), exact.filter, **tolerance)
    assert_allclose(smoothed.dense(), exact.smooth, **tolerance)
    assert_close(filtered.at(-1), smoothed.at(-1), **tolerance)
    assert filtered.initial_counts is None and filtered.transition_counts is None
    assert_allclose(smoothed.initial_counts, exact.initial_counts, **tolerance)
    assert_allclose(smoothed.transition_counts, exact.transition_counts, **tolerance)
    log_prob, initial, transition = hmm.expected_counts(case.obs)
    assert_allclose(log_prob, exact.log_prob, **tolerance)
    assert_allclose(initial, exact.initial_counts, **tolerance)
    assert_allclose(transition, exact.transition_counts, **tolerance)


@every_structure
@every_length
@every_kind
def test_most_probable_path(num_clones, steps, kind, dtype):
    case = random_instance(num_clones, steps, 2, seed=20 + steps, **kind)
    hmm, _ = build(case, dtype)
    exact = case.exact()
    path = hmm.posterior_mode(case.obs)
    assert tuple(path.states.tolist()) == exact.lowest_path
    assert path.score.dtype == torch.float64
    assert_allclose(path.score, exact.best_score, **TOL["exact"][dtype])


@every_kind
def test_gradient_by_central_differences(kind):
    case = random_instance((2, 1), 4, 2, seed=31, **kind)
    hmm, arguments = build(case, requires_grad=True)
    hmm.log_prob(case.obs).backward()
    step = 1e-5
    for name in ("initial_logits", "transition_logits", "log_evidence"):
        if arguments[name] is None:
            continue
        base = arguments[name].detach()
        estimate = torch.zeros_like(base)
        for at in np.ndindex(*base.shape):
            if torch.isfinite(base[at]):
                both = []
                for sign in (1, -1):
                    moved = base.clone()
                    moved[at] += sign * step
                    both.append(build(case, **{name: moved})[0].log_prob(case.obs))
                estimate[at] = (both[0] - both[1]) / (2 * step)
        error = (estimate - arguments[name].grad).norm() / estimate.norm()
        assert error < 1e-5


# There are no differences around -inf; test_messages.py moves the finite entries alone.
@pytest.mark.parametrize("kind", [KINDS[name] for name in KINDS if name != "zeros"])
def test_first_and_second_derivatives(kind):
    case = random_instance((2, 1), 3, 1, seed=32, **kind)
    arguments = case.arguments(requires_grad=True)
    names = [n for n, x in arguments.items() if torch.is_tensor(x) and x.requires_grad]

    def value(*leaves):
        hmm, _ = build(case, **dict(zip(names, leaves, strict=True)))
        return hmm.log_prob(case.obs)

    leaves = [arguments[name] for name in names]
    assert gradcheck(value, leaves)
    assert gradgradcheck(value, leaves, fast_mode=True)


def test_filter_is_differentiable():
    case = random_instance((2, 1), 4, 2, seed=33, missing=1)

    def last_belief(initial, transition):
        hmm, _ = build(case, initial_logits=initial, transition_logits=transition)
        found = hmm.filter(case.obs)
        return found.at(-1), found.dense(), hmm.log_prob_steps(case.obs)

    arguments = case.arguments(requires_grad=True)
    assert gradcheck(last_belief, (arguments["initial_logits"], arguments["transition_logits"]))


def test_posterior_addresses_states():
    case = random_instance((2, 3, 1), 5, 2, seed=34, missing=[2])
    hmm, _ = build(case)
    found = hmm.smooth(case.obs)
    assert found.probs.shape == (5, 6) and found.num_states == 6
    dense = found.dense()
    for t in range(-5, 5):
        assert_close(found.at(t), dense[t], **EXACT)
    for t, symbol in enumerate(case.obs):
        if symbol != MISSING:
            states = case.clones.states(int(symbol))
            size = states.stop - states.start
            assert_close(found.probs[t, :size], dense[t, states], **EXACT)
            assert not found.probs[t, size:].any()
            assert found.first_state[t] == states.start


class TestActions:
    @pytest.fixture
    def case(self):
        return random_instance((2, 1), 5, 3, seed=40)

    @pytest.fixture
    def action_logits(self):
        return torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)

    def test_a_prior_adds_the_probability_of_the_actions(self, case, action_logits):
        leaf = action_logits.requires_grad_()
        hmm, _ = build(case, action_logits=leaf)
        plain, _ = build(case)
        log_actions = leaf.log_softmax(0)[torch.tensor(case.actions)]
        value = hmm.log_prob(case.obs)
        assert_close(value, plain.log_prob(case.obs) + log_actions.sum(), **EXACT)
        assert_close(hmm.log_prob_steps(case.obs).sum(), value, **EXACT)
        steps = plain.log_prob_steps(case.obs)
        steps[1:] += log_actions.detach()
        assert_close(hmm.log_prob_steps(case.obs), steps, **EXACT)
        expected = plain.posterior_mode(case.obs).score + log_actions.sum().detach()
        assert_close(hmm.posterior_mode(case.obs).score, expected, **EXACT)
        value.backward()
        counts = np.bincount(case.actions, minlength=3)
        assert_allclose(leaf.grad, counts - 4 * action_logits.detach().softmax(0).numpy(), **EXACT)

    def test_impossible_data_move_no_action_either(self, case, action_logits):
        leaf = action_logits.requires_grad_()
        initial = torch.tensor([-math.inf, -math.inf, 0.0], dtype=torch.float64)
        obs = case.obs.copy()
        obs[0] = 0
        hmm, _ = build(case, action_logits=leaf, initial_logits=initial)
        value = hmm.log_prob(obs)
        value.backward()
        assert value == -math.inf and not leaf.grad.any()

    def test_joint_model_is_a_conditional_one_with_state_dependent_actions(self):
        case = random_instance((2, 1), 5, 3, seed=41, action_model="joint")
        hmm, _ = build(case)
        table = case.log_transition
        log_actions = np.logaddexp.reduce(table, axis=2)
        conditional = table - log_actions[:, :, None]
        exact = reference.enumerate_paths(
            case.num_clones, case.log_initial, conditional, case.actions, case.obs,
            # p(a_t | z_t) is evidence about the state that the action leaves.
            np.concatenate([log_actions[case.actions], np.zeros((1, 3))]),
        )  # fmt: skip
        assert_allclose(hmm.log_prob(case.obs), exact.log_prob, **EXACT)
        assert_allclose(hmm.smooth(case.obs).dense(), exact.smooth, **EXACT)


class TestExtremes:
    def test_one_clone_per_symbol_is_a_markov_chain(self, dtype):
        case = random_instance((1, 1, 1), 50, 2, seed=50)
        hmm, arguments = build(case, dtype, requires_grad=True)
        moves = (case.actions, case.obs[:-1], case.obs[1:])
        terms = np.append(case.log_initial[case.obs[0]], case.log_transition[moves])
        tolerance = TOL["exact"][dtype]
        value = hmm.log_prob(case.obs)
        assert_allclose(value.item(), terms.sum(), **tolerance)
        assert_allclose(hmm.log_prob_steps(case.obs).detach(), terms, **tolerance)
        counts = np.zeros((2, 3, 3))
        np.add.at(counts, moves, 1.0)
        assert_allclose(hmm.smooth(case.obs).transition_counts, counts, **tolerance)
        value.backward()
        expected = counts - counts.sum(-1, keepdims=True) * np.exp(case.log_transition)
        assert_allclose(arguments["transition_logits"].grad, expected, **tolerance)
        path = hmm.posterior_mode(case.obs)
        assert np.array_equal(path.states, case.obs)
        assert_allclose(path.score, terms.sum(), **tolerance)

    def test_a_symbol_never_seen_gets_no_counts(self):
        case = random_instance((2, 2, 3), 6, 1, seed=51)
        obs = np.where(case.obs == 2, 0, case.obs)
        hmm, arguments = build(case, requires_grad=True)
        exact = replace(case, obs=obs).exact()
        value = hmm.log_prob(obs)
        value.backward()
        assert_allclose(value.item(), exact.log_prob, **EXACT)
        counts = hmm.smooth(obs).transition_counts
        assert not counts[:, 4:].any() and not counts[:, :, 4:].any()
        assert not arguments["transition_logits"].grad[:, 4:].any()

    @pytest.mark.parametrize("step", [0, 2, 4])
    def test_impossible_data(self, step, dtype):
        case = random_instance((2, 1), 5, 1, seed=52)
        initial, logits = case.initial_logits.copy(), case.transition_logits.copy()
        obs = np.zeros(5, int)
        obs[step] = 1
        if step == 0:
            initial[2] = -math.inf
        else:
            logits[0, :2, 2] = -math.inf
        case = Instance(case.num_clones, initial, logits, case.actions, obs)
        assert case.exact().first_impossible == step
        hmm, arguments = build(case, dtype, requires_grad=True)
        value = hmm.log_prob(obs)
        value.backward()
        assert value == -math.inf
        assert not arguments["initial_logits"].grad.any()
        assert not arguments["transition_logits"].grad.any()
        terms = hmm.log_prob_steps(obs)
        assert torch.isfinite(terms[:step]).all() and (terms[step:] == -math.inf).all()
        for query in (hmm.filter, hmm.smooth, hmm.posterior_mode, hmm.sample_posterior):
            with pytest.raises(ValueError, match=rf"obs is impossible at step {step} \(symbol 1\)"):
                query(obs)

    def test_impossible_member_of_a_batch_is_named(self):
        logits = torch.zeros(1, 3, 3)
        logits[0, 2, 2] = -math.inf
        hmm = CloneHMM(CloneStructure([2, 1]), torch.zeros(3), logits, torch.zeros(2, 2, 3).long())
        obs = torch.zeros(2, 2, 4, dtype=torch.long)
        obs[1, 0, 2:] = 1
        value = hmm.log_prob(obs)
        assert torch.equal(torch.isneginf(value), torch.tensor([[False, False], [True, False]]))
        for query in (hmm.filter, hmm.smooth, hmm.posterior_mode, hmm.sample_posterior):
            with pytest.raises(ValueError, match=r"step 3 of sequence \[1, 0\]"):
                query(obs)


def test_sums_to_one_over_all_sequences():
    case = random_instance((2, 1), 4, 2, seed=60)
    hmm, _ = build(case)
    everything = torch.cartesian_prod(*[torch.arange(2)] * 4)
    assert_close(hmm.log_prob(everything).exp().sum(), torch.tensor(1.0).double(), **EXACT)


def test_sums_to_one_over_actions_too_if_joint():
    case = random_instance((2, 1), 3, 2, seed=61, action_model="joint")
    everything = torch.cartesian_prod(*[torch.arange(2)] * 3)
    total = sum(
        build(replace(case, actions=np.array(actions)))[0].log_prob(everything).exp().sum()
        for actions in np.ndindex(2, 2)
    )
    assert_close(total, torch.tensor(1.0).double(), **EXACT)
