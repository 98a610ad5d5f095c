"""Pickles and PyTorch files read as data: nothing in them is imported, called or executed.

A pickle is a programme for a small stack machine whose instructions may call any Python function. ``read_pickle``
runs that machine with a fixed list of constructors in place of functions: tensors, arrays, numbers, strings and
containers are rebuilt. Objects of other classes are refused, or kept as ``Record``, their contents without their code.

Large arrays are views of the mapped file: reading a file of 10 GB takes the memory of its index. That is why this is no
``pickle.Unpickler`` with a restricted ``find_class``, which copies every byte string into memory.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of PyTorch files before 1.6
SMALL = 1024  # bytes; longer byte strings stay in the file
LENGTH_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"}
LITERALS |= {"SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
# What no weights or slots have a use for. Reading them would do no harm; a file that holds them means harm.
HARMFUL = {"os", "posix", "nt", "subprocess", "sys", "shutil", "importlib", "runpy", "socket", "ctypes", "pty", "code"}
HARMFUL |= {"pickle", "_pickle", "marshal", "multiprocessing", "threading", "urllib", "http", "requests", "webbrowser"}
HARMFUL |= {"commands"}  # what protocol 2, which torch.save writes, calls subprocess
HARMFUL_BUILTINS = {"eval", "exec", "compile", "__import__", "open", "input", "breakpoint", "globals", "vars"}
DTYPE_CODE = re.compile(r"(b1|[iu][1248]|f[248]|c8|c16)")


TENSOR_ALONE = "torch.storage._load_from_bytes"  # takes a whole PyTorch file as its argument


class ForeignPickleError(ValueError):
    """The file holds something other than data."""


@dataclass(frozen=True)
class Symbol:
    """The name of a class or function; only its name."""

    name: str


@dataclass(eq=False)
class Record:
    """An object of a class that is not rebuilt: what the file says about it.

    Attributes:
        name: its class, or the function that would have made it.
        arguments: what that would have been called with.
        state: its attributes.
        items: what would have been put into it as into a list or a dict.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """Bytes that stay in the file."""

    memory: Any
    offset: int
    length: int


@dataclass(eq=False)
class _Pending:
    """A value that is known only once its state has been read; ``places`` are where the memo holds it."""

    finish: Callable[[Any], Any]
    places: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Storage:
    """Numbers of one or several tensors."""

    values: Tensor


class _Mark:
    """Marks the start of a group on the stack."""


def read_pickle(path: Path, objects: bool = False) -> Any:
    """The contents of a pickle or a PyTorch file (1.6 or later).

    Args:
        path: the file.
        objects: keep objects of unknown classes as ``Record`` (pickled modules need it); else they are refused.

    Returns:
        Dicts (whatever their class in the file), lists, tuples, sets, strings, numbers, CPU tensors, read-only NumPy
        arrays, ``Symbol`` and ``Record``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, another format, or something other than data (``ForeignPickleError``).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith(b"PK"):
            return _read_archive(path, objects)
        if not start.startswith(b"\x80"):
            raise ValueError(f"{path} is neither a pickle nor a PyTorch file: it begins with {start!r}")
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    value = _Machine(path, memory, objects).run()
    if isinstance(value, int) and value == LEGACY_MAGIC:
        raise ValueError(
            f"{path} was written by PyTorch before 1.6; load it with weights_only=True where it can be trusted and "
            f"torch.save it again"
        )
    return value


def memory_needed(path: Path) -> int:
    """Bytes that ``read_pickle`` holds of a file of arrays or tensors: 0 where they stay in the file, about.

    Pickles of protocol 2 and below hold arrays as text, which is decoded (1.4 times the file, measured), and PyTorch's
    storages are read whole (1.1 times).
    """
    with path.open("rb") as file:
        start = file.read(2)
    in_parts = start[:1] == b"\x80" and start[1:2] > b"\x02"
    return 0 if in_parts else 2 * path.stat().st_size


def _read_archive(path: Path, objects: bool) -> Any:
    """The zip format of ``torch.save``: a pickle, and one entry of raw numbers per storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(names) != 1:
                raise ForeignPickleError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
            root = names[0].removesuffix("data.pkl")
            storages: dict[str, _Storage] = {}

            def load(reference: Any) -> _Storage:
                kind, storage_type, key, _, numel = reference
                if kind != "storage" or not isinstance(key, str):
                    raise ValueError(f"unknown reference {reference!r}")
                if key not in storages:
                    dtype = _storage_dtype(storage_type.name)
                    raw = archive.read(f"{root}data/{key}")
                    if len(raw) != numel * dtype.itemsize:
                        raise ValueError(f"storage {key} has {len(raw)} bytes, expected {numel * dtype.itemsize}")
                    empty = torch.empty(0, dtype=dtype)
                    storages[key] = _Storage(torch.frombuffer(bytearray(raw), dtype=dtype) if raw else empty)
                return storages[key]

            return _Machine(path, io.BytesIO(archive.read(names[0])), objects, load).run()
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is a truncated or damaged PyTorch file: {error}; fetch it again") from error


