"""Model cards, and publishing to a server that speaks the Hub's protocol, through the unmodified client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, run_example
from hub_server import HubServer
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers import AutoModelForImageClassification

from supmae_hf import SupMAEForImageClassification


CODE = {f"{name}_supmae.py" for name in ("configuration", "conversion", "modeling", "supervision")}


TOKEN = "hf_do_not_tell_anyone"
RUN = ["--max_train_samples", 64, "--max_eval_samples", 40, "--num_train_epochs", 2, "--warmup_epochs", 0]
RUN += ["--per_device_train_batch_size", 32, "--logging_steps", 1, "--save_strategy", "no"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with what the scripts leave in `pretrained`, `looped` and `finetuned`."""
    folder = tmp_path_factory.mktemp("runs")
    state = os.environ.pop("HF_TOKEN", None)
    flags = ["--model_config", json.dumps(TINY), "--license", "apache-2.0", "--hub_token", TOKEN]
    shown = [*flags, "--widget_images", True]
    run_example("run_pretrain.py", *RUN, *shown, "--output_dir", folder / "pretrained", cwd=folder)
    run_example("run_pretrain_no_trainer.py", *RUN, *flags, "--output_dir", folder / "looped", cwd=folder)
    more = ["--model_name_or_path", folder / "pretrained", "--mixup", 0, "--cutmix", 0]
    run_example(
        "run_finetune.py", *RUN, *more, "--output_dir", folder / "finetuned", "--widget_images", True, cwd=folder
    )
    os.environ.pop("HF_TOKEN", None)
    if state is not None:
        os.environ["HF_TOKEN"] = state
    return folder


@pytest.mark.parametrize("name", ["pretrained", "looped", "finetuned"])
def test_card_says_what_happened(runs, name):
    card = ModelCard.load(runs / name / "README.md")
    metrics = json.loads((runs / name / "trainer_state.json").read_text())["log_history"]
    metrics = [entry for entry in metrics if "eval_top1" in entry or "eval_accuracy" in entry][-1]
    key = "eval_top1" if name == "finetuned" else "eval_accuracy"
    accuracies = [result for result in card.data.eval_results if result.metric_type == "accuracy"]
    assert accuracies[0].metric_value == pytest.approx(metrics[key], abs=1e-6)
    assert accuracies[0].dataset_name == "scikit-learn's digits"
    assert card.data.library_name == "transformers" and "supmae" in card.data.tags
    expected = "image-classification" if name == "finetuned" else "image-feature-extraction"
    assert card.data.pipeline_tag == expected
    assert card.data.license == (None if name == "finetuned" else "apache-2.0")
    assert (name != "looped") == (runs / name / "widget").exists()  # only where it was asked for
    widget = card.data.get("widget") or []
    for example in widget:
        assert Image.open(runs / name / example["src"]).size == (8, 8)
    assert len({example["example_title"] for example in widget}) == (3 if name != "looped" else 0)
    text = card.text
    assert "64 training images" in text and "| epochs, steps | 2, 4 |" in text and "--num_train_epochs 2" in text
    assert "128 images at" in text and "device hours" in text
    assert ("![reconstructions" in text) == (name == "pretrained")
    assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()


def test_no_token_in_any_file(runs):
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_dry_run_lists_what_would_go(runs):
    script = ["publish.py", runs / "finetuned", "org/digits", "--dry_run", "--license", "mit"]
    names = {line.split()[-1] for line in run_example(*script, cwd=runs).splitlines()[1:]}
    assert names == {
        *("README.md", "config.json", "preprocessor_config.json", "model.safetensors", "curves.png"),
        *(
            "configuration_supmae.py",
            "conversion_supmae.py",
            "modeling_supmae.py",
            "supervision_supmae.py",
            "widget/0.png",
            "widget/1.png",
            "widget/2.png",
        ),
    }
    stock = {line.split()[-1] for line in run_example(*script, "--stock", cwd=runs).splitlines()[1:]}
    assert names - stock == CODE


