"""`inbounds sets`: every set, or those named, with its definition, cost, source and picture."""

import re

import pytest

from inbounds._cli.catalogue import cards
from inbounds._cli.pictures import text_picture
from inbounds.constraints import MADE, SETS

pytestmark = pytest.mark.once

EVERY = cards()


def parts(text):
    """A summary's lines by set, and the cards by their first lines."""
    summary, *rest = text.split("\n\n" + EVERY["Box"].code)
    (below,) = rest
    shown = (EVERY["Box"].code + below).split("\n\n")
    return summary, {card.splitlines()[0]: card.rstrip("\n") for card in shown}


def test_without_names_it_shows_all_of_every_set(command):
    outcome = command("sets")
    assert outcome.status == 0
    assert outcome.err == ""
    summary, shown = parts(outcome.out)
    assert shown == {card.code: card.text for card in EVERY.values()}
    assert len(shown) == len(SETS) + len(MADE)
    for name in EVERY:
        assert re.search(rf"^{name} +\{{", summary, re.MULTILINE)
    assert re.search(r"^MaxNorm +\{w : \|w\|_2 <= max_value\}.* yes$", summary, re.MULTILINE)
    assert re.search(r"^UnitNorm .* no$", summary, re.MULTILINE)
    assert "max_norm (MaxNorm)" in summary
    assert max(map(len, outcome.out.splitlines())) <= 120


@pytest.mark.parametrize("name", EVERY)
def test_a_card_shows_definition_cost_source_and_picture(command, name):
    outcome = command("sets", name)
    assert outcome.status == 0
    card = EVERY[name]
    assert outcome.out == card.text + "\n"
    assert outcome.out.startswith(card.code + "\n")
    flat = " ".join(outcome.out.split())
    for fact in (card.definition, card.cost, card.source, f"convex {card.convex}"):
        assert fact.replace("`", "") in flat
    if card.drawing is None:
        assert "picture none: " in flat
    else:
        indented = [f"{'':10}{line}" for line in text_picture(card.drawing).splitlines()]
        assert outcome.out.splitlines()[-len(indented) :] == indented


def test_several_names_twins_and_operators(command):
    outcome = command("sets", "max_norm", "Grid", "a & b")
    assert outcome.out == "\n\n".join(EVERY[name].text for name in ("MaxNorm", "Grid", "Intersection")) + "\n"


@pytest.mark.parametrize(
    ("name", "near"),
    [("MaxNrom", "MaxNorm"), ("l1ball", "L1Ball"), ("nonneg", "non_neg"), ("Wher", "Where"), ("zzz", "Box or Custom")],
)
def test_a_wrong_name_is_an_error_that_says_what_comes_near(command, name, near):
    error = command("sets", "Grid", name).error
    assert f"Received: {name!r}. Instead: " in error
    assert near in error.split("Instead: ")[1]
