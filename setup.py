# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "src/supmae_hf/__init__.py").read_text(), re.MULTILINE).group(1)

# `make test-oldest` tests all lower bounds together (constraints/oldest.txt), `make test` the newest releases.
TRAIN = [
    "accelerate>=1.10",
    "datasets>=4.0",
    "evaluate>=0.4.3",
    "filelock>=3.16",
    "imagecodecs>=2025.3",  # compressed TIFF files
    "imagecorruptions-imaug>=1.1.5",
    "Jinja2>=3.1.4",
    "matplotlib>=3.9",
    "psutil>=5.9.8",
    "PyYAML>=6.0.1",
    "pandas>=2.2",
    "scikit-learn>=1.5",
    "tabulate>=0.9",
    "tensorboard>=2.18",
    "tifffile>=2025.3",
    "timm>=1.0.24",
]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.7"]
DEV = [
    "gradio>=6.0",
    "parameterized>=0.9",  # by Transformers' own tests
    "peft>=0.18",
    "playwright>=1.49",
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "ruff>=0.14",
]

setup(
    name="supmae-hf",
    version=VERSION,
    description="SupMAE (Supervised Masked Autoencoders, arXiv 2205.14540) for Hugging Face Transformers",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"supmae_hf": ["model_card.md", "interchange/*.md", "training/recipes/*.yaml"]},
    install_requires=[
        "huggingface_hub>=1.31",
        "numpy>=2.0",
        "Pillow>=11.3,<13",  # 13 refuses the 0 bits that timm's RandAugment posterizes to at its strongest
        "safetensors>=0.8",
        "torch>=2.9",
        "torchvision>=0.24",
        "transformers>=5.18,<6",
    ],
    extras_require={"train": TRAIN, "onnx": TRAIN + ONNX, "dev": TRAIN + ONNX + DEV},
)