def test_nothing_of_an_earlier_run_goes_up(runs, tmp_path):
    """Neither what it left in the same folder, nor what started anew there."""
    shutil.copytree(runs / "pretrained", tmp_path / "out")
    for name in ("widget/5.png", "curves.png", "old.png"):
        (tmp_path / "out" / name).write_bytes(b"of an earlier run")
    script = ["publish.py", tmp_path / "out", "org/digits", "--dry_run"]
    listed = run_example(*script, cwd=runs)
    assert "curves.png" in listed and "old.png" not in listed and "widget/5.png" not in listed
    more = ["--model_config", json.dumps(TINY), "--license", "mit", "--max_steps", 1, "--overwrite_output_dir", True]
    run_example("run_pretrain.py", *RUN, *more, "--output_dir", tmp_path / "out", cwd=runs)
    assert not (tmp_path / "out" / "widget").exists()
    assert b"earlier" not in (tmp_path / "out" / "curves.png").read_bytes()


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        ("finetuned", [], "names no licence"),
        ("nowhere", [], "nowhere has no config.json"),
        ("pretrained", ["--card", "nothing.md"], "no model card nothing.md"),
    ],
)
def test_nothing_goes_without_card_and_licence(runs, source, flags, message):
    error = run_example("publish.py", runs / source, "org/name", *flags, cwd=runs, fails=True)
    assert message in error


def hub_process(command: list, server: HubServer, home: Path, token: str | None = TOKEN):
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.update(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_XET="1", NO_PROXY="127.0.0.1")
    environment.pop("HF_TOKEN", None)
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)


