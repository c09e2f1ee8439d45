"""Raw simulation files to training sets: ``python -m rheidae.preprocess --config config/pre_process.yaml``."""

from rheidae.preprocess.pipeline import Written, preprocess

__all__ = ["Written", "preprocess"]
