"""`dataclasses.dataclass` for the classes that an agent loads, without compiling anything while they are made.

The standard decorator writes up to six methods of each class as text and compiles them, at every start of every process. Here
it only finds the fields, when somebody asks for them, with all of its writing turned off; to compare, hash, print and refuse
changes there is one function for all classes, and `__init__`, which must be quick, is compiled when it is first asked for.
`fields`, `replace`, `asdict`, `match`, copying and signatures are as ever. A class that asks for more than `frozen`, `eq` and
`kw_only`, or is derived from another dataclass, is left to the standard decorator (docs/adr/0026).
"""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

_GIVEN_LATER = object()  # the default of an argument whose value a factory makes for each instance


def _decorate(
    cls: Any = None, /, *, frozen: bool = False, eq: bool = True, kw_only: bool = False, **further: Any
) -> Any:
    """What `dataclasses.dataclass` makes of a class, with the methods of this module."""
    if cls is None:
        return lambda decorated: _decorate(decorated, frozen=frozen, eq=eq, kw_only=kw_only, **further)
    if further or any("__dataclass_fields__" in vars(base) for base in cls.__mro__[1:]):
        return dataclasses.dataclass(cls, frozen=frozen, eq=eq, kw_only=kw_only, **further)
    methods: dict[str, Any] = {"__init__": _Init(cls, frozen), "__repr__": _repr}
    if eq:
        methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    if frozen:
        methods |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
    own = {name for name, value in vars(cls).items() if value is not None}
    for name in methods.keys() - own:
        setattr(cls, name, methods[name])
    for name in ("__dataclass_fields__", "__dataclass_params__", "__match_args__"):
        setattr(cls, name, _Later(cls, name, frozen, kw_only))
    if any(isinstance(value, dataclasses.Field) for value in vars(cls).values()):
        dataclasses.fields(cls)  # now, so that the class has the default itself in its place
    return cls


class _Later:
    """The place of something that the standard decorator finds out of a class, until it is asked for."""

    __slots__ = ("_cls", "_frozen", "_kw_only", "_name")

    def __init__(self, cls: Any, name: str, frozen: bool, kw_only: bool) -> None:
        self._cls, self._name, self._frozen, self._kw_only = cls, name, frozen, kw_only

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """All of it at once; two threads find the same."""
        cls = self._cls
        dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False, kw_only=self._kw_only)(cls)
        cls.__dataclass_params__.frozen = self._frozen  # which it asks of a base
        given = tuple(field.name for field in dataclasses.fields(cls) if field.init and not field.kw_only)
        cls.__match_args__ = given  # type: ignore[misc]  # to mypy it belongs to the class as it is written
        return getattr(cls, self._name)


class _Init:
    """The place of an `__init__` until it is asked for, by a call or by who reads its signature."""

    __slots__ = ("_frozen", "_made")

    def __init__(self, made: Any, frozen: bool) -> None:
        self._made, self._frozen = made, frozen

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        init: Any = _compiled(self._made, self._frozen)
        self._made.__init__ = init  # two threads at once make the same
        return init.__get__(instance, owner)


def _compiled(made: Any, frozen: bool) -> Callable[..., None]:
    """The `__init__` that the standard decorator would have written."""
    fields = dataclasses.fields(made)
    this = "self" if all(field.name != "self" for field in fields) else "_self"
    known: dict[str, Any] = {"_set": object.__setattr__, "_later": _GIVEN_LATER}
    taken, named, lines = [this], list[str](), list[str]()
    for field in fields:
        default, value = "", field.name
        if field.default_factory is not dataclasses.MISSING:
            known[f"_make_{field.name}"], default = field.default_factory, "=_later"
            made_now = f"_make_{field.name}()"
            value = f"{made_now} if {field.name} is _later else {field.name}" if field.init else made_now
        elif field.default is not dataclasses.MISSING:
            known[f"_default_{field.name}"], default = field.default, f"=_default_{field.name}"
        if field.init:
            (named if field.kw_only else taken).append(field.name + default)
        elif value == field.name:
            continue  # the class has its default, or `__post_init__` sets it
        lines.append(f"_set({this}, {field.name!r}, {value})" if frozen else f"{this}.{field.name} = {value}")
    if hasattr(made, "__post_init__"):
        lines.append(f"{this}.__post_init__()")
    arguments = ", ".join([*taken, *(["*", *named] if named else [])])
    body = "\n  ".join(lines or ["pass"])
    text = f"def make({', '.join(known)}):\n def __init__({arguments}):\n  {body}\n return __init__"
    scope: dict[str, Any] = {}
    exec(text, vars(sys.modules[made.__module__]), scope)  # noqa: S102  # names of fields, written by us
    init: Any = scope["make"](**known)
    init.__qualname__ = f"{made.__qualname__}.__init__"
    init.__annotations__ = {field.name: field.type for field in fields if field.init} | {"return": None}
    return init  # type: ignore[no-any-return]  # made of text, so it has no type


def _values(names: Iterable[str]) -> staticmethod[[Any], tuple[Any, ...]]:
    """What gives the values of these fields as a tuple; the first is there twice, for one alone would come without a tuple."""
    every = list(names)
    return staticmethod(attrgetter(every[0], *every) if every else lambda _: ())


def _eq(self: Any, other: Any) -> Any:
    cls = self.__class__
    if other.__class__ is not cls:
        return NotImplemented
    if not hasattr(cls, "__compared__"):
        cls.__compared__ = _values(field.name for field in dataclasses.fields(cls) if field.compare)
    return cls.__compared__(self) == cls.__compared__(other)


def _hash(self: Any) -> int:
    cls = self.__class__
    if not hasattr(cls, "__hashed__"):
        cls.__hashed__ = _values(f.name for f in dataclasses.fields(cls) if (f.compare if f.hash is None else f.hash))
    return hash(cls.__hashed__(self))


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse_to_set(self: Any, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    dataclass = _decorate
