"""One simulated trial: its tables are read by everybody, and its shares are those of closed forms."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import arms
import carkinetics as ck
from carkinetics.trials.files import parse_trial
from carkinetics.trials.parts import MONTH
from carkinetics.trials.simulation import replicate_seed


def many(*changes, patients=2000):
    """One trial with so many patients in two equal arms."""
    half = patients // 2
    sizes = (("patients = 10", f"patients = {half}"), ("patients = 14", f"patients = {patients - half}"))
    return parse_trial(arms.text(*sizes, ("patients = 24", f"patients = {patients}"), *changes))


@pytest.fixture(scope="module")
def large():
    """A trial of two arms, large enough to compare shares with probabilities."""
    return ck.simulate_trial(many(("after = 90", "after = 168")), seed=5)


def near(seen, expected, n, sds=3.5):
    """A share is within Monte Carlo error of a probability."""
    return abs(seen - expected) < sds * np.sqrt(expected * (1 - expected) / n) + 1e-9


@pytest.fixture(scope="module")
def small():
    """The trial of 24 patients."""
    return ck.simulate_trial(parse_trial(arms.TEXT), seed=3)


@pytest.mark.filterwarnings("ignore:.*every value is below the limit")
def test_the_tables_are_read_by_those_who_read_them(small):
    """If it fails, a simulated trial cannot be analysed as a real one is."""
    data = ck.read_dataset(small.table, outcomes=small.patients, units={"DV": "copies/ug"})
    assert data.n_subjects == 24 and list(data.outcomes.index) == list(small.patients["ID"])
    assert set(data.table["SEX"]) == {"F", "M"}
    design = ck.design.boin(0.3, [1e6, 4e6])
    assert design.select(small.patients.rename(columns={"DOSE_PER_KG": "INFUSED"})).dose in (1, 2)
    by_id = small.patients.set_index("ID")
    exposure = pd.Series(small.truth["cmax (qpcr)"], name="cmax")
    response = ck.logistic(exposure, by_id["ORR"].fillna(0.0), seed=1)
    assert len(response.patients.ids) == 24
    ck.tte(exposure, by_id[["PFS_TIME", "PFS_EVENT"]], seed=1)


def test_the_same_seed_gives_the_same_trial(small):
    """If it fails, a simulated trial cannot be looked at again."""
    again = ck.simulate_trial(parse_trial(arms.TEXT), seed=3)
    pd.testing.assert_frame_equal(again.table, small.table)
    pd.testing.assert_frame_equal(again.patients, small.patients)
    other = ck.simulate_trial(parse_trial(arms.TEXT), seed=4)
    assert not other.patients["DAY"].equals(small.patients["DAY"])


def test_replicates_have_different_seeds():
    """If it fails, two trials of a run are one."""
    found = [replicate_seed(7, r) for r in range(100_000)]
    assert len(set(found)) == len(found) and all(0 <= s < 2**32 for s in found)
    assert replicate_seed(8, 0) != found[0]


def test_samples_are_those_of_the_schedule_and_of_patients_who_are_there(small):
    """If it fails, patients are sampled after they died, were lost, or the data were cut."""
    samples = small.table[small.table["EVID"] == 0]
    end = small.patients.set_index("ID")["FOLLOW_UP"]
    assert set(samples["TIME"]) <= {1, 4, 7, 10, 14, 21, 28, 56, 84}
    assert (samples["TIME"].to_numpy() <= end[samples["ID"]].to_numpy() + 0.005).all()
    due = sum((end >= d).sum() for d in (1, 4, 7, 10, 14, 21, 28, 56, 84))
    assert near(len(samples) / due, 0.9, due)


def test_limits_are_those_of_the_file(small):
    """If it fails, the assay of the simulated trial is not that of the file."""
    samples = small.table[small.table["EVID"] == 0]
    below = samples[samples["CENS"] == 1]
    assert set(below["DV"]) <= {50.0, 10.0} and (samples[samples["CENS"] == 0]["DV"] >= 50).all()


def test_arms_have_their_patients_and_doses(small):
    """If it fails, an arm's dose is not given to its patients."""
    p = small.patients
    assert p.groupby("ARM").size().to_dict() == {"low": 10, "high": 14}
    assert set(p.loc[p["ARM"] == "high", "DOSE_PER_KG"]) == {4e6}
    infused = small.table[small.table["EVID"] == 1].set_index("ID")["AMT"]
    np.testing.assert_allclose(infused, p.set_index("ID")["DOSE_PER_KG"] * p.set_index("ID")["WT"])


