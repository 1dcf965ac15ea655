# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
A Gradio app: hide patches of an image, look at the reconstruction and at the classes seen in the visible patches.

The checkpoint, a folder or a repository of the Hub, is in the environment variable CHECKPOINT; by default the one that
`make demo` leaves.
"""

import os
import uuid
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForPreTraining


CHECKPOINT = os.environ.get("CHECKPOINT", "outputs/digits-pretrain")
SIDE = 224  # pixels of the pictures on the page
MAX_FILE_SIZE = "20mb"
Image.MAX_IMAGE_PIXELS = 20_000_000  # of an upload; Pillow refuses twice as many

model = AutoModelForPreTraining.from_pretrained(CHECKPOINT, trust_remote_code=True).eval()
image_processor = AutoImageProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
channels = model.config.num_channels
# what a page shows as an image has 8 bits and 3 channels: models of others take files
takes_files = getattr(image_processor, "pixel_type", "uint8") != "uint8" or channels not in (1, 3, 4)


def to_picture(pixel_values: torch.Tensor) -> Image.Image:
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    pixels = (pixel_values * std + mean).clamp(0, 1).mul(255).round().byte().numpy()
    picture = Image.fromarray(pixels[0] if channels < 3 else np.moveaxis(pixels[:3], 0, 2))
    picture = picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    # Gradio names a picture's file by its bytes and writes an equal one again while another visitor may be reading it
    picture.info["request"] = uuid.uuid4().hex
    return picture


def seen(outputs) -> dict[str, float]:
    """The classes, or else the words, that fit the visible patches best, with their probabilities."""
    logits, name = outputs.class_logits, lambda index: str(model.config.id2label[index])
    if logits is None:
        logits, name = (
            (outputs.supervision_logits or {}).get("captions"),
            lambda index: model.tokenizer.decode([index]),
        )
    if logits is None:
        return {}
    best = logits[0].softmax(-1).topk(min(5, logits.shape[-1]))
    return {name(index): value for value, index in zip(best.values.tolist(), best.indices.tolist())}


@torch.no_grad()
def reconstruct(image: Image.Image | str | None, mask_ratio: float, seed: float):
    if image is None:
        raise gr.Error("Upload an image, or choose an example.")
    image = (
        image_processor.fetch_images(image) if takes_files else image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    )
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    num_patches = model.config.num_patches
    mask_ratio = min(mask_ratio, 1 - 1 / num_patches)  # one patch stays visible
    noise = torch.rand(1, num_patches, generator=torch.Generator().manual_seed(int(seed)))
    outputs = model(pixel_values, noise=noise, mask_ratio=mask_ratio)
    patches = model.patchify(pixel_values)
    hidden = model.unpatchify(outputs.mask.unsqueeze(-1).expand_as(patches))
    predicted = model.predicted_pixel_values(outputs.logits, pixel_values, outputs.mask)
    reconstruction = torch.where(hidden.bool(), predicted, pixel_values)
    return (
        to_picture((pixel_values * (1 - hidden))[0]),
        to_picture(reconstruction[0]),
        seen(outputs),
    )


def examples() -> list[list]:
    """The pictures that a published or trained checkpoint has for the widget, if it is a folder."""
    files = sorted(Path(CHECKPOINT).glob("widget/*.png")) or sorted(Path(__file__).parent.glob("examples/*"))
    return [[str(path), model.config.mask_ratio, 0] for path in files]


how = ", in the brightness and contrast of the visible patches around" if model.config.norm_pix_loss else ""
with gr.Blocks(title="SupMAE") as demo:
    gr.Markdown(
        "# SupMAE\nA share of the patches is hidden; the model reconstructs them, and says what it sees in the others. "
        f"Hidden patches are drawn as it predicts them{how}. "
        "[Paper](https://arxiv.org/abs/2205.14540)"
    )
    with gr.Row():
        image = gr.File(label="image file") if takes_files else gr.Image(type="pil", label="image", height=260)
        with gr.Column():
            mask_ratio = gr.Slider(0, 0.95, model.config.mask_ratio, step=0.05, label="mask ratio")
            seed = gr.Number(0, precision=0, label="seed")
            button = gr.Button("Reconstruct", variant="primary")
    with gr.Row():
        pictures = []
        for name in ("masked", "reconstruction"):
            with gr.Column(min_width=200):
                gr.Markdown(f"**{name}**")
                pictures.append(gr.Image(type="pil", format="png", show_label=False))
        with gr.Column(min_width=200):
            gr.Markdown("**what it sees in the visible patches**")
            classes = gr.Label(num_top_classes=5, show_label=False)
    inputs, outputs = [image, mask_ratio, seed], [*pictures, classes]
    button.click(reconstruct, inputs, outputs, api_name="reconstruct")
    if cases := examples():
        gr.Examples(cases, inputs)

if __name__ == "__main__":
    # of a local checkpoint no file but its examples can be asked for
    demo.queue(max_size=20).launch(allowed_paths=[str(Path(CHECKPOINT, "widget"))], max_file_size=MAX_FILE_SIZE)
