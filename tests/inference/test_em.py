"""Baum-Welch against enumeration, and what a fit promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import TOL
from fits import CLONES, MODELS, instances_of, interrupted_at, ragged_batch, touches_nothing
from numpy.testing import assert_allclose
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.environments import Room, published_room
from chmm_pyro.inference.em import fit_em, log_prior
from chmm_pyro.inference.result import bits_per_step, log_likelihood
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns

EXACT = TOL["exact"][torch.float64]

every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def dense_probs(model):
    table = model.transition.table()
    table = table.dense() if hasattr(table, "dense") else table
    return table.values.detach().exp().numpy()


def fit(model, batch, **options):
    return fit_em(model, batch, **{"num_iters": 1, "progress": False, **options})


@every_model
@pytest.mark.parametrize("pseudocount", [0.0, 0.3])
@pytest.mark.parametrize("missing", [0, 1])
def test_one_update_normalises_the_enumerated_counts(make, pseudocount, missing, kernel):
    model = make(seed=1, dtype=torch.float64)
    batch = ragged_batch(missing=missing)
    exact = [one.exact() for one in instances_of(model, batch)]
    result = fit(model, batch, pseudocount=pseudocount)

    counts = sum(one.transition_counts for one in exact)
    if hasattr(model.transition, "columns"):
        counts = lumped_evenly(model.transition.columns, counts)
    counts = counts + pseudocount
    axes = (0, 2) if model.action_model == "joint" else (2,)
    total = counts.sum(axes, keepdims=True)
    full = np.broadcast_to(total > 0, counts.shape)
    with np.errstate(invalid="ignore"):
        expected = np.where(full, counts / total, 1 / np.prod([counts.shape[a] for a in axes]))
    if pseudocount or not hasattr(model.transition, "columns"):
        # Without counts, rows of blocks are uniform over what is stored, not over states.
        assert_allclose(dense_probs(result.model), expected, **EXACT)
    else:
        assert_allclose(dense_probs(result.model)[full], expected[full], **EXACT)

    log_prob = sum(one.log_prob for one in exact)
    if model.action_logits is not None:
        starts = sum(one.initial_counts for one in exact) + pseudocount
        found = result.model.initial.logits.softmax(-1).detach()
        assert_allclose(found, starts / starts.sum(), **EXACT)
        actions = np.concatenate([one.actions for one in batch])
        shares = np.bincount(actions, minlength=2) / len(actions)
        assert_allclose(result.model.action_logits.softmax(-1).detach(), shares, **EXACT)
        log_prob -= len(actions) * math.log(2)
    assert_allclose(result.log_prob_history, [log_prob], **EXACT)


def lumped_evenly(columns, counts):
    """Counts of the successors that share a lump, spread evenly over them."""
    counts = counts.copy()
    for action, old in np.ndindex(*counts.shape[:2]):
        column = columns.column[action, CLONES.symbol_of_state[old]]
        lump = column == columns.width - 1
        if lump.any():
            counts[action, old, lump] = counts[action, old, lump].mean()
    return counts


@every_model
@pytest.mark.parametrize("pseudocount", [0.0, 0.05])
def test_objective_climbs_and_histories_are_before_each_update(make, pseudocount):
    model = make(seed=2, dtype=torch.float64)
    batch = ragged_batch([30, 20, 1, 10], missing=3)
    result = fit(model, batch, num_iters=40, pseudocount=pseudocount)
    assert result.num_iters == len(result.objective_history) == 40 and not result.converged
    assert (np.diff(result.objective_history) >= -1e-9).all()
    assert result.objective_history[-1] > result.objective_history[0] + 1
    assert_allclose(result.log_prob_history[0], log_likelihood(model, batch), **EXACT)
    prior = float(torch.as_tensor(log_prior(model, pseudocount)).detach())
    assert_allclose(result.objective_history[0], result.log_prob_history[0] + prior, **EXACT)
    again = fit(fit(model, batch, num_iters=5, pseudocount=pseudocount).model, batch)
    assert_allclose(again.log_prob_history[0], result.log_prob_history[5], **EXACT)
    assert_allclose(result.bits_per_step, bits_per_step(result.model, batch), **EXACT)
    per_step = math.log(2) * batch.num_observed
    assert_allclose(result.bits_per_step_history, -result.log_prob_history / per_step, **EXACT)


def test_with_a_pseudocount_the_likelihood_may_fall():
    batch = ragged_batch([12, 8])
    start = fit(PointCHMM(CLONES, 2, dtype=torch.float64), batch, num_iters=60).model
    crisp = PointCHMM.from_counts(CLONES, dense_probs(start), pseudocount=1e-9)
    result = fit(crisp, batch, num_iters=10, pseudocount=0.5)
    assert (np.diff(result.log_prob_history) < 0).any()
    assert (np.diff(result.objective_history) >= -1e-9).all()


@pytest.mark.parametrize("name", ["softmax", "joint", "everything learned"])
def test_a_fixed_point_has_no_gradient(name):
    model = MODELS[name](seed=3, dtype=torch.float64)
    batch = ragged_batch([30, 20], missing=2)
    # A large pseudocount makes the climb short.
    model = fit(model, batch, num_iters=120, pseudocount=1.0).model
    with torch.enable_grad():
        objective = model.distribution(batch).log_prob(batch.obs).sum() + log_prior(model, 1.0)
        objective.backward()
    for parameter in model.parameters():
        assert parameter.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zeros_and_frozen_entries_stay(dtype):
    allowed = torch.rand(2, 6, 6) < 0.7
    allowed[..., torch.arange(6), torch.arange(6)] = True
    frozen = torch.full((2, 6, 6), math.nan, dtype=dtype)
    frozen[0, 0] = 0.0
    frozen[0, 0, 2:4] = torch.tensor([0.25, 0.75])
    frozen[1, 3, 1] = 0.125
    allowed[0, 0, 2:4] = allowed[1, 3, 1] = True
    model = PointCHMM(CLONES, 2, allowed=allowed, frozen=frozen, dtype=dtype)
    walk = ragged_batch([40, 20])
    batch = SequenceBatch.from_arrays(
        model.distribution(walk).sample(), walk.actions, lengths=walk.lengths
    )
    for pseudocount in (0.0, 0.1):
        probs = dense_probs(fit(model, batch, num_iters=5, pseudocount=pseudocount).model)
        kept = ~frozen.isnan().numpy()
        assert_allclose(probs[kept], frozen.numpy()[kept], **TOL["exact"][dtype])
        assert not probs[~allowed.numpy() & ~kept].any()
        assert_allclose(probs.sum(-1), np.ones((2, 6)), **TOL["exact"][dtype])


def test_unvisited_rows_are_uniform_and_counted():
    batch = SequenceBatch.from_arrays([0, 1, 0, 1, 0], [0, 1, 0, 1], num_actions=2)
    result = fit(PointCHMM(CLONES, 2, dtype=torch.float64), batch)
    # Action 0 leaves symbol 0 only, action 1 leaves symbol 1 only; nothing leaves symbol 2.
    assert result.settings["num_unvisited_rows"] == (3 + 1) + (2 + 1)
    probs = dense_probs(result.model)
    assert_allclose(probs[0, 2:], np.full((4, 6), 1 / 6), **EXACT)
    assert not np.isclose(probs[0, :2], 1 / 6).all()
    assert fit(PointCHMM(CLONES, 2), batch, pseudocount=0.1).settings["num_unvisited_rows"] == 0


def test_tolerance_stops_and_says_so():
    model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([50, 30])
    result = fit(model, batch, num_iters=500, pseudocount=0.5, tol=1e-3)
    assert result.converged and not result.interrupted
    assert result.num_iters == len(result.objective_history) - 1 < 100
    gains = np.diff(result.objective_history) / (math.log(2) * batch.num_observed)
    assert gains[-1] < 1e-3 and (gains[:-1] >= 1e-3).all()
    # The model is the one that the last entry describes.
    assert_allclose(log_likelihood(result.model, batch), result.log_prob_history[-1], **EXACT)
    without = fit(model, batch, num_iters=result.num_iters + 3, pseudocount=0.5)
    assert not without.converged and without.num_iters == result.num_iters + 3


def test_an_interrupt_keeps_what_was_done(monkeypatch):
    model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([50, 30])
    expected = fit(model, batch, num_iters=3)
    counts = interrupted_at(4, CloneHMM.expected_counts)
    monkeypatch.setattr(CloneHMM, "expected_counts", counts)
    with touches_nothing(model):
        result = fit(model, batch, num_iters=100)
    assert result.interrupted and not result.converged
    assert result.num_iters == 3
    assert_allclose(result.objective_history[:3], expected.objective_history, **EXACT)
    assert_close(result.model.state_dict(), expected.model.state_dict(), **EXACT)


@every_model
def test_leaves_everything_else_alone(make):
    model, batch = make(), ragged_batch()
    flat = batch.flat_obs.clone()
    with touches_nothing(model):
        result = fit(model, batch, num_iters=3, pseudocount=0.1, seed=5)
    assert result.data is batch and torch.equal(batch.flat_obs, flat)
    assert result.guide is None and result.draws is None and result.num_warmup is None
    assert result.settings["method"] == "em" and result.settings["pseudocount"] == 0.1
    assert result.settings["action_model"] == model.action_model
    assert len(result.seconds_history) == 3 and result.wall_time > 0


def test_a_single_sequence_and_a_batch_of_it_fit_alike():
    batch = ragged_batch([30])
    model = PointCHMM(CLONES, 2, dtype=torch.float64)
    one, many = fit(model, batch[0], num_iters=5), fit(model, batch, num_iters=5)
    assert_allclose(one.objective_history, many.objective_history, **EXACT)


def test_sequences_of_one_step_leave_learned_actions_alone():
    batch = SequenceBatch.from_arrays([[0], [1]], num_actions=2)
    model = PointCHMM(CLONES, 2, learn_actions=True, learn_initial=True, dtype=torch.float64)
    result = fit(model, batch, num_iters=2)
    assert_allclose(result.model.action_logits.softmax(-1).detach(), [0.5, 0.5], **EXACT)


@every_model
def test_a_longer_step_extrapolates_the_update(make):
    model, batch = make(seed=1, dtype=torch.float64), ragged_batch()
    before, plain = dense_probs(model), dense_probs(fit(model, batch, pseudocount=0.3).model)
    longer = fit(model, batch, pseudocount=0.3, step=1.5)
    if hasattr(model.transition, "columns"):
        return  # its rows are lumped; the next test covers it
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(before > 0, plain**1.5 * before**-0.5, 0.0)
    axes = (0, 2) if model.action_model == "joint" else (2,)
    expected /= expected.sum(axes, keepdims=True)
    assert_allclose(dense_probs(longer.model), expected, **EXACT)


def test_longer_steps_need_fewer_updates():
    batch = published_room("aliased_4x4").random_walk(2_000, seed=0).batch()
    model = PointCHMM(CloneStructure([8] * 4), 4, dtype=torch.float64)
    plain = fit(model, batch, num_iters=40, pseudocount=0.01).objective_history
    longer = fit(model, batch, num_iters=25, pseudocount=0.01, step=1.9).objective_history
    assert longer[-1] > plain[-1]


@pytest.mark.parametrize("step", [0.0, 2.0, float("nan")])
def test_a_step_that_diverges_is_refused(step):
    with pytest.raises(ValueError, match=f"step = {step}, expected 0 < step < 2"):
        fit(PointCHMM(CLONES, 2), ragged_batch(), step=step)


def test_a_falling_objective_is_announced(monkeypatch):
    model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([20])

    def wrong(self, counts, pseudocount):
        with torch.no_grad():
            self.logits.copy_(torch.randn_like(self.logits))
        return 0

    monkeypatch.setattr(type(model.transition), "maximise", wrong)
    with pytest.warns(RuntimeWarning, match="the EM objective fell from"):
        fit(model, batch, num_iters=30)


def test_a_start_that_explains_nothing_is_refused():
    batch = SequenceBatch.from_arrays([0, 1, 2], num_actions=2)
    model = PointCHMM.from_counts(CLONES, torch.eye(6).expand(2, 6, 6))
    with pytest.raises(ValueError, match="impossible under the model at iteration 0"):
        fit(model, batch)


def test_gradients_climb_the_same_objective():
    """SVI from EM's fixed point does not leave it."""
    batch = ragged_batch([30, 20])
    model = PointCHMM(CLONES, 2, dtype=torch.float64)
    climbed = fit(model, batch, num_iters=120, pseudocount=1.0)
    options = {"pseudocount": 1.0, "num_iters": 20, "learning_rate": 0.01, "progress": False}
    result = fit_svi(climbed.model, batch, **options)
    best = climbed.objective_history[-1]
    assert_allclose(result.objective_history[0], best, rtol=1e-8)
    assert (result.objective_history <= best + 1e-6).all()


