"""The data as the density reads them: arrays that enter the compiled program, and the static facts that shape it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from carkinetics import solvers
from carkinetics.dataset import Dataset
from carkinetics.errors import DataError, ModelError
from carkinetics.inputs import counted_in, design_of, earlier_replicates, inputs_of, ln_offset
from carkinetics.model import Model
from carkinetics.solvers import Grid
from carkinetics.structure import Inputs

# Rows of a kind are filled up to a multiple of this: data with a few more or fewer of them need no other program.
_BUCKET = 32
# A grid of subject x time holds more cells than there are samples; beyond this ratio it is laid out flat.
_MAX_PADDING = 4


class Group(NamedTuple):
    """Rows that one formula serves: a kind of sample, of assays with one family of residuals; filled up.

    Attributes
    ----------
    kind : {"quantified", "below", "above", "between"}
    family : str
        Of :data:`carkinetics.residuals.RESIDUALS`.
    begin, end : int
        Among all rows.
    """

    kind: str
    family: str
    begin: int
    end: int


class Fill(NamedTuple):
    """To which sizes arrays are filled up, so that many datasets share one compiled program.

    Attributes
    ----------
    groups : tuple of (kind, family, rows)
        Rows of such a group are filled up to a multiple of ``rows``; the group is there even if it has none.
    depth : int
        Times of a patient, at least.
    """

    groups: tuple[tuple[str, str, int], ...]
    depth: int


_KINDS = ("quantified", "below", "above", "between")


class Observations(eqx.Module):
    """The data as arrays that enter the compiled density, and the static facts that shape it.

    Rows are sorted by group (quantified, left-, right-, interval-censored, each by family of residuals), then as in the
    dataset. Those that fill a group up belong to no subject, and to an assay of its family.

    Attributes
    ----------
    grid : Grid
        Times on which curves are solved (day); a patient's last time is repeated to fill its column.
    cell : Int[" obs"]
        Where in the flattened grid each row stands.
    subject, assay : Int[" obs"]
    ln_dv : Float[" obs"]
        Natural log of the value, or of the limit; for an interval its upper end.
    ln_limit : Float[" obs"]
        Lower end of an interval; equal to ``ln_dv`` elsewhere.
    earlier : Float["2 obs"]
        Quantified replicates of the same sample that come before: how many, and the sum of their natural logs.
    offset : Float[" obs"]
        From the ln of the output to the ln of what the assay reads; 0 without a conversion.
    inputs : Inputs
        Of every patient.
    design : Float["effect subject"]
        What the effects of covariates act on.
    rows : tuple of Group
    """

    grid: Grid
    cell: Int[Array, " obs"]
    subject: Int[Array, " obs"]
    assay: Int[Array, " obs"]
    ln_dv: Float[Array, " obs"]
    ln_limit: Float[Array, " obs"]
    offset: Float[Array, " obs"]
    earlier: Float[Array, "2 obs"]
    inputs: Inputs
    design: Float[Array, "effect subject"]
    rows: tuple[Group, ...] = eqx.field(static=True)
    flat: bool = eqx.field(static=True)

    @property
    def n_subjects(self) -> int:
        return self.inputs.dose.shape[0]

    @property
    def n_obs(self) -> int:
        return self.cell.shape[0]

    @property
    def n_quantified(self) -> int:
        """Rows before the first that is censored."""
        return max((g.end for g in self.rows if g.kind == "quantified"), default=0)

    @property
    def real(self) -> Bool[Array, " obs"]:
        """Rows that are of a patient."""
        return self.subject < self.n_subjects

    def by_assay_and_subject(self, per_row: Float[Array, "obs *n"], n_assays: int) -> Float[Array, "assay subject *n"]:
        """Sums of every assay's rows of every patient."""
        groups = n_assays * self.n_subjects
        at = jnp.where(self.real, self.assay * self.n_subjects + self.subject, groups)
        sums = jax.ops.segment_sum(per_row, at, groups)
        return sums.reshape(n_assays, self.n_subjects, *per_row.shape[1:])


def row_positions(model: Model, data: Dataset, groups: tuple[Group, ...] | None = None) -> Int[np.ndarray, " row"]:
    """Where each row of the dataset stands among those that the density reads; ``groups`` are those of a filled one."""
    kind, family = _kind(data), _families(model, data)
    positions = np.empty(len(kind), int)
    for group in groups or _groups(model, data):
        here = np.flatnonzero((kind == _KINDS.index(group.kind)) & (family == group.family))
        positions[here] = group.begin + np.arange(len(here))
    return positions


def _families(model: Model, data: Dataset) -> np.ndarray:
    """Of every row of the dataset."""
    return np.array([a.error for a in model.assays], dtype=object)[_assays(model, data)]


def _assays(model: Model, data: Dataset) -> Int[np.ndarray, " row"]:
    """Place of every row's assay among the model's."""
    known = [a.name for a in model.assays]
    return np.array([known.index(a) for a in data.assays], dtype=int)[data.assay]


def _groups(model: Model, data: Dataset, fill: Fill | None = None) -> tuple[Group, ...]:
    kind, family, begin, found = _kind(data), _families(model, data), 0, []
    sizes = {} if fill is None else {(k, f): rows for k, f, rows in fill.groups}
    for k, name in enumerate(_KINDS):
        for each in sorted({*family[kind == k], *(f for other, f in sizes if other == name)}):
            size = sizes.get((name, each), _BUCKET)
            filled = max(-(-int(np.sum((kind == k) & (family == each))) // size), (name, each) in sizes) * size
            found.append(Group(name, each, begin, begin + filled))
            begin += filled
    return tuple(found)


def group_sizes(model: Model, data: Dataset) -> dict[tuple[str, str], int]:
    """How many rows there are, by kind and family of residuals."""
    kind, family = _kind(data), _families(model, data)
    pairs = [(_KINDS[k], str(f)) for k, f in zip(kind, family, strict=True)]
    return {pair: pairs.count(pair) for pair in sorted(set(pairs))}


def make_observations(model: Model, data: Dataset, *, refine: int = 1, fill: Fill | None = None) -> Observations:
    """The arrays of ``data`` as ``model`` reads them; ``refine`` divides the solver's steps.

    With ``fill`` arrays are as long as it says, so that other data of one kind need no other program.

    Raises
    ------
    ModelError
        An assay of the table is not an assay of the model.
    """
    model.refuse_unknown("a fit")
    if not any(p.iiv for p in model.parameters):
        raise ModelError(f"{model.name}: no parameter varies between patients; give at least one an omega.")
    known = [a.name for a in model.assays]
    unknown = [a for a in data.assays if a not in known]
    if unknown:
        raise ModelError(
            f"{model.name} has no assay {', '.join(map(repr, unknown))}; it has {', '.join(known)}. "
            "Map the table's DVID to those names, or add the assay with model.with_assay(...)."
        )
    rows = _groups(model, data, fill)
    positions, n = row_positions(model, data, rows), len(data.subjects)
    n_rows = rows[-1].end if rows else 0

    def filled(values, rest):
        found = np.full(n_rows, rest)
        found[positions] = values
        return found

    assay = _assays(model, data)
    of_family = np.zeros(n_rows, int)
    for group in rows:
        of_family[group.begin : group.end] = [a.error for a in model.assays].index(group.family)
    of_family[positions] = assay
    with np.errstate(invalid="ignore"):
        ln_dv, ln_limit = np.log(data.dv), np.log(data.limit)
    # LIMIT is the other end of an interval, whichever way the row is censored.
    ln_limit = np.where(_kind(data) == 3, ln_limit, ln_dv)
    upper, lower = filled(np.maximum(ln_dv, ln_limit), 0.0), filled(np.minimum(ln_dv, ln_limit), -1.0)
    flat, times, cell = _grid(data, n, model.structure.closed_form, fill)
    if flat:
        times, cell = filled(data.time, 1.0)[None, :], np.arange(n_rows)
    else:
        cell = filled(cell, 0)
    inputs = inputs_of(model, data)
    offset = filled(_offsets(model, data, assay, inputs), 0.0)
    at = of_subjects(inputs, filled(data.subject, 0)) if flat else inputs
    arrays = (cell, filled(data.subject, n), of_family, upper, lower, offset)
    with jax.enable_x64(True):
        cell, subject, assay, ln_dv, ln_limit, offset = (jnp.asarray(x) for x in arrays)
        design = jnp.asarray(design_of(model, data))
        earlier = jnp.stack([jnp.asarray(filled(x, 0.0)) for x in earlier_replicates(data)])
    return Observations(
        grid=solvers.make_grid(model.structure, times, at, refine=refine),
        cell=cell,
        subject=subject,
        assay=assay,
        ln_dv=ln_dv,
        ln_limit=ln_limit,
        offset=offset,
        earlier=earlier,
        inputs=inputs,
        design=design,
        rows=rows,
        flat=flat,
    )


def _kind(data: Dataset) -> Int[np.ndarray, " obs"]:
    return np.select([data.cens == 0, np.isfinite(data.limit), data.cens == 1], [0, 3, 1], default=2)


def _grid(data: Dataset, n_subjects: int, may_be_flat: bool, fill: Fill | None):
    """Distinct times of every patient side by side, and the cell of every row in it."""
    subject, time = data.subject, data.time
    distinct = [np.unique(time[subject == i]) for i in range(n_subjects)]
    depth = max((len(t) for t in distinct), default=0)
    depth = depth if fill is None else max(depth, fill.depth)
    if may_be_flat and fill is None and depth * n_subjects > _MAX_PADDING * len(time):
        # One patient with thousands of rows would make everybody's column that deep.
        return True, time, np.arange(len(time))
    grid = np.stack([np.pad(t, (0, depth - len(t)), mode="edge") if len(t) else np.ones(depth) for t in distinct], 1)
    row = np.array([np.searchsorted(distinct[i], t) for i, t in zip(subject, time, strict=True)], dtype=int)
    return False, grid, row * n_subjects + subject


def _offsets(model: Model, data: Dataset, assay, inputs: Inputs) -> Float[np.ndarray, " row"]:
    """What is added to the ln of the output of every row of the table."""
    found = np.zeros(len(data.time))
    for k, a in enumerate(model.assays):
        here = assay == k
        if a.conversion is not None:
            with jax.enable_x64(True):
                found[here] = ln_offset(a, of_subjects(inputs, data.subject[here]), data.time[here])
        if a.per and here.any():
            amount = counted_in(data, a.per)[here]
            if not (amount > 0).all():
                raise DataError(
                    f"{data.source}: assay {a.name} counts per {a.per}, which must be above 0 in each of its rows; "
                    f"{np.sum(~(amount > 0))} are not."
                )
            found[here] += np.log(amount)
    return found


def of_subjects(inputs: Inputs, subject: Int[Any, " n"]) -> Inputs:
    """The inputs of these patients, one after the other."""
    return jax.tree.map(lambda a: a[..., subject], inputs)
