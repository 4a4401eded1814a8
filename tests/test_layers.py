"""The layers, as data: who may import whom, and what pure code may not touch.

Read `LAYERS`, `MAY_IMPORT`, `FENCES`, `IMPURE` and `EXCEPTIONS`; the rest is the small engine that applies them to the
syntax tree of every module, imports inside functions included. A rule that names something which does not exist fails
too, and so does an exception that nothing needs any more. `docs/ARCHITECTURE.md` draws the same picture.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "compliance_agent"
ROOT = Path(__file__).resolve().parent.parent

# --- the rules ------------------------------------------------------------------------------------

# A name stands for the module and all below it; the longest name that fits decides. "" is the package itself.
LAYERS: dict[str, str] = {
    "": "words",
    "adopt": "root",
    "dataclass": "words",
    "errors": "words",
    "facts": "words",
    "frames": "words",
    "heal": "root",
    "models": "words",
    "ports": "words",
    "server.records": "words",
    "words": "words",
    "api_key_rotation": "stages",
    "baseline": "thinking",
    "checks": "thinking",
    "config": "thinking",
    "core": "thinking",
    "crypto": "thinking",
    "documents": "thinking",
    "entries": "thinking",
    "evidence.accepting": "thinking",
    "evidence.alike": "thinking",
    "evidence.spelled": "thinking",
    "evidence.allowlist": "thinking",
    "evidence.canonical": "thinking",
    "evidence.forest": "thinking",
    "log": "thinking",
    "remedies": "thinking",
    "runbook": "thinking",
    "runbook_lint": "thinking",
    "transport": "thinking",
    "utils": "thinking",
    "client_certificate": "stages",
    "counts": "stages",
    "delivery": "stages",
    "drift": "stages",
    "drills": "stages",
    "enrolment": "stages",
    "evidence": "stages",
    "healing": "stages",
    "health": "stages",
    "life": "stages",
    "mcp_client": "stages",
    "server": "stages",
    "root_key": "stages",
    "shedding": "stages",
    "site_lease": "stages",
    "web": "stages",
    "tile_fetch": "stages",
    "traces": "thinking",
    "tracing": "wiring",
    "watchdog": "stages",
    "waking": "stages",
    "witness": "stages",
    "witness_calls": "stages",
    "witness_role": "wiring",
    "witnessing": "stages",
    "adapters": "hands",
    "adapters.durable": "tools",
    "admin": "wiring",
    "evidence.directory": "hands",
    "evidence.former": "hands",
    "evidence.recovery": "hands",
    "evidence.store": "hands",
    "evidence.table": "hands",
    "credential": "tools",
    "installed": "tools",
    "local_socket": "tools",
    "log_level": "stages",
    "logs": "tools",
    "packet": "thinking",
    "pair": "wiring",
    "permits": "thinking",
    "packet.build": "wiring",
    "packet.choosing": "wiring",
    "packet.kept": "stages",
    "packet.logbook": "stages",
    "packet.look": "stages",
    "packet.opening": "wiring",
    "packet.source": "wiring",
    "packet.work": "wiring",
    "packet.reading": "stages",
    "packet.report": "stages",
    "packet.retold": "stages",
    "packet.verify": "stages",
    "sheets": "stages",
    "sheets.sheet": "thinking",
    "order_trust": "stages",
    "otlp": "stages",
    "ordering": "stages",
    "progress": "stages",
    "proposal": "stages",
    "queue": "hands",
    "receipts": "stages",
    "rotation": "stages",
    "recording": "wiring",
    "rounds": "stages",
    "server.store": "hands",
    "uplink": "hands",
    "uplink.certificate": "wiring",
    "uplink.process": "wiring",
    "uplink.table": "words",
    "transport.http": "hands",
    "transport.serve": "hands",
    "__main__": "wiring",
    "agent": "wiring",
    "service": "wiring",
    "cli": "wiring",
    "lab": "wiring",
    "server.app": "wiring",
    "server.backup": "wiring",
    "server.moving": "wiring",
    "server.opening": "wiring",
    "server.channels": "hands",
    "server.restore": "wiring",
    "server.log_places": "wiring",
    "server.runner": "wiring",
    "server.s3": "hands",
    "server.tls": "hands",
}

MAY_IMPORT: dict[str, tuple[frozenset[str], str]] = {
    "words": (frozenset({"words"}), "all else is said in words, so they depend on nothing but each other"),
    "thinking": (frozenset({"words", "thinking"}), "data in, decisions out, and no I/O to think of"),
    "tools": (
        frozenset({"words", "tools"}),
        "it reads and writes whole files safely and knows nothing of their meaning",
    ),
    "stages": (
        frozenset({"words", "thinking", "tools", "stages"}),
        "a stage reaches the world through its ports, and its own files through adapters.durable",
    ),
    "root": (
        frozenset({"words", "root"}),
        "it is root: whoever reads it must be able to read all of it",
    ),
    "hands": (
        frozenset({"words", "thinking", "tools", "hands", "root"}),
        "hands do what they are told; deciding is for stages",
    ),
    "wiring": (
        frozenset({"words", "thinking", "tools", "stages", "hands", "root", "wiring"}),
        "wiring is where real hands are chosen",
    ),
}

# The specification constructs these from the configuration alone, which then means this machine. Such a default hand is
# imported inside the function that makes it, never at import time, and the agent passes its own.
DEFAULT_HANDS = ("drift", "evidence", "healing", "mcp_client")


@dataclass(frozen=True)
class Fence:
    """Modules that must not import others, and why."""

    why: str
    targets: tuple[str, ...]  # ours without the package name, foreign ones with a leading "!"
    sources: tuple[str, ...] = ("",)
    but_sources: tuple[str, ...] = ()
    but_targets: tuple[str, ...] = ()
    at_import_time_only: bool = False


HEAVY = tuple(f"!{name}" for name in ("fastapi", "jinja2", "rich", "sqlalchemy", "starlette", "uvicorn"))
SERVER_EXTRA = (*(name for name in HEAVY if name != "!rich"), "!aiosqlite", "!argon2", "!orjson", "!prometheus_client")
OBJECT_STORE = ("!boto3", "!botocore")
ADVICE = ("core.advice", "server.model_calls", "server.services.advising")

FENCES = (
    Fence(
        "a clinic host must not carry, nor be able to run, the server",
        targets=("server", "web"),
        but_sources=(
            "server",
            "web",
            "cli",
            "lab",
            "packet.build",
            "packet.choosing",
            "packet.opening",
            "packet.source",
            "packet.work",
        ),
    ),
    Fence(
        "the server extra is not installed on a clinic host",
        targets=SERVER_EXTRA,
        but_sources=("server", "web", "cli", "lab", "packet.choosing", "packet.source"),
    ),
    Fence(
        "the s3 extra is only installed where a bucket is; one module knows it, and loads it when it is asked to",
        targets=OBJECT_STORE,
        but_sources=("server.s3",),
    ),
    Fence(
        "the extra `otel` is only installed where a collector is; one module knows it, and loads it when it is asked to",
        targets=("!opentelemetry",),
        but_sources=("otlp",),
    ),
    Fence(
        "the extra `mcp` is only installed where programs may ask; one module knows it, and only a server that is told to loads it",
        targets=("!mcp", "!mcp_types"),
        but_sources=("server.mcp_endpoint",),
    ),
    Fence(
        "a server that speaks to no program must start without the extra `mcp`",
        targets=("server.mcp_endpoint",),
        at_import_time_only=True,
    ),
    Fence(
        "whoever sends no traces must start without the extra `otel`",
        targets=("!opentelemetry",),
        sources=("otlp",),
        at_import_time_only=True,
    ),
    Fence(
        "commands beside the server open its parts, and must not pay for its API",
        sources=(
            "server.opening",
            "server.desks",
            "server.backup",
            "server.restore",
            "server.moving",
            "server.services",
        ),
        targets=("server.api", "server.app", "server.runner", "web", "!fastapi", "!starlette", "!uvicorn", "!pydantic"),
        at_import_time_only=True,
    ),
    Fence(
        "a server without a bucket must start without the s3 extra",
        targets=OBJECT_STORE,
        sources=("server.s3",),
        at_import_time_only=True,
    ),
    Fence(
        "the server judges records, not machines: it shares words and pure parts, and nothing that acts",
        sources=("server", "web"),
        targets=("adapters", "agent", "checks", "drift", "healing", "mcp_client", "queue", "remedies"),
        but_targets=("adapters.durable",),
    ),
    Fence(
        "fakes must not be reachable from the product; tests, the demo and the lab command alone use them",
        targets=("lab",),
        but_sources=("lab", "cli.demo", "cli.lab"),
    ),
    Fence(
        "they cost memory on every host and time at every start of a command; import them where they are used",
        targets=HEAVY,
        but_sources=("server", "web", "lab", "cli.demo", "cli.lab", "cli.server"),
        at_import_time_only=True,
    ),
    Fence(
        "`compliance-agent check` must not pay for the server",
        sources=("cli",),
        targets=("server", "web", "lab"),
        but_sources=("cli.demo", "cli.lab", "cli.server"),
        at_import_time_only=True,
    ),
    Fence(
        "the log is one that others run too; what its entries say is a matter of `entries`",
        sources=("log",),
        targets=tuple(name for name in LAYERS if name not in {"", "crypto", "dataclass", "errors", "log"}),
    ),
    Fence(
        "the network's process holds no key and looks at nothing: what it cannot do, nobody who owns it can",
        sources=("uplink",),
        targets=("agent", "checks", "crypto", "drift", "evidence", "healing", "mcp_client", "queue", "remedies"),
    ),
    Fence(
        "the root side is `heal`, the frames that it speaks, what these are made of, and nothing that comes with more",
        sources=("heal",),
        targets=tuple(name for name in LAYERS if name not in {"", "dataclass", "errors", "frames", "heal"}),
    ),
    Fence(
        "who verifies orders as root shares the root side's files, frames and nothing that comes with more",
        sources=("adopt",),
        targets=tuple(name for name in LAYERS if name not in {"", "adopt", "dataclass", "errors", "frames", "heal"}),
    ),
    Fence(
        "what starts an agent beside the root side is root too, and brings nothing more",
        sources=("pair",),
        targets=tuple(name for name in LAYERS if name not in {"", "dataclass", "errors", "frames", "heal", "pair"}),
    ),
    Fence(
        "a model advises people who ask it to; nothing that goes on by itself may wait for one, or follow one",
        targets=ADVICE,
        but_sources=(*ADVICE, "server.desks", "cli.server_plan"),
    ),
    Fence(
        "only hands open sockets, processes and databases",
        sources=tuple(name for name, layer in LAYERS.items() if layer in {"words", "thinking", "stages"}),
        but_sources=tuple(name for name, layer in LAYERS.items() if layer in {"tools", "hands", "root", "wiring"}),
        targets=("!sqlite3", "!socket", "!subprocess"),
    ),
)

# What thinking must be given instead of taking it: the time, chance, and everything outside the process.
IMPURE: dict[str, str] = {
    "time.*": "the time is an argument: `now`, or a Clock",
    "datetime.datetime.now": "the time is an argument: `now`, or a Clock",
    "datetime.datetime.today": "the time is an argument: `now`, or a Clock",
    "datetime.datetime.utcnow": "the time is an argument: `now`, or a Clock",
    "datetime.date.today": "the time is an argument: `now`, or a Clock",
    "asyncio.sleep": "waiting is for a Clock",
    "random": "chance is an argument: `rng`",
    "random.*": "chance is an argument: `rng`",
    "secrets.*": "chance is an argument",
    "uuid.uuid[1467]": "ids are made where chance is, and handed in",
    "open": "files are for hands; a check has its Host",
    "io.open": "files are for hands; a check has its Host",
    "os": "the machine is for hands; a check has its Host",
    "os.*": "the machine is for hands; a check has its Host",
    "shutil.*": "files are for hands; a check has its Host",
    "tempfile.*": "files are for hands; a check has its Host",
    "pathlib.Path.cwd": "files are for hands; a check has its Host",
    "pathlib.Path.home": "files are for hands; a check has its Host",
    "pathlib.Path().*": "files are for hands; a check has its Host",
    "socket.*": "the network is for hands",
    "subprocess.*": "processes are for hands; a check has its Host",
    "asyncio.create_subprocess_*": "processes are for hands; a check has its Host",
    "asyncio.open_*": "the network is for hands",
    "asyncio.start_*": "the network is for hands",
    "urllib.request.*": "the network is for hands",
}
PURE_PATH = (
    "as_posix",
    "is_absolute",
    "joinpath",
    "name",
    "parent",
    "parents",
    "parts",
    "relative_to",
    "stem",
    "suffix",
)
PURE_AFTER_ALL = ("os.PathLike", "os.fspath", "random.Random", *(f"pathlib.Path().{name}" for name in PURE_PATH))

# (importer, imported or impure name): why this once.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("", "!structlog"): "imported once, before anybody else does, so that it does not import rich",
    ("baseline", "adapters.durable"): "`load` reads its one file; everything else in it is pure",
    ("config", "adapters.durable"): "`from_file` reads its one file at start; everything else in it is pure",
    ("config", "os.environ"): "the environment is half of its input, and an argument for tests",
    ("config", "os.path.lexists"): "which credentials the service manager has loaded is part of its input",
    ("config", "pathlib.Path().absolute"): "a relative path is relative to where the command runs",
    ("config", "pathlib.Path.cwd"): "a relative path is relative to where the command runs",
    ("crypto", "adapters.durable"): "`Ed25519Signer(path)` reads its one file; everything else in it is pure",
    ("models", "uuid.uuid4"): "a bundle's id is random by design, so that its digest leaks nothing of its content",
    ("utils", "random"): "apply_jitter's fixed signature has no source of chance; ours pass one",
}

# --- the engine -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One import as written: the module it reaches, where, and whether importing the file already runs it."""

    target: str
    line: int
    at_import_time: bool


