"""Where to begin: rough individual parameters from each patient's own samples."""

import numpy as np
from jaxtyping import Float

from carkinetics.dataset import Dataset
from carkinetics.inputs import second_infusion
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.structures.occasions import Occasions

_REACH = 2.5  # prior SDs or omegas that a guess may lie from the typical value: one odd sample must not lead


def starting_values(
    model: Model, data: Dataset
) -> tuple[Float[np.ndarray, " phi"], Float[np.ndarray, "random subject"]]:
    """A first ``phi`` and ``z``: typical values at the median of the patients' guesses, scales as in the model.

    What a patient's samples do not show stays at the typical value.
    """
    layout = make_layout(model)
    names = [p.name for p in model.parameters]
    guesses = np.full((len(names), len(data.subjects)), np.nan)
    # The peak of a second infusion's own curve is not the first one's.
    until = second_infusion(data) if isinstance(model.structure, Occasions) else np.full(len(data.subjects), np.inf)
    for i in range(len(data.subjects)):
        rows = (data.subject == i) & (data.cens == 0) & (data.time >= 0) & (data.time <= until[i])
        if rows.any():
            found = model.structure.guess(data.time[rows], np.log(data.dv[rows]))
            for name, value in found.items():
                k = names.index(name)
                guesses[k, i] = model.parameters[k].forward(value)
    theta = np.array([p.theta for p in model.parameters])
    for k, p in enumerate(model.parameters):
        if not p.fixed and np.isfinite(guesses[k]).any():
            reach = _REACH * p.prior.scale
            theta[k] = np.clip(np.nanmedian(guesses[k]), p.prior.loc - reach, p.prior.loc + reach)
    omega = np.array([model.parameters[k].iiv for k in layout.random])
    z = np.nan_to_num((guesses - theta[:, None])[list(layout.random)] / omega[:, None])
    phi = layout.start.copy()
    phi[layout.typical] = theta[list(layout.estimated)]
    return phi, np.clip(z, -_REACH, _REACH)
