"""The generative process written step by step, hidden clones summed out by Pyro's enumeration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import infer_discrete
from torch import Tensor
from torch.nn.functional import pad

from ..clones import MISSING, CloneStructure
from ..data_layout import lay_out
from ..sequences import SequenceBatch
from ..tables import BlockTable
from .base import CloneModel, sequence_plate

__all__ = ["EnumeratedCHMM"]

_IMPOSSIBLE = -1e30
"""Log-probability of a structural zero within the program, in place of ``-inf``.

Where a symbol cannot follow a state, the distribution of its clones still has to be normalised,
and a row of only ``-inf`` would make that NaN.  The value outweighs any sequence of possible
steps, so nothing impossible is ever preferred.
"""


class _Data(NamedTuple):
    """What is known of each step of ``B`` padded sequences, and the states that it allows.

    Attributes:
        symbols: ``(B, T)``, 0 where none was observed.
        actions: ``(B, T - 1)``, 0 in the padding.
        inside: ``(B, T)`` whether the sequence has this step.
        observed: ``(B, T)`` whether it has a symbol there.
        first: ``(B, T)`` the lowest state allowed; the others follow.
        size: ``(B, T)`` how many; 1 beyond the end of a sequence: nothing is left to sum there.
    """

    symbols: Tensor
    actions: Tensor
    inside: Tensor
    observed: Tensor
    first: Tensor
    size: Tensor


def _data(clones: CloneStructure, num_actions: int, batch: SequenceBatch) -> _Data:
    """Check a batch and look up what its steps allow."""
    obs = batch.obs.view(batch.num_sequences, -1)
    actions = batch.actions.view(batch.num_sequences, -1)
    shape = obs.shape[:1]
    layout = lay_out(
        clones, obs, actions, batch.lengths, shape=shape, num_actions=num_actions, per_step=False
    )
    lengths = torch.as_tensor(layout.lengths, device=obs.device)
    inside = torch.arange(obs.shape[1], device=obs.device) < lengths.unsqueeze(-1)
    first, size = torch.zeros_like(obs), torch.ones_like(obs)
    first[inside] = torch.as_tensor(layout.support_start, device=obs.device)
    size[inside] = torch.as_tensor(layout.support_size, device=obs.device)
    observed = inside & (obs != MISSING)
    return _Data(torch.where(observed, obs, 0), actions, inside, observed, first, size)


def _rows_and_entries(
    data: _Data, num_rows: int, num_states: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Which row of next-state logits each step is entered by, and where its entries are.

    Rows are those of the transition table, ``action * S + state``, and then one initial row for
    each sequence, by which the first step is entered (from a single, nameless state).

    Returns:
        ``T`` times ``(W_before, B)`` rows, and ``T`` times ``(W_before, B, W)`` entries of the flat
        rows; those of clones that do not exist point behind the last one.
    """
    num_sequences = len(data.first)
    local = torch.arange(int(data.size.max()), device=data.first.device)
    sequence = torch.arange(num_sequences, device=data.first.device)
    rows, entries = [(num_rows + sequence).unsqueeze(0)], []
    for t, width in enumerate(data.size.amax(0).tolist()):
        states = data.first[:, t, None] + local[:width]
        absent = local[:width] >= data.size[:, t, None]
        entry = rows[t].unsqueeze(-1) * num_states + states
        entries.append(entry.masked_fill(absent, (num_rows + num_sequences) * num_states))
        if t < data.actions.shape[1]:
            # Nothing leaves a clone that does not exist, so any row will do for it.
            states = states.clamp(max=num_states - 1)
            rows.append((data.actions[:, t, None] * num_states + states).T)
    return rows, entries


def _gather(values: Tensor, indices: list[Tensor]) -> list[Tensor]:
    """``values[index]`` for each index, in one operation: its gradient is the size of the table."""
    gathered = values[torch.cat([index.flatten() for index in indices])]
    parts = gathered.split([index.numel() for index in indices])
    return [
        part.view(*index.shape, *values.shape[1:])
        for part, index in zip(parts, indices, strict=True)
    ]


