"""
Transformers' own tests of a model class, from its source distribution (which `make` puts beside the virtual environment's
packages), on ours.
"""

import copy
import sys
import types
import unittest
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY

from supmae_hf import (
    SupMAEBackbone,
    SupMAEConfig,
    SupMAEForImageClassification,
    SupMAEForPreTraining,
    SupMAEModel,
)


FOLDER = Path(sys.prefix, "transformers-tests", f"transformers-{transformers.__version__}", "tests")
if not FOLDER.is_dir():
    pytest.skip(f"There is no folder {FOLDER}: `make test` fetches it.", allow_module_level=True)

# what these files import of others that are not in the distribution: tests of exporters and of text generation
_package = types.ModuleType("transformers_tests")
_package.__path__ = [str(FOLDER)]
sys.modules["transformers_tests"] = _package
for _name, _content in {
    "exporters": {},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation": {},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
}.items():
    _module = types.ModuleType(f"transformers_tests.{_name}")
    vars(_module).update(_content)
    sys.modules.setdefault(_module.__name__, _module)

from transformers_tests.test_backbone_common import BackboneTesterMixin  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor  # noqa: E402


class ModelTester:
    """A tiny model and its inputs, in the form that Transformers' tests ask for."""

    batch_size, image_size, patch_size = 3, 16, 4
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 2

    def __init__(self, is_training: bool, is_masked: bool):
        self.is_training = is_training  # whether there is a loss
        # class token and visible patches: 4 of 16 in pre-training
        self.seq_length = self.encoder_seq_length = 5 if is_masked else 17

    def get_config(self) -> SupMAEConfig:
        return SupMAEConfig(**TINY, num_labels=3, attn_implementation="eager")

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([3, 3, 16, 16])}


class CommonTests(ModelTesterMixin):
    test_resize_embeddings = False  # of words
    is_training, is_masked = True, False

    def setUp(self):
        self.model_tester = ModelTester(self.is_training, self.is_masked)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if self.is_masked:  # at random otherwise
            inputs["noise"] = torch.rand(len(inputs["pixel_values"]), 16, generator=torch.Generator().manual_seed(0))
        if return_labels and self.is_training:
            inputs["labels"] = torch.zeros(len(inputs["pixel_values"]), dtype=torch.long)
        return inputs

    @unittest.skip("There is no `inputs_embeds`, as in ViT.")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:  # the original looks for word embeddings
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), torch.nn.Module)
            assert model.get_output_embeddings() is None


class EncoderTest(CommonTests, unittest.TestCase):
    all_model_classes = (SupMAEModel, SupMAEBackbone)
    is_training = False


class ImageClassificationTest(CommonTests, unittest.TestCase):
    all_model_classes = (SupMAEForImageClassification,)


class PreTrainingTest(CommonTests, unittest.TestCase):
    all_model_classes = (SupMAEForPreTraining,)
    is_masked = True


class BackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (SupMAEBackbone,)
    config_class = SupMAEConfig

    def setUp(self):
        self.model_tester = ModelTester(is_training=False, is_masked=False)
