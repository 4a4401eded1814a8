"""What Prometheus and Grafana are given fits the server: every figure and label it names is one that a running server shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.server.test_cosigning import World, settled

ROOT = Path(__file__).resolve().parents[1]
RULES, CONFIG = ROOT / "deploy/prometheus/rules.yml", ROOT / "deploy/prometheus/prometheus.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
OF_PROMETHEUS = {"up": {"job", "instance"}}
FUNCTIONS = {"rate": 1, "increase": 1, "histogram_quantile": 2}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<text>\"[^\"\\]*\")|(?P<range>\[\d+[smhd]\])"
    r"|(?P<sign>==|!=|>=|<=|=~|[-+*/><={}(),]))"
)
COMPARED = {"==", "!=", ">", "<", ">=", "<="}
Seen = list[tuple[str, dict[str, str], bool]]  # metric, labels asked for, whether over a range


class NotPromQL(Exception):
    """The expression cannot be read."""


class Reader:
    """Reads the part of PromQL that these files use; `seen` are its selectors, `by` the labels that it groups by."""

    def __init__(self, text: str) -> None:
        self.tokens, at = list[tuple[str, str]](), 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None:
                raise NotPromQL(f"{text!r} at {at}")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
        self.at, self.seen, self.by = 0, Seen(), set[str]()
        self._comparison()
        if self.at != len(self.tokens):
            raise NotPromQL(f"{text!r}: something follows")

    def _next(self, *wanted: str) -> str:
        kind, value = self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")
        if value not in wanted and kind not in wanted:
            raise NotPromQL(f"expected {wanted}, found {value!r}")
        self.at += 1
        return value

    def _peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _comparison(self) -> None:
        self._product()
        if self._peek() in COMPARED:
            self._next(*COMPARED)
            self._product()

    def _product(self) -> None:
        self._value()
        while self._peek() in {"*", "/", "+", "-"}:
            self._next("*", "/", "+", "-")
            self._value()

    def _value(self) -> None:
        if self._peek() == "(":
            self._next("(")
            self._comparison()
            self._next(")")
        elif self.tokens[self.at : self.at + 1] and self.tokens[self.at][0] == "number":
            self._next("number")
        else:
            self._named(self._next("word"))

    def _named(self, word: str) -> None:
        if word in {"sum", "max"}:
            if self._peek() == "by":
                self._next("by")
                self.by |= set(self._list())
            self._next("(")
            self._comparison()
            self._next(")")
        elif self._peek() == "(":
            if word not in FUNCTIONS:
                raise NotPromQL(f"no function {word}")
            before = len(self.seen)
            self._next("(")
            for argument in range(FUNCTIONS[word]):
                if argument:
                    self._next(",")
                self._comparison()
            self._next(")")
            if word in {"rate", "increase"} and [over for _, _, over in self.seen[before:]] != [True]:
                raise NotPromQL(f"{word} needs a range")
        else:
            self._selector(word)

    def _list(self) -> Iterator[str]:
        self._next("(")
        yield self._next("word")
        while self._peek() == ",":
            self._next(",")
            yield self._next("word")
        self._next(")")

    def _selector(self, metric: str) -> None:
        labels: dict[str, str] = {}
        if self._peek() == "{":
            self._next("{")
            while self._peek() != "}":
                name = self._next("word")
                self._next("=")
                labels[name] = self._next("text")[1:-1]
                if self._peek() == ",":
                    self._next(",")
            self._next("}")
        over = self.at < len(self.tokens) and self.tokens[self.at][0] == "range"
        if over:
            self._next("range")
        self.seen.append((metric, labels, over))


Shown = dict[str, list[dict[str, str]]]  # labels of each sample, by name


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Of the rules, then of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [*(rule["expr"] for rule in rules()), *(target["expr"] for panel in panels for target in panel["targets"])]


def wrong(expression: str, shown: Shown, recorded: dict[str, set[str]]) -> list[str]:
    """What an expression asks for that nobody shows."""
    read, found = Reader(expression), list[str]()
    for metric, labels, over in read.seen:
        if metric in recorded or metric in OF_PROMETHEUS:
            there = recorded.get(metric) or OF_PROMETHEUS[metric]
            found += [f"{metric}: no label {name}" for name in labels.keys() - there]
            continue
        samples = shown.get(metric)
        if samples is None:
            found.append(f"{metric}: not shown by the server")
            continue
        found += [f"{metric}: a counter" for _ in [1] if metric.endswith("_total") and not over]
        if not any(labels.items() <= sample.items() for sample in samples):
            found.append(f"{metric}: no sample with {labels}")
        names = {name for sample in samples for name in sample} | {"instance", "job"}
        found += [f"{metric}: no label {name}" for name in read.by - names]
    return found


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a running server shows that has witnesses, a refusal, a failed verdict, and a log that stands still."""
    world = World(tmp_path, monkeypatch)
    async with world.serving() as server:
        host = await server.enrolled()
        await server.deliver(host, host.next(result="fail", reason="offset_too_large"), host.next())
        host.next()  # never sent, so the next one is refused
        await server.deliver(host, host.next(epoch=-1))
        await settled(server)
        server.services.board.stopped["clinic-1"] = "log_damaged"
        server.services.board.stamped_at = server.clock()
        text = (await server.client.get("/metrics")).text
    found: Shown = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
            if sample.name == "compliance_server_drift_total":
                assert sample.value == 1
    return found


