"""`README.txt` and `NOT-PROVEN.txt`: what an auditor does with a packet, in tools that are not ours, and what it cannot show. Pure.

Every line that begins with four spaces is a command, and works as printed in the unpacked packet; a test runs each block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compliance_agent.packet.content import Record, Scope
from compliance_agent.packet.outside import Cosigned, Outside

_README = """\
AUDITOR PACKET

Site {site}, {since} to {until} (UTC){filters}: {count} signed records of {hosts} host(s),
every one of them in the log {origin}, {size} entries.
{left_out}
Unpack it, open a shell in this directory, and run what is indented. You need sha256sum, openssl 3 and nothing of ours.
NOT-PROVEN.txt says on one page what none of this can show. Read it before you rely on the rest.

1. Nothing in this packet was changed since it was made. The key is the server's; ask the clinic to read you its digest.

    sha256sum --quiet -c MANIFEST.sha256
    openssl pkeyutl -verify -pubin -inkey keys/packet.pem -rawin -in MANIFEST.sha256 -sigfile MANIFEST.sig

2. The log's checkpoint, three lines that stand for every entry, is signed by the log's key.

    sed '/^$/,$d' log/checkpoint > checkpoint.body
    grep -m1 '^— {origin} ' log/checkpoint | cut -d' ' -f3 | base64 -d | tail -c +5 > checkpoint.sig
    openssl pkeyutl -verify -pubin -inkey keys/log.pem -rawin -in checkpoint.body -sigfile checkpoint.sig
"""

_RECORDS = """
3. One record: signed by its host's key, over exactly these bytes. (The file's name in keys/ is the SHA-256 of the raw key.)

    openssl pkeyutl -verify -pubin -inkey keys/{key}.pem -rawin -in {path}/bundle.json -sigfile {path}/bundle.sig

   Every record:

    find evidence -name bundle.json | sort | while read -r bundle; do
      key=$(grep -o '"key_id":"[0-9a-f]*"' "$bundle" | head -n 1 | cut -d'"' -f4)
      openssl pkeyutl -verify -pubin -inkey "keys/$key.pem" -rawin -in "$bundle" \\
        -sigfile "${{bundle%.json}}.sig" > result.txt || {{ echo "BAD: $bundle"; exit 1; }}
    done

4. The log holds the digest of that record. The two numbers are equal.

    sha256sum < {path}/bundle.json | cut -d' ' -f1
    grep -o '"bundle_sha256":"[0-9a-f]*"' {path}/leaf.json | cut -d'"' -f4

5. The record's entry is in the tree that the checkpoint stands for (RFC 9162, 2.1.3.2, with openssl alone). It prints the root
   it arrives at, and the one that is signed; they are equal.

    record={path}
    index=$(sed -n 's/^index //p' "$record/bundle.tlog-proof")
    last=$(($(sed -n 2p log/checkpoint) - 1))
    {{ printf '\\000'; cat "$record/leaf.json"; }} | openssl dgst -sha256 -binary > node
    for hash in $(sed -n '3,/^$/p' "$record/bundle.tlog-proof"); do
      echo "$hash" | base64 -d > sibling
      if [ $((index % 2)) = 1 ] || [ "$index" = "$last" ]; then
        {{ printf '\\001'; cat sibling node; }} | openssl dgst -sha256 -binary > parent
        while [ $((index % 2)) = 0 ] && [ "$index" != 0 ]; do index=$((index / 2)); last=$((last / 2)); done
      else
        {{ printf '\\001'; cat node sibling; }} | openssl dgst -sha256 -binary > parent
      fi
      mv parent node
      index=$((index / 2)); last=$((last / 2))
    done
    base64 < node
    sed -n 3p log/checkpoint
    test "$(base64 < node)" = "$(sed -n 3p log/checkpoint)"
