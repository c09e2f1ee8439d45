"""The file formats: a traced graph to bytes, and a file back to a function."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import rheidae
from rheidae.estimator.tensors.control import traced_branch, traced_loop
from rheidae.exceptions import ExportError
from rheidae.export import aten, compiled
from rheidae.export.endings import SUFFIXES
from rheidae.export.graph import FluxGraph
from rheidae.export.onnxfile import open_session, run_options, unwanted
from rheidae.export.states import made_states
from rheidae.system.archives import require_small

KEY = "rheidae"
"""Name of the metadata inside a file."""

Metadata = dict[str, Any]
Function = Callable[..., list[NDArray[np.float64]]]


class Format(NamedTuple):
    """How one format is written and read."""

    convert: Callable[[FluxGraph], Any]
    """From a graph; takes most of the time."""
    write: Callable[[Any, Metadata], bytes]
    """The file, from what `convert` made and its metadata."""
    read: Callable[[Path, int], tuple[Function, Metadata]]
    """Of a file and a number of threads."""
    packages: tuple[str, ...] = ()
    """What writing needs beside torch."""


def _rows(inputs: Sequence[str], n: int) -> list[torch.Tensor]:
    """States to trace on, one that needs the branch of hard rows among them."""
    rows = torch.from_numpy(made_states()[:n].copy())
    return [rows.clone() for _ in inputs]


def _program(graph: FluxGraph) -> Any:
    """A module as ``torch.export.ExportedProgram``, for any number of rows."""
    n = torch.export.Dim("n", min=1)
    rows = _rows(graph.inputs, 3)
    with _quiet(), _naming(graph):
        # Strict: sizes that the module takes by len() stay unknown. Those of this package take none.
        strict = not graph.plain
        program = torch.export.export(graph, tuple(rows), dynamic_shapes=tuple({0: n} for _ in rows), strict=strict)
    for part in aten.graphs_of(program.graph_module):
        # They name the files of the machine that exports.
        for node in part.graph.nodes:
            node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _naming(graph: FluxGraph) -> Iterator[None]:
    """Turn what torch raises of a module that no graph can hold into `ExportError`."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        # torch's messages go on for pages.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{type(graph).__name__} cannot be turned into a graph ({reason}); the network may use torch "
            "operations alone, and no Python branch on its input"
        ) from error


def require_suffix(path: str | Path, format: str) -> None:
    """Raise `ExportError` if the name of a file does not say its format."""
    if Path(path).suffix not in SUFFIXES[format]:
        endings = " or ".join(SUFFIXES[format])
        raise ExportError(f"{path}: the name of a file of format {format} has to end in {endings}")


def format_of(path: Path) -> str:
    """Return the format of an exported file, told by its first bytes, if its name says the same.

    A file that is called ``model.onnx`` is never handed to torch, which may run what an archive holds.
    """
    format = "object" if path.suffix == ".o" else "onnx"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            format = "torchscript" if any(name.endswith("/constants.pkl") for name in file.namelist()) else "pt2"
    try:
        require_suffix(path, format)
    except ExportError as error:
        raise ExportError(
            f"{error}; it is not what its name says: do not open it unless you know who made it"
        ) from None
    return format


# --- ONNX ------------------------------------------------------------------------------------------------


def _to_onnx(graph: FluxGraph) -> Any:
    rows = _rows(graph.inputs, aten.ROWS)
    with _quiet(), _naming(graph):
        recorded = aten.trace_rows(graph, rows)
    try:
        model = aten.to_onnx(recorded, rows, graph.inputs, graph.outputs)
    except aten.UnknownOperationError:
        model = _by_torch(graph)
    model.doc_string = f"Final four-fluxes of the fast flavor instability; see the metadata {KEY!r}"
    model.producer_name, model.producer_version = "rheidae", rheidae.__version__
    return model


def _by_torch(graph: FluxGraph) -> Any:
    """What `_to_onnx` does, of any operations, slowly."""
    require("onnxscript")
    program = _program(graph)
    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, opset_version=aten.OPSET, verbose=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs),
        )  # fmt: skip
    assert made is not None
    model = made.model_proto
    _forget(model.graph)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    return model


