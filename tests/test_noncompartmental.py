"""Non-compartmental analysis against integrals at 50 digits, closed forms, SciPy and published expectations."""

import itertools
import math

import mpmath
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.integrate import quad

import carkinetics as ck
from carkinetics import cli
from carkinetics.noncompartmental import WINDOWS
from carkinetics.profiles import area, level_at, make_profile
from tiers import tiered

pytestmark = pytest.mark.filterwarnings("ignore::carkinetics.errors.DataWarning")
LN2 = math.log(2)
ZERO = ck.NcaRules(after="zero", r2_min=0.0)
LINEAR = ck.NcaRules(method="linear", after="zero")


def dataset(rows, **options):
    """A dataset of (ID, TIME, DV[, CENS[, DVID]]) rows, and doses if given."""
    names = ["ID", "TIME", "DV", "CENS", "DVID"]
    table = pd.DataFrame([[*r, *[0, "qpcr"][len(r) - 3 :]] for r in rows], columns=names)
    doses = options.pop("doses", None)
    if doses:
        table = table.assign(AMT=0.0, EVID=0, MDV=0)
        given = [{"ID": i, "TIME": t, "DV": None, "CENS": 0, "DVID": "", "AMT": 1e8, "EVID": 1} for i, t in doses]
        table = pd.concat([table, pd.DataFrame(given).assign(MDV=1)])
    return ck.read_dataset(table, units={"DV": "copies/ug"}, **options)


def one(levels, times, *, limit=10.0, rules=ZERO, windows=WINDOWS):
    """Metrics of one patient, by name; a level of None is below the limit."""
    rows = [("P", t, limit if y is None else y, int(y is None)) for t, y in zip(times, levels, strict=True)]
    values = ck.nca(dataset(rows), windows=windows, rules=rules).values
    return values.set_index("METRIC")


def exact_area(times, levels, begin, end, *, log_down=True):
    """Integral of the interpolated level by mpmath, from the definition of the interpolant and nothing else."""
    mpmath.mp.dps = 50
    t, y = [mpmath.mpf(float(x)) for x in times], [mpmath.mpf(float(x)) for x in levels]

    def at(x):
        for a, b, y0, y1 in zip(t[:-1], t[1:], y[:-1], y[1:], strict=True):
            if a <= x <= b:
                share = (x - a) / (b - a)
                falls = log_down and y1 < y0 and y1 > 0
                return (
                    mpmath.exp((1 - share) * mpmath.log(y0) + share * mpmath.log(y1))
                    if falls
                    else y0 + share * (y1 - y0)
                )
        raise AssertionError(x)

    cuts = [mpmath.mpf(begin), *(x for x in t if begin < x < end), mpmath.mpf(end)]
    return float(mpmath.fsum(mpmath.quad(at, [a, b]) for a, b in itertools.pairwise(cuts)))


