# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""SupMAE (Supervised Masked Autoencoders, arXiv 2205.14540) for Hugging Face Transformers."""

import functools
import importlib.util
import sys
from importlib.abc import MetaPathFinder


__version__ = "0.1.0.dev0"

_MODULE_OF = {
    "SupMAEBackbone": "modeling_supmae",
    "SupMAEConfig": "configuration_supmae",
    "SupMAEForImageClassification": "modeling_supmae",
    "SupMAEForPreTraining": "modeling_supmae",
    "SupMAEForPreTrainingOutput": "modeling_supmae",
    "SupMAEModel": "modeling_supmae",
    "SupMAEModelOutput": "modeling_supmae",
    "SupMAEPreTrainedModel": "modeling_supmae",
}
__all__ = sorted(_MODULE_OF)

_CONFIG_MAPPING_MODULE = "transformers.models.auto.configuration_auto"


def __getattr__(name: str):
    """Import public names when they are first used: PyTorch takes seconds to import."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    _register_auto_classes()
    return value


def __dir__():
    return sorted([*globals(), *__all__])


@functools.cache
def _register_auto_classes():
    from transformers import (
        AutoBackbone,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForPreTraining,
        ViTConfig,
    )
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    from .configuration_supmae import SupMAEConfig
    from .modeling_supmae import SupMAEBackbone, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel

    AutoModel.register(SupMAEConfig, SupMAEModel)
    AutoModelForPreTraining.register(SupMAEConfig, SupMAEForPreTraining)
    AutoModelForImageClassification.register(SupMAEConfig, SupMAEForImageClassification)
    AutoBackbone.register(SupMAEConfig, SupMAEBackbone)
    # the image processors of ViT and ViTMAE, whatever this version of Transformers calls them
    IMAGE_PROCESSOR_MAPPING.register(SupMAEConfig, IMAGE_PROCESSOR_MAPPING[ViTConfig])


def _register_config(configuration_auto):
    """
    Announce the model type by name. Transformers then finds the class as an attribute of this package, as it does with
    its own models, and importing that attribute registers the rest.
    """
    mapping = configuration_auto.CONFIG_MAPPING
    mapping._mapping = {**mapping._mapping, "supmae": "SupMAEConfig"}
    mapping._modules["supmae"] = sys.modules[__name__]


class _RegisterOnImport(MetaPathFinder):
    """Announces the model type once Transformers' table of configurations is imported, which imports PyTorch."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _CONFIG_MAPPING_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        exec_module = spec.loader.exec_module

        def exec_module_and_register(module):
            exec_module(module)
            _register_config(module)

        spec.loader.exec_module = exec_module_and_register
        return spec


if _CONFIG_MAPPING_MODULE in sys.modules:
    _register_config(sys.modules[_CONFIG_MAPPING_MODULE])
else:
    sys.meta_path.insert(0, _RegisterOnImport())
