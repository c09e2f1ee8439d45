"""A model as machine code: an object file that C, C++ and Fortran link, and nothing else.

The kernels are the estimator's own, compiled by Numba with the model's numbers as constants. What Numba's code asks of
Python's process, memory for work arrays, is put on `malloc` and `free` here (`_MEMORY`); it depends on how Numba lays
out such memory, and on the arguments of its functions, so what is loaded again and compared before it gets its name is
the file itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from rheidae.exceptions import ExportError
from rheidae.export._compiled_kernels import (
    BLOCK,
    copy_block,
    describe_block,
    enter_block,
    judge_block,
    leave_block,
)  # fmt: skip
from rheidae.export.graph import OUTPUTS, Kernel
from rheidae.linear import regression
from rheidae.linear.stability import POTENTIAL, SPEED_OF_LIGHT
from rheidae.mixing.asymptotic import levels_of, tables_of
from rheidae.mixing.variation import variation_rules
from rheidae.system.numba import INTERPRETED

Array = NDArray[np.float64]

MIX, FULL, ABOUT = "rheidae_mix", "rheidae_mix_full", "rheidae_mix_metadata"
"""Symbols of the object: the function of final states, that of all outputs, and the metadata as a text."""

HEADERS = ("rheidae_mix.h", "rheidae_mix.f90")
"""What is written beside the object."""

CPUS = {
    "native": (),
    "x86-64-v2": ("sse4.2", "popcnt"),
    "x86-64-v3": ("avx2", "fma", "bmi2"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}
"""Processors to write for, and some of what they have."""

# Sizes are of doubles and pointers alone, aligned to what Numba asks for. A block begins with its count of references;
# the address of the numbers is the fourth word.
_MEMORY = """
declare ptr @malloc(i64)
declare void @free(ptr)
define ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {
  %width = zext i32 %align to i64
  %head = add i64 %width, 48
  %all = add i64 %size, %head
  %block = call ptr @malloc(i64 %all)
  %none = icmp eq ptr %block, null
  br i1 %none, label %leave, label %fill
fill:
  %address = ptrtoint ptr %block to i64
  %beyond = add i64 %address, %head
  %rest = urem i64 %beyond, %width
  %start = sub i64 %beyond, %rest
  %numbers = inttoptr i64 %start to ptr
  %field = getelementptr i8, ptr %block, i64 24
  store i64 1, ptr %block
  store ptr %numbers, ptr %field
  br label %leave
leave:
  ret ptr %block
}
define void @NRT_MemInfo_call_dtor(ptr %block) {
  call void @free(ptr %block)
  ret void
}
"""

# Both sides of a choice are computed, and one may be no number: traps of the caller are off meanwhile.
_ENTRY = """
declare i32 @feholdexcept(ptr)
declare i32 @fesetenv(ptr)
declare i32 @"{inner}"({types})
define i32 @{name}({arguments}) {{
  %result = alloca i32
  %raised = alloca ptr
  %traps = alloca [64 x i8], align 16
  %held = call i32 @feholdexcept(ptr %traps)
  %status = call i32 @"{inner}"(ptr %result, ptr %raised, {arguments})
  %set = call i32 @fesetenv(ptr %traps)
  ret i32 %status
}}
"""


def _final(kernel: Kernel) -> Callable[..., Any]:
    """Function of n, cells and final states."""
    change, constants, relative, _ = kernel

    def rheidae_mix(n: Any, F: Any, F_final: Any) -> Any:
        cells, final = carray(F, (n, 6, 4)), carray(F_final, (n, 6, 4))
        states, changes = np.empty((BLOCK, 6, 4)), np.empty((BLOCK, 6, 4))
        for begin in range(0, n, BLOCK):
            here = cells[begin : begin + BLOCK]
            end = begin + here.shape[0]
            enter_block(here, states, relative)
            change(states[: end - begin], changes[: end - begin], None, *constants)
            leave_block(here, changes, None, final[begin:end], relative)
        return np.int32(0)

    return rheidae_mix


def _full(kernel: Kernel) -> Callable[..., Any]:
    """The same, with all of `rheidae.export.graph.OUTPUTS`; any pointer but the first may be null."""
    change, constants, _, learned = kernel
    rule, network, unit = *regression.constants(), POTENTIAL * SPEED_OF_LIGHT
    nodes, scheme = tables_of(), (*variation_rules(), *levels_of(levels=1))

    def rheidae_mix_full(
        n: Any, F: Any, F_final: Any, growth_rate: Any, has_crossing: Any, transition: Any, deviation: Any, outside: Any
    ) -> Any:
        cells, final, matrices = carray(F, (n, 6, 4)), carray(F_final, (n, 6, 4)), carray(transition, (n, 2, 6, 6))
        rate, crosses = carray(growth_rate, (n,)), carray(has_crossing, (n, 3))
        std, far = carray(deviation, (n, 6, 4)), carray(outside, (n,))
        states, changes, finals = np.empty((BLOCK, 6, 4)), np.empty((BLOCK, 6, 4)), np.empty((BLOCK, 6, 4))
        stds, mixed = np.empty((BLOCK, 6, 4)), np.empty((BLOCK, 2, 6, 6))
        rates, crossings, outsides = np.empty(BLOCK), np.empty((BLOCK, 3)), np.empty(BLOCK)
        for begin in range(0, n, BLOCK):
            here = cells[begin : begin + BLOCK]
            m = here.shape[0]
            end = begin + m
            enter_block(here, states, True)
            if is_there(F_final) or is_there(transition) or is_there(deviation) or is_there(outside):
                change(states[:m], changes[:m], mixed[:m], *constants)
                leave_block(here, changes, mixed[:m], finals[:m], True)
            if is_there(growth_rate) or is_there(has_crossing):
                describe_block(here, states[:m], rule, network, unit, nodes, rates[:m], crossings[:m])
            if is_there(deviation) or is_there(outside):
                judge_block(here, states[:m], finals[:m], scheme, learned, stds[:m], outsides[:m])
            if is_there(transition):
                copy_block(here, mixed[:m], matrices[begin:end])
            if is_there(growth_rate):
                copy_block(here, rates[:m], rate[begin:end])
            if is_there(has_crossing):
                copy_block(here, crossings[:m], crosses[begin:end])
            if is_there(deviation):
                copy_block(here, stds[:m], std[begin:end])
            if is_there(outside):
                copy_block(here, outsides[:m], far[begin:end])
            if is_there(F_final):  # last, since it may be F
                copy_block(here, finals[:m], final[begin:end])
        return np.int32(0)

    return rheidae_mix_full


@intrinsic
def _is_there(_: Any, pointer: Any) -> Any:
    """Whether a pointer is not null."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.icmp_unsigned("!=", arguments[0], arguments[0].type(None))

    return types.boolean(pointer), codegen


