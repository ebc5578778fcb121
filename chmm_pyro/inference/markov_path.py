r"""Markov chains over clone paths whose draws can be relaxed and differentiated.

A draw picks, for every step and every state before it, one successor: with Gumbel noise :math:`G`
the row :math:`Y_t[i] = \mathrm{softmax}((\log q_t(\cdot \mid i) + G_{ti}) / \tau)`, one-hot as
:math:`\tau \to 0`.  A path follows the picks,

.. math::  y_t = y_{t-1} Y_t, \qquad path_t[i, j] = y_{t-1}[i] \, Y_t[i, j],

so a relaxed draw has as much leaving a state as arrives in it: it is a point of the polytope of
relaxed paths (:mod:`chmm_pyro.models.relaxed`), and the argmax of the same noise is an exact draw
from the chain.  The products of all steps are taken in a tree, :math:`O(\log T)` operations of
:math:`O(T R^3)` work in all, instead of a loop over time.

References:
    Maddison, Mnih, Teh 2017, "The concrete distribution"; Jang, Gu, Poole 2017, "Categorical
    reparameterization with Gumbel-softmax" (also the straight-through version).  Roeder, Wu,
    Duvenaud 2017, "Sticking the landing", for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..models.relaxed import RelaxedPaths, linear_score

__all__ = ["RELAXATIONS", "MarkovPath", "check_relaxation", "follow", "usable_edges"]

RELAXATIONS = ("gumbel", "straight_through", "mean")


def check_relaxation(relaxation: str, temperature: float) -> None:
    """Refuse options of :class:`MarkovPath` that mean nothing."""
    if relaxation not in RELAXATIONS:
        raise ValueError(f"relaxation = {relaxation!r}, expected one of {RELAXATIONS}.")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}, expected a positive number near 0.5.")


def follow(
    first: Tensor, steps: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> Tensor:
    """Where a distribution over states goes: ``first``, ``first @ steps[0]``, and so on.

    Neighbouring steps are multiplied and followed at half the pace, recursively; the states in
    between are one product away.

    Args:
        first: ``(..., R)``.
        steps: ``(..., N, R, R)``.
        multiply: an associative product of matrices.

    Returns:
        ``(..., N + 1, R)``.
    """
    count = steps.shape[-3]
    if count == 0:
        return first.unsqueeze(-2)
    even = steps[..., 0::2, :, :]
    pairs = multiply(even[..., : count // 2, :, :], steps[..., 1::2, :, :])
    at_even = follow(first, pairs, multiply)
    before = at_even[..., : even.shape[-3], :]
    at_odd = multiply(before.unsqueeze(-2), even).squeeze(-2)
    both = torch.stack([before, at_odd], -2).flatten(-3, -2)
    return both if count % 2 else torch.cat([both, at_even[..., -1:, :]], -2)


def _entrance(steps: Tensor) -> Tensor:
    """``(..., R)`` all weight in row 0, from which the first step is entered."""
    first = torch.zeros_like(steps[..., 0, 0, :])
    first[..., 0] = 1
    return first


def _reach(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right).clamp(max=1)


@torch.no_grad()
def usable_edges(allowed: Tensor, inside: Tensor) -> Tensor:
    """``(..., T, R, R)`` the allowed edges that lie on a path through the whole sequence.

    Args:
        allowed: ``(..., T, R, R)`` bool.
        inside: ``(..., T)`` whether the sequence has the step; its steps come first.

    Raises:
        ValueError: no path goes through; names the first step that none reaches.
    """
    # Beyond its end a sequence goes anywhere, so that all of a batch are walked back alike.
    steps = (allowed | ~inside[..., None, None]).float()
    reached = follow(_entrance(steps), steps, _reach) > 0
    back = steps.flip(-3).transpose(-1, -2)[..., :-1, :, :]
    finishes = follow(torch.ones_like(steps[..., 0, 0, :]), back, _reach).flip(-2) > 0
    usable = allowed & reached[..., :-1, :, None] & finishes[..., None, :]
    blocked = inside & ~reached[..., 1:, :].any(-1)
    if blocked.any():
        *sequence, step = (int(i) for i in blocked.nonzero()[0])
        where = f"step {step}" + (f" of sequence {sequence}" if sequence else "")
        raise ValueError(
            f"obs is impossible at {where}: no path has positive probability up to there; use a "
            "pseudocount when fitting, or mark the step as MISSING (-1)."
        )
    return usable


class MarkovPath(TorchDistribution):
    """A Markov chain over clone-local paths, with relaxed, reparameterised draws.

    Args:
        logits: ``(..., T, R, R)``: entry ``[t, i, j]`` for the ``j``-th state of step ``t`` after
            the ``i``-th of the step before (row 0 for the first step); or ``(..., T, 1, R)`` for
            states that are independent of each other.
        usable: ``(..., T, R, R)`` bool edges that lie on a possible path; independent states need
            every pair of the states it leaves.
        temperature: of the relaxation, positive.
        relaxation: what :meth:`rsample` gives: ``"gumbel"`` relaxed draws, ``"straight_through"``
            one-hot draws with the gradient of relaxed ones, or ``"mean"``, the expected path, on
            which everything that is linear in the edges takes its exact expectation.  Where the
            objective is linear, the first two move the chain alike; what they show to a model
            that learns differs.

    Attributes:
        log_conditional: ``(..., T, R or 1, R)`` normalised logits, ``-inf`` where not usable.

    Example:
        >>> usable = torch.zeros(2, 2, 2, dtype=torch.bool)
        >>> usable[0, 0] = usable[1] = True
        >>> chain = MarkovPath(torch.zeros(2, 2, 2), usable, relaxation="straight_through")
        >>> chain.rsample().sum((-2, -1)), round(chain.entropy().exp().item(), 3)
        (tensor([1., 1.]), 4.0)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        usable: Tensor,
        *,
        temperature: float = 0.5,
        relaxation: str = "gumbel",
        validate_args: bool | None = None,
    ) -> None:
        check_relaxation(relaxation, temperature)
        self.usable = usable
        self.temperature = temperature
        self.relaxation = relaxation
        self._rows = usable.any(-2, keepdim=True) if logits.shape[-2] == 1 else usable
        self.log_conditional = self._normalised(logits, torch.log_softmax)
        super().__init__(logits.shape[:-3], usable.shape[-3:], validate_args=validate_args)

    def _normalised(self, logits: Tensor, normalise: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Rows normalised over what they may lead to; ``-inf`` or 0 elsewhere."""
        outside = torch.full_like(logits[..., :1, :1, :1], -torch.inf)
        masked = torch.where(self._rows, logits, outside)
        # A row that is never entered leads nowhere; its softmax would be NaN.
        masked = torch.where(self._rows.any(-1, keepdim=True), masked, 0.0)
        fill = -torch.inf if normalise is torch.log_softmax else 0.0
        return torch.where(self._rows, normalise(masked, -1), fill)

    @property
    def support(self) -> constraints.Constraint:
        """Relaxed paths along usable edges."""
        return RelaxedPaths(self.usable)

    def _edges(self, picks: Tensor) -> Tensor:
        """The path that follows ``(..., T, R or 1, R)`` rows of picked successors."""
        first = _entrance(picks)
        if picks.shape[-2] == 1:
            before = torch.cat([first.unsqueeze(-2), picks[..., :-1, 0, :]], -2)
        else:
            before = follow(first, picks[..., :-1, :, :])
        return before.unsqueeze(-1) * picks

    @property
    def mean(self) -> Tensor:
        """``(..., T, R, R)`` probabilities of all edges."""
        return self._edges(self._normalised(self.log_conditional, torch.softmax))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """``(*sample_shape, ..., T, R, R)`` paths; see ``relaxation``."""
        if self.relaxation == "mean":
            return self.mean.expand(self._extended_shape(sample_shape))
        logits = self.log_conditional
        noise = torch.empty(*torch.Size(sample_shape), *logits.shape).to(logits)
        noisy = logits - noise.exponential_().log()
        relaxed = self._edges(self._normalised(noisy / self.temperature, torch.softmax))
        if self.relaxation == "gumbel":
            return relaxed
        picked = torch.zeros_like(noisy).scatter_(-1, noisy.argmax(-1, keepdim=True), 1.0)
        exact = self._edges(torch.where(self._rows, picked, 0.0))
        return exact + (relaxed - relaxed.detach())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """:meth:`rsample` without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """``(...)`` log-probability of one-hot paths, extended linearly to relaxed ones."""
        if self._validate_args:
            self._validate_sample(value)
        return linear_score(value, self.log_conditional)

    def score_parts(self, value: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        r"""What Pyro's ELBO estimators differentiate: the path, not the chain it is scored with.

        The part left out, :math:`E_q[\nabla \log q]`, is zero on average over exact draws; in one
        draw it is noise, in relaxed ones a bias.  Without it a chain
        :math:`q \propto p^{1 / \lambda}` has gradient zero in every draw, at every temperature:
        :math:`\log p - \lambda \log q` is the same for all paths then, and by linearity for all
        relaxed ones.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_prob = linear_score(value, self.log_conditional.detach())
        return ScoreParts(log_prob, score_function=0, entropy_term=log_prob)

    def entropy(self) -> Tensor:
        """``(...)`` exact entropy in nats."""
        return -linear_score(self.mean, self.log_conditional)

    @torch.no_grad()
    def mode(self) -> Tensor:
        """``(..., T)`` the most probable path, as positions among the states of each step."""
        scores = self.log_conditional.expand(*self.batch_shape, *self.event_shape)
        # Padding leads nowhere; there the position is 0.
        scores = torch.where(self.usable.flatten(-2).any(-1)[..., None, None], scores, 0.0)
        to_go = torch.zeros_like(scores[..., 0, 0, :])
        choices = []
        for t in reversed(range(scores.shape[-3])):
            best = (scores[..., t, :, :] + to_go.unsqueeze(-2)).max(-1)
            to_go = best.values
            choices.append(best.indices)
        state = torch.zeros_like(choices[0][..., :1])
        path = []
        for choice in reversed(choices):
            state = choice.gather(-1, state)
            path.append(state)
        return torch.cat(path, -1)
