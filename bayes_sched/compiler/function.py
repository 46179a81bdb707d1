"""Machine code for a scalar function of a vector and its gradient, and data that are bound to it.

The function has the signature that nutpie asks of a log density:
``int64 f(uint64 dim, const double *x, double *gradient, double *value, const int64 *data)``; 0 is success.
`data` holds for each array its address and its shape: other data of the same ranks need no compilation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import count
from math import inf
from operator import mul
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.tensor.elemwise import CAReduce
from pytensor.tensor.shape import Shape_i
from pytensor.tensor.subtensor import AdvancedIncSubtensor, AdvancedSubtensor, IncSubtensor

from bayes_sched.arrays import Floats
from bayes_sched.compiler.arithmetic import (
    F64,
    I1,
    I64,
    Code,
    Number,
    UnsupportedError,
    apply,
    kind_of,
    where,
)
from bayes_sched.compiler.plan import (
    VIEWS,
    Axis,
    Index,
    Loop,
    Plan,
    Shifted,
    is_kept,
    parts,
    reduced,
    simplified,
    sources,
)

llvm.set_option("", "-disable-lsr")  # takes half of the time where arrays are many, and gains nothing here

_NOT_FINITE = 4
_IDENTITY = {"Add": 0.0, "Mul": 1.0, "Maximum": -inf, "Minimum": inf}
_MODULE = """
define i64 @log_density(i64 %dim, ptr noalias %point, ptr noalias %gradient, ptr noalias %value,
    ptr noalias %data) nounwind "prefer-vector-width"="512" {{
{entry}
{lines}
}}
define i64 @copy(i64 %dim, i64 %count, ptr %source, ptr %target, ptr %data) {{
  %bytes = shl i64 %dim, 3
  call ptr @memcpy(ptr %target, ptr %source, i64 %bytes)
  ret i64 0
}}
declare ptr @memcpy(ptr, ptr, i64)
declare ptr @malloc(i64)
declare void @free(ptr)
{declared}
!0 = !{{!"llvm.loop.vectorize.enable", i1 true}}
!1 = !{{!"llvm.loop.vectorize.width", i32 8}}
!2 = !{{!"llvm.loop.vectorize.predicate.enable", i1 true}}
!3 = !{{!"llvm.loop.parallel_accesses", !4}}
!4 = distinct !{{}}
{loops}
"""
_LOOP = """br label %before{n}
before{n}:
br label %head{n}
head{n}:
%i{n} = phi i64 [0, %before{n}], [%next{n}, %again{n}]
%more{n} = icmp slt i64 %i{n}, {length}
br i1 %more{n}, label %body{n}, label %after{n}
body{n}:"""
_END = """br label %again{n}
again{n}:
%next{n} = add i64 %i{n}, 1
br label %head{n}{about}
after{n}:"""


class _Emitter:
    """Emits the function: the outputs of a plan go to the addresses named with them."""

    def __init__(self, plan: Plan, outputs: Mapping[Any, str], point: Any, data: Sequence[Any]) -> None:
        self.plan, self.code = plan, Code()
        self.memo: dict[Any, Number] = {}  # values of variables in the loop that is emitted
        self.singles: dict[Any, Number] = {}  # and of those that are one number, computed before it
        self.outside = self.code.lines  # where that is
        self.loop: Loop | None = None
        self.loops: list[str] = []
        self.access = ""  # what a load or store says about other iterations
        self.lookups: list[tuple[Any, Axis]] = []
        self.slots: dict[Any, str] = {}
        self.lengths: dict[tuple[Any, int], Number] = {}
        self.arrays = {point: ("%point", F64)}  # address and kind of elements
        self.arrays |= {variable: (address, F64) for variable, address in outputs.items()}
        words = count()
        for variable in data:
            kind = F64 if kind_of(variable.type.dtype) == F64 else I64
            self.arrays[variable] = (self._word(next(words), "ptr").text, kind)
            for i in range(variable.type.ndim):
                self.lengths[variable, i] = self._word(next(words), I64)
        arena = self._allocate()
        for loop in plan.loops:
            self._run(loop)
        *_, status = plan.outputs
        bad = self.single(status).differs(0.0)
        self.code.lines.append(f"call void @free(ptr {arena})")
        self.code.lines.append(f"ret i64 {where(bad, bad.code.constant(_NOT_FINITE, I64), 0).text}")

    def __str__(self) -> str:
        code = self.code
        texts = {"entry": code.entry, "lines": code.lines, "declared": code.declared, "loops": self.loops}
        return _MODULE.format(**{name: "\n".join(lines) for name, lines in texts.items()})

    # Lengths and memory

    def _word(self, position: int, kind: str) -> Number:
        address = self.code.emit("ptr", f"getelementptr i64, ptr %data, i64 {position}")
        return self.code.emit(kind, f"load {kind}, ptr {address.text}")

    def size(self, axis: Axis) -> Number:
        """Return the length of an axis."""
        if axis.size is None:
            raise UnsupportedError("an array whose length nothing tells")
        return self.code.constant(axis.size, I64) if isinstance(axis.size, int) else self.lengths[axis.size]

    def _allocate(self) -> str:
        """Take memory for all arrays that are kept, at once."""
        end, places = self.code.constant(0, I64), {}
        for root in self.plan.roots:
            if root not in self.arrays:
                places[root] = end
                sizes = [self.size(axis) for axis in self.plan.axes(root) if axis]
                end = end + reduce(mul, sizes, self.code.constant(1, I64))
        arena = self.code.emit("ptr", f"call ptr @malloc(i64 {(end * 8).text})").text
        for root, place in places.items():
            address = self.code.emit("ptr", f"getelementptr double, ptr {arena}, i64 {place.text}")
            self.arrays[root] = (address.text, F64)
        return arena

    def _address(self, variable: Any, index: Index) -> str:
        address, kind = self.arrays[variable]
        offset = self.code.constant(0, I64)
        for axis, place in zip(self.plan.axes(variable), index, strict=True):
            if axis:
                offset = offset * self.size(axis) + (place or 0)
        return self.code.emit("ptr", f"getelementptr {kind}, ptr {address}, i64 {offset.text}").text

    def _load(self, variable: Any, index: Index) -> Number:
        kind = self.arrays[variable][1]
        found = self.code.emit(kind, f"load {kind}, ptr {self._address(variable, index)}{self.access}")
        return found.to(kind_of(variable.type.dtype))

    def _store(self, variable: Any, index: Index, value: Number) -> None:
        address = self._address(variable, index)
        self.code.lines.append(f"store double {value.to(F64).text}, ptr {address}{self.access}")

    # Values

    def value(self, variable: Any, index: Index) -> Number:
        """Return the value of a variable at an index, computed or loaded in place."""
        if self.plan.is_single(variable):
            return self.single(variable)
        axes = self.plan.axes(variable)
        index = tuple(self._place(place) if axis else None for axis, place in zip(axes, index, strict=True))
        if (variable, index) not in self.memo:
            self.memo[variable, index] = self._found(variable, index)
        return self.memo[variable, index]

    def single(self, variable: Any) -> Number:
        """Return a variable that is one number, computed before the loop."""
        if variable not in self.singles:
            memo, self.memo = self.memo, {}
            with self.code.at(self.outside):
                self.singles[variable] = self._found(variable, [None] * len(self.plan.axes(variable)))
            self.memo = memo
        return self.singles[variable]

    def _found(self, variable: Any, index: Index) -> Number:
        own = self.loop is not None and variable in self.loop.roots and is_kept(variable)
        if variable in self.arrays and not own:
            return self._load(variable, index)
        kind, node = kind_of(variable.type.dtype), variable.owner
        if node is None:
            return self.code.constant(variable.data.item(), kind)
        if isinstance(node.op, Shape_i):
            return self.size(self.plan.axes(node.inputs[0])[node.op.i])
        if isinstance(node.op, IncSubtensor):
            return self._changed(node, index)
        if isinstance(node.op, AdvancedSubtensor):
            (position, at), (table, (_, *rest)) = sources(node, index)
            return self.value(table, [self._position(position, at, table), *rest])
        if isinstance(node.op, VIEWS):
            return self.value(*sources(node, index)[0])
        return apply(node.op.scalar_op, kind, [self.value(v, index) for v in node.inputs])

    def _place(self, place: Any) -> Any:
        if isinstance(place, Shifted):
            return place.place + place.by if place.place else self.code.constant(place.by, I64)
        return place

    def _position(self, variable: Any, index: Index, table: Any) -> Number:
        """Return a place that data tell."""
        if variable.owner:
            raise UnsupportedError("a look-up by a computed index")
        axis = self.plan.axes(table)[0]
        if axis is None:
            raise UnsupportedError("a look-up in a single number")
        self.lookups.append((variable, axis))
        place = self.value(variable, index)
        return where(place < 0, place + self.size(axis), place)

    def _changed(self, node: Any, index: Index) -> Number:
        """Return an element of an array of which a part is set or increased."""
        (base, _), (added, own) = sources(node, index)
        old, inside = self.value(base, index), self.code.constant(1, I1)
        for part, place in zip(parts(node), index, strict=True):
            at = place or self.code.constant(0, I64)
            if isinstance(part, int):
                inside &= at.equals(part)
            elif part != slice(None):
                inside &= (at > part.start - 1) & (at < part.stop)
        new = self.value(
            added, [where(inside, self._place(p), 0) if isinstance(p, Shifted) else p for p in own]
        )
        return where(inside, new if node.op.set_instead_of_inc else old + new, old)

    # Loops

    @contextmanager
    def _repeated(self, length: Number, parallel: bool) -> Iterator[Number]:
        """Repeat what is emitted inside for 0, 1, 2, ... below a length, in any order if parallel."""
        n = next(self.code.names)
        self.code.lines.append(_LOOP.format(n=n, length=length.text))
        self.access = ", !llvm.access.group !4" if parallel else ""
        yield Number(self.code, I64, f"%i{n}")
        self.access = ""
        self.code.lines.append(_END.format(n=n, about=f", !llvm.loop !{n}" if parallel else ""))
        self.loops.append(f"!{n} = distinct !{{!{n}, !0, !1, !2, !3}}")

    @contextmanager
    def _elements(self, axes: Index, roots: Sequence[Any] = (), parallel: bool = True) -> Iterator[Index]:
        """Go through all elements of an array; numbers that this needs are computed before."""
        self.outside, self.memo = self.code.lines, {}
        lines: list[str] = []
        with self.code.at(lines), self._nest(axes, (), roots, parallel) as index:
            yield index
        self.code.lines += lines

    @contextmanager
    def _nest(self, axes: Index, index: Index, roots: Sequence[Any], parallel: bool) -> Iterator[Index]:
        if not any(axes):
            yield (*index, *axes)
        elif axes[0] is None:
            with self._nest(axes[1:], (*index, None), roots, parallel) as found:
                yield found
        else:
            inner = not any(axes[1:])
            totals = [root for root in roots if inner and len(index) in reduced(root.owner)]
            for root in totals:
                self.slots[root] = f"%total{next(self.code.names)}"
                self.code.entry.append(f"{self.slots[root]} = alloca double")
                self.code.lines.append(f"store double {self._identity(root).text}, ptr {self.slots[root]}")
            with (
                self._repeated(self.size(axes[0]), parallel and inner) as i,
                self._nest(axes[1:], (*index, i), roots, parallel) as found,
            ):
                yield found
            for root in totals:
                total = self.code.emit(F64, f"load double, ptr {self.slots.pop(root)}")
                self._combine(root, total, (*index, *[None] * len(axes)))

    def _run(self, loop: Loop) -> None:
        """Compute the roots of a loop."""
        for root in loop.roots:
            if not is_kept(root):
                with self._elements(self.plan.axes(root)) as index:
                    reduces = isinstance(root.owner.op, CAReduce)
                    first = self._identity(root) if reduces else self.value(root.owner.inputs[0], index)
                    self._store(root, index, first)
        self.loop = loop
        parallel = not isinstance(loop.roots[0].owner.op, AdvancedIncSubtensor)
        with self._elements(loop.axes, loop.roots, parallel) as index:
            for root in loop.roots:
                self._keep(root, index)
        self.loop = None

    def _keep(self, root: Any, index: Index) -> None:
        """Compute a root, or its part in a reduction, at an index of its loop."""
        if is_kept(root):
            self._store(root, index, self.value(root, index))
        elif isinstance(root.owner.op, CAReduce):
            self._combine(root, self.value(root.owner.inputs[0], index).to(F64), index)
        else:
            (position, at), (table, (_, *rest)), (added, place) = sources(root.owner, index)
            target = [self._position(position, at, table), *rest]
            new = self.value(added, place)
            self._store(
                root, target, new if root.owner.op.set_instead_of_inc else self._load(root, target) + new
            )

    def _identity(self, root: Any) -> Number:
        """Return what a reduction starts with."""
        name = type(root.owner.op.scalar_op).__name__
        if name not in _IDENTITY or kind_of(root.type.dtype) != F64:
            raise UnsupportedError(f"the reduction {root.owner.op}")
        return self.code.constant(_IDENTITY[name])

    def _combine(self, root: Any, value: Number, index: Index) -> None:
        """Combine a value with the total that it belongs to, in any order."""
        kept = [place for i, place in enumerate(index) if i not in reduced(root.owner)]
        address, access = self.slots.get(root), ""
        if address is None:
            address, access = self._address(root, kept), self.access
        total = self.code.emit(F64, f"load double, ptr {address}{access}")
        op = root.owner.op.scalar_op
        if isinstance(op, ps.Add | ps.Mul):
            name = f"f{type(op).__name__.lower()} reassoc contract"
            total = self.code.emit(F64, f"{name} double {total.text}, {value.text}")
        else:
            total = apply(op, F64, [total, value])
        self.code.lines.append(f"store double {total.text}, ptr {address}{access}")


def _machine() -> llvm.TargetMachine:
    """Return this computer as a target; what is compiled for it owns it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


