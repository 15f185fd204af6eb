"""Operating characteristics, exact ones, pathways and tables of boundaries."""

import itertools
import time

import numpy as np
import pandas as pd
import pytest

import carkinetics as ck

TRUTH = (0.05, 0.15, 0.3, 0.45, 0.6)
BOIN = ck.design.boin(0.3, 5)


def test_ten_thousand_trials_take_seconds():
    """BOIN, 5 doses, 36 patients: 0.6 s when it was measured. If it fails, nobody compares designs any more."""
    begin = time.process_time()
    found = ck.design.simulate(BOIN, TRUTH, 10_000, seed=1, patients=36)
    assert time.process_time() - begin < 10
    assert found.patients.sum(axis=1).max() == 36
    assert found.table["SELECTED"].sum() + found.summary.loc["stopped", "VALUE"] == pytest.approx(1)


@pytest.mark.parametrize(
    "design",
    [
        BOIN,
        ck.design.keyboard(0.25, 5),
        ck.design.three_plus_three(5),
        ck.design.crm((0.05, 0.12, 0.25, 0.40, 0.55), 0.25),
        pytest.param(
            ck.design.blrm((1.0, 2.0, 4.0, 8.0, 16.0), control=ck.design.OverdoseControl(monotone=False)),
            marks=pytest.mark.thorough,
        ),
    ],
    ids=lambda d: d.name,
)
def test_simulated_and_enumerated_trials_agree(design):
    """Twelve patients, all shares and means within four standard errors. If it fails, one of the two is wrong."""
    exact = ck.design.exact(design, TRUTH, patients=12)
    drawn = ck.design.simulate(design, TRUTH, 3000, seed=3, patients=12)
    for column in ("SELECTED", "PATIENTS", "DLT"):
        error = np.maximum(drawn.table[f"{column}_SE"], 1e-3)
        assert ((drawn.table[column] - exact.table[column]).abs() / error).max() < 4
    assert exact.table["SELECTED"].sum() + exact.summary.loc["stopped", "VALUE"] == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(
        exact.table["DLT"], exact.table["PATIENTS"] * np.array(TRUTH), rtol=1e-9
    )  # Wald's identity


def test_the_enumeration_is_that_of_every_single_trial():
    """All 4**3 trials of three cohorts, one by one through `recommend`, with binomial probabilities.

    If it fails, merging of states or probabilities are wrong.
    """
    from math import comb

    truth = (0.2, 0.4, 0.5)
    design = ck.design.boin(0.3, 3)
    selected, patients = np.zeros(4), np.zeros(3)
    for counts in itertools.product(range(4), repeat=3):
        trial, mass, ended = "", 1.0, False
        for y in counts:
            decision = design.recommend(trial or None)
            if decision.dose is None:
                ended = True
                mass *= 1 / 4  # the other three outcomes of this cohort are the same trial
                continue
            p = truth[decision.dose - 1]
            mass *= comb(3, y) * p**y * (1 - p) ** (3 - y)
            trial += f" {decision.dose}{'T' * y}{'N' * (3 - y)}"
        last = None if ended else design.select(trial).dose
        selected[last or 0] += mass
        levels = ck.design.outcomes(trial)["LEVEL"]
        patients += mass * np.array([(levels == k).sum() for k in (1, 2, 3)])
    found = ck.design.exact(design, truth, patients=9)
    assert found.table["SELECTED"].tolist() == pytest.approx(selected[1:].tolist(), abs=1e-12)
    assert found.summary.loc["stopped", "VALUE"] == pytest.approx(selected[0], abs=1e-12)
    assert found.table["PATIENTS"].tolist() == pytest.approx(patients.tolist(), abs=1e-12)


def test_a_replicate_is_the_same_in_any_company():
    """If it fails, the answer depends on how many trials are simulated together, or by how many workers."""
    many = ck.design.simulate(BOIN, TRUTH, 200, seed=5)
    few = ck.design.simulate(BOIN, TRUTH, 50, seed=5)
    np.testing.assert_array_equal(many.selected[:50], few.selected)
    np.testing.assert_array_equal(many.dlt[:50], few.dlt)
    other = ck.design.simulate(BOIN, TRUTH, 50, seed=6)
    assert (other.dlt != few.dlt).any()


def test_slow_accrual_of_a_tite_design_is_the_crm():
    """With complete follow-up before the next patient the weights are 1. If it fails, the calendar loses patients."""
    guesses = (0.05, 0.12, 0.25, 0.40, 0.55)
    tite, crm = ck.design.tite_crm(guesses, 0.25, window=28.0), ck.design.crm(guesses, 0.25)
    late = ck.design.simulate_late(tite, TRUTH, 60, seed=7, patients=15, every=30.0)
    full = ck.design.simulate(crm, TRUTH, 60, seed=7, patients=15, cohort=1)
    np.testing.assert_array_equal(late.patients, full.patients)
    np.testing.assert_array_equal(late.dlt, full.dlt)
    np.testing.assert_array_equal(late.selected, full.selected)


