"""What a graph computes in which loop: its axes, what has to be kept in memory, and an order.

Most nodes are *inlined*: an elementwise operation, a look-up or a view is computed wherever its value is needed,
inside the loop that needs it. *Roots* are computed once: reductions, what other elements are scattered into, and
what is needed at other places than where it is computed. Roots of the same axes that do not wait for each other
share one loop, with everything that they have in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytensor.scalar as ps
import pytensor.tensor as pt
from pytensor.graph import Constant, FunctionGraph, rewrite_graph
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.graph.traversal import io_toposort
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor.basic import Alloc, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import Shape_i, SpecifyShape
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
    indices_from_subtensor,
)

from bayes_sched.compiler.arithmetic import UnsupportedError

PASSED = (CheckAndRaise, SpecifyShape, ScalarFromTensor, TensorFromScalar)
"""Operations whose result is their first input."""
SCATTERS = (AdvancedIncSubtensor, IncSubtensor)
_ROOTS = (CAReduce, *SCATTERS)
_CHEAP = (ps.Add, ps.Sub, ps.Mul, ps.Neg, ps.Sqr, ps.Cast, ps.Second, ps.Switch, ps.LogicalComparison, ps.Abs)
_REWRITES = ("canonicalize", "stabilize", "specialize", "uncanonicalize", "fast_run")
_NOT_REWRITTEN = (
    "cxx_only",
    "fusion",
    "inplace",
    "BlasOpt",
    "local_careduce_fusion",
    "symbolic_op_recognition",
    "local_pow_to_nested_squaring",
)


class Axis:
    """The axes of arrays that have the same length, whatever that is."""

    def __init__(self, size: Any = None) -> None:
        self._parent: Axis | None = None
        self._size = size

    @property
    def root(self) -> Axis:
        """The axis that stands for all of them."""
        return self if self._parent is None else self._parent.root

    @property
    def size(self) -> Any:
        """A number, or the (variable, axis) of data that has it; None where nothing tells."""
        return self.root._size

    def join(self, other: Axis) -> None:
        """Let both have the same length; data tell it rather than a number."""
        one, two = self.root, other.root
        if one is two:
            return
        if isinstance(one._size, int) and isinstance(two._size, int) and one._size != two._size:
            raise UnsupportedError(f"axes of {one._size} and {two._size} elements in one operation")
        if one._size is None or (isinstance(one._size, int) and two._size is not None):
            one._size = two._size
        two._parent = one


type Axes = tuple[Axis | None, ...]
"""The axes of an array; None where its one element is broadcast."""


@node_rewriter([Dot])
def _dot_as_sum(_: Any, node: Any) -> Any:
    """Write a product of vectors and matrices as a sum of products."""
    a, b = node.inputs
    if a.type.ndim == 1:
        return [(a * b).sum()] if b.type.ndim == 1 else [(a[:, None] * b).sum(axis=0)]
    return [(a * b).sum(axis=1)] if b.type.ndim == 1 else [(a[:, :, None] * b).sum(axis=1)]


def simplified(outputs: Sequence[Any]) -> list[Any]:
    """Return outputs after PyTensor's own simplifications, without those for its compilers."""
    without_dot = in2out(_dot_as_sum, name="dot_as_sum")
    graph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False)
    without_dot.rewrite(graph)
    return list(rewrite_graph(graph, include=_REWRITES, exclude=_NOT_REWRITTEN).outputs)


@dataclass
class Loop:
    """Roots that one nest of loops computes."""

    stage: int
    axes: Axes
    roots: list[Any] = field(default_factory=list)


