"""What a graph computes in which loop: its axes, what is kept in memory, and an order.

Most variables are *inlined*: computed wherever their value is needed, inside the loop that needs it. *Roots*
are computed once and kept: reductions, what is scattered, outputs, and what is needed at other places than
where it is computed. Roots of the same axes that do not wait for each other share one loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytensor.scalar as ps
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

_PASSED = (CheckAndRaise, SpecifyShape, ScalarFromTensor, TensorFromScalar)
VIEWS = (*_PASSED, Alloc, DimShuffle, Subtensor)
"""Operations whose elements are those of their first input."""
_CHEAP = (ps.Add, ps.Sub, ps.Mul, ps.Neg, ps.Sqr, ps.Cast, ps.Second, ps.Switch, ps.LogicalComparison, ps.Abs)
_REWRITES = ("ShapeOpt", "canonicalize", "stabilize", "specialize")
_NOT_REWRITTEN = (
    *(
        "symbolic_op_recognition",
        "local_pow_to_nested_squaring",
        "cxx_only",
    ),  # what is for C, or for one loop
    "local_greedy_distributor",  # slow, and nothing is gained
)


class Axis:
    """Axes of one length: a number, the (variable, axis) of data that has it, or None where nothing tells."""

    def __init__(self, size: Any = None) -> None:
        self._same = self
        self._size = size

    @property
    def root(self) -> Axis:
        """The axis that stands for all of them."""
        return self if self._same is self else self._same.root

    @property
    def size(self) -> Any:
        """The length."""
        return self.root._size

    def join(self, other: Axis) -> None:
        """Let both have the same length; data tell it rather than a number."""
        one, two = self.root, other.root
        if isinstance(one._size, int) and isinstance(two._size, int) and one._size != two._size:
            raise UnsupportedError(f"axes of {one._size} and {two._size} elements in one operation")
        if one._size is None or (isinstance(one._size, int) and two._size is not None):
            one._size = two._size
        two._same = one


@dataclass(frozen=True)
class Shifted:
    """A place `by` elements behind another one, or behind the first."""

    place: Any
    by: int


type Index = Sequence[Any]
"""For each axis of an array an Axis or a place along it; None where its one element is broadcast."""


def _dot_as_sum(_: Any, node: Any) -> Any:
    """Write a product of vectors and matrices as a sum of products."""
    a, b = node.inputs
    if a.type.ndim == 1:
        return [(a * b).sum()] if b.type.ndim == 1 else [(a[:, None] * b).sum(axis=0)]
    return [(a * b).sum(axis=1)] if b.type.ndim == 1 else [(a[:, :, None] * b).sum(axis=1)]


def simplified(outputs: Sequence[Any]) -> list[Any]:
    """Return outputs after PyTensor's own simplifications, without those for its compilers."""
    graph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False)
    in2out(node_rewriter([Dot])(_dot_as_sum), name="dot_as_sum").rewrite(graph)
    return list(rewrite_graph(graph, include=_REWRITES, exclude=_NOT_REWRITTEN).outputs)


def parts(node: Any) -> list[int | slice]:
    """Return the place or the stretch of each axis that a node takes of its first input."""
    op, shape = node.op, node.inputs[0].type.shape
    unknown = UnsupportedError(f"{op}: a part of an array that is not known beforehand")
    indices = node.inputs[1 if isinstance(op, Subtensor) else 2 :]
    if not all(isinstance(index, Constant) for index in indices):
        raise unknown
    given = indices_from_subtensor([int(index.data) for index in indices], op.idx_list)
    found: list[int | slice] = []
    for part, length in zip([*given, *[slice(None)] * (len(shape) - len(given))], shape, strict=True):
        if length is None:
            if part != slice(None) and not (isinstance(part, int) and part >= 0):
                raise unknown
            found.append(part)
        elif isinstance(part, int):
            found.append(part % length)
        else:
            start, stop, step = part.indices(length)
            if step != 1:
                raise UnsupportedError(f"{op}: a stretch with steps")
            found.append(slice(None) if (start, stop) == (0, length) else slice(start, stop))
    return found


