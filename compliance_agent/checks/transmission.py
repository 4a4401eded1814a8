"""The host's own TLS services protect what they carry: certificates in date and trusted, no old versions, keys that stay private.

Each endpoint of the baseline is asked over loopback with the name it must prove. What lies in files is looked at as well, because
a renewed file helps nobody before its service has read it, and a service may show what is in no file of the baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace

from compliance_agent.checks.files import read_whole, stats_of
from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, Permits, failed, passed, unknown
from compliance_agent.core import tls
from compliance_agent.core.tools import answered
from compliance_agent.core.validity import read_validities
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import FileStat, Host

KEY_MODE = "0640"
DAYS = Int(-1_000_000, 10_000_000)
ENDPOINTS, FILES, KEYS = Many(Name("endpoints")), Many(Name("certificates")), Many(Name("keys"))


@dataclass(frozen=True)
class Parameters:
    endpoints: tuple[str, ...] = field(
        metadata={"doc": "This host's TLS services as name:port; asked at 127.0.0.1, the name is what they must prove."}
    )
    certificates: tuple[str, ...] = field(metadata={"doc": "Certificate files (PEM) of these services."})
    keys: tuple[str, ...] = field(metadata={"doc": "Their private keys."})
    ca_file: str = field(
        default="/etc/ssl/certs/ca-certificates.crt", metadata={"doc": "Authorities that chains must lead to."}
    )
    min_days: int = field(default=14, metadata={"doc": "Days before its end by which a certificate must be renewed."})
    min_tls: str = field(default="1.2", metadata={"doc": "Oldest version of TLS that may be taken: 1.2 or 1.3."})

    def __post_init__(self) -> None:
        for name in ("endpoints", "certificates", "keys"):
            if not getattr(self, name):
                raise ValueError(f"{name}: is empty; nothing would be compared")
        for endpoint in self.endpoints:
            tls.read_endpoint(endpoint)
        if not all(path.startswith("/") for path in (*self.certificates, *self.keys, self.ca_file)):
            raise ValueError("certificates, keys, ca_file: expected absolute paths")
        if not 1 <= self.min_days <= 365:
            raise ValueError("min_days: expected 1 to 365")
        if self.min_tls not in tls.VERSIONS:
            raise ValueError(f"min_tls: expected {' or '.join(tls.VERSIONS)}")


@dataclass(frozen=True)
class Observation:
    unreached: tuple[str, ...] | None = fact(ENDPOINTS, "Endpoints that took no connection.")
    untrusted: tuple[str, ...] | None = fact(ENDPOINTS, "Endpoints whose chain leads to no accepted authority.")
    wrong_name: tuple[str, ...] | None = fact(ENDPOINTS, "Endpoints whose certificate is for another name.")
    out_of_date: tuple[str, ...] | None = fact(ENDPOINTS, "Endpoints whose certificate is over, or not begun.")
    ending: tuple[str, ...] | None = fact(ENDPOINTS, "Endpoints whose certificate must be renewed now.")
    old_tls: tuple[str, ...] | None = fact(ENDPOINTS, "Endpoints that take a version of TLS older than allowed.")
    days_left: int | None = fact(DAYS, "Days until the first certificate shown by an endpoint ends.")
    files_ending: tuple[str, ...] | None = fact(FILES, "Certificate files that must be renewed now, or are over.")
    file_days_left: int | None = fact(DAYS, "Days until the first certificate in a file ends.")
    keys_open: tuple[str, ...] | None = fact(KEYS, "Private keys that others may read or the group may write.")
    linked_keys_open: tuple[str, ...] | None = fact(KEYS, "Private keys behind a symbolic link that are open so.")


CHECK = CheckSpec(
    id="transmission",
    title="TLS services show valid certificates, take no old versions and keep their keys private",
    severity=Severity.HIGH,
    rationale="What is sent over a network is protected only while both sides can agree on sound TLS and know each other.",
    citations=(
        Citation(
            "164.312(e)(2)(ii)",
            rationale="The listed services encrypt with TLS of an accepted version, under a key that is private.",
            does_not_prove="That records are sent through these services only, or that clients refuse other ones.",
            primary=True,
        ),
        Citation(
            "164.312(e)(2)(i)",
            rationale="TLS of an accepted version detects changes on the way, from a peer whose chain was verified.",
            does_not_prove="That what was handed to the service for sending was right.",
        ),
        Citation(
            "164.312(e)(1)",
            rationale="Certificates that are renewed in time keep people from learning to pass over warnings.",
            does_not_prove="That other services of this host protect what they carry; see listening_ports.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    example={
        "endpoints": ("localhost:443",),
        "certificates": ("/etc/ssl/certs/clinic.pem",),
        "keys": ("/etc/ssl/private/clinic.key",),
    },
    reasons={
        "key_open": "A private key can be read by others or written by its group.",
        "linked_key_open": "A private key behind a symbolic link is open so; links are not followed to change something.",
        "out_of_date": "The certificate that a service shows is over, or not begun.",
        "wrong_name": "The certificate that a service shows is for another name.",
        "untrusted": "The chain that a service shows leads to no accepted authority.",
        "old_tls": "A service takes a version of TLS older than allowed.",
        "ends_soon": "The certificate that a service shows must be renewed now.",
        "file_ends_soon": "A certificate in a file must be renewed now, or is over.",
        "unreached": "A service took no connection, so nothing can be said of it.",
    },
    for_people=("linked_key_open", "out_of_date", "wrong_name", "untrusted", "old_tls", "ends_soon", "file_ends_soon"),
    needs=("openssl", "connections to 127.0.0.1 (its own services are asked as a client would)", "readlink"),
    reads=("path:{certificates}", "path:{keys}", "path:{ca_file}"),
    interval_s=900,
    deadline_s=60.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    stats = await stats_of(host, baseline.keys)
    open_keys = {path: await _open(host, path, stats[path]) for path in baseline.keys}
    ends = {path: await _ends(host, path) for path in baseline.certificates}
    seen = Observation(
        files_ending=tuple(path for path in baseline.certificates if ends[path] < baseline.min_days),
        file_days_left=min(ends.values()),
        keys_open=tuple(path for path, found in open_keys.items() if found == "file"),
        linked_keys_open=tuple(path for path, found in open_keys.items() if found == "link"),
    )
    return await _with_endpoints(host, baseline, seen)


async def _open(host: Host, path: str, stat: FileStat) -> str:
    """`file` or `link` when the key is open to others, empty when it is not."""
    kind = "file"
    if stat.kind == "symlink":
        aim = answered(await host.run(("readlink", "-f", "--", path)), "readlink").text.removesuffix("\n")
        stat, kind = await host.stat(aim), "link"
    if stat.kind != "file" or stat.size_bytes == 0:
        raise CannotTell("unparsable", f"{path}: expected a file with a private key")
    return kind if stat.mode & 0o027 else ""


async def _ends(host: Host, path: str) -> int:
    """Days until the first certificate of a file ends."""
    found = read_validities((await read_whole(host, path))[1])
    return min(tls.days_left(each.ends, host.now()) for each in found)


async def _with_endpoints(host: Host, baseline: Parameters, seen: Observation) -> Observation:
    shown: dict[str, tls.Answer] = {}
    old: list[str] = []
    for text in baseline.endpoints:
        endpoint = tls.read_endpoint(text)
        sound = await host.sound_tls(endpoint.port, endpoint.name, ca_file=baseline.ca_file, oldest=baseline.min_tls)
        if sound is not None:
            shown[text] = tls.sound(sound)
            continue
        ran = await host.run(tls.asking(endpoint, baseline.ca_file))
        if tls.unreached(ran):
            continue
        shown[text] = tls.read_answer(answered(ran, "openssl").text)
        if tls.takes_old(await host.run(tls.asking_old(endpoint, baseline.min_tls))):
            old.append(text)
    now = host.now()
    left = {text: tls.days_left(answer.ends, now) for text, answer in shown.items()}

    def those(which: Callable[[tls.Answer], bool]) -> tuple[str, ...]:
        return tuple(text for text, answer in shown.items() if which(answer))

    over = those(lambda answer: not answer.in_date(now))
    return replace(
        seen,
        unreached=tuple(text for text in baseline.endpoints if text not in shown),
        untrusted=those(lambda answer: not answer.trusted(now)),
        wrong_name=those(lambda answer: not answer.named),
        out_of_date=over,
        ending=tuple(text for text in shown if left[text] < baseline.min_days and text not in over),
        old_tls=tuple(old),
        days_left=min(left.values(), default=None),
    )


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    days = f"at least {baseline.min_days} days left"
    faults = {
        "key_open": (seen.keys_open, f"private keys of mode {KEY_MODE} or less", "open"),
        "linked_key_open": (seen.linked_keys_open, f"private keys of mode {KEY_MODE} or less", "open"),
        "out_of_date": (seen.out_of_date, "certificates in date", "out of date"),
        "wrong_name": (seen.wrong_name, "certificates for the listed names", "for another name"),
        "untrusted": (seen.untrusted, f"chains to an authority of {baseline.ca_file}", "not trusted"),
        "old_tls": (seen.old_tls, f"TLS {baseline.min_tls} or later", "taking an older one"),
        "ends_soon": (seen.ending, days, f"with {seen.days_left}"),
        "file_ends_soon": (seen.files_ending, days, f"with {seen.file_days_left}"),
    }
    if seen.unreached is None or any(found is None for found, _, _ in faults.values()):
        return unknown("unparsable", "what the TLS services show could not be told")
    for reason, (found, expected, but) in faults.items():
        if found:
            return failed(reason, f"expected {expected}, found {', '.join(found)} {but}")
    if seen.unreached:
        return unknown("unreached", f"no connection to {', '.join(seen.unreached)}: does the service run?")
    if seen.days_left is None or seen.file_days_left is None:
        return unknown("unparsable", "when certificates end could not be told")
    return passed(f"{len(baseline.endpoints)} services, the first certificate ends in {seen.days_left} days")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Close private keys. Certificates, versions and names are for a person, or for what renews them."""
    if judge(baseline, seen).reason != "key_open":
        return None
    return Plan(CHECK.id, tuple(Step("set_mode", {"path": path, "mode": KEY_MODE}) for path in seen.keys_open or ()))


