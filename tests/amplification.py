"""What steps of Tsitouras' method multiply an exponential by, from the method's published coefficients."""

import diffrax
import numpy as np


def factor(z):
    """The stability function at ``z`` = rate times step: a step of ``y' = r y`` multiplies ``y`` by it."""
    tableau = diffrax.Tsit5.tableau
    stages = len(tableau.b_sol)
    lower = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a_lower):
        lower[i + 1, : len(row)] = row
    # 1 + z b' (1 - z A)^-1 1, as the series that ends because A is strictly lower triangular.
    power, total = np.ones(stages), np.ones_like(np.asarray(z, float))
    for k in range(stages):
        total = total + np.asarray(z, float) ** (k + 1) * (np.asarray(tableau.b_sol) @ power)
        power = lower @ power
    return total
