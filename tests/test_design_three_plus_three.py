"""3+3: its rules, and its operating characteristics against closed forms."""

from math import comb, prod

import pytest

import carkinetics as ck

TRUTHS = ([0.05, 0.15, 0.3, 0.45, 0.6], [0.3, 0.3, 0.3], [0.5, 0.6, 0.7, 0.8], [0.01, 0.02, 0.9])


def binomial(k, n, p):
    return comb(n, k) * p**k * (1 - p) ** (n - k)


def passes(p):
    """P(0 of 3), and P(1 of 3, then 0 of 3 more)."""
    return binomial(0, 3, p), binomial(1, 3, p) * binomial(0, 3, p)


@pytest.mark.parametrize("truth", TRUTHS)
def test_without_deescalation_selection_is_the_closed_form(truth):
    """Lin & Shih 2001: the MTD is i if levels 1 to i pass and i + 1 does not.

    If it fails, escalation rules or the enumeration are wrong.
    """
    goes = [sum(passes(p)) for p in truth]
    wanted = [prod(goes[: i + 1]) * (1 - goes[i + 1] if i + 1 < len(truth) else 1) for i in range(len(truth))]
    found = ck.design.exact(ck.design.three_plus_three(len(truth), deescalate=False), truth, patients=99)
    assert found.table["SELECTED"].tolist() == pytest.approx(wanted, rel=1e-12)
    assert found.summary.loc["stopped", "VALUE"] == pytest.approx(1 - goes[0], rel=1e-12)


@pytest.mark.parametrize("truth", TRUTHS)
def test_with_deescalation_selection_is_the_closed_form(truth):
    """Lin & Shih 2001, section 4: below the first level k that fails, each level expanded to six until one passes.

    A level that had passed as 1 of 6 stands; one that had passed as 0 of 3 needs at most 1 of 3 more.
    """
    n = len(truth)
    p0, q0 = zip(*map(passes, truth), strict=True)
    q2 = [binomial(0, 3, p) + binomial(1, 3, p) for p in truth]

    def selected(i):
        if i == n - 1:
            return prod(p0[j] + q0[j] for j in range(n))
        total = 0.0
        for k in range(i + 1, n):
            down = prod(p0[j] * (1 - q2[j]) for j in range(i + 1, k))
            total += down * (1 - p0[k] - q0[k])
        return prod(p0[j] + q0[j] for j in range(i)) * (q0[i] + p0[i] * q2[i]) * total

    found = ck.design.exact(ck.design.three_plus_three(n), truth, patients=99)
    wanted = [selected(i) for i in range(n)]
    assert found.table["SELECTED"].tolist() == pytest.approx(wanted, rel=1e-12)
    assert found.summary.loc["stopped", "VALUE"] == pytest.approx(1 - sum(wanted), abs=1e-12)


def test_expected_patients_without_deescalation_are_the_closed_form():
    """Lin & Shih 2001: a level that is reached has 3 patients, and 6 if one of the first three had a toxicity.

    If it fails, the sample size of a protocol is wrong.
    """
    truth = TRUTHS[0]
    found = ck.design.exact(ck.design.three_plus_three(5, deescalate=False), truth, patients=99)
    for i, p in enumerate(truth):
        reached = prod(sum(passes(q)) for q in truth[:i])
        wanted = reached * (3 + 3 * binomial(1, 3, p))
        assert found.table["PATIENTS"][i] == pytest.approx(wanted, rel=1e-12)
        assert found.table["DLT"][i] == pytest.approx(wanted * p, rel=1e-12)  # by Wald's identity


@pytest.mark.parametrize(
    ("trial", "decision", "dose"),
    [
        ("1N", "stay", 1),
        ("1NNN", "escalate", 2),
        ("1NNT", "stay", 1),
        ("1NTT", "stop", None),
        ("1NNT 1NNN", "escalate", 2),
        ("1NNT 1NNT", "stop", None),
        ("1NNN 2NTT", "de-escalate", 1),
        ("1NNN 2NNT 2NTT", "de-escalate", 1),
        ("1NNN 2NTT 1NNT", "complete", 1),
        ("1NNN 2NTT 1NTT", "stop", None),
        ("1NNT 1NNN 2TTT", "complete", 1),
        ("1NNN 2NNN 3TTT 2NTT", "de-escalate", 1),
        ("1NNN 2NNN 3NNN 4NNN 5NNN", "complete", 5),
        ("1NNN 2NNN 3NNN 4NNN 5NNT 5NNT", "de-escalate", 4),
    ],
)
def test_published_decisions(trial, decision, dose):
    """The rules as Storer (1989) and protocols state them. If it fails, the design is another one."""
    found = ck.design.three_plus_three(5).recommend(trial)
    assert (found.decision, found.dose) == (decision, dose)


@pytest.mark.parametrize(("trial", "dose"), [("1NNN 2NTT", 1), ("1NNN 2NNT 2NNT", 1), ("1NTT", None)])
def test_without_deescalation_the_level_below_is_selected_at_once(trial, dose):
    """If it fails, `deescalate=False` still asks for three more patients."""
    design = ck.design.three_plus_three(5, deescalate=False)
    found = design.recommend(trial)
    assert found.dose == dose and found.decision == ("stop" if dose is None else "complete")
    assert design.select(trial).dose == dose
