"""Runs gallery pages and leaves their pictures beside them: `python docs/gallery.py [PAGE]...`.

`python docs/gallery.py --notebooks FOLDER [PAGE]...` writes them as Jupyter notebooks instead.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path

GALLERY = Path(__file__).parent / "gallery"
SNIPPET = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def notebook(text: str) -> dict[str, object]:
    """A page as a notebook of nbformat 4: its prose and its snippets by turns."""
    cells: list[dict[str, object]] = []
    for i, source in enumerate(SNIPPET.split(text)):
        kind = {"cell_type": "code", "outputs": [], "execution_count": None} if i % 2 else {"cell_type": "markdown"}
        cells.append({**kind, "metadata": {}, "source": source.strip()})
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": {"language_info": {"name": "python"}}, "cells": cells}


def main() -> None:
    """Runs or converts the pages that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebooks", type=Path, metavar="FOLDER")
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    given = parser.parse_args()
    pages = [GALLERY / page for page in given.pages] or sorted(GALLERY.glob("*.md"))
    if given.notebooks:
        given.notebooks.mkdir(parents=True, exist_ok=True)
        for page in pages:
            made = json.dumps(notebook(page.read_text(encoding="utf-8")), indent=1)
            (given.notebooks / f"{page.stem}.ipynb").write_text(made, encoding="utf-8")
        return
    os.chdir(GALLERY)
    for page in pages:
        print(f"\n{page.stem}")
        start, names = time.process_time(), {"__name__": page.stem}
        for snippet in SNIPPET.findall(page.read_text(encoding="utf-8")):
            exec(compile(snippet, page.name, "exec"), names)
        print(f"{time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
