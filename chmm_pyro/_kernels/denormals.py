"""Numbers below ``finfo.tiny`` count as zero while compiled loops run.

Processors take a hundred cycles for each such number.  Messages hold none, but counts of sparse
tables are full of them: a pass over draws of a sparse prior took ten times as long.
"""

from __future__ import annotations

import sys
from types import TracebackType

import torch

__all__ = ["FlushedDenormals"]


class FlushedDenormals:
    """Switched on for this thread within a ``with`` block, then as the user had it."""

    def __enter__(self) -> None:
        self._already = sys.float_info.min * 0.5 == 0.0
        if not self._already:
            torch.set_flush_denormal(True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._already:
            torch.set_flush_denormal(False)
