"""Modules of equal attribute names, as Pyro's own optimizers and our fits see them."""

from __future__ import annotations

import copy
from itertools import pairwise

import pyro
import pytest
import torch
from fits import CLONES, ragged_batch, same_state
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule

from chmm_pyro.inference.amortised import AmortisedPathGuide
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.guides import make_guide
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.vb import fit_vb
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.enumerated import EnumeratedCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.models.relaxed import RelaxedCHMM

BATCH = ragged_batch([6, 4])


def no_guide(batch):
    """No latent variables."""


def point(seed):
    return PointCHMM(CLONES, 2, seed=seed, learn_initial=True), no_guide, Trace_ELBO()


def enumerated(seed):
    model = EnumeratedCHMM(CLONES, 2, seed=seed)
    return model, no_guide, TraceEnum_ELBO(max_plate_nesting=1)


def dirichlet(seed):
    model = BayesianCHMM(CLONES, 2)
    return model, make_guide("Dirichlet", model, BATCH, seed=seed), Trace_ELBO()


def amortised(seed):
    model = RelaxedCHMM(CLONES, 2, seed=seed)
    return model, AmortisedPathGuide(model, hidden_size=4, seed=seed), Trace_ELBO()


class Nested(PyroModule):
    """A user's model that holds one of ours."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return self.inner(batch)


def nested(seed):
    return Nested(PointCHMM(CLONES, 2, seed=seed)), no_guide, Trace_ELBO()


class Script:
    """A user's training script; each step draws its own random numbers."""

    def __init__(self, make, seed):
        self.model, self.guide, elbo = make(seed)
        self.svi = SVI(self.model, self.guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        self.losses = []

    def train(self, num_steps):
        for _ in range(num_steps):
            torch.manual_seed(len(self.losses))
            self.losses.append(self.svi.step(BATCH))

    def parameters(self):
        modules = [x for x in (self.model, self.guide) if isinstance(x, torch.nn.Module)]
        return [p.detach().clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("make", [point, enumerated, dirichlet, amortised, nested])
def test_models_trained_in_turns_are_trained_as_alone(make):
    alone = []
    for seed in (1, 2):
        pyro.clear_param_store()
        alone.append(Script(make, seed))
        alone[-1].train(4)
    pyro.clear_param_store()
    together = [Script(make, seed) for seed in (1, 2)]
    for num_steps in (3, 1):  # one after the other, and back again
        for script in together:
            script.train(num_steps)
    for found, expected in zip(together, alone, strict=True):
        assert found.losses == expected.losses
        for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert all(one != other for one, other in pairwise(found.losses))


def test_other_parameters_in_the_store_stay():
    pyro.param("transition.scale", torch.tensor(3.0))
    script = Script(point, 1)
    script.train(2)
    assert {"transition.scale", "transition.logits"} <= set(pyro.get_param_store())
    assert pyro.param("transition.scale").item() == 3.0
    assert pyro.get_param_store()["transition.logits"] is script.model.transition.logits


@pytest.mark.parametrize("method", [fit_svi, fit_em, fit_viterbi])
def test_fits_do_not_meet_what_a_script_has_trained(method):
    model = PointCHMM(CLONES, 2, seed=2)
    expected = method(model, BATCH, num_iters=3, progress=False).model
    script = Script(point, 1)
    script.train(2)
    trained = copy.deepcopy(script.model)
    assert same_state(method(model, BATCH, num_iters=3, progress=False).model, expected)
    assert same_state(script.model, trained)
    script.train(1)
    assert not same_state(script.model, trained)


@pytest.mark.parametrize("made_inside", [False, True])
def test_fits_do_not_depend_on_the_users_choice_of_stores(made_inside):
    model = PointCHMM(CLONES, 2, seed=2)
    expected = fit_svi(model, BATCH, num_iters=3, progress=False)
    prior = BayesianCHMM(CLONES, 2)
    with pyro.settings.context(module_local_params=True):
        if made_inside:
            model, prior = PointCHMM(CLONES, 2, seed=2), BayesianCHMM(CLONES, 2)
        found = fit_svi(model, BATCH, num_iters=3, progress=False)
        fit_svi(prior, BATCH, guide="AutoNormal", num_iters=2, progress=False)
        fit_svi(prior, BATCH, guide="Dirichlet", num_iters=2, progress=False)
        fit_vb(prior, BATCH, num_iters=2, progress=False)
        assert pyro.settings.get("module_local_params")
    assert same_state(found.model, expected.model)
