"""What holds for the repository as a whole: it installs from any mirror, names no one machine, and its help is true."""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SETS = ("agent", "server", "test", "dev")  # each holds the one before it
PINNED = [*(ROOT / "requirements").glob("*.txt"), ROOT / "tools" / "uv.txt"]

# Hosts are put together here, so that this file keeps its own rule.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("deb", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("security", "debian", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
    )
)
# What tells a package client where to look: a place, and places differ from machine to machine.
INDEX_OPTION = re.compile(
    r"(?:--(?:extra-|default-)?index(?:-url)?|--find-links|--registry)[= ]+[\"']?(?:https?|file):"
)
LOCK_ADDRESS = re.compile(r"\"resolved\": *\"https?:")


@functools.cache
def texts() -> dict[str, str]:
    """Every text file that is, or would be, in the repository, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and b"\0" not in (data := path.read_bytes()):
            found[name] = data.decode("utf-8", "replace")
    return found


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """`path:line: text` of every match."""
    return [
        f"{name}:{number}: {line.strip()[:160]}"
        for name, text in texts().items()
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def machine_paths() -> set[str]:
    """Folders that exist on this machine only: the checkout, its neighbours, and hidden folders of the home."""
    folders = {ROOT, *(path for path in ROOT.parent.iterdir() if path.is_dir())} if len(ROOT.parts) > 2 else {ROOT}
    home = Path(os.environ.get("HOME", "/nonexistent"))
    if home.is_dir():
        folders |= {
            path for path in home.glob(".*") if path.name in {".pyenv", ".cache", ".local", ".config", ".cargo"}
        }
    return {str(path) for path in folders if len(path.parts) > 2}


def configured_indexes() -> set[str]:
    """Hosts that this machine's package clients are told to use."""
    values = [value for name, value in os.environ.items() if re.match(r"(PIP|UV|npm_config)_.*(INDEX|registry)", name)]
    for name in (
        "/etc/pip.conf",
        "~/.config/pip/pip.conf",
        "~/.pip/pip.conf",
        "/etc/uv/uv.toml",
        "~/.config/uv/uv.toml",
        "~/.npmrc",
    ):
        path = Path(name).expanduser()
        if path.is_file():
            values.append(path.read_text(encoding="utf-8", errors="replace"))
    return {host for value in values for host in re.findall(r"https?://(?:[^/@\s]*@)?([^/\s:\"']+)", value)} - {
        "localhost"
    }


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the machine's setting; the hashes say what they must be."""
    hosts = "|".join(re.escape(host) for host in sorted({*REGISTRY_HOSTS, *configured_indexes()}))
    assert lines_with(re.compile(rf"(?<![\w-])(?:{hosts})(?![A-Za-z0-9-])")) == []
    assert lines_with(INDEX_OPTION) == []
    assert lines_with(LOCK_ADDRESS) == []


def test_no_file_names_a_path_of_this_machine() -> None:
    """A path that exists for one person breaks for all others, and tells about that person."""
    paths = "|".join(re.escape(path) for path in sorted(machine_paths()))
    assert lines_with(re.compile(rf"(?<![\w.])(?:{paths})(?![\w-])")) == []


def test_the_guards_above_see_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: an address, an index option, a lock entry and a path are each found."""
    planted = {
        "a": f"https://files.{REGISTRY_HOSTS[1]}/packages/x.whl",
        "b": "pip install " + "--index-url" + " https://mirror.example/simple",
        "c": '"resolved": ' + '"https://mirror.example/x.tgz"',
        "d": "see /srv/made-up/checkout/README.md",
    }
    monkeypatch.setattr(f"{__name__}.machine_paths", lambda: {"/srv/made-up/checkout"})
    monkeypatch.setattr(f"{__name__}.texts", lambda: planted)
    found = [
        hit[0]
        for pattern in (re.compile(re.escape(REGISTRY_HOSTS[1])), INDEX_OPTION, LOCK_ADDRESS)
        for hit in lines_with(pattern)
    ]
    assert found == ["a", "b", "c"]
    for guard in (test_no_file_names_a_package_registry, test_no_file_names_a_path_of_this_machine):
        with pytest.raises(AssertionError):
            guard()


PIN = re.compile(r"([\w.-]+)==([^ ;]+)(?: ; (?:(?! --).)*)?((?: +--hash=sha256:[0-9a-f]{64})+) *")


def pins(path: Path) -> dict[str, tuple[str, str]]:
    """Name -> (version, all hashes as text) of a requirements file."""
    logical = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, tuple[str, str]] = {}
    for line in logical.splitlines():
        if line.strip() and not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match, f"{path.name}: not a pin with hashes: {line[:100]}"
            found[canonicalize_name(match[1])] = (match[2], match[3])
    return found


@pytest.mark.parametrize("path", PINNED, ids=lambda path: str(path.relative_to(ROOT)))
def test_requirements_are_exact_hashed_and_without_an_address(path: Path) -> None:
    """Every line is name==version with sha256 hashes; nothing says where to fetch it."""
    assert pins(path)
    assert "://" not in path.read_text(encoding="utf-8")


def test_sets_agree_and_hold_each_other() -> None:
    """A larger set has every pin of the smaller, so installing one never moves the versions of another."""
    sets = [pins(ROOT / "requirements" / f"{name}.txt") for name in SETS]
    for smaller, larger in itertools.pairwise(sets):
        assert smaller.items() <= larger.items()


def declared() -> dict[str, list[str]]:
    """Set -> requirements of pyproject.toml that must be in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]

    def flat(name: str) -> list[str]:
        return [x for item in groups[name] for x in ([item] if isinstance(item, str) else flat(item["include-group"]))]

    agent = project["project"]["dependencies"]
    server = agent + extras["server"]
    return {
        "agent": agent,
        "server": server,
        "test": server + flat("test"),
        "dev": server + flat("dev") + [x for extra in extras.values() for x in extra],
        "build": flat("build"),
    }


