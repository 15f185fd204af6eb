"""Leaving out what is below the limit, to see what that does: never the default."""

from dataclasses import replace

import pandas as pd

from carkinetics.dataset import DataReport, Dataset
from carkinetics.findings import Note


def drop_censored(data: Dataset) -> Dataset:
    """The data without censored samples, as if nobody had taken them: the method M1.

    A fit of these is biased, since levels that happen to be high enough are all that is left: the persistent fraction
    comes out too high. Fits use what a limit tells (M3) unless they are given this.

    References
    ----------
    Beal SL, J Pharmacokinet Pharmacodyn 2001;28:481-504, doi:10.1023/A:1012299115260.
    """
    stays = data.cens == 0
    gone = pd.DataFrame({"ID": [data.subjects[i] for i in data.subject[~stays]], "TIME": data.time[~stays]})
    text = f"{len(gone)} censored samples were dropped (M1): a fit is biased"
    excluded = pd.concat([data.report.excluded, gone.assign(REASON="censored, dropped (M1)")], ignore_index=True)
    arrays = {name: getattr(data, name)[stays] for name in ("subject", "assay", "time", "dv", "cens", "limit")}
    note = Note(kind="m1", message=text, lines=(), subjects=(), warned=True)
    return replace(
        data,
        **arrays,
        report=DataReport((*data.report.notes, note), excluded),
        sha256=f"{data.sha256} without censored samples",
    )
