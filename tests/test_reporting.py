"""The report: nothing that a table or a model says runs, nothing is loaded, and a browser shows what was fitted."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
from markupsafe import escape

from browser import Page, chromium
from carkinetics.errors import FitError
from carkinetics.reporting import report

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(1)>\u2028'


def named(fit, name):
    """The fit, with another name for its first patient."""
    subjects = (name, *fit.data.subjects[1:])
    return dataclasses.replace(fit, data=dataclasses.replace(fit.data, subjects=subjects, source=name))


@pytest.fixture(scope="module")
def written(small_fit, tmp_path_factory):
    """A report of a fit whose first patient has a hostile name, and what it took."""
    path, begin = tmp_path_factory.mktemp("report") / "trial.html", time.perf_counter()
    effects = pd.DataFrame({"VALUE": [12345.678, float("nan")]}, index=pd.Index([EVIL, "b"], name="EFFECT"))
    report(path, named(small_fit, EVIL), {EVIL: effects}, title=EVIL)
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


def test_the_worst_status_stands_on_top(small_fit, tmp_path):
    """If it fails, a failed response model is sent under a green flag."""

    class Failed:
        """A response model that failed."""

        def check(self):
            return dataclasses.replace(small_fit.check(), status="failed", reasons=("separation: everybody responded",))

    path = report(tmp_path / "a.html", small_fit, [Failed()], patients=False)
    page = path.read_text("utf-8")
    assert '<p class="flag failed"' in page
    assert "separation: everybody responded" in page


def test_without_patients_there_are_none(small_fit, tmp_path):
    """If it fails, an identifier leaves the building although it was asked not to."""
    fit = named(small_fit, "NAMED-PATIENT")
    for options in ({"patients": False}, {"pseudonyms": True}):
        page = report(tmp_path / "b.html", fit, title="t", **options).read_text("utf-8")
        body = page.replace("Source: NAMED-PATIENT", "")
        assert body.count("NAMED-PATIENT") <= 1  # the data's source, in the record
        assert [p["id"] for p in embedded(page)["patients"]][:2] == (["1", "2"] if "pseudonyms" in options else [])


def test_the_same_fit_gives_the_same_bytes(small_fit, tmp_path):
    """If it fails, two reports of one fit cannot be told to be the same."""
    first, second = (report(tmp_path / f"{k}.html", small_fit, patients=False).read_bytes() for k in "ab")
    assert first == second
    with pytest.raises(FitError, match="does not exist"):
        report(tmp_path / "none" / "a.html", small_fit)


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
        assert page.evaluate("document.querySelectorAll('img').length") >= 3
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.errors == []
    finally:
        page.close()
