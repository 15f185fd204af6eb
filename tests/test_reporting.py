"""The report: nothing that a table or a model says runs, nothing is loaded, and a browser shows what was fitted."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import time
import warnings
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

import carkinetics as ck
import dosing
from browser import Page, chromium
from carkinetics.errors import FitError
from carkinetics.masking import Mask
from carkinetics.page_parts import Section, tabulated
from carkinetics.reporting import report

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(1)>\u2028'


def named(fit, name):
    """The fit, with another name for its first patient."""
    subjects = (name, *fit.data.subjects[1:])
    return dataclasses.replace(fit, data=dataclasses.replace(fit.data, subjects=subjects, source=name))


def responses_of(fit, exposure):
    """Responses of a fit's patients, one of whom has none."""
    rng, ids = np.random.default_rng(1), pd.Index(fit.data.subjects, name="ID")
    orr = pd.Series(rng.permutation([0.0, 1] * 6), ids, name="ORR")
    orr.iloc[3] = np.nan
    crs = pd.Series(rng.permutation([0, 1, 2, 3] * 3), ids, name="CRS")
    pfs = pd.DataFrame({"PFS_TIME": rng.uniform(40, 300, 12).round(), "PFS_EVENT": [1, 0] * 6}, index=ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # twelve patients are few
        return {
            "Response": ck.logistic(exposure["cmax"], orr, seed=2, options=ck.ResponseOptions(missing="drop")),
            "Toxicity": ck.ordinal(exposure["cmax"], crs, seed=3),
            "Survival": ck.tte(exposure["auc_0_28"], pfs, landmark=28, seed=4),
        }


def plan_of():
    """A recommendation, of another trial with a known truth."""
    truth, rng = dosing.Truth(10.2, 0.6, 0.9, (-0.4, 1.3), (-1.0, 0.2, 1.1, 2.5), 0.8), np.random.default_rng(5)
    trial, model = dosing.drawn_trial(truth, 30, rng), dosing.peak_model()
    data = ck.read_dataset(dosing.table_of(trial), units={"DV": "copies/ug"})
    fit = dosing.given_fit(model, data, dosing.posterior_phi(model, trial, rng))
    orr, crs = dosing.responses_of(trial, truth, rng, 3)
    options = ck.DoseOptions(draws=30, simulated=20)
    return ck.recommend(
        fit, efficacy=orr, toxicity=crs, levels=dosing.LEVELS, dose_column="DOSE_PER_KG", seed=4, options=options
    )


@pytest.fixture(scope="module")
def beside(small_fit):
    """What can be given beside a fit: responses, a dose, exposure."""
    exposure = ck.exposure(small_fit, ["cmax", "auc_0_28", "t_last"], allow_failed=True)
    return {"responses": responses_of(small_fit, exposure), "plan": plan_of(), "exposure": exposure}


@pytest.fixture(scope="module")
def written(small_fit, beside, tmp_path_factory):
    """A report with everything, of a fit whose first patient has a hostile name, and what it took."""
    path, begin = tmp_path_factory.mktemp("report") / "trial.html", time.perf_counter()
    effects = pd.DataFrame({"VALUE": [12345.678, float("nan")]}, index=pd.Index([EVIL, "b"], name="EFFECT"))
    named_parts = beside["responses"] | {EVIL: effects}
    report(path, named(small_fit, EVIL), named_parts, beside["plan"], exposure=beside["exposure"], title=EVIL)
    return path, time.perf_counter() - begin


class Tags(HTMLParser):
    """Attributes of all tags, as a browser reads them."""

    def __init__(self):
        super().__init__()
        self.attributes = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(name, value or "") for name, value in attrs]


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="embedded">(.*?)</script>', page, re.DOTALL)[1])


def test_what_others_wrote_is_text(written):
    """If it fails, an identifier or a title can run a script in a reviewer's browser."""
    page = written[0].read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == 2  # the page's own data and program
    assert "<img src=x" not in page
    assert "\u2028" not in "".join(re.findall(r"<script.*?</script>", page, re.DOTALL))
    assert str(escape(EVIL)) in page
    assert embedded(page)["patients"][0]["id"] == EVIL