@pytest.mark.parametrize("parameterization", ["softmax", "blocks"])
def test_smoothing_a_crisp_model_climbs(parameterization):
    """Zeros of the start that are not structural have prior zero; they are not a lost optimum."""
    batch = Room([[0, 1, 0], [1, 2, 1], [0, 1, 3]]).random_walk(600, seed=1).batch()
    clones = CloneStructure([6, 6, 3, 3])
    columns = BlockColumns.from_batch(clones, 4, batch) if parameterization == "blocks" else None
    start = PointCHMM(
        clones, 4, parameterization=parameterization, columns=columns, dtype=torch.float64
    )
    soft = fit_em(start, batch, num_iters=30, progress=False).model
    crisp = fit_viterbi(soft, batch, progress=False).model
    smooth = fit_em(crisp, batch, num_iters=50, pseudocount=0.01, tol=1e-6, progress=False)
    assert smooth.objective_history[0] == -np.inf
    assert smooth.num_iters > 1 and (np.diff(smooth.objective_history) >= -1e-9).all()
    hard = fit_viterbi(crisp, batch, num_iters=50, pseudocount=0.01, progress=False)
    assert hard.objective_history[0] == -np.inf and hard.num_iters > 1


def test_an_update_that_lost_is_no_optimum():
    """A long step may lose; plain EM follows, and only its gain can end the fit."""
    batch = Room([[0, 1, 0], [1, 2, 1], [0, 1, 3]]).random_walk(600, seed=1).batch()
    start = PointCHMM(CloneStructure([6, 6, 3, 3]), 4, seed=0, dtype=torch.float64)
    options = {"num_iters": 300, "pseudocount": 1e-3, "tol": 1e-7, "progress": False}
    plain = fit_em(start, batch, **options)
    longer = fit_em(start, batch, step=1.9, **options)
    assert longer.objective_history[-1] > plain.objective_history[-1] - 10
