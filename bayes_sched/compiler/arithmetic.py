"""PyTensor's operations on single numbers, as instructions in LLVM's language.

All is written for one number and without branches: LLVM computes several elements of a loop at once. exp is
its Taylor series on [-ln 2 / 2, ln 2 / 2], log fdlibm's rational approximation (Sun Microsystems 1993,
e_log.c); their relative errors are some units of the last place. What is not here is called in SciPy.
"""

from __future__ import annotations

import ctypes
import math
import operator
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import count
from typing import Any

from scipy.special import cython_special

F64, I64, I1 = "double", "i64", "i1"

_ROUND = 1.5 * 2.0**52  # added to a number of less than 2^51, it leaves the nearest integer in the low bits
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_EXP = [1.0 / math.factorial(k) for k in range(1, 14)]
_LOG = [
    *(6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01),
    *(1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01),
]


class UnsupportedError(Exception):
    """A graph holds what is not compiled here."""


@dataclass
class Code:
    """The instructions of a function; those of `entry` come first."""

    entry: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    declared: dict[str, None] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=lambda: count(5))

    def emit(self, kind: str, instruction: str) -> Number:
        """Append an instruction that makes a number."""
        found = Number(self, kind, f"%v{next(self.names)}")
        self.lines.append(f"{found.text} = {instruction}")
        return found

    def constant(self, value: float, kind: str = F64) -> Number:
        """Return a constant."""
        text = f"0x{struct.pack('>d', value).hex()}" if kind == F64 else str(int(value))
        return Number(self, kind, text, value)

    @contextmanager
    def at(self, lines: list[str]) -> Iterator[None]:
        """Emit elsewhere."""
        here, self.lines = self.lines, lines
        yield
        self.lines = here


def _operator(real: str, other: str) -> Callable[[Number, Number | float], Number]:
    """Return a method that combines two numbers by an instruction for reals or one for others."""
    return lambda a, b: a.code.emit(
        a.kind, f"{real if a.kind == F64 else other} {a.kind} {a.text}, {a.like(b).text}"
    )


def _comparison(real: str, integer: str) -> Callable[[Number, Number | float], Number]:
    return lambda a, b: a.code.emit(
        I1, f"{f'fcmp {real}' if a.kind == F64 else f'icmp {integer}'} {a.kind} {a.text}, {a.like(b).text}"
    )


@dataclass(frozen=True)
class Number:
    """A real number, an integer or a truth value that the code computes."""

    code: Code = field(repr=False, compare=False)
    kind: str
    text: str
    constant: float | None = None

    __add__ = _operator("fadd contract", "add")
    __sub__ = _operator("fsub contract", "sub")
    __mul__ = _operator("fmul contract", "mul")
    __truediv__ = _operator("fdiv", "sdiv")
    __and__ = _operator("", "and")
    __or__ = _operator("", "or")
    __xor__ = _operator("", "xor")
    __lshift__ = _operator("", "shl")
    __rshift__ = _operator("", "ashr")
    __lt__ = _comparison("olt", "slt")
    __le__ = _comparison("ole", "sle")
    __gt__ = _comparison("ogt", "sgt")
    __ge__ = _comparison("oge", "sge")
    equals = _comparison("oeq", "eq")
    differs = _comparison("une", "ne")

    def __neg__(self) -> Number:
        minus = "fneg double" if self.kind == F64 else "sub i64 0,"
        return self.code.emit(self.kind, f"{minus} {self.text}")

    def __abs__(self) -> Number:
        return intrinsic("fabs", self)

    def like(self, value: Number | float) -> Number:
        """Return a constant of the same kind."""
        return value if isinstance(value, Number) else self.code.constant(value, self.kind)

    def to(self, kind: str) -> Number:
        """Convert to a real number, an integer or a truth value."""
        if self.kind == kind:
            return self
        if self.constant is not None:
            return self.code.constant(self.constant, kind)
        if kind == I1:
            return self.differs(0)
        how = {(F64, I64): "fptosi", (I1, I64): "zext", (I1, F64): "uitofp", (I64, F64): "sitofp"}
        return self.code.emit(kind, f"{how[self.kind, kind]} {self.kind} {self.text} to {kind}")

    def bits(self, kind: str) -> Number:
        """Return the same bits as another kind of number."""
        return self.code.emit(kind, f"bitcast {self.kind} {self.text} to {kind}")


