"""Planning on learned maps as ``benchmarks/planning.py`` measures it: all of it has to be right."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import import_benchmark

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _planning_is_right(worlds: pd.DataFrame, levels: pd.DataFrame) -> None:
    """Every plan is as short as the true shortest path and arrives, whatever was asked."""
    worlds = worlds[worlds["exact"]]
    for name in ("detours", "shortcuts", "unwalked", "bridges"):
        assert (worlds[f"{name}_short"] == worlds[name]).all()
        assert (worlds[f"{name}_arrived"] == worlds[name]).all()
    assert (worlds["short"] == worlds["pairs"]).all()
    assert (worlds["arrived"] == worlds["pairs"]).all()
    assert (worlds["pairs"] == worlds["places"] ** 2).all()
    assert (worlds["detours_refused"] == worlds["detours_apart"]).all()
    assert (worlds["detours_apart"] >= 2 * (worlds["places"] - 1)).all()  # one place shut in
    # In corridors walls cut places off rather than make the way longer.
    assert (worlds["longer"][worlds["world"] != "corridors_5x5"] > 0).all()
    assert (worlds["drops_arrived"] == worlds["drops"]).all()
    # A mean over 20 starts of 50 walks each.
    assert worlds["steps_over_expected"].between(0.9, 1.1).all()
    assert worlds["learned_steps_over_expected"].between(0.9, 1.3).all()
    assert (levels["short_and_arrived"] == levels["pairs"]).all()


def test_planning_on_a_learned_map(monkeypatch, tmp_path):
    planning = import_benchmark(monkeypatch, "planning")
    chosen = ["--worlds", "aliased_4x4", "--seeds", "0", "--grids", "3", "--pairs", "20"]
    planning.main([*chosen, "--learned-grids", "--steps", "10000", "--out", str(tmp_path)])
    worlds, levels = (
        pd.read_csv(tmp_path / f"planning_{name}.csv") for name in ("worlds", "levels")
    )
    assert worlds["exact"].all()
    _planning_is_right(worlds, levels)
    assert levels["levels_expanded"].item() < 0.8 * levels["flat_expanded"].item()
    assert "256/256" in (tmp_path / "planning.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_planning_in_every_recovered_room(monkeypatch, tmp_path):
    planning = import_benchmark(monkeypatch, "planning")
    chosen = ["--seeds", "7", "--grids", "3", "6", "--learned-grids", "3", "--pairs", "60"]
    planning.main([*chosen, "--out", str(tmp_path)])
    worlds, levels = (
        pd.read_csv(tmp_path / f"planning_{name}.csv") for name in ("worlds", "levels")
    )
    assert list(worlds["world"]) == planning.WORLDS
    # Whether the hardest of these worlds is recovered is measured by map_recovery.py.
    assert worlds["exact"][worlds["world"] != "stitched_rooms"].all()
    _planning_is_right(worlds, levels)
    stitched = worlds[worlds["world"] == "stitched_rooms"]
    assert (
        stitched["unwalked"][stitched["exact"]] > 1000
    ).all()  # from one room to the other, and back
    small, large, learned = (levels["levels_expanded"] / levels["flat_expanded"]).tolist()
    assert large < small < 0.8
    assert large < 0.3
    assert levels["map"].tolist() == ["true", "true", "learned"] and learned < 0.8


def test_committed_results_of_planning_are_right():
    worlds, levels = (
        pd.read_csv(RESULTS / f"planning_{name}.csv") for name in ("worlds", "levels")
    )
    _planning_is_right(worlds, levels)
    exact = worlds.groupby("world")["exact"].mean()
    assert set(levels["map"]) == {"true", "learned"}
    assert len(exact) >= 6 and (exact > 0.6).all()  # whether fits succeed is measured elsewhere
