"""The comparison over the length of pre-training: its arithmetic, a small run, and the intervals of the committed results."""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import time

import comparison
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, example_command, load_example, make_mnist, run_command
from scipy.stats import ttest_rel


@pytest.fixture(scope="module")
def script():
    return load_example("experiments/pretraining.py")


def test_intervals_are_those_of_paired_samples(script):
    one, two = np.random.default_rng(0).normal(size=(2, 5))
    mean, half = script.interval(list(one - two))
    low, high = ttest_rel(one, two).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert script.interval([0.5]) == (0.5, math.inf)


def test_epochs_that_are_needed(script):
    curve = {12: 0.5, 24: 0.6, 48: 0.6, 96: 0.8}
    assert script.epochs_for(curve, 0.4) == 12 and script.epochs_for(curve, 0.9) == math.inf
    assert script.epochs_for(curve, 0.55) == pytest.approx(12 * 2**0.5)
    assert script.epochs_for(curve, 0.7) == pytest.approx(48 * 2**0.5)


def test_differences_pair_the_seeds(script):
    jobs, results = [], []
    for arm, gain in (("SupMAE", 0.02), ("MAE", 0.0)):
        for seed in range(3):
            jobs.append({"arm": arm, "epochs": 12, "seed": seed})
            results.append({"probe": 0.5 + 0.1 * seed + gain + 0.001 * seed * (arm == "MAE")})
    (row,) = script.differences(jobs, results, "SupMAE", "MAE")
    mean, half = script.interval([0.02, 0.019, 0.018])
    assert (row["linear probe"], row["linear probe (95%)"]) == pytest.approx((100 * mean, 100 * half))


def test_differences_from_what_is_not_pretrained(script):
    jobs, results = [], []
    for arm, epochs, finetuning_epochs, accuracy in (
        ("SupMAE", 12, 20, 0.6),
        ("SupMAE", 25, 20, 0.7),
        ("ViT from scratch", 0, 40, 0.55),
        ("ViT from scratch", 0, 80, 0.65),
    ):
        for seed in range(3):
            jobs.append({"arm": arm, "epochs": epochs, "finetuning_epochs": finetuning_epochs, "seed": seed})
            results.append({"finetuned": accuracy})
    for length, expected in ((40, {12: 5, 25: 15}), (80, {12: -5, 25: 5})):
        rows = script.differences(jobs, results, "SupMAE", f"ViT from scratch, {length} epochs")
        assert {row["epochs"]: row["fine-tuned"] for row in rows} == pytest.approx(expected)


def test_training_from_scratch_is_drawn_where_pretraining_takes_as_many_operations(script):
    """By hand: matrix products of a forward pass, a multiplication and an addition each."""

    def blocks(tokens, width, number):
        return number * 2 * (12 * tokens * width**2 + 2 * tokens**2 * width)

    model, patch = script.MODEL, 4 * 4
    width, depth, decoder = model["hidden_size"], model["num_hidden_layers"], model["decoder_hidden_size"]
    classifier = blocks(50, width, depth) + 2 * 49 * patch * width
    masked = blocks(13, width, depth) + 2 * 49 * patch * width + 2 * 13 * width * decoder
    masked += blocks(50, decoder, 1) + 2 * 49 * decoder * patch
    rows = [{"arm": script.SUPMAE, "labels": 500, "epochs": 25, "epochs of fine-tuning": 20}]
    rows.append({"arm": script.SCRATCH, "labels": 500, "epochs": 0, "epochs of fine-tuning": 80})
    expected = 60 * classifier / masked
    assert script.at_equal_operations(rows)[1]["epochs"] == pytest.approx(expected, rel=0.02)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return comparison.load_images(str(make_mnist(tmp_path_factory.mktemp("digits"), splits=((0, 1000), (1000, 1100)))))


def test_images_are_padded(digits):
    assert digits["images"].shape == (1000, 1, 32, 32) and digits["test_images"].shape == (100, 1, 32, 32)
    assert digits["images"].dtype == torch.uint8 and digits["images"][:, :, 12:20, 12:20].float().std() > 50
    assert not digits["images"][:, :, :12].any() and not digits["images"][..., 20:].any()


def test_crops_are_parts_of_their_images(digits):
    images = digits["images"][:32].clone()
    images[:, :, 16:] = 255
    torch.manual_seed(0)
    crops = comparison.crop_and_flip(images)
    assert crops.shape == images.shape and crops.abs().max() < 1.0001
    bright = (crops > 0.99).float().mean(dim=(1, 2, 3))
    assert 0.3 < bright.mean() < 0.7 and bright.std() > 0.02
    assert (crops[:, :, -1] > 0.99).all()  # what is below stays below


