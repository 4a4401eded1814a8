"""Builds the packets that people asked for, one at a time, in a process of its own (packet/work.py), under a lease on its row.

    async with PacketRunner(...).running(): ...

The row says who builds and until when that is believed; each sign of progress says so again. A replica that died is followed by
another one, or by itself. Whoever removes the row's work ends the process: it is asked for at each sign of progress.

Files stand in `packets/<id>/` of the data directory. Where there may be other replicas they are copied into the database, so that
each of them can hand them out. What no row names any more is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from compliance_agent.adapters.durable import make_directory
from compliance_agent.errors import AgentError
from compliance_agent.server.records import Store, Transaction
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.services.acts import Act, note
from compliance_agent.server.services.background import beside
from compliance_agent.server.services.packets import FILES, Packets, subject_of
from compliance_agent.server.settings import ServerSettings

PACKETS = "packets"
PIECE = 1 << 20
LOOK_S = 10.0
SAY_S = 1.0
LEASE = timedelta(seconds=60)
MOST_TRIES = 3
RECORD_BYTES, SPARE_BYTES = 10_000, 1 << 30  # of a record and its proof in a packet; what must stay free for evidence
COMMAND = (sys.executable, "-m", "compliance_agent.packet.work")

log = structlog.get_logger()


def file_of(settings: ServerSettings, job: PacketJob, name: str) -> Path | None:
    """Where this data directory has a file of a packet; None when it has not."""
    path, size = settings.data_dir / PACKETS / job.job_id / name, job.size if name == FILES[0] else job.report_size
    return path if path.is_file() and path.stat().st_size == size else None


class PacketRunner:
    """The work.

    Args:
        settings: of the server; the process opens the same store.
        packets: the desk, which says when there is work.
        replica_id: of this data directory.
        alone: no other replica can be on this database.
        command: what is started, in tests another.
    """

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        packets: Packets,
        replica_id: str,
        *,
        alone: bool,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._settings, self._store, self._packets = settings, store, packets
        self._replica_id, self._alone, self._command = replica_id, alone, tuple(command)
        self._root = settings.data_dir / PACKETS

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Build until the block ends."""
        async with beside(self._run()):
            yield

    async def _run(self) -> None:
        while True:
            try:
                while await self.turn():
                    pass
            except AgentError as error:
                log.error("packet.stopped", code=error.code)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._packets.asked.wait(), LOOK_S)
            self._packets.asked.clear()

    async def turn(self) -> bool:
        """Remove what is over, and build the packet that waits longest; whether there was one."""
        there = await self._packets.over()
        await asyncio.to_thread(self._sweep, {job.job_id for job in there if job.state == "done"})
        job = await self._store.write(self._take) if any(job.open for job in there) else None
        if job is None:
            return False
        log.info("packet.begun", packet=job.job_id, site=job.site_id, tries=job.tries)
        ended = await self._built(job)
        if ended is None:
            log.info("packet.removed", packet=job.job_id)
        else:
            log.info("packet.ended", packet=job.job_id, state=ended.state, code=ended.code, bytes=ended.size)
        return True

    def _sweep(self, kept: set[str]) -> None:
        if self._root.is_dir():
            for path in self._root.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    async def _take(self, tx: Transaction) -> PacketJob | None:
        now = await tx.now()
        for job in await tx.packet_jobs(await tx.all_sites(None)):
            free = job.until is None or job.until <= now or job.holder == self._replica_id
            if not job.open or not (job.state == "waiting" or free):
                continue
            if job.tries >= MOST_TRIES:
                await self._end(tx, replace(job, state="failed", code="worker_died"), job.tries)
                continue
            begun = replace(
                job, state="running", stage="reading", at=0, total=0, holder=self._replica_id, until=now + LEASE,
                tries=job.tries + 1,
            )  # fmt: skip
            if await tx.save_packet_job(begun, tries=job.tries):
                await tx.clear_packet_parts(begun)
                return begun
        return None

    async def _end(self, tx: Transaction, job: PacketJob, tries: int) -> bool:
        """Say how it ended; whether it was still wanted."""
        now = self._packets.clock()
        ended = replace(job, ended_at=now, holder=job.holder if job.state == "done" else None, until=None)
        if not await tx.save_packet_job(ended, tries=tries):
            return False
        if job.state == "done":
            about, said = subject_of(job), f"{job.job_id} {job.sha256}"
            await note(tx, now, Act.PACKET_BUILT, by=None, sites={job.site_id}, subject=about, said=said)
        return True

    async def _built(self, job: PacketJob) -> PacketJob | None:
        """The packet as it ended; None where it was removed meanwhile."""
        directory = self._root / job.job_id
        if not await self._room(job):
            ended: PacketJob | None = replace(job, state="failed", code="no_room")
        else:
            make_directory(directory)
            ended = await self._worked(job, directory)
        if ended is not None and ended.state == "done" and not self._alone:
            ended = await self._copied(ended, directory)
        last = ended
        if last is not None and not await self._store.write(lambda tx: self._end(tx, last, job.tries)):
            ended = None
        if ended is None or ended.state != "done":
            await asyncio.to_thread(shutil.rmtree, directory, True)
        return ended

    async def _room(self, job: PacketJob) -> bool:
        """Whether the disk has room for it and for evidence, which comes first."""
        shards = await self._store.for_sites({job.site_id}).shards()
        largest = max((shard.size for shard in shards), default=0)
        free = shutil.disk_usage(self._settings.data_dir).free
        return free >= SPARE_BYTES + RECORD_BYTES * largest

    async def _worked(self, job: PacketJob, directory: Path) -> PacketJob | None:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said = _Said()
            hearing = asyncio.create_task(said.hear(process, self._asked(job, directory)))
            try:
                while not hearing.done():
                    await asyncio.wait({hearing}, timeout=SAY_S)
                    if not hearing.done() and not await self._going_on(job, said.progress):
                        return None
            finally:
                hearing.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError, ValueError):
                    await hearing
            return _ended(job, said.last)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _going_on(self, job: PacketJob, progress: Mapping[str, Any]) -> bool:
        """Say how far it is, and that we live; whether it is still wanted."""

        async def work(tx: Transaction) -> bool:
            now = replace(job, **progress, until=await tx.now() + LEASE)
            return await tx.save_packet_job(now, tries=job.tries)

        return await self._store.write(work)

    def _asked(self, job: PacketJob, directory: Path) -> bytes:
        said = dataclasses.fields(self._settings)
        values = {one.name: getattr(self._settings, one.name) for one in said}
        settings = {
            one.name: str(values[one.name]) if isinstance(values[one.name], Path) else values[one.name]
            for one in said
            if one.name == "data_dir" or values[one.name] != one.default
        }
        dates = [job.dates.first.isoformat(), job.dates.last.isoformat()] if job.dates is not None else None
        days = [job.days.first.isoformat(), job.days.last.isoformat()]
        return json.dumps(
            {
                "settings": settings,
                "site": job.site_id,
                "days": days,
                "dates": dates,
                "control": job.control,
                "host": job.host,
                "sample": job.sample,
                "directory": str(directory),
            }
        ).encode()

    async def _copied(self, job: PacketJob, directory: Path) -> PacketJob | None:
        """Copy the files to where every replica finds them."""
        total = -(-job.size // PIECE) + -(-job.report_size // PIECE)
        copied = 0
        for name in FILES:
            if not (directory / name).exists():
                continue
            number = 0
            with (directory / name).open("rb") as file:
                while piece := await asyncio.to_thread(file.read, PIECE):
                    await self._store.write(_part(job, name, number, piece))
                    number, copied = number + 1, copied + 1
                    if not await self._going_on(
                        replace(job, state="running"), {"stage": "copying", "at": copied, "total": total}
                    ):
                        return None
        return job


def _part(job: PacketJob, name: str, number: int, piece: bytes) -> Any:
    return lambda tx: tx.add_packet_part(job, name, number, piece)


class _Said:
    """What the process has said so far."""

    def __init__(self) -> None:
        self.progress: dict[str, Any] = {"stage": "reading", "at": 0, "total": 0}
        self.last: dict[str, Any] = {}

    async def hear(self, process: asyncio.subprocess.Process, asked: bytes) -> None:
        """Ask, and listen until it has said all."""
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process was started with pipes")
        process.stdin.write(asked)
        process.stdin.close()
        async for line in process.stdout:
            said = json.loads(line)
            if "stage" in said:
                self.progress = {"stage": str(said["stage"]), "at": int(said["at"]), "total": int(said["total"])}
            else:
                self.last = said


def _ended(job: PacketJob, last: Mapping[str, Any]) -> PacketJob:
    done = last.get("done")
    if done is None:
        return replace(job, state="failed", code=str(last.get("failed", "worker_died")))
    packet, report = done["packet"], done["report"] or {"size": 0, "sha256": ""}
    return replace(
        job, state="done", stage="", at=0, total=0, records=done["records"], problems=done["problems"],
        size=packet["size"], sha256=packet["sha256"], report_size=report["size"], report_sha256=report["sha256"],
    )  # fmt: skip
