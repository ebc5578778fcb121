"""The inference network: a bound on the likelihood for every sequence, close after training."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from conftest import TOL
from torch.testing import assert_close

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.inference.amortised import AmortisedPathGuide
from chmm_pyro.inference.gumbel import fit_gumbel
from chmm_pyro.inference.path_guide import path_elbo
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.models.relaxed import RelaxedCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES, NUM_ACTIONS, STEPS = CloneStructure([3, 2, 4]), 2, 20
NETWORK = {"guide_learning_rate": 0.03, "train_model": False, "progress": False}


@lru_cache
def model_and_data(count=16):
    """A peaked random model and sequences drawn from it: some to train on, 16 unseen."""
    model = RelaxedCHMM(CLONES, NUM_ACTIONS, seed=3)
    with torch.no_grad():
        model.transition.logits.mul_(2)
    sets = []
    for seed, size in enumerate((count, 16)):
        generator = torch.Generator().manual_seed(seed)
        actions = torch.randint(NUM_ACTIONS, (size, STEPS - 1), generator=generator)
        hmm = CloneHMM(CLONES, model.initial.logits, model.transition.table(), actions)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            obs = hmm.sample()
        sets.append(SequenceBatch.from_arrays(obs, actions, num_actions=NUM_ACTIONS))
    return model, *sets


def gaps(model, guide, batch):
    """``log_prob - ELBO`` of each sequence."""
    with torch.no_grad():
        return model.distribution(batch).log_prob(batch.obs) - path_elbo(model, guide, batch)


@pytest.mark.parametrize("structure", ["markov", "mean_field"])
def test_elbo_is_a_bound_and_training_closes_the_gap(structure):
    model, seen, unseen = model_and_data()
    guide = AmortisedPathGuide(model, hidden_size=16, structure=structure, seed=1)
    result = fit_gumbel(model, seen, guide=guide, num_iters=60, entropy_weight=(1, 1), **NETWORK)
    for batch in (seen, unseen):
        before, after = gaps(model, guide, batch), gaps(model, result.guide, batch)
        assert (before > 0).all() and (after > 0).all()
        assert after.mean() < (0.3 if structure == "markov" else 0.8) * before.mean()


@pytest.mark.slow
def test_gap_of_the_trained_network():
    model, seen, unseen = model_and_data(128)
    found = {}
    for structure in ("markov", "mean_field"):
        guide = AmortisedPathGuide(model, hidden_size=32, structure=structure, seed=1)
        result = fit_gumbel(
            model, seen, guide=guide, num_iters=300, entropy_weight=(1, 1), **NETWORK
        )
        for name, batch in (("seen", seen), ("unseen", unseen)):
            log_prob = model.distribution(batch).log_prob(batch.obs).mean().item() / STEPS
            gap = gaps(model, result.guide, batch).mean().item() / STEPS
            found[structure, name] = gap
            print(f"{structure} {name}: log_prob {log_prob:.4f}, gap {gap:.4f} nats a step")
    assert found["markov", "seen"] < 0.01
    assert found["markov", "unseen"] < 0.05
    assert found["markov", "seen"] < 0.2 * found["mean_field", "seen"]


@pytest.mark.slow
@pytest.mark.parametrize("relaxation", ["gumbel", "straight_through"])
def test_amortised_gumbel_paths_of_several_sequences(relaxation):
    model, seen, unseen = model_and_data(128)
    guide = AmortisedPathGuide(model, hidden_size=32, relaxation=relaxation, seed=1)
    result = fit_gumbel(model, seen, guide=guide, num_iters=400, temperature=(2, 0.5), **NETWORK)
    for name, batch in (("seen", seen), ("unseen", unseen)):
        best = model.distribution(batch).posterior_mode(batch.obs).score.double()
        found = result.guide.mode(model, batch).score
        missed = (best - found) / best.abs()
        print(f"{relaxation} {name}: mean {missed.mean():.3%}, worst {missed.max():.3%}")
        assert (missed > -1e-5).all()
        assert missed.mean() < (0.02 if name == "seen" else 0.1)


def test_elbo_of_a_draw_is_unbiased():
    model, seen, _ = model_and_data()
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


def test_minibatches_train_it():
    model, seen, _ = model_and_data()
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