def test_images_that_settings_are_chosen_on_are_no_others(script):
    data = {"images": torch.arange(600).view(-1, 1, 1, 1), "labels": torch.arange(600) % 10, "num_labels": 10}
    parts = [script.split(data, seed, 200, 100) for seed in (0, 1)]
    for part in parts:
        assert len(part["images"]) == 200 and part["labels"].bincount().tolist() == [20] * 10
        assert torch.equal(part["held_out_images"], parts[0]["held_out_images"])
        assert not set(part["images"].flatten().tolist()) & set(part["held_out_images"].flatten().tolist())
        assert torch.equal(part["labeled"], torch.arange(200)) and (part["labels"] >= 0).all()
    assert not torch.equal(parts[0]["images"], parts[1]["images"])


def test_few_labels_are_balanced_and_nested(script):
    data = {"images": torch.arange(600).view(-1, 1, 1, 1), "labels": torch.arange(600) % 10, "num_labels": 10}
    few, more = (script.split(data, 0, 200, 100, number) for number in (30, 60))
    assert torch.equal(few["images"], more["images"]) and set(few["labeled"].tolist()) < set(more["labeled"].tolist())
    assert few["labels"][few["labeled"]].bincount().tolist() == [3] * 10 and (few["labels"] >= 0).sum() == 30


def test_what_few_labels_teach(script, digits, monkeypatch):
    """Half of a batch has a label; the arm on the labelled images sees no others, and fine-tuning sees only these."""
    data, seen = script.split({**digits, "images": digits["images"][:, :, 2:30, 2:30]}, 0, 500, 100, 20), []
    monkeypatch.setattr(
        comparison, "train", lambda model, batches, *_, **__: seen.append(next(iter(batches))) or model
    )
    settings = {"learning_rate": 1e-3, "finetuning_rate": 1e-3, "mixing": False}
    for arm in (script.SUPMAE, script.LABELED_ONLY, script.MAE):
        pretrained, _ = script.pretrain(arm, settings, 1, data)
    script.finetune(pretrained, settings, 1, data)
    some, labeled, mae, finetuned = [labels for _, labels in seen]
    assert (some[64:] >= 0).all() and (some[:64] >= 0).sum() < 20 and (labeled >= 0).all() and mae is None
    assert (finetuned >= 0).all() and len(finetuned) == 128


def test_pseudo_labels_begin_once_those_of_held_out_images_are_right(script, digits, monkeypatch):
    data, seen = script.split({**digits, "images": digits["images"][:, :, 2:30, 2:30]}, 0, 500, 100, 20), []
    monkeypatch.setattr(
        comparison, "train", lambda model, batches, *_, **__: seen.append(list(itertools.islice(batches, 8))) or model
    )
    right = data["held_out_labels"][::10]

    def guess(answers):
        return lambda model, images: answers if len(images) == len(answers) else torch.full((len(images),), 7)

    for answers in (right, right.roll(1), torch.full_like(right, script.UNLABELED)):
        monkeypatch.setattr(script, "pseudo_labels", guess(answers))
        script.pretrain(script.PSEUDO, {"learning_rate": 1e-3}, 1, data)
    shares = [[(labels >= 0).float().mean().item() for _, labels in batches] for batches in seen]
    assert max(shares[0][:3]) < 0.6 and shares[0][3:] == [1.0] * 5  # an epoch is four steps
    assert max(shares[1] + shares[2]) < 0.6


def test_pseudo_labels_are_classes_that_the_model_is_sure_of(script, digits):
    model = script.SupMAEForPreTraining(script.config_of(script.PSEUDO, {}, 10))
    images = digits["images"][:50, :, 2:30, 2:30]
    *_, last = (module for module in model.classification_head.modules() if isinstance(module, torch.nn.Linear))
    torch.nn.init.zeros_(last.weight)
    for score, expected in ((9.0, 4), (4.0, script.UNLABELED)):  # a share of 0.999 and of 0.86
        torch.nn.init.zeros_(last.bias)
        last.bias.data[4] = score
        assert script.pseudo_labels(model, images).tolist() == [expected] * 50
        assert model.training


