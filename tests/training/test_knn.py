"""Nearest neighbours while pre-training."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, example_command, load_data, run_command, run_example
from sklearn.neighbors import KNeighborsClassifier

from supmae_hf import SupMAEForPreTraining, SupMAEModel
from supmae_hf.data.dataset import ImageDataset, collate
from supmae_hf.preparation import load_image_processor


RUN = ["--model_config", json.dumps(TINY), "--num_train_epochs", 2, "--warmup_epochs", 1, "--report_to", "none"]
RUN += ["--disable_tqdm", "True", "--use_cpu", "--knn_eval", "--max_train_samples", 300, "--max_eval_samples", 90]


def log_of(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def expected_accuracy(folder) -> float:
    """By the saved encoder, on whole images, with scikit-learn."""
    data = load_data(max_train_samples=300, max_eval_samples=90)
    encoder, processor = SupMAEModel.from_pretrained(folder), load_image_processor(folder)
    parts = []
    for split in (data.train, data.validation):
        dataset = ImageDataset(split, data.labels, processor)
        batch = collate([dataset[index] for index in range(len(dataset))])
        with torch.no_grad():
            features = encoder(batch["pixel_values"]).last_hidden_state[:, 1:].mean(dim=1)
        parts.append((features.numpy(), batch["labels"].numpy()))
    neighbors = KNeighborsClassifier(20, weights="distance", metric="cosine").fit(*parts[0])
    return neighbors.score(*parts[1])


@pytest.mark.parametrize("script", ["run_pretrain.py", "run_pretrain_no_trainer.py"])
@pytest.mark.parametrize("branch", [True, False])
def test_every_evaluation_has_the_accuracy(tmp_path, script, branch):
    run_example(script, *RUN, "--classification_branch", branch, "--output_dir", "out", cwd=tmp_path)
    log = [entry for entry in log_of(tmp_path / "out") if "eval_reconstruction_loss" in entry]
    assert len(log) >= 2 and all("eval_knn_top1" in entry for entry in log)
    assert ("eval_accuracy" in log[0]) is branch
    assert log[-1]["eval_knn_top1"] == pytest.approx(expected_accuracy(tmp_path / "out"))
    if script == "run_pretrain.py":
        metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
        assert metrics["eval_knn_top1"] == log[-1]["eval_knn_top1"]


def test_training_does_not_notice(tmp_path):
    run_example("run_pretrain.py", *RUN, "--output_dir", "with", cwd=tmp_path)
    run_example("run_pretrain.py", *RUN, "--knn_eval", "False", "--output_dir", "without", cwd=tmp_path)
    one, other = (SupMAEForPreTraining.from_pretrained(tmp_path / name).state_dict() for name in ("with", "without"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_have_the_accuracy_of_one(tmp_path):
    run = [*RUN, "--max_eval_samples", 89, "--output_dir", "out"]
    run_command(example_command("run_pretrain.py", *run, processes=2), tmp_path)
    log = [entry["eval_knn_top1"] for entry in log_of(tmp_path / "out") if "eval_knn_top1" in entry]
    data = load_data(max_train_samples=300, max_eval_samples=89)
    assert all(np.isclose(value * len(data.validation) % 1, 0, atol=1e-6) for value in log)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_val_split", 0, "--train_dir", "{folder}"], "`--knn_eval` needs held-out images"),
        (["--train_dir", "{flat}"], "`--knn_eval` needs labels of one class an image"),
        (["--streaming", "True"], "leave out `--streaming`"),
    ],
)
def test_what_it_cannot_do_is_said_first(tmp_path, digit_folder, arguments, message):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (digit_folder / "train").rglob("*.png"):
        path.rename(flat / path.name) if "flat" in str(arguments) else None
    names = {"folder": digit_folder / "train", "flat": flat}
    arguments = [str(argument).format(**names) for argument in arguments]
    run = [*RUN, "--per_device_train_batch_size", 8, *arguments]
    assert message in run_example("run_pretrain.py", *run, "--output_dir", "out", cwd=tmp_path, fails=True)
    assert not (tmp_path / "out").exists()