@pytest.mark.anyio
async def test_every_figure_that_is_named_is_shown(shown: Shown) -> None:
    recorded = {rule["record"]: Reader(rule["expr"]).by for rule in rules() if "record" in rule}
    assert len(expressions()) >= 25
    for expression in expressions():
        assert wrong(expression, shown, recorded) == [], expression
    assert {"compliance_server:ingest_rate", "compliance_server:drift_rate"} <= recorded.keys()
    for planted in (  # each fault is seen
        "compliance_server_nothing > 0", 'compliance_server_hosts{state="asleep"} > 0', "compliance_server_forks_total > 0",
        "sum by (site) (compliance_server_hosts)", 'compliance_server:drift_rate{site="a"} > 1', "compliance_server:nothing > 1",
    ):  # fmt: skip
        assert wrong(planted, shown, recorded) != [], planted


@pytest.mark.parametrize(
    "text",
    ["rate(a)", "rate(a[5m]", "sum by (a", "a >", "a{b=c}", "a{b=\"c\"", "nothing(a)", "a b", "a[5]", "histogram_quantile(a)", ""],
)  # fmt: skip
def test_what_is_no_expression_is_not_read(text: str) -> None:
    with pytest.raises(NotPromQL):
        Reader(text)


def test_rules_have_what_prometheus_asks_of_them() -> None:
    names = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
    assert len(names) == len(set(names))
    for rule in rules():
        if "record" in rule:
            assert rule.keys() == {"record", "expr"}
            assert re.fullmatch(r"[a-z_]+(:[a-z_0-9]+)+", rule["record"])
        else:
            assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
            assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
            assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in {"page", "ticket"}
            assert rule["annotations"].keys() == {"summary", "runbook"}
            used = set(re.findall(r"\{\{ \$labels\.(\w+) \}\}", rule["annotations"]["summary"]))
            assert used <= {"code"}
            assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]
    assert len(alerts) == len(set(alerts)) == 9
    config = yaml.safe_load(CONFIG.read_text())
    assert config["rule_files"] == [RULES.name]
    assert [job["job_name"] for job in config["scrape_configs"]] == ["compliance-server"]
    assert config["scrape_configs"][0]["metrics_path"] == "/metrics"


def test_the_dashboard_is_whole() -> None:
    page = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in page["panels"]]
    assert len(ids) == len(set(ids)) == 10
    taken: set[tuple[int, int]] = set()
    [variable] = page["templating"]["list"]
    for panel in page["panels"]:
        assert panel["datasource"]["uid"] == "${" + variable["name"] + "}"
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert [target["refId"] for target in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])]
