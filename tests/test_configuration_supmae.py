import pytest
from conftest import reference_config
from transformers import AutoConfig, ViTMAEConfig

from supmae_hf import SupMAEConfig, SupMAEModel


def test_defaults_are_the_papers():
    config = SupMAEConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size, config.image_size) == (768, 12, 16, 224)
    assert (config.decoder_num_hidden_layers, config.norm_pix_loss, config.layer_norm_eps) == (1, True, 1e-6)
    assert (config.classifier_hidden_size, config.classification_loss_weight) == (3072, 0.01)
    assert (config.reconstruction_loss_weight, config.classification_temperature) == (1.0, 10.0)
    assert (config.use_mean_pooling, config.drop_path_rate, config.mask_ratio) == (True, 0.0, 0.75)
    assert config.num_patches == 196 and config.num_visible_patches() == 49


def test_has_every_field_of_vit_mae():
    assert set(ViTMAEConfig().to_dict()) <= set(SupMAEConfig().to_dict()) | {"transformers_version"}


def test_save_and_load(tmp_path):
    config = reference_config(
        image_size=(32, 64), num_labels=2, id2label={0: "cat", 1: "dog"}, problem_type="regression"
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SupMAEConfig)
    assert loaded.id2label == {0: "cat", 1: "dog"} and loaded.num_labels == 2
    assert loaded.num_patches == 32
    # image_size comes back as a list
    ours, theirs = ({**c.to_diff_dict(), "image_size": list(c.image_size)} for c in (config, loaded))
    assert ours == {key: value for key, value in theirs.items() if key in ours}


def test_common_properties():
    """As Transformers' ConfigTester does, whatever the value."""
    for value, name in enumerate(("hidden_size", "num_attention_heads", "num_hidden_layers")):
        assert getattr(SupMAEConfig(**{name: value}), name) == value
        config = SupMAEConfig()
        setattr(config, name, value)
        assert getattr(config, name) == value
    with pytest.raises(ValueError, match="`hidden_size` must be at least 1, got 0"):
        SupMAEModel(SupMAEConfig(hidden_size=0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, "`image_size` 30 is not a multiple of `patch_size` 8.* 24"),
        ({"image_size": (32, 36)}, "`image_size` .* is not a multiple"),
        ({"patch_size": 0}, "`patch_size` must be a positive number"),
        ({"image_size": "big"}, "`image_size` must be a positive number"),
        ({"hidden_size": 62}, "`hidden_size` 62 is not a multiple of `num_attention_heads` 4"),
        ({"hidden_size": 66, "num_attention_heads": 3}, "`hidden_size` 66 is not a multiple of 4"),
        ({"decoder_hidden_size": 34}, "`decoder_hidden_size` 34"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, got 0"),
        ({"mask_ratio": 1.0}, "`mask_ratio` 1.0 leaves no visible patch of 16.*0.9375"),
        ({"mask_ratio": 0.95}, "`mask_ratio` 0.95 leaves no visible patch"),
        ({"mask_ratio": -0.1}, "`mask_ratio` -0.1"),
        ({"classifier_hidden_size": -1}, "`classifier_hidden_size` must be 0"),
        ({"classification_temperature": 0}, "`classification_temperature` must be above 0"),
        ({"classification_loss_weight": -1}, "`classification_loss_weight` must be at least 0"),
        ({"classification_loss_weight": 0, "reconstruction_loss_weight": 0}, "nothing to train"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be in"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        reference_config(**fields)


def test_the_largest_mask_ratio_of_the_message_is_accepted():
    for image_size in (32, 48, 224):
        with pytest.raises(ValueError) as error:
            reference_config(image_size=image_size, mask_ratio=0.9999)
        largest = float(str(error.value).split("at most ")[1].split()[0])
        assert reference_config(image_size=image_size, mask_ratio=largest).num_visible_patches() == 1
