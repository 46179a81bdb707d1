"""Machine code for a scalar function of a vector and its gradient, and data that are bound to it.

The function has the signature that nutpie asks of a log density:
``int64 f(uint64 dim, const double *x, double *gradient, double *value, const int64 *data)``; 0 is success.
`data` holds for each array its address and its shape: other data of the same ranks need no compilation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytensor.scalar as ps
from llvmlite import ir
from numpy.typing import NDArray
from pytensor.graph import Constant
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.shape import Shape_i
from pytensor.tensor.subtensor import AdvancedIncSubtensor, AdvancedSubtensor, IncSubtensor, Subtensor

from bayes_sched.arrays import Floats
from bayes_sched.compiler.arithmetic import F64, I1, I64, LANES, Arithmetic, UnsupportedError, kind_of
from bayes_sched.compiler.plan import (
    PASSED,
    SCATTERS,
    Axes,
    Axis,
    Loop,
    Plan,
    indices,
    is_store,
    reduced,
    simplified,
)

_NOT_FINITE = 4
_IDENTITY = {"Add": 0.0, "Mul": 1.0, "Maximum": -np.inf, "Minimum": np.inf}


@dataclass(frozen=True)
class _Index:
    """A place along an axis: a number, or where `lanes` consecutive ones begin, `step` elements apart."""

    value: Any
    lanes: int = 0
    step: int = 1


@dataclass
class _Array:
    """Numbers in memory, the last axis contiguous, with room for LANES more behind them."""

    pointer: Any
    axes: Axes
    kind: ir.Type


class _Emitter:
    """Emits the body of the function."""

    def __init__(self, plan: Plan, value: Any, gradient: Any, point: Any, data: Sequence[Any]) -> None:
        self.plan = plan
        self.module = ir.Module("graph")
        self.module.triple = llvm.get_process_triple()
        pointer = F64.as_pointer()
        signature = ir.FunctionType(I64, [I64, pointer, pointer, pointer, I64.as_pointer()])
        self.function = ir.Function(self.module, signature, "log_density")
        self.function.attributes.add("nounwind")
        self.entry = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.function.append_basic_block("body"))
        self.math = Arithmetic(self.builder)
        self.arrays: dict[Any, _Array] = {point: _Array(self.function.args[1], self.plan.axes(point), F64)}
        self.slots: dict[Any, Any] = {}
        self.singles: dict[Any, Any] = {}
        self.current: Loop | None = None
        self.memo: dict[Any, Any] = {}
        self._bind(data)
        self._allocate()
        for loop in self.plan.loops:
            self._run(loop)
        self._finish(value, gradient)

    # Data, lengths and memory

    def _bind(self, data: Sequence[Any]) -> None:
        """Read addresses and lengths of the data, in the order of :func:`_packed`."""
        self.lengths: dict[tuple[Any, int], Any] = {}
        position = 0
        for variable in data:
            kind = kind_of(variable.type.dtype)
            kind = F64 if kind == I1 else kind
            address = self._word(position)
            array = self.builder.inttoptr(address, kind.as_pointer())
            for i in range(variable.type.ndim):
                self.lengths[variable, i] = self._word(position + 1 + i)
            position += 1 + variable.type.ndim
            self.arrays[variable] = _Array(array, self.plan.axes(variable), kind)

    def _word(self, position: int) -> Any:
        return self.builder.load(self.builder.gep(self.function.args[4], [ir.Constant(I64, position)]))

    def size(self, axis: Axis | None) -> Any:
        """Return the length of an axis."""
        if axis is None:
            return ir.Constant(I64, 1)
        if axis.size is None:
            raise UnsupportedError("an array whose length nothing tells")
        return ir.Constant(I64, axis.size) if isinstance(axis.size, int) else self.lengths[axis.size]

    def _allocate(self) -> None:
        """Take memory for all arrays that are kept, at once."""
        offset: Any = ir.Constant(I64, 0)
        places = []
        for root in self.plan.roots:
            axes = self.plan.axes(root)
            if not any(axes):
                with self.builder.goto_entry_block():
                    self.slots[root] = self.builder.alloca(F64)
                continue
            if self._reuses(root):
                continue
            places.append((root, offset))
            count: Any = ir.Constant(I64, LANES)
            total: Any = ir.Constant(I64, 1)
            for axis in axes:
                total = self.builder.mul(total, self.size(axis))
            offset = self.builder.add(offset, self.builder.add(total, count))
        self.arena = None
        if places:
            malloc = ir.Function(self.module, ir.FunctionType(F64.as_pointer(), [I64]), "malloc")
            self.arena = self.builder.call(malloc, [self.builder.mul(offset, ir.Constant(I64, 8))])
        for root, place in places:
            self.arrays[root] = _Array(self.builder.gep(self.arena, [place]), self.plan.axes(root), F64)

    def _reuses(self, root: Any) -> bool:
        """Return whether a root may overwrite the array that it changes elements of, which nothing else needs."""
        if not isinstance(root.owner.op, IncSubtensor):
            return False
        base = root.owner.inputs[0]
        users = sum(base in node.inputs for node in self.plan.nodes) + (base in self.plan.outputs)
        return base in self.plan.roots and users == 1

    def _address(self, array: _Array, index: Sequence[_Index | None]) -> tuple[Any, _Index | None, Any]:
        """Return the address of an element, the index that has lanes, and the distance between lanes."""
        offset: Any = ir.Constant(I64, 0)
        stride: Any = ir.Constant(I64, 1)
        wide, distance = None, None
        for axis, place in zip(reversed(array.axes), reversed(index), strict=True):
            if axis is not None and place is not None:
                offset = self.builder.add(offset, self.builder.mul(place.value, stride))
                if place.lanes:
                    wide, distance = place, self.builder.mul(stride, ir.Constant(I64, place.step))
            stride = self.builder.mul(stride, self.size(axis))
        return self.builder.gep(array.pointer, [offset]), wide, distance

    def load(self, array: _Array, index: Sequence[_Index | None]) -> Any:
        """Load a number, or one for each lane."""
        address, wide, distance = self._address(array, index)
        if wide is None:
            return self.builder.load(address)
        if array.axes[-1] is not None and index[-1] is wide and wide.step == 1:
            return self._wide_load(address, array.kind)
        found = ir.Constant(ir.VectorType(array.kind, LANES), ir.Undefined)
        axis = array.axes[list(index).index(wide)]
        for lane in range(LANES):  # behind the last element there may be none: it is taken again
            place = self.builder.add(wide.value, ir.Constant(I64, lane * wide.step))
            last = self.builder.sub(self.size(axis), ir.Constant(I64, 1))
            place = self.builder.select(self.builder.icmp_signed("<", place, last), place, last)
            one = self.load(array, [_Index(place) if i is wide else i for i in index])
            found = self.builder.insert_element(found, one, ir.Constant(ir.IntType(32), lane))
        return found

    def _wide_load(self, address: Any, kind: ir.Type) -> Any:
        wide = ir.VectorType(kind, LANES).as_pointer()
        return self.builder.load(self.builder.bitcast(address, wide), align=8)

    def _store(self, value: Any, array: _Array, index: Sequence[_Index | None]) -> None:
        address, wide, _ = self._address(array, index)
        if wide is not None:
            value = self.math.spread(value, LANES)
            address = self.builder.bitcast(address, value.type.as_pointer())
        self.builder.store(value, address, align=8)

    # Values

    def single(self, variable: Any) -> Any:
        """Return a variable that is one number."""
        if variable not in self.singles:
            if variable in self.slots:
                self.singles[variable] = self.builder.load(self.slots[variable])
            else:
                memo, self.memo = self.memo, {}
                self.singles[variable] = self._computed(variable, (None,) * len(self.plan.axes(variable)))
                self.memo = memo
        return self.singles[variable]

    def value(self, variable: Any, index: Sequence[_Index | None]) -> Any:
        """Return the value of a variable at an index, computed or loaded in place."""
        if self.plan.is_single(variable):
            return self.single(variable)
        key = (variable, tuple(index))
        if key not in self.memo:
            own = self.current is not None and variable in self.current.roots and is_store(variable)
            kept = variable in self.arrays and not own
            found = self.load(self.arrays[variable], index) if kept else self._computed(variable, index)
            self.memo[key] = found
        return self.memo[key]

    def _computed(self, variable: Any, index: Sequence[_Index | None]) -> Any:
        kind = kind_of(variable.type.dtype)
        if isinstance(variable, Constant):
            return ir.Constant(kind, np.asarray(variable.data).item())
        node = variable.owner
        if node is None:
            return self.load(self.arrays[variable], index)
        op = node.op
        if isinstance(op, PASSED):
            return self.value(node.inputs[0], index)
        if kind == F64 and isinstance(op, Elemwise) and isinstance(op.scalar_op, ps.TrueDiv | ps.Reciprocal | ps.Pow):
            factors = _factors(variable)
            if factors:
                return reduce(self.math.mul, [x for v, power in factors for x in self._power(v, self._own(v, index), power)])
        if isinstance(op, Elemwise):
            values = [self.value(v, self._own(v, index)) for v in node.inputs]
            return self.math.apply(op.scalar_op, kind, values)
        if isinstance(op, DimShuffle):
            base: list[_Index | None] = [None] * node.inputs[0].type.ndim
            for i, place in zip(op.new_order, index, strict=True):
                if i != "x":
                    base[i] = place
            return self.value(node.inputs[0], base)
        if isinstance(op, Subtensor):
            return self.value(node.inputs[0], self._inside(node, index))
        if isinstance(op, Alloc):
            given = node.inputs[0]
            return self.value(given, self._own(given, list(index)[len(index) - given.type.ndim :]))
        if isinstance(op, Shape_i):
            return self.size(self.plan.axes(node.inputs[0])[op.i])
        if isinstance(op, AdvancedSubtensor):
            return self._looked_up(node, index)
        raise UnsupportedError(f"the operation {op}")

    def _reciprocals(self, variable: Any, index: Sequence[_Index | None]) -> list[Any]:
        """Return numbers whose product is the reciprocal of a variable: each factor of it is divided once."""
        single = self.plan.is_single(variable)
        factors = [] if single or variable in self.arrays else _factors(variable)
        if factors:
            return [r for v, power in factors for r in self._power(v, self._own(v, index), -power)]
        known = self.singles if single else self.memo
        key = (variable, "reciprocal") if single else (variable, tuple(index), "reciprocal")
        if key not in known:
            value = self.math.to(self.value(variable, index), F64)
            known[key] = self.math.div(self.math.number(1.0, value), value)
        return [known[key]]

    def _power(self, variable: Any, index: Sequence[_Index | None], power: int) -> list[Any]:
        """Return numbers whose product is a variable to an integer power."""
        if power > 0:
            return [self.math.to(self.value(variable, index), F64)] * power
        return self._reciprocals(variable, index) * -power

    def _own(self, variable: Any, index: Sequence[_Index | None]) -> list[_Index | None]:
        axes = self.plan.axes(variable)
        return [place if axis is not None else None for axis, place in zip(axes, index, strict=True)]

    def _inside(self, node: Any, index: Sequence[_Index | None]) -> list[_Index | None]:
        """Return the index into an array that stands for an index into a part of it."""
        given = iter(index)
        places: list[_Index | None] = []
        for part, axis in zip(indices(node), self.plan.axes(node.inputs[0]), strict=True):
            if not isinstance(part, slice):
                start = self._from_end(part, axis)
                places.append(_Index(start) if axis else None)
                continue
            place = next(given)
            if place is None and axis is not None:  # a stretch of one element
                place = _Index(ir.Constant(I64, 0))
            if place is not None and part != slice(None):
                step = part.step or 1
                value = self.builder.mul(place.value, ir.Constant(I64, step))
                value = self.builder.add(value, self._from_end(part.start or 0, axis))
                place = _Index(value, place.lanes, place.step * step)
            places.append(place)
        return places

    def _from_end(self, position: int, axis: Axis | None) -> Any:
        constant = ir.Constant(I64, position)
        return constant if position >= 0 else self.builder.add(self.size(axis), constant)

    def _looked_up(self, node: Any, index: Sequence[_Index | None]) -> Any:
        table, where = node.inputs
        if where.owner is not None:
            raise UnsupportedError("a look-up by a computed index")
        rank = where.type.ndim
        position = self.value(where, self._own(where, index[:rank]))
        if table not in self.arrays:
            raise UnsupportedError("a look-up in a single number")
        array = self.arrays[table]
        rest = list(index[rank:])
        lanes = getattr(position.type, "count", 0)
        if any(place is not None and place.lanes for place in rest):
            if lanes:
                raise UnsupportedError("a look-up with lanes in two axes")
            return self.load(array, [_Index(position), *rest])
        if not lanes:
            return self.load(array, [_Index(position), *rest])
        found = ir.Constant(ir.VectorType(array.kind, lanes), ir.Undefined)
        for lane in range(lanes):
            place = ir.Constant(ir.IntType(32), lane)
            one = self.load(array, [_Index(self.builder.extract_element(position, place)), *rest])
            found = self.builder.insert_element(found, one, place)
        return found

    # Loops

    @contextmanager
    def _loop(self, count: Any, step: int = 1) -> Iterator[Any]:
        """Repeat what is emitted inside for 0, step, 2 step, ... below `count`."""
        before = self.builder.block
        head = self.function.append_basic_block("head")
        body = self.function.append_basic_block("loop")
        after = self.function.append_basic_block("after")
        self.builder.branch(head)
        self.builder.position_at_end(head)
        i = self.builder.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), before)
        self.builder.cbranch(self.builder.icmp_signed("<", i, count), body, after)
        self.builder.position_at_end(body)
        yield i
        following = self.builder.add(i, ir.Constant(I64, step))
        i.add_incoming(following, self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(after)

    def _run(self, loop: Loop) -> None:
        """Compute the roots of a loop."""
        for root in loop.roots:
            for variable in self.plan.inlined(root):  # numbers are computed before the loop
                if self.plan.is_single(variable):
                    self.single(variable)
                    if variable.type.dtype == "float64":
                        self._reciprocals(variable, (None,) * variable.type.ndim)
        op = loop.roots[0].owner.op
        if isinstance(op, SCATTERS):
            self._assemble(loop.roots[0])
            return
        for root in loop.roots:
            if not is_store(root):
                self._clear(root)
        self.current, self.memo = loop, {}
        self._nest(loop, loop.axes, [])
        self.current, self.memo = None, {}

    def _nest(self, loop: Loop, axes: Axes, index: list[_Index | None]) -> None:
        if not axes:
            for root in loop.roots:
                self._keep(root, index, {}, None)
            return
        if len(axes) > 1:
            if axes[0] is None:
                self._nest(loop, axes[1:], [*index, None])
                return
            with self._loop(self.size(axes[0])) as i:
                self._nest(loop, axes[1:], [*index, _Index(i)])
            return
        if axes[0] is None:
            for root in loop.roots:
                self._keep(root, [*index, None], {}, None)
            return
        last = len(index)
        totals = {}
        for root in loop.roots:
            if not is_store(root) and last in reduced(root.owner):
                with self.builder.goto_entry_block():
                    totals[root] = self.builder.alloca(ir.VectorType(F64, LANES))
                name = type(root.owner.op.scalar_op).__name__
                self.builder.store(self.math.spread(ir.Constant(F64, _IDENTITY[name]), LANES), totals[root])
        count = self.size(axes[0])
        with self._loop(count, LANES) as i:
            lanes = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
            inside = self.builder.icmp_signed(
                "<", self.builder.add(self.math.spread(i, LANES), lanes), self.math.spread(count, LANES)
            )
            for root in loop.roots:
                self._keep(root, [*index, _Index(i, LANES)], totals, inside)
        for root, total in totals.items():
            found = self.builder.load(total)
            one = self.builder.extract_element(found, ir.Constant(ir.IntType(32), 0))
            for lane in range(1, LANES):
                one = self._combined(
                    root, one, self.builder.extract_element(found, ir.Constant(ir.IntType(32), lane))
                )
            self._accumulate(root, one, index)

    def _keep(self, root: Any, index: list[_Index | None], totals: Mapping[Any, Any], inside: Any) -> None:
        """Compute a root at an index of its loop and keep what it is part of."""
        if is_store(root):
            value = self.math.to(self.value(root, self._own(root, index)), F64)
            if root in self.slots:
                self.builder.store(value, self.slots[root])
            else:
                self._store(value, self.arrays[root], self._own(root, index))
            return
        source = root.owner.inputs[0]
        value = self.math.to(self.value(source, self._own(source, index)), F64)
        if inside is not None:
            name = type(root.owner.op.scalar_op).__name__
            value = self.math.spread(value, LANES)
            value = self.math.select(inside, value, self.math.number(_IDENTITY[name], value))
        if root in totals:
            before = self.builder.load(totals[root])
            self.builder.store(self._combined(root, before, value), totals[root])
        else:
            self._accumulate(root, value, index)

    def _accumulate(self, root: Any, value: Any, index: Sequence[_Index | None]) -> None:
        """Combine a value with the element of a reduction's result that it belongs to."""
        gone = reduced(root.owner)
        kept = [place for i, place in enumerate(index) if i not in gone]
        if root in self.slots:
            slot = self.slots[root]
            self.builder.store(self._combined(root, self.builder.load(slot), value), slot)
        else:
            before = self.load(self.arrays[root], kept)
            self._store(self._combined(root, before, value), self.arrays[root], kept)

    def _combined(self, root: Any, a: Any, b: Any) -> Any:
        return self.math.apply(root.owner.op.scalar_op, F64, [a, b])

    def _clear(self, root: Any) -> None:
        name = type(root.owner.op.scalar_op).__name__
        if name not in _IDENTITY or kind_of(root.type.dtype) != F64:
            raise UnsupportedError(f"the reduction {root.owner.op}")
        start = ir.Constant(F64, _IDENTITY[name])
        if root in self.slots:
            self.builder.store(start, self.slots[root])
        else:
            self._fill(self.arrays[root], lambda _: start)

    def _fill(self, array: _Array, value: Any) -> None:
        """Set every element of an array of our own, by lanes and rows."""

        def rows(axes: Axes, index: list[_Index | None]) -> None:
            if not axes:
                self._store(value(index), array, index)
            elif axes[0] is None:
                rows(axes[1:], [*index, None])
            else:
                lanes = LANES if len(axes) == 1 else 0
                with self._loop(self.size(axes[0]), lanes or 1) as i:
                    rows(axes[1:], [*index, _Index(i, lanes)])

        rows(array.axes, [])

    def _assemble(self, root: Any) -> None:
        """Compute an array from parts, or from another array of which elements are changed."""
        node = root.owner
        self.memo = {}
        base = node.inputs[0]
        if self._reuses(root):
            self.arrays[root] = self.arrays[base]
        else:
            self._fill(self.arrays[root], lambda index: self._fresh(base, index))
        array, added = self.arrays[root], node.inputs[1]
        combine = (lambda old, new: new) if node.op.set_instead_of_inc else self.math.add

        def change(index: Sequence[_Index | None], value: Any) -> None:
            value = self.math.to(value, F64)
            self._store(combine(self.load(array, index), value), array, index)

        if isinstance(node.op, AdvancedIncSubtensor):
            where = node.inputs[2]
            if where.owner is not None or where.type.ndim != 1:
                raise UnsupportedError("elements changed at a computed index")
            with self._rows((self.plan.axes(where)[0], *array.axes[1:])) as index:
                place = self.load(self.arrays[where], [index[0]])
                own = list(index)[len(index) - added.type.ndim :]
                change([_Index(place), *index[1:]], self._fresh(added, self._own(added, own)))
            return
        sizes = self._stretches(node)
        with self._rows(sizes) as index:
            own = list(index)[len(index) - added.type.ndim :] if added.type.ndim else []
            change(self._inside(node, index), self._fresh(added, self._own(added, own)))

    def _fresh(self, variable: Any, index: Sequence[_Index | None]) -> Any:
        """Return a value that is computed here and not remembered from another place."""
        self.memo = {}
        return self.value(variable, self._own(variable, index))

    def _stretches(self, node: Any) -> Axes:
        """Return the axes of the part of an array that is changed."""
        found: list[Axis | None] = []
        array = node.inputs[0]
        for part, axis, size in zip(indices(node), self.plan.axes(array), array.type.shape, strict=True):
            if isinstance(part, slice):
                if part == slice(None) or axis is None:
                    found.append(axis)
                elif isinstance(size, int) or (part.stop or -1) > 0:
                    length = size if isinstance(size, int) else part.stop
                    found.append(Axis(len(range(*part.indices(length)))))
                else:
                    raise UnsupportedError("a stretch of unknown length")
        return tuple(found)

    @contextmanager
    def _rows(self, axes: Axes) -> Iterator[list[_Index | None]]:
        """Go through all elements one by one."""
        if not axes:
            yield []
        elif axes[0] is None:
            with self._rows(axes[1:]) as rest:
                yield [None, *rest]
        else:
            with self._loop(self.size(axes[0])) as i, self._rows(axes[1:]) as rest:
                yield [_Index(i), *rest]

    def _finish(self, value: Any, gradient: Any) -> None:
        """Write the results, give memory back, and tell whether all are finite."""
        b = self.builder
        result = self.math.to(self.single(value), F64)
        b.store(result, self.function.args[3])
        with self.builder.goto_entry_block():
            finite = b.alloca(F64)
        zero = ir.Constant(F64, 0.0)
        b.store(b.fmul(result, zero), finite)
        self.memo = {}
        with self._rows(self.plan.axes(gradient)) as index:
            found = self.math.to(self.value(gradient, index), F64)
            place = [index[0].value] if index[0] else [ir.Constant(I64, 0)]
            b.store(found, b.gep(self.function.args[2], place))
            b.store(b.fadd(b.load(finite), b.fmul(found, zero)), finite)
        if self.arena is not None:
            free = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [F64.as_pointer()]), "free")
            b.call(free, [self.arena])
        bad = b.fcmp_unordered("!=", b.load(finite), zero)
        b.ret(b.select(bad, ir.Constant(I64, _NOT_FINITE), ir.Constant(I64, 0)))
        ir.IRBuilder(self.entry).branch(self.function.basic_blocks[1])


