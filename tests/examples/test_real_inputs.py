"""Inputs as people have them, from the folder to the pipeline."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY, example_command, load_images
from conftest import run_example as run
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.evaluation.arguments import DeviceArguments
from supmae_hf.evaluation.encode import predict
from supmae_hf.evaluation.models import load_classifier
from supmae_hf.preparation import Preparation


SHORT = ["--num_train_epochs", 2, "--warmup_epochs", 0, "--per_device_train_batch_size", 4, "--report_to", "none"]
SHORT += ["--use_cpu", "--dataloader_num_workers", 0]
PLAIN = ["--mixup", 0, "--cutmix", 0]


def config(**fields) -> str:
    return json.dumps({**TINY, **fields})


def write(path, form: str, dark: bool, generator):
    """A dark or a bright image of 20x24 pixels."""
    low, high = (0.05, 0.45) if dark else (0.55, 0.95)
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "jpeg":
        Image.fromarray((generator.uniform(low, high, (20, 24, 3)) * 255).astype(np.uint8)).save(f"{path}.jpg")
    elif form == "grey8":
        Image.fromarray((generator.uniform(low, high, (20, 24)) * 255).astype(np.uint8)).save(f"{path}.png")
    elif form == "grey16":
        Image.fromarray((generator.uniform(low, high, (20, 24)) * 65535).astype(np.uint16)).save(f"{path}.png")
    else:
        pixels = (generator.uniform(low, high, (20, 24, 13)) * 10_000).astype(np.uint16)
        tifffile.imwrite(f"{path}.tif", pixels, photometric="minisblack", planarconfig="contig")


def make_folder(root, form="jpeg", classes=("dark", "bright"), count=12):
    generator = np.random.default_rng(0)
    for name in classes:
        for index in range(count):
            write(root / name / str(index), form, name == classes[0], generator)
    return root


@pytest.mark.parametrize(
    ("form", "fields", "flags"),
    [
        ("jpeg", {}, []),
        ("grey8", {"num_channels": 1}, []),
        ("grey16", {"num_channels": 1}, []),
        ("bands", {"num_channels": 13}, ["--pixel_range", 0, 10_000]),
    ],
)
def test_from_the_folder_to_the_pipeline(tmp_path, form, fields, flags):
    make_folder(tmp_path / "data", form)
    data = ["--train_dir", "data", *SHORT]
    run("run_pretrain.py", "--model_config", config(**fields), *data, *flags, "--output_dir", "pre", cwd=tmp_path)
    learn = ["--num_train_epochs", 15, "--learning_rate", 3e-3, *PLAIN]
    printed = run(
        "run_finetune.py", "--model_name_or_path", "pre", *data, *learn, "--output_dir", "fine", cwd=tmp_path
    )
    assert "top-1 accuracy 100.00%" in printed and ("of pre" in printed)  # the same normalisation
    run("run_eval.py", "--models", "fine", "--image_dir", "data", "--output_dir", "table", "--use_cpu", cwd=tmp_path)
    assert json.loads((tmp_path / "table" / "results.json").read_text())[0]["images"] == 24

    name = str(tmp_path / "fine")
    found = load_images(str(tmp_path / "data"))
    images = ImageDataset(found.validation, found.labels, Preparation.load(name))
    logits, _ = predict(load_classifier(name), images, DeviceArguments(per_device_eval_batch_size=5, use_cpu=True))
    classify = pipeline("image-classification", model=name, device="cpu")
    for record, row in zip(found.validation, logits):
        file = record["image"]["path"]
        image = file if form in ("jpeg", "grey8") else classify.image_processor.fetch_images(file)
        scores = {label["label"]: label["score"] for label in classify(image)}
        expected = torch.tensor(row).softmax(0)
        for index, label in classify.model.config.id2label.items():
            assert scores[label] == pytest.approx(expected[index].item(), abs=1e-6)
    needs_code = (tmp_path / "fine" / "image_processing_supmae.py").exists()
    assert needs_code == (form != "jpeg")


def test_other_data_or_another_recipe_do_not_go_on(tmp_path):
    make_folder(tmp_path / "a")
    make_folder(tmp_path / "b", classes=("red", "green"))
    first = ["--model_config", config(), "--train_dir", "a", "--output_dir", "out", *SHORT, *PLAIN]
    first += ["--train_val_split", 0.17]  # leaves 20, which batches of 4 and of 2 divide
    run("run_finetune.py", *first, cwd=tmp_path)
    before = (tmp_path / "out" / "model.safetensors").read_bytes(), (tmp_path / "out" / "README.md").read_text()
    for other, difference in (
        (["--train_dir", "b"], "classes: bright, dark before, green, red now"),
        (["--num_train_epochs", 4], "num_train_epochs: 2.0 before, 4.0 now"),
        (["--per_device_train_batch_size", 8], "images a step: 4 before, 8 now"),
        (["--base_learning_rate", 0.1], "learning_rate: "),
        (["--model_config", config(mask_ratio=0.5)], "model_config: "),
    ):
        error = run("run_finetune.py", *first, *other, cwd=tmp_path, fails=True)
        assert difference in error and "--overwrite_output_dir True" in error and "--output_dir`" in error
    assert before == (
        (tmp_path / "out" / "model.safetensors").read_bytes(),
        (tmp_path / "out" / "README.md").read_text(),
    )
    # what may change, and the same data elsewhere
    (tmp_path / "a").rename(tmp_path / "c")
    same = [
        "--train_dir",
        "c",
        "--per_device_train_batch_size",
        2,
        "--gradient_accumulation_steps",
        2,
        "--logging_steps",
        7,
    ]
    run("run_finetune.py", *first, *same, cwd=tmp_path)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before[0]
    run("run_finetune.py", *first, "--train_dir", "b", "--overwrite_output_dir", "True", cwd=tmp_path)
    model = SupMAEForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "green", 1: "red"} and "red 10" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("script", ["run_pretrain.py", "run_finetune.py"])
def test_other_classes_get_a_new_head(tmp_path, script, warnings):
    make_folder(tmp_path / "a")
    start = ["--model_config", config(), *SHORT, *(PLAIN if script == "run_finetune.py" else [])]
    run(script, *start, "--train_dir", "a", "--output_dir", "one", cwd=tmp_path)
    model_class = SupMAEForPreTraining if script == "run_pretrain.py" else SupMAEForImageClassification
    go_on = [*start[2:], "--model_name_or_path", "one", "--max_steps", 1, "--learning_rate", 1e-9]
    for classes in (("a", "b", "c"), ("x", "y"), ("dark", "bright")):
        make_folder(tmp_path / "-".join(classes), classes=classes, count=6)
        run(
            script,
            *go_on,
            "--train_dir",
            "-".join(classes),
            "--output_dir",
            "two",
            "--overwrite_output_dir",
            cwd=tmp_path,
        )
        is_new = "the last layer of the classifier is new" in warnings.text
        warnings.clear()
        assert is_new == (classes != ("dark", "bright"))
        before, after = (model_class.from_pretrained(tmp_path / name) for name in ("one", "two"))
        assert list(after.config.id2label.values()) == sorted(classes)
        layer = "classification_head.fc2.weight" if script == "run_pretrain.py" else "classifier.weight"
        for name, value in after.state_dict().items():
            if name == layer:
                same = value.shape == before.state_dict()[name].shape and torch.allclose(
                    value, before.state_dict()[name], atol=1e-4
                )
                assert same != is_new
            elif "running" not in name and "num_batches" not in name and not name.startswith(layer[:-6]):
                torch.testing.assert_close(value, before.state_dict()[name], atol=1e-4, rtol=0)


def test_a_checkpoint_keeps_its_normalisation(tmp_path):
    make_folder(tmp_path / "a")
    start = ["--train_dir", "a", *SHORT, *PLAIN]
    run(
        "run_finetune.py",
        "--model_config",
        config(),
        *start,
        "--image_mean",
        0.5,
        "--image_std",
        0.5,
        "--output_dir",
        "one",
        cwd=tmp_path,
    )
    run("run_finetune.py", "--model_name_or_path", "one", *start, "--output_dir", "two", cwd=tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path / "two").image_mean == (0.5, 0.5, 0.5)
    run(
        "run_finetune.py",
        "--model_name_or_path",
        "one",
        *start,
        "--normalization",
        "dataset",
        "--output_dir",
        "three",
        cwd=tmp_path,
    )
    mean = AutoImageProcessor.from_pretrained(tmp_path / "three").image_mean
    assert mean[0] == pytest.approx(0.5, abs=0.03) and mean[0] != 0.5


def test_rgba_trains_with_the_default_recipe(tmp_path, warnings):
    for name in ("x", "y"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.zeros((24, 24, 4), np.uint8)
            pixels[6:18, 6:18] = (255, index * 20, 0, 255)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    arguments = [
        "--model_config",
        config(num_channels=4),
        "--train_dir",
        "data",
        "--output_dir",
        "out",
        *SHORT,
        *PLAIN,
    ]
    run("run_finetune.py", *arguments, cwd=tmp_path)
    assert (
        "random rotations (up to 15 degrees), shifts (a tenth) and shears (10 degrees) take its place" in warnings.text
    )


def test_training_on_everything(tmp_path):
    make_folder(tmp_path / "a")
    for script, more in (("run_pretrain.py", []), ("run_pretrain_no_trainer.py", []), ("run_finetune.py", PLAIN)):
        arguments = ["--model_config", config(), "--train_dir", "a", *SHORT, *more, "--train_val_split", 0]
        printed = run(script, *arguments, "--output_dir", script, cwd=tmp_path)
        assert "on 24 images, with none held out" in printed
    error = run(
        "run_pretrain.py", *arguments, "--early_stopping_patience", 1, "--output_dir", "x", cwd=tmp_path, fails=True
    )
    assert "need held-out images" in error or "unrecognized" in error


def test_early_stopping(tmp_path):
    make_folder(tmp_path / "a")
    arguments = [
        "--model_config",
        config(),
        "--train_dir",
        "a",
        *SHORT,
        "--num_train_epochs",
        30,
        "--output_dir",
        "out",
    ]
    printed = run("run_pretrain.py", *arguments, "--early_stopping_patience", 1, "--learning_rate", 1.0, cwd=tmp_path)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert (
        state["epoch"] < 30 and state["best_metric"] is not None and "held-out images: reconstruction loss" in printed
    )
    evaluations = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    kept = json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_loss"]
    assert kept == pytest.approx(min(evaluations)) != evaluations[-1]  # of the best weights


def test_evaluations_of_other_data_are_not_looked_up(tmp_path):
    make_folder(tmp_path / "a")
    run(
        "run_finetune.py",
        "--model_config",
        config(),
        "--train_dir",
        "a",
        *SHORT,
        *PLAIN,
        "--output_dir",
        "fine",
        cwd=tmp_path,
    )
    evaluate = ["--models", "fine", "--image_dir", "a", "--output_dir", "table", "--use_cpu"]
    run("run_eval.py", *evaluate, cwd=tmp_path)
    before = json.loads((tmp_path / "table" / "results.json").read_text())[0]
    shutil.move(tmp_path / "a" / "dark", tmp_path / "away")
    (tmp_path / "a" / "bright" / "0.jpg").rename(tmp_path / "a" / "cover.jpg")  # has no label now
    run("run_eval.py", *evaluate, cwd=tmp_path)
    assert (before["images"], json.loads((tmp_path / "table" / "results.json").read_text())[0]["images"]) == (24, 11)


def test_errors_end_with_their_line(tmp_path):
    command = example_command("run_pretrain.py", "--train_dir", "nowhere", "--output_dir", "out", "--use_cpu")
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("run_pretrain.py: error: ")
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_processor_is_normalised_by_the_data(tmp_path):
    make_folder(tmp_path / "a", "grey16")
    SupMAEForPreTraining(SupMAEForPreTraining.config_class(**{**TINY, "num_channels": 1})).save_pretrained(
        tmp_path / "bare"
    )
    arguments = ["--model_name_or_path", "bare", "--train_dir", "a", *SHORT, *PLAIN, "--output_dir", "out"]
    assert "training images" in run("run_finetune.py", *arguments, cwd=tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.pixel_type == "uint16"
