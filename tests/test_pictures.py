"""Pictures and cards of the sets: they show what is so, and the docs have those of every set.

The files in docs/pictures say what they show, and are compared by it.
"""

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from inbounds._cli.catalogue import Card, card_of, cards
from inbounds._cli.pictures import COLUMNS, DRAWINGS, NO_DRAWING_REASONS, ROWS, no_drawing_reason, text_picture
from inbounds._report.plots import HALF_WIDTH, Drawing
from inbounds.constraints import MADE, SETS, MaxNorm

pytestmark = pytest.mark.once

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "sets.md").read_text(encoding="utf-8")
ALL = {cls.__name__: cls for cls in (*SETS.values(), *MADE.values())}
AGAIN = "run python docs/pictures.py"

# Where each drawn set is, as formulas of their own.
HELD = {
    "Box": lambda x, y: (-1 <= x <= 1.5) and (-1 <= y <= 0.5),
    "Equal": lambda x, y: x == y,
    "Fixed": lambda x, y: (x, y) == (0.5, -0.5),
    "Grid": lambda x, y: x % 1 == 0 and y % 1 == 0,
    "Halfspace": lambda x, y: x + 2 * y <= 1,
    "Hyperplane": lambda x, y: x + 2 * y == 1,
    "L1Ball": lambda x, y: abs(x) + abs(y) <= 1,
    "MaxNorm": lambda x, y: x * x + y * y <= 1,
    "MinMaxNorm": lambda x, y: 0.75**2 <= x * x + y * y <= 1.5**2,
    "Monotone": lambda x, y: x <= y,
    "NonNeg": lambda x, y: x >= 0 and y >= 0,
    "NonPos": lambda x, y: x <= 0 and y <= 0,
    "Simplex": lambda x, y: x >= 0 and y >= 0 and x + y == 1,
    "Sparse": lambda x, y: x == 0 or y == 0,
    "SumTo": lambda x, y: x + y == 1,
    "UnitNorm": lambda x, y: x * x + y * y == 1,
    "Intersection": lambda x, y: x * x + y * y <= 1 and x + 2 * y <= 1,
    "Where": lambda x, y: abs(x) <= 1,
    "On": lambda x, y: y >= 0,
}


def raster(drawing):
    """The characters of a picture by the coordinates of their places."""
    lines = text_picture(drawing).splitlines()[1:-1]
    assert len(lines) == ROWS
    return {
        (HALF_WIDTH * (2 * column / (COLUMNS - 1) - 1), HALF_WIDTH * (1 - 2 * row / (ROWS - 1))): line[column + 1]
        for row, line in enumerate(lines)
        for column in range(COLUMNS)
    }


def test_every_set_is_drawn_or_has_a_reason():
    drawn, undrawn = set(DRAWINGS), {name for name, cls in ALL.items() if name not in DRAWINGS}
    assert drawn == set(HELD)
    assert drawn | undrawn == set(ALL)
    assert set(NO_DRAWING_REASONS) <= undrawn
    for name in undrawn:
        assert no_drawing_reason(ALL[name])
        assert (name in NO_DRAWING_REASONS) == (ALL[name].matrix is not True), f"{name}: one reason"


@pytest.mark.parametrize("name", DRAWINGS)
def test_dots_are_where_the_set_is(name):
    """At every place of the set, and at no place from which it is further than the next place."""
    near = [(i * 0.0625, j * 0.0625) for i in range(-3, 4) for j in range(-3, 4)]
    for (x, y), mark in raster(DRAWINGS[name]).items():
        if HELD[name](x, y):
            assert mark != " ", (x, y)
        elif mark == ".":
            assert any(HELD[name](x + i, y + j) for i, j in near) or _crossed(name, x, y), (x, y)


def _crossed(name, x, y):
    """For the circle, which few places lie on: whether it passes between places around."""
    radii = [np.hypot(x + i, y + j) for i in (-0.1875, 0.1875) for j in (-0.1875, 0.1875)]
    return name == "UnitNorm" and min(radii) <= 1 <= max(radii)


