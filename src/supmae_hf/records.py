# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Records of the run that a folder belongs to and of the files that it wrote there, so that nothing else is deleted or overwritten;
a lock; files, checkpoints and folders that appear whole or not at all.
"""

import contextlib
import glob
import itertools
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from huggingface_hub.utils.sha import sha_fileobj
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Names that begin with an underscore are not published.
RUN_FILE = "_supmae_run.json"
LOCK_FILE = "_supmae_run.lock"
# Lists a checkpoint's files with their SHA-256. It is written last, so that a checkpoint without one is not complete.
MANIFEST = "manifest.json"
_LEAVING = "manifest.json.old"  # the manifest of a checkpoint that is being deleted

# Long enough for the data-loading workers of a killed run, which hold its lock, to notice that it is gone.
LOCK_SECONDS = 15


def on_main_process(function: Callable, *arguments):
    """The result of a function that the first process runs for all of them; what it raises, all raise."""
    answer = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = function(*arguments)
        except (OSError, ValueError) as error:
            answer[1] = error
    result, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    return result


def require_apart(output_dir: str | Path, inputs: Iterable[str | Path | None]):
    """
    Raise a `ValueError` if a folder to write to is, holds or lies in one of the files and folders that are read. Inputs that
    do not exist here, such as names of repositories on the Hub, are passed over.
    """
    output = Path(os.path.realpath(output_dir))
    for name in inputs:
        if name and os.path.exists(name):
            path = Path(os.path.realpath(name))
            if output == path or path in output.parents or output in path.parents:
                how = "is" if output == path else "lies in" if path in output.parents else "holds"
                raise ValueError(f"{output_dir} {how} {name}, which is read: choose another folder to write to.")


def set_aside(path: Path, reason: str):
    """Rename what is in the way, or cannot be used, and say so."""
    names = itertools.chain([f"_aside-{path.name}"], (f"_aside-{path.name}-{number}" for number in itertools.count(2)))
    aside = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    path.rename(aside)
    logger.warning(f"{path} {reason}: moved to {aside.name}.")


def write_whole(path: Path, text: str):
    """Write a file that appears complete or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    os.replace(new, path)


def unfinished_name(path: Path) -> str:
    """The name of a large file while it is written."""
    return f".{path.name}.part"


class Record:
    """
    The record that a run keeps in the folder that it writes to: what the run is, which process writes, and which files.

    Args:
        folder: The folder.

    Attributes:
        facts (`dict`, *optional*): Facts about the run by name; `None` if there is no record that can be read.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.facts = Path(folder), None
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads((self.folder / RUN_FILE).read_text())
            self.facts = facts if isinstance(facts, dict) else None

    def differences(self, run: dict) -> list[str]:
        """Differences between the recorded run and another, a line each. Facts that only one of them has are ignored."""
        facts = self.facts or {}
        shared = [name for name in run if name in facts and name != "version"]
        return [
            f"{name}: {_short(facts[name])} before, {_short(run[name])} now"
            for name in shared
            if facts[name] != run[name]
        ]

    def start(self, run: dict):
        """Write down that this process begins `run`, or goes on with it."""
        files = (self.facts or {}).get("files", [])
        self.facts = {**run, "files": files, "process": os.getpid(), "host": socket.gethostname()}
        self._write()

    def claim(self, *patterns: str):
        """
        Write down which files are about to be written, as glob patterns relative to the folder. Files there that the record
        does not list yet are somebody else's and are moved aside.
        """
        facts = self.facts if self.facts is not None else {}
        listed = facts.setdefault("files", [])
        for pattern in patterns:
            if pattern not in listed:
                for path in [path for path in self.folder.glob(pattern) if not path.name.startswith("_aside-")]:
                    set_aside(path, "is not of this run")
                listed.append(pattern)
        self.facts = facts
        self._write()

    def written(self) -> list[Path]:
        """The files that the record lists, as far as they are in the folder."""
        root, found = self.folder.resolve(), []
        for pattern in (self.facts or {}).get("files", []):
            if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                continue  # nobody of ours writes there
            for path in self.folder.glob(pattern):
                parent = path.parent.resolve()
                if (path.is_symlink() or path.is_file()) and (parent == root or root in parent.parents):
                    found.append(path)
        return found

    def clear(self):
        """Delete what the record lists, and the run's checkpoints; everything else stays."""
        for path in self.written():
            _delete(path, self.folder)
        for checkpoint in filter(_is_ours, list_checkpoints(self.folder)):
            remove_checkpoint(checkpoint)
        self.facts["files"] = []
        self._write()

    def _write(self):
        write_whole(self.folder / RUN_FILE, json.dumps(self.facts, indent=1))


