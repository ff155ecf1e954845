"""deploy/: what it sets, asks and limits is what the service and its image know."""

import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from app import capacity
from app.inference_schema import MODEL
from app.main import create_app
from app.settings import Settings
from tests.data_folder import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text("utf-8")
KUBERNETES = "1.37"  # whose schemas are checked against
CONFIGURATION = DEPLOY / "haproxy.cfg"
HAPROXY = CONFIGURATION.read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
KUSTOMIZATION: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "kubernetes" / "kustomization.yaml").read_text("utf-8")
)
OBJECTS: dict[str, dict[str, Any]] = {
    each["kind"]: each
    for name in KUSTOMIZATION["resources"]
    for each in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text("utf-8"))
}
PREDICTOR: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "kserve" / "inference-service.yaml").read_text("utf-8")
)
PODS: dict[str, dict[str, Any]] = {
    "Kubernetes": OBJECTS["Deployment"]["spec"]["template"]["spec"],
    "KServe": PREDICTOR["spec"]["predictor"],
}
PROBES = {"startupProbe": "ready", "readinessProbe": "ready", "livenessProbe": "live"}

pods = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
needs_haproxy = pytest.mark.skipif(
    not shutil.which("haproxy"), reason="needs haproxy: `apt-get install haproxy`"
)


def environments() -> dict[str, dict[str, str]]:
    """What each way to deploy puts into the service's environment."""
    return {
        "Compose": COMPOSE["x-replica"]["environment"],
        **{
            name: {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
            for name, pod in PODS.items()
        },
    }


def number(pattern: str, text: str = HAPROXY) -> float:
    """The one number that the pattern finds."""
    (found,) = re.findall(pattern, text)
    return float(found)


def test_every_manifest_is_part_of_the_whole() -> None:
    files = {path.name for path in (DEPLOY / "kubernetes").iterdir()}
    assert files == {"kustomization.yaml", *KUSTOMIZATION["resources"]}


@pytest.mark.parametrize("name", environments())
def test_what_is_set_are_settings_that_the_service_takes(name: str) -> None:
    environment = environments()[name]
    settings = Settings.from_env(environment)
    assert settings.ignored == ()
    assert settings.drain_seconds > 0
    others = {each for each in environment if not each.startswith("CAT_")}
    assert others <= {"PROTOCOL"}


@pytest.mark.parametrize(("probe", "way"), PROBES.items())
def test_probes_ask_what_exists_without_a_key(probe: str, way: str, weights_path: Path) -> None:
    paths = {pod["containers"][0][probe]["httpGet"]["path"] for pod in PODS.values()}
    if way == "ready":
        paths.add(re.findall(r"http-check send meth GET uri (\S+)", HAPROXY)[0])
    with TestClient(create_app(Settings(weights=weights_path, api_keys=("key",)))) as client:
        assert {client.get(path).status_code for path in paths} == {200}
        client.app.state.ready = False  # type: ignore[attr-defined]
        stopping = {client.get(path).status_code for path in paths}
        assert stopping == ({503} if way == "ready" else {200})


@pods
def test_pods_have_the_port_and_the_user_of_the_image(pod: dict[str, Any]) -> None:
    container = pod["containers"][0]
    (port,) = container["ports"]
    assert port["containerPort"] == int(number(r"EXPOSE (\d+)", DOCKERFILE))
    for probe in PROBES:
        assert container[probe]["httpGet"]["port"] in (port["name"], port["containerPort"])
    user, group = re.findall(r"USER (\d+):(\d+)", DOCKERFILE)[0]
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group))
    assert security["runAsNonRoot"] is True


def test_the_proxy_asks_the_port_of_the_image() -> None:
    port = f":{Settings().bind_port}"
    environment = COMPOSE["services"]["haproxy"]["environment"]
    assert f"EXPOSE {port[1:]}" in DOCKERFILE
    for place in ("first", "second"):
        assert environment[place.upper()] == place + port
        assert place in COMPOSE["services"]


