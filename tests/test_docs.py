"""The documents say what the program does: commands, options, settings, exit status, events, paths and links exist."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from compliance_agent import cli, errors
from compliance_agent.config import PREFIX, AgentConfig
from compliance_agent.lab import handbook
from compliance_agent.server.records.alarms import KINDS
from compliance_agent.server.settings import PREFIX as SERVER_PREFIX
from compliance_agent.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
OF_THE_SHELL = {0, 2, 130, 141}  # fine, usage, Ctrl-C, closed pipe: no class of ours


def fenced(page: Path) -> Iterator[str]:
    """Every line of the page's sh blocks."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        yield from block.splitlines()


def calls(page: Path) -> list[str]:
    """What is given to `compliance-agent` in the page's sh blocks."""
    found = (re.match(r"(?:\S*/)?compliance-agent (.*)", line) for line in fenced(page))
    return [match[1] for match in found if match]


def problem_of(call: str) -> str | None:
    """What is wrong with a call, as click knows the commands, or None."""
    command: click.Command = cli.group
    context = click.Context(command)
    for word in shlex.split(call, comments=True):
        if word.startswith("-"):
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            if word.partition("=")[0] not in known | {"--help", "--version"}:
                return f"{command.name}: no option {word}"
        elif isinstance(command, click.Group) and (below := command.get_command(context, word)) is not None:
            command = below
        elif isinstance(command, click.Group) and not command.invoke_without_command:
            return f"{command.name}: no command {word}"
    runs = not isinstance(command, click.Group) or command.invoke_without_command
    return None if runs else f"{command.name}: needs a subcommand"


def test_the_readme_shows_calls() -> None:
    assert len(calls(ROOT / "README.md")) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_call_in_a_document_is_one(page: Path) -> None:
    assert [problem for call in calls(page) if (problem := problem_of(call))] == []


@pytest.mark.parametrize("call", ["chek", "check --jsn", "server enrol-tokn --site x", "config", "lab drift --liste"])
def test_a_wrong_call_would_be_found(call: str) -> None:
    assert problem_of(call) is not None


def test_the_readmes_table_names_every_command() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    table = re.findall(r"^\| (`.*`) \|", text, re.MULTILINE)
    named = [name for cell in table for name in re.findall(r"`([^`]+)`", cell)]
    plain = [re.sub(r" \[.*?\]| [A-Z]+", "", name).split(r"\|")[0] for name in named]
    problems = [problem for name in plain if (problem := problem_of(name))]
    assert [problem for problem in problems if not problem.endswith("needs a subcommand")] == []
    assert {name.split()[0] for name in plain} == set(cli.COMMANDS)


def test_make_and_run_know_the_same_words_and_documents_use_no_other() -> None:
    known = set(re.findall(r"^  ([a-z]+)[^)\n]*\) #:", (ROOT / "run").read_text("utf-8"), re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    listed = re.search(r"^COMMANDS := (.*)$", makefile, re.MULTILINE)
    assert listed is not None
    assert set(listed[1].split()) == known
    for page in PAGES:
        used = {match[1] for line in fenced(page) if (match := re.match(r"(?:make|\./run) ([a-z]+)", line))}
        assert used <= known, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    inside = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in inside if not (page.parent / target).exists()] == []


def test_decisions_are_numbered_in_a_row_and_by_their_titles() -> None:
    pages = sorted((DOCS / "adr").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    assert [page.read_text("utf-8").split(".")[0] for page in pages] == [f"# {number}" for number in numbers]


def test_every_path_of_ours_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    paths = re.findall(r"`((?:compliance_agent|docs|tests)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("kind", "prefix"), [(AgentConfig, PREFIX), (ServerSettings, SERVER_PREFIX)])
def test_every_setting_is_documented(kind: type, prefix: str) -> None:
    page = (DOCS / "settings.md").read_text("utf-8")
    for field in dataclasses.fields(kind):
        assert field.metadata["doc"].endswith((".", ".)")), f"{field.name}: a sentence"
        assert f"| `{field.name}` | `{prefix}{field.name.upper()}` |" in page


def test_every_exit_status_is_documented_and_used() -> None:
    listed = re.findall(r"^\| (\d+) \|", (DOCS / "exit-codes.md").read_text("utf-8"), re.MULTILINE)
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.AgentError)]
    assert len(listed) == len(set(listed))
    assert set(map(int, listed)) == {kind.exit_status for kind in classes} | OF_THE_SHELL


def test_every_event_is_documented_by_a_fixed_dotted_name() -> None:
    page = (DOCS / "events.md").read_text("utf-8")
    found = handbook.events()
    assert len(found) > 30
    for name in found:
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)+", name), name
        assert f"| `{name}` |" in page


