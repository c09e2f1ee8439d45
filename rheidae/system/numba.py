"""The one way in which this package compiles a kernel."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# Reassociation and contraction let LLVM vectorise sums over nodes. The flags that assume away NaN and
# infinity stay off: with them a NaN in the input can turn into a finite, wrong answer.
FASTMATH = {"contract", "reassoc", "arcp", "nsz"}

# Every option is given everywhere: one that is not would be inherited from the function whose compilation asks for
# this one.
_compile: Any = partial(njit, cache=True, error_model="numpy", nogil=True)

# Kernels neither allocate nor keep arrays, so they need no reference counts (_nrt): as atomic operations on every slice
# and call they would take longer than the arithmetic of a small rule.
kernel: Any = _compile(fastmath=FASTMATH, forceinline=False, _nrt=False)

# Glue around a loop, not worth a call.
inlined_kernel: Any = _compile(fastmath=FASTMATH, forceinline=True, _nrt=False)

# Arithmetic that relies on the order in which it is written; contraction only forms fused multiply-adds.
scalar_kernel: Any = _compile(fastmath={"contract"}, forceinline=True, _nrt=False)

# Outermost functions, which allocate work arrays once per call.
driver: Any = _compile(fastmath=FASTMATH, forceinline=False, _nrt=True)


@intrinsic
def simd_function(_):  # type: ignore[no-untyped-def]
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
