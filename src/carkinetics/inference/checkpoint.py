"""Checkpoints: a folder from which an interrupted fit goes on, with the draws it would have had anyway.

``run.ckpt`` says whose folder it is. ``stage-N.ckpt`` has what a stage begins with: the sampler's tuning, and
every chain's state and key. ``stage-N.chain-C.ITERATIONS.ckpt`` has one chain's blocks since its file before, and its
state after them: written once each, so a long run writes every draw once. ``finished.ckpt`` ends it.

A resumed run goes the same way as an uninterrupted one; stored blocks take the place of sampled ones. Every
decision on the way is a function of the draws, so it falls out the same, and no record of decisions is needed.
Where the newest file of a chain is damaged, its blocks are sampled again from the file before: the same blocks.
"""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from carkinetics.errors import FitError, FitWarning
from carkinetics.inference.chains import BLOCK, Block, Chain, joined
from carkinetics.inference.identity import differences
from carkinetics.inference.lock import locked, terminable
from carkinetics.inference.records import Damaged, Record, checksum, read_record, write_record

SAVE_SECONDS = 30.0  # at most this much of a chain's work is lost


@contextmanager
def opened(folder: Path | None, identity: Mapping[str, Any], rebuilt: Callable[[list], Any]) -> Iterator["Checkpoint"]:
    """The checkpoint in ``folder``, locked, ours, and writable; without a folder, one that keeps nothing.

    ``rebuilt`` makes what the sampler is told from its arrays.

    Raises
    ------
    FitError
        Another process uses the folder, it cannot be written, or it belongs to another run.
    """
    if folder is None:
        yield Checkpoint(None, rebuilt)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FitError(
            f"{folder}: cannot keep a checkpoint there ({error.strerror or error}). Choose a writable folder."
        ) from error
    with locked(folder), terminable():
        checkpoint = Checkpoint(folder, rebuilt)
        checkpoint.claim(identity)
        yield checkpoint


