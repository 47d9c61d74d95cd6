"""The samplers and pruners of a study: Optuna's, by name, with Optuna's own options."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from distrib.base.errors import UserError, first_line
from distrib.base.words import nearest
from distrib.studies.methods import PRUNERS, REDUCTION, SAMPLERS, Method, rung_step

# Distinct random numbers for each trial from the one seed of a sampler.
SEED_STRIDE = 1_000_003

# Optuna says of half its samplers that they are experimental, and of grids of numbers that they are categorical.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_sampler(method: Method, number: int) -> BaseSampler:
    """The sampler that proposes one trial; the same proposal for the same seed, trial and trials before it.

    Args:
        method: its name and options.
        number: of the trial.

    Raises:
        UserError: if Optuna does not know an option, or refuses its value.
    """
    maker = getattr(optuna.samplers, SAMPLERS[method.name])
    options = dict(method.options)
    if method.name == "tpe":
        # Trials that other workers have under way count as bad ones, or all workers would look at the same place.
        options.setdefault("constant_liar", True)
    if "seed" in inspect.signature(maker).parameters:
        seed = options.get("seed", 0)
        # A low-discrepancy sequence is one sequence for all trials; all others draw anew for each.
        options["seed"] = seed if method.name == "qmc" or type(seed) is not int else seed + SEED_STRIDE * number
    sampler: BaseSampler = _make("sampler", maker, method.name, options)
    return sampler


def make_pruner(method: Method, rungs: int = 1) -> BasePruner:
    """The pruner.

    Args:
        method: its name and options.
        rungs: trainings of rising cost that it judges, at the steps of `rung_step`; 1: it judges epochs.

    Raises:
        UserError: if Optuna does not know an option, lacks one, or refuses its value.
    """
    options = dict(method.options)
    factor = options.get("reduction_factor", 2)
    if method.name in REDUCTION and (type(factor) is not int or factor < 2):
        raise UserError(f"pruner {method.name} has reduction_factor {factor!r}: expected a whole number from 2 on")
    if rungs > 1 and method.name in REDUCTION:
        # Optuna would wait for the first trial that has climbed them all, and guess by its last step.
        options = {"reduction_factor": REDUCTION[method.name], "min_resource": 1, **options}
        if method.name == "hyperband":
            options.setdefault("max_resource", rung_step(method, rungs - 1))
    pruner: BasePruner = _make("pruner", getattr(optuna.pruners, PRUNERS[method.name]), method.name, options)
    return pruner


def _make(kind: str, maker: Any, name: str, options: Mapping[str, Any]) -> Any:
    known = [each for each in inspect.signature(maker).parameters if each not in ("self", "args", "kwargs")]
    for option in options:
        if option not in known:
            raise UserError(f"{kind} {name} has no option {option}{nearest(option, known)}: it has {', '.join(known)}")
    try:
        return maker(**options)
    except (ImportError, ValueError, TypeError) as error:
        raise UserError(f"{kind} {name} refuses its options {dict(options)}: {first_line(error)}") from None
