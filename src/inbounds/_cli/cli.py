"""The command line: parses arguments, reads files, calls the library and prints."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import shlex
import sys
import tempfile
import textwrap
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np

import inbounds
from inbounds._cli.catalogue import SNAKE_CASE_NAMES, card_of, cards
from inbounds._errors import FileError, InboundsError, LayoutWarning, PlanNotSavedWarning, explain, printable
from inbounds._model.layout import layout_of
from inbounds._model.rules import resolve
from inbounds._model.rules_file import read_rules
from inbounds._model.table import common_prefix, merged_notes, quantity, table
from inbounds._report.audit import audit
from inbounds._report.report import Report
from inbounds._train.attach import constrain

DESCRIPTION = "Keeps the weights of Keras models inside the sets you choose, and shows that they are there."

RULES_EPILOG = """
a rules file (TOML):
  [rules]                                  # weights: a glob on the end of a path
  "conv*/kernel" = "MaxNorm(1.5)"
  [layers]                                 # layers: a class, or a layer's name
  Dense = "Joint(MaxNorm(2.0))"
  head = {kernel = "NonNeg", bias = "Box(-1, 1)"}
A weight obeys the last rule that matches it, in the order of the file.
"""

EXIT_EPILOG = "exit status: 0 when every set holds, 1 when not or when nothing is constrained, 2 on an error."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: the arguments of the command line; None: those of the process.

    Returns:
        The exit status: 0 when all holds, 1 when not or when nothing is constrained, 2 on an error,
        which prints one message on stderr.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            _show_own_warnings()
            status: int = options.run(options)
            sys.stdout.flush()
            return status
    except InboundsError as error:
        print(f"inbounds: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head` or a pager, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one message, like every other error; argparse would print the usage too."""
        self.exit(2, f"inbounds: error: {printable(message)}. Instead: {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="inbounds", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"inbounds {inbounds.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, summary: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run, command=name)
        return added

    def takes_model(added: argparse.ArgumentParser, metavar: str = "MODEL.keras") -> None:
        added.add_argument("model", metavar=metavar, type=Path, help="a model as model.save(...) writes it")
        added.add_argument(
            "--import",
            dest="modules",
            metavar="MODULE",
            action="append",
            default=[],
            help="a Python module that registers the model's own layers; may be repeated",
        )

    added = command(
        "audit", _audit, "show whether the weights of a model are inside their sets", RULES_EPILOG + EXIT_EPILOG
    )
    takes_model(added)
    added.add_argument(
        "--rules", metavar="FILE.toml", type=Path, help="the sets to audit; without it, those saved in the model"
    )
    added.add_argument(
        "--accept",
        metavar="SELECTOR",
        action="append",
        default=[],
        help="a glob on the end of a weight's path: the axis of its constraint of Keras is meant so; may be repeated",
    )
    added.add_argument("--json", action="store_true", help="print JSON in place of a table")
    added.add_argument("--html", metavar="OUT", type=Path, help="write an HTML page too")

    added = command(
        "project", _project, "move the weights of a model into sets, and save it with them", RULES_EPILOG + EXIT_EPILOG
    )
    takes_model(added, "IN.keras")
    added.add_argument("-o", "--output", metavar="OUT.keras", type=Path, required=True, help="the file to write")
    added.add_argument("--rules", metavar="FILE.toml", type=Path, required=True, help="the sets")

    added = command("sets", _sets, "show the sets there are: definition, cost, whether convex, source, picture")
    added.add_argument("names", metavar="NAME", nargs="*", help="of a set to show; without any, all of them")
    added = command("layout", _layout, "show what makes the units of each weight of a model")
    takes_model(added)
    command(
        "demo",
        _demo,
        "train small models inside their sets on real data, and audit them",
        "It takes about a minute. " + EXIT_EPILOG,
    )
    return parser


# Commands, which return the exit status.


def _audit(options: argparse.Namespace) -> int:
    model = _load(options, compiled=False)
    report = audit(model, read_rules(options.rules, model).rules if options.rules else None, options.accept)
    if options.html:
        try:
            report.to_html(options.html)
        except OSError as error:
            raise _write_error(options.html, error) from error
    print(report.to_json() if options.json else report)
    if options.html:
        print(f"Written: {printable(str(options.html))}", file=sys.stderr if options.json else sys.stdout)
    if not report.constrained:
        message = explain(
            "Nothing is constrained: no weight of the model has a set",
            repr(str(options.model)),
            instead=f"inbounds audit {shlex.quote(str(options.model))} --rules FILE.toml",
        )
        print(f"inbounds: {message}", file=sys.stderr)
    return 0 if report.ok else 1


def _project(options: argparse.Namespace) -> int:
    target: Path = options.output
    if target.suffix != ".keras":
        raise FileError(
            explain(
                f"Can't write the model to {str(target)!r}: the name of a model file ends in .keras",
                f"-o {target}",
                instead=f"-o {target.with_suffix('.keras')}",
            )
        )
    model = _load(options, compiled=True)
    rules = read_rules(options.rules, model)
    given = model.get_weights()
    constrain(model, rules.rules, metric=rules.metric, every=rules.every, gradient=rules.gradient, latent=rules.latent)
    projected = model.get_weights()
    model.set_weights(given)
    before = audit(model)
    model.set_weights(projected)
    after = audit(model)
    try:
        with tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".inbounds-") as folder:
            written = Path(folder) / "model.keras"
            model.save(written)
            os.replace(written, target.resolve())
    except OSError as error:
        raise _write_error(target, error) from error
    moved = {
        printable(weight.path): float(np.max(np.abs(new - old), initial=0))
        for weight, old, new in zip(model.weights, given, projected, strict=True)
    }
    print(_projection_table(before, after, moved))
    print(f"\nWritten: {printable(str(target))}")
    return 0 if after.ok else 1


