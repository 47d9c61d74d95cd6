"""The whole configuration: one typed, frozen tree, from YAML files and the command line.

Later wins: the defaults in `schema.py`, then `--config FILE`, then options such as `--optim.lr 3e-4`. An unknown key, a
value of the wrong type or out of its range, and two fields that do not fit each other are refused with one sentence.
"""

from distrib.config.reading import load_config, parse, read_yaml
from distrib.config.schema import (
    LAYERS,
    POLICIES,
    RANDOM,
    SCORES,
    TUNED_SCORES,
    AugmentConfig,
    Config,
    DataConfig,
    ExplainConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    TunedScore,
)

__all__ = [
    "LAYERS",
    "POLICIES",
    "RANDOM",
    "SCORES",
    "TUNED_SCORES",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "ExplainConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrackingConfig",
    "TrainConfig",
    "TunedScore",
    "load_config",
    "parse",
    "read_yaml",
]