is_there: Any = _is_there


def compiled(kernel: Kernel) -> str:
    """Return a kernel with its constants as LLVM's assembly, optimized for this processor.

    It has the function `MIX`, and `FULL` where the kernel has what that needs. Raises `ExportError` if the code asks
    for more of Python's process than memory, or nothing is compiled.
    """
    if INTERPRETED:
        raise ExportError("NUMBA_DISABLE_JIT is set: no machine code without Numba's compiler")
    module = llvm.parse_assembly(_MEMORY)
    names = []
    for make, pointers in ((_final, 2), (_full, 7))[: 1 if kernel.learned is None else 2]:
        signature = (types.int64, *[types.CPointer(types.float64)] * pointers)
        function: Any = njit(error_model="numpy", nogil=True)(make(kernel))
        function.compile(signature)
        (code,) = function.inspect_llvm().values()
        inner = function.overloads[signature].fndesc.llvm_func_name
        names.append(function.__name__)
        entry = _ENTRY.format(
            inner=inner, name=names[-1], types=", ".join(["ptr", "ptr", "i64", *["ptr"] * pointers]),
            arguments=", ".join(["i64 %n", *[f"ptr %p{k}" for k in range(pointers)]]),
        )  # fmt: skip
        for part in (code, entry):
            module.link_in(llvm.parse_assembly(part))
    # Two models in one program must not take each other's functions for their own; what only Python calls goes.
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name not in names:
            value.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(_machine("native"), llvm.create_pipeline_tuning_options(3)))
    known = {"malloc", "free", "feholdexcept", "fesetenv", "exp", "log", "pow", "sqrt"}
    asked = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")} - known
    if asked:
        raise ExportError(f"the compiled code asks for {', '.join(sorted(asked))}; export the model as onnx")
    return str(module)


