"""What an idle agent has in its memory: no module that it does not need, and no class whose methods were compiled for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each was in the process once, and costs what is said on every host for as long as it is up (CPython 3.11).
UNWANTED = {
    "argparse": "0.2 MB; words are parsed by who is given some",
    "click": "1.1 MB; the units give `run` and `uplink` no words",
    "decimal": "0.2 MB; spans of time are whole numbers",
    "email": "0.5 MB; dates of archives are read by hand, as apt writes them",
    "importlib.metadata": "1 MB; the agent knows its own version",
    "importlib.resources": "1 MB",
    "lzma": "0.3 MB with bz2 and shutil, which is asked to remove a directory once in a while",
    "rich": "5 MB; no terminal",
    "shutil": "see lzma",
    "sysconfig": "0.4 MB: every setting of Python's own build, by zoneinfo",
    "tempfile": "0.1 MB",
    "tomllib": "0.1 MB",
    "zoneinfo": "see sysconfig; for a maintenance window in another zone than UTC",
}
SHOW = """
import dataclasses, importlib, json, sys
sys.argv = ["/usr/bin/compliance-agent", {name!r}]
from compliance_agent import cli
from compliance_agent.cli import daemons, places
from compliance_agent.adapters import runner
runner.run = lambda work: work.close()  # all is loaded, and nothing begins
daemons._serve({name!r})
if {name!r} == "run":
    import compliance_agent.adapters.nft_library, compliance_agent.adapters.subprocess_host, compliance_agent.adapters.events
    from compliance_agent.checks import registry
    registry()
{planted}
made = [
    value
    for name, module in list(sys.modules.items()) if name.startswith("compliance_agent.")
    for value in list(vars(module).values())
    if isinstance(value, type) and value.__module__ == name and "__dataclass_params__" in vars(value)
]
compiled = [
    f"{{each.__module__}}.{{each.__qualname__}}" for each in made
    if not any(map(dataclasses.is_dataclass, each.__bases__)) and not each.__dataclass_params__.order and any(
        getattr(getattr(value, "__code__", None), "co_filename", "") == "<string>"
        for name, value in vars(each).items() if name != "__init__"
    )
]
print(json.dumps([sorted(sys.modules), compiled, len(made)]))
"""


def shown(name: str, planted: str = "") -> tuple[set[str], list[str], int]:
    """Modules of a process that was started so, its classes with compiled methods, and how many classes it has."""
    code = SHOW.format(name=name, planted=planted)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    modules, compiled, count = json.loads(done.stdout)
    return set(modules), compiled, count


@pytest.mark.parametrize(("name", "classes"), [("run", 100), ("uplink", 10)])
def test_a_daemon_holds_nothing_that_it_does_not_need(name: str, classes: int) -> None:
    """As its unit starts it: none of these modules, and every dataclass by our decorator (docs/adr/0026)."""
    modules, compiled, count = shown(name)
    assert modules & set(UNWANTED) == set()
    assert compiled == []
    assert count >= classes


def test_what_would_cost_memory_is_seen() -> None:
    """A planted module and a planted class of the standard decorator are named."""
    planted = """
import shutil
import compliance_agent.words as words
from dataclasses import dataclass
words.Planted = dataclass(type("Planted", (), {"__module__": "compliance_agent.words", "__doc__": "x"}))
"""
    modules, compiled, _ = shown("uplink", planted)
    assert "shutil" in modules
    assert compiled == ["compliance_agent.words.Planted"]


@pytest.mark.parametrize(
    ("words", "without"), [(["run"], True), (["uplink"], True), (["run", "--log-level", "INFO"], False)]
)
def test_a_unit_starts_a_daemon_without_the_parser(words: list[str], without: bool) -> None:
    """What a unit starts goes past the library that parses words; anything with a word to parse does not."""
    code = f"""
import sys
sys.argv = ["/usr/bin/compliance-agent", *{words!r}]
from compliance_agent.cli import daemons, main
daemons.main = lambda name: sys.exit(f"{{name}} {{'click' in sys.modules}}")
import compliance_agent.cli.command_line as parser
parser.main = lambda: sys.exit("parsed")
del sys.modules["click"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.stderr.strip() == (f"{words[0]} False" if without else "parsed")


def test_a_daemon_that_cannot_begin_ends_as_a_command_does() -> None:
    """One line, and the status of a configuration that cannot be used."""
    code = "import sys; sys.argv = ['/usr/bin/compliance-agent', 'run']; from compliance_agent.cli import main; main()"
    environment = {"PATH": "/usr/bin", "MSP_CLIENT_ID": "x"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("compliance-agent: ") and done.stderr.count("\n") == 1