def random_profile(seed):
    """Times and levels over five decades, with equal neighbours."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 15))
    times = np.concatenate([[0.0], np.sort(rng.uniform(0.1, 60, n))])
    levels = 10 ** rng.uniform(0, 5, n + 1)
    k = int(rng.integers(0, n))
    levels[k + 1] = levels[k]
    return times, levels


def profile_of(times, levels, **changed):
    n = len(times)
    rules = ck.NcaRules(**changed)
    made = make_profile(
        np.asarray(times, float), np.asarray(levels, float), np.zeros(n, int), np.full(n, np.nan), rules
    )
    assert made is not None
    return made


@pytest.mark.parametrize("seed", tiered(range(12), thorough=range(4, 12)))
@pytest.mark.parametrize("method", ["linear_up_log_down", "linear"])
def test_areas_are_integrals_of_the_interpolated_level(seed, method):
    """Whole, partial windows that begin and end between samples and at them, by mpmath at 50 digits, to 1e-12.

    If it fails, an area is not that of the rule that the report names.
    """
    times, levels = random_profile(seed)
    profile = profile_of(times, levels, method=method)
    last = times[-1]
    for a, b in ((0.0, last), (0.3 * last, 0.7 * last), (times[1], times[-2]), (times[1], 0.9 * last), (0.0, 1e-3)):
        expected = exact_area(times, levels, a, b, log_down=method != "linear")
        assert area(profile, a, b) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_level_between_samples_integrates_to_the_area(seed):
    """The level that is reported at an edge and the area beside it follow one interpolant; by scipy.integrate.

    If it fails, partial areas do not add up.
    """
    times, levels = random_profile(seed)
    profile = profile_of(times, levels)
    whole = sum(quad(lambda x: level_at(profile, x), a, b, epsrel=1e-12)[0] for a, b in itertools.pairwise(times))
    assert area(profile, 0.0, times[-1]) == pytest.approx(whole, rel=1e-9)
    middle = 0.37 * times[-1]
    parts = area(profile, 0.0, middle) + area(profile, middle, times[-1])
    assert parts == pytest.approx(area(profile, 0.0, times[-1]), rel=1e-13)


@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 0.5, 1 - 1e-12])
def test_nearly_equal_neighbours_do_not_cancel(gap):
    """(y1 - y2) / ln(y1 / y2) by mpmath. If it fails, two equal samples give nothing, or noise, for an area."""
    mpmath.mp.dps = 50
    first, last = 1234.5, 1234.5 * (1 - gap)
    ratio = mpmath.mpf(first) / mpmath.mpf(last)
    expected = mpmath.mpf(first) if ratio == 1 else (mpmath.mpf(first) - mpmath.mpf(last)) / mpmath.log(ratio)
    assert area(profile_of([0.0, 3.0], [first, last]), 0.0, 3.0) == pytest.approx(float(3 * expected), rel=1e-13)


def test_an_exponential_is_integrated_exactly():
    """Samples of a mono-exponential, however few, give its area, its rate and its area to infinity.

    If it fails, the log rule or the terminal slope is not what it is called.
    """
    rate, times = 0.1, np.array([0.0, 2.5, 9.0, 11.0, 30.0])
    found = one(5000 * np.exp(-rate * times), times, limit=1e-3)
    closed = {(a, b): 5000 * (math.exp(-rate * a) - math.exp(-rate * b)) / rate for a, b in ((0, 28), (0, 90))}
    assert found.loc["auc_0_28", "VALUE"] == pytest.approx(closed[0, 28], rel=1e-12)
    assert found.loc["auc_0_90", "VALUE"] == pytest.approx(closed[0, 90], rel=1e-12)
    assert found.loc["auc_inf", "VALUE"] == pytest.approx(5000 / rate, rel=1e-12)
    assert found.loc["half_life", "VALUE"] == pytest.approx(LN2 / rate, rel=1e-12)
    assert found.loc["lambda_z_r2", "VALUE"] == pytest.approx(1.0)
    assert list(found.loc[["auc_0_28", "auc_0_90", "auc_inf"], "STATUS"]) == ["interpolated", *["extrapolated"] * 2]
    assert list(found.loc[["auc_0_28", "auc_0_90"], "COVERED"]) == [True, False]
    assert "follow-up ends on day 30" in found.loc["auc_0_90", "REASON"]


# What the tests of PKNCA (Denney W et al., J Pharmacokinet Pharmacodyn 2015;42:S65, tests/testthat/test-auc.R) expect
# of 0, 2, -, 1, 2, 1, -, - at times 0 to 7, "-" being below the limit: areas to the last measurable level and to 7.
PUBLISHED = [
    ("linear", "zero", 1 + 1 + 0.5 + 1.5 + 1.5, 0.5),
    ("linear_up_log_down", "zero", 1 + 1 + 0.5 + 1.5 + 1 / LN2, 0.5),
    ("linear", "drop", 1 + 3 + 1.5 + 1.5, 0.5),
    ("linear_up_log_down", "drop", 1 + 2 / LN2 + 1.5 + 1 / LN2, 0.5),
]


@pytest.mark.parametrize(("method", "between", "last", "beyond"), PUBLISHED)
def test_areas_of_another_program(method, between, last, beyond):
    """If it fails, samples below the limit between and after measurable ones count otherwise than is said."""
    rules = ck.NcaRules(method=method, between=between, after="zero")
    times = range(8)
    found = one([None, 2, None, 1, 2, 1, None, None], times, limit=0.5, rules=rules, windows=[(0, 7), (0, 5), (6, 7)])
    assert found.loc["auc_last", "VALUE"] == pytest.approx(last, rel=1e-12)
    assert found.loc["auc_0_7", "VALUE"] == pytest.approx(last + beyond, rel=1e-12)
    assert found.loc["auc_0_5", "VALUE"] == found.loc["auc_last", "VALUE"]
    assert found.loc["auc_6_7", "VALUE"] == 0
    assert set(found.loc[["auc_0_7", "auc_0_5", "auc_6_7"], "STATUS"]) == {"observed"}


# Rule, and the points of the profile that it makes of: - at 0, - at 3, 100 at 5, - at 7, 50 at 10, - at 14, - at 21.
FILLED = [
    ({"before": "zero"}, [(0, 0), (3, 0), (5, 100), (10, 50), (14, 5)]),
    ({"before": "drop"}, [(0, 0), (5, 100), (10, 50), (14, 5)]),
    ({"before": "drop", "start": "first"}, [(0, 100), (5, 100), (10, 50), (14, 5)]),
    ({"before": "half"}, [(0, 5), (3, 5), (5, 100), (10, 50), (14, 5)]),
    ({"before": "limit"}, [(0, 10), (3, 10), (5, 100), (10, 50), (14, 5)]),
    ({"between": "zero"}, [(0, 0), (3, 0), (5, 100), (7, 0), (10, 50), (14, 5)]),
    ({"between": "half"}, [(0, 0), (3, 0), (5, 100), (7, 5), (10, 50), (14, 5)]),
    ({"between": "limit"}, [(0, 0), (3, 0), (5, 100), (7, 10), (10, 50), (14, 5)]),
    ({"after": "zero"}, [(0, 0), (3, 0), (5, 100), (10, 50), (14, 0)]),
    ({"after": "limit"}, [(0, 0), (3, 0), (5, 100), (10, 50), (14, 10)]),
]


@pytest.mark.parametrize("method", ["linear_up_log_down", "linear"])
@pytest.mark.parametrize(("rule", "points"), FILLED)
def test_samples_below_the_limit_count_as_the_rule_says(rule, points, method):
    """The whole area by mpmath on points written by hand. If it fails, a rule's name lies."""
    times, levels = zip(*points, strict=True)
    data = [None, None, 100, None, 50, None, None]
    found = one(data, [0, 3, 5, 7, 10, 14, 21], rules=ck.NcaRules(method=method, **rule), windows=[(0, 21), (1, 12.5)])
    log_down = method != "linear"
    expected = exact_area(times, levels, 0, 14, log_down=log_down)
    assert found.loc["auc_0_21", "VALUE"] == pytest.approx(expected, rel=1e-12)
    assert found.loc["auc_1_12.5", "VALUE"] == pytest.approx(
        exact_area(times, levels, 1, 12.5, log_down=log_down), rel=1e-12
    )


