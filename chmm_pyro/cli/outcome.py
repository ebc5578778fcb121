"""What commands tell: exit codes, lines for people, JSON for scripts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import typer

from ..distribution import CloneHMM

__all__ = [
    "IMPOSSIBLE",
    "INTERRUPTED",
    "UNREACHABLE",
    "WRONG",
    "ImpossibleDataError",
    "bits_text",
    "check_possible",
    "pairs",
    "show",
    "shows_progress",
    "table",
]

WRONG, IMPOSSIBLE, UNREACHABLE, INTERRUPTED = 2, 3, 4, 130


class ImpossibleDataError(ValueError):
    """The data have probability zero under the model."""


def check_possible(hmm: CloneHMM, obs: torch.Tensor, where: str) -> None:
    """Refuse data of probability zero, naming the first impossible step."""
    if not torch.isneginf(hmm.log_prob(obs)).any():
        return
    try:
        hmm.filter(obs)
    except ValueError as error:
        raise ImpossibleDataError(f"{where}: {error}") from error


def shows_progress(asked: bool | None) -> bool:
    """Bars are for terminals, unless the user said otherwise."""
    return sys.stderr.isatty() if asked is None else asked


def show(record: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Write the result to stdout: the record as JSON, or the text."""
    typer.echo(json.dumps(_plain(record), indent=2, allow_nan=False) if as_json else text)


def _plain(value: Any) -> Any:
    """``value`` for JSON, which has no infinite numbers: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def pairs(entries: Mapping[str, str]) -> str:
    """Names and values, a line each.

    Example:
        >>> print(pairs({"bits/step": "0.03", "states": "48"}))
        bits/step  0.03
        states     48
    """
    width = max(map(len, entries))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in entries.items())


def bits_text(bits: float) -> str:
    """Bits per step with five digits; what rounds to zero has no sign.

    Example:
        >>> bits_text(0.030471), bits_text(-1e-9), bits_text(math.inf)
        ('0.03047', '0.00000', 'inf')
    """
    return f"{round(bits, 5) + 0.0:.5f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Aligned columns: the first to the left, numbers to the right.

    Example:
        >>> print(table(["method", "bits"], [["EM", "0.03"], ["SVI", "0.1"]]))
        method  bits
        ------  ----
        EM      0.03
        SVI      0.1
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
