"""Rooms, and where in them the states of a model are active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ..beliefs import Posterior
from ..environments.rooms import Room
from ..maps.usage import place_fields, state_usage
from .colors import INK, axes_or_new, symbol_colors, text_color

__all__ = ["plot_place_fields", "plot_room"]


def plot_room(room: Room, ax: Axes | None = None, *, labels: bool = True) -> Axes:
    """The cells of a room in the colours of their symbols, with its walls.

    Args:
        room: what to draw.
        ax: where; by default in a new figure.
        labels: write the symbol into each cell.
    """
    ax = axes_or_new(ax)
    height, width = room.layout.shape
    colors = symbol_colors(room.num_symbols)
    image = np.ones((height, width, 4))
    image[room.layout >= 0] = colors[room.symbols]
    ax.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    _draw_grid(ax, room, walls=2.5)
    if labels:
        for (row, column), symbol in zip(room.positions, room.symbols, strict=True):
            ink = text_color(colors[symbol])
            ax.text(column, row, str(symbol), ha="center", va="center", color=ink, weight="bold")
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
    sides = LineCollection(_walls(room), colors=INK, linewidths=walls, capstyle="projecting")
    sides.set_clip_on(False)  # the outer walls lie on the frame
    ax.add_collection(sides)


def _walls(room: Room) -> list[Any]:
    """The sides of cells through which no action leads."""
    sides = np.array(
        [[(-1, -1), (-1, 1)], [(1, -1), (1, 1)], [(-1, -1), (1, -1)], [(-1, 1), (1, 1)]]
    )
    places, actions = np.nonzero(room.next_place == np.arange(room.num_places)[:, None])
    return list(room.positions[places][:, None, ::-1] + sides[actions] / 2)


def plot_place_fields(
    posterior: Posterior,
    positions: ArrayLike,
    room: Room,
    axes: Sequence[Axes] | NDArray[Any] | None = None,
    *,
    num_states: int = 12,
) -> NDArray[Any]:
    """Where the most used states are active: their mean probability at each place of a room.

    Each field has its own scale from zero, in grey, to its peak, in the colour of its symbol.

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
    usage = state_usage(posterior)
    usage = usage / usage.sum()
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
        top = np.nanmax(shown_field)
        ax.set_title(f"state {state}: {usage[state]:.1%} of steps, peak {top:.2f}", fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax in grid[len(order) :]:
        ax.set_axis_off()
    return grid