class Checkpoint:
    """A folder with what a run has done so far; or, without a folder, nothing."""

    def __init__(self, folder: Path | None, rebuilt: Callable[[list], Any]):
        self.folder = folder
        self._rebuilt = rebuilt
        self.notes: list[str] = []  # what was wrong with the folder
        self.stage = -1
        self.earlier = 0.0  # seconds that processes before this one spent
        self._run = ""  # checksum of the record of the run
        self._opened = time.perf_counter()

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make a new folder ours, or see that an old one is; the first write, before any work is done."""
        assert self.folder is not None
        for left in self.folder.glob("*.ckpt.*.tmp"):  # a process was killed while it wrote
            left.unlink(missing_ok=True)
        path = self.folder / "run.ckpt"
        record = self._read(path)
        if record is None:
            self._run = checksum(identity, {})
            self._stage_record(0)  # refuses another fit's, if only run.ckpt was lost
            write_record(path, identity, {})
            return
        self._run = record.sha256
        other = differences(record.facts, identity)
        if other:
            raise FitError(
                f"{self.folder}: the checkpoint of another fit; it differs in {', '.join(other)}. Choose another "
                "folder, or delete this one to begin anew."
            )
        write_record(self.folder / "probe.ckpt", {}, {})  # a folder that has become read-only is told now
        (self.folder / "probe.ckpt").unlink()

    def start(self) -> tuple[Any, list[str]] | None:
        """The first stage's tuning, and what there was to say about it; None if there is none yet."""
        record = self._stage_record(0)
        return None if record is None else (self._tuning(record), list(record.facts["notes"]))

    def _tuning(self, record: Record):
        n = sum(name.startswith("tuning.") for name in record.arrays)
        return self._rebuilt([jnp.array(record.arrays[f"tuning.{i}"]) for i in range(n)])

    def enter(self, chains: list[Chain], begin: Callable[[], None], notes: list[str]) -> None:
        """Begin the next stage: as it is recorded, or else by ``begin``, which is then recorded."""
        self.stage += 1
        if any(c.stored for c in chains):
            raise FitError(f"{self.folder}: the checkpoint has more blocks than this fit takes. Begin in a new folder.")
        if self.folder is None:
            begin()
            return
        record = self._stage_record(self.stage)
        if record is None:
            begin()
            arrays = {f"tuning.{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(chains[0].tuning))}
            for c in chains:
                arrays |= {f"{c.number}.{name}": x for name, x in _state_arrays(c).items()}
                arrays[f"{c.number}.key"] = np.asarray(jax.random.key_data(c.key))
            counts = {str(c.number): [c.n_steps, c.done, c.warmup] for c in chains}
            facts = {"run": self._run, "stage": self.stage, "chains": counts, "notes": notes}
            stage = write_record(self._stage_path(self.stage), facts, arrays)
        else:
            stage, tuning = record.sha256, self._tuning(record)
            for c in chains:
                c.tuning, c.blocks = tuning, []
                c.n_steps, c.done, c.warmup = record.facts["chains"][str(c.number)]
                c.key = jax.random.wrap_key_data(jnp.array(record.arrays[f"{c.number}.key"]))
                _restore_state(c, record, f"{c.number}.")
        for c in chains:
            self._follow(c, stage)

    def _follow(self, chain: Chain, stage: str) -> None:
        """Give a chain the blocks that are stored, and keep what it adds."""
        chain.stored, last = self._stored(chain.number, stage)
        if last is not None:
            _restore_state(chain, last, "")
        saved, when = len(chain.stored), time.monotonic()

        def keep(chain: Chain, pausing: bool) -> None:
            nonlocal saved, when
            if len(chain.blocks) <= saved or not (pausing or time.monotonic() - when >= SAVE_SECONDS):
                return
            facts = {"stage": stage, "first": saved, "last": len(chain.blocks), "seconds": self.seconds()}
            arrays = _draw_arrays(joined(chain.blocks[saved:])) | _state_arrays(chain)
            write_record(self._chain_path(chain.number, len(chain.blocks)), facts, arrays)
            saved, when = len(chain.blocks), time.monotonic()

        chain.keep = keep

    def _stored(self, number: int, stage: str) -> tuple[deque[Block], Record | None]:
        """The blocks of one chain in this stage, and its last record."""
        assert self.folder is not None
        blocks, last = deque(), None
        paths = sorted(self.folder.glob(f"stage-{self.stage}.chain-{number}.*.ckpt"))
        for path in paths:
            record = self._read(path, may_go=path == paths[-1])
            if record is None:
                break
            if record.facts["stage"] != stage or record.facts["first"] != len(blocks):
                raise FitError(
                    f"{path}: does not follow on the file before it; one is missing or from another run. "
                    "Delete the folder to begin anew."
                )
            draws = _draws(record)
            blocks.extend(jax.tree.map(lambda x, i=i: x[i : i + BLOCK], draws) for i in range(0, len(draws.phi), BLOCK))
            self.earlier = max(self.earlier, float(record.facts["seconds"]))
            last = record
        return blocks, last

    def seconds(self) -> float:
        """Seconds since the run was first begun, without those between its processes."""
        return self.earlier + time.perf_counter() - self._opened

    def finish(self, draws: int, facts: Mapping[str, Any]) -> None:
        """Keep that the run is over with this stage, its draws per chain, and what else there is to say."""
        if self.folder is not None:
            over = {"run": self._run, "stage": self.stage, "draws": draws, "facts": dict(facts)}
            write_record(self.folder / "finished.ckpt", over, {})

    def finished(self, chains: int) -> tuple[list[Block], dict[str, Any]] | None:
        """Every chain's draws and what :meth:`finish` kept, if the run is over and its files are whole."""
        over = None if self.folder is None else self._ours(self.folder / "finished.ckpt")
        stage = None if over is None else self._stage_record(over.facts["stage"])
        if over is None or stage is None:
            return None
        self.stage = over.facts["stage"]
        stored = [self._stored(c, stage.sha256)[0] for c in range(chains)]
        self.stage = -1
        skips = [stage.facts["chains"][str(c)][2] for c in range(chains)]
        if any(len(blocks) * BLOCK - skip < over.facts["draws"] for blocks, skip in zip(stored, skips, strict=True)):
            return None
        draws = [joined(list(blocks), skip) for blocks, skip in zip(stored, skips, strict=True)]
        return draws, over.facts["facts"]

    def _stage_record(self, stage: int) -> Record | None:
        return None if self.folder is None else self._ours(self._stage_path(stage))

    def _ours(self, path: Path) -> Record | None:
        """A record of this run; None if there is none, or a damaged one, which is then made anew."""
        record = self._read(path)
        if record is not None and record.facts["run"] != self._run:
            raise FitError(f"{path}: from another run than run.ckpt beside it. Delete the folder to begin anew.")
        return record

    def _read(self, path: Path, *, may_go: bool = True) -> Record | None:
        if not path.exists():
            return None
        try:
            return read_record(path)
        except Damaged as error:
            if not may_go:
                raise FitError(
                    f"{error} There are newer files after it, so no crash left this: restore the file, or "
                    "delete the folder to begin anew."
                ) from error
            note = f"{error} It is left out and made anew from what was kept before it; the draws stay the same."
            self.notes.append(note)
            warnings.warn(note, FitWarning, stacklevel=2)
            path.unlink()
            return None

    def _stage_path(self, stage: int) -> Path:
        assert self.folder is not None
        return self.folder / f"stage-{stage}.ckpt"

    def _chain_path(self, chain: int, blocks: int) -> Path:
        assert self.folder is not None
        return self.folder / f"stage-{self.stage}.chain-{chain}.{blocks * BLOCK:08d}.ckpt"


_STATS = "stats."


def _draw_arrays(draws: Block) -> dict[str, np.ndarray]:
    return {"phi": draws.phi, "z": draws.z} | {_STATS + name: x for name, x in draws.stats.items()}


def _draws(record: Record) -> Block:
    stats = {name.removeprefix(_STATS): x for name, x in record.arrays.items() if name.startswith(_STATS)}
    return Block(record.arrays["phi"], record.arrays["z"], stats)


def _state_arrays(chain: Chain) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(chain.state)
    return {f"state.{i}": np.asarray(jax.random.key_data(x) if _is_key(x) else x) for i, x in enumerate(leaves)}


def _restore_state(chain: Chain, record: Record, prefix: str) -> None:
    shapes, structure = jax.tree.flatten(chain.programs.shape)
    leaves = [jnp.array(record.arrays[f"{prefix}state.{i}"]) for i in range(len(shapes))]
    leaves = [jax.random.wrap_key_data(x) if _is_key(s) else x for s, x in zip(shapes, leaves, strict=True)]
    chain.state = jax.tree.unflatten(structure, leaves)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
