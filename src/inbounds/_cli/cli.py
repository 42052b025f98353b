"""The command line: reads files, calls the library and prints.

`inbounds_launcher` parses the arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import os
import shlex
import sys
import tempfile
import textwrap
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from inbounds._arrays.ops import to_numpy
from inbounds._arrays.views import View
from inbounds._cli.catalogue import SNAKE_CASE_NAMES, card_of, cards
from inbounds._errors import FileError, InboundsError, LayoutWarning, PlanNotSavedWarning, RuleError, explain, printable
from inbounds._model.layout import layout_of
from inbounds._model.rules import resolve
from inbounds._model.rules_file import read_rules
from inbounds._model.table import Table, common_prefix, merged_notes, quantity
from inbounds._model.weights import weights_of
from inbounds._report.audit import audit
from inbounds._report.report import COLUMNS, Report, cells
from inbounds._train.attach import constrain

NOT_HELD = r"(?m)(?<=\d )(violated|unenforced|misaligned)|(violated|unenforced|misaligned)$"
"""Statuses that a terminal shows in colour: in the title after their count, and at ends of rows."""


def run(options: argparse.Namespace) -> int:
    """Runs the command that the options name, and returns the exit status.

    `inbounds_launcher.main` returns the same status.
    """
    try:
        with warnings.catch_warnings():
            _show_own_warnings()
            status = COMMANDS[options.command](options)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # the reader, such as `head` or a pager, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (InboundsError, OSError) as error:
        file = getattr(options, "rules", None) if isinstance(error, RuleError) else None
        place = f" In: {printable(str(file))}, where [rules] are for weights and [layers] for layers." if file else ""
        print(f"inbounds: error: {error}{place}", file=sys.stderr)
        return 2
    except Exception:  # Python would exit with 1, which says that a set doesn't hold
        traceback.print_exc()
        return 2


# Commands, which return the exit status.


def _audit(options: argparse.Namespace) -> int:
    page: Path | None = options.html
    if page and page.resolve() == options.model.resolve():
        wrong = f"Can't write {str(page)!r}: it is the model"
        raise FileError(wrong, f"--html {shlex.quote(str(page))}", instead="another name")
    if page:
        _check_new([page], options, f"--html {shlex.quote(str(page))}", "another name")
    with _in_progress(f"Auditing {printable(str(options.model))}"):
        model = _load(options.model, options, compiled=False)
        report = audit(model, _rules(options, model), options.accept).of_file(options.model)
    if page:
        try:
            report.to_html(page)
        except OSError as error:
            raise _write_error(page, error) from error
    if options.json:
        print(report.to_json())
    else:
        _print_report(report)
    if page:
        print(f"Written: {printable(str(page))}", file=sys.stderr if options.json else sys.stdout)
    return _status(report, f"inbounds audit {shlex.quote(str(options.model))} --rules FILE.toml")


def _compare(options: argparse.Namespace) -> int:
    with _in_progress("Auditing both models"):
        models = [_load(path, options, compiled=False) for path in (options.before, options.model)]
        before, after = (audit(model, _rules(options, model)) for model in models)
    old, new = map(_values, models)
    if old.keys().isdisjoint(new):
        wrong = "The two models have no weight in common"
        instead = "two files of one model, before and after"
        raise FileError(wrong, f"{', '.join(list(old)[:3])} ... and {', '.join(list(new)[:3])} ...", instead=instead)
    moved = _moved(old, new)
    constrained = {path for report in (before, after) for row in report.constrained for path in row.paths}
    free = [distance for path, distance in moved.items() if path not in constrained]
    notes = [f"{quantity(len(free), 'weight')} without a set moved by {math.hypot(*free):.3g}"] * bool(free)
    others = [path for path in dict.fromkeys([*old, *new]) if path not in moved]
    notes += merged_notes((path, "not in both models, or of another shape") for path in others)
    _print_report(_comparison(f"Comparison of {after.model}, before -> after", before, after, moved, notes))
    return _status(after, f"inbounds compare ... {shlex.quote(str(options.model))} --rules FILE.toml")


def _project(options: argparse.Namespace) -> int:
    target: Path = options.output
    if target.suffix != ".keras":
        wrong = f"Can't write the model to {str(target)!r}: the name of a model file ends in .keras"
        other = target.parent / f"{target.stem or 'model'}.keras"
        raise FileError(wrong, f"-o {target}", instead=f"-o {shlex.quote(str(other))}")
    model = _load(options.model, options, compiled=True)
    rules, settings = read_rules(options.rules, model)
    given = model.get_weights()
    constrain(model, rules, **settings)
    after, new, projected = audit(model), _values(model), model.get_weights()
    model.set_weights(given)
    before, old = audit(model), _values(model)
    model.set_weights(projected)
    try:
        with tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".inbounds-") as folder:
            written = Path(folder) / "model.keras"
            model.save(written)
            os.replace(written, target.resolve())
    except OSError as error:
        raise _write_error(target, error) from error
    _print_report(_comparison(f"Projection of {after.model}, before -> after", before, after, _moved(old, new)))
    print(f"\nWritten: {printable(str(target))}")
    return 0 if after.ok else 1


def _sets(options: argparse.Namespace) -> int:
    if options.names:
        print("\n\n".join(card_of(name).text for name in options.names))
        return 0
    all_cards = list(cards().values())
    twins = ", ".join(f"{twin} ({name})" for twin, name in SNAKE_CASE_NAMES.items())
    summary = Table(
        "The sets of inbounds.constraints, and what operators make of them",
        ("set", "a unit w satisfies", "convex"),
        [(card.name, card.definition, card.convex) for card in all_cards],
        [f"Names as in Keras: {twins}.", "Below: each with its cost, its source, and a picture if it has one."],
    )
    print("\n\n".join([str(summary), *(card.text for card in all_cards)]))
    return 0


def _layout(options: argparse.Namespace) -> int:
    model = _load(options.model, options, compiled=False)
    weights = [weight for weight, _ in resolve(model, None, lambda variable: None, strict=False).free]
    prefix = common_prefix(weight.path for weight in weights)
    rows, notes = [], []
    for weight in weights:
        kind, axes = type(weight.layer).__name__, layout_of(weight.layer).span(weight.name, weight.shape)
        if axes is None:
            axes = tuple(range(len(weight.shape) - 1))
            why = "not known, so every axis but the last; register_layout says otherwise"
            notes.append(((f"{kind} {weight.name}",), why))
        view, shown = View(weight.shape, axes), ", ".join(map(str, axes)) or "none"
        rows.append(((weight.path,), (str(weight.shape), kind, shown, view.count, view.size)))
        if not axes:
            notes.append((("Axes none",), "each entry is a unit of its own, and a norm takes the weight as one unit"))
    under = f", under {prefix}" if prefix not in ("", f"{model.name}/") else ""
    title = f"Layout of {model.name}{under}: {quantity(len(rows), 'weight')}"
    columns = ("weight", "shape", "layer", "axes of a unit", "units", "size")
    print(Table.of_weights(title, columns, rows, dict.fromkeys(notes), prefix))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from inbounds._cli.demo import PAGES, PICTURE, demo, digits

    data, folder = digits(), options.output
    try:  # before a minute of training, not after it
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        wrong = f"Can't write in the folder {str(folder)!r}: {reason}"
        raise FileError(wrong, f"--output {shlex.quote(str(folder))}", instead="a folder of yours") from error
    files = [folder / name for name in (*PAGES.values(), PICTURE)]
    _check_new(files, options, f"--output {shlex.quote(str(folder))}", "another folder")
    return demo(data, folder)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "audit": _audit,
    "compare": _compare,
    "project": _project,
    "sets": _sets,
    "layout": _layout,
    "demo": _demo,
}


def _status(report: Report, instead: str) -> int:
    """The exit status of a report; a message if nothing is constrained."""
    if not report.constrained:
        text = "Nothing is constrained: no weight of the model has a set"
        print(f"inbounds: {explain(text, f'model {report.model!r}', instead=instead)}", file=sys.stderr)
    return 0 if report.ok else 1


# Files.


def _rules(options: argparse.Namespace, model: Any) -> Any:
    return read_rules(options.rules, model)[0] if options.rules else None


def _load(path: Path, options: argparse.Namespace, *, compiled: bool) -> Any:
    """Loads a model of a command, after importing the modules of its layers."""
    if options.modules:
        sys.path.insert(0, os.getcwd())
    for name in options.modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # what the module raises
            wrong = f"Can't import {name!r}: {error}"
            instead = f"run it in the folder of {name.split('.')[0]}.py"
            raise FileError(wrong, f"--import {name}", where=os.getcwd(), instead=instead) from error
    wrong = ""
    if not path.is_file():
        wrong = "it is a folder" if path.is_dir() else "it does not exist"
    elif path.suffix not in (".keras", ".h5", ".hdf5"):
        wrong = "its name does not end in .keras"
    elif path.suffix == ".keras" and not zipfile.is_zipfile(path):
        wrong = "it is not a zip archive, as a .keras file is, or it is cut off"
    if wrong:
        wrong = f"Can't read the model {str(path)!r}: {wrong}"
        instead = "a file that model.save('model.keras') has written"
        raise FileError(wrong, repr(str(path)), where="" if path.is_file() else os.getcwd(), instead=instead)
    try:
        return keras.saving.load_model(path, compile=compiled)
    except Exception as error:  # Keras raises many types for files that it can't read
        innermost = str(error).split("Exception encountered: ")[-1].split(" Full object config:")[0].strip()
        reason = textwrap.shorten(innermost.split("\n")[0].split(". ")[0], 240, placeholder=" ...").rstrip(".")
        wrong = f"Keras can't load the model {str(path)!r}: {reason}"
        where = f"{type(error).__name__} in keras.saving.load_model"
        instead = f"inbounds {options.command} {shlex.quote(str(path))} --import MODULE, with your own layers"
        raise FileError(wrong, repr(str(path)), where=where, instead=instead) from error


def _check_new(paths: Sequence[Path], options: argparse.Namespace, received: str, other: str) -> None:
    """Raises where one of the files exists, unless the options say that it is to be replaced."""
    existing = [path for path in paths if path.exists()]
    if existing and not options.force:
        instead = f"{other}, or --force as well, to replace it"
        raise FileError(f"Can't write {str(existing[0])!r}: it exists", received, instead=instead)


def _write_error(path: Path, error: OSError) -> FileError:
    reason = error.strerror or error
    return FileError(f"Can't write {str(path)!r}: {reason}", repr(str(path)), instead="a file in a folder of yours")


# Text.


@contextlib.contextmanager
def _in_progress(what: str) -> Iterator[None]:
    """Shows on a terminal what is being done, and for how long.

    An audit takes a second for some hundred weights.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    disable = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=disable) as progress:
        progress.add_task(what, total=None)
        yield


