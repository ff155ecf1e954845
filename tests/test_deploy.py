"""deploy/: what it sets, asks and limits is what the service and its image know."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from app import capacity
from app.main import create_app
from app.settings import Settings
from tests.data_folder import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text("utf-8")
CONFIGURATION = DEPLOY / "haproxy.cfg"
HAPROXY = CONFIGURATION.read_text("utf-8")
KUBERNETES = "1.37"  # whose schemas are checked against
MANIFESTS_NEEDED = "needs requirements/manifests.txt: `make test-all` has it"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


[COMPOSE], [KUSTOMIZATION] = documents("compose.yaml"), documents("kubernetes/kustomization.yaml")
[PREDICTOR] = documents("kserve/inference-service.yaml")
MANIFESTS = KUSTOMIZATION["resources"]
OBJECTS = {each["kind"]: each for name in MANIFESTS for each in documents(f"kubernetes/{name}")}
PODS: dict[str, dict[str, Any]] = {
    "Kubernetes": OBJECTS["Deployment"]["spec"]["template"]["spec"],
    "KServe": PREDICTOR["spec"]["predictor"],
}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "Compose": COMPOSE["x-replica"]["environment"],
    **{
        name: {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        for name, pod in PODS.items()
    },
}
PROBES = {"startupProbe": "ready", "readinessProbe": "ready", "livenessProbe": "live"}

pods = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
needs_haproxy = pytest.mark.skipif(
    not shutil.which("haproxy"), reason="needs haproxy: `apt-get install haproxy`"
)


def number(pattern: str, text: str = HAPROXY) -> float:
    """The one number that the pattern finds."""
    (found,) = re.findall(pattern, text)
    return float(found)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_set_are_settings_that_leave_time_to_stop(name: str) -> None:
    settings = Settings.from_env(ENVIRONMENTS[name])
    assert settings.ignored == ()
    if name in PODS:
        waits = PODS[name]["terminationGracePeriodSeconds"]
    else:
        fast = number(r" fastinter (\d+)ms") / 1000
        seen = number(r" inter (\d+)s") + fast * (number(r" fall (\d+)") - 1)
        waits = int(COMPOSE["x-replica"]["stop_grace_period"].removesuffix("s"))
        assert seen < settings.drain_seconds / 2
    assert waits > settings.drain_seconds + settings.deadline_seconds + 1


@pytest.mark.parametrize("way", ["ready", "live"])
def test_probes_ask_what_exists_without_a_key(way: str, weights_path: Path) -> None:
    paths = {
        pod["containers"][0][probe]["httpGet"]["path"]
        for probe, kind in PROBES.items()
        for pod in PODS.values()
        if kind == way
    }
    if way == "ready":
        paths.add(re.findall(r"http-check send meth GET uri (\S+)", HAPROXY)[0])
    with TestClient(create_app(Settings(weights=weights_path, api_keys=("key",)))) as client:
        assert {client.get(path).status_code for path in paths} == {200}
        client.app.state.ready = False  # type: ignore[attr-defined]
        stopping = {client.get(path).status_code for path in paths}
        assert stopping == ({503} if way == "ready" else {200})


@pods
def test_pods_have_the_port_the_user_and_the_memory_of_the_image(
    pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    container, security = pod["containers"][0], pod["securityContext"]
    (port,) = container["ports"]
    assert port["containerPort"] == number(r"EXPOSE (\d+)", DOCKERFILE)
    for probe in PROBES:
        assert container[probe]["httpGet"]["port"] in (port["name"], port["containerPort"])
    user = f"{security['runAsUser']}:{security['runAsGroup']}"
    assert re.findall(r"USER (\S+)", DOCKERFILE) == [user]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    mebibytes = int(number(r"^(\d+)Mi$", resources["limits"]["memory"]))
    assert f"{mebibytes}m" == COMPOSE["x-replica"]["mem_limit"]
    monkeypatch.setattr(capacity, "cores", lambda: int(resources["limits"]["cpu"]))
    monkeypatch.setattr(capacity, "memory_bytes", lambda: mebibytes * 2**20)
    assert capacity.plan().workers == 2  # as the comment beside it says


def test_containers_and_pods_may_do_nothing_that_they_need_not() -> None:
    for container in COMPOSE["services"].values():
        assert container["read_only"] is True
        assert container["cap_drop"] == ["ALL"]
        assert container["security_opt"] == ["no-new-privileges:true"]
        assert container["mem_limit"] == container["memswap_limit"]
    for pod in PODS.values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_manifests_are_complete_and_refer_to_the_deployment() -> None:
    files = {path.name for path in (DEPLOY / "kubernetes").iterdir()}
    assert files == {"kustomization.yaml", *MANIFESTS}
    spec = {kind: each["spec"] for kind, each in OBJECTS.items()}
    labels = spec["Deployment"]["template"]["metadata"]["labels"]
    assert spec["Service"]["selector"] == labels
    for kind, name in (
        ("Deployment", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodDisruptionBudget", "selector"),
    ):
        assert spec[kind][name] == {"matchLabels": labels}
    (port,) = PODS["Kubernetes"]["containers"][0]["ports"]
    assert [each["targetPort"] for each in spec["Service"]["ports"]] == [port["name"]]
    (ingress,) = spec["NetworkPolicy"]["ingress"]
    assert [each["port"] for each in ingress["ports"]] == [port["name"]]
    scaler = spec["HorizontalPodAutoscaler"]
    assert scaler["scaleTargetRef"]["name"] == OBJECTS["Deployment"]["metadata"]["name"]
    assert spec["PodDisruptionBudget"]["maxUnavailable"] < scaler["minReplicas"]
    # No replica is taken away before another is ready
    for strategy in (spec["Deployment"]["strategy"], PODS["KServe"]["deploymentStrategy"]):
        assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_proxy_finds_the_replicas_and_is_more_patient_than_they_are() -> None:
    assert re.findall(r"^ +server (\w+) ", HAPROXY, re.MULTILINE) == ["first", "second"]
    proxy, port = COMPOSE["services"]["haproxy"], Settings().bind_port
    places = {place.upper(): f"{place}:{port}" for place in ("first", "second")}
    assert proxy["environment"] == {"BIND": f":{port}", **places}
    assert number(r"timeout server (\d+)s") > Settings().deadline_seconds
    assert number(r"timeout http-request (\d+)s") > Settings().upload_seconds


def test_schemas_of_kubernetes_take_the_manifests() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason=MANIFESTS_NEEDED)
    for each in OBJECTS.values():
        assert schemas.validate(each, KUBERNETES, strict=True) == KUBERNETES


def test_classes_of_kserve_know_all_that_is_in_the_predictor() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about their own dependencies
        models = pytest.importorskip("kserve.models", reason=MANIFESTS_NEEDED)
        kubernetes = pytest.importorskip("kubernetes.client", reason=MANIFESTS_NEEDED)

    def knows(kind: str, value: Any) -> bool:
        if inner := re.fullmatch(r"list\[(\w+)\]", kind):
            return all(knows(inner[1], each) for each in value)
        if own := getattr(models, kind, None):
            kinds = {own.attribute_map[name]: each for name, each in own.openapi_types.items()}
            return all(name in kinds and knows(kinds[name], each) for name, each in value.items())
        if found := re.fullmatch(r"(?:K8sIoApi(?:Apps|Core))?(V1\w+)", kind):
            made = getattr(kubernetes, found[1]).from_dict(value)
            return bool(made.model_dump(by_alias=True, exclude_none=True) == value)
        return isinstance(value, {"str": str, "int": int, "bool": bool}[kind])

    assert knows("V1beta1InferenceService", PREDICTOR)