def to_bytes(code: str, metadata: dict[str, Any]) -> bytes:
    """Return the object file of what `compiled` returned, for the processor that `metadata` names."""
    text = json.dumps(metadata).encode() + b"\0"
    about = "".join(f"\\{byte:02X}" for byte in text)
    module = llvm.parse_assembly(f'{code}\n@{ABOUT} = constant [{len(text)} x i8] c"{about}"')
    written: bytes = _machine(metadata["cpu"]).emit_object(module)
    return written


def read(path: Path, threads: int) -> tuple[Callable[[Array], list[Array]], dict[str, Any]]:
    """Load an object file into this process; return its function and its metadata."""
    from rheidae.system.threads import share_rows

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine("native"))
    engine.add_object_file(llvm.ObjectFileRef.from_data(path.read_bytes()))
    engine.finalize_object()
    about = engine.get_global_value_address(ABOUT)
    metadata = json.loads(ctypes.string_at(about)) if about else {}
    columns = [OUTPUTS[entry["name"]][0] for entry in metadata.get("outputs", ())]
    address = engine.get_function_address(FULL if len(columns) > 1 else MIX)
    if not about or not address:
        raise ExportError(f"{path}: has no {MIX}; it was not written by rheidae.export")
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, *[ctypes.c_void_p] * (1 + len(columns)))(address)

    def run(F: Array) -> list[Array]:
        tables = [F, *(np.empty((len(F), count)) for count in columns)]

        def part(start: int, stop: int) -> None:
            _ = engine  # the code is its
            if function(stop - start, *(table[start:].ctypes.data for table in tables)):
                raise MemoryError

        share_rows(part, len(F), threads or None)
        return tables[1:]

    return run, metadata


def digest(content: bytes) -> dict[str, str]:
    """Return what the metadata beside an object know it by."""
    return {"sha256": hashlib.sha256(content).hexdigest()}


def require_whole(path: Path) -> None:
    """Raise `ExportError` if an object is not what was written: LLVM trusts what it loads, and crashes."""
    beside = Path(f"{path}.json")
    try:
        known = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: {beside.name} has to lie beside it, as it was written: {error}") from error
    if not isinstance(known, dict) or not digest(path.read_bytes()).items() <= known.items():
        raise ExportError(f"{path}: is damaged, or not what {beside.name} is about; export the model again")


def headers() -> dict[str, bytes]:
    """Contents of `HEADERS`, by name."""
    return {name: (resources.files(__package__) / name).read_bytes() for name in HEADERS}


def require_cpu(cpu: str) -> None:
    """Raise where code for a processor could not be written, or not be tried here.

    `ValueError` if it is not one of `CPUS`; `ExportError` if this machine's processor does not have what that one has.
    """
    if cpu not in CPUS:
        raise ValueError(f"cpu={cpu!r} is not one of {', '.join(CPUS)}")
    here = llvm.get_host_cpu_features()
    missing = [feature for feature in CPUS[cpu] if not here.get(feature)]
    if missing:
        raise ExportError(
            f"--cpu {cpu}: this machine has no {', '.join(missing)}, so what is written could not be tried"
        )


def _machine(cpu: str) -> Any:
    features = ""
    if cpu == "native":
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="default"
    )
