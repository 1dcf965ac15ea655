"""The same figures from both scripts, from one process and from two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, TINY, example_command, free_port, run_command, run_example
from evaluation.zoo import make_model
from safetensors.torch import load_file

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.cli import parse_arguments
from supmae_hf.data.arguments import DataArguments
from supmae_hf.training.arguments import ModelArguments, PreTrainingArguments
from supmae_hf.training.job import prepare_pretraining
from supmae_hf.training.trainer import PreTrainer


DIGITS = ROOT / "examples" / "configs" / "pretrain_digits.yaml"


def arguments(batch_size: int, accumulation: int = 1, **fields) -> list:
    # with a linear head, whose images do not see each other; most images are unlabelled, in uneven numbers
    config = json.dumps({**TINY, "classifier_hidden_size": 0, "classification_loss_weight": 0.1})
    flags = {
        "--model_config": config,
        "--label_fraction": 0.3,
        "--max_train_samples": 640,
        "--max_eval_samples": 90,
        "--num_train_epochs": 2,
        "--warmup_epochs": 1,
        "--logging_steps": 1,
        "--per_device_train_batch_size": batch_size,
        "--gradient_accumulation_steps": accumulation,
        "--report_to": "none",
        "--disable_tqdm": True,
        "--save_strategy": "no",
        **fields,
    }
    return [text for flag in flags.items() for text in flag] + ["--use_cpu"]


def results(folder) -> tuple[dict[str, torch.Tensor], list[dict]]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return load_file(folder / "model.safetensors"), log


def assert_same(one, other, tolerance: float, num_steps: int = 20):
    (weights, log), (other_weights, other_log) = one, other
    assert weights.keys() == other_weights.keys()
    for name, weight in weights.items():
        # a key's bias cancels in the softmax: its gradient is zero but for rounding, which Adam amplifies
        slack = 1e-3 if name.endswith("k_proj.bias") and tolerance else tolerance
        torch.testing.assert_close(other_weights[name], weight, atol=slack, rtol=slack, msg=name)
    steps, other_steps = ([entry for entry in entries if "loss" in entry] for entries in (log, other_log))
    assert len(steps) == len(other_steps) == num_steps
    for entry, other_entry in zip(steps, other_steps):
        for name in ("loss", "reconstruction_loss", "classification_loss", "accuracy", "learning_rate"):
            if name == "loss" and not tolerance:  # added up in another order
                assert other_entry[name] == pytest.approx(entry[name], rel=1e-6)
            elif name in entry:
                assert other_entry[name] == pytest.approx(entry[name], rel=tolerance, abs=0)
        assert other_entry["labeled_images_per_step"] == entry["labeled_images_per_step"]
    evaluated, other_evaluated = (next(e for e in entries if "eval_accuracy" in e) for entries in (log, other_log))
    for name in ("eval_reconstruction_loss", "eval_classification_loss", "eval_accuracy"):
        assert other_evaluated[name] == pytest.approx(evaluated[name], rel=max(tolerance, 1e-6))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_example("run_pretrain.py", *arguments(64), "--output_dir", "out", cwd=folder)
    return results(folder / "out")


def test_the_loop_equals_the_trainer_step_by_step(tmp_path, one_process):
    run_example("run_pretrain_no_trainer.py", *arguments(64), "--output_dir", "out", cwd=tmp_path)
    assert_same(one_process, results(tmp_path / "out"), tolerance=0)


@pytest.mark.parametrize(
    ("script", "batch_size", "accumulation"),
    [("run_pretrain.py", 32, 1), pytest.param("run_pretrain_no_trainer.py", 16, 2, marks=pytest.mark.slow)],
)
def test_two_processes_equal_one(tmp_path, one_process, script, batch_size, accumulation):
    flags = arguments(batch_size, accumulation)
    run_command(example_command(script, *flags, "--output_dir", "out", processes=2), tmp_path)
    assert_same(one_process, results(tmp_path / "out"), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_pretrain.py", "run_pretrain_no_trainer.py"])
def test_two_processes_evaluate_what_they_save(tmp_path, script):
    """BatchNorm on the CPU has statistics of its own in every process; one model is saved, and that one is evaluated."""
    flags = arguments(32, **{"--model_config": json.dumps(TINY), "--label_fraction": 1.0, "--knn_eval": True})
    run_command(example_command(script, *flags, "--output_dir", "out", processes=2), tmp_path)
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    said = [entry for entry in log if "eval_accuracy" in entry][-1]
    classes = (ModelArguments, DataArguments, PreTrainingArguments)
    argv = ["--model_name_or_path", str(tmp_path / "out"), "--output_dir", str(tmp_path / "again"), "--use_cpu"]
    argv += ["--max_eval_samples", "90"]  # as above
    parsed = parse_arguments(classes, "pretrain", DIGITS, argv=[*argv, "--report_to", "none"])
    parsed[0].model_config = {}
    measured = PreTrainer(**prepare_pretraining(parsed).for_trainer()).evaluate()
    for name in ("eval_reconstruction_loss", "eval_classification_loss", "eval_accuracy"):
        assert measured[name] == pytest.approx(said[name], rel=1e-6)


@pytest.mark.slow
def test_processes_share_streams(tmp_path):
    """Each reads its own files, in both scripts, and together they see every image once."""
    flags = arguments(32, **{"--label_fraction": 0.5, "--streaming": True, "--max_train_samples": 1408})
    for script in ("run_pretrain", "run_pretrain_no_trainer"):
        command = example_command(f"{script}.py", *flags, "--output_dir", script, processes=2)
        run_command(command, tmp_path)
    one, two = (results(tmp_path / script) for script in ("run_pretrain", "run_pretrain_no_trainer"))
    assert_same(one, two, tolerance=1e-5, num_steps=2 * 22)
    steps = [entry for entry in one[1] if "loss" in entry]
    assert len(steps) == 2 * 22
    first, second = (sum(entry["labeled_images_per_step"] for entry in epoch) for epoch in (steps[:22], steps[22:]))
    assert (
        500 < first < 900 and abs(first - second) < 60
    )  # the same images keep their label; a few come in one epoch only


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_machines_equal_one_process(tmp_path, one_process, launcher):
    """Two launchers on loopback, as docs/cluster.md starts them."""
    port = free_port()
    processes = []
    for rank in range(2):
        command = ["torchrun", "--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1]
        command += ["--master_addr", "127.0.0.1", "--master_port", port]
        if launcher == "accelerate":
            command = ["accelerate", "launch", "--num_machines", 2, "--num_processes", 2, "--machine_rank", rank]
            command += ["--config_file", ROOT / "examples" / "configs" / "accelerate" / "cpu_2_processes.yaml"]
            command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        command[0] = Path(sys.executable).parent / command[0]
        command += [ROOT / "examples" / "run_pretrain.py", *arguments(32), "--output_dir", "out"]
        processes.append(
            subprocess.Popen(list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()
    assert_same(one_process, results(tmp_path / "out"), tolerance=1e-5)


@pytest.mark.gpu
def test_synchronised_batch_norm_equals_one_process(tmp_path):
    """Needs two accelerators."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two accelerators")
    for name, batch_size, processes in (("one", 64, 1), ("two", 32, 2)):
        flags = [*arguments(batch_size, **{"--model_config": json.dumps(TINY)})[:-1], "--output_dir", name]
        run_command(example_command("run_pretrain.py", *flags, processes=processes), tmp_path)
    assert_same(results(tmp_path / "one"), results(tmp_path / "two"), tolerance=1e-5)


