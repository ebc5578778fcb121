"""Models whose parameters are given tensors, such as the values of Pyro sites, instead of free."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule

from ..distribution import CloneHMM
from ..parameters import Transition
from ..tables import DenseTable
from .enumerated import EnumeratedCHMM

__all__ = ["step_by_step"]


class _Given(Transition):
    """A table that is not made from parameters of its own."""

    def __init__(self, table: DenseTable) -> None:
        super().__init__()
        self.clones, self.num_actions = table.clones, table.num_actions
        self.action_model = table.action_model
        self._table = table

    def table(self) -> DenseTable:
        return self._table


def step_by_step(hmm: CloneHMM) -> EnumeratedCHMM:
    """The program of :class:`~chmm_pyro.models.enumerated.EnumeratedCHMM` of a distribution.

    Args:
        hmm: one set of parameters, every transition stored; gradients flow to them.
    """
    assert isinstance(hmm.table, DenseTable)
    program = EnumeratedCHMM.__new__(EnumeratedCHMM)
    PyroModule.__init__(program)
    program._assemble(
        _Given(hmm.table), learn_initial=False, learn_actions=False, dtype=hmm.table.values.dtype
    )
    # Not parameters here, but what a program is told.
    values: dict[str, Any] = {"initial": hmm.log_initial, "actions": hmm.log_actions}
    program.initial.logits, program.action_logits = values["initial"], values["actions"]
    return program
