"""The examples and the README's own text, run as a user would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyro
import pytest

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
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


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


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_code_runs(number, tmp_path, monkeypatch):
    rows = re.findall(r"^\| (.*) \|$", README.split("## Your own sequences")[1], re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    table = [row for row in cells if len(row) == 3]
    assert table[0] == ["episode", "observation", "action"], "the table of walks.csv"
    (tmp_path / "walks.csv").write_text("\n".join(map(",".join, table)))
    monkeypatch.chdir(tmp_path)
    execute(BLOCKS[number])
