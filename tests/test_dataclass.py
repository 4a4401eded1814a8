"""Our `dataclass` and the standard one, held against each other over every shape that is used."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

import pytest

import compliance_agent.dataclass as ours


def shapes(dataclass: Any) -> dict[str, Any]:
    """Classes of every kind that an agent has, made by this decorator."""

    @dataclass(frozen=True)
    class Plain:
        """Two fields."""

        one: int
        two: str = "b"

    @dataclass(frozen=True)
    class Empty:
        """None."""

    @dataclass(frozen=True)
    class Single:
        """One alone is compared as one."""

        one: int

    @dataclass
    class Open:
        """Can be changed, and has its own list each time."""

        one: int
        many: list[int] = field(default_factory=list)
        kind: ClassVar[str] = "open"

    @dataclass(frozen=True)
    class Partly:
        """Fields that are not shown, not compared, not hashed, not given, or given by name alone."""

        one: int
        two: int = field(default=2, repr=False)
        three: int = field(default=3, compare=False)
        four: int = field(default=4, hash=False)
        five: list[int] = field(init=False, default_factory=list, compare=False)
        six: int = field(init=False, default=6)
        seven: int = field(kw_only=True, default=7)

    @dataclass(frozen=True)
    class Checked:
        """Refuses, and keeps what it worked out."""

        one: int
        double: int = field(init=False)

        def __post_init__(self) -> None:
            """Refuse what is negative."""
            if self.one < 0:
                raise ValueError("negative")
            object.__setattr__(self, "double", 2 * self.one)

    @dataclass(frozen=True, eq=False)
    class Same:
        """Equal to itself alone."""

        one: int

    @dataclass(frozen=True)
    class Own:
        """Has its own way to compare, hash and print."""

        one: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "own"

    @dataclass(frozen=True)
    class OwnEq:  # noqa: PLW1641  # on purpose
        """Has its own way to compare, and no hash of its own."""

        one: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, OwnEq)

    @dataclass(frozen=True)
    class Odd:
        """A field with the name that methods give their first argument."""

        self: int
        _hidden: int = 0

    @dataclass(frozen=True)
    class Derived(Plain):
        """Further fields."""

        three: int = 3

    @dataclass(frozen=True, order=True)
    class Ordered:
        """More than we do ourselves."""

        one: int

    @dataclass(kw_only=True)
    class Named:
        """Given by name alone."""

        one: int
        many: list[int] = field(default_factory=list)

    class Below(Plain):
        """Derived, and no dataclass of its own."""

    found = dict(locals())
    del found["dataclass"]
    return found


STANDARD, OURS = shapes(dataclasses.dataclass), shapes(ours.dataclass)
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}), ((1,), {}), ((-1,), {}), ((1, "x"), {}), ((1, 2, 3), {}), ((1,), {"many": [1]}), ((1,), {"seven": 8}),
    ((), {"one": 5}), ((1,), {"unknown": 1}), ((), {"self": 1, "_hidden": 2}), ((1, 2, 3, 4, 5, 6), {}),
]  # fmt: skip


def told(act: Callable[[], Any]) -> Any:
    """What it gives, or the kind of error and its words."""
    try:
        return act()
    except (TypeError, ValueError, AttributeError) as error:
        return type(error), str(error)


def everything(cls: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """All that can be asked of an instance of this class that is made of these arguments."""

    def make() -> Any:
        return cls(*arguments, **named)

    one = told(make)
    if not isinstance(one, cls):
        return [one]
    two, other = make(), told(lambda: dataclasses.replace(one, one=99))
    changed = isinstance(other, cls)
    return [
        repr(one),
        one == two,
        one != two,
        one == 7,
        changed and (one == other, repr(other), told(lambda: hash(one) == hash(other))),
        told(lambda: hash(one) == hash(two)),
        told(lambda: len({one, two})),
        dataclasses.asdict(one),
        dataclasses.astuple(one),
        vars(one),
        vars(copy.copy(one)) == vars(one),
        copy.deepcopy(one) == one,
        one.__match_args__,
        told(lambda: setattr(one, "one", 5)),
        told(lambda: delattr(one, "one")),
    ]


@pytest.mark.parametrize("name", STANDARD)
def test_an_instance_is_as_the_standard_decorator_makes_it(name: str) -> None:
    """Made, refused, compared, hashed, printed, replaced, changed, copied: all as ever."""
    for arguments, named in CALLS:
        assert everything(OURS[name], arguments, named) == everything(STANDARD[name], arguments, named)


@pytest.mark.parametrize("name", STANDARD)
def test_a_class_reads_as_the_standard_decorator_makes_it(name: str) -> None:
    """Its fields, its signature and the types of its arguments, before and after the first instance."""
    fresh, standard = shapes(ours.dataclass)[name], STANDARD[name]
    assert [
        (f.name, f.type, f.default, f.init, f.repr, f.hash, f.compare, f.kw_only) for f in dataclasses.fields(fresh)
    ] == [
        (f.name, f.type, f.default, f.init, f.repr, f.hash, f.compare, f.kw_only) for f in dataclasses.fields(standard)
    ]
    assert [(p.name, p.kind, p.annotation) for p in inspect.signature(fresh).parameters.values()] == [
        (p.name, p.kind, p.annotation) for p in inspect.signature(standard).parameters.values()
    ]
    assert typing.get_type_hints(fresh.__init__) == typing.get_type_hints(standard.__init__)
    assert fresh.__init__.__qualname__ in {f"{each.__qualname__}.__init__" for each in fresh.__mro__}
    assert fresh.__dataclass_params__.frozen == standard.__dataclass_params__.frozen


@ours.dataclass(frozen=True)
class Kept:
    """At the top of a module, where pickling finds it."""

    one: int
    many: tuple[int, ...] = ()


def test_an_instance_survives_pickling() -> None:
    """Work is handed to other processes so."""
    assert pickle.loads(pickle.dumps(Kept(1, (2,)))) == Kept(1, (2,))


def test_nothing_is_compiled_until_the_first_instance() -> None:
    """The class has no method of its own that was compiled for it, and afterwards its `__init__` alone."""
    fresh = shapes(ours.dataclass)["Single"]
    shared = {vars(fresh)[name] for name in ("__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__")}
    assert shared == {ours._eq, ours._hash, ours._repr, ours._refuse_to_set, ours._refuse_to_delete}
    assert not inspect.isfunction(vars(fresh)["__init__"])
    assert not isinstance(vars(fresh)["__dataclass_fields__"], dict)  # nor was it looked at
    fresh(1)
    assert inspect.isfunction(vars(fresh)["__init__"])


def test_an_instance_in_itself_can_be_printed() -> None:
    """As the standard decorator has it."""
    one = OURS["Open"](1)
    one.many.append(one)
    assert repr(one).endswith("Open(one=1, many=[...])")
