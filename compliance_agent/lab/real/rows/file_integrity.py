"""file_integrity: files that were listed or packed and are changed, gone, replaced or more; a dpkg that cannot tell."""

import hashlib

from compliance_agent.lab.real.row import Of, Row, Table, hanging, hidden, kept

_OF = Of("file_integrity")
_OWN, _LIST = "/usr/local/sbin/clinic-sync", "/etc/msp/files.sha256"
_TEXT = "#!/bin/sh\nexec true\n"
_DIGEST = hashlib.sha256(_TEXT.encode()).hexdigest()
_MANIFEST = f"{_DIGEST}  /opt/clinic/sync\n{_DIGEST}  /opt/clinic/print\n"

_ROWS: tuple[Row, ...] = (
    _OF.alarm("listed_changed", "file_changed", kept(_OWN, f"echo '#' >>{_OWN}")),
    _OF.alarm("listed_gone", "file_missing", (f"mv {_OWN} /root", f"mv /root/clinic-sync {_OWN}")),
    _OF.alarm(
        "listed_replaced", "file_replaced",
        (f"mv {_OWN} /root; ln -s /root/clinic-sync {_OWN}", f"rm {_OWN}; mv /root/clinic-sync {_OWN}"),
    ),
    _OF.alarm("of_the_manifest_changed", "file_changed", kept("/opt/clinic/print", "echo '#' >>/opt/clinic/print")),
    _OF.alarm("one_more", "file_unlisted", ("mkdir /opt/clinic/deep; touch /opt/clinic/deep/new", "rm -r /opt/clinic/deep")),
    _OF.alarm("open_to_others", "file_open", ("chmod 757 /opt/clinic/sync", "chmod 755 /opt/clinic/sync")),
    _OF.alarm("manifest_changed", "manifest_changed", kept(_LIST, f"sed -i s/print/other/ {_LIST}")),
    _OF.alarm("program_changed", "package_file_changed", kept("/usr/bin/tac", "printf x >>/usr/bin/tac")),
    _OF.alarm("program_gone", "package_file_missing", ("mv /usr/bin/tac /root", "mv /root/tac /usr/bin")),
    _OF.blind("no_dpkg", "tool_missing", hidden("/usr/bin/dpkg")),
    _OF.blind("dpkg_hangs", "timed_out", hanging("/usr/bin/dpkg")),
    _OF.blind(
        "database_gone", "unparsable", ("mv /var/lib/dpkg/status /root", "mv /root/status /var/lib/dpkg")
    ),
    _OF.blind(
        "database_damaged", "tool_failed", kept("/var/lib/dpkg/status", "sed -i '1s/Package/Pack age/' /var/lib/dpkg/status")
    ),
    _OF.blind(
        "digests_gone", "packages_unverifiable",
        ("mv /var/lib/dpkg/info/coreutils.md5sums /root", "mv /root/coreutils.md5sums /var/lib/dpkg/info"),
    ),
    _OF.blind(
        "manifest_unreadable", "io_error", (f"mv {_LIST} /root; mkfifo {_LIST}", f"rm {_LIST}; mv /root/files.sha256 {_LIST}")
    ),
    _OF.blind("listed_too_large", "output_too_large", kept(_OWN, f"truncate -s 3M {_OWN}")),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup=f"""
    mkdir -p /opt/clinic /var/lib/apt/lists/partial
    for path in {_OWN} /opt/clinic/sync /opt/clinic/print; do printf %s '{_TEXT}' >$path; chmod 755 $path; done
    printf %s '{_MANIFEST}' >{_LIST}""",
    entry={
        "mode": "audit",
        "deadline_s": 12,
        "parameters": {
            "files": [_OWN],
            "digests": [_DIGEST],
            "manifest": _LIST,
            "manifest_sha256": hashlib.sha256(_MANIFEST.encode()).hexdigest(),
            "directories": ["/opt/clinic"],
            "packages": True,
            "max_file_mib": 1,
            "max_total_mib": 8,
        },
    },
    interval_s=3,
    cost_s=90.0,
)
