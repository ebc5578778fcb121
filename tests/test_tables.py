"""Tables: what a kernel reads from them and what goes back, whatever their storage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from backends import Case, block_counts_as_table
from conftest import TOL
from instances import random_instance
from numpy.testing import assert_allclose
from torch.testing import assert_close

from chmm_pyro._kernels.layout import build_layout
from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.logits import log_normalise
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns, BlockTable, DenseTable, StepTable

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 3, 1])
OBS = np.array([0, 2, 1, 0, MISSING, 1, 1])
ACTIONS = np.array([1, 0, 0, 1, 1, 0])


def layout_of(obs=OBS, actions=ACTIONS, lengths=None, **options):
    lengths = [len(obs)] if lengths is None else lengths
    return build_layout(CLONES, obs, np.append(actions, 0), np.array(lengths), **options)


def random_logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("action_model", ["conditional", "joint"])
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_log_normalise(action_model, batch):
    logits = random_logits(*batch, 2, 6, 6)
    logits[..., 0, 1, 2] = -math.inf
    found = log_normalise(logits, action_model)
    assert_allclose(found, reference.log_normalise(logits, action_model), **EXACT)
    axes = {"conditional": -1, "joint": (-3, -1)}[action_model]
    total = found.exp().sum(axes)
    assert_close(total, torch.ones_like(total), **EXACT)


class TestDense:
    @pytest.fixture
    def table(self):
        return DenseTable(CLONES, log_normalise(random_logits(2, 6, 6)))

    def test_blocks_are_the_entries_between_supports(self, table):
        layout = layout_of()
        flat = table.blocks(layout).numpy()
        for t, (action, old, new) in enumerate(zip(ACTIONS, OBS, OBS[1:], strict=False)):
            block = layout.block_index[t]
            rows = slice(0, 6) if old == MISSING else CLONES.states(old)
            columns = slice(0, 6) if new == MISSING else CLONES.states(new)
            own = flat[layout.block_start[block] : layout.block_start[block + 1]]
            assert_allclose(own, table.values[action, rows, columns].flatten(), rtol=0)

    def test_counts_are_the_adjoint_of_blocks(self, table):
        check_adjoint(table, layout_of())

    def test_counting_paths(self, table):
        actions, old, new = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 5], [3, 1, 1, 5]])
        counts = table.count(actions, old, new)
        expected = torch.zeros(2, 6, 6, dtype=torch.long)
        expected[0, 2, 3], expected[1, 0, 1], expected[1, 5, 5] = 1, 2, 1
        assert torch.equal(counts, expected)

    def test_propagate(self, table):
        probs = random_logits(4, 6, seed=1).softmax(-1)
        actions = torch.tensor([0, 1, 1, 0])
        found = table.propagate(probs, actions)
        for row, before, action in zip(found, probs, actions, strict=True):
            assert_close(row, before @ table.values[action].exp(), **EXACT)

    def test_looking_ahead_with_parameters_of_their_own(self):
        check_broadcast(DenseTable(CLONES, log_normalise(random_logits(3, 1, 2, 6, 6))))


def check_broadcast(tables):
    """``rows`` and ``propagate`` of tables ``(3, 1)`` beside ``(4,)`` actions."""
    probs = random_logits(3, 4, 6, seed=2).softmax(-1)
    actions, states = torch.tensor([0, 1, 1, 0]), torch.tensor([5, 0, 3, 3])
    moved, rows = tables.propagate(probs, actions), tables.rows(actions, states)
    assert moved.shape == rows.shape == (3, 4, 6)
    assert_close(rows.exp().sum(-1), torch.ones(3, 4).double(), **EXACT)
    dense = getattr(tables, "dense", lambda: tables)().values
    for p in range(3):
        for b in range(4):
            matrix = dense[p, 0, actions[b]]
            assert_close(moved[p, b], probs[p, b] @ matrix.exp(), **EXACT)
            assert_close(rows[p, b], matrix[states[b]], **EXACT)


def check_adjoint(table, layout):
    """``counts`` is the transpose of the linear part of ``blocks``."""
    leaf = table.values.detach().clone().requires_grad_()
    again = type(table)(
        getattr(table, "columns", table.clones),
        leaf,
        *(() if table.per_step else (table.action_model,)),
    )
    weights = random_logits(layout.num_block_entries, seed=3)
    blocks = again.blocks(layout)
    (blocks * weights).sum().backward()
    counts = again.counts(layout, weights[None])
    assert_close(leaf.grad, counts.view_as(leaf), **EXACT)


def observed_triples():
    return [(1, 0, 2), (0, 2, 1), (0, 1, 0), (0, 1, 1), (0, 0, 0), (0, 0, 1), (0, 0, 2)]


def block_table(action_model="conditional", batch=(), seed=0):
    columns = BlockColumns(CLONES, 2, np.array(observed_triples()))
    logits = random_logits(*batch, 2, 6, columns.width, seed=seed)
    logits = logits.masked_fill(~columns.exists(), -math.inf)
    return BlockTable(columns, log_normalise(logits, action_model), action_model)


class TestBlocks:
    def test_columns(self):
        columns = BlockColumns(CLONES, 2, np.array(observed_triples()))
        # Action 0 leads from symbol 0 everywhere: six stored successors, nothing lumped.
        assert columns.width == 7
        assert columns.num_lumped.tolist() == [[0, 1, 3], [5, 6, 6]]
        assert columns.column[0, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert columns.column[0, 1].tolist() == [0, 1, 2, 3, 4, 6]
        assert columns.column[1, 0].tolist() == [6, 6, 6, 6, 6, 0]
        exists = columns.exists()
        assert exists[0, 0].tolist() == [True] * 6 + [False]
        assert exists[1, 1].tolist() == [True] + [False] * 5 + [True]
        assert exists[1, 5].tolist() == [False] * 6 + [True]

    def test_columns_of_a_batch(self):
        batch = SequenceBatch.from_arrays([[0, 2, 1, MISSING, 0], [1, 1]], [[1, 0, 0, 1], [0]])
        columns = BlockColumns.from_batch(CLONES, 2, batch)
        stored = {
            (a, v, int(CLONES.symbol_of_state[s]))
            for a, v, s in zip(*np.nonzero(columns.column < columns.width - 1), strict=True)
        }
        assert stored == {(1, 0, 2), (0, 2, 1), (0, 1, 1)}

    @pytest.mark.parametrize("action_model", ["conditional", "joint"])
    def test_dense_form_is_normalised_with_the_lump_spread_evenly(self, action_model):
        table = block_table(action_model)
        dense = table.dense()
        assert dense.action_model == action_model
        probs = dense.values.exp()
        axes = {"conditional": -1, "joint": (-3, -1)}[action_model]
        total = probs.sum(axes)
        assert_close(total, torch.ones_like(total), **EXACT)
        lump = table.values[1, 0, -1].exp()
        assert_close(probs[1, 0, :5], (lump / 5).expand(5), **EXACT)
        assert_close(probs[1, 0, 5], table.values[1, 0, 0].exp(), **EXACT)

    def test_blocks_are_those_of_the_dense_form(self):
        table, layout = block_table(), layout_of()
        assert_close(table.blocks(layout), table.dense().blocks(layout), **EXACT)
        many = block_table(batch=(2, 3))
        assert_close(many.blocks(layout), many.dense().blocks(layout), **EXACT)

    def test_counts_are_the_adjoint_of_blocks(self):
        check_adjoint(block_table(), layout_of())

    def test_rows_and_propagate_are_those_of_the_dense_form(self):
        table = block_table()
        dense = table.dense()
        actions, states = torch.tensor([0, 1, 1]), torch.tensor([4, 0, 5])
        assert_close(table.rows(actions, states), dense.values[actions, states], **EXACT)
        probs = random_logits(3, 6, seed=4).softmax(-1)
        found, expected = (x.propagate(probs, actions) for x in (table, dense))
        assert_close(found, expected, **EXACT)

    def test_looking_ahead_with_parameters_of_their_own(self):
        check_broadcast(block_table(batch=(3, 1)))

    def test_counting_paths_lumps_what_is_lumped(self):
        table = block_table()
        actions, old, new = torch.tensor([[1, 1, 0], [0, 0, 4], [2, 5, 0]])
        counts = table.count(actions, old, new)
        assert counts.sum() == 3
        assert counts[1, 0, -1] == counts[1, 0, 0] == counts[0, 4, 0] == 1

    @pytest.mark.parametrize("action_model", ["conditional", "joint"])
    def test_value_and_gradient_are_those_of_the_dense_form(self, action_model, kernel):
        initial = random_logits(6, seed=5)
        table = block_table(action_model)
        leaf = table.values.clone().requires_grad_()
        found, dense = (
            CloneHMM(CLONES, initial, each, ACTIONS, action_model=action_model).log_prob(OBS)
            for each in (
                BlockTable(table.columns, leaf, action_model),
                BlockTable(table.columns, leaf, action_model).dense(),
            )
        )
        assert_close(found, dense, **EXACT)
        ours, expected = (torch.autograd.grad(x, leaf)[0] for x in (found, dense))
        assert_close(ours, expected, **EXACT)
        instance = reference.enumerate_paths(
            CLONES.num_clones, initial.log_softmax(-1), table.dense().values, ACTIONS, OBS
        )
        assert_allclose(found.item(), instance.log_prob, **EXACT)


class TestSteps:
    @pytest.fixture
    def case(self):
        return Case.of(random_instance((2, 3, 1), 5, 2, seed=1, missing=[2])).per_step()

    def local(self, case, seed=0):
        """``(T - 1, 6, 6)`` random potentials; what is beyond a support is never read."""
        return random_logits(len(case.obs) - 1, 6, 6, seed=seed)

    def exact(self, case, potentials, log_initial):
        dense = reference.dense_steps(case.num_clones, case.obs, potentials)
        return reference.enumerate_paths(
            case.num_clones, log_initial, dense, np.arange(len(dense)), case.obs
        )

    def test_value_gradient_and_counts(self, case, kernel):
        leaf = self.local(case).requires_grad_()
        hmm = CloneHMM(
            CLONES, torch.tensor(case.log_initial), StepTable(CLONES, leaf), np.zeros(4, int)
        )
        expected = self.exact(case, leaf.detach(), case.log_initial)
        value = hmm.log_prob(case.obs)
        assert_allclose(value.item(), expected.log_prob, **EXACT)
        value.backward()
        dense = reference.dense_steps(case.num_clones, case.obs, leaf.grad)
        found = np.where(np.isinf(dense), 0.0, dense)
        assert_allclose(found, expected.transition_counts, **EXACT)
        assert_allclose(leaf.grad.sum((1, 2)), np.ones(4), **EXACT)
        smooth = hmm.smooth(case.obs)
        assert_close(smooth.transition_counts, leaf.grad, **EXACT)
        assert_allclose(smooth.dense(), expected.smooth, **EXACT)
        assert_close(hmm.expected_counts(case.obs)[2], leaf.grad, **EXACT)
        path = hmm.posterior_mode(case.obs)
        assert tuple(path.states.tolist()) == expected.lowest_path

    def test_ragged_batch_and_leading_parameters(self, kernel):
        """Draws ``(2, 1)`` of potentials broadcast against three ragged sequences."""
        cases = [random_instance((2, 3, 1), t, 1, seed=t, missing=[0]) for t in (4, 1, 3)]
        obs = np.zeros((3, 4), int)
        for row, case in zip(obs, cases, strict=True):
            row[: len(case.obs)] = case.obs
        potentials = random_logits(2, 3, 3, 6, 6, seed=6).requires_grad_()
        initial = random_logits(2, 1, 6, seed=7)
        hmm = CloneHMM(
            CLONES,
            initial,
            StepTable(CLONES, potentials),
            torch.zeros(3, 3, dtype=torch.long),
            lengths=[4, 1, 3],
        )
        assert hmm.batch_shape == (2, 3)
        value = hmm.log_prob(obs)
        value.sum().backward()
        for d in range(2):
            for b, case in enumerate(cases):
                size = len(case.obs)
                own = potentials[d, b, : size - 1].detach()
                expected = self.exact(case, own, initial[d, 0].log_softmax(-1))
                assert_allclose(value[d, b].item(), expected.log_prob, **EXACT)
                assert_allclose(potentials.grad[d, b].sum((1, 2)), np.arange(1, 4) < size, **EXACT)

    def test_one_set_of_blocks_for_many_sequences(self, case):
        potentials = self.local(case)
        obs = np.stack([case.obs, case.obs])
        obs[1, 0] = MISSING
        hmm = CloneHMM(
            CLONES,
            torch.tensor(case.log_initial),
            StepTable(CLONES, potentials),
            torch.zeros(4, dtype=torch.long),
        )
        found = hmm.log_prob(obs)
        for value, row in zip(found, obs, strict=True):
            assert_close(value, hmm.log_prob(row), **EXACT)

    def test_a_single_step_reads_no_potentials(self):
        table = StepTable(CLONES, torch.zeros(0, 6, 6, dtype=torch.float64))
        hmm = CloneHMM(CLONES, random_logits(6), table, torch.zeros(0, dtype=torch.long))
        expected = random_logits(6).softmax(-1)[2:5].sum().log()
        assert_close(hmm.log_prob([1]), expected, **EXACT)

    def test_steps_of_the_dense_table_give_its_counts(self, case):
        layout = layout_of(per_step=True)
        assert layout.num_blocks == len(ACTIONS)
        table = StepTable(CLONES, self.local(Case((2, 3, 1), None, None, ACTIONS, OBS)))
        check_adjoint(table, layout)
        weights = random_logits(1, layout.num_block_entries)
        counts = table.counts(layout, weights)[0, 0]
        dense = reference.dense_steps(CLONES.num_clones, OBS, counts)
        expected = block_counts_as_table(layout, weights, len(ACTIONS), per_step=True)[0]
        assert_allclose(np.where(np.isinf(dense), 0.0, dense), expected, **EXACT)
