import os


# before anything imports a Hugging Face library: tests never touch the network
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits, load_sample_images

from supmae_hf import SupMAEConfig


torch.set_num_threads(1)

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parent.parent


def digit_pixel_values(indices, num_channels=3) -> torch.Tensor:
    """Digits as 32x32 model inputs, in the way of fixtures/README.md."""
    images = torch.tensor(load_digits().images[np.asarray(indices)], dtype=torch.float32).unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=32, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images.repeat(1, 3, 1, 1) - mean) / std)[:, :num_channels]


@pytest.fixture
def photographs() -> list[np.ndarray]:
    """scikit-learn's two sample photographs, (427, 640, 3) uint8."""
    return load_sample_images().images


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


def load_original(name: str) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint of the authors' layout."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(FIXTURES / name, weights_only=True)["model"]


def load_reference(name: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / name)


def run_example(script: str, *arguments, cwd, fails: bool = False) -> str:
    """What a script of examples/ prints, or, if it is meant to fail, its error."""
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (result.returncode != 0) is fails, result.stdout + result.stderr
    return result.stderr if fails else result.stdout