def test_half_a_limit_is_the_middle_of_the_interval():
    """Detected and not quantified, between 10 and 50: 30. If it fails, the detection limit is not used."""
    table = pd.DataFrame({"ID": "P", "TIME": [0, 4, 8, 12.0], "DV": [50, 400, 50, 50.0], "CENS": [1, 0, 1, 1]})
    table["LIMIT"] = [10, None, 10, None]
    rules = ck.NcaRules(method="linear", before="half")
    found = ck.nca(ck.read_dataset(table), windows=[(0, 12)], rules=rules).values.set_index("METRIC")
    assert found.loc["auc_0_12", "VALUE"] == pytest.approx(4 * (30 + 400) / 2 + 4 * (400 + 30) / 2, rel=1e-12)


def test_the_end_of_a_window_before_at_and_after_the_last_sample():
    """By closed forms, and by the three rules for what lies beyond. If it fails, a short follow-up is not seen."""
    times, levels = [0, 7, 14, 17, 20], [10, 1000, 800, 400, 200]
    windows = [(0, 15), (0, 20), (0, 28), (18, 28), (25, 28)]
    rate = LN2 / 3
    to_15 = exact_area(times, levels, 0, 15)
    whole = exact_area(times, levels, 0, 20)

    def beyond(a, b):
        return 200 / rate * (math.exp(-rate * (a - 20)) - math.exp(-rate * (b - 20)))

    found = one(levels, times, rules=ck.NcaRules(), windows=windows)
    assert found.loc["auc_0_15", "VALUE"] == pytest.approx(to_15, rel=1e-12)
    assert found.loc["auc_0_20", "VALUE"] == pytest.approx(whole, rel=1e-12)
    assert found.loc["auc_0_28", "VALUE"] == pytest.approx(whole + beyond(20, 28), rel=1e-10)
    late = exact_area(times, levels, 18, 20)
    assert found.loc["auc_18_28", "VALUE"] == pytest.approx(late + beyond(20, 28), rel=1e-10)
    assert found.loc["auc_25_28", "VALUE"] == pytest.approx(beyond(25, 28), rel=1e-10)
    assert list(found.loc[["auc_0_15", "auc_0_20", "auc_0_28"], "STATUS"]) == [
        "interpolated",
        "observed",
        "extrapolated",
    ]
    nothing = one(levels, times, rules=ck.NcaRules(beyond="nothing"), windows=windows)
    assert nothing.loc["auc_0_28", "VALUE"] == pytest.approx(whole, rel=1e-12)
    assert nothing.loc["auc_0_28", "STATUS"] == "censored"
    refused = one(levels, times, rules=ck.NcaRules(beyond="refuse"), windows=windows)
    assert refused.loc["auc_0_28", "STATUS"] == "not_estimable" and np.isnan(refused.loc["auc_0_28", "VALUE"])
    assert not refused.loc["auc_0_28", "COVERED"] and refused.loc["auc_0_15", "COVERED"]


