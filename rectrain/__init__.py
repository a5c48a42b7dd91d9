"""rectrain: one BERT trained on recommendation, search ranking, ad CTR and risk, on Ray.

The parts are imported where they are used: `rectrain.data`, `rectrain.model`, `rectrain.tasks`,
`rectrain.train`, `rectrain.inference`. This module alone imports none of the heavy frameworks.
"""

from importlib.metadata import PackageNotFoundError, version

from rectrain.config import Section, dump_config, load_config
from rectrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EncoderError,
    RectrainError,
    ResourceError,
    StorageError,
)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EncoderError",
    "RectrainError",
    "ResourceError",
    "Section",
    "StorageError",
    "__version__",
    "dump_config",
    "load_config",
]

try:
    __version__ = version("rectrain")
except PackageNotFoundError:  # the source alone, as a job's working directory on a cluster
    __version__ = "0+source"
