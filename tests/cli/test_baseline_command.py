"""`compliance-agent baseline`: what a file asks for, what its author may not have meant, and whose word it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from compliance_agent.baseline import load, parse
from compliance_agent.checks import registry
from compliance_agent.cli.baseline import REMARKS, differences, remarks_on
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.heal import approvals
from tests.cli.command import WHOLE_HOST_S, configured, run

NOW = datetime(2026, 11, 28, tzinfo=UTC)
PLAIN = 'version: "2"\nmode: enforce\nchecks:\n  time_sync: {mode: enforce}\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def exception(days: int) -> str:
    expires = (NOW + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{PLAIN}exceptions:\n  - {{id: e1, check: time_sync, approver: j.doe, expires: {expires}}}\n"


REMARKED = {
    "all_audit": (PLAIN.replace("mode: enforce\nchecks", "mode: audit\nchecks"), "mode"),
    "audit": (PLAIN.replace("{mode: enforce}", ""), "checks.time_sync.mode"),
    "not_listed": (PLAIN, "checks.logging"),
    "watched_twice": (
        PLAIN + "  services: {mode: enforce, parameters: {active: [cron.service, chrony.service]}}\n",
        "checks.time_sync.parameters.unit",
    ),
    "exception_expired": (exception(0), "exceptions.e1"),
    "exception_expires_soon": (exception(29), "exceptions.e1"),
    "exception_too_long": (exception(367), "exceptions.e1"),
}


@pytest.mark.parametrize("code", REMARKS)
def test_what_may_not_be_meant_is_remarked_on(code: str) -> None:
    text, where = REMARKED[code]
    assert (code, where) in set(remarks_on(parse(text.encode()), NOW))


@pytest.mark.parametrize("code", [code for code in REMARKS if code != "not_listed"])
def test_what_is_meant_is_not(code: str) -> None:
    listed = "".join(f"  {name}: {{mode: enforce}}\n" for name in ("time_sync",))
    text = f'version: "2"\nchecks:\n{listed}' + exception(60).removeprefix(PLAIN)
    assert code not in {found for found, _ in remarks_on(parse(text.encode()), NOW)}


def test_the_shipped_baseline_leaves_nothing_to_remark_but_what_a_clinic_must_choose() -> None:
    """SCAP content is not on every host, and its digest must be somebody's who has read it."""
    ended = run("baseline", "lint", "--json", shipped_baseline())
    assert {(item["code"], item["where"]) for item in json.loads(ended.out)["remarks"]} == {
        ("not_listed", "checks.openscap"),
    }


def test_lint_ends_in_1_with_remarks_and_in_78_with_what_cannot_be_used(tmp_path: Path) -> None:
    ended = run("baseline", "lint", write(tmp_path / "b.yaml", PLAIN))
    assert ended.status == 1
    assert "checks.logging: not looked at on this host (not_listed)\n" in ended.out
    ended = run("baseline", "lint", write(tmp_path / "b.yaml", PLAIN.replace("time_sync", "time_sink")))
    assert (ended.status, ended.out) == (78, "")
    assert "checks: unknown key 'time_sink'; did you mean \"time_sync\"?" in ended.line


def test_show_takes_this_hosts_own_file_and_fills_in_defaults(tmp_path: Path) -> None:
    text = 'version: "7"\nmode: audit\nchecks:\n  time_sync: {mode: enforce, parameters: {max_stratum: 3}}\n'
    ended = run("baseline", "show", "time_sync", "--json", "--config", configured(tmp_path, baseline=text))
    document = json.loads(ended.out)
    assert document["baseline"] | {"sha256": ""} == {"version": "7", "mode": "audit", "sha256": ""}
    (shown,) = document["checks"]
    assert shown["mode"] == "audit", "the top holds it back"
    assert (shown["parameters"]["max_stratum"], shown["parameters"]["max_offset_ms"]) == (3, 500)
    assert shown["interval_s"] == registry()["time_sync"].spec.interval_s
    ended = run("baseline", "show", "time_sink", "--config", tmp_path / "agent.yaml")
    assert ended.status == 2
    assert 'did you mean "time_sync"?' in ended.err


def test_diff_says_what_is_asked_for_differently_and_nothing_else(tmp_path: Path) -> None:
    old = write(tmp_path / "old.yaml", exception(60))
    new = write(
        tmp_path / "new.yaml",
        exception(90)
        .replace('"2"', '"3"')
        .replace("{mode: enforce}", "{interval_s: 60, parameters: {max_stratum: 3}}"),
    )
    ended = run("baseline", "diff", old, new, "--json")
    assert ended.status == 1
    changes = {item["where"]: (item["old"], item["new"]) for item in json.loads(ended.out)["changes"]}
    assert changes.pop("exceptions.e1")
    assert changes == {
        "version": ("2", "3"),
        "checks.time_sync.mode": ("enforce", "audit"),
        "checks.time_sync.parameters.max_stratum": (10, 3),
    }
    same = write(tmp_path / "same.yaml", f"# a remark\n{exception(60)}")
    assert run("baseline", "diff", old, same).status == 0
    assert list(differences(parse(old.read_bytes()), parse(same.read_bytes()))) == []


