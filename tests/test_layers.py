"""The architecture: who may import whom, what `import carkinetics` starts, and that public names resolve."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import carkinetics

SOURCE = Path(carkinetics.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A module imports from its own layer or a lower one. A new module must be placed here.
LAYERS = (
    "errors structure transforms solvers",
    "structures structures.*",
    "numerics observation student counts replicates residuals model_parts assays dependence covariates model "
    "toml_fields model_tables model_files model_writing model_text tables findings values checks dataset inputs visits "
    "courses columns review infusion occasions censoring",
    "layout priors observations population density",
    "inference inference.* fit_tree parameter_table fit_result fit_file posterior_model fitting cohort simulation "
    "stress model_checks",
    "metric diagnostics forest late_samples prior_trials predictive comparison profiles noncompartmental "
    "trajectories exposures side_by_side design design.* replication prediction_errors visual_checks bins information "
    "summary_checks rank_statistics calibrating response response.* endpoints new_exposures new_patients plan "
    "recommending outcome_names trials trials.*",
    "plots plot_parts plots_diagnostics plots_response plots_dose plots_calibration outputs table_files page_parts "
    "masking sections sections_checks sections_beside reporting",
    "demo config cli __main__",
)
# Where other people's packages may be imported: by layer, and by module.
ONLY_IN_LAYERS = {"numpyro": (3, 4, 5), "pandas": (2, 4, 5, 6, 7), "arviz": (4, 5, 6, 7), "xarray": (4, 5, 6, 7)}
ONLY_IN_MODULES = {
    "diffrax": ("solvers",),
    "matplotlib": ("plots", "plot_parts", "plots_diagnostics", "plots_response", "plots_dose", "plots_calibration"),
}


def module_of(path):
    """``inference.nuts`` for its file; the package itself is the empty name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def layer_of(module):
    """The number of a module's layer, or None."""
    for number, line in enumerate(LAYERS):
        for name in line.split():
            if module == name or (name.endswith(".*") and module.startswith(name[:-1])):
                return number
    return None


def imports(text):
    """Every import of a source text, wherever it stands: (dotted name, at the top and at run time)."""
    found = []
    tree = ast.parse(text)
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides its layer"
            found += [(f"{node.module}.{alias.name}", id(node) not in lazy) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found.append((ast.unparse(node.args[0]).strip("'\""), False))
    return found


def ours(name):
    """The module of the library that a dotted name means, or None."""
    if name.split(".")[0] != "carkinetics":
        return None
    rest = name.split(".")[1:]
    for end in range(len(rest), 0, -1):
        if ".".join(rest[:end]) in MODULES:
            return ".".join(rest[:end])
    return carkinetics._HOME.get(rest[0], "") if rest else ""


def faults(module, text):
    """What a module may not import, as sentences."""
    layer, found = layer_of(module), []
    for name, at_top in imports(text):
        target, package = ours(name), name.split(".")[0]
        if target == "":
            found.append(f"{module} imports the package itself ({name})")
        elif target is not None and (layer_of(target) is None or layer_of(target) > layer):
            found.append(f"{module} (layer {layer}) imports {target} (layer {layer_of(target)})")
        for other, layers in ONLY_IN_LAYERS.items():
            if package.startswith(other) and layer not in layers:
                found.append(f"{module} (layer {layer}) imports {name}")
        if package in ONLY_IN_MODULES and (module not in ONLY_IN_MODULES[package]):
            found.append(f"{module} imports {name}, which belongs in {ONLY_IN_MODULES[package][0]}")
        if package == "matplotlib" and at_top:
            found.append(f"{module} imports {name} outside a function")
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_imports_go_downward(module):
    """If it fails, data no longer flow one way: a lower room knows of a higher one, or of a foreign package."""
    assert faults(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_every_module_has_a_layer(module):
    """If it fails, a new module was added without saying where it belongs: place it in LAYERS."""
    assert layer_of(module) is not None


def test_every_name_in_the_layers_is_a_module_or_promised():
    """If it fails, the map names rooms that are gone."""
    promised = {"report"}
    names = {name for line in LAYERS for name in line.split() if not name.endswith(".*")}
    assert names - promised <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("solvers", "from carkinetics.model import Model", "imports model"),
        ("solvers", "from carkinetics import cli", "imports cli"),
        ("solvers", "import carkinetics.cli", "imports cli"),
        ("solvers", "def f():\n    from carkinetics.fitting import fit", "imports fitting"),
        ("model", "if TYPE_CHECKING:\n    from carkinetics.fitting import fit", "imports fitting"),
        ("model", "from carkinetics import fit", "imports fitting"),
        ("model", "import_module('carkinetics.cli')", "imports cli"),
        ("population", "import pandas as pd", "imports pandas"),
        ("population", "from xarray import Dataset", "imports xarray"),
        ("dataset", "import numpyro.distributions as dist", "imports numpyro"),
        ("model", "from arviz_stats import ess", "imports arviz"),
        ("fitting", "import diffrax", "belongs in solvers"),
        ("report", "def f():\n    import matplotlib.pyplot", "belongs in plots"),
        ("plots", "import matplotlib.pyplot", "outside a function"),
    ],
)  # fmt: skip
def test_a_wrong_import_is_noticed(module, text, said):
    """If it fails, this file guards nothing."""
    assert any(said in fault for fault in faults(module, text))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("plots", "def f():\n    import matplotlib.pyplot as plt"),
        ("plots", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
        ("population", "import numpyro\nfrom carkinetics import observation, solvers"),
        ("fitting", "from carkinetics.fit_tree import build_tree\nimport xarray"),
    ],
)
def test_a_right_import_is_let_through(module, text):
    """If it fails, the guard forbids what the house allows."""
    assert faults(module, text) == []


