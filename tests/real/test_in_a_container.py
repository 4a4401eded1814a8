"""In an application container the agent sees the container: what is the host's is `unknown` there, and nothing of it passes.

No container engine is needed: namespaces of its own, no service manager and an engine's usual capabilities are what matters, and
the kernel gives them to `unshare` and `setpriv`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.cli.command import environment

CAPABILITIES = (
    "chown", "dac_override", "fsetid", "fowner", "mknod", "net_raw", "setgid", "setuid", "setfcap", "setpcap", "net_bind_service",
    "sys_chroot", "kill", "audit_write",
)  # fmt: skip
# What only a booted host can show. Encryption is judged by what is mounted, and the shipped baseline's places are not.
UNSEEN = ("auditd", "av_health", "backup", "firewall", "logging", "services", "ssh_access", "time_sync")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))), reason="needs root's namespaces"
    ),
]


def test_nothing_of_the_host_passes() -> None:
    bounded = ",".join(("-all", *(f"+{name}" for name in CAPABILITIES)))
    words = (
        "setpriv",
        "--no-new-privs",
        "--bounding-set",
        bounded,
        "--inh-caps",
        "-all",
        sys.executable,
        "-m",
        "compliance_agent",
    )
    inside = f"mount -t tmpfs tmpfs /run && exec {shlex.join((*words, 'check', '--json', *UNSEEN, 'encryption'))}"
    namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--mount-proc")
    done = subprocess.run(
        ("unshare", *namespaces, "sh", "-c", inside), capture_output=True, text=True, check=False, timeout=60, env=environment()
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    said = {check["check"]: check["result"] for check in json.loads(done.stdout)["results"]}
    assert {name: said[name] for name in UNSEEN} == dict.fromkeys(UNSEEN, "unknown")
    assert said["encryption"] != "pass"
