"""/v2 as clients of the Open Inference Protocol see it. scripts/check_clients has real ones."""

import base64
import dataclasses
import gzip
import json
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app import problems, tensors
from app.inference_protocol import body_limit
from app.main import create_app
from app.settings import Settings
from app.tensors import MAX_PICTURES
from model.classifier import Classifier
from model.memory import MemoryBudget, TooLate, worth_until
from model.network import Array, Scratch
from model.preprocessing import read_picture, to_vector
from tests.data_folder import REPOSITORY
from tests.gate import Gate

INFER = "/v2/models/cat/infer"
LENGTH = "Inference-Header-Content-Length"
SIDE = 64
NUMBERS = SIDE * SIDE * 3


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    return [
        (REPOSITORY / "examples" / name).read_bytes()
        for name in ("cat.jpg", "coffee.jpg", "rocket.jpg")
    ]


@pytest.fixture(scope="session")
def pixels(pictures: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([read_picture(picture).pixels for picture in pictures])


def tensor(name: str, data: Any, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    """An input in JSON. data: bytes for pictures, arrays for numbers, or what is sent as it is."""
    datatypes = {"image": "BYTES", "pixels": "UINT8", "vector": "FP32"}
    if isinstance(data, np.ndarray):
        shape, data = list(data.shape), data.tolist()
    elif data and isinstance(data[0], bytes):
        data = [base64.b64encode(element).decode() for element in data]
    shape = [len(data)] if shape is None else shape
    return {
        "name": name,
        "shape": shape,
        "datatype": datatypes.get(name, "FP32"),
        "data": data,
    } | more


def binary(
    entry: dict[str, Any], data: bytes, size: int | None = None, **message: Any
) -> dict[str, Any]:
    """A request whose tensor follows its JSON; `entry` is the input, and its data are left out."""
    entry = {name: value for name, value in entry.items() if name != "data"}
    entry["parameters"] = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps({"inputs": [entry], **message}).encode()
    return {"content": head + data, "headers": {LENGTH: str(len(head))}}


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def read(entry: dict[str, Any], memory: MemoryBudget | None = None) -> tensors.Inference:
    """What is read of a request with that input, whatever the model makes of it."""
    inputs = (tensors.Spec("image", "BYTES", (-1,)), tensors.Spec("vector", "FP32", (-1, NUMBERS)))
    outputs = (tensors.Spec("label", "BYTES", (-1, 1)),)
    body = json.dumps({"inputs": [entry]}).encode()
    return tensors.read(body, None, inputs, outputs, memory or MemoryBudget())


def ask(client: TestClient, *inputs: dict[str, Any], path: str = INFER, **message: Any) -> Any:
    return client.post(path, json={"inputs": list(inputs), **message})


def answered(response: httpx.Response) -> dict[str, Any]:
    """The outputs of an answer in JSON, by name."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return {output["name"]: output for output in response.json()["outputs"]}


def probabilities(response: httpx.Response) -> list[float]:
    output = answered(response)["cat_probability"]
    assert output["datatype"] == "FP32"
    assert output["shape"] == [len(output["data"]), 1]
    return list(output["data"])


def refused(response: httpx.Response, status: int, slug: str, words: str = "") -> dict[str, Any]:
    """The problem, checked to be one that clients of the protocol can show."""
    problem: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/json"
    assert (response.status_code, problem["type"]) == (status, f"/problems#{slug}"), problem
    assert problem["error"] == problem["detail"]
    assert problem["title"] == problems.KINDS[slug].title
    assert problem["status"] == status
    assert words in problem["error"], problem["error"]
    return problem


# Paths


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_says_that_it_takes_binary_tensors(client: TestClient, path: str) -> None:
    answer = client.get(path).json()
    assert answer["name"]
    assert answer["version"]
    assert answer["extensions"] == ["binary_tensor_data"]


def test_liveness_and_readiness_say_so_in_the_words_of_every_client(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}


def test_a_service_that_is_about_to_stop_is_live_but_not_ready(weights_path: Path) -> None:
    app = create_app(Settings(weights=weights_path))
    with TestClient(app) as client:
        app.state.ready = False
        assert client.get("/v2/health/live").json() == {"live": True}
        server = refused(client.get("/v2/health/ready"), 503, "not-ready")
        model = refused(client.get("/v2/models/cat/ready"), 503, "not-ready")
    assert (server["live"], server["ready"]) == (True, False)
    assert (model["name"], model["ready"]) == ("cat", False)


def test_metadata_name_every_tensor_with_and_without_the_version(
    client: TestClient, classifier: Classifier
) -> None:
    metadata = client.get("/v2/models/cat").json()
    assert client.get(f"/v2/models/cat/versions/{classifier.version}").json() == metadata
    assert (metadata["name"], metadata["versions"]) == ("cat", [classifier.version])
    assert metadata["platform"]
    shapes = {
        each["name"]: (each["datatype"], each["shape"])
        for each in metadata["inputs"] + metadata["outputs"]
    }
    assert shapes == {
        "image": ("BYTES", [-1]),
        "pixels": ("UINT8", [-1, 64, 64, 3]),
        "vector": ("FP32", [-1, 12288]),
        "cat_probability": ("FP32", [-1, 1]),
        "label": ("BYTES", [-1, 1]),
    }
    assert metadata["parameters"]["max_pictures"] == MAX_PICTURES


def test_the_model_is_ready_with_and_without_its_version(
    client: TestClient, classifier: Classifier
) -> None:
    for path in ("/v2/models/cat/ready", f"/v2/models/cat/versions/{classifier.version}/ready"):
        assert client.get(path).json() == {"name": "cat", "ready": True}


@pytest.mark.parametrize("end", ["", "/ready", "/infer"])
def test_an_unknown_model_or_version_is_not_found(client: TestClient, end: str) -> None:
    method = "POST" if end == "/infer" else "GET"
    unknown = client.request(method, f"/v2/models/dog{end}")
    refused(unknown, 404, "not-found", "no model 'dog'; there is cat")
    refused(client.request(method, f"/v2/models/cat/versions/7{end}"), 404, "not-found", "'7'")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v2"), ("POST", "/v2/models/cat"), ("GET", INFER), ("DELETE", "/v2/health/live")],
)
def test_a_wrong_method_is_an_error_too(client: TestClient, method: str, path: str) -> None:
    refused(client.request(method, path), 405, "method-not-allowed")


def test_the_probe_that_people_write_beside_v2_is_not_of_it(client: TestClient) -> None:
    assert client.get("/v20").headers["content-type"] == "application/problem+json"


# Inputs


def test_pictures_get_the_answers_of_predict_in_their_order(
    weights_path: Path, pictures: list[bytes]
) -> None:
    between = Settings(weights=weights_path, threshold=0.2)  # so that both labels occur
    with TestClient(create_app(between)) as client:
        expected = [client.post("/predict", content=picture).json() for picture in pictures]
        outputs = answered(ask(client, tensor("image", pictures)))
    assert list(outputs) == ["cat_probability", "label"]
    assert outputs["cat_probability"]["data"] == pytest.approx(
        [each["cat_probability"] for each in expected], abs=1e-6
    )
    assert outputs["label"]["data"] == [each["label"] for each in expected]
    assert outputs["label"]["shape"] == [len(pictures), 1]
    assert outputs["label"]["datatype"] == "BYTES"
    assert set(outputs["label"]["data"]) == {"cat", "non-cat"}


def test_pixels_and_vectors_get_the_probabilities_of_the_classifier(
    client: TestClient, classifier: Classifier, pixels: NDArray[np.uint8]
) -> None:
    vectors = to_vector(pixels)
    expected = pytest.approx(classifier.probabilities(vectors), abs=1e-6)
    assert probabilities(ask(client, tensor("pixels", pixels))) == expected
    assert probabilities(ask(client, tensor("vector", vectors))) == expected
    flat = tensor("pixels", pixels) | {"data": pixels.reshape(-1).tolist()}
    assert probabilities(ask(client, flat)) == expected
    flat = tensor("vector", vectors) | {"data": vectors.reshape(-1).tolist()}
    assert probabilities(ask(client, flat)) == expected
    assert probabilities(ask(client, tensor("vector", np.rint(vectors).astype(int)))) == (
        pytest.approx(classifier.probabilities(np.rint(vectors)), abs=1e-6)
    )


def test_binary_tensors_are_answered_as_those_in_json(
    client: TestClient, pictures: list[bytes], pixels: NDArray[np.uint8]
) -> None:
    vectors = to_vector(pixels)
    for entry, data in (
        (tensor("image", pictures), elements(*pictures)),
        (tensor("pixels", pixels), pixels.tobytes()),
        (tensor("vector", vectors), vectors.astype("<f4").tobytes()),
    ):
        in_json = probabilities(ask(client, entry))
        assert probabilities(client.post(INFER, **binary(entry, data))) == in_json


def test_a_column_of_pictures_is_as_good_as_a_row(
    client: TestClient, pictures: list[bytes]
) -> None:
    row = tensor("image", pictures)
    column = row | {"shape": [len(pictures), 1]}
    nested = column | {"data": [[text] for text in row["data"]]}
    expected = probabilities(ask(client, row))
    assert probabilities(ask(client, column)) == expected
    assert probabilities(ask(client, nested)) == expected
    assert probabilities(client.post(INFER, **binary(column, elements(*pictures)))) == expected


def test_a_body_that_is_one_picture_is_classified(
    client: TestClient, pictures: list[bytes]
) -> None:
    expected = client.post("/predict", content=pictures[0]).json()["cat_probability"]
    response = client.post(INFER, content=pictures[0], headers={LENGTH: "0"})
    assert probabilities(response) == [expected]


def test_base64_in_a_binary_tensor_is_decoded_as_mlserver_infer_needs(
    client: TestClient, pictures: list[bytes]
) -> None:
    entry = tensor("image", pictures[:1])
    text = base64.b64encode(pictures[0])
    expected = probabilities(ask(client, entry))
    assert probabilities(client.post(INFER, **binary(entry, elements(text)))) == expected


@pytest.mark.parametrize(
    "write",
    [
        lambda data: base64.b64encode(data).decode().rstrip("="),
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n").rstrip("\r\n="),
        lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
    ],
    ids=["no padding", "URL-safe", "lines", "lines of Windows, no padding", "data URL"],
)
def test_base64_is_understood_however_it_is_written(write: Callable[[bytes], str]) -> None:
    data = random.Random(1).randbytes(200_001)
    for size in (0, 1, 2, 3, 100, len(data) - 1, len(data)):
        assert read(tensor("image", [write(data[:size])])).data == [data[:size]]


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "application/octet-stream", "text/plain", ";;="]
)
def test_the_content_type_decides_nothing(
    client: TestClient, pixels: NDArray[np.uint8], content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    entry = tensor("pixels", pixels)
    body = json.dumps({"inputs": [entry]}).encode()
    in_json = probabilities(client.post(INFER, content=body, headers=headers))
    request = binary(entry, pixels.tobytes())
    request["headers"] |= headers
    assert probabilities(client.post(INFER, **request)) == in_json


def test_as_many_pictures_as_are_allowed_are_answered_and_one_more_is_not(
    client: TestClient, classifier: Classifier
) -> None:
    many = np.random.default_rng(1).integers(0, 256, (MAX_PICTURES + 1, SIDE, SIDE, 3), np.uint8)
    expected = pytest.approx(classifier.probabilities(to_vector(many[:-1])), abs=1e-6)
    assert probabilities(ask(client, tensor("pixels", many[:-1]))) == expected
    request = binary(tensor("pixels", many), many.tobytes())
    refused(client.post(INFER, **request), 400, "invalid-inference", f"1 to {MAX_PICTURES}")
    refused(ask(client, tensor("pixels", many)), 400, "invalid-inference", str(MAX_PICTURES))


# Outputs


def test_the_id_comes_back_and_other_parameters_change_nothing(
    client: TestClient, classifier: Classifier, pixels: NDArray[np.uint8]
) -> None:
    entry = tensor("pixels", pixels, parameters={"content_type": "np"})
    for identity in ("7", "кіт", "\ud83d"):
        message = {"inputs": [entry], "id": identity, "parameters": {"priority": 1}}
        answer = client.post(INFER, content=json.dumps(message)).json()
        assert (answer["model_name"], answer["model_version"]) == ("cat", classifier.version)
        assert answer["id"] == identity
    assert "id" not in ask(client, entry).json()


def test_outputs_come_as_they_were_asked_for(client: TestClient, pixels: NDArray[np.uint8]) -> None:
    entry = tensor("pixels", pixels)
    nothing: tuple[list[str] | None, ...] = ([], None)
    for none in nothing:
        answer = ask(client, entry, outputs=none, parameters=None, id=None)
        assert list(answered(answer)) == ["cat_probability", "label"]
    assert list(answered(ask(client, entry, outputs=[{"name": "label"}]))) == ["label"]
    both = [{"name": "label"}, {"name": "cat_probability"}]
    assert list(answered(ask(client, entry, outputs=both))) == ["label", "cat_probability"]


def test_outputs_come_in_binary_where_that_is_asked_for(
    client: TestClient, pixels: NDArray[np.uint8]
) -> None:
    entry = tensor("pixels", pixels)
    expected = answered(ask(client, entry))
    numbers = np.array(expected["cat_probability"]["data"], "<f4").tobytes()
    texts = elements(*(label.encode() for label in expected["label"]["data"]))

    def ask_binary(**message: Any) -> tuple[list[dict[str, Any]], bytes]:
        response = ask(client, entry, **message)
        assert response.headers["content-type"] == "application/octet-stream"
        end = int(response.headers[LENGTH])
        return json.loads(response.content[:end])["outputs"], response.content[end:]

    outputs, tail = ask_binary(parameters={"binary_data_output": True})
    assert [output["parameters"] for output in outputs] == [
        {"binary_data_size": len(numbers)},
        {"binary_data_size": len(texts)},
    ]
    assert [output["shape"] for output in outputs] == [[3, 1], [3, 1]]
    assert all("data" not in output for output in outputs)
    assert tail == numbers + texts

    swapped = [{"name": "label"}, {"name": "cat_probability"}]
    outputs, tail = ask_binary(parameters={"binary_data_output": True}, outputs=swapped)
    assert tail == texts + numbers

    mixed = [
        {"name": "cat_probability", "parameters": {"binary_data": False}},
        {"name": "label"},
    ]
    outputs, tail = ask_binary(parameters={"binary_data_output": True}, outputs=mixed)
    assert outputs[0]["data"] == expected["cat_probability"]["data"]
    assert tail == texts

    mixed = [{"name": "cat_probability", "parameters": {"binary_data": True}}, {"name": "label"}]
    outputs, tail = ask_binary(outputs=mixed)
    assert outputs[1]["data"] == expected["label"]["data"]
    assert tail == numbers


# Compression


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)],
)
def test_compressed_requests_are_answered_as_others(
    client: TestClient,
    pixels: NDArray[np.uint8],
    encoding: str,
    compress: Callable[[bytes], bytes],
) -> None:
    entry = tensor("pixels", pixels)
    expected = probabilities(ask(client, entry))
    body = json.dumps({"inputs": [entry]}).encode()
    headers = {"Content-Encoding": encoding}
    response = client.post(INFER, content=compress(body), headers=headers)
    assert probabilities(response) == expected
    request = binary(entry, pixels.tobytes())
    request["content"] = compress(request["content"])
    request["headers"] |= headers
    assert probabilities(client.post(INFER, **request)) == expected


@pytest.mark.parametrize(
    ("encoding", "body", "status", "slug", "words"),
    [
        ("gzip", gzip.compress(b"{}")[:-9], 400, "invalid-inference", "complete"),
        ("gzip", gzip.compress(b"{}") + b"more", 400, "invalid-inference", "complete"),
        ("gzip", zlib.compress(b"{}"), 400, "invalid-inference", "not gzip"),
        ("gzip", b"", 400, "invalid-inference", "complete"),
        ("deflate", b"{}", 400, "invalid-inference", "not deflate"),
        ("br", b"{}", 415, "encoded-body", "'br'"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415, "encoded-body", "'gzip, gzip'"),
    ],
)
def test_what_does_not_inflate_is_refused(
    client: TestClient, encoding: str, body: bytes, status: int, slug: str, words: str
) -> None:
    response = client.post(INFER, content=body, headers={"Content-Encoding": encoding})
    refused(response, status, slug, words)


def test_a_body_that_inflates_to_too_much_is_refused(client: TestClient) -> None:
    limit = body_limit(client.app.state.settings.max_upload_bytes)  # type: ignore[attr-defined]
    assert client.get("/v2/models/cat").json()["parameters"]["max_request_bytes"] == limit
    bomb = gzip.compress(bytes(limit + 1))
    assert len(bomb) < limit / 500
    problem = refused(
        client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"}),
        413,
        "too-large",
        "inflates",
    )
    assert problem["limit_bytes"] == limit


# Refusals


def test_a_refused_picture_keeps_its_problem_and_is_named(
    client: TestClient, pictures: list[bytes]
) -> None:
    broken = [b"hello, world", pictures[0][:5000], b"", b"%PDF-1.7\n" + bytes(100)]
    for bad in broken:
        alone = client.post("/predict", content=bad).json()
        response = ask(client, tensor("image", [pictures[0], bad]))
        refused(response, alone["status"], alone["type"].partition("#")[2], "image[1]: ")
        request = binary(tensor("image", [b"", b""]), elements(pictures[0], bad))
        assert client.post(INFER, **request).json()["error"] == response.json()["error"]
    refused(client.post(INFER, content=b"hi", headers={LENGTH: "0"}), 415, "not-a-picture")
    refused(client.post(INFER, content=b"", headers={LENGTH: "0"}), 422, "empty")


def test_the_limits_of_predict_hold_for_each_picture(
    weights_path: Path, cat_picture: bytes
) -> None:
    small = Settings(weights=weights_path, max_upload_bytes=len(cat_picture) - 1)
    with TestClient(create_app(small)) as client:
        problem = refused(ask(client, tensor("image", [cat_picture])), 413, "too-large", "image[0]")
        assert problem["limit_bytes"] == len(cat_picture) - 1
        many = ask(client, tensor("image", [cat_picture] * 8))
        limit = refused(many, 413, "too-large")["limit_bytes"]
        assert limit == body_limit(len(cat_picture) - 1)
    picture = BytesIO()
    Image.new("RGB", (100, 100)).save(picture, "PNG")
    with TestClient(create_app(Settings(weights=weights_path, max_pixels=9_999))) as client:
        response = ask(client, tensor("image", [picture.getvalue()]))
        assert refused(response, 422, "too-many-pixels", "image[0]")["limit_pixels"] == 9_999


ROW = [[0.5] * NUMBERS]
BLACK = np.zeros((1, SIDE, SIDE, 3), np.uint8)
INVALID = [  # message, words of the error
    ([], "JSON object"),
    ({}, "no list"),
    ({"inputs": []}, "there is 0"),
    ({"inputs": "image"}, "no list"),
    ({"inputs": [tensor("vector", ROW, [1, NUMBERS])] * 2}, "there is 2"),
    ({"inputs": [7]}, "JSON object"),
    ({"inputs": [{}]}, "no input of the type NoneType; there are image, pixels, vector"),
    ({"inputs": [tensor("dog", ROW)]}, "no input 'dog'"),
    ({"inputs": [tensor("\udc80", ROW)]}, r"no input '\udc80'"),
    ({"inputs": [tensor("vector", ROW, [1, NUMBERS], datatype="FP64")]}, "FP32, not 'FP64'"),
    ({"inputs": [tensor("vector", ROW, [1, NUMBERS], datatype=7)]}, "type int"),
    ({"inputs": [tensor("vector", ROW, [NUMBERS])]}, "must be [-1, 12288]"),
    ({"inputs": [tensor("vector", ROW, [1, NUMBERS, 1])]}, "must be [-1, 12288]"),
    ({"inputs": [tensor("vector", ROW, [1, NUMBERS - 1])]}, "must be [-1, 12288]"),
    ({"inputs": [tensor("vector", ROW, [True, NUMBERS])]}, "must be [-1, 12288]"),
    ({"inputs": [tensor("vector", ROW) | {"shape": "1"}]}, "must be [-1, 12288]"),
    ({"inputs": [tensor("vector", [], [0, NUMBERS])]}, "1 to 32 pictures"),
    ({"inputs": [tensor("vector", [], [-1, NUMBERS])]}, "1 to 32 pictures"),
    ({"inputs": [tensor("image", ["QQ=="], [1, 2])]}, "must be [-1]"),
    ({"inputs": [tensor("vector", ROW, [2, NUMBERS])]}, "do not fit its shape [2, 12288]"),
    ({"inputs": [tensor("vector", [[0.5] * 7, [0.5] * 5], [1, NUMBERS])]}, "do not fit"),
    ({"inputs": [tensor("vector", [[0.5], [0.5]] * (NUMBERS // 2), [1, NUMBERS])]}, "numbers"),
    ({"inputs": [tensor("vector", {}, [1, NUMBERS])]}, "do not fit"),
    ({"inputs": [tensor("vector", [["0.5"] * NUMBERS], [1, NUMBERS])]}, "must be numbers"),
    ({"inputs": [tensor("vector", [[True] * NUMBERS], [1, NUMBERS])]}, "must be numbers"),
    ({"inputs": [tensor("vector", [[None] * NUMBERS], [1, NUMBERS])]}, "must be numbers"),
    ({"inputs": [tensor("vector", [[10**400] * NUMBERS], [1, NUMBERS])]}, "cannot hold"),
    ({"inputs": [tensor("vector", [[0.0] * 9 + [1.5] * (NUMBERS - 9)], [1, NUMBERS])]}, "[0][9]"),
    ({"inputs": [tensor("vector", [[-1e-3] * NUMBERS], [1, NUMBERS])]}, "from 0 to 1"),
    ({"inputs": [tensor("vector", [[255] * NUMBERS], [1, NUMBERS])]}, "divided by 255"),
    ({"inputs": [tensor("pixels", BLACK) | {"data": [0.5] * NUMBERS}]}, "must be whole numbers"),
    ({"inputs": [tensor("pixels", BLACK) | {"data": [256] * NUMBERS}]}, "from 0 to 255"),
    ({"inputs": [tensor("pixels", BLACK) | {"data": [-1] * NUMBERS}]}, "from 0 to 255"),
    ({"inputs": [tensor("pixels", BLACK) | {"data": [10**30] * NUMBERS}]}, "from 0 to 255"),
    ({"inputs": [tensor("image", ["not base64!"])]}, "image[0] must be a picture file in base64"),
    ({"inputs": [tensor("image", ["QQ==", "кіт"])]}, "image[1] must be"),
    ({"inputs": [tensor("image", ["QQ==QQ=="])]}, "follows its padding"),
    ({"inputs": [tensor("image", ["QQQQQ"])]}, "image[0] must be"),
    ({"inputs": [tensor("image", [7])]}, "it is of the type int"),
    ({"inputs": [tensor("image", "QQ==")]}, "do not fit"),
    ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}, "neither data nor"),
    ({"inputs": [tensor("image", ["QQ=="], parameters=7)]}, "JSON object"),
    ({"inputs": [tensor("image", ["QQ=="], parameters={"binary_data_size": 4})]}, "as well as"),
    (
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": 4},
                }
            ]
        },
        f"header {LENGTH}",
    ),
    (
        {"inputs": [tensor("image", ["QQ=="], parameters={"shared_memory_region": "x"})]},
        "shared_memory_region",
    ),
    ({"inputs": [tensor("pixels", BLACK)], "id": 7}, "id must be a text"),
    ({"inputs": [tensor("pixels", BLACK)], "id": "x" * 1001}, "id must be a text"),
    ({"inputs": [tensor("pixels", BLACK)], "parameters": []} | {"parameters": [1]}, "JSON object"),
    (
        {"inputs": [tensor("pixels", BLACK)], "parameters": {"binary_data_output": 1}},
        "true or false",
    ),
    ({"inputs": [tensor("pixels", BLACK)], "parameters": 0}, "JSON object"),
    ({"inputs": [tensor("pixels", BLACK, parameters=[])]}, "JSON object"),
    ({"inputs": [tensor("image", ["QQ=="], [1, True])]}, "shape of image"),
    ({"inputs": [tensor("pixels", BLACK)], "outputs": {"name": "label"}}, "must be a list"),
    ({"inputs": [tensor("pixels", BLACK)], "outputs": {}}, "must be a list"),
    ({"inputs": [tensor("pixels", BLACK)], "outputs": False}, "must be a list"),
    ({"inputs": [tensor("pixels", BLACK)], "outputs": ["label"]}, "JSON object"),
    ({"inputs": [tensor("pixels", BLACK)], "outputs": [{"name": "dog"}]}, "no output 'dog'"),
    ({"inputs": [tensor("pixels", BLACK)], "outputs": [{"name": "label"}] * 2}, "twice"),
    (
        {
            "inputs": [tensor("pixels", BLACK)],
            "outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}],
        },
        "true or false",
    ),
    (
        {
            "inputs": [tensor("pixels", BLACK)],
            "outputs": [{"name": "label", "parameters": {"classification": 1}}],
        },
        "classification",
    ),
]


@pytest.mark.parametrize(("message", "words"), INVALID, ids=range(len(INVALID)))
def test_a_request_that_is_not_valid_is_told_what_is_wrong(
    client: TestClient, message: Any, words: str
) -> None:
    body = json.dumps(message).encode()
    refused(client.post(INFER, content=body), 400, "invalid-inference", words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b'{"inputs": [NaN]}', "NaN is no JSON number"),
        (b'{"inputs": [-Infinity]}', "Infinity is no JSON number"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" + b"0," * 600_000 + b"0]", "values"),
    ],
)
def test_what_is_not_json_is_told_so(client: TestClient, body: bytes, words: str) -> None:
    refused(client.post(INFER, content=body), 400, "invalid-inference", words)


IMAGE = tensor("image", [b"x"])
FLOATS = tensor("vector", ROW, [1, NUMBERS])
ONES = np.ones(NUMBERS, "<f4")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (binary(IMAGE, elements(b"x")[:-1]), "1 times a length"),
        (binary(IMAGE, elements(b"x") + b"y"), "1 times a length"),
        (binary(IMAGE, elements(b"x", b"y")), "1 times a length"),
        (binary(IMAGE, b"\xff\xff\xff\xff"), "1 times a length"),
        (binary(IMAGE, b"xy"), "1 times a length"),
        (binary(IMAGE, b""), "1 times a length"),
        (binary(IMAGE, elements(b"x"), size=6), "is 6, but 5 bytes follow"),
        (binary(IMAGE, elements(b"x"), size=-1), "is -1, but 5 bytes follow"),
        (binary(IMAGE, elements(b"x"), size=10**30), "5 bytes follow"),
        (binary(FLOATS, ONES.tobytes()[:-1]), "49,152 bytes as FP32, not 49,151"),
        (binary(FLOATS, (ONES * np.nan).tobytes()), "vector[0][0] is nan"),
        (binary(FLOATS, (ONES * np.inf).tobytes()), "vector[0][0] is inf"),
        ({"content": b"{}", "headers": {LENGTH: "3"}}, "number of bytes"),
        ({"content": b"{}", "headers": {LENGTH: "-1"}}, "number of bytes"),
        ({"content": b"{}", "headers": {LENGTH: "²"}}, "number of bytes"),
        ({"content": b"{}", "headers": {LENGTH: "9" * 5000}}, "number of bytes"),
        (
            {
                "content": json.dumps({"inputs": [tensor("pixels", BLACK)]}).encode() + b"more",
                "headers": {
                    LENGTH: str(len(json.dumps({"inputs": [tensor("pixels", BLACK)]}).encode()))
                },
            },
            "Bytes follow the JSON",
        ),
    ],
)
def test_binary_tensors_that_do_not_fit_are_refused(
    client: TestClient, request_: dict[str, Any], words: str
) -> None:
    headers = {name: value.encode() for name, value in request_["headers"].items()}
    response = client.post(INFER, content=request_["content"], headers=headers)
    refused(response, 400, "invalid-inference", words)


def test_reading_json_waits_for_memory_and_refuses_what_never_fits() -> None:
    entry = tensor("image", [bytes(10_000)])
    assert read(entry, MemoryBudget(100_000)).data == [bytes(10_000)]
    with pytest.raises(problems.Problem, match="memory") as caught:
        read(entry, MemoryBudget(20_000))
    assert caught.value.kind.slug == "too-large"


def test_long_json_is_read_one_at_a_time_and_short_json_passes_it() -> None:
    long, short = tensor("image", [bytes(100_000)]), tensor("image", [b"x"])
    memory = MemoryBudget(1_000_000)
    first = Thread(target=read, args=(long, memory))
    with memory.reserve(1_000_000):
        first.start()
        while not memory.waiting:
            time.sleep(0.001)
        late = worth_until.set(0)
        with pytest.raises(TooLate):
            read(long)
        worth_until.reset(late)
        assert read(short).data == [b"x"]
    first.join()
    assert read(long).data == [bytes(100_000)]


@pytest.mark.parametrize("number", [0.5, 1])
def test_other_threads_may_have_their_turn_between_any_two_numbers(number: float) -> None:
    entry = tensor("vector", [number] * NUMBERS, [1, NUMBERS])
    steps: list[str] = []
    sys.setprofile(lambda _, event, __: steps.append(event))
    try:
        read(entry)
    finally:
        sys.setprofile(None)
    assert steps.count("call") > NUMBERS


def test_a_request_that_brings_no_key_is_told_so_and_probes_need_none(weights_path: Path) -> None:
    with TestClient(create_app(Settings(weights=weights_path, api_keys=("secret",)))) as client:
        refused(client.get("/v2/models/cat"), 401, "unauthorized")
        refused(client.post(INFER, content=b"hi"), 401, "unauthorized")
        assert client.get("/v2/models/cat", headers={"X-API-Key": "secret"}).status_code == 200
        assert client.get("/v2/health/ready").status_code == 200


class CountingGate(Gate):
    """A gate that counts the pictures that reach it."""

    count = 0

    def forward(self, x: Array, scratch: Scratch) -> Array:
        self.count += 1
        return super().forward(x, scratch)


def test_pictures_that_are_left_at_the_deadline_are_not_computed(
    weights_path: Path, classifier: Classifier, cat_picture: bytes
) -> None:
    gate = CountingGate()
    app = create_app(Settings(weights=weights_path, deadline_seconds=0.3))
    with TestClient(app) as client:
        app.state.classifier = dataclasses.replace(classifier, layers=[gate, *classifier.layers])
        refused(ask(client, tensor("image", [cat_picture] * 5)), 503, "deadline-passed")
        gate.opened.set()
        while app.state.admission.working:
            time.sleep(0.01)
    assert gate.count == 1


# Anything at all: an answer, or a refusal that clients can show

_words = st.sampled_from(
    ["image", "pixels", "vector", "cat_probability", "label", "BYTES", "UINT8", "FP32", "QQ==", ""]
)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _words
_json = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | _words, inner, max_size=3)
    ),
    max_leaves=10,
)


def _mostly(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return value | _json


_parameters = _mostly(
    st.fixed_dictionaries(
        {}, optional={"binary_data_size": _mostly(st.integers(0, 20)), "binary_data": _json}
    )
)
_input = st.fixed_dictionaries(
    {
        "name": _mostly(st.sampled_from(["image", "pixels", "vector"])),
        "datatype": _mostly(st.sampled_from(["BYTES", "UINT8", "FP32"])),
        "shape": _mostly(
            st.sampled_from([[1], [2], [1, 1], [1, 64, 64, 3], [1, 12288]])
            | st.lists(st.integers(), max_size=4)
        ),
    },
    optional={"data": _mostly(st.lists(_scalars | _words, max_size=3)), "parameters": _parameters},
)
_message = st.fixed_dictionaries(
    {"inputs": _mostly(st.lists(_mostly(_input), max_size=2))},
    optional={"id": _json, "parameters": _parameters, "outputs": _mostly(st.lists(_json))},
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    head=_mostly(_message).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50),
    tail=st.binary(max_size=20),
    length=st.sampled_from(["none", "right", "0", "7"]),
    encoding=st.sampled_from(["", "", "gzip", "deflate"]),
    honest=st.booleans(),
)
def test_whatever_is_sent_no_request_makes_the_service_fail(
    client: TestClient, head: bytes, tail: bytes, length: str, encoding: str, honest: bool
) -> None:
    headers = {"Content-Encoding": encoding}
    if length != "none":
        headers[LENGTH] = str(len(head)) if length == "right" else length
    body = head + tail
    if honest and encoding:
        body = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    response = client.post(INFER, content=body, headers=headers)
    if response.status_code != 200:
        slug = response.json()["type"].partition("#")[2]
        assert 400 <= response.status_code < 500
        refused(response, response.status_code, slug)


def test_a_valid_request_with_any_bytes_changed_makes_no_failure(
    client: TestClient, pixels: NDArray[np.uint8], cat_picture: bytes
) -> None:
    rng = random.Random(1)
    whole = [
        binary(tensor("pixels", pixels), pixels.tobytes()),
        binary(IMAGE, elements(cat_picture[:3000])),
        {"content": json.dumps({"inputs": [tensor("image", [b"GIF89a"])]}).encode(), "headers": {}},
    ]
    for request in whole * 40:
        body = bytearray(request["content"])
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(min(len(body), 200))] = rng.randrange(256)
        response = client.post(INFER, content=bytes(body), headers=request["headers"])
        assert response.status_code < 500, bytes(body)[:300]


# The document


def test_the_api_document_names_every_path_and_every_error(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path in (INFER, "/v2/models/cat/versions/{version}/infer"):
        operation = document["paths"][path]["post"]
        described = operation["responses"]
        assert {"200", "400", "404", "408", "413", "415", "422", "503"} <= set(described)
        for status, entry in described.items():
            if status not in ("200", "401"):
                assert list(entry["content"]) == ["application/json"], status
        for slug in ("invalid-inference", "too-many-pixels", "busy", "deadline-passed"):
            status = str(problems.KINDS[slug].status)
            assert f"/problems#{slug}`" in described[status]["description"]
    (version,) = document["paths"]["/v2/models/cat/versions/{version}"]["get"]["parameters"]
    assert version["name"] == "version"
    assert {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/cat"} <= set(
        document["paths"]
    )