LOAD = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
{imports}
model = AutoModelForImageClassification.from_pretrained("org/digits", revision={revision!r})
assert type(model).__name__ == {name!r}
AutoImageProcessor.from_pretrained("org/digits", revision={revision!r})
torch.save(model.eval()(torch.load("images.pt")).logits, "logits.pt")
"""


@pytest.mark.parametrize(("stock", "revision"), [(False, None), pytest.param(True, "stock", marks=pytest.mark.slow)])
def test_publish_and_load_back(runs, tmp_path, stock, revision):
    flags = ["--license", "apache-2.0", "--private"]
    flags += ["--stock"] if stock else []
    flags += ["--revision", revision] if revision else []
    publish = [ROOT / "examples" / "publish.py", runs / "finetuned", "org/digits", *flags]
    images = torch.randn(4, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    name = "BeitForImageClassification" if stock else "SupMAEForImageClassification"
    load = LOAD.format(revision=revision or "main", name=name, imports="" if stock else "import supmae_hf")
    with HubServer() as server:
        anonymous = hub_process(publish, server, tmp_path, token=None)
        assert anonymous.returncode == 1 and server.repositories == {}
        server.fail = 100  # the first upload breaks off
        broken = hub_process(publish, server, tmp_path)
        assert broken.returncode == 1 and "repeat the command" in broken.stderr
        assert server.repositories["org/digits"]["branches"]["main"] == {}
        server.fail = 0
        results = [broken, hub_process(publish, server, tmp_path)]
        assert results[1].returncode == 0, results[1].stderr
        assert server.repositories["org/digits"]["private"] is True
        assert server.tokens == {TOKEN}
        files = server.repositories["org/digits"]["branches"][revision or "main"]
        card = ModelCard(files["README.md"].decode())
        assert card.data.license == "apache-2.0" and 'from_pretrained("org/digits"' in card.text
        assert ("modeling_supmae.py" in files) == (not stock)
        results.append(hub_process(["-c", load], server, tmp_path / "."))
        assert results[2].returncode == 0, results[2].stderr
    for result in results:
        assert TOKEN not in result.stdout + result.stderr
    assert not any(TOKEN.encode() in content for content in files.values())
    model = SupMAEForImageClassification.from_pretrained(runs / "finetuned").eval()
    difference = (torch.load(tmp_path / "logits.pt") - model(images).logits).abs().max()
    assert difference == 0 if not stock else difference < 1e-5
    assert isinstance(AutoModelForImageClassification.from_pretrained(runs / "finetuned"), type(model))


@pytest.mark.slow
def test_push_to_hub_from_training_and_from_a_model(runs, tmp_path):
    flags = ["--model_config", json.dumps(TINY), "--output_dir", tmp_path / "pushed", "--push_to_hub"]
    flags += ["--hub_model_id", "org/pushed", "--hub_token", TOKEN]
    push = 'import sys, supmae_hf; supmae_hf.SupMAEModel.from_pretrained(sys.argv[1]).push_to_hub("org/encoder")'
    with HubServer() as server:
        trained = hub_process([ROOT / "examples" / "run_pretrain.py", *RUN, *flags], server, tmp_path, token=None)
        assert trained.returncode == 0, trained.stderr
        pushed = hub_process(["-c", push, runs / "pretrained"], server, tmp_path)
        assert pushed.returncode == 0, pushed.stderr
        files = server.repositories["org/pushed"]["branches"]["main"]
        encoder = server.repositories["org/encoder"]["branches"]["main"]
        assert server.tokens == {TOKEN}
    model_files = {"config.json", "model.safetensors"} | CODE
    assert model_files <= encoder.keys()
    assert model_files | {"preprocessor_config.json", "curves.png"} <= files.keys()
    # held-out images only if that is asked for
    assert not any(name.startswith(("widget/", "checkpoint-", "reconstructions", "_")) for name in files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.eval_results and 'from_pretrained("org/pushed")' in card.text
    assert not any(TOKEN.encode() in content for content in files.values())


def train_and_push(server, cwd, strategy: str, *flags):
    command = [ROOT / "examples" / "run_pretrain.py", *RUN, "--model_config", json.dumps(TINY), "--push_to_hub"]
    command += ["--hub_model_id", "org/pushed", "--hub_strategy", strategy, "--hub_always_push", "--report_to", "none"]
    command += ["--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 2, "--output_dir", "out", *flags]
    result = hub_process(command, server, cwd)
    repository = server.repositories["org/pushed"]
    return result, repository["commits"], repository["branches"]["main"]


MODEL_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"} | CODE


@pytest.mark.slow
def test_last_checkpoint_goes_up_and_can_be_gone_on_from(tmp_path):
    with HubServer() as server:
        server.fail = 1  # while training
        result, commits, files = train_and_push(server, tmp_path, "checkpoint")
    assert result.returncode == 0, result.stderr
    assert "What was on its way to org/pushed did not get there: " in result.stderr
    assert len(commits) > 1 and commits[-1][0] == "End of training"
    assert {name for name in files if "/" not in name} >= MODEL_FILES
    assert not any(name.startswith(("checkpoint-", "_")) or "optimizer" in name and "/" not in name for name in files)
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert not (tmp_path / "out" / "_uploading").exists()

    snapshots = [files for title, files in commits if title.startswith("Training in progress")]
    early = {name: content for name, content in snapshots[0].items() if name.startswith("last-checkpoint/")}
    step = json.loads(early["last-checkpoint/trainer_state.json"])["global_step"]
    assert step < 4 and "last-checkpoint/optimizer.pt" in early
    for name, content in early.items():
        path = tmp_path / "elsewhere" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    flags = ["--model_config", json.dumps(TINY), "--report_to", "none", "--output_dir", "elsewhere"]
    run_example("run_pretrain.py", *RUN, *flags, "--resume_from_checkpoint", "elsewhere/last-checkpoint", cwd=tmp_path)
    assert (tmp_path / "elsewhere" / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["end", "every_save", "all_checkpoints"])
def test_hub_strategies_send_what_they_say(tmp_path, strategy):
    with HubServer() as server:
        result, commits, files = train_and_push(server, tmp_path, strategy)
    assert result.returncode == 0 and "did not get there" not in result.stderr, result.stderr
    progress = [f"Training in progress, step {step}" for step in range(1, 5)] if strategy != "end" else []
    assert [title for title, _ in commits] == [*progress, "End of training"]
    if strategy == "every_save":
        assert all(files.keys() == MODEL_FILES for _, files in commits[:-1])
    checkpoints = {name.split("/")[0] for name in files if name.startswith("checkpoint-")}
    assert checkpoints == ({f"checkpoint-{step}" for step in range(1, 5)} if strategy == "all_checkpoints" else set())
    assert not any(TOKEN.encode() in content for content in files.values())


@pytest.mark.slow
def test_what_cannot_be_published_is_said(tmp_path):
    with HubServer() as server:
        server.fail = 1000
        result, _, _ = train_and_push(server, tmp_path, "every_save")
        assert result.returncode == 1 and "The run is over and saved in out, but not published" in result.stderr
        assert "Traceback" not in result.stderr
        server.fail = 0
        result, commits, files = train_and_push(server, tmp_path, "every_save")
    assert result.returncode == 0, result.stderr
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
