"""Scalar operations of PyTensor as LLVM instructions, on one number or on several lanes at once.

The elementary functions are written out, branch-free, so that they work on lanes as on numbers: exp by
reduction to [-ln 2 / 2, ln 2 / 2] and its Taylor series, log by fdlibm's rational approximation (Sun
Microsystems 1993, e_log.c). Their relative errors are some units of the last place. What is not here and takes
and returns real numbers is called in SciPy's compiled library, lane by lane.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import pytensor.scalar as ps
from llvmlite import ir
from scipy.special import cython_special

LANES = 8
F64, I64, I1 = ir.DoubleType(), ir.IntType(64), ir.IntType(1)

_ROUND = 1.5 * 2.0**52  # added to a number of less than 2^51, it leaves the nearest integer in the low bits
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LOG = (
    *(6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01),
    *(1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01),
)
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


class UnsupportedError(Exception):
    """A graph holds what is not compiled here."""


def lanes_of(*values: Any) -> int:
    """Return the number of lanes of the widest value, 0 for numbers alone."""
    return max(v.type.count if isinstance(v.type, ir.VectorType) else 0 for v in values)


class Arithmetic:
    """Emits instructions at the place of a builder; a result has as many lanes as the widest operand."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    # Constants, lanes and kinds of numbers

    def number(self, value: float, like: Any = None, kind: ir.Type = F64) -> ir.Constant:
        """Return a constant with the lanes of `like`."""
        lanes = 0 if like is None else lanes_of(like)
        one = ir.Constant(kind, value)
        return ir.Constant(ir.VectorType(kind, lanes), [one] * lanes) if lanes else one

    def spread(self, value: Any, lanes: int) -> Any:
        """Return a number in every lane."""
        if not lanes or lanes_of(value):
            return value
        wide = ir.VectorType(value.type, lanes)
        first = self.builder.insert_element(
            ir.Constant(wide, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
        )
        mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return self.builder.shuffle_vector(first, ir.Constant(wide, ir.Undefined), mask)

    def aligned(self, *values: Any) -> list[Any]:
        """Return values that all have the lanes of the widest."""
        lanes = lanes_of(*values)
        return [self.spread(value, lanes) for value in values]

    def to(self, value: Any, kind: ir.Type) -> Any:
        """Convert between truth values, integers and real numbers."""
        own = value.type.element if lanes_of(value) else value.type
        if own == kind:
            return value
        if isinstance(value, ir.Constant) and not lanes_of(value) and kind != I1:
            return ir.Constant(kind, value.constant)
        target = ir.VectorType(kind, lanes_of(value)) if lanes_of(value) else kind
        if kind == I1:
            return self.compare("!=", value, self.number(0, value, own))
        if own == I1:
            return self.builder.uitofp(value, target) if kind == F64 else self.builder.zext(value, target)
        return self.builder.sitofp(value, target) if kind == F64 else self.builder.fptosi(value, target)

    def bits(self, value: Any, kind: ir.Type) -> Any:
        """Return the same bits as another kind of number."""
        return self.builder.bitcast(value, ir.VectorType(kind, lanes_of(value)) if lanes_of(value) else kind)

    # Basic operations on aligned operands of one kind

    def compare(self, operator: str, a: Any, b: Any) -> Any:
        """Compare reals or integers; what is not a number equals nothing."""
        a, b = self.aligned(a, b)
        if (a.type.element if lanes_of(a) else a.type) == F64:
            unordered = operator == "!="
            return (self.builder.fcmp_unordered if unordered else self.builder.fcmp_ordered)(operator, a, b)
        return self.builder.icmp_signed(operator, a, b)

    def select(self, condition: Any, a: Any, b: Any) -> Any:
        """Return `a` where the condition holds."""
        return self.builder.select(*self.aligned(condition, a, b))

    def add(self, a: Any, b: Any) -> Any:
        """Return a + b."""
        return self.builder.fadd(*self.aligned(a, b), flags=("contract",))

    def sub(self, a: Any, b: Any) -> Any:
        """Return a - b."""
        return self.builder.fsub(*self.aligned(a, b), flags=("contract",))

    def mul(self, a: Any, b: Any) -> Any:
        """Return a b."""
        return self.builder.fmul(*self.aligned(a, b), flags=("contract",))

    def div(self, a: Any, b: Any) -> Any:
        """Return a / b."""
        return self.builder.fdiv(*self.aligned(a, b))

    def intrinsic(self, name: str, *values: Any) -> Any:
        """Call an LLVM intrinsic of real numbers."""
        values = tuple(self.aligned(*values))
        kind, lanes = values[0].type, lanes_of(*values)
        full = f"llvm.{name}.v{lanes}f64" if lanes else f"llvm.{name}.f64"
        module = self.builder.module
        function = module.globals.get(full) or ir.Function(
            module, ir.FunctionType(kind, [kind] * len(values)), full
        )
        return self.builder.call(function, values)

    def is_nan(self, a: Any) -> Any:
        """Return whether it is not a number."""
        return self.builder.fcmp_unordered("uno", a, a)

    # Elementary functions

    def polynomial(self, x: Any, coefficients: Sequence[float]) -> Any:
        """Return the sum of coefficients times powers of x, the lowest first."""
        *lower, top = coefficients
        start = self.number(top, x)
        return reduce(
            lambda total, c: self.add(self.mul(total, x), self.number(c, x)), reversed(lower), start
        )

    def _reduced(self, x: Any) -> tuple[Any, Any]:
        """Return the integer n nearest to x / ln 2, and exp(x - n ln 2) - 1."""
        shifted = self.add(self.mul(x, self.number(1.0 / math.log(2.0), x)), self.number(_ROUND, x))
        n = self.sub(shifted, self.number(_ROUND, x))
        r = self.sub(
            self.sub(x, self.mul(n, self.number(_LN2_HIGH, x))), self.mul(n, self.number(_LN2_LOW, x))
        )
        series = self.polynomial(r, [1.0 / math.factorial(k) for k in range(1, 14)])
        exponent = self.builder.sub(self.bits(shifted, I64), self.bits(self.number(_ROUND, x), I64))
        return exponent, self.mul(r, series)

    def _scaled(self, x: Any, exponent: Any) -> Any:
        """Return x 2^exponent, in two steps because 2^exponent alone may not be a number."""
        half = self.builder.ashr(exponent, self.number(1, x, I64))
        for part in (half, self.builder.sub(exponent, half)):
            biased = self.builder.add(part, self.number(1023, x, I64))
            x = self.mul(x, self.bits(self.builder.shl(biased, self.number(52, x, I64)), F64))
        return x

    def _clamped(self, x: Any) -> Any:
        """Return x where exp(x) is neither 0 nor infinite, or the nearest place where it is."""
        for operator, limit in (("<", -746.0), (">", 710.0)):
            bound = self.number(limit, x)
            x = self.select(self.builder.fcmp_ordered(operator, x, bound), bound, x)
        return x

    def exp(self, x: Any) -> Any:
        """Return e^x."""
        exponent, excess = self._reduced(self._clamped(x))
        return self._scaled(self.add(excess, self.number(1.0, x)), exponent)

    def expm1(self, x: Any) -> Any:
        """Return e^x - 1."""
        exponent, excess = self._reduced(self._clamped(x))
        one = self.number(1.0, x)
        far = self.sub(self._scaled(self.add(excess, one), exponent), one)
        return self.select(self.compare("==", exponent, self.number(0, x, I64)), excess, far)

    def log(self, x: Any) -> Any:
        """Return the natural logarithm: -inf at 0, not a number below."""
        b = self.builder
        tiny = self.compare("<", x, self.number(2.0**-1022, x))
        bits = self.bits(self.select(tiny, self.mul(x, self.number(2.0**54, x)), x), I64)
        above = b.sub(bits, self.number(_SQRT_HALF_BITS, x, I64))
        exponent = b.ashr(above, self.number(52, x, I64))
        mantissa = self.bits(
            b.sub(bits, b.shl(exponent, self.number(52, x, I64))), F64
        )  # sqrt(1/2) to sqrt(2)
        rounded = self.bits(b.add(exponent, self.bits(self.number(_ROUND, x), I64)), F64)
        k = self.sub(rounded, self.number(_ROUND, x))
        k = self.sub(k, self.select(tiny, self.number(54.0, x), self.number(0.0, x)))
        f = self.sub(mantissa, self.number(1.0, x))
        s = self.div(f, self.add(f, self.number(2.0, x)))
        z = self.mul(s, s)
        half_square = self.mul(self.number(0.5, x), self.mul(f, f))
        rest = self.mul(s, self.add(half_square, self.mul(z, self.polynomial(z, _LOG))))
        low = self.add(rest, self.mul(k, self.number(_LN2_LOW, x)))
        value = self.sub(self.mul(k, self.number(_LN2_HIGH, x)), self.sub(self.sub(half_square, low), f))
        value = self.select(self.compare("==", x, self.number(math.inf, x)), x, value)
        value = self.select(self.compare("==", x, self.number(0.0, x)), self.number(-math.inf, x), value)
        return self.select(
            self.builder.fcmp_unordered("<", x, self.number(0.0, x)), self.number(math.nan, x), value
        )

    def log1p(self, x: Any) -> Any:
        """Return log(1 + x), with the rounding of 1 + x made good."""
        one = self.number(1.0, x)
        u = self.builder.fadd(one, x)
        lost = self.div(self.builder.fsub(x, self.builder.fsub(u, one)), u)
        finite = self.compare("<", self.intrinsic("fabs", u), self.number(math.inf, x))
        positive = self.builder.and_(finite, self.compare(">", u, self.number(0.0, x)))
        return self.add(self.log(u), self.select(positive, lost, self.number(0.0, x)))

    def softplus(self, x: Any) -> Any:
        """Return log(1 + e^x)."""
        tail = self.log1p(self.exp(self.builder.fneg(self.intrinsic("fabs", x))))
        return self.add(self.intrinsic("maximum", x, self.number(0.0, x)), tail)

    def sigmoid(self, x: Any) -> Any:
        """Return 1 / (1 + e^-x)."""
        one = self.number(1.0, x)
        return self.div(one, self.add(one, self.exp(self.builder.fneg(x))))

    def log1mexp(self, x: Any) -> Any:
        """Return log(1 - e^x) for x < 0."""
        near = self.log(self.builder.fneg(self.expm1(x)))
        far = self.log1p(self.builder.fneg(self.exp(x)))
        return self.select(self.compare(">", x, self.number(-math.log(2.0), x)), near, far)

    def power(self, a: Any, b: Any) -> Any:
        """Return a to the power b."""
        if isinstance(b, ir.Constant) and b.constant == 0.5:
            return self.intrinsic("sqrt", a)
        return self.intrinsic("pow", a, b)

    def sign(self, x: Any) -> Any:
        """Return -1, 0 or 1."""
        zero = self.number(0.0, x)
        below = self.select(self.compare("<", x, zero), self.number(-1.0, x), x)
        return self.select(self.compare(">", x, zero), self.number(1.0, x), below)

    def called(self, name: str, *values: Any) -> Any:
        """Call a function of SciPy in each lane."""
        address = _scipy_address(name, len(values))
        values = tuple(self.aligned(*values))
        lanes = lanes_of(*values)
        signature = ir.FunctionType(F64, [F64] * len(values) + [ir.IntType(32)])
        function = self.builder.inttoptr(ir.Constant(I64, address), signature.as_pointer())
        skip = ir.Constant(ir.IntType(32), 0)
        if not lanes:
            return self.builder.call(function, (*values, skip))
        found = ir.Constant(values[0].type, ir.Undefined)
        for lane in range(lanes):
            place = ir.Constant(ir.IntType(32), lane)
            own = (self.builder.extract_element(value, place) for value in values)
            found = self.builder.insert_element(found, self.builder.call(function, (*own, skip)), place)
        return found

    # PyTensor's operations

    def apply(self, op: ps.ScalarOp, kind: ir.Type, values: Sequence[Any]) -> Any:
        """Return what an operation of PyTensor makes of values, as a number of a kind."""
        if isinstance(op, ps.Composite):
            return self._composite(op, values)
        name = type(op).__name__
        if name in ("Cast", "Identity"):
            return self.to(values[0], kind)
        if name == "Second":
            return self.to(self.aligned(*values)[1], kind)
        if name == "Switch":
            return self.select(self.to(values[0], I1), *(self.to(value, kind) for value in values[1:]))
        if name in _COMPARISONS:
            common = F64 if any(_kind(value) == F64 for value in values) else I64
            return self.compare(_COMPARISONS[name], *(self.to(value, common) for value in values))
        if name in _LOGICAL:
            if kind != I1:
                raise UnsupportedError(f"{op} of integers")
            truths = self.aligned(*(self.to(value, I1) for value in values))
            return (
                self.builder.not_(truths[0])
                if name == "Invert"
                else reduce(getattr(self.builder, _LOGICAL[name]), truths)
            )
        if name in ("IsNan", "IsInf"):
            x = self.to(values[0], F64)
            infinite = self.number(math.inf, x)
            return (
                self.is_nan(x) if name == "IsNan" else self.compare("==", self.intrinsic("fabs", x), infinite)
            )
        if kind == I64:
            if name == "Neg":
                return self.builder.neg(self.to(values[0], I64))
            if name not in _OF_INTEGERS:
                raise UnsupportedError(f"{op} of integers")
            operation = getattr(self.builder, _OF_INTEGERS[name])
            return reduce(
                lambda a, b: operation(*self.aligned(a, b)), (self.to(value, I64) for value in values)
            )
        reals = [self.to(value, F64) for value in values]
        if name in _OF_REALS:
            return _OF_REALS[name](self, *reals)
        if name in _FOLDED:
            return reduce(getattr(self, _FOLDED[name]), reals)
        return self.called(
            (getattr(op, "nfunc_spec", None) or (str(op),))[0].removeprefix("scipy.special."), *reals
        )

    def _composite(self, op: ps.Composite, values: Sequence[Any]) -> Any:
        known = dict(zip(op.fgraph.inputs, values, strict=True))
        for node in op.fgraph.toposort():
            inputs = [
                known[v] if v in known else ir.Constant(kind_of(v.type.dtype), v.data.item())
                for v in node.inputs
            ]
            known[node.outputs[0]] = self.apply(node.op, kind_of(node.outputs[0].type.dtype), inputs)
        return known[op.fgraph.outputs[0]]


def kind_of(dtype: str) -> ir.Type:
    """Return the kind of number that stands for a dtype: truth value, integer or real."""
    if dtype == "bool":
        return I1
    if dtype.startswith(("int", "uint")):
        return I64
    if dtype in ("float64", "float32"):
        return F64
    raise UnsupportedError(f"numbers of type {dtype}")


def _kind(value: Any) -> ir.Type:
    return value.type.element if lanes_of(value) else value.type


_COMPARISONS = {"EQ": "==", "NEQ": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}
_LOGICAL = {"AND": "and_", "OR": "or_", "XOR": "xor", "Invert": "not_"}
_OF_INTEGERS = {"Add": "add", "Sub": "sub", "Mul": "mul"}
_FOLDED = {"Add": "add", "Mul": "mul"}
_OF_REALS: dict[str, Callable[..., Any]] = {
    "Sub": Arithmetic.sub,
    "TrueDiv": Arithmetic.div,
    "Neg": lambda a, x: a.builder.fneg(x),
    "Sqr": lambda a, x: a.mul(x, x),
    "Sqrt": lambda a, x: a.intrinsic("sqrt", x),
    "Abs": lambda a, x: a.intrinsic("fabs", x),
    "Floor": lambda a, x: a.intrinsic("floor", x),
    "Ceil": lambda a, x: a.intrinsic("ceil", x),
    "IntDiv": lambda a, x, y: a.intrinsic("floor", a.div(x, y)),
    "Reciprocal": lambda a, x: a.div(a.number(1.0, x), x),
    "Clip": lambda a, x, low, high: a.intrinsic("minimum", a.intrinsic("maximum", x, low), high),
    "Maximum": lambda a, x, y: a.intrinsic("maximum", x, y),
    "Minimum": lambda a, x, y: a.intrinsic("minimum", x, y),
    "Exp": Arithmetic.exp,
    "Expm1": Arithmetic.expm1,
    "Log": Arithmetic.log,
    "Log1p": Arithmetic.log1p,
    "Softplus": Arithmetic.softplus,
    "Sigmoid": Arithmetic.sigmoid,
    "Log1mexp": Arithmetic.log1mexp,
    "Pow": Arithmetic.power,
    "Sign": Arithmetic.sign,
}


def _scipy_address(name: str, arity: int) -> int:
    """Return the address of SciPy's compiled function of real numbers."""
    wanted = "double (" + "double, " * arity + "int __pyx_skip_dispatch)"
    pointer, label = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    label.restype, label.argtypes = ctypes.c_char_p, [ctypes.py_object]
    for found, capsule in cython_special.__pyx_capi__.items():
        if found == name or (
            found.startswith("__pyx_fuse_")
            and found.endswith(name)
            and found[12:].lstrip("0123456789") == name
        ):
            if label(capsule).decode() == wanted:
                return int(pointer(capsule, label(capsule)))
    raise UnsupportedError(f"the function {name} of {arity} real numbers")
