"""Results as ArviZ sees them: groups, names, numbers, and both lines of ArviZ."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import arviz as az
import numpy as np
import pytest
import torch
from conftest import TOL
from fits import instances_of
from numpy.testing import assert_allclose, assert_array_equal

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.inference.nuts import fit_nuts
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.vb import fit_vb
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.posterior import inference_data as posterior_module
from chmm_pyro.posterior import to_inference_data
from chmm_pyro.posterior.draws import posterior_draws
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns

EXACT = TOL["exact"][torch.float64]
CLONES = CloneStructure([2, 3])
EPISODES = [(["door", "wall", None, "door"], [0, 1, 1]), (["wall", "wall"], [0])]
QUICK = {"num_iters": 8, "num_warmup": 4, "num_chains": 2, "progress": False}


def single():
    rng = np.random.default_rng(0)
    return SequenceBatch.from_arrays(rng.integers(2, size=30), rng.integers(2, size=29))


def labelled():
    return SequenceBatch.from_episodes(EPISODES)


def bayesian(**options):
    return BayesianCHMM(CLONES, 2, 0.8, **options)


def gibbs(batch=None, **options):
    return fit_gibbs(bayesian(**options), single() if batch is None else batch, **QUICK)


def blocks():
    columns = BlockColumns.from_batch(CLONES, 2, single())
    model = PointCHMM(CLONES, 2, learn_actions=True, parameterization="blocks", columns=columns)
    return fit_svi(model, single(), num_iters=3, progress=False)


ALL = {
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
}

FITS = {
    "gibbs": (lambda: gibbs(), (2, 8)),
    "gibbs, several sequences": (lambda: gibbs(labelled()), (2, 8)),
    "gibbs, every prior": (
        lambda: gibbs(
            stick_concentration=1.0, hyperprior=(2.0, 2.0), learn_initial=True, learn_actions=True
        ),
        (2, 8),
    ),
    "gibbs, joint actions": (lambda: gibbs(action_model="joint"), (2, 8)),
    "gibbs, noisy emissions": (lambda: gibbs(emission_concentration=(5.0, 0.5)), (2, 8)),
    "nuts": (lambda: fit_nuts(bayesian(), single(), **{**QUICK, "num_warmup": 5}), (2, 8)),
    "vb": (lambda: fit_vb(bayesian(), single(), num_iters=3, progress=False), (1, 12)),
    "svi normal": (
        lambda: fit_svi(bayesian(), single(), guide="AutoNormal", num_iters=3, progress=False),
        (1, 12),
    ),
    "svi dirichlet": (
        lambda: fit_svi(bayesian(), labelled(), guide="Dirichlet", num_iters=3, progress=False),
        (1, 12),
    ),
    "map": (
        lambda: fit_svi(
            BayesianCHMM(CLONES, 2, 1.5), single(), guide="AutoDelta", num_iters=3, progress=False
        ),
        (1, 1),
    ),
    "em": (
        lambda: fit_em(PointCHMM(CLONES, 2), labelled(), num_iters=3, progress=False),
        (1, 1),
    ),
    "point svi, observed blocks, actions": (lambda: blocks(), (1, 1)),
}


@pytest.mark.parametrize("name", FITS)
def test_every_method_has_every_group(name):
    make, shape = FITS[name]
    fit = make()
    number = None if fit.draws is not None else 12
    idata = to_inference_data(fit, num_draws=number, num_prior=5)
    groups = set(ALL) if fit.prior_model is not None else ALL - {"prior", "prior_predictive"}
    for group in groups:
        data = idata[group]
        assert len(data.data_vars), group
        for variable in data.data_vars.values():
            assert np.isfinite(variable.values).all(), (group, variable.name)
    posterior = idata["posterior"]
    assert tuple(posterior.sizes[dim] for dim in ("chain", "draw")) == shape
    assert posterior["transition"].dims == ("chain", "draw", "action", "state", "new_state")
    assert_array_equal(posterior["clone"], [0, 1, 0, 1, 2])
    # Parameters are distributions, and the terms of the steps add up to the whole.
    last = posterior["transition"].sum("new_state")
    last = last.sum("action") if fit.model.action_model == "joint" else last
    assert_allclose(last, 1.0, rtol=1e-6)
    likelihood = idata["log_likelihood"]
    assert_allclose(likelihood["sequence_obs"].sum("sequence"), posterior["log_prob"], rtol=1e-6)
    free_start = {"initial", "emission"} & set(posterior.data_vars)
    fixed = 0.0 if free_start else fit.data.num_sequences
    steps = fit.data.num_observed - fixed
    assert likelihood.sizes["step"] == steps
    assert idata["observed_data"].sizes["step"] == fit.data.num_observed
    predicted = idata["posterior_predictive"]["obs"]
    assert predicted.shape == (*shape, fit.data.num_observed)
    assert set(np.unique(predicted)) <= {0, 1}
    if fit.prior_model is not None:
        assert idata["prior"]["transition"].shape == (1, 5, 2, 5, 5)
        assert idata["prior_predictive"]["obs"].shape == (1, 5, fit.data.num_observed)


def test_log_likelihood_is_that_of_every_draw_by_enumeration():
    batch = SequenceBatch.from_arrays([[0, 1, 1, 0], [1, 0]], [[0, 1, 1], [0]])
    fit = gibbs(batch, learn_initial=True)
    found = to_inference_data(fit, groups=["log_likelihood"])["log_likelihood"]
    for chain, draw in ((0, 0), (1, 7)):
        values = {n: fit.draws[n][chain, draw] for n in fit.prior_model.public_names}
        point = fit.prior_model.point(fit.prior_model.values_of(values))
        for number, instance in enumerate(instances_of(point, batch)):
            exact = instance.exact()
            own = found.isel(chain=chain, draw=draw)
            assert_allclose(own["sequence_obs"][number], exact.log_prob, **EXACT)
            mine = own["sequence_of_step"].values == number
            assert_allclose(own["obs"].values[mine], exact.log_prob_steps, **EXACT)


def test_steps_labels_and_missing_observations():
    idata = to_inference_data(gibbs(labelled()))
    posterior = idata["posterior"]
    assert list(posterior["symbol"].values) == ["door", "wall"]
    assert list(posterior["symbol_of_state"].values) == ["door"] * 2 + ["wall"] * 3
    assert posterior["num_used"].sel(symbol="wall").shape == (2, 8)
    observed = idata["observed_data"]
    assert_array_equal(observed["obs"], [0, 1, 0, 1, 1])
    assert_array_equal(observed["step"], [0, 1, 3, 4, 5])
    assert_array_equal(observed["sequence_of_step"], [0, 0, 0, 1, 1])
    assert_array_equal(observed["time"], [0, 1, 3, 0, 1])
    assert_array_equal(idata["constant_data"]["previous_action"], [-1, 0, 1, -1, 0])
    assert_array_equal(idata["log_likelihood"]["step"], [1, 3, 5])


def test_posterior_predictive_follows_the_draws():
    """Draws with certain rows predict certain symbols."""
    fit = fit_em(PointCHMM(CloneStructure([1, 1]), 1), single_cycle(), num_iters=1, progress=False)
    table = torch.tensor([[[1e-9, 1.0], [1.0, 1e-9]]], dtype=torch.float64)
    model = PointCHMM.from_counts(CloneStructure([1, 1]), table)
    idata = to_inference_data(replace(fit, model=model))
    drawn = idata["posterior_predictive"]["obs"].values[0, 0]
    assert (drawn[1:] != drawn[:-1]).all()


def single_cycle():
    return SequenceBatch.from_arrays([0, 1] * 10)


def test_prior_group_is_the_prior():
    model = BayesianCHMM(CloneStructure([1, 1]), 1, 0.5)
    fit = fit_gibbs(model, single_cycle(), **QUICK)
    prior = to_inference_data(fit, num_prior=4000, groups=["prior"])["prior"]
    values = prior["transition"].values[0, :, 0, 0, 0]
    # Beta(1/2, 1/2) has mean 1/2 and variance 1/8; five standard errors.
    assert_allclose(values.mean(), 0.5, rtol=0, atol=5 * np.sqrt(1 / 8 / 4000))
    assert_allclose(values.var(), 1 / 8, rtol=0, atol=5 * np.sqrt(1 / 128 / 4000))


def test_arviz_compares_models():
    """LOO and compare run, and prefer the model that the data need: two clones for 0 0 1 ..."""
    batch = SequenceBatch.from_arrays([0, 0, 1] * 25)
    quick = {"num_iters": 60, "num_warmup": 60, "num_chains": 2, "progress": False}
    found = {
        str(count): to_inference_data(
            fit_gibbs(BayesianCHMM(CloneStructure([count, 1]), 1, 0.5), batch, **quick),
            groups=["posterior", "log_likelihood"],
        )
        for count in (1, 2)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Pareto k of short runs
        loo = az.loo(found["2"], var_name="obs")
        table = az.compare(found, var_name="obs")
    assert np.isfinite(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd)
    assert list(table.index) == ["2", "1"]


def test_equal_seeds_give_equal_draws_and_nothing_global_changes():
    fit = fit_vb(bayesian(), single(), num_iters=3, progress=False)
    state = torch.random.get_rng_state()
    one, two, other = (to_inference_data(fit, num_draws=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for group in ("posterior", "posterior_predictive"):
        assert one[group].identical(two[group]) or one[group].equals(two[group])
    assert not one["posterior"].equals(other["posterior"])


def test_draws_are_thinned_evenly():
    fit = gibbs()
    thin = posterior_draws(fit, num_draws=3)
    assert torch.equal(thin.values["transition"], fit.draws["transition"][:, [0, 4, 7]])


def test_paths_belong_to_their_draws():
    """Frequencies of paths under a fixed draw equal the smoothed probabilities."""
    fit = gibbs(SequenceBatch.from_arrays([0, 1, 1, 0], [0, 1, 0]))
    value = fit.draws["transition"][:1, :1].expand(1, 4000, 2, 5, 5)
    fixed = replace(fit, draws={"transition": value})
    paths = posterior_draws(fixed).paths[0]
    point = fit.prior_model.point({"log_transition": value[0, 0].log()})
    smooth = point.distribution(fit.data).smooth(fit.data.obs).dense()
    shares = np.stack([np.bincount(column, minlength=5) for column in paths.T]) / 4000
    assert_allclose(shares, smooth.detach(), rtol=0, atol=4.5 * np.sqrt(0.25 / 4000))


def test_several_fits_are_chains_of_one_posterior():
    fits = [
        fit_gibbs(bayesian(), single(), **{**QUICK, "seed": seed, "num_chains": 1})
        for seed in (0, 1, 2)
    ]
    draws = posterior_draws(fits)
    assert draws.shape == (3, 8)
    for chain, fit in enumerate(fits):
        assert torch.equal(draws.values["transition"][chain], fit.draws["transition"][0])
    assert to_inference_data(fits)["posterior"].sizes["chain"] == 3


def test_the_form_of_each_arviz(monkeypatch):
    """0.x takes groups as keywords, 1.x as one dictionary; others are refused."""
    calls = {}

    def from_dict(*groups, dims, **named):
        calls["groups"], calls["named"] = groups, named
        raise StopIteration

    fit = gibbs()
    for version, where in (("0.19.0", "named"), ("1.2.0", "groups")):
        fake = SimpleNamespace(__version__=version, from_dict=from_dict)
        monkeypatch.setattr(posterior_module, "az", fake)
        with pytest.raises(StopIteration):
            to_inference_data(fit, groups=["posterior"])
        given = calls["named"] if where == "named" else calls["groups"][0]
        assert list(given) == ["posterior"] and "transition" in given["posterior"]
    monkeypatch.setattr(posterior_module, "az", SimpleNamespace(__version__="2.0.0"))
    with pytest.raises(ValueError, match=r"arviz.__version__ = 2.0.0, expected 0.x or 1.x.*instal"):
        to_inference_data(fit, groups=["posterior"])