def _delete(path: Path, root: Path):
    """Delete a file, and the folders below `root` that are empty without it."""
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == root:
            break
        with contextlib.suppress(OSError):
            parent.rmdir()


def _short(value) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check(folder: Path, run: dict, overwrite: bool, resume_from: str | Path | None) -> Record:
    """
    The record of a folder that `run` may write to.

    Raises:
        FileExistsError: if the folder holds files of somebody else, or another run.
    """
    record, found = Record(folder), set()
    if folder.is_dir():
        found = {path.name for path in folder.iterdir() if not path.name.startswith((".", "_aside-", LOCK_FILE))}
    elif os.path.lexists(folder):
        raise FileExistsError(f"{folder} is a file: choose another `--output_dir`.")
    if resume_from is not None and folder.resolve() in Path(resume_from).resolve().parents:
        found.discard(Path(resume_from).resolve().relative_to(folder.resolve()).parts[0])
    if "job" not in (record.facts or {}):
        if RUN_FILE in found and record.facts is None:
            raise FileExistsError(f"{folder / RUN_FILE} cannot be read: choose another `--output_dir`.")
        if found - {f"{RUN_FILE}.new"}:
            raise FileExistsError(
                f"{folder} is not empty and holds no run of ours ({', '.join(sorted(found)[:3])}): choose another `--output_dir`."
            )
    different = [] if overwrite else record.differences(run)
    if different and found - {RUN_FILE, f"{RUN_FILE}.new", "runs"}:  # or else there is nothing to lose
        lines = "\n".join(f"  {line}" for line in different)
        raise FileExistsError(
            f"{folder} holds another run. What differs:\n{lines}\nTo go on with it, give its command again; else pass "
            "`--overwrite_output_dir True` to start anew there, or choose another `--output_dir`."
        )
    return record


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. A lock ends with the process that holds it, however that ends."""
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        facts = Record(folder).facts or {}
        raise FileExistsError(
            f"Process {facts.get('process', '?')} on {facts.get('host', '?')} is writing to {folder}: wait for it or end it, or "
            "choose another `--output_dir`."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def output_folder(
    folder: str | Path, run: dict, overwrite: bool = False, resume_from: str | Path | None = None
) -> Iterator[Record]:
    """
    A folder that `run` writes to, made if need be and locked until the block ends. To be entered by every process; the first
    one decides for all.

    Args:
        run: Facts about the run by name, which are written as JSON.
        overwrite: Whether to delete what an earlier run wrote there.
        resume_from: A checkpoint that may lie in the folder although the folder has no record, as one from the Hub does.

    Raises:
        FileExistsError: if the folder holds files of somebody else, another run (the message says what differs), or if
            another process is writing to it.
    """
    folder = Path(folder)

    def begin():
        _check(folder, run, overwrite, resume_from)  # before anything is made there
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_locked(folder))
        record = _check(folder, run, overwrite, resume_from)
        if overwrite and record.facts is not None:
            record.clear()
        record.start(run)

    with contextlib.ExitStack() as stack:
        on_main_process(begin)
        yield Record(folder)


@contextlib.contextmanager
def new_folder(path: str | Path, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """
    A folder to fill, which takes the place of `path` once the block ends without an error.

    Args:
        overwrite: Whether to replace a folder that was made in this way and holds nothing else.
        inputs: Files and folders that are read; see [`require_apart`].

    Raises:
        FileExistsError: if `path` exists and is not an empty folder, or cannot be overwritten.
        ValueError: if `path` is, holds or lies in one of the inputs.
    """
    require_apart(path, inputs)
    path, shown = Path(os.path.realpath(path)), path
    record = Record(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not overwrite:
            raise FileExistsError(
                f"{shown} exists already: choose another folder, or pass `--overwrite` to replace it."
            )
        known = {path / RUN_FILE, *record.written()}
        others = (
            [file.name for file in path.rglob("*") if not file.is_dir() and file not in known]
            if path.is_dir()
            else [path.name]
        )
        if others or record.facts is None:
            raise FileExistsError(
                f"{shown} holds files that no conversion or export wrote ({', '.join(sorted(others)[:3])}): choose another folder."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield unfinished
        files = sorted(file.relative_to(unfinished).as_posix() for file in unfinished.rglob("*") if file.is_file())
        write_whole(unfinished / RUN_FILE, json.dumps({"files": list(map(glob.escape, files))}, indent=1))
        unfinished.chmod(0o755)  # mkdtemp makes it private
        if record.facts is not None:
            record.clear()
            (path / RUN_FILE).unlink()
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


# --- checkpoints ---


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, oldest first."""
    matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(output_dir).glob("checkpoint-*"))
    return [Path(output_dir) / match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / MANIFEST).is_file()


