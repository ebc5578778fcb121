"""States that emit other symbols than their own: a full emission table beside the clones."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from numpy.typing import ArrayLike
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, nn

from ..clones import MISSING, CloneStructure
from ..data_layout import bad_entry, symbol_of_state
from ..distribution import CloneHMM
from ..jobs import JobBatch, pose
from ..sequences import SequenceBatch
from ..tables import DenseTable
from .base import sequence_plate
from .point import PointCHMM

__all__ = ["NoisyCHMM", "NoisyCloneHMM", "noisy_steps", "state_chain"]


class NoisyCloneHMM(CloneHMM):
    """A :class:`~chmm_pyro.distribution.CloneHMM` whose states emit by a table.

    Every state may emit every symbol, so a step costs :math:`S^2`.

    Args:
        clones: the clone structure; it only says which symbol a state is called after.
        initial_logits: ``(*P, S)``.
        transition_logits: ``(*P, A, S, S)`` or a table.
        actions: ``(*B, T - 1)``.
        log_emission: ``(*P, S, V)``; like a table of transitions it is used as it is.
        options: ``lengths``, ``action_model``, ``action_logits`` and ``validate_args``.
    """

    def __init__(
        self,
        clones: CloneStructure,
        initial_logits: Tensor,
        transition_logits: Any,
        actions: ArrayLike | Tensor,
        *,
        log_emission: Tensor,
        **options: Any,
    ) -> None:
        expected = (clones.num_states, clones.num_symbols)
        if log_emission.shape[-2:] != expected:
            raise ValueError(
                f"log_emission has shape {tuple(log_emission.shape)}, expected "
                f"(..., {expected[0]}, {expected[1]}): state, symbol."
            )
        self.log_emission = log_emission
        super().__init__(clones, initial_logits, transition_logits, actions, **options)

    def expand(self, batch_shape: Any, _instance: CloneHMM | None = None) -> CloneHMM:
        new = self._get_checked_instance(NoisyCloneHMM, _instance)
        new.log_emission = self.log_emission
        return super().expand(batch_shape, new)

    def _problem(self, value: ArrayLike | Tensor) -> JobBatch:
        obs, actions, lengths = self._data(value)
        wrong = (obs < MISSING) | (obs >= self.clones.num_symbols)
        if wrong.any():
            raise bad_entry("obs", obs, wrong, f"a symbol below {self.clones.num_symbols}")
        batch = torch.broadcast_shapes(obs.shape[:-1], self.log_emission.shape[:-2])
        by_symbol = self.log_emission.transpose(-2, -1).expand(*batch, *self._emission_shape)
        index = obs.clamp(min=0).unsqueeze(-1).expand(*batch, -1, by_symbol.shape[-1])
        evidence = torch.where((obs == MISSING).unsqueeze(-1), 0.0, by_symbol.gather(-2, index))
        return pose(
            self.table,
            self.log_initial,
            evidence,
            torch.full_like(obs, MISSING),
            actions,
            lengths,
            batch_shape=self.batch_shape,
        )

    @property
    def _emission_shape(self) -> tuple[int, int]:
        return self.clones.num_symbols, self.clones.num_states

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), *, first_symbol: Any = None) -> Tensor:
        if first_symbol is not None:
            raise ValueError(
                f"first_symbol = {first_symbol} was given to a NoisyCloneHMM, expected None: its "
                "states emit any symbol."
            )
        return self.sample_symbols(state_chain(self).sample(sample_shape))

    @torch.no_grad()
    def sample_symbols(self, states: Tensor) -> Tensor:
        """Draw what states ``(..., T)`` emit; 0 beyond the end of a sequence."""
        table = self.log_emission.exp()
        index = states.unsqueeze(-1).expand(*states.shape, table.shape[-1])
        probs = table.expand(*states.shape[:-1], *table.shape[-2:]).gather(-2, index)
        symbols = torch.multinomial(probs.flatten(0, -2), 1).view(states.shape)
        if self.lengths is None:
            return symbols
        inside = torch.arange(states.shape[-1], device=states.device) < self.lengths.unsqueeze(-1)
        return torch.where(inside, symbols, 0)


def state_chain(hmm: CloneHMM) -> CloneHMM:
    """The distribution whose symbols are the states of ``hmm``, without soft evidence."""
    single = CloneStructure([1] * hmm.clones.num_states)
    table = DenseTable(single, hmm.table.values, hmm.action_model)
    return CloneHMM(single, hmm.log_initial, table, hmm.actions, lengths=hmm.lengths)


def noisy_steps(hmm: NoisyCloneHMM, batch: SequenceBatch) -> None:
    """The program of ``hmm`` with a site for every hidden state, for ``TraceEnum_ELBO``.

    Sites are the enumerated ``clone_t`` (a global state), the observed ``obs_t`` and, where actions
    have a probability, factors ``action_t``.

    Args:
        hmm: one set of parameters.
        batch: the data that it was made for.
    """
    num_steps = batch.obs.shape[-1]
    lengths = torch.tensor(num_steps) if batch.lengths is None else batch.lengths
    rows = hmm.log_initial
    with sequence_plate(batch):
        for t in pyro.markov(range(num_steps)):
            symbol = batch.obs[..., t]
            with poutine.mask(mask=t < lengths):
                state = pyro.sample(
                    f"clone_{t}", dist.Categorical(logits=rows), infer={"enumerate": "parallel"}
                )
                with poutine.mask(mask=symbol != MISSING):
                    emitted = dist.Categorical(logits=hmm.log_emission[state])
                    pyro.sample(f"obs_{t}", emitted, obs=symbol.clamp(min=0))
            if t + 1 < num_steps:
                driven = t + 1 < lengths
                action = torch.where(driven, batch.actions[..., t], 0)
                rows = hmm.table.values[action, state]
                taken = rows.logsumexp(-1)  # p(a | z) of a joint model, else one
                if hmm.log_actions is not None:
                    taken = taken + hmm.log_actions[action]
                with poutine.mask(mask=driven):
                    pyro.factor(f"action_{t}", taken)


class NoisyCHMM(PointCHMM):
    """A :class:`~chmm_pyro.models.point.PointCHMM` with a table of emissions.

    Args:
        clones: the clone structure.
        num_actions: ``A``.
        emission_logits: ``(S, V)`` start of the emission table.
        options: of :class:`~chmm_pyro.models.point.PointCHMM`.
    """

    def __init__(
        self, clones: CloneStructure, num_actions: int, emission_logits: Tensor, **options: Any
    ) -> None:
        super().__init__(clones, num_actions, dtype=emission_logits.dtype, **options)
        self.emission_logits = nn.Parameter(emission_logits.detach().clone())

    @classmethod
    def around(cls, model: PointCHMM, observation_noise: float) -> NoisyCHMM:
        """A model whose states show another symbol than their own with a given probability.

        Args:
            model: gives the states and transitions, which are shared.
            observation_noise: probability that the symbol seen is another one, all equally likely.

        Example:
            >>> from chmm_pyro import CloneStructure
            >>> model = NoisyCHMM.around(PointCHMM(CloneStructure([1, 2, 1]), 1), 0.1)
            >>> model.emission_logits.softmax(-1)[0]
            tensor([0.9000, 0.0500, 0.0500], grad_fn=<SelectBackward0>)
        """
        clones = model.clones
        if not 0 < observation_noise < 1:
            raise ValueError(
                f"observation_noise = {observation_noise}, expected a probability above 0 and "
                "below 1; use the model itself if there is none."
            )
        if clones.num_symbols == 1:
            raise ValueError(
                f"observation_noise = {observation_noise} was given with one symbol, expected at "
                "least two; there is no other to be seen."
            )
        others = observation_noise / (clones.num_symbols - 1)
        shape = (clones.num_states, clones.num_symbols)
        table = torch.full(shape, others, dtype=model.initial.logits.dtype)
        own = symbol_of_state(clones, table.device).unsqueeze(-1)
        table.scatter_(-1, own, 1 - observation_noise)
        noisy = cls(clones, model.num_actions, table.log(), action_model=model.action_model)
        noisy.initial, noisy.transition = model.initial, model.transition
        noisy.action_logits = model.action_logits
        return noisy

    def distribution(
        self,
        batch: SequenceBatch,
        *,
        initial_logits: Tensor | None = None,
        log_evidence: Tensor | None = None,
    ) -> CloneHMM:
        if log_evidence is not None:
            raise ValueError("log_evidence was given to a NoisyCHMM, expected None.")
        return NoisyCloneHMM(
            self.clones,
            self.initial.logits if initial_logits is None else initial_logits,
            self.transition.table(),
            batch.actions,
            log_emission=self.emission_logits.log_softmax(-1),
            lengths=batch.lengths,
            action_logits=self.action_logits,
        )
