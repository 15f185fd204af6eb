"""Samples that the kinetics of CAR-T cells cannot explain: isolated spikes, isolated zeros, a second rise.

All distances are of natural logs of levels, and a sample below a limit stands at that limit, so that a distance is
never larger than the data say. The rules are made for curves that are infused, rise by up to ten-thousandfold within
days, fall as fast, and then persist.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

# Split doses are given on days 0, 1 and 2: what is measured before day 3 may be the infusion and not the expansion.
INFUSION_DAYS = 3.0
# Ten times the line between its neighbours at least, more where this assay's samples scatter more; and beyond each.
MIN_DISTANCE = float(np.log(10.0))
DISTANCE_SDS = 3.5  # of the scatter of a sample between its neighbours: one in 4,000 of normal ones
BEYOND_EACH = float(np.log(5.0))
# The rest of the curve must rise above the neighbour by this much to show that its peak is elsewhere.
MODE_SDS, MIN_MODE = 2.5, float(np.log(5.0))
# Faster than any expansion (doubling in 7 hours) and any contraction (half-life 17 hours) that was published.
RISE_PER_DAY, FALL_PER_DAY = 2.3, 1.0
LATEST_PEAK = 60.0  # days after the infusion; expansion has ended
# A second infusion shows after the cells have fallen to a tenth for two weeks, within a quarter of the lowest samples.
FALL_DAYS, AGAIN_WITHIN = 14.0, 100.0
DEFAULT_SCATTER = 0.8  # of ln samples: residual SD 0.65 times sqrt(3/2); where there are too few to estimate it
MIN_TRIPLES = 20


@dataclass(frozen=True)
class Course:
    """Samples of one patient in one assay, in the order of time.

    ``time`` in days, ``ln`` of the level or of the limit, ``seen`` true where it was quantified, ``line`` in the
    source; ``infused`` are days of further infusions, recorded or suspected.
    """

    subject: str
    assay: str
    time: Float[np.ndarray, " n"]
    ln: Float[np.ndarray, " n"]
    seen: Bool[np.ndarray, " n"]
    line: Int[np.ndarray, " n"]
    infused: tuple[float, ...] = ()

    def infusion_phase(self) -> Bool[np.ndarray, " n"]:
        """Samples that may show infused cells rather than their expansion."""
        near = self.time < INFUSION_DAYS
        for day in self.infused:
            near = near | ((self.time >= day - 1.0) & (self.time < day + INFUSION_DAYS))
        return near

    def between(self, before: int, i: int, after: int) -> float:
        """ln of the level at ``i`` on the line from ``before`` to ``after``."""
        share = (self.time[i] - self.time[before]) / (self.time[after] - self.time[before])
        return float((1 - share) * self.ln[before] + share * self.ln[after])

    def peak(self) -> int | None:
        """Place of the highest quantified sample, after the infusion phase if there is one; None without any."""
        late = self.seen & ~self.infusion_phase()
        among = late if late.any() else self.seen
        return int(np.argmax(np.where(among, self.ln, -np.inf))) if among.any() else None


@dataclass(frozen=True)
class Oddity:
    """A sample, or the first of several, that does not fit; ``around`` are the samples it was compared with."""

    kind: str
    at: int
    around: tuple[int, ...]
    factor: float


def scatter(courses: Sequence[Course]) -> float:
    """Robust SD of a sample's ln around the line between its neighbours, after the peak, all quantified."""
    distances: list[float] = []
    for course in courses:
        peak = course.peak()
        for i in range(1 if peak is None else peak + 2, len(course.ln) - 1):
            if course.seen[i - 1 : i + 2].all():
                distances.append(course.ln[i] - course.between(i - 1, i, i + 1))
    if len(distances) < MIN_TRIPLES:
        return DEFAULT_SCATTER
    return float(1.4826 * np.median(np.abs(distances)))