def where(condition: Number, a: Number, b: Number | float) -> Number:
    """Return `a` where the condition holds, `b` elsewhere."""
    choice = f"{a.kind} {a.text}, {a.kind} {a.like(b).text}"
    return a.code.emit(a.kind, f"select i1 {condition.text}, {choice}")


def intrinsic(name: str, *values: Number) -> Number:
    """Call an LLVM intrinsic of real numbers."""
    code = values[0].code
    code.declared[f"declare double @llvm.{name}.f64({', '.join(v.kind for v in values)})"] = None
    return code.emit(F64, f"call double @llvm.{name}.f64({', '.join(f'{v.kind} {v.text}' for v in values)})")


def _polynomial(x: Number, coefficients: Sequence[float]) -> Number:
    """Return the sum of coefficients times powers of x, the lowest first."""
    *lower, top = coefficients
    return reduce(lambda total, c: total * x + c, reversed(lower), x.like(top))


def _reduced(x: Number) -> tuple[Number, Number]:
    """Return the integer n nearest to x / ln 2 and exp(x - n ln 2) - 1, where exp(x) is finite and not 0."""
    x = where(x < -746.0, x.like(-746.0), x)
    x = where(x > 710.0, x.like(710.0), x)
    shifted = x * (1.0 / math.log(2.0)) + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    return shifted.bits(I64) - x.like(_ROUND).bits(I64), r * _polynomial(r, _EXP)


def _scaled(x: Number, exponent: Number) -> Number:
    """Return x 2^exponent, in two steps because 2^exponent alone may not be a number."""
    half = exponent >> 1
    for part in (half, exponent - half):
        x = x * ((part + 1023) << 52).bits(F64)
    return x


def exp(x: Number) -> Number:
    """Return e^x."""
    exponent, excess = _reduced(x)
    return _scaled(excess + 1.0, exponent)


def expm1(x: Number) -> Number:
    """Return e^x - 1."""
    exponent, excess = _reduced(x)
    return where(exponent.equals(0), excess, _scaled(excess + 1.0, exponent) - 1.0)


def _split(x: Number) -> tuple[Number, Number]:
    """Return f and k of x = (1 + f) 2^k with 1 + f between the roots of 1/2 and 2."""
    bits = x.bits(I64)
    exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
    return (bits - (exponent << 52)).bits(F64) - 1.0, exponent.to(F64)


def _log(x: Number, f: Number, k: Number) -> Number:
    """Return log of x = (1 + f) 2^k: -inf at 0, not a number below."""
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    low = s * (half_square + z * _polynomial(z, _LOG)) + k * _LN2_LOW
    found = k * _LN2_HIGH - (half_square - low - f)
    found = where(x.equals(math.inf), x, found)
    return where(x > 0.0, found, where(x.equals(0.0), x.like(-math.inf), math.nan))


def log(x: Number) -> Number:
    """Return the natural logarithm."""
    tiny = x < 2.0**-1022
    f, k = _split(where(tiny, x * 2.0**54, x))
    return _log(x, f, k - where(tiny, x.like(54.0), 0.0))


def log1p(x: Number) -> Number:
    """Return log(1 + x); 1 + x is rounded, which counts where f is small, and there f is x."""
    u = x + 1.0
    f, k = _split(u)
    return _log(u, where(k.equals(0.0), x, f), k)


def power(a: Number, b: Number) -> Number:
    """Return a to the power b; LLVM writes out constant integer powers."""
    if b.constant is None or b.constant % 1.0:
        return intrinsic("pow", a, b)
    a.code.declared["declare double @llvm.powi.f64.i32(double, i32)"] = None
    return a.code.emit(F64, f"call double @llvm.powi.f64.i32(double {a.text}, i32 {int(b.constant)})")


