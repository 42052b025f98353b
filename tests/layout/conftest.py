"""The layers are small; what was compiled for one test serves the next."""

from pathlib import Path

from small import small_models

__all__ = ["small_models"]


def pytest_collection_modifyitems(items):
    """The tests of one layer come one after the other."""
    places = [i for i, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    names: dict[str, int] = {}
    layer = {i: (getattr(items[i], "callspec", None) and items[i].callspec.params.get("name")) or "" for i in places}
    for name in layer.values():
        names.setdefault(name, len(names))
    ordered = [items[i] for i in sorted(places, key=lambda i: names[layer[i]])]
    for i, item in zip(places, ordered, strict=True):
        items[i] = item