@pytest.mark.parametrize("name", declared())
def test_requirements_satisfy_what_is_declared(name: str) -> None:
    """pyproject.toml was not changed without `./run lock`."""
    pinned = pins(ROOT / "requirements" / f"{name}.txt")
    for text in declared()[name]:
        requirement = Requirement(text)
        version, _ = pinned.get(canonicalize_name(requirement.name), ("missing", ""))
        assert version != "missing", f"{text}: not in requirements/{name}.txt; ./run lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{text}: locked at {version}; ./run lock"


def test_the_agent_stays_small() -> None:
    """What a clinic host must install: a new entry is a decision, so it is made here as well."""
    known = {
        "cffi",
        "click",
        "cryptography",
        "h11",
        "markdown-it-py",
        "mdurl",
        "pycparser",
        "pygments",
        "pynacl",
        "pyyaml",
        "rich",
        "structlog",
    }
    assert set(pins(ROOT / "requirements" / "agent.txt")) <= known | {"typing-extensions"}


def test_every_dependency_states_its_reason() -> None:
    """A comment stands beside each requirement of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    start, end = text.index("\ndependencies = ["), text.index("\n[tool.")
    bare = [line.strip() for line in text[start:end].splitlines() if re.match(r"^  \"", line) and "#" not in line]
    assert bare == []


def commands_of_run() -> list[str]:
    """The commands `./run help` prints."""
    helped = subprocess.run(
        ["./run", "help"], cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return re.findall(r"^  ([a-z]+) +\S", helped.stdout, re.MULTILINE)


def test_help_lists_every_command() -> None:
    """Nothing `./run` does is left out of its help, and nothing in its help is missing."""
    script = (ROOT / "run").read_text(encoding="utf-8")
    branches = re.findall(r"^  ([a-z]+)(?: \| [^)]*)?\)", script[script.index("\ncase $command in") :], re.MULTILINE)
    assert commands_of_run() == branches
    assert {"demo", "test", "lint", "check", "golden", "lock", "bench", "clean", "help"} <= set(branches)


def test_the_makefile_passes_everything_on() -> None:
    """`make X` is `./run X` for every X, and make knows no other."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^COMMANDS := (.*)$", makefile, re.MULTILINE)
    assert targets
    assert sorted(targets[1].split()) == sorted(commands_of_run())


def test_an_unknown_command_is_refused() -> None:
    """A typing mistake ends with 2 and says where to look, without installing anything."""
    done = subprocess.run(
        ["./run", "tset"], cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert "no such command: tset" in done.stderr


def test_without_a_python_the_message_says_what_to_do(tmp_path: Path) -> None:
    """No usable Python: exit 69 (unavailable) and the next step, from a copy that has nothing installed."""
    for name in ("run", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "requirements").symlink_to(ROOT / "requirements")
    env = {**os.environ, "PYTHON": "/nonexistent/python3"}
    done = subprocess.run(
        [tmp_path / "run", "demo"], env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 69
    assert "PYTHON=" in done.stderr


@pytest.mark.parametrize(
    "name", [path.name for path in (ROOT / "changelog.d").iterdir() if not path.name.startswith(".")]
)
def test_changelog_fragments_have_a_known_kind(name: str) -> None:
    """towncrier leaves a fragment of an unknown kind out without a word."""
    assert re.fullmatch(r"[0-9a-z-]+\.(added|changed|fixed|security|removed)\.md", name)


def test_revisions_of_the_schema_are_one_row() -> None:
    """Two that were written at the same time have one number; whoever lands second takes the next."""
    paths = sorted((ROOT / "compliance_agent/server/store/revisions").glob("[0-9]*.py"))
    said = [re.findall(r'^(?:down_)?revision = "?(\w+)"?$', path.read_text("utf-8"), re.MULTILINE) for path in paths]
    assert [own for own, _ in said] == [path.name[:4] for path in paths]
    assert [before for _, before in said] == ["None", *(own for own, _ in said[:-1])]


def test_every_table_is_made_by_a_revision() -> None:
    """Quick and coarse, for lint; tests/server/test_migrations.py holds every column against tables.py."""
    store = ROOT / "compliance_agent/server/store"
    made = "".join(path.read_text("utf-8") for path in [store / "schema_3.py", *store.glob("revisions/*.py")])
    tables = re.findall(r'(?:Table|_credentials)\(\s*"(\w+)"', (store / "tables.py").read_text("utf-8"))
    assert len(tables) > 20 and [name for name in tables if f'"{name}"' not in made] == []
