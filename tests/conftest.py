import os


# before anything imports a Hugging Face library: tests never touch the network
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start; of this one see below

import argparse
import contextlib
import gc
import gzip
import importlib.util
import io
import socket
import struct
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits, load_sample_images
from transformers.utils import logging

from supmae_hf import SupMAEConfig
from supmae_hf.data.arguments import DataArguments, EvaluationDataArguments
from supmae_hf.data.image_data import ImageData
from supmae_hf.data.sources import load_evaluation_data, load_training_data
from supmae_hf.supervision_supmae import UNLABELED, SupMAESupervision


torch.set_num_threads(1)

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    """The scripts first: they take longest, and a worker that has nothing left takes over what others have."""
    items.sort(key=lambda item: "examples" not in item.path.parts)


def pytest_collection_finish():
    """Accelerate collects garbage in every run, and would look at all that was imported each time."""
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """A test's random weights are its own, not those of the place it happens to have in a worker's order."""
    torch.manual_seed(0)


def digit_pixel_values(indices, num_channels=3) -> torch.Tensor:
    """Digits as 32x32 model inputs, in the way of fixtures/README.md."""
    images = torch.tensor(load_digits().images[np.asarray(indices)], dtype=torch.float32).unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=32, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images.repeat(1, 3, 1, 1) - mean) / std)[:, :num_channels]


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """scikit-learn's two sample photographs, (427, 640, 3) uint8."""
    return load_sample_images().images


def digit_images(count=20) -> list[Image.Image]:
    return [Image.fromarray((image * 15).astype(np.uint8)) for image in load_digits().images[:count]]


def make_dataset(columns: dict, features: dict) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_idx(path: Path, array: np.ndarray, dtype: str = "uint8"):
    """An array in MNIST's format."""
    content = bytes([0, 0, {"uint8": 8, ">i4": 12}[dtype], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(dtype).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def make_mnist(
    folder: Path, prefix="", ending="", test="t10k", transpose=False, labels=True, splits=((0, 60), (60, 100))
) -> Path:
    """Digits as a folder in MNIST's format."""
    digits = load_digits()
    for split, (start, stop) in zip(("train", test), splits):
        pixels = np.round(digits.images[start:stop] * (255 / 16)).astype(np.uint8)
        pixels = pixels.transpose(0, 2, 1) if transpose else pixels
        write_idx(folder / f"{prefix}{split}-images-idx3-ubyte{ending}", pixels)
        if labels:
            write_idx(folder / f"{prefix}{split}-labels-idx1-ubyte{ending}", digits.target[start:stop])
    return folder


@pytest.fixture
def digit_folder(tmp_path) -> Path:
    """A folder with 40 digits in `train` and 40 others in `held_out`, one sub-folder per class each."""
    target = load_digits().target
    for index, image in enumerate(digit_images(100)):
        if split := "train" if index < 40 else "held_out" if index >= 60 else None:
            path = tmp_path / split / f"digit-{target[index]}"
            path.mkdir(parents=True, exist_ok=True)
            image.save(path / f"{index}.png")
    return tmp_path


@pytest.fixture
def warnings(caplog):
    """What is logged."""
    logging.enable_propagation()
    return caplog


@pytest.fixture
def digits() -> torch.Tensor:
    return digit_pixel_values(range(8))


@pytest.fixture
def digit_labels() -> torch.Tensor:
    return torch.tensor(load_digits().target[:8])


def reference_config(**fields) -> SupMAEConfig:
    """The tiny architecture of the reference figures."""
    return SupMAEConfig(
        **{
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 128,
            "classifier_hidden_size": 48,
            "num_labels": 10,
            **fields,
        }
    )


def load_data(train_dir=None, problem_type=None, num_labels=None, **arguments) -> ImageData:
    """Training data of a folder, or the digits; `arguments` are those of the command line."""
    folder = None if train_dir is None else str(train_dir)
    return load_training_data(DataArguments(train_dir=folder, **arguments), problem_type, num_labels)


def load_images(image_dir=None, **arguments) -> ImageData:
    """The same for an evaluation."""
    folder = None if image_dir is None else str(image_dir)
    return load_evaluation_data(EvaluationDataArguments(image_dir=folder, **arguments))


class BrightnessHead(SupMAESupervision):
    """A kind of supervision of one's own: one number an image."""

    argument, loss_name, count_name = "brightness", "brightness_loss", "images_with_brightness"

    def __init__(self, config):
        super().__init__()
        self.fc = torch.nn.Linear(config.hidden_size, 1)

    def forward(self, pooled, patches, ids_restore, decoded):
        return self.fc(pooled).squeeze(-1)

    def losses(self, logits, targets, mask):
        return (logits - targets).square()

    def count(self, targets):
        return (targets != UNLABELED).float()


def load_original(name: str) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint of the authors' layout."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(FIXTURES / name, weights_only=True)["model"]


def load_reference(name: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / name)


def script_path(script: str) -> Path:
    """Where a script of examples/ or, if its name begins so, of experiments/ is."""
    return ROOT / script if script.startswith("experiments/") else ROOT / "examples" / script


def load_example(script: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, script_path(script))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# a model for runs of seconds; unlike the digits' recipe on RGB images with normalised targets, as most models are
TINY = {
    "num_channels": 3,
    "norm_pix_loss": True,
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "classifier_hidden_size": 32,
}


def example_command(script: str, *arguments, processes: int = 1) -> list[str]:
    """The command that runs a script of examples/, through `accelerate launch` if in several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--config_file"]
        launcher += [ROOT / "examples" / "configs" / "accelerate" / "cpu_2_processes.yaml"]
        launcher += ["--num_processes", processes, "--main_process_port", free_port()]
    return list(map(str, [*launcher, script_path(script), *arguments]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_command(command: list[str], cwd) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_example(script: str, *arguments, cwd, fails: bool = False) -> str:
    """
    What a script of examples/ prints, or, if it is meant to fail, its error. Runs in this process: importing what a
    script needs takes longer than these runs.
    """
    printed, complaint = io.StringIO(), io.StringIO()
    state = os.getcwd(), sys.argv
    sys.argv = [script, *map(str, arguments)]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaint):
            load_example(script).main()
    except (Exception, SystemExit) as error:
        if not fails:
            raise
        return f"{error}\n{complaint.getvalue()}"
    finally:
        os.chdir(state[0])
        sys.argv = state[1]
        AcceleratorState._reset_state(reset_partial_state=True)
    assert not fails, printed.getvalue()
    return printed.getvalue()
