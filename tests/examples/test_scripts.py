"""The example scripts as a user runs them, on tiny settings."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, load_example, reference_config
from conftest import run_example as run
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, pipeline

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining


TINY = json.dumps(TINY)
SHORT = ["--num_train_epochs", "2", "--warmup_epochs", "1", "--logging_steps", "1", "--use_cpu"]


def test_pretrain_then_finetune_on_the_digits(tmp_path):
    limits = ["--max_train_samples", 200, "--max_eval_samples", 50, *SHORT]
    printed = run("run_pretrain.py", "--model_config", TINY, "--output_dir", "pre", *limits, cwd=tmp_path)
    assert "Pre-trained for 2 epochs on 200 images; on 50 held-out images: reconstruction loss" in printed
    folder = tmp_path / "pre"
    for name in ("model.safetensors", "preprocessor_config.json", "reconstructions.png", "curves.png"):
        assert (folder / name).is_file() and str(folder.relative_to(tmp_path)) in printed
    assert list(folder.glob("runs/**/events.out.tfevents.*"))
    model = SupMAEForPreTraining.from_pretrained(folder)
    assert model.config.id2label[7] == "7" and AutoImageProcessor.from_pretrained(folder).crop_size["height"] == 16
    state = json.loads((folder / "trainer_state.json").read_text())
    logged = next(entry for entry in state["log_history"] if "loss" in entry)
    assert {"reconstruction_loss", "classification_loss", "accuracy", "learning_rate", "images_per_second"} <= set(
        logged
    )
    held_out = next(entry for entry in state["log_history"] if "eval_loss" in entry)
    assert {"eval_reconstruction_loss", "eval_classification_loss", "eval_accuracy"} <= set(held_out)

    arguments = ["--model_name_or_path", "pre", "--output_dir", "fine", *limits]
    printed = run("run_finetune.py", *arguments, cwd=tmp_path)
    assert "held-out images: top-1 accuracy" in printed and "top-5 accuracy" in printed
    digit = Image.fromarray((load_digits().images[0] * 15).astype(np.uint8))
    labels = pipeline("image-classification", model=str(tmp_path / "fine"))(digit)
    assert {label["label"] for label in labels} <= set("0123456789")

    # the same command again finds a finished run and trains no further; the scripts agree on who was held out
    before = (tmp_path / "fine" / "model.safetensors").read_bytes()
    run("run_finetune.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "fine" / "model.safetensors").read_bytes() == before


def test_the_log_is_lines_of_named_numbers(tmp_path):
    """Of the Trainer and of the plain loop; a run that is over adds no curves when it is started again."""
    flags = ["--model_config", TINY, "--max_train_samples", 200, "--max_eval_samples", 50, *SHORT, "--save_steps", 0.5]
    flags += ["--num_train_epochs", 4]
    lines = {}
    for script in ("run_pretrain.py", "run_pretrain_no_trainer.py"):
        printed = run(script, *flags, "--output_dir", script, cwd=tmp_path)
        lines[script] = [line for line in printed.splitlines() if line.startswith("epoch ") and "held-out" not in line]
        assert "of 12, held-out images: " in printed
        assert "1 steps to go: 0:0" in printed and "GiB of memory" in printed and "{'" not in printed
        curves = list((tmp_path / script / "runs").rglob("events*"))
        assert curves
        run(script, *flags, "--output_dir", script, cwd=tmp_path)
        assert list((tmp_path / script / "runs").rglob("events*")) == curves
    for one, two in zip(*lines.values()):
        assert one.split(", images per second")[0] == two.split(", images per second")[0]
    first = lines["run_pretrain.py"][0]
    assert first.startswith("epoch 0.3333, step 1 of 12: loss ") and "accuracy on visible patches " in first


def test_the_card_has_the_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"output_dir: out\nmax_steps: 1\nmodel_config: {TINY}\nhub_token: secret\n")
    run("run_pretrain.py", "mine.yaml", "--warmup_epochs", 0, "--use_cpu", cwd=tmp_path)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# mine.yaml:\n#   output_dir: out\n#   max_steps: 1\n" in card and "secret" not in card


@pytest.mark.parametrize("epochs", [10, 1])
def test_broken_images_are_named_before_a_long_run(tmp_path, photo_folder, epochs):
    broken = [photo_folder / "photos" / "china" / "3.jpg", photo_folder / "photos" / "flower" / "7.jpg"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:1500])
    flags = ["--train_dir", photo_folder / "photos", "--output_dir", "out", "--num_train_epochs", epochs]
    flags += ["--model_config", TINY, "--per_device_train_batch_size", 8, "--warmup_epochs", 0, "--use_cpu"]
    flags += ["--image_mean", 0.5]
    flags += ["--image_std", 0.5, "--train_val_split", 0.0]
    error = run("run_pretrain.py", *flags, cwd=tmp_path, fails=True)
    assert [str(path) in error for path in broken].count(True) == (2 if epochs == 10 else 1)
    if epochs == 10:
        assert "2 of 40 images cannot be decoded" in error and "`--on_bad_image skip`" in error
        assert not (tmp_path / "out").exists()


def test_help_is_in_groups(capsys, monkeypatch):
    """Our own arguments before the Trainer's, with the paper's defaults unless a recipe is named, and what a script does."""
    monkeypatch.chdir(ROOT)

    def read(*words):
        monkeypatch.setattr("sys.argv", ["run_pretrain.py", *words, "--help"])
        with pytest.raises(SystemExit):
            load_example("run_pretrain.py").main()
        return " ".join(capsys.readouterr().out.split())

    text = read()
    assert "[RECIPE.yaml] [--flag value ...]" in text and "scikit-learn's handwritten digits" in text
    places = [
        text.index(words) for words in ("--train_dir", "--mask_dir", "Transformers' TrainingArguments", "--fsdp")
    ]
    assert places == sorted(places) and "Total number of training epochs to perform. Default: 400." in text
    assert "epochs to perform. Default: 40." in read("examples/configs/pretrain_digits.yaml")


@pytest.fixture
def photo_folder(tmp_path, photographs):
    """Two classes of real photographs: crops of scikit-learn's two."""
    generator = np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), photographs):
        path = tmp_path / "photos" / name
        path.mkdir(parents=True)
        for index in range(20):
            top, left = generator.integers(0, 300), generator.integers(0, 400)
            Image.fromarray(photograph[top : top + 120, left : left + 160]).save(path / f"{index}.jpg")
    return tmp_path


