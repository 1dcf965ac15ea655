"""Conversion there and back at the size of ViT-B/16: exact, and within bounds of memory."""

import argparse
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.interchange.convert import revert_original_state_dict


# runs a script and prints by how much its peak memory exceeds that of importing the libraries
MEASURE = """
import resource, runpy, sys
import supmae_hf.interchange.export, timm
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [SupMAEForPreTraining, SupMAEForImageClassification])
def test_round_trip(tmp_path, model_class):
    torch.manual_seed(0)
    original = revert_original_state_dict(model_class(SupMAEConfig(num_labels=1000)).state_dict())
    checkpoint = tmp_path / "original.pth"
    torch.save({"model": original, "args": argparse.Namespace(norm_pix_loss=True, input_size=224)}, checkpoint)

    def run(script, *arguments):
        command = [sys.executable, "-c", MEASURE, ROOT / "examples" / script, *arguments]
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, check=True)
        assert int(ran.stdout.split()[-1]) < 2.5 * checkpoint.stat().st_size, ran.stdout

    run("convert_checkpoint.py", checkpoint, "ours")
    reverted = revert_original_state_dict(load_file(tmp_path / "ours" / "model.safetensors"))
    assert reverted.keys() == original.keys()
    assert all(torch.equal(reverted[name], original[name]) for name in original)
    run("export_stock.py", "ours", "stock")
    if model_class is SupMAEForImageClassification:
        run("export_stock.py", "ours", "timm", "--format", "timm")
    else:
        run("convert_checkpoint.py", "stock", "again")
        first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
        shared = [name for name in first if not name.startswith("classification_head.")]
        assert all(torch.equal(first[name], again[name]) for name in shared)