def sources(node: Any, index: Index) -> list[tuple[Any, Index]]:
    """Return the variables, and where, that a node needs at an index of its loop; None where data tell it."""
    op, inputs = node.op, node.inputs
    if isinstance(op, (Elemwise, CAReduce)):
        return [(variable, index) for variable in inputs]
    if isinstance(op, (*_PASSED, Alloc)):
        return [(inputs[0], index[len(index) - inputs[0].type.ndim :])]
    if isinstance(op, DimShuffle):
        places = dict(zip(op.new_order, index, strict=True))
        return [(inputs[0], [places.get(i) for i in range(inputs[0].type.ndim)])]
    if isinstance(op, Subtensor):
        given = iter(index)
        return [(inputs[0], [_within(part, given) for part in parts(node)])]
    if isinstance(op, IncSubtensor):
        stretches = [
            (part, place) for part, place in zip(parts(node), index, strict=True) if isinstance(part, slice)
        ]
        own = [place if part == slice(None) else Shifted(place, -part.start) for part, place in stretches]
        return [(inputs[0], index), (inputs[1], own[len(own) - inputs[1].type.ndim :])]
    if isinstance(op, (AdvancedSubtensor, AdvancedIncSubtensor)):
        position = inputs[-1]
        if op.idx_list != (0,):
            raise UnsupportedError(f"{op}: a look-up by more than one index")
        rank = position.type.ndim
        table = (inputs[0], [None, *index[rank:]])
        if isinstance(op, AdvancedSubtensor):
            return [(position, index[:rank]), table]
        return [(position, index[:rank]), table, (inputs[1], index[len(index) - inputs[1].type.ndim :])]
    if isinstance(op, Shape_i):
        return []
    raise UnsupportedError(f"the operation {op}")


def _within(part: int | slice, places: Iterator[Any]) -> Any:
    """Return the place in an array of the next place in a part of it."""
    if isinstance(part, int):
        return Shifted(None, part)
    place = next(places)
    return place if part == slice(None) else Shifted(place, part.start)


def reduced(node: Any) -> Sequence[int]:
    """Return the axes of a loop over which a reduction goes."""
    if not isinstance(node.op, CAReduce):
        return ()
    return range(node.inputs[0].type.ndim) if node.op.axis is None else tuple(node.op.axis)


@dataclass
class Loop:
    """Roots that one nest of loops computes."""

    stage: int
    axes: Index
    roots: list[Any]


