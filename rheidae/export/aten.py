"""ATen operations to an ONNX graph: those that this package's networks use, in seconds.

torch's own exporter takes any network; the default one takes it 25 times as long (150 s of processor time against 6)
and twice the bytes, for a page of notes on every node of a branch. `trace_rows` records a module on real rows,
`to_onnx` writes what it recorded. Both know the number of rows by a prime that is no other size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

ROWS = 101
"""Rows that a module is recorded on."""

aten = torch.ops.aten


class UnknownOperationError(Exception):
    """An operation, or a use of one, that `to_onnx` cannot write."""


@contextmanager
def exporting() -> Iterator[None]:
    """Let ``torch.compiler.is_exporting()`` be true, as it is within ``torch.export.export``."""
    before = torch.compiler._is_exporting_flag
    torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_exporting_flag = before


def trace_rows(module: torch.nn.Module, tables: Sequence[Tensor]) -> torch.fx.GraphModule:
    """Record a module on tables of `ROWS` rows."""
    from torch import _guards, _subclasses
    from torch.fx.experimental.proxy_tensor import make_fx

    # One mode for all notes that torch takes; else each has its own, for most of the time.
    notes = _guards.TracingContext(_subclasses.FakeTensorMode(allow_fallback_kernels=True))
    with exporting(), torch.no_grad(), _guards.tracing(notes):
        recorded: torch.fx.GraphModule = make_fx(module, tracing_mode="real")(*tables)
    for part in graphs_of(recorded):
        part.graph.eliminate_dead_code()
    return recorded


def graphs_of(module: torch.nn.Module) -> list[torch.fx.GraphModule]:
    """Of a graph itself, and of the branches and loops within."""
    return [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]


def to_onnx(
    recorded: torch.fx.GraphModule, tables: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    """Return the ONNX model of what `trace_rows` recorded on these tables.

    Raises `UnknownOperationError` if there is something that this module does not know.
    """
    from onnx import TensorProto, helper

    constants: dict[Any, Any] = {}
    scope = _Scope(constants, None)
    ends = _results(_Writer(recorded, scope, inputs).run(*tables))
    for value, name in zip(ends, outputs, strict=True):
        scope.nodes.append(helper.make_node("Identity", [value.name], [name]))
    starts = [_Value(table, name) for table, name in zip(tables, inputs, strict=True)]
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["n", value.tensor.shape[1]]) for value, n in pairs]
        for pairs in (zip(starts, inputs, strict=True), zip(ends, outputs, strict=True))
    ]
    graph = helper.make_graph(scope.nodes, "rheidae", infos[0], infos[1], list(constants.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


OPSET = 18


class _Value:
    """A tensor and its name in the graph; without one it is a constant, which gets one when first used.

    `one`: what stands for a constant that is the same for all rows.
    """

    def __init__(self, tensor: Any, name: str | None = None, one: Any = None) -> None:
        self.tensor, self._name = tensor, name
        self.one = tensor if one is None else one

    @property
    def constant(self) -> bool:
        return self._name is None

    @property
    def name(self) -> str:
        assert self._name is not None
        return self._name


class _Scope:
    """Nodes of a graph or of one within it; `constants` belong to the outermost."""

    def __init__(self, constants: dict[Any, Any], outer: _Scope | None) -> None:
        self.nodes: list[Any] = []
        self.constants = constants
        self.known: dict[Any, list[str]] = {} if outer is None else dict(outer.known)
        self.counter: list[int] = [0] if outer is None else outer.counter

    def fresh(self) -> str:
        self.counter[0] += 1
        return f"v{self.counter[0]}"

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """Name of a constant; equal ones are one."""
        from onnx import numpy_helper

        tensor = torch.as_tensor(value, dtype=dtype).detach().contiguous()
        array = tensor.numpy()
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        name: str = self.constants[key].name
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node, unless there is the same already; return the names of its outputs."""
        from onnx import helper

        key = (kind, inputs, outputs, tuple(sorted(attributes.items()))) if kind not in ("If", "Loop") else object()
        if key not in self.known:
            names = [self.fresh() for _ in range(outputs)]
            self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
            self.known[key] = names
        return self.known[key]


