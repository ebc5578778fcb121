"""One set of colours for all pictures, and where pictures are drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike, NDArray

from ..vocabulary import Vocabulary

__all__ = ["INK", "PALETTE", "axes_or_new", "name_of", "symbol_colors", "text_color"]

PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#555555",
)
"""Told apart with any kind of colour vision (M. Okabe, K. Ito 2008; their black is grey here)."""

INK = "#333333"
"""Walls, edges and everything that stands for no symbol."""

# How far the palette is mixed with white (or, below zero, with black) when it is used up.
_SHADES = (0.0, 0.55, -0.45, 0.3, -0.25, 0.75, -0.65)


def symbol_colors(num_symbols: int) -> NDArray[np.float64]:
    """``(V, 4)`` colours: the same symbol has the same colour in every picture.

    Eight colours are safe for all kinds of colour vision; more symbols get lighter and darker
    shades of them and should be written out as well.

    Example:
        >>> symbol_colors(3).shape
        (3, 4)
    """
    return np.array([_color(symbol) for symbol in range(num_symbols)]).reshape(-1, 4)


def _color(symbol: int) -> tuple[float, ...]:
    base = np.array(to_rgb(PALETTE[symbol % len(PALETTE)]))
    shade = _SHADES[symbol // len(PALETTE) % len(_SHADES)]
    mixed = base + (1 - base) * shade if shade > 0 else base * (1 + shade)
    return (*mixed.tolist(), 1.0)


def text_color(background: ArrayLike) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = np.asarray(background, dtype=float)[:3] ** 2.2
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # The contrast ratio of the accessibility guidelines (WCAG) decides.
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def name_of(symbol: int, vocabulary: Vocabulary | None) -> str:
    """What a symbol is called in pictures."""
    return str(symbol if vocabulary is None else vocabulary.labels[symbol])


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax
