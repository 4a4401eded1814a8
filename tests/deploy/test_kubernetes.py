"""deploy/kubernetes: of Kubernetes' own strict schemas, and of what the server has. No cluster was at hand."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest

from compliance_agent.server.opening import FACTORS_KEY
from tests.deploy.product import DEPLOY, documents, parsed, read, routes, settings_of
from tests.server.builder import Server, on_sqlite
from tests.server.conftest import server as server  # noqa: PLC0414  a fixture
from tests.server.test_process import command
from tests.test_deploy import Reader, wrong

VERSION = "1.37"
DATA = "/var/lib/compliance-agent-server"
FILES = ("namespace.yaml", "settings.yaml", "migrate.yaml", "server.yaml", "autoscaler.yaml", "network.yaml")
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def everything() -> list[dict[str, Any]]:
    return [document for name in FILES for document in documents(f"kubernetes/{name}")]


def the(kind: str, name: str | None = None) -> dict[str, Any]:
    [found] = [it for it in everything() if it["kind"] == kind and name in {None, it["metadata"]["name"]}]
    return found


def valid(document: dict[str, Any]) -> bool:
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError):
        return False
    return True


def pods() -> dict[str, dict[str, Any]]:
    return {it["metadata"]["name"]: it["spec"]["template"]["spec"] for it in (the("Deployment"), the("Job"))}


def containers() -> list[dict[str, Any]]:
    return [one for pod in pods().values() for one in (*pod["initContainers"], *pod["containers"])]


def test_everything_is_of_the_schemas() -> None:
    assert [f"{it['kind']} {it['metadata']['name']}" for it in everything() if not valid(it)] == []
    listed = read("kubernetes/kustomization.yaml")
    assert tuple(listed["resources"]) == FILES
    left = {path.name for path in (DEPLOY / "kubernetes").iterdir()} - set(FILES)
    assert left == {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert {it["metadata"].get("namespace", listed["namespace"]) for it in everything()} == {listed["namespace"]}


@pytest.mark.parametrize(
    "plant",
    [
        lambda it: it["spec"].update(replica=2),
        lambda it: it["spec"]["template"]["spec"]["containers"][0].update(imagee="x"),
        lambda it: it["spec"]["template"]["spec"]["containers"][0]["startupProbe"].update(periodSeconds="2s"),
        lambda it: it["spec"]["template"]["spec"]["containers"][0]["securityContext"].update(readOnlyRootFS=True),
        lambda it: it.update(apiVersion="apps/v9"),
        lambda it: it["spec"].pop("selector"),
    ],
)
def test_the_schemas_see_a_planted_fault(plant: Callable[[dict[str, Any]], None]) -> None:
    planted = copy.deepcopy(the("Deployment"))
    assert valid(planted)
    plant(planted)
    assert not valid(planted)


def test_every_pod_is_restricted() -> None:
    """The rules of the pod security standard `restricted`, which the namespace enforces, and more."""
    assert the("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods().values():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == context["runAsGroup"] == 65532
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False and pod["serviceAccountName"] == "compliance-server"
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
        assert all(not {"hostPath"} & volume.keys() for volume in pod["volumes"])
    for one in containers():
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert one["resources"]["requests"].keys() == {"cpu", "memory"} and "memory" in one["resources"]["limits"]
        assert not any(item.get("env") for item in containers())  # what is secret is a file


def test_what_the_server_is_told_is_what_it_understands() -> None:
    settings = settings_of(the("ConfigMap")["data"])
    assert (str(settings.data_dir), settings.tls, settings.port, settings.blobs_mode) == (
        DATA,
        True,
        8443,
        "COMPLIANCE",
    )
    for one in containers():
        if one["name"] != "files":
            assert "command" not in one and one["envFrom"] == [
                {"configMapRef": {"name": the("ConfigMap")["metadata"]["name"]}}
            ]
            parsed(one.get("args", []))
    migrate = parsed(the("Job")["spec"]["template"]["spec"]["containers"][0]["args"])
    assert str(migrate.params["owner_password_file"]) == f"{DATA}/secrets/owner-password"
    assert str(migrate.params["owner"]).split("@")[1] == str(settings.database).split("@")[1]


def test_ports_and_routes_are_the_servers() -> None:
    [container] = pods()["compliance-server"]["containers"]
    [port] = container["ports"]
    assert port == {"name": "https", "containerPort": settings_of(the("ConfigMap")["data"]).port}
    [served] = the("Service")["spec"]["ports"]
    assert served["targetPort"] == port["name"]
    [rule] = the("NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["port"], asked["scheme"]) == ("https", "HTTPS")
        assert asked["path"].partition("?")[0] in routes()


@on_sqlite
async def test_a_pod_stays_ready_while_a_log_stands_still(server: Server) -> None:
    """The probes are asked of a running server, by the very addresses that stand there."""
    [container] = pods()["compliance-server"]["containers"]
    paths = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [(await server.client.get(path)).status_code for path in paths] == [200] * 3
    server.services.board.stopped["clinic-1"] = "log_damaged"
    assert (await server.client.get("/readyz")).status_code == 503
    assert [(await server.client.get(path)).status_code for path in paths] == [200] * 3
    assert (await server.client.get("/readyz?only=log")).status_code == 422


def test_volumes_and_selectors_meet() -> None:
    for pod in pods().values():
        there = {volume["name"] for volume in pod["volumes"]}
        used = {mount["name"] for one in (*pod["initContainers"], *pod["containers"]) for mount in one["volumeMounts"]}
        assert used == there
    labels = the("Deployment")["spec"]["template"]["metadata"]["labels"]
    for chosen in (
        the("Deployment")["spec"]["selector"]["matchLabels"],
        the("Service")["spec"]["selector"],
        the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        pods()["compliance-server"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert chosen == labels
    target = the("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", the("Deployment")["metadata"]["name"])
    assert (
        the("HorizontalPodAutoscaler")["spec"]["minReplicas"] == 2 > the("PodDisruptionBudget")["spec"]["minAvailable"]
    )
    assert "replicas" not in the("Deployment")["spec"]
    assert the("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("name", ["compliance-server", "compliance-migrate"])
def test_mounted_secrets_become_files_that_the_server_takes(tmp_path: Path, name: str) -> None:
    """The init container's own script, run on secrets as Kubernetes mounts them: links into a hidden directory, mode 0444."""
    pod = pods()[name]
    [files] = pod["initContainers"]
    mounts = [mount["mountPath"] for mount in files["volumeMounts"] if mount["mountPath"].startswith("/in/")]
    for mount in mounts:
        hidden = tmp_path / mount[1:] / "..2026"
        hidden.mkdir(parents=True)
        for item in ("a.pem", "b-password"):
            (hidden / item).write_text(item)
            (hidden / item).chmod(0o444)
            (tmp_path / mount[1:] / item).symlink_to(Path("..data") / item)
        (tmp_path / mount[1:] / "..data").symlink_to("..2026")
    data = tmp_path / "data"
    data.mkdir()
    script = files["args"][0].replace("/in/", f"{tmp_path}/in/")
    assert files["args"][1] == DATA
    done = subprocess.run([*files["command"], script, str(data)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made = {path.relative_to(data).as_posix(): path for path in data.rglob("*") if path.is_file()}
    assert made.keys() == {
        f"{mount.removeprefix('/in/')}/{item}" for mount in mounts for item in ("a.pem", "b-password")
    }
    assert all(path.stat().st_mode & 0o777 == 0o400 and not path.is_symlink() for path in made.values())


def test_the_secrets_that_are_asked_for_are_those_that_init_makes(tmp_path: Path) -> None:
    """docs/deploy.md makes each secret from the files that `server init --tls` leaves, or by hand; all of them are named there."""
    assert command("server", "--data-dir", str(tmp_path / "data"), "init", "--tls").returncode == 0
    page = (DEPLOY.parent / "docs/deploy.md").read_text("utf-8")
    sources = [
        source["secret"]["name"] if "secret" in source else ""
        for pod in pods().values()
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
    ]
    asked = {
        *sources,
        *(it["secret"]["secretName"] for pod in pods().values() for it in pod["volumes"] if "secret" in it),
    }
    made = dict(re.findall(r"create secret generic (compliance-[a-z]+) (.*)", page.replace("\\\n", "")))
    assert made.keys() == asked
    for name, part in (("compliance-keys", "keys"), ("compliance-tls", "tls")):
        assert re.findall(r"--from-file=(\S+)", made[name]) == [part]
    assert {path.name for path in (tmp_path / "data/keys").iterdir()} >= {"ack.pem", "log.pem", FACTORS_KEY}
    assert {path.name for path in (tmp_path / "data/tls").iterdir()} >= {"ca.pem", "ca-key.pem"}
    files = {name.rsplit("/", 1)[-1] for name in re.findall(rf"{DATA}/secrets/([\w.-]+)", str(everything()))}
    given = {item.rsplit("/", 1)[-1] for line in made.values() for item in re.findall(r"--from-file=(\S+)", line)}
    assert files == given - {"keys", "tls"}


@on_sqlite
async def test_the_autoscaler_asks_for_figures_that_the_server_shows(server: Server) -> None:
    """Name by name: the autoscaler's from the adapter's rules, and theirs from /metrics of a running server."""
    host = await server.enrolled()
    await server.deliver(host, host.next(result="fail", reason="offset_too_large"), host.next())
    from prometheus_client.parser import text_string_to_metric_families

    shown: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families((await server.client.get("/metrics")).text):
        for sample in family.samples:
            shown.setdefault(sample.name, []).append({**sample.labels, "namespace": "n", "pod": "p"})
    rules = read("kubernetes/prometheus-adapter.yaml")["rules"]["custom"]
    asked = [it["pods"]["metric"]["name"] for it in the("HorizontalPodAutoscaler")["spec"]["metrics"]]
    assert asked == [rule["name"]["as"] for rule in rules]
    for rule in rules:
        series = re.fullmatch(r'([a-z_]+)\{namespace!="",pod!=""\}', rule["seriesQuery"])
        assert series and series[1] in shown
        query = (
            rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="n",pod="p"')
        )
        assert [metric for metric, _, _ in Reader(query).seen] == [series[1]]
        assert wrong(query, shown, {}) == []
