"""firewall: rules flushed, opened or replaced, a ruleset that cannot be read, one that cannot be loaded."""

from compliance_agent.lab.real.row import Row, Table, unreadable

_CLOSED = "nft list table inet compliance | grep -q 'policy drop'"
_ACCEPTS = "nft add table inet x; nft add chain inet x y '{ type filter hook input priority 0; policy accept; }'"
# An nft that reads, and loads nothing.
# Exchanged at once, and before the rules go: the agent never finds the program missing.
_WILL_NOT_LOAD = (
    "cp -p /usr/sbin/nft /usr/sbin/nft.away; printf '#!/bin/sh\\n"
    '[ "$1" = -f ] && exit 1\\nexec /usr/sbin/nft.away "$@"\\n\' >/usr/sbin/nft.lab; chmod 755 /usr/sbin/nft.lab; '
    "mv /usr/sbin/nft.lab /usr/sbin/nft"
)

TABLE = Table(
    rows=(
        Row("firewall", "flushed", "nft flush ruleset", "fail", "no_firewall", "success", truth=_CLOSED),
        Row(
            "firewall", "port_opened", "nft insert rule inet compliance input tcp dport 3389 accept",
            "fail", "unexpected_ports", "success", truth=f"{_CLOSED} && ! nft list ruleset | grep 3389",
        ),
        Row(
            "firewall", "policy_altered", f"nft delete table inet compliance; {_ACCEPTS}",
            "fail", "policy_accepts", "success", truth=_CLOSED, restore="nft delete table inet x",
        ),
        unreadable("firewall", "/usr/sbin/nft"),
        Row(
            "firewall", "load_fails", f"{_WILL_NOT_LOAD}; nft list ruleset >/run/lab.nft; nft flush ruleset",
            "fail", "no_firewall", "failed", "load_failed", restore="mv /usr/sbin/nft.away /usr/sbin/nft; nft -f /run/lab.nft",
            former='[ -z "$(nft.away list ruleset)" ]',
        ),
    ),
)  # fmt: skip
