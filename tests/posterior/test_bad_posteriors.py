"""Bad input of priors, samplers and posterior analysis, in the form of ``test_bad_input.py``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
from test_bad_input import refused

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.inference.nuts import fit_nuts
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.posterior import inference_data as posterior_module
from chmm_pyro.posterior import to_inference_data
from chmm_pyro.posterior.draws import posterior_draws
from chmm_pyro.posterior.maps import map_posterior
from chmm_pyro.posterior.relabelling import relabel
from chmm_pyro.posterior.summaries import co_assignment
from chmm_pyro.sequences import SequenceBatch

CLONES = CloneStructure([2, 2])
QUIET = {"progress": False}


def batch(length=30):
    return SequenceBatch.from_arrays([0, 1, 0, 1, 1] * (length // 5))


def model(concentration=0.5, clones=CLONES, **options):
    return BayesianCHMM(clones, 1, concentration, **options)


@cache
def chains(num_chains=2, num_iters=5, clones=CLONES, length=30, learn_initial=False):
    return fit_gibbs(
        model(clones=clones, learn_initial=learn_initial),
        batch(length),
        num_iters=num_iters,
        num_warmup=0,
        num_chains=num_chains,
        **QUIET,
    )


def with_draws(**changes):
    """The fit with the draws of some names cut: (chain, draw, ...) index by name."""
    fit = chains()
    draws = {
        name: value[changes[name]] if name in changes else value
        for name, value in fit.draws.items()
    }
    return replace(fit, draws=draws)


def without(name):
    fit = chains()
    return replace(fit, draws={k: v for k, v in fit.draws.items() if k != name})


def of_arviz(version, monkeypatch):
    monkeypatch.setattr(posterior_module, "az", SimpleNamespace(__version__=version))
    return to_inference_data(chains())


def point():
    return fit_em(PointCHMM(CLONES, 1), batch(), num_iters=1, **QUIET)


ROWS = {
    "concentration of zero": (
        lambda: model(0.0),
        (ValueError, "concentration", "= 0", "expected a positive", "sparse rows use a small"),
    ),
    "negative stick concentration": (
        lambda: model(stick_concentration=-2.0),
        (ValueError, "stick_concentration", "= -2", "expected a positive", "small one"),
    ),
    "a maximum where there is none": (
        lambda: fit_svi(model(0.5), batch(), guide="AutoDelta", num_iters=1, **QUIET),
        (ValueError, "concentration", "= 0.5", "expected at least 1 for a maximum", "fit_gibbs"),
    ),
    "too many parameters for NUTS": (
        lambda: fit_nuts(model(clones=CloneStructure([24, 24])), batch(), num_iters=1, **QUIET),
        (ValueError, "2,256 free parameters", "expected at most", "max_parameters", "fit_gibbs"),
    ),
    "too few chains for R-hat": (
        lambda: relabel(chains(num_chains=1)).rhat,
        (ValueError, "draws", "1 chains of 5", "expected at least 2 of 4", "num_chains=4"),
    ),
    "too few draws for R-hat": (
        lambda: relabel(chains(num_iters=3)).rhat_before,
        (ValueError, "draws", "2 chains of 3", "expected at least 2 of 4", "several fits"),
    ),
    "draws that disagree in number": (
        lambda: relabel(with_draws(log_prob=(slice(None), slice(3)))),
        (ValueError, r"draws\['log_prob'\]", r"\(2, 3\)", r"expected \(2, 5\)", "one run"),
    ),
    "draws of states that the model lacks": (
        lambda: posterior_draws(with_draws(transition=(..., slice(3)))),
        (ValueError, "transition", r"2, 5, 1, 4, 3", r"expected \(2, 5, 1, 4, 4\)", "one run"),
    ),
    "draws without a parameter": (
        lambda: posterior_draws(without("transition")),
        (ValueError, "draws has no 'transition'", "expected", "one run"),
    ),
    "fits with different numbers of draws": (
        lambda: posterior_draws([chains(), chains(num_iters=3)]),
        (ValueError, r"result\[1\]", r"\(3, 1, 4, 4\)", r"expected \(5, 1, 4, 4\)", "same number"),
    ),
    "fits of different models": (
        lambda: relabel([chains(), chains(clones=CloneStructure([3, 1]))]),
        (ValueError, r"result\[1\]", r"\[3, 1\]", r"expected .*\[2, 2\]", "same model"),
    ),
    "fits of different parameters": (
        lambda: relabel([chains(), chains(learn_initial=True)]),
        (ValueError, r"result\[1\]", "'initial'", "expected", "same model"),
    ),
    "fits of different data": (
        lambda: relabel([chains(), chains(length=20)]),
        (ValueError, r"result\[1\]", "20 steps", r"data of result\[0\]", "one posterior"),
    ),
    "no fit": (
        lambda: posterior_draws([]),
        (ValueError, "result", "empty", "expected at least one fit"),
    ),
    "no draws": (
        lambda: to_inference_data(chains(), num_draws=0),
        (ValueError, "num_draws", "= 0", "expected at least 1"),
    ),
    "no draws of the prior": (
        lambda: to_inference_data(chains(), num_prior=0),
        (ValueError, "num_prior", "= 0", "expected at least 1"),
    ),
    "an unknown group": (
        lambda: to_inference_data(chains(), groups=["predictions"]),
        (ValueError, "groups", "'predictions'", "expected some of", "posterior_predictive"),
    ),
    "the prior of a point fit": (
        lambda: to_inference_data(point(), groups=["prior"]),
        (
            ValueError,
            "groups",
            "'prior'",
            "expected some of",
            "point fit has no prior",
            "fit_gibbs",
        ),
    ),
    "R-hat of a point fit": (
        lambda: relabel(point()).rhat,
        (ValueError, "draws", "1 chains of 1", "expected at least 2 of 4", "num_chains=4"),
    ),
    "no round of relabelling": (
        lambda: relabel(chains(), max_rounds=0),
        (ValueError, "max_rounds", "= 0", "expected at least 1"),
    ),
    "a place that is not on the map": (
        lambda: map_posterior(chains(num_iters=5)).plan_success([0], goal=99),
        (ValueError, "99", "not on the map", "expected one of"),
    ),
    "an action that the map lacks": (
        lambda: map_posterior(chains()).plan_success([1], goal=0),
        (ValueError, "actions", "1", "expected actions below 1"),
    ),
    "a step that the data lack": (
        lambda: co_assignment(posterior_draws(chains()), [30]),
        (ValueError, "steps", "30", "expected 0 <= step < 30"),
    ),
}


@pytest.mark.parametrize(("call", "expected"), ROWS.values(), ids=ROWS)
def test_refused(call, expected):
    refused(call, *expected)


@pytest.mark.parametrize("version", ["2.0.0", "unknown"])
def test_unknown_arviz_is_refused(version, monkeypatch):
    refused(
        lambda: of_arviz(version, monkeypatch),
        *(ValueError, "arviz.__version__", f"= {version}", "expected 0.x or 1.x", "install"),
    )