@pytest.mark.parametrize("script", ["run_pretrain.py", "run_pretrain_no_trainer.py"])
def test_broken_images(photo_folder, script):
    path = photo_folder / "photos" / "china" / "5.jpg"
    path.write_bytes(path.read_bytes()[:1000])
    arguments = ["--model_config", TINY, "--train_dir", "photos", "--per_device_train_batch_size", 4, *SHORT]
    arguments += ["--validation_dir", "photos", "--eval_strategy", "no", "--save_strategy", "no"]
    error = run(script, *arguments, "--output_dir", "out", cwd=photo_folder, fails=True)
    assert "china/5.jpg" in error and "cannot be decoded" in error and "--on_bad_image skip" in error
    arguments += ["--on_bad_image", "skip", "--overwrite_output_dir", "True"]
    run(script, *arguments, "--output_dir", "out", cwd=photo_folder)
    log = json.loads((photo_folder / "out" / "trainer_state.json").read_text())["log_history"]
    assert sum(entry.get("skipped_images", 0) for entry in log) == 2  # once an epoch


@pytest.mark.parametrize("script", ["run_pretrain.py", "run_finetune.py"])
def test_streamed_folders(photo_folder, script):
    path = photo_folder / "photos" / "china" / "5.jpg"
    path.write_bytes(path.read_bytes()[:1000])
    arguments = ["--model_config", TINY, "--train_dir", "photos", "--validation_dir", "photos", "--output_dir", "out"]
    arguments += ["--streaming", "True", "--max_train_samples", 40, "--per_device_train_batch_size", 4, *SHORT]
    printed = run(script, *arguments, "--on_bad_image", "skip", cwd=photo_folder)
    assert "for 2 epochs on 40 images; on 40 held-out images: " in printed


def test_partly_labeled_images_are_counted(tmp_path):
    arguments = ["--model_config", TINY, "--label_fraction", 0.1, "--output_dir", "out", *SHORT]
    printed = run("run_pretrain.py", *arguments, "--save_strategy", "no", cwd=tmp_path)
    assert "142 training images keep their label" in printed
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    counts = [entry["labeled_images_per_step"] for entry in log if "labeled_images_per_step" in entry]
    assert len(counts) == 44 and 0 < sum(counts) <= 2 * 142 and all(np.isfinite(entry.get("loss", 0)) for entry in log)


