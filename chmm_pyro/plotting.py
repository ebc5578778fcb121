"""Pictures of rooms, training, learned graphs and place fields.

Each function draws into the ``Axes`` it is given (or into a new figure), returns them, and never
shows or saves anything; without a display, figures are drawn in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from .beliefs import Posterior
from .clones import MISSING
from .distribution import CloneHMM
from .environments.rooms import Room
from .graph_layout import unfold
from .scores import place_fields
from .sequences import SequenceBatch

__all__ = ["plot_graph", "plot_place_fields", "plot_room", "plot_training", "symbol_colors"]

_PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#888888")
_INK = "#333333"


class _Trained(Protocol):
    """A :class:`~chmm_pyro.inference.result.FitResult`, which is built on top of this module."""

    @property
    def bits_per_step(self) -> float: ...

    @property
    def bits_per_step_history(self) -> NDArray[np.float64] | None: ...

    @property
    def seconds_history(self) -> NDArray[np.float64]: ...


class _Model(Protocol):
    """A :class:`~chmm_pyro.models.base.CloneModel`."""

    def distribution(self, batch: SequenceBatch) -> CloneHMM: ...


def symbol_colors(num_symbols: int) -> NDArray[np.float64]:
    """``(V, 4)`` colours: the same symbol has the same colour in every picture.

    Example:
        >>> symbol_colors(3).shape
        (3, 4)
    """
    if num_symbols <= len(_PALETTE):
        return np.array([to_rgba(color) for color in _PALETTE[:num_symbols]])
    return plt.get_cmap("gist_rainbow")(np.linspace(0, 0.95, num_symbols))


def plot_room(room: Room, ax: Axes | None = None, *, labels: bool = True) -> Axes:
    """The cells of a room in the colours of their symbols, with its walls.

    Args:
        room: what to draw.
        ax: where; by default in a new figure.
        labels: write the symbol into each cell.
    """
    ax = _axes(ax)
    height, width = room.layout.shape
    colors = symbol_colors(room.num_symbols)
    image = np.ones((height, width, 4))
    image[room.layout >= 0] = colors[room.symbols]
    ax.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.85)
    _draw_grid(ax, room, walls=2.5)
    if labels:
        for (row, column), symbol in zip(room.positions, room.symbols, strict=True):
            ax.text(
                column, row, str(symbol), ha="center", va="center", color="white", weight="bold"
            )
    ax.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), xlabel="column", ylabel="row")
    ax.set_title(f"{height} x {width} room: {room.num_places} places, {room.num_symbols} symbols")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[:].set_visible(False)
    return ax


def _draw_grid(ax: Axes, room: Room, *, walls: float) -> None:
    height, width = room.layout.shape
    lines = [[(x, -0.5), (x, height - 0.5)] for x in np.arange(0.5, width - 1)]
    lines += [[(-0.5, y), (width - 0.5, y)] for y in np.arange(0.5, height - 1)]
    ax.add_collection(LineCollection(lines, colors="white", linewidths=walls / 2))
    sides = LineCollection(_walls(room), colors=_INK, linewidths=walls, capstyle="projecting")
    sides.set_clip_on(False)  # the outer walls lie on the frame
    ax.add_collection(sides)


def _walls(room: Room) -> list[Any]:
    """The sides of cells through which no action leads."""
    sides = np.array(
        [[(-1, -1), (-1, 1)], [(1, -1), (1, 1)], [(-1, -1), (1, -1)], [(-1, 1), (1, 1)]]
    )
    places, actions = np.nonzero(room.next_place == np.arange(room.num_places)[:, None])
    return list(room.positions[places][:, None, ::-1] + sides[actions] / 2)


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
    ax = _axes(ax)
    for number, (name, result) in enumerate(results.items()):
        bits = result.bits_per_step_history
        if bits is None:
            raise ValueError(
                f"results[{name!r}] has no log_prob_history, expected a fit that evaluates the "
                "likelihood, such as fit_svi or fit_em; leave it out."
            )
        along = np.arange(len(bits)) if x == "iterations" else result.seconds_history
        color = _PALETTE[number % len(_PALETTE)]
        label = f"{name}: {result.bits_per_step:.4g} bits/step"
        ax.plot(along, bits, color=color, linewidth=2, label=label)
        ax.plot(along[-1:], bits[-1:], "o", color=color, markersize=5)
    ax.set(xlabel="iteration" if x == "iterations" else "seconds", ylabel="bits per step")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="y", which="minor", labelsize="small")
    ax.grid(which="both", alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def plot_graph(
    model: _Model,
    batch: SequenceBatch,
    ax: Axes | None = None,
    *,
    positions: ArrayLike | None = None,
    min_count: int = 1,
    labels: bool = False,
) -> Axes:
    """The graph that a model learned: the states on the most probable path and its transitions.

    Colours are symbols; the size of a node and the width of an edge grow with use.  Both
    directions and all actions share an edge; staying in a state is not drawn.

    Args:
        model: fitted model.
        batch: sequences to decode.
        ax: where; by default in a new figure.
        positions: ``(..., T, 2)`` row and column of each step of ``batch``: puts each state at
            its mean position instead of unfolding the graph from its transitions alone.
        min_count: leaves out edges used less often.
        labels: write the number of each state.

    Raises:
        ValueError: data impossible under the model, or positions of another shape.
    """
    hmm = model.distribution(batch)
    path = hmm.posterior_mode(batch.obs).states.cpu().numpy()
    nodes, usage = np.unique(path[path != MISSING], return_counts=True)
    pairs, widths = _edges(np.searchsorted(nodes, path), path != MISSING, min_count)
    if positions is None:
        xy = unfold(len(nodes), pairs)
    else:
        xy = _mean_positions(path, nodes, np.asarray(positions))
    ax = _axes(ax)
    symbols = hmm.clones.symbol_of_state[nodes]
    colors = symbol_colors(hmm.clones.num_symbols)
    scale = np.sqrt(widths / widths.max(initial=1))
    edges = LineCollection(
        [*xy[pairs]], colors=_INK, linewidths=0.4 + 3.0 * scale, alpha=0.45, zorder=1
    )
    ax.add_collection(edges)
    size = 10_000 / (len(nodes) + 12)
    sizes = size * (0.2 + 1.1 * usage / usage.max())
    for symbol in np.unique(symbols):
        of = symbols == symbol
        name = batch.vocabulary.labels[symbol] if batch.vocabulary else symbol
        ax.scatter(
            xy[of, 0],
            xy[of, 1],
            s=sizes[of],
            color=colors[symbol],
            edgecolors="white",
            label=str(name),
            zorder=2,
        )
    if labels:
        for state, (x, y) in zip(nodes, xy, strict=True):
            ax.text(x, y, str(state), ha="center", va="center", fontsize=6, zorder=3)
    ax.set_title(f"{len(nodes)} states of {hmm.clones.num_states} used")
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.margins(0.08)
    if len(np.unique(symbols)) <= 12:
        legend = ax.legend(
            title="symbol", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
        )
        for handle in legend.legend_handles:
            handle.set_sizes([60.0])  # type: ignore[union-attr]
    return ax


def _edges(
    path: NDArray[np.int64], inside: NDArray[np.bool_], min_count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(E, 2)`` pairs of different nodes that follow each other, and how often."""
    both = inside[..., 1:] & inside[..., :-1]
    steps = np.stack([path[..., :-1][both], path[..., 1:][both]], axis=-1)
    steps = np.sort(steps[steps[:, 0] != steps[:, 1]], axis=1)
    pairs, counts = np.unique(steps.reshape(-1, 2), axis=0, return_counts=True)
    kept = counts >= min_count
    return pairs[kept], counts[kept]


