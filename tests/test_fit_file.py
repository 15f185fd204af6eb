"""Fit files: everything comes back, nothing is half-written, nothing foreign is read."""

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import carkinetics.fit_file as fit_file
from carkinetics.errors import FitError
from carkinetics.fit_file import load_fit
from carkinetics.fit_tree import SCHEMA


def test_everything_comes_back(small_fit, tmp_path):
    """Draws, model, data, report and attributes survive the file, bit for bit."""
    small_fit.save(tmp_path / "fit.nc")
    again = load_fit(tmp_path / "fit.nc")
    xr.testing.assert_identical(again.tree["posterior"].to_dataset(), small_fit.tree["posterior"].to_dataset())
    pd.testing.assert_frame_equal(again.parameters(), small_fit.parameters())
    assert again.model == small_fit.model
    assert str(again.check()) == str(small_fit.check())
    ours, theirs = small_fit.data, again.data
    for name in ("subject", "assay", "time", "dv", "cens", "limit"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.subjects, ours.assays, ours.sha256, ours.source) == (
        theirs.subjects,
        theirs.assays,
        theirs.sha256,
        theirs.source,
    )
    assert str(ours.report) == str(theirs.report)
    pd.testing.assert_frame_equal(ours.table, theirs.table, check_dtype=False)
    assert again.tree.attrs == small_fit.tree.attrs


def test_a_failed_write_leaves_the_old_file(small_fit, tmp_path, monkeypatch):
    """xarray truncates a file that it cannot finish; ours is replaced only by a whole one."""
    path = tmp_path / "fit.nc"
    small_fit.save(path)
    before = path.read_bytes()

    def broken(self, target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", broken)
    with pytest.raises(FitError, match="No space left"):
        small_fit.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_fit_file_can_be_overwritten_by_itself(small_fit, tmp_path):
    """Loading does not keep the file open."""
    path = small_fit.save(tmp_path / "fit.nc")
    load_fit(path).save(path)
    assert load_fit(path).data.sha256 == small_fit.data.sha256


def test_missing_folder_is_a_clear_error(small_fit, tmp_path):
    """A path that cannot be written names itself."""
    with pytest.raises(FitError, match="nowhere"):
        small_fit.save(tmp_path / "nowhere" / "fit.nc")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04\x95pickle", b"PK\x03\x04", b"CDF\x01", b"\x89HDF\r\n\x1a\n" + b"0" * 64]
)
def test_foreign_and_broken_files_are_refused(content, tmp_path):
    """Pickles, archives and damaged files raise our error, and are never unpickled."""
    path = tmp_path / "fit.nc"
    path.write_bytes(content)
    with pytest.raises(FitError, match=r"fit\.nc"):
        load_fit(path)


def test_a_truncated_file_is_refused(small_fit, tmp_path):
    """Half a file is not a fit."""
    path = small_fit.save(tmp_path / "fit.nc")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FitError):
        load_fit(path)


def test_another_netcdf_file_is_refused(tmp_path):
    """A netCDF file that is not ours says so."""
    xr.Dataset({"x": ("t", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(FitError, match="not a fit"):
        load_fit(tmp_path / "other.nc")


def test_another_schema_is_refused(small_fit, tmp_path, monkeypatch):
    """A file of a later version is refused with both versions, not misread."""
    path = small_fit.save(tmp_path / "fit.nc")
    monkeypatch.setattr(fit_file, "SCHEMA", SCHEMA + 1)
    with pytest.raises(FitError, match=f"schema {SCHEMA}, this version reads {SCHEMA + 1}"):
        load_fit(path)


def test_links_and_giant_arrays_are_refused(small_fit, tmp_path):
    """A file may not point to another, nor declare more than memory holds."""
    path = small_fit.save(tmp_path / "fit.nc")
    linked = tmp_path / "linked.nc"
    linked.write_bytes(path.read_bytes())
    with h5py.File(linked, "a") as file:
        file["stolen"] = h5py.ExternalLink("/etc/hostname", "/")
    with pytest.raises(FitError, match="link"):
        load_fit(linked)
    with h5py.File(path, "a") as file:
        file.create_dataset("bomb", shape=(10**6, 10**6), dtype="f8", chunks=(1000, 1000), compression="gzip")
    with pytest.raises(FitError, match="GiB"):
        load_fit(path)
