"""Parameterisations: the tables they give, their M-steps, and zeros that stay zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import TOL
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.parameters import (
    BlockTransition,
    CountTransition,
    InitialDistribution,
    SoftmaxTransition,
    finite_sum,
    make_transition,
    normalised_counts,
)
from chmm_pyro.tables import BlockColumns

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 1])
AXES = {"conditional": (-1,), "joint": (0, -1)}

modes = pytest.mark.parametrize("action_model", AXES)


def positive(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1


def columns():
    # Symbol 0 leads to both symbols under action 0, symbol 1 to symbol 0 under action 1.
    return BlockColumns(CLONES, 2, np.array([(0, 0, 0), (0, 0, 1), (1, 1, 0)]))


MAKERS = {
    "softmax": lambda mode: SoftmaxTransition(
        CLONES, 2, seed=3, action_model=mode, dtype=torch.float64
    ),
    "counts": lambda mode: CountTransition(CLONES, positive(2, 3, 3), action_model=mode),
    "blocks": lambda mode: BlockTransition(
        columns(), seed=3, action_model=mode, dtype=torch.float64
    ),
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class TestNormalisedCounts:
    @modes
    def test_rows_sum_to_one(self, action_model):
        probs, unvisited = normalised_counts(positive(2, 3, 3), 0.5, action_model)
        total = probs.sum(AXES[action_model])
        assert_close(total, torch.ones_like(total), **EXACT)
        assert unvisited == 0

    def test_pseudocount_is_added_before(self):
        counts = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
        probs, _ = normalised_counts(counts, 1.0, "conditional")
        expected = torch.tensor([[[4 / 5, 1 / 5], [1 / 2, 1 / 2]]], dtype=torch.float64)
        assert_close(probs, expected, **EXACT)

    @modes
    def test_rows_without_counts_are_uniform_over_what_is_allowed(self, action_model):
        counts = positive(2, 3, 3)
        counts[:, 1] = 0.0
        allowed = torch.ones(2, 3, 3, dtype=torch.bool)
        allowed[0, 1, 2] = False
        probs, unvisited = normalised_counts(counts, 0.0, action_model, allowed)
        if action_model == "conditional":
            assert unvisited == 2
            assert_close(probs[0, 1], torch.tensor([0.5, 0.5, 0.0]).double(), **EXACT)
        else:
            assert unvisited == 1
            assert_close(probs[:, 1], allowed[:, 1].double() / 5, **EXACT)

    def test_what_is_not_allowed_gets_nothing(self):
        allowed = torch.rand(2, 3, 3) < 0.7
        allowed[..., 0] = True
        probs, _ = normalised_counts(positive(2, 3, 3), 2.0, "conditional", allowed)
        assert torch.equal(probs > 0, allowed)


def weighted_log(transition, counts, pseudocount):
    """What an M-step maximises: expected log-probabilities plus the prior."""
    values = transition.table().values
    return finite_sum(torch.where(counts > 0, counts * values, 0.0)) + (
        pseudocount * transition.sum_log()
    )


class TestEveryTransition:
    @every_kind
    @modes
    def test_rows_sum_to_one(self, make, action_model):
        transition = make(action_model)
        table = transition.table()
        probs = (table.dense() if hasattr(table, "dense") else table).values.exp()
        total = probs.sum((-1,) if action_model == "conditional" else (-3, -1))
        assert_close(total, torch.ones_like(total), **EXACT)
        assert table.action_model == transition.action_model == action_model

    @every_kind
    @modes
    @pytest.mark.parametrize("pseudocount", [0.0, 0.7])
    def test_m_step_is_the_maximum(self, make, action_model, pseudocount):
        transition = make(action_model)
        shape = transition.table().values.shape
        exists = getattr(transition, "allowed", None)
        counts = positive(*shape, seed=4) * (1.0 if exists is None else exists)
        assert transition.maximise(counts, pseudocount) == 0
        best = weighted_log(transition, counts, pseudocount)
        parameter = next(transition.parameters())
        (slope,) = torch.autograd.grad(best, parameter)
        assert slope.abs().max() < 1e-9 * counts.sum()
        with torch.no_grad():
            kept = parameter.clone()
            for seed in range(5):
                parameter.copy_(kept * (1 + 0.1 * (positive(*shape, seed=seed) - 0.6)))
                assert weighted_log(transition, counts, pseudocount) <= best + 1e-12

    @every_kind
    @modes
    def test_m_step_of_counts_with_empty_rows(self, make, action_model):
        transition = make(action_model)
        shape = transition.table().values.shape
        unvisited = transition.maximise(torch.zeros(shape, dtype=torch.float64), 0.0)
        assert unvisited == (6 if action_model == "conditional" else 3)
        values = transition.table().values
        assert not values.isnan().any()
        finite = values[torch.isfinite(values)]
        if action_model == "conditional" and not isinstance(transition, BlockTransition):
            assert_close(finite, torch.full_like(finite, -math.log(3)), **EXACT)

    @every_kind
    def test_zeros_of_the_m_step_have_no_gradient_and_stay(self, make):
        transition = make("conditional")
        shape = transition.table().values.shape
        exists = getattr(transition, "allowed", None)
        counts = positive(*shape) * (1.0 if exists is None else exists)
        counts[0, 0, 1] = 0.0
        transition.maximise(counts, 0.0)
        optimizer = torch.optim.AdamW(transition.parameters(), lr=0.1, weight_decay=0.1)
        weights = positive(*shape, seed=8)
        for _ in range(3):
            optimizer.zero_grad()
            values = transition.table().values
            loss = -(weights * values.exp()).square().sum()
            loss.backward()
            assert all(torch.isfinite(p.grad).all() for p in transition.parameters())
            optimizer.step()
        values = transition.table().values
        assert values[0, 0, 1] == -math.inf and not values.isnan().any()
        total = values.exp().sum(-1)
        assert_close(total, torch.ones_like(total), **EXACT)

    @every_kind
    def test_sum_log_is_that_of_the_dense_table(self, make):
        transition = make("conditional")
        table = transition.table()
        dense = table.dense() if hasattr(table, "dense") else table
        assert_close(transition.sum_log(), dense.values.sum(), **EXACT)

    @pytest.mark.parametrize("name", MAKERS)
    def test_seeds(self, name):
        def table(seed, dtype=torch.float64):
            transition = make_transition(
                name,
                CLONES,
                2,
                seed=seed,
                action_model="conditional",
                dtype=dtype,
                columns=columns(),
            )
            return transition.table().values.detach()

        assert torch.equal(table(1), table(1)) and not torch.equal(table(1), table(2))
        # Both precisions start from the same model.
        assert_close(table(1, torch.float32).double(), table(1), **TOL["exact"][torch.float32])

    @every_kind
    def test_state_dictionaries_restore(self, make):
        transition, other = make("conditional"), make("conditional")
        counts = positive(*transition.table().values.shape, seed=9)
        transition.maximise(counts, 0.1)
        other.load_state_dict(transition.state_dict())
        assert torch.equal(other.table().values, transition.table().values)


class TestSoftmax:
    def test_structural_zeros(self):
        allowed = torch.ones(2, 3, 3, dtype=torch.bool)
        allowed[0, 1, 0] = allowed[1, 2, 1] = False
        transition = SoftmaxTransition(CLONES, 2, allowed=allowed, dtype=torch.float64)

        def check():
            probs = transition.table().values.exp()
            assert torch.equal(probs > 0, allowed)
            assert_close(probs.sum(-1), torch.ones(2, 3).double(), **EXACT)

        check()
        transition.maximise(torch.ones(2, 3, 3, dtype=torch.float64), 0.5)
        check()
        transition.table().values.exp().square().sum().backward()
        grad = transition.logits.grad
        assert torch.isfinite(grad).all() and not grad[~allowed].any()

    @pytest.fixture
    def frozen(self):
        probs = torch.full((1, 3, 3), math.nan, dtype=torch.float64)
        probs[0, 0, 0] = 0.25
        probs[0, 1] = torch.tensor([0.0, 0.1, 0.9], dtype=torch.float64)
        return probs

    def test_frozen_probabilities_leave_the_rest_to_the_others(self, frozen):
        transition = SoftmaxTransition(CLONES, 1, frozen=frozen, dtype=torch.float64)
        kept = ~frozen.isnan()

        def check():
            values = transition.table().values
            assert torch.equal(values[kept], frozen[kept].log())
            probs = values.exp()
            assert_close(probs.sum(-1), torch.ones(1, 3).double(), **EXACT)
            return probs

        check()
        transition.maximise(torch.tensor([[[9.0, 3.0, 1.0]] * 3], dtype=torch.float64), 0.0)
        probs = check()
        assert_close(probs[0, 0], torch.tensor([0.25, 0.75 * 3 / 4, 0.75 / 4]).double(), **EXACT)
        assert_close(probs[0, 2], torch.tensor([9.0, 3.0, 1.0]).double() / 13, **EXACT)
        values = transition.table().values
        finite_sum(values * positive(1, 3, 3)).backward()
        grad = transition.logits.grad
        assert torch.isfinite(grad).all() and not grad[kept].any() and grad[~kept].any()

    def test_frozen_rows_are_not_unvisited(self, frozen):
        transition = SoftmaxTransition(CLONES, 1, frozen=frozen, dtype=torch.float64)
        counts = torch.ones(1, 3, 3, dtype=torch.float64)
        assert transition.maximise(counts, 0.0) == 0

    def test_what_is_not_allowed_stays_zero_beside_rounded_frozen_probabilities(self):
        """Ten frozen float32 tenths do not sum to one exactly."""
        clones = CloneStructure([11])
        frozen = torch.full((1, 11, 11), math.nan)
        frozen[0, 0, :10] = 0.1
        allowed = torch.ones(1, 11, 11, dtype=torch.bool)
        allowed[0, 0, 10] = False
        frozen[0, 1, :10] = 0.1 - 1e-8
        allowed[0, 1, 10] = False
        transition = SoftmaxTransition(clones, 1, allowed=allowed, frozen=frozen)
        values = transition.table().values
        assert values[0, 0, 10] == values[0, 1, 10] == -math.inf

    def test_masks_and_frozen_together(self, frozen):
        allowed = torch.ones(1, 3, 3, dtype=torch.bool)
        allowed[0, 0, 1] = False
        transition = SoftmaxTransition(
            CLONES, 1, allowed=allowed, frozen=frozen, dtype=torch.float64
        )
        probs = transition.table().values.exp()
        assert_close(probs[0, 0], torch.tensor([0.25, 0.0, 0.75]).double(), **EXACT)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"allowed": torch.ones(1, 3, 2)},
                r"allowed has shape \(1, 3, 2\), expected \(1, 3, 3\)",
            ),
            ({"frozen": torch.ones(3, 3)}, r"frozen has shape \(3, 3\), expected \(1, 3, 3\)"),
            ({"allowed": torch.zeros(1, 3, 3)}, r"\[0, 0\] is -inf throughout"),
            ({"frozen": torch.full((1, 3, 3), 0.5)}, r"frozen\[0, 0\] sums to 1.5, expected"),
            ({"frozen": torch.full((1, 3, 3), 0.2)}, r"frozen\[0, 0\] sums to 0.6, expected"),
            ({"frozen": torch.full((1, 3, 3), -0.2)}, r"frozen\[0, 0\] .*expected probabilities"),
            (
                {"frozen": torch.full((1, 3, 3), math.nan), "action_model": "joint"},
                "expected 'conditional'",
            ),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            SoftmaxTransition(CLONES, 1, **options)


class TestCounts:
    @modes
    def test_table_is_the_normalised_counts(self, action_model):
        counts = positive(2, 3, 3) * 50
        counts[0, 1, 2] = 0.0
        transition = CountTransition(CLONES, counts, action_model=action_model)
        assert_close(transition.counts, counts, **EXACT)
        expected = counts / counts.sum(AXES[action_model], keepdim=True)
        assert_close(transition.table().values.exp(), expected, **EXACT)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e4])
    def test_counts_of_every_size_keep_their_digits(self, dtype, size):
        counts = (positive(1, 3, 3) * size).to(dtype)
        found = CountTransition(CLONES, counts)
        assert_close(found.counts, counts, rtol=200 * torch.finfo(dtype).eps, atol=0.0)
        values = found.table().values
        values.exp().square().sum().backward()
        assert torch.isfinite(found.free_counts.grad).all()

    def test_m_step_keeps_the_counts_themselves(self):
        transition = CountTransition(CLONES, positive(2, 3, 3))
        counts = positive(2, 3, 3, seed=5) * 9
        transition.maximise(counts, 0.5)
        assert_close(transition.counts, counts + 0.5, **EXACT)

    def test_refused(self):
        counts = positive(1, 3, 3)
        counts[0, 1, 2] = -1.0
        with pytest.raises(ValueError, match=r"counts\[0, 1, 2\] = -1.0, expected.*mark"):
            CountTransition(CLONES, counts)


class TestBlocks:
    def test_m_step_is_that_of_the_dense_table(self):
        """The lump's successors are unseen, so they share its pseudocounts evenly."""
        transition = MAKERS["blocks"]("conditional")
        dense = SoftmaxTransition(CLONES, 2, dtype=torch.float64)
        table = transition.table()
        stored = torch.tensor(columns().column < table.columns.width - 1)
        stored = stored[:, torch.tensor(CLONES.symbol_of_state)]
        seen = positive(2, 3, 3, seed=6) * stored
        index = torch.tensor(columns().column)[:, torch.tensor(CLONES.symbol_of_state)]
        counts = torch.zeros_like(table.values).scatter_add(-1, index, seen)
        transition.maximise(counts, 0.3)
        dense.maximise(seen, 0.3)
        assert_close(transition.table().dense().values, dense.table().values, **EXACT)
        assert_close(transition.sum_log(), dense.sum_log(), **EXACT)

    def test_rows_without_counts_are_uniform_over_successors(self):
        transition = MAKERS["blocks"]("conditional")
        assert transition.maximise(torch.zeros_like(transition.logits), 0.0) == 6
        uniform = torch.full((2, 3, 3), 1 / 3, dtype=torch.float64)
        assert_close(transition.table().dense().values.exp(), uniform, **EXACT)

    def test_entropy_is_that_of_the_dense_table(self):
        transition = MAKERS["blocks"]("conditional")
        log_table = transition.table().dense().values
        assert_close(transition.entropy(), -(log_table.exp() * log_table).sum(), **EXACT)

    def test_impossible_entries_are_left_out_of_the_sum(self):
        transition = MAKERS["blocks"]("conditional")
        counts = torch.zeros_like(transition.logits)
        counts[..., 0] = 1.0
        transition.maximise(counts, 0.0)
        dense = transition.table().dense().values
        assert torch.isneginf(dense).any()
        assert_close(transition.sum_log(), finite_sum(dense), **EXACT)

    def test_memory_grows_with_the_pairs_seen(self):
        clones = CloneStructure([10] * 50)
        ring = BlockColumns(clones, 1, np.array([(0, v, (v + 1) % 50) for v in range(50)]))
        assert BlockTransition(ring).logits.shape == (1, 500, 11)


