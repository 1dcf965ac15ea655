# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""SupMAE (Supervised Masked Autoencoders, arXiv 2205.14540) for Hugging Face Transformers."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from .configuration_supmae import SupMAEConfig
from .image_processing_supmae import SupMAEImageProcessor
from .modeling_supmae import (
    SupMAEBackbone,
    SupMAEForImageClassification,
    SupMAEForPreTraining,
    SupMAEForPreTrainingOutput,
    SupMAEModel,
    SupMAEModelOutput,
    SupMAEPreTrainedModel,
)


__version__ = "0.1.0.dev0"

AutoConfig.register("supmae", SupMAEConfig)
AutoModel.register(SupMAEConfig, SupMAEModel)
AutoModelForPreTraining.register(SupMAEConfig, SupMAEForPreTraining)
AutoModelForImageClassification.register(SupMAEConfig, SupMAEForImageClassification)
AutoBackbone.register(SupMAEConfig, SupMAEBackbone)
# for checkpoints that name it; those of 8-bit RGB models name Transformers' ViTImageProcessor
AutoImageProcessor.register(SupMAEConfig, image_processor_classes={"torchvision": SupMAEImageProcessor})

__all__ = [
    "SupMAEBackbone",
    "SupMAEConfig",
    "SupMAEForImageClassification",
    "SupMAEForPreTraining",
    "SupMAEForPreTrainingOutput",
    "SupMAEImageProcessor",
    "SupMAEModel",
    "SupMAEModelOutput",
    "SupMAEPreTrainedModel",
]
