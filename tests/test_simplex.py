"""Dirichlet rows in log space against the same distribution of probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TOL
from goodness_of_fit import MIN_P_VALUE
from scipy import stats
from torch.distributions import Dirichlet, biject_to, kl_divergence, transform_to
from torch.testing import assert_close

from chmm_pyro.simplex import LogDirichlet, SymmetricLogSimplex, log_simplex

EXACT = TOL["exact"][torch.float64]
ALPHA = torch.tensor([[0.3, 2.0, 1.0, 5.5], [0.01, 0.7, 3.0, 0.2]], dtype=torch.float64)
PROBS = torch.tensor([0.2, 0.05, 0.7, 0.05], dtype=torch.float64)


def test_density_is_that_of_the_probabilities():
    log_dirichlet, dirichlet = LogDirichlet(ALPHA), Dirichlet(ALPHA)
    assert_close(log_dirichlet.log_prob(PROBS.log()), dirichlet.log_prob(PROBS), **EXACT)
    assert_close(
        kl_divergence(log_dirichlet, LogDirichlet(ALPHA.flip(0))),
        kl_divergence(dirichlet, Dirichlet(ALPHA.flip(0))),
        **EXACT,
    )
    assert_close(log_dirichlet.log_mean.exp(), dirichlet.mean, **EXACT)


def test_density_ignores_impossible_outcomes_of_concentration_one():
    log_probs = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    assert_close(LogDirichlet(torch.ones(3).double()).log_prob(log_probs).item(), math.log(2))


@pytest.mark.parametrize("alpha", [0.05, 0.8, 4.0])
def test_draws_have_the_marginals_of_a_dirichlet(alpha):
    rows = LogDirichlet(torch.tensor([alpha, 0.6, 1.7], dtype=torch.float64))
    draws = rows.sample((4000,)).exp()
    for j, own in enumerate(rows.concentration.tolist()):
        rest = float(rows.concentration.sum()) - own
        assert stats.kstest(draws[:, j].numpy(), stats.beta(own, rest).cdf).pvalue > MIN_P_VALUE


def test_sparse_draws_do_not_underflow(dtype):
    rows = LogDirichlet(torch.full((1000, 20), 1e-3, dtype=dtype))
    draws = rows.sample()
    assert draws.isfinite().all()
    assert bool(log_simplex.check(draws).all())
    assert (draws.exp() == 0).any()  # probabilities would have lost them
    assert rows.log_prob(draws).isfinite().all()


def test_gradients_of_draws_reach_the_concentrations():
    alpha = torch.tensor([0.4, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
    rows = LogDirichlet(alpha)
    (found,) = torch.autograd.grad(rows.rsample((200_000,))[:, 0].mean(), alpha)
    (exact,) = torch.autograd.grad(rows.mean[0], alpha)
    assert_close(found, exact, rtol=0.03, atol=0.01)


def test_mean_is_the_expected_logarithm():
    rows = LogDirichlet(ALPHA[0])
    draws = rows.sample((100_000,))
    error = draws.std(0) / math.sqrt(len(draws))
    assert (((draws.mean(0) - rows.mean) / error).abs() < 4.5).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_free_coordinates_go_there_and_back(size):
    free = torch.randn(3, size - 1, dtype=torch.float64)
    transform = biject_to(log_simplex)
    log_probs = transform(free)
    assert log_probs.shape == (3, size) == transform.forward_shape(free.shape)
    assert transform.inverse_shape(log_probs.shape) == free.shape
    assert bool(log_simplex.check(log_probs).all())
    assert_close(transform.inv(log_probs), free, **EXACT)


def test_volume_of_the_free_coordinates():
    free = torch.randn(4, dtype=torch.float64)
    transform = SymmetricLogSimplex()
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x).exp()[:-1], free)
    found = transform.log_abs_det_jacobian(free, transform(free))
    assert_close(found, torch.linalg.slogdet(jacobian).logabsdet, **EXACT)


def test_free_coordinates_single_out_no_entry():
    transform = SymmetricLogSimplex()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: transform(x), torch.zeros(4, dtype=torch.float64)
    )
    # At the uniform row every logit moves alike: the coordinates are orthonormal.
    expected = torch.eye(5, dtype=torch.float64) - 0.2
    assert_close(jacobian @ jacobian.T, expected, **EXACT)


def test_point_estimates_use_free_logits():
    logits = torch.randn(2, 3, dtype=torch.float64)
    assert_close(transform_to(log_simplex)(logits), logits.log_softmax(-1), **EXACT)


def test_support_is_checked():
    rows = LogDirichlet(ALPHA[0], validate_args=True)
    with pytest.raises(ValueError, match="support"):
        rows.log_prob(torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="concentration"):
        LogDirichlet(torch.tensor([1.0, 0.0]), validate_args=True)
    with pytest.raises(ValueError, match=r"expected \(..., K\)"):
        LogDirichlet(torch.tensor(1.0))


def test_expanded_rows_are_drawn_independently():
    rows = LogDirichlet(torch.ones(3)).expand([2])
    assert rows.sample((5,)).shape == (5, 2, 3)
    assert not torch.equal(*rows.sample())
