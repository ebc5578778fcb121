"""Figures as the contents of files."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["PICTURES", "picture"]

PICTURES = (".png", ".svg", ".pdf")
_METADATA = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def picture(figure: Figure, ending: str = ".png", *, dpi: int = 130) -> bytes:
    """The figure as a file of this ending; the same figure gives the same bytes."""
    content = io.BytesIO()
    # Tight, because a legend with long names may stand a little over the edge.
    figure.savefig(
        content,
        format=ending[1:],
        dpi=dpi,
        metadata=_METADATA.get(ending),
        bbox_inches="tight",
        pad_inches=0.1,
    )
    return content.getvalue()
