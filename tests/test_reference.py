"""The oracle itself, against closed forms and sums done by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import reference
import torch
from conftest import TOL, load_golden
from goodness_of_fit import MIN_P_VALUE, p_value
from instances import Instance, random_instance
from numpy.testing import assert_allclose

from chmm_pyro.clones import MISSING

EXACT = TOL["exact"][torch.float64]

KINDS = [
    {},
    {"missing": 2},
    {"evidence": "symbols"},
    {"evidence": "states", "missing": [0, 3]},
    {"zeros": 0.4},
    {"zeros": 0.4, "evidence": "states", "missing": 1},
    {"action_model": "joint"},
]


@pytest.mark.parametrize("num_actions", [1, 3])
def test_one_clone_per_symbol_is_a_markov_chain(num_actions):
    case = random_instance([1, 1, 1], 12, num_actions, seed=1)
    found = case.exact()
    moves = list(zip(case.actions, case.obs[:-1], case.obs[1:], strict=True))
    counts = np.zeros((num_actions, 3, 3))
    for move in moves:
        counts[move] += 1
    steps = [case.log_initial[case.obs[0]], *(case.log_transition[move] for move in moves)]
    assert_allclose(found.log_prob, sum(steps), **EXACT)
    assert_allclose(found.log_prob_steps, steps, **EXACT)
    assert_allclose(found.filter, np.eye(3)[case.obs], **EXACT)
    assert_allclose(found.smooth, np.eye(3)[case.obs], **EXACT)
    assert_allclose(found.transition_counts, counts, **EXACT)
    assert list(found.paths) == [tuple(case.obs)] == list(found.best_paths)


def test_one_step_needs_only_the_initial_distribution():
    case = random_instance([2, 3], 1, 2, seed=2)
    initial = np.exp(case.log_initial)
    own = slice(0, 2) if case.obs[0] == 0 else slice(2, 5)
    share = np.zeros(5)
    share[own] = initial[own] / initial[own].sum()
    found = case.exact()
    assert_allclose(math.exp(found.log_prob), initial[own].sum(), **EXACT)
    assert_allclose(found.filter[0], share, **EXACT)
    assert_allclose(found.initial_counts, share, **EXACT)
    assert not found.transition_counts.any()


def test_two_steps_by_hand():
    initial = np.log([0.2, 0.3, 0.5])
    table = np.log([[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]])
    found = reference.enumerate_paths([2, 1], initial, table, [0], [0, 0])
    # Paths 00, 01, 10, 11: 0.2*0.1, 0.2*0.2, 0.3*0.6, 0.3*0.3 = 0.02, 0.04, 0.18, 0.09.
    assert_allclose(math.exp(found.log_prob), 0.33, **EXACT)
    assert_allclose(np.exp(found.log_prob_steps), [0.5, 0.66], **EXACT)
    assert_allclose(found.filter, [[0.4, 0.6, 0], [20 / 33, 13 / 33, 0]], **EXACT)
    assert_allclose(found.smooth, [[6 / 33, 27 / 33, 0], [20 / 33, 13 / 33, 0]], **EXACT)
    counts = [[2 / 33, 4 / 33, 0], [18 / 33, 9 / 33, 0], [0, 0, 0]]
    assert_allclose(found.transition_counts[0], counts, **EXACT)
    assert_allclose(math.exp(found.best_score), 0.18, **EXACT)
    assert found.best_paths == ((1, 0),) and found.lowest_path == (1, 0)
    # After states 0, 1 with weights 20/33, 13/33, symbol 1 has 0.7*20/33 + 0.1*13/33.
    ahead = reference.predict([2, 1], initial, table, [0], [0, 0], [0])
    assert_allclose(ahead, [[1 - 15.3 / 33, 15.3 / 33]], **EXACT)


@pytest.mark.parametrize("action_model", ["conditional", "joint"])
def test_probabilities_of_all_data_sum_to_one(action_model):
    case = random_instance([2, 1, 2], 4, 2, seed=3, action_model=action_model)
    all_actions = product(range(2), repeat=3) if action_model == "joint" else [case.actions]
    potentials = (case.num_clones, case.log_initial, case.log_transition)
    total = math.fsum(
        math.exp(reference.enumerate_paths(*potentials, actions, obs).log_prob)
        for actions in all_actions
        for obs in product(range(3), repeat=4)
    )
    assert_allclose(total, 1.0, **EXACT)


def test_a_missing_step_is_a_sum_over_its_symbols():
    case = random_instance([2, 1, 2], 5, 2, seed=4, missing=[2])
    filled = []
    for symbol in range(3):
        potentials = list(case.potentials)
        potentials[4] = np.where(case.obs == MISSING, symbol, case.obs)
        filled.append(reference.enumerate_paths(*potentials).log_prob)
    assert_allclose(case.exact().log_prob, np.logaddexp.reduce(filled), **EXACT)


@pytest.mark.parametrize("width", ["symbols", "states"])
def test_certain_evidence_is_an_observation(width):
    seen = random_instance([2, 1, 2], 4, 2, seed=5)
    owner = np.repeat(np.arange(3), seen.num_clones) if width == "states" else np.arange(3)
    certain = np.where(owner == seen.obs[:, None], 0.25, -math.inf)
    hidden = Instance(
        *(seen.num_clones, seen.initial_logits, seen.transition_logits, seen.actions),
        np.full(4, MISSING),
        certain,
    )
    found, expected = hidden.exact(), seen.exact()
    assert_allclose(found.log_prob, expected.log_prob + 4 * 0.25, **EXACT)
    assert_allclose(found.smooth, expected.smooth, **EXACT)
    assert found.evidence_gradient.shape == certain.shape
    assert_allclose(found.evidence_gradient.sum(1), np.ones(4), **EXACT)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_recursions_agree_with_enumeration(kind):
    case = random_instance([2, 3, 1], 5, 2, seed=6, **kind)
    found = case.exact()
    log_steps, filtered = reference.log_forward(*case.potentials)
    assert_allclose(log_steps, found.log_prob_steps, **EXACT)
    assert_allclose(filtered, found.filter, **EXACT)
    best = reference.max_marginals(*case.potentials)
    assert_allclose(best.max(axis=1), np.full(5, found.best_score), **EXACT)
    assert tuple(best.argmax(axis=1)) == found.lowest_path


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_laws_of_the_posterior(kind):
    case = random_instance([2, 3, 1], 5, 2, seed=7, **kind)
    found = case.exact()
    assert_allclose(found.log_prob_steps.sum(), found.log_prob, **EXACT)
    assert_allclose(sum(found.paths.values()), 1.0, **EXACT)
    assert_allclose(found.filter[-1], found.smooth[-1], **EXACT)
    assert_allclose(found.transition_counts.sum(), 4.0, **EXACT)
    ahead = case.predict([1, 0])
    assert_allclose(ahead.sum(1), np.ones(2), **EXACT)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradient_of_the_torch_version_is_the_expected_counts(kind):
    case = random_instance([2, 3, 1], 5, 2, seed=8, **kind)
    found = case.exact()
    arguments = case.arguments(requires_grad=True)
    value = case.log_prob_torch(arguments)
    value.backward()
    assert_allclose(value.item(), found.log_prob, **EXACT)
    counts, probs = found.transition_counts, np.exp(case.log_transition)
    axes = (0, 2) if case.action_model == "joint" else (2,)
    expected = counts - counts.sum(axes, keepdims=True) * probs
    assert_allclose(arguments["transition_logits"].grad, expected, **EXACT)
    expected = found.initial_counts - np.exp(case.log_initial)
    assert_allclose(arguments["initial_logits"].grad, expected, **EXACT)
    if case.log_evidence is not None:
        assert_allclose(arguments["log_evidence"].grad, found.evidence_gradient, **EXACT)


def test_torch_version_is_twice_differentiable_also_beside_zeros():
    case = random_instance([2, 1], 3, 2, seed=9, zeros=0.4, evidence="states")
    arguments = case.arguments(requires_grad=True)
    free = {n: torch.isfinite(x.detach()) for n, x in arguments.items() if torch.is_tensor(x)}
    names = ["initial_logits", "transition_logits", "log_evidence"]

    def value(*finite):
        filled = {
            name: torch.full(free[name].shape, -math.inf, dtype=x.dtype).masked_scatter(
                free[name], x
            )
            for name, x in zip(names, finite, strict=True)
        }
        return case.log_prob_torch({**arguments, **filled})

    leaves = [arguments[n].detach()[free[n]].requires_grad_() for n in names]
    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


def test_action_prior_adds_its_log_probability():
    case = random_instance([2, 1], 4, 3, seed=10)
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    with_prior = case.log_prob_torch({**case.arguments(), "action_logits": logits})
    expected = case.exact().log_prob + float(logits.log_softmax(0)[case.actions].sum())
    assert_allclose(with_prior.item(), expected, **EXACT)


def test_impossible_data_give_zeros_and_never_nan():
    case = random_instance([2, 1], 4, 1, seed=11)
    logits = case.transition_logits.copy()
    logits[0, 2, 2] = -math.inf
    case = Instance(
        case.num_clones, case.initial_logits, logits, case.actions, np.array([0, 1, 1, 0])
    )
    found = case.exact()
    assert found.log_prob == -math.inf and found.first_impossible == 2
    assert np.isfinite(found.log_prob_steps[:2]).all()
    assert (found.log_prob_steps[2:] == -math.inf).all()
    assert_allclose(found.filter.sum(1), [1, 1, 0, 0], **EXACT)
    assert not found.smooth.any() and not found.transition_counts.any()
    assert found.paths == {} and found.best_paths == () and found.lowest_path is None
    arguments = case.arguments(requires_grad=True)
    value = case.log_prob_torch(arguments)
    value.backward()
    assert value.item() == -math.inf
    assert not arguments["transition_logits"].grad.any()
    assert not arguments["initial_logits"].grad.any()


def test_merely_improbable_data_keep_their_value_and_gradient():
    table = np.full((1, 3, 3), -690.0)
    table[0, :, 0] = 0.0
    found = reference.enumerate_paths([1, 2], np.zeros(3), table, [0, 0], [1, 1, 1])
    # Two transitions of about 1e-300 along each of 2 ** 3 paths.
    assert_allclose(found.log_prob, 3 * math.log(2) - 1380, **EXACT)
    assert_allclose(found.transition_counts.sum(), 2.0, **EXACT)


def test_ties_go_to_the_lowest_state_from_the_last_step_backwards():
    table = np.log([[[0.25, 0.75], [0.75, 0.25]]])
    found = reference.enumerate_paths([2], np.log([0.5, 0.5]), table, [0], [0, 0])
    assert found.best_paths == ((0, 1), (1, 0))
    assert found.lowest_path == (1, 0)
    uniform = np.full((1, 3, 3), -math.log(3))
    found = reference.enumerate_paths([3], np.zeros(3), uniform, [0, 0], [0, 0, 0])
    assert len(found.best_paths) == 27 and found.lowest_path == (0, 0, 0)


def test_per_step_blocks_are_one_action_per_step():
    case = random_instance([2, 1, 2], 5, 2, seed=12, missing=[1])
    local = np.full((4, 5, 5), 7.0)
    starts = [0, 2, 3]
    for t in range(4):
        rows, columns = (
            slice(None) if x == MISSING else slice(starts[x], starts[x] + case.num_clones[x])
            for x in case.obs[t : t + 2]
        )
        block = case.log_transition[case.actions[t]][rows, columns]
        local[t, : block.shape[0], : block.shape[1]] = block
    tables = reference.dense_steps(case.num_clones, case.obs, local)
    found = reference.enumerate_paths(
        case.num_clones, case.log_initial, tables, np.arange(4), case.obs
    )
    assert_allclose(found.log_prob, case.exact().log_prob, **EXACT)
    assert_allclose(found.smooth, case.exact().smooth, **EXACT)
    assert_allclose(found.transition_counts.sum((1, 2)), np.ones(4), **EXACT)


def test_long_recursion_has_the_closed_form_of_a_markov_chain():
    case = random_instance([1, 1, 1], 10_000, 2, seed=13)
    log_steps, _ = reference.log_forward(*case.potentials)
    moves = case.log_transition[case.actions, case.obs[:-1], case.obs[1:]]
    expected = math.fsum([case.log_initial[case.obs[0]], *moves])
    assert_allclose(math.fsum(log_steps), expected, **EXACT)


@pytest.mark.parametrize("name", ["small", "medium"])
def test_recursion_reproduces_the_published_code(name):
    golden = load_golden(name)
    states = sum(golden.num_clones)
    uniform = np.full(states, -math.log(states))
    potentials = (golden.num_clones, uniform, golden.log_transition, golden.actions, golden.obs)
    log_steps, _ = reference.log_forward(*potentials)
    assert_allclose(log_steps / math.log(2), golden.checkpoints["log2_lik"], **EXACT)
    best = reference.max_marginals(*potentials).max() / math.log(2)
    assert_allclose(best, golden.checkpoints["viterbi_log2_lik"].sum(), **EXACT)


@pytest.mark.parametrize("seed", range(20))
def test_instances_with_structural_zeros_stay_possible(seed):
    case = random_instance([2, 1, 2], 5, 2, seed=seed, zeros=0.6, evidence="symbols", missing=1)
    assert np.isneginf(case.transition_logits).any()
    assert math.isfinite(case.exact().log_prob)
    again = random_instance([2, 1, 2], 5, 2, seed=seed, zeros=0.6, evidence="symbols", missing=1)
    assert np.array_equal(case.transition_logits, again.transition_logits)


def test_goodness_of_fit_tells_right_from_wrong():
    rng = np.random.default_rng(14)
    true = dict(zip("abcd", [0.5, 0.3, 0.199, 0.001], strict=True))
    draws = rng.choice(list(true), size=4000, p=list(true.values())).tolist()
    assert p_value(draws, true) > MIN_P_VALUE
    skewed = dict(zip("abcd", [0.42, 0.38, 0.199, 0.001], strict=True))
    assert p_value(draws, skewed) < MIN_P_VALUE
    assert p_value([*draws, "e"], true) == 0.0
    with pytest.raises(ValueError, match="draw more"):
        p_value(["a"], true)