"""

_EXPORTS = """
6. The export for assessment tools is signed (DSSE, in-toto Statement v1), and the statement names its digest.

    sed -n 's/.*"payload":"\\([^"]*\\)".*/\\1/p' export/assessment-results.dsse.json | base64 -d > statement.json
    sed -n 's/.*"sig":"\\([^"]*\\)".*/\\1/p' export/assessment-results.dsse.json | base64 -d > statement.sig
    {{ printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < statement.json)"; cat statement.json; }} > statement.pae
    openssl pkeyutl -verify -pubin -inkey keys/packet.pem -rawin -in statement.pae -sigfile statement.sig
    grep -q "$(sha256sum < export/assessment-results.json | cut -d' ' -f1)" statement.json

   The same with compliance-trestle 5, if you use it:

    trestle verify --beta -f export/assessment-results.json --signature export/assessment-results.dsse.json \\
      --public-key keys/packet.pem
"""

_WITNESSES = """
{number}. Somebody else saw this very checkpoint, at the time that is printed, and no other history of the log before it (C2SP
   tlog-cosignature). Take the key in keys/ from the witness itself, not from this packet.
"""

_WITNESS = """
    sed '/^$/,$d' log/checkpoint > checkpoint.body
    grep -m1 '^{begins}' log/checkpoint | cut -d' ' -f3 | base64 -d > cosignature
    time=$(printf '%d' "0x$(tail -c +5 cosignature | head -c 8 | od -An -v -tx1 | tr -d ' \\n')")
    {{ printf 'cosignature/v1\\ntime %s\\n' "$time"; cat checkpoint.body; }} > cosignature.body
    tail -c +13 cosignature > cosignature.sig
    openssl pkeyutl -verify -pubin -inkey {file} -rawin -in cosignature.body -sigfile cosignature.sig && date -u -d "@$time"
"""

_STAMPS = """
{number}. A time-stamping authority signed earlier checkpoints of this log (RFC 3161), {count} time(s). The entries below that
   size were there at the time that is printed. Take its certificate from the authority itself; once that has expired, add
   -attime SECONDS, a moment since 1970 at which it was valid. The latest one:

    openssl ts -verify -data {note} -in {token} -CAfile time/ca.pem
    openssl ts -reply -in {token} -text | grep '^Time stamp:'

   Every one:

    for token in time/*.tsr; do
      name=$(basename "$token" .tsr)
      openssl ts -verify -data "log/older/${{name%%-*}}" -in "$token" -CAfile time/ca.pem > result.txt 2>&1 \\
        || {{ echo "BAD: $token"; exit 1; }}
    done

   One entry of the log holds both, so the tree with that entry is not older than that time.

    note=$(base64 -w0 < {note})
    token=$(base64 -w0 < {token})
    LC_ALL=C grep -rqa "\\"checkpoint\\":\\"$note\\",\\"kind\\":\\"time\\",\\"tokens\\":\\[[^]]*\\"$token\\"" log/tile/entries
"""

_TLOG = """
{number}. Optional: the log again with aics-tlog 0.2, an independent program. It makes the tree from its tiles.

    aics-tlog verify-checkpoint --tiles log --log-key '{log_key}'{witnesses}
    aics-tlog verify-inclusion --tiles log --log-key '{log_key}' --leaf {path}/leaf.json --index {index}
"""

_OLDER = """
   The tree only grew since the checkpoint that was time-stamped first:

    aics-tlog verify-consistency --tiles log --log-key '{log_key}' --old-checkpoint {note}
"""

_END = """
With our own program, which also rebuilds the whole tree, holds every chain to its order, and names what is missing:
compliance-agent packet verify PACKET.zip, and compliance-agent packet show PACKET.zip for the counts.

WHAT IS WHERE
packet.json   what was asked for, which hosts it concerns, and the exceptions that people recorded
sample.json   where the packet is a sample: how it was drawn, and which records it has
policy        whom to trust for the log (C2SP tlog-policy); compare its key with one you were given by another way
keys/         public keys: <key id>.pem of each host, log.pem, packet.pem, witness-<name>.pem of each Ed25519 witness in policy
evidence/     <host>/YYYY/MM/DD/<id>/ with bundle.json, bundle.sig, leaf.json and bundle.tlog-proof (C2SP tlog-proof)
log/          the whole log of the year (C2SP tlog-tiles), of this site alone: checkpoint and tile/
log/older/    the checkpoint of the year before, where there is one, as the first entry binds it; <size>, each that was time-stamped
time/         <size>.tsr, each time stamp in the log; ca.pem, certificates of their authority, where the server asks one
export/       assessment-results.json (OSCAL {oscal}), its signed envelope, ocsf.jsonl (OCSF 2003 and 7001), evidence.csv
A packet that is no sample, and not of one control, has, for each host, its chain without a hole, and where there is one the record
before the period and the one after it, so that both ends can be seen. Exports count the records of the period alone.
"""

NOT_PROVEN = b"""\
WHAT THIS PACKET DOES NOT PROVE

1. That a host told the truth. Whoever is root on a host has its key and can sign that all is well. What was logged before stays
   as it was; what comes after is only as good as the host. Records name the agent's own digest; nothing here measures it.
2. That a host could see everything. A check looks at what it declares and nothing else. "unknown" means nobody could tell, and is
   counted as such, never as a pass. Hours without a record are shown as not covered; nothing is claimed about them.
3. The exact time of a record. Its times are its host's claim, and the log shows the order in which records arrived. Where third
   parties cosigned or time-stamped the log (README.txt has a section on it then), `packet verify` shows between which two moments
   a record came to be, and names one that is dated outside of them. The interval is as wide as the host was offline; a bound
   that nobody gave is unknown. Without third parties there is the order alone. A time is as good as the witness's clock, or the
   authority's, and as the key it is checked with.
4. That the log was never split. A witness cosigns one history only: where README.txt has a section on witnesses, deceiving you
   takes the server and as many of them as "policy" asks for. Which of them are independent of the server's operator, and whether
   these are their keys, you must know from elsewhere. Where "policy" says "quorum none", or `packet verify` says "unwitnessed",
   nobody vouches for it. A server that shows auditors another log than its hosts is then found by comparing this checkpoint
   with receipts kept at the clinic, or by a `log_head` in a record that is not a prefix of this log, which `packet verify` names.
5. Whose keys these are. They came with the packet. Compare log.pem and packet.pem with ones you were given by another way, and
   the list of hosts in packet.json with the clinic's own list of machines: a machine that was never enrolled is not here.
   Nor that a key had not ended before this log began: each year has a log of its own, and a key that was revoked or replaced in
   an earlier year is said to have ended in the log of that year, which is not here.
6. That a section of the Security Rule is met. A record is evidence for the technical part that its check describes. Policies, risk
   analysis, training, contracts, reviews and sign-offs are people's records and are not here. Where a person's record is needed
   as well, the OSCAL export says so and does not say "satisfied".
7. That a restore, a review or a drill was certified by anyone. It shows that a machine recorded it.
8. Anything about records that were still on their way. README.txt counts those of the period that were known and not yet in the
   log; what a host has not delivered is not known to the server at all.
   Where it says that records were destroyed, that their time was over is the server's word, and their hosts may not be named.
9. The exports. They are a convenience, made from the records and signed by the server that made them. The records are the evidence.
   Until when a record is kept (`retain_until`) depends on records that need not be here, and on holds: the server's word.
10. Of a sample: that a host-day without a record here had none, or how many one had beside the record that is shown. Of an
   exception: that its reason holds, or that what is done instead was done.
"""


@dataclass(frozen=True)
class Shown:
    """The records that a page is about: how many are of the period, how many stand beside it, and one for the examples."""

    count: int
    beside: int
    example: Record


def readme(scope: Scope, shown: Shown, oscal_version: str, seen: Outside, *, authority: bool) -> bytes:
    """The page for this very packet; its examples are a record that is in it.

    Args:
        scope: of the packet.
        shown: its records.
        oscal_version: of its export.
        seen: what third parties said of its log.
        authority: the packet has certificates to check time stamps with.
    """
    said = {
        "site": scope.site_id,
        "since": scope.since,
        "until": scope.until,
        "filters": _filters(scope),
        "count": shown.count,
        "hosts": len(scope.hosts),
        "origin": scope.origin,
        "size": scope.size,
        "left_out": _left_out(scope, shown.beside),
        "oscal": oscal_version,
    }
    example = shown.example
    said |= {"key": example.place[0], "path": example.directory}
    page = "".join(part.format(**said) for part in (_README, _RECORDS, _EXPORTS))
    page += "".join(_outside(seen, example, authority=authority))
    return (page + _END.format(**said)).encode()


def _outside(seen: Outside, example: Record, *, authority: bool) -> Iterator[str]:
    """The sections on third parties, of which there may be none, and the one on another's program; from 7 on."""
    numbers = itertools.count(7)
    if seen.cosigned:
        yield _WITNESSES.format(number=next(numbers))
        yield from (_WITNESS.format(begins=line.begins, file=line.file) for line in seen.cosigned)
    if seen.stamps and authority:
        last = seen.stamps[-1]
        yield _STAMPS.format(number=next(numbers), count=len(seen.stamps), note=last.note, token=last.token)
    words = {"number": next(numbers), "log_key": seen.log, "witnesses": _counted(seen.cosigned)}
    yield _TLOG.format(**words, path=example.directory, index=example.index)
    if seen.stamps:
        yield _OLDER.format(log_key=seen.log, note=seen.stamps[0].note)


def _counted(lines: Sequence[Cosigned]) -> str:
    """Options that have these lines checked, and each of them needed."""
    keys = "".join(f" \\\n      --witness-key '{line.key}'" for line in lines)
    return f"{keys} --quorum {len(lines)}" if lines else ""


def _filters(scope: Scope) -> str:
    control = f", for {scope.control} alone" if scope.control else ""
    control += ", a sample of it (sample.json says how it was drawn)" if scope.sample else ""
    return control + (f", of host {scope.host} alone" if scope.host else "")


def _left_out(scope: Scope, beside: int) -> str:
    found = [f"{beside} record(s) beside the period show where it begins and ends."] if beside else []
    if scope.limits is not None:
        days = f"{scope.limits.first} to {scope.limits.last}"
        found.append(
            f"Built for an account that sees {days} alone: it may be open where a host's records begin and end."
        )
    if scope.pending:
        found.append(f"NOT HERE: {scope.pending} record(s) of the period that were not in the log yet.")
    for year, count in sorted(scope.elsewhere.items()):
        found.append(f"NOT HERE: {count} record(s) of the period that are in the log of {year}; ask for its packet.")
    if scope.destroyed:
        found.append(f"NOT HERE: {scope.destroyed} record(s) of the period, destroyed when their time was over.")
    if scope.minimum:
        found.append(f"log/retention.json: the records of the log's entries below {scope.minimum} were destroyed.")
    return "".join(f"{line}\n" for line in found)
