"""Bayesian population modelling of CAR-T cell kinetics.

``table -> Dataset -> Model -> population density -> Fit -> exposure -> response -> dose``. Names are loaded
when they are first used, so that ``import carkinetics`` is quick and starts nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "AbstractStructure": "structure",
    "Assay": "model_parts",
    "CarkineticsError": "errors",
    "Check": "fit_result",
    "SimulatedTrial": "trials.simulation",
    "Treatment": "model_parts",
    "Trial": "trials.parts",
    "Regressor": "model_parts",
    "Metric": "metric",
    "Mixture": "dependence",
    "Covariate": "covariates",
    "Horseshoe": "dependence",
    "Conversion": "model_parts",
    "Cohort": "cohort",
    "CurveRules": "exposures",
    "DataError": "errors",
    "DataWarning": "errors",
    "Dataset": "dataset",
    "DesignError": "errors",
    "DoseOptions": "recommending",
    "EarlyFall": "infusion",
    "Endpoint": "endpoints",
    "Exposure": "metric",
    "Fit": "fit_result",
    "FitError": "errors",
    "FitWarning": "errors",
    "LeftOut": "predictive",
    "Model": "model",
    "Nca": "noncompartmental",
    "NcaRules": "profiles",
    "ModelError": "errors",
    "Parameter": "model_parts",
    "Plan": "plan",
    "PlanRules": "plan",
    "Prior": "model_parts",
    "ReadOptions": "dataset",
    "Review": "review",
    "Settings": "inference.chains",
    "Simulation": "simulation",
    "StressTest": "stress",
    "Comparison": "comparison",
    "compare": "comparison",
    "covariate_effects": "forest",
    "design": "",
    "drop_censored": "censoring",
    "compare_exposure": "side_by_side",
    "early_fall": "infusion",
    "exposure": "exposures",
    "fit": "fitting",
    "gof": "diagnostics",
    "late_rise": "late_samples",
    "left_out": "predictive",
    "level": "structure",
    "list_models": "model_files",
    "load_fit": "fit_file",
    "load_model": "model_files",
    "list_trials": "trials.files",
    "load_trial": "trials.files",
    "simulate_trial": "trials.simulation",
    "simulate_trials": "trials.running",
    "ManyTrials": "trials.characteristics",
    "lopo": "predictive",
    "nca": "noncompartmental",
    "persistence": "side_by_side",
    "npde": "prediction_errors",
    "PredictionErrors": "prediction_errors",
    "logistic": "response.logistic_model",
    "ordinal": "response.ordinal_model",
    "tte": "response.tte_model",
    "ResponseOptions": "response.options",
    "with_error": "response.measured",
    "average": "response.averaging",
    "performance": "response.judging",
    "quantile_table": "response.judging",
    "kaplan_meier": "response.judging",
    "calibration": "response.judging",
    "cumulative_incidence": "response.judging",
    "Course": "response.followed",
    "tte_course": "response.course_model",
    "plots": "",
    "prior_predictive": "prior_trials",
    "read_dataset": "dataset",
    "report": "reporting",
    "recommend": "recommending",
    "run_checks": "model_checks",
    "simulate": "simulation",
    "stress_test": "stress",
    "vpc": "visual_checks",
    "VisualCheck": "visual_checks",
    "predictive_checks": "summary_checks",
    "shrinkage": "information",
    "sensitivity": "information",
    "sbc": "calibrating",
    "Calibration": "calibrating",
    "identifiability": "information",
    "Identifiability": "information",
    "individual_fits": "diagnostics",
    "write_table": "table_files",
    "typical_curves": "model_checks",
}

if TYPE_CHECKING:
    from carkinetics import design as design
    from carkinetics import plots as plots
    from carkinetics.calibrating import Calibration as Calibration
    from carkinetics.calibrating import sbc as sbc
    from carkinetics.censoring import drop_censored as drop_censored
    from carkinetics.cohort import Cohort as Cohort
    from carkinetics.comparison import Comparison as Comparison
    from carkinetics.comparison import compare as compare
    from carkinetics.covariates import Covariate as Covariate
    from carkinetics.dataset import Dataset as Dataset
    from carkinetics.dataset import ReadOptions as ReadOptions
    from carkinetics.dataset import read_dataset as read_dataset
    from carkinetics.dependence import Horseshoe as Horseshoe
    from carkinetics.dependence import Mixture as Mixture
    from carkinetics.diagnostics import gof as gof
    from carkinetics.diagnostics import individual_fits as individual_fits
    from carkinetics.endpoints import Endpoint as Endpoint
    from carkinetics.errors import CarkineticsError as CarkineticsError
    from carkinetics.errors import DataError as DataError
    from carkinetics.errors import DataWarning as DataWarning
    from carkinetics.errors import DesignError as DesignError
    from carkinetics.errors import FitError as FitError
    from carkinetics.errors import FitWarning as FitWarning
    from carkinetics.errors import ModelError as ModelError
    from carkinetics.exposures import CurveRules as CurveRules
    from carkinetics.exposures import exposure as exposure
    from carkinetics.fit_file import load_fit as load_fit
    from carkinetics.fit_result import Check as Check
    from carkinetics.fit_result import Fit as Fit
    from carkinetics.fitting import fit as fit
    from carkinetics.forest import covariate_effects as covariate_effects
    from carkinetics.inference.chains import Settings as Settings
    from carkinetics.information import Identifiability as Identifiability
    from carkinetics.information import identifiability as identifiability
    from carkinetics.information import sensitivity as sensitivity
    from carkinetics.information import shrinkage as shrinkage
    from carkinetics.infusion import EarlyFall as EarlyFall
    from carkinetics.infusion import early_fall as early_fall
    from carkinetics.late_samples import late_rise as late_rise
    from carkinetics.metric import Exposure as Exposure
    from carkinetics.metric import Metric as Metric
    from carkinetics.model import Model as Model
    from carkinetics.model_checks import run_checks as run_checks
    from carkinetics.model_checks import typical_curves as typical_curves
    from carkinetics.model_files import list_models as list_models
    from carkinetics.model_files import load_model as load_model
    from carkinetics.model_parts import Assay as Assay
    from carkinetics.model_parts import Conversion as Conversion
    from carkinetics.model_parts import Parameter as Parameter
    from carkinetics.model_parts import Prior as Prior
    from carkinetics.model_parts import Regressor as Regressor
    from carkinetics.model_parts import Treatment as Treatment
    from carkinetics.noncompartmental import Nca as Nca
    from carkinetics.noncompartmental import nca as nca
    from carkinetics.plan import Plan as Plan
    from carkinetics.plan import PlanRules as PlanRules
    from carkinetics.prediction_errors import PredictionErrors as PredictionErrors
    from carkinetics.prediction_errors import npde as npde
    from carkinetics.predictive import LeftOut as LeftOut
    from carkinetics.predictive import left_out as left_out
    from carkinetics.predictive import lopo as lopo
    from carkinetics.prior_trials import prior_predictive as prior_predictive
    from carkinetics.profiles import NcaRules as NcaRules
    from carkinetics.recommending import DoseOptions as DoseOptions
    from carkinetics.recommending import recommend as recommend
    from carkinetics.reporting import report as report
    from carkinetics.response.averaging import average as average
    from carkinetics.response.course_model import tte_course as tte_course
    from carkinetics.response.followed import Course as Course
    from carkinetics.response.judging import calibration as calibration
    from carkinetics.response.judging import cumulative_incidence as cumulative_incidence
    from carkinetics.response.judging import kaplan_meier as kaplan_meier
    from carkinetics.response.judging import performance as performance
    from carkinetics.response.judging import quantile_table as quantile_table
    from carkinetics.response.logistic_model import logistic as logistic
    from carkinetics.response.measured import with_error as with_error
    from carkinetics.response.options import ResponseOptions as ResponseOptions
    from carkinetics.response.ordinal_model import ordinal as ordinal
    from carkinetics.response.tte_model import tte as tte
    from carkinetics.review import Review as Review
    from carkinetics.side_by_side import compare_exposure as compare_exposure
    from carkinetics.side_by_side import persistence as persistence
    from carkinetics.simulation import Simulation as Simulation
    from carkinetics.simulation import simulate as simulate
    from carkinetics.stress import StressTest as StressTest
    from carkinetics.stress import stress_test as stress_test
    from carkinetics.structure import AbstractStructure as AbstractStructure
    from carkinetics.structure import level as level
    from carkinetics.summary_checks import predictive_checks as predictive_checks
    from carkinetics.table_files import write_table as write_table
    from carkinetics.trials.characteristics import ManyTrials as ManyTrials
    from carkinetics.trials.files import list_trials as list_trials
    from carkinetics.trials.files import load_trial as load_trial
    from carkinetics.trials.parts import Trial as Trial
    from carkinetics.trials.running import simulate_trials as simulate_trials
    from carkinetics.trials.simulation import SimulatedTrial as SimulatedTrial
    from carkinetics.trials.simulation import simulate_trial as simulate_trial
    from carkinetics.visual_checks import VisualCheck as VisualCheck
    from carkinetics.visual_checks import vpc as vpc

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'carkinetics' has no attribute {name!r}")
    if not _HOME[name]:
        return import_module(f"carkinetics.{name}")
    value = getattr(import_module(f"carkinetics.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
