"""Interval designs: BOIN, keyboard, mTPI-2. The next level follows from the counts at the current one."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from carkinetics.design.base import AbstractDesign, Proposal
from carkinetics.design.evidence import Evidence
from carkinetics.design.isotonic import closest, isotonic
from carkinetics.design.rules import Elimination, Rule
from carkinetics.design.setting import make_setting, refuse_target
from carkinetics.errors import DesignError

UP, STAY, DOWN = 1, 0, -1
WIDTH = 0.05  # of the target key, on either side of the target
SAFE, TOXIC = 0.6, 1.4  # of the target: BOIN's rates that are too low, too high


def boin(
    target: float = 0.3,
    doses: Sequence[float] | np.ndarray | int | None = None,
    *,
    safe: float | None = None,
    toxic: float | None = None,
    start: int = 1,
    rules: Sequence[Rule] = (Elimination(),),
) -> "Boin":
    """The Bayesian optimal interval design.

    Escalate where the share of patients with a toxicity at the current level is at most ``escalate`` (lambda_e),
    de-escalate where it is at least ``deescalate`` (lambda_d), else stay; both follow from the target alone.

    Parameters
    ----------
    target : float
        DLT probability aimed at.
    doses : sequence of float or int
        Dose of every level, or how many levels there are.
    safe, toxic : float
        DLT probabilities that are too low and too high (phi_1, phi_2); without, 0.6 and 1.4 times the target.
    start : int
        Level of the first cohort.
    rules : sequence of Rule
        Safety rules; without, the elimination of the paper.

    References
    ----------
    Liu & Yuan, J R Stat Soc C 2015;64:507-523, doi:10.1111/rssc.12089, equations 5 and 6.
    """
    setting = make_setting(doses, start, refuse_target(target))
    low, high = (SAFE * target if safe is None else safe), (TOXIC * target if toxic is None else toxic)
    if not 0 < low < target < high < 1:
        raise DesignError(f"boin: safe = {low:g} and toxic = {high:g} must lie below and above target = {target:g}.")
    return Boin(setting=setting, rules=tuple(rules), safe=float(low), toxic=float(high))


def keyboard(
    target: float = 0.3,
    doses: Sequence[float] | np.ndarray | int | None = None,
    *,
    width: float = WIDTH,
    start: int = 1,
    rules: Sequence[Rule] = (Elimination(),),
) -> "Keyboard":
    """The keyboard design.

    Keys as wide as the target key (``target - width`` to ``target + width``) cover the probabilities from 0 to 1; what
    is left at either end is no key. With a uniform prior, escalate if the strongest key lies below the target key,
    de-escalate if above.

    References
    ----------
    Yan, Mandrekar & Yuan, Clin Cancer Res 2017;23:3994-4003, doi:10.1158/1078-0432.CCR-17-0220.
    """
    setting = make_setting(doses, start, refuse_target(target))
    return Keyboard(setting=setting, rules=tuple(rules), keys=_keys(target, width, partial=False))


def mtpi2(
    target: float = 0.3,
    doses: Sequence[float] | np.ndarray | int | None = None,
    *,
    width: float = WIDTH,
    start: int = 1,
    rules: Sequence[Rule] = (Elimination(),),
) -> "Mtpi2":
    """The modified toxicity probability interval design, version 2.

    As the keyboard, with the shorter intervals at either end, and by the probability per unit of length.

    References
    ----------
    Guo, Wang, Yang, Lynn & Ji, Contemp Clin Trials 2017;58:23-33, doi:10.1016/j.cct.2017.04.006.
    """
    setting = make_setting(doses, start, refuse_target(target))
    return Mtpi2(setting=setting, rules=tuple(rules), keys=_keys(target, width, partial=True))


def _keys(target: float, width: float, *, partial: bool) -> tuple[tuple[float, float, int], ...]:
    """Every key: its ends, and the move that it stands for."""
    if not 0 < width < min(target, 1 - target):
        raise DesignError(f"width = {width!r} must be above 0, and the target key lie between 0 and 1.")
    low, high, whole = target - width, target + width, 2 * width
    below, above = int((low + 1e-9) / whole), int((1 - high + 1e-9) / whole)
    keys = [(low - k * whole, low - (k - 1) * whole, UP) for k in range(below, 0, -1)]
    keys += [(low, high, STAY)]
    keys += [(high + (k - 1) * whole, high + k * whole, DOWN) for k in range(1, above + 1)]
    if partial and low - below * whole > 1e-9:
        keys.insert(0, (0.0, low - below * whole, UP))
    if partial and 1 - (high + above * whole) > 1e-9:
        keys.append((high + above * whole, 1.0, DOWN))
    return tuple((max(a, 0.0), min(b, 1.0), move) for a, b, move in keys)


@dataclass(frozen=True, kw_only=True)
class AbstractInterval(AbstractDesign):
    """A design whose next level is one up, the same or one down by the counts at the current level."""

    @abstractmethod
    def moves(self, treated: Float[np.ndarray, " cell"], toxic: Float[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """1, 0 or -1 by the number of patients and of those with a toxicity; with no patient, 0."""

    @property
    def selection(self) -> str:
        """How a level is selected at the end, in words."""
        return "the level that was given and not eliminated whose isotonic DLT rate is closest to the target"

    @property
    def convention(self) -> str:
        """What the estimates in its tables are."""
        return (
            "RATE is the share of patients with a toxicity; ISOTONIC its isotonic regression after adding 0.05 to "
            "toxicities and 0.1 to patients; P_TOXIC = P(DLT probability > target) with a uniform prior."
        )

    def propose(self, evidence: Evidence) -> Proposal:
        """One up, the same or one down."""
        n, y = evidence.at_current()
        level = np.clip(evidence.current + self.moves(n, y), 1, evidence.treated.shape[1])
        return Proposal(level, np.zeros(len(level), bool))

    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The level whose isotonic rate is closest to the target."""
        levels = np.arange(1, evidence.treated.shape[1] + 1)
        allowed = (evidence.treated > 0) & (levels <= cap[:, None])
        return closest(isotonic(evidence, allowed), allowed, self.setting.limit)

    def estimates(self, evidence: Evidence) -> dict[str, Float[np.ndarray, " level"]]:
        """Rates, observed and isotonic, and the probability of exceeding the target."""
        n, y = evidence.treated[0], evidence.toxic[0]
        rate = np.divide(y, n, out=np.full(len(n), np.nan), where=n > 0)
        smooth = np.where(n > 0, isotonic(evidence, evidence.treated > 0)[0], np.nan)
        return {"RATE": rate, "ISOTONIC": smooth, "P_TOXIC": special.betaincc(1 + y, 1 + n - y, self.setting.limit)}

    @abstractmethod
    def bounds(self) -> str:
        """What the rate is compared with, in words."""

    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """The counts at the current level and what they are compared with."""
        n, y = evidence.at_current()
        move = {UP: "escalate", STAY: "stay", DOWN: "de-escalate"}[int(self.moves(n, y)[0])]
        current, level = int(evidence.current[0]), int(proposal.level[0])
        end = " (there is no such level)" if move != "stay" and level == current else ""
        return f"{int(y[0])} of {int(n[0])} with a toxicity at level {current}: {move}{end}; {self.bounds()}."


