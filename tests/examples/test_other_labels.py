"""Several classes an image, and numbers: from a folder to the pipeline and the export, with the same numbers everywhere."""

import json

import numpy as np
import pandas
import pytest
import torch
import transformers
from conftest import TINY, digit_images, run_example
from packaging.version import Version
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, roc_auc_score
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.evaluation.metrics import MultiLabelMetrics, RegressionMetrics


RUN = ["--report_to", "none", "--disable_tqdm", "True", "--use_cpu", "--warmup_epochs", 0]
RUN += ["--per_device_train_batch_size", 16, "--save_strategy", "no"]
KINDS = {
    "multi": (["even", "round"], "multi_label_classification"),
    "numbers": (["value"], "regression"),
}


@pytest.fixture
def folder(tmp_path):
    target, images = load_digits().target[:120], digit_images(120)
    for split, places in (("train", range(96)), ("val", range(96, 120))):
        (tmp_path / "scans" / split).mkdir(parents=True)
        for index in places:
            images[index].save(tmp_path / "scans" / split / f"{index}.png")
        digits = target[list(places)]
        even, round_ = (digits % 2 == 0).astype(float), np.isin(digits, [0, 6, 8, 9]).astype(float)
        names = [f"{index}.png" for index in places]
        rows = pandas.DataFrame({"file_name": names, "even": even, "round": round_, "value": even - 1.5 * round_})
        rows.loc[3, "even"] = None  # partly known
        rows.to_csv(tmp_path / "scans" / split / "metadata.csv", index=False)
    return tmp_path