def dlt_probability(trial, dose):
    """P(DLT) at a dose by Gauss-Hermite quadrature: the peak is log-normal."""
    model = trial.model
    eta, weight = np.polynomial.hermite_e.hermegauss(80)
    peak = model["cmax"].value * (dose / 2e6) ** 0.5 * np.exp(model["cmax"].iiv * eta)
    return float(weight @ trial.toxicity.chance(peak) / weight.sum())


def test_toxicity_comes_as_often_as_quadrature_says():
    """If it fails, simulated toxicity is not that of the file's exposure and slope.

    Peaks later than day 28 are a few in a thousand: the random effect of the peak's day is made small.
    """
    changes = (("dropout_per_year = 0.5", "dropout_per_year = 0"), ("median = 300", "median = 1e9"))
    trial = many(
        *changes,
        ('source = "a test"\n\n[[kinetics', 'values = { "omega.tmax" = 0.1 }\nsource = "a test"\n\n[[kinetics'),
    )
    found = ck.simulate_trial(trial, seed=8).patients
    for level, dose in enumerate(trial.levels, start=1):
        seen = found.loc[found["LEVEL"] == level, "DLT"]
        assert not seen.isna().any()
        assert near(seen.mean(), dlt_probability(trial, dose), len(seen))


def test_a_patient_at_a_higher_level_is_more_exposed(large):
    """If it fails, the dose does not act as the covariate of the file says: the peaks' ratio of means is 4 ** 0.5."""
    low, high = (np.log(large.truth.loc[large.patients["LEVEL"].to_numpy() == k, "cmax"]) for k in (1, 2))
    error = np.sqrt(low.var() / len(low) + high.var() / len(high))
    assert abs(high.mean() - low.mean() - 0.5 * np.log(4)) < 3.5 * error


def test_survival_dropout_and_censoring_have_their_closed_forms(large):
    """If it fails, an event, a loss or the end of the study comes too often.

    Death and loss have constant hazards a and b; of those followed for t days a share a / (a + b) (1 - exp(-(a + b) t))
    was seen to die. The median is 300 days, the loss 0.5 per year, and everybody is followed for 168 days: data are
    cut 168 days after the last infusion.
    """
    p, n = large.patients, len(large.patients)
    a, b, t = np.log(2) / 300, 0.5 / 365.25, 168.0
    either = 1 - np.exp(-(a + b) * t)
    share = p["OUT"].value_counts(normalize=True)
    assert near(share["death"], a / (a + b) * either, n)
    assert near(share["dropout"], b / (a + b) * either, n)
    assert near(share["end"], 1 - either, n)
    assert (p["OS_EVENT"] == (p["OUT"] == "death")).all() and (p["OS_TIME"] <= 168).all()
    assert (p["PFS_TIME"] <= p["OS_TIME"]).all() and (p["PFS_EVENT"] >= p["OS_EVENT"]).all()


def test_progression_follows_its_weibull_given_exposure(large):
    """If it fails, the hazard of progression does not depend on exposure as stated (Kolmogorov-Smirnov)."""
    x = np.log(large.truth["cmax (qpcr)"] / 24000)
    total = np.log(2) * (large.truth["progressed"] / 200) ** 1.4 * np.exp(-0.3 * x)
    assert stats.kstest(total, "expon").pvalue > 1e-3


def test_patients_come_at_the_stated_rate(large):
    """If it fails, enrolment is faster or slower than the file says: gaps are exponential with mean 30.4 / 4 days."""
    gaps = np.diff(large.patients["DAY"], prepend=0.0)
    mean = MONTH / 4
    assert abs(gaps.mean() - mean) < 3.5 * mean / np.sqrt(len(gaps))
    assert stats.kstest(gaps / mean, "expon").pvalue > 1e-3


def test_data_are_cut_after_the_last_infusion(small):
    """If it fails, late patients are followed longer than the study lasts."""
    p = small.patients
    assert (p["DAY"] + p["FOLLOW_UP"] <= p["DAY"].max() + 90 + 0.02).all()
    assert (p.loc[p["OUT"] == "end", "FOLLOW_UP"] < 168 - 1e-6).any()


def designed(*changes, assignment=arms.BOIN):
    return parse_trial(arms.with_design(assignment, *changes))