@dataclass(frozen=True, kw_only=True)
class Boin(AbstractInterval):
    """See :func:`boin`."""

    safe: float
    toxic: float

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "BOIN"

    @property
    def escalate(self) -> float:
        """The rate at and below which the dose rises, lambda_e."""
        target, low = self.setting.limit, self.safe
        return float(np.log((1 - low) / (1 - target)) / np.log(target * (1 - low) / (low * (1 - target))))

    @property
    def deescalate(self) -> float:
        """The rate at and above which the dose falls, lambda_d."""
        target, high = self.setting.limit, self.toxic
        return float(np.log((1 - target) / (1 - high)) / np.log(high * (1 - target) / (target * (1 - high))))

    def moves(self, treated: Float[np.ndarray, " cell"], toxic: Float[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """By the two boundaries."""
        low, high = toxic <= self.escalate * treated, toxic >= self.deescalate * treated
        return np.where(treated == 0, STAY, np.where(low, UP, np.where(high, DOWN, STAY)))

    def bounds(self) -> str:
        """What the rate is compared with, in words."""
        return f"up at rates to {self.escalate:.4f}, down from {self.deescalate:.4f}"


@dataclass(frozen=True, kw_only=True)
class Keyboard(AbstractInterval):
    """See :func:`keyboard`."""

    keys: tuple[tuple[float, float, int], ...] = field(repr=False)

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "keyboard"

    def moves(self, treated: Float[np.ndarray, " cell"], toxic: Float[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """By the strongest key."""
        return _strongest(self.keys, treated, toxic, per_length=False)

    def bounds(self) -> str:
        """What the rate is compared with, in words."""
        return _target_key(self.keys)


@dataclass(frozen=True, kw_only=True)
class Mtpi2(AbstractInterval):
    """See :func:`mtpi2`."""

    keys: tuple[tuple[float, float, int], ...] = field(repr=False)

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "mTPI-2"

    def moves(self, treated: Float[np.ndarray, " cell"], toxic: Float[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """By the interval with the highest probability per unit of length."""
        return _strongest(self.keys, treated, toxic, per_length=True)

    def bounds(self) -> str:
        """What the rate is compared with, in words."""
        return _target_key(self.keys)


def _target_key(keys: tuple[tuple[float, float, int], ...]) -> str:
    low, high = next((a, b) for a, b, move in keys if move == STAY)
    return f"the strongest key against the target key, {low:g} to {high:g}"


def _strongest(
    keys: tuple[tuple[float, float, int], ...],
    treated: Float[np.ndarray, " cell"],
    toxic: Float[np.ndarray, " cell"],
    *,
    per_length: bool,
) -> Int[np.ndarray, " cell"]:
    """The move of the key with the most posterior probability, each combination of counts computed once."""
    cells, back = np.unique(np.stack([treated, toxic], axis=1), axis=0, return_inverse=True)
    n, y = cells[:, :1], cells[:, 1:]
    low, high, move = (np.array(v) for v in zip(*keys, strict=True))
    # the smaller tail of each end, so that keys far from the rate keep their digits
    below = special.betainc(1 + y, 1 + n - y, high) - special.betainc(1 + y, 1 + n - y, low)
    above = special.betaincc(1 + y, 1 + n - y, low) - special.betaincc(1 + y, 1 + n - y, high)
    mass = np.where(low > (y + 1) / (n + 2), above, below)
    found = move[np.argmax(mass / (high - low) if per_length else mass, axis=1)]
    return np.where(cells[:, 0] == 0, STAY, found)[back.ravel()]