def _sets(options: argparse.Namespace) -> int:
    if options.names:
        print("\n\n".join(card_of(name).text for name in options.names))
        return 0
    all_cards = list(cards().values())
    twins = ", ".join(f"{twin} ({name})" for twin, name in SNAKE_CASE_NAMES.items())
    summary = table(
        "The sets of inbounds.constraints, and what operators make of them",
        ("set", "a unit w satisfies", "convex"),
        [(card.name, card.definition.replace("`", ""), card.convex) for card in all_cards],
        [f"Names as in Keras: {twins}.", "Below: each with its cost, its source, and a picture if it has one."],
    )
    print("\n\n".join([summary, *(card.text for card in all_cards)]))
    return 0


def _layout(options: argparse.Namespace) -> int:
    model = _load(options, compiled=False)
    weights = [weight for weight, _ in resolve(model, None, lambda variable: None, strict=False).free]
    prefix = common_prefix(weight.path for weight in weights)
    rows, notes = [], []
    for weight in weights:
        axes = layout_of(weight.layer).spans.get(weight.name)
        if axes is None:
            axes = tuple(range(len(weight.shape) - 1))
            notes.append(
                (
                    f"{type(weight.layer).__name__} {weight.name}",
                    "not known, so every axis but the last; register_layout says otherwise",
                )
            )
        size = math.prod(weight.shape[axis] for axis in axes)
        units = math.prod(n for axis, n in enumerate(weight.shape) if axis not in axes)
        shown = ", ".join(map(str, axes)) or "none"
        rows.append(
            (weight.path.removeprefix(prefix), str(weight.shape), type(weight.layer).__name__, shown, units, size)
        )
    if any(row[3] == "none" for row in rows):
        notes.append(("Axes none", "each entry is a unit of its own, and a norm takes the weight as one unit"))
    under = f", under {prefix}" if prefix not in ("", f"{model.name}/") else ""
    columns = ("weight", "shape", "layer", "axes of a unit", "units", "size")
    print(
        table(
            f"Layout of {model.name}{under}: {quantity(len(rows), 'weight')}",
            columns,
            rows,
            merged_notes(dict.fromkeys(notes)),
        )
    )
    return 0


def _demo(options: argparse.Namespace) -> int:
    from inbounds._cli.demo import demo

    return demo()


# Files.


def _load(options: argparse.Namespace, *, compiled: bool) -> Any:
    """Loads the model of a command, after importing the modules of its layers."""
    if options.modules:
        sys.path.insert(0, os.getcwd())
    for name in options.modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise FileError(
                explain(
                    f"Can't import {name!r}: {error}",
                    f"--import {name}",
                    where=os.getcwd(),
                    instead=f"run it in the folder of {name.split('.')[0]}.py",
                )
            ) from error
    path: Path = options.model
    if not path.is_file():
        raise FileError(
            explain(
                f"Can't read the model {str(path)!r}: it {'is a folder' if path.is_dir() else 'does not exist'}",
                repr(str(path)),
                where=os.getcwd(),
                instead="a file that model.save('model.keras') has written",
            )
        )
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise FileError(
            explain(
                f"Can't read the model {str(path)!r}: it is not a zip archive, as a .keras file is, or it is cut off",
                repr(str(path)),
                instead="a file that model.save('model.keras') has written",
            )
        )
    try:
        return keras.saving.load_model(path, compile=compiled)
    except Exception as error:  # Keras raises many types for files that it can't read
        innermost = str(error).split("Exception encountered: ")[-1].split(" Full object config:")[0].strip()
        reason = textwrap.shorten(innermost.split("\n")[0].split(". ")[0], 240, placeholder=" ...").rstrip(".")
        raise FileError(
            explain(
                f"Keras can't load the model {str(path)!r}: {reason}",
                repr(str(path)),
                where=f"{type(error).__name__} in keras.saving.load_model",
                instead=f"inbounds {options.command} {shlex.quote(str(path))} --import MODULE, with your own layers",
            )
        ) from error


def _write_error(path: Path, error: OSError) -> FileError:
    reason = error.strerror or error
    return FileError(
        explain(f"Can't write {str(path)!r}: {reason}", repr(str(path)), instead="a file in a folder of yours")
    )


# Text.


def _projection_table(before: Report, after: Report, moved: dict[str, float]) -> str:
    """The table of a projection: each set before and after, and how far its weights moved."""
    prefix = common_prefix(path for row in after.rows for path in row.paths)
    rows = []
    for old, new in zip(before.rows, after.rows, strict=True):
        if new.status != "free":
            paths = "\n".join(path.removeprefix(prefix) for path in new.paths)
            rows.append(
                (
                    paths,
                    new.set,
                    new.units,
                    f"{old.violated} -> {new.violated}",
                    f"{old.violation:.3g} -> {new.violation:.3g}",
                    max(moved[path] for path in new.paths),
                    new.status,
                )
            )
    columns = ("weight", "set", "units", "violated", "violation", "moved by", "status")
    notes = merged_notes((" + ".join(row.paths), row.note) for row in after.rows if row.status != "free")
    return table(f"Projection of {after.model}", columns, rows, notes)


def _show_own_warnings() -> None:
    """Makes warnings of inbounds print like its errors; other warnings print as before."""
    show = warnings.showwarning

    def shown(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, (PlanNotSavedWarning, LayoutWarning)):
            print(f"inbounds: warning: {printable(str(message))}", file=sys.stderr)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = shown