def _print_report(report: Any) -> None:
    """Prints a report. A terminal shows in colour what doesn't hold, unless NO_COLOR is set."""
    text = Text(str(report))
    text.highlight_regex(NOT_HELD, "red")
    Console(highlight=False).print(text, soft_wrap=True)


def _comparison(title: str, before: Report, after: Report, moved: dict[str, float], notes: Sequence[str] = ()) -> Table:
    """The table of two reports: each set before and after, and how far its weights moved."""
    old, new = ({row.paths: row for row in report.constrained} for report in (before, after))
    rows, remarks = [], []
    for paths in dict.fromkeys([*new, *old]):
        pair = old.get(paths), new.get(paths)
        both = [row for row in pair if row is not None]
        sets = " -> ".join(dict.fromkeys(row.set for row in both))
        texts = zip(*(cells(row) if row else ["-"] * len(COLUMNS[1:]) for row in pair), strict=True)
        _set, _units, *changes, _tolerance, _status = map(" -> ".join, texts)
        distances = [moved[path] for path in paths if path in moved]
        distance = math.hypot(*distances) if len(distances) == len(paths) else "-"
        rows.append((paths, (sets, both[-1].units, *changes, distance, both[-1].status if pair[1] else "free")))
        lone = "" if len(both) == 2 else f"a set only {'after' if pair[1] else 'before'}"
        remarks += [(paths, remark) for remark in (lone, both[-1].note)]
    prefix = common_prefix(path for paths in [*old, *new] for path in paths)
    return Table.of_weights(title, (*COLUMNS[:-2], "moved", "status"), rows, remarks, prefix, notes)


def _values(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The values that a model's layers compute with, by path; quantized ones are dequantized."""
    return {weight.path: to_numpy(weight.effective_value()) for weight in weights_of(model)}


def _moved(old: dict[str, Any], new: dict[str, Any]) -> dict[str, float]:
    """How far each weight is from where it was, of those that both have in one shape."""
    same = [path for path in new if path in old and new[path].shape == old[path].shape]
    return {path: float(np.linalg.norm((new[path] - old[path]).ravel())) for path in same}


def _show_own_warnings() -> None:
    """Makes warnings of inbounds print like its errors; other warnings print as before."""
    show = warnings.showwarning

    def shown(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, (PlanNotSavedWarning, LayoutWarning)):
            print(f"inbounds: warning: {printable(str(message))}", file=sys.stderr)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = shown
