"""The autograd boundary: gradients of every order, and the choice of a kernel."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from backends import Case, block_counts_as_table, by_state, enumerated, make_problem
from conftest import TOL
from instances import random_instance
from numpy.testing import assert_allclose
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.testing import assert_close

from chmm_pyro import messages
from chmm_pyro._kernels.layout import build_layout
from chmm_pyro.clones import MISSING, CloneStructure

pytestmark = pytest.mark.usefixtures("kernel")

KINDS = {
    "plain": {},
    "missing": {"missing": 1},
    "evidence": {"evidence": "states", "missing": 1},
    "zeros": {"zeros": 0.4, "evidence": "states"},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def ragged_problem(kind, dtype=torch.float64):
    """Three sequences; the first and the last share initial vector and blocks."""
    cases = [
        Case.of(random_instance((2, 1), steps, 2, seed=k, **kind))
        for k, steps in enumerate([4, 2, 3])
    ]
    rows = [0, 1, 0]
    return make_problem(cases, dtype, rows, rows), enumerated(cases, dtype, rows, rows)


def with_leaves(problem):
    """The problem on fresh leaves, and these."""
    leaves = [None if x is None else x.clone().requires_grad_() for x in problem[2:]]
    return problem._replace(**dict(zip(problem._fields[2:], leaves, strict=True))), leaves


@every_kind
def test_gradient_is_the_weighted_expected_counts(kind, dtype):
    problem, exact = ragged_problem(kind, dtype)
    posed, (initial, blocks, evidence) = with_leaves(problem)
    log_z = messages.log_marginal(posed)
    assert log_z.dtype == torch.float64
    tolerance = TOL["exact"][dtype]
    assert_allclose(log_z.detach(), [one.log_prob for one in exact], **tolerance)
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    (weights * log_z).sum().backward()
    assert initial.grad.dtype == blocks.grad.dtype == dtype

    def expected(name):
        first, second, third = (
            getattr(one, name) * float(w) for one, w in zip(exact, weights, strict=True)
        )
        return np.stack([first + third, second])

    assert_allclose(initial.grad, expected("initial_counts"), **tolerance)
    counts = block_counts_as_table(problem.layout, blocks.grad, 2)
    assert_allclose(counts, expected("transition_counts"), **tolerance)
    if evidence is not None:
        smooth = [one.smooth * float(w) for one, w in zip(exact, weights, strict=True)]
        found = by_state(problem.layout, evidence.grad)
        assert_allclose(found, np.concatenate(smooth), **tolerance)


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradient_beside_a_job_that_underflows_slowly(dtype, create_graph):
    """Its second state is lost early and is almost all of the posterior in the end."""
    lost = {torch.float64: -760.0, torch.float32: -110.0}[dtype]
    table = np.array([[[0.3 * lost, -math.inf], [-math.inf, -0.1]]])
    hard = Case((2,), np.array([0.0, lost]), table, np.zeros(5, int), np.zeros(6, int))
    easy = Case.of(random_instance((2,), 4, seed=1))
    evidence = np.zeros((6, 2))
    evidence[0, 1], evidence[3] = 0.1 * lost, [0.2 * lost, 0.0]
    hard, easy = replace(hard, log_evidence=evidence), replace(easy, log_evidence=evidence[1:5])
    cases, rows = [easy, hard, easy], [0, 1, 0]
    problem, exact = make_problem(cases, dtype, rows, rows), enumerated(cases, dtype, rows, rows)
    assert exact[1].smooth[0, 1] > 0.99
    posed, (initial, blocks, soft) = with_leaves(problem)
    log_z = messages.log_marginal(posed)
    tolerance = {**TOL["exact"][dtype], "atol": 8 * abs(lost) * torch.finfo(dtype).eps}
    assert_allclose(log_z.detach(), [one.log_prob for one in exact], **tolerance)
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    found = grad((weights * log_z).sum(), (initial, blocks, soft), create_graph=create_graph)
    first, second = 3.5 * exact[0].initial_counts, -2.0 * exact[1].initial_counts
    assert_allclose(found[0].detach(), [first, second], **tolerance)
    counts = block_counts_as_table(problem.layout, found[1].detach(), 1)
    first, second = 3.5 * exact[0].transition_counts, -2.0 * exact[1].transition_counts
    assert_allclose(counts, [first, second], **tolerance)
    smooth = [one.smooth * float(w) for one, w in zip(exact, weights, strict=True)]
    marginals = by_state(problem.layout, found[2].detach())
    assert_allclose(marginals, np.concatenate(smooth), **tolerance)


def on_finite_entries(problem):
    """A function of the finite potentials alone, and these as leaves."""
    potentials = [x for x in problem[2:] if x is not None]
    masks = [torch.isfinite(x) for x in potentials]

    def rebuilt(*finite):
        full = [
            torch.full(mask.shape, -math.inf, dtype=x.dtype).masked_scatter(mask, x)
            for mask, x in zip(masks, finite, strict=True)
        ]
        return problem._replace(**dict(zip(problem._fields[2:], full, strict=False)))

    leaves = [x[mask].requires_grad_() for x, mask in zip(potentials, masks, strict=True)]
    return rebuilt, leaves


@every_kind
def test_first_and_second_derivatives(kind):
    problem, _ = ragged_problem(kind)
    rebuilt, leaves = on_finite_entries(problem)

    def log_z(*finite):
        return messages.log_marginal(rebuilt(*finite))

    assert gradcheck(log_z, leaves)
    assert gradgradcheck(log_z, leaves)


@every_kind
def test_graph_of_the_gradient_changes_no_value(kind, dtype):
    problem, _ = ragged_problem(kind, dtype)
    rebuilt, leaves = on_finite_entries(problem)
    plain = grad(messages.log_marginal(rebuilt(*leaves)).sum(), leaves)
    graph = grad(messages.log_marginal(rebuilt(*leaves)).sum(), leaves, create_graph=True)
    for one, other in zip(plain, graph, strict=True):
        assert_close(one, other, **TOL["exact"][dtype])
        assert other.requires_grad and not one.requires_grad


def test_hessian_is_that_of_the_sum_over_paths():
    instance = random_instance((2, 1), 4, 1, seed=2)
    problem = make_problem([Case.of(instance)], torch.float64)
    _, old, new = problem.layout.entry_states
    arguments = instance.arguments()
    logits = arguments.pop("transition_logits")

    def ours(logits):
        blocks = logits.log_softmax(-1)[0, old, new][None]
        return messages.log_marginal(problem._replace(log_blocks=blocks)).sum()

    def enumerated_value(logits):
        return instance.log_prob_torch({**arguments, "transition_logits": logits})

    found = torch.autograd.functional.hessian(ours, logits)
    expected = torch.autograd.functional.hessian(enumerated_value, logits)
    assert_close(found, expected, **TOL["gradient"][torch.float64])


def test_only_what_needs_a_gradient_gets_one():
    problem, exact = ragged_problem({"evidence": "states"})
    for name in ("log_initial", "log_blocks", "log_evidence"):
        leaf = getattr(problem, name).clone().requires_grad_()
        log_z = messages.log_marginal(problem._replace(**{name: leaf}))
        assert_allclose(log_z.detach(), [one.log_prob for one in exact], rtol=1e-9)
        (once,) = grad(log_z.sum(), leaf, retain_graph=True)
        (twice,) = grad(log_z.sum(), leaf, retain_graph=True)
        assert once.any() and torch.equal(once, twice)
    assert not messages.log_marginal(problem).requires_grad
    with torch.no_grad():
        assert not messages.log_marginal(with_leaves(problem)[0]).requires_grad


def test_filtered_messages_are_differentiable():
    problem, _ = ragged_problem({"evidence": "states"})
    rebuilt, leaves = on_finite_entries(problem)

    def messages_and_terms(*finite):
        found = messages.forward(rebuilt(*finite))
        return found.messages, found.log_steps

    assert gradcheck(messages_and_terms, leaves)
    plain = messages.forward(problem)
    for one, other in zip(messages.forward(rebuilt(*leaves)), plain, strict=True):
        assert_close(one.detach(), other, **TOL["exact"][torch.float64])


def test_filtered_messages_are_twice_differentiable():
    problem = make_problem([Case.of(random_instance((2, 1), 3, 1, seed=3))], torch.float64)
    rebuilt, leaves = on_finite_entries(problem)

    def terms(*finite):
        return messages.forward(rebuilt(*finite)).log_steps

    assert gradgradcheck(terms, leaves, fast_mode=True)


def test_values_of_a_filter_record_no_tape(monkeypatch, kernel):
    """Beliefs of a fitted model are asked for without gradients, and must be as fast."""
    posed, leaves = with_leaves(ragged_problem({})[0])
    found = messages.forward(posed)
    calls = []
    forward = messages.torch_any.forward
    monkeypatch.setattr(messages.torch_any, "forward", lambda *a: calls.append(a) or forward(*a))
    messages.forward(posed)
    assert len(calls) == (kernel == "torch")
    (found.log_steps.sum()).backward()
    assert len(calls) == 1 + (kernel == "torch") and leaves[1].grad.any()


@pytest.mark.parametrize("differentiate", [False, True])
def test_nothing_waits_for_the_garbage_collector(differentiate):
    """Messages of a long sequence are large: what holds them must not be a reference cycle."""
    posed, _ = with_leaves(ragged_problem({"evidence": "states"})[0])
    problem = posed._replace(jobs=replace(posed.jobs))
    jobs = weakref.ref(problem.jobs)
    gc.disable()
    try:
        log_z = messages.log_marginal(problem)
        if differentiate:
            log_z.sum().backward()
        del problem, log_z
        assert jobs() is None
    finally:
        gc.enable()


@every_kind
@pytest.mark.parametrize("create_graph", [False, True])
def test_impossible_jobs_have_gradient_zero(kind, create_graph):
    problem, _ = ragged_problem(kind)
    posed, leaves = with_leaves(problem)
    second = (problem.jobs.blocks == 1)[problem.layout.sequence_of_step]
    assert second.sum() == 2
    with torch.no_grad():
        posed.log_initial[1] = -math.inf
    log_z = messages.log_marginal(posed)
    assert log_z[1] == -math.inf and torch.isfinite(log_z[[0, 2]]).all()
    wanted = [x for x in leaves if x is not None]
    found = grad(log_z[1] * 3.0, wanted, create_graph=create_graph)
    assert not any(x.any() for x in found)
    together = grad(messages.log_marginal(posed)[[0, 2]].sum(), wanted)
    assert all(torch.isfinite(x).all() for x in together) and together[1].any()


def test_expected_counts_add_up(dtype):
    problem, _ = ragged_problem({}, dtype)
    counts = messages.expected_counts(problem, marginals=True)
    tolerance = TOL["exact"][dtype]
    assert_allclose(counts.initial_counts.double().sum(1), [2.0, 1.0], **tolerance)
    assert_allclose(counts.block_counts.double().sum(1), [3.0 + 2.0, 1.0], **tolerance)
    assert messages.expected_counts(problem).marginals is None
    dense = by_state(problem.layout, counts.marginals)
    assert_allclose(dense.sum(1), np.ones(9), **tolerance)


def test_kernel_is_chosen_by_device_and_environment(monkeypatch, kernel):
    assert messages.kernel_name(torch.device("cpu")) == kernel
    assert messages.kernel_name(torch.device("cuda")) == "torch"
    monkeypatch.setenv("CHMM_PYRO_KERNEL", "torch")
    assert messages.kernel_name(torch.device("cpu")) == "torch"


def test_one_notice_without_numba(monkeypatch):
    monkeypatch.delenv("CHMM_PYRO_KERNEL", raising=False)
    monkeypatch.setattr(messages, "numba_cpu", None)
    monkeypatch.setattr(messages, "_told", False)
    problem, exact = ragged_problem({})
    with pytest.warns(RuntimeWarning, match="numba is not installed.*Install numba"):
        log_z = messages.log_marginal(problem)
    assert_allclose(log_z, [one.log_prob for one in exact], rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        messages.log_marginal(problem)


@pytest.mark.parametrize("num_tables", [1, 3])
def test_gather_and_scatter_are_adjoint_and_differentiable(num_tables, dtype):
    rng = np.random.default_rng(4)
    obs = np.array([0, 1, MISSING, 2, 0, 1, 0])
    clones = CloneStructure([2, 3, 1])
    layout = build_layout(clones, obs, rng.integers(2, size=7), np.array([5, 2]))
    table = torch.as_tensor(rng.normal(size=(num_tables, 2, 6, 6)), dtype=dtype)
    action, old, new = (torch.as_tensor(x) for x in layout.entry_states)
    blocks = messages.gather(table, layout)
    assert_close(blocks, table[:, action, old, new], rtol=0.0, atol=0.0)
    weights = torch.as_tensor(rng.normal(size=blocks.shape), dtype=dtype)
    added = messages.scatter(weights, layout, 2)
    expected = torch.zeros_like(table)
    for one, own in zip(expected, weights, strict=True):
        one.index_put_((action, old, new), own, accumulate=True)
    assert_close(added, expected, **TOL["exact"][dtype])
    assert_close((added * table).sum(), (weights * blocks).sum(), **TOL["exact"][dtype])
    if dtype == torch.float64:
        table.requires_grad_()
        weights.requires_grad_()
        for check in (gradcheck, gradgradcheck):
            assert check(lambda x: messages.gather(x, layout), (table,))
            assert check(lambda x: messages.scatter(x, layout, 2), (weights,))


def test_gather_takes_tables_that_are_not_contiguous():
    layout = build_layout(
        CloneStructure([2, 1]), np.array([0, 1, 0]), np.zeros(3, int), np.array([3])
    )
    table = torch.randn(1, 1, 3, 3).transpose(-1, -2)
    assert_close(
        messages.gather(table, layout), messages.gather(table.contiguous(), layout), rtol=0, atol=0
    )
