"""A sample of the evidence: a section of the rule, hosts and days, drawn so that who holds the same log draws the same. Pure.

    pulled = pull(asked, log, population(lives, asked), items)
    pulled.as_document()    # the same from a packet, a server, or another auditor's machine

What is drawn from are instances: one host on one UTC day on which that host was enrolled, whether it said anything or not, so a
silent day is drawn as likely as any other. The seed puts them in order (method `NAME`): by SHA-256 of `SEED HOST DAY` and a line
feed, the lowest first. Of the records of an instance one is shown by the same rule, over `SEED SHA256-OF-THE-RECORD`.
Only records count that the log holds at the checkpoint. An instance without one stays in the sample and says so; earlier days of
the same host are offered beside it and are not part of the sample.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, NamedTuple

from compliance_agent.errors import BadEvidence, ConfigError
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import HASH_BYTES, RootHash, verify_consistency
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import TileReader, TileTree
from compliance_agent.packet.content import RESULTS, checks_of, concerns, day_of, directory_of, section, statements

SCHEMA, NAME = "compliance-agent/packet-sample/v1", "sha256-rank-of-host-days/v1"
USUAL, MOST = 25, 100  # instances
MOST_DAYS = 366
OFFERED = 3  # earlier instances beside one that has no record
BACK = timedelta(days=31)  # how far they are looked for
_SEED = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Instance(NamedTuple):
    """One host on one day."""

    host: str
    day: date


class Life(NamedTuple):
    """When a key of a host was enrolled; `last` is None while it is."""

    host: str
    first: date
    last: date | None


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        control: a section of 45 CFR 164, None for all.
        hosts: labels; none are all.
        days: in order.
        number: of instances; None is every one.
        seed: puts them in order.
    """

    site_id: str
    control: str | None
    hosts: tuple[str, ...]
    days: tuple[date, ...]
    number: int | None
    seed: str

    def __post_init__(self) -> None:
        """Hold it to what can be drawn; ConfigError, code `bad_sample` or `unknown_control`."""
        if self.control is not None and section(self.control) != self.control:
            raise _bad("control: expected it as 164.312(b)")
        if not self.days or list(self.days) != sorted(set(self.days)):
            raise _bad("days: expected at least one, in order")
        if (self.days[-1] - self.days[0]).days >= MOST_DAYS:
            raise _bad(f"days: expected at most {MOST_DAYS} from the first to the last")
        if self.number is not None and not 1 <= self.number <= MOST:
            raise _bad(f"number: expected 1 to {MOST}")
        if not _SEED.fullmatch(self.seed):
            raise _bad("seed: expected 1 to 64 letters, digits, dots, dashes and underscores")


@dataclass(frozen=True)
class Item:
    """A record as a sample names it. `counts` are the results that it states about the section."""

    host: str
    key_id: str
    bundle_id: str
    kind: str
    sha256: str
    index: int
    day: date
    created_at: str
    directory: str
    counts: Mapping[str, int]

    @property
    def instance(self) -> Instance:
        """Whose it is."""
        return Instance(self.host, self.day)

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        names = ("key_id", "bundle_id", "kind", "sha256", "index", "created_at", "directory")
        return {name: getattr(self, name) for name in names}


def item_of(document: Mapping[str, Any], sha256: str, index: int, control: str | None) -> Item | None:
    """The record, where it says something about the section."""
    if not concerns(document, control):
        return None
    about = None if control is None else checks_of(control)
    said = Counter(result for check, result, _ in statements(document) if about is None or check in about)
    host = document["host"]
    return Item(
        host["id"], host["key_id"], document["bundle_id"], document["kind"], sha256, index, date.fromisoformat(day_of(document)),
        document["created_at"], directory_of(document), {word: said[word] for word in RESULTS},
    )  # fmt: skip


@dataclass(frozen=True)
class Population:
    """Every instance that was asked for, by host and day; `not_enrolled` are host-days on which the host was not enrolled."""

    instances: tuple[Instance, ...]
    not_enrolled: int = 0

    @property
    def lines(self) -> bytes:
        """`HOST DAY` and a line feed for each."""
        return "".join(f"{one.host} {one.day}\n" for one in self.instances).encode()

    @property
    def sha256(self) -> str:
        """Of these lines."""
        return hashlib.sha256(self.lines).hexdigest()


def population(lives: Iterable[Life], asked: Asked) -> Population:
    """The instances to draw from; ConfigError, code `unknown_host`, for a label that nobody has."""
    of: dict[str, list[Life]] = defaultdict(list)
    for life in lives:
        of[life.host].append(life)
    if unknown := sorted(set(asked.hosts) - of.keys()):
        raise ConfigError(f"host: there is no {unknown[0][:64]!r} among the hosts of these days", code="unknown_host")
    hosts = sorted(set(asked.hosts) or of.keys())
    every = [Instance(host, day) for host in hosts for day in asked.days]
    lived = tuple(one for one in every if any(_lived(life, one.day) for life in of[one.host]))
    return Population(lived, len(every) - len(lived))


def _lived(life: Life, day: date) -> bool:
    return life.first <= day and (life.last is None or day <= life.last)


def draw(asked: Asked, among: Population) -> list[Instance]:
    """The instances in the order in which they are drawn."""
    order = sorted(among.instances, key=lambda one: (_rank(asked.seed, f"{one.host} {one.day}"), one))
    return order if asked.number is None else order[: asked.number]


def _rank(seed: str, what: str) -> str:
    return hashlib.sha256(f"{seed} {what}\n".encode()).hexdigest()


@dataclass(frozen=True)
class Unsealed:
    """Records of an instance that are not in the log at the checkpoint: not yet, in the log of another year, or destroyed."""

    pending: int = 0
    elsewhere: int = 0
    destroyed: int = 0


