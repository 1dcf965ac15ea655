# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Results as tables: Markdown on the screen, JSON and CSV for programs, bars for the eye."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from ..records import Record


_MAX_DRAWN = 50  # classes in a picture


def write_table(rows: Sequence[dict], folder: str | Path, name: str, float_format: str = ".4g"):
    """
    Print rows as a Markdown table, in which what a row does not have is left empty, and write them to `NAME.json` and
    `NAME.csv` in `folder`.
    """
    table, folder = pandas.DataFrame(rows), Path(folder)
    known = table.astype(object).where(table.notna(), None)
    print(known.to_markdown(index=False, floatfmt=float_format, missingval=""))
    folder.mkdir(parents=True, exist_ok=True)
    Record(folder).claim(f"{name}.json", f"{name}.csv")
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    table.to_csv(folder / f"{name}.csv", index=False)


def save_bars(
    rows: Sequence[dict], label: str, columns: Sequence[str], path: str | Path, xlabel: str, errors: str | None = None
):
    """
    Draw one group of horizontal bars per column, with a bar per row in each.

    Args:
        rows: The table.
        label: The column that names the rows.
        columns: Columns to draw; those that no row has are left out.
        path: File to write; the ending decides the format.
        xlabel: Title of the axis, with the unit.
        errors: Suffix of the names of the columns with standard deviations, which are drawn as whiskers.
    """
    table = pandas.DataFrame(rows).set_index(label)
    columns = [column for column in columns if column in table]
    height = 1 + 0.25 * len(rows) + max(0.25, 0.16 * len(rows)) * len(columns)
    figure = Figure(figsize=(7, height), layout="constrained")
    axis = figure.subplots()
    whiskers = table[[f"{column}{errors}" for column in columns]].to_numpy() if errors else None
    table[columns].T.plot.barh(ax=axis, xerr=whiskers, width=0.8, legend=False)
    axis.invert_yaxis()
    axis.set(xlabel=xlabel)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", frameon=False)
    Record(Path(path).parent).claim(Path(path).name)
    figure.savefig(path, dpi=150)


def write_accuracies(rows: Sequence[dict], folder: Path):
    """Print, write and draw a table of [`accuracy_row`]s."""
    unit = "in units of the labels" if "mae" in rows[0] else "percent"
    print(f"{unit.capitalize()}.\n")
    write_table(rows, folder, "results")
    save_bars(
        rows, "model", [name for name in rows[0] if name not in ("model", "images")], folder / "results.png", unit
    )
    say_written(folder, "results.json", "results.csv", "results.png")


def write_classes(classes: dict[str, list[dict]], folder: Path):
    """
    Write a table of the classes of each model, and, of up to 50 classes an image each, draw what they are taken for.

    Args:
        classes: [`class_rows`] or [`label_rows`] of each model.
    """
    rows = [{"model": name, **row} for name, table in classes.items() for row in table]
    Record(folder).claim("classes.csv", "confusion.png")
    table = pandas.DataFrame(rows)
    table.drop(columns="taken_for", errors="ignore").to_csv(folder / "classes.csv", index=False)
    say_written(folder, "classes.csv")
    if "taken_for" not in table or any(len(one) > _MAX_DRAWN for one in classes.values()):
        return
    size = 2 + 0.35 * max(map(len, classes.values()))
    figure = Figure(figsize=(size * len(classes), size), layout="constrained")
    axes = figure.subplots(1, len(classes), squeeze=False)[0]
    for axis, (name, one) in zip(axes, classes.items()):
        names = [row["class"] for row in one]
        names += sorted({other for row in one for other in row["taken_for"]} - set(names))
        counts = [[row["taken_for"].get(other, 0) for other in names] for row in one]
        counts += [[0] * len(names)] * (len(names) - len(one))
        display = ConfusionMatrixDisplay(np.array(counts), display_labels=names)
        display.plot(ax=axis, cmap="Blues", xticks_rotation="vertical", colorbar=False)
        axis.set(title=name, xlabel="predicted", ylabel="label")
    figure.savefig(folder / "confusion.png", dpi=100, bbox_inches="tight")
    say_written(folder, "confusion.png")


def say_written(folder: str | Path, *names: str):
    """Print where files are."""
    print("\nWritten: " + ", ".join(str(Path(folder) / name) for name in names))


class Journal:
    """
    Results in a file of JSON lines, one each as it is known, so that an interrupted evaluation goes on where it was.

    Args:
        path: Path of the file. A last line that was cut off is dropped.
        is_writer: Whether this is the one process of several that writes.
    """

    def __init__(self, path: str | Path, is_writer: bool = True):
        self.path, self.is_writer = Path(path), is_writer
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        self.entries = [json.loads(line) for line in lines if line.endswith("\n")]
        if is_writer and lines and not lines[-1].endswith("\n"):
            self.path.write_text("".join(lines[:-1]))

    def get(self, key: dict):
        """The result that was filed under `key`, or `None`."""
        return next((entry["result"] for entry in self.entries if entry["key"] == key), None)

    def add(self, key: dict, result):
        """File a result (numbers, texts, lists and dicts of them)."""
        self.entries.append({"key": key, "result": result})
        if self.is_writer:
            with open(self.path, "a") as file:
                file.write(json.dumps(self.entries[-1]) + "\n")

    def result(self, key: dict, measure: Callable):
        """The result that was filed under `key`; if there is none, it is measured and filed."""
        result = self.get(key)
        if result is None:
            result = measure()
            self.add(key, result)
        return result