def test_a_window_after_the_limit_was_reached():
    """Below the limit at the end: covered by samples nothing is added and nothing said; else it is extrapolated."""
    found = one([1000, 100, None, None], [5, 12, 20, 28], windows=[(0, 28), (0, 90)])
    assert found.loc["auc_0_28", "STATUS"] == "interpolated"  # nothing is known of day 0
    assert found.loc["auc_0_90", "STATUS"] == "extrapolated"
    assert found.loc["auc_0_90", "VALUE"] == found.loc["auc_0_28", "VALUE"]
    assert "below the limit: nothing added" in found.loc["auc_0_90", "REASON"]
    ignored = one([1000, 100, None, None], [5, 12, 20, 28], rules=ck.NcaRules(after="ignore"))
    assert ignored.loc["auc_0_28", "STATUS"] == "not_estimable"
    assert "last measurable sample is of day 12" in ignored.loc["auc_0_28", "REASON"]


def test_the_beginning_by_its_three_rules():
    """First sample on day 5: a triangle, a rectangle, or no area. If it fails, day 0 is made up without a word."""
    times, levels, windows = [5, 9, 30], [100, 100, 100], [(0, 9), (6, 9)]
    triangle, rectangle, none = (
        one(levels, times, rules=ck.NcaRules(start=s), windows=windows) for s in ("zero", "first", "refuse")
    )
    assert triangle.loc["auc_0_9", "VALUE"] == 250 + 400
    assert rectangle.loc["auc_0_9", "VALUE"] == 900
    assert none.loc["auc_0_9", "STATUS"] == none.loc["auc_inf", "STATUS"] == "not_estimable"
    assert none.loc["auc_6_9", "VALUE"] == 300
    assert "no sample before day 5" in triangle.loc["auc_0_9", "REASON"]


