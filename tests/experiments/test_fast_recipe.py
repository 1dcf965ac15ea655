"""The comparison of the fast recipe: its arithmetic, and a small run of it."""

import json

import pytest
from conftest import example_command, load_example, make_mnist, run_command

from supmae_hf import SupMAEConfig
from supmae_hf.training.schedules import scheduled_flops


def test_runs_of_a_budget_take_as_many_operations():
    script = load_example("experiments/fast_recipe.py")
    config = SupMAEConfig(**script.MODEL, num_labels=10)
    steps = {arm: script.steps_of(arm, config, 8e12) for arm in script.ARMS}
    assert steps["as published"] < steps["more hidden"] < steps["smaller images first"] < steps["both"]
    for arm, number in steps.items():
        flops = 3 * script.BATCH * number * scheduled_flops(config, *script.ARMS[arm])
        assert flops == pytest.approx(8e12, rel=1e-3)


@pytest.mark.slow
def test_a_small_run_that_goes_on(tmp_path):
    data = make_mnist(tmp_path / "data", splits=((0, 1000), (1000, 1100)))
    arguments = ["--data", data, "--tflops", 0.02, "--seeds", 1, "--processes", 1, "--output_dir", "out"]
    command = example_command("experiments/fast_recipe.py", *arguments)
    printed = run_command(command, tmp_path)
    assert printed.count(" minutes)") == 8
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["TFLOPs"] for row in rows] == [0.02] * 4 + [0.01] * 4
    assert all(0 < row[name] <= 1 for row in rows for name in ("fine-tuned", "linear probe"))
    journal = tmp_path / "out" / "runs.jsonl"
    whole = journal.read_text()
    journal.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert run_command(command, tmp_path).count(" minutes)") == 1
    assert [json.loads(line)["key"] for line in journal.read_text().splitlines()] == [
        json.loads(line)["key"] for line in whole.splitlines()
    ]