def permits(baseline: Parameters) -> Permits:
    """Close the listed keys."""
    return {"modes": {path: int(KEY_MODE, 8) for path in baseline.keys}}


GOOD = Observation((), (), (), (), (), (), 60, (), 60, (), ())
_ONE, _PEM, _KEY = ("localhost:443",), ("/etc/ssl/certs/clinic.pem",), ("/etc/ssl/private/clinic.key",)
CASES = (
    Case("in order", GOOD, Result.PASS, "as_expected"),
    Case("last day on which it is in time", replace(GOOD, days_left=14, file_days_left=14), Result.PASS),
    Case("key open to all", replace(GOOD, keys_open=_KEY), Result.FAIL, "key_open", heals=True),
    Case("key behind a link open", replace(GOOD, linked_keys_open=_KEY), Result.FAIL, "linked_key_open"),
    Case("certificate over", replace(GOOD, out_of_date=_ONE, days_left=-3), Result.FAIL, "out_of_date"),
    Case("certificate ends soon", replace(GOOD, ending=_ONE, days_left=5), Result.FAIL, "ends_soon"),
    Case("file ends soon", replace(GOOD, files_ending=_PEM, file_days_left=5), Result.FAIL, "file_ends_soon"),
    Case("another name", replace(GOOD, wrong_name=_ONE), Result.FAIL, "wrong_name"),
    Case("not trusted", replace(GOOD, untrusted=_ONE), Result.FAIL, "untrusted"),
    Case("TLS 1.1", replace(GOOD, old_tls=_ONE), Result.FAIL, "old_tls"),
    Case("service does not run", replace(GOOD, unreached=_ONE, days_left=None), Result.UNKNOWN, "unreached"),
    Case("no date read", replace(GOOD, days_left=None), Result.UNKNOWN),
    Case("versions not asked", replace(GOOD, old_tls=None), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
