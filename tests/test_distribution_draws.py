"""What CloneHMM draws and predicts, against enumeration."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from conftest import TOL
from goodness_of_fit import MIN_P_VALUE, p_value
from instances import random_instance
from numpy.testing import assert_allclose
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.logits import log_normalise
from chmm_pyro.tables import BlockColumns, BlockTable, DenseTable, StepTable

EXACT = TOL["exact"][torch.float64]
NUM_DRAWS = 5000


def build(case, dtype=torch.float64, **changes):
    return CloneHMM(case.clones, **{**case.arguments(dtype), **changes})


def as_tuples(draws):
    return map(tuple, draws.reshape(-1, draws.shape[-1]).tolist())


def prior_of_symbols(hmm, symbols, steps):
    """Probability of every symbol sequence, by ``log_prob``, which enumeration has checked."""
    everything = torch.cartesian_prod(*[torch.arange(symbols)] * steps).view(-1, steps)
    probs = hmm.log_prob(everything).exp().tolist()
    return dict(zip(map(tuple, everything.tolist()), probs, strict=True))


class TestPosterior:
    @pytest.mark.parametrize("kind", [{}, {"missing": 1, "evidence": "states", "zeros": 0.3}])
    def test_draws_fit_enumeration(self, kind, kernel, dtype):
        case = random_instance((2, 3, 1), 4, 2, seed=3, **kind)
        draws = build(case, dtype).sample_posterior(case.obs, NUM_DRAWS)
        assert draws.shape == (NUM_DRAWS, 4)
        assert p_value(as_tuples(draws), case.exact().paths) > MIN_P_VALUE

    def test_seeded_by_torch_pyro_or_a_generator(self, kernel):
        case = random_instance((3, 2), 6, 1, seed=1, missing=2)
        hmm = build(case)
        draws = []
        for _ in range(2):
            pyro.set_rng_seed(7)
            draws.append(hmm.sample_posterior(case.obs, 20))
            generator = torch.Generator().manual_seed(8)
            draws.append(hmm.sample_posterior(case.obs, 20, generator=generator))
        assert torch.equal(draws[0], draws[2]) and torch.equal(draws[1], draws[3])
        assert not torch.equal(draws[0], draws[1])
        before = torch.random.get_rng_state()
        hmm.sample_posterior(case.obs, 20, generator=torch.Generator().manual_seed(8))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_no_draw_beats_the_mode(self, kernel):
        case = random_instance((3, 2), 6, 1, seed=2)
        hmm = build(case)
        best = hmm.posterior_mode(case.obs).score
        for path in hmm.sample_posterior(case.obs, 50).numpy():
            score = case.log_initial[path[0]]
            score += case.log_transition[case.actions, path[:-1], path[1:]].sum()
            assert score <= best + 1e-12

    def test_batches_and_padding(self, kernel):
        obs = torch.tensor([[0, 1, 0], [1, 0, 0]])
        hmm = CloneHMM(
            CloneStructure([2, 2]),
            torch.zeros(3, 1, 4),
            torch.zeros(1, 4, 4),
            torch.zeros(2, 2, dtype=torch.long),
            lengths=[3, 2],
        )
        draws = hmm.sample_posterior(obs, 11)
        assert draws.shape == (11, 3, 2, 3)
        assert (draws[..., 1, 2] == -1).all()
        assert torch.equal(draws[..., 0, :] // 2, obs[0].expand(11, 3, 3))
        assert len(draws[..., 0, :].reshape(-1, 3).unique(dim=0)) == 8

    def test_paths_come_with_the_log_probability(self, kernel):
        case = random_instance((3, 2), 6, 2, seed=1, missing=2)
        hmm = build(case, action_logits=torch.tensor([0.3, -0.4], dtype=torch.float64))
        seeds = torch.Generator().manual_seed(8), torch.Generator().manual_seed(8)
        paths, log_prob = hmm.draw_paths(case.obs, 20, generator=seeds[0])
        assert torch.equal(paths, hmm.sample_posterior(case.obs, 20, generator=seeds[1]))
        actions = torch.tensor([0.3, -0.4]).double().log_softmax(-1)[case.actions].sum()
        assert_close(float(log_prob), case.exact().log_prob + float(actions), **EXACT)

    def test_refuses_no_samples(self):
        case = random_instance((2, 1), 3)
        with pytest.raises(ValueError, match="num_samples = 0, expected at least 1"):
            build(case).sample_posterior(case.obs, 0)


class TestMode:
    def test_ties_without_and_with_a_generator(self, kernel):
        hmm = CloneHMM(
            CloneStructure([3]), torch.zeros(3), torch.zeros(1, 3, 3), torch.zeros(300, 2).long()
        )
        obs = torch.zeros(300, 3, dtype=torch.long)
        assert not hmm.posterior_mode(obs).states.any()
        paths = hmm.posterior_mode(obs, generator=torch.Generator().manual_seed(1))
        assert len(paths.states.unique(dim=0)) == 27
        assert_close(paths.score, torch.full((300,), -3 * math.log(3)).double())
        again = hmm.posterior_mode(obs, generator=torch.Generator().manual_seed(1))
        assert torch.equal(paths.states, again.states)
        other = hmm.posterior_mode(obs, generator=torch.Generator().manual_seed(2))
        assert not torch.equal(paths.states, other.states)


class TestSample:
    def test_symbols_fit_their_probability(self, dtype):
        case = random_instance((2, 3, 1), 4, 2, seed=5)
        hmm = build(case, dtype)
        draws = hmm.sample((NUM_DRAWS,))
        assert draws.shape == (NUM_DRAWS, 4) and draws.dtype == torch.int64
        assert p_value(as_tuples(draws), prior_of_symbols(build(case), 3, 4)) > MIN_P_VALUE

    def test_first_symbol(self):
        case = random_instance((2, 3, 1), 3, 2, seed=6)
        hmm = build(case)
        draws = hmm.sample((NUM_DRAWS,), first_symbol=1)
        prior = prior_of_symbols(hmm, 3, 3)
        own = {path: p for path, p in prior.items() if path[0] == 1}
        total = sum(own.values())
        assert p_value(as_tuples(draws), {x: p / total for x, p in own.items()}) > MIN_P_VALUE

    def test_first_symbol_of_each_member(self):
        case = random_instance((2, 3, 1), 3, 2, seed=7)
        hmm = build(case).expand((3,))
        draws = hmm.sample((50,), first_symbol=torch.tensor([2, 0, 1]))
        assert torch.equal(draws[..., 0], torch.tensor([2, 0, 1]).expand(50, 3))

    def test_parameters_of_their_own(self):
        cases = [random_instance((2, 1), 3, 2, seed=k) for k in (8, 9)]
        stacked = {
            name: torch.stack([case.arguments()[name] for case in cases])
            for name in ("initial_logits", "transition_logits", "actions")
        }
        hmm = CloneHMM(cases[0].clones, **stacked)
        draws = hmm.sample((NUM_DRAWS,))
        assert draws.shape == (NUM_DRAWS, 2, 3)
        for b, case in enumerate(cases):
            prior = prior_of_symbols(build(case), 2, 3)
            assert p_value(as_tuples(draws[:, b]), prior) > MIN_P_VALUE

    def test_joint_models_are_driven_by_the_actions(self):
        """Given actions, ``z'`` has ``p(z' | z, a)``: the actions say nothing about ``z``."""
        case = random_instance((2, 1), 3, 2, seed=10, action_model="joint")
        driven = replace(case, transition_logits=case.log_transition, action_model="conditional")
        prior = prior_of_symbols(build(driven), 2, 3)
        assert p_value(as_tuples(build(case).sample((NUM_DRAWS,))), prior) > MIN_P_VALUE

    def test_lengths(self):
        hmm = CloneHMM(
            CloneStructure([1, 1]),
            torch.tensor([-math.inf, 0.0]),
            torch.tensor([[[-math.inf, 0.0], [-math.inf, 0.0]]]),
            torch.full((2, 3), 0).index_fill(1, torch.tensor([2]), 77),
            lengths=[3, 1],
        )
        assert hmm.sample().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]

    def test_seeded(self):
        hmm = build(random_instance((3, 2), 30, 1))
        draws = []
        for seed in (1, 1, 2):
            pyro.set_rng_seed(seed)
            draws.append(hmm.sample())
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])

    @pytest.mark.parametrize("storage", ["blocks", "dense"])
    def test_tables_of_every_storage(self, storage):
        clones = CloneStructure([2, 1])
        table = block_table(clones)
        table = table.dense() if storage == "dense" else table
        hmm = CloneHMM(clones, torch.zeros(3).double(), table, [1, 0])
        assert p_value(as_tuples(hmm.sample((2000,))), prior_of_symbols(hmm, 2, 3)) > MIN_P_VALUE

    @pytest.mark.parametrize(
        ("changes", "arguments", "message"),
        [
            ({"log_evidence": torch.zeros(3, 2)}, {}, "sample was called.*log_evidence"),
            ({"actions": torch.tensor([0, -1])}, {}, r"actions\[1\] = -1, expected an action in 0"),
            ({"actions": torch.tensor([2, 0])}, {}, r"actions\[0\] = 2, expected an action in 0"),
            ({}, {"first_symbol": 2}, r"first_symbol = 2 has probability zero, expected"),
            ({}, {"first_symbol": -1}, r"first_symbol = -1 has probability zero, expected"),
            (
                {"transition_logits": StepTable(CloneStructure([2, 1]), torch.zeros(2, 3, 3))},
                {},
                "StepTable holds only the steps of its data, expected.*DenseTable",
            ),
        ],
    )
    def test_refused(self, changes, arguments, message):
        case = random_instance((2, 1), 3, 2)
        with pytest.raises(ValueError, match=message):
            build(case, torch.float32, **changes).sample(**arguments)

    def test_actions_that_a_joint_model_cannot_take(self):
        logits = torch.zeros(2, 3, 3)
        logits[1] = -math.inf
        hmm = CloneHMM(CloneStructure([2, 1]), torch.zeros(3), logits, [0, 1], action_model="joint")
        with pytest.raises(ValueError, match=r"actions\[..., 1\] has probability zero.*expected"):
            hmm.sample()
        with pytest.raises(ValueError, match=r"future_actions\[..., 0\] has probability zero"):
            CloneHMM(
                CloneStructure([2, 1]), torch.zeros(3), logits, [0], action_model="joint"
            ).predict([0, 0], [1])


def block_table(clones, batch=()):
    columns = BlockColumns(clones, 2, np.array([(0, 0, 1), (1, 1, 0), (1, 0, 0)]))
    logits = torch.randn(*batch, 2, clones.num_states, columns.width, dtype=torch.float64)
    logits = logits.masked_fill(~columns.exists(), -math.inf)
    return BlockTable(columns, log_normalise(logits))


class TestPredict:
    @pytest.mark.parametrize("kind", [{}, {"missing": 2}, {"evidence": "states", "zeros": 0.3}])
    @pytest.mark.parametrize("action_model", ["conditional", "joint"])
    @pytest.mark.parametrize("steps", [1, 3])
    def test_against_enumeration(self, kind, action_model, steps, dtype):
        kind = {**kind, "missing": min(kind.get("missing", 0), steps)}
        case = random_instance((2, 3, 1), steps, 2, seed=11, action_model=action_model, **kind)
        future = [1, 0, 0]
        found = build(case, dtype).predict(case.obs, future)
        assert found.shape == (3, 3)
        assert_allclose(found, case.predict(future), **TOL["exact"][dtype])

    def test_one_clone_per_symbol_is_a_power_of_the_table(self):
        case = random_instance((1, 1, 1), 4, 1, seed=12)
        table = np.exp(case.log_transition[0])
        found = build(case).predict(case.obs, [0] * 4)
        expected = [np.linalg.matrix_power(table, k)[case.obs[-1]] for k in range(1, 5)]
        assert_allclose(found, expected, **EXACT)

    def test_ragged_batch_with_parameters_of_their_own(self):
        cases = [random_instance((2, 1), steps, 2, seed=steps) for steps in (4, 2)]
        obs = torch.zeros(2, 4, dtype=torch.long)
        actions = torch.zeros(2, 3, dtype=torch.long)
        for row, case in enumerate(cases):
            size = len(case.obs)
            obs[row, :size] = torch.tensor(case.obs)
            actions[row, : size - 1] = torch.tensor(case.actions)
        names = ("initial_logits", "transition_logits")
        stacked = {n: torch.stack([case.arguments()[n] for case in cases]) for n in names}
        hmm = CloneHMM(cases[0].clones, actions=actions, lengths=[4, 2], **stacked)
        future = torch.tensor([[1, 0], [0, 1]])
        found = hmm.predict(obs, future)
        for row, case in enumerate(cases):
            assert_allclose(found[row], case.predict(future[row]), **EXACT)
        shared = hmm.predict(obs, [1, 0])
        assert_close(shared[0], found[0], **EXACT)

    def test_many_plans_for_one_sequence(self):
        case = random_instance((2, 3, 1), 3, 2, seed=13)
        plans = torch.cartesian_prod(*[torch.arange(2)] * 3)
        found = build(case).predict(case.obs, plans)
        assert found.shape == (8, 3, 3)
        for row, plan in zip(found, plans, strict=True):
            assert_allclose(row, case.predict(plan), **EXACT)

    def test_no_future(self):
        case = random_instance((2, 1), 3, 2)
        future = torch.zeros(0, dtype=torch.long)
        assert build(case).predict(case.obs, future).shape == (0, 2)

    @pytest.mark.parametrize("batch", [(), (3,)])
    def test_blocks_predict_like_their_dense_form(self, batch):
        clones = CloneStructure([2, 1])
        table = block_table(clones, batch)
        initial = torch.zeros(3, dtype=torch.float64)
        blocks, dense = (CloneHMM(clones, initial, t, [0]) for t in (table, table.dense()))
        assert isinstance(table.dense(), DenseTable)
        assert_close(blocks.predict([0, 1], [1, 0]), dense.predict([0, 1], [1, 0]), **EXACT)

    def test_differentiable(self):
        case = random_instance((2, 1), 3, 2, seed=14)
        leaf = case.arguments(requires_grad=True)["transition_logits"]

        def predicted(logits):
            return build(case, transition_logits=logits).predict(case.obs, [1, 0])

        assert torch.autograd.gradcheck(predicted, leaf)

    @pytest.mark.parametrize("action", [-1, 2])
    def test_refuses_actions_out_of_range(self, action):
        case = random_instance((2, 1), 3, 2)
        message = rf"future_actions\[1\] = {action}, expected an action in 0 .. 1; "
        with pytest.raises(ValueError, match=message):
            build(case).predict(case.obs, [0, action])
