"""The one way in which this package compiles a kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

log = logging.getLogger(__name__)

# Reassociation and contraction let LLVM vectorise sums over nodes. The flags that assume away NaN and
# infinity stay off: with them a NaN in the input can turn into a finite, wrong answer.
FASTMATH = {"contract", "reassoc", "arcp", "nsz"}

INTERPRETED: bool = config.DISABLE_JIT  # type: ignore[attr-defined]
"""Whether NUMBA_DISABLE_JIT was set when this was imported: for debuggers and for measures of coverage."""

REMEDY = "set NUMBA_CACHE_DIR to a folder that can be written"

_said: set[str] = set()


def _say_once(message: str, *arguments: Any) -> None:
    if message not in _said:
        _said.add(message)
        log.warning(message, *arguments)


class _Cache(FunctionCache):
    """Numba's cache of one function, without which everything works too.

    Numba itself lets whatever its files raise go up to the caller of the kernel: damaged ones, those of another user,
    a full disk.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function, None if it has to be compiled; forget what cannot be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # damaged bytes raise whatever they happen to say
            kind = type(error).__name__
            _say_once("Numba's cache %s is damaged (%s): compiling anew", self.cache_path, kind)
            with suppress(OSError):  # saving says so
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save the compiled function if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _say_once(
                "Numba's cache %s cannot be written (%s): kernels are compiled anew by every process; make room "
                f"there, or {REMEDY}",
                self.cache_path,
                error,
            )


def _compile(**options: Any) -> Callable[[Any], Any]:
    """Decorator of a kernel: compiled when it is first called, and kept on the disk where that is possible."""
    # Nothing calls kernels from C.
    options |= {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True}

    def decorate(function: Any) -> Any:
        """Make a kernel of a function."""
        # Every option is given everywhere: one that is not would be inherited from the function whose compilation asks
        # for this one.
        compiled = njit(**options)(function)
        if INTERPRETED:
            _say_once("NUMBA_DISABLE_JIT is set: kernels run in Python, thousands of times slower")
            return np.errstate(all="ignore")(function)  # what error_model="numpy" says
        try:
            compiled._cache = _Cache(function)
        except (RuntimeError, OSError):  # read-only package, no home
            _say_once(f"no folder for Numba's cache: kernels are compiled anew by every process; {REMEDY}")
        return compiled

    return decorate


# An integer that is written as an argument is a type of its own to Numba, and so is an array that cannot be written:
# `np.int64(2)` in place of 2, and copies, spare a compilation each.

# Kernels neither allocate nor keep arrays, so they need no reference counts (_nrt): as atomic operations on every slice
# and call they would take longer than the arithmetic of a small rule.
kernel = _compile(fastmath=FASTMATH, forceinline=False, _nrt=False)

# Glue around a loop, not worth a call.
inlined_kernel = _compile(fastmath=FASTMATH, forceinline=True, _nrt=False)

# Arithmetic that relies on the order in which it is written; contraction only forms fused multiply-adds.
scalar_kernel = _compile(fastmath={"contract"}, forceinline=True, _nrt=False)

# Bit for bit what any other language makes of it.
exact_kernel = _compile(fastmath=False, forceinline=True, _nrt=False)

# Outermost functions, which allocate work arrays once per call.
driver = _compile(fastmath=FASTMATH, forceinline=False, _nrt=True)


@intrinsic
def _simd_function(_):  # type: ignore[no-untyped-def]
    """Mark the calling function as a SIMD loop: not inlined, 512-bit vectors where there are any, arrays distinct.

    LLVM prefers 256 bits on processors that have 512, for the sake of code that uses them rarely. The node loop is
    nothing but fused multiply-adds, and 512 bits make it 1.4 times as fast; processors without them are
    unaffected. Array arguments must not overlap: without that promise LLVM checks at run time and leaves short loops
    scalar.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        function = builder.function
        function.attributes.add("noinline")
        # llvmlite lists the attributes it knows, and string attributes are not among them.
        set.add(function.attributes, '"prefer-vector-width"="512"')
        for argument in function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.none(), codegen


def _nothing() -> None:
    """Python itself has no SIMD loops."""


simd_function: Any = _nothing if INTERPRETED else _simd_function
