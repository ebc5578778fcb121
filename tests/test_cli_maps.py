"""``chmm map``, ``chmm plan`` and ``chmm report`` on a room that was learned exactly."""

from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from shell import chmm, done, json_of, walk_table

from chmm_pyro.checkpoint import load_checkpoint, save_checkpoint
from chmm_pyro.environments import ACTIONS, Room
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.sequences import SequenceBatch

ROOM = Room([[0, 1, 2, 1], [2, 0, 1, 0]], blocked=[((0, 1), (0, 2))])
SYMBOLS = ["<script>alert(1)</script>", "$x_^", "blue & red"]
ISLANDS = pd.DataFrame(
    {"episode": [0] * 400 + [1] * 400, "observation": list("ab" * 200) + list("cd" * 200)}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk with columns of other names, and a run that remembers them."""
    folder = tmp_path_factory.mktemp("maps")
    table = walk_table(ROOM, SYMBOLS, 3000).rename(columns={"observation": "seen"})
    table.to_csv(folder / "walk.csv", index=False)
    record = json_of(
        *("fit", folder / "walk.csv", "--method", "map", "--observation", "seen"),
        *("--held-out", 0.2),
    )
    assert record["states_used"] == ROOM.num_places
    return folder


@pytest.fixture(scope="module")
def islands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose map falls into two parts."""
    folder = tmp_path_factory.mktemp("islands")
    ISLANDS.to_csv(folder / "walk.csv", index=False)
    done("fit", folder / "walk.csv", "--clones", 1, "--method", "em", "--iters", 3)
    return folder / "walk.run"


# ----------------------------------------------------------------------------------------- map


def test_the_map_of_a_model_never_fitted_says_so(folder: Path, tmp_path: Path) -> None:
    options = ("--clones", 6, "--iters", 1, "--lr", 1e-9, "--observation", "seen")
    done("fit", folder / "walk.csv", *options, "--out", tmp_path / "run")
    record = json_of("map", tmp_path / "run")
    assert record["counts"] == "path" and record["num_places"] > 0
    ends = [f"state:{place['state']}" for place in record["places"]][:2]
    plan = ("plan", tmp_path / "run", "--from", ends[0], "--to", ends[1])
    for command in (("map", tmp_path / "run"), plan):
        assert "unsure of most moves" in done(*command) and "fit longer" in done(*command)
    done("report", tmp_path / "run")
    assert "unsure of most moves" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "unsure" not in done("map", folder / "walk.run")


def test_the_map_is_the_room(folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("map.png", "map.svg", "moves.csv", "map.graphml")]
    arguments = [part for file in files for part in ("--out", file)]
    record = json_of("map", folder / "walk.run", *arguments, "--layout", "known")
    assert record["num_places"] == ROOM.num_places
    assert record["is_deterministic"] and record["noise"] < 1e-6
    assert record["counts"] == "expected"
    assert record["files"] == [str(file) for file in files]
    graph = ROOM.place_graph()
    place = {
        row["state"]: int(ROOM.place_of_position(np.array(row["position"]).astype(int)))
        for row in record["places"]
    }
    moves = {(place[m["from"]], place[m["to"]], m["action"]) for m in record["moves"]}
    assert moves == {(i, j, ACTIONS[a]) for i, j, a in graph.edges(keys=True)}
    for row in record["places"]:
        assert row["symbol"] == SYMBOLS[ROOM.symbols[place[row["state"]]]]

    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in files[1].read_text()
    pd.testing.assert_frame_equal(pd.read_csv(files[2]), pd.DataFrame(record["moves"]))
    stored = nx.read_graphml(files[3], force_multigraph=True)
    assert {data["symbol"] for data in stored.nodes.values()} == set(SYMBOLS)
    assert {data["action"] for data in stored.edges.values()} == set(ACTIONS)
    assert stored.number_of_edges() == len(moves)


def test_the_map_in_words(folder: Path) -> None:
    text = done("map", folder / "walk.run")
    assert "8 places (8 states in the model)" in text
    assert "one for every action" in text
    for symbol, count in zip(SYMBOLS, np.bincount(ROOM.symbols), strict=True):
        assert re.search(rf"^{re.escape(symbol)} +{count} ", text, re.MULTILINE)
    assert "2,400 steps" in text  # without those held out


def test_other_data_give_the_map_of_those(folder: Path, tmp_path: Path) -> None:
    few = walk_table(ROOM, SYMBOLS, 12).rename(columns={"observation": "seen"})
    few.to_csv(tmp_path / "few.csv", index=False)
    record = json_of("map", folder / "walk.run", tmp_path / "few.csv")
    assert record["num_places"] <= ROOM.num_places
    assert sum(row["count"] for row in record["moves"]) == pytest.approx(11, abs=0.01)


def test_the_library_gives_the_same_map(folder: Path) -> None:
    saved = load_checkpoint(folder / "walk.run")
    few = walk_table(ROOM, SYMBOLS, 500).rename(columns={"observation": "seen"})
    few.to_csv(folder / "few.csv", index=False)
    batch = SequenceBatch.from_file(
        folder / "few.csv",
        observation="seen",
        vocabulary=saved.vocabulary,
        action_vocabulary=saved.action_vocabulary,
    )
    expected = CognitiveMap.from_model(saved.model, batch)
    found = json_of("map", folder / "walk.run", folder / "few.csv")
    assert [row["state"] for row in found["places"]] == expected.states.tolist()
    ends = expected.states[expected.edges[:, [0, 2]]].tolist()
    assert [[row["from"], row["to"]] for row in found["moves"]] == ends
    assert [row["count"] for row in found["moves"]] == expected.counts.round(3).tolist()


def test_data_that_moved_along_are_found(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "walk.run", tmp_path / "walk.run")
    settings = tmp_path / "walk.run" / "config.json"
    settings.write_text(settings.read_text().replace(str(folder), "/no/such/folder"))
    lost = chmm("map", tmp_path / "walk.run")
    assert lost.exit_code == 2
    assert "was fitted to '/no/such/folder/walk.csv', which is not a file here" in lost.stderr
    shutil.copy(folder / "walk.csv", tmp_path)
    assert json_of("map", tmp_path / "walk.run")["data"] == str(tmp_path / "walk.csv")


# ---------------------------------------------------------------------------------------- plan


def _walked(start: int, actions: list[str]) -> int:
    for action in actions:
        start = ROOM.step(start, ACTIONS.index(action))
    return start


def test_plans_are_as_short_as_in_the_room(folder: Path) -> None:
    record = json_of("map", folder / "walk.run")
    place = {
        row["state"]: int(ROOM.place_of_position(np.array(row["position"]).astype(int)))
        for row in record["places"]
    }
    lengths = dict(nx.all_pairs_shortest_path_length(ROOM.place_graph()))
    for start, goal in ((0, 7), (3, 4), (5, 5)):
        found = json_of(
            "plan", folder / "walk.run", "--from", f"state:{start}", "--to", f"state:{goal}"
        )
        assert found["num_steps"] == lengths[place[start]][place[goal]]
        assert _walked(place[start], found["actions"]) == place[goal]
        assert (found["states"][0], found["states"][-1]) == (start, goal)
        assert found["probability"] == pytest.approx(1)
        assert found["symbols"] == [SYMBOLS[ROOM.symbols[place[s]]] for s in found["states"]]
    either = json_of(
        *("plan", folder / "walk.run", "--from", SYMBOLS[0], "--to", f"{SYMBOLS[1]},state:7"),
        *("--by", "probability"),
    )
    assert (either["num_steps"], either["symbols"][0]) == (1, SYMBOLS[0])


def test_a_plan_for_people(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.png"
    text = done(
        *("plan", folder / "walk.run", "--from", SYMBOLS[0], "--to", SYMBOLS[1], "--out", out)
    )
    assert f"1 step from {SYMBOLS[0]} to {SYMBOLS[1]}" in text
    assert text.strip().endswith(SYMBOLS[1])
    assert out.read_bytes().startswith(b"\x89PNG")


def test_no_way_is_code_4(islands: Path) -> None:
    found = chmm("plan", islands, "--from", "a", "--to", "c,d")
    assert found.exit_code == 4
    assert found.stdout == ""
    assert found.stderr.startswith("error: no way leads from a to c,d: goal = [2, 3]")
    assert found.stderr.count("\n") == 1
    assert "2, with no way between them" in done("map", islands)
    assert json_of("plan", islands, "--from", "a", "--to", "b")["num_steps"] == 1


def test_labels_with_commas_are_labels(tmp_path: Path) -> None:
    table = pd.DataFrame({"observation": ["a,b", "c", "state:1"] * 50})
    table.to_csv(tmp_path / "walk.csv", index=False)
    done("fit", tmp_path / "walk.csv", "--clones", 1, "--method", "em", "--iters", 2)
    found = json_of("plan", tmp_path / "walk.run", "--from", "a,b", "--to", "state:1")
    assert found["symbols"] == ["a,b", "c", "state:1"]


# -------------------------------------------------------------------------------------- report


class _Page(HTMLParser):
    """The texts and the tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_report_is_one_page_with_everything(folder: Path, tmp_path: Path) -> None:
    record = json_of("report", folder / "walk.run", "--out", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    found = _Page(html)
    titles = [text for text in found.texts if text]
    for title in ("The map", "The map where it belongs", "Use of states", "Scores", "Settings"):
        assert title in titles
    for symbol in SYMBOLS:
        assert symbol in titles  # as text, whatever it looks like
    assert not [tag for tag, _ in found.tags if tag == "script"]
    images = [attributes["src"] for tag, attributes in found.tags if tag == "img"]
    assert len(images) >= 3
    for source in images:
        kind, content = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content).startswith(b"\x89PNG")
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", html)
    assert record["held_out_bits_per_step"] is not None
    assert record["bits_per_step"] < 0.1 < record["bits_per_step_without_clones"]
    assert f"{record['bits_per_step']:.4g}" in titles
    assert "map" in titles and str(record["num_places"]) in titles


def test_a_fit_that_was_stopped_early_has_a_map_and_a_report(folder: Path, tmp_path: Path) -> None:
    options = ("--clones", 20, "--iters", 1, "--observation", "seen", "--out", tmp_path / "run")
    done("fit", folder / "walk.csv", *options)
    record = json_of("map", tmp_path / "run")
    assert record["noise"] > 0 and not record["is_deterministic"]
    assert "several for" in done("map", tmp_path / "run")
    done("report", tmp_path / "run")


@pytest.mark.parametrize("method", ["svi", "em", "viterbi"])
def test_reports_show_every_methods_training(method: str, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    size = ("--start", folder / "walk.run") if method == "viterbi" else ("--clones", 4)
    done(
        *("fit", folder / "walk.csv", "--observation", "seen", *size, "--method", method),
        *("--iters", 4, "--out", run),
    )
    text = done("report", run)
    assert "page" in text and "place purity" in text
    found = _Page((run / "report.html").read_text())
    history = load_checkpoint(run).history["objective_history"]
    assert ("Training" in found.texts) == (len(history) > 1)
    assert method == "viterbi" or len(history) == 4


def test_a_report_on_a_model_saved_alone(folder: Path, tmp_path: Path) -> None:
    saved = load_checkpoint(folder / "walk.run")
    save_checkpoint(
        tmp_path / "run",
        saved.model,
        vocabulary=saved.vocabulary,
        action_vocabulary=saved.action_vocabulary,
    )
    refused = chmm("report", tmp_path / "run")
    assert refused.exit_code == 2
    assert "does not say what data it was fitted to; name DATA" in refused.stderr
    done("report", tmp_path / "run", folder / "walk.csv", "--observation", "seen")
    assert "Training" not in _Page((tmp_path / "run" / "report.html").read_text()).texts


# ------------------------------------------------------------------------------------ bad input

BAD = {
    "unknown ending": (["map", "{run}", "--out", "map.bmp"], "has the ending '.bmp', expected one"),
    "plan as a table": (
        ["plan", "{run}", "--from", "$x_^", "--to", "$x_^", "--out", "plan.csv"],
        "has the ending '.csv', expected one of .png",
    ),
    "unknown symbol": (
        ["plan", "{run}", "--from", "$x_^", "--to", "green"],
        "--to holds 'green', expected a symbol on the map",
    ),
    "state beyond the map": (
        ["plan", "{run}", "--from", "state:99", "--to", "$x_^"],
        "state 99 is not on the map, expected one of its 8 states",
    ),
    "no number of a state": (
        ["plan", "{run}", "--from", "state:x", "--to", "$x_^"],
        "--from holds 'state:x', expected a symbol",
    ),
    "data of another vocabulary": (["map", "{run}", "{other}"], "observation holds 'a'"),
    "no known positions": (
        ["map", "{islands}", "--layout", "known", "--out", "{islands}/map.png"],
        "positions = 'known', but CognitiveMap(4 nodes",
    ),
    "no run": (["report", "nowhere"], "is not a checkpoint"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case: str, folder: Path, islands: Path) -> None:
    other = folder / "other.csv"
    ISLANDS.rename(columns={"observation": "seen"}).assign(action="left").to_csv(other)
    arguments, message = BAD[case]
    names = {"run": folder / "walk.run", "other": other, "islands": islands}
    result = chmm(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
