"""Ties of ``viterbi`` and draws of ``ffbs``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import BACKENDS, FLOAT64_BACKENDS, Case, enumerated, make_problem
from goodness_of_fit import MIN_P_VALUE, p_value
from instances import random_instance
from numpy.testing import assert_allclose

NUM_DRAWS = 4000


def batched(path, size):
    return [path[at : at + size] for at in range(0, len(path), size)]


def paths_of(problem, local):
    """``(samples, Q)`` positions as a list of paths of global states."""
    return [tuple(path) for path in (np.asarray(local) + problem.layout.support_start).tolist()]


def uniform_case(clones, steps):
    """Every path has the same score, to the last bit."""
    states = sum(clones)
    table = np.full((1, states, states), -2.0)
    symbols = np.arange(steps) % len(clones)
    return Case(clones, np.full(states, -1.0), table, np.zeros(steps - 1, int), symbols)


def graded_case(seed):
    """Potentials are small integers, so that many paths tie exactly."""
    rng = np.random.default_rng(seed)
    case = Case.of(random_instance((2, 3), 6, 2, seed, missing=1, evidence="states"))
    return Case(
        case.num_clones,
        rng.integers(-2, 1, 5) * 1.0,
        rng.integers(-2, 1, (2, 5, 5)) * 1.0,
        case.actions,
        case.obs,
        rng.integers(-1, 1, (6, 5)) * 1.0,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_state(backend):
    """The last state is the lowest best one, and each earlier one the lowest best predecessor."""
    cases = [graded_case(seed) for seed in range(30)]
    rows = range(len(cases))
    problem = make_problem(cases, backend.dtype, rows, rows)
    exact = enumerated(cases, backend.dtype, rows, rows)
    assert sum(len(one.best_paths) > 1 for one in exact) > 10
    (states,) = paths_of(problem, backend.viterbi(problem).states[None])
    assert states == sum((one.lowest_path for one in exact), ())


@pytest.mark.parametrize("backend", BACKENDS)
def test_lowest_does_not_mean_lexicographic(backend):
    table = np.log([[[0.25, 0.75], [0.75, 0.25]]])
    case = Case((2,), np.log([0.5, 0.5]), table, np.array([0]), np.array([0, 0]))
    problem = make_problem([case], backend.dtype)
    assert paths_of(problem, backend.viterbi(problem).states[None]) == [(1, 0)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make", [lambda: uniform_case((2, 3), 4), lambda: graded_case(3)], ids=["uniform", "graded"]
)
def test_a_seed_lets_every_tied_path_win(backend, make):
    case = make()
    problem = make_problem([case] * 150, backend.dtype)
    (exact,) = enumerated([case], backend.dtype)
    assert len(exact.best_paths) > 1
    found = set()
    for seed in range(4):
        path = backend.viterbi(problem, seed)
        (states,) = paths_of(problem, path.states[None])
        found.update(batched(states, len(case.obs)))
        assert_allclose(path.score, np.full(150, exact.best_score), rtol=1e-6)
    assert found == set(exact.best_paths)


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeds_are_reproducible_and_jobs_differ(backend):
    problem = make_problem([uniform_case((3,), 12)] * 8, backend.dtype)
    states = backend.viterbi(problem, 5).states
    assert torch.equal(states, backend.viterbi(problem, 5).states)
    assert not torch.equal(states, backend.viterbi(problem, 6).states)
    assert len(set(map(tuple, states.view(8, 12).tolist()))) > 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_states_are_drawn_evenly(backend):
    case = uniform_case((2,), 2)
    problem = make_problem([case] * 500, backend.dtype)
    draws = []
    for seed in range(4):
        draws += map(tuple, backend.viterbi(problem, seed).states.view(500, 2).tolist())
    # Backtracking draws the last state, and a predecessor for each of its two values.
    evenly = {(i, j): 0.25 for i in range(2) for j in range(2)}
    assert p_value(draws, evenly) > MIN_P_VALUE


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_draw_beats_the_best_path(backend):
    case = Case.of(random_instance((2, 3, 1), 6, 2, seed=4, evidence="states"))
    problem = make_problem([case], backend.dtype)
    draws = backend.ffbs(problem, torch.rand(200, 6, dtype=torch.float64))
    best = backend.viterbi(problem).score.item()
    for path in paths_of(problem, draws):
        moves = case.log_transition[case.actions, path[:-1], path[1:]].sum()
        soft = case.log_evidence[np.arange(6), path].sum()
        assert case.log_initial[path[0]] + moves + soft <= best + 1e-5


DRAWN = {
    "plain": {},
    "missing": {"missing": 1},
    "evidence": {"evidence": "states", "missing": [1]},
    "zeros": {"zeros": 0.4, "evidence": "symbols"},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DRAWN.values(), ids=DRAWN)
def test_draws_fit_the_posterior(backend, kind):
    case = Case.of(random_instance((2, 3, 1), 4, 2, seed=9, **kind))
    problem = make_problem([case], backend.dtype)
    (exact,) = enumerated([case], backend.dtype)
    assert len(exact.paths) > 2
    draws = backend.ffbs(problem, torch.rand(NUM_DRAWS, 4, dtype=torch.float64))
    assert p_value(paths_of(problem, draws), exact.paths) > MIN_P_VALUE


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_of_ragged_jobs_with_parameters_of_their_own(backend):
    cases = [
        Case.of(random_instance((2, 3, 1), steps, 2, seed=k)) for k, steps in enumerate([3, 1, 4])
    ]
    rows = [2, 0, 1]
    problem = make_problem(cases, backend.dtype, rows, rows)
    exact = enumerated(cases, backend.dtype, rows, rows)
    draws = paths_of(problem, backend.ffbs(problem, torch.rand(NUM_DRAWS, 8).double()))
    bounds = problem.layout.step_start
    for job, one in enumerate(exact):
        if len(one.paths) > 1:
            own = [path[bounds[job] : bounds[job + 1]] for path in draws]
            assert p_value(own, one.paths) > MIN_P_VALUE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_kernels_turn_the_same_uniforms_into_the_same_paths(dtype):
    backends = [row.values[0] for row in BACKENDS if row.values[0].dtype == dtype]
    if any(mark.args[0] for row in BACKENDS for mark in row.marks):
        pytest.skip("one kernel is not installed")
    cases = [
        Case.of(random_instance((2, 3, 1), 5, 2, seed, evidence="states", zeros=0.3, missing=1))
        for seed in range(5)
    ]
    problem = make_problem(cases, dtype, range(5), range(5))
    uniforms = torch.rand(50, 25, dtype=torch.float64)
    first, *others = (backend.ffbs(problem, uniforms) for backend in backends)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("backend", FLOAT64_BACKENDS)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_extreme_uniforms_choose_possible_states(backend, uniform):
    case = Case.of(random_instance((3, 2), 5, 1, seed=3, zeros=0.5))
    problem = make_problem([case], backend.dtype)
    (exact,) = enumerated([case], backend.dtype)
    draws = backend.ffbs(problem, torch.full((1, 5), uniform, dtype=torch.float64))
    assert paths_of(problem, draws)[0] in exact.paths
