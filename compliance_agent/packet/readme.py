"""`README.txt` and `NOT-PROVEN.txt`: what an auditor does with a packet, in tools that are not ours, and what it cannot show. Pure.

Every line that begins with four spaces is a command, and works as printed in the unpacked packet; a test runs each block.
"""

from __future__ import annotations

from collections.abc import Sequence

from compliance_agent.packet.content import Record, Scope, in_order

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

With our own program, which also rebuilds the whole tree, holds every chain to its order, and names what is missing:
compliance-agent packet verify PACKET.zip, and compliance-agent packet show PACKET.zip for the counts.

WHAT IS WHERE
packet.json   what was asked for, and which hosts it concerns
policy        whom to trust for the log (C2SP tlog-policy); compare its key with one you were given by another way
keys/         public keys: <key id>.pem of each host, log.pem, packet.pem
evidence/     <host>/YYYY/MM/DD/<id>/ with bundle.json, bundle.sig, leaf.json and bundle.tlog-proof (C2SP tlog-proof)
log/          the whole log of the year (C2SP tlog-tiles), of this site alone: checkpoint and tile/
log/older/    the checkpoint of the year before, where there is one, as the first entry binds it
time/         ca.pem, certificates of the authority that stamped times in the log, where the server asks one
export/       assessment-results.json (OSCAL {oscal}), its signed envelope, ocsf.jsonl (OCSF 2003 and 7001), evidence.csv
A packet that was not asked for one control has, for each host, its chain without a hole, and where there is one the record
before the period and the one after it, so that both ends can be seen. Exports count the records of the period alone.
"""

NOT_PROVEN = b"""\
WHAT THIS PACKET DOES NOT PROVE

1. That a host told the truth. Whoever is root on a host has its key and can sign that all is well. What was logged before stays
   as it was; what comes after is only as good as the host. Records name the agent's own digest; nothing here measures it.
2. That a host could see everything. A check looks at what it declares and nothing else. "unknown" means nobody could tell, and is
   counted as such, never as a pass. Hours without a record are shown as not covered; nothing is claimed about them.
3. The exact time of a record. Its times are its host's claim, and the log shows the order in which records arrived. Where the log
   holds time stamps and cosignatures of third parties (entries of kind "time"), `packet verify` with --tsa-ca and --policy shows
   between which two moments a record came to be, and names one that is dated outside of them; the interval is as wide as the
   host was offline. Without them there is the order alone.
4. That the log was never split. Where the policy says "quorum none" no independent witness is asked, and none counts; where it
   names witnesses, their keys came with the packet too. A server that shows auditors another log than its hosts is found by
   comparing this checkpoint with receipts kept at the clinic, or by a `log_head` in a record that is not a prefix of this log.
   `packet verify` checks the second, and that the checkpoint has the cosignatures that the policy asks for.
5. Whose keys these are. They came with the packet. Compare log.pem and packet.pem with ones you were given by another way, and
   the list of hosts in packet.json with the clinic's own list of machines: a machine that was never enrolled is not here.
6. That a section of the Security Rule is met. A record is evidence for the technical part that its check describes. Policies, risk
   analysis, training, contracts, reviews and sign-offs are people's records and are not here. Where a person's record is needed
   as well, the OSCAL export says so and does not say "satisfied".
7. That a restore, a review or a drill was certified by anyone. It shows that a machine recorded it.
8. Anything about records that were still on their way. README.txt counts those of the period that were known and not yet in the
   log; what a host has not delivered is not known to the server at all.
9. The exports. They are a convenience, made from the records and signed by the server that made them. The records are the evidence.
"""


def readme(scope: Scope, records: Sequence[Record], oscal_version: str) -> bytes:
    """The page for this very packet; its examples are a record that is in it."""
    shown = in_order(records, scope)
    said = {
        "site": scope.site_id,
        "since": scope.since,
        "until": scope.until,
        "filters": _filters(scope),
        "count": len(shown),
        "hosts": len(scope.hosts),
        "origin": scope.origin,
        "size": scope.size,
        "left_out": _left_out(scope, len(records) - len(shown)),
        "oscal": oscal_version,
    }
    example = shown[0] if shown else records[0]
    said |= {"key": example.place[0], "path": example.directory}
    return "".join(part.format(**said) for part in (_README, _RECORDS, _EXPORTS)).encode()


def _filters(scope: Scope) -> str:
    control = f", for {scope.control} alone" if scope.control else ""
    return control + (f", of host {scope.host} alone" if scope.host else "")


def _left_out(scope: Scope, beside: int) -> str:
    found = [f"{beside} record(s) beside the period show where it begins and ends."] if beside else []
    if scope.pending:
        found.append(f"NOT HERE: {scope.pending} record(s) of the period that were not in the log yet.")
    for year, count in sorted(scope.elsewhere.items()):
        found.append(f"NOT HERE: {count} record(s) of the period that are in the log of {year}; ask for its packet.")
    return "".join(f"{line}\n" for line in found)
