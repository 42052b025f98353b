"""The console command `inbounds`, with the environment that its libraries read.

It is a module beside the package and not in it, since importing `inbounds` imports Keras with its
backend, which takes seconds. Help, the version and mistaken arguments don't wait for it.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

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
        arguments: of the command line; None: those of the process.

    Returns:
        The exit status: 0 when all holds, 1 when not or when nothing is constrained, 2 on an error,
        which prints one message on stderr. One is that there is no backend to run on.
    """
    options = parser().parse_args(arguments)
    # Keras imports TensorFlow wherever it is installed, and TensorFlow then prints to stderr from
    # C++; the remark on oneDNN, which changes rounding only, can only be silenced with oneDNN off.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # PyTorch's threads wait for each other by spinning, which on busy cores makes small models
    # several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from inbounds._cli.cli import run
    except ImportError as error:
        print(f"inbounds: error: {error}", file=sys.stderr)
        return 2
    return run(options)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one message, like every other error; argparse would print the usage too."""
        text = message if message.isprintable() else message.encode("unicode_escape").decode("ascii")
        self.exit(2, f"inbounds: error: {text}. Instead: {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands. `command` names the one that is given."""
    made = _Parser(prog="inbounds", description=DESCRIPTION)
    version = runpy.run_path(str(Path(__file__).parent / "inbounds" / "_version.py"))["__version__"]
    made.add_argument("--version", action="version", version=f"inbounds {version}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(name: str, summary: str, epilog: str = "", rules: str = "", **models: str) -> argparse.ArgumentParser:
        described = summary[0].upper() + summary[1:] + "."
        raw = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(name, help=summary, description=described, epilog=epilog, formatter_class=raw)
        for model, metavar in models.items():
            added.add_argument(model, metavar=metavar, type=Path, help="a model as model.save(...) writes it")
        if models:
            module = "a Python module that registers the model's own layers; may be repeated"
            added.add_argument("--import", dest="modules", metavar="MODULE", action="append", default=[], help=module)
        if rules:
            added.add_argument("--rules", metavar="FILE.toml", type=Path, help=rules)
        return added

    summary = "show whether the weights of a model are inside their sets"
    rules = "the sets to audit; without it, those saved in the model"
    added = command("audit", summary, RULES_EPILOG + EXIT_EPILOG, rules, model="MODEL.keras")
    meant = "a glob on the end of a weight's path: the axis of its constraint of Keras is meant so; may be repeated"
    added.add_argument("--accept", metavar="SELECTOR", action="append", default=[], help=meant)
    added.add_argument("--json", action="store_true", help="print JSON in place of a table")
    added.add_argument("--html", metavar="OUT", type=Path, help="write an HTML page too")
    added.add_argument("--force", action="store_true", help="replace the HTML page if it exists")
    command(
        "compare",
        "show what training, or a quantization, did to each set: two files of one model, before and after",
        RULES_EPILOG + "exit status: as for an audit of the second model.",
        "the sets to compare; without it, those saved in each model",
        before="BEFORE.keras",
        model="AFTER.keras",
    )
    summary = "move the weights of a model into sets, and save it with them"
    added = command("project", summary, RULES_EPILOG + EXIT_EPILOG, model="IN.keras")
    added.add_argument("-o", "--output", metavar="OUT.keras", type=Path, required=True, help="the file to write")
    added.add_argument("--rules", metavar="FILE.toml", type=Path, required=True, help="the sets")
    added.add_argument("--force", action="store_true", help="replace OUT.keras if it exists")
    added = command("sets", "show the sets there are: definition, cost, whether convex, source, picture")
    added.add_argument("names", metavar="NAME", nargs="*", help="of a set to show; without any, all of them")
    command("layout", "show what makes the units of each weight of a model", model="MODEL.keras")
    added = command(
        "demo",
        "train small models on real data: unconstrained, constrained by Keras, and by inbounds",
        "It takes about a minute. Exit status: 0 when every set under inbounds holds, 1 when not, 2 on an error.",
    )
    folder = Path("inbounds-demo")
    added.add_argument("-o", "--output", metavar="FOLDER", type=Path, default=folder, help="where it writes its files")
    added.add_argument("--force", action="store_true", help="replace the files that an earlier demo has written there")
    return made


if __name__ == "__main__":
    sys.exit(main())
