"""Several texts as one value of a statement: an array of PostgreSQL, and JSON where there are none.

A statement with a place for each text is made anew for each number of them, here and in the database, which then prepares it again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

import orjson
from sqlalchemy import Boolean, Dialect, String
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeDecorator, TypeEngine


class Texts(TypeDecorator[Collection[str]]):
    """Any number of texts."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """What this database has for them."""
        return dialect.type_descriptor(ARRAY(String()) if dialect.name == "postgresql" else String())

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> Any:
        """As they go in."""
        texts = list(value or ())
        return texts if dialect.name == "postgresql" else orjson.dumps(texts).decode()


class among_texts(FunctionElement[bool]):
    """Whether the first, a column, has one of the texts of the second."""

    name = "among_texts"
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: OperatorType | None = None) -> Self:
        """As it is: where there is no type of truth, it would be asked whether it equals 1, which no index answers."""
        return self


class among_pairs(FunctionElement[bool]):
    """Whether the first two, columns, have one of the pairs of texts of the third, which is JSON: `[["a", "b"], ...]`."""

    name = "among_pairs"
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: OperatorType | None = None) -> Self:
        """As `among_texts`."""
        return self


def pairs(texts: Collection[tuple[str, str]]) -> str:
    """Pairs as the parameter of `among_pairs`."""
    return orjson.dumps(list(texts)).decode()


@compiles(among_texts)
def _in_json(element: among_texts, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = (compiler.process(part, **options) for part in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({texts})))"  # noqa: S608  our own words


@compiles(among_texts, "postgresql")
def _in_array(element: among_texts, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = (compiler.process(part, **options) for part in element.clauses)
    return f"({column} = ANY ({texts}))"


@compiles(among_pairs)
def _in_json_pairs(element: among_pairs, compiler: SQLCompiler, **options: Any) -> str:
    one, other, texts = (compiler.process(part, **options) for part in element.clauses)
    each = f"SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each({texts})"  # noqa: S608  our own words
    return f"(({one}, {other}) IN ({each}))"


@compiles(among_pairs, "postgresql")
def _in_jsonb_pairs(element: among_pairs, compiler: SQLCompiler, **options: Any) -> str:
    one, other, texts = (compiler.process(part, **options) for part in element.clauses)
    # OFFSET 0 has the texts taken out of the JSON before rows are looked for. Within a condition on rows that row-level security
    # guards, what takes them out might tell of rows that are not to be seen: no index would be used, and every row read.
    each = f"SELECT value ->> 0 AS one, value ->> 1 AS other FROM jsonb_array_elements(CAST({texts} AS jsonb)) OFFSET 0"  # noqa: S608  our own words
    return f"(({one}, {other}) IN (SELECT one, other FROM ({each}) AS texts))"  # noqa: S608  our own words
