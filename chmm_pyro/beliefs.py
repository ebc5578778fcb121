"""Answers about hidden states: posterior probabilities and most probable paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["Posterior", "StatePath", "checked_belief"]


@dataclass(frozen=True)
class Posterior:
    """State probabilities of every step, stored for the states that the step allows.

    Attributes:
        probs: ``(..., T, R)``; entry ``[t, i]`` belongs to the ``i``-th state that step ``t``
            allows (the clones of its symbol; every state where it is missing), zero beyond that
            and in the padding.
        first_state: ``(..., T)`` the global state of entry ``0``.
        num_states: ``S``.
        initial_counts: ``(..., S)`` posterior of the first state; None for a filter.
        transition_counts: ``(..., A, S, S)`` expected counts (the shape of the transition table);
            None for a filter.
    """

    probs: Tensor
    first_state: Tensor
    num_states: int
    initial_counts: Tensor | None = None
    transition_counts: Tensor | None = None

    def dense(self) -> Tensor:
        """``(..., T, S)`` probabilities of all states; differentiable."""
        local = torch.arange(self.probs.shape[-1], device=self.probs.device)
        # Entries beyond a support are zero, so wrapping them around adds nothing.
        state = (self.first_state.unsqueeze(-1) + local) % self.num_states
        empty = self.probs.new_zeros(*self.probs.shape[:-1], self.num_states)
        return empty.scatter_add(-1, state, self.probs)

    def at(self, t: int) -> Tensor:
        """``(..., S)`` probabilities of all states at step ``t``, from the end if negative."""
        steps = self.probs.shape[-2]
        if not -steps <= t < steps:
            raise IndexError(f"t = {t}, expected a step of {steps}: {-steps} <= t < {steps}.")
        one = Posterior(
            self.probs[..., t : t + 1, :] if t != -1 else self.probs[..., -1:, :],
            self.first_state[..., t : t + 1] if t != -1 else self.first_state[..., -1:],
            self.num_states,
        )
        return one.dense().squeeze(-2)


class StatePath(NamedTuple):
    """A most probable path.

    Attributes:
        states: ``(..., T)`` global states; MISSING beyond the end of a shorter sequence.
        score: ``(...)`` float64 joint natural log-probability of path and data.
    """

    states: Tensor
    score: Tensor


def checked_belief(belief: ArrayLike, num_nodes: int) -> NDArray[np.float64]:
    """``(N,)`` a belief over the places of a map, with sum one.

    Args:
        belief: ``(N,)`` probabilities, or weights in proportion to them.
        num_nodes: ``N``.

    Raises:
        ValueError: another shape, NaN, an infinite or a negative weight, or zeros alone.

    Example:
        >>> checked_belief([1, 0, 3], num_nodes=3)
        array([0.25, 0.  , 0.75])
    """
    weights = np.asarray(belief, dtype=float)
    if weights.shape != (num_nodes,):
        raise ValueError(
            f"belief has shape {weights.shape}, expected ({num_nodes},): a probability for each "
            "node of the map."
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        node = int(np.argmax(wrong))
        raise ValueError(
            f"belief[{node}] = {weights[node]:g}, expected a probability; look for NaN where it "
            "was computed."
        )
    if not weights.any():
        raise ValueError(
            "belief is zero everywhere, expected a place where one may be; leave it out for a "
            "uniform one."
        )
    return weights / weights.sum()
