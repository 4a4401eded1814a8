"""Why a site's log does not go on here: what ends by itself is waited out, everything else stops it until somebody has looked.

Certainly not written, or (a COMMIT to PostgreSQL without an answer) to be read again: a log is only grown by compare-and-swap, so
reading tells. What a bucket did not take, or did not say that it took, is written again from the database. Both are posted on
the board, and said once.
"""

from __future__ import annotations

import structlog

from compliance_agent.errors import StorageError, StorageFull
from compliance_agent.server.services.board import Board

ALL_SITES = ""
WAITED_OUT = frozenset({"busy", "database_away", "commit_unknown", "blobs_away", "blobs_refused"})
OF_THE_LOG = frozenset({"log_restored", "log_forked", "log_damaged"})  # whoever finds it, it is true for all

log = structlog.get_logger()


def is_waited_out(error: Exception) -> bool:
    """Whether it ends by itself."""
    return isinstance(error, StorageFull) or (isinstance(error, StorageError) and error.code in WAITED_OUT)


class Stillness:
    """What stands still.

    Attributes:
        again: sites to read again before they go on; ALL_SITES for every one.
        untold: codes by site of what other replicas must know, and have not been told.
        elsewhere: sites that stand still because others said so; nothing contradicts them here.
    """

    def __init__(self, board: Board) -> None:
        self.again: set[str] = set()
        self.untold: dict[str, str] = {}
        self.elsewhere: set[str] = set()
        self._board = board
        self._said: dict[str, str] = {}  # codes of pauses that were logged; repeats are not

    def failed(self, site_id: str, error: Exception) -> None:
        """Wait out what is certainly not written, or what reading again will tell; stop on everything else."""
        if is_waited_out(error):
            self.wait_out(site_id, getattr(error, "code", ""))
        else:
            self.stop(site_id, error)

    def wait_out(self, site_id: str, code: str) -> None:
        """Pause, and read again."""
        self.again.add(site_id)
        self.pause(site_id, code)

    def pause(self, site_id: str, code: str) -> None:
        """It ends by itself."""
        if self._said.get(site_id) != code:
            log.error("log.paused", code=code, site_id=site_id or None)
        self._said[site_id] = self._board.paused[site_id] = code
        self._board.turn()

    def well(self, site_id: str) -> None:
        """It has ended."""
        self._board.paused.pop(site_id, None)
        if self._said.pop(site_id, None) is not None:
            log.info("log.resumed", site_id=site_id or None)

    def stop(self, site_id: str, error: Exception) -> None:
        """For good."""
        code = "write_unknown" if isinstance(error, StorageError | OSError) else getattr(error, "code", "log_stopped")
        if site_id not in self._board.stopped:
            log.critical("log.stopped", code=code, site_id=site_id or None)
        if code in OF_THE_LOG and (site_id not in self._board.stopped or site_id in self.elsewhere):
            self.untold[site_id] = code
        self.elsewhere.discard(site_id)
        self._board.stopped.setdefault(site_id, code)
        self._board.turn()

    def stop_too(self, site_id: str, code: str) -> None:
        """Another replica has found why, or this one before it was started again."""
        if site_id in self._board.stopped:
            return
        log.critical("log.stopped", code=code, site_id=site_id)
        self.elsewhere.add(site_id)
        self._board.stopped[site_id] = code
        self._board.turn()

    def lifted(self, site_id: str) -> None:
        """Somebody has looked: it is read again, and goes on where nothing is found."""
        if self._board.stopped.pop(site_id, None) is None:
            return
        log.warning("log.lifted", site_id=site_id)
        self.elsewhere.discard(site_id)
        self.untold.pop(site_id, None)
        self.again.add(site_id)
        self._board.turn()
