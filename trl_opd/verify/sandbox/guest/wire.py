"""Values as JSON between the tests and the program under test, with nothing in it that could run.

Numbers, texts and lists are themselves in JSON; what else Python's literals can be is `{tag: content}`. A value of a
subclass travels as the value of its base, and what is no plain value travels as a reference: the other side may ask for
its attributes or call it, but never compares it. A value of more than a million parts travels as its digest, which is
enough to compare it. Tags are checked when they are read, since a program under test may send what it likes.
"""

import json

MAX_DEPTH = 100
MAX_PARTS = 2**20
"""Values in a value, where four characters of a text count as one."""

LINE_LIMIT = 64 * 2**20
"""Bytes of a line; none that `dumps` writes comes near it."""

_PLAIN_INT = 2**63  # beyond it, digits are hexadecimal: decimal ones cost quadratic time


class Unsendable(Exception):
    """A value that is nested too deeply."""


class _TooBig(Exception):
    """A value has more than `MAX_PARTS`."""


class Big:
    """A value that was too big to be sent: it equals values with the same digest."""

    def __init__(self, content) -> None:
        kind, digest = content
        self.kind, self.digest = str(kind), str(digest)

    def __eq__(self, other) -> bool:
        return self.digest == (other.digest if isinstance(other, Big) else digest_of(other))

    __hash__ = None

    def __repr__(self) -> str:
        return f"<{self.kind} of more than {MAX_PARTS} parts>"


def digest_of(value) -> str:
    """SHA-256 of a value as Python writes it; of a list or tuple, item by item, since the whole may not fit."""
    import hashlib  # costs milliseconds, and is rarely needed

    kind = type(value)
    digest = hashlib.sha256(kind.__name__.encode())
    for part in value if kind in (list, tuple) else (value,):
        text = part if type(part) is str else repr(part)
        digest.update(f"{type(part).__name__} {len(text)} ".encode())
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def dumps(value, reference=None) -> bytes:
    """JSON without a line end; `reference(value)` gives the content of the tag "ref" for what is no plain value."""
    try:
        encoded = _Encoder(reference).encode(value, 0)
    except _TooBig:
        encoded = {"big": [type(value).__name__[:100], digest_of(value)]}
    return json.dumps(encoded, ensure_ascii=False).encode("utf-8", "surrogatepass")


def loads(line: bytes, resolve=None):
    """The value in a line of JSON; `resolve(content)` gives the value of the tag "ref".

    Raises:
        ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError: `dumps` did not write it.
    """
    return _decode(json.loads(line), resolve)


class _Encoder:
    def __init__(self, reference) -> None:
        self.reference = reference
        self.room = MAX_PARTS

    def encode(self, value, depth):
        if depth > MAX_DEPTH:
            raise Unsendable(f"a value is nested more than {MAX_DEPTH} levels deep")
        kind = type(value)
        self.room -= 1 + (len(value) // 4 if kind is str or kind is bytes else 0)
        if self.room < 0:
            raise _TooBig
        if value is None or kind is bool or kind is float or kind is str:
            return value
        if kind is int:
            return value if -_PLAIN_INT < value < _PLAIN_INT else {"int": hex(value)}
        encoder = _ENCODERS.get(kind) or _encoder_of_subclass(value)
        if encoder is None:
            return {"ref": self.reference(value)}
        return encoder(value, lambda item: self.encode(item, depth + 1))


def _encode_dict(value, inner):
    return {"dict": [[inner(key), inner(item)] for key, item in dict.items(value)]}


_ENCODERS = {
    list: lambda value, inner: [inner(item) for item in list.__iter__(value)],
    tuple: lambda value, inner: {"tuple": [inner(item) for item in tuple.__iter__(value)]},
    dict: _encode_dict,
    set: lambda value, inner: {"set": [inner(item) for item in set.__iter__(value)]},
    frozenset: lambda value, inner: {"frozenset": [inner(item) for item in frozenset.__iter__(value)]},
    complex: lambda value, inner: {"complex": [value.real, value.imag]},
    bytes: lambda value, inner: {"bytes": value.hex()},
    bytearray: lambda value, inner: {"bytes": value.hex()},
    range: lambda value, inner: {"range": [inner(value.start), inner(value.stop), inner(value.step)]},
}
_BY_VALUE = (  # a subclass of a plain type, such as a named tuple or a Counter, is its base's value
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
    (list, lambda value: list(list.__iter__(value))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: set(set.__iter__(value))),
)


def _encoder_of_subclass(value):
    kind = type(value)
    for base, plain in _BY_VALUE:
        if issubclass(kind, base):
            return lambda value, inner: inner(plain(value))
    module, name = kind.__module__, kind.__name__
    if module == "collections" and name == "deque":
        return lambda value, inner: {"deque": [inner(item) for item in value]}
    if module == "fractions" and name == "Fraction":
        return lambda value, inner: {"fraction": [inner(value.numerator), inner(value.denominator)]}
    if module == "decimal" and name == "Decimal":
        return lambda value, inner: {"decimal": str(value)}
    if module == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return lambda value, inner: inner(value.item())
    return None


def _decode(value, resolve):
    if isinstance(value, list):
        return [_decode(item, resolve) for item in value]
    if not isinstance(value, dict):
        return value
    [(tag, content)] = value.items()
    if tag == "ref":
        return resolve(content)
    return _DECODERS[tag](content, lambda item: _decode(item, resolve))


def _decode_deque(content, inner):
    from collections import deque

    return deque(inner(item) for item in content)


def _decode_fraction(content, inner):
    from fractions import Fraction

    return Fraction(inner(content[0]), inner(content[1]))


def _decode_decimal(content, inner):
    from decimal import Decimal

    return Decimal(content)


_DECODERS = {
    "big": lambda content, inner: Big(content),
    "int": lambda content, inner: int(content, 16),
    "tuple": lambda content, inner: tuple(inner(item) for item in content),
    "dict": lambda content, inner: {inner(key): inner(item) for key, item in content},
    "set": lambda content, inner: {inner(item) for item in content},
    "frozenset": lambda content, inner: frozenset(inner(item) for item in content),
    "complex": lambda content, inner: complex(*content),
    "bytes": lambda content, inner: bytes.fromhex(content),
    "range": lambda content, inner: range(*(inner(item) for item in content)),
    "deque": _decode_deque,
    "fraction": _decode_fraction,
    "decimal": _decode_decimal,
}
