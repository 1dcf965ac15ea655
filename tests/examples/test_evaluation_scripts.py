"""The evaluation scripts, on tiny random models."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import run_example as run
from evaluation.zoo import CLASSIFIERS, make_model
from PIL import Image
from sklearn.metrics import recall_score, top_k_accuracy_score
from timm.data import ImageNetInfo
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from supmae_hf.data.sources import load_digits


@pytest.fixture
def classifiers(tmp_path):
    return [make_model(family, tmp_path) for family in CLASSIFIERS]


def test_eval(tmp_path, classifiers):
    printed = run("run_eval.py", "--models", *classifiers, "--output_dir", "out", "--max_samples", 100, cwd=tmp_path)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["model"] for row in rows] == classifiers and all(row["images"] == 100 for row in rows)
    assert all(name in printed for name in classifiers) and (tmp_path / "out" / "results.png").stat().st_size > 10_000
    with open(tmp_path / "out" / "results.csv") as file:
        assert [float(row["top1"]) for row in csv.DictReader(file)] == [row["top1"] for row in rows]
    # against a pipeline and scikit-learn
    digits = load_digits()["validation"].shuffle(seed=0).select(range(100))
    classify = pipeline("image-classification", model=classifiers[1])
    scores = np.zeros((100, 10))
    for index, labels in enumerate(classify(digits["image"][:], top_k=10)):
        for label in labels:
            scores[index, int(label["label"])] = label["score"]
    for k in (1, 5):
        assert rows[1][f"top{k}"] == pytest.approx(100 * top_k_accuracy_score(digits["label"], scores, k=k))
    with open(tmp_path / "out" / "classes.csv") as file:
        found = [float(row["accuracy"]) for row in csv.DictReader(file) if row["model"] == classifiers[1]]
    expected = recall_score(digits["label"], scores.argmax(axis=1), average=None, zero_division=0)
    assert found == pytest.approx(expected.tolist()) and (tmp_path / "out" / "confusion.png").stat().st_size > 10_000


def test_eval_has_a_table_for_the_models_that_fit(tmp_path, classifiers):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=32, num_labels=7)
    other = str(tmp_path / "other")
    ViTForImageClassification(config).save_pretrained(other)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(other)
    models = [classifiers[0], other, classifiers[1]]
    error = run(
        "run_eval.py", "--models", *models, "--max_samples", 20, "--output_dir", "out", cwd=tmp_path, fails=True
    )
    assert other in error and "7 others" in error
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["model"] for row in rows] == [models[0], models[2]]


def image_folder(path, synsets, per_class=2):
    generator = np.random.default_rng(0)
    for synset in synsets:
        (path / synset).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / synset / f"{index}.png")


def test_robustness_on_imagenets_folders(tmp_path):
    """The layout of the published archives, for a random model with ImageNet's 1,000 classes."""
    name = make_model("vit", tmp_path)
    synsets = ImageNetInfo().label_names()
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_pretrained(name, num_labels=1000, ignore_mismatched_sizes=True)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(name)
    corruptions = ["fog", "snow"]
    for corruption in corruptions:
        for severity in (1, 2):
            image_folder(tmp_path / "c" / corruption / str(severity), synsets[:3])
    image_folder(tmp_path / "a", [synsets[6], synsets[11]])  # two classes of ImageNet-A
    image_folder(tmp_path / "sketch", synsets[:4])
    arguments = ["--models", name, "--imagenet_c", "c", "--imagenet_a", "a", "--imagenet_sketch", "sketch"]
    arguments += ["--corruptions", *corruptions, "--severities", 1, 2, "--output_dir", "out"]
    run("run_robustness.py", *arguments, cwd=tmp_path)
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"fog error", "snow error", "mean error", "A", "Sketch"} < set(row) and "mCE" not in row
    before = (tmp_path / "out" / "results.jsonl").read_text()
    assert len(before.splitlines()) == 6
    # the same again, measured anew only where the last line was cut off
    (tmp_path / "out" / "results.jsonl").write_text(before[:-10])
    run("run_robustness.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "out" / "results.jsonl").read_text() == before

    image_folder(tmp_path / "wrong", synsets[:3])  # of which not all are ImageNet-A's
    arguments[arguments.index("a")] = "wrong"
    assert "published 200" in run("run_robustness.py", *arguments, cwd=tmp_path, fails=True)


def test_robustness_on_the_digits(tmp_path, classifiers):
    arguments = [
        "--models",
        *classifiers[:2],
        "--max_samples",
        10,
        "--output_dir",
        "out",
        "--extra_corruptions",
        "True",
    ]
    printed = run("run_robustness.py", *arguments, "--severities", 5, cwd=tmp_path)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len([column for column in rows[0] if column.endswith(" error")]) == 20  # 15, 4 and the mean
    errors = [value for column, value in rows[0].items() if column.endswith(" error") and column != "mean error"]
    assert rows[0]["mean error"] == pytest.approx(np.mean(errors))
    assert "gaussian_noise error" in printed and (tmp_path / "out" / "results.png").is_file()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run_eval.py", ["--models", "nowhere"], "There is no model 'nowhere'"),
        ("run_eval.py", ["--models", "a", "a"], "more than once"),
        ("run_eval.py", ["--models", "{vit}", "--image_dir", "none"], "'none' is not a folder of images"),
        ("run_eval.py", ["--models", "{vit}", "--split", "dev"], "no split 'dev', only ['train', 'validation']"),
        ("run_eval.py", ["--models", "a", "--dataset_name", "b", "--image_dir", "c"], "give one of them"),
        ("run_robustness.py", ["--models", "a", "--corruptions", "rain"], "'rain' is not one of gaussian_noise"),
        ("run_robustness.py", ["--models", "a", "--imagenet_c", "{vit}"], "lacks 75 folders, such as"),
        ("run_robustness.py", ["--models", "{vit}", "--imagenet_a", "no/where"], "There is no data set 'no/where'"),
        ("run_few_shot.py", ["--models", "{vit}", "--datasets", "no/where"], "There is no data set 'no/where'"),
        ("run_semantic_segmentation.py", ["--models", "{clip}"], "no backbone class for"),
    ],
)
def test_bad_input_ends_in_one_error(tmp_path, script, arguments, message):
    models = {family: make_model(family, tmp_path) for family in ("vit", "clip")}
    arguments = [argument.format(**models) for argument in arguments]
    assert message in run(script, *arguments, "--output_dir", "out", cwd=tmp_path, fails=True)
    assert not list(tmp_path.glob("out/*/*"))  # no training was begun