def _forget(graph: Any) -> None:
    """Clear what torch notes down about each node: it is of no use to a reader, and three quarters of the file."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget(attribute.g)


def _write_onnx(model: Any, metadata: Metadata) -> bytes:
    model.ClearField("metadata_props")
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(metadata)
    data: bytes = model.SerializeToString()
    return data


def _from_onnx(path: Path, threads: int) -> tuple[Function, Metadata]:
    require("onnx", "onnxruntime")
    content = path.read_bytes()
    found = unwanted(content)
    if found is not None:
        raise ExportError(f"{path}: has {found}; exports have none")
    session = open_session(content, threads)
    names = [tensor.name for tensor in session.get_inputs()]

    def run(*tables: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        given = dict(zip(names, tables, strict=True))
        return [np.asarray(table) for table in session.run(None, given, run_options(len(tables[0])))]

    return run, json.loads(session.get_modelmeta().custom_metadata_map.get(KEY, "{}"))


# --- torch.export ----------------------------------------------------------------------------------------


#
# torch.export.load unpickles sample inputs, and tensors that the archive's tables mark so; it looks up operators by any
# dotted name below torch, and evaluates the sizes' expressions. Files written here have no pickle, operators of ATen
# and sums and products of sizes, and nothing else is read.

_PARTS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|extra/rheidae|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.ops\.higher_order\.(cond|while_loop)|_operator\.(add|sub|mul|floordiv|eq|ne|le|lt|ge|gt)"
)
_EXPRESSION = re.compile(
    r"(Symbol\('[su]\d+'(, \w+=True)*\)|[su](?=\d)|\d|[-+*() ]|"
    r"(Eq(uality)?|Ne|(Strict)?(Greater|Less)Than|Max|Min|Mul|Add|Integer)(?=\()|,)*"
)


def _write_pt2(program: Any, metadata: Metadata) -> bytes:
    buffer = io.BytesIO()
    program.example_inputs = None  # a pickle otherwise
    with _quiet():
        torch.export.save(program, buffer, extra_files={KEY: json.dumps(metadata)})
    return buffer.getvalue()


def _from_pt2(path: Path, threads: int) -> tuple[Function, Metadata]:
    extra = {KEY: ""}
    with _quiet():
        module = torch.export.load(_without_code(path), extra_files=extra).module()
    return _of_torch(module, threads), json.loads(extra[KEY] or "{}")


def _without_code(path: Path) -> io.BytesIO:
    """Return a copy of a pt2 archive, written anew from what was looked at, so that torch reads nothing else."""
    checked = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(checked, "w", zipfile.ZIP_STORED) as copy:
        require_small(source)
        for name in dict.fromkeys(source.namelist()):
            part, content = name.partition("/")[2], source.read(name)
            if not _PARTS.fullmatch(part) and not (part == _SAMPLE_INPUTS and not content):
                raise ExportError(f"{path}: holds {name!r}, which may run code; exports have no such part")
            if part.endswith(".json"):
                _require_data(path, json.loads(content))
            copy.writestr(f"archive/{part}", content)
    checked.seek(0)
    return checked


def _require_data(path: Path, content: Any) -> None:
    """Raise `ExportError` if a table of a pt2 archive asks for a pickle, or for more than arithmetic."""
    if isinstance(content, dict):
        for key, value in content.items():
            unsafe = (
                (key == "use_pickle" and value)
                or (key == "target" and isinstance(value, str) and not _OPERATOR.fullmatch(value))
                or (key == "expr_str" and not _EXPRESSION.fullmatch(str(value)))
            )
            if unsafe:
                raise ExportError(f"{path}: {key} {value!r} may run code; files of this package hold none")
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _require_data(path, value)


# --- TorchScript -----------------------------------------------------------------------------------------


_TRACED = {torch.ops.higher_order.cond: traced_branch, torch.ops.higher_order.while_loop: traced_loop}


def _to_torchscript(graph: FluxGraph) -> Any:
    rows = tuple(_rows(graph.inputs, 3))
    plain: Any = graph
    if not graph.plain:
        plain = _program(graph).module(check_guards=False)
        sizes = []
        # A trace keeps a size as unknown only if a tensor's own method gives it and one takes it.
        for part in aten.graphs_of(plain):
            for node in part.graph.nodes:
                if node.target is torch.ops.aten.sym_size.int:
                    node.op, node.target = "call_method", "size"
                    sizes.append(node)
                elif any(source in sizes for source in node.all_input_nodes):
                    node.op, node.target = "call_method", node.target._schema.name.split("::")[1]
                node.target = _TRACED.get(node.target, node.target)
            part.recompile()
        # A new module, without the checks of the old one, which would be traced too.
        plain = torch.fx.GraphModule(plain, plain.graph)
    with _quiet(), torch.no_grad():
        return torch.jit.trace(plain, rows, check_trace=False)


def _write_torchscript(module: Any, metadata: Metadata) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        torch.jit.save(module, buffer, _extra_files={KEY: json.dumps(metadata)})
    return buffer.getvalue()


def _from_torchscript(path: Path, threads: int) -> tuple[Function, Metadata]:
    extra = {KEY: ""}
    with zipfile.ZipFile(path) as archive:
        require_small(archive)
    with _quiet(), path.open("rb") as file:
        module = torch.jit.load(file, map_location="cpu", _extra_files=extra)
    return _of_torch(module, threads), json.loads(extra[KEY] or "{}")


def _of_torch(module: Any, threads: int) -> Function:
    def run(*tables: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        try:
            # Optimizing a trace of this size takes longer than all calls of most users.
            with torch.no_grad(), torch.jit.optimized_execution(False):
                answer = module(*(torch.from_numpy(table) for table in tables))
        finally:
            if threads:
                torch.set_num_threads(before)
        return [table.numpy() for table in (answer if isinstance(answer, tuple | list) else (answer,))]

    return run


# --- machine code ----------------------------------------------------------------------------------------


def _to_object(graph: FluxGraph) -> str:
    if graph.kernel is None:
        raise ExportError(
            "machine code is there of MixingModel with its own activation, and of the asymptotic scheme; take the "
            "format onnx"
        )
    return compiled.compiled(graph.kernel)


FORMATS = {
    "onnx": Format(_to_onnx, _write_onnx, _from_onnx, ("onnx", "onnxruntime")),
    "object": Format(_to_object, compiled.to_bytes, compiled.read),
    "pt2": Format(_program, _write_pt2, _from_pt2),
    "torchscript": Format(_to_torchscript, _write_torchscript, _from_torchscript),
}


def require(*packages: str) -> None:
    """Raise `ExportError` if one of the packages is not installed."""
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"the format onnx needs {', '.join(missing)}; install the extra: pip install rheidae[export]")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch and its ONNX optimizer say about themselves: deprecations, a line per node of the graph."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