@pytest.mark.thorough
def test_the_terminal_slope_has_the_best_adjusted_r2_and_of_equals_most_samples():
    """Every end of the series by scipy.stats.linregress. If it fails, half-lives depend on which points were liked."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        t = np.sort(rng.uniform(10, 200, 9))
        y = 1e5 * np.exp(-0.05 * t) + 500 * np.exp(-0.004 * t)
        y *= np.exp(0.15 * rng.standard_normal(9))
        times, levels = np.concatenate([[0.0, 8.0], t]), np.concatenate([[1.0, 1e6], y])
        found = one(levels, times, limit=1e-3)
        fits = {n: stats.linregress(t[-n:], np.log(y[-n:])) for n in range(3, 10)}
        r2 = {n: 1 - (1 - f.rvalue**2) * (n - 1) / (n - 2) for n, f in fits.items() if f.slope < 0}
        best = max(n for n, r in r2.items() if r >= max(r2.values()) - 1e-4)
        assert found.loc["lambda_z", "VALUE"] == pytest.approx(-fits[best].slope, rel=1e-9)
        assert found.loc["lambda_z_n", "VALUE"] == best
        assert found.loc["lambda_z_r2", "VALUE"] == pytest.approx(r2[best], rel=1e-9)
        whole = exact_area(times, levels, 0, times[-1]) - levels[-1] / fits[best].slope
        assert found.loc["auc_inf", "VALUE"] == pytest.approx(whole, rel=1e-9)


def test_a_line_within_the_tolerance_takes_more_samples():
    """Three exact samples and a fourth a hair off. If it fails, the tolerance of the adjusted R2 is not applied."""
    t = np.array([10.0, 20, 30, 40])
    y = np.exp(10 - 0.1 * t)
    for off, n in ((1.002, 4), (1.2, 3)):
        found = one([1.0, 1e6, y[0] * off, *y[1:]], [0, 5, *t], limit=1e-3)
        assert found.loc["lambda_z_n", "VALUE"] == n


def test_no_terminal_slope_where_there_is_none():
    """Two samples after the peak, a rise, a poor line. If it fails, a half-life is made of nothing."""
    for levels in ([1, 100, 50, 20], [1, 100, 20, 30, 40]):
        found = one(levels, [0, 7, 14, 21, 28][: len(levels)], limit=0.1)
        assert found.loc["half_life", "STATUS"] == found.loc["auc_inf", "STATUS"] == "not_estimable"
        assert np.isnan(found.loc["lambda_z", "VALUE"])
    poor = one([1, 100, 30, 60, 20, 50, 10], [0, 7, 14, 21, 28, 35, 42], limit=0.1, rules=ck.NcaRules(r2_min=0.99))
    assert "adjusted R2" in poor.loc["half_life", "REASON"]


def test_one_sample_none_and_all_below_the_limit():
    """If it fails, a patient without a curve gets numbers, or disappears."""
    single = one([700], [10])
    assert single.loc["cmax", "VALUE"] == single.loc["c_last", "VALUE"] == 700
    assert single.loc["tmax", "VALUE"] == 10
    assert single.loc["auc_last", "VALUE"] == 3500  # from nothing on day 0
    assert list(single.loc[["t_last", "auc_0_28", "fold_expansion"], "STATUS"]) == ["censored", *["not_estimable"] * 2]
    data = dataset([("A", 1, 10, 1), ("A", 8, 10, 1), ("B", 3, 500)], doses=[("A", 0), ("B", 0), ("C", 0)])
    values = ck.nca(data).values
    for who, why in (("A", "all 2 samples are below the limit (10 copies/ug)"), ("C", "no samples from day 0 on")):
        mine = values[values["ID"] == who]
        assert mine["VALUE"].isna().all() and set(mine["STATUS"]) == {"not_estimable"}
        assert set(mine["REASON"]) == {why}
    assert not values[values["VALUE"].isna() & (values["REASON"] == "")].size


def test_ties_duplicates_and_rows_in_any_order():
    """If it fails, the result depends on how the file was sorted, or on which of two values came first."""
    rows = [
        ("P", 0, 10, 1),
        ("P", 4, 100),
        ("P", 8, 900),
        ("P", 8, 100),
        ("P", 8, 10, 1),
        ("P", 12, 300),
        ("P", 20, 30),
    ]
    replicate = ck.ReadOptions(duplicates="replicate")
    tie = [*rows, ("P", 16, 900)]
    expected = {"geomean": 300.0, "mean": 500.0, "max": 900.0}
    for rule, top in expected.items():
        found = [
            ck.nca(dataset(order, options=replicate), rules=ck.NcaRules(duplicates=rule)).values.set_index("METRIC")
            for order in (rows, rows[::-1], [rows[k] for k in (3, 6, 0, 5, 2, 4, 1)])
        ]
        assert found[0].equals(found[1]) and found[0].equals(found[2])
        assert found[0].loc["cmax", "VALUE"] == pytest.approx(top)
    equal = ck.nca(dataset(tie, options=replicate), rules=ck.NcaRules(duplicates="max")).values.set_index("METRIC")
    assert (equal.loc["cmax", "VALUE"], equal.loc["tmax", "VALUE"]) == (900, 8)  # of equal ones the first
    with pytest.raises(ck.ModelError, match="patient P, qpcr: 3 samples on day 8"):
        ck.nca(dataset(rows, options=replicate), rules=ck.NcaRules(duplicates="error"))


def test_the_smallest_limit_counts_where_all_of_one_time_are_below():
    """If it fails, two samples below 50 and below 10 count as below 50."""
    rows = [("P", 2, 50, 1), ("P", 2, 10, 1), ("P", 9, 800), ("P", 20, 100)]
    data = dataset(rows, options=ck.ReadOptions(duplicates="replicate"))
    found = ck.nca(data).values.set_index("METRIC")
    assert found.loc["fold_expansion", "VALUE"] == 80
    assert found.loc["fold_expansion", "STATUS"] == "censored"


def test_days_of_the_peak_the_last_and_the_first_below():
    """By hand. If it fails, a persistence or a peak is of another sample."""
    found = one([40, 20, 500, 2000, None, 90, 30, None, None], [0, 3, 7, 10, 14, 21, 28, 42, 60])
    by_hand = {"cmax": 2000, "tmax": 10, "t_last": 28, "c_last": 30, "t_first_blq": 14, "fold_expansion": 100}
    assert dict(found.loc[list(by_hand), "VALUE"]) == by_hand
    assert set(found.loc[list(by_hand), "STATUS"]) == {"observed"}
    late = one([40, 20, 500], [0, 3, 7], rules=ck.NcaRules(peak=(1, 5)))
    assert (late.loc["cmax", "VALUE"], late.loc["tmax", "VALUE"]) == (20, 3)
    assert late.loc["t_first_blq", "STATUS"] == late.loc["t_last", "STATUS"] == "censored"
    assert "up to day 7" in late.loc["t_first_blq", "REASON"]


def test_a_peak_above_the_upper_limit_is_a_bound():
    """If it fails, a saturated assay passes for a measured peak."""
    table = pd.DataFrame({"ID": "P", "TIME": [1, 8, 15.0], "DV": [100, 1e6, 400], "CENS": [0, -1, 0]})
    found = ck.nca(ck.read_dataset(table)).values.set_index("METRIC")
    assert found.loc["cmax", "VALUE"] == 1e6
    assert found.loc["cmax", "STATUS"] == "censored"
    assert "at least" in found.loc["cmax", "REASON"]


def test_samples_after_a_second_infusion_are_another_expansion():
    """The parts of a split dose are not. If it fails, a re-treated patient's peak is of the second product."""
    rows = [("P", t, y) for t, y in ((1, 50), (7, 900), (14, 300), (30, 40), (44, 5000), (60, 900))]
    split = [("P", 0), ("P", 1), ("P", 2)]
    whole = ck.nca(dataset(rows, doses=split))
    assert whole.values.set_index("METRIC").loc["cmax", "VALUE"] == 5000
    assert whole.patients["CUT"].isna().all()
    twice = ck.nca(dataset(rows, doses=[*split, ("P", 42)]))
    found = twice.values.set_index("METRIC")
    assert found.loc["cmax", "VALUE"] == 900
    assert list(twice.patients[["N", "LAST", "CUT"]].iloc[0]) == [4, 30, 42]
    assert "infusion on day 42" in found.loc["auc_0_90", "REASON"]
    assert "infusion on day 42" in found.loc["t_last", "REASON"]
    on = ck.nca(dataset(rows, doses=[*split, ("P", 42)]), stop=False)
    assert on.values.set_index("METRIC").loc["cmax", "VALUE"] == 5000


