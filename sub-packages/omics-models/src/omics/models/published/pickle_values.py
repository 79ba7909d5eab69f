"""Reads a pickle as data: a stack machine of our own that builds plain values and calls nothing.

- Python's unpickler imports what a file names and calls it. This one looks names up in a table of
  builders; a name that is not there ends the reading with an error that says it.
- Classes of known packages become `Record`s: name, arguments and attributes, inert.
- Opcodes come from `pickletools`, which only decodes them. Steps and copies are counted, so that a
  small file cannot ask for much work or memory.
"""

from __future__ import annotations

import pickletools
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_BYTES = 1 << 26
MAX_STEPS = 2_000_000
MAX_COPIED = 1 << 21
# Records of these packages are kept as data: configurations that lie beside published weights.
RECORD_PACKAGES = ("bmfm_targets", "omegaconf")
RECORD_CLASSES = {
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "typing.Any",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_SCALARS = (str, int, float, bool, bytes, type(None))
_SIZED = (str, bytes, list, tuple, dict, set)


class UnsafeCheckpointError(InputDataError):
    """A checkpoint that names or does something that data has no need of."""

    code = "unsafe-checkpoint"


class DamagedCheckpointError(InputDataError):
    """A checkpoint that is cut off, altered or not of the format its name says."""

    code = "damaged-checkpoint"


@dataclass(frozen=True, slots=True)
class RecordClass:
    """The name of a class whose objects become records; nothing is imported."""

    name: str


@dataclass(slots=True)
class Record:
    """An object of a known package, as data.

    Attributes:
        name: module and class.
        arguments: what its class would have been called with.
        fields: its attributes, or its items if it is a mapping.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    fields: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Builder:
    """A name that a pickle may call, with the function of ours that stands in for it.

    Attributes:
        name: as the pickle says it.
        build: from the tuple of arguments to a plain value.
    """

    name: str
    build: Callable[[tuple[Any, ...]], Any]


@dataclass(slots=True)
class NumberType:
    """A numpy type of single numbers, while its description is being read."""

    code: str
    order: Literal["<", ">", "|", "="] = "="

    @classmethod
    def build(cls, arguments: tuple[Any, ...]) -> NumberType:
        """Return the type of `numpy.dtype(code, ...)`.

        Args:
            arguments: the code first.
        """
        code = arguments[0]
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise ValueError("numpy.dtype of something that is no number")
        return cls(code)

    def read(self, raw: Any) -> float | int | bool:
        """Return the number of some bytes.

        Args:
            raw: as long as the type.
        """
        dtype = np.dtype(self.code).newbyteorder(self.order)
        if not isinstance(raw, bytes) or len(raw) != dtype.itemsize:
            raise ValueError("a numpy number of another length than its type")
        number: float | int | bool = np.frombuffer(raw, dtype)[0].item()
        return number


def read_pickle(
    data: bytes,
    where: str,
    *,
    builders: Mapping[str, Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value of a pickle, made of plain containers, numbers, texts and records.

    Args:
        data: the pickle.
        where: what it is, for messages.
        builders: further names that it may use, to `Builder`s or constants.
        persistent: what stands in for objects kept outside the pickle.

    Raises:
        UnsafeCheckpointError: it names something that is not on the list, or calls what is not.
        DamagedCheckpointError: it is cut off or no pickle.
    """
    if len(data) > MAX_BYTES:
        raise UnsafeCheckpointError(
            f"{where} holds a pickle of {len(data):,} bytes; {MAX_BYTES:,} is the limit for what "
            "stands beside the weights. Take the file from its source again."
        )
    machine = _Machine(where, {**PLAIN_BUILDERS, **(builders or {})}, persistent)
    try:
        return machine.run(data)
    except (ValueError, TypeError, IndexError, KeyError, struct.error, OverflowError) as error:
        if isinstance(error, InputDataError):
            raise
        raise DamagedCheckpointError(
            f"{where} holds no pickle that can be read ({error}). The file is cut off or damaged, or "
            "is of another kind: take it from its source again."
        ) from error


class _Machine:
    """The stack, the marks and the memo of one reading."""

    def __init__(
        self, where: str, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None
    ) -> None:
        self.where = where
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _position) in enumerate(pickletools.genops(data)):
            if count > MAX_STEPS:
                raise self.too_much()
            name = opcode.name
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self.stack.append(argument)
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise UnsafeCheckpointError(
                    f"{self.where} uses the pickle instruction {name}, which plain data has no need "
                    "of. Do not use this file."
                )
        raise ValueError("it has no end")

    def too_much(self) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(
            f"{self.where} holds a pickle that asks for more than {MAX_STEPS:,} steps or copies "
            f"{MAX_COPIED:,} entries, far beyond what stands beside weights. Do not use this file."
        )

    def will_copy(self, *values: Any) -> None:
        """Count what is about to be copied: one container may be named again and again."""
        self.copied += sum(len(value) for value in values if isinstance(value, _SIZED))
        if self.copied > MAX_COPIED:
            raise self.too_much()

    def after_mark(self) -> list[Any]:
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def pop(self) -> Any:
        # What lies below a mark belongs to a container that is not finished.
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise ValueError("its stack is empty")
        return self.stack.pop()

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def named(self, module: Any, name: Any) -> Any:
        """Return what stands in for a global name."""
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if full in self.names:
            return self.names[full]
        known = str(module).split(".")[0] in RECORD_PACKAGES or full in RECORD_CLASSES
        if known and _NAME.fullmatch(full):
            return RecordClass(full)
        raise UnsafeCheckpointError(
            f"{self.where} names {_shown(full)}, which is not on the list of what a checkpoint may "
            "hold. Nothing was executed. If you do not expect this name, do not use the file; if you "
            "do, have its weights saved again as safetensors by somebody you trust."
        )

    def call(self, target: Any, arguments: Any) -> Any:
        """Return what stands in for a call."""
        if not isinstance(arguments, tuple):
            raise TypeError("a call without a tuple of arguments")
        if isinstance(target, RecordClass):
            return Record(target.name, arguments)
        if not isinstance(target, Builder):
            raise UnsafeCheckpointError(
                f"{self.where} calls a value of type {type(target).__name__}, which is no name on "
                "the list of what a checkpoint may call. Nothing was executed; do not use the file."
            )
        self.will_copy(*arguments)
        return target.build(arguments)

    def set_items(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Record):
            target = target.fields
        if not isinstance(target, dict):
            raise TypeError("items for something that is no mapping")
        for index in range(0, len(items), 2):
            target[_checked_key(items[index])] = items[index + 1]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("entries for something that is no list")
        target.extend(items)

    def build(self, state: Any) -> None:
        """Give the object on top its attributes."""
        target = self.stack[-1]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(target, Record):
            self.will_copy(*state)
            state = {
                name: each
                for part in state
                if isinstance(part, dict)
                for name, each in part.items()
            }
        self.will_copy(state)
        if isinstance(target, Record) and isinstance(state, dict):
            if not all(isinstance(name, str) for name in state):
                raise TypeError("attributes that are no names")
            target.fields.update(state)
        elif isinstance(target, NumberType) and isinstance(state, tuple) and len(state) > 1:
            if state[1] not in ("<", ">", "|", "="):
                raise ValueError("a numpy type of unknown byte order")
            target.order = state[1]
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            # The attributes of an OrderedDict (the versions of a model's parts) are left out.
            raise UnsafeCheckpointError(
                f"{self.where} gives a value of type {type(target).__name__} attributes, which "
                "plain data has no need of. Nothing was executed; do not use the file."
            )


