"""Summaries that no numbering of the clones changes, against enumeration and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TOL
from fits import instances_of
from numpy.testing import assert_allclose

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.posterior.draws import posterior_draws
from chmm_pyro.posterior.summaries import co_assignment, log_predictive, log_predictive_steps
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 2])


@pytest.fixture(scope="module")
def fit():
    batch = SequenceBatch.from_arrays([[0, 1, 1, 0, 1], [1, 0]], [[0, 1, 1, 0], [1]])
    model = BayesianCHMM(CLONES, 2, 0.8, learn_initial=True)
    return fit_gibbs(model, batch, num_iters=6, num_warmup=3, num_chains=2, progress=False)


def test_log_predictive_is_the_log_of_the_mean_over_draws(fit):
    held_out = SequenceBatch.from_arrays([[1, 1, 0], [0, -1, 0, 1]], [[1, 0], [0, 0, 1]])
    model = fit.prior_model
    flat = {name: fit.draws[name].flatten(0, 1) for name in model.public_names}
    by_draw = []
    for draw in range(12):
        values = {name: value[draw] for name, value in flat.items()}
        point = model.point(model.values_of(values))
        by_draw.append([one.exact().log_prob for one in instances_of(point, held_out)])
    expected = np.log(np.exp(by_draw).mean(0))
    assert_allclose(log_predictive(fit, held_out), expected, **EXACT)
    steps = log_predictive_steps(fit, held_out)
    assert steps.shape == (7,)
    assert_allclose([steps[:3].sum(), steps[3:].sum()], expected, **EXACT)


def test_co_assignment_of_a_point_is_that_of_its_paths():
    """Of one draw: whether its path is in one state; symmetric, with ones on the diagonal."""
    batch = SequenceBatch.from_arrays([0, 0, 1, 0, 0, 1, 0])
    fit = fit_em(PointCHMM(CLONES, 1, seed=1), batch, num_iters=20, progress=False)
    draws = posterior_draws(fit)
    same = co_assignment(draws)
    path = draws.paths[0, 0]
    assert_allclose(same, path[:, None] == path)


def test_co_assignment_is_a_probability_over_draws(fit):
    draws = posterior_draws(fit)
    same = co_assignment(draws, [0, 3, 1])
    paths = draws.paths.reshape(12, -1)
    assert_allclose(same[0, 1], (paths[:, 0] == paths[:, 3]).mean())
    assert same[0, 2] == 0, "other symbols are other states"
    with pytest.raises(ValueError, match="steps holds 7, expected 0 <= step < 7"):
        co_assignment(draws, [7])
