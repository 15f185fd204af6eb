"""Tables of patients, safety rules, outcomes that are pending, doses that fell short."""

import numpy as np
import pandas as pd
import pytest

import carkinetics as ck

AMOUNTS = (1e6, 2e6, 5e6, 10e6)
BOIN = ck.design.boin(0.3, AMOUNTS)


def test_the_short_notation_is_a_table():
    """If it fails, examples and tests do not say what they seem to."""
    table = ck.design.outcomes("1NT 2EBP")
    assert table["LEVEL"].tolist() == [1, 1, 2, 2, 2]
    assert table["COHORT"].tolist() == [1, 1, 2, 2, 2]
    np.testing.assert_array_equal(table["DLT"], [0, 1, 0, 1, np.nan])
    np.testing.assert_array_equal(table["ORR"], [0, 0, 1, 1, np.nan])


@pytest.mark.parametrize("spelling", [["yes", "no", "pending"], [1, 0, None], [True, False, None], ["YES", " no ", ""]])
def test_outcomes_may_be_spelled_in_several_ways(spelling):
    """If it fails, a clinician's spelling is refused, or read as another outcome."""
    found = BOIN.recommend(pd.DataFrame({"LEVEL": [1, 1, 1], "DLT": pd.Series(spelling, dtype=object)}))
    row = found.table.iloc[0]
    assert (row["TREATED"], row["DLT"], row["PENDING"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"DLT": [0]}, "column LEVEL is missing"),
        ({"LEVEL": [1], "DLT": [0], "FOLLOWUP": [3]}, "Did you mean 'FOLLOW_UP'"),
        ({"LEVEL": [0, 1, 5], "DLT": [0, 0, 0]}, "rows 1 and 3: LEVEL must be a level from 1 to 4 .* 0 and 5"),
        ({"LEVEL": [-1], "DLT": [0]}, "row 1: LEVEL"),
        ({"LEVEL": [1.5], "DLT": [0]}, "row 1: LEVEL"),
        ({"LEVEL": [1, 1], "DLT": [0, 2]}, "row 2: DLT must be 1, 0 or empty"),
        ({"LEVEL": [1], "DLT": ["maybe"]}, "row 1: DLT .*'maybe'"),
        ({"LEVEL": [1], "DLT": [0], "INFUSED": [0.0]}, "row 1: INFUSED must be a dose above 0"),
        ({"LEVEL": [1], "DLT": [0], "INFUSED": ["2e6 cells"]}, "row 1: INFUSED"),
        ({"LEVEL": [1], "DLT": [0], "FOLLOW_UP": [-1]}, "row 1: FOLLOW_UP"),
        ({"LEVEL": [1, 1], "DLT": [0, 0], "ID": ["a", "a"]}, "a occur more than once"),
        ({"LEVEL": [1], "DLT": [0], "COHORT": [0]}, "row 1: COHORT"),
    ],
)
def test_rows_that_cannot_be_are_refused(table, said):
    """If it fails, a wrong table gives a dose."""
    with pytest.raises(ck.DataError, match=said):
        BOIN.recommend(pd.DataFrame(table))


@pytest.mark.parametrize("text", ["NNN", "0NNN", "1NNX", "1", "1nnn"])
def test_a_wrong_notation_is_refused(text):
    """If it fails, a typing error is another trial."""
    with pytest.raises(ck.DataError, match="cohort 1"):
        BOIN.recommend(text)


def test_no_level_is_skipped():
    """A CRM with a flat skeleton wants to jump. If it fails, level 3 follows level 1."""
    guesses = (0.02, 0.05, 0.12, 0.25)
    free = ck.design.crm(guesses, 0.25, AMOUNTS, rules=()).recommend("1NNN")
    held = ck.design.crm(guesses, 0.25, AMOUNTS).recommend("1NNN")
    assert free.dose == 4 and held.dose == 2
    step = next(s for s in held.trace if s.rule == "NoSkipping")
    assert (step.before, step.after, step.acted) == (4, 2, True)
    assert "above the highest" in held.reason


def test_the_jump_is_limited_by_the_dose():
    """2e6 to 5e6 is 2.5 times. If it fails, a maximum of two times the dose is not kept."""
    trial = "1NNN 2NNN"
    assert BOIN.recommend(trial).dose == 3
    limited = ck.design.boin(0.3, AMOUNTS, rules=(ck.design.Elimination(), ck.design.MaximumJump(2.0)))
    found = limited.recommend(trial)
    assert (found.dose, found.decision) == (2, "stay")
    assert ck.design.boin(0.3, AMOUNTS, rules=(ck.design.MaximumJump(2.5),)).recommend(trial).dose == 3
    with pytest.raises(ck.DesignError, match="doses="):
        ck.design.boin(0.3, 4, rules=(ck.design.MaximumJump(),)).recommend(trial)


def test_the_first_dose_stops_the_trial_and_a_higher_one_does_not():
    """If it fails, a CRM goes on at a lowest level with 4 of 4 toxicities, or stops because of another level."""
    crm = ck.design.crm((0.05, 0.12, 0.25, 0.4), 0.25, AMOUNTS)
    stopped = crm.recommend("1TTTT")
    assert stopped.dose is None
    assert [s.rule for s in stopped.trace if s.acted] == ["CRM", "FirstDoseStop"]
    assert crm.recommend("1NNN 2TTTT").dose == 1


