"""Every command of examples/README.md runs as it stands, in its order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


COMMANDS = [
    command.strip()
    for command in re.findall(r"```bash\n(.*?)```", (ROOT / "examples" / "README.md").read_text(), re.S)
]


def run(command: str, cwd: Path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    result = subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, command + "\n" + result.stdout + result.stderr


@pytest.fixture
def repository(tmp_path):
    """The repository, but for what the commands write."""
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_every_script_has_a_command():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert {re.search(r"examples/(\w+\.py)", command)[1] for command in COMMANDS} == scripts


def test_commands_run_when_cut_short(repository):
    for command in COMMANDS:
        is_training = "/run_" in command
        run(command + (" --max_steps 2 --warmup_epochs 0 --use_cpu" if is_training else ""), repository)


@pytest.mark.slow
def test_commands_run_as_they_stand(repository):
    for command in COMMANDS:
        run(command, repository)
