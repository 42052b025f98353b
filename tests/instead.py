"""The code in what an error says after "Instead: ", and the names that it may use."""

import ast
import re

import keras
import numpy as np

import inbounds as ib

NAMES = {name: getattr(ib, name) for name in ib.__all__} | {"inbounds": ib, "keras": keras, "np": np}


def codes(text):
    """Of each alternative in a text the code that it begins with; prose has none."""
    found = (_first_code(part) for part in re.split(r", or |; | such as ", text))
    return [code for code in found if code is not None]


def _first_code(text):
    """The longest beginning, in words, that is an expression with a call or a mapping in it."""
    words = text.split(" ")
    for end in range(len(words), 0, -1):
        code = " ".join(words[:end]).rstrip(",.")
        try:
            tree = ast.parse(code, mode="eval")
        except SyntaxError:
            continue
        if isinstance(tree.body, (ast.Compare, ast.Tuple)):  # with "in the" or ", which" of what follows
            continue
        return code if any(isinstance(node, (ast.Call, ast.Dict)) for node in ast.walk(tree)) else None
    return None


def run(text, **names):
    """What the code in an error's text gives, for each alternative; raises what the code raises."""
    assert "..." not in text
    return [eval(code, NAMES | names) for code in codes(text)]
