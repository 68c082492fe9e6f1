"""Which class a stored tag means: names of classes, and the classes this program has loaded. Never imports anything.

A tag is the name given with `@type_name`, or `module:qualname`. Tags without a colon that this package itself uses
("tuple", "Decimal") are reserved.
"""

from __future__ import annotations

import dataclasses
import sys
from enum import Enum
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard, TypeVar

import msgspec

from perdure.errors import NotEncodable, UnknownType

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

Kind = Literal["exception", "enum", "struct", "pydantic", "namedtuple", "dataclass"]

RESERVED: Final = frozenset(
    [
        *("None", "bool", "int", "float", "str", "list", "dict", "tuple", "set", "frozenset", "bytes", "bytearray"),
        *("UUID", "datetime", "date", "time", "timedelta", "Decimal", "complex"),
        *("Path", "PurePosixPath", "PureWindowsPath"),
    ]
)
NAME_ATTRIBUTE: Final = "__perdure_type__"
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: unset for classes written in C with a fixed layout

classes: Final[dict[str, type[Any]]] = {}
"""Tag -> class: the registry. A tag names one class, so that it is as large as the program, not as its history."""

_undecided: Final[dict[str, type[Any]]] = {}
"""Names given to what was no data class yet: `@dataclass` above `@type_name`, which may make a new class of it."""

changed: Final[list[Callable[[type[Any]], object]]] = []
"""Called with a class whose tag or registration has changed, so that what was compiled for it is dropped."""


def is_pydantic(cls: type[Any]) -> bool:
    """Whether it is a pydantic model; pydantic is never imported to find out."""
    module = sys.modules.get("pydantic.main")
    base = None if module is None else vars(module).get("BaseModel")
    return isinstance(base, type) and issubclass(cls, base)


def c_base(cls: type[Any]) -> type[Any]:
    """The nearest base with a layout of its own written in C; `object` for ordinary classes."""
    for base in cls.__mro__:
        if not base.__flags__ & _HEAP_TYPE:
            return base
    return object


def kind_of(cls: type[Any]) -> Kind | None:
    """How values of this class are written, or None: they are not."""
    if issubclass(cls, BaseException):
        return "exception"
    if issubclass(cls, Enum):
        return "enum"
    if issubclass(cls, msgspec.Struct):
        return "struct"
    if is_pydantic(cls):
        return "pydantic"
    base = c_base(cls)
    if base is tuple and isinstance(getattr(cls, "_fields", None), tuple):
        return "namedtuple"
    if base is object and dataclasses.is_dataclass(cls):
        return "dataclass"
    return None


def tag_of_class(cls: type[Any]) -> str:
    """The tag that values of this class carry."""
    own = vars(cls).get(NAME_ATTRIBUTE)
    return own if isinstance(own, str) else f"{cls.__module__}:{cls.__qualname__}"


def _same_name(a: type[Any], b: type[Any]) -> bool:
    return a.__module__ == b.__module__ and a.__qualname__ == b.__qualname__


def register(cls: type[Any]) -> str:
    """Values of the class can be read back in this program; needed for local classes only. Returns its tag.

    Raises:
        NotEncodable: values of such a class are not written at all.
        ValueError: another class has the tag.
    """
    tag = tag_of_class(cls)
    known = classes.get(tag)
    if known is cls:
        return tag
    if kind_of(cls) is None:
        raise NotEncodable(f"values of {tag} cannot be written: make it a dataclass, Struct, NamedTuple, Enum or model")
    if known is not None:
        if not _same_name(known, cls):
            raise ValueError(f"type name {tag!r} is taken by {known.__module__}.{known.__qualname__}; use another")
        if find(f"{known.__module__}:{known.__qualname__}") is known:
            return tag  # `cls` is what the module held before it was reloaded
    classes[tag] = cls
    if known is not None:
        for forget in changed:
            forget(known)
    return tag


def type_name(name: str, /) -> Callable[[type[T]], type[T]]:
    """Class decorator: values are stored under this name, which stays when the class is renamed or moved.

    For a class whose values are stored already, give its old `"module:qualname"`.

    Raises:
        ValueError: the name is empty, or taken by another class or by Perdure.
    """
    if not name or name in RESERVED:
        raise ValueError(f"type name {name!r} is {'taken by Perdure' if name else 'empty'}; use another")

    def decorate(cls: type[T]) -> type[T]:
        known = classes.get(name)
        if known is not None and known is not cls and not _same_name(known, cls):
            raise ValueError(f"type name {name!r} is taken by {known.__module__}.{known.__qualname__}; use another")
        setattr(cls, NAME_ATTRIBUTE, name)
        if kind_of(cls) is None:
            _undecided[name] = cls
            return cls
        classes[name] = cls  # also when a reload gave the name to the class before
        for stale in {cls, known or cls}:
            for forget in changed:
                forget(stale)
        return cls

    return decorate


def _is_class(found: object) -> TypeGuard[type[Any]]:
    return issubclass(type(found), type)  # isinstance would ask the object


def find(tag: str) -> type[Any] | None:
    """The class of that name in a module loaded already, if values of it are written. Runs no code of anybody."""
    module_name, colon, qualname = tag.partition(":")
    module = sys.modules.get(module_name)
    if not colon or not issubclass(type(module), ModuleType):
        return None
    found: object = module
    # `__dict__` past any `__getattr__`: a lazy module would import, a descriptor would run
    for part in qualname.split("."):
        if _is_class(found):
            space: Any = type.__getattribute__(found, "__dict__")
        else:
            space = object.__getattribute__(found, "__dict__") if found is module else {}
        found = space.get(part)
    if not _is_class(found) or found.__module__ != module_name or found.__qualname__ != qualname:
        return None
    return found if kind_of(found) is not None else None


def resolve(tag: str) -> type[Any]:
    """The class that the tag means in this program.

    Raises:
        UnknownType: it is not loaded, or nothing whose values are stored.
    """
    cls = classes.get(tag)
    if cls is None:
        named = _undecided.get(tag)
        cls = find(tag if named is None else f"{named.__module__}:{named.__qualname__}")
        if cls is None and named is not None and kind_of(named) is not None:
            cls = named
        if cls is None:
            raise UnknownType(tag)
        classes[tag] = cls
    return cls
