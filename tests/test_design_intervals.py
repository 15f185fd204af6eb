"""BOIN, keyboard and mTPI-2 against the tables of their papers and high-precision integrals."""

import itertools

import mpmath
import numpy as np
import pytest

import carkinetics as ck

TREATED = np.arange(3, 31, 3)


@pytest.mark.parametrize(
    ("target", "escalate", "deescalate"),
    [(0.20, 0.157242, 0.238462), (0.25, 0.196801, 0.298392), (0.30, 0.236491, 0.358519), (0.33, 0.260377, 0.394716)],
)
def test_boin_boundaries_are_the_published_ones(target, escalate, deescalate):
    """Liu & Yuan 2015, table 1, and equations 5 and 6 at 50 digits. If it fails, every BOIN decision is suspect."""
    design = ck.design.boin(target)
    assert (design.escalate, design.deescalate) == pytest.approx((escalate, deescalate), abs=1e-6)
    with mpmath.workdps(50):
        p, low, high = mpmath.mpf(target), mpmath.mpf(target) * 6 / 10, mpmath.mpf(target) * 14 / 10
        le = mpmath.log((1 - low) / (1 - p)) / mpmath.log(p * (1 - low) / (low * (1 - p)))
        ld = mpmath.log((1 - p) / (1 - high)) / mpmath.log(high * (1 - p) / (p * (1 - high)))
    assert (design.escalate, design.deescalate) == pytest.approx((float(le), float(ld)), rel=1e-12)


def test_boin_table_is_the_published_one():
    """Yan et al. 2020 (J Stat Softw 94:13), target 0.3, ten cohorts of three.

    If it fails, the table that is printed for a trial is wrong.
    """
    table = ck.design.boundaries(ck.design.boin(0.3), 30).set_index("N").loc[TREATED]
    assert table["ESCALATE"].tolist() == [0, 1, 2, 2, 3, 4, 4, 5, 6, 7]
    assert table["DEESCALATE"].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert table["ELIMINATE"].tolist() == [3, 4, 5, 7, 8, 9, 10, 11, 12, 14]


def test_a_number_of_patients_beyond_every_table_is_computed():
    """If it fails, the hundredth patient ends in an index error."""
    table = ck.design.boundaries(ck.design.boin(0.3), 200)
    assert len(table) == 200
    last = table.iloc[-1]
    assert (last["ESCALATE"], last["DEESCALATE"]) == (47, 72)  # 200 lambda_e = 47.3, 200 lambda_d = 71.7


@pytest.mark.parametrize(("target", "n", "y"), [(0.3, 3, 3), (0.3, 6, 4), (0.25, 9, 5), (0.2, 12, 5), (0.3, 30, 13)])
def test_the_probability_of_too_much_toxicity_is_the_integral(target, n, y):
    """P(p > target) of a Beta(1 + y, 1 + n - y), by mpmath.

    If it fails, levels are eliminated too late or too early.
    """
    with mpmath.workdps(50):
        wanted = 1 - mpmath.betainc(1 + y, 1 + n - y, 0, mpmath.mpf(str(target)), regularized=True)
    design = ck.design.boin(target, 1)
    found = design.recommend("1" + "T" * y + "N" * (n - y))
    assert found.table["P_TOXIC"][0] == pytest.approx(float(wanted), rel=1e-12)
    assert (found.dose is None) == (wanted > 0.95)


def strongest(n, y, target, *, shorter, width=0.05):
    """The move by mpmath: intervals of the paper, their posterior mass, by length if the shorter ones count too."""
    with mpmath.workdps(30):
        low, high = mpmath.mpf(str(target)) - width, mpmath.mpf(str(target)) + width
        ends = [(low, high, 0)]
        while low > 1e-9:
            below = low - 2 * width
            if below < -1e-9 and not shorter:
                break
            ends.append((max(below, 0), low, 1))
            low = below
        while high < 1 - 1e-9:
            above = high + 2 * width
            if above > 1 + 1e-9 and not shorter:
                break
            ends.append((high, min(above, 1), -1))
            high = above
        mass = [mpmath.betainc(1 + y, 1 + n - y, a, b, regularized=True) for a, b, _ in ends]
        value = [m / (b - a) if shorter else m for m, (a, b, _) in zip(mass, ends, strict=True)]
        return ends[value.index(max(value))][2]


@pytest.mark.parametrize("target", [0.2, 0.25, 0.3])
@pytest.mark.parametrize("name", ["keyboard", "mtpi2"])
def test_every_cell_is_the_strongest_interval(name, target):
    """All cells to 15 patients by mpmath. If it fails, a cell of the decision table is wrong."""
    design = getattr(ck.design, name)(target)
    cells = [(n, y) for n in range(1, 16) for y in range(n + 1)]
    n, y = np.array(cells, float).T
    wanted = [strongest(*cell, target, shorter=name == "mtpi2") for cell in cells]
    assert design.moves(n, y).tolist() == wanted