def _checked_key(key: Any) -> Any:
    # Hashing a deeply nested tuple could exhaust the stack of the interpreter.
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, _SCALARS) for part in parts):
        raise TypeError("a key that is no name or number")
    return key


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:117]}...")


def _mark(machine: _Machine, _argument: Any) -> None:
    machine.marks.append(len(machine.stack))


def _pop(machine: _Machine, _argument: Any) -> None:
    if machine.marks and len(machine.stack) == machine.marks[-1]:
        machine.marks.pop()
    else:
        machine.pop()


def _tuple_of(size: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _argument: Any) -> None:
        items = [machine.pop() for _ in range(size)]
        machine.stack.append(tuple(reversed(items)))

    return make


def _set_item(machine: _Machine, _argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _set_items(machine: _Machine, _argument: Any) -> None:
    items = machine.after_mark()
    machine.set_items(machine.stack[-1], items)


def _dict(machine: _Machine, _argument: Any) -> None:
    items = machine.after_mark()
    machine.stack.append({})
    machine.set_items(machine.stack[-1], items)


def _add_items(machine: _Machine, _argument: Any) -> None:
    items = machine.after_mark()
    target = machine.stack[-1]
    if not isinstance(target, set):
        raise TypeError("members for something that is no set")
    target.update(_checked_key(item) for item in items)


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(machine.named(module, name))


def _stack_global(machine: _Machine, _argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(machine.named(module, name))


def _reduce(machine: _Machine, _argument: Any) -> None:
    arguments, target = machine.pop(), machine.pop()
    machine.stack.append(machine.call(target, arguments))


def _new_object_with_names(machine: _Machine, _argument: Any) -> None:
    named, arguments, target = machine.pop(), machine.pop(), machine.pop()
    made = machine.call(target, arguments)
    if not isinstance(made, Record) or not isinstance(named, dict):
        raise TypeError("named arguments for something that is no record")
    made.fields.update(named)
    machine.stack.append(made)


def _persistent(machine: _Machine, argument: Any) -> None:
    if machine.persistent is None:
        raise UnsafeCheckpointError(
            f"{machine.where} points to objects outside the pickle, which a plain dictionary has no "
            "need of. Do not use this file."
        )
    machine.stack.append(machine.persistent(argument))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
    "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip

_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda m, _: m.stack.extend(m.after_mark()[:0]),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "LIST": lambda m, _: m.stack.append(m.after_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.after_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "DICT": _dict,
    "FROZENSET": lambda m, _: m.stack.append({_checked_key(each) for each in m.after_mark()}),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.after_mark()),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "ADDITEMS": _add_items,
    "PUT": lambda m, index: m.remember(index),
    "BINPUT": lambda m, index: m.remember(index),
    "LONG_BINPUT": lambda m, index: m.remember(index),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, index: m.stack.append(m.memo[index]),
    "BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_object_with_names,
    "BUILD": lambda m, _: m.build(m.pop()),
    "PERSID": _persistent,
    "BINPERSID": lambda m, _: _persistent(m, m.pop()),
}


def _pairs(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Return the dictionary of a mapping or of pairs, the last argument if there is one."""
    given = arguments[-1] if arguments else ()
    if isinstance(given, dict):
        return dict(given)
    if not isinstance(given, list | tuple):
        return {}
    return {_checked_key(key): value for key, value in given}


def _members(arguments: tuple[Any, ...]) -> set[Any]:
    return {_checked_key(each) for each in (arguments[0] if arguments else ())}


def _latin_bytes(arguments: tuple[Any, ...]) -> bytes:
    # Protocol 2 has no bytes: it writes them as text with this call.
    text, encoding = arguments
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("_codecs.encode of something other than bytes")
    return text.encode("latin1")


def _no_bytes(arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        raise ValueError("bytes of something")
    return b""


def _number(arguments: tuple[Any, ...]) -> float | int | bool:
    kind, raw = arguments
    if not isinstance(kind, NumberType):
        raise TypeError("a numpy number without a type")
    return kind.read(raw)


def _builders(*rows: tuple[str, Callable[[tuple[Any, ...]], Any]]) -> dict[str, Builder]:
    return {name: Builder(name, build) for name, build in rows}


PLAIN_BUILDERS: dict[str, Any] = {
    **_builders(
        ("collections.OrderedDict", _pairs),
        ("collections.defaultdict", _pairs),
        ("collections.Counter", _pairs),
        ("builtins.dict", _pairs),
        ("__builtin__.dict", _pairs),
        ("builtins.set", _members),
        ("__builtin__.set", _members),
        ("builtins.frozenset", _members),
        ("__builtin__.frozenset", _members),
        ("_codecs.encode", _latin_bytes),
        ("builtins.bytes", _no_bytes),
        ("__builtin__.bytes", _no_bytes),
        ("numpy.dtype", NumberType.build),
        ("numpy.core.multiarray.scalar", _number),
        ("numpy._core.multiarray.scalar", _number),
    ),
    # Factories of a defaultdict: named, never called.
    **{f"{module}.{name}": RecordClass(name) for module in ("builtins", "__builtin__")
       for name in ("int", "float", "str", "list")},
}  # fmt: skip
