"""SupMAEBackbone: feature maps for Transformers' dense prediction models."""

import pytest
import torch
from conftest import reference_config
from transformers import (
    AutoBackbone,
    AutoConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from supmae_hf import SupMAEBackbone, SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel


@pytest.fixture
def pretrained(tmp_path):
    torch.manual_seed(0)
    model = SupMAEForPreTraining(reference_config()).eval()
    model.save_pretrained(tmp_path / "pretrained")
    return model, tmp_path / "pretrained"


def test_feature_maps_are_the_blocks_outputs(pretrained, digits):
    model, folder = pretrained
    backbone, info = SupMAEBackbone.from_pretrained(folder, out_indices=[0, 2, 3], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert backbone.out_features == ["stem", "stage2", "stage3"] and backbone.channels == [64, 64, 64]
    maps = backbone.eval()(digits).feature_maps
    states = model.vit(digits, output_hidden_states=True).hidden_states
    for feature_map, index in zip(maps, (0, 2, 3), strict=True):
        assert feature_map.shape == (8, 64, 4, 4)
        for row, column in ((0, 0), (1, 3), (3, 2)):  # raster order, behind the class token
            torch.testing.assert_close(feature_map[:, :, row, column], states[index][:, 1 + 4 * row + column])
    assert backbone.vit.embeddings.position_embeddings.requires_grad


def test_auto_backbone():
    # not from_pretrained, which in Transformers 5.23 takes the Hub's repositories alone, no folders
    assert type(AutoBackbone.from_config(reference_config())) is SupMAEBackbone


def test_default_is_the_last_block_and_names_are_numbers():
    assert SupMAEConfig().out_features == ["stage12"] and SupMAEConfig().out_indices == [12]
    assert SupMAEConfig(out_features=["stage3", "stage12"]).out_indices == [3, 12]
    assert "out_features" not in SupMAEConfig().to_dict()
    config = SupMAEConfig.from_dict(SupMAEConfig(out_indices=[1, 5]).to_dict())
    assert config.out_features == ["stage1", "stage5"]
    with pytest.raises(ValueError, match="must be a subset of stage_names|stage13"):
        SupMAEConfig(out_features=["stage13"])
    with pytest.raises(ValueError, match="give one of them"):
        SupMAEConfig(out_features=["stage3"], out_indices=[4])
    with pytest.raises(ValueError, match="rescales four feature maps"):
        SupMAEBackbone(reference_config(add_fpn=True))


@pytest.mark.parametrize("size", [(32, 32), (40, 64), (33, 47), (20, 24)])
def test_any_image_size(size):
    torch.manual_seed(0)
    backbone = SupMAEBackbone(reference_config(out_indices=[1, 3])).eval()
    images = torch.randn(2, 3, *size)
    maps = backbone(images).feature_maps
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert [m.shape for m in maps] == [(2, 64, rows, columns)] * 2
    padded = torch.zeros(2, 3, 8 * rows, 8 * columns)
    padded[:, :, : size[0], : size[1]] = images
    torch.testing.assert_close(maps, backbone(padded).feature_maps)


def test_sizes_vary_under_compilation():
    torch._dynamo.reset()
    model = SupMAEBackbone(reference_config()).eval()
    compiled = torch.compile(model, backend="eager")
    for size in (32, 40, 45):
        pixel_values = torch.randn(1, 3, size, size + 3)
        torch.testing.assert_close(compiled(pixel_values).feature_maps, model(pixel_values).feature_maps)


def test_pyramid_resolutions_and_weights(tmp_path):
    torch.manual_seed(0)
    config = reference_config(out_indices=[0, 1, 2, 3], add_fpn=True)
    backbone = SupMAEBackbone(config).eval()
    images = torch.randn(2, 3, 40, 24)  # 5 x 3 patches
    maps = backbone(images).feature_maps
    assert [tuple(m.shape[2:]) for m in maps] == [(20, 12), (10, 6), (5, 3), (3, 2)]
    plain = SupMAEBackbone(reference_config(out_indices=[0, 1, 2, 3])).eval()
    plain.vit.load_state_dict(backbone.vit.state_dict())
    torch.testing.assert_close(maps[2], plain(images).feature_maps[2])
    backbone.save_pretrained(tmp_path)
    again = SupMAEBackbone.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(images).feature_maps, maps)


def test_loads_from_every_kind_of_checkpoint(tmp_path, digits):
    fields = reference_config().to_dict()
    shared = {key: fields[key] for key in ViTMAEConfig().to_dict() if key in fields and key != "model_type"}
    models = {
        "encoder": SupMAEModel(reference_config()),
        "classifier": SupMAEForImageClassification(reference_config()),
        "mae": ViTMAEForPreTraining(ViTMAEConfig(**shared)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        loaded, info = SupMAEBackbone.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], name
        projection = model.base_model.embeddings.patch_embeddings.projection
        assert torch.equal(loaded.vit.embeddings.patch_embeddings.projection.weight, projection.weight)


@pytest.mark.parametrize("size", [(32, 32), (40, 56), (37, 51)])
def test_in_upernet(tmp_path, size):
    torch.manual_seed(0)
    backbone_config = reference_config(out_indices=[0, 1, 2, 3], add_fpn=True)
    config = UperNetConfig(
        backbone_config=backbone_config, num_labels=5, hidden_size=16, auxiliary_in_channels=64, auxiliary_channels=8
    )
    model = UperNetForSemanticSegmentation(config)
    images, labels = torch.randn(2, 3, *size), torch.randint(0, 5, (2, *size))
    outputs = model(images, labels=labels)
    assert outputs.logits.shape == (2, 5, *size)
    outputs.loss.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).backbone_config.out_features == ["stem", "stage1", "stage2", "stage3"]
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(images).logits, model.eval()(images).logits)
