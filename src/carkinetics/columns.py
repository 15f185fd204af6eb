"""Values that recur too often to be measured, and columns that were known only after the infusion."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import gammainc

# So rarely would one of a table's values recur by chance as often as one that is reported.
CHANCE = 0.01
# 50 and 1000 recur because people round; 662.4673 does not.
MIN_DIGITS = 3
# Values within this factor say how dense values are and with how many decimals they are written.
NEAR, MIN_NEAR = 1.5, 5  # fewer distinct values: decimals of the whole table
# The smallest value of an assay, this often: a limit that is not marked, with however few digits.
MIN_FLOOR = 5
# Share of a column's words that name a response, for the column to be one.
RESPONSE_SHARE = 0.8

_LATER = re.compile(
    r"respon(?:se|der|ders|ded)|resp|orr|bor|relapsed?|progress(?:ion|ed)|pfs|os|efs|rfs|dor|dfs|surviv(?:al|ed)"
    r"|death|died|dead|outcomes?|crs|icans|dlt|toxicity|cmax|tmax|clast|tlast|auc[0-9]*"
)
_EARLIER = {"prior", "previous", "baseline", "base", "bl", "pre", "before", "history", "n", "number", "planned"}
_RESPONSES = {"cr", "cri", "crh", "crp", "scr", "vgpr", "pr", "mr", "sd", "pd", "nr", "relapse", "relapsed"}


def recurring(values: Float[np.ndarray, " n"]) -> list[float]:
    """Values that recur more often than chance explains, sorted.

    Under chance, the number of other samples that equal one is Poisson, with the density of values near it and the
    width of their last decimal; the probability of as many is multiplied by the number of distinct values.
    """
    distinct, counts = np.unique(values[values > 0], return_counts=True)
    decimals = np.array([-int(Decimal(repr(float(v))).normalize().as_tuple().exponent) for v in distinct])
    found = []
    for value, count in zip(distinct[counts > 1], counts[counts > 1], strict=True):
        near = (distinct >= value / NEAR) & (distinct <= value * NEAR)
        others = int(counts[near].sum()) - int(count) + 1
        last_digit = 10.0 ** -float(np.median(decimals[near] if near.sum() >= MIN_NEAR else decimals))
        expected = others * last_digit / (value * (NEAR - 1 / NEAR))
        by_chance = float(gammainc(count - 1, expected)) * len(distinct)
        digits = len(Decimal(repr(float(value))).normalize().as_tuple().digits)
        floor = value == distinct[0] and count >= MIN_FLOOR
        if by_chance < CHANCE and (digits >= MIN_DIGITS or floor):
            found.append(float(value))
    return found


def known_later(table: pd.DataFrame, skip: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Columns with one value a patient whose name or values say that they were known only after the infusion.

    Returns name and values of each. What is measured over time has several values a patient, and is not meant.
    """
    found = []
    for name in (str(column) for column in table.columns if column not in skip):
        filled = table[["ID", name]][table[name].notna() & (table[name].astype(str) != "")]
        per_patient = filled.drop_duplicates()
        if per_patient.empty or per_patient["ID"].duplicated().any():
            continue
        words = [word for word in re.split(r"[^a-z0-9]+", name.casefold()) if word]
        if _EARLIER & set(words):
            continue
        by_name = any(_LATER.fullmatch(word) for word in words)
        texts = per_patient[name].astype(str).str.casefold()
        response = texts.str.extract(r"^\s*([a-z]+)(?![a-z])", expand=False).isin(list(_RESPONSES))
        by_value = texts.nunique() > 1 and float(response.mean()) >= RESPONSE_SHARE
        if by_name or by_value:
            values = sorted(set(per_patient[name].astype(str)))
            found.append((name, values))
    return found
