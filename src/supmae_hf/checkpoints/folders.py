# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Output folders that appear complete or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """
    A folder to fill, which takes the place of `path` once the block ends without an error.

    Raises:
        FileExistsError: if `path` exists and is not an empty folder, unless `overwrite` says to replace it.
    """
    path = Path(path)
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: choose another folder, or pass `--overwrite` to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # mkdtemp makes it private
        if path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