@dataclass(frozen=True)
class Pulled:
    """One instance of the sample.

    Attributes:
        items: its records, in the order of the log.
        unsealed: what else there is of it.
        earlier: where it has no record, the newest of an earlier day each, the latest day first.
    """

    instance: Instance
    items: tuple[Item, ...]
    shown: Item | None
    unsealed: Unsealed
    earlier: tuple[Item, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """What its records state about the section."""
        return {word: sum(item.counts[word] for item in self.items) for word in RESULTS}


@dataclass(frozen=True)
class Sample:
    """What was pulled, and from what."""

    asked: Asked
    log: Checkpoint
    among: Population
    pulled: tuple[Pulled, ...]

    @property
    def missing(self) -> int:
        """Instances without a record."""
        return sum(one.shown is None for one in self.pulled)

    @property
    def lines(self) -> bytes:
        """`HOST DAY SHA256` and a line feed for each, in the order in which they were drawn; `-` where there is no record."""
        shown = ((one.instance, one.shown.sha256 if one.shown else "-") for one in self.pulled)
        return "".join(f"{one.host} {one.day} {digest}\n" for one, digest in shown).encode()

    def as_document(self) -> dict[str, Any]:
        """For JSON; the same wherever the same is pulled from the same log."""
        asked, log = self.asked, self.log
        return {
            "schema": SCHEMA,
            "site_id": asked.site_id,
            "control": asked.control,
            "hosts": list(asked.hosts),
            "days": [day.isoformat() for day in asked.days],
            "method": NAME,
            "seed": asked.seed,
            "number": asked.number,
            "log": {"origin": log.origin, "size": log.size, "root": log.root.hex()},
            "population": {
                "instances": len(self.among.instances),
                "not_enrolled": self.among.not_enrolled,
                "sha256": self.among.sha256,
            },
            "sample": {
                "instances": len(self.pulled),
                "missing": self.missing,
                "sha256": hashlib.sha256(self.lines).hexdigest(),
            },
            "instances": [_shown(one) for one in self.pulled],
        }


def _shown(one: Pulled) -> dict[str, Any]:
    return {
        "host": one.instance.host,
        "day": one.instance.day.isoformat(),
        "records": len(one.items),
        "counts": one.counts,
        "record": one.shown.as_document() if one.shown else None,
        "earlier": [{"day": item.day.isoformat(), **item.as_document()} for item in one.earlier],
    }


def pull(
    asked: Asked,
    log: Checkpoint,
    among: Population,
    items: Iterable[Item],
    unsealed: Mapping[Instance, Unsealed] | None = None,
) -> Sample:
    """The sample.

    Args:
        asked: what.
        log: the checkpoint; items with an index beyond it do not count.
        among: drawn from.
        items: records, at least all of the instances that are drawn and of the earlier days that may be offered.
        unsealed: what else is known of instances.
    """
    of: dict[Instance, list[Item]] = defaultdict(list)
    for item in items:
        if item.index < log.size:
            of[item.instance].append(item)
    chosen = draw(asked, among)
    kept, others = set(chosen), unsealed or {}
    pulled = []
    for one in chosen:
        here = tuple(sorted(of.get(one, ()), key=lambda item: item.index))
        shown = min(here, key=lambda item: _rank(asked.seed, item.sha256), default=None)
        earlier = _earlier(one, of, kept) if shown is None else ()
        pulled.append(Pulled(one, here, shown, others.get(one, Unsealed()), earlier))
    return Sample(asked, log, among, tuple(pulled))


def _earlier(missing: Instance, of: Mapping[Instance, Sequence[Item]], drawn: set[Instance]) -> tuple[Item, ...]:
    """The newest record each of the latest days before it on which the same host has some, and that are not drawn themselves."""
    days = sorted(
        (one.day for one in of if one.host == missing.host and missing.day - BACK <= one.day < missing.day and one not in drawn),
        reverse=True,
    )  # fmt: skip
    return tuple(max(of[Instance(missing.host, day)], key=lambda item: item.index) for day in days[:OFFERED])


def checkpoint_at(newest: Checkpoint, size: int | None, read: TileReader) -> Checkpoint:
    """The checkpoint of `size` entries under a newer one that was verified; the tiles must lead from the one to the other.

    Raises:
        ConfigError: code `bad_sample`, there is no such size.
        BadEvidence: the tiles do not hold together.
    """
    if size is None or size == newest.size:
        return newest
    if not 1 <= size < newest.size:
        raise _bad(f"size: expected 1 to {newest.size}")

    def cut(level: int, index: int, width: int) -> bytes:
        return read(level, index, min(FULL, (newest.size >> 8 * level) - index * FULL))[: width * HASH_BYTES]

    root = TileTree(size, cut).root()
    path = TileTree(newest.size, read).consistency(size)
    verify_consistency(size, newest.size, path, RootHash(root), newest.root)
    return Checkpoint(newest.origin, size, root)


def tile_reader(read: Callable[[str], bytes]) -> TileReader:
    """Of tiles by their path below a log's prefix; BadEvidence where one is missing."""

    def tile(level: int, index: int, width: int) -> bytes:
        try:
            return read(Tile(level, index, width).path)
        except KeyError as error:
            raise BadEvidence(f"{error}: is missing", code="missing_file") from error

    return tile


def span_of(first: date, last: date) -> tuple[date, ...]:
    """Every day from the first to the last."""
    return tuple(first + timedelta(days=at) for at in range(max(0, (last - first).days + 1)))


def _bad(what: str) -> ConfigError:
    return ConfigError(f"sample: {what}", code="bad_sample")
