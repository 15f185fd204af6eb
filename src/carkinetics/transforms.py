"""Between a parameter's natural scale and the scale on which it is normal in the population."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Transform(NamedTuple):
    """``forward``: natural to transformed (NumPy); ``inverse``: transformed to natural (JAX)."""

    forward: Callable
    inverse: Callable
    domain: str


TRANSFORMS: dict[str, Transform] = {
    "log": Transform(np.log, jnp.exp, "above 0"),
    "logit": Transform(lambda x: np.log(x) - np.log1p(-x), jax.nn.sigmoid, "between 0 and 1"),
    "identity": Transform(np.asarray, lambda x: x, "finite"),
}
