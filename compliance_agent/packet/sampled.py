"""A packet that is a sample: what it is drawn from, and whether it holds exactly that. Pure.

    asked = Drawing(hosts, 25, "seed-1", 4096).asked(site_id, control, since, until)
    list(problems(scope, files["sample.json"], records, root_at))

`sample.json` is the document of the sample (packet/sample.py), and `packet.json` names its SHA-256. Whoever has the packet draws
again, from the hosts that `packet.json` names: the same host-days in the same order, each with the record that stands here or with
none. How many records a host-day had beside the one that is shown, and that a host-day without one had none, is the server's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from compliance_agent.documents import read_json
from compliance_agent.errors import AgentError, BadEvidence, ConfigError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash
from compliance_agent.packet.content import Record, Scope, moment
from compliance_agent.packet.sample import Asked, Item, Life, Sample, item_of, population, pull, span_of

FILE = "sample.json"


@dataclass(frozen=True)
class Drawing:
    """How a sample is drawn, beside its site, section and days.

    Attributes:
        hosts: labels; none are all.
        size: of the log that it is drawn from; None is what the log holds when it is drawn.
    """

    hosts: tuple[str, ...]
    number: int
    seed: str
    size: int | None = None

    def asked(self, site_id: str, control: str | None, since: date, until: date) -> Asked:
        """As a sample asks; ConfigError as `Asked`."""
        return Asked(site_id, control, self.hosts, span_of(since, until), self.number, self.seed)

    def encode(self) -> str:
        """Canonical JSON."""
        said = {"hosts": list(self.hosts), "number": self.number, "seed": self.seed, "size": self.size}
        return canonical(said).decode()

    @classmethod
    def parse(cls, raw: str) -> Drawing:
        """From `encode`."""
        said = read_json(raw.encode())
        return cls(tuple(said["hosts"]), said["number"], said["seed"], said["size"])


def lives(scope: Scope) -> Iterator[Life]:
    """When the hosts of a packet were enrolled."""
    for host in scope.hosts:
        ended = moment(host.revoked_at).date() if host.revoked_at else None
        yield Life(host.host_id, moment(host.enrolled_at).date(), ended)


def items(records: Iterable[Record], control: str | None) -> Iterator[Item]:
    """Records as a sample names them; those alone that say something about the section."""
    for record in records:
        item = item_of(record.document, record.digest, record.index, control)
        if item is not None:
            yield item


def problems(
    scope: Scope, raw: bytes, records: Sequence[Record], root_at: Callable[[int], bytes]
) -> Iterator[tuple[str, str]]:
    """What is wrong with a packet that says it is a sample: where, and what.

    Args:
        scope: of the packet.
        raw: its `sample.json`.
        records: all that stand in it, each already held to its signature and to the log.
        root_at: the log's root hash at a size, as its entries make it.
    """
    if hashlib.sha256(raw).hexdigest() != scope.sample:
        yield _wrong("is not the one that packet.json names")
    try:
        said, asked, log = _read(raw, scope)
    except (AgentError, KeyError, TypeError, ValueError, AttributeError):
        yield _wrong("is not the document of a sample of this packet")
        return
    if not 1 <= log.size <= scope.size or root_at(log.size) != log.root:
        yield _wrong("names a size and root that this log never had")
        return
    again = pull(asked, log, population(lives(scope), asked), items(records, asked.control))
    yield from _differences(said, again.as_document())
    yield from _too_many(again, records)


def _read(raw: bytes, scope: Scope) -> tuple[Mapping[str, Any], Asked, Checkpoint]:
    said = read_json(raw)
    if canonical(said) != raw:
        raise BadEvidence("not canonical", code="not_canonical")
    log = Checkpoint(said["log"]["origin"], said["log"]["size"], RootHash(bytes.fromhex(said["log"]["root"])))
    days = tuple(date.fromisoformat(day) for day in said["days"])
    asked = Asked(said["site_id"], said["control"], tuple(said["hosts"]), days, said["number"], said["seed"])
    of_scope = (scope.site_id, scope.control, scope.since, scope.until, scope.origin)
    if (asked.site_id, asked.control, days[0].isoformat(), days[-1].isoformat(), log.origin) != of_scope:
        raise ConfigError("of another packet", code="bad_sample")
    return said, asked, log


def _differences(said: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Drawn again, it is the same."""
    if {name: said[name] for name in said if name != "instances"} != {
        name: again[name] for name in again if name != "instances"
    }:
        yield _wrong("drawn again from this packet, it is another sample")
    drawn = [(one["host"], one["day"]) for one in said["instances"]]
    if drawn != [(one["host"], one["day"]) for one in again["instances"]]:
        yield _wrong("drawn again from this packet, it has other host-days, or another order")
        return
    for one, here in zip(said["instances"], again["instances"], strict=True):
        if one["record"] != here["record"]:
            what = "has no record here" if here["record"] is None else "has another record here than it names"
            yield (f"{one['host']} {one['day']}", what)


def _too_many(again: Sample, records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    shown = {one.shown.directory for one in again.pulled if one.shown is not None}
    for record in records:
        if record.directory not in shown:
            yield (record.directory, "is no record of the sample")


def _wrong(detail: str) -> tuple[str, str]:
    return FILE, detail
