"""``chmm fit --method vb|gibbs|nuts|gumbel`` and ``chmm posterior``."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch
from shell import chmm, done, json_of, walk_table

from chmm_pyro.checkpoint import load_checkpoint, load_draws
from chmm_pyro.environments import Room
from chmm_pyro.models.point import PointCHMM

ROOM = Room([[0, 1, 2], [2, 0, 1]])
SYMBOLS = ["red", "green", "blue"]
SHORT = ("--draws", 12, "--warmup", 6, "--chains", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table, and chains that start from a point fit to it."""
    folder = tmp_path_factory.mktemp("posterior")
    walk_table(ROOM, SYMBOLS, 300, episodes=2).to_csv(folder / "walk.csv", index=False)
    walk = folder / "walk.csv"
    point = ("--clones", 3, "--method", "em", "--iters", 60, "--pseudocount", 0.001)
    done("fit", walk, *point, "--out", folder / "point.run")
    start = ("--start", folder / "point.run", "--method", "gibbs")
    done("fit", walk, *start, *SHORT, "--out", folder / "gibbs.run")
    return folder


def test_chains_are_saved_with_their_prior(folder):
    model, draws = load_draws(folder / "gibbs.run")
    assert draws["transition"].shape == (2, 12, 4, 9, 9)
    assert draws["log_prob"].dtype == torch.float64
    assert float(model.transition_prior.base.max()) == pytest.approx(1 / 9)
    assert isinstance(load_checkpoint(folder / "gibbs.run").model, PointCHMM)
    settings = load_checkpoint(folder / "gibbs.run").settings
    assert settings["method"] == "gibbs" and settings["num_chains"] == 2
    scored = json_of("eval", folder / "gibbs.run", folder / "walk.csv")
    assert scored["bits_per_step"] < 0.5


def test_posterior_writes_tables_and_pictures(folder, tmp_path):
    found = json_of("posterior", folder / "gibbs.run", "--out", tmp_path / "out")
    assert (found["method"], found["num_chains"], found["num_draws"]) == ("gibbs", 2, 12)
    rows = [row["quantity"] for row in found["summary"]]
    invariant = ["log_prob", "bits_per_step", "states_used"]
    assert rows[:3] == invariant
    assert set(rows[3:6]) == {f"clones_used[{symbol}]" for symbol in SYMBOLS}
    assert rows[6].startswith("transition[")
    assert all(row["r_hat"] is not None for row in found["summary"][:2])
    assert 0 < found["loo"]["bits_per_step"] < 1
    assert found["num_places"]["median"] == ROOM.num_places
    certain = [edge for edge in found["edges"] if edge["inclusion"] > 0.95]
    assert 20 <= len(certain) <= 24
    assert sorted(found["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in ("chains.png", "map.png", "places.png", "predictive.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    summary = pd.read_csv(tmp_path / "out" / "summary.csv", index_col=0)
    assert list(summary.columns) == ["mean", "sd", "5%", "95%", "ess", "r_hat"]
    assert list(summary.index) == rows


def test_the_text_puts_invariant_rows_first(folder):
    text = done("posterior", folder / "gibbs.run")
    assert text.index("log_prob") < text.index("transition[")
    for word in ("LOO", "places", "edges", "saved in"):
        assert f"\n{word}" in text
    assert (folder / "gibbs.run" / "posterior" / "map.png").is_file()


@pytest.mark.parametrize(
    ("method", "options", "shape"),
    [
        ("vb", ("--iters", 5, "--draws", 7, "--concentration", 0.5), (1, 7)),
        ("nuts", ("--draws", 4, "--warmup", 4, "--chains", 2), (2, 4)),
        ("gibbs", (*SHORT, "--sticks", 2.0, "--dtype", "float32"), (2, 12)),
    ],
)
def test_every_posterior_method(folder, tmp_path, method, options, shape):
    fitted = json_of(
        *("fit", folder / "walk.csv", "--clones", 2, "--method", method, "--held-out", 1),
        *(*options, "--out", tmp_path / "run"),
    )
    assert fitted["method"] == method
    assert tuple(fitted["draws"]) == shape
    assert 0 < fitted["held_out_bits_per_step"] < 3
    model, draws = load_draws(tmp_path / "run")
    assert draws["transition"].shape[:2] == shape
    assert ("clone_weights" in draws) == (method == "gibbs")
    assert model.public_names[-1] == "transition"
    if method == "vb":  # a single chain: everything but R-hat
        found = json_of("posterior", tmp_path / "run", "--out", tmp_path / "out")
        assert found["num_draws"] == shape[1]
        assert found["summary"][0]["r_hat"] is None


def test_gumbel_saves_a_point_model(folder, tmp_path):
    fitted = json_of(
        *("fit", folder / "walk.csv", "--clones", 3, "--method", "gumbel", "--iters", 10),
        *("--lr", 0.3, "--out", tmp_path / "run"),
    )
    assert fitted["method"] == "gumbel" and fitted["draws"] is None
    assert type(load_checkpoint(tmp_path / "run").model) is PointCHMM


WRONG = {
    "samplers have no updates": (("gibbs", "--iters", 5), "--iters 5 does not apply"),
    "nor a learning rate": (("nuts", "--lr", 0.1), "--lr 0.1 does not apply to --method nuts"),
    "priors are no pseudocounts": (("vb", "--pseudocount", 0.1), "--pseudocount 0.1 does not"),
    "vb has no chains": (("vb", "--chains", 2), "--chains 2 does not apply to --method vb"),
    "vb has no sticks": (("vb", "--sticks", 2.0), "--sticks 2.0 does not apply to --method vb"),
    "em has no chains": (("em", "--draws", 2), "--draws 2 does not apply to --method em"),
    "gumbel has no prior": (("gumbel", "--concentration", 1.0), "--concentration 1.0 does not"),
    "storage": (("gibbs", "--parameters", "blocks"), "--parameters blocks does not apply"),
    "concentration": (("gibbs", "--concentration", -1.0), "concentration.*= -1, expected a pos"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_do_not_apply_are_refused(folder, name):
    (method, *options), message = WRONG[name]
    result = chmm("fit", folder / "walk.csv", "--clones", 2, "--method", method, *options)
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr


def test_a_run_without_draws_has_no_posterior(folder):
    result = chmm("posterior", folder / "point.run")
    assert result.exit_code == 2
    assert "without posterior draws" in result.stderr and "--method gibbs" in result.stderr
