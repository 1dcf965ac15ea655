"""Runs that are killed and started again end as if nothing had happened."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import psutil
import pytest
import transformers
from conftest import ROOT, TINY, digit_images, example_command, run_command, run_example
from sklearn.datasets import load_digits

from supmae_hf.records import find_checkpoint, list_checkpoints


# dropout, so that what a step draws matters too
MODEL = ["--model_config", json.dumps({**TINY, "hidden_dropout_prob": 0.1})]
RUN = [*MODEL, "--num_train_epochs", 8, "--warmup_epochs", 1, "--eval_strategy", "no", "--report_to", "none"]
RUN += ["--save_strategy", "steps", "--save_steps", 3, "--logging_steps", 10, "--disable_tqdm", "True", "--use_cpu"]


def newest_step(folder) -> int:
    return max((int(path.name.split("-")[1]) for path in list_checkpoints(folder)), default=0)


def start(script, arguments, cwd, processes=1, **kwargs) -> subprocess.Popen:
    command = example_command(script, *arguments, processes=processes)
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def kill_at_random_moments(script, arguments, cwd, kills: int, most_steps: int, seed: int, processes: int = 1):
    """
    Kill the run again and again, each time after a random number of steps and then a random fraction of a second, or
    (one time in six) of the seconds in which it starts.
    """
    generator = random.Random(seed)
    for _ in range(kills):
        begin, wait = newest_step(cwd / "killed"), generator.random()
        steps = generator.randint(1, most_steps) if generator.randrange(6) else 0
        process = start(script, [*arguments, "--output_dir", "killed"], cwd, processes, start_new_session=True)
        while newest_step(cwd / "killed") < begin + steps and process.poll() is None:
            time.sleep(0.005)
        time.sleep(wait * (0.2 if steps else 6))
        assert process.poll() is None, "the run was over before it was killed: " + process.stdout.read()
        for victim in [process, *psutil.Process(process.pid).children(recursive=True)]:
            victim.kill()
        process.communicate()


def assert_killed_run_equals(script, arguments, cwd, processes=1, **kwargs):
    def run(folder):
        if processes == 1:
            run_example(script, *arguments, "--output_dir", folder, cwd=cwd)
        else:
            run_command(example_command(script, *arguments, "--output_dir", folder, processes=processes), cwd)

    run("whole")
    kill_at_random_moments(script, arguments, cwd, processes=processes, **kwargs)
    run("killed")
    whole, killed = ((cwd / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    # nothing unfinished is left over
    assert sorted(path.name for path in (cwd / "killed").iterdir()) == sorted(
        path.name for path in (cwd / "whole").iterdir()
    )


@pytest.mark.parametrize(
    ("script", "arguments", "kills"),
    [
        ("run_pretrain.py", ["--dataloader_num_workers", 1, "--streaming", "True"], 1),
        pytest.param(
            "run_pretrain_no_trainer.py",
            ["--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 2]
            + ["--label_fraction", 0.2, "--labeled_share", 0.5],
            1,
            marks=pytest.mark.slow,
        ),
        pytest.param("run_pretrain.py", ["--torch_compile", "True"], 1, marks=pytest.mark.slow),
        pytest.param("run_pretrain_no_trainer.py", ["--torch_compile", "True"], 1, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_bit_for_bit_the_same(tmp_path, script, arguments, kills):
    arguments = [*RUN, "--num_train_epochs", 2, *arguments]
    assert_killed_run_equals(script, arguments, tmp_path, kills=kills, most_steps=20, seed=0)


@pytest.mark.slow
def test_compiled_runs_evaluate_what_they_save(tmp_path):
    short = ["--max_steps", 4, "--warmup_epochs", 0]
    for name, arguments in (("pretrain", RUN), ("finetune", [*RUN[2:], "--model_name_or_path", "pretrain"])):
        found = []
        for compiles in (True, False):  # the second only evaluates
            more = ["--output_dir", name, "--torch_compile", compiles]
            run_example(f"run_{name}.py", *arguments, *short, *more, cwd=tmp_path)
            results = json.loads((tmp_path / name / "eval_results.json").read_text())
            found.append({key: value for key, value in results.items() if "second" not in key and "time" not in key})
        assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("script", ["run_pretrain.py", "run_pretrain_no_trainer.py"])
def test_killed_after_the_last_checkpoint(tmp_path, script):
    arguments = [*RUN, "--max_steps", 7, "--warmup_epochs", 0, "--output_dir", "out"]
    run_example(script, *arguments, cwd=tmp_path)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "model.safetensors").unlink()
    last = newest_step(tmp_path / "out")
    run_example(script, *arguments, cwd=tmp_path)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights and newest_step(tmp_path / "out") == last


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_pretrain.py", "run_pretrain_no_trainer.py"])
def test_thirty_kills(tmp_path, script):
    arguments = [*RUN, "--num_train_epochs", 30, "--dataloader_num_workers", 1]
    assert_killed_run_equals(script, arguments, tmp_path, kills=30, most_steps=24, seed=1)


@pytest.mark.slow
def test_finetuning_goes_on_bit_for_bit(tmp_path):
    """Mixup, RandAugment, random erasing and stochastic depth are drawn again as they would have been."""
    arguments = ["--model_name_or_path", tmp_path / "pretrained", "--num_train_epochs", 3, "--warmup_epochs", 1]
    arguments += ["--mixup", 0.8, "--cutmix", 1.0, "--auto_augment", "rand-m9-mstd0.5-inc1", "--random_erasing", 0.25]
    arguments += ["--drop_path_rate", 0.1, "--label_smoothing_factor", 0.1, "--save_strategy", "steps"]
    arguments += ["--save_steps", 3, "--eval_strategy", "no", "--report_to", "none", "--use_cpu"]
    run_example("run_pretrain.py", *RUN, "--num_train_epochs", 1, "--output_dir", "pretrained", cwd=tmp_path)
    assert_killed_run_equals("run_finetune.py", arguments, tmp_path, kills=1, most_steps=20, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_go_on_bit_for_bit(tmp_path, streaming):
    arguments = [*RUN, "--per_device_train_batch_size", 32, "--streaming", streaming]
    assert_killed_run_equals("run_pretrain.py", arguments, tmp_path, kills=1, most_steps=30, seed=3, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "processes"), [("run_pretrain.py", 2), ("run_pretrain_no_trainer.py", 1)])
def test_all_kinds_of_supervision_go_on(tmp_path, script, processes):
    """From a folder of images, of which some have a class, a caption or a mask."""
    lines = ["file_name,label,caption"]
    for index, image in enumerate(digit_images(160)):
        for folder, picture in (("images", image), ("masks", image.convert("L").point(lambda x: x > 60))):
            (tmp_path / folder).mkdir(exist_ok=True)
            if folder == "images" or index % 3:
                picture.save(tmp_path / folder / f"{index}.png")
        lines.append(
            f"{index}.png,{index % 5 if index % 2 else ''},{'number ' + 'abcde'[index % 5] if index % 4 else ''}"
        )
    (tmp_path / "images" / "metadata.csv").write_text("\n".join(lines))
    config = json.dumps({**TINY, "hidden_dropout_prob": 0.1, "dense_classes": ["paper", "ink"]})
    arguments = [*RUN, "--model_config", config, "--train_dir", "images", "--mask_dir", "masks"]
    arguments += ["--caption_column_name", "caption", "--per_device_train_batch_size", 16, "--num_train_epochs", 12]
    assert_killed_run_equals(script, arguments, tmp_path, kills=1, most_steps=20, seed=4, processes=processes)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["supervision"] == ["labels", "captions", "dense"]


@pytest.mark.parametrize(
    ("script", "processes"),
    [
        ("run_pretrain.py", 1),
        pytest.param("run_pretrain_no_trainer.py", 1, marks=pytest.mark.slow),
        pytest.param("run_pretrain.py", 2, marks=pytest.mark.slow),
    ],
)
def test_sigterm_saves_before_leaving(tmp_path, script, processes):
    arguments = [*RUN, "--save_steps", 1000, "--dataloader_num_workers", 1, "--num_train_epochs", 100]
    arguments += ["--per_device_train_batch_size", 64 // processes]
    arguments += ["--output_dir", "out"]
    process = start(script, arguments, tmp_path, processes, start_new_session=True)
    seen = ""
    while "steps to go" not in seen:
        text = process.stdout.read(1)
        assert text, seen
        seen += text
    os.killpg(process.pid, signal.SIGTERM)  # the data-loading worker is told as well
    printed = process.communicate(timeout=60)[0]
    # of several processes the launcher's own status, which is not ours to choose
    assert (process.returncode == 128 + signal.SIGTERM) if processes == 1 else process.returncode != 0, printed
    assert "Stopped by SIGTERM; saved in out. The same command goes on from there." in printed
    checkpoint = find_checkpoint(tmp_path / "out")
    assert checkpoint is not None and 4 <= newest_step(tmp_path / "out") < 2200


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_end_with_the_run(tmp_path, context):
    arguments = [*RUN, "--max_steps", 2, "--warmup_epochs", 0, "--dataloader_num_workers", 1, "--output_dir", "out"]
    arguments += ["--dataloader_persistent_workers", "True", "--dataloader_multiprocessing_context", context]
    process = start("run_pretrain.py", arguments, tmp_path)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    arguments = [*RUN, "--max_steps", 6, "--save_steps", 3, "--warmup_epochs", 0, "--output_dir", "out"]
    run_example("run_pretrain.py", *arguments, cwd=tmp_path)
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    size = (tmp_path / "out" / "checkpoint-3" / "model.safetensors").stat().st_size

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = start("run_pretrain.py", arguments, tmp_path, preexec_fn=no_large_files)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode not in (0, None)
    assert "The checkpoint of step 6 cannot be written to out" in printed and "checkpoint-3" in printed
    assert find_checkpoint(tmp_path / "out").name == "checkpoint-3"
    # with room again the same command goes on
    run_example("run_pretrain.py", *arguments, cwd=tmp_path)
    assert newest_step(tmp_path / "out") == 6


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["even small", "value"])
@pytest.mark.parametrize("script", ["run_pretrain.py", "run_finetune.py"])
def test_other_labels_go_on_bit_for_bit(tmp_path, script, columns):
    """Several classes an image, and numbers."""
    (tmp_path / "images").mkdir()
    lines = ["file_name,even,small,value"]
    for index, (image, digit) in enumerate(zip(digit_images(160), load_digits().target)):
        image.save(tmp_path / "images" / f"{index}.png")
        lines.append(f"{index}.png,{int(digit % 2 == 0)},{int(digit < 5)},{digit / 4}")
    (tmp_path / "images" / "metadata.csv").write_text("\n".join(lines))
    arguments = [*RUN, "--train_dir", "images", "--label_column_name", *columns.split(), "--num_train_epochs", 30]
    arguments += ["--per_device_train_batch_size", 8]
    assert_killed_run_equals(script, arguments, tmp_path, kills=2, most_steps=60, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["DINOv3ViTModel", "Dinov2WithRegistersModel", "SiglipVisionModel", "CLIPVisionModel"]
)
def test_public_vits_go_on_export_and_publish(tmp_path, name):
    """Pre-trained from a ViT with parts of its own, killed, gone on, exported and published."""
    model_class = getattr(transformers, name)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if "Dinov2" in name:
        sizes |= {"num_register_tokens": 2, "mlp_ratio": 2}
    elif "v3" in name:
        sizes |= {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 64}
    model_class(model_class.config_class(**sizes)).save_pretrained(tmp_path / "vit")
    processor = {"Siglip": transformers.SiglipImageProcessor, "CLIP": transformers.CLIPImageProcessor}
    processor = next(
        (value for key, value in processor.items() if name.startswith(key)), transformers.ViTImageProcessor
    )
    processor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    config = {key: value for key, value in TINY.items() if key.startswith(("decoder", "classifier"))}
    config["image_size"] = 32
    arguments = [ROOT / "examples" / "configs" / "continue_vit_b.yaml", "--model_name_or_path", "vit"]
    arguments += [
        "--model_config",
        json.dumps(config),
        "--bf16",
        "False",
        "--warmup_epochs",
        0,
        "--num_train_epochs",
        20,
    ]
    arguments += ["--max_train_samples", 160, "--per_device_train_batch_size", 8, "--dataloader_num_workers", 0]
    arguments += [
        "--save_strategy",
        "steps",
        "--save_steps",
        5,
        "--report_to",
        "none",
        "--use_cpu",
        "--disable_tqdm",
        "True",
    ]
    assert_killed_run_equals("run_pretrain.py", arguments, tmp_path, kills=2, most_steps=60, seed=5)
    run_example("export_stock.py", "whole", "stock", "--encoder_only", cwd=tmp_path)
    run_example("publish.py", "whole", "someone/model", "--dry_run", "--license", "apache-2.0", cwd=tmp_path)