def test_an_event_without_a_fixed_name_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text('log.info(f"drift.{name}")\n')
    with pytest.raises(ValueError, match="bad:1"):
        handbook.events(tmp_path)


def test_every_alarm_has_its_page_and_every_page_its_alarm() -> None:
    text = (DOCS / "alarms.md").read_text("utf-8")
    sections = re.findall(r"^### (.+)\n\n(\S.*)$", text, re.MULTILINE)
    rules = [
        rule
        for name in ("rules", "agent-rules")
        for group in yaml.safe_load((ROOT / f"deploy/prometheus/{name}.yml").read_text("utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert [name for name, _ in sections] == [*KINDS, *(rule["alert"] for rule in rules)]
    assert [rule["annotations"]["runbook"] for rule in rules] == [
        f"docs/alarms.md#{rule['alert'].lower()}" for rule in rules
    ]


def test_every_link_to_a_part_of_a_page_leads_to_one() -> None:
    wrong = [
        f"{page.name}: {target}#{part}"
        for page in PAGES
        for target, part in re.findall(r"\]\(([\w./-]*\.md)?#([^)\s]+)\)", page.read_text("utf-8"))
        if part not in parts((page.parent / target) if target else page)
    ]
    assert wrong == []


def parts(page: Path) -> set[str]:
    """The page's headings as a link names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_attack_of_the_threat_model_is_played_by_a_test_that_exists() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| [^|]+ \| [^|]+ \| (.*) \|$", (DOCS / "threat-model.md").read_text("utf-8"), re.MULTILINE
    )
    played = [re.findall(r"`(tests/[\w/]+\.py)`", row) for row in rows if row not in {"played by", "---"}]
    assert len(played) >= 20
    assert all(played)
    assert [path for row in played for path in row if not (ROOT / path).exists()] == []


def test_every_token_of_the_handbook_is_one_of_the_products() -> None:
    """Codes in the pages for people in trouble are those that the product gives."""
    generated = "".join((DOCS / name).read_text("utf-8") for name in ("reasons.md", "events.md", "settings.md"))
    source = "".join(path.read_text("utf-8") for path in (ROOT / "compliance_agent").rglob("*.py"))
    for name in ("alarms.md", "troubleshooting.md", "operations.md"):
        tokens = set(re.findall(r"`([a-z]+(?:[._][a-z_]+)+)`", (DOCS / name).read_text("utf-8")))
        ours = {token for token in tokens if f"`{token}`" in generated or f'"{as_in_source(token)}"' in source}
        assert tokens - ours == set(), name


def as_in_source(token: str) -> str:
    """A figure without what the exposition adds to its name."""
    return re.sub(r"^compliance_agent_|_total$", "", token)


def test_every_path_of_the_protocol_is_one_of_the_servers() -> None:
    served = set(json.loads((DOCS / "openapi.json").read_text("utf-8"))["paths"])
    named = set(re.findall(r"`(?:POST|GET) (/api/[\w/]+)`", (DOCS / "protocol.md").read_text("utf-8")))
    assert named
    assert named <= served
