# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Publishing checkpoints on the Hub."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers.utils import logging

from .loading import load_checkpoint
from .records import RUN_FILE


logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).parent / "model_card.md"
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")  # that a card may name


def check_license(license: str):
    """Raise a `ValueError` if a licence is not spelt as the Hub's identifiers are."""
    if not re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*", license):
        raise ValueError(
            f"`--license` '{license}' is none of the Hub's identifiers, such as apache-2.0, mit, cc-by-nc-4.0 or other: see "
            "https://hf.co/docs/hub/repositories-licenses."
        )


@contextmanager
def staged(
    source: str | Path, repo_id: str, card: str | Path | None = None, license: str | None = None, stock: bool = False
) -> Iterator[Path]:
    """
    A temporary folder with what is to be published: the model in its SupMAE form with its code, or as a stock class,
    its image processor, its card, and the pictures that the card names.

    Args:
        source: A checkpoint: a folder.
        repo_id: `organisation/name` on the Hub.
        card: Model card of the checkpoint, by default `README.md` in the folder.
        license: Licence of the weights in the Hub's spelling, such as `apache-2.0`; by default that of the card.
        stock: Whether to export it as the class of Transformers that gives the same results.

    Raises:
        FileNotFoundError: if there is no checkpoint or no card.
        ValueError: if there is no licence, or the card's metadata are wrong.
    """
    from .interchange.export import export_stock, source_image_processor  # which training, too, would wait for

    source = Path(source)
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source} has no config.json: name the folder of a checkpoint.")
    card_path = source / "README.md" if card is None else Path(card)
    if not card_path.is_file():
        raise FileNotFoundError(
            f"There is no model card {card_path}: training writes one; for another checkpoint write one and name it "
            "with `--card`."
        )
    card = ModelCard.load(card_path)
    card.data.license = license or card.data.license
    if not card.data.license:
        raise ValueError(
            f"{card_path} names no licence: pass `--license`, such as `--license apache-2.0`, for the weights."
        )
    check_license(card.data.license)
    model = load_checkpoint(source, dtype="auto")
    image_processor = source_image_processor(model, source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if stock:
            export_stock(model.float(), folder, image_processor=image_processor)
            _describe_stock(card, ModelCard.load(folder / "README.md"))
        else:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
        # no more than the card names: the folder may hold what an earlier run left
        named = re.findall(r"!\[[^]]*\]\(([^):]+)\)", card.text) + [
            image["src"] for image in card.data.get("widget") or []
        ]
        for file in named:
            path = source / file
            # a link, or a name such as ../x, may lead to what is not of the checkpoint
            if path.is_file() and path.suffix.lower() in _PICTURES and path.resolve() == source.resolve() / file:
                (folder / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / file)
            elif path.exists() or path.is_symlink():
                logger.warning(f"{file} is named by the card but is no picture in {source}: it is left out.")
        card.data.model_name = repo_id.split("/")[-1]
        card.text = re.sub(r'(?<=from_pretrained\(")[^"]+', repo_id, card.text)
        card.text = re.sub(r'(?<=model=")[^"]+', repo_id, card.text)
        card.save(folder / "README.md")
        (folder / RUN_FILE).unlink(missing_ok=True)  # of the export
        yield folder


def _describe_stock(card: ModelCard, stock_card: ModelCard):
    """Let the card of a SupMAE checkpoint describe its export: other usage, other library."""
    card.data.library_name = stock_card.data.library_name
    card.data.pipeline_tag = stock_card.data.pipeline_tag
    card.text = f"\n{stock_card.text.strip()}\n\n---\n\nThe card of the SupMAE checkpoint:\n\n{card.text.strip()}\n"


def publish(
    source: str | Path,
    repo_id: str,
    card: str | Path | None = None,
    license: str | None = None,
    stock: bool = False,
    private: bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """
    Upload a checkpoint to the Hub, in one commit. Files that the Hub has already are not sent again, so an upload that
    broke off goes on where it was when it is repeated.

    The token is the one of `hf auth login`, or of the environment variable `HF_TOKEN`.

    Args:
        private: Whether the repository is private, if it is new.
        revision: The branch to commit to, made if need be; by default `main`.

    See [`staged`] for the others, and for what is raised.
    """
    api = HfApi()
    with staged(source, repo_id, card, license, stock) as folder:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        form = "stock model" if stock else "SupMAE model"
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=f"Upload {form} with supmae-hf"
        )
