# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Classes that a model was not trained on, by the words of their names: for models that have learnt from captions."""

from collections.abc import Callable, Sequence

import torch

from ..data.targets import Captions
from ..loading import load_pretrained
from ..modeling_supmae import SupMAEForPreTraining


def load_captioner(name: str) -> SupMAEForPreTraining:
    """
    A checkpoint that has learnt from captions, with its tokenizer.

    Raises:
        ValueError: if it has not.
    """
    model = load_pretrained(SupMAEForPreTraining, name)
    if "captions" not in model.supervision:
        raise ValueError(f"'{name}' has not learnt from captions, from whose words classes are recognised.")
    if model.tokenizer is None:
        raise ValueError(f"'{name}' has no tokenizer beside it: put the files there that the training wrote.")
    return model.eval()


def class_tokens(model: SupMAEForPreTraining, names: Sequence[str], prompts: Sequence[str] = ("{}",)) -> torch.Tensor:
    """
    The weight of each token for each class, of shape `(num_classes, caption_vocab_size)`: tokens of the name in every prompt
    weighted by inverse document frequency, rows adding up to 1, averaged over the prompts.

    Args:
        prompts: Texts in which `{}` stands for the name.

    Of a name as it is and in lower case, with and without a space before it, the form counts whose tokens the captions had: cased
    and byte-level tokenizers tell them apart.

    Raises:
        ValueError: if a prompt has no `{}`, or the model knows no word of a class.
    """
    wrong = [prompt for prompt in prompts if "{}" not in prompt]
    if wrong or not prompts:
        raise ValueError(f"A prompt has a place for the name, as in 'a photo of a {{}}', got {wrong or prompts}.")
    captions = Captions("", model.tokenizer)
    head = model.supervision["captions"]
    # a word that is in all captions still names its class
    importance = head.token_weights() + 1e-3
    weights, seen = importance.new_zeros(len(names), len(importance)), head.document_frequency > 0
    if head.num_captions == 0:
        seen = torch.ones_like(seen)  # nobody has counted

    def tokens_of(text: str) -> list[int]:
        forms = [captions.tokens(form) for form in (text, f" {text}", text.lower(), f" {text.lower()}")]
        return max(forms, key=lambda tokens: seen[tokens].float().mean().item() if tokens else 0.0)

    for row, name in zip(weights, names):
        readable = name.replace("_", " ")
        if not seen[tokens_of(readable)].any():
            raise ValueError(
                f"The model knows no word of the class '{name}': rename it in the words of the captions that it has learnt from."
            )
        for prompt in prompts:
            tokens = tokens_of(prompt.replace("{}", readable))
            row[tokens] += importance[tokens] / importance[tokens].sum() / len(prompts)
    return weights


def zero_shot_function(model: SupMAEForPreTraining, weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """From `pixel_values` to scores `(batch_size, num_classes)`: average log probabilities of the classes' words."""

    def scores(pixel_values: torch.Tensor) -> torch.Tensor:
        logits = model.supervision["captions"](model.vit(pixel_values).pooler_output)
        return logits.float().log_softmax(dim=-1) @ weights.to(logits.device).T

    return scores
