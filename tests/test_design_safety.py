"""What every design must hold: a toxicity never raises the dose, order is irrelevant, stop is None."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import carkinetics as ck
from carkinetics.design.evidence import Evidence
from tiers import tiered

GUESSES = (0.05, 0.12, 0.25, 0.40, 0.55)
AMOUNTS = (1e6, 2e6, 4e6, 8e6, 16e6)
DESIGNS = {
    "3+3": ck.design.three_plus_three(AMOUNTS),
    "3+3 without de-escalation": ck.design.three_plus_three(AMOUNTS, deescalate=False),
    "boin": ck.design.boin(0.3, AMOUNTS),
    "boin 0.2": ck.design.boin(0.2, AMOUNTS, rules=(ck.design.NoSkipping(), ck.design.Elimination())),
    "keyboard": ck.design.keyboard(0.3, AMOUNTS),
    "mtpi2": ck.design.mtpi2(0.25, AMOUNTS),
    "crm": ck.design.crm(GUESSES, 0.25, AMOUNTS),
    "crm mean": ck.design.crm(GUESSES, 0.25, AMOUNTS, estimate="mean"),
    "crm logistic": ck.design.crm(GUESSES, 0.25, AMOUNTS, model="logistic"),
    "tite": ck.design.tite_crm(GUESSES, 0.25, AMOUNTS),
    "blrm": ck.design.blrm(AMOUNTS),
}
TIERS = tiered(DESIGNS, thorough=set(DESIGNS) - {"3+3", "boin", "crm", "tite"})


@st.composite
def trials(draw, levels=5):
    """A table of patients in cohorts whose level changes by one at most."""
    rows, level = [], 1
    for cohort in range(1, draw(st.integers(1, 6)) + 1):
        for _ in range(draw(st.integers(1, 4))):
            rows.append({"COHORT": cohort, "LEVEL": level, "DLT": draw(st.integers(0, 1))})
        level = min(max(level + draw(st.integers(-1, 1)), 1), levels)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", TIERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_more_toxicity_never_raises_the_dose(name, data):
    """If it fails, a patient's toxicity would send the next patients to a higher dose."""
    table = data.draw(trials())
    free = table.index[table["DLT"] == 0]
    if not len(free):
        return
    worse = table.copy()
    worse.loc[data.draw(st.sampled_from(list(free))), "DLT"] = 1
    before, after = DESIGNS[name].recommend(table).dose, DESIGNS[name].recommend(worse).dose
    assert (after or 0) <= (before or 0)


@pytest.mark.parametrize("name", TIERS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_order_of_a_cohorts_patients_is_irrelevant(name, data):
    """If it fails, the dose depends on which of three patients was written first."""
    table = data.draw(trials())
    parts = [part.iloc[data.draw(st.permutations(range(len(part))))] for _, part in table.groupby("COHORT")]
    again = pd.concat(parts, ignore_index=True)
    one, other = DESIGNS[name].recommend(table), DESIGNS[name].recommend(again)
    assert one.dose == other.dose and one.decision == other.decision
    pd.testing.assert_frame_equal(one.table, other.table, rtol=1e-12)


@pytest.mark.parametrize("name", TIERS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_unit_of_the_doses_is_irrelevant(name, data):
    """If it fails, a trial in cells and one in millions of cells get different doses."""
    table, design = data.draw(trials()), DESIGNS[name]
    small = tuple(d / 1e6 for d in design.setting.doses)
    changed = {"setting": design.setting._replace(doses=small)}
    if name == "blrm":
        changed["reference"] = design.reference / 1e6
    other = dataclasses.replace(design, **changed)
    assert design.recommend(table).dose == other.recommend(table).dose
    assert other.recommend(table).amount in (None, *small)


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("start", [1, 3])
def test_without_patients_the_starting_level_is_recommended(name, start):
    """If it fails, a trial starts elsewhere than its protocol says."""
    design = DESIGNS[name]
    design = dataclasses.replace(design, setting=design.setting._replace(start=start))
    decision = design.recommend()
    assert (decision.dose, decision.decision) == (start, "start")
    assert decision.amount == AMOUNTS[start - 1]
    assert decision.table["RECOMMENDED"].tolist() == [k == start for k in range(1, 6)]


@pytest.mark.parametrize("name", DESIGNS)
def test_only_toxicities_at_the_lowest_level_stop_the_trial_and_stop_is_none(name):
    """If it fails, a stop is a number, and doses[-1] is the highest dose."""
    design = DESIGNS[name]
    decision = design.recommend("1TTT 1TTT")
    assert decision.dose is None and decision.amount is None
    assert decision.decision == "stop"
    assert not decision.table["RECOMMENDED"].any()
    assert design.select("1TTT 1TTT").dose is None
    assert decision.trace[-1].after is None


@pytest.mark.parametrize("name", DESIGNS)
def test_decisions_are_pure(name):
    """If it fails, asking twice gives two answers, or asking changes the table."""
    table = ck.design.outcomes("1NNN 2NNT 2NNN")
    kept = table.copy()
    one, other = DESIGNS[name].recommend(table), DESIGNS[name].recommend(table)
    pd.testing.assert_frame_equal(table, kept)
    assert str(one) == str(other)


@pytest.mark.parametrize("name", [t for t in TIERS if t.id != "tite"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_many_trials_at_once_are_decided_as_one_by_one(name, data):
    """If it fails, what is simulated is not what is recommended."""
    tables = [data.draw(trials()) for _ in range(3)]
    design, levels = DESIGNS[name], np.arange(1, 6)

    def counts(of):
        return np.array([[(of(t) & (t["LEVEL"] == k)).sum() for k in levels] for t in tables], float)

    treated, toxic = counts(lambda t: t["DLT"] >= 0), counts(lambda t: t["DLT"] == 1)
    current = np.array([int(t["LEVEL"].iloc[-1]) for t in tables])
    found = design.next_levels(Evidence(treated, toxic, np.zeros((3, 5)), np.zeros((3, 5)), current))
    assert [level or None for level in found.level.tolist()] == [design.recommend(t).dose for t in tables]