class _Writer(torch.fx.Interpreter):
    """Runs a recorded module once more on the same rows, and writes a node for each operation on its way."""

    def __init__(self, recorded: torch.fx.GraphModule, scope: _Scope, names: Sequence[str | None]) -> None:
        super().__init__(recorded)
        self.scope = scope
        self.names = iter(names)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> _Value:
        value = super().placeholder(target, args, kwargs)
        return value if isinstance(value, _Value) else _Value(value, next(self.names))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return _Value(value) if isinstance(value, Tensor) else value

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        return args[0]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.higher_order.cond:
            return self._branch(*args)
        if target is torch.ops.higher_order.while_loop:
            return self._loop(*args)
        if target.__name__ == "getitem":
            return args[0][args[1]]
        plain = _map(args, lambda a: a.tensor if isinstance(a, _Value) else a)
        result = target(*plain, **kwargs)
        found = [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, _Value)]
        if all(value.constant for value in found):
            if target in (aten.expand.default, aten.view.default) and ROWS in args[1]:
                return _Value(result, one=target(args[0].one, [1 if size == ROWS else size for size in args[1]]))
            if any(value.one is not value.tensor for value in found):
                ones = _map(args, lambda a: a.one if isinstance(a, _Value) else a)
                return _Value(result, one=target(*ones, **kwargs))
            return _map(result, lambda r: _Value(r) if isinstance(r, Tensor) else r)
        if target in _SAME:
            return args[0]
        if target not in _RULES:
            raise UnknownOperationError(str(target))
        names = _RULES[target](self, result, *args, **kwargs)
        if isinstance(names, str):
            return _Value(result, names)
        return [_Value(tensor, name) for tensor, name in itertools.zip_longest(result, names)]

    # What rules are made of

    def of(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """Of a value or a number, as `dtype`."""
        if not isinstance(value, _Value):
            return self.scope.constant(value, dtype)
        if value.constant:
            return self.scope.constant(value.one, dtype or value.tensor.dtype)
        if dtype is None or value.tensor.dtype == dtype:
            return value.name
        return self.node("Cast", value.name, to=_TYPES[dtype])

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.scope.node(kind, *inputs, **attributes)[0]

    def sizes(self, *numbers: int) -> str:
        return self.scope.constant(list(numbers), torch.int64)

    # Branches and loops

    def _branch(self, condition: _Value, yes: Any, no: Any, tables: Sequence[_Value]) -> Any:
        graphs, tensors = [], []
        for part in (yes, no):
            inner = _Scope(self.scope.constants, self.scope)
            results = _Writer(part, inner, ()).run(*map(self._named, tables))
            found = _results(results)
            tensors = [value.tensor for value in found]
            graphs.append(_graph(inner, [], [(inner.node("Identity", value.name)[0], value.tensor) for value in found]))
        names = self.scope.node(
            "If", condition.name, outputs=len(tensors), then_branch=graphs[0], else_branch=graphs[1]
        )
        values = [_Value(tensor, name) for tensor, name in zip(tensors, names, strict=True)]
        return values if isinstance(results, list | tuple) else values[0]

    def _loop(self, unfinished: Any, step: Any, carried: Sequence[_Value], given: Sequence[_Value]) -> list[_Value]:
        given = [self._named(value) for value in given]
        carried = [self._named(value) for value in carried]
        (start,) = _results(_Writer(unfinished, self.scope, ()).run(*carried, *given))
        inner = _Scope(self.scope.constants, self.scope)
        own = [_Value(value.tensor, inner.fresh()) for value in carried]
        after = _results(_Writer(step, inner, ()).run(*own, *given))
        (again,) = _results(_Writer(unfinished, inner, ()).run(*after, *given))
        ends = [(inner.node("Identity", value.name)[0], value.tensor) for value in (again, *after)]
        starts = [(inner.fresh(), torch.tensor(0)), (inner.fresh(), torch.tensor(True))]
        body = _graph(inner, [*starts, *((value.name, value.tensor) for value in own)], ends)
        names = self.scope.node(
            "Loop", "", start.name, *(value.name for value in carried), outputs=len(carried), body=body
        )
        return [_Value(value.tensor, name) for value, name in zip(carried, names, strict=True)]

    def _named(self, value: _Value) -> _Value:
        return _Value(value.tensor, self.of(value))


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    return torch.utils._pytree.tree_map(change, tree)


def _results(values: Any) -> Sequence[_Value]:
    return values if isinstance(values, list | tuple) else [values]


def _graph(scope: _Scope, inputs: Any, outputs: Any) -> Any:
    from onnx import helper

    starts, ends = (
        [helper.make_tensor_value_info(name, _TYPES[tensor.dtype], [None] * tensor.dim()) for name, tensor in part]
        for part in (inputs, outputs)
    )
    return helper.make_graph(scope.nodes, "g", starts, ends)


_TYPES = {torch.float32: 1, torch.int64: 7, torch.bool: 9, torch.float64: 11, torch.int32: 6}

# Rules
# -----
# Each gets the writer, the result, and the arguments of the operation; it returns the name of the output, or several.
_SAME = {aten.clone.default, aten.lift_fresh_copy.default, aten.detach.default, aten.alias.default}
_RULES: dict[Any, Callable[..., Any]] = {}


def _rule(*targets: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def _simple(kind: str, comparison: bool = False) -> Callable[..., str]:
    """Operands in the type of the result, or of each other."""

    def rule(w: _Writer, result: Tensor, *operands: Any, **options: Any) -> str:
        if options.get("alpha", 1) != 1 or options.get("rounding_mode"):
            raise UnknownOperationError(f"{kind} with {options}")
        dtype = result.dtype
        if comparison:
            dtype = torch.result_type(*(o.tensor if isinstance(o, _Value) else o for o in operands))
        return w.node(kind, *(w.of(operand, dtype) for operand in operands))

    return rule


for _name, _kind in (
    ("exp", "Exp"), ("log", "Log"), ("sqrt", "Sqrt"), ("neg", "Neg"), ("abs", "Abs"), ("reciprocal", "Reciprocal"),
    ("tanh", "Tanh"), ("relu", "Relu"), ("sigmoid", "Sigmoid"), ("maximum", "Max"), ("minimum", "Min"),
):  # fmt: skip
    _RULES[getattr(aten, _name).default] = _simple(_kind)
for _name, _kind in (("mul", "Mul"), ("add", "Add"), ("sub", "Sub"), ("div", "Div")):
    _RULES[getattr(aten, _name).Tensor] = _RULES[getattr(aten, _name).Scalar] = _simple(_kind)
for _name, _kind in (("gt", "Greater"), ("lt", "Less"), ("ge", "GreaterOrEqual"), ("le", "LessOrEqual")):
    _RULES[getattr(aten, _name).Tensor] = _RULES[getattr(aten, _name).Scalar] = _simple(_kind, comparison=True)
for _name, _kind in (("and", "And"), ("or", "Or")):
    _RULES[getattr(aten, f"bitwise_{_name}").Tensor] = _simple(_kind)
    _RULES[getattr(aten, f"logical_{_name}").default] = _simple(_kind)
_RULES[aten.exp2.default] = lambda w, r, x: w.node("Exp", w.node("Mul", w.of(x), w.of(0.6931471805599453, r.dtype)))
_RULES[aten.silu.default] = lambda w, r, x: w.node("Mul", w.of(x), w.node("Sigmoid", w.of(x)))
_RULES[aten.unsqueeze.default] = lambda w, r, x, dim: w.node("Unsqueeze", w.of(x), w.sizes(dim % r.dim()))
_RULES[aten._to_copy.default] = lambda w, r, x, **options: w.of(x, r.dtype)
_RULES[aten.bitwise_not.default] = _RULES[aten.logical_not.default] = _simple("Not")
_RULES[aten.mm.default] = _RULES[aten.bmm.default] = _simple("MatMul")


@_rule(aten.pow.Tensor_Scalar)
def _power(w: _Writer, result: Tensor, x: _Value, exponent: Any) -> str:
    if exponent != 2:
        raise UnknownOperationError(f"power {exponent}")
    return w.node("Mul", w.of(x), w.of(x))


@_rule(aten.rsub.Scalar)
def _reversed_sub(w: _Writer, result: Tensor, x: _Value, number: Any) -> str:
    return w.node("Sub", w.of(number, result.dtype), w.of(x, result.dtype))


@_rule(aten.clamp.default, aten.clamp_min.default)
def _clamp(w: _Writer, result: Tensor, x: _Value, low: Any = None, high: Any = None) -> str:
    ends = [w.of(end, result.dtype) if end is not None else "" for end in (low, high)]
    return w.node("Clip", w.of(x), *(ends if high is not None else ends[:1]))


@_rule(aten.where.self)
def _where(w: _Writer, result: Tensor, condition: _Value, a: Any, b: Any) -> str:
    return w.node("Where", w.of(condition), w.of(a, result.dtype), w.of(b, result.dtype))


@_rule(aten.addmm.default)
def _addmm(w: _Writer, result: Tensor, bias: _Value, a: _Value, b: _Value) -> str:
    return w.node("Gemm", w.of(a), w.of(b), w.of(bias))


@_rule(aten.baddbmm.default)
def _baddbmm(w: _Writer, result: Tensor, bias: _Value, a: _Value, b: _Value) -> str:
    return w.node("Add", w.node("MatMul", w.of(a), w.of(b)), w.of(bias))


@_rule(aten.native_batch_norm.default)
def _batch_norm(
    w: _Writer, result: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *rest: Any
) -> list[str]:
    if training:
        raise UnknownOperationError("batch norm in training")
    tables = [w.of(table) for table in (x, weight, bias, mean, variance)]
    return [w.node("BatchNormalization", *tables, epsilon=rest[1])]


@_rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def _view(w: _Writer, result: Tensor, x: _Value, size: Any) -> str:
    sizes = [-1 if number % ROWS == 0 and number > 0 else number for number in result.shape]
    if result.shape[:1] == x.tensor.shape[:1]:
        sizes[0] = 0  # as many as there are: rows that were picked have no number to be known by
    if sizes.count(-1) > 1:
        raise UnknownOperationError(f"a view of {list(result.shape)}")
    return w.node("Reshape", w.of(x), w.sizes(*sizes))


@_rule(aten.expand.default)
def _expand(w: _Writer, result: Tensor, x: _Value, size: Sequence[int]) -> str:
    own = [1] * (len(size) - x.tensor.dim()) + list(x.tensor.shape)
    sizes = [1 if number in (-1, before) else number for number, before in zip(size, own, strict=True)]
    if any(number % ROWS == 0 for number in sizes):
        raise UnknownOperationError("an expansion to the number of rows")
    return w.of(x) if set(sizes) == {1} and len(own) == x.tensor.dim() else w.node("Expand", w.of(x), w.sizes(*sizes))


@_rule(aten.cat.default)
def _cat(w: _Writer, result: Tensor, tables: Sequence[_Value], dim: int = 0) -> str:
    return w.node("Concat", *(w.of(table, result.dtype) for table in tables), axis=dim % result.dim())


@_rule(aten.stack.default)
def _stack(w: _Writer, result: Tensor, tables: Sequence[_Value], dim: int = 0) -> str:
    axis = w.sizes(dim % result.dim())
    parts = [w.node("Unsqueeze", w.of(table, result.dtype), axis) for table in tables]
    return w.node("Concat", *parts, axis=dim % result.dim())


@_rule(aten.select.int)
def _select(w: _Writer, result: Tensor, x: _Value, dim: int, index: int) -> str:
    dim %= x.tensor.dim()
    return w.node("Gather", w.of(x), w.scope.constant(index % x.tensor.shape[dim], torch.int64), axis=dim)


@_rule(aten.unbind.int)
def _unbind(w: _Writer, result: Any, x: _Value, dim: int = 0) -> list[str]:
    return [_select(w, part, x, dim, index) for index, part in enumerate(result)]


@_rule(aten.slice.Tensor)
def _slice(
    w: _Writer, result: Tensor, x: _Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    if result.shape == x.tensor.shape:
        return w.of(x)
    if x.tensor.shape[dim] % ROWS == 0 and x.tensor.shape[dim] > 0:
        raise UnknownOperationError("a slice of the rows")
    ends = (start or 0, min(2**62, 2**62 if end is None else end), dim % x.tensor.dim(), step)
    return w.node("Slice", w.of(x), *(w.sizes(number) for number in ends))


@_rule(aten.flip.default)
def _flip(w: _Writer, result: Tensor, x: _Value, dims: Sequence[int]) -> str:
    (dim,) = dims
    return w.node("Slice", w.of(x), *(w.sizes(number) for number in (-1, -(2**62), dim % x.tensor.dim(), -1)))


@_rule(aten.split.Tensor, aten.split_with_sizes.default)
def _split(w: _Writer, result: Any, x: _Value, size: int, dim: int = 0) -> list[str]:
    sizes = w.sizes(*(part.shape[dim] for part in result))
    return w.scope.node("Split", w.of(x), sizes, outputs=len(result), axis=dim % x.tensor.dim())


@_rule(aten.squeeze.dim)
def _squeeze(w: _Writer, result: Tensor, x: _Value, dim: int) -> str:
    return w.node("Squeeze", w.of(x), w.sizes(dim % x.tensor.dim()))


@_rule(aten.permute.default)
def _permute(w: _Writer, result: Tensor, x: _Value, dims: Sequence[int]) -> str:
    return w.node("Transpose", w.of(x), perm=tuple(dim % len(dims) for dim in dims))


@_rule(aten.transpose.int)
def _transpose(w: _Writer, result: Tensor, x: _Value, a: int, b: int) -> str:
    dims = list(range(result.dim()))
    dims[a], dims[b] = dims[b], dims[a]
    return _permute(w, result, x, dims)


_RULES[aten.t.default] = lambda w, r, x: _permute(w, r, x, (1, 0))


def _reduction(kind: str) -> Callable[..., str]:
    def rule(w: _Writer, result: Tensor, x: _Value, dims: Any = None, keep: bool = False, **options: Any) -> str:
        dims = range(x.tensor.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
        axes = w.sizes(*(dim % x.tensor.dim() for dim in dims))
        return w.node(kind, w.of(x, result.dtype), axes, keepdims=int(keep))

    return rule


_RULES[aten.sum.dim_IntList], _RULES[aten.mean.dim] = _reduction("ReduceSum"), _reduction("ReduceMean")
_RULES[aten.amin.default], _RULES[aten.amax.default] = _reduction("ReduceMin"), _reduction("ReduceMax")


@_rule(aten.any.default, aten.any.dim)
def _any(w: _Writer, result: Tensor, x: _Value, *dims: Any) -> str:
    number = _Value(x.tensor.int(), w.of(x, torch.int32))
    found = _reduction("ReduceMax")(w, number.tensor, number, *dims)
    return w.node("Cast", found, to=_TYPES[torch.bool])


@_rule(aten.full_like.default)
def _full_like(w: _Writer, result: Tensor, x: _Value, number: Any = 0, **options: Any) -> str:
    return w.node("Expand", w.of(number, result.dtype), w.node("Shape", w.of(x)))


_RULES[aten.zeros_like.default] = _full_like
_RULES[aten.ones_like.default] = partial(_full_like, number=1)


@_rule(aten.nonzero.default)
def _nonzero(w: _Writer, result: Tensor, x: _Value) -> str:
    return w.node("Transpose", w.node("NonZero", w.of(x)), perm=(1, 0))


@_rule(aten.index.Tensor)
def _index(w: _Writer, result: Tensor, x: _Value, indices: Sequence[_Value | None]) -> str:
    used = [dim for dim, index in enumerate(indices) if index is not None]
    first = indices[used[0]]
    assert first is not None
    if len(used) == 1 and first.tensor.dim() == 1:
        return w.node("Gather", w.of(x), w.of(first), axis=used[0])
    second = indices[used[1]] if len(used) == 2 else None
    if second is None or used[1] != used[0] + 1 or not (first.constant and second.constant):
        raise UnknownOperationError("an index of this kind")
    # Two neighboring axes as one.
    dim, width = used[0], x.tensor.shape[used[1]]
    flat = _view(w, x.tensor.flatten(dim, dim + 1), x, None)
    return w.node("Gather", flat, w.scope.constant(first.tensor * width + second.tensor), axis=dim)


@_rule(aten.index_put.default)
def _index_put(w: _Writer, result: Tensor, x: _Value, indices: Sequence[_Value], values: _Value) -> str:
    (index,) = indices
    return w.node("ScatterND", w.of(x), w.node("Unsqueeze", w.of(index), w.sizes(1)), w.of(values))
