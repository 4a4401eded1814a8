"""A proposed baseline says what a host is like, enforces only what passes, and never makes a fault the rule unseen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from compliance_agent.baseline import Baseline, load, parse
from compliance_agent.checks import registry
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import accounts
from compliance_agent.models import Mode, Result
from compliance_agent.proposal import Proposed, propose, text_of

pytestmark = pytest.mark.anyio
BASE = load(shipped_baseline(), trusted=False)
# Faults of files that stand on a list: a proposal makes none, because which bytes are right only a person can say.
LISTED = {"program_changed", "program_left"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def proposed(host: FakeHost, base: Baseline = BASE) -> tuple[Mapping[str, Proposed], Baseline]:
    """By check, and the baseline that the written text is."""
    found = await propose(base, host, host.clock)
    text = text_of(found, "2026.12.1", "2026-11-28T08:00:00Z")
    return {item.entry.check.id: item for item in found}, parse(text.encode())


async def test_a_healthy_host_is_held_to_what_it_is() -> None:
    host = healthy_host()
    found, made = await proposed(host)
    assert {name: item.result.result for name, item in found.items()} == dict.fromkeys(BASE.entries, Result.PASS)
    assert {name: made.mode_of(name) for name in made.entries} == {name: BASE.mode_of(name) for name in BASE.entries}
    assert (made.version, host.changed) == ("2026.12.1", [])
    assert {name: entry.parameters for name, entry in made.entries.items()} == {
        name: item.entry.parameters for name, item in found.items()
    }, "what is written is what was looked at"


async def test_values_are_the_hosts_own() -> None:
    host = healthy_host()
    host.service("chrony.service", active=False)
    host.service("systemd-timesyncd.service")
    accounts.add(host, "/etc/passwd", "reception:x:1005:1005::/home/reception:/bin/bash")
    accounts.add(host, "/etc/shadow", f"reception:{accounts.HASH}:19000:0:99999:7:::")
    _, made = await proposed(host)
    assert (made.entries["time_sync"].parameters.daemon, made.entries["time_sync"].parameters.unit) == (
        "timesyncd", "systemd-timesyncd.service",
    )  # fmt: skip
    assert "reception" in made.entries["accounts"].parameters.people
    assert made.entries["patching"].parameters.manager == "apt"
    assert made.entries["firewall"].parameters.allow_tcp == ("22", "443")


@pytest.mark.parametrize(
    "name", sorted(name for name, fault in FAULTS.items() if fault.check in BASE.entries and name not in LISTED)
)
async def test_a_fault_is_never_enforced_nor_hidden(name: str) -> None:
    """Lists are taken as they are found, which the file says; every other fault leaves its check in audit, with its reason."""
    host = healthy_host()
    FAULTS[name].inject(host)
    found, made = await proposed(host)
    item = found[FAULTS[name].check]
    if item.result.result is Result.PASS:
        assert item.seen, "a fault that became the rule must stand in what was taken from this host"
    else:
        assert made.mode_of(item.entry.check.id) is Mode.AUDIT
        text = text_of([item], "1", "now")
        assert f"This host: {item.result.result} ({item.result.reason})." in text


def refusing(host: FakeHost, check: str, how: Callable[[], Any]) -> Baseline:
    async def asked(_: Any) -> Any:
        return how()

    entry = BASE.entries[check]
    return replace(BASE, entries={check: replace(entry, check=replace(entry.check, propose=asked))})


def _cannot() -> Any:
    raise CannotTell("not_permitted")


@pytest.mark.parametrize(
    ("how", "untold"),
    [
        (_cannot, "not_permitted"),
        (lambda: {"people": ("Jane Doe",)}, "bad_config"),
        (lambda: {"nonsense": "x"}, "bad_config"),
    ],
    ids=["not permitted", "a name that a baseline cannot hold", "no such parameter"],
)
async def test_what_could_not_be_asked_is_the_example_in_audit_and_says_so(how: Callable[[], Any], untold: str) -> None:
    host = healthy_host()
    found, made = await proposed(host, refusing(host, "accounts", how))
    assert (found["accounts"].untold, found["accounts"].seen) == (untold, ())
    assert made.mode_of("accounts") is Mode.AUDIT, "though the host passes the example's values"
    assert made.entries["accounts"].parameters == BASE.entries["accounts"].parameters
    assert f"could not be asked ({untold})" in text_of(list(found.values()), "1", "now")


async def test_no_proposal_changes_the_host_or_invents_parameters() -> None:
    host = healthy_host()
    for check in registry().values():
        if check.propose is not None:
            values = await check.propose(host)
            assert values and set(values) <= {field.name for field in dataclasses.fields(check.spec.parameters)}, (
                check.id
            )
    assert host.changed == []
