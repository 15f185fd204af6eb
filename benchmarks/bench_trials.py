"""How long a simulated trial takes, part by part, and a run with two workers.

Everything is warm: programs are compiled before the clock starts, as they are once a machine. CPU seconds are of one
process with one thread (NPROC=1); on a machine that others use they say more than the wall does.

    NPROC=1 python benchmarks/bench_trials.py parts --trials 20
    python benchmarks/bench_trials.py run --trials 20 --workers 2
    python benchmarks/bench_trials.py against --trials 3 --method importance
"""

import argparse
import json
import time
import warnings

import numpy as np

import bench_fit
import carkinetics as ck
from carkinetics.exposures import exposure
from carkinetics.fitting import quick_fit
from carkinetics.layout import make_layout
from carkinetics.trials import analysis
from carkinetics.trials.simulation import replicate_seed

SEED = 11
PARTS = ("simulate", "read", "fit", "exposure", "responses", "plan")


class Clock:
    """Wall and CPU seconds by part."""

    def __init__(self):
        self.wall, self.cpu = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)

    def timed(self, name, function):
        """The function, timed."""

        def inside(*a, **k):
            wall, cpu = time.perf_counter(), time.process_time()
            found = function(*a, **k)
            self.wall[name] += time.perf_counter() - wall
            self.cpu[name] += time.process_time() - cpu
            return found

        return inside


def parts(name: str, trials: int) -> dict:
    """Seconds a trial, by part; trials that their design stops are counted too."""
    trial = ck.load_trial(name)
    fill = analysis.fill_of(trial)
    own = {"read": ("kinetic_data",), "fit": ("quick_fit",), "exposure": ("exposure",), "responses": ("logistic",)}
    own["plan"] = ("recommend",)
    originals = {f: getattr(analysis, f) for names in own.values() for f in names}
    rows = []
    for clock in (None, Clock()):  # the first time everything is compiled
        begun = time.perf_counter(), time.process_time()
        for part, names in own.items():
            for f in names:
                setattr(analysis, f, originals[f] if clock is None else clock.timed(part, originals[f]))
        simulate = ck.simulate_trial if clock is None else clock.timed("simulate", ck.simulate_trial)
        rows = []
        for r in range(trials):
            seed = replicate_seed(SEED, r)
            rows.append(analysis.analysed(simulate(trial, seed=seed), seed=seed, fill=fill))
        total = time.perf_counter() - begun[0], time.process_time() - begun[1]
    assert clock is not None
    done = sum(row["analysis"] == analysis.DONE for row in rows)
    return {
        "trial": name,
        "trials": trials,
        "analysed": done,
        "wall": round(total[0] / trials, 3),
        "cpu": round(total[1] / trials, 3),
        "cpu by part": {k: round(v / trials, 3) for k, v in clock.cpu.items()},
        "1,000 trials on two cores, minutes of CPU": round(1000 * total[1] / trials / 2 / 60, 1),
    }


def run(name: str, trials: int, workers: int, folder: str | None = None) -> dict:
    """A run from nothing but what is compiled: by the clock, and what the trials showed."""
    begun = time.perf_counter()
    found = ck.simulate_trials(ck.load_trial(name), trials, seed=SEED, workers=workers, folder=folder)
    wall = time.perf_counter() - begun
    done = int((found.replicates["analysis"] == analysis.DONE).sum())
    print(found)
    return {
        "trial": name,
        "trials": trials,
        "workers": workers,
        "analysed": done,
        "wall": round(wall / trials, 3),
        "minutes": round(wall / 60, 2),
        "levels": found.table.round(4).to_dict("records"),
        "summary": found.summary.round(4).to_dict("index"),
        "not analysed": found.failures.to_dict(),
    }


def against(name: str, trials: int, method: str) -> dict:
    """The quick fit against another method: distances of phi in posterior SDs, ratios of SDs, exposures."""
    trial, off, ratio, exposed = ck.load_trial(name), [], [], []
    fill = analysis.fill_of(trial)
    for r in range(trials):
        seed = replicate_seed(SEED, r)
        found = ck.simulate_trial(trial, seed=seed)
        if analysis._unfit(found):
            continue
        data, model = analysis.kinetic_data(found), trial.analysis.model
        quick = quick_fit(model, data, seed=seed, fill=fill)
        usual = ck.fit(model, data, seed=seed, method=method, infusion_phase=False, progress=False)
        (m, s), (mean, sd) = (
            (p.mean(0), p.std(0)) for p in (np.concatenate(f.tree["posterior"]["phi"].values) for f in (quick, usual))
        )
        off.append(np.abs((m - mean) / sd))
        ratio.append(s / sd)
        a, b = (exposure(f, ["auc_0_28"], rules=trial.curves, draws=200)["auc_0_28"].value for f in (quick, usual))
        exposed.append(np.abs(np.log(a / b)))
    names = make_layout(trial.analysis.model).phi_names
    worst = {n: [round(float(np.max(o)), 3), round(float(np.exp(np.mean(np.log(r)))), 3)]
             for n, o, r in zip(names, np.transpose(off), np.transpose(ratio), strict=True)}  # fmt: skip
    return {
        "trials": len(off),
        "against": method,
        "distance of means in SDs, median and largest": [round(float(f(off)), 3) for f in (np.median, np.max)],
        "ratio of SDs, smallest and largest": [round(float(f(ratio)), 3) for f in (np.min, np.max)],
        "by parameter, largest distance and mean ratio": worst,
        "ln AUC0-28 of a patient, 90th and 99th percentile": [
            round(float(np.quantile(exposed, q)), 4) for q in (0.9, 0.99)
        ],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("parts", "run", "against"))
    parser.add_argument("--trial", default="nct03754764")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="of run: an empty one, to see how far it is")
    parser.add_argument("--method", default="laplace", choices=("laplace", "importance", "nuts"), help="of against")
    parser.add_argument("--dry", action="store_true", help="print only")
    given = parser.parse_args()
    if given.what == "parts":
        result = parts(given.trial, given.trials)
    elif given.what == "run":
        result = run(given.trial, given.trials, given.workers, given.folder)
    else:
        result = against(given.trial, given.trials, given.method)
    print(json.dumps(result, indent=1))
    if not given.dry:
        bench_fit.save(f"trials {given.what}", result)