def _factors(variable: Any) -> list[tuple[Any, int]]:
    """Return the factors of a product, a quotient or an integer power, with their powers; none for others."""
    if variable.owner is None or not isinstance(variable.owner.op, Elemwise):
        return []
    op, inputs = variable.owner.op.scalar_op, variable.owner.inputs
    if isinstance(op, ps.Mul):
        return [(v, 1) for v in inputs]
    if isinstance(op, ps.TrueDiv):
        return [(inputs[0], 1), (inputs[1], -1)]
    if isinstance(op, ps.Pow) and isinstance(inputs[1], Constant) and inputs[1].data.size == 1:
        power = inputs[1].data.item()
        return [(inputs[0], int(power))] if power in (-3, -2, -1, 1, 2, 3) else []
    power = {ps.Sqr: 2, ps.Reciprocal: -1}.get(type(op))
    return [(inputs[0], power)] if power else []


def _emit_copy(module: ir.Module) -> None:
    """Emit the function by which nutpie asks for what a draw stands for: a copy of it."""
    pointer = F64.as_pointer()
    signature = ir.FunctionType(I64, [I64, I64, pointer, pointer, pointer])
    function = ir.Function(module, signature, "copy")
    count, _, source, target, _ = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    memcpy = ir.Function(module, ir.FunctionType(pointer, [pointer, pointer, I64]), "memcpy")
    builder.call(memcpy, [target, source, builder.mul(count, ir.Constant(I64, 8))])
    builder.ret(ir.Constant(I64, 0))