class _Logits(NamedTuple):
    """Logits of the sites of one step, for each clone of the step before and each sequence.

    Attributes:
        symbol: ``(W_before, B, V)``.
        clone: ``(W_before, B, W)``; ``W`` is the most states that any sequence allows here.
        action: ``(W_before, B, A)``, or None where actions have no probability.
    """

    symbol: Tensor
    clone: Tensor
    action: Tensor | None


class EnumeratedCHMM(CloneModel):
    """Clone-structured HMM with a symbol and an enumerated clone at every step.

    The model of :class:`~chmm_pyro.models.point.PointCHMM`, with the same parameters (state
    dictionaries fit both), written as the process itself.  At step ``t`` the state before and
    the action give a symbol, site ``obs_t``, and then one of its clones, site ``clone_t``: a
    number below ``num_clones[symbol]``, or any state where the symbol is missing.  Joint action
    models, and learned action probabilities, put a site ``action_{t - 1}`` before them.  The
    sequences are a plate ``sequences``, also if there is only one.

    ``TraceEnum_ELBO`` sums the clones out and gives PointCHMM's loss and gradient.  This program
    is there to be changed step by step, and to check others against; as it is, PointCHMM does
    the same thousands of times faster.

    **Length.** A gradient takes 1.5 to 2 ms of one core and 0.1 MB for each step (1,000 steps:
    2 s), hardly more for 64 sequences at once or for 70 clones.  It is all small tensors:
    ``torch.set_num_threads(1)`` helps where other programs run.

    **Accuracy.** Pyro loses gradient where all paths through a step have less than ``1e-16``
    (float32: ``1e-7``) of the probability that the two halves of the sequence would each allow.
    A crisp model of surprising data gets there: use float64, or PointCHMM, which is exact.

    Args:
        clones: see :class:`~chmm_pyro.models.base.CloneModel` for this and all others.

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> from pyro.infer import TraceEnum_ELBO
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 1, 0])
        >>> model = EnumeratedCHMM(CloneStructure([2, 2]), num_actions=1, seed=0)
        >>> loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda batch: None, batch)
        >>> exact = model.distribution(batch).log_prob(batch.obs)
        >>> abs(loss + exact.item()) < 1e-5
        True
    """

    enumerates = True

    max_steps = 10_000
    """Longer sequences are refused: a gradient takes half a minute there.  Raise it to insist."""

    def forward(self, batch: SequenceBatch, initial_logits: Tensor | None = None) -> None:
        """The Pyro program.

        Args:
            batch: sequences to condition on, one or many.
            initial_logits: see :meth:`~chmm_pyro.models.base.CloneModel.distribution`.

        Raises:
            ValueError: sequences that are impossible under the model or longer than
                :attr:`max_steps`.
        """
        steps = batch.obs.shape[-1]
        if steps > self.max_steps:
            raise ValueError(
                f"batch has sequences of {steps:,} steps, expected at most max_steps = "
                f"{self.max_steps:,}; use PointCHMM, which has the same parameters, loss and "
                "gradient, or cut them with `batch.segments`."
            )
        data = _data(self.clones, self.num_actions, batch)
        logits = self._logits(batch, data, initial_logits)
        inside, observed = data.inside, data.observed
        sequence = torch.arange(batch.num_sequences, device=inside.device)
        clone = torch.zeros_like(sequence)
        with pyro.plate("sequences", 1) if batch.single else sequence_plate(batch):
            for t in pyro.markov(range(steps)):
                before = clone, sequence
                if t and logits[t].action is not None:
                    action = dist.Categorical(logits=logits[t].action[before]).mask(inside[:, t])
                    pyro.sample(f"action_{t - 1}", action, obs=data.actions[:, t - 1])
                symbol = dist.Categorical(logits=logits[t].symbol[before]).mask(observed[:, t])
                pyro.sample(f"obs_{t}", symbol, obs=data.symbols[:, t])
                one_of = dist.Categorical(logits=logits[t].clone[before])
                clone = pyro.sample(f"clone_{t}", one_of, infer={"enumerate": "parallel"})

    def states(self, samples: Mapping[str, Tensor], batch: SequenceBatch) -> Tensor:
        """Global states from samples of the clone sites, such as those of ``Predictive``.

        Args:
            samples: ``(..., B)`` values by site; others than ``clone_t`` are ignored.
            batch: the sequences that the program was run on.

        Returns:
            ``(..., B, T)``, or ``(..., T)`` for a single sequence; MISSING in the padding.
        """
        data = _data(self.clones, self.num_actions, batch)
        local = torch.stack([samples[f"clone_{t}"] for t in range(data.first.shape[1])], -1)
        states = torch.where(data.inside, data.first + local, MISSING)
        return states.squeeze(-2) if batch.single else states

    @torch.no_grad()
    def decode(
        self,
        batch: SequenceBatch,
        *,
        temperature: int = 0,
        initial_logits: Tensor | None = None,
    ) -> Tensor:
        """Most probable states (temperature 0) or a posterior sample (1), by ``infer_discrete``.

        Returns:
            ``(T,)`` or ``(B, T)`` global states; MISSING in the padding.
        """
        decoder = infer_discrete(self, first_available_dim=-2, temperature=temperature)
        trace = poutine.trace(decoder).get_trace(batch, initial_logits)
        samples = {
            # Pyro drops or adds dimensions of size one.
            name: trace.nodes[name]["value"].reshape(-1).expand(batch.num_sequences)
            for name in trace.stochastic_nodes
        }
        return self.states(samples, batch)

    def _logits(
        self, batch: SequenceBatch, data: _Data, initial_logits: Tensor | None
    ) -> list[_Logits]:
        table = self.transition.table()
        dense = table.dense() if isinstance(table, BlockTable) else table
        log_initial = self.initial.logits if initial_logits is None else initial_logits
        log_initial = log_initial.log_softmax(-1).expand(batch.num_sequences, -1)
        log_rows = torch.cat([dense.values.flatten(0, 1), log_initial])
        if not log_rows.isfinite().all():
            self._refuse_impossible(batch, initial_logits)
        log_rows = log_rows.clamp(min=_IMPOSSIBLE)

        num_rows, num_states = self.num_actions * self.clones.num_states, self.clones.num_states
        rows, entries = _rows_and_entries(data, num_rows, num_states)
        by_symbol = [part.logsumexp(-1) for part in log_rows.split(self.clones.num_clones, -1)]
        symbols = _gather(torch.stack(by_symbol, -1), rows)
        # A clone that does not exist must lose even to clones that are all impossible.
        clones = _gather(pad(log_rows.flatten(), (0, 1), value=2 * _IMPOSSIBLE), entries)
        by_action = self._by_action(log_rows[:num_rows])
        if by_action is None:
            return [_Logits(*step, None) for step in zip(symbols, clones, strict=True)]
        actions = _gather(by_action, [row % num_states for row in rows])
        return [_Logits(*step) for step in zip(symbols, clones, actions, strict=True)]

    def _by_action(self, log_rows: Tensor) -> Tensor | None:
        """``(S, A)`` logits of the action in each state, or None without a model of actions."""
        states = self.clones.num_states
        if self.action_model == "joint":
            return log_rows.logsumexp(-1).view(-1, states).T
        return None if self.action_logits is None else self.action_logits.expand(states, -1)

    @torch.no_grad()
    def _refuse_impossible(self, batch: SequenceBatch, initial_logits: Tensor | None) -> None:
        hmm = self.distribution(batch, initial_logits=initial_logits)
        impossible = torch.isneginf(hmm.log_prob(batch.obs)).reshape(-1)
        if impossible.any():
            number = int(impossible.nonzero()[0])
            raise ValueError(
                f"sequence {number} of batch has probability zero, expected one that the model "
                "can produce (enumeration has no gradient for others); PointCHMM gives -inf, "
                "`model.distribution(batch).filter(batch.obs)` names the step."
            )
