"""Answers about hidden states: posterior probabilities and most probable paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Posterior", "StatePath"]


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
        """``(..., S)`` probabilities of all states at step ``t``."""
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
