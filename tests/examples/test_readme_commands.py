"""Every command of examples/README.md runs as it stands, in its order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_mnist, run_example


COMMANDS = [
    command.strip()
    for command in re.findall(r"```bash\n(.*?)```", (ROOT / "examples" / "README.md").read_text(), re.S)
]

STEPS = "--max_steps 2 --use_cpu"
TRAINING = f"{STEPS} --warmup_epochs 0 --max_train_samples 256 --max_eval_samples 64"
SHORTER = {
    "run_pretrain": TRAINING,
    "run_pretrain_no_trainer": TRAINING,
    "run_finetune": TRAINING,
    "run_linear_probe": TRAINING,
    "run_eval": "--max_samples 64",
    "run_zero_shot": "--max_samples 64",
    "run_robustness": "--max_samples 4",
    "run_few_shot": "--epochs 1 --learning_rates 1e-3 --shots 5 --seeds 0",
    "extract_features": "--max_samples 64",
    "pack_images": "--max_samples 64",
    "run_semantic_segmentation": f"{STEPS} --warmup_steps 0 --max_eval_samples 4",
    "supervision": "--data digits --tflops 0.002",
    "pretraining": "--data digits --transfer digits --images 300 --held_out 100 --divisor 50 --finetuning_epochs 1 --test_images 99",
}


def run(command: str, cwd: Path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    result = subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, command + "\n" + result.stdout + result.stderr


@pytest.fixture
def repository(tmp_path):
    """The repository, but for what the commands write."""
    for name in ("examples", "experiments", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_every_script_has_a_command():
    scripts = {path.name for folder in ("examples", "experiments") for path in (ROOT / folder).glob("*.py")}
    assert {re.search(r"(?:examples|experiments)/(\w+\.py)", command)[1] for command in COMMANDS} == scripts - {
        "comparison.py"
    }


def test_commands_run_when_cut_short(repository):
    """In this process: each of them would take seconds to import what it needs."""
    for command in COMMANDS:
        if "experiments/" in command:  # takes a minute, see below
            continue
        script = re.search(r"examples/(\w+)\.py", command)[1]
        command = f"{command} {SHORTER.get(script, '')}"
        arguments = shlex.split(command)
        run_example(f"{script}.py", *arguments[arguments.index(f"examples/{script}.py") + 1 :], cwd=repository)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["pretraining", "supervision"])
def test_comparisons_run_when_cut_short(repository, script):
    make_mnist(repository / "digits", splits=((0, 1000), (1000, 1100)))
    command = next(command for command in COMMANDS if f"experiments/{script}" in command)
    run(f"{command} {SHORTER[script]}", repository)


@pytest.mark.slow
def test_commands_run_as_they_stand(repository):
    for command in COMMANDS:
        if not re.search("experiments/(pretraining|supervision)", command):  # which load their images from the Hub
            run(command, repository)