def test_a_design_decides_by_what_is_known():
    """If it fails, a cohort got another level than the design says of the patients before it."""
    trial = designed()
    found = ck.simulate_trial(trial, seed=11)
    p, design = found.patients, trial.assignment.design
    for cohort in sorted(set(p["COHORT"]))[1:]:
        first = p[p["COHORT"] == cohort].iloc[0]
        before = p[p["COHORT"] < cohort]
        assert first["DAY"] >= before["DAY"].max() + 28
        kept = before.dropna(subset=["DLT"])
        decided = design.recommend(kept) if first["ARM"] == "escalation" else design.select(kept)
        assert first["LEVEL"] == decided.dose
    assert (p["ARM"] == "escalation").sum() == 12 and len(p) == 24


def test_infusions_are_staggered_while_a_design_decides():
    """If it fails, two patients of a cohort are infused too close to each other."""
    trial = designed(("per_month = 4", "per_month = 4\nstagger = 14"))
    p = ck.simulate_trial(trial, seed=2).patients
    escalation = p[p["ARM"] == "escalation"]
    assert (escalation.groupby("COHORT")["DAY"].diff().dropna() >= 14 - 0.011).all()


def test_a_toxic_product_stops_the_trial():
    """If it fails, patients are infused after the design said stop."""
    trial = designed(("probability = 0.2", "probability = 0.99"))
    found = ck.simulate_trial(trial, seed=1)
    assert found.enrolled.stopped and found.enrolled.decisions[-1].dose is None
    assert len(found.patients) < 24 and set(found.patients["LEVEL"]) == {1}
    assert "stopped" in repr(found)


def test_a_design_that_does_not_wait_decides_on_pending_outcomes():
    """If it fails, a design with follow-up as a weight waits all the same, or reads what it cannot know yet."""
    crm = 'design = "tite_crm"\noptions = { guesses = [0.1, 0.3], target = 0.25, window = 28 }'
    text = arms.BOIN.replace('design = "boin"\noptions = { target = 0.3 }', crm).replace("wait = 28", "wait = 0")
    found = ck.simulate_trial(designed(("per_month = 4", "per_month = 30"), assignment=text), seed=4)
    days = found.patients.loc[found.patients["ARM"] == "escalation", "DAY"]
    assert np.diff(days).max() < 28
    assert len(found.enrolled.decisions) == 5


def test_boin12_waits_for_the_response_it_reads():
    """If it fails, a design that reads responses is asked before they can be known."""
    two = 'design = "boin12"\noptions = { toxicity = 0.35, response = 0.25 }'
    text = arms.BOIN.replace('design = "boin"\noptions = { target = 0.3 }', two).replace("wait = 28", "wait = 84")
    found = ck.simulate_trial(designed(assignment=text), seed=6)
    first = found.patients.groupby("COHORT")["DAY"].agg(["min", "max"])
    assert (first["min"].to_numpy()[1:] - first["max"].to_numpy()[:-1] >= 84).all()


def test_truth_is_kept(small):
    """If it fails, nobody can tell how far an analysis was from the truth."""
    assert list(small.truth.index) == list(small.patients["ID"])
    assert small.population["cmax"] == 24000
    x = small.truth["cmax (qpcr)"]
    p = small.trial.toxicity.chance(x.to_numpy())
    np.testing.assert_allclose(small.truth["P(DLT)"], p, rtol=1e-12)


def test_doses_in_all_need_no_weight():
    """If it fails, only doses per kg can be simulated."""
    trial = parse_trial(arms.text(('unit = "cells/kg"', 'unit = "cells"'), ("DOSE_PER_KG", "DOSE")))
    found = ck.simulate_trial(trial, seed=1)
    assert set(found.patients["DOSE"]) == {1e6, 4e6}
    assert set(found.table.loc[found.table["EVID"] == 1, "AMT"]) == {1e6, 4e6}


def test_outcomes_need_not_depend_on_exposure():
    """If it fails, a null truth cannot be simulated."""
    trial = many(
        ('exposure = "cmax"\nat = 24000\nslope = 1.0\n', ""), ("dropout_per_year = 0.5", "dropout_per_year = 0")
    )
    trial = dataclasses.replace(trial, death=None)
    found = ck.simulate_trial(trial, seed=2).patients["DLT"]
    assert near(found.mean(), 0.2, len(found))