def test_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    error = run(
        "run_eval.py", "--models", make_model("vit", tmp_path), "--output_dir", "out", cwd=tmp_path, fails=True
    )
    assert "out is not empty and holds no run of ours (thesis.txt)" in error


@pytest.mark.slow
def test_few_shot(tmp_path):
    models = [make_model(family, tmp_path) for family in ("supmae", "vit")]
    arguments = ["--models", *models, "--shots", 2, 4, "--seeds", 0, 1, "--epochs", 1, "--learning_rates", 1e-3]
    arguments += ["--datasets", "digits", "--output_dir", "out"]
    printed = run("run_few_shot.py", *arguments, cwd=tmp_path)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["model"] for row in rows] == models and "probe, 4 shots std" in rows[0]
    journal = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(journal) == 2 * 2 * 2 * 2 and (tmp_path / "out" / "results.png").is_file()
    accuracies = [
        entry["result"]["accuracy"] * 100
        for entry in journal
        if entry["key"]["method"] == "probe"
        and entry["key"]["shots"] == 4
        and entry["key"]["model"].startswith(models[1])
    ]
    assert rows[1]["probe, 4 shots"] == pytest.approx(np.mean(accuracies))
    assert rows[1]["probe, 4 shots std"] == pytest.approx(np.std(accuracies, ddof=1))
    again = run("run_few_shot.py", *arguments, cwd=tmp_path)
    assert "seed 0:" in printed and "seed 0:" not in again  # nothing is measured twice
