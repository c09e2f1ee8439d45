"""Raw simulation files to training sets: ``rheidae preprocess --config config/pre_process.yaml``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rheidae.system.lazy import lazy

if TYPE_CHECKING:
    from rheidae.preprocess.pipeline import Written, preprocess

__all__ = ["Written", "preprocess"]
__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "rheidae.preprocess.pipeline"))
