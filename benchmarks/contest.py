"""What takes part in the comparison: an implementation, set up on an instance, is a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from sizes import Instance

__all__ = ["Implementation", "Run"]


@dataclass(frozen=True)
class Run:
    """One implementation set up on one instance.

    Attributes:
        step: does the work once and returns the log-likelihood (nats) that it started from.
        reset: back to the parameters of the instance.
        updates: updates that one step does; reported times are for one.
        gradient: ``(A, S, S)`` gradient of the last step with respect to softmax logits.
    """

    step: Callable[[], float]
    reset: Callable[[], object] = lambda: None
    updates: int = 1
    gradient: Callable[[], NDArray[np.floating]] | None = None


@dataclass(frozen=True)
class Implementation:
    """How to set up a run, and what a reader must know about it.

    Attributes:
        name: for the command line and the tables.
        what: ``"em"`` (one iteration: expected counts and new table), ``"gradient"`` (loss and
            backward, ready for the optimizer), ``"svi"`` (a whole update, optimizer included),
            ``"gibbs"`` (a sweep of one chain) or ``"vb"`` (an update of the posterior).
        prepare: sets up a run.
        threads: what its design allows; the tables also show what was measured.
        needs: modules without which it is skipped.
        max_steps: instances with more steps in all are skipped: they would take minutes.
        actions: False if it solves the smaller problem without actions.
        float64: whether it computes in float64 rather than float32.
    """

    name: str
    what: str
    prepare: Callable[[Instance], Run]
    threads: str = "single-threaded"
    needs: tuple[str, ...] = ()
    max_steps: int | None = None
    actions: bool = True
    float64: bool = False

    def reason_to_skip(self, instance: Instance) -> str | None:
        """Why this does not run on ``instance``, or None."""
        missing = [name for name in self.needs if find_spec(name.split(".")[0]) is None]
        missing += [name for name in self.needs if not missing and find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        if self.max_steps is not None and instance.total_steps > self.max_steps:
            return f"too slow above {self.max_steps} steps"
        return None
