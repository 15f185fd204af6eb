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

from carkinetics import sections, sections_checks
from carkinetics.errors import FitError
from carkinetics.fit_result import Fit
from carkinetics.masking import Mask
from carkinetics.page_parts import Section
from carkinetics.sections_beside import badness, beside, status_of
from carkinetics.sections_checks import Judged, judged


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

    The worst status of all parts stands on top, and the status of each with its first reason below it. It has
    parameters, goodness of fit, individual fits, predictive checks, what the data told, every patient, what is given
    beside the fit, data with what was left out, model, priors, settings and versions. Trials are simulated with the
    fit's own seed. Every text from the data or the model is escaped, nothing is loaded from elsewhere, and the page's
    own policy forbids it.

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
        Whether single patients are in it: the browser, individual fits and exposures, the rows left out.
    pseudonyms : bool
        Call patients 1, 2, 3, ... in the browser and leave their other mentions out, as ``patients=False`` does. With
        either, identifiers in reasons and notes become these numbers; a table that was given keeps what is in it, but
        for a column called ``ID``.

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
    given = ({"Exposure": exposure} if exposure is not None else {}) | dict(named)
    given |= {"Dose": plan} if plan is not None else {}
    single = patients and not pseudonyms
    found = judged(fit)
    parts = _sections(fit, found, given, single=single, browser=patients)
    flags = _flags(fit, given)
    if not single:
        mask = Mask(fit.data.subjects)
        parts = [mask.section(part) for part in parts]
        flags = [flag | {"reason": mask.text(flag["reason"])} for flag in flags]
    page = _page(
        title=title or f"Fit of {fit.model.name}",
        status=min((flag["status"] for flag in flags), key=badness),
        summary=_summary(fit),
        flags=flags,
        sections=parts,
        version=version("carkinetics"),
        data=_embedded({"patients": _patients(fit, found, pseudonyms) if patients else []}),
    )
    return _written(path, page)


def _sections(fit: Fit, found: Judged, given: Mapping[str, Any], *, single: bool, browser: bool) -> list[Section]:
    parts = [
        sections.of_convergence(fit),
        sections.of_parameters(fit),
        sections_checks.of_figures(fit, found, single=single),
        sections_checks.of_predictions(fit, found),
        sections_checks.of_information(fit),
    ]
    if browser:
        parts.append(Section("patients", "Patient by patient"))
    parts += [beside(f"part-{k}", name, part, single=single) for k, (name, part) in enumerate(given.items())]
    data = sections.of_data(fit)
    if not single:  # notes and single rows name patients
        rows = [t for t in data.tables if "ID" not in t.columns]
        data = Section(data.id, data.title, data.lines[:1], rows)
    return [*parts, data, sections.of_model(fit), sections.of_record(fit, single=single)]


def _flags(fit: Fit, given: Mapping[str, Any]) -> list[dict[str, str]]:
    """The status of the fit and of every part that has one, with its first reason."""
    check = fit.check()
    reason = check.reasons[0] if check.reasons else str(check).splitlines()[0].partition(": ")[2]
    flags = [{"id": "convergence", "name": "Fit", "status": check.status, "reason": reason}]
    for k, (name, part) in enumerate(given.items()):
        status, reason = status_of(part)
        if status:
            flags.append({"id": f"part-{k}", "name": name, "status": status, "reason": reason})
    return flags


def _summary(fit: Fit) -> str:
    data, below = fit.data, int((fit.data.cens == 1).sum())
    share = 100 * below / max(data.n_obs, 1)
    how = fit.label or f"posterior by {fit.method}"
    return (
        f"{data.n_subjects} patients, {data.n_obs} samples ({share:.0f} % below a limit), model {fit.model.name}, "
        f"{how}, seed {fit.tree.attrs['seed']}."
    )


def _patients(fit: Fit, found: Judged, pseudonyms: bool) -> list[dict]:
    """Curves and samples of every patient, as the page's script reads them."""
    data, units = fit.data, {a.name: a.unit for a in fit.model.assays}
    by_patient = dict(tuple(found.curves.groupby("ID", sort=False)))
    columns = {"time": "TIME", "curve": "IPRED", "low": "IPRED_5", "high": "IPRED_95", "typical": "PRED"}
    columns |= {"lower": "NEW_5", "higher": "NEW_95"}
    people = []
    for i, name in enumerate(data.subjects):
        mine, panels = data.subject == i, []
        for assay, curve in by_patient[name].groupby("DVID", sort=False):
            here = mine & (np.array([a == assay for a in data.assays])[data.assay] if data.n_obs else mine)
            panel = {"assay": str(assay), "unit": units[str(assay)]}
            panel |= {key: _numbers(curve[column].to_numpy()) for key, column in columns.items()}
            samples = zip(data.time[here].tolist(), _numbers(data.dv[here]), data.cens[here].tolist(), strict=True)
            panels.append(panel | {"samples": [list(s) for s in samples]})
        facts = f"{int(mine.sum())} samples, {int((data.cens[mine] == 1).sum())} below a limit."
        people.append({"id": str(i + 1) if pseudonyms else name, "panels": panels, "facts": facts})
    return people


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
