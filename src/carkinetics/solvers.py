"""How a structure's curves are computed: for one patient, and for the batch with the patient axis last."""

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure


def curves(
    structure: AbstractStructure,
    time: Float[Array, "time subject"],
    dose: Float[Array, " subject"],
    p: tuple,
) -> dict[str, Float[Array, "time subject"]]:
    """Natural log of every output at each patient's times (day).

    Parameters
    ----------
    p : NamedTuple
        The structure's parameters, natural scale, each of shape ``(subject,)``.
    """
    return structure.curve(time, dose, p)


def reference_curve(
    structure: AbstractStructure,
    time: Float[Array, " time"],
    dose: Float[Array, ""],
    p: tuple,
    *,
    tol: float = 1e-10,
) -> dict[str, Float[Array, " time"]]:
    """One patient's curve from the structure's ODE by an adaptive solver: slow, and the standard to check against.

    ``time`` (day) must be increasing and start at 0 or later. Every breakpoint is stepped onto.
    """
    breakpoints = structure.breakpoints(p)
    controller = diffrax.PIDController(rtol=tol, atol=tol * 1e-3)
    if breakpoints:
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jnp.sort(jnp.stack(breakpoints)))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: structure.rhs(jnp.asarray(t), y, args)),
        diffrax.Dopri8(),
        t0=0.0,
        t1=time[-1],
        dt0=None,
        y0=structure.initial(dose, p),
        args=p,
        saveat=diffrax.SaveAt(ts=time),
        stepsize_controller=controller,
        max_steps=100_000,
    )
    return jax.vmap(lambda y: structure.output(y, p))(solution.ys)