@pytest.mark.parametrize("name", DRAWINGS)
def test_letters_are_at_the_points_and_at_the_nearest_of_the_set(name):
    """The nearest is found again among many points of the set, by distance."""
    drawing, marks = DRAWINGS[name], raster(DRAWINGS[name])
    fine = np.linspace(-HALF_WIDTH, HALF_WIDTH, 1025)
    x, y = np.meshgrid(fine, fine)
    held = drawing.violation(x, y) < 0.003
    places = np.stack([x[held], y[held]], axis=1)
    for letter, point, near in drawing.marks:
        assert marks[point] == letter, "points lie on places"
        assert HELD[name](*point) == (point == near), "a point stays if it is inside"
        shortest = np.linalg.norm(places - point, axis=1).min()
        assert abs(np.hypot(point[0] - near[0], point[1] - near[1]) - shortest) < 0.006
        shown = [place for place, mark in marks.items() if mark == letter.upper()]
        if point == near:
            assert not shown
        else:
            (place,) = shown
            assert abs(place[0] - near[0]) <= 0.0625
            assert abs(place[1] - near[1]) <= 0.125


def test_captions_say_what_moves():
    drawing = Drawing(MaxNorm(1.0), ((1.5, 2.0), (0.25, 0.5)))
    assert drawing.captions == ["a (1.5, 2) goes to (0.6, 0.8)", "b (0.25, 0.5) stays"]
    assert drawing.caption == "MaxNorm(max_value=1.0): a (1.5, 2) goes to (0.6, 0.8); b (0.25, 0.5) stays"


def test_every_set_has_a_card():
    assert list(cards()) == [*sorted(SETS), *(cls.__name__ for cls in MADE.values())]
    for code, cls in MADE.items():
        assert card_of(code).cls is card_of(cls.__name__).cls is cls


@pytest.mark.parametrize("name", ALL)
def test_a_docstring_says_definition_cost_and_source(name):
    card = cards()[name]
    assert re.match(r"\{.+\}", card.definition), "the first line is the definition"
    assert "\n" not in card.definition
    assert card.cost, "a paragraph that begins with `Cost: `"
    assert card.source, "a paragraph that begins with `Source: `"


def test_paragraphs_that_a_docstring_lacks_are_empty():
    class Bare:
        """{w : w}. No more.

        Cost and source: none.
        """

    card = Card(Bare, "Bare()")
    assert (card.definition, card.cost, card.source) == ("{w : w}. No more", "", "")


@pytest.mark.parametrize(
    ("name", "convex"),
    [
        ("MaxNorm", "yes"),
        ("UnitNorm", "no"),
        ("MinMaxNorm", "where min_value is 0"),
        ("Custom", "not known"),
        ("Joint", "as the sets in it"),
        ("Intersection", "as the sets in it"),
        ("Where", "as the sets in it"),
    ],
)
def test_whether_a_set_is_convex_in_words(name, convex):
    assert cards()[name].convex == convex


def test_the_page_has_the_card_of_every_set():
    begin, end = "<!-- cards: written by docs/pictures.py -->\n", "\n<!-- end of cards -->"
    written = PAGE.split(begin)[1].split(end)[0].strip()
    assert written == "\n\n".join(map(runpy.run_path(str(DOCS / "pictures.py"))["markdown"], cards().values())), AGAIN


def test_the_overview_of_the_page_names_every_set():
    overview = PAGE.split("\n## ")[0]
    for name in SETS:
        assert re.search(rf"`{name}\(", overview), name
    for code in ("a & b", "where(", "on("):
        assert code in overview


def test_every_drawing_has_a_file_that_the_page_shows():
    files = {path.stem for path in (DOCS / "pictures").glob("*")}
    assert files == set(DRAWINGS), AGAIN
    assert set(re.findall(r"\]\(pictures/(\w+)\.svg\)", PAGE)) == files


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_file_shows_the_drawing_as_it_is(name):
    text = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    said = [node.text for node in root.iter("{http://purl.org/dc/elements/1.1/}description")]
    assert said == [DRAWINGS[name].caption], AGAIN
    letters = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {letter for letter, *_ in DRAWINGS[name].marks} <= letters, "text is text"
    assert "dc:date" not in text
    assert len(text) < 100_000
