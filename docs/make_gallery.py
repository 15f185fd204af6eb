"""Writes docs/models.md and its figures from the model files: python docs/make_gallery.py"""

from pathlib import Path

from carkinetics.model_files import list_models, load_model
from carkinetics.outputs import write_typical

HERE = Path(__file__).parent
HEAD = """# The models

Every model of [`models/`](../models/README.md), with its typical patient over 24 weeks (mice: shorter): all random
effects at zero, the typical dose, no treatment. `carkinetics models NAME` prints equations, numbers and their sources;
this page is written by `python docs/make_gallery.py`.

"""
DAYS = {"barros_2021_hdlm2": 60.0, "barros_2021_raji": 14.0}  # mice


def entry(name: str) -> str:
    """One model's heading, words and figure."""
    model = load_model(name)
    lines = [f"## {name}", "", f"{model.label}.", ""]
    lines += [f"Structure `{model.structure.name}`. {model.reference}, doi:{model.doi}.", ""]
    unknown = model.unknown()
    if unknown:
        lines += [f"Not known: {', '.join(f'`{u}`' for u in unknown)}.", ""]
    if not model.unknown(variability=False, residual=False):
        figure = write_typical(model, HERE / "models", days=DAYS.get(name, 168.0))
        lines += [f"![Typical patient of {name}](models/{figure.name})", ""]
    return "\n".join(lines)


def main() -> None:
    names = [str(name) for name in list_models().index]
    page = HEAD + "\n".join(map(entry, names))
    (HERE / "models.md").write_text(page.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