def test_fast_accrual_of_a_tite_design_knows_less_and_goes_on():
    """Six patients within one window. If it fails, outcomes are known before they happen."""
    tite = ck.design.tite_crm((0.05, 0.12, 0.25, 0.40, 0.55), 0.25, window=28.0)
    fast = ck.design.simulate_late(tite, (0.6,) * 5, 60, seed=7, patients=12, every=1.0)
    slow = ck.design.simulate_late(tite, (0.6,) * 5, 60, seed=7, patients=12, every=30.0)
    assert fast.summary.loc["patients", "VALUE"] > slow.summary.loc["patients", "VALUE"] + 1
    with pytest.raises(ck.DesignError, match="use simulate_late"):
        ck.design.simulate(tite, TRUTH, 10, seed=1)
    with pytest.raises(ck.DesignError, match="needs complete outcomes"):
        ck.design.simulate_late(BOIN, TRUTH, 10, seed=1)


def test_standard_errors_are_those_of_repeated_simulations():
    """Spread over 40 simulations of 250 trials. If it fails, the printed Monte Carlo error is wrong."""
    runs = [ck.design.simulate(BOIN, TRUTH, 250, seed=s, patients=18).table for s in range(40)]
    for column in ("SELECTED", "PATIENTS"):
        spread = np.std([r[column][2] for r in runs], ddof=1)
        stated = np.mean([r[f"{column}_SE"][2] for r in runs])
        assert 0.7 < spread / stated < 1.4


def test_a_trial_ends_once_enough_patients_had_the_next_level():
    """If it fails, a trial goes on where its protocol stops it."""
    found = ck.design.simulate(BOIN, TRUTH, 300, seed=2, patients=60, enough=12)
    assert found.patients.max() <= 12 + 3
    assert found.summary.loc["patients", "VALUE"] < 45


def test_overdosed_patients_and_correct_selections_are_counted():
    """If it fails, the safety column of a comparison is wrong."""
    found = ck.design.simulate(BOIN, TRUTH, 500, seed=4)
    assert found.summary.loc["overdosed", "VALUE"] == pytest.approx(found.patients[:, 3:].sum(axis=1).mean())
    assert found.summary.loc["correct", "VALUE"] == pytest.approx((found.selected == 3).mean())


def test_all_levels_too_toxic_stop_most_trials():
    """DLT probability 0.6 at the lowest level. If it fails, stop is read as the highest level."""
    found = ck.design.simulate(BOIN, (0.6, 0.7, 0.8, 0.85, 0.9), 500, seed=4)
    assert found.summary.loc["stopped", "VALUE"] > 0.85
    assert found.table["SELECTED"][4] == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ck.design.simulate(BOIN, TRUTH[:4], seed=1), "truth has 4 levels and the design 5"),
        (lambda: ck.design.simulate(BOIN, (5, 15, 30, 45, 60), seed=1), "must lie between 0 and 1"),
        (lambda: ck.design.simulate(BOIN, TRUTH, 0, seed=1), "at least 1"),
        (lambda: ck.design.simulate(ck.design.boin(0.3), TRUTH, seed=1), "none yet"),
        (lambda: ck.design.paths(BOIN, cohorts=9), "4096 at most"),
        (lambda: ck.design.paths(BOIN, "1NNP"), "pending"),
        (lambda: ck.design.boundaries(ck.design.three_plus_three(5)), "no table of boundaries"),
    ],
)
def test_what_cannot_be_is_refused(call, said):
    """If it fails, a wrong comparison runs, or the message does not say what is wrong."""
    with pytest.raises(ck.DesignError, match=said):
        call()


@pytest.mark.parametrize("design", [BOIN, ck.design.three_plus_three(5), ck.design.mtpi2(0.3, 5)], ids=lambda d: d.name)
def test_pathways_are_exhaustive_and_say_what_recommend_says(design):
    """If it fails, a way in which the trial can turn out is missing in the safety plan."""
    found = ck.design.paths(design, "1NNN", cohorts=2)
    pairs = set(zip(found["DLT_1"], found["DLT_2"].fillna(-1), strict=True))
    assert len(pairs) == len(found)
    for first, part in found.groupby("DLT_1"):
        assert len(part) == 4 or part["DLT_2"].isna().all(), first
    for row in found.dropna(subset=["DLT_2"]).itertuples():
        trial = f"1NNN {row.LEVEL_1}{'T' * row.DLT_1}{'N' * (3 - row.DLT_1)}"
        trial += f" {row.LEVEL_2}{'T' * row.DLT_2}{'N' * (3 - row.DLT_2)}"
        decision = design.recommend(trial)
        assert decision.decision == row.DECISION
        assert (None if pd.isna(row.NEXT) else row.NEXT) == decision.dose


def test_a_path_that_stops_ends():
    """3 of 3 at the lowest level. If it fails, paths go on after a stop, at some level."""
    found = ck.design.paths(BOIN, cohorts=2)
    row = found[found["DLT_1"] == 3]
    assert len(row) == 1
    assert row["DECISION"].item() == "stop" and row["NEXT"].isna().all() and row["LEVEL_2"].isna().all()


def test_tables_are_written_as_csv_and_as_html_that_needs_nothing(tmp_path):
    """If it fails, a table cannot be printed for a site, or runs a script there."""
    table = ck.design.boundaries(BOIN, 12)
    back = pd.read_csv(ck.design.write_table(table, tmp_path / "boin.csv"), dtype="Int64")
    pd.testing.assert_frame_equal(back, table)
    path = ck.design.write_table(table, tmp_path / "boin.html", title="<script>alert(1)</script>", note="a & b")
    text = path.read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text and "a &amp; b" in text
    assert "http" not in text.replace("http-equiv", "") and "src=" not in text
    assert text.count("<tr>") == 13
    with pytest.raises(ck.DesignError, match="csv or"):
        ck.design.write_table(table, tmp_path / "boin.xlsx")