def test_nothing_is_loaded_and_only_its_own_program_may_run(written):
    """If it fails, the page needs a network, or its policy does not hold what it says."""
    page = written[0].read_text("utf-8")
    found = Tags()
    found.feed(page)
    names = {name for name, _ in found.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("style", "srcset", "action")]
    assert all(value.startswith("data:image/png") for name, value in found.attributes if name == "src")
    assert all(value.startswith("#") for name, value in found.attributes if name == "href")
    own = "".join(re.findall(r"<style>.*?</style>|<script>.*?</script>", page, re.DOTALL))
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(", own)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    for kind, pattern in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        text = re.search(pattern, page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in html.unescape(policy)


def test_what_it_shows_is_what_was_fitted(written, small_fit):
    """If it fails, a sample is missing from the browser of patients, or a table shows other numbers."""
    page, data = written[0].read_text("utf-8"), small_fit.data
    patients = embedded(page)["patients"]
    assert len(patients) == data.n_subjects
    samples = [s for p in patients for panel in p["panels"] for s in panel["samples"]]
    assert len(samples) == data.n_obs
    for (t, dv, cens), *wanted in zip(samples, data.time, data.dv, data.cens, strict=True):
        assert (t, cens) == (wanted[0], wanted[2])
        assert dv == pytest.approx(wanted[1], rel=1e-3)
    assert f"{small_fit.parameters().loc['alpha', 'TV']:.4g}" in page
    assert ">12,346<" in page
    assert ">nan<" not in page.lower()
    assert data.sha256 in page
    assert small_fit.check().status in re.search(r'<p class="flag ([a-z]+)"', page)[1]


def test_it_is_small_and_made_in_time(written):
    """If it fails, a report of a trial cannot be sent or takes a coffee break."""
    path, seconds = written
    assert path.stat().st_size < 10e6
    assert seconds < 60  # twelve patients beside whatever else runs; benchmarks tell the 20 s of a trial
    assert [p.name for p in path.parent.iterdir()] == ["trial.html"]


class Failed:
    """A response model that failed."""

    def __init__(self, fit):
        self.fit = fit

    def check(self):
        return dataclasses.replace(self.fit.check(), status="failed", reasons=("separation: everybody responded",))


@pytest.mark.thorough
def test_the_worst_status_stands_on_top_and_the_same_fit_gives_the_same_bytes(small_fit, tmp_path):
    """If it fails, a failed response is sent under a green flag, or two reports of one fit cannot be told the same."""
    fit = named(small_fit, "NAMED-PATIENT")
    page, again = (
        report(tmp_path / f"{k}.html", fit, [Failed(small_fit)], patients=False, title="t").read_text("utf-8")
        for k in "ab"
    )
    assert page == again
    assert re.search(r'<p class="flag (\w+)"', page)[1] == "failed"
    assert '<span class="flag failed">failed</span></td><th scope="row"><a href="#part-0">Response 1</a>' in page
    assert "separation: everybody responded" in page
    assert embedded(page)["patients"] == []
    body = page.replace("Source: NAMED-PATIENT", "")
    assert body.count("NAMED-PATIENT") <= 1  # the data's source, in the record
    with pytest.raises(FitError, match="does not exist"):
        report(tmp_path / "none" / "a.html", small_fit)


def test_no_identifier_leaves_with_pseudonyms(small_fit, beside, tmp_path):
    """If it fails, exposures, notes or left-out rows still name patients although they were asked not to."""
    page = report(tmp_path / "c.html", small_fit, **beside, pseudonyms=True).read_text("utf-8")
    ids = small_fit.data.subjects
    assert [p["id"] for p in embedded(page)["patients"]] == [str(k + 1) for k in range(len(ids))]
    text = html.unescape(re.sub(r"data:image/png;base64,[^\"]*", "", page))
    assert [i for i in ids if re.search(rf"\b{i}\b", text)] == []
    assert "1 patients have no outcome (4)" in text  # by number
    assert "Exposure of every patient" not in text


def test_identifiers_in_reasons_notes_and_tables_become_numbers():
    """If it fails, a patient's name leaves the building in a sentence, or a number that is no name is changed."""
    mask = Mask(["V07", "V12", "P.3"])
    assert mask.text("No Gaussian fits patient(s) V12, V07: look.") == "No Gaussian fits patient(s) 2, 1: look."
    assert mask.text("not finite: patient V07 (3 of 8), V12 (1 of 8)") == "not finite: patient 1 (3 of 8), 2 (1 of 8)"
    assert mask.text("2 patients have none (V07 and P.3)") == "2 patients have none (1 and 3)"
    assert mask.text("V070 and xV07") == "V070 and xV07"
    numbers = Mask(["101", "102", "5"])
    assert numbers.text("patients 101, 5 and 102: late") == "patients 1, 3 and 2: late"
    said = "5 patients (4 at 1 and 2 at 5) have 102 samples"
    assert numbers.text(said) == said
    assert numbers.text("2 patients have no WT (102 and 5)") == "2 patients have no WT (2 and 3)"
    table = tabulated(pd.DataFrame({"DAY": [5.0]}, index=pd.Index(["102"], name="ID")))
    assert numbers.section(Section("a", "a", tables=[table])).tables[0].rows == [["2", "5"]]


def test_numbers_are_not_broken_and_only_words_stand_to_the_left():
    """If it fails, 22,648 is read as 22,64 and 8, or a column of numbers as words."""
    table = tabulated(pd.DataFrame({"TV": [22648.0, 0.00044], "UNIT": ["copies/ug", "1"], "FLAG": [True, False]}))
    assert table.columns == ["TV", "UNIT", "FLAG"]  # an index that only counts is no column
    assert table.rows == [["22,648", "copies/ug", "yes"], ["0.00044", "1", "no"]]
    assert table.numeric == [True, False, False]
    style = (files("carkinetics") / "page" / "report.css").read_text("utf-8")
    assert "td, tbody th { white-space: nowrap; }" in style


def test_what_a_reviewer_asks_for_is_there(written, small_fit):
    """If it fails, a part of the fit, or of what was given beside it, is missing from the page."""
    text = html.unescape(written[0].read_text("utf-8"))
    titles = [t for t in re.findall(r"<h2>(.*?)</h2>", text) if t != EVIL]
    assert titles == [
        "Can this fit be trusted?", "Parameters", "Fit and data", "Does the model predict such a trial?",
        "What the data told", "Patient by patient", "Exposure", "Response", "Toxicity", "Survival", "Dose", "Data",
        "Model and priors", "Record",
    ]  # fmt: skip
    for words in (
        "Prior (grey) and posterior", "Goodness of fit", "Individual fits", "Visual predictive check", "NPDE, qpcr",
        "ORR by exposure", "CRS by exposure", "PFS by halves", "Benefit against harm", "Expected utility",
        "Late rises", "Shrinkage.", "the least known first", "The trial among simulated ones", "not in the likelihood",
        "What it rests on", "Exposure of every patient", "Simulated with the fit's seed, 3",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("data:image/png;base64,") == 15
    assert f">{ck.shrinkage(small_fit).loc['tmax', 'SHRINKAGE %']:.4g}</td>" in text
    record = text[text.index('id="record"') :]
    for word in ("seed", "versions", "settings", "data_sha256", "model_sha256"):
        assert f">{word}<" in record
    assert small_fit.data.sha256 in record
    found = re.findall(r'<span class="flag (\w+)">\w+</span></td><th scope="row"><a href="#[\w-]+">(\w+)</a>', text)
    flags = {name: status for status, name in found}
    assert flags["Fit"] == small_fit.check().status
    assert set(flags) == {"Fit", "Response", "Toxicity", "Survival", "Dose"}


@pytest.mark.skipif(chromium() is None, reason="no Chromium here; CARKINETICS_CHROMIUM can name one")
def test_a_browser_shows_it(written, tmp_path):
    """If it fails, the browser of patients does not work, or the console has errors."""
    page = Page(chromium(), tmp_path)
    try:
        page.open(written[0])
        assert page.evaluate("document.title") == EVIL.replace("\u2028", " ") or EVIL in page.evaluate("document.title")
        assert page.evaluate("document.querySelector('#patient').selectedIndex") == 0
        before = page.evaluate("document.querySelector('#curve svg .curve').getAttribute('d')")
        page.evaluate("document.querySelector('#next').click()")
        assert page.evaluate("document.querySelector('#patient').selectedIndex") == 1
        after = page.evaluate("document.querySelector('#curve svg .curve').getAttribute('d')")
        assert before != after
        assert "NaN" not in page.evaluate("document.querySelector('#curve').innerHTML")
        page.evaluate("document.querySelector('#linear').click()")
        assert page.evaluate("document.querySelector('#curve svg .curve').getAttribute('d')") != after
        page.evaluate("document.querySelector('#previous').click(); document.querySelector('#previous').click()")
        n = page.evaluate("document.querySelector('#patient').options.length")
        assert page.evaluate("document.querySelector('#patient').selectedIndex") == n - 1
        assert page.evaluate("document.querySelectorAll('img').length") == 15
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 3
        cells = "[...document.querySelectorAll('td:not(.long)')]"
        assert page.evaluate(f"{cells}.every(c => getComputedStyle(c).whiteSpace === 'nowrap')")
        assert page.errors == []
    finally:
        page.close()
