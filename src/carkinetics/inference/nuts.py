"""NUTS in transported coordinates: NumPyro's, as a kernel of :mod:`carkinetics.inference.chains`."""

import jax
from numpyro.infer.hmc import HMCState, hmc

from carkinetics.inference.chains import Block, Settings
from carkinetics.inference.coordinates import Point, Transport, log_density, scattered
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations


class Nuts:
    """No-U-turn sampling of population and patients at once; its tuning is the coordinates.

    References
    ----------
    Hoffman MD, Gelman A, J Mach Learn Res 2014;15:1593-1623.
    """

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings = model, settings
        self._init, self._sample = hmc(potential_fn_gen=self._potential, algo="NUTS")

    def _potential(self, obs: Observations, tuning: Transport):
        # A density that is not finite is a place the model does not allow: NumPyro counts the energy there as
        # infinite, so it is rejected as a divergence. A guard here would only cost time (a factor of 2.5).
        return lambda position: -log_density(self.model, obs, tuning, Point(**position))

    def start(self, key, obs: Observations, tuning: Transport, phi, z, jitter) -> HMCState:
        """At ``(phi, z)``, and ``jitter`` times a standard normal draw from there."""
        for_point, for_chain = jax.random.split(key)
        point = scattered(for_point, make_layout(self.model), tuning, phi, z, jitter)
        return self._init(
            point._asdict(),
            self.settings.warmup,
            step_size=0.3,
            dense_mass=[("u",)],  # type: ignore[arg-type]
            target_accept_prob=self.settings.target_accept,
            max_tree_depth=self.settings.max_tree_depth,
            model_args=(obs, tuning),
            rng_key=for_chain,
        )

    def step(self, state: HMCState, obs: Observations, tuning: Transport) -> tuple[HMCState, Block]:
        """One trajectory."""
        state = self._sample(state, (obs, tuning))
        phi, z, log_det = tuning(make_layout(self.model), Point(**state.z))
        stats = {
            "lp": -state.potential_energy - log_det,  # of the model, not of the sampler's coordinates
            "energy": state.energy,
            "diverging": state.diverging,
            "n_steps": state.num_steps,
            "acceptance_rate": state.accept_prob,
            "step_size": state.adapt_state.step_size,
        }
        return state, Block(phi, z, stats)

    def finite(self, state: HMCState):
        """Whether the density is finite there."""
        return jax.numpy.isfinite(state.potential_energy)

    def slower(self, state: HMCState, shrink: float) -> HMCState:
        """The same state with a smaller step."""
        adapted = state.adapt_state
        return state._replace(adapt_state=adapted._replace(step_size=shrink * adapted.step_size))
