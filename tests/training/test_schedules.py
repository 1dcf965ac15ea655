"""Image sizes and mask ratios that change while a run goes on."""

import json

import pytest
import torch
from conftest import TINY, reference_config, run_example
from safetensors.torch import load_file

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.cost import pretraining_flops
from supmae_hf.training.schedules import StepSchedule, scheduled, scheduled_flops


def parse(*words, number=int):
    return StepSchedule.parse("flag", words, number, lambda value: value > 0)


def test_values_hold_from_a_share_of_the_run_on():
    schedule = parse("0:128", "0.5:192", "0.9:224")
    assert [schedule.at(share) for share in (0, 0.49, 0.5, 0.89, 0.9, 0.999)] == [128, 128, 192, 192, 224, 224]


def test_what_a_run_costs():
    config = SupMAEConfig(num_labels=1000)
    whole = pretraining_flops(config)
    assert scheduled_flops(config) == whole
    small = pretraining_flops(SupMAEConfig(num_labels=1000, image_size=128))
    ratio = pretraining_flops(SupMAEConfig(num_labels=1000, image_size=128, mask_ratio=0.9))
    assert ratio < 0.7 * small < 0.7 * 0.4 * whole
    assert scheduled_flops(config, parse("0:128", "0.5:224")) == pytest.approx((small + whole) / 2)
    ratios = parse("0:0.75", "0.1:0.9", "0.5:0.75", number=float)
    assert scheduled_flops(config, parse("0:128", "0.5:224"), ratios) == pytest.approx(
        0.1 * small + 0.4 * ratio + 0.5 * whole
    )


def test_a_batch_as_the_schedules_have_it(digits, digit_labels):
    config = reference_config()
    model = SupMAEForPreTraining(config).eval()
    batch = {"pixel_values": digits, "labels": digit_labels, "noise": torch.rand(8, 16)}
    whole = scheduled(batch, config, 0.7, parse("0:16", "0.6:32"), None)
    assert whole.keys() == batch.keys() and all(whole[name] is batch[name] for name in batch)
    small = scheduled(batch, config, 0.5, parse("0:16", "0.6:32"), parse("0:0.5", "0.2:0.25", number=float))
    assert small["pixel_values"].shape == (8, 3, 16, 16) and batch["pixel_values"].shape == (8, 3, 32, 32)
    outputs = model(**small)
    assert outputs.mask.shape == (8, 4) and (outputs.mask.sum(dim=1) == 1).all()
    assert torch.equal(outputs.mask.argmax(dim=1), batch["noise"][:, :4].argmax(dim=1))
    means = [images.mean(dim=(1, 2, 3)) for images in (small["pixel_values"], digits)]
    torch.testing.assert_close(*means, atol=0.05, rtol=0)


def test_both_scripts_follow_the_schedules(tmp_path):
    run = ["--model_config", json.dumps(TINY), "--num_train_epochs", 2, "--warmup_epochs", 1, "--logging_steps", 1]
    run += ["--max_train_samples", 330, "--max_eval_samples", 20, "--report_to", "none", "--disable_tqdm", "True"]
    run += ["--save_strategy", "no", "--use_cpu"]
    schedules = ["--image_size_schedule", "0:8", "0.5:16", "--mask_ratio_schedule", "0:0.25", "0.3:0.75"]
    weights, logs = {}, {}
    for name, script, more in (
        ("trainer", "run_pretrain.py", schedules),
        ("loop", "run_pretrain_no_trainer.py", schedules),
        ("plain", "run_pretrain.py", []),
        ("same", "run_pretrain.py", ["--image_size_schedule", "0:16", "--mask_ratio_schedule", "0:0.75"]),
    ):
        run_example(script, *run, *more, "--output_dir", name, cwd=tmp_path)
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
        logs[name] = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
    assert weights["same"] == weights["plain"] != weights["trainer"]
    assert all(
        torch.equal(*pair)
        for pair in zip(*(load_file(tmp_path / x / "model.safetensors").values() for x in ("trainer", "loop")))
    )
    losses = {name: [entry["loss"] for entry in log if "loss" in entry] for name, log in logs.items()}
    assert losses["trainer"] == pytest.approx(losses["loop"], rel=1e-6) and losses["trainer"][0] != losses["plain"][0]


def test_sizes_must_fit_the_model(tmp_path):
    for size in (15, 32):
        arguments = ["--model_config", json.dumps(TINY), "--image_size_schedule", f"0:{size}", "--output_dir", "out"]
        error = run_example("run_pretrain.py", *arguments, cwd=tmp_path, fails=True)
        assert f"`--image_size_schedule` {size} does not fit a model of 16x16 pixels and patches of 4x4" in error
        assert not (tmp_path / "out").exists()