class TestInitial:
    def test_uniform_unless_learned(self):
        fixed = InitialDistribution(CLONES)
        assert list(fixed.parameters()) == []
        assert_close(fixed.logits.softmax(-1), torch.full((3,), 1 / 3))
        assert len(list(InitialDistribution(CLONES, learn=True).parameters())) == 1

    def test_m_step(self):
        initial = InitialDistribution(CLONES, learn=True, dtype=torch.float64)
        initial.maximise(torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64), 0.5)
        expected = torch.tensor([3.5, 0.5, 1.5], dtype=torch.float64) / 5.5
        assert_close(initial.logits.softmax(-1), expected, **EXACT)

    def test_zeros_stay_zero(self):
        initial = InitialDistribution(CLONES, learn=True, dtype=torch.float64)
        counts = torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)
        initial.maximise(counts, 0.0)
        initial.maximise(counts, 1.0)
        expected = torch.tensor([4.0, 0.0, 2.0], dtype=torch.float64) / 6
        assert_close(initial.logits.softmax(-1), expected, **EXACT)


def test_finite_sum_ignores_zeros_in_value_and_gradient():
    values = torch.tensor([-1.0, -math.inf, -2.0], requires_grad=True)
    total = finite_sum(values)
    total.backward()
    assert total == -3.0 and values.grad.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameterization": "sigmoid"}, "'sigmoid', expected 'softmax', 'counts' or 'blocks'"),
        (
            {"parameterization": "counts", "frozen": torch.full((1, 3, 3), torch.nan)},
            "frozen was given with parameterization='counts', expected 'softmax'",
        ),
        (
            {"parameterization": "blocks", "allowed": torch.ones(1, 3, 3)},
            "allowed was given with parameterization='blocks', expected 'softmax'",
        ),
        (
            {
                "parameterization": "softmax",
                "allowed": torch.tensor([[[1, 0, 1]] * 3]),
                "frozen": torch.tensor([[[torch.nan, 0.5, torch.nan]] * 3]),
            },
            r"frozen\[0, 0, 1\] = 0.5 where allowed is False, expected 0 or NaN",
        ),
        ({"parameterization": "blocks"}, r"columns is None, expected.*BlockColumns.from_batch"),
    ],
)
def test_unknown_parameterizations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_transition(
            clones=CLONES,
            num_actions=1,
            seed=0,
            action_model="conditional",
            dtype=torch.float32,
            **options,
        )