class Plan:
    """The order in which a graph's roots are computed."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        self.outputs = list(outputs)
        self._axes: dict[Any, Axes] = {}
        used = self._used()
        self.nodes = [node for node in io_toposort([], self.outputs) if node.outputs[0] in used]
        for node in self.nodes:
            self._unify(node)
        self.roots: dict[Any, None] = dict.fromkeys(self._first_roots())
        self.loops = self._loops()
        # What is dear and needed in several loops is kept, too.
        users: dict[Any, set[int]] = defaultdict(set)
        for number, loop in enumerate(self.loops):
            for root in loop.roots:
                for variable in self.inlined(root):
                    users[variable].add(number)
        self.roots |= dict.fromkeys(v for v, found in users.items() if len(found) > 1 and self._is_dear(v))
        self.loops = self._loops()

    def _used(self) -> set[Any]:
        """Return the variables whose values count, without those that only tell lengths."""
        used, waiting = set(self.outputs), list(self.outputs)
        while waiting:
            new = [v for v in parents(waiting.pop()) if v not in used]
            used.update(new)
            waiting += new
        return used

    def axes(self, variable: Any) -> Axes:
        """Return the axes of a variable."""
        if variable not in self._axes:
            shape = getattr(variable.type, "shape", ())
            if isinstance(variable, Constant):
                shape = getattr(variable.data, "shape", ())
            constant = isinstance(variable, Constant) or variable.owner is not None
            self._axes[variable] = tuple(
                None if n == 1 else Axis(n if constant or n is not None else (variable, i))
                for i, n in enumerate(shape)
            )
        return tuple(axis and axis.root for axis in self._axes[variable])

    def is_single(self, variable: Any) -> bool:
        """Return whether a variable is one number, whatever its rank."""
        return not any(self.axes(variable))

    def _unify(self, node: Any) -> None:
        """Let the axes of a node's inputs and output know each other."""
        op, out = node.op, node.outputs[0]
        own = self.axes(out)
        if isinstance(op, (Elemwise, *PASSED)):
            for variable in node.inputs[: None if isinstance(op, Elemwise) else 1]:
                _join(self.axes(variable), own)
        elif isinstance(op, DimShuffle):
            _join([self.axes(node.inputs[0])[i] if i != "x" else None for i in op.new_order], own)
        elif isinstance(op, CAReduce):
            _join([a for i, a in enumerate(self.axes(node.inputs[0])) if i not in reduced(node)], own)
        elif isinstance(op, Subtensor):
            kept = [
                axis
                for axis, index in zip(self.axes(node.inputs[0]), indices(node), strict=True)
                if isinstance(index, slice)
            ]
            for axis, index, mine in zip(
                kept, (i for i in indices(node) if isinstance(i, slice)), own, strict=True
            ):
                if index == slice(None) and axis and mine:
                    axis.join(mine)
                elif mine and mine.size is None:
                    raise UnsupportedError(f"{op}: a stretch of unknown length")
        elif isinstance(op, AdvancedSubtensor):
            _join((*self.axes(node.inputs[1]), *self.axes(node.inputs[0])[1:]), own)
        elif isinstance(op, AdvancedIncSubtensor):
            target, added, index = (self.axes(v) for v in node.inputs)
            _join(target, own)
            _join(added, (*index, *target[1:])[-len(added) :] if added else ())
        elif isinstance(op, IncSubtensor):
            _join(self.axes(node.inputs[0]), own)
        elif isinstance(op, Alloc):
            for axis, size in zip(own, node.inputs[1:], strict=True):
                if axis and (found := self._length(size)) is not None:
                    axis.join(found)
            value = self.axes(node.inputs[0])
            _join(value, own[len(own) - len(value) :])
        elif not isinstance(op, Shape_i):
            raise UnsupportedError(f"the operation {op}")
        if isinstance(op, (AdvancedSubtensor, AdvancedIncSubtensor)) and op.idx_list != (0,):
            raise UnsupportedError(f"{op}: a look-up by more than one index")

    def _length(self, size: Any) -> Axis | None:
        """Return the axis whose length a number is, where that can be told."""
        if isinstance(size, Constant):
            return Axis(int(size.data))
        if size.owner is None:
            return None
        if isinstance(size.owner.op, PASSED):
            return self._length(size.owner.inputs[0])
        if isinstance(size.owner.op, Shape_i):
            return self.axes(size.owner.inputs[0])[size.owner.op.i]
        return None

    def _first_roots(self) -> Iterator[Any]:
        for node in self.nodes:
            if isinstance(node.op, _ROOTS):
                yield node.outputs[0]
            if isinstance(node.op, AdvancedSubtensor) and node.inputs[0].owner is not None:
                yield node.inputs[0]
            if isinstance(node.op, AdvancedIncSubtensor):
                yield from (v for v in node.inputs if v.owner is not None and not self.is_single(v))
        yield from (v for v in self.outputs if not self.is_single(v))

    def _is_dear(self, variable: Any) -> bool:
        if variable.owner is None or self.is_single(variable):
            return False
        op = variable.owner.op
        return isinstance(op, AdvancedSubtensor) or (
            isinstance(op, Elemwise) and not isinstance(op.scalar_op, _CHEAP)
        )

    def loop_axes(self, root: Any) -> Axes:
        """Return the axes of the loops in which a root is computed."""
        node = root.owner
        if isinstance(node.op, CAReduce):
            return self.axes(node.inputs[0])
        return self.axes(root)

    def inlined(self, root: Any) -> Iterator[Any]:
        """Return what the loop of a root computes for it, up to other roots and to single numbers."""
        seen: set[Any] = set()
        waiting = [root]
        while waiting:
            for parent in parents(waiting.pop()):
                if parent not in seen:
                    seen.add(parent)
                    yield parent
                    if parent not in self.roots and not self.is_single(parent):
                        waiting.append(parent)

    def needed(self, root: Any) -> Iterator[tuple[Any, bool]]:
        """Return the roots that a root needs, and whether at the same place alone, so that a loop may be shared."""
        seen: set[tuple[Any, bool]] = set()
        waiting = [(root, True)]
        while waiting:
            variable, aligned = waiting.pop()
            keeps = isinstance(variable.owner.op, (Elemwise, CAReduce, *PASSED))
            for parent in parents(variable):
                state = (parent, aligned and keeps)
                if parent.owner is None or state in seen:
                    continue
                seen.add(state)
                if parent in self.roots:
                    yield state
                else:
                    waiting.append(state)

    def _loops(self) -> list[Loop]:
        """Return loops in the order in which they run."""
        stage: dict[Any, int] = {}
        found: dict[Any, Loop] = {}
        for node in self.nodes:
            root = node.outputs[0]
            if root not in self.roots:
                continue
            axes = self.loop_axes(root)
            stage[root] = 0
            for other, aligned in self.needed(root):
                shared = aligned and is_store(other) and not isinstance(node.op, SCATTERS)
                waits = not (shared and self.loop_axes(other) == axes)
                stage[root] = max(stage[root], stage[other] + waits)
            alone = isinstance(node.op, SCATTERS)
            key = (root,) if alone else (stage[root], axes)
            found.setdefault(key, Loop(stage[root], axes)).roots.append(root)
        return sorted(found.values(), key=lambda loop: loop.stage)


