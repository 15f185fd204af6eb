"""CAR-T cells and normal T cells fill up one niche after lymphodepletion; CAR-T cells have the smaller share of it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters."""

    kn: Float[Array, "*n"]  # T cells at which normal T cells stop to grow, cells/uL
    kc: Float[Array, "*n"]  # T cells at which CAR-T cells stop to grow, cells/uL
    rn: Float[Array, "*n"]  # growth rate of normal T cells, per day
    rho: Float[Array, "*n"]  # growth rate of CAR-T cells where all T cells are as many as kn, per day
    a: Float[Array, "*n"]  # how early that rate is approached
    b: Float[Array, "*n"]  # what lymphodepletion adds to that rate, per day
    rb: Float[Array, "*n"]  # tumour growth, per day
    gamma: Float[Array, "*n"]  # largest killing, per day
    kb: Float[Array, "*n"]  # CAR-T level at which killing is half of that, cells/uL
    volume: Float[Array, "*n"]  # cells infused over the level that they make, L
    n0: Float[Array, "*n"]  # normal T cells that lymphodepletion left, cells/uL
    b0: Float[Array, "*n"]  # tumour volume at the infusion, mL


class States(NamedTuple):
    """Cells in cells/uL, tumour in mL; the solver steps in their logs."""

    normal: Float[Array, "*n"]
    car: Float[Array, "*n"]
    tumour: Float[Array, "*n"]


_UL = 1e6  # uL in a litre
_NONE = 1e-30  # cells/uL where nothing was infused: their log must be a number


class Competition(AbstractStructure[Parameters, States]):
    """Kimmel's model of axicabtagene ciloleucel: normal T cells N, CAR-T cells C and the tumour B.

    N' = -rn N ln((N + C) / kn)
    C' = -rC C ln((N + C) / kc)
    rC = rho + b (N + C - kn)^2 / (a (N + C)^2 + (N + C - kn)^2)
    B' = rb B - gamma B C / (kb + C)

    C(0) = dose / volume, N(0) = n0, B(0) = b0, and a further infusion adds to C: without another lymphodepletion it
    meets a niche that is full. The tumour does not drive the cells. Where the paper's equation of rC and the fit in its
    figure 2b differ, this is the figure's, and that of the SBML file BIOMD0000001041. A treatment multiplies C' while
    CAR-T cells grow. The paper's cure is the random death of the last tumour cells, which no differential equation has:
    small volumes are a chance of cure, not a relapse to come.

    References
    ----------
    Kimmel GJ et al., Proc R Soc B 2021;288:20210229, doi:10.1098/rspb.2021.0229.
    """

    name = "competition"
    parameters = Parameters
    states = States
    outputs = ("level", "normal", "tumour")
    treatable = True
    uses_dose = True
    refine = 2

    def initial(self, p, x):
        return States(normal=p.n0, car=jnp.maximum(x.dose / (_UL * p.volume), _NONE), tumour=p.b0)

    def rhs(self, t, y, p, x):
        total = y.normal + y.car
        lacking = (total - p.kn) ** 2
        net = -(p.rho + p.b * lacking / (p.a * total**2 + lacking)) * jnp.log(total / p.kc)
        # A drug that slows growth must not keep cells from their decline.
        net = x.growth(t) * jnp.maximum(net, 0.0) + jnp.minimum(net, 0.0)
        return States(
            normal=-p.rn * jnp.log(total / p.kn) * y.normal,
            car=net * y.car,
            tumour=(p.rb - p.gamma * y.car / (p.kb + y.car)) * y.tumour,
        )

    def infuse(self, y, dose, p):
        return y._replace(car=y.car + dose / (_UL * p.volume))

    def output(self, y, p):
        return {"level": jnp.log(y.car), "normal": jnp.log(y.normal), "tumour": jnp.log(y.tumour)}

    def to_coordinates(self, y, p):
        return States(*map(jnp.log, y))

    def from_coordinates(self, u, p):
        return States(*map(level, u))