class _Machine:
    """The pickle machine without its power to call.

    Args:
        path: for messages.
        stream: the pickle: a memory map or BytesIO.
        objects: keep unknown objects as records.
        load: resolves persistent references, to storages of a PyTorch file.
    """

    def __init__(self, path: Path, stream: Any, objects: bool, load: Callable[[Any], _Storage] | None = None) -> None:
        self.path, self.stream, self.objects, self.load = path, stream, objects, load
        self.memory = stream.getbuffer() if isinstance(stream, io.BytesIO) else stream
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The pickled value."""
        try:
            for opcode, argument, position in pickletools.genops(self.stream):
                self._step(opcode.name, argument, position or 0)
            (value,) = self.stack
        except ForeignPickleError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{self.path} is truncated or not a valid pickle: {error}") from error
        if isinstance(value, _Pending):
            raise ValueError(f"{self.path} is not a valid pickle: its value is incomplete")
        return value

    def _step(self, name: str, argument: Any, position: int) -> None:
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in LENGTH_BYTES:
            span = Span(self.memory, position + 1 + LENGTH_BYTES[name], len(argument))
            self.stack.append(span if len(argument) > SMALL else bytes(argument))
        elif name not in ("PROTO", "FRAME", "STOP"):
            action = getattr(self, f"_op_{name.lower()}", None)
            if action is None:
                raise ValueError(f"instruction {name} has no use in data")
            action(argument)

    def _op_mark(self, _: Any) -> None:
        self.stack.append(_Mark)

    def _group(self) -> list[Any]:
        """What lies above the last mark, which goes with it."""
        at = len(self.stack) - 1
        while self.stack[at] is not _Mark:
            at -= 1
        group = self.stack[at + 1 :]
        del self.stack[at:]
        return group

    def _op_pop(self, _: Any) -> None:
        self.stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._group()

    def _op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._group()))

    def _last(self, count: int) -> tuple[Any, ...]:
        taken = tuple(self.stack[-count:])
        if len(taken) < count:
            raise IndexError("too few values")
        del self.stack[-count:]
        return taken

    def _op_tuple1(self, _: Any) -> None:
        self.stack.append(self._last(1))

    def _op_tuple2(self, _: Any) -> None:
        self.stack.append(self._last(2))

    def _op_tuple3(self, _: Any) -> None:
        self.stack.append(self._last(3))

    def _op_list(self, _: Any) -> None:
        self.stack.append(self._group())

    def _op_dict(self, _: Any) -> None:
        self.stack.append(dict(_pairs(self._group())))

    def _op_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(self._group()))

    def _op_append(self, _: Any) -> None:
        (value,) = self._last(1)
        self._extend([value])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._group())

    def _op_additems(self, _: Any) -> None:
        values = self._group()
        self.stack[-1].update(values)

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Record) else target).extend(values)

    def _op_setitem(self, _: Any) -> None:
        self._set(list(self._last(2)))

    def _op_setitems(self, _: Any) -> None:
        self._set(self._group())

    def _set(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items.extend(_pairs(flat))
        else:
            target.update(_pairs(flat))

    def _op_put(self, key: int) -> None:
        value = self.stack[-1]
        self.memo[key] = value
        if isinstance(value, _Pending):
            value.places.append(key)

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: Any) -> None:
        self._op_put(len(self.memo))

    def _op_get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    _op_binget = _op_long_binget = _op_get

    def _op_global(self, argument: str) -> None:
        self.stack.append(self._symbol(*argument.split(" ", 1)))

    def _op_stack_global(self, _: Any) -> None:
        self.stack.append(self._symbol(*self._last(2)))

    def _symbol(self, module: str, name: str) -> Symbol:
        symbol, root = f"{module}.{name}", module.partition(".")[0]
        if symbol in CONSTRUCTORS or symbol in NAMES or _is_torch_type(module, name):
            return Symbol(symbol)
        builtin = root in ("builtins", "__builtin__")
        if root in HARMFUL or (builtin and name in HARMFUL_BUILTINS):
            raise ForeignPickleError(
                f"{self.path} asks for {symbol}, which no weights or slots need: the file is malicious or not what it "
                f"claims to be. Nothing of it was executed; delete it and fetch it from its source again"
            )
        if symbol == TENSOR_ALONE:
            raise ForeignPickleError(f"{self.path} holds tensors that pickle wrote; save them with torch.save")
        if not self.objects:
            raise ForeignPickleError(
                f"{self.path} holds {symbol}; expected only tensors, arrays, numbers, strings and containers"
            )
        return Symbol(symbol)

    def _op_persid(self, argument: Any) -> None:
        self._refer(argument)

    def _op_binpersid(self, _: Any) -> None:
        self._refer(self._last(1)[0])

    def _refer(self, reference: Any) -> None:
        if self.load is None:
            raise ValueError("a reference to another file")
        self.stack.append(self.load(reference))

    def _op_reduce(self, _: Any) -> None:
        function, arguments = self._last(2)
        self.stack.append(self._make(function, arguments))

    def _op_newobj(self, _: Any) -> None:
        self._op_reduce(None)

    def _op_newobj_ex(self, _: Any) -> None:
        function, arguments, named = self._last(3)
        self.stack.append(self._make(function, (*arguments, *dict(named).items())))

    def _op_obj(self, _: Any) -> None:
        function, *arguments = self._group()
        self.stack.append(self._make(function, tuple(arguments)))

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._group())
        self.stack.append(self._make(self._symbol(*argument.split(" ", 1)), arguments))

    def _make(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        name = function.name if isinstance(function, Symbol | Record) else type(function).__name__
        if isinstance(function, Symbol) and name in CONSTRUCTORS:
            return CONSTRUCTORS[name](*arguments)
        if not self.objects:
            raise ForeignPickleError(f"{self.path} holds an object of {name}; expected only data")
        return Record(name, tuple(arguments))

    def _op_build(self, _: Any) -> None:
        target, state = self._last(2)
        if isinstance(target, _Pending):
            value = target.finish(state)
            for place in target.places:
                self.memo[place] = value
            target = value
        elif isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # attributes of an ordered dict say nothing about its contents
            raise ValueError(f"{type(target).__name__} has no attributes to set")
        self.stack.append(target)


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _is_torch_type(module: str, name: str) -> bool:
    """Whether this names a storage class or a dtype of torch."""
    return module in ("torch", "torch.storage") and (
        name.endswith("Storage") or hasattr(torch, name) and name.islower()
    )


def _storage_dtype(name: str) -> torch.dtype:
    kind = name.rpartition(".")[2].removesuffix("Storage")
    dtypes = {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "Untyped": torch.uint8,
    }  # fmt: skip
    return dtypes[kind]


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if min([offset, *size, *stride]) < 0:
        raise ValueError(f"a tensor of size {tuple(size)} with strides {tuple(stride)}")
    return torch.as_strided(storage.values, tuple(size), tuple(stride), offset)


def _tensor_of_dtype(storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    dtype = getattr(torch, rest[2].name.removeprefix("torch."))
    return _tensor(_Storage(storage.values.view(dtype)), offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _dtype(code: str, *_: Any) -> _Pending:
    if not DTYPE_CODE.fullmatch(code):
        raise ValueError(f"arrays of type {code!r}; expected numbers")

    def finish(state: Any) -> np.dtype[Any]:
        return np.dtype(code).newbyteorder("=" if state[1] == "|" else state[1])

    return _Pending(finish)


def _array(buffer: Any, dtype: np.dtype[Any], shape: Any, order: str, axes: Any = None) -> NDArray[Any]:
    count = int(np.prod(shape, dtype=np.int64))
    if isinstance(buffer, Span):
        if buffer.length != count * dtype.itemsize:
            raise ValueError(f"an array of shape {tuple(shape)} with {buffer.length} bytes")
        flat = np.frombuffer(buffer.memory, dtype, count, buffer.offset)
    else:
        flat = np.frombuffer(buffer, dtype)
    array = flat.reshape(tuple(shape), order="F" if order == "F" else "C")
    # Order K, of NumPy 2: numbers lie as in an array of this shape whose axes are then exchanged.
    return array if axes is None or order != "K" else array.transpose(tuple(axes))


def _reconstruct(*_: Any) -> _Pending:
    """An array whose shape and numbers come as its state: (version, shape, dtype, Fortran order, bytes)."""
    return _Pending(lambda state: _array(state[4], state[2], state[1], "F" if state[3] else "C"))


def _scalar(dtype: np.dtype[Any], raw: bytes) -> Any:
    return np.frombuffer(raw, dtype)[0].item()


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "collections.defaultdict": lambda *_: {},
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")  # the latter in protocol 2, which torch.save writes
        for kind in (dict, list, set, frozenset, tuple, complex, slice)
    },
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes, as protocol 2 writes them
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": tuple,
    "torch.device": lambda *names: ":".join(map(str, names)),
}
NAMES = frozenset({"numpy.ndarray"})