def fresh(code):
    """What a fresh interpreter prints, as JSON; without the tests' type checker."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_importing_the_library_is_quick_and_starts_nothing():
    """If it fails, every `carkinetics --help` waits for JAX, or the import computes or plots something."""
    found = fresh(
        "import json, sys, time; start = time.perf_counter(); import carkinetics; "
        "seconds = time.perf_counter() - start; print(json.dumps([seconds, sorted(sys.modules)]))"
    )
    loaded = {name.split(".")[0] for name in found[1]}
    heavy = {"jax", "jaxlib", "matplotlib", "arviz", "arviz_stats", "xarray", "numpyro", "diffrax", "pandas"}
    assert not heavy & loaded
    assert found[0] < 0.5


def test_importing_every_module_computes_nothing_and_shadows_no_verb():
    """If it fails, a module runs JAX or loads matplotlib when it is imported, or hides `fit` behind a module."""
    modules = [f"carkinetics.{m}" for m in MODULES if m and m != "__main__"]
    code = f"""
import importlib, json, sys, types
for name in {modules!r}:
    importlib.import_module(name)
from jax._src import xla_bridge
started = xla_bridge.backends_are_initialized()
plotting = "matplotlib" in sys.modules
import carkinetics
wrong = []
for name, home in carkinetics._HOME.items():
    found = getattr(carkinetics, name)
    if not home:
        wrong += [] if isinstance(found, types.ModuleType) else [name]
    elif isinstance(found, types.ModuleType) or found is not vars(sys.modules["carkinetics." + home])[name]:
        wrong.append(name)
import jax
print(json.dumps([started, plotting, wrong, bool(jax.config.jax_enable_x64), jax.config.jax_compilation_cache_dir]))
"""
    assert fresh(code) == [False, False, [], False, None]


def test_no_module_has_the_name_of_a_verb():
    """If it fails, `import carkinetics.fit` would put a module where users expect the function."""
    assert set(MODULES) & set(carkinetics._HOME) == {"plots", "design"}


@pytest.mark.parametrize("name", sorted(carkinetics._HOME))
def test_every_public_name_resolves_to_its_home(name):
    """If it fails, a name of the contract is announced and does not exist."""
    home = carkinetics._HOME[name]
    assert (home or name) in MODULES
    found = getattr(carkinetics, name)
    if home:
        assert found is vars(sys.modules[f"carkinetics.{home}"])[name]
        assert found.__doc__


def test_type_checkers_see_the_same_names_as_the_interpreter():
    """If it fails, an editor offers names that fail at run time, or does not know one that works."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            seen[alias.asname] = (node.module or "").removeprefix("carkinetics").removeprefix(".")
    assert seen == carkinetics._HOME
    assert carkinetics.__all__ == sorted(carkinetics._HOME)
    assert set(carkinetics._HOME) <= set(dir(carkinetics))


def test_an_unknown_name_is_an_attribute_error():
    """If it fails, hasattr(carkinetics, ...) raises something else, and pickling and IPython break."""
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        carkinetics.fitt  # noqa: B018


@pytest.mark.parametrize("module", list(MODULES))
def test_no_file_is_longer_than_four_hundred_lines(module):
    """If it fails, a room has become too large to read."""
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 400