class CompiledFunction:
    """A scalar function of a vector of known length, and its gradient, in machine code; all else is data.

    Raises UnsupportedError where the graph holds what is not compiled here.
    """

    def __init__(self, value: Any, gradient: Any, point: Any, data: Sequence[Any]) -> None:
        value, gradient = (pt.tensor_copy(output) for output in simplified([value, gradient]))
        not_finite = (gradient * 0.0).sum() + value * 0.0
        plan = Plan([value, gradient, not_finite])
        self._data = tuple(data)
        self._constants = {v: v.data for v in plan.constants if not plan.is_single(v)}
        outputs = {value: "%value", gradient: "%gradient"}
        self.emitter = _Emitter(plan, outputs, point, (*data, *self._constants))
        module = llvm.parse_assembly(str(self.emitter))
        machine = _machine()
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
        passes.getModulePassManager().run(module, passes)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self.address = self._engine.get_function_address("log_density")
        self.copy_address = self._engine.get_function_address("copy")
        pointer = ctypes.c_void_p
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, pointer, pointer, pointer, pointer)
        self.call = signature(self.address)

    def bind(self, values: Mapping[Any, Any]) -> BoundFunction:
        """Return the function of some data, by variable; their lengths must agree with each other."""
        arrays = {v: np.asarray(values[v]) for v in self._data} | self._constants
        axes = self.emitter.plan.axes

        def length(axis: Axis | None) -> int:
            size = 1 if axis is None else axis.size
            return size if isinstance(size, int) else arrays[size[0]].shape[size[1]]

        for variable, array in arrays.items():
            if array.shape != tuple(length(axis) for axis in axes(variable)):
                raise ValueError(f"{variable} has the shape {array.shape}, which other data contradict")
        for position, axis in self.emitter.lookups:
            if (
                not -length(axis)
                <= arrays[position].min(initial=0)
                <= arrays[position].max(initial=0)
                < length(axis)
            ):
                raise IndexError(f"{position} points outside of {length(axis)} elements")
        return BoundFunction(self, list(arrays.values()))


class BoundFunction:
    """A compiled function with its data; calls from several threads do not disturb each other."""

    def __init__(self, function: CompiledFunction, arrays: Sequence[NDArray[Any]]) -> None:
        self.function = function
        self.address, self.copy_address = function.address, function.copy_address
        self._arrays = [
            np.array(a, np.int64 if a.dtype.kind in "iub" else np.float64, order="C") for a in arrays
        ]
        words = [word for array in self._arrays for word in (array.ctypes.data, *array.shape)]
        self.user_data = np.array(words, dtype=np.int64)

    def __call__(self, point: Floats) -> tuple[float, Floats]:
        """Return value and gradient, dims (point.size,)."""
        point = np.ascontiguousarray(point, dtype=np.float64)
        found = np.empty(len(point) + 1)
        place = found.ctypes.data
        self.function.call(len(point), point.ctypes.data, place + 8, place, self.user_data.ctypes.data)
        return found[0], found[1:]
