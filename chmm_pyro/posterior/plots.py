"""Pictures of what a posterior says about a map; ArviZ draws chains, densities and predictions.

Like :mod:`chmm_pyro.plotting`: each function draws into the ``Axes`` it is given (or into a new
figure), returns them, and never shows or saves anything.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ..plotting.colors import INK, PALETTE, axes_or_new, symbol_colors
from ..plotting.graphs import map_layout
from .maps import MapPosterior

__all__ = [
    "plot_clone_budgets",
    "plot_co_assignment",
    "plot_counts",
    "plot_map_posterior",
    "plot_plan_success",
    "plot_predictive_check",
]

_DOUBT = LinearSegmentedColormap.from_list("doubt", ["#f2b8b5", "#d55e00", INK])


def plot_map_posterior(
    found: MapPosterior,
    ax: Axes | None = None,
    *,
    positions: Literal["unfold", "known"] = "unfold",
    least: float = 0.05,
    labels: bool = False,
) -> Axes:
    """The consensus map, its edges in the colour of their probability.

    Both directions and all actions between two places share a line, which is as certain as the
    most certain of them; staying in a place is not drawn.

    Args:
        found: maps of draws, compared.
        ax: where; by default in a new figure.
        positions: as in :func:`~chmm_pyro.plotting.graphs.map_layout`.
        least: leaves out edges less probable than this.
        labels: write the number of each place.
    """
    ax = axes_or_new(ax)
    nodes = found.map.states
    old, new = np.sort(found.edges[:, [0, 2]], axis=1).T
    kept = (old != new) & (found.probability >= least) & np.isin(old, nodes) & np.isin(new, nodes)
    ends = np.searchsorted(nodes, np.stack([old[kept], new[kept]], axis=1))
    pairs, line = np.unique(ends, axis=0, return_inverse=True)
    certain = np.zeros(len(pairs))
    np.maximum.at(certain, line.reshape(-1), found.probability[kept])
    xy = map_layout(found.map, positions)
    order = np.argsort(certain)
    norm = Normalize(0, 1)
    lines = LineCollection(
        [*xy[pairs[order]]],
        colors=_DOUBT(norm(certain[order])),
        linewidths=1.0 + 2.0 * certain[order],
        zorder=1,
    )
    ax.add_collection(lines)
    colors = symbol_colors(int(found.symbols.max()) + 1)[found.map.symbols]
    size = 8_000 / (len(nodes) + 12)
    ax.scatter(xy[:, 0], xy[:, 1], s=size, color=colors, edgecolors="white", zorder=2)
    if labels:
        for name, (x, y) in zip(nodes, xy, strict=True):
            ax.text(x, y, str(name), ha="center", va="center", fontsize=6, zorder=3)
    ax.figure.colorbar(
        ScalarMappable(norm, _DOUBT), ax=ax, label="probability of the edge", shrink=0.7
    )
    ax.set_title(f"{len(nodes)} places, {len(pairs)} connections of any draw")
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.margins(0.08)
    return ax


def plot_counts(
    counts: ArrayLike,
    ax: Axes | None = None,
    *,
    truth: int | None = None,
    label: str = "places",
) -> Axes:
    """How many draws have how many places (or clones, or states).

    Args:
        counts: of every draw, of any shape.
        ax: where; by default in a new figure.
        truth: marked by a line.
        label: what is counted.
    """
    ax = axes_or_new(ax)
    values, draws = np.unique(np.asarray(counts).reshape(-1), return_counts=True)
    ax.bar(values, draws / draws.sum(), color=PALETTE[0], width=0.8)
    if truth is not None:
        ax.axvline(truth, color=INK, linestyle="--", linewidth=1.2, label=f"truth: {truth}")
        ax.legend(frameon=False)
    ax.set(xlabel=f"number of {label}", ylabel="share of draws")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_plan_success(
    success: ArrayLike, ax: Axes | None = None, *, label: str | None = None
) -> Axes:
    """How probably a plan succeeds, under each draw and integrated over them.

    Args:
        success: from :meth:`~chmm_pyro.posterior.maps.MapPosterior.plan_success`.
        ax: where; by default in a new figure; several plans can share one.
        label: of this plan.
    """
    ax = axes_or_new(ax)
    values = np.asarray(success).reshape(-1)
    bins = np.linspace(0, 1, 31).tolist()
    weights = np.full(len(values), 1 / len(values))
    name = f"{label}: " if label else ""
    _, _, bars = ax.hist(
        values, bins=bins, weights=weights, alpha=0.6, label=f"{name}{values.mean():.2f} in all"
    )
    color = bars[0].get_facecolor()  # type: ignore[union-attr,index]
    ax.axvline(float(values.mean()), color=color, alpha=1, linewidth=2)
    ax.set(xlabel="probability that the plan succeeds", ylabel="share of draws", xlim=(0, 1))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_predictive_check(idata: Any, ax: Axes | None = None) -> Axes:
    """How often one symbol follows another: in the data, and in data redrawn from the posterior.

    A model that describes the data has its intervals on the diagonal.

    Args:
        idata: from :func:`~chmm_pyro.posterior.to_inference_data`, with the groups
            ``observed_data`` and ``posterior_predictive``.
        ax: where; by default in a new figure.
    """
    ax = axes_or_new(ax)
    data = idata["observed_data"]
    seen = data["obs"].values.astype(np.int64)
    redrawn = idata["posterior_predictive"]["obs"].values.astype(np.int64)
    redrawn = redrawn.reshape(-1, len(seen))
    adjacent = np.diff(data["step"].values) == 1
    adjacent &= data["sequence_of_step"].values[1:] == data["sequence_of_step"].values[:-1]
    size = int(max(seen.max(), redrawn.max())) + 1
    pair = redrawn[:, :-1] * size + redrawn[:, 1:]
    shares = np.stack([np.bincount(row[adjacent], minlength=size**2) for row in pair])
    expected = np.bincount((seen[:-1] * size + seen[1:])[adjacent], minlength=size**2)
    low, middle, high = np.quantile(shares, [0.05, 0.5, 0.95], axis=0) / adjacent.sum()
    observed = expected / adjacent.sum()
    colors = symbol_colors(size)[np.repeat(np.arange(size), size)]
    ax.axline((0, 0), slope=1, color=INK, linewidth=1, linestyle="--", zorder=0)
    ax.vlines(observed, low, high, colors=[*colors], linewidth=1.5)
    ax.scatter(observed, middle, c=colors, s=22, zorder=3)
    ax.set(
        xlabel="share of pairs of symbols in the data",
        ylabel="in redrawn data (median, 90 %)",
    )
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_co_assignment(
    same: NDArray[np.float64], ax: Axes | None = None, *, order: ArrayLike | None = None
) -> Axes:
    """Which steps are in the same state, with what probability.

    Args:
        same: ``(n, n)`` from :func:`~chmm_pyro.posterior.summaries.co_assignment`.
        ax: where; by default in a new figure.
        order: ``(n,)`` order of the steps, such as ``np.argsort`` of their places.
    """
    ax = axes_or_new(ax)
    if order is not None:
        index = np.asarray(order)
        same = same[index][:, index]
    image = ax.imshow(same, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="probability of the same state", shrink=0.7)
    ax.set(xlabel="step", ylabel="step", xticks=[], yticks=[])
    return ax


def plot_clone_budgets(
    budgets: ArrayLike,
    loo: ArrayLike,
    ax: Axes | None = None,
    *,
    errors: ArrayLike | None = None,
    held_out: ArrayLike | None = None,
    used: tuple[float, float] | None = None,
    truth: float | None = None,
) -> Axes:
    """Predictive loss against the number of clones, beside what a stick-breaking prior uses.

    Args:
        budgets: ``(K,)`` clones of each symbol.
        loo: ``(K,)`` leave-one-out loss in bits per step.
        ax: where; by default in a new figure.
        errors: ``(K,)`` standard errors of ``loo``.
        held_out: ``(K,)`` bits per step of other data.
        used: interval of the clones used under a stick-breaking prior.
        truth: clones that are needed.
    """
    ax = axes_or_new(ax)
    x = np.asarray(budgets)
    bars = None if errors is None else np.asarray(errors)
    ax.errorbar(x, np.asarray(loo), bars, color=PALETTE[0], marker="o", capsize=3, label="LOO")
    if held_out is not None:
        ax.plot(x, np.asarray(held_out), color=PALETTE[1], marker="s", label="held out")
    if used is not None:
        ax.axvspan(*used, color=PALETTE[2], alpha=0.35, label="used under sticks (90 %)")
    if truth is not None:
        ax.axvline(truth, color=INK, linestyle="--", linewidth=1.2, label="needed")
    ax.set(xlabel="clones of each symbol", ylabel="bits per step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax
