"""The template engine: everything is escaped, and a name that does not exist is an error rather than an empty place."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from compliance_agent import __version__
from compliance_agent.web import words
from compliance_agent.web.assets import Asset, assets
from compliance_agent.web.pages import age


def iso(moment: datetime) -> str:
    """RFC 3339 in UTC, for `<time datetime>`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(moment: datetime) -> str:
    """The same for a reader."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _asset(name: str) -> Asset:
    return assets()[name]


@cache
def environment() -> Environment:
    """The one engine of this process, with the words every template may use."""
    engine = Environment(
        loader=PackageLoader("compliance_agent.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    engine.globals.update(
        age=age,
        asset=_asset,
        iso=iso,
        utc=utc,
        version=__version__,
        word=words.word,
        verdicts=words.VERDICTS,
        outcomes=words.OUTCOMES,
        kinds=words.KINDS,
        action_results=words.ACTION_RESULTS,
    )
    return engine


def render(template: str, **values: Any) -> str:
    """The page as text."""
    return environment().get_template(template).render(values)
