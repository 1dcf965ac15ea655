"""The arithmetic of the comparison at equal compute, and a small run of it."""

import json

import comparison
import numpy as np
import pytest
import torch
from conftest import ROOT, example_command, load_example, make_mnist, run_command, write_idx
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def script():
    return load_example("experiments/partial_labels.py")


@pytest.fixture(scope="module")
def data(script, tmp_path_factory):
    return comparison.load_images(str(make_mnist(tmp_path_factory.mktemp("digits"), splits=((0, 1000), (1000, 1100)))))


def test_images_are_padded(data):
    assert data["images"].shape == (1000, 1, 32, 32) and data["test_images"].shape == (100, 1, 32, 32)
    assert data["images"].dtype == torch.uint8 and data["images"][:, :, 12:20, 12:20].float().std() > 50
    assert not data["images"][:, :, :12].any() and not data["images"][..., 20:].any()


@pytest.mark.parametrize("arm", range(4))
def test_every_arm_takes_as_much_compute(script, arm):
    arm, flops = script.ARMS[arm], 8e12
    config = script.config_of(arm, {}, 10)
    pretraining, classification = script.image_flops(arm, config)
    steps, finetuning_steps = script.steps_of(arm, config, flops)
    assert (steps == 0) == (arm == script.SCRATCH)
    spent = script.BATCH * (pretraining * steps + classification * finetuning_steps)
    assert abs(spent / flops - 1) < 1e-3
    shorter = script.steps_of(arm, config, flops / 4)
    assert all(abs(whole - 4 * part) <= 3 for whole, part in zip((steps, finetuning_steps), shorter))


def test_every_arm_has_as_many_trials_on_labels_of_its_own(script, data):
    jobs = script.trials([2, 10, 100], 1e12, data)
    tried = {}
    for job in jobs:
        for finetuning in job["finetunings"]:
            tried.setdefault((job["arm"], finetuning["labels_per_class"]), []).append((job["pretraining"], finetuning))
    assert len(tried) == 3 * 4 - 1  # all images labelled: one arm is SupMAE itself
    for settings in tried.values():
        assert len(settings) == 4 and all(settings.count(one) == 1 for one in settings)
    assert sum(job["arm"] == script.MAE for job in jobs) == 2  # pre-trained once for all numbers of labels
    labeled = script.balanced(data["labels"], 10, seed=1)
    kept, here = script.hold_out(labeled, data)
    assert kept.shape == (10, 7) and len(here["test_images"]) == 30
    assert torch.equal(here["test_images"], data["images"][labeled[:, :3].flatten()])


def test_labels_are_balanced_and_nested(script, data):
    few, many, other = (script.balanced(data["labels"], *x) for x in ((3, 0), (20, 0), (20, 1)))
    for drawn in (few, many, other):
        assert (data["labels"][drawn] == torch.arange(10)[:, None]).all() and len(drawn.unique()) == drawn.numel()
    assert set(few.flatten().tolist()) < set(many.flatten().tolist()) != set(other.flatten().tolist())


def test_the_best_trial_is_chosen(script):
    finetunings = [{"labels_per_class": n, "settings": {"learning_rate": rate}} for n in (1, 2) for rate in (0.1, 0.2)]
    jobs = [script.job_of("trial", "MAE", {"learning_rate": rate}, 1e12, 0, finetunings) for rate in (1.0, 2.0)]
    accuracies = [[0.1, 0.2, 0.7, 0.3], [0.3, 0.1, 0.4, 0.6]]
    chosen = script.choose(jobs, [[{"finetuned": value} for value in row] for row in accuracies])
    assert chosen == {
        ("MAE", 1): ({"learning_rate": 2.0}, {"learning_rate": 0.1}),
        ("MAE", 2): ({"learning_rate": 1.0}, {"learning_rate": 0.1}),
    }
    (one, two) = script.final_jobs(chosen, [1, 2], 8e12, 5)
    assert one["pretraining"] == {"learning_rate": 2.0} and two["finetunings"] == [finetunings[2]]


def test_quick_takes_what_the_full_run_chose(script):
    lines = (ROOT / "docs" / "results" / "partial-labels" / "runs.jsonl").read_text().splitlines()
    trials = [entry for entry in map(json.loads, lines) if entry["key"]["stage"] == "trial"]
    chosen = script.choose([entry["key"] for entry in trials], [entry["result"] for entry in trials])
    for (arm, share), settings in script.CHOSEN.items():
        assert settings == chosen[arm, round(6000 * share)]


def test_half_of_a_batch_is_labeled_if_few_images_are(script, data):
    labeled = script.balanced(data["labels"], 2, seed=0).flatten()
    everything = torch.arange(1000)

    def labels_of(pool, labeled):
        batches = script.pretraining_batches(data["images"], data["labels"], pool, labeled)
        return torch.stack([next(batches)[1] for _ in range(16)])

    seen = labels_of(everything, labeled)
    assert seen.shape == (16, 64) and (seen[:, 32:] != -100).all()
    assert (seen[:, 32:].flatten().bincount() - 51.2).abs().max() < 3  # all of them before one comes again
    assert 0 < (seen[:, :32] != -100).sum() < 30  # by chance, 20 of 1,000
    assert (labels_of(everything, everything) != -100).all()
    assert (labels_of(everything, labeled[:0]) == -100).all()