def test_a_signed_baseline_is_taken_and_any_other_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, baseline=PLAIN, baseline_key_file="key.pub.pem")
    baseline = tmp_path / "baseline.yaml"
    assert run("baseline", "sign", baseline, "--key", tmp_path / "key.pem").status == 0
    assert run("config", "check", "--config", config).status == 0
    openssl = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pub.pem", "-rawin"]
    done = subprocess.run(
        [*openssl, "-in", "baseline.yaml", "-sigfile", "baseline.yaml.sig"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    signature = tmp_path / "baseline.yaml.sig"
    kept = signature.read_bytes()

    def refused() -> str:
        ended = run("config", "check", "--config", config)
        assert (ended.status, ended.out) == (78, "")
        return ended.line

    baseline.write_text(PLAIN + "# one more line\n")
    assert "is not the signature of these bytes" in refused()
    baseline.write_text(PLAIN)
    signature.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert "is not the signature of these bytes" in refused()
    signature.write_bytes(b"")
    assert "is not the signature of these bytes" in refused()
    signature.unlink()
    assert "not signed: baseline.yaml.sig is not there" in refused()
    assert run("baseline", "sign", baseline, "--key", tmp_path / "other.pem").status == 0
    assert "is not the signature of these bytes by key" in refused()
    shutil.copy(tmp_path / "other.pub.pem", tmp_path / "key.pub.pem")
    assert run("config", "check", "--config", config).status == 0
    (tmp_path / "key.pub.pem").chmod(0o666)
    assert "baseline_key_file" in refused()
    (tmp_path / "key.pub.pem").unlink()
    assert "baseline_key_file" in refused()


def test_what_cannot_be_used_is_not_signed(tmp_path: Path) -> None:
    path = write(tmp_path / "b.yaml", "checks: {}\n")
    ended = run("baseline", "sign", path, "--key", tmp_path / "key.pem")
    assert ended.status == 78
    assert {item.name for item in tmp_path.iterdir()} == {"b.yaml"}


def test_init_writes_a_baseline_that_lint_can_use_and_never_over_a_file(tmp_path: Path) -> None:
    """Of this machine, whatever it is like: what it does not pass is only looked at."""
    out = tmp_path / "proposed.yaml"
    ended = run("baseline", "init", out, "--json", "--version", "7", deadline_s=WHOLE_HOST_S)
    told = json.loads(ended.out)
    assert ended.status in {0, 1} and told["baseline"]["version"] == "7"
    made = load(out)
    assert made.sha256 == told["baseline"]["sha256"]
    assert {item["check"]: item["mode"] for item in told["checks"]} == {k: str(e.mode) for k, e in made.entries.items()}
    assert all(item["mode"] == "audit" for item in told["checks"] if item["result"] != "pass")
    assert run("baseline", "lint", out).status in {0, 1}
    again = run("baseline", "init", out)
    assert again.status == 2 and "--force" in again.err
    assert run("baseline", "init", "--version", "x y").status == 78


def test_what_root_permits_is_written_for_the_host_baseline(tmp_path: Path) -> None:
    """The file that `heal` reads, of the baseline that the agent is configured with."""
    out = tmp_path / "permits.json"
    done = run("baseline", "permit", str(out), "--config", str(configured(tmp_path)))
    assert done.status == 0, done.err
    assert json.loads(out.read_text())["baseline"][:16] in done.out
    assert out.stat().st_mode & 0o777 == 0o644


def test_root_waits_for_approvals_where_the_configuration_says_so(tmp_path: Path) -> None:
    """Made empty, kept with what is in it, made anew where it is of no use, and gone with the setting."""
    config, out, path = configured(tmp_path), tmp_path / "permits.json", tmp_path / "approvals.json"

    def permit() -> str:
        done = run("baseline", "permit", str(out), "--config", str(config))
        assert done.status == 0, done.err
        return done.out

    assert "waits for no approval" in permit() and not path.exists()
    plain = config.read_text()
    config.write_text(plain + "approval_for_disruptive: true\n")
    assert "waits for people's approval" in permit()
    assert approvals.read(path.read_bytes()) == []
    given = {
        "check": "patching",
        "target": "x",
        "number": 1,
        "since": "2026-11-29T12:00:00Z",
        "until": "2026-12-06T12:00:00Z",
    }
    path.write_text(json.dumps({"schema": approvals.SCHEMA, "given": [{**given, "baseline": "ab" * 32}]}))
    permit()
    assert [item["number"] for item in approvals.read(path.read_bytes())] == [1]
    path.write_text("{}")
    permit()
    assert approvals.read(path.read_bytes()) == []
    config.write_text(plain)
    permit()
    assert not path.exists()
