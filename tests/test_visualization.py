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
    rows, _ = reconstruct(model, digits, NOISE)
    assert list(rows) == ["original", "masked", "reconstruction"] and model.training
    outputs = model.eval()(digits, noise=NOISE)
    hidden = outputs.mask.view(8, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(digits).bool()
    assert torch.equal(rows["original"], digits)
    assert rows["masked"][hidden].eq(0).all() and torch.equal(rows["masked"][~hidden], digits[~hidden])
    assert torch.equal(rows["reconstruction"][~hidden], digits[~hidden])
    if not norm_pix_loss:
        assert torch.equal(rows["reconstruction"][hidden], model.unpatchify(outputs.logits)[hidden])


def test_nothing_of_the_hidden_patches_is_drawn(digits):
    """Other hidden pixels, the same picture of them."""
    model = SupMAEForPreTraining(reference_config()).eval()
    rows, _ = reconstruct(model, digits, NOISE)
    hidden = rows["masked"] == 0
    other = torch.where(hidden & (digits != 0), torch.randn_like(digits), digits)
    again, _ = reconstruct(model, other, NOISE)
    torch.testing.assert_close(again["reconstruction"][hidden], rows["reconstruction"][hidden])


def test_an_untrained_model_explains_no_more_than_the_visible_patches(photographs):
    """Its picture has a larger error on hidden pixels than their neighbours' mean colour; the true means would have less."""
    model = SupMAEForPreTraining(reference_config(image_size=224, patch_size=16)).eval()
    images = torch.stack([torch.tensor(image[:224, 200:424]) for image in photographs]).permute(0, 3, 1, 2).float()
    images = (images / 255 - 0.5) / 0.25
    noise = torch.rand(2, 196, generator=torch.Generator().manual_seed(0))
    outputs = model(images, noise=noise)
    hidden = model.unpatchify(outputs.mask.unsqueeze(-1).expand_as(outputs.logits)).bool()

    def error(predicted: torch.Tensor) -> float:
        return (predicted - images)[hidden].square().mean().item()

    untrained, _ = reconstruct(model, images, noise)
    neighbors = model.predicted_pixel_values(torch.zeros_like(outputs.logits), images, outputs.mask)
    truth = model.predicted_pixel_values(outputs.logits, images)
    assert error(untrained["reconstruction"]) > error(neighbors) > error(truth)


def test_the_class_that_the_branch_sees(digits, tmp_path):
    config = reference_config(problem_type="single_label_classification", id2label=dict(enumerate("abcdefghij")))
    model = SupMAEForPreTraining(config).eval()
    _, classes = reconstruct(model, digits, NOISE)
    best = model(digits, noise=NOISE).class_logits.argmax(dim=-1)
    assert classes == ["abcdefghij"[index] for index in best]
    model.config.problem_type = "regression"
    assert reconstruct(model, digits, NOISE)[1] is None


def test_other_image_sizes(photographs):
    image = torch.tensor(photographs[0]).permute(2, 0, 1)[None, :, :424, :640].float() / 255
    rows, _ = reconstruct(SupMAEForPreTraining(reference_config()), image)
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