@pytest.mark.parametrize(
    ("cell", "move"),
    [
        ("NNN", 3), ("NNT", 2), ("NTT", 1), ("TTT", 1), ("NNNNNN", 3), ("NNNNNT", 3), ("NNNNTT", 2), ("NNNTTT", 1),
        ("NNTTTT", 1), ("NNNNNNNNN", 3), ("NNNNNNNNT", 3), ("NNNNNNNTT", 3), ("NNNNNNTTT", 2), ("NNNNNTTTT", 1),
    ],
)  # fmt: skip
def test_mtpi2_decisions_are_the_published_ones(cell, move):
    """Guo et al. 2017, figure 3 (target 0.3, 0.05 on either side), at level 2.

    If it fails, mTPI-2 is another design.
    """
    assert ck.design.mtpi2(0.3, 5).recommend("2" + cell).dose == move


@pytest.mark.parametrize(
    ("cells", "stopped"),
    [("1TTT", True), ("1NTT", False), ("1NNT 1TTT", True), ("1NNN 1TTT", False), ("1NNN 1NTT 1TTT", True)],
)
def test_mtpi2_closes_the_lowest_level_as_published(cells, stopped):
    """Guo et al. 2017, figure 3: the cells DU at level 1. If it fails, a toxic trial goes on."""
    assert (ck.design.mtpi2(0.3, 5).recommend(cells).dose is None) == stopped


def test_keyboard_and_mtpi2_agree_where_they_are_known_to():
    """Up to 18 patients and target 0.3, cell by cell. If it fails, one of the two uses other intervals."""
    n, y = np.array([(n, y) for n in range(1, 19) for y in range(n + 1)], float).T
    np.testing.assert_array_equal(ck.design.keyboard(0.3).moves(n, y), ck.design.mtpi2(0.3).moves(n, y))


def test_boin_follows_the_example_of_its_tutorial():
    """Yan et al. 2020: 0/3, 0/3, 4/15, 4/9 selects level 3. If it fails, the selection at the end is another one."""
    trial = "1NNN 2NNN 3NNN 3NNN 3NNN 3NNT 3TTT 4NNN 4NNT 4TTT"
    design = ck.design.boin(0.3, 5)
    assert design.select(trial).dose == 3
    assert design.recommend(trial).dose == 3


def test_a_level_that_was_closed_is_not_given_again():
    """If it fails, BOIN escalates into a level with 3 of 3 toxicities."""
    found = ck.design.boin(0.3, 5).recommend("1NNN 2TTT 1NNN")
    assert (found.dose, found.decision) == (1, "stay")
    assert found.trace[0].after == 2 and found.trace[1].acted


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_rates_are_the_weighted_least_squares_solution(seed):
    """Against scipy's isotonic regression of the same rates and weights. If it fails, another level is selected."""
    from scipy.optimize import isotonic_regression

    from carkinetics.design.evidence import Evidence
    from carkinetics.design.isotonic import isotonic

    random = np.random.default_rng(seed)
    n = random.integers(0, 12, (40, 6)).astype(float)
    n[:, 0] += 1
    y = random.binomial(n.astype(int), 0.4).astype(float)
    found = isotonic(Evidence(n, y, np.zeros(n.shape), np.zeros(n.shape), np.ones(40, int)), n > 0)
    for k in range(40):
        given = n[k] > 0
        a, b = y[k][given] + 0.05, n[k][given] - y[k][given] + 0.05
        weight = (a + b) ** 2 * (a + b + 1) / (a * b)
        wanted = isotonic_regression(a / (a + b), weights=weight).x
        np.testing.assert_allclose(found[k][given], wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ck.design.boin(30), "0.3 for 30 %"),
        (lambda: ck.design.boin(0.3, safe=0.4), "must lie below and above"),
        (lambda: ck.design.boin(0.3, toxic=0.3), "must lie below and above"),
        (lambda: ck.design.boin(0.3, [2e6, 1e6]), "rise from level to level"),
        (lambda: ck.design.boin(0.3, [1e6, 1e6]), "rise from level to level"),
        (lambda: ck.design.boin(0.3, [0.0, 1e6]), "above 0"),
        (lambda: ck.design.boin(0.3, 5, start=6), "start = 6"),
        (lambda: ck.design.boin(0.3).recommend(), "Give doses"),
        (lambda: ck.design.keyboard(0.3, width=0.5), "width"),
    ],
)
def test_wrong_settings_are_refused(make, said):
    """If it fails, a wrong protocol runs, or the message does not say what is wrong."""
    with pytest.raises(ck.DesignError, match=said):
        make()


def test_decisions_depend_on_the_current_level_alone():
    """BOIN's next level, by all counts at the current one. If it fails, another level's patients change it."""
    design = ck.design.boin(0.3, 3)
    for toxic, below in itertools.product(range(4), ("1NNN", "1NNT")):
        cohort = "T" * toxic + "N" * (3 - toxic)
        wanted = {0: 3, 1: 2, 2: 1, 3: 1}[toxic]
        assert design.recommend(f"{below} 2{cohort}").dose == wanted
