"""From a file of moments to a file of mixed ones: ``rheidae predict --model RUN --data SNAPSHOT --out FILE``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rheidae.system.lazy import lazy

if TYPE_CHECKING:
    from rheidae.predict.stream import predict_file

__all__ = ["predict_file"]
__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "rheidae.predict.stream"))