def truth(folder, columns) -> np.ndarray:
    rows = pandas.read_csv(folder / "scans" / "val" / "metadata.csv")
    return rows[columns].to_numpy(dtype=float), [folder / "scans" / "val" / name for name in rows["file_name"]]


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_folder_to_the_export(folder, kind):
    columns, problem_type = KINDS[kind]
    data = ["--train_dir", "scans", "--label_column_name", *columns]
    model = ["--model_config", json.dumps(TINY)]
    run_example("run_pretrain.py", *RUN, *data, *model, "--num_train_epochs", 2, "--output_dir", "pre", cwd=folder)
    tune = ["--model_name_or_path", "pre", "--learning_rate", 3e-3, "--num_train_epochs", 20, "--output_dir", "fine"]
    tune += ["--layer_decay", 1.0, "--auto_augment", "", "--random_erasing", 0, "--crop_scale", 1.0, 1.0]
    printed = run_example("run_finetune.py", *RUN, *data, *tune, "--horizontal_flip", "False", cwd=folder)
    assert "mixup, cutmix and label smoothing are for one class per image" in printed
    evaluated = json.loads((folder / "fine" / "eval_results.json").read_text())
    names = ["even", "round"] if kind == "multi" else ["value"]
    images = ["--image_dir", "scans/val", "--label_column_name", *names]
    run_example("run_eval.py", "--models", "fine", *images, "--use_cpu", "--output_dir", "table", cwd=folder)
    (row,) = json.loads((folder / "table" / "results.json").read_text())

    loaded = AutoModelForImageClassification.from_pretrained(folder / "fine").eval()
    processor = AutoImageProcessor.from_pretrained(folder / "fine")
    assert loaded.config.problem_type == problem_type
    answers, files = truth(folder, columns)
    pictures = [Image.open(file).convert("RGB") for file in files]
    with torch.no_grad():
        logits = loaded(**processor(pictures, return_tensors="pt")).logits.numpy()
    if kind == "multi":
        answers = np.nan_to_num(answers)  # an empty cell among others is a 0
        expected = {
            "map": average_precision_score(answers, logits),
            "f1": f1_score(answers, logits > 0, average="macro"),
            "auroc": roc_auc_score(answers, logits),
        }
        assert expected["map"] > 0.7
        scale, scores = 100, torch.from_numpy(logits).sigmoid()
    else:
        expected = {"mae": mean_absolute_error(answers, logits), "r2": r2_score(answers, logits)}
        assert expected["r2"] > 0
        scale, scores = 1, torch.from_numpy(logits)
    for name, value in expected.items():
        assert evaluated[f"eval_{name}"] == pytest.approx(value, rel=1e-4)
        assert row[name] == pytest.approx(scale * value, rel=1e-4)
    if kind == "multi":
        classes = pandas.read_csv(folder / "table" / "classes.csv")
        assert classes["class"].tolist() == columns and classes["images"].tolist() == answers.sum(axis=0).tolist()
        expected = average_precision_score(answers, logits, average=None)
        assert classes["average_precision"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)

    run_example("export_stock.py", "fine", "stock", cwd=folder)
    is_told = kind == "numbers" and Version(transformers.__version__) < Version("5.23")  # or else it takes the sigmoid
    options = {"function_to_apply": "none"} if is_told else {}
    for name in ("fine", "stock"):
        classify = pipeline("image-classification", model=str(folder / name), device="cpu")
        for picture, expected_scores in zip(pictures[:3], scores):
            found = {one["label"]: one["score"] for one in classify(picture, **options)}
            for index, label in loaded.config.id2label.items():
                assert found[label] == pytest.approx(expected_scores[index].item(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_probes_of_other_labels(folder, kind):
    columns, _ = KINDS[kind]
    data = [*RUN, "--train_dir", "scans", "--label_column_name", *columns, "--model_name_or_path", "pre"]
    model = SupMAEForPreTraining(SupMAEConfig(**TINY))
    model.save_pretrained(folder / "pre")
    answers, files = truth(folder, columns)
    pictures = [Image.open(file).convert("RGB") for file in files]
    for probe in ("lars", "logistic", "knn"):
        more = ["--probe", probe, "--num_train_epochs", 2, "--output_dir", probe]
        run_example("run_linear_probe.py", *data, *more, cwd=folder)
        metrics = json.loads((folder / probe / "eval_results.json").read_text())
        assert {"multi": "eval_map", "numbers": "eval_r2"}[kind] in metrics
        if probe == "knn":
            continue
        loaded = AutoModelForImageClassification.from_pretrained(folder / probe).eval()
        with torch.no_grad():
            inputs = AutoImageProcessor.from_pretrained(folder / probe)(pictures, return_tensors="pt")
            logits = loaded(**inputs).logits.numpy()
        if kind == "multi":
            expected = average_precision_score(np.nan_to_num(answers), logits)
        else:
            expected = r2_score(answers, logits)
        assert metrics["eval_map" if kind == "multi" else "eval_r2"] == pytest.approx(expected, rel=1e-3)


def test_class_weights_count_images(folder):
    """A class of few images is not drowned by the others: its weight is the inverse of its share."""
    rows = {"file_name": [f"{index}.png" for index in range(96)], "label": ["rare"] * 6 + ["common"] * 90}
    pandas.DataFrame(rows).to_csv(folder / "scans" / "train" / "metadata.csv", index=False)
    rows = {"file_name": [f"{index}.png" for index in range(96, 120)], "label": ["rare", "common"] * 12}
    pandas.DataFrame(rows).to_csv(folder / "scans" / "val" / "metadata.csv", index=False)
    tune = [*RUN, "--train_dir", "scans", "--model_config", json.dumps(TINY), "--max_steps", 1, "--learning_rate", 0]
    tune += ["--mixup", 0, "--cutmix", 0, "--label_smoothing_factor", 0, "--logging_steps", 1]
    losses = {}
    for name, flags in (("plain", []), ("weighted", ["--class_weights", "balanced"])):
        run_example("run_finetune.py", *tune, *flags, "--output_dir", name, cwd=folder)
        log = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
        losses[name] = next(entry["loss"] for entry in log if "loss" in entry)
    assert losses["plain"] != losses["weighted"]


def test_metrics_leave_out_what_is_not_known():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, (50, 3)).astype(float), generator.normal(size=(50, 3))
    labels[:, 2] = 0  # a class without a positive image says nothing
    known = generator.random((50, 3)) < 0.7
    metrics = MultiLabelMetrics(keep_in_memory=True).compute(
        predictions=scores, references=np.where(known, labels, -100)
    )
    expected = np.mean([average_precision_score(labels[known[:, c], c], scores[known[:, c], c]) for c in (0, 1)])
    assert metrics["map"] == pytest.approx(expected, rel=1e-5)
    targets = np.where(known[:, 0], scores[:, 0] + 1, -100)
    metrics = RegressionMetrics(keep_in_memory=True).compute(predictions=scores[:, 0], references=targets)
    assert metrics["mae"] == pytest.approx(1)
