"""The review before a fit: what it must find, what it must not take for an error, and what it says."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from carkinetics import cli, columns, courses, visits
from carkinetics.cohort import Cohort
from carkinetics.dataset import ReadOptions, read_dataset
from carkinetics.demo import SCHEDULE
from carkinetics.errors import DataWarning
from carkinetics.fit_file import _frame_from_json, _frame_to_json
from carkinetics.model_files import load_model
from carkinetics.simulation import simulate
from real_patients import FOLDER, TABLE

BURDEN = FOLDER / "ball_burden" / "Data_PR.csv"
UNITS = {"DV": "copies/ug"}

# A patient after the textbook: infusion phase, expansion by 500 within a week, contraction, persistence.
DAYS = [0.5, 1, 2, 3, 7, 10, 14, 17, 21, 28, 42, 56, 84, 112, 140, 168]
CURVE = [900, 12, 11, 40, 9000, 61000, 40000, 21000, 9500, 2600, 700, 420, 330, 260, 220, 190]


def patient(name="P1", *, at=(), labels=None):
    """The textbook patient with some values replaced: ``at`` are (day, value)."""
    frame = pd.DataFrame({"ID": name, "TIME": DAYS, "DV": np.asarray(CURVE, float), "CENS": 0})
    for day, value in at:
        frame.loc[frame["TIME"] == day, ["DV", "CENS"]] = [max(value, 10.0), int(value < 10)]
    return frame if labels is None else frame.assign(VISIT=labels)


def reviewed(*frames, **options):
    """The table of the review of these rows."""
    return read_dataset(pd.concat(frames, ignore_index=True), units=UNITS, **options).review().table


def kinds(table):
    """Every finding as (kind, patients)."""
    return list(zip(table["KIND"], table["PATIENTS"], strict=True))


@pytest.mark.parametrize(
    ("label", "day"),
    [
        ("Day 28", 28), ("day 0 Post", 0), ("Day -28", -28), ("D-1", -1), ("D+28", 28), ("d14", 14), ("Day_3", 3),
        ("Week 4", 28), ("W12", 84), ("wk 2", 14), ("Month 12", 365.25), ("Year 1.5 LTFU", 547.875),
        ("3 months", 91.3125), ("Year 4 Month 8", 1704.5), ("Month 5 +D2", 154.1875), ("Month 1 (Day 28)", 30.4375),
        ("Month 1 Day 28", 30.4375),
        ("apheresis day 90", 90), ("Day 7 #1", 7), ("Day 42 pre", 42), ("Baseline", 0), ("Screening", 0),
        ("Unscheduled", np.nan), ("C1D1", np.nan), ("P/M node 3", np.nan), ("EOT", np.nan), ("", np.nan),
    ],
)  # fmt: skip
def test_visit_labels_are_read_as_days(label, day):
    """If it fails, a count that starts again is overlooked, or a label without a number counts as one."""
    np.testing.assert_allclose(visits.nominal_day(label), day)


def test_labels_that_slip_are_no_new_count():
    """If it fails, the ordinary delay of visits, late ones above all, is taken for another infusion."""
    time = np.array([-40.0, -4, 0, 2, 9, 33, 33, 72, 99, 209, 431, 775, 1210])
    nominal = np.array([-28.0, -1, 0, 1, 7, 28, 31, 61, 91, 183, 365, 730, 1096])
    assert visits.new_count(time, nominal) is None
    again = visits.new_count(np.array([0.0, 7, 25, 42, 46, 49]), np.array([0.0, 7, 25, 0, 4, 7]))
    assert again == visits.NewCount((3, 4, 5), 42.0, True)
    off = visits.new_count(np.array([0.0, 28, 76]), np.array([0.0, 28, 56]))
    assert off is None
    assert visits.new_count(np.array([0.0, 28, 90]), np.array([0.0, 28, 56])) == visits.NewCount((2,), 34.0, False)


def test_labels_that_start_again_are_a_suspected_infusion():
    """If it fails, a second infusion stays in the data as a second peak of the first."""
    labels = [f"Day {d:g}" for d in DAYS[:11]] + ["Day 0 pre", "Day 28", "Day 56", "Day 84", "Day 112"]
    found = reviewed(patient(labels=labels), patient("P2", labels=[f"Day {d:g}" for d in DAYS]))
    assert kinds(found) == [("infusion", ("P1",))]
    row = found.iloc[0]
    assert '"Day 0 pre" stands at day 56, after "Day 42" on day 42' in row["FOUND"]
    assert row["LINES"] == (12, 13, 14, 15, 16)
    assert row["CHOICES"][:2] == ("cut at day 56", "give a dose event (a row with EVID=1 and AMT on day 56)")
    dose = pd.DataFrame({"ID": ["P1"], "TIME": [55.0], "EVID": [1], "AMT": [1e8]})
    assert reviewed(patient(labels=labels), dose.assign(VISIT="")).empty


def test_nominal_days_that_lie_far_off_are_a_finding():
    """If it fails, a nominal day of its own column, in the unit of TIME, is not compared."""
    frame = patient().assign(NOMINAL=DAYS)
    frame.loc[13:, "NOMINAL"] = [22, 50, 78]
    assert kinds(reviewed(frame.assign(NOMINAL=DAYS))) == []
    found = reviewed(frame)
    assert kinds(found) == [("infusion", ("P1",))]
    assert "nominal day 22 stands at day 112" in found["FOUND"].iloc[0]
    hours = frame.assign(TIME=frame["TIME"] * 24, NOMINAL=frame["NOMINAL"] * 24).rename(columns={"NOMINAL": "PLAN"})
    data = read_dataset(hours, units={**UNITS, "TIME": "hour"}, columns={"NOMINAL": "PLAN"})
    assert data.table["NOMINAL"].tolist() == pytest.approx(frame["NOMINAL"].tolist())
    assert kinds(data.review().table) == [("infusion", ("P1",))]


def test_the_labels_that_count_from_an_event():
    """If it fails, "Month 5 +D1" is read as nothing but a date."""
    labels = [f"Day {d:g}" for d in DAYS[:14]] + ["Month 5 -D8", "Month 5 +D2"]
    found = reviewed(patient(labels=labels))
    assert kinds(found) == [("infusion", ("P1",))]
    assert "counts from day 166" in found["FOUND"].iloc[0]


def test_expansion_kinetics_is_no_error():
    """If it fails, the biology itself is flagged: infusion phase, a 1e4-fold rise in days, a fall as fast."""
    fast = patient("P2", at=[(2, 1), (3, 1), (7, 6e4), (10, 1.5e5), (14, 1.5e4), (17, 4000), (21, 800)])
    sharp = patient("P3", at=[(3, 30), (7, 5000), (10, 2e5), (14, 1e4)])
    split = patient("P4", at=[(0.5, 1500), (1, 120), (2, 18000), (3, 300)])
    never = patient("P5", at=[(d, 1) for d in DAYS if d > 1])
    lone = patient("P6", at=[(d, 1) for d in DAYS if d > 2 and d != 14] + [(14, 60)])
    assert kinds(reviewed(patient(), fast, sharp, split, never, lone)) == []


def test_spikes_zeros_and_lows_against_both_neighbours():
    """If it fails, a gross outlier reaches the likelihood unseen: the day-3 spike and the zero among thousands."""
    spike = patient("P1", at=[(2, 1300), (3, 400000), (7, 13000), (10, 140000), (14, 120000)])
    zero = patient("P2", at=[(17, 1)])
    low = patient("P3", at=[(84, 15)])
    late = patient("P4", at=[(112, 8000)])
    last = patient("P5").iloc[:9]
    last.loc[8, ["DV", "CENS"]] = [10.0, 1]
    found = reviewed(spike, zero, low, late, last)
    want = [("spike", "P1", 4), ("zero", "P2", 24), ("low", "P3", 45), ("spike", "P4", 62), ("zero", "P5", 73)]
    assert [(k, p[0], ls[0]) for k, p, ls in zip(found["KIND"], found["PATIENTS"], found["LINES"], strict=True)] == want
    assert "400,000 copies/ug on day 3 is 31 times the higher of its neighbours: 1,300 on day 2" in found["FOUND"][0]
    assert "below 10 copies/ug on day 21, only 4 days after a level 2,100 times that" in found["FOUND"][4]


def test_the_scatter_is_the_residual_seen_between_neighbours():
    """If it fails, thresholds do not follow the assay: noise sigma about a line gives sigma sqrt(3/2), robustly."""
    random, time = np.random.default_rng(1), np.arange(0.0, 200.0, 5.0)
    sigma, every = 0.4, []
    for i in range(50):
        ln = 12 - 0.03 * time + sigma * random.normal(size=time.size)
        ln[25] += 6.0
        seen = np.ones(time.size, bool)
        every.append(courses.Course(f"P{i}", "qpcr", time, ln, seen, np.arange(time.size)))
    assert courses.scatter(every) == pytest.approx(sigma * np.sqrt(1.5), rel=0.1)
    assert courses.scatter(every[:0]) == courses.DEFAULT_SCATTER


def test_a_second_rise_without_labels():
    """If it fails, a second infusion is only found where somebody labelled it; a recorded one needs no finding."""
    again = [(42, 60), (56, 55), (84, 30000), (112, 9000), (140, 2000), (168, 900)]
    found = reviewed(patient(at=again), patient("P2"))
    assert kinds(found) == [("second rise", ("P1",))]
    assert "cells that expand again?" in found["FOUND"].iloc[0]
    dose = pd.DataFrame({"ID": ["P1"], "TIME": [70.0], "EVID": [1], "AMT": [1e8]})
    assert reviewed(patient(at=again), patient("P2"), dose).empty


def test_recurring_values_against_chance():
    """If it fails, coincidences of rounded numbers are flagged, or imputed constants are not."""
    random = np.random.default_rng(2)
    values = np.exp(random.uniform(2, 12, 400))
    assert columns.recurring(values) == []
    assert columns.recurring(np.append(values, [731.2846, 731.2846])) == [731.2846]
    # The same formula by hand: two equal values with two decimals near 60, among 400 over ten units of ln.
    rounded = np.append(np.round(values, 2), [59.78, 59.78])
    near = int(((rounded > 59.78 / 1.5) & (rounded < 59.78 * 1.5)).sum()) - 2
    expected = (near + 1) * 0.01 / (59.78 * (1.5 - 1 / 1.5))
    assert stats.poisson.sf(0, expected) * 400 > columns.CHANCE
    assert 59.78 not in columns.recurring(rounded)
    # Two hundred tables of integers: the smaller a number, the more often it recurs by chance alone.
    flagged = [len(columns.recurring(np.round(np.exp(random.uniform(3, 12, 300))))) for _ in range(200)]
    assert np.mean(np.array(flagged) > 0) < 0.02
    assert columns.recurring(np.append(values, [1000.0] * 6)) == []
    assert columns.recurring(np.append(values, [0.2] * 6)) == [0.2]


def test_constants_name_their_patients():
    """If it fails, a value that stands for "not measured" is fitted as a measurement."""
    many = [patient(f"P{i}", at=[(140, 731.2846)]) for i in range(4)]
    for i, frame in enumerate(many):
        frame.loc[frame["TIME"] != 140, "DV"] *= 1 + 0.0137 * (i + 1)
    found = reviewed(*many)
    assert kinds(found) == [("constant", ("P0", "P1", "P2", "P3"))]
    assert "731.2846 copies/ug occurs 4 times in 4 of 4 patients: imputed" in found["FOUND"].iloc[0]


def test_columns_that_are_known_only_later():
    """If it fails, the outcome can become a covariate; if it says too much, baseline columns are refused."""
    extra = {"BOR": ["CR", "NR", "PR"], "best": ["CR", "NR_then_CR", "SD"], "cmax_class": [1, 2, 1], "AGE": [3, 9, 61]}
    extra |= {
        "prior_response": ["CR", "NR", "CR"],
        "N_RELAPSED": [0, 1, 2],
        "ARM": ["A", "B", "A"],
        "disease": ["x"] * 3,
    }
    frames = [patient(f"P{i}").assign(**{k: v[i] for k, v in extra.items()}) for i in range(3)]
    for i, frame in enumerate(frames):
        frame["DV"] *= 1 + 0.0137 * i
        frame["CRS"] = range(len(frame))  # changes within the patient: no covariate
    found = reviewed(*frames)
    assert set(found["KIND"]) == {"known later"}
    assert [text.split()[1] for text in found["FOUND"]] == ["BOR", "best", "cmax_class"]


def test_what_the_reader_found_is_said_once_with_choices():
    """If it fails, patients below the limit and other units are counted twice or not at all."""
    blq = patient("P1", at=[(d, 1) for d in DAYS])
    other = patient("P2")
    other["DV"] = 3.3 * other["DV"] * 158725
    short = patient("P3").iloc[:5]
    with pytest.warns(DataWarning):
        found = reviewed(
            blq, other, short, *[patient(f"N{i}").assign(DV=np.array(CURVE) * (1.1 + i)) for i in range(4)]
        )
    assert kinds(found) == [("all below the limit", ("P1",)), ("units", ("P2",)), ("no decline", ("P3",))]
    assert "another unit?" in found["FOUND"].iloc[1]
    assert "9,000 copies/ug on day 7" in found["FOUND"].iloc[2]


def test_two_assays_in_one_unit():
    """If it fails, copies per cell that were called copies/ug go into one likelihood."""
    first = patient().assign(DVID="a", DV=1000.0 * np.array(CURVE))
    for factor, count in ((3.0, 0), (158725.0, 1)):
        second = first.assign(DVID="b", DV=first["DV"] * 1.013 / factor)
        data = read_dataset(pd.concat([first, second]), units={"DV": "copies/ug"})
        assert len(data.review().table) == count
    assert read_dataset(pd.concat([first, second]), units={"DV": {"a": "copies/ug"}}).review().table.empty


def test_rows_that_keep_left_out_are_read():
    """If it fails, labels and levels of other matrices are lost where only blood is fitted."""
    blood = patient(at=[(17, 1)]).assign(specimen="PB", VISIT="")
    marrow = blood[blood["TIME"] == 17].assign(specimen="BM", DV=5500.0, CENS=0)
    later = blood[blood["TIME"] == 112].assign(specimen="BM", VISIT="Day 28")
    frame = pd.concat([blood, marrow, later], ignore_index=True)
    data = read_dataset(frame, units=UNITS, keep={"specimen": "PB"})
    assert kinds(data.review().table) == [("nominal day", ("P1",)), ("zero", ("P1",))]
    assert "other samples of that day: 5,500 (row 17)" in data.review().table["FOUND"].iloc[1]
    excluded = _frame_from_json(_frame_to_json(data.report.excluded))
    assert excluded["DV"].tolist() == [5500.0, 260.0]
    assert excluded["VISIT"].tolist() == ["", "Day 28"]


@pytest.mark.filterwarnings("ignore::carkinetics.errors.DataWarning")
def test_the_text_of_a_review(tmp_path, capsys):
    """If it fails, the command line does not show the review, shows it where it is empty, or fails for a suspicion."""
    path = tmp_path / "trial.csv"
    patient().to_csv(path, index=False)
    assert str(read_dataset(path).review()) == ""
    assert cli.main(["check", str(path)]) == 0
    assert "nothing to look at before a fit" in capsys.readouterr().out
    frame = pd.concat([patient(at=[(112, 8000)]), patient("P2", at=[(d, 1) for d in DAYS])])
    frame.assign(week=[f"Day {d:g}" for d in DAYS] * 2).to_csv(path, index=False)
    assert cli.main(["check", str(path), "--column", "VISIT=week", "--unit", "DV=copies/ug"]) == 0
    out = capsys.readouterr().out
    assert "spike, patient P1, line 15: 8,000 copies/ug on day 112 is 24 times" in out
    assert "leave the row out (MDV=1) | correct it" in out
    assert "every value is below the limit" not in out
    assert "all below the limit, patient P2, lines 18 to 33" in out


def virtual(trials, seed=1, **values):
    """Reviews of simulated trials of 80 patients, 24 weeks, with labels of visits that slip."""
    model = load_model("stein_2019_tisagenlecleucel")
    model = model.with_values(values) if values else model
    table = simulate(model, Cohort(n=80, times=SCHEDULE), seed=seed, replicates=trials).table
    random = np.random.default_rng(seed)
    slip = np.round(random.uniform(-0.1, 0.1, len(table)) * table["TIME"])
    table["VISIT"] = [f"Day {day:g}" for day in table["TIME"] + slip]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        for _, rows in table.groupby("REP"):
            yield read_dataset(rows.drop(columns="REP"), units=UNITS)


def alarms(trials, **values):
    """Share of patients who are flagged though nothing is wrong; those below the limit throughout really are."""
    flagged = [
        {p for kind, who in kinds(data.review().table) if kind != "all below the limit" for p in who}
        for data in virtual(trials, **values)
    ]
    return sum(map(len, flagged)) / (80 * trials)


def test_planted_spikes_and_zeros_are_found():
    """If it fails, the rules have become so careful that they find nothing: late spikes, zeros among thousands."""
    found, planted = {"spike": 0, "zero": 0}, {"spike": 0, "zero": 0}
    for trial in virtual(3, seed=7):
        table, plan = trial.table.copy(), {}
        for k, patient_id in enumerate(trial.subjects[::5]):
            mine = table[(table["ID"] == patient_id) & (table["EVID"] == 0)].sort_values("TIME")
            late, high = (
                mine[mine["TIME"] == 112],
                mine[(mine["TIME"] > 7) & (mine["TIME"] < 140) & (mine["DV"] > 5000)],
            )
            if k % 2 == 0:
                table.loc[late.index, ["DV", "CENS"]] = [100 * late["DV"].iloc[0], 0]
                plan[patient_id] = "spike"
            elif len(high):
                table.loc[high.index[0], ["DV", "CENS"]] = [50.0, 1]
                plan[patient_id] = "zero"
        data = read_dataset(table.drop(columns=["LINE", "USED"]), units=UNITS)
        said = {(kind, who[0]) for kind, who in kinds(data.review().table) if who}
        for patient_id, kind in plan.items():
            planted[kind] += 1
            found[kind] += (kind, patient_id) in said
    assert found["spike"] >= 0.85 * planted["spike"] > 15
    assert found["zero"] >= 0.5 * planted["zero"] > 5


# Between patients of the real trial Cmax spans 4.5 logs.
WIDE = {"omega.cmax": 2.8, "sigma.qpcr": 0.65}


@pytest.mark.parametrize("values", [pytest.param({}, marks=pytest.mark.thorough), WIDE], ids=["published", "wide"])
def test_clean_trials_raise_few_alarms(values):
    """If it fails, a review of good data is noise: at most one patient in a hundred is named for nothing."""
    assert alarms(10, **values) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, WIDE], ids=["published", "wide"])
def test_a_hundred_clean_trials_raise_few_alarms(values):
    """If it fails, the promise of less than 5 % false alarms per patient is broken."""
    share = alarms(100, **values)
    print(f"flagged: {100 * share:.2f} % of patients")
    assert share < 0.05


@pytest.mark.real
@pytest.mark.skipif(not TABLE.exists(), reason="the real patients' data are not here; set CARKINETICS_REAL_DATA")
@pytest.mark.filterwarnings("ignore::carkinetics.errors.DataWarning")
def test_the_real_patients():
    """If it fails, what was found by hand in 29 real patients is overlooked, or much is found beside it."""
    data = read_dataset(
        TABLE,
        columns={"ID": "patient", "TIME": "day", "DV": "copies_per_ug_dna"},
        keep={"specimen": "PB"},
        lloq=10,
        units=UNITS,
        options=ReadOptions(predose="exclude", duplicates="first"),
    )
    found = data.review().table
    counts = found["KIND"].value_counts().to_dict()
    # Three labels that start again and one day counted from an event; the spike of day 3 and two late ones.
    want = {"infusion": 4, "spike": 3, "zero": 1, "control": 2, "all below the limit": 1, "known later": 1}
    assert counts == want
    said = "\n".join(found["FOUND"])
    assert '"Day 0 pre" stands at day 42' in said
    assert "409,645 copies/ug on day 3 is 29 times the higher of its neighbours" in said
    assert "only 4 days after a level 2,970 times that: 29,705" in said
    assert "column response" in said


@pytest.mark.real
@pytest.mark.skipif(not BURDEN.exists(), reason="the real patients' data are not here; set CARKINETICS_REAL_DATA")
def test_one_relapse_burden_for_all():
    """If it fails, an imputed burden that all relapsed patients share is fitted as seven measurements."""
    frame = pd.read_csv(BURDEN)
    frame = frame[(frame["y_ID"] == 2) | (frame["time"] > 0)]
    frame["CENS"], frame["y"] = (frame["y"] <= 0.2).astype(int), frame["y"].clip(lower=0.2)
    data = read_dataset(frame, columns={"TIME": "time", "DV": "y", "DVID": "y_ID"})
    found = data.review().table
    assert any(kind == "constant" and len(who) == 7 for kind, who in kinds(found))
    assert any(text.startswith("662.") and "7 times in 7 of 7 patients" in text for text in found["FOUND"])
