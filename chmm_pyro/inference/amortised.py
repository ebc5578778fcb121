r"""A recurrent network that infers paths: one guide for many sequences, also unseen ones.

The posterior of a hidden Markov model factorises forwards, and what a factor needs of the data is
their future,

.. math::

    p(z_t \mid z_{t-1}, x, a) \propto T_{a_{t-1}}[z_{t-1}, z_t] \, p(x_{>t} \mid z_t, a_{\ge t}),

so a Markov guide whose logits combine the state before, the action and a recurrent summary of the
data is *structured* like the posterior, and only the summary has to be learned.

References:
    Krishnan, Shalit, Sontag 2017, "Structured inference networks for nonlinear state space
    models", AAAI.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..clones import MISSING
from ..distribution import CloneHMM
from ..models.base import CloneModel
from ..models.relaxed import RelaxedPath
from ..sequences import SequenceBatch
from .path_guide import PathGuide, PathSupport

__all__ = ["AmortisedPathGuide"]


class AmortisedPathGuide(PathGuide):
    """Paths from a bidirectional recurrent network over observations and actions.

    Train it with :func:`~chmm_pyro.inference.gumbel.fit_gumbel` (``entropy_weight=(1, 1)`` for the
    posterior, a ``guide_learning_rate`` near 0.03), or on minibatches with
    :func:`~chmm_pyro.inference.svi.fit_svi`.

    Args:
        model: gives the clone structure, the actions and which transitions are possible; its
            parameters are not used.
        hidden_size: width of the network.
        seed: of the network's weights.
        options: of :class:`~chmm_pyro.inference.path_guide.PathGuide`; by default the relaxation
            is ``"mean"``, which has exact gradients.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> from chmm_pyro.models import PointCHMM
        >>> model = PointCHMM(CloneStructure([2, 1]), num_actions=1)
        >>> guide = AmortisedPathGuide(model, hidden_size=8)
        >>> guide.path(SequenceBatch.from_arrays([[0, 1, 0], [1, 0]])).entropy().shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: CloneModel,
        *,
        hidden_size: int = 32,
        seed: int = 0,
        relaxation: str = "mean",
        **options: Any,
    ) -> None:
        super().__init__(relaxation=relaxation, **options)
        if hidden_size < 1:
            raise ValueError(f"hidden_size = {hidden_size}, expected at least 1.")
        self.clones, self.num_actions = model.clones, model.num_actions
        with torch.no_grad():
            self._table = model.transition.table()
            for name, log_probs in (
                ("_possible_first", model.initial.logits),
                ("_possible", self._table.values),
            ):
                pattern = torch.where(torch.isneginf(log_probs), log_probs, 0.0)
                self.register_buffer(name, pattern, persistent=False)
        states, size = self.clones.num_states, hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.symbols = nn.Embedding(self.clones.num_symbols + 1, size)
            self.actions = nn.Embedding(self.num_actions + 1, size)
            self.recurrent = nn.GRU(size, size, batch_first=True, bidirectional=True)
            self.summary = nn.Linear(2 * size, size)
            # One vector for each action and old state, with one of each for the first step.
            old = torch.randn(self.num_actions + 1, states + 1, size)
            self.old_states = nn.Parameter(old) if self.structure == "markov" else None
            self.new_states = nn.Linear(size, states)
        self.to(self._possible.dtype)

    def support(self, batch: SequenceBatch) -> PathSupport:
        table = copy.copy(self._table)
        table.values = self._possible
        hmm = CloneHMM(
            self.clones, self._possible_first, table, batch.actions, lengths=batch.lengths
        )
        return PathSupport.of(RelaxedPath(hmm, batch.obs), self.structure)

    def edge_logits(self, batch: SequenceBatch, support: PathSupport) -> Tensor:
        num_states, width = self.clones.num_states, support.usable.shape[-1]
        first = support.first_state.view(batch.num_sequences, -1)
        actions = batch.actions.view(batch.num_sequences, -1)
        hidden = self._summarise(batch, actions).unsqueeze(-2)
        # Beyond a support any state will do: its edges are not usable.
        states = (first.unsqueeze(-1) + torch.arange(width, device=first.device)).clamp(
            max=num_states - 1
        )
        if self.old_states is not None:
            old = pad(states[:, :-1], (0, 0, 1, 0), value=num_states)
            action = pad(actions, (1, 0), value=self.num_actions)
            hidden = hidden + self.old_states[action.unsqueeze(-1), old]
        weight, bias = self.new_states.weight[states], self.new_states.bias[states]
        logits = torch.tanh(hidden) @ weight.transpose(-1, -2) + bias.unsqueeze(-2)
        return logits.view(*support.usable.shape[:-2], *logits.shape[-2:])

    def _summarise(self, batch: SequenceBatch, actions: Tensor) -> Tensor:
        """``(B, T, hidden_size)`` what the whole sequence says about each step."""
        obs = batch.obs.view(batch.num_sequences, -1)
        symbols = torch.where(obs == MISSING, self.clones.num_symbols, obs)
        lengths, steps = batch.offsets.diff(), obs.shape[1]
        last = torch.arange(steps, device=obs.device) >= lengths.unsqueeze(-1) - 1
        leaving = torch.where(last, self.num_actions, pad(actions, (0, 1)))
        packed = pack_padded_sequence(
            self.symbols(symbols) + self.actions(leaving),
            lengths.cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        outputs, _ = pad_packed_sequence(
            self.recurrent(packed)[0], batch_first=True, total_length=steps
        )
        return self.summary(outputs)
