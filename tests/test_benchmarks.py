"""Every benchmark script runs and writes what it promises; its numbers mean nothing here."""

from __future__ import annotations

import importlib
import json

import pandas as pd
import pytest
import torch
from conftest import import_benchmark
from numpy.testing import assert_allclose

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch


def test_speed_checks_and_times(monkeypatch, tmp_path):
    speed = import_benchmark(monkeypatch, "speed")
    names = ["ours-em", "ours-gradient"]
    chosen = ["--instances", "small", "--implementations", *names]
    speed.main([*chosen, "--repeats", "2", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "speed.csv")
    assert list(table["implementation"]) == names
    assert (table["median_ms"] > 0).all()
    assert "processor:" in (tmp_path / "speed.txt").read_text(encoding="utf-8")


def test_speed_refuses_a_wrong_likelihood_and_a_wrong_gradient(monkeypatch):
    speed = import_benchmark(monkeypatch, "speed")
    contest = importlib.import_module("contest")
    instance = speed.INSTANCES["small"]
    honest = speed.IMPLEMENTATIONS["ours-gradient"].prepare(instance)
    off_value = contest.Run(lambda: honest.step() * 1.001)
    off_gradient = contest.Run(honest.step, gradient=lambda: honest.gradient() * 1.01)
    for run in (off_value, off_gradient):
        cheat = contest.Implementation("cheat", "gradient", lambda _, run=run: run)
        with pytest.raises(AssertionError, match="cheat"):
            speed.compare(instance, [cheat], repeats=1)


def test_speed_says_what_it_skips(monkeypatch, capsys):
    speed = import_benchmark(monkeypatch, "speed")
    contest = importlib.import_module("contest")
    absent = contest.Implementation("absent", "em", print, needs=("no_such_module",))
    (row,) = speed.compare(speed.INSTANCES["small"], [absent], repeats=1)
    assert row["skipped"] == "no_such_module not installed"
    assert "absent skipped" in capsys.readouterr().out


def test_memory_child_reports_a_peak_above_the_data(monkeypatch, capsys):
    import_benchmark(monkeypatch, "memory").main(["--child", "ours-em", "small"])
    row = json.loads(capsys.readouterr().out)
    assert 0 <= row["above_data_mib"] < row["process_before_mib"]


def test_compile_time_tells_the_calls_apart(monkeypatch, tmp_path):
    import_benchmark(monkeypatch, "compile_time").main(
        ["--cached-only", "--repeats", "1", "--out", str(tmp_path)]
    )
    (row,) = pd.read_csv(tmp_path / "compile_time.csv").to_dict("records")
    assert row["import"] > 0
    assert row["first EM iteration"] > 0


def test_training_curves_follow_the_published_ones(monkeypatch, tmp_path):
    training = import_benchmark(monkeypatch, "training_curves")
    training.main(["--cases", "small", "--num-iters", "5", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "training_curves.csv")
    starts = table[table["update"] == 0]
    assert len(starts) == len(training.methods("small"))
    assert starts["train_bits_per_step"].nunique() == 1
    assert starts["held_out_bits_per_step"].nunique() == 1
    assert (tmp_path / "training_curves.png").stat().st_size > 10_000


def test_gumbel_viterbi_resumes_and_summarises(monkeypatch, tmp_path, capsys):
    script = import_benchmark(monkeypatch, "gumbel_viterbi")
    small = ["--cases", "small", "ragged 0", "--seeds", "0", "--num-iters", "2"]
    script.main([*small, "--out", str(tmp_path)])
    tables = {study: pd.read_csv(tmp_path / f"gumbel_{study}.csv") for study in script.STUDIES}
    decoding = tables["decoding"]
    assert set(decoding["case"][decoding["structure"] == "mean_field"]) == {"small"}
    assert (decoding["missed_before"] > script.GOAL).all()
    assert all(len(rows) for rows in tables.values())
    assert (tmp_path / "gumbel_viterbi.png").stat().st_size > 10_000
    monkeypatch.setattr(script, "fit_gumbel", None)  # nothing is left to run
    script.main([*small, "--out", str(tmp_path)])
    shown = capsys.readouterr().out.split("\n\n")
    assert (
        shown[0] == (tmp_path / "gumbel_viterbi.txt").read_text(encoding="utf-8").split("\n\n")[0]
    )


def test_minigrid_maps_predict_and_lead_to_the_goal(monkeypatch, tmp_path):
    script = import_benchmark(monkeypatch, "minigrid_maps")
    out = tmp_path / "minigrid.csv"
    chosen = ["--worlds", "MiniGrid-Empty-5x5-v0", "--seeds", "0", "--steps", "3000"]
    script.main([*chosen, "--trials", "10", "--out", str(out)])
    (row,) = pd.read_csv(out).to_dict("records")
    assert row["num_nodes"] == row["poses"] and row["purity"] == 1.0
    assert row["map_accuracy"] > row["ngram_16_accuracy"] > row["ngram_1_accuracy"]
    assert row["plan_arrives"] and row["plan_steps"] == row["fewest_steps"]
    assert row["navigated"] == 1.0
    assert (tmp_path / "minigrid_Empty.png").stat().st_size > 10_000
    script.main([*chosen, "--trials", "10", "--out", str(out)])
    assert len(pd.read_csv(out)) == 1, "a run that is there already was repeated"


@pytest.mark.slow
def test_a_larger_minigrid_world_is_learned_exactly(monkeypatch, tmp_path):
    script = import_benchmark(monkeypatch, "minigrid_maps")
    out = tmp_path / "minigrid.csv"
    world = "MiniGrid-SimpleCrossingS11N5-v0"
    script.main(["--worlds", world, "--seeds", "0", "--out", str(out)])
    (row,) = pd.read_csv(out).to_dict("records")
    assert row["isomorphic"] and row["confusable_pairs"] == 0
    assert row["map_accuracy"] > 0.999 > row["ngram_16_accuracy"]
    assert row["plan_arrives"] and row["plan_steps"] == row["fewest_steps"]
    assert row["navigated"] == 1.0


def test_map_recovery_resumes_and_lists_failures(monkeypatch, tmp_path):
    script = import_benchmark(monkeypatch, "map_recovery")
    monkeypatch.setitem(script.METHODS, "svi", lambda walks, world, seed: one_state_each(walks))
    out = tmp_path / "maps.csv"
    chosen = ["--worlds", "aliased_4x4", "--steps", "5000", "--out", str(out), "--methods"]
    script.main([*chosen, "recipe", "--seeds", "0"])
    first = pd.read_csv(out)
    monkeypatch.setitem(script.METHODS, "recipe", None)  # what is there is not run again
    script.main([*chosen, "recipe", "svi", "--seeds", "0"])
    both = pd.read_csv(out)
    assert both["bits_per_step"][0] == first["bits_per_step"][0]
    assert both["isomorphic"].tolist() == [True, False]
    assert both["num_nodes"].tolist() == [16, 4]
    text = out.with_suffix(".txt").read_text(encoding="utf-8")
    assert "not exact:" in text and "processor:" in text
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_map_ablations_leave_parts_out_and_put_them_back(monkeypatch, tmp_path):
    script = import_benchmark(monkeypatch, "map_ablations")
    methods = dict(script.map_recovery.METHODS)
    parts = script.map_fit.merge_states, script.map_fit._STEP, script.map_fit._Search.budget
    out = tmp_path / "ablations.csv"
    variants = ["the recipe", "no merging", "equally many clones for each symbol"]
    chosen = ["--worlds", "aliased_4x4", "--steps", "5000", "--seeds", "0", "--out", str(out)]
    script.main([*chosen, "--variants", *variants])
    rows = pd.read_csv(out)
    assert rows["method"].tolist() == variants
    assert rows["isomorphic"].tolist()[:2] == [True, False]
    assert rows["num_nodes"][1] > 16  # duplicates
    now = script.map_fit.merge_states, script.map_fit._STEP, script.map_fit._Search.budget
    assert now == parts and methods == script.map_recovery.METHODS
    assert "1/1, 16 states" in out.with_suffix(".txt").read_text(encoding="utf-8")


def one_state_each(walks):
    batch = walks.batch
    model = PointCHMM(CloneStructure([1] * batch.num_symbols), num_actions=batch.num_actions)
    return fit_em(model, batch, num_iters=2, pseudocount=0.01, progress=False)


def test_ngrams_shorten_what_they_have_not_seen(monkeypatch):
    script = import_benchmark(monkeypatch, "minigrid_maps")
    train = SequenceBatch.from_arrays([[0, 1, 0, 2, 0, 1, 0, 2]])
    one, two = (script.NGram(train, order) for order in (1, 2))
    assert one.accuracy(train) == 5 / 7  # after 0 comes 1 or 2
    assert two.accuracy(train) == 1.0  # the very first 0 is followed by 1
    assert two.accuracy(SequenceBatch.from_arrays([[2, 2, 0]])) == 0.5  # (2, 2) is new, 2 is not


def test_cells_are_counted_and_drawn(monkeypatch, tmp_path):
    chosen = ["--experiments", "splitter", "--seeds", "0"]
    import_benchmark(monkeypatch, "cells").main([*chosen, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "cells.csv")
    splitters = table[table["cells_of"] == "splitter"]
    assert (splitters["cells"] == splitters["expected"]).all() and splitters["worst"].min() > 0.9
    control = table[table["cells_of"] == "splitter, random turns"]
    assert control["median"].max() < 0.75
    assert (tmp_path / "cells_splitter.png").stat().st_size > 10_000


def test_posterior_agreement_has_every_method(monkeypatch, tmp_path):
    benchmark = import_benchmark(monkeypatch, "posterior_agreement")
    short = ["--models", "plain", "--importance", "500", "--scale", "0.002"]
    benchmark.main([*short, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "posterior_agreement.csv")
    methods = {"importance", "Gibbs", "NUTS", "VB", "SVI Dirichlet", "SVI AutoNormal"}
    assert methods < set(table["method"])
    assert (table["deviation"] > 0).all()
    text = (tmp_path / "posterior_agreement.txt").read_text(encoding="utf-8")
    assert "Effective size of importance sampling" in text


def test_sampler_efficiency_counts_draws_by_second(monkeypatch, tmp_path):
    benchmark = import_benchmark(monkeypatch, "sampler_efficiency")
    before = torch.get_num_threads()
    try:
        benchmark.main(["--cases", "2x2, 5 steps", "--scale", "0.05", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(before)
    table = pd.read_csv(tmp_path / "sampler_efficiency.csv")
    assert list(table["sampler"]) == ["Gibbs", "NUTS", "NUTS, enumerated"]
    rate = table["effective_next"] / table["cpu_seconds"]
    assert_allclose(table["next_per_cpu_second"], rate, rtol=1e-2)
    assert "processor:" in (tmp_path / "sampler_efficiency.txt").read_text(encoding="utf-8")


def test_number_of_clones_compares_budgets_and_draws(monkeypatch, tmp_path):
    clones = import_benchmark(monkeypatch, "number_of_clones")
    small = ["--steps", "80", "--budgets", "2", "4", "--chains", "2", "--warmup", "3"]
    short = ["--draws", "8", "--em-iters", "3", "--held-out", "40", "--out", str(tmp_path)]
    clones.main([*small, *short])
    table = pd.read_csv(tmp_path / "number_of_clones.csv")
    assert list(table["prior"]) == ["fixed", "fixed", "sticks"]
    assert (table["loo_bits"] > 0).all() and (table["held_out_bits"] > 0).all()
    assert (tmp_path / "number_of_clones.png").read_bytes()[:4] == b"\x89PNG"
    assert "processor:" in (tmp_path / "number_of_clones.txt").read_text(encoding="utf-8")
