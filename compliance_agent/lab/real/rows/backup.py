"""backup: old snapshots, a stopped timer, records that say the repository or the restore is bad, a repository out of reach."""

from compliance_agent.lab.real.row import Row, Table, failing, unreadable

_OLD_SNAPSHOT = """
set -e; export RESTIC_PASSWORD_FILE=/etc/msp/restic.password
restic -q -r /srv/backup/restic --no-cache backup --time "$(date -d '-3 days' '+%Y-%m-%d %H:%M:%S')" /srv/data
restic -q -r /srv/backup/restic --no-cache forget $(restic -r /srv/backup/restic --no-cache snapshots --json |
  python3 -c 'import json,sys; print(" ".join(s["id"] for s in sorted(json.load(sys.stdin), key=lambda s: s["time"])[1:]))')
"""
_FRESH_SNAPSHOT = """RESTIC_PASSWORD_FILE=/etc/msp/restic.password restic -r /srv/backup/restic --no-cache snapshots --json |
python3 -c 'import json,sys,time,datetime as d
newest = max(s["time"] for s in json.load(sys.stdin))[:19]
sys.exit(d.datetime.fromisoformat(newest).timestamp() < time.time() - 3600)'"""
_DRILL = "/var/lib/compliance-agent/backup-drill.json"
_CHECKED = "/var/lib/compliance-agent/backup-check.json"
_PROVE = "compliance-agent drill restore"
_DAMAGE = """python3 -c '
import os, pathlib
for path in pathlib.Path("/srv/backup/restic/data").glob("*/*"):
    os.chmod(path, 0o600)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)'"""
# As long as before and as old as before, so that it counts as the file that was saved.
_OTHER_BYTES = """cp -p /srv/data/record /root/record
python3 -c '
import os
path = "/srv/data/record"
was = os.stat(path)
open(path, "r+").write("b")
os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))'"""
_FAILS, _WORKS = failing("restic-backup.service")


def _dated(path: str, days: int, ok: str = "true") -> str:
    """A script that writes the record of a check or drill."""
    form = f'{{"time":"%s","bytes":9,"digest_ok":{ok}}}'
    return f"printf '{form}' \"$(date -u -d '-{days} days' +%Y-%m-%dT%H:%M:%S.000000Z)\" >{path}"


TABLE = Table(
    interval_s=4,
    cost_s=120.0,
    setup=f"""
    mkdir -p /var/lib/compliance-agent && chmod 700 /var/lib/compliance-agent
    {_dated(_CHECKED, 0)}
    {_dated(_DRILL, 0)}
    systemctl start restic-backup.service restic-backup.timer""",
    rows=(
        Row("backup", "snapshot_old", _OLD_SNAPSHOT, "fail", "snapshot_too_old", "success", truth=_FRESH_SNAPSHOT, wait_s=60),
        Row(
            "backup", "timer_stopped", "systemctl stop restic-backup.timer", "fail", "timer_not_active", "success",
            truth="systemctl is-active restic-backup.timer",
        ),
        # Found by the drill itself: one byte of a pack is another, and a saved file that is not what the host has.
        Row(
            "backup", "repository_damaged", f"cp -a /srv/backup/restic /srv/backup/good; {_DAMAGE}; {_PROVE}",
            "fail", "check_failed", "alert", "no_cure",
            restore=f"rm -r /srv/backup/restic; mv /srv/backup/good /srv/backup/restic; {_PROVE}",
        ),
        Row(
            "backup", "restore_broken", f"{_OTHER_BYTES}; {_PROVE}", "fail", "drill_failed", "alert", "no_cure",
            restore=f"cp -p /root/record /srv/data/record; {_PROVE}",
        ),
        Row("backup", "drill_old", _dated(_DRILL, 200), "fail", "drill_too_old", "alert", "no_cure", restore=_dated(_DRILL, 0)),
        Row(
            "backup", "repository_gone", "mv /srv/backup/restic /srv/backup/away", "unknown", "repository_missing",
            restore="mv /srv/backup/away /srv/backup/restic",
        ),
        Row(
            "backup", "wrong_password", "cp -p /etc/msp/restic.password /root/right && echo wrong >/etc/msp/restic.password",
            "unknown", "wrong_password", restore="cp -p /root/right /etc/msp/restic.password",
        ),
        Row("backup", "record_corrupt", f"echo '{{' >{_DRILL}", "unknown", "unparsable", restore=_dated(_DRILL, 0)),
        unreadable("backup", "/usr/bin/restic"),
        Row(
            "backup", "run_fails", f"{_FAILS}\n{_OLD_SNAPSHOT}", "fail", "snapshot_too_old", "reverted", "unit_start_failed",
            restore=f"{_WORKS}; systemctl start restic-backup.service", wait_s=60,
        ),
    ),
)  # fmt: skip
