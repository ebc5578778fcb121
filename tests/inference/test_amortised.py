"""The inference network: a bound on the likelihood for every sequence, close after training."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TOL, import_benchmark
from torch.testing import assert_close

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.inference.amortised import AmortisedPathGuide
from chmm_pyro.inference.gumbel import fit_gumbel
from chmm_pyro.inference.path_guide import path_elbo
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.models.relaxed import RelaxedCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES, NUM_ACTIONS = CloneStructure([3, 2, 4]), 2
NETWORK = {"guide_learning_rate": 0.03, "train_model": False, "progress": False}


@pytest.fixture
def study(monkeypatch):
    return import_benchmark(monkeypatch, "gumbel_viterbi")


def gaps(model, guide, batch):
    """``log_prob - ELBO`` of each sequence."""
    with torch.no_grad():
        return model.distribution(batch).log_prob(batch.obs) - path_elbo(model, guide, batch)


@pytest.mark.parametrize("structure", ["markov", "mean_field"])
def test_elbo_is_a_bound_and_training_closes_the_gap(study, structure):
    model, seen, unseen = study.random_walks(16, 16)
    guide = AmortisedPathGuide(model, hidden_size=16, structure=structure, seed=1)
    result = fit_gumbel(model, seen, guide=guide, num_iters=60, entropy_weight=(1, 1), **NETWORK)
    for batch in (seen, unseen):
        before, after = gaps(model, guide, batch), gaps(model, result.guide, batch)
        assert (before > 0).all() and (after > 0).all()
        assert after.mean() < (0.3 if structure == "markov" else 0.8) * before.mean()


@pytest.mark.slow
def test_gap_of_the_trained_network(study):
    gap = {}
    for structure in ("markov", "mean_field"):
        found = study.network(structure, "mean", 1.0, seed=1)
        print(structure, {name: round(value, 4) for name, value in found.items()})
        for name in ("seen", "unseen"):
            gap[structure, name] = found[f"log_prob_{name}"] - found[f"elbo_{name}"]
    assert gap["markov", "seen"] < 0.01  # nats a step, of 0.93
    assert gap["markov", "unseen"] < 0.02
    assert gap["markov", "seen"] < 0.2 * gap["mean_field", "seen"]


@pytest.mark.slow
@pytest.mark.parametrize("relaxation", ["gumbel", "straight_through"])
def test_amortised_gumbel_paths_of_several_sequences(study, relaxation):
    found = study.network("markov", relaxation, 0.0, seed=1)
    print(relaxation, {name: round(value, 4) for name, value in found.items()})
    assert found["missed_seen"] < 0.01 and found["missed_unseen"] < 0.03


def test_elbo_of_a_draw_is_unbiased(study):
    model, seen, _ = study.random_walks(16)
    guide = AmortisedPathGuide(model, hidden_size=8, relaxation="straight_through")
    batch = seen.select([0, 1])
    chain, joint = guide.path(batch), model.joint(batch)
    torch.manual_seed(1)
    with torch.no_grad():
        draws = chain.sample((1000,))
        terms = joint.log_prob(draws) - chain.log_prob(draws)
        error = terms.std(0) / math.sqrt(len(terms))
        assert ((terms.mean(0) - path_elbo(model, guide, batch)).abs() < 5 * error).all()


def ragged():
    return SequenceBatch.from_arrays(
        [[0, 1, 2, 0], [2, MISSING], [1]], [[0, 1, 1], [1], []], num_actions=2
    )


@pytest.mark.parametrize("structure", ["markov", "mean_field"])
def test_ragged_batches_are_their_sequences(structure):
    model = RelaxedCHMM(CLONES, NUM_ACTIONS, dtype=torch.float64)
    guide = AmortisedPathGuide(model, hidden_size=8, structure=structure)
    found = path_elbo(model, guide, ragged())
    alone = torch.stack([path_elbo(model, guide, one) for one in ragged()])
    assert_close(found, alone, **EXACT)
    states = guide.mode(model, ragged()).states
    for row, one in zip(states, ragged(), strict=True):
        assert torch.equal(row[: one.num_steps], guide.mode(model, one).states)
        assert (row[one.num_steps :] == MISSING).all()


def test_every_weight_gets_a_gradient():
    model = RelaxedCHMM(CLONES, NUM_ACTIONS)
    for structure in ("markov", "mean_field"):
        guide = AmortisedPathGuide(model, hidden_size=8, structure=structure)
        path_elbo(model, guide, ragged()).sum().backward()
        for name, weight in guide.named_parameters():
            assert weight.grad is not None and (weight.grad != 0).any(), name


def test_the_network_looks_at_the_whole_sequence():
    model = RelaxedCHMM(CLONES, NUM_ACTIONS)
    guide = AmortisedPathGuide(model, hidden_size=8)
    base = SequenceBatch.from_arrays([0, 1, 0, 2], [0, 0, 0], num_actions=2)
    first = guide.path(base).log_conditional[1]
    for obs, actions in (([0, 1, 0, 1], [0, 0, 0]), ([0, 1, 0, 2], [0, 0, 1])):
        other = SequenceBatch.from_arrays(obs, actions, num_actions=2)
        assert not torch.equal(guide.path(other).log_conditional[1], first)


def test_zeros_of_the_model_stay_zeros():
    torch.manual_seed(0)
    allowed = torch.rand(NUM_ACTIONS, 9, 9) < 0.6
    allowed |= torch.eye(9, dtype=torch.bool)
    model = RelaxedCHMM(CLONES, NUM_ACTIONS, allowed=allowed)
    guide = AmortisedPathGuide(model, hidden_size=8)
    batch = SequenceBatch.from_arrays([[0, 0, 2, 2], [1, 1]], [[0, 1, 1], [1]], num_actions=2)
    elbo = path_elbo(model, guide, batch)
    assert elbo.isfinite().all()
    assert (elbo < model.distribution(batch).log_prob(batch.obs)).all()
    elbo.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in guide.parameters())
    with pytest.raises(ValueError, match="use structure='markov'"):
        AmortisedPathGuide(model, structure="mean_field").path(batch)


def test_minibatches_train_it(study):
    model, seen, _ = study.random_walks(16)
    guide = AmortisedPathGuide(model, hidden_size=8)
    result = fit_svi(
        model, seen, guide=guide, batch_size=4, num_iters=40, learning_rate=0.03, progress=False
    )
    assert (
        path_elbo(result.model, result.guide, seen).mean()
        > path_elbo(model, guide, seen).mean() + 1
    )


def test_it_takes_any_point_model_and_leaves_randomness_alone():
    state = torch.random.get_rng_state()
    point = PointCHMM(CLONES, NUM_ACTIONS, dtype=torch.float64)
    guide = AmortisedPathGuide(point, hidden_size=4, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = AmortisedPathGuide(point, hidden_size=4, seed=5)
    assert_close(path_elbo(point, guide, ragged()), path_elbo(point, again, ragged()), **EXACT)
    other = AmortisedPathGuide(point, hidden_size=4, seed=6)
    assert not torch.equal(path_elbo(point, guide, ragged()), path_elbo(point, other, ragged()))
    with pytest.raises(ValueError, match="hidden_size = 0"):
        AmortisedPathGuide(point, hidden_size=0)