def _mean_positions(
    path: NDArray[np.int64], nodes: NDArray[np.int64], positions: NDArray[Any]
) -> NDArray[np.float64]:
    if positions.shape != (*path.shape, 2):
        raise ValueError(
            f"positions has shape {positions.shape}, expected {(*path.shape, 2)}: row and column "
            "of each step."
        )
    inside = path != MISSING
    node = np.searchsorted(nodes, path[inside])
    visits = np.bincount(node)
    row, column = (np.bincount(node, weights=axis) / visits for axis in positions[inside].T)
    xy = np.stack([column, -row], axis=1)
    # States of the same place stand around it.
    _, spot, crowd = np.unique(np.round(2 * xy), axis=0, return_inverse=True, return_counts=True)
    crowd, turn = crowd[spot.reshape(-1)], np.pi * (np.sqrt(5) - 1) * np.arange(len(nodes))
    radius = np.where(crowd > 1, 0.14, 0.0)[:, None]
    return xy + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def plot_place_fields(
    posterior: Posterior,
    positions: ArrayLike,
    room: Room,
    axes: Sequence[Axes] | NDArray[Any] | None = None,
    *,
    num_states: int = 12,
) -> NDArray[Any]:
    """Where the most used states are active: their mean probability at each place of a room.

    Args:
        posterior: usually ``hmm.filter(batch.obs)``.
        positions: ``(..., T, 2)`` row and column of each step.
        room: where the walk was.
        axes: one for each state to draw; by default ``num_states`` in a new figure.
        num_states: how many states a new figure shows.

    Returns:
        ``(n,)`` the axes drawn into, the most used state first.
    """
    fields = place_fields(posterior, positions, room.layout.shape)
    usage = _usage(posterior)
    if axes is None:
        shown = min(num_states, int((usage > 0).sum()))
        columns = min(4, shown)
        rows = -(-shown // columns)
        size = (2.4 * columns, 2.2 * rows)
        axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")[1]
    grid = np.asarray(axes).reshape(-1)
    order = np.argsort(-usage, kind="stable")[: len(grid)]
    colors = symbol_colors(room.num_symbols)
    for ax, state in zip(grid, order, strict=False):
        peak = np.unravel_index(np.nanargmax(fields[state]), room.layout.shape)
        color = colors[room.layout[peak]]
        ramp = LinearSegmentedColormap.from_list("field", ["#ebebeb", color])
        shown_field = np.where(room.layout >= 0, fields[state], np.nan)
        ax.imshow(
            shown_field,
            cmap=ramp.with_extremes(bad="white"),
            vmin=0,
            vmax=max(1e-9, float(np.nanmax(shown_field))),
        )
        _draw_grid(ax, room, walls=1.2)
        ax.set_title(f"state {state}: {usage[state]:.1%} of steps", fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax in grid[len(order) :]:
        ax.set_axis_off()
    return grid


def _usage(posterior: Posterior) -> NDArray[np.float64]:
    """``(S,)`` share of all steps."""
    probs = posterior.probs.detach().cpu().numpy().astype(np.float64)
    first = posterior.first_state.cpu().numpy()[..., None]
    state = (first + np.arange(probs.shape[-1])) % posterior.num_states
    mass = np.bincount(state.ravel(), weights=probs.ravel(), minlength=posterior.num_states)
    return mass / mass.sum()


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax
