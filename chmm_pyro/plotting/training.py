"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from .colors import PALETTE, axes_or_new

__all__ = ["plot_objective", "plot_training"]


class _Trained(Protocol):
    """A :class:`~chmm_pyro.inference.result.FitResult`, which is built on top of this module."""

    @property
    def bits_per_step(self) -> float: ...

    @property
    def bits_per_step_history(self) -> NDArray[np.float64] | None: ...

    @property
    def seconds_history(self) -> NDArray[np.float64]: ...


def plot_training(
    results: Mapping[str, _Trained],
    ax: Axes | None = None,
    *,
    x: Literal["iterations", "seconds"] = "iterations",
) -> Axes:
    """Bits per step of fits against iterations or seconds, on a logarithmic axis.

    Args:
        results: fits by name; each keeps its colour by its place in the mapping.
        ax: where; by default in a new figure.
        x: what the fits are drawn against.

    Raises:
        ValueError: no fit, or one without a history of likelihoods (Viterbi training).
    """
    if x not in ("iterations", "seconds"):
        raise ValueError(f"x = {x!r}, expected 'iterations' or 'seconds'.")
    if not results:
        raise ValueError("results is empty, expected at least one fit by name.")
    ax = axes_or_new(ax)
    for number, (name, result) in enumerate(results.items()):
        bits = result.bits_per_step_history
        if bits is None:
            raise ValueError(
                f"results[{name!r}] has no log_prob_history, expected a fit that evaluates the "
                "likelihood, such as fit_svi or fit_em; leave it out, or draw its objective with "
                "plot_objective."
            )
        along = np.arange(len(bits)) if x == "iterations" else result.seconds_history
        color = PALETTE[number % len(PALETTE)]
        label = f"{name}: {result.bits_per_step:.4g} bits/step"
        ax.plot(along, bits, color=color, linewidth=2, label=label)
        ax.plot(along[-1:], bits[-1:], "o", color=color, markersize=5)
    ax.set(xlabel="iteration" if x == "iterations" else "seconds", ylabel="bits per step")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    low, high = ax.get_ylim()
    if high < 100 * low:  # powers of ten alone would be too few to read from
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.tick_params(axis="y", which="minor", labelsize="small")
    else:
        ax.yaxis.set_minor_formatter(NullFormatter())
    _finish(ax)
    ax.legend(frameon=False)
    return ax


def plot_objective(
    history: NDArray[np.float64], ax: Axes | None = None, *, label: str = "objective"
) -> Axes:
    """What a method optimises after each update, such as the path score of Viterbi training.

    Args:
        history: ``(K,)`` an ``objective_history``.
        ax: where; by default in a new figure.
        label: what it is, with its unit.

    Raises:
        ValueError: an empty history.
    """
    values = np.asarray(history)
    if not values.size:
        raise ValueError("history is empty, expected the objective of at least one update.")
    ax = axes_or_new(ax)
    ax.plot(np.arange(len(values)), values, "o-", color=PALETTE[0], linewidth=2, markersize=4)
    ax.set(xlabel="update", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(ax)
    return ax


def _finish(ax: Axes) -> None:
    ax.grid(which="both", alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