@pytest.mark.parametrize("path", sorted((ROOT / "examples/configs/accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_the_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    if path.stem == "fsdp":
        plugin = config.fsdp_config
        assert plugin["fsdp_version"] == 2
        assert plugin["fsdp_transformer_layer_cls_to_wrap"] in {
            type(module).__name__ for module in SupMAEForPreTraining(SupMAEConfig(**TINY)).modules()
        }


@pytest.mark.slow
def test_evaluation(tmp_path):
    model = make_model("supmae", tmp_path)
    robustness = ["run_robustness.py", "--models", make_model("vit", tmp_path), "--max_samples", 25]
    robustness += ["--corruptions", "fog", "--severities", 1, 3, "--per_device_eval_batch_size", 4]
    segmentation = [
        "run_semantic_segmentation.py",
        "--models",
        model,
        "--max_steps",
        2,
        "--warmup_steps",
        0,
        "--use_cpu",
    ]
    segmentation += ["--crop_size", 32, "--decoder_hidden_size", 16, "--max_eval_samples", 7, "--output_dir", "masks"]
    scores = []
    for processes in (1, 2):  # the second segmentation finds the model trained and evaluates it
        batch = ["--per_device_train_batch_size", 4 // processes]
        for command in ([*robustness, "--output_dir", f"robustness-{processes}"], [*segmentation, *batch]):
            if processes == 1:
                run_example(*command, cwd=tmp_path)
            else:
                run_command(example_command(*command, processes=2), cwd=tmp_path)
        files = (tmp_path / f"robustness-{processes}" / "results.json", tmp_path / "masks" / "results.json")
        scores.append([json.loads(file.read_text()) for file in files])
        assert len((files[0].parent / "results.jsonl").read_text().splitlines()) == 2
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_few_shot_runs_in_one_process(tmp_path):
    few_shot = example_command("run_few_shot.py", "--models", make_model("supmae", tmp_path), processes=2)
    refused = subprocess.run(few_shot, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert refused.returncode != 0 and "runs in one process, not 2" in refused.stderr
