"""Variational families over the parameters of a :class:`~chmm_pyro.models.bayesian.BayesianCHMM`.

Every guide is an ordinary Pyro guide, called with the batch like the model; Pyro's automatic ones
work as they are.  :func:`make_guide` starts them where clones differ: at the centre of a symmetric
prior the clones of a symbol have equal gradients and would never part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ..models.bayesian import BayesianCHMM
from ..models.own_parameters import OwnParameters
from ..models.priors import to_rows
from ..sequences import SequenceBatch
from ..simplex import LogDirichlet
from .chains import Start, describe, starting_values
from .conjugate import dirichlet_of

__all__ = [
    "DirichletGuide",
    "check_guided",
    "copy_guide",
    "default_elbo",
    "guide_draws",
    "guide_values",
    "initial_values",
    "make_guide",
    "posterior_fields",
    "refuse_modeless",
    "starting_concentrations",
]

_ARGUMENTS = {
    "concentration": "hyperprior",
    "log_sticks": "stick_concentration",
    "log_transition": "concentration",
    "log_initial": "initial_concentration",
    "log_actions": "action_concentration",
    "log_emission": "emission_concentration",
}


class DirichletGuide(OwnParameters):
    """Independent Dirichlet rows, and a Gamma for the factor of a hierarchical concentration.

    The family of variational Bayes, but for the collapsed model: states are summed out exactly
    instead of being independent of the parameters, so its bound is tighter.

    Args:
        model: whose sites it covers.
        concentrations: ``(..., K)`` of the rows of each Dirichlet site, to start from.
    """

    def __init__(self, model: BayesianCHMM, concentrations: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sites = model.sites
        for site in self.sites:
            if site == "concentration":
                assert model.transition_prior.hyperprior is not None
                alpha = torch.tensor(model.transition_prior.hyperprior, dtype=model.dtype)
            else:
                alpha = concentrations[site].detach().clone()
            setattr(self, f"{site}_rows", PyroParam(alpha, constraints.positive))

    def rows(self, site: str) -> Tensor:
        """Variational parameters of a site: concentrations, or (shape, rate)."""
        return getattr(self, f"{site}_rows")

    def forward(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Sample all sites; the batch is not read."""
        values = {}
        for site in self.sites:
            alpha = self.rows(site)
            if site == "concentration":
                values[site] = pyro.sample(site, dist.Gamma(*alpha))
            else:
                rows = LogDirichlet(alpha)
                values[site] = pyro.sample(site, rows.to_event(alpha.ndim - 1))
        return values

    @torch.no_grad()
    def mean_values(self) -> dict[str, Tensor]:
        """Values at the expected probabilities."""
        values = {}
        for site in self.sites:
            alpha = self.rows(site).detach()
            gamma = site == "concentration"
            values[site] = alpha[0] / alpha[1] if gamma else LogDirichlet(alpha).log_mean
        return values


def _typical_values(model: BayesianCHMM, seed: int) -> dict[str, Tensor]:
    """Random transition rows as of a new PointCHMM, prior means elsewhere."""
    values: dict[str, Tensor] = {}
    for site in model.sites:
        if site == "concentration":
            values[site] = model.prior(site, values).mean
        elif site != "log_transition":
            values[site] = LogDirichlet(dirichlet_of(model, site, values)).log_mean
        else:
            shape = dirichlet_of(model, site, values).shape
            generator = torch.Generator().manual_seed(seed)
            logits = torch.randn(shape, generator=generator, dtype=torch.float64)
            values[site] = logits.log_softmax(-1).to(model.dtype)
    return values


def initial_values(model: BayesianCHMM, start: Start, seed: int) -> dict[str, Tensor]:
    """Values of all sites to start an optimiser from."""
    values = _typical_values(model, seed)
    if start is not None:
        given = starting_values(model, start, 1)
        values.update({site: given[site][0] for site in given})
    return values


@torch.no_grad()
def starting_concentrations(
    model: BayesianCHMM, batch: SequenceBatch, *, start: Start = None, seed: int = 0
) -> dict[str, Tensor]:
    """Prior concentrations plus the counts expected under a start, for every Dirichlet site."""
    values = initial_values(model, start, seed)
    hmm = model.distribution(batch, model.parameters_of(values))
    _, initial, transition = hmm.expected_counts(batch.obs)
    counts = {"log_initial": initial, "log_transition": to_rows(transition, model.action_model)}
    if model.learn_actions:
        counts["log_actions"] = batch.action_counts(model.num_actions)
    found = {}
    for site in model.sites:
        if site != "concentration":
            alpha = dirichlet_of(model, site, values)
            found[site] = (alpha + counts.get(site, 0.0)).contiguous()
    return found


