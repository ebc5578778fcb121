"""Posterior draws as a file of tensors and the description of the prior that they belong to."""

from __future__ import annotations

from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..clones import CloneStructure
from ..models.bayesian import BayesianCHMM

__all__ = ["describe_prior", "pack_draws", "prior_of", "unpack_draws"]

_BASE = "prior.concentration"


def describe_prior(model: BayesianCHMM) -> dict[str, Any]:
    """The arguments of the model, but for what :func:`pack_draws` stores as a tensor.

    Args:
        model: without a table of emissions, whose point models checkpoints do not hold either.
    """
    prior = model.transition_prior
    same = bool((prior.base == prior.base.flatten()[0]).all())
    return {
        "num_clones": list(model.clones.num_clones),
        "num_actions": model.num_actions,
        "concentration": float(prior.base.flatten()[0]) if same else None,
        "sticky": float(prior.sticky),
        "hyperprior": None if prior.hyperprior is None else list(prior.hyperprior),
        "stick_concentration": prior.stick_concentration,
        "learn_initial": model.learn_initial,
        "initial_concentration": float(model.initial_concentration),
        "learn_actions": model.learn_actions,
        "action_concentration": float(model.action_concentration[0]),
        "action_model": model.action_model,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def prior_of(described: dict[str, Any], tensors: dict[str, Tensor]) -> BayesianCHMM:
    """The inverse of :func:`describe_prior`.

    Args:
        described: what it gave.
        tensors: of the file of draws.
    """
    options = dict(described)
    clones = CloneStructure(options.pop("num_clones"))
    num_actions = int(options.pop("num_actions"))
    concentration = options.pop("concentration")
    if concentration is None:
        concentration = tensors[_BASE]
    if options["hyperprior"] is not None:
        options["hyperprior"] = tuple(options["hyperprior"])
    options["dtype"] = {"float32": torch.float32, "float64": torch.float64}[options["dtype"]]
    return BayesianCHMM(clones, num_actions, concentration, **options)


def pack_draws(model: BayesianCHMM, draws: dict[str, Tensor]) -> bytes:
    """A safetensors file of the draws, and of concentrations that differ between entries."""
    tensors = {f"draws.{name}": value.contiguous().cpu() for name, value in draws.items()}
    if describe_prior(model)["concentration"] is None:
        tensors[_BASE] = model.transition_prior.base.contiguous().cpu()
    return safetensors.torch.save(tensors)


def unpack_draws(
    described: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[BayesianCHMM, dict[str, Tensor]]:
    """The prior model and the draws ``(C, D, ...)`` of a file.

    Args:
        described: from :func:`describe_prior`.
        tensors: the contents of the file.

    Raises:
        ValueError: draws that are not those of the model.
    """
    model = prior_of(described, tensors)
    draws = {
        name.removeprefix("draws."): value
        for name, value in tensors.items()
        if name.startswith("draws.")
    }
    missing = sorted(set(model.public_names) - set(draws))
    if missing:
        raise ValueError(f"the draws lack {missing[0]!r}, expected {list(model.public_names)}")
    states = model.clones.num_states
    found = tuple(draws["transition"].shape[2:])
    expected = (model.num_actions, states, states)
    if found != expected:
        raise ValueError(f"the draws of 'transition' are of shape {found}, expected {expected}")
    return model, draws