class Plan:
    """The order in which a graph's roots are computed. Outputs are results of elementwise operations."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        self.outputs = list(outputs)
        self._axes: dict[Any, Index] = {}
        self.roots: dict[Any, None] = {}
        used = dict.fromkeys(
            v for output in outputs for v in (output, *(parent for parent, _ in self._inlined(output)))
        )
        self.nodes = [node for node in io_toposort([], list(outputs)) if node.outputs[0] in used]
        self.constants = dict.fromkeys(v for v in used if isinstance(v, Constant))
        for node in self.nodes:
            self._unify(node)
        self.roots = dict.fromkeys([*self._first_roots(), *outputs])
        self.loops = self._loops()
        users: dict[Any, set[int]] = defaultdict(set)  # what is dear and needed in several loops is kept, too
        for number, loop in enumerate(self.loops):
            for variable in (v for root in loop.roots for v, _ in self._inlined(root)):
                users[variable].add(number)
        self.roots |= dict.fromkeys(v for v, found in users.items() if len(found) > 1 and self._is_dear(v))
        self.loops = self._loops()

    def axes(self, variable: Any) -> Index:
        """Return the axes of a variable."""
        if variable not in self._axes:
            is_data = variable.owner is None and not isinstance(variable, Constant)
            shape = (
                variable.data.shape if isinstance(variable, Constant) else getattr(variable.type, "shape", ())
            )
            self._axes[variable] = [
                None if n == 1 else Axis((variable, i) if is_data and n is None else n)
                for i, n in enumerate(shape)
            ]
        return tuple(axis and axis.root for axis in self._axes[variable])

    def is_single(self, variable: Any) -> bool:
        """Return whether a variable is one number, whatever its rank."""
        return not any(self.axes(variable))

    def loop_axes(self, variable: Any) -> Index:
        """Return the axes of the loops in which a variable is computed."""
        node = variable.owner
        if isinstance(node.op, CAReduce):
            return self.axes(node.inputs[0])
        if isinstance(node.op, AdvancedIncSubtensor):
            return (*self.axes(node.inputs[-1]), *self.axes(variable)[1:])
        return self.axes(variable)

    def _unify(self, node: Any) -> None:
        """Let the axes of a node's inputs and output know each other."""
        out = node.outputs[0]
        loop, own = self.loop_axes(out), self.axes(out)
        for variable, index in sources(node, loop):
            _join(self.axes(variable), index)
        if isinstance(node.op, CAReduce):
            _join(own, [axis for i, axis in enumerate(loop) if i not in reduced(node)])
        elif isinstance(node.op, AdvancedIncSubtensor):
            _join(own, self.axes(node.inputs[0]))
        elif isinstance(node.op, Alloc):
            _join(own, [self._length(size) for size in node.inputs[1:]])

    def _length(self, size: Any) -> Axis | None:
        """Return the axis whose length a number is, where that can be told."""
        if isinstance(size, Constant):
            return Axis(int(size.data))
        if size.owner and isinstance(size.owner.op, _PASSED):
            return self._length(size.owner.inputs[0])
        if size.owner and isinstance(size.owner.op, Shape_i):
            found: Axis | None = self.axes(size.owner.inputs[0])[size.owner.op.i]
            return found
        return None

    def _first_roots(self) -> Iterator[Any]:
        changed_again = {node.inputs[0] for node in self.nodes if isinstance(node.op, IncSubtensor)}
        for node in self.nodes:
            if isinstance(node.op, (CAReduce, AdvancedIncSubtensor)):
                yield node.outputs[0]
            kept: list[Any] = []
            if isinstance(node.op, (IncSubtensor, AdvancedIncSubtensor)):
                kept = [node.inputs[1], *set(node.outputs) - changed_again]
            elif isinstance(node.op, AdvancedSubtensor):
                kept = node.inputs[:1]
            yield from (v for v in kept if v.owner and not self.is_single(v))

    def _is_dear(self, variable: Any) -> bool:
        op = variable.owner and variable.owner.op
        dear = isinstance(op, Elemwise) and not isinstance(op.scalar_op, _CHEAP)
        return (dear or isinstance(op, AdvancedSubtensor)) and not self.is_single(variable)

    def _inlined(self, root: Any) -> Iterator[tuple[Any, bool]]:
        """Return what a root needs up to other roots, and whether at the same place, as in one loop."""
        seen: set[tuple[Any, bool]] = set()
        waiting = [(root, True)]
        while waiting:
            variable, aligned = waiting.pop()
            aligned &= isinstance(variable.owner.op, (Elemwise, CAReduce, *_PASSED))
            for parent, _ in sources(variable.owner, self.loop_axes(variable)):
                state = (parent, aligned)
                if state not in seen:
                    seen.add(state)
                    yield state
                    if parent.owner and parent not in self.roots:
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
            alone = isinstance(node.op, AdvancedIncSubtensor)
            stage[root] = 0
            for other, aligned in self._inlined(root):
                if other in self.roots:
                    shared = aligned and is_kept(other) and not alone and self.loop_axes(other) == axes
                    stage[root] = max(stage[root], stage[other] + (not shared))
            key = root if alone else (stage[root], axes)
            found.setdefault(key, Loop(stage[root], axes, [])).roots.append(root)
        return sorted(found.values(), key=lambda loop: loop.stage)


def is_kept(root: Any) -> bool:
    """Return whether a root is an inlined expression whose values are kept."""
    return not isinstance(root.owner.op, (CAReduce, AdvancedIncSubtensor))


def _join(some: Index, others: Index) -> None:
    """Join axes pairwise where neither is broadcast nor a place."""
    for one, two in zip(some, others, strict=True):
        if isinstance(one, Axis) and isinstance(two, Axis):
            one.join(two)
