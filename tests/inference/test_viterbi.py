"""Viterbi training against enumeration, and what a fit promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import TOL
from fits import CLONES, MODELS, instances_of, interrupted_at, ragged_batch, touches_nothing
from numpy.testing import assert_allclose
from torch.testing import assert_close

from chmm_pyro.distribution import CloneHMM
from chmm_pyro.inference.em import fit_em, log_prior
from chmm_pyro.inference.result import bits_per_step
from chmm_pyro.inference.viterbi import fit_viterbi, path_counts
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]

every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def fit(model, batch, **options):
    return fit_viterbi(model, batch, **{"num_iters": 1, "progress": False, **options})


def counts_along(paths, instances):
    counts = np.zeros((2, 6, 6))
    for path, one in zip(paths, instances, strict=True):
        np.add.at(counts, (one.actions, path[:-1], path[1:]), 1.0)
    return counts


@pytest.mark.parametrize("name", ["softmax", "counts", "joint", "everything learned"])
@pytest.mark.parametrize("missing", [0, 1])
def test_one_update_counts_the_best_paths(name, missing, kernel):
    model = MODELS[name](seed=1, dtype=torch.float64)
    batch = ragged_batch(missing=missing)
    instances = instances_of(model, batch)
    exact = [one.exact() for one in instances]
    paths = [one.lowest_path for one in exact]
    result = fit(model, batch, pseudocount=0.2)

    counts = counts_along(paths, instances) + 0.2
    axes = (0, 2) if name == "joint" else (2,)
    found = result.model.transition.table().values.detach().exp()
    assert_allclose(found, counts / counts.sum(axes, keepdims=True), **EXACT)
    score = sum(one.best_score for one in exact)
    if name == "everything learned":
        starts = np.bincount([path[0] for path in paths], minlength=6) + 0.2
        found = result.model.initial.logits.softmax(-1).detach()
        assert_allclose(found, starts / starts.sum(), **EXACT)
        actions = np.concatenate([one.actions for one in batch])
        found = result.model.action_logits.softmax(-1).detach()
        assert_allclose(found, np.bincount(actions, minlength=2) / len(actions), **EXACT)
        score -= len(actions) * math.log(2)
    prior = float(torch.as_tensor(log_prior(model, 0.2)).detach())
    assert_allclose(result.objective_history, [score + prior], **EXACT)


@every_model
@pytest.mark.parametrize("pseudocount", [0.0, 0.1])
def test_objective_climbs_to_a_fixed_point(make, pseudocount):
    batch = ragged_batch([40, 25, 1, 10], missing=2)
    soft = fit_em(make(seed=2, dtype=torch.float64), batch, num_iters=5, progress=False).model
    result = fit(soft, batch, num_iters=60, pseudocount=pseudocount)
    assert result.converged and result.num_iters < 60
    assert len(result.objective_history) == result.num_iters + 1
    assert (np.diff(result.objective_history) >= -1e-9).all()
    assert result.objective_history[-1] > result.objective_history[0]
    again = fit(result.model, batch, num_iters=2, pseudocount=pseudocount)
    assert_allclose(again.objective_history, result.objective_history[-1], **EXACT)


def test_settings_describe_the_returned_model():
    batch = ragged_batch([40, 25, 10])
    result = fit(PointCHMM(CLONES, 2, dtype=torch.float64), batch, num_iters=30)
    path = result.model.distribution(batch).posterior_mode(batch.obs)
    settings = result.settings
    per_step = math.log(2) * batch.num_observed
    expected = -float(path.score.detach().sum()) / per_step
    assert_allclose(settings["viterbi_bits_per_step"], expected, **EXACT)
    assert_allclose(result.bits_per_step, bits_per_step(result.model, batch), **EXACT)
    assert result.bits_per_step <= settings["viterbi_bits_per_step"]
    inside = path.states[path.states >= 0]
    assert settings["num_states_used"] == len(inside.unique())
    assert result.log_prob_history is None and result.bits_per_step_history is None


def test_a_path_is_counted_without_its_padding():
    model = PointCHMM(CLONES, 2, dtype=torch.float64)
    batch = ragged_batch([5, 1, 3])
    hmm = model.distribution(batch)
    states = hmm.posterior_mode(batch.obs).states
    instances = instances_of(model, batch)
    paths = [row[: len(one.obs)].numpy() for row, one in zip(states, instances, strict=True)]
    found = path_counts(states, batch, hmm.table)
    assert np.array_equal(found, counts_along(paths, instances))


def test_seeds_decide_ties():
    """A uniform table: every path of an update ties."""
    model = PointCHMM.from_counts(CLONES, torch.ones(2, 6, 6, dtype=torch.float64))
    batch = ragged_batch([20, 20])

    def table(seed):
        return fit(model, batch, seed=seed).model.transition.table().values

    assert torch.equal(table(3), table(3)) and not torch.equal(table(3), table(4))
    lowest = fit(model, batch).settings
    assert lowest["num_states_used"] == 3 and lowest["seed"] is None
    assert fit(model, batch, seed=3).settings["num_states_used"] == 6


def test_visited_rows_are_shares_and_others_uniform():
    batch = SequenceBatch.from_arrays([0, 1, 0, 2, 0], [0] * 4, num_actions=1)
    model = PointCHMM.from_counts(CLONES, torch.ones(1, 6, 6, dtype=torch.float64))
    result = fit(model, batch)
    probs = result.model.transition.table().values.detach().exp()
    assert_allclose(probs[0, 0], [0, 0, 0.5, 0, 0, 0.5], **EXACT)
    assert_allclose(probs[0, 2], [1, 0, 0, 0, 0, 0], **EXACT)
    assert_allclose(probs[0, 1], np.full(6, 1 / 6), **EXACT)
    assert result.settings["num_unvisited_rows"] == 3


def test_an_interrupt_keeps_what_was_done(monkeypatch):
    model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([50, 30])
    expected = fit(model, batch, num_iters=2)
    assert not expected.converged
    decode = interrupted_at(3, CloneHMM.posterior_mode)
    monkeypatch.setattr(CloneHMM, "posterior_mode", decode)
    with touches_nothing(model):
        result = fit(model, batch, num_iters=100)
    assert result.interrupted and result.num_iters == 2
    assert_close(result.model.state_dict(), expected.model.state_dict(), **EXACT)


@every_model
def test_leaves_everything_else_alone(make):
    model, batch = make(), ragged_batch()
    with touches_nothing(model):
        result = fit(model, batch, num_iters=3, pseudocount=0.1, seed=5)
    assert result.data is batch and result.settings["method"] == "viterbi"


def test_a_start_that_explains_nothing_is_refused():
    batch = SequenceBatch.from_arrays([0, 1, 2], num_actions=2)
    model = PointCHMM.from_counts(CLONES, torch.eye(6).expand(2, 6, 6))
    with pytest.raises(ValueError, match="obs is impossible at step 1"):
        fit(model, batch)
