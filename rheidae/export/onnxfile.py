"""Opening ONNX files, of anybody: arithmetic on what they hold themselves, in a bounded part of the memory."""

from __future__ import annotations

import functools
import math
from contextlib import suppress
from typing import Any

from rheidae.system.memory import free_memory

_OF_FREE = 0.5
"""Part of the free memory that graphs may take."""

_MANY = 1 << 16
"""Rows after which what a graph took is given back."""


def unwanted(content: bytes) -> str | None:
    """Return what a file has in it that exports never have: what takes much more memory than bytes, or other files.

    Sparse tensors stand for dense ones of any size, and functions that call functions for any number of operations.
    """
    from onnx import load_from_string

    model = load_from_string(content)
    if model.functions:
        return "functions of its own"
    graphs = [model.graph, *(graph for one in model.training_info for graph in (one.algorithm, one.initialization))]
    while graphs:
        graph = graphs.pop()
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        if graph.sparse_initializer or any(a.HasField("sparse_tensor") or a.sparse_tensors for a in attributes):
            return "sparse tensors"
        tensors = [*graph.initializer, *(tensor for a in attributes for tensor in (a.t, *a.tensors))]
        if any(tensor.external_data for tensor in tensors):
            return "weights in other files"
        graphs += [inner for a in attributes for inner in (*a.graphs, *([a.g] if a.HasField("g") else []))]
    return None


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
