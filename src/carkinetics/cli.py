"""The command line: parse, call, print. Exit code 0, 1 (the user can mend it) or 2 (a bug)."""

import argparse
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from carkinetics.errors import CarkineticsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            arguments.run(arguments)
    except CarkineticsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except Exception:  # a bug: the traceback is what its report needs
        import traceback

        traceback.print_exc()
        print("This is a bug in carkinetics; please report it with the lines above.", file=sys.stderr)
        return 2
    return 0


def entry() -> None:
    """What the installed command calls."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="carkinetics", description=__doc__ and "Population models of CAR-T kinetics.")
    verbs = parser.add_subparsers(required=True, metavar="{demo,models,simulate,check,fit,nca,exposure,dose}")

    demo = verbs.add_parser("demo", help="simulate a virtual trial, fit it, draw it")
    demo.add_argument("--out", type=Path, default=Path("carkinetics-demo"), help="folder for the results")
    demo.add_argument("--seed", type=int, default=1)
    demo.set_defaults(run=_demo)

    models = verbs.add_parser("models", help="the published models; with a name, one of them")
    models.add_argument("name", nargs="?", help="a published name, or a .toml file")
    models.add_argument("--out", type=Path, default=Path("carkinetics-models"), help="folder for the figure")
    models.add_argument("--days", type=float, default=168.0, help="how long the figure is")
    models.set_defaults(run=_models)

    _simulate_verb(verbs)
    check = verbs.add_parser("check", help="check a model file (.toml) or a table, without fitting")
    check.add_argument("file", type=Path)
    check.add_argument("--model", help="also try this model on the table's patients, at draws from its priors")
    check.add_argument("--seed", type=int, default=1, help="of these draws")
    _table_options(check)
    check.set_defaults(run=_check)

    fit = verbs.add_parser("fit", help="fit a model to a table")
    fit.add_argument("file", type=Path)
    fit.add_argument("--model", default="stein_2019_tisagenlecleucel", help="published name, or a .toml file")
    fit.add_argument("--out", type=Path, default=Path("carkinetics-fit"), help="folder for the results")
    fit.add_argument("--seed", type=int, default=1)
    fit.add_argument(
        "--method",
        choices=("importance", "nuts", "laplace"),
        default="importance",
        help="how the posterior is found; laplace: approximated, for a quick look",
    )
    fit.add_argument("--max-draws", type=int, help="draws per chain at most, while the fit has not converged")
    fit.add_argument("--checkpoint", type=Path, metavar="DIR", help="go on from here after an interruption")
    _table_options(fit)
    fit.set_defaults(run=_fit)
    _exposure_verbs(verbs)
    _dose_verb(verbs)
    return parser


def _simulate_verb(verbs) -> None:
    simulate = verbs.add_parser(
        "simulate", help="a virtual trial, as a table that fit reads; or a trial file many times"
    )
    simulate.add_argument("model", help="a published model or trial, or a .toml file of either")
    simulate.add_argument(
        "--out", type=Path, help="the table (simulated.csv); of a trial file a folder (simulated-trials)"
    )
    simulate.add_argument("--seed", type=int, default=1)
    of_model = simulate.add_argument_group("of a model")
    of_model.add_argument("--patients", type=int, default=40)
    of_model.add_argument("--days", type=float, nargs="+", metavar="DAY", help="sampling days (default: the demo's)")
    of_model.add_argument("--dose-per-kg", type=float, nargs="+", default=[1e6, 5e6], metavar="CELLS", help="low high")
    of_trial = simulate.add_argument_group("of a trial")
    of_trial.add_argument("--trials", type=int, default=1, help="more than one: how the trial behaves, on average")
    of_trial.add_argument("--workers", type=int, default=1, help="processes")
    of_trial.add_argument("--analyse", default="laplace", help="laplace (default), or design: no fit")
    simulate.set_defaults(run=_simulate)


def _exposure_verbs(verbs) -> None:
    nca = verbs.add_parser("nca", help="observed exposure: a table's samples, without a model")
    nca.add_argument("file", type=Path)
    nca.add_argument("--out", type=Path, default=Path("nca.csv"), help="every patient's values, status and reason")
    nca.add_argument("--by", metavar="COLUMN", help="summarise by this column")
    nca.add_argument("--method", default="linear_up_log_down", help="of areas: linear_up_log_down or linear")
    nca.add_argument("--peak-from", type=float, default=0.0, metavar="DAY", help="look for the peak from this day on")
    _table_options(nca)
    nca.set_defaults(run=_nca)

    exposure = verbs.add_parser("exposure", help="exposure from a fit, beside what was observed")
    exposure.add_argument("fit", type=Path, help="the fit.nc of a fit")
    exposure.add_argument("metrics", nargs="*", help="e.g. cmax auc_0_28 t_last")
    exposure.add_argument("--out", type=Path, default=Path("exposure.csv"), help="every patient's values and intervals")
    exposure.add_argument("--assay", help="which one, where there are several")
    exposure.add_argument("--allow-failed", action="store_true", help="even of a fit that failed its check")
    exposure.set_defaults(run=_exposure)


def _dose_verb(verbs) -> None:
    dose = verbs.add_parser("dose", help="which dose, from a fit and the outcomes of its patients")
    dose.add_argument("fit", type=Path, help="the fit.nc of a fit to a table with outcomes")
    what = "OUTCOME:METRIC[@AT]"
    dose.add_argument("--efficacy", nargs="+", required=True, metavar=what, help="e.g. ORR:auc_0_28 PFS:auc_0_28@182")
    dose.add_argument("--toxicity", nargs="+", required=True, metavar=what, help="e.g. CRS:cmax@3")
    dose.add_argument("--levels", type=float, nargs="+", required=True, metavar="DOSE", help="from the lowest")
    dose.add_argument("--dose-column", default="", metavar="COLUMN", help="the model's covariate that is the dose")
    dose.add_argument("--total", action="store_true", help="levels are cells in all, not per kg")
    dose.add_argument("--assay", help="which one, where there are several")
    dose.add_argument("--out", type=Path, default=Path("dose.csv"), help="the table of levels")
    dose.add_argument("--seed", type=int, default=1)
    dose.add_argument("--allow-failed", action="store_true", help="even of a fit that failed its check")
    dose.set_defaults(run=_dose)


def _table_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the table")
    group.add_argument("--config", type=Path, help="a TOML file with columns, keep, units, lloq, options")
    group.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="e.g. ID=patient")
    group.add_argument("--keep", action="append", default=[], metavar="COLUMN=VALUE", help="e.g. specimen=PB")
    group.add_argument("--unit", action="append", default=[], metavar="COLUMN=UNIT", help="e.g. TIME=hour")
    group.add_argument("--lloq", type=float, help="limit of rows that are below one without saying which")
    group.add_argument("--duplicates", help="error (default), mean, geomean, first or replicate")
    group.add_argument("--after", type=float, metavar="DAY", help="leave samples at or before this day out")
    group.add_argument("--predose", help="error (default) or exclude: quantified samples before the infusion")


def _demo(arguments: argparse.Namespace) -> None:
    from carkinetics.demo import MODEL, against_truth, read_trial, virtual_trial
    from carkinetics.fitting import fit
    from carkinetics.model_files import load_model

    started = time.perf_counter()
    trial = virtual_trial(arguments.seed)
    data = read_trial(trial)
    below = int((data.cens == 1).sum())
    print(
        "VIRTUAL DATA. A simulated CD38 CAR-T trial in B-cell acute lymphoblastic leukaemia; no patient is real.\n"
        f"Kinetics: {MODEL} (published, CD19). {data.n_subjects} patients, one infusion of 1-5e6 cells/kg,\n"
        f"{data.n_obs} blood samples by qPCR over 24 weeks, {100 * below / data.n_obs:.0f} % below 50 copies/ug.\n",
        flush=True,
    )
    result = fit(load_model(MODEL), data, seed=arguments.seed)
    _print_table(against_truth(result, trial.truth))
    _finish(result, arguments.out, started, truth=trial.truth)
    print(
        "\nYour own table, in Python:\n"
        '  data = ck.read_dataset("trial.csv", lloq=50)\n'
        f'  fit = ck.fit(ck.load_model("{MODEL}"), data, seed=1)'
    )


def _fit(arguments: argparse.Namespace) -> None:
    from carkinetics.fitting import fit
    from carkinetics.inference.chains import Settings
    from carkinetics.model_files import load_model

    started = time.perf_counter()
    data, model = _read(arguments), load_model(arguments.model)
    print(f"{data!r}\n{model.name}: {model.label}\n", flush=True)
    limit = arguments.max_draws
    settings = Settings() if limit is None else Settings(draws=min(limit, Settings().draws), max_draws=limit)
    result = fit(
        model,
        data,
        seed=arguments.seed,
        method=arguments.method,
        settings=settings,
        checkpoint=arguments.checkpoint,
    )
    _print_table(result.parameters())
    _finish(result, arguments.out, started)


def _finish(result, folder: Path, started: float, *, truth: dict[str, float] | None = None) -> None:
    from carkinetics.outputs import write_outputs

    print(f"\n{result.check()}\n")
    written = write_outputs(result, folder, truth=truth)
    print(f"{folder}/: {', '.join(p.name for p in written)}\n{time.perf_counter() - started:.0f} s in all")


def _models(arguments: argparse.Namespace) -> None:
    from carkinetics.model_files import list_models, load_model
    from carkinetics.model_text import aligned, describe
    from carkinetics.outputs import write_typical

    if arguments.name is None:
        table = list_models().drop(columns="doi")
        print(aligned(table.assign(label=[textwrap.shorten(text, 60, placeholder="...") for text in table["label"]])))
        return
    model = load_model(arguments.name)
    print(describe(model))
    unknown = model.unknown(variability=False, residual=False)
    if unknown:
        print(f"\nNo figure: these numbers are not known: {', '.join(unknown)}.")
    else:
        print(f"\nTypical patient: {write_typical(model, arguments.out, days=arguments.days)}")


def _simulate(arguments: argparse.Namespace) -> None:
    from carkinetics.cohort import Cohort
    from carkinetics.demo import SCHEDULE
    from carkinetics.model_files import load_model
    from carkinetics.simulation import simulate
    from carkinetics.trials.files import is_trial

    if is_trial(arguments.model):
        _simulate_trial(arguments)
        return
    out = arguments.out or Path("simulated.csv")
    low, high = arguments.dose_per_kg[0], arguments.dose_per_kg[-1]
    cohort = Cohort(n=arguments.patients, times=arguments.days or SCHEDULE, dose_per_kg=(low, high))
    table = simulate(load_model(arguments.model), cohort, seed=arguments.seed).table
    table.to_csv(out, index=False)
    samples = table[table["EVID"] == 0]
    below = int((samples["CENS"] == 1).sum())
    print(f"{out}: {arguments.patients} virtual patients, {len(samples)} samples, {below} below the limit")


def _simulate_trial(arguments: argparse.Namespace) -> None:
    """One trial: its tables. Many: operating characteristics, and the folder from which the same call goes on."""
    from carkinetics.trials.files import load_trial
    from carkinetics.trials.running import simulate_trials
    from carkinetics.trials.simulation import simulate_trial

    trial, out = load_trial(arguments.model), arguments.out or Path("simulated-trials")
    out.mkdir(parents=True, exist_ok=True)
    if arguments.trials == 1:
        found = simulate_trial(trial, seed=arguments.seed)
        found.table.to_csv(out / "table.csv", index=False)
        found.patients.to_csv(out / "patients.csv", index=False)
        found.truth.to_csv(out / "truth.csv")
        print(f"{found!r}\n{out}/: table.csv, patients.csv, truth.csv")
        return
    many = simulate_trials(
        trial,
        arguments.trials,
        seed=arguments.seed,
        analyse=arguments.analyse,
        workers=arguments.workers,
        folder=out / "batches",
    )
    many.replicates.to_csv(out / "replicates.csv")
    many.table.to_csv(out / "levels.csv", index=False)
    many.summary.to_csv(out / "summary.csv")
    print(f"{many}\n{out}/: levels.csv, summary.csv, replicates.csv, batches")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.file.suffix == ".toml":
        from carkinetics.errors import ModelError
        from carkinetics.model_checks import run_checks
        from carkinetics.model_files import load_model

        model = load_model(arguments.file)
        table = run_checks(model)
        print(f"{model.name}: {len(model.parameters)} parameters, {len(table)} checks")
        if len(table):
            _print_table(table.set_index("quantity").drop(columns="source"))
            if not table["ok"].all():
                raise ModelError(f"{model.name}: {int((~table['ok']).sum())} of {len(table)} checks fail.")
        return
    data = _read(arguments)
    from carkinetics.dataset import DataReport
    from carkinetics.review import TAKEN_OVER

    # What the review says with its choices is not said twice.
    rest = DataReport(tuple(n for n in data.report.notes if n.kind not in TAKEN_OVER), data.report.excluded)
    print(f"{data!r}\n{rest}")
    _print_table(data.summary())
    print(f"\n{str(data.review()) or 'nothing to look at before a fit'}")
    if arguments.model is not None:
        from carkinetics.model_files import load_model
        from carkinetics.stress import stress_test

        print(f"\n{stress_test(load_model(arguments.model), data, seed=arguments.seed)!r}")


def _nca(arguments: argparse.Namespace) -> None:
    from carkinetics.noncompartmental import nca
    from carkinetics.profiles import NcaRules

    found = nca(_read(arguments), rules=NcaRules(method=arguments.method, peak=(arguments.peak_from, float("inf"))))
    _print_table(found.summary(by=arguments.by).set_index("METRIC"))
    found.values.to_csv(arguments.out, index=False)
    print(f"\n{arguments.out}: {found.data.n_subjects} patients")


def _exposure(arguments: argparse.Namespace) -> None:
    from carkinetics.exposures import METRICS, exposure
    from carkinetics.fit_file import load_fit
    from carkinetics.side_by_side import compare_exposure

    result = load_fit(arguments.fit)
    options = {"assay": arguments.assay, "allow_failed": arguments.allow_failed}
    found = exposure(result, arguments.metrics or METRICS, **options)
    table = found.table()
    table.to_csv(arguments.out, index=False)
    counts = table.groupby(["METRIC", "UNIT"], sort=False)["VALUE"].describe()[["count", "min", "50%", "max"]]
    counts["STATUS"] = table.groupby(["METRIC", "UNIT"], sort=False)["STATUS"].agg(lambda s: ", ".join(sorted(set(s))))
    print(f"{found.source}\n")
    _print_table(counts)
    print("\nobserved over model-based:")
    _print_table(compare_exposure(result, **options).summary.set_index("METRIC"))
    print(f"\n{arguments.out}: {result.data.n_subjects} patients")


def _dose(arguments: argparse.Namespace) -> None:
    from carkinetics.exposures import exposure
    from carkinetics.fit_file import load_fit
    from carkinetics.outcome_names import asked_of, endpoint_of
    from carkinetics.recommending import DoseOptions, recommend

    result, failed = load_fit(arguments.fit), arguments.allow_failed
    roles = [[asked_of(text) for text in given] for given in (arguments.efficacy, arguments.toxicity)]
    metrics = [a.metric for role in roles for a in role]
    found = exposure(result, metrics, assay=arguments.assay, allow_failed=failed)
    efficacy, toxicity = ([endpoint_of(a, found[a.metric], result.data, arguments.seed) for a in r] for r in roles)
    plan = recommend(
        result,
        efficacy=efficacy,
        toxicity=toxicity,
        levels=arguments.levels,
        seed=arguments.seed,
        dose_column=arguments.dose_column,
        options=DoseOptions(per_kg=not arguments.total, allow_failed=failed),
    )
    plan.table.to_csv(arguments.out, index=False)
    print(f"{plan}\n\n{arguments.out}: {len(plan.levels)} levels")


def _read(arguments: argparse.Namespace):
    from carkinetics.config import table_settings
    from carkinetics.dataset import read_dataset

    return read_dataset(arguments.file, **table_settings(arguments))


def _print_table(table) -> None:
    import pandas as pd

    from carkinetics.findings import readable

    with pd.option_context("display.width", 200, "display.max_columns", 40, "display.max_rows", 200):
        print(table.to_string(float_format=readable, na_rep=""))


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """One line, without a place in the code: it is about the user's data, not about ours."""
    print(f"warning: {message}", file=sys.stderr)
