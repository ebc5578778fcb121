"""The examples and the README's own text, run as a user would run them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
from shell import done, json_of, walk_table

from chmm_pyro.environments import Room

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text()
TEN_LINES = (EXAMPLES / "ten_lines.py").read_text()

BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def execute(code):
    """Run top-level code like a module and return its names."""
    names = {"__name__": "example"}
    exec(compile(code, "example", "exec"), names)
    return names


def script(name, *arguments):
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return finished.stdout


def bits_per_step(output):
    """Of each progress line."""
    return [float(x) for x in re.findall(r"^update +\d+: ([\d.]+) bits/step", output, re.MULTILINE)]


def test_svi_room_learns():
    output = script("svi_room.py", "--steps", "1000", "--iters", "41", "--clones", "20")
    first, *_, last = bits_per_step(output)
    assert first > 1.5 and last < 0.8 * first
    assert re.search(r"another walk of this room: [\d.]+ bits/step", output)
    assert re.search(r"\d+ states used for 48 places, purity [01]\.\d+", output)


@pytest.mark.slow
def test_svi_room_gives_the_same_numbers_by_enumeration():
    arguments = ["--steps", "40", "--iters", "21", "--clones", "3"]
    collapsed = bits_per_step(script("svi_room.py", *arguments))
    enumerated = bits_per_step(script("svi_room.py", *arguments, "--enumerate"))
    assert len(collapsed) == 2
    assert enumerated == pytest.approx(collapsed, abs=2e-3)


def test_the_ten_lines_are_ten():
    assert sum(bool(line.strip()) for line in TEN_LINES.splitlines()) == 10


@pytest.mark.parametrize("model", ["PointCHMM", "EnumeratedCHMM"])
def test_ten_lines_train_either_model(model):
    found = execute(TEN_LINES.replace("PointCHMM", model))
    assert type(found["model"]).__name__ == model
    losses = found["losses"]
    assert losses[-1] < 0.2 * losses[0]
    log_prob = found["model"].distribution(found["batch"]).log_prob(found["batch"].obs)
    assert 0 < -log_prob.item() < losses[-1], "the model itself was trained, not a copy in Pyro"


def test_ten_lines_give_the_same_losses():
    losses = []
    for model in ("PointCHMM", "EnumeratedCHMM"):
        pyro.clear_param_store()
        losses.append(execute(TEN_LINES.replace("PointCHMM", model))["losses"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_readme_has_code():
    assert BLOCKS


@pytest.fixture
def walks(tmp_path, monkeypatch):
    """The folder of a user whose walks.csv has the columns and labels that the README shows."""
    rows = re.findall(r"^\| (.*) \|$", README.split("## Your own sequences")[1], re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    header, *shown = [row for row in cells if len(row) == 3]
    assert header == ["episode", "observation", "action"], "the table of walks.csv"
    labels = {cell for row in shown for cell in row[1:]}
    room = Room([[0, 1, 2], [1, 0, 2]])
    table = walk_table(room, ["door", "wall", "window"], num_steps=400, episodes=3)[header]
    assert {"door", "wall", "left", "up"} <= labels & {*table["observation"], *table["action"]}
    table.to_csv(tmp_path / "walks.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_code_runs(number, walks):
    execute(BLOCKS[number])


def test_readme_commands_run_in_their_order(walks):
    """Those of the two sections on one's own table."""
    section = README.split("## Your own sequences")[1].split("## A posterior")[0]
    commands = re.findall(r"^    chmm (.*)$", section, re.MULTILINE)
    assert [shlex.split(command)[0] for command in commands] == [
        *("fit", "eval", "decode"),
        *("fit", "map", "plan", "report"),
    ]
    for command in commands:
        done(*shlex.split(command, comments=True))
    for name in ("map.png", "moves.csv", "plan.png", "my_map/report.html"):
        assert (walks / name).stat().st_size > 500
    assert json_of("map", "my_map")["num_places"] == 6


PICTURES = re.findall(r"examples/pictures/[\w-]+\.png", README)


def test_readme_shows_pictures_that_exist_and_are_small():
    assert len(set(PICTURES)) >= 7
    for name in PICTURES:
        assert (ROOT / name).read_bytes().startswith(b"\x89PNG")
        assert (ROOT / name).stat().st_size < 150_000


@pytest.mark.slow
def test_the_pictures_are_made_by_their_script(tmp_path):
    """Small and quick here; all of the committed ones, and no other."""
    script(
        "pictures.py",
        *("--out", str(tmp_path), "--steps", "10000", "--clones", "20", "--iters", "10"),
        *("--world", "aliased_4x4"),
    )
    made = {path.name for path in tmp_path.glob("*.png")}
    assert made == {path.name for path in (EXAMPLES / "pictures").glob("*.png")}
    assert {Path(name).name for name in PICTURES} == made
