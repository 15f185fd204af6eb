"""The gallery shows every model as it is now."""

from pathlib import Path

import pytest

from carkinetics.model_files import load_model, models_folder

DOCS = Path(__file__).parents[1] / "docs"
NAMES = sorted(p.stem for p in models_folder().glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_the_gallery_has_the_model(name):
    """If it fails, run python docs/make_gallery.py: a model is not in the gallery, or is described as it was."""
    model, page = load_model(name), (DOCS / "models.md").read_text(encoding="utf-8")
    start = page.index(f"## {name}\n")
    entry = page[start : page.find("\n## ", start + 1)]
    assert model.label in entry
    assert model.doi in entry
    assert f"`{model.structure.name}`" in entry
    assert all(f"`{u}`" in entry for u in model.unknown())
    drawn = not model.unknown(variability=False, residual=False)
    assert (f"](models/{name}.png)" in entry) == drawn
    assert (DOCS / "models" / f"{name}.png").is_file() == drawn


def test_the_gallery_has_nothing_else():
    """If it fails, a figure of a model that is gone is still there."""
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == NAMES
    assert {p.stem for p in (DOCS / "models").glob("*.png")} <= set(NAMES)
