"""A small trial with two arms whose outcomes are known in closed form; others are made of it by replacing text."""

TEXT = """
schema = 1
name = "arms"

[kinetics]
model = "stein_2019_tisagenlecleucel"
source = "a test"

[[kinetics.covariates]]
column = "DOSE_PER_KG"
on = "cmax"
form = "power"
center = 2e6
value = 0.5

[doses]
levels = [1e6, 4e6]
unit = "cells/kg"
source = "a test"

[[arms]]
name = "low"
level = 1
patients = 10
source = "a test"

[[arms]]
name = "high"
level = 2
patients = 14
source = "a test"

[enrolment]
patients = 24
per_month = 4
source = "a test"

[sampling.qpcr]
days = [1, 4, 7, 10, 14, 21, 28, 56, 84]
lloq = 50
lod = 10
missed = 0.1
source = "a test"

[population.WT]
distribution = "normal"
mean = 60
sd = 12
low = 35
high = 100
source = "a test"

[population.SEX]
distribution = "categorical"
levels = ["F", "M"]
shares = [1, 3]
source = "a test"

[toxicity]
probability = 0.2
exposure = "cmax"
at = 24000
slope = 1.0
day = 28
target = 0.3
source = "a test"

[response]
probability = 0.6
exposure = "auc_0_28"
at = 250000
slope = 0.8
day = 84
target = 0.5
source = "a test"

[progression]
median = 200
shape = 1.4
exposure = "cmax"
at = 24000
slope = -0.3
source = "a test"

[death]
median = 300
source = "a test"

[follow_up]
days = 168
after = 90
dropout_per_year = 0.5
source = "a test"

[analysis]
model = "stein_2019_tisagenlecleucel"
minimum = 8

[[analysis.covariates]]
column = "DOSE_PER_KG"
on = "cmax"
form = "power"
center = 2e6
prior_sd = 0.5
"""

BOIN = """
[assignment]
design = "boin"
options = { target = 0.3 }
patients = 12
cohort = 3
wait = 28
source = "a test"
"""


def text(*changes: tuple[str, str]) -> str:
    """The file with these pieces replaced; each must be there."""
    found = TEXT
    for old, new in changes:
        assert old in found, old
        found = found.replace(old, new)
    return found


def with_design(assignment: str = BOIN, *changes: tuple[str, str]) -> str:
    """The file with a design in the place of the arms."""
    begin, end = TEXT.index("[[arms]]"), TEXT.index("[enrolment]")
    return text((TEXT[begin:end], assignment), *changes)
