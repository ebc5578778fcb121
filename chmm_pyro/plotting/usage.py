"""How many of its clones a symbol needs."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ..clones import CloneStructure
from ..vocabulary import Vocabulary
from .colors import axes_or_new, name_of, symbol_colors

__all__ = ["plot_clone_usage"]

_LEAST = 0.5  # steps; a state expected less often counts as unused
_GAP = 0.06  # between symbols, as a share of all states


def plot_clone_usage(
    usage: ArrayLike,
    clones: CloneStructure,
    ax: Axes | None = None,
    *,
    vocabulary: Vocabulary | None = None,
) -> Axes:
    """How often each clone is used, the most used of each symbol first.

    Args:
        usage: ``(S,)`` expected steps in each state, from
            :func:`~chmm_pyro.maps.usage.state_usage` or counted on a decoded path.
        clones: the structure of the states.
        ax: where; by default in a new figure.
        vocabulary: what the symbols are called.

    Raises:
        ValueError: a number for something other than each state, or none used.
    """
    steps = np.asarray(usage, dtype=float)
    if steps.shape != (clones.num_states,) or not (steps >= 0).all() or not steps.max() > _LEAST:
        raise ValueError(
            f"usage has shape {steps.shape}, expected ({clones.num_states},) steps, one for each "
            "state and more than none in all; see scores.state_usage."
        )
    ax = axes_or_new(ax)
    colors = symbol_colors(clones.num_symbols)
    gap = max(1, round(_GAP * clones.num_states))
    left, middles, names = 0, [], []
    for symbol, count in enumerate(clones.num_clones):
        own = np.sort(steps[clones.states(symbol)])[::-1]
        ax.bar(np.arange(left, left + count), own, width=0.9, color=colors[symbol])
        used = int((own >= _LEAST).sum())
        middles.append(left + (count - 1) / 2)
        names.append(f"{name_of(symbol, vocabulary)}\n{used} of {count}")
        left += count + gap
    ax.set_yscale("log")
    ax.set_ylim(_LEAST, 2 * steps.max())
    ax.set_xlim(-gap, left)
    ax.set_xticks(middles)
    for tick, name in zip(ax.get_xticklabels(), names, strict=True):
        tick.set_parse_math(False)
        tick.set_text(name)
    ax.set_xticklabels(names, parse_math=False)
    ax.tick_params(axis="x", length=0)
    ax.set(xlabel="symbol, and how many of its clones are used", ylabel="expected steps")
    ax.set_title(f"{int((steps >= _LEAST).sum())} of {clones.num_states} states used")
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