def scipy(name: str, *values: Number) -> Number:
    """Call SciPy's compiled function of real numbers."""
    wanted = f"double ({'double, ' * len(values)}int __pyx_skip_dispatch)"
    pointer, label = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    label.restype, label.argtypes = ctypes.c_char_p, [ctypes.py_object]
    for found, capsule in cython_special.__pyx_capi__.items():
        plain = found.removeprefix("__pyx_fuse_").lstrip("0123456789")
        if plain == name and label(capsule).decode() == wanted:
            arguments = "".join(f"double {value.text}, " for value in values)
            address = f"inttoptr (i64 {pointer(capsule, label(capsule))} to ptr)"
            return values[0].code.emit(F64, f"call double {address}({arguments}i32 0)")
    raise UnsupportedError(f"the function {name} of {len(values)} real numbers")


def _folded(operation: Callable[[Any, Any], Any]) -> Callable[..., Number]:
    return lambda *values: reduce(operation, values)


_OF_TRUTHS: dict[str, Callable[..., Number]] = {
    "AND": _folded(operator.and_),
    "OR": _folded(operator.or_),
    "XOR": _folded(operator.xor),
    "Invert": lambda x: x ^ 1,
}
_OF_INTEGERS: dict[str, Callable[..., Number]] = {
    "Add": _folded(operator.add),
    "Mul": _folded(operator.mul),
    "Sub": operator.sub,
    "Neg": operator.neg,
}
_INTRINSICS = ("sqrt", "floor", "ceil", "maximum", "minimum")
_OF_REALS: dict[str, Callable[..., Number]] = {
    **_OF_INTEGERS,
    **{name.capitalize(): partial(intrinsic, name) for name in _INTRINSICS},
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": Number.equals,
    "NEQ": Number.differs,
    "IsNan": lambda x: x.differs(x),
    "IsInf": lambda x: abs(x).equals(math.inf),
    "Abs": abs,
    "Sign": lambda x: where(x > 0.0, x.like(1.0), where(x < 0.0, x.like(-1.0), x)),
    "Clip": lambda x, low, high: intrinsic("minimum", intrinsic("maximum", x, low), high),
    "TrueDiv": lambda x, y: x * (x.like(1.0) / y),  # one reciprocal serves all that is divided by y
    "IntDiv": lambda x, y: intrinsic("floor", x / y),
    "Reciprocal": lambda x: x.like(1.0) / x,
    "Sqr": lambda x: x * x,
    "Pow": power,
    "Exp": exp,
    "Expm1": expm1,
    "Log": log,
    "Log1p": log1p,
    "Log1mexp": lambda x: where(x > -math.log(2.0), log(-expm1(x)), log1p(-exp(x))),
    "Softplus": lambda x: intrinsic("maximum", x, x.like(0.0)) + log1p(exp(-abs(x))),
    "Sigmoid": lambda x: x.like(1.0) / (exp(-x) + 1.0),
}


def apply(op: Any, kind: str, values: Sequence[Number]) -> Number:
    """Return what a scalar operation of PyTensor makes of numbers, as a number of a kind."""
    name = type(op).__name__
    if name in ("Cast", "Identity", "Second"):
        return values[-1].to(kind)
    if name == "Switch":
        return where(values[0].to(I1), values[1].to(kind), values[2].to(kind))
    if name in _OF_TRUTHS:
        found = _OF_TRUTHS[name](*(value.to(I1) for value in values))
    elif kind == I64 and name in _OF_INTEGERS:
        found = _OF_INTEGERS[name](*(value.to(I64) for value in values))
    else:
        called = (getattr(op, "nfunc_spec", None) or (str(op),))[0].removeprefix("scipy.special.")
        found = _OF_REALS.get(name, partial(scipy, called))(*(value.to(F64) for value in values))
    if found.kind != kind:
        raise UnsupportedError(f"{op} of integers")
    return found


def kind_of(dtype: str) -> str:
    """Return the kind of number that stands for a dtype."""
    kinds = {"b": I1, "i": I64, "u": I64, "f": F64}
    if dtype[0] not in kinds:
        raise UnsupportedError(f"numbers of type {dtype}")
    return kinds[dtype[0]]
