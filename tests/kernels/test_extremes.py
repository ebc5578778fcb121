"""Where scaled probabilities underflow, where nothing is possible, where sequences are long."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from backends import BACKENDS, Case, block_counts_as_table, by_state, enumerated, make_problem
from conftest import TOL
from goodness_of_fit import MIN_P_VALUE, p_value
from instances import random_instance
from numpy.testing import assert_allclose

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

NEVER = -math.inf


def rounding(problem):
    """Sums of log-potentials near ``-700`` keep only the digits that the potentials have."""
    dtype = problem.log_blocks.dtype
    size = max(
        float(x[torch.isfinite(x)].abs().max()) for x in problem[2:] if x is not None and x.numel()
    )
    tolerance = TOL["exact"][dtype]
    return {**tolerance, "atol": max(tolerance["atol"], 4 * size * torch.finfo(dtype).eps)}


def check(backend, cases, initial=None, blocks=None):
    """Every quantity of every job against enumeration."""
    problem = make_problem(cases, backend.dtype, initial, blocks)
    exact = enumerated(cases, backend.dtype, initial, blocks)
    layout = problem.layout
    tolerance = rounding(problem)
    for found in (backend.forward(problem), backend.forward(problem, keep_messages=False)):
        log_steps = np.concatenate([one.log_prob_steps for one in exact])
        assert_allclose(found.log_steps, log_steps, **tolerance)
        assert_allclose(found.log_z, [one.log_prob for one in exact], **tolerance)
    filtered = by_state(layout, backend.forward(problem).messages)
    assert_allclose(filtered, np.concatenate([one.filter for one in exact]), **tolerance)
    counts = backend.forward_backward(problem)
    assert_allclose(counts.log_z, [one.log_prob for one in exact], **tolerance)
    smoothed = by_state(layout, counts.marginals)
    assert_allclose(smoothed, np.concatenate([one.smooth for one in exact]), **tolerance)
    rows = np.zeros(len(cases), int) if blocks is None else np.array(blocks)
    expected = np.zeros((rows.max() + 1, *exact[0].transition_counts.shape))
    np.add.at(expected, rows, np.stack([one.transition_counts for one in exact]))
    table = block_counts_as_table(layout, counts.block_counts, expected.shape[1])
    assert_allclose(table, expected, **tolerance)
    path = backend.viterbi(problem)
    assert_allclose(path.score, [one.best_score for one in exact], **tolerance)
    return problem, exact


def forced(tiny, num_actions=1):
    """Symbols 0, 1, 2 with 2, 2, 2 clones, walked as 0 1 2 0.

    From the first to the third symbol only transitions of weight ``exp(tiny)`` lead, twice, each
    beside transitions of weight one that lead nowhere, so that no common factor hides them.
    """
    table = np.full((1, 6, 6), NEVER)
    # State 0 goes to 2 or 3; state 1, which cannot be first, would give the block weight one.
    table[0, 0, 2:4] = tiny + np.log([0.3, 0.7])
    table[0, 1, 2:4] = np.log([0.5, 0.5])
    table[0, 2, 4:6] = tiny + np.log([0.6, 0.1])
    table[0, 3, 4] = tiny + np.log(0.2)
    table[0, 3, 5] = 2 * tiny
    table[0, 4:6, 0:2] = np.log([[0.1, 0.9], [0.5, 0.5]])
    initial = np.array([0.0, NEVER, -1.0, -1.0, -1.0, -1.0])
    return Case((2, 2, 2), initial, table, np.zeros(3, int), np.array([0, 1, 2, 0]))


@pytest.mark.parametrize("probability", ["1e-300", "exp(-50)", "exp(-60)", "1e-19", "1e-38"])
def test_two_successive_tiny_transitions(backend, probability):
    tiny = {"exp(-50)": -50.0, "exp(-60)": -60.0}.get(probability)
    case = forced(math.log(float(probability)) if tiny is None else tiny)
    _, (exact,) = check(backend, [case])
    assert exact.log_prob < 2 * math.log(float(probability) if tiny is None else math.exp(tiny))


def test_tiny_transitions_beside_ordinary_jobs(backend):
    ordinary = [Case.of(random_instance((2, 2, 2), steps, seed=steps)) for steps in (4, 1, 5)]
    cases = [ordinary[0], forced(-690.0), *ordinary[1:]]
    check(backend, cases, range(4), range(4))
    check(backend, cases, [1, 1, 0, 2], [1, 1, 1, 0])


def late_turn(lost, decay, steps):
    """Two chains that never meet: the second starts ``lost`` behind and gains ``decay`` a step.

    Both emit the same symbols.  A filter that drops the second chain when it is small is wrong by
    the end, although no single step looks unlikely.
    """
    table = np.full((1, 2, 2), NEVER)
    table[0, 0, 0], table[0, 1, 1] = decay, 0.0
    initial = np.array([0.0, lost])
    return Case((2,), initial, table, np.zeros(steps - 1, int), np.zeros(steps, int))


@pytest.mark.parametrize("steps", [4, 8])
def test_what_underflowed_may_turn_out_to_matter(backend, steps):
    lost = {torch.float64: -760.0, torch.float32: -110.0}[backend.dtype]
    check(backend, [late_turn(lost, -1.2 * abs(lost) / (steps - 1), steps)])


def test_soft_evidence_that_changes_its_mind(backend):
    lost = {torch.float64: -800.0, torch.float32: -120.0}[backend.dtype]
    table = np.full((1, 3, 3), NEVER)
    table[0, 0, [0, 2]] = np.log([0.9, 0.1])
    table[0, 1, 1] = 0.0
    table[0, 2, [0, 2]] = np.log([0.3, 0.7])
    evidence = np.zeros((7, 3))
    evidence[1, 1] = lost
    evidence[2:, [0, 2]] = 1.1 * lost / 5
    start = np.log([0.2, 0.5, 0.3])
    case = Case((3,), start, table, np.zeros(6, int), np.full(7, -1), evidence)
    check(backend, [case])


def lost_twice(tiny, middle, steps):
    """The likely path is behind at the start *and* at the end, and ahead only in the middle."""
    table = np.full((steps - 1, 2, 2), NEVER)
    table[:, 0, 0], table[:, 1, 1] = middle / (steps - 3), 0.0
    table[-1, 0, 0], table[-1, 1, 1] = 0.0, tiny
    initial = np.array([0.0, tiny])
    return Case((2,), initial, table, np.arange(steps - 1), np.zeros(steps, int))


def test_posterior_mass_that_both_passes_lose(backend):
    tiny = {torch.float64: -760.0, torch.float32: -110.0}[backend.dtype]
    case = lost_twice(tiny, 2.2 * tiny, 10)
    _, (exact,) = check(backend, [case])
    assert exact.smooth[5, 1] > 0.99


def two_chains(backend, pattern, start=(0.0, 0.0)):
    """Two states that never meet under two actions: each action holds back one of them.

    Under action 0 the second falls behind by 1e-15 a step (float32; 1e-150 in float64), under
    action 1 the first by 1e-20 (1e-200).
    """
    size = {torch.float64: 10.0, torch.float32: 1.0}[backend.dtype]
    table = np.full((2, 2, 2), NEVER)
    table[0, 0, 0], table[0, 1, 1] = 0.0, -15 * size * math.log(10)
    table[1, 0, 0], table[1, 1, 1] = -20 * size * math.log(10), 0.0
    actions = np.array([int(a) for a in pattern])
    return Case((2,), np.array(start), table, actions, np.zeros(len(actions) + 1, int))


def closed_form(case, dtype):
    """Scores of both chains up to every step, and the filter and terms that they give."""
    table = torch.tensor(case.log_transition, dtype=dtype).double().numpy()
    gains = table[case.actions][:, [0, 1], [0, 1]]
    scores = np.cumsum(np.concatenate([case.log_initial[None], gains]), axis=0)
    totals = np.logaddexp(*scores.T)
    return scores, np.exp(scores - totals[:, None]), np.diff(totals, prepend=0.0)


TURNS = {
    "falls behind, then wins": "0" * 8 + "1" * 12,
    "wins, then loses after all": "0" * 8 + "1" * 12 + "0" * 30,
    "back and forth": ("0" * 40 + "1" * 35) * 3,
    "even in the end": "0" * 80 + "1" * 60,
    "many small turns": "0001101" * 30,
}


@pytest.mark.parametrize("pattern", TURNS.values(), ids=TURNS)
def test_mass_that_underflows_over_several_steps(backend, pattern):
    """No single step looks unlikely, and still all of the first or the second chain matters."""
    case = two_chains(backend, pattern, np.log([0.3, 0.7]))
    problem = make_problem([case], backend.dtype)
    scores, filtered, terms = closed_form(case, backend.dtype)
    # Repairs work in float64; the torch kernel sums logarithms as large as the gap at every step.
    unit = torch.finfo(torch.float64 if backend.on_arrays else backend.dtype).eps
    tolerance = dict(TOL["exact"][backend.dtype])
    gap = np.abs(np.diff(scores, axis=1)).max()
    tolerance["atol"] = max(tolerance["atol"], unit * gap * len(scores))
    for keep in (True, False):
        found = backend.forward(problem, keep)
        assert_allclose(found.log_steps, terms, **tolerance)
        assert_allclose(found.log_z, [np.logaddexp(*scores[-1])], **tolerance)
    messages = backend.forward(problem).messages
    assert_allclose(by_state(problem.layout, messages), filtered, **tolerance)
    counts = backend.forward_backward(problem)
    assert_allclose(counts.log_z, [np.logaddexp(*scores[-1])], **tolerance)
    smooth = np.broadcast_to(filtered[-1], filtered.shape)
    assert_allclose(by_state(problem.layout, counts.marginals), smooth, **tolerance)
    assert_allclose(counts.initial_counts, filtered[-1:], **tolerance)
    table = block_counts_as_table(problem.layout, counts.block_counts, 2)
    for action in range(2):
        uses = (case.actions == action).sum()
        assert_allclose(table[0, action] / uses, np.diag(filtered[-1]), **tolerance)


def test_one_job_of_many_needs_repair(backend):
    """It becomes right, and the others stay what they are without it, to the last bit."""
    lost = {torch.float64: -760.0, torch.float32: -110.0}[backend.dtype]
    others = [Case.of(random_instance((2,), steps, seed=steps)) for steps in (6, 1, 9)]
    hard = late_turn(lost, -1.2 * abs(lost) / 4, 5)
    cases, rows = [others[0], hard, *others[1:]], [0, 1, 2, 2]
    check(backend, cases, rows, rows)
    alone = backend.forward(make_problem([others[0]], backend.dtype))
    beside = backend.forward(make_problem(cases, backend.dtype, rows, rows))
    if backend.on_arrays:
        assert beside.log_z[0] == alone.log_z[0]
        assert torch.equal(beside.messages[: len(alone.messages)], alone.messages)


@pytest.mark.parametrize("pattern", ["0" * 80 + "1" * 60, "1" * 30 + "0" * 80 + "1" * 30])
def test_draws_of_what_underflowed(backend, pattern):
    case = two_chains(backend, pattern, np.log([0.3, 0.7]))
    problem = make_problem([case] * 40, backend.dtype)
    steps = len(case.obs)
    draws = backend.ffbs(problem, torch.rand(50, 40 * steps, dtype=torch.float64)).view(-1, steps)
    assert (draws == draws[:, :1]).all()
    last = closed_form(case, torch.float64)[1][-1]
    assert_allclose(last, [0.3, 0.7], rtol=1e-6)
    assert p_value([(int(d),) for d in draws[:, 0]], {(0,): 0.3, (1,): 0.7}) > MIN_P_VALUE


@pytest.mark.parametrize("scale", [10, 40, 200, 1000])
@pytest.mark.parametrize("kind", ["plain", "zeros", "evidence"])
def test_rugged_potentials(backend, scale, kind):
    """Random logits of every size: whatever underflows, the answer stays."""
    rng = np.random.default_rng(scale)
    cases = []
    for seed in range(12):
        options = {"evidence": {"evidence": "states"}}.get(kind, {})
        zeros = 0.6 if kind == "zeros" else 0.0
        case = Case.of(random_instance((2, 1, 2), 6, 1, seed, zeros=zeros, missing=2, **options))
        table = case.log_transition * scale
        evidence = case.log_evidence
        if evidence is not None:
            evidence = evidence * scale * rng.random()
        cases.append(
            Case(
                case.num_clones,
                case.log_initial * scale,
                table,
                case.actions,
                case.obs,
                evidence,
            )
        )
    check(backend, cases, range(12), range(12))


def test_weights_beside_tiny_overlaps(backend):
    """Weights multiply counts, not intermediate numbers that might overflow."""
    floor = 0.5 * math.log(torch.finfo(backend.dtype).tiny)
    case = forced(floor + 0.1)
    problem = make_problem([case], backend.dtype)
    (exact,) = enumerated([case], backend.dtype)
    weight = 1e6
    found = backend.forward_backward(
        problem, torch.full((1,), weight, dtype=backend.dtype), marginals=True
    )
    table = block_counts_as_table(problem.layout, found.block_counts, 1)
    tolerance = TOL["exact"][backend.dtype]
    assert_allclose(table / weight, [exact.transition_counts], **tolerance)
    assert_allclose(by_state(problem.layout, found.marginals) / weight, exact.smooth, **tolerance)


@pytest.mark.parametrize("first_impossible", [0, 1, 3])
def test_impossible_jobs_are_zero_and_leave_the_others_alone(backend, first_impossible):
    possible = [Case.of(random_instance((2, 1), steps, seed=steps)) for steps in (5, 1, 3)]
    table = possible[0].log_transition.copy()
    initial = possible[0].log_initial.copy()
    obs = np.array([0, 0, 0, 0, 0])
    if first_impossible == 0:
        initial[0:2] = NEVER
    else:
        table[0, 0:2, 2] = NEVER
        obs[first_impossible] = 1
    broken = Case((2, 1), initial, table, np.zeros(4, int), obs)
    cases = [possible[0], broken, *possible[1:]]
    problem, exact = check(backend, cases, range(4), range(4))
    assert exact[1].first_impossible == first_impossible
    found = backend.forward(problem)
    assert found.log_z[1] == NEVER
    counts = backend.forward_backward(problem)
    assert not counts.block_counts[1].any()
    assert not counts.initial_counts[1].any()
    weights = torch.tensor([1.0, math.inf, 1.0, 1.0], dtype=backend.dtype)
    again = backend.forward_backward(problem, weights)
    assert torch.isfinite(again.block_counts).all()
    backend.ffbs(problem, torch.rand(2, problem.layout.num_steps, dtype=torch.float64))


def test_sampling_paths_of_tiny_probability(backend):
    case = forced(-690.0)
    problem = make_problem([case], backend.dtype)
    (exact,) = enumerated([case], backend.dtype)
    draws = backend.ffbs(problem, torch.rand(4000, 4, dtype=torch.float64))
    paths = map(tuple, (draws.numpy() + problem.layout.support_start).tolist())
    assert p_value(paths, exact.paths) > MIN_P_VALUE


@pytest.mark.parametrize("steps", [1, 2, 5_000])
def test_one_clone_a_symbol_is_a_markov_chain(backend, steps):
    """Everything is known in closed form; the third symbol is never seen."""
    rng = np.random.default_rng(steps)
    steps = min(steps, 5_000 if backend.on_arrays else 500)
    table = reference.log_normalise(rng.normal(size=(2, 3, 3)) * 3)
    obs, actions = rng.integers(2, size=steps), rng.integers(2, size=steps - 1)
    case = Case((1, 1, 1), np.log([0.2, 0.3, 0.5]), table, actions, obs)
    problem = make_problem([case], backend.dtype)
    terms = np.append(case.log_initial[obs[0]], table[actions, obs[:-1], obs[1:]])
    tolerance = TOL["exact"][backend.dtype]
    found = backend.forward(problem)
    assert_allclose(found.log_steps, terms, **tolerance)
    assert_allclose(found.messages, np.ones(steps), **tolerance)
    counts = backend.forward_backward(problem)
    assert_allclose(counts.log_z, [math.fsum(terms)], **tolerance)
    uses = np.zeros((1, 2, 3, 3))
    np.add.at(uses[0], (actions, obs[:-1], obs[1:]), 1)
    found = block_counts_as_table(problem.layout, counts.block_counts, 2)
    assert_allclose(found, uses, **tolerance)
    assert_allclose(counts.initial_counts, np.eye(3)[obs[:1]], **tolerance)
    path = backend.viterbi(problem)
    assert_allclose(path.score, [math.fsum(terms)], **tolerance)
    draws = backend.ffbs(problem, torch.rand(2, steps, dtype=torch.float64))
    assert not path.states.any() and not draws.any()


def test_ten_thousand_steps(backend):
    case = Case.of(random_instance((3, 2), 10_000, 2, seed=5))
    potentials = (case.num_clones, case.log_initial, case.log_transition, case.actions, case.obs)
    log_steps, filtered = reference.log_forward(*potentials)
    problem = make_problem([case], backend.dtype)
    found = backend.forward(problem)
    tolerance = TOL["exact"][backend.dtype]
    assert_allclose(found.log_steps, log_steps, **tolerance)
    assert_allclose(found.log_z, [math.fsum(log_steps)], rtol=1e-7)
    assert_allclose(by_state(problem.layout, found.messages), filtered, **tolerance)


def test_counts_and_paths_of_thousands_of_steps(backend):
    steps = 10_000 if backend.on_arrays else 1_000
    case = Case.of(random_instance((3, 2), steps, 2, seed=6))
    problem = make_problem([case], backend.dtype)
    counts = backend.forward_backward(problem).block_counts
    assert_allclose(counts.double().sum(), steps - 1, rtol=1e-6)
    score = reference.max_marginals(
        case.num_clones, case.log_initial, case.log_transition, case.actions, case.obs
    ).max()
    assert_allclose(backend.viterbi(problem).score, [score], **TOL["exact"][backend.dtype])
