"""Opening ONNX files, of anybody: arithmetic on what they hold themselves, in a bounded part of the memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from rheidae.system.memory import free_memory

# Messages of ONNX's protobuf by the numbers of their fields: which others they hold, and what is refused.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "functions of its own"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensors"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensors", 23: "sparse tensors"},
    "tensor": {13: "weights in other files"},
}

_OF_FREE = 0.5
"""Part of the free memory that graphs may take."""

_MANY = 1 << 16
"""Rows after which what a graph took is given back."""


def unwanted(content: bytes) -> str | None:
    """Return what a file has in it that exports never have: what takes much more memory than bytes, or other files.

    Sparse tensors stand for dense ones of any size, and functions that call functions for any number of operations.

    Raises
    ------
    ValueError
        If the bytes are no ONNX.
    """
    waiting = [("model", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        for number, value in _fields(message):
            part = _PARTS[kind].get(number)
            if part in _PARTS:
                waiting.append((part, value))
            elif part is not None:
                return part
    return None


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length."""
    place, end = 0, len(message)

    def number() -> int:
        nonlocal place
        value = shift = 0
        while place < end and shift < 70:
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
        raise ValueError("no ONNX")

    while place < end:
        key = number()
        kind = key & 7
        if kind == 0:
            number()
            continue
        size = {1: 8, 2: 0, 5: 4}.get(kind, end)
        size = number() if kind == 2 else size
        if size > end - place:
            raise ValueError("no ONNX")
        if kind == 2:
            yield key >> 3, message[place : place + size]
        place += size


def open_session(content: bytes, threads: int) -> Any:
    """Return a session of onnxruntime in which operations that ask for too much memory fail.

    Constants are not computed before: the runtime would do so outside of that memory.
    """
    import onnxruntime

    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


def run_options(rows: int) -> Any:
    """Return the options of a call for so many rows: after many, memory goes back to the system."""
    import onnxruntime

    if rows < _MANY:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@functools.cache
def _limit_memory() -> None:
    """Give all sessions of the process one allocator with a limit."""
    import onnxruntime

    free = free_memory()
    limit = int(_OF_FREE * free) if math.isfinite(free) else 0
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    info = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = onnxruntime.OrtArenaCfg(
        {"max_mem": limit, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    )
    with suppress(Exception):  # the user has registered one
        onnxruntime.create_and_register_allocator(info, arena)