def make_guide(
    guide: str,
    model: BayesianCHMM,
    batch: SequenceBatch,
    *,
    start: Start = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A guide by name, started where the clones of a symbol differ.

    Args:
        guide: ``"AutoDelta"`` (maximum a posteriori), ``"AutoNormal"``,
            ``"AutoLowRankMultivariateNormal"`` or ``"Dirichlet"``.
        model: the priors.
        batch: the data.
        start: a point model or result to start from; by default random rows.
        seed: of those.
        options: of Pyro's guide, such as ``init_scale`` or ``rank``.

    Raises:
        ValueError: an unknown name, or ``AutoDelta`` where the posterior has no mode.
    """
    if guide == "Dirichlet":
        return DirichletGuide(model, starting_concentrations(model, batch, start=start, seed=seed))
    families: dict[str, Callable[..., AutoGuide]] = {
        "AutoDelta": AutoDelta,
        "AutoNormal": AutoNormal,
        "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    }
    if guide not in families:
        raise ValueError(f"guide = {guide!r}, expected one of {[*families, 'Dirichlet']}.")
    if guide == "AutoDelta":
        refuse_modeless(model)
    first = init_to_value(values=initial_values(model, start, seed))
    # Clones that a step-by-step program sums out are no part of a guide.
    latent = poutine.block(model, expose=list(model.sites))
    return families[guide](latent, init_loc_fn=first, **options)


def refuse_modeless(model: BayesianCHMM) -> None:
    """Refuse priors under which some row's density is unbounded."""
    for site in model.sites:
        if site in ("concentration", "log_sticks"):
            raise ValueError(
                f"{_ARGUMENTS[site]} was given, expected None for a maximum: rows whose "
                "concentration may fall below 1 have no mode; use fit_gibbs, fit_nuts or another "
                "guide."
            )
        least = float(dirichlet_of(model, site, {}).min())
        if least < 1:
            raise ValueError(
                f"{_ARGUMENTS[site]} = {least:.6g}, expected at least 1 for a maximum: the density "
                "of a row is unbounded where probabilities vanish; use fit_vb, fit_gibbs, fit_nuts "
                "or another guide."
            )


def copy_guide(guide: Any) -> Any:
    """A guide to train in place of the caller's; functions are shared."""
    if not isinstance(guide, nn.Module):
        return guide
    # Copying an automatic guide makes Pyro forget the model, in the original too.
    parts = [part for part in guide.modules() if isinstance(part, AutoGuide)]
    known = [(part._model, part.master) for part in parts]
    copied = copy.deepcopy(guide)
    copies = [part for part in copied.modules() if isinstance(part, AutoGuide)]
    for part, twin, (model, master) in zip(parts, copies, known, strict=True):
        part._model = twin._model = model
        part.master = master
    return copied


def check_guided(
    model: BayesianCHMM,
    guide: Any,
    batches: Sequence[SequenceBatch],
    pseudocount: float,
    entropy_weight: float,
    segment_length: int | None,
) -> None:
    """Refuse options of a variational fit that a model with priors does not take."""
    if guide is None:
        raise ValueError(
            "guide is None, expected a guide for the latent parameters of a BayesianCHMM: "
            "'AutoDelta', 'AutoNormal', 'AutoLowRankMultivariateNormal', 'Dirichlet' or an "
            "instance."
        )
    if isinstance(guide, AutoDelta):
        refuse_modeless(model)
    if len(batches) > 1:
        raise ValueError(
            f"batch holds {len(batches)} batches, expected one: each would count the prior again; "
            "put all sequences into one SequenceBatch."
        )
    for name, value in (
        ("pseudocount", pseudocount),
        ("entropy_weight", entropy_weight),
        ("segment_length", segment_length),
    ):
        if value:
            raise ValueError(
                f"{name} = {value} was given with a BayesianCHMM, expected none: its priors say "
                "what to prefer, and it starts every sequence from its initial distribution."
            )


def default_elbo(model: Any, guide: Any) -> Any:
    """The loss that suits a model and a guide."""
    if model.enumerates:
        return TraceEnum_ELBO()
    return TraceMeanField_ELBO() if isinstance(guide, DirichletGuide) else Trace_ELBO()


def posterior_fields(
    model: BayesianCHMM, guide: Any, batch: SequenceBatch, num_draws: int
) -> dict[str, Any]:
    """The fields of a result that come from a fitted guide."""
    return {
        "model": model.point(guide_values(guide, batch)),
        "prior_model": model,
        "draws": guide_draws(model, guide, batch, num_draws) if num_draws else None,
        "log_prob_history": None,
    }


@torch.no_grad()
def guide_values(guide: Any, batch: SequenceBatch) -> dict[str, Tensor]:
    """One summary of a guide: its mean (Dirichlet), its median (automatic guides), else a draw."""
    if isinstance(guide, DirichletGuide):
        return guide.mean_values()
    if isinstance(guide, AutoGuide):
        return guide.median(batch)
    return _draw(guide, batch)


def _draw(guide: Any, batch: SequenceBatch) -> dict[str, Tensor]:
    trace = poutine.trace(guide).get_trace(batch)
    return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}


@torch.no_grad()
def guide_draws(
    model: BayesianCHMM, guide: Any, batch: SequenceBatch, num_draws: int
) -> dict[str, Tensor]:
    """Draws of a guide under public names, ``(1, num_draws, ...)``, with their densities.

    Returns:
        What :func:`~chmm_pyro.inference.chains.describe` gives.
    """
    drawn = [_draw(guide, batch) for _ in range(num_draws)]
    values = {site: torch.stack([one[site] for one in drawn]) for site in model.sites}
    described = describe(model, batch, values)
    return {name: value.unsqueeze(0) for name, value in described.items()}