def test_crops_are_parts_of_their_images(script, data):
    images = data["images"][:32].clone()
    images[:, :, 16:] = 255
    torch.manual_seed(0)
    crops = script.crop_and_flip(images)
    assert crops.shape == images.shape and crops.abs().max() < 1.0001
    bright = (crops > 0.99).float().mean(dim=(1, 2, 3))
    assert 0.3 < bright.mean() < 0.7 and bright.std() > 0.02
    assert (crops[:, :, -1] > 0.99).all()  # what is below stays below


def test_means_and_deviations(script):
    jobs, results = [], []
    for draw, accuracy in enumerate((0.5, 0.6, 0.7)):
        for arm, flops in (("SupMAE", 8e12), ("SupMAE", 4e12), ("ViT from scratch", 8e12)):
            jobs.append(script.job_of("final", arm, {}, flops, draw, [{"labels_per_class": 30, "settings": {}}]))
            results.append([{"finetuned": accuracy - 0.1 * (arm != "SupMAE") - 0.2 * (flops < 8e12)}])
    rows = script.summarize(jobs, results, num_labels=10)
    assert [(row["arm"], row["TFLOPs"], row["labels"], row["draws"]) for row in rows] == [
        ("SupMAE", 8, 300, 3),
        ("ViT from scratch", 8, 300, 3),
        ("SupMAE", 4, 300, 3),
    ]
    assert [row["fine-tuned"] for row in rows] == pytest.approx([0.6, 0.5, 0.4])
    assert [row["fine-tuned (std)"] for row in rows] == pytest.approx([0.1] * 3)
    (line,) = script.say_best(rows[:2])
    assert line == "300 labels: SupMAE 60.0%, ViT from scratch 50.0%"


def test_the_test_images_are_for_the_end(script, data, monkeypatch):
    """Nothing that trains or chooses may see them."""
    blind = {key: value for key, value in data.items() if not key.startswith("test_")}
    finetunings = [{"labels_per_class": 6, "settings": {"learning_rate": 1e-3}}]
    (result,) = script.run(script.job_of("trial", script.SUPMAE, {}, 2e9, 0, finetunings), blind)
    assert 0 <= result["finetuned"] <= 1
    with pytest.raises(KeyError, match="test_images"):
        script.run(script.job_of("final", script.SUPMAE, {}, 2e9, 0, finetunings), blind)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(tmp_path):
    make_mnist(tmp_path / "digits", splits=((0, 1000), (1000, 1100)))
    arguments = ["--tflops", 0.008, "--draws", 1, "--data", "digits", "--processes", 1, "--output_dir", "out"]
    printed = run_command(example_command("experiments/partial_labels.py", *arguments), tmp_path)
    journal = (tmp_path / "out" / "runs.jsonl").read_text().splitlines(keepends=True)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # classes differ in size, so that none of the shares is all; two of the four are 3 images a class
    assert "ViT from scratch" in printed and len(results) == 3 * 4 + 2 * 2 * 4
    assert {"partial_labels.png", "results.csv"} < {path.name for path in (tmp_path / "out").iterdir()}
    # killed while it wrote
    (tmp_path / "out" / "runs.jsonl").write_text("".join(journal[:-2]) + journal[-2][:20])
    run_command(example_command("experiments/partial_labels.py", *arguments), tmp_path)
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again == results


@pytest.mark.slow
def test_the_quick_run(tmp_path):
    make_mnist(tmp_path / "digits", splits=((0, 1000), (1000, 1100)))
    arguments = ["--quick", "--tflops", 0.002, "--data", "digits", "--processes", 1, "--output_dir", "out"]
    printed = run_command(example_command("experiments/partial_labels.py", *arguments), tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) == 4 + 3 and "trial" not in printed


@pytest.mark.slow
def test_the_sweep(tmp_path):
    make_mnist(tmp_path / "digits", splits=((0, 1500), (1500, 1600)))
    digits = load_digits()  # four times, since it holds 500 of each class out
    write_idx(tmp_path / "digits" / "train-images-idx3-ubyte", np.tile(digits.images.astype("uint8"), (4, 1, 1)))
    write_idx(tmp_path / "digits" / "train-labels-idx1-ubyte", np.tile(digits.target, 4))
    arguments = ["--sweep", "--tflops", 0.03, "--draws", 1, "--data", "digits", "--processes", 1]
    run_command(example_command("experiments/partial_labels.py", *arguments), tmp_path)
    results = json.loads((tmp_path / "outputs" / "partial-labels-sweep" / "results.json").read_text())
    assert len(results) == 16 + 3 and len({row["share of the gradient"] for row in results}) == 19