def test_every_rule_stands_in_the_trace_in_its_order():
    """If it fails, a protocol's reader cannot tell which rules were asked."""
    rules = (ck.design.NoSkipping(), ck.design.Elimination(), ck.design.MaximumJump(3.0), ck.design.Stagger())
    found = ck.design.boin(0.3, AMOUNTS, rules=rules).recommend("1NNN")
    assert [s.rule for s in found.trace] == ["BOIN", "NoSkipping", "Elimination", "MaximumJump", "Stagger"]
    assert all("nothing to change" in s.reason for s in found.trace[1:])
    assert all(s.after == 2 for s in found.trace)


@pytest.mark.parametrize(
    ("trial", "decision", "dose"),
    [
        ("1NNP", "wait", 1),  # 0 or 1 of 3
        ("1NNNTTP", "stay", 1),  # 2 or 3 of 6: at the lowest level both stay
        ("1TTP", "wait", None),  # 3 of 3 would stop
        ("1NNN 2TTP", "de-escalate", 1),  # 2 or 3 of 3
        ("1NNN 2NNNNNNP", "escalate", 3),  # 0 or 1 of 7
    ],
)
def test_pending_outcomes_wait_only_where_they_decide(trial, decision, dose):
    """If it fails, an outcome that is not known counts as none, or holds up a trial for nothing."""
    found = BOIN.recommend(trial)
    assert (found.decision, found.dose) == (decision, dose)
    assert "pending" in found.reason


def test_short_follow_up_is_pending():
    """Two of three patients followed for 28 days. If it fails, a patient of yesterday counts as safe."""
    table = ck.design.outcomes("1NNN").assign(FOLLOW_UP=[40.0, 28.0, 10.0])
    assert BOIN.recommend(table).dose == 2
    held = ck.design.boin(0.3, AMOUNTS, rules=(ck.design.MinimumFollowUp(28.0), ck.design.Elimination()))
    found = held.recommend(table)
    assert (found.decision, found.dose) == ("wait", 1)
    assert held.recommend(table.assign(DLT=[0, 0, 1])).decision == "stay"  # a toxicity needs no follow-up


def test_a_tite_design_escalates_only_after_the_follow_up_that_was_asked_for():
    """If it fails, the minimum follow-up of a protocol is not kept where follow-up is a weight."""
    rules = (ck.design.NoSkipping(), ck.design.MinimumFollowUp(28.0, patients=2))
    free = ck.design.tite_crm((0.02, 0.05, 0.12, 0.25), 0.25, AMOUNTS)
    held = ck.design.tite_crm((0.02, 0.05, 0.12, 0.25), 0.25, AMOUNTS, rules=rules)
    table = ck.design.outcomes("1PPP").assign(FOLLOW_UP=[28.0, 20.0, 10.0])
    assert free.recommend(table).dose == 2
    found = held.recommend(table)
    assert (found.dose, found.decision) == (1, "stay")
    assert "follow-up" in found.reason
    assert held.recommend(table.assign(FOLLOW_UP=[28.0, 28.0, 10.0])).dose == 2


def test_infusions_are_staggered():
    """If it fails, the next patient is infused before the last one is out of danger."""
    rules = (ck.design.Elimination(), ck.design.Stagger(14.0, patients=2))
    design = ck.design.boin(0.3, AMOUNTS, rules=rules)
    one = ck.design.outcomes("1N").assign(DAY=[3.0])
    assert design.recommend(one).not_before == 17.0
    assert design.recommend(ck.design.outcomes("1NNN").assign(DAY=[3.0, 17.0, 18.0])).not_before is None
    assert design.recommend("1N").not_before is None  # no calendar


@pytest.mark.parametrize(
    ("infused", "treated", "toxic"),
    [
        (2e6, [0, 3, 0, 0], [0, 1, 0, 0]),
        (1.7e6, [0, 3, 0, 0], [0, 1, 0, 0]),  # 85 % of the planned dose is released
        (1.2e6, [1, 2, 0, 0], [1, 0, 0, 0]),  # the nearest level not above
        (0.7e6, [1, 2, 0, 0], [1, 0, 0, 0]),  # below the lowest, and toxic: counts for the lowest
        (6e6, [0, 2, 1, 0], [0, 0, 1, 0]),
    ],
)
def test_a_dose_that_fell_short_counts_for_the_level_not_above_it(infused, treated, toxic):
    """If it fails, a level is cleared by patients who got less of it."""
    table = ck.design.outcomes("2NNT").assign(INFUSED=[None, None, infused])
    found = BOIN.recommend(table).table
    assert found["TREATED"].tolist() == treated and found["DLT"].tolist() == toxic


def test_a_patient_below_the_lowest_level_without_a_toxicity_clears_nothing():
    """If it fails, 0.3 of the lowest dose is evidence that the lowest dose is safe."""
    table = ck.design.outcomes("1NNN").assign(INFUSED=[0.3e6] * 3)
    found = BOIN.recommend(table)
    assert found.table["TREATED"].sum() == 0
    assert found.dose == 1


def test_doses_infused_need_doses():
    """If it fails, amounts are compared with the numbers of levels."""
    with pytest.raises(ck.DataError, match="INFUSED needs the doses"):
        ck.design.boin(0.3, 4).recommend(ck.design.outcomes("1N").assign(INFUSED=[1e6]))


def test_a_decision_prints_its_whole_story():
    """If it fails, the minutes of a safety meeting lack the reason or the rules."""
    text = str(BOIN.recommend("1NNN 2NTT"))
    assert text.startswith("de-escalate: level 1 (1e+06). 2 of 3 with a toxicity at level 2")
    assert "Elimination: level 1 -> level 1" in text and "P_TOXIC" in text
