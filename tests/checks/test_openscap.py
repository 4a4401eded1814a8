"""openscap: what oscap itself prints is read as it is meant, and words that are no pass never pass."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.checks.openscap import CHECK, PREFIX, WORDS, Parameters, judge, observe
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.programs.oscap import Scap
from compliance_agent.models import Result

BASELINE = Parameters(**CHECK.example)
RULE = "file_permissions_etc_shadow"
# A file of ours in the two formats that oscap reads: three rules about files of ours, by OVAL.
XCCDF = """<?xml version="1.0" encoding="UTF-8"?>
<Benchmark xmlns="http://checklists.nist.gov/xccdf/1.2" id="xccdf_org.example_benchmark_own" resolved="1">
  <status date="2026-11-28">draft</status><version>1</version>
  <Profile id="xccdf_org.example_profile_own"><title>own</title>{selected}</Profile>
  {rules}
</Benchmark>
"""
OVAL = """<?xml version="1.0" encoding="UTF-8"?>
<oval_definitions xmlns="http://oval.mitre.org/XMLSchema/oval-definitions-5" xmlns:oval="http://oval.mitre.org/XMLSchema/oval-common-5"
 xmlns:unix="http://oval.mitre.org/XMLSchema/oval-definitions-5#unix">
 <generator><oval:schema_version>5.11</oval:schema_version><oval:timestamp>2026-11-28T00:00:00</oval:timestamp></generator>
 <definitions>{definitions}</definitions><tests>{tests}</tests><objects>{objects}</objects></oval_definitions>
"""


def written(root: Path, files: dict[str, Path]) -> Parameters:
    """Content with a rule for each name that passes while its file is there."""
    rules, selected, definitions, tests, objects = "", "", "", "", ""
    for number, (name, path) in enumerate(files.items(), 1):
        rules += (
            f'<Rule id="{PREFIX}{name}" selected="true"><title>{name}</title>'
            '<check system="http://oval.mitre.org/XMLSchema/oval-definitions-5">'
            f'<check-content-ref href="oval.xml" name="oval:own:def:{number}"/></check></Rule>'
        )
        selected += f'<select idref="{PREFIX}{name}" selected="true"/>'
        definitions += (
            f'<definition class="compliance" id="oval:own:def:{number}" version="1"><metadata><title>t</title>'
            "<description>d</description></metadata><criteria>"
            f'<criterion test_ref="oval:own:tst:{number}"/></criteria></definition>'
        )
        tests += (
            f'<unix:file_test id="oval:own:tst:{number}" version="1" check="all" check_existence="at_least_one_exists" comment="c">'
            f'<unix:object object_ref="oval:own:obj:{number}"/></unix:file_test>'
        )
        objects += (
            f'<unix:file_object id="oval:own:obj:{number}" version="1">'
            f"<unix:filepath>{path}</unix:filepath></unix:file_object>"
        )
    (root / "oval.xml").write_text(OVAL.format(definitions=definitions, tests=tests, objects=objects))
    content = root / "xccdf.xml"
    content.write_text(XCCDF.format(rules=rules, selected=selected))
    return Parameters(
        content=str(content),
        content_sha256=hashlib.sha256(content.read_bytes()).hexdigest(),
        profile="xccdf_org.example_profile_own",
        rules=tuple(files),
    )


@pytest.mark.parametrize("word", sorted(WORDS - {"pass"}))
async def test_a_listed_rule_with_any_other_word_than_pass_does_not_pass(word: str) -> None:
    host = healthy_host()
    host.part(Scap).results[RULE] = word
    verdict = judge(BASELINE, await observe(host, BASELINE))
    assert verdict.result is (Result.FAIL if word == "fail" else Result.UNKNOWN)
    assert RULE in verdict.sentence


async def test_a_profile_of_which_nothing_applies_is_no_evaluation() -> None:
    host = healthy_host()
    host.part(Scap).results = dict.fromkeys(host.part(Scap).results, "notapplicable")
    assert judge(BASELINE, await observe(host, BASELINE)).reason == "nothing_applies"


async def test_a_rule_that_nobody_listed_is_counted_and_not_named() -> None:
    host = healthy_host()
    host.part(Scap).results["jane_doe"] = "fail"
    seen = await observe(host, BASELINE)
    assert (seen.failed, "jane" in repr(seen)) == (2, False)


async def test_only_root_is_believed() -> None:
    host = healthy_host()
    host.uid = 1000
    with pytest.raises(CannotTell) as refused:
        await observe(host, BASELINE)
    assert refused.value.reason == "not_permitted"


async def test_an_exit_status_that_contradicts_the_results_is_not_believed() -> None:
    host = healthy_host()
    host.part(Scap).results = {RULE: "pass", "sshd_disable_empty_passwords": "pass"}
    oscap = host.installed["oscap"]

    def lying(call):  # type: ignore[no-untyped-def]
        ran = oscap(call)
        return replace(ran, exit_status=2) if "xccdf" in call.argv else ran

    host.installed["oscap"] = lying
    with pytest.raises(CannotTell):
        await observe(host, BASELINE)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"rules": ()}, "rules"), ({"content_sha256": "0" * 63}, "content_sha256"), ({"content": "x.xml"}, "content"),
     ({"cpe": "x.xml"}, "cpe"), ({"profile": ""}, "profile")],
)  # fmt: skip
def test_parameters_that_prove_nothing_are_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Parameters(**{**CHECK.example, **change})


@pytest.mark.real
async def test_oscap_itself_on_content_of_our_own(tmp_path: Path) -> None:
    if shutil.which("oscap") is None or os.geteuid() != 0:
        pytest.skip("needs oscap, and root as the check does")
    (tmp_path / "here").touch()
    baseline = written(tmp_path, {"here": tmp_path / "here", "gone": tmp_path / "gone"})
    seen = await observe(RealHost(), baseline)
    assert (seen.passed, seen.failed, seen.rules_failed) == (1, 1, ("gone",))
    assert judge(baseline, seen).reason == "rule_failed"
    (tmp_path / "gone").touch()
    assert judge(baseline, await observe(RealHost(), baseline)).result is Result.PASS
    with_one_more = replace(baseline, rules=(*baseline.rules, "not_in_it"))
    assert judge(with_one_more, await observe(RealHost(), with_one_more)).reason == "rule_missing"
    (tmp_path / "xccdf.xml").write_text((tmp_path / "xccdf.xml").read_text() + "<!-- changed -->")
    assert judge(baseline, await observe(RealHost(), baseline)).reason == "content_changed"


@pytest.mark.real
async def test_the_content_that_debian_ships() -> None:
    """Debian 12 ships rules for Debian 10 and 11: on a Debian 12 none of them applies, and that is no pass."""
    content = Path(BASELINE.content)
    if not content.exists() or os.geteuid() != 0:
        pytest.skip("needs ssg-debian, and root as the check does")
    baseline = replace(BASELINE, content_sha256=hashlib.sha256(content.read_bytes()).hexdigest())
    seen = await observe(RealHost(), baseline)
    verdict = judge(baseline, seen)
    assert (verdict.result, verdict.reason) == (Result.UNKNOWN, "nothing_applies")
    assert (seen.not_applicable or 0) > 20