def test_assays_are_never_pooled_and_have_their_units():
    """If it fails, marrow counts for blood."""
    rows = [("P", 1, 10, 0, "blood"), ("P", 8, 900, 0, "blood"), ("P", 8, 3.0, 0, "flow"), ("Q", 2, 40, 0, "blood")]
    table = pd.DataFrame(rows, columns=["ID", "TIME", "DV", "CENS", "DVID"])
    found = ck.nca(ck.read_dataset(table, units={"DV": {"blood": "copies/ug", "flow": "cells/uL"}}))
    wide = found.table.set_index(["ID", "DVID"])
    assert wide.loc[("P", "blood"), "cmax"] == 900
    assert wide.loc[("P", "flow"), "cmax"] == 3
    assert wide.loc[("Q", "flow"), "cmax_status"] == "not_estimable"
    units = found.values.set_index(["ID", "DVID", "METRIC"])["UNIT"]
    assert units["P", "flow", "auc_0_28"] == "cells/uL day"
    assert units["P", "blood", "cmax"] == "copies/ug"
    flow = found.exposure("flow")
    assert flow["cmax"].subjects == ("P", "Q")
    assert flow["cmax"].draws.shape == (1, 2)
    assert flow["cmax"].status == ("observed", "not_estimable")
    assert flow["auc_0_28"].window == (0, 28)
    assert set(flow.table()["UNIT"]) >= {"cells/uL", "cells/uL day", "day"}
    with pytest.raises(ck.ModelError, match="name one"):
        found.exposure()
    with pytest.raises(ck.ModelError, match="Did you mean 'flow'"):
        found.exposure("flw")


