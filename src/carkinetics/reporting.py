"""A report: one HTML file that can be sent, opened without a network, and printed."""

import json
import os
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from carkinetics import sections
from carkinetics.diagnostics import individual_curves
from carkinetics.errors import FitError
from carkinetics.fit_result import Fit
from carkinetics.sections import Section

POINTS = 80  # of a patient's curve
WORST = ("failed", "warning", "approximation", "ok")


def report(
    path: str | os.PathLike[str],
    fit: Fit,
    responses: Sequence[Any] | Mapping[str, Any] = (),
    plan: Any = None,
    *,
    exposure: Any = None,
    title: str = "",
    patients: bool = True,
    pseudonyms: bool = False,
) -> Path:
    """Write a report of a fit as one self-contained HTML file.

    The worst status of all parts stands on top. Every text from the data or the model is escaped, nothing is loaded
    from elsewhere, and the page's own policy forbids it.

    Parameters
    ----------
    path : path
        Where it is written; replaced only when it is complete.
    fit : Fit
    responses : sequence or mapping
        Response models, or tables; of a mapping, by title.
    plan : optional
        A dose recommendation.
    exposure : Exposure, optional
    title : str
        By default the model's name.
    patients : bool
        Whether single patients are in it: the browser, the figure of individual fits, the rows left out.
    pseudonyms : bool
        Call patients 1, 2, 3, ... in the browser and leave their other mentions out, as ``patients=False`` does.

    Returns
    -------
    Path

    Raises
    ------
    FitError
        The folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FitError(f"{path.name}: the folder {path.parent.name!r} does not exist. Create it first.")
    named = responses if isinstance(responses, Mapping) else {f"Response {i + 1}": r for i, r in enumerate(responses)}
    parts = _sections(fit, single=patients and not pseudonyms)
    if patients:
        parts.insert(-1, Section("patients", "Patient by patient"))
    beside = ({"Exposure": exposure} if exposure is not None else {}) | dict(named)
    beside |= {"Dose": plan} if plan is not None else {}
    for k, (name, found) in enumerate(beside.items()):
        parts.insert(-1, sections.of_verb(f"part-{k}", name, found))
    statuses = [fit.check().status, *(found.check().status for found in beside.values() if hasattr(found, "check"))]
    page = _page(
        title=title or f"Fit of {fit.model.name}",
        status=min(statuses, key=lambda s: WORST.index(s) if s in WORST else 1),
        summary=_summary(fit),
        verdict=[line.removeprefix("- ") for line in str(fit.check()).splitlines()[:4]],
        sections=parts,
        version=version("carkinetics"),
        data=_embedded({"patients": _patients(fit, pseudonyms) if patients else []}),
    )
    return _written(path, page)


def _sections(fit: Fit, *, single: bool) -> list[Section]:
    found = [
        sections.of_convergence(fit),
        sections.of_parameters(fit),
        sections.of_figures(fit),
        sections.of_data(fit),
        sections.of_model(fit),
        sections.of_record(fit),
    ]
    if single:
        return found
    figures, data = found[2], found[3]
    found[2] = Section(figures.id, figures.title, figures=figures.figures[:1])
    found[3] = Section(data.id, data.title, data.lines[:1], data.tables[:2])
    return found


def _summary(fit: Fit) -> str:
    data, below = fit.data, int((fit.data.cens == 1).sum())
    share = 100 * below / max(data.n_obs, 1)
    how = fit.label or f"posterior by {fit.method}"
    return (
        f"{data.n_subjects} patients, {data.n_obs} samples ({share:.0f} % below a limit), model {fit.model.name}, "
        f"{how}, seed {fit.tree.attrs['seed']}."
    )


def _patients(fit: Fit, pseudonyms: bool) -> list[dict]:
    """Curves and samples of every patient, as the page's script reads them."""
    data, curves = fit.data, individual_curves(fit, points=POINTS)
    by_patient = dict(tuple(curves.groupby("ID", sort=False)))
    units = {a.name: a.unit for a in fit.model.assays}
    found = []
    for i, name in enumerate(data.subjects):
        mine, panels = data.subject == i, []
        for assay, curve in by_patient[name].groupby("DVID", sort=False):
            here = mine & (np.array([a == assay for a in data.assays])[data.assay] if data.n_obs else mine)
            panel = {"assay": str(assay), "unit": units[str(assay)]}
            columns = {"time": "TIME", "curve": "IPRED", "low": "LOW", "high": "HIGH", "typical": "PRED"}
            panel |= {key: _numbers(curve[column].to_numpy()) for key, column in columns.items()}
            samples = zip(data.time[here].tolist(), _numbers(data.dv[here]), data.cens[here].tolist(), strict=True)
            panels.append(panel | {"samples": [list(s) for s in samples]})
        facts = f"{int(mine.sum())} samples, {int((data.cens[mine] == 1).sum())} below a limit."
        found.append({"id": str(i + 1) if pseudonyms else name, "panels": panels, "facts": facts})
    return found


def _numbers(values: np.ndarray) -> list[float]:
    """To four digits, which is more than a pixel; JSON has no infinity."""
    return [float(f"{v:.4g}") for v in np.nan_to_num(values.astype(float), nan=0.0, posinf=1e300, neginf=0.0)]


def _embedded(content: dict) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _page(**content: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    folder = files("carkinetics") / "page"
    style, script, template = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("css", "js", "html.j2"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    return environment.from_string(template).render(style=style, script=script, **hashes, **content)


def _hash(text: str) -> str:
    """What a Content Security Policy calls this inline text."""
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _written(path: Path, page: str) -> Path:
    """All of it, or the old file."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        try:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    Path(file.name).replace(path)
    return path
