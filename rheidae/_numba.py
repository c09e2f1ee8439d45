"""The one way in which this package compiles a kernel."""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import njit

# Reassociation and contraction let LLVM vectorise sums over nodes. The flags that assume away NaN and
# infinity stay off: with them a NaN in the input can turn into a finite, wrong answer.
FASTMATH = {"contract", "reassoc", "arcp", "nsz"}

kernel: Any = partial(njit, cache=True, error_model="numpy", nogil=True, fastmath=FASTMATH)
# For arithmetic that relies on the order in which it is written; contraction only forms fused multiply-adds.
scalar_kernel: Any = partial(njit, cache=True, error_model="numpy", nogil=True, fastmath={"contract"})