def test_the_summary_by_group():
    """Geometric mean and CV by scipy, of values that are neither bounds nor missing; groups by a column."""
    rng = np.random.default_rng(3)
    frames = []
    for i in range(12):
        y = 10 ** rng.uniform(2, 5)
        levels = [y / 50, y, y / 5, y / 40] if i else [10.0] * 4
        frames.append(
            pd.DataFrame({"ID": f"P{i:02d}", "TIME": [1, 8, 20, 40.0], "DV": levels, "CENS": int(i == 0)}).assign(
                LEVEL="low" if i < 6 else "high"
            )
        )
    found = ck.nca(ck.read_dataset(pd.concat(frames)))
    values = found.values[(found.values["METRIC"] == "cmax") & found.values["VALUE"].notna()]
    whole = found.summary().set_index("METRIC").loc["cmax"]
    assert (whole["N"], whole["NONE"]) == (11, 1)
    assert whole["GEOMEAN"] == pytest.approx(stats.gmean(values["VALUE"]))
    spread = stats.gstd(values["VALUE"])
    assert whole["GEOCV_PCT"] == pytest.approx(100 * math.sqrt(math.exp(math.log(spread) ** 2) - 1))
    assert (whole["MEDIAN"], whole["MIN"], whole["MAX"]) == (
        values["VALUE"].median(),
        values["VALUE"].min(),
        values["VALUE"].max(),
    )
    groups = found.summary(by="LEVEL").set_index(["LEVEL", "METRIC"])
    low = values[values["ID"] < "P06"]["VALUE"]
    assert groups.loc[("low", "cmax"), "GEOMEAN"] == pytest.approx(stats.gmean(low))
    assert groups.loc[("low", "cmax"), "N"] == 5 and groups.loc[("high", "cmax"), "N"] == 6
    assert groups.loc[("low", "t_last"), "CENSORED"] == 5
    assert np.isnan(groups.loc[("low", "t_last"), "GEOMEAN"])


