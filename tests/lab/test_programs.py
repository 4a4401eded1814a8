"""The simulated programs hang together: what is stopped does not answer, what is changed is seen, what looks changes
nothing.
"""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost, Node
from compliance_agent.lab.programs import apt, chrony, clamav, disks, dnf, logs, programs, restic


@pytest.fixture
def host() -> FakeHost:
    return healthy_host()


ENV = {"RESTIC_REPOSITORY": restic.REPOSITORY, "RESTIC_PASSWORD_FILE": restic.PASSWORD_FILE}
LOOKS: dict[str, list[str]] = {
    "nft": ["-s", "-j", "list", "ruleset"],
    "chronyc": ["-c", "tracking"],
    "timedatectl": ["show"],
    "apt": ["list", "--upgradable"],
    "apt-get": ["-s", "dist-upgrade"],
    "dpkg-query": ["-W"],
    "restic": ["snapshots", "--json"],
    "lsblk": ["-J", "-o", "NAME,TYPE"],
    "findmnt": ["-J"],
    "cryptsetup": ["luksDump", "--dump-json-metadata", "/dev/sda3"],
    "journalctl": ["-o", "json"],
    "rsyslogd": ["-N1"],
    "date": ["+%z"],
    "env": ["--unset=TZ", "date", "+%z"],
    "readlink": ["-f", "/etc/hostname"],
    "uname": ["-r"],
}


@pytest.mark.parametrize("name", LOOKS)
async def test_a_look_answers_and_changes_nothing(host: FakeHost, name: str) -> None:
    before = {path: (node.content, node.mode) for path, node in host.files.items()}
    ran = await host.run([name, *LOOKS[name]], env=ENV)
    assert ran.exit_status == 0
    assert ran.out or ran.err
    assert {path: (node.content, node.mode) for path, node in host.files.items()} == before
    if "json" in " ".join(LOOKS[name]) or "-J" in LOOKS[name]:
        for line in ran.text.splitlines() if name == "journalctl" else [ran.text]:
            json.loads(line)


