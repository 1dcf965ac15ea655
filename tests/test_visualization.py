import pytest
import torch
from conftest import reference_config
from PIL import Image

from supmae_hf import SupMAEForPreTraining
from supmae_hf.preparation import Preparation, build_image_processor
from supmae_hf.visualization import reconstruct, save_curves, save_reconstructions


NOISE = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_rows(digits, norm_pix_loss):
    model = SupMAEForPreTraining(reference_config(norm_pix_loss=norm_pix_loss)).train()
    rows = reconstruct(model, digits, NOISE)
    assert list(rows) == ["original", "masked", "reconstruction", "pasted"] and model.training
    outputs = model.eval()(digits, noise=NOISE)
    hidden = outputs.mask.view(8, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(digits).bool()
    assert torch.equal(rows["original"], digits)
    assert rows["masked"][hidden].eq(0).all() and torch.equal(rows["masked"][~hidden], digits[~hidden])
    assert torch.equal(rows["pasted"][~hidden], digits[~hidden])
    assert torch.equal(rows["pasted"][hidden], rows["reconstruction"][hidden])
    if norm_pix_loss:  # each patch of the reconstruction is in its true patch's scale
        true, predicted = (model.patchify(rows[name]) for name in ("original", "reconstruction"))
        expected = outputs.logits * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)


def test_other_image_sizes(photographs):
    image = torch.tensor(photographs[0]).permute(2, 0, 1)[None, :, :424, :640].float() / 255
    rows = reconstruct(SupMAEForPreTraining(reference_config()), image)
    assert all(row.shape == image.shape for row in rows.values())


@pytest.mark.parametrize("num_channels", [1, 3])
def test_picture_of_reconstructions(tmp_path, digits, num_channels):
    model = SupMAEForPreTraining(reference_config(num_channels=num_channels))
    path = tmp_path / "reconstructions.png"
    images = digits[:4, :num_channels]
    save_reconstructions(model, images, path, Preparation(build_image_processor(model.config)), NOISE[:4])
    width, height = Image.open(path).size
    assert width > 600 and height > 600


def test_picture_of_curves(tmp_path):
    log = [
        {"epoch": 1.0, "loss": 2.0, "learning_rate": 1e-3},
        {"epoch": 1.0, "eval_loss": 2.5},
        {"epoch": 2.0, "loss": 1.0, "learning_rate": 5e-4},
        {"epoch": 2.0, "train_runtime": 1.0},
    ]
    save_curves(log, tmp_path / "curves.png", ("loss", "learning_rate", "never_logged"))
    one_panel = save_curves(log, tmp_path / "one.png", ("loss",))
    assert one_panel is None
    widths = [Image.open(tmp_path / name).size[0] for name in ("curves.png", "one.png")]
    assert widths[0] == 2 * widths[1]
