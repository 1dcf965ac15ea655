"""Checkpoints on the Hub load by name, with supmae-hf and, through the code that lies beside them, without it."""

import os
import subprocess
import sys
import sysconfig
import venv

import pytest
import torch
from conftest import reference_config

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.preparation import build_image_processor


CODE = """
import sys
sys.path = [path for path in sys.path if path]
if {with_package}:
    import supmae_hf
else:
    try:
        import supmae_hf
    except ImportError:
        pass
    else:
        raise SystemExit("supmae_hf can be imported")
import torch, transformers
options = dict({options})
images, noise = torch.load("images.pt"), torch.load("noise.pt")
for auto_class, inputs in (
    ("AutoModel", {{"noise": noise}}),
    ("AutoModelForPreTraining", {{"noise": noise}}),
    ("AutoModelForImageClassification", {{}}),
):
    name = "org/" + auto_class
    loader = getattr(transformers, auto_class)
    config = transformers.AutoConfig.from_pretrained(name, **options)
    processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
    model = loader.from_pretrained(name, **options).eval()
    assert model.__class__.__module__.startswith("{module}"), model.__class__
    outputs = model(images, **inputs)
    torch.save({{name: value for name, value in outputs.items() if torch.is_tensor(value)}}, auto_class + ".pt")
    model.save_pretrained("again/" + auto_class)
    processor.save_pretrained("again/" + auto_class)
    loader.from_pretrained("again/" + auto_class, **options)
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> str:
    """Python in a virtual environment that has everything but supmae-hf."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    # the .pth file of an editable installation is not read there
    for name in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        with open(os.path.join(site, "packages.pth"), "a") as file:
            file.write(name + "\n")
    return str(python)


def to_hub_cache(model, name, home):
    """As the Hub client lays out what it downloads."""
    repository = home / "hub" / f"models--org--{name}"
    snapshot = repository / "snapshots" / ("0" * 40)
    model.save_pretrained(snapshot)
    build_image_processor(model.config).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


@pytest.mark.parametrize("with_package", [True, False])
def test_loading_by_name(bare_python, with_package, tmp_path, digits):
    models = {
        "AutoModel": SupMAEModel(reference_config()).eval(),
        "AutoModelForPreTraining": SupMAEForPreTraining(reference_config()).eval(),
        "AutoModelForImageClassification": SupMAEForImageClassification(reference_config()).eval(),
    }
    for name, model in models.items():
        to_hub_cache(model, name, tmp_path / "home")
    noise = torch.rand(len(digits), 16)
    torch.save(digits, tmp_path / "images.pt")
    torch.save(noise, tmp_path / "noise.pt")
    code = CODE.format(
        with_package=with_package,
        options="" if with_package else "trust_remote_code=True",
        module="supmae_hf" if with_package else "transformers_modules",
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable if with_package else bare_python, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    for auto_class, model in models.items():
        outputs = torch.load(tmp_path / f"{auto_class}.pt")
        inputs = {} if auto_class == "AutoModelForImageClassification" else {"noise": noise}
        for name, value in model(digits, **inputs).items():
            if torch.is_tensor(value):
                assert torch.equal(outputs[name], value), name
        saved = {path.name for path in (tmp_path / "again" / auto_class).iterdir()}
        names = ("configuration", "conversion", "modeling", "supervision")
        assert {f"{name}_supmae.py" for name in names} <= saved