def _is_ours(checkpoint: Path) -> bool:
    """Decide whether a run of ours made the folder. An empty folder counts as ours."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        return False
    files = {path.name for path in checkpoint.iterdir()}
    return not files or bool(files & {RUN_FILE, MANIFEST, _LEAVING})


def _checksums(checkpoint: Path) -> dict[str, str]:
    checksums = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and MANIFEST not in path.name):
        with path.open("rb") as file:
            checksums[path.relative_to(checkpoint).as_posix()] = sha_fileobj(file).hex()
    return checksums


def begin_checkpoint(checkpoint: Path):
    """
    Make the folder of a checkpoint, with the record of its run in it.

    Raises:
        OSError: if the folder cannot be made.
    """
    if checkpoint.is_dir() and _is_ours(checkpoint):
        remove_checkpoint(checkpoint)
    elif checkpoint.is_dir():
        set_aside(checkpoint, "is in the way of a checkpoint")
    checkpoint.mkdir(parents=True)
    record = checkpoint.parent / RUN_FILE
    (checkpoint / RUN_FILE).write_text(record.read_text() if record.is_file() else "{}")


def complete_checkpoint(checkpoint: Path):
    """Write the manifest: the checkpoint counts from then on, even after a power cut."""
    manifest = checkpoint / f"{MANIFEST}.new"
    manifest.write_text(json.dumps(_checksums(checkpoint), indent=1))
    for path in (*checkpoint.rglob("*"), checkpoint):
        with contextlib.suppress(OSError):  # not every system lets folders be opened
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    manifest.rename(checkpoint / MANIFEST)


def _read_manifest(path: Path) -> dict[str, str]:
    manifest = json.loads(path.read_text())
    if not isinstance(manifest, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(sha)) for sha in manifest.values()):
        raise ValueError("it is not a list of checksums")
    return manifest


def find_damage(checkpoint: Path) -> str | None:
    """Describe the damage of a checkpoint by its manifest; `None` if it is intact."""
    try:
        expected, found = _read_manifest(checkpoint / MANIFEST), _checksums(checkpoint)
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} or another file cannot be read ({error})"
    for name, checksum in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != checksum:
            return f"{name} is damaged"
    return None


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """
    The newest checkpoint of a run that is intact. Those whose writing or removal was interrupted are deleted; what is damaged
    (if it is newer) or not ours is moved aside, so that no one takes it for a checkpoint of this run.
    """
    newest = None
    for checkpoint in reversed(list_checkpoints(output_dir)):
        if not _is_ours(checkpoint):
            set_aside(checkpoint, "is no checkpoint of this run")
        elif not is_complete(checkpoint):
            logger.warning(f"{checkpoint} is incomplete: deleted.")
            remove_checkpoint(checkpoint)
        elif newest is None:
            damage = find_damage(checkpoint)
            if damage is None:
                newest = checkpoint
            else:
                set_aside(checkpoint, f"is not used, because {damage}")
    return newest


def remove_checkpoint(checkpoint: Path):
    """
    Delete the files that a checkpoint's manifest lists, or all if it was never complete. Other files stay, in a folder that is
    moved aside. If the removal is interrupted, [`find_checkpoint`] goes on with it.
    """
    manifest, leaving = checkpoint / MANIFEST, checkpoint / _LEAVING
    try:
        listed = next((_read_manifest(path) for path in (manifest, leaving) if path.exists()), None)
    except (OSError, ValueError):
        set_aside(checkpoint, "is no checkpoint of this run")
        return
    if manifest.exists():
        os.replace(manifest, leaving)
    for path in sorted(checkpoint.rglob("*"), reverse=True):  # folders after what is in them
        name = path.relative_to(checkpoint).as_posix()
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif name not in (RUN_FILE, _LEAVING) and (listed is None or name in listed):
                path.unlink()
    for path in (checkpoint / RUN_FILE, leaving):  # last, since they say that the folder is ours
        path.unlink(missing_ok=True)
    try:
        checkpoint.rmdir()
    except OSError:
        set_aside(checkpoint, "holds files that are not of this run")


def rotate_checkpoints(output_dir: str | Path, limit: int | None, best: str | None = None):
    """Delete the oldest checkpoints of a run beyond `limit`, but neither the newest nor the best one."""
    checkpoints = list(filter(_is_ours, list_checkpoints(output_dir)))
    kept = [path for path in checkpoints if path == checkpoints[-1] or (best and path.name == Path(best).name)]
    others = [path for path in checkpoints if path not in kept]
    if limit is not None:
        for checkpoint in others[: max(len(checkpoints) - max(limit, len(kept)), 0)]:
            remove_checkpoint(checkpoint)
