"""A nursery of servers: told `start` on standard input it forks one, told `kill` it ends that one with SIGKILL.

python -m tests.real.server_nursery DATA_DIR PORT [--lying | --forgetful | --sleepwalking [--unfenced]]
    [--database URL] [--lease SECONDS] [--alerts FILE]

Told `freeze` it stops that one where it stands (`F`), and `thaw` lets it go on (`T`).
Prints `R` when the server accepts connections and `E <exit status, negative for a signal>` when it is gone. A fork saves the second
that an interpreter takes to read the server. With `--lying` the server answers before what it answers for is committed, which is
the fault that the test around it must see; with `--forgetful` PostgreSQL answers before what it answers for is on disk.
With `--sleepwalking` a replica believes for ever that it holds what it once held, and with `--unfenced` nothing refuses its writes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

from compliance_agent import logs
from compliance_agent.server import runner
from compliance_agent.server.records import Tenure
from compliance_agent.server.services import duties
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import engine, postgres
from compliance_agent.server.store.database import Statements

FREEZING = {"freeze": (signal.SIGSTOP, "F"), "thaw": (signal.SIGCONT, "T")}
COMMIT_AFTER_S = 1.5  # longer than an answer waits for its receipts


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode("ascii"))


def lie() -> None:
    """From here on a transaction's result is given out a moment before its commit."""

    async def transaction(
        self: engine.SqliteDatabase, work: Callable[[Statements], Awaitable[Any]], *, sites: Any = None
    ) -> Any:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def write() -> None:
            try:
                with self._lock(), self.writer.begin() as connection:
                    result: Any = engine._driven(work(engine._Direct(connection)))  # type: ignore[arg-type]
                    loop.call_soon_threadsafe(answered.set_result, result)
                    time.sleep(COMMIT_AFTER_S)
            except BaseException as error:
                loop.call_soon_threadsafe(answered.set_exception, error)

        writing = loop.run_in_executor(self._writing, write)
        result = await answered
        del writing  # nobody waits for it: that is the lie
        return result

    engine.SqliteDatabase.transaction = transaction  # type: ignore[method-assign]


def forget() -> None:
    """From here on a commit is answered before it is on disk."""
    postgres._WRITER_SETTINGS["synchronous_commit"] = "off"


def sleepwalk(unfenced: bool) -> None:
    """From here on a replica believes for ever that it holds what it once held, and shares nothing."""
    look, wanted = duties.Duties.look, duties.wanted

    async def believing(self: duties.Duties) -> None:
        before = self._mine
        await look(self)
        self._mine = {**self._mine, **before}

    def whole(rows: Any, mine: Any, _replicas: int, free: Any) -> duties.Wanted:
        return wanted(rows, mine, 1, free)

    async def check(self: duties.Duties, tx: Any, tenures: Any) -> None:
        """Lets everything pass."""

    def tenure(self: duties.Duties, name: str) -> Tenure | None:
        return Tenure(name, self._mine[name]) if name in self._mine else None

    duties.Duties.look, duties.Duties.tenure, duties.wanted = believing, tenure, whole  # type: ignore[method-assign,assignment]
    if unfenced:
        duties.Duties.check = check  # type: ignore[method-assign]


def option(name: str) -> str | None:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


def born(settings: ServerSettings) -> NoReturn:
    """The forked server."""
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if "--lying" in sys.argv:
            lie()
        if "--forgetful" in sys.argv:
            forget()
        if "--sleepwalking" in sys.argv:
            sleepwalk("--unfenced" in sys.argv)
        status = runner.serve(settings, lambda _url: say("R"))
    finally:
        os._exit(status)


def main() -> None:
    lease, alerts = option("--lease"), option("--alerts")
    logs.configure("WARNING" if lease else "ERROR", sys.stderr)
    settings = ServerSettings(
        data_dir=Path(sys.argv[1]),
        port=int(sys.argv[2]),
        database=option("--database"),
        alerts_file=Path(alerts) if alerts else None,
        duty_lease_s=int(lease or 10),
        host_requests_per_min=0,  # who sends again ten times a second while it is away is not what is asked about
    )
    child = 0
    for order in iter(sys.stdin.readline, ""):
        if order.strip() == "start" and not child:
            child = os.fork()
            if not child:
                born(settings)
        elif order.strip() == "kill" and child:
            os.kill(child, signal.SIGKILL)
            say(f"E {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
            child = 0
        elif order.strip() in FREEZING and child:
            number, said = FREEZING[order.strip()]
            os.kill(child, number)
            say(said)
    if child:
        os.kill(child, signal.SIGCONT)
        os.kill(child, signal.SIGTERM)
        say(f"E {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
