"""A saved run together with data in its symbols: those it was fitted to, or others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from ..checkpoint import Checkpoint, load_checkpoint
from ..distribution import CloneHMM
from ..sequences import SequenceBatch
from ..vocabulary import Unseen
from .data import hold_out, in_symbols_of, read
from .outcome import check_possible

__all__ = ["OpenRun", "open_run"]


class OpenRun(NamedTuple):
    """A model and data.

    Attributes:
        checkpoint: the run.
        data: the file.
        batch: its sequences; without those held out, where the run itself names the file.
        hmm: the model's distribution over them.
        held_out: the sequences held out, or None.
    """

    checkpoint: Checkpoint
    data: Path
    batch: SequenceBatch
    hmm: CloneHMM
    held_out: SequenceBatch | None


def open_run(
    run: Path,
    data: Path | None,
    *,
    unseen: Unseen = "error",
    observation: str | None = None,
    action: str | None = None,
    episode: str | None = None,
    position: list[str] | None = None,
) -> OpenRun:
    """Load a run and read its data.

    Args:
        run: the checkpoint.
        data: by default the file that the run was fitted to, with the same part held out.
        unseen: what to do with observations that the model does not know.
        observation: column of the data; it and the next three are by default those of the fit.
        action: column.
        episode: column.
        position: columns.

    Raises:
        ValueError: data that the run does not name, or impossible ones.
    """
    checkpoint = load_checkpoint(run)
    settings = checkpoint.settings
    saved: dict[str, Any] = settings.get("columns") or {}
    path = _fitted_to(run, settings) if data is None else data
    if data is not None:
        saved = _columns_in(path, saved)
    batch = read(
        path,
        observation=observation or saved.get("observation"),
        action=action or saved.get("action"),
        episode=episode or saved.get("episode"),
        position=position or saved.get("position"),
    )
    batch = in_symbols_of(batch, checkpoint, unseen)
    held_out = None
    if data is None and settings.get("held_out") is not None:
        batch, held_out = hold_out(batch, settings["held_out"], settings["held_out_seed"])
    with torch.no_grad():
        hmm = checkpoint.model.distribution(batch)
    check_possible(hmm, batch.obs, f"{path} under {run}")
    return OpenRun(checkpoint, path, batch, hmm, held_out)


def _fitted_to(run: Path, settings: dict[str, Any]) -> Path:
    """The file that a fit was given, from here or from beside the run."""
    name = settings.get("data")
    if name is None:
        raise ValueError(f"{run} does not say what data it was fitted to; name DATA after it.")
    for path in (Path(name), run.parent / Path(name).name):
        if path.is_file():
            return path
    raise ValueError(
        f"{run} was fitted to {name!r}, which is not a file here, expected DATA; name it after RUN."
    )


def _columns_in(path: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """The columns that a fit has named, as far as other data need and have them."""
    if path.suffix == ".npz":
        return {}
    if path.suffix != ".csv" or not path.is_file() or not saved.get("position"):
        return saved
    there = pd.read_csv(path, nrows=0).columns
    return saved if set(saved["position"]) <= set(there) else {**saved, "position": None}
