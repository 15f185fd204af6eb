"""BOIN12 against the tables and the trial of its paper."""

import numpy as np
import pytest

import carkinetics as ck

DESIGN = ck.design.boin12(0.35, 0.25, 5)


@pytest.mark.parametrize(
    ("cell", "score"),
    [
        ((0, 0, 0), 60), ((3, 0, 3), 91), ((6, 1, 5), 87), ((6, 5, 1), None), ((9, 0, 8), 99), ((9, 2, 3), 32.5),
        ((9, 5, 5), 32.5), ((9, 3, 1), 7), ((9, 4, 0), None), ((9, 6, 9), None),
    ],
)  # fmt: skip
def test_desirability_scores_are_the_published_ones(cell, score):
    """Lin et al. 2020, table 3. If it fails, utility, benchmark or admissibility are others."""
    table = ck.design.desirability_table(DESIGN).set_index(["N", "DLT", "ORR"])["RDS"]
    found = table.loc[cell]
    assert np.isnan(found) if score is None else found == score


@pytest.mark.parametrize(
    ("trial", "dose"),
    [
        ("1NNN 2ENT 3ETT 2EEN", 2),
        ("1NNN", 2),
        ("1NNN 2NNB", 3),
        ("1NNN 2NNB 3NEE", 3),
        ("1NNN 2NNB 3NEE 3NTN", 4),
        ("1NNN 2NNB 3NEE 3NTN 4ETE", 4),
        ("1NNN 2NNB 3NEE 3NTN 4ETE 4NBE", 4),
        ("1NNN 2NNB 3NEE 3NTN 4ETE 4NBE 4BNN", 5),
        ("1NNN 2NNB 3NEE 3NTN 4ETE 4NBE 4BNN 5BEN", 5),
        ("1NNN 2NNB 3NEE 3NTN 4ETE 4NBE 4BNN 5BEN 5NBT", 4),
        ("1EBB", 1), ("1EEB", 1), ("1EEE", 1), ("1NET", 2), ("1NNB", 2), ("1NNE", 2), ("1NNT", 2), ("1NTB", 1),
        ("2EBB", 1), ("2EEB", 2), ("2NEE", 2), ("2NET", 3), ("2NNB", 3), ("2NNT", 3), ("2NTT", 1),
        ("5EEB", 5), ("5NEB", 5), ("5NET", 4), ("5NNE", 4), ("5NNN", 4), ("5NTT", 4),
    ],
)  # fmt: skip
def test_decisions_are_the_published_ones(trial, dose):
    """Lin et al. 2020, page 1396 and supplement S2, and the authors' program.

    If it fails, BOIN12 is another design.
    """
    assert DESIGN.recommend(trial).dose == dose


def test_the_published_trial_selects_its_dose():
    """Supplement S2: 12 patients at level 4 end the trial. If it fails, another dose goes on to phase 2."""
    assert DESIGN.select("1NNN 2NNB 3NEE 3NTN 4ETE 4NBE 4BNN 5BEN 5NBT 4NEN").dose == 4


def test_toxicities_at_the_lowest_level_stop():
    """If it fails, a trial goes on at a dose that harms."""
    found = DESIGN.recommend("1TTT 1TTT")
    assert found.dose is None and found.decision == "stop"


def test_a_toxicity_can_raise_the_dose_of_boin12():
    """By the published rule, and said in docs/design.md. If it fails, the page warns of what does not happen."""
    assert (DESIGN.recommend("2NNNEEE").dose, DESIGN.recommend("2TNNEEE").dose) == (2, 3)


def test_without_response_anywhere_the_trial_stops():
    """0 of 12 at both levels: P(response < 0.25) = 0.976. If it fails, futile doses are given for ever."""
    design = ck.design.boin12(0.35, 0.25, 2)
    found = design.recommend("1NNNNNNNNNNNN 2NNNNNNNNNNNN")
    assert found.dose is None
    assert not found.table["ADMISSIBLE"].any()


def test_a_pending_response_makes_it_wait():
    """If it fails, an answer that is not known yet counts as none."""
    table = ck.design.outcomes("2EEE")
    table.loc[0:1, "ORR"] = None
    found = DESIGN.recommend(table)
    assert found.decision == "wait" and found.table["PENDING"][1] == 2


def test_simulated_and_enumerated_trials_agree():
    """Twelve patients, three levels. If it fails, the joint outcomes are drawn or enumerated wrongly."""
    design, truth = ck.design.boin12(0.35, 0.25, 3), ck.design.Truth((0.1, 0.2, 0.5), (0.1, 0.5, 0.6))
    exact = ck.design.exact(design, truth, patients=12)
    drawn = ck.design.simulate(design, truth, 4000, seed=1, patients=12)
    for column in ("SELECTED", "PATIENTS", "DLT"):
        error = (drawn.table[column] - exact.table[column]).abs() / (drawn.table[f"{column}_SE"] + 1e-9)
        assert error.max() < 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ck.design.boin12(35), "0.3 for 30 %"),
        (lambda: ck.design.boin12(utility=ck.design.Utility(nothing=120.0)), "worth most"),
        (
            lambda: ck.design.desirability_table(ck.design.boin12(utility=ck.design.Utility(nothing=50.0))),
            "pairs count",
        ),
        (lambda: ck.design.simulate(DESIGN, [0.1] * 5, 10, seed=1), "needs the response"),
    ],
)
def test_wrong_settings_are_refused(make, said):
    """If it fails, a wrong protocol runs, or the message does not say what is wrong."""
    with pytest.raises(ck.DesignError, match=said):
        make()
