"""The numbers of the published reference implementation (``test_data/README.md``)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import reference
import torch
from conftest import TOL, load_golden
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import DenseTable


def build(golden, dtype):
    """The distribution at the initial table, and the leaf that holds its log-transitions."""
    clones = CloneStructure(golden.num_clones)
    log_transition = torch.tensor(golden.log_transition, dtype=dtype, requires_grad=True)
    initial = torch.zeros(clones.num_states, dtype=dtype)
    hmm = CloneHMM(clones, initial, DenseTable(clones, log_transition), golden.actions)
    return hmm, log_transition


def expect(golden, name):
    return torch.as_tensor(golden.checkpoints[name])


def test_step_log_likelihoods(golden, dtype, kernel):
    hmm, _ = build(golden, dtype)
    expected = expect(golden, "log2_lik") * math.log(2)
    assert_close(hmm.log_prob_steps(golden.obs).double(), expected, **TOL["exact"][dtype])
    assert_close(hmm.log_prob(golden.obs).double(), expected.sum(), **TOL["exact"][dtype])


def test_filter_is_the_forward_messages(golden, dtype, kernel):
    hmm, _ = build(golden, dtype)
    found = hmm.filter(golden.obs).probs.double().flatten()
    assert_close(found, expect(golden, "forward_messages"), **TOL["exact"][dtype])


def test_smooth_is_the_product_of_the_messages(golden, dtype, kernel):
    hmm, _ = build(golden, dtype)
    found = hmm.smooth(golden.obs).probs.double()
    both = expect(golden, "forward_messages") * expect(golden, "backward_messages")
    expected = both.view(found.shape)
    expected = expected / expected.sum(-1, keepdim=True)
    assert_close(found, expected, **TOL["exact"][dtype])


def test_expected_counts_are_the_gradient(golden, dtype, kernel):
    hmm, log_transition = build(golden, dtype)
    expected = expect(golden, "counts_after_estep")
    hmm.log_prob(golden.obs).backward()
    assert_close(log_transition.grad.double(), expected, **TOL["exact"][dtype])
    found = hmm.smooth(golden.obs).transition_counts.double()
    assert_close(found, expected, **TOL["exact"][dtype])


def test_gradient_of_raw_logits(golden, dtype, kernel):
    clones = CloneStructure(golden.num_clones)
    logits = torch.tensor(golden.counts + golden.pseudocount, dtype=dtype).log().requires_grad_()
    initial = torch.zeros(clones.num_states, dtype=dtype)
    CloneHMM(clones, initial, logits, golden.actions).log_prob(golden.obs).backward()
    counts = expect(golden, "counts_after_estep")
    probs = torch.as_tensor(golden.log_transition).exp()
    expected = counts - counts.sum(-1, keepdim=True) * probs
    assert_close(logits.grad.double(), expected, **TOL["exact"][dtype])


def test_most_probable_path(golden, dtype, kernel):
    hmm, _ = build(golden, dtype)
    found = hmm.posterior_mode(golden.obs)
    expected = expect(golden, "viterbi_log2_lik").sum() * math.log(2)
    assert_close(found.score.double(), expected, **TOL["exact"][dtype])
    through = reference.max_marginals(
        golden.num_clones,
        np.full(hmm.clones.num_states, -math.log(hmm.clones.num_states)),
        golden.log_transition,
        golden.actions,
        golden.obs,
    )
    runner_up, best = np.sort(through, axis=1)[:, -2:].T
    decided = best - runner_up > (1e-9 if dtype == torch.float64 else 1e-3)
    assert decided.mean() > 0.9
    states = golden.checkpoints["viterbi_states"]
    assert np.array_equal(found.states.numpy()[decided], states[decided])


@lru_cache
def fit_published(name, dtype, num_iters=100):
    """EM from the published initial counts."""
    golden = load_golden(name)
    clones = CloneStructure(golden.num_clones)
    batch = SequenceBatch.from_arrays(golden.obs, golden.actions)
    counts = torch.tensor(golden.counts, dtype=dtype)
    kappa = golden.pseudocount
    model = PointCHMM.from_counts(clones, counts, pseudocount=kappa)
    return fit_em(model, batch, num_iters=num_iters, pseudocount=kappa, progress=False)


def bits(history, golden):
    return -np.array(history) / (math.log(2) * len(golden.obs))


@pytest.mark.parametrize("parameterization", ["softmax", "counts"])
def test_models_start_at_the_published_table(golden, parameterization):
    model = PointCHMM.from_counts(
        CloneStructure(golden.num_clones),
        golden.counts,
        pseudocount=golden.pseudocount,
        parameterization=parameterization,
    )
    expected = torch.as_tensor(golden.log_transition)
    found = model.transition.table().values.detach()
    assert_close(found, expected, **TOL["exact"][torch.float64])


def test_em_curve(golden, dtype):
    result = fit_published(golden.name, dtype)
    assert result.num_iters == 100 and not result.converged
    tolerance = TOL["em_curve"][dtype]
    found = bits(result.log_prob_history, golden)
    np.testing.assert_allclose(found, golden.em["bits_per_step"], **tolerance)
    final = golden.em["final_bits_per_step"]
    np.testing.assert_allclose(result.bits_per_step, final, **tolerance)


def test_em_curve_on_each_kernel(dtype, kernel):
    golden = load_golden("small")
    result = fit_published.__wrapped__("small", dtype, num_iters=20)
    found = bits(result.log_prob_history, golden)
    expected = golden.em["bits_per_step"][:20]
    np.testing.assert_allclose(found, expected, **TOL["em_curve"][dtype])


def test_viterbi_training(golden, dtype):
    em = fit_published(golden.name, dtype)
    result = fit_viterbi(em.model, em.data, num_iters=10, progress=False)
    expected = golden.viterbi_training
    tolerance = TOL["em_curve"][dtype]
    found = bits(result.objective_history, golden)
    np.testing.assert_allclose(found, expected["bits_per_step"], **tolerance)
    assert result.converged
    final = expected["final_max_product_bits_per_step"]
    np.testing.assert_allclose(result.settings["viterbi_bits_per_step"], final, **tolerance)
    assert result.settings["num_states_used"] == expected["n_states_used"]