def test_fine_tuning_with_reconstruction_trains_one_encoder_for_as_many_operations(script, digits, monkeypatch):
    data, steps = script.split({**digits, "images": digits["images"][:, :, 2:30, 2:30]}, 0, 500, 100), []
    train = comparison.train

    def count(model, batches, num_steps, *arguments):
        steps.append(num_steps)
        return train(model, batches, 2, *arguments)

    monkeypatch.setattr(comparison, "train", count)
    settings = {"finetuning_rate": 1e-3, "mixing": False}
    for reconstructs in (False, True):
        pretrained = script.SupMAEForPreTraining(script.config_of(script.SUPMAE, {}, 10))
        decoder = pretrained.decoder.decoder_pred.weight.clone()
        model = script.finetune(pretrained, settings, 20, data, reconstructs)
        assert torch.equal(decoder, pretrained.decoder.decoder_pred.weight) != reconstructs
    assert model.reconstruction.vit.layers is model.vit.layers
    whole, masked = script.classification_flops(model.config), script.pretraining_flops(pretrained.config)
    assert steps[1] * (whole + masked) == pytest.approx(steps[0] * whole, rel=0.02)


@pytest.mark.parametrize("processes", [1, 100])
def test_epochs_of_an_accelerator_fit_its_minutes(script, processes):
    """42 million images of pre-training; where many run at a time, the longest run, 12 million, is alone in the end."""
    args = argparse.Namespace(device="cuda", processes=processes, seeds=1, images=60_000, finetuning_epochs=20)

    def divisor(rate, minutes):
        args.minutes = minutes
        runs = argparse.Namespace(finish=lambda jobs: [{"images_per_second": rate}] * len(jobs))
        return script.divisor_of(runs, args)

    longest = 42e6 if processes == 1 else 12e6
    assert longest < 10_000 * 60 * 5 * divisor(10_000, 5) < 2 * longest  # with fine-tuning
    assert divisor(10_000, 10) == pytest.approx(divisor(10_000, 5) / 2) and divisor(1e6, 60) == 1


def test_images_of_trials_are_not_those_of_the_test(script, digits):
    """Nothing that chooses may see the test images."""
    blind = {key: value[:, :, 2:30, 2:30] if key == "images" else value for key, value in digits.items()}
    del blind["test_images"], blind["test_labels"]
    job = {"arm": script.SCRATCH, "epochs": 0, "finetuning_epochs": 1, "seed": 0, "images": 200, "held_out": 100}
    job["settings"] = {"finetuning_rate": 1e-3, "mixing": False}
    assert 0 <= script.run({**job, "is_trial": True}, blind)["finetuned"] <= 1
    with pytest.raises(KeyError, match="test_images"):
        script.run({**job, "is_trial": False}, blind)


def test_mixed_labels_are_trained_with_soft_cross_entropy(script):
    """Also from a pre-trained model, whose configuration might name another problem."""
    data = {"images": torch.randint(0, 255, (40, 1, 28, 28), dtype=torch.uint8), "labels": torch.arange(40) % 10}
    data["labeled"] = torch.arange(40)
    seen = []
    original = torch.nn.functional.cross_entropy

    def keep(logits, answers, **options):
        seen.append((answers.shape, options))
        return original(logits, answers, **options)

    torch.nn.functional.cross_entropy = keep
    try:
        model = script.SupMAEForPreTraining(script.config_of("SupMAE", {}, 10))
        settings = {"finetuning_rate": 1e-3, "mixing": True}
        for pretrained in (None, model):
            script.finetune(pretrained, settings, 128 / 40, {**data, "num_labels": 10})
    finally:
        torch.nn.functional.cross_entropy = original
    assert seen == [((128, 10), {"label_smoothing": 0.1})] * 2


