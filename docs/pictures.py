"""Draws the sets' pictures and rewrites the cards of `docs/sets.md`: `python docs/pictures.py`.

What is drawn is computed from the sets by `_report/plots.py`. This takes matplotlib:
`pip install "inbounds[docs]"`. The same version of it makes the same files, byte by byte.
"""

from pathlib import Path

import matplotlib

from inbounds._cli.catalogue import Card, cards
from inbounds._report.plots import set_figure

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- cards: written by docs/pictures.py -->\n", "\n<!-- end of cards -->"


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
            set_figure(drawing).savefig(folder / f"{name}.svg", metadata=about)


def markdown(card: Card) -> str:
    """A card for a page that lies beside the folder of pictures."""
    parts = [f"### {card.name}", f"    {card.definition}", f"`{card.code}`; convex: {card.convex}."]
    if card.drawing is not None:
        parts.append(f"![{card.drawing.caption}](pictures/{card.name}.svg)")
    return "\n\n".join([*parts, f"*Cost:* {card.cost}", f"*Source:* {card.source}"])


def write_cards() -> None:
    """Puts the cards of all sets between their marks in `sets.md`."""
    page = FOLDER / "sets.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = "\n\n".join(markdown(card) for card in cards().values())
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    draw()
    write_cards()
