"""The samplers and pruners of a study as its file names them: `samplers.py` makes Optuna's of them."""

from typing import Any

import pydantic
from pydantic import Field

from distrib.config.section import Section, plain

# Names, and what Optuna calls the class.
SAMPLERS = {
    "grid": "RandomSampler",  # its points are given; nothing is left to sample
    "random": "RandomSampler",
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
}
# Pruners that let one of so many trials continue at each of their rungs; Optuna's own figures.
REDUCTION = {"halving": 4, "hyperband": 3}


class Method(Section):
    """A sampler or a pruner of Optuna, with the options that Optuna gives it."""

    name: str
    options: dict[str, int | float | bool | str] = Field(default_factory=dict)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "options" not in value:
            rest = {key: plain(each) for key, each in value.items() if key != "name"}
            return {"name": value.get("name"), "options": rest}
        return value


def rung_step(method: Method, rung: int) -> int:
    """A rung, counted from 0, as its pruner counts: some in powers of their factor, the others one by one."""
    if method.name not in REDUCTION:
        return rung + 1
    factor = int(method.options.get("reduction_factor", REDUCTION[method.name]))
    return int(factor**rung)