def test_linear_probes(tmp_path):
    limits = ["--max_train_samples", 200, "--max_eval_samples", 50, *SHORT]
    run("run_pretrain.py", "--model_config", TINY, "--output_dir", "pre", *limits, cwd=tmp_path)
    for probe in ("lars", "logistic", "knn"):
        arguments = ["--model_name_or_path", "pre", "--probe", probe, "--output_dir", probe, *limits]
        printed = run("run_linear_probe.py", *arguments, cwd=tmp_path)
        assert f"Probed ({probe})" in printed and "top-1" in printed
        assert "eval_top1" in json.loads((tmp_path / probe / "eval_results.json").read_text())
    for probe in ("lars", "logistic"):
        digit = Image.fromarray((load_digits().images[0] * 15).astype(np.uint8))
        assert len(pipeline("image-classification", model=str(tmp_path / probe))(digit)) == 5


def test_image_folder(photo_folder):
    arguments = ["--train_dir", "photos", "--output_dir", "out", "--per_device_train_batch_size", 8, *SHORT]
    run("run_pretrain.py", "--model_config", TINY, *arguments, "--save_strategy", "no", cwd=photo_folder)
    run(
        "run_finetune.py",
        *("--train_dir", "photos", "--model_name_or_path", "out", "--output_dir", "fine"),
        *("--per_device_train_batch_size", 8, *SHORT),
        cwd=photo_folder,
    )
    model = SupMAEForImageClassification.from_pretrained(photo_folder / "fine")
    assert model.config.id2label == {0: "china", 1: "flower"}


def test_images_without_labels_train_as_mae(photo_folder):
    (photo_folder / "photos" / "flower").rename(photo_folder / "flat")
    arguments = ["--train_dir", "flat", "--output_dir", "out", "--per_device_train_batch_size", 4, *SHORT]
    printed = run("run_pretrain.py", "--model_config", TINY, *arguments, cwd=photo_folder)
    assert (
        "No labels: the reconstruction branch alone is trained (MAE)" in printed
        and "classification loss" not in printed
    )


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run_pretrain.py", ["--per_device_train_batch_size", 4096], "only 1437 to train on: lower"),
        ("run_pretrain.py", ["--model_config", '{"patch_size": 5}'], "`image_size` 32 is not a multiple"),
        ("run_pretrain.py", ["--model_config", '{"mask_ratoi": 0.5}'], "did you mean `mask_ratio`?"),
        ("run_linear_probe.py", ["--train_dir", "."], "A probe needs an encoder"),
        ("run_linear_probe.py", ["--streaming", "True", "--probe", "knn"], "a training stream has no end"),
        ("run_finetune.py", ["--label_column_name", "image"], "cannot be used as labels"),
        ("run_finetune.py", ["--model_name_or_path", "nowhere"], "There is no checkpoint 'nowhere'"),
    ],
)
def test_bad_input_ends_in_one_error(tmp_path, script, arguments, message):
    error = run(script, "--output_dir", "out", "--use_cpu", *arguments, cwd=tmp_path, fails=True)
    assert message in error
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "scripts", [("run_pretrain.py", "run_pretrain_no_trainer.py"), ("run_pretrain_no_trainer.py", "run_pretrain.py")]
)
def test_checkpoints_of_the_other_script_are_refused(tmp_path, scripts):
    arguments = ["--model_config", TINY, "--output_dir", "out", "--eval_strategy", "no", *SHORT, "--max_steps", 2]
    first, second = scripts
    run(first, *arguments, cwd=tmp_path)
    error = run(second, *arguments, cwd=tmp_path, fails=True)
    assert "checkpoint-2 was written by" in error and "go on with that script" in error


def test_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    error = run("run_pretrain.py", "--output_dir", "out", "--use_cpu", cwd=tmp_path, fails=True)
    assert "out is not empty" in error and (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_what_is_loaded_is_one_line(tmp_path):
    """A process of its own: elsewhere scripts run without what `supmae_hf.cli.run` sets up around them."""
    SupMAEForPreTraining(reference_config()).save_pretrained(tmp_path / "pre")
    (tmp_path / "load.py").write_text(
        "from supmae_hf import SupMAEForImageClassification\n"
        "from supmae_hf.cli import run\n"
        "run(lambda: SupMAEForImageClassification.from_pretrained('pre'))\n"
    )
    command = [sys.executable, "load.py"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    (line,) = [line for line in printed.splitlines() if "pre" in line]
    assert line.endswith("'pre' is loaded; new: classifier, fc_norm.") and "MISSING" not in printed