def test_the_intervals_of_the_document(script):
    """Recomputed from the raw results."""
    values = {}
    for line in (ROOT / "docs" / "results" / "partial-labels" / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        if run["key"]["stage"] == "final" and run["key"]["flops"] == 8e12:
            for finetuning, result in zip(run["key"]["finetunings"], run["result"]):
                key = run["key"]["arm"], 10 * finetuning["labels_per_class"], run["key"]["draw"]
                values[key] = result
    document = (ROOT / "docs" / "results.md").read_text().split("| SupMAE over MAE | linear")[1].splitlines()[2:6]
    for line, labels in zip(document, (300, 1200, 6000, 60000)):
        cells = re.findall(r"([+-][\d.]+) ± ([\d.]+)(\*\*)?", line)
        for (mean, half, bold), name in zip(cells, ("probe", "knn", "finetuned", "corrupted"), strict=True):
            pairs = [(values["SupMAE", labels, draw][name], values["MAE", labels, draw][name]) for draw in range(3)]
            expected = script.interval([100 * (one - two) for one, two in pairs])
            assert (float(mean), float(half)) == pytest.approx(expected, abs=0.0501)
            assert bool(bold) == (abs(expected[0]) > expected[1])


@pytest.fixture(scope="module", params=["epochs", "labels"])
def committed(request):
    """The first column of the tables of a section, its raw results, and the section."""
    titles = {"epochs": "### Over the length of pre-training\n", "labels": "### Few labels\n"}
    lines = (ROOT / "docs" / "results" / "pretraining" / "runs.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    section = (ROOT / "docs" / "results.md").read_text().split(titles[request.param])[1]
    return (
        request.param,
        [run for run in runs if ("labeled" in run["key"]) == (request.param == "labels")],
        section.split("\n### ")[0],
    )


def rows_of(section: str, title: str) -> list[list[str]]:
    """The cells of the rows of the table whose header begins so."""
    lines = section.split(f"\n| {title}")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_trials_of_the_document(committed):
    first, runs, section = committed
    prefix = "labels | " if first == "labels" else ""
    trials = {}
    for run in runs:
        if run["key"]["is_trial"]:
            names = ("learning_rate", "decoder", "finetuning_rate", "mixing")
            settings = (run["key"]["settings"].get(name, 1) for name in names)
            row = (str(run["key"]["labeled"]), run["key"]["arm"]) if prefix else (run["key"]["arm"],)
            trials[(row, *settings)] = 100 * run["result"]["finetuned"]
    rates, best_of, shown = (1e-3, 2e-3, 4e-3, 8e-3), {}, set()
    for *row, one, two, three, four in rows_of(section, f"{prefix}learning rate of pre-training"):
        expected = [trials[tuple(row), rate, 1, 1e-3, False] for rate in rates]
        assert list(map(float, (one, two, three, four))) == pytest.approx(expected, abs=0.0501)
        best_of[tuple(row)] = rates[np.argmax(expected)]
    for *row, one, two, three, four, mixed in rows_of(section, f"{prefix}learning rate of fine-tuning"):
        before = tuple(row), best_of.get(tuple(row), 1)
        one_block, four_blocks = (trials.get((*before, decoder, 1e-3, False), 0) for decoder in (1, 4))
        # the standard error on 10,000 images
        decoder = 4 if four_blocks > one_block + math.sqrt(one_block * (100 - one_block) / 10_000) else 1
        expected = [trials[(*before, decoder, rate, False)] for rate in rates]
        expected.append(trials[(*before, decoder, rates[np.argmax(expected)], True)])
        assert list(map(float, (one, two, three, four, mixed))) == pytest.approx(expected, abs=0.0501)
        shown.add(tuple(row))
    assert shown == {row for row, *_ in trials} and len(best_of) < len(shown)
    match = re.search(r"A decoder of 4 blocks .*? gave MAE ([\d.]+)(?: and ([\d.]+))?", section, re.DOTALL)
    larger = [float(value) for value in match.groups() if value]
    expected = [trials[row, rate, 4, 1e-3, False] for row, rate in best_of.items() if row[-1] == "MAE"]
    assert larger == pytest.approx(expected, abs=0.0501)


def test_the_results_of_the_document(script, committed):
    """Means, deviations, paired intervals, bold where these exclude 0, and epochs that are needed; of all that was run."""
    first, runs, section = committed
    jobs, results = zip(*((run["key"], run["result"]) for run in runs if not run["key"]["is_trial"]))
    rows = rows_of(section, f"{first} | arm")
    keys = [(script.name_of(job), job.get("labeled", job["epochs"])) for job in jobs]
    assert {(arm, float(place or 0)) for place, arm, *_ in rows} == set(keys)
    for place, arm, *cells in rows:
        chosen = [result for key, result in zip(keys, results) if key == (arm, float(place or 0))]
        for name, cell in zip(script.MEASURES, cells, strict=True):
            values = [100 * result[name] for result in chosen if name in result]
            assert bool(values) == bool(cell) and len(values) in (0, 3)
            if values:
                expected = np.mean(values), np.std(values, ddof=1)
                assert list(map(float, cell.split(" ± "))) == pytest.approx(expected, abs=0.0501)
    for place, pair, *cells in rows_of(section, f"{first} | paired"):
        chosen = [run for run in zip(jobs, results) if run[0].get("labeled") in (None, float(place))]
        (row,) = [
            row
            for row in script.differences(*zip(*chosen), *pair.split(" over "))
            if first == "labels" or row["epochs"] == float(place)
        ]
        for title, cell in zip(script.MEASURES.values(), cells, strict=True):
            assert (title in row) == bool(cell)
            if cell:
                expected = row[title], row[f"{title} (95%)"]
                assert list(map(float, cell.strip("*").split(" ± "))) == pytest.approx(expected, abs=0.0501)
                assert cell.startswith("**") == (abs(expected[0]) > expected[1])


@pytest.mark.parametrize("committed", ["epochs"], indirect=True)
def test_the_epochs_that_are_needed_of_the_document(script, committed):
    _, runs, section = committed
    jobs, results = zip(*((run["key"], run["result"]) for run in runs if not run["key"]["is_trial"]))
    needed = {(row["measure"], row["epochs of SupMAE"]): row for row in script.epochs_needed(jobs, results)}
    most = max(job["epochs"] for job in jobs if job["arm"] == script.MAE)
    for epochs, *cells in rows_of(section, "epochs of SupMAE"):
        for title, cell in zip(script.MEASURES.values(), cells, strict=True):
            row = needed[title, float(epochs)]
            values = [
                f"{row[name]:.0f}" if row[name] <= most else f"over {most:.0f}"
                for name in ("of MAE", "fewest", "most")
            ]
            assert cell == (values[0] if len(set(values)) == 1 else "{} ({} to {})".format(*values))


@pytest.mark.slow
def test_a_small_run(tmp_path):
    data = make_mnist(tmp_path / "digits", splits=((0, 1400), (1400, 1500)))
    flags = ["--data", data, "--transfer", data, "--quick", "--images", 300, "--held_out", 100, "--divisor", 50]
    flags += ["--finetuning_epochs", 1, "--test_images", 100, "--corrupted", 20, "--output_dir", "out"]
    printed = run_command(example_command("experiments/pretraining.py", *flags), tmp_path)
    assert "Chosen for MAE" in printed
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    always = {"SupMAE", "MAE", "MAE, then SupMAE", "ViT from scratch", "raw pixels", "random encoder"}
    few = always | {"SupMAE, labelled images only", "SupMAE, pseudo-labels"}
    assert {labels: {row["arm"] for row in rows if row["labels"] == labels} for labels in (300, 30, 20)} == {
        300: always | {"SupMAE, fine-tuned with reconstruction", "supervised only"},
        30: few,
        20: few,
    }
    assert (tmp_path / "out" / "pretraining.png").is_file() and (tmp_path / "out" / "epochs-needed.csv").is_file()
    again = run_command(example_command("experiments/pretraining.py", *flags), tmp_path)  # from the journal
    assert "24/24 " in printed and "10/10 " in printed and not re.search(r"\d/\d", again)


@pytest.mark.slow
def test_a_small_run_of_all_images(tmp_path):
    data = make_mnist(tmp_path / "digits", splits=((0, 1400), (1400, 1500)))
    flags = ["--data", data, "--transfer", data, "--quick", "--only", "large", "--minutes", 0.2, "--test_images", 100]
    printed = run_command(example_command("experiments/pretraining.py", *flags, "--output_dir", "out"), tmp_path)
    divisor = float(re.search(r"divided by (\d+\.\d+)", printed)[1])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    lengths = [row["epochs"] for row in rows if row["arm"] == "SupMAE"]
    assert divisor > 1 and lengths == pytest.approx([epochs / divisor for epochs in (25, 50, 100)], rel=0.01)
    assert {row["arm"] for row in rows} == {"SupMAE", "supervised only", "MAE", "raw pixels", "random encoder"}


def test_the_processes_of_a_comparison_end_with_it(tmp_path):
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import argparse, os, time
            from pathlib import Path

            from comparison import Comparison


            def run(job, data):
                Path(str(os.getpid())).touch()
                while True:
                    time.sleep(1)


            if __name__ == "__main__":
                args = argparse.Namespace(output_dir=Path("out"), processes=2, device="cpu")
                with Comparison(args, run, {}, dict) as runs:
                    runs.finish([{"job": 1}, {"job": 2}])
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "experiments")}
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environment)
    while len(started := [path.name for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
        assert process.poll() is None
        time.sleep(0.2)
    workers = [psutil.Process(int(name)) for name in started]
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, 30)[1]