def test_wrong_rules_and_windows_are_refused():
    """If it fails, a typing error becomes another analysis."""
    with pytest.raises(ck.ModelError, match="Did you mean 'linear_up_log_down'"):
        ck.NcaRules(method="linear_up_logdown")
    with pytest.raises(ck.ModelError, match="unknown before"):
        ck.NcaRules(before="lloq/2")
    with pytest.raises(ck.ModelError, match="peak"):
        ck.NcaRules(peak=(5, 2))
    with pytest.raises(ck.ModelError, match="windows"):
        ck.nca(dataset([("P", 1, 100)]), windows=[(28, 0)])


def test_persistence_is_an_interval():
    """Interval-, right- and left-censored, and nobody lost. If it fails, the last visit passes for a loss."""
    rows = [("A", 7, 500), ("A", 28, 10, 1), ("A", 42, 60), ("A", 60, 10, 1), ("A", 90, 10, 1)]
    rows += [("B", 7, 500), ("B", 100, 50), ("C", 7, 10, 1), ("C", 14, 10, 1), ("E", 7, 900), ("E", 50, 800)]
    data = dataset(rows, doses=[*((i, 0) for i in "ABCDE"), ("E", 45)])
    table = ck.persistence(data).set_index("ID")
    assert list(table["STATUS"]) == ["interval", "right", "left", "none", "right"]
    assert list(table.loc["A", ["LOWER", "UPPER"]]) == [42, 60]
    assert list(table.loc["B", ["LOWER", "UPPER"]]) == [100, np.inf]
    assert list(table.loc["C", ["LOWER", "UPPER"]]) == [0, 7]
    assert list(table.loc["E", ["LOWER", "UPPER"]]) == [7, np.inf]
    assert "infusion on day 45" in table.loc["E", "REASON"]
    assert np.isnan(table.loc["D", "LOWER"])


def test_the_command_line_writes_every_value(tmp_path, capsys):
    """If it fails, the command prints other numbers than Python, or refuses a good table."""
    rows = [("A", 0, 10, 1), ("A", 7, 500, 0), ("A", 14, 300, 0), ("A", 28, 60, 0), ("B", 7, 900, 0), ("B", 21, 40, 0)]
    file, out = tmp_path / "trial.csv", tmp_path / "nca.csv"
    pd.DataFrame(rows, columns=["ID", "TIME", "DV", "CENS"]).to_csv(file, index=False)
    assert cli.main(["nca", str(file), "--out", str(out), "--unit", "DV=copies/ug"]) == 0
    assert "auc_0_28" in capsys.readouterr().out
    found = pd.read_csv(out, dtype={"ID": str})
    expected = ck.nca(ck.read_dataset(file, units={"DV": "copies/ug"})).values
    assert list(found["METRIC"]) == list(expected["METRIC"])
    np.testing.assert_allclose(found["VALUE"], expected["VALUE"], rtol=1e-12)
    assert cli.main(["nca", str(file), "--out", str(out), "--method", "log"]) == 1
    assert "unknown method 'log'" in capsys.readouterr().err