CHANGES = {
    "chronyc": ["makestep"],
    "apt-get": ["-y", "dist-upgrade"],
    "restic": ["backup", "/etc"],
    "freshclam": [],
    "systemctl": ["daemon-reload"],
    "nft": ["flush", "ruleset"],
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_refused_to_who_only_looks(host: FakeHost, name: str) -> None:
    host.unit(clamav.FRESHCLAM).active = False
    with pytest.raises(RuntimeError, match="started to look"):
        await host.run([name, *CHANGES[name]], env=ENV)
    assert (await host.change([name, *CHANGES[name]], env=ENV)).exit_status == 0


def test_every_installed_program_is_simulated(host: FakeHost) -> None:
    assert set(host.installed) <= set(programs())


async def test_a_stopped_chronyd_does_not_talk_and_a_started_one_steps_the_clock(host: FakeHost) -> None:
    host.skew_s = 90.0
    await host.unit_action("stop", chrony.UNIT)
    ran = await host.run(["chronyc", "-c", "tracking"])
    assert (ran.exit_status, ran.out) == (1, b"506 Cannot talk to daemon\n")
    assert not (await host.clock_state()).synchronized
    await host.unit_action("start", chrony.UNIT)
    assert (await host.clock_state()).synchronized
    assert host.skew_s == 0.0


async def test_stepping_needs_a_source(host: FakeHost) -> None:
    host.skew_s = -3.0
    host.part(chrony.TimeSource).reachable = False
    await host.change(["chronyc", "makestep"])
    assert host.skew_s == -3.0
    assert (await host.run(["chronyc", "-c", "tracking"])).text.endswith(",Not synchronised\n")


async def test_clamd_answers_only_while_it_runs(host: FakeHost) -> None:
    assert await host.ask(clamav.SOCKET, b"zPING\0") == b"PONG\0"
    await host.unit_action("stop", clamav.UNIT)
    with pytest.raises(CannotTell) as caught:
        await host.ask(clamav.SOCKET, b"zPING\0")
    assert caught.value.errno_name == "ECONNREFUSED"


async def test_the_updater_fetches_when_it_starts_if_a_mirror_answers(host: FakeHost) -> None:
    signatures = host.part(clamav.Signatures)
    signatures.built_at, signatures.mirror_reachable = host.now() - timedelta(days=9), False
    await host.unit_action("restart", clamav.FRESHCLAM)
    assert host.now() - clamav.built(host) == timedelta(days=9)
    signatures.mirror_reachable = True
    await host.unit_action("restart", clamav.FRESHCLAM)
    assert host.now() - clamav.built(host) < timedelta(days=1)


async def test_a_line_goes_where_the_loaded_configuration_says(host: FakeHost) -> None:
    host.put("/etc/rsyslog.d/50-audit.conf", "local0.*\t/var/log/audit-canary\nauth.* @@collector:6514\n")
    await host.run(["logger", "-p", "local0.info", "-t", "x", "--", "before"])
    assert "/var/log/audit-canary" not in host.files
    await host.unit_action("restart", logs.RSYSLOG)
    await host.run(["logger", "-p", "local0.info", "-t", "x", "--", "after"])
    await host.run(["logger", "-p", "auth.info", "-t", "x", "--", "login"])
    assert b"x: after\n" in await host.read("/var/log/audit-canary")
    assert b"login" in await host.read("/var/log/auth.log")
    assert b"login" not in await host.read("/var/log/syslog")
    assert len(host.part(logs.Logs).forwards["collector:6514"]) == 1


async def test_a_bad_configuration_is_told_and_does_not_start(host: FakeHost) -> None:
    host.append(logs.CONF, "*.* \n")
    assert (await host.run(["rsyslogd", "-N1"])).exit_status == 1
    with pytest.raises(StepFailed):
        await host.unit_action("restart", logs.RSYSLOG)
    assert (await host.units([logs.RSYSLOG]))[logs.RSYSLOG].active == "failed"


async def test_the_journal_is_read_from_a_cursor_on(host: FakeHost) -> None:
    last = json.loads((await host.run(["journalctl", "-o", "json", "-n", "1"])).text)
    await host.run(["logger", "-t", "canary", "--", "hello"])
    later = await host.run(["journalctl", "-o", "json", "--after-cursor", last["__CURSOR"]])
    assert [json.loads(line)["MESSAGE"] for line in later.text.splitlines()] == ["hello"]
    gone = await host.run(["journalctl", "-o", "json", "--after-cursor", "s=0;i=0"])
    assert gone.exit_status == 1


async def test_updates_are_installed_once_and_a_lock_keeps_them_out(host: FakeHost) -> None:
    apt.offer(host, "libssl3", "3.0.19-1~deb12u1", reboots=True)
    install = ["apt-get", "-y", "-o", "A::B=c", "--only-upgrade", "install", "libssl3=3.0.19-1~deb12u1"]
    apt.lock(host, 4242)
    assert (await host.change(install)).exit_status == 100
    apt.lock(host, None)
    assert b"1 upgraded" in (await host.change(install)).out
    assert b"0 upgraded" in (await host.change(install)).out
    assert (await host.run(["apt", "list", "--upgradable"])).out == b"Listing...\n"
    assert (await host.stat("/run/reboot-required")).kind == "file"


async def test_a_mirror_out_of_reach_refreshes_nothing(host: FakeHost) -> None:
    host.part(apt.Packages).mirror_reachable = False
    before = {path: node.content for path, node in host.files.items() if path.startswith(apt.LISTS)}
    assert (await host.change(["apt-get", "update"])).exit_status == 100
    assert {path: node.content for path, node in host.files.items() if path.startswith(apt.LISTS)} == before


async def test_dnf_lists_advisories_until_they_are_applied() -> None:
    host = FakeHost(healthy_host().clock)
    dnf.provide(host)
    dnf.publish(host, dnf.Advisory("RHSA-2026:1234", "Important", "openssl-3.0.7-29.el9_4.x86_64"))
    listing = ["dnf", "-q", "-C", "updateinfo", "list", "--security"]
    assert (await host.run(listing)).text == "RHSA-2026:1234 Important/Sec. openssl-3.0.7-29.el9_4.x86_64\n"
    assert (await host.change(["dnf", "-q", "-y", "upgrade", "--security"])).exit_status == 0
    assert (await host.run(listing)).out == b""


@pytest.mark.parametrize(
    ("env", "told"),
    [
        (ENV | {"RESTIC_REPOSITORY": "/nowhere"}, b"unable to open config file"),
        (ENV | {"RESTIC_PASSWORD_FILE": "/etc/hostname"}, b"wrong password"),
        (ENV | {"RESTIC_PASSWORD_FILE": "/nowhere"}, b"does not exist"),
        ({}, b"specify repository location"),
    ],
)
async def test_restic_says_why_it_cannot(host: FakeHost, env: dict[str, str], told: bytes) -> None:
    ran = await host.run(["restic", "snapshots", "--json"], env=env)
    assert (ran.exit_status, told in ran.err) == (1, True)


async def test_what_was_backed_up_is_restored_as_it_was(host: FakeHost) -> None:
    saved = await host.read("/srv/data/records.db")
    await host.change(["restic", "backup", "/srv/data", "--tag", "drill"], env=ENV)
    host.put("/srv/data/records.db", b"overwritten")
    await host.change(["restic", "restore", "latest", "--target", "/var/tmp/drill"], env=ENV)
    assert await host.read("/var/tmp/drill/srv/data/records.db") == saved
    host.part(restic.Repositories).by_place[restic.REPOSITORY].damaged = True
    assert (await host.run(["restic", "check", "--no-lock"], env=ENV)).exit_status == 1
    assert (await host.change(["restic", "restore", "latest", "--target", "/x"], env=ENV)).exit_status == 1


async def test_the_backup_unit_fails_with_its_repository(host: FakeHost) -> None:
    count = len(host.part(restic.Repositories).by_place[restic.REPOSITORY].snapshots)
    await host.unit_action("start", restic.UNIT)
    repository = host.part(restic.Repositories).by_place[restic.REPOSITORY]
    assert len(repository.snapshots) == count + 1
    assert (await host.units([restic.UNIT]))[restic.UNIT].active == "inactive"
    repository.full = True
    with pytest.raises(StepFailed):
        await host.unit_action("start", restic.UNIT)
    assert (await host.units([restic.UNIT]))[restic.UNIT].active == "failed"


async def test_swap_spaces_are_named_as_the_kernel_names_them(host: FakeHost) -> None:
    listed = json.loads((await host.run(["lsblk", "-J", "-o", "NAME,KNAME,MOUNTPOINTS"])).text)
    volumes = listed["blockdevices"][0]["children"][2]["children"][0]["children"]
    [swap] = [volume for volume in volumes if volume["mountpoints"] == ["[SWAP]"]]
    assert f"/dev/{swap['kname']} ".encode() in await host.read("/proc/swaps")


async def test_luks_headers_are_dumped_by_version(host: FakeHost) -> None:
    device = host.part(disks.Disks).find("/dev/sda3")
    assert device is not None
    dumped = await host.run(["cryptsetup", "luksDump", "--dump-json-metadata", "/dev/sda3"])
    assert json.loads(dumped.text)["segments"]["0"]["encryption"] == "aes-xts-plain64"
    device.luks = disks.luks1()
    assert (await host.run(["cryptsetup", "luksDump", "--dump-json-metadata", "/dev/sda3"])).exit_status == 1
    assert "MK bits:       \t512" in (await host.run(["cryptsetup", "luksDump", "/dev/sda3"])).text


async def test_units_obey_masks_and_aliases(host: FakeHost) -> None:
    await host.unit_action("stop", "chronyd.service")
    await host.unit_action("mask", chrony.UNIT)
    assert (await host.units(["chronyd.service"]))["chronyd.service"].load == "masked"
    for verb in ("start", "restart", "enable"):
        with pytest.raises(StepFailed):
            await host.unit_action(verb, chrony.UNIT)
    await host.unit_action("unmask", chrony.UNIT)
    await host.unit_action("disable", chrony.UNIT)
    assert (await host.units([chrony.UNIT]))[chrony.UNIT].enabled == "disabled"
    with pytest.raises(StepFailed):
        await host.unit_action("reload", chrony.UNIT)


async def test_links_are_followed_and_circles_are_not(host: FakeHost) -> None:
    host.place("/etc/localtime", Node("symlink", target="../usr/share/zoneinfo/Etc/UTC"))
    host.put("/usr/share/zoneinfo/Etc/UTC", b"TZif2")
    host.place("/a", Node("symlink", target="/a"))
    assert (await host.run(["readlink", "/etc/localtime"])).text == "../usr/share/zoneinfo/Etc/UTC\n"
    assert (await host.run(["readlink", "-f", "/a"])).exit_status == 1
