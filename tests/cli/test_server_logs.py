"""`compliance-agent server logs`: what is published, and whose word it has."""

from __future__ import annotations

import json
from pathlib import Path

from compliance_agent.log.note import Note
from tests.cli.command import run
from tests.log.builder import WITNESSES
from tests.server.builder import serving


async def published(directory: Path) -> None:
    async with serving(directory) as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())


async def test_witnesses_are_told_from_the_published_checkpoint(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await published(data)
    plain = run("server", "logs", "--json", "--data-dir", data)
    (log,) = json.loads(plain.out)["logs"]
    assert plain.status == 0, "nobody was asked, so nobody is missing"
    assert (log["witnesses"], log["cosigned"], log["unlogged"]) == ("none_configured", [], 0)
    assert log["size"] >= 3

    witness = WITNESSES[0]
    (tmp_path / "policy").write_text(f"witness w1 {witness.key}\nquorum w1\n")
    environ = {"MSP_SERVER_WITNESS_POLICY_FILE": str(tmp_path / "policy")}
    lacking = run("server", "logs", "--json", "--data-dir", data, env=environ)
    (log,) = json.loads(lacking.out)["logs"]
    assert (lacking.status, log["witnesses"], log["cosigned"]) == (
        1, "unwitnessed", [{"name": "w1", "code": "absent", "at": None}],
    )  # fmt: skip
    assert "unwitnessed" in run("server", "logs", "--data-dir", data, env=environ).out

    path = data / "log/clinic-1/2026/checkpoint"
    note = Note.parse(path.read_bytes())
    path.write_bytes(Note(note.text, (*note.signatures, witness.line(note.text))).encode())
    met = run("server", "logs", "--json", "--data-dir", data, env=environ)
    (log,) = json.loads(met.out)["logs"]
    assert (met.status, log["witnesses"], log["cosigned"][0]["code"]) == (0, "quorum_met", "cosigned")
