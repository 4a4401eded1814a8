"""The simulated nft against the real one, where that is installed and may be used; and its own rules everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest

from compliance_agent.core import nftables
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs.nft import Ruleset

RULES = """#!/usr/sbin/nft -f
flush ruleset
define ssh = 22
table inet filter {
  set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 198.51.100.7 }
  }
  chain extra {
    return
  }
  chain input {
    type filter hook input priority filter; policy drop;
    ip saddr @blocked drop
    iif "lo" accept
    tcp dport $ssh ct state new limit rate 10/minute accept
    iifname != "eth1" drop # a comment
    ct state established,related accept
    ct state invalid counter drop
    icmpv6 type { nd-neighbor-solicit, nd-router-advert, nd-neighbor-advert, echo-request } accept
    ip6 saddr fe80::/10 udp dport 546 accept
    tcp flags syn / syn,rst,fin,ack drop
    udp dport 5000-5010 jump extra
    tcp dport { 443, 80 } accept comment "web"
    tcp dport != 22 reject with tcp reset
    ct state vmap { established : accept, related : accept, invalid : drop }
    ip protocol icmp accept
    meta l4proto { ipv6-icmp, icmp } accept
    log prefix "dropped " drop
    reject
  }
}
"""
WRONG = (
    "table inet filter {\n",
    "table inet filter { chain input { tcp dport 99999 accept\n } }\n",
    "table inet filter {\n chain input {\n tcp dport ssh acept\n }\n}\n",
    "add rule inet filter nowhere accept\n",
    "delete table inet nowhere\n",
    "flush rulesets\n",
    "table inet filter {\n chain input {\n tcp dport $undefined accept\n }\n}\n",
)
NFT = shutil.which("nft", path="/usr/sbin:/sbin")


def ours(text: str) -> list[Any]:
    ruleset = Ruleset()
    ruleset.load(text)
    return without_handles(ruleset.listing())


def without_handles(listing: list[Any]) -> list[Any]:
    return [{kind: {k: v for k, v in one.items() if k != "handle"}} for item in listing for kind, one in item.items()]


def theirs(text: str) -> subprocess.CompletedProcess[str]:
    """The real nft in a network namespace of its own, so that this machine's rules are not touched."""
    assert NFT is not None
    script = f"{NFT} -f - && {NFT} -s -j list ruleset"
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", script], input=text, capture_output=True, text=True, check=False
    )


def usable() -> bool:
    return NFT is not None and os.geteuid() == 0 and theirs("flush ruleset\n").returncode == 0


real = pytest.mark.skipif(not usable(), reason="needs nft, root and network namespaces")


@real
@pytest.mark.real
@pytest.mark.parametrize("text", [RULES, nftables.generate(("22", "443", "8000-8010"), ("546",))])
def test_rules_are_listed_as_the_real_nft_lists_them(text: str) -> None:
    printed = json.loads(theirs(text).stdout)["nftables"]
    assert ours(text) == without_handles(printed[1:])


@real
@pytest.mark.real
@pytest.mark.parametrize("text", WRONG)
def test_what_the_real_nft_refuses_is_refused(text: str) -> None:
    assert theirs(text).returncode != 0


@pytest.fixture
def host() -> FakeHost:
    made = FakeHost(FakeClock())
    made.install("nft")
    made.part(Ruleset).load(RULES)
    return made


@pytest.mark.parametrize("text", WRONG)
async def test_a_wrong_text_changes_nothing(host: FakeHost, text: str) -> None:
    before = host.part(Ruleset).listing()
    for argv in (["nft", "-c", "-f", "-"], ["nft", "-f", "-"]):
        ran = await host.change(argv, stdin=f"flush ruleset\n{text}".encode())
        assert (ran.exit_status, ran.err != b"") == (1, True)
    assert host.part(Ruleset).listing() == before


async def test_a_check_run_changes_nothing_and_a_load_all(host: FakeHost) -> None:
    before = host.part(Ruleset).listing()
    text = nftables.generate(("22",), ()).encode()
    assert (await host.change(["nft", "-c", "-f", "-"], stdin=text)).exit_status == 0
    assert host.part(Ruleset).listing() == before
    assert (await host.change(["nft", "-f", "-"], stdin=text)).exit_status == 0
    assert [table["name"] for table in host.part(Ruleset).select("table")] == ["filter", "compliance"]


async def test_a_listing_loaded_as_json_gives_the_same_rules(host: FakeHost) -> None:
    before = without_handles(host.part(Ruleset).listing())
    dump = (await host.run(["nft", "-s", "-j", "list", "ruleset"])).out
    await host.change(["nft", "flush", "ruleset"])
    assert (await host.change(["nft", "-j", "-f", "-"], stdin=dump)).exit_status == 0
    assert without_handles(host.part(Ruleset).listing()) == before


async def test_a_printed_table_loads_again(host: FakeHost) -> None:
    text = (await host.run(["nft", "-s", "list", "table", "inet", "filter"])).text
    assert ours(text) == without_handles(host.part(Ruleset).listing())


async def test_loading_is_a_change_and_listing_needs_root(host: FakeHost) -> None:
    with pytest.raises(RuntimeError, match="started to look"):
        await host.run(["nft", "-f", "-"], stdin=b"flush ruleset\n")
    host.uid = 1000
    assert (await host.run(["nft", "-j", "list", "ruleset"])).exit_status == 1
