"""Every kernel against the sum over all clone paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import BACKENDS, Case, block_counts_as_table, by_state, enumerated, make_problem
from conftest import TOL
from instances import random_instance
from numpy.testing import assert_allclose

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

CLONES = [(3,), (2, 3, 1), (1, 4)]
STEPS = [1, 2, 5]
KINDS = {
    "plain": {},
    "missing": {"missing": 1},
    "all missing": {"missing": [0]},
    "symbol evidence": {"evidence": "symbols", "missing": [0]},
    "state evidence": {"evidence": "states"},
    "evidence beside missing": {"evidence": "states", "missing": 1},
    "zeros": {"zeros": 0.5},
    "zeros everywhere": {"zeros": 0.4, "evidence": "states", "missing": 1},
    "joint": {"action_model": "joint"},
}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_length = pytest.mark.parametrize("steps", STEPS)
every_structure = pytest.mark.parametrize("clones", CLONES, ids=str)


def case_of(clones, steps, kind, seed=0):
    return Case.of(random_instance(clones, steps, 2, seed=seed, **kind))


@every_structure
@every_length
@every_kind
def test_forward(backend, clones, steps, kind):
    case = case_of(clones, steps, kind)
    problem, tolerance = make_problem([case], backend.dtype), TOL["exact"][backend.dtype]
    (expected,) = enumerated([case], backend.dtype)
    found = backend.forward(problem)
    assert found.log_z.dtype == found.log_steps.dtype == torch.float64
    assert_allclose(found.log_z, [expected.log_prob], **tolerance)
    assert_allclose(found.log_steps, expected.log_prob_steps, **tolerance)
    assert found.messages.dtype == backend.dtype
    assert_allclose(by_state(problem.layout, found.messages), expected.filter, **tolerance)
    brief = backend.forward(problem, keep_messages=False)
    assert brief.messages is None
    assert_allclose(brief.log_steps, expected.log_prob_steps, **tolerance)


@every_structure
@every_length
@every_kind
def test_forward_backward(backend, clones, steps, kind):
    case = case_of(clones, steps, kind)
    problem, tolerance = make_problem([case], backend.dtype), TOL["exact"][backend.dtype]
    (expected,) = enumerated([case], backend.dtype)
    found = backend.forward_backward(problem)
    assert_allclose(found.log_z, [expected.log_prob], **tolerance)
    assert_allclose(found.initial_counts, [expected.initial_counts], **tolerance)
    counts = block_counts_as_table(problem.layout, found.block_counts, 2)
    assert_allclose(counts, [expected.transition_counts], **tolerance)
    assert_allclose(by_state(problem.layout, found.marginals), expected.smooth, **tolerance)
    assert backend.forward_backward(problem, marginals=False).marginals is None


@every_structure
@every_length
@every_kind
def test_viterbi(backend, clones, steps, kind):
    case = case_of(clones, steps, kind)
    problem = make_problem([case], backend.dtype)
    (expected,) = enumerated([case], backend.dtype)
    found = backend.viterbi(problem)
    assert_allclose(found.score, [expected.best_score], **TOL["exact"][backend.dtype])
    states = found.states.numpy() + problem.layout.support_start
    assert tuple(states) == expected.lowest_path


@every_structure
@pytest.mark.parametrize("steps", [2, 5])
@every_kind
def test_blocks_of_their_own_for_every_step(backend, clones, steps, kind):
    case = case_of(clones, steps, kind, seed=1).per_step()
    problem = make_problem([case], backend.dtype, per_step=True)
    assert problem.layout.num_blocks == steps - 1
    (expected,) = enumerated([case], backend.dtype)
    tolerance = TOL["exact"][backend.dtype]
    found = backend.forward_backward(problem)
    assert_allclose(found.log_z, [expected.log_prob], **tolerance)
    counts = block_counts_as_table(problem.layout, found.block_counts, steps - 1, per_step=True)
    assert_allclose(counts, [expected.transition_counts], **tolerance)
    path = backend.viterbi(problem).states.numpy() + problem.layout.support_start
    assert tuple(path) == expected.lowest_path


def ragged_cases(**kind):
    """Seven sequences of one model structure, each with parameters of its own."""
    lengths = [3, 1, 5, 2, 1, 4, 5]
    return [case_of((2, 3, 1), steps, kind, seed=k) for k, steps in enumerate(lengths)]


def total(exact, name, rows):
    """Expected counts of all jobs, added up by row of parameters."""
    parts = [getattr(one, name) for one in exact]
    into = np.zeros((max(rows) + 1, *parts[0].shape))
    np.add.at(into, np.array(rows), np.stack(parts))
    return into


# Rows of initial vectors and of blocks for each job: all shared, both differ, nothing shared.
SHARING = {
    "one model": ([0] * 7, [0] * 7),
    "initial rows": ([0, 2, 1, 1, 0, 2, 0], [0] * 7),
    "block rows": ([0] * 7, [1, 0, 1, 2, 2, 0, 1]),
    "different rows": ([0, 1, 1, 0, 1, 0, 0], [2, 1, 0, 0, 1, 2, 3]),
    "a model each": (list(range(7)), list(range(7))),
}


@pytest.mark.parametrize("rows", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize(
    "kind", [{}, {"zeros": 0.3, "evidence": "states"}], ids=["plain", "zeros and evidence"]
)
def test_ragged_jobs_share_rows_of_parameters(backend, rows, kind):
    cases = ragged_cases(**kind)
    problem = make_problem(cases, backend.dtype, *rows)
    exact = enumerated(cases, backend.dtype, *rows)
    tolerance = TOL["exact"][backend.dtype]
    weights = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.25, 3.0, 1.5], dtype=backend.dtype)
    found = backend.forward_backward(problem, weights)
    assert_allclose(found.log_z, [one.log_prob for one in exact], **tolerance)

    def weighted(name, index):
        scaled = [
            one._replace(**{name: getattr(one, name) * w} if one.log_prob > -np.inf else {})
            for one, w in zip(exact, weights.tolist(), strict=True)
        ]
        return total(scaled, name, index)

    assert_allclose(found.initial_counts, weighted("initial_counts", rows[0]), **tolerance)
    counts = block_counts_as_table(problem.layout, found.block_counts, 2)
    assert_allclose(counts, weighted("transition_counts", rows[1]), **tolerance)
    marginals = np.concatenate(
        [one.smooth * w for one, w in zip(exact, weights.tolist(), strict=True)]
    )
    assert_allclose(by_state(problem.layout, found.marginals), marginals, **tolerance)

    filtered = backend.forward(problem)
    assert_allclose(
        filtered.log_steps, np.concatenate([one.log_prob_steps for one in exact]), **tolerance
    )
    path = backend.viterbi(problem)
    assert_allclose(path.score, [one.best_score for one in exact], **tolerance)
    states = path.states.numpy() + problem.layout.support_start
    expected = [one.lowest_path or (-1,) * len(one.filter) for one in exact]
    possible = np.concatenate([[one.log_prob > -np.inf] * len(one.filter) for one in exact])
    assert np.array_equal(states[possible], np.concatenate(expected)[possible])


def test_potentials_need_not_be_normalised(backend):
    case = case_of((2, 3, 1), 5, {"evidence": "states"})
    problem = make_problem([case], backend.dtype)
    shifted = problem._replace(
        log_initial=problem.log_initial + 40.0,
        log_blocks=problem.log_blocks - 25.0,
        log_evidence=problem.log_evidence + 3.0,
    )
    (expected,) = enumerated([case], backend.dtype)
    tolerance = TOL["exact"][backend.dtype]
    found = backend.forward_backward(shifted)
    assert_allclose(found.log_z, [expected.log_prob + 40 - 4 * 25 + 5 * 3], **tolerance)
    counts = block_counts_as_table(problem.layout, found.block_counts, 2)
    assert_allclose(counts, [expected.transition_counts], **tolerance)


def test_arguments_are_not_changed(backend):
    case = case_of((2, 3, 1), 5, {"evidence": "states", "zeros": 0.3})
    problem = make_problem([case], backend.dtype)
    before = [x.clone() for x in problem[2:]]
    uniforms = torch.rand(3, 5, dtype=torch.float64)
    drawn = uniforms.clone()
    backend.forward_backward(problem)
    backend.viterbi(problem)
    backend.ffbs(problem, uniforms)
    for now, then in zip([*problem[2:], uniforms], [*before, drawn], strict=True):
        assert torch.equal(now, then)


def test_threads_change_nothing(backend, monkeypatch):
    if backend.on_arrays:
        from chmm_pyro._kernels import numba_threads

        monkeypatch.setattr(numba_threads, "_PARALLEL_WORK", 0)
    cases = ragged_cases(evidence="states")
    exact = enumerated(cases, backend.dtype)
    problem = make_problem(cases, backend.dtype)
    tolerance = TOL["exact"][backend.dtype]
    found = backend.forward_backward(problem)
    assert_allclose(found.log_z, [one.log_prob for one in exact], **tolerance)
    counts = block_counts_as_table(problem.layout, found.block_counts, 2)
    expected = sum(one.transition_counts for one in exact)
    assert_allclose(counts, [expected], **tolerance)
    each = make_problem(cases, backend.dtype, range(7), range(7))
    own = block_counts_as_table(each.layout, backend.forward_backward(each).block_counts, 2)
    exact = enumerated(cases, backend.dtype, range(7), range(7))
    assert_allclose(own, [one.transition_counts for one in exact], **tolerance)
    scores = backend.viterbi(each).score
    assert_allclose(scores, [one.best_score for one in exact], **tolerance)
    single = make_problem(cases[2:3], backend.dtype)
    (expected,) = enumerated(cases[2:3], backend.dtype)
    assert_allclose(
        by_state(single.layout, backend.forward_backward(single).marginals),
        expected.smooth,
        **tolerance,
    )
