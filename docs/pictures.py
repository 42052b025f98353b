"""Draws the pictures of the sets, and writes the cards of `docs/sets.md` again: `python docs/pictures.py`.

What is drawn is computed from the sets, see `_cli/pictures.py`. It takes matplotlib: `pip install "inbounds[docs]"`.
Files come out the same, byte by byte, with the same version of it.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from inbounds._cli.catalogue import cards
from inbounds._cli.pictures import HALF_WIDTH, Drawing

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- cards: written by docs/pictures.py -->\n", "\n<!-- end of cards -->"

SET, POINT, NEAREST = "#9ecae1", "#d95f02", "#08519c"
LINE = 0.025
"""How far around a set is drawn as the set, so that lines and points are seen."""


def figure(drawing: Drawing) -> Figure:
    """A set, some points, and an arrow from each to the nearest point of the set."""
    made = Figure(figsize=(2.8, 2.8), layout="constrained")
    axes = made.subplots()
    places = np.linspace(-HALF_WIDTH, HALF_WIDTH, 201)
    x, y = np.meshgrid(places, places)
    axes.contourf(x, y, drawing.violation(x, y), levels=[-1, LINE], colors=[SET])
    for letter, point, near in drawing.marks:
        if point != near:
            axes.annotate("", near, point, arrowprops={"arrowstyle": "->", "color": "0.4", "shrinkA": 3, "shrinkB": 3})
            axes.plot(*near, "o", color=NEAREST, markersize=4)
        axes.plot(*point, "o", color=POINT, markersize=4)
        axes.annotate(letter, point, (4, 4), textcoords="offset points", fontsize=9)
    axes.set(xlim=(-HALF_WIDTH, HALF_WIDTH), ylim=(-HALF_WIDTH, HALF_WIDTH), aspect="equal")
    axes.set_xticks(range(-HALF_WIDTH, HALF_WIDTH + 1))
    axes.set_yticks(range(-HALF_WIDTH, HALF_WIDTH + 1))
    axes.tick_params(labelsize=7, length=2)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    return made


def draw() -> None:
    """Writes a file for each drawing, and removes those of drawings that are gone."""
    folder = FOLDER / "pictures"
    folder.mkdir(exist_ok=True)
    drawn = {card.name: card.drawing for card in cards().values() if card.drawing is not None}
    for path in folder.glob("*.svg"):
        if path.stem not in drawn:
            path.unlink()
    settings = {"svg.hashsalt": "inbounds", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        for name, drawing in drawn.items():
            about = {"Title": repr(drawing.set), "Description": drawing.caption, "Date": None, "Creator": None}
            figure(drawing).savefig(folder / f"{name}.svg", metadata=about)


def write_cards() -> None:
    """Puts the cards of all sets between their marks in `sets.md`."""
    page = FOLDER / "sets.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = "\n\n".join(card.markdown for card in cards().values())
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    draw()
    write_cards()
