"""The packet that is measured is one that verifies, read in several batches."""

from __future__ import annotations

from pathlib import Path

from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.bench_packet import make_packet
from compliance_agent.lab.bench_verify import make
from compliance_agent.packet import archive
from compliance_agent.packet.verify import verify_file


def test_it_verifies_as_its_directory_does(tmp_path: Path) -> None:
    evidence = make(tmp_path, 160)
    directory = verify_paths([evidence])
    assert directory.ok and directory.found == 160, directory.problems
    packet = make_packet(tmp_path, 160)
    report = verify_file(packet)
    assert report.ok and report.verified == 160, report.problems
    raw = packet.read_bytes()
    assert archive.pack(archive.unpack(raw)) == raw, "what is written a file at a time is the same packet"
