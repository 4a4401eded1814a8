"""Records are told of in a process of its own: the packet is the same bytes, and without that process there is none."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from compliance_agent.errors import AgentError
from compliance_agent.packet import source
from compliance_agent.packet.build import reading, written
from compliance_agent.packet.choosing import Wanted, going
from compliance_agent.packet.content import Record
from compliance_agent.packet.source import Source, apart
from compliance_agent.packet.telling import Telling
from tests.packet.scene import DAY, SITE, Made

TAKE = Telling.take


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that others left idle do not count here: where one runs, nothing is forked."""
    everybody, left = threading.active_count, threading.active_count() - 1
    monkeypatch.setattr(threading, "active_count", lambda: everybody() - left)


def build(made: Made, out: Path) -> None:
    with apart(lambda: reading(made.data_dir, SITE), out.parent) as teller:
        assert teller is not None, "nothing was forked"
        asyncio.run(written(made.data_dir, Wanted(SITE, DAY, DAY), out, teller=teller))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores: with one, nothing is forked")
class TestApart:
    def test_it_is_the_same_bytes(self, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On more than one page, and with nothing told in this process."""
        monkeypatch.setattr(source, "PAGE", 3)
        monkeypatch.setattr(Source, "told", lambda _: pytest.fail("told here"))
        build(made, tmp_path / "packet.zip")
        assert (tmp_path / "packet.zip").read_bytes() == made.raw
        assert [path.name for path in tmp_path.iterdir()] == ["packet.zip"]

    def test_killed_on_the_way_there_is_no_packet(
        self, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor half of one, nor a file that it kept its lines in; what was there before stays."""
        here, out = os.getpid(), tmp_path / "packet.zip"
        out.write_bytes(b"older")

        def dies(telling: Telling, record: Record) -> None:
            if telling.count == 4 and os.getpid() != here:
                os.kill(os.getpid(), signal.SIGKILL)
            TAKE(telling, record)

        monkeypatch.setattr(Telling, "take", dies)
        with pytest.raises(AgentError) as died:
            build(made, out)
        assert died.value.code == "worker_died"
        assert [path.name for path in tmp_path.iterdir()] == ["packet.zip"] and out.read_bytes() == b"older"

    def test_what_it_cannot_do_is_said_here(self, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the same name as if it were done here."""

        def refuses(_: Telling, record: Record) -> None:
            raise going(record.directory)

        monkeypatch.setattr(Telling, "take", refuses)
        with pytest.raises(AgentError) as refused:
            build(made, tmp_path / "packet.zip")
        assert refused.value.code == "pruned" and not list(tmp_path.iterdir())