@pods
def test_pods_may_do_nothing_that_they_need_not(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_containers_may_do_nothing_that_they_need_not(service: str) -> None:
    container = COMPOSE["services"][service]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["mem_limit"] == container["memswap_limit"]
    assert container["pids_limit"] > 0


@pytest.mark.parametrize("name", environments())
def test_whoever_stops_it_sees_that_it_is_not_ready_and_waits_until_it_is_done(name: str) -> None:
    settings = Settings.from_env(environments()[name])
    if name in PODS:
        # Whoever deletes a pod takes it out of its Service, whatever its probe says: that may not
        # go by one slow answer.
        assert PODS[name]["containers"][0]["readinessProbe"]["failureThreshold"] >= 3
        waits = PODS[name]["terminationGracePeriodSeconds"]
    else:
        fast = number(r" fastinter (\d+)ms") / 1000
        seen = number(r" inter (\d+)s") + fast * (number(r" fall (\d+)") - 1)
        waits = int(COMPOSE["x-replica"]["stop_grace_period"].removesuffix("s"))
        assert seen < settings.drain_seconds / 2
    assert waits > settings.drain_seconds + settings.deadline_seconds + 1


@pods
def test_the_memory_that_is_asked_for_is_what_the_service_plans_with(
    pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    mebibytes = number(r"^(\d+)Mi$", resources["limits"]["memory"])
    assert f"{mebibytes:.0f}m" == COMPOSE["x-replica"]["mem_limit"]
    monkeypatch.setattr(capacity, "cores", lambda: int(resources["limits"]["cpu"]))
    monkeypatch.setattr(capacity, "memory_bytes", lambda: int(mebibytes) * 2**20)
    assert capacity.plan().workers == 2  # as the comment beside it says


def test_objects_refer_to_the_deployment() -> None:
    deployment, budget = OBJECTS["Deployment"], OBJECTS["PodDisruptionBudget"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service, policy = OBJECTS["Service"]["spec"], OBJECTS["NetworkPolicy"]["spec"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["selector"],
        policy["podSelector"]["matchLabels"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    (port,) = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert [each["targetPort"] for each in service["ports"]] == [port["name"]]
    assert [each["port"] for rule in policy["ingress"] for each in rule["ports"]] == [port["name"]]
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    least = OBJECTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    assert budget["spec"]["maxUnavailable"] < least


@pytest.mark.parametrize(
    "strategy",
    [OBJECTS["Deployment"]["spec"]["strategy"], PODS["KServe"]["deploymentStrategy"]],
    ids=PODS,
)
def test_an_update_takes_no_replica_away_before_another_is_ready(strategy: dict[str, Any]) -> None:
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_predictor_is_what_kserve_looks_for() -> None:
    container = PODS["KServe"]["containers"][0]
    assert PREDICTOR["metadata"]["name"] == MODEL
    assert container["name"] == "kserve-container"
    assert container["ports"][0]["name"] == "http1"
    assert environments()["KServe"]["PROTOCOL"] == "v2"


def test_the_proxy_takes_its_addresses_from_the_environment() -> None:
    assert re.findall(r"^ +server (\w+) ", HAPROXY, re.MULTILINE) == ["first", "second"]
    used = set(re.findall(r"\$\{([A-Z]+)", HAPROXY))
    assert (
        used == {"FIRST", "SECOND", "BIND"} == COMPOSE["services"]["haproxy"]["environment"].keys()
    )


def test_the_proxy_is_more_patient_than_the_service() -> None:
    assert number(r"timeout server (\d+)s") > Settings().deadline_seconds
    assert number(r"timeout http-request (\d+)s") > Settings().upload_seconds
    whole = number(r"hard-stop-after (\d+)s")
    assert COMPOSE["services"]["haproxy"]["stop_grace_period"] == f"{whole + 5:.0f}s"


def test_the_proxys_buffers_fit_its_memory() -> None:
    most = 4 * number(r"tune.bufsize (\d+)") * number(r"maxconn (\d+)")
    limit = int(COMPOSE["services"]["haproxy"]["mem_limit"].removesuffix("m")) * 2**20
    assert most + 128 * 2**20 <= limit


# With what else is installed here


@needs_haproxy
def test_haproxy_takes_its_configuration() -> None:
    addresses = {"FIRST": "127.0.0.1:1", "SECOND": "127.0.0.1:2"}
    done = subprocess.run(
        ["haproxy", "-c", "-dW", "-f", str(CONFIGURATION)],  # a warning counts as an error
        env=os.environ | addresses,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kubectl_puts_the_manifests_together() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")],
        capture_output=True,
        text=True,
        check=True,
    )
    made = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert made.keys() == OBJECTS.keys()
    (image,) = KUSTOMIZATION["images"]
    container = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"{image['newName']}:{image['newTag']}"


@pytest.fixture(scope="module")
def kubernetes_schemas() -> Any:
    reason = "needs requirements/manifests.txt: `make test-all` has it"
    return pytest.importorskip("kubernetes_validate", reason=reason)


@pytest.mark.parametrize("kind", OBJECTS)
def test_schemas_of_kubernetes_take_the_manifests(kind: str, kubernetes_schemas: Any) -> None:
    assert kubernetes_schemas.validate(OBJECTS[kind], KUBERNETES, strict=True) == KUBERNETES


@pytest.mark.parametrize("kind", OBJECTS)
def test_schemas_of_kubernetes_find_a_wrong_name(kind: str, kubernetes_schemas: Any) -> None:
    wrong = deepcopy(OBJECTS[kind])
    wrong["spec"]["nobodyKnowsThis"] = 1
    with pytest.raises(kubernetes_schemas.ValidationError, match="nobodyKnowsThis"):
        kubernetes_schemas.validate(wrong, KUBERNETES, strict=True)


@pytest.fixture(scope="module")
def kserve_knows() -> Callable[[str, dict[str, Any]], bool]:
    """Whether KServe's class of that name, and those of its fields, know all that is in an object.
    They refuse what has another type."""
    reason = "needs requirements/manifests.txt: `make test-all` has it"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about their own dependencies
        models = pytest.importorskip("kserve.models", reason=reason)
        kubernetes = pytest.importorskip("kubernetes.client", reason=reason)

    def knows(kind: str, value: Any) -> bool:
        if inner := re.fullmatch(r"list\[(\w+)\]", kind):
            return all(knows(inner[1], each) for each in value)
        if hasattr(models, kind):
            own = getattr(models, kind)
            kinds = {own.attribute_map[name]: each for name, each in own.openapi_types.items()}
            return all(name in kinds and knows(kinds[name], each) for name, each in value.items())
        if found := re.fullmatch(r"(?:K8sIoApi(?:Apps|Core))?(V1\w+)", kind):
            made = getattr(kubernetes, found[1]).from_dict(value)
            return bool(made.model_dump(by_alias=True, exclude_none=True) == value)
        return isinstance(value, {"str": str, "int": int, "bool": bool}[kind])

    return knows


def test_classes_of_kserve_know_the_predictor(
    kserve_knows: Callable[[str, dict[str, Any]], bool],
) -> None:
    assert kserve_knows("V1beta1InferenceService", PREDICTOR)


@pytest.mark.parametrize("path", ["spec", "spec predictor", "spec predictor securityContext"])
def test_classes_of_kserve_find_a_wrong_name(
    path: str, kserve_knows: Callable[[str, dict[str, Any]], bool]
) -> None:
    wrong = deepcopy(PREDICTOR)
    place = wrong
    for name in path.split():
        place = place[name]
    place["nobodyKnowsThis"] = "x"
    assert not kserve_knows("V1beta1InferenceService", wrong)