def parents(variable: Any) -> Sequence[Any]:
    """Return the variables that a variable's value is computed from."""
    node = variable.owner
    if node is None or isinstance(node.op, Shape_i):
        return ()
    if isinstance(node.op, (*PASSED, Alloc)):
        return node.inputs[:1]
    if isinstance(node.op, IncSubtensor):
        return node.inputs[:2]
    if isinstance(node.op, Subtensor):
        return node.inputs[:1]
    return node.inputs


def is_store(root: Any) -> bool:
    """Return whether a root is an inlined expression whose values are kept."""
    return not isinstance(root.owner.op, _ROOTS)


def reduced(node: Any) -> tuple[int, ...]:
    """Return the axes over which a reduction goes."""
    axis = node.op.axis
    return tuple(range(node.inputs[0].type.ndim)) if axis is None else tuple(axis)


def indices(node: Any) -> list[Any]:
    """Return an integer or a slice of integers for each axis of what a node takes a part of."""
    first = 1 if isinstance(node.op, Subtensor) else 2
    found = [_plain(index) for index in indices_from_subtensor(node.inputs[first:], node.op.idx_list)]
    return found + [slice(None)] * (node.inputs[0].type.ndim - len(found))


def _plain(index: Any) -> Any:
    if isinstance(index, slice):
        start, stop, step = (None if i is None else _plain(i) for i in (index.start, index.stop, index.step))
        if step is not None and step < 1:
            raise UnsupportedError("a stretch taken backwards")
        return slice(start or None, stop, None if step == 1 else step)
    if isinstance(index, int):
        return index
    if isinstance(index, Constant) or hasattr(index, "data"):
        return int(index.data)
    raise UnsupportedError("a part of an array that is not known beforehand")


def _join(some: Iterable[Axis | None], others: Iterable[Axis | None]) -> None:
    """Join axes pairwise where neither is broadcast."""
    for one, two in zip(some, others, strict=True):
        if one and two:
            one.join(two)
