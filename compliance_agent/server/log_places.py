"""Where the logs' files and heads are, as the settings say: in the data directory, or in a bucket that every replica reaches."""

from __future__ import annotations

import re

from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.records import Clock
from compliance_agent.server.s3 import Place, bucket
from compliance_agent.server.settings import BLOBS, ServerSettings

LOG, HEADS = "log", "heads"


def log_places(settings: ServerSettings, clock: Clock) -> tuple[LogFiles, LogHeads]:
    """Files and heads. A bucket is asked whether it locks, and takes over the heads that the data directory remembers.

    Raises:
        ConfigError: the bucket cannot be used as the settings say.
        StorageError: it cannot be asked now.
        LogStopped: it has seen another history than the data directory.
    """
    beside = LogHeads(settings.data_dir / HEADS)
    if settings.blobs is None:
        return LogFiles(settings.data_dir / LOG), beside
    there = bucket(_place(settings, settings.blobs), settings.blobs_credentials_file)
    there.check()
    heads = LogHeads(there.under(HEADS))
    heads.keep_all_of(beside)
    return LogFiles(there.under(LOG), clock), heads


def _place(settings: ServerSettings, address: str) -> Place:
    found = re.fullmatch(BLOBS, address)
    name, prefix = (found[1], (found[2] or "").strip("/")) if found else (address, "")
    return Place(name, prefix, settings.blobs_endpoint, settings.blobs_region, settings.blobs_mode)