def inside(name: str, roots: tuple[str, ...]) -> bool:
    """Is `name` one of `roots` or below it?"""
    return any(root in {"", name} or name.startswith(f"{root}.") for root in roots)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name without the package's."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def layer_of(module: str) -> str | None:
    """The layer of the longest name in LAYERS that fits; None for a module nobody placed."""
    fitting = [name for name in LAYERS if name and inside(module, (name,))] or [""] * (module == "")
    return LAYERS[max(fitting, key=len)] if fitting else None


def walk(node: ast.AST, at_import_time: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, with whether importing the file runs it."""
    for child in ast.iter_child_nodes(node):
        runs = at_import_time and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            runs = False
        yield child, runs
        yield from walk(child, runs)


def dotted(node: ast.AST, aliases: dict[str, str]) -> str | None:
    """`a.b.c` with its first name as imported; a call in the middle shows as `()`."""
    match node:
        case ast.Name(id=name):
            return aliases.get(name, name if name == "open" else None)
        case ast.Attribute(value=value, attr=attr):
            base = dotted(value, aliases)
            return f"{base}.{attr}" if base else None
        case ast.Call(func=func):
            base = dotted(func, aliases)
            return f"{base}()" if base else None
    return None


def imports_of(tree: ast.AST, module: str, *, is_package: bool, known: frozenset[str]) -> Iterator[Import]:
    """What a module imports: ours without the package's name, foreign ones with a leading "!"."""

    def named(full: str) -> str:
        if full == PACKAGE or full.startswith(f"{PACKAGE}."):
            return full.removeprefix(PACKAGE).removeprefix(".")
        return f"!{full}"

    for node, runs in walk(tree):
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield Import(named(name.name), node.lineno, runs)
            case ast.ImportFrom(module=source, names=names, level=level):
                base = source or ""
                if level:
                    here = f"{PACKAGE}.{module}".rstrip(".").split(".")
                    up = here[: len(here) - level + is_package]
                    base = ".".join([*up, base] if base else up)
                for name in names:
                    deeper = named(f"{base}.{name.name}")
                    yield Import(deeper if deeper in known else named(base), node.lineno, runs)
            case ast.Call(func=func, args=[ast.Constant(value=str(target)), *_]) if ast.unparse(func).endswith(
                ("import_module", "__import__")
            ):
                yield Import(named(target), node.lineno, runs)


def impure_uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names used that IMPURE lists, as imported: `from time import monotonic as t; t()` is `time.monotonic`."""
    aliases: dict[str, str] = {}
    for node, _ in walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                aliases[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    inner = {id(node.value) for node, _ in walk(tree) if isinstance(node, ast.Attribute)}
    for node, _ in walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            name = dotted(node, aliases)
            if name and name not in PURE_AFTER_ALL and any(fnmatchcase(name, pattern) for pattern in IMPURE):
                yield name, node.lineno


def reason_impure(name: str) -> str:
    """Why IMPURE lists it."""
    return next(why for pattern, why in IMPURE.items() if fnmatchcase(name, pattern))


def offences(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[str, str, str]]:
    """(importer, offending name, sentence) for every rule that one module's text breaks, EXCEPTIONS included."""
    tree = ast.parse(source, filename=f"{PACKAGE}/{module.replace('.', '/')}")
    layer = layer_of(module)
    where = f"{PACKAGE}/{module.replace('.', '/')}"
    if layer is None:
        yield module, "", f"{where}: is in no layer; place it in LAYERS of tests/test_layers.py"
        return
    may, why_layer = MAY_IMPORT[layer]
    known = frozenset(modules())
    for found in imports_of(tree, module, is_package=is_package, known=known):
        target = found.target
        at = f"{where}:{found.line}: imports {target.removeprefix('!')}"
        if not target.startswith("!"):
            target_layer = layer_of(target)
            default_hand = module in DEFAULT_HANDS and target_layer == "hands" and not found.at_import_time
            if target_layer is not None and target_layer not in may and not default_hand:
                yield module, target, f"{at}: {layer} may not import {target_layer}, because {why_layer}"
        elif layer in {"words", "root"} and target[1:].split(".")[0] not in sys.stdlib_module_names:
            yield module, target, f"{at}: {layer} may import the standard library alone, because {why_layer}"
        for fence in FENCES:
            if (
                inside(module, fence.sources)
                and not owned_by_exception(module, fence)
                and inside(target, fence.targets)
                and not inside(target, fence.but_targets)
                and (found.at_import_time or not fence.at_import_time_only)
            ):
                when = " while being imported" if fence.at_import_time_only else ""
                yield module, target, f"{at}{when}: forbidden, because {fence.why}"
    if layer in {"words", "thinking"}:
        for name, line in impure_uses(tree):
            yield module, name, f"{where}:{line}: uses {name}: {reason_impure(name)}"


def owned_by_exception(module: str, fence: Fence) -> bool:
    """Does the longest name that fits the module stand among the fence's exceptions rather than its sources?"""

    def longest(names: tuple[str, ...]) -> int:
        return max((len(name) for name in names if inside(module, (name,))), default=-1)

    return longest(fence.but_sources) > longest(fence.sources)


@functools.cache
def found_in_package() -> tuple[tuple[str, str, str], ...]:
    """Every offence of the real package, exceptions included."""
    return tuple(
        dict.fromkeys(
            offence
            for module, path in modules().items()
            for offence in offences(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
        )
    )


def excepted(importer: str, name: str) -> bool:
    """Is this one of EXCEPTIONS?"""
    return (importer, name) in EXCEPTIONS


def lines_of_code(source: str) -> int:
    """Lines that are neither empty, nor a comment, nor part of a docstring."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            told.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, source.split("\n")), 1)
    return sum(1 for number, line in lines if line and not line.startswith("#") and number not in told)


# --- the package ----------------------------------------------------------------------------------


def test_every_module_keeps_the_layers() -> None:
    """No module breaks a rule; each line says which, where and why the rule is there."""
    broken = [sentence for importer, name, sentence in found_in_package() if not excepted(importer, name)]
    assert not broken, "\n" + "\n".join(broken)


def test_every_exception_is_needed() -> None:
    """An exception that nothing uses any more is removed, so that the list stays true."""
    used = {(importer, name) for importer, name, _ in found_in_package()}
    assert set(EXCEPTIONS) <= used, f"not needed any more: {sorted(set(EXCEPTIONS) - used)}"


def test_the_log_can_be_read_in_one_sitting() -> None:
    """Auditors read `log/`; it has under 600 lines of code, and what needs more belongs elsewhere."""
    assert lines_of_code('"""Said."""\n\nx = """\n"""  # counts\n# not\ndef f():\n    """No."""\n    return x\n') == 4
    assert sum(lines_of_code(path.read_text("utf-8")) for path in (ROOT / PACKAGE / "log").glob("*.py")) < 600


def test_the_root_side_can_be_read_in_one_sitting() -> None:
    """Whoever has to trust `heal` with root reads all of it: under 1,000 lines of code; `adopt`, which uses it: under 500."""
    for name, most in (("heal", 1_000), ("adopt", 500)):
        assert sum(lines_of_code(path.read_text("utf-8")) for path in (ROOT / PACKAGE / name).glob("*.py")) < most


@pytest.mark.parametrize(("name", "its"), [("heal", {"heal"}), ("adopt", {"adopt", "heal"})])
def test_the_root_side_loads_nothing_but_the_standard_library(name: str, its: set[str]) -> None:
    """What the syntax tree cannot see: as it is started, nothing of another package is in the process."""
    code = f"import sys, runpy; sys.argv = ['x', '--help']; runpy.run_module('{PACKAGE}.{name}', run_name='__main__')"
    show = f"import atexit, sys; atexit.register(lambda: print('!', *sorted(sys.modules), file=sys.stderr)); {code}"
    started = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); {show}",
        f"{PACKAGE}.{name}",
    ]
    done = subprocess.run(started, capture_output=True, text=True, check=False, cwd=ROOT)
    loaded = done.stderr.partition("! ")[2].split()
    ours = {module for module in loaded if module.split(".")[0] == PACKAGE}
    assert ours >= {f"{PACKAGE}.heal.service", f"{PACKAGE}.{name}.service", f"{PACKAGE}.frames"}, done.stderr
    assert {part for module in ours for part in module.split(".")[1:2]} == {"dataclass", "errors", "frames"} | its
    foreign = {module.split(".")[0] for module in loaded} - sys.stdlib_module_names - {PACKAGE, "__main__"}
    assert {module for module in foreign if not module.startswith(("_", "sitecustomize", "usercustomize"))} == set()


def named_modules() -> set[str]:
    """Every module of ours that a rule names."""
    names = set(LAYERS) | set(DEFAULT_HANDS) | {importer for importer, _ in EXCEPTIONS}
    for fence in FENCES:
        names |= {*fence.sources, *fence.but_sources, *fence.targets, *fence.but_targets}
    return {name for name in names if not name.startswith("!")}


def test_every_rule_names_a_module_that_exists() -> None:
    """A rule about a module that was renamed guards nothing."""
    assert named_modules() <= set(modules()), f"no such module: {sorted(named_modules() - set(modules()))}"


@pytest.mark.parametrize("name", sorted({t[1:] for f in FENCES for t in f.targets if t.startswith("!")}))
def test_every_rule_names_a_package_that_is_installed(name: str) -> None:
    """A rule about a package that nobody can import guards nothing."""
    assert importlib.util.find_spec(name) is not None


def test_every_rule_has_a_reason() -> None:
    """A rule without a reason is a rule nobody dares to change."""
    reasons = (
        [fence.why for fence in FENCES]
        + [why for _, why in MAY_IMPORT.values()]
        + [*IMPURE.values(), *EXCEPTIONS.values()]
    )
    assert all(len(why.split()) >= 4 for why in reasons)


@pytest.mark.parametrize("module", ["agent", "cli"])
def test_starting_loads_nothing_heavy(module: str) -> None:
    """What the syntax tree cannot see: importing the agent or the command line loads no server package, by any path."""
    heavy = [name[1:] for name in HEAVY] + [f"{PACKAGE}.{name}" for name in ("server", "web", "lab")]
    code = f"import sys, {PACKAGE}.{module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_a_model_is_asked_by_one_command_and_by_nothing_else() -> None:
    """The desks can make the desk for advice; whoever has the desks could ask for it, and one command does."""
    asking = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"adviser", "advise"}
    }
    assert asking == {"cli.server_plan"}


SERVES = ("fastapi", "starlette", "uvicorn", "pydantic", "jinja2", "httpx2", "prometheus_client")


@pytest.mark.parametrize("module", ["opening", "desks", "backup", "restore", "moving"])
def test_what_only_opens_the_store_loads_nothing_that_answers_http(module: str) -> None:
    """Commands beside the server need its parts and not its API: FastAPI alone would double the time that each takes to start."""
    show = f"print(*[name for name in {SERVES!r} if name in sys.modules])"
    code = f"import sys, {PACKAGE}.server.{module}; {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout.split(), done.stderr) == ([], "")
    planted = f"import sys, {PACKAGE}.server.app; {show}"
    if module == "opening":
        done = subprocess.run([sys.executable, "-c", planted], capture_output=True, text=True, check=False, cwd=ROOT)
        assert "fastapi" in done.stdout.split()


# --- planted faults: the engine sees what it should -----------------------------------------------

# module, its source, what the sentence names, and why
PLANTED: list[tuple[str, str, str, str]] = [
    ("models", "import yaml", "yaml", "standard library alone"),
    (
        "models",
        "from compliance_agent.documents import read_yaml",
        "imports documents",
        "words may not import thinking",
    ),
    (
        "core.cycle",
        "from compliance_agent.adapters import durable",
        "adapters.durable",
        "thinking may not import tools",
    ),
    (
        "core.cycle",
        "def f():\n    from ..adapters.durable import read_file",
        "adapters.durable",
        "thinking may not import tools",
    ),
    (
        "core",
        "def f():\n    import importlib\n    importlib.import_module('compliance_agent.queue')",
        "imports queue",
        "thinking",
    ),
    ("checks.time_sync", "import subprocess\nsubprocess.run(['x'])", "subprocess.run", "a check has its Host"),
    ("checks.time_sync", "import subprocess", "subprocess", "only hands open"),
    ("checks.time_sync", "async def observe(host):\n    return open('/etc/passwd')", "open", "a check has its Host"),
    ("core.schedule", "from time import monotonic as tick\ntick()", "time.monotonic", "a Clock"),
    ("core.schedule", "import time as t\nx = t.time", "time.time", "a Clock"),
    ("core.schedule", "from datetime import datetime\ndatetime.now()", "datetime.datetime.now", "a Clock"),
    ("core.schedule", "import datetime\ndatetime.datetime.utcnow()", "datetime.datetime.utcnow", "a Clock"),
    ("core.schedule", "import random\nrandom.random()", "random.random", "`rng`"),
    ("core.schedule", "import os.path\nos.path.exists('x')", "os.path.exists", "hands"),
    ("core.schedule", "from pathlib import Path\nPath('x').read_text()", "pathlib.Path().read_text", "hands"),
    ("core.cycle", "from compliance_agent import queue", "imports queue", "thinking may not import hands"),
    ("drift", "from compliance_agent.queue import OfflineQueue", "imports queue", "stages may not import hands"),
    ("enrolment", "def f():\n    import compliance_agent.queue", "imports queue", "stages may not import hands"),
    ("adapters.durable", "import compliance_agent.crypto", "imports crypto", "tools may not import thinking"),
    ("queue", "from compliance_agent.drift import DriftDetector", "imports drift", "hands may not import stages"),
    ("agent", "def main():\n    from compliance_agent.server import app", "server.app", "must not carry"),
    ("agent", "from compliance_agent import server", "imports server", "must not carry"),
    ("agent", "import rich.table", "rich.table", "where they are used"),
    ("agent", "def main():\n    import uvicorn", "uvicorn", "not installed on a clinic host"),
    ("agent", "def main():\n    from compliance_agent import lab", "imports lab", "fakes must not be reachable"),
    (
        "cli",
        "try:\n    from compliance_agent.server import app\nexcept ImportError:\n    app = None",
        "server.app",
        "pay for the server",
    ),
    ("cli.check", "class C:\n    import rich", "rich", "where they are used"),
    ("server.services", "from compliance_agent import checks", "imports checks", "judges records, not machines"),
    ("server.app", "from compliance_agent.adapters import notify", "imports adapters", "judges records, not machines"),
    ("web.views", "from compliance_agent.server import store", "server.store", "stages may not import hands"),
    (
        "server.services.background",
        "def f():\n    from compliance_agent.server.services.advising import Adviser",
        "server.services.advising",
        "wait for one, or follow one",
    ),
    ("log.proof", "from compliance_agent.documents import read_json", "imports documents", "that others run too"),
    ("shiny_new_thing", "", "shiny_new_thing", "in no layer"),
]


@pytest.mark.parametrize(("module", "source", "name", "why"), PLANTED, ids=lambda value: str(value)[:30])
def test_a_planted_fault_is_named(module: str, source: str, name: str, why: str, all_modules: None) -> None:
    """Each kind of offence is seen, and its sentence names the module, the offending name and the reason."""
    sentences = [sentence for _, _, sentence in offences(source, module)]
    assert any(
        name in sentence and why in sentence and module.replace(".", "/") in sentence for sentence in sentences
    ), sentences


INNOCENT: list[tuple[str, str]] = [
    ("models", "import uuid\nfrom compliance_agent import errors"),
    ("core.schedule", "import random\ndef f(rng: random.Random) -> float:\n    return rng.random()"),
    ("core.schedule", "def f(time, now, host):\n    return time.time() + now.now() + host.open('x')"),
    (
        "checks.time_sync",
        "from pathlib import Path, PurePosixPath\nROOT = PurePosixPath('/')\ndef f(p: Path) -> None: ...",
    ),
    ("cli.check", "def show():\n    import rich.table"),
    ("cli.check", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rich.table import Table"),
    ("cli.demo", "def demo():\n    from compliance_agent.lab import clinic"),
    (
        "drift",
        "from compliance_agent.adapters.durable import read_file\ndef f():\n    import compliance_agent.adapters",
    ),
    ("server.store", "import sqlalchemy\nfrom compliance_agent.adapters.durable import write"),
    ("server.app", "import fastapi\nfrom compliance_agent.server import store"),
    ("agent", "from compliance_agent.adapters import durable\nimport socket"),
]


@pytest.mark.parametrize(("module", "source"), INNOCENT, ids=lambda value: str(value)[:30])
def test_innocent_code_is_left_alone(module: str, source: str, all_modules: None) -> None:
    """The rules do not cry wolf on what they are meant to allow."""
    assert [sentence for _, _, sentence in offences(source, module)] == []


@pytest.fixture
def all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up sources meet a made-up tree, so that these tests say something about the engine alone."""
    names = {*named_modules(), "adapters.notify", "server.services", "web.views"}
    tree = {name: Path(name or PACKAGE) for name in names}
    monkeypatch.setattr(sys.modules[__name__], "modules", lambda: tree)


def test_a_rule_about_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard over the rules themselves sees a rule that names nothing."""
    monkeypatch.setitem(LAYERS, "long_gone", "stages")
    with pytest.raises(AssertionError, match="long_gone"):
        test_every_rule_names_a_module_that_exists()