def spikes(course: Course, scatter: float) -> list[Oddity]:
    """Samples far above both neighbours that are not the peak of an expansion.

    The highest sample of a fast expansion is far above both neighbours too. What tells a spike is that the peak is
    elsewhere, that it comes when expansion has ended, or that no cells rise and fall so fast.
    """
    far = max(MIN_DISTANCE, DISTANCE_SDS * scatter)
    mode = max(MIN_MODE, MODE_SDS * scatter)
    free, found = ~course.infusion_phase(), []
    since = course.time - np.array([max((d for d in course.infused if d <= t), default=0.0) for t in course.time])
    for i in range(1, len(course.ln) - 1):
        up, down = course.ln[i] - course.ln[i - 1], course.ln[i] - course.ln[i + 1]
        beyond = min(up, down) > BEYOND_EACH and course.ln[i] - course.between(i - 1, i, i + 1) > far
        if not (course.seen[i] and free[i] and beyond):
            continue
        left, right = course.ln[: i - 1][free[: i - 1]], course.ln[i + 2 :]
        elsewhere = max(left.max(initial=-np.inf) - course.ln[i - 1], right.max(initial=-np.inf) - course.ln[i + 1])
        days = np.diff(course.time[i - 1 : i + 2])
        too_fast = up > far + RISE_PER_DAY * days[0] and down > far + FALL_PER_DAY * days[1]
        if elsewhere > mode or since[i] > LATEST_PEAK or too_fast:
            found.append(Oddity("spike", i, (i - 1, i + 1), float(np.exp(min(up, down)))))
    return found


def lows(course: Course, scatter: float) -> list[Oddity]:
    """Samples far below both neighbours, and a last one below the limit sooner than cells can disappear."""
    far = max(MIN_DISTANCE, DISTANCE_SDS * scatter)
    # What stands beside a spike is not low.
    odd = [spike.at for spike in spikes(course, scatter)]
    keep = [i for i in range(len(course.ln)) if i not in odd]
    free, found = ~course.infusion_phase(), []
    for before, i, after in zip(keep, keep[1:], keep[2:], strict=False):
        lower = min(course.ln[before], course.ln[after])
        around = course.seen[before] and course.seen[after] and free[before] and free[i]
        beyond = lower - course.ln[i] > BEYOND_EACH and course.between(before, i, after) - course.ln[i] > far
        if around and beyond:
            kind = "low" if course.seen[i] else "zero"
            found.append(Oddity(kind, i, (before, after), float(np.exp(lower - course.ln[i]))))
    if len(keep) > 1:
        before, i = keep[-2:]
        fall, days = course.ln[before] - course.ln[i], course.time[i] - course.time[before]
        vanished = course.seen[before] and not course.seen[i] and free[before]
        if vanished and fall > far + FALL_PER_DAY * days:
            found.append(Oddity("zero", i, (before,), float(np.exp(fall))))
    return found


def second_rise(course: Course, scatter: float) -> Oddity | None:
    """Two samples in a row far above two earlier ones in a row that were far below a still earlier peak."""
    far = max(MIN_DISTANCE, DISTANCE_SDS * scatter)
    late = course.time >= INFUSION_DAYS
    for low in range(1, len(course.ln) - 3):
        floor = float(course.ln[low : low + 2].max())
        earlier = late[:low] & course.seen[:low]
        high = int(np.argmax(np.where(earlier, course.ln[:low], -np.inf)))
        fallen = earlier.any() and course.ln[high] - floor > far
        if not fallen or course.time[low + 1] - course.time[high] < FALL_DAYS:
            continue
        for i in range(low + 2, len(course.ln) - 1):
            pair = course.ln[i : i + 2]
            if course.time[i] - course.time[low + 1] > AGAIN_WITHIN:
                break
            between = [d for d in course.infused if course.time[low] - INFUSION_DAYS <= d <= course.time[i]]
            if course.seen[i : i + 2].all() and pair.min() - floor > far and not between:
                return Oddity("second rise", i, (high, low, low + 1, i + 1), float(np.exp(pair.min() - floor)))
    return None
