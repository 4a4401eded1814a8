"""What may be said to the root side: the rows of the table with typed arguments, and how it answers."""

from __future__ import annotations

from compliance_agent.frames import Form, Kind, Maybe, Several, Side, Table, Text, Whole, Word

MOST_BYTES = 262_144  # of a file or a ruleset
MOST_SAID = 16_384  # of what a program printed to standard error
VERBS = ("start", "stop", "restart", "reload", "enable", "disable", "mask", "unmask")
UNIT_KINDS = "service|socket|timer|target|mount|automount|swap|path|slice|scope"
ANSWERS = ("done", "refused", "failed", "unclear")

PATH = Text(1024, r"(?:/(?!\.{1,2}(?:/|\Z))[^/]{1,255})+")
UNIT = Text(240, rf"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]*\.(?:{UNIT_KINDS})")
CURE = Text(64, r"[A-Za-z0-9][A-Za-z0-9-]*")
SHA256 = Text(64, r"[0-9a-f]{64}")
CODE = Text(64, r"[a-z][a-z0-9_]*")
ACCOUNT = Text(33, r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
PACKAGE = Text(400, r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9]+)?=[A-Za-z0-9][A-Za-z0-9.+:~-]*")
RULE = Text(4096, r"-[A-Za-z-]+(?: [^ ]+)*")
STORE_PATH = Text(300, r"/nix/(?:store/[0-9a-z]{32}-[A-Za-z0-9+._?=-]+|var/nix/profiles/system)")
MODE = Whole(0, 0o7777)


def _row(number: int, name: str, most_blob_bytes: int = 0, /, **fields: Form) -> Kind:
    return Kind(name, number, Side.ASKS, {"cure": CURE, "baseline": SHA256, **fields}, most_blob_bytes, ANSWERS)


TABLE = Table(
    "heal",
    1,
    _row(1, "write", MOST_BYTES, path=PATH, mode=MODE),
    _row(2, "remove", path=PATH),
    _row(3, "chmod", path=PATH, mode=MODE),
    _row(4, "mkdir", path=PATH),
    _row(5, "rmdir", path=PATH),
    _row(6, "unit", verb=Word(VERBS), unit=UNIT),
    _row(7, "ruleset", MOST_BYTES, how=Word(("check", "load"))),
    _row(8, "logind"),
    _row(9, "refresh", manager=Word(("apt", "dnf"))),
    _row(10, "finish"),
    _row(11, "upgrade", manager=Word(("apt", "dnf")), packages=Several(PACKAGE, 1500)),
    _row(12, "audit", verb=Word(("on", "off", "load", "clear"))),
    _row(13, "audit_rule", rule=RULE),
    _row(14, "account", verb=Word(("lock", "unlock")), name=ACCOUNT),
    _row(15, "account_day", name=ACCOUNT, day=Whole(-1, 1_000_000)),
    _row(16, "clock"),
    _row(17, "system", generation=Whole(1, 10_000_000)),
    _row(18, "activate", system=STORE_PATH, how=Word(("switch", "test"))),
    # A program that ran to its end, whatever it said; a row that is no program has the exit status 0.
    Kind("done", 101, Side.ANSWERS, {"exit": Whole(0, 255)}, MOST_SAID),
    # There is no leave for it, and nothing was changed.
    Kind("refused", 102, Side.ANSWERS, {"code": CODE}),
    # It was begun and did not do what it should; what was there before is kept.
    Kind("failed", 103, Side.ANSWERS, {"code": CODE, "exit": Maybe(Whole(0, 255))}),
    # The machine gave no answer: a program that is not there, or its deadline.
    Kind("unclear", 104, Side.ANSWERS, {"reason": CODE}),
)
