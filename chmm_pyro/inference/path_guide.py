"""Guides for hidden paths: Markov chains over clone paths as ordinary Pyro programs."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..beliefs import StatePath
from ..clones import MISSING
from ..models.base import CloneModel, sequence_plate
from ..models.own_parameters import OwnParameters
from ..models.relaxed import RelaxedPath
from ..sequences import SequenceBatch
from .markov_path import MarkovPath, check_relaxation, usable_edges

__all__ = ["STRUCTURES", "PathGuide", "PathSupport", "path_elbo"]

STRUCTURES = ("markov", "mean_field")


class PathSupport(NamedTuple):
    """Which paths a batch allows.

    Attributes:
        usable: ``(..., T, R, R)`` edges that lie on a possible path.
        first_state: ``(..., T)`` the global state of entry 0 of each step.
        inside: ``(..., T)`` whether the sequence has this step.
    """

    usable: Tensor
    first_state: Tensor
    inside: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, joint: RelaxedPath, structure: str = "markov") -> PathSupport:
        """The possible paths of a joint distribution.

        Raises:
            ValueError: impossible data; or independent states (``"mean_field"``) where a pair of
                states, each of them possible, is not.
        """
        usable = usable_edges(joint.allowed, joint.inside)
        if structure == "mean_field":
            _check_independent(usable)
        return cls(usable, joint.first_state, joint.inside)


def _check_independent(usable: Tensor) -> None:
    """Refuse edges that are no product of states: their mean-field ELBO is minus infinity."""
    nodes = usable.any(-2)
    pairs = nodes[..., :-1, :, None] & nodes[..., 1:, None, :]
    wrong = (pairs & ~usable[..., 1:, :, :]).flatten(-2).any(-1)
    if wrong.any():
        step = int(wrong.nonzero()[0, -1]) + 1
        raise ValueError(
            f"structure = 'mean_field' was given, but at step {step} two states that are possible "
            "by themselves are not possible together (a transition of probability zero), so "
            "independent states have an objective of -inf; use structure='markov'."
        )


class PathGuide(OwnParameters):
    """A guide for the ``path`` site of :class:`~chmm_pyro.models.relaxed.RelaxedCHMM`.

    Subclasses say which paths a batch allows and give the logits of their edges.

    Args:
        structure: ``"markov"``, or ``"mean_field"`` for independent states.
        relaxation: ``"gumbel"``, ``"straight_through"`` or ``"mean"``, see
            :class:`~chmm_pyro.inference.markov_path.MarkovPath`; with the mean, Pyro's ELBO and
            its gradient are exact.
        temperature: of the relaxation.
        entropy_weight: how often the entropy counts in the objective; 1 makes it the ELBO.
    """

    def __init__(
        self,
        *,
        structure: str = "markov",
        relaxation: str = "gumbel",
        temperature: float = 0.5,
        entropy_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if structure not in STRUCTURES:
            raise ValueError(f"structure = {structure!r}, expected one of {STRUCTURES}.")
        check_relaxation(relaxation, temperature)
        if not entropy_weight >= 0:
            raise ValueError(
                f"entropy_weight = {entropy_weight}, expected >= 0: 1 for the posterior, towards "
                "0 for the most probable path."
            )
        self.structure = structure
        self.relaxation = relaxation
        self.temperature = temperature
        self.entropy_weight = entropy_weight

    def support(self, batch: SequenceBatch) -> PathSupport:
        """Which paths ``batch`` allows."""
        raise NotImplementedError

    def edge_logits(self, batch: SequenceBatch, support: PathSupport) -> Tensor:
        """``(..., T, R, R)`` logits, or ``(..., T, 1, R)`` for independent states."""
        raise NotImplementedError

    def path(self, batch: SequenceBatch) -> MarkovPath:
        """The distribution of the paths of ``batch``."""
        support = self.support(batch)
        return MarkovPath(
            self.edge_logits(batch, support),
            support.usable,
            temperature=self.temperature,
            relaxation=self.relaxation,
        )

    def forward(self, batch: SequenceBatch, initial_logits: Tensor | None = None) -> Tensor:
        """The Pyro program; called like the model."""
        weight = self.entropy_weight
        weigh = poutine.scale(scale=weight) if weight > 0 else poutine.mask(mask=False)
        with sequence_plate(batch), weigh:
            return pyro.sample("path", self.path(batch))

    @torch.no_grad()
    def mode(self, model: CloneModel, batch: SequenceBatch) -> StatePath:
        """The most probable path under the guide, with its joint log-probability in the model."""
        support = self.support(batch)
        states = self.path(batch).mode() + support.first_state
        states = torch.where(support.inside, states, MISSING)
        joint = RelaxedPath(model.distribution(batch), batch.obs)
        return StatePath(states, joint.log_prob(joint.one_hot(states)).double())


def path_elbo(
    model: CloneModel, guide: PathGuide, batch: SequenceBatch, *, entropy_weight: float = 1.0
) -> Tensor:
    """``(...)`` exact ``E_q[log p] + entropy_weight * H(q)`` of each sequence, without draws.

    At weight 1 this is the ELBO, at most ``log_prob``; at 0, at most the score of the best path.
    """
    chain = guide.path(batch)
    joint = RelaxedPath(model.distribution(batch), batch.obs)
    return joint.log_prob(chain.mean) + entropy_weight * chain.entropy()
