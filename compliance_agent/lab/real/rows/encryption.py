"""encryption: there is no dm-crypt in a container; what is not encrypted has to be said, and is for people."""

from compliance_agent.lab.real.row import Row, Table, unreadable

TABLE = Table(
    interval_s=2,
    rests=("fail", "mount_missing"),
    rows=(
        Row("encryption", "not_encrypted", "true", "fail", "mount_missing", "alert", "no_cure", standing=True),
        unreadable("encryption", "/usr/bin/lsblk"),
    ),
)  # fmt: skip