def _machine() -> llvm.TargetMachine:
    """Return this computer as a target; what is compiled for it owns it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


class CompiledFunction:
    """A scalar function of a vector and its gradient, in machine code.

    Parameters
    ----------
    value : TensorVariable
        The function, a scalar expression.
    gradient : TensorVariable
        Its gradient, dims as `point`.
    point : TensorVariable
        The vector, of known length.
    data : sequence of SharedVariable
        All other inputs.

    Raises
    ------
    UnsupportedError
        The graph holds an operation that is not compiled here.
    """

    def __init__(self, value: Any, gradient: Any, point: Any, data: Sequence[Any]) -> None:
        value, gradient = simplified([value, gradient])
        plan = Plan([value, gradient])
        self.data = tuple(data)
        constants = {
            v for node in plan.nodes for v in node.inputs if isinstance(v, Constant) and not plan.is_single(v)
        }
        self._constants = {v: np.asarray(v.data) for v in sorted(constants, key=str)}
        self.emitter = _Emitter(plan, value, gradient, point, (*self.data, *self._constants))
        _emit_copy(self.emitter.module)
        module = llvm.parse_assembly(str(self.emitter.module))
        machine = _machine()
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
        passes.getModulePassManager().run(module, passes)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self.address = self._engine.get_function_address("log_density")
        self.copy_address = self._engine.get_function_address("copy")
        pointer = ctypes.c_void_p
        self.call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, pointer, pointer, pointer, pointer)(
            self.address
        )

    def bind(self, values: Mapping[Any, Any]) -> BoundFunction:
        """Return the function of some data, by variable."""
        return BoundFunction(self, [values[v] for v in self.data] + list(self._constants.values()))


class BoundFunction:
    """A compiled function with its data; calls from several threads do not disturb each other."""

    def __init__(self, function: CompiledFunction, arrays: Sequence[NDArray[Any]]) -> None:
        self.function = function
        self.address, self.copy_address = function.address, function.copy_address
        self._arrays = [_padded(np.asarray(array)) for array in arrays]
        words = [
            word
            for array, padded in zip(arrays, self._arrays, strict=True)
            for word in (padded.ctypes.data, *np.shape(array))
        ]
        self.user_data = np.array(words, dtype=np.int64)

    def __call__(self, point: Floats) -> tuple[float, Floats]:
        """Return value and gradient, dims (point.size,)."""
        point = np.ascontiguousarray(point, dtype=np.float64)
        found = np.empty(len(point) + 1)
        place = found.ctypes.data
        self.function.call(len(point), point.ctypes.data, place + 8, place, self.user_data.ctypes.data)
        return found[0], found[1:]


def _padded(array: NDArray[Any]) -> NDArray[Any]:
    """Return the numbers of an array one behind the other, with room behind them."""
    kind = np.int64 if array.dtype.kind in "iu" else np.float64
    return np.concatenate([array.astype(kind).ravel(), np.zeros(LANES, dtype=kind)])
