"""/v2 as clients of the Open Inference Protocol see it. scripts/check_clients has real ones."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from app import HEADER_LENGTH as LENGTH
from app import MAX_PICTURES
from app.errors import TYPES
from app.inference_protocol import body_limit
from model.classifier import Classifier
from model.preprocessing import read_picture, to_vector
from tests.conftest import Service
from tests.data_folder import REPOSITORY
from tests.pictures import picture

INFER = "/v2/models/cat/infer"
SIDE = 64
CUT = (REPOSITORY / "examples" / "cat.jpg").read_bytes()[:5000]
NUMBERS = SIDE * SIDE * 3

Infer = Callable[..., httpx.Response]


@pytest.fixture(scope="session")
def infer(client: TestClient) -> Infer:
    """Sends a request."""
    return partial(client.post, INFER)


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    names = ("cat.jpg", "coffee.jpg", "rocket.jpg")
    return [(REPOSITORY / "examples" / name).read_bytes() for name in names]


@pytest.fixture(scope="session")
def pixels(pictures: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([read_picture(picture).pixels for picture in pictures])


def body(content: bytes, **headers: str) -> dict[str, Any]:
    return {"content": content, "headers": headers}


def tensor(name: str, data: Any, shape: list[Any] | None = None) -> dict[str, Any]:
    """An input in JSON. data: bytes for pictures, arrays for numbers, or what is sent as it is."""
    datatypes = {"image": "BYTES", "pixels": "UINT8", "vector": "FP32"}
    if isinstance(data, np.ndarray):
        shape, data = list(data.shape), data.tolist()
    elif data and isinstance(data[0], bytes):
        data = [base64.b64encode(element).decode() for element in data]
    shape = [len(data)] if shape is None else shape
    return {"name": name, "shape": shape, "datatype": datatypes.get(name, "FP32"), "data": data}


def in_json(*inputs: Any, **message: Any) -> dict[str, Any]:
    """A request with these inputs."""
    return body(json.dumps({"inputs": inputs, **message}).encode())


def binary(entry: dict[str, Any], data: bytes, size: int | None = None) -> dict[str, Any]:
    """A request whose tensor follows its JSON; `entry` is the input, and its data are left out."""
    entry = {name: value for name, value in entry.items() if name != "data"}
    entry["parameters"] = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps({"inputs": [entry]}).encode()
    return body(head + data, **{LENGTH: str(len(head))})


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


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


def refused(response: httpx.Response, slug: str, words: str = "") -> dict[str, Any]:
    """The problem, checked to be one that clients of the protocol can show."""
    problem: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/json"
    assert problem["type"] == f"/problems#{slug}", problem
    assert response.status_code == problem["status"] == TYPES[slug].status
    assert problem["error"] == problem["detail"]
    assert words in problem["error"], problem["error"]
    return problem


def test_the_server_the_model_and_its_versions_are_described(
    client: TestClient, classifier: Classifier
) -> None:
    for path in ("/v2", "/v2/"):
        server = client.get(path).json()
        assert server.keys() == {"name", "version", "extensions"}
        assert server["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    version = f"/v2/models/cat/versions/{classifier.version}"
    for path in ("/v2/models/cat", version):
        assert client.get(f"{path}/ready").json() == {"name": "cat", "ready": True}
        metadata = client.get(path).json()
        assert (metadata["name"], metadata["versions"]) == ("cat", [classifier.version])
        assert metadata["platform"]
        tensors = metadata["inputs"] + metadata["outputs"]
        assert {each["name"]: (each["datatype"], each["shape"]) for each in tensors} == {
            "image": ("BYTES", [-1]),
            "pixels": ("UINT8", [-1, SIDE, SIDE, 3]),
            "vector": ("FP32", [-1, NUMBERS]),
            "cat_probability": ("FP32", [-1, 1]),
            "label": ("BYTES", [-1, 1]),
        }
        assert metadata["parameters"]["max_pictures"] == MAX_PICTURES
    answer = client.post(f"{version}/infer", content=picture(), headers={LENGTH: "0"})
    assert answer.json()["model_name"] == "cat"
    assert answer.json()["model_version"] == classifier.version


def test_other_errors_are_of_the_protocol_too(service: Service) -> None:
    with service(api_keys=("secret",)) as client:
        refused(client.post(INFER, content=b"hi"), "unauthorized")
        client.headers["X-API-Key"] = "secret"
        for method, end in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
            unknown = client.request(method, f"/v2/models/dog{end}")
            refused(unknown, "not-found", "no model 'dog'; there is cat")
            refused(client.request(method, f"/v2/models/cat/versions/7{end}"), "not-found", "'7'")
        announced = {"Content-Length": "1000000000"}  # it is refused before the body is read
        unread = client.post("/v2/models/cat/versions/7/infer", headers=announced)
        refused(unread, "not-found", "'7'")
        for method, path in (("POST", "/v2"), ("GET", INFER), ("DELETE", "/v2/health/live")):
            refused(client.request(method, path), "method-not-allowed")
        client.app.state.ready = False  # type: ignore[attr-defined]
        assert client.get("/v2/health/live").json() == {"live": True}
        server = refused(client.get("/v2/health/ready"), "not-ready")
        model = refused(client.get("/v2/models/cat/ready"), "not-ready")
    assert (server["live"], server["ready"]) == (True, False)
    assert (model["name"], model["ready"]) == ("cat", False)


def test_pictures_get_the_answers_of_predict_in_their_order(
    service: Service, pictures: list[bytes]
) -> None:
    with service(threshold=0.2) as client:  # between them, so that both labels occur
        expected = [client.post("/predict", content=picture).json() for picture in pictures]
        outputs = answered(client.post(INFER, **in_json(tensor("image", pictures))))
    assert list(outputs) == ["cat_probability", "label"]
    for name, output in outputs.items():
        assert output["data"] == [each[name] for each in expected]
        assert output["shape"] == [len(pictures), 1]
    assert outputs["label"]["datatype"] == "BYTES"
    assert set(outputs["label"]["data"]) == {"cat", "non-cat"}


def test_pixels_and_vectors_get_the_probabilities_of_the_classifier(
    infer: Infer, classifier: Classifier, pixels: NDArray[np.uint8]
) -> None:
    vectors = to_vector(pixels)
    expected = pytest.approx(classifier.probabilities(vectors), abs=1e-6)
    for name, rows in (("pixels", pixels), ("vector", vectors)):
        nested = tensor(name, rows)
        for entry in (nested, nested | {"data": rows.reshape(-1).tolist()}):
            assert probabilities(infer(**in_json(entry))) == expected


def test_binary_tensors_are_answered_as_those_in_json_also_when_they_are_compressed(
    infer: Infer, pictures: list[bytes], pixels: NDArray[np.uint8]
) -> None:
    vectors = to_vector(pixels)
    for entry, data in (
        (tensor("image", pictures), elements(*pictures)),
        (tensor("pixels", pixels), pixels.tobytes()),
        (tensor("vector", vectors), vectors.astype("<f4").tobytes()),
        # `mlserver infer` sends base64 there.
        (tensor("image", pictures[:1]), elements(base64.b64encode(pictures[0]))),
    ):
        expected = probabilities(infer(**in_json(entry)))
        request = binary(entry, data)
        assert probabilities(infer(**request)) == expected
        for encoding, sent in (
            ("GZIP", gzip.compress(request["content"], 1)),
            ("deflate", zlib.compress(request["content"], 1)),
        ):
            headers = request["headers"] | {"Content-Encoding": encoding}
            assert probabilities(infer(content=sent, headers=headers)) == expected


def test_a_picture_is_understood_however_it_is_written(infer: Infer, cat_picture: bytes) -> None:
    expected = probabilities(infer(content=cat_picture, headers={LENGTH: "0"}))
    data = cat_picture + b"\xff\xfe"  # so that it needs padding
    text, lines = base64.b64encode(data).decode(), base64.encodebytes(data).decode()
    for written in (
        text.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        lines.replace("\n", "\r\n").rstrip("\r\n="),
        f"data:image/jpeg;base64,{text}",
    ):
        assert probabilities(infer(**in_json(tensor("image", [written])))) == expected
    column = tensor("image", [[text]]) | {"shape": [1, 1]}
    assert probabilities(infer(**in_json(column))) == expected


def test_the_id_comes_back_and_other_parameters_change_nothing(
    infer: Infer, cat_picture: bytes
) -> None:
    entry = tensor("image", [cat_picture]) | {"parameters": {"content_type": "np"}}
    for identity in ("кіт", "\ud83d", "x" * 1000):
        answer = infer(**in_json(entry, id=identity, parameters={"priority": 1}))
        assert answer.json()["id"] == identity


def test_outputs_come_as_they_were_asked_for(infer: Infer, pictures: list[bytes]) -> None:
    entry = tensor("image", pictures)
    plain = answered(infer(**in_json(entry, outputs=[], parameters=None, id=None)))
    numbers = np.array(plain["cat_probability"]["data"], "<f4").tobytes()
    texts = elements(*(label.encode() for label in plain["label"]["data"]))
    label, number = {"name": "label"}, {"name": "cat_probability"}
    assert answered(infer(**in_json(entry, outputs=[label]))) == {"label": plain["label"]}
    binary_label = label | {"parameters": {"binary_data": True}}
    number_in_json = number | {"parameters": {"binary_data": False}}
    for by_default, wanted, tail in (
        (False, [binary_label, number], texts),
        (True, [label, number_in_json], texts),
        (True, [label, number], texts + numbers),
        (True, [], numbers + texts),
    ):
        parameters = {"binary_data_output": by_default}
        response = infer(**in_json(entry, outputs=wanted, parameters=parameters))
        assert response.headers["content-type"] == "application/octet-stream"
        end = int(response.headers[LENGTH])
        assert response.content[end:] == tail
        for output in json.loads(response.content[:end])["outputs"]:
            expected = dict(plain[output["name"]])
            if "data" not in output:
                del expected["data"]
                size = len({"label": texts, "cat_probability": numbers}[output["name"]])
                expected["parameters"] = {"binary_data_size": size}
            assert output == expected


def test_the_limits_of_predict_hold_for_each_picture_and_for_all(
    service: Service, cat_picture: bytes
) -> None:
    small, large = picture("JPEG", 40, 40), picture("PNG", 100, 100)
    with service(max_upload_bytes=len(cat_picture) - 1, max_pixels=9_999) as client:
        infer = partial(client.post, INFER)
        limit = body_limit(len(cat_picture) - 1)
        assert client.get("/v2/models/cat").json()["parameters"]["max_request_bytes"] == limit
        alone = infer(**in_json(tensor("image", [cat_picture])))
        assert refused(alone, "too-large", "image[0]")["limit_bytes"] == len(cat_picture) - 1
        many = infer(**in_json(tensor("image", [cat_picture] * 8)))
        bomb = infer(content=gzip.compress(bytes(limit + 1)), headers={"Content-Encoding": "gzip"})
        for all_together in (many, bomb):
            assert refused(all_together, "too-large")["limit_bytes"] == limit
        second = infer(**in_json(tensor("image", [small, large])))
        assert refused(second, "too-many-pixels", "[1]")["limit_pixels"] == 9_999


@pytest.mark.parametrize(
    ("bad", "slug"), [(b"hello, world", "not-a-picture"), (b"", "empty"), (CUT, "damaged")]
)
def test_a_refused_picture_keeps_its_problem_and_is_named(
    infer: Infer, cat_picture: bytes, bad: bytes, slug: str
) -> None:
    refused(infer(**in_json(tensor("image", [cat_picture, bad]))), slug, "image[1]: ")
    refused(infer(content=bad, headers={LENGTH: "0"}), slug)


VECTOR = tensor("vector", [0.5] * NUMBERS, [1, NUMBERS])
PIXELS = tensor("pixels", [0] * NUMBERS, [1, SIDE, SIDE, 3])
IMAGE = tensor("image", ["QQ=="])
NO_DATA = {name: IMAGE[name] for name in ("name", "shape", "datatype")}
ONES = np.ones(NUMBERS, "<f4")
PLAIN: bytes = in_json(VECTOR)["content"]
INVALID_INPUTS: list[tuple[str, list[Any]]] = [  # words of the error, inputs
    ("JSON object", [7, IMAGE | {"parameters": 7}]),
    ("an input is missing. Use one of image, pixels, vector", [{}]),
    (r"an input is '\udc80'", [VECTOR | {"name": "\udc80"}]),
    ("is 'FP64'. Use FP32", [VECTOR | {"datatype": "FP64"}]),
    ("is missing. Use FP32", [VECTOR | {"datatype": None}]),
    ("must be [-1, 12288]", [VECTOR | {"shape": [n, NUMBERS]} for n in (True, "1", 1.0)]),
    ("is [3, 64, 64], but", [PIXELS | {"shape": [3, SIDE, SIDE]}]),
    *((f"pictures, not {n}.", [VECTOR | {"shape": [n, NUMBERS]}]) for n in (0, -1)),
    ("1 to 32 pictures, not 33. Split", [VECTOR | {"shape": [33, NUMBERS]}]),
    ("have the shape [1, 7]", [VECTOR | {"data": [[0.5] * 7]}]),
    ("must be a list", [VECTOR | {"data": {}}, IMAGE | {"data": "QQ=="}]),
    ("must be numbers", [VECTOR | {"data": [n] * NUMBERS} for n in ("0.5", True, None)]),
    ("too large for FP32", [VECTOR | {"data": [10**400] * NUMBERS}]),
    ("vector[0][9] is 1.5", [VECTOR | {"data": [0.0] * 9 + [1.5] * (NUMBERS - 9)}]),
    ("from 0 to 1 (pixels divided by 255)", [VECTOR | {"data": [255] * NUMBERS}]),
    ("must be whole numbers", [PIXELS | {"data": [0.5] * NUMBERS}]),
    ("from 0 to 255", [PIXELS | {"data": [n] * NUMBERS} for n in (256, -1, 10**30)]),
    ("image[0] must be a picture file as one base64 string", [tensor("image", ["QQQQQ"])]),
    ("Only base64 data", [tensor("image", [text]) for text in ("é", "\ud83d")]),
    ("after the padding", [tensor("image", ["QQ==QQ=="])]),
    ("not both", [IMAGE | {"parameters": {"binary_data_size": 4}}]),
    ("shared_memory_region", [IMAGE | {"parameters": {"shared_memory_region": "x"}}]),
    ("either data or", [NO_DATA]),
    (f"header {LENGTH}", [NO_DATA | {"parameters": {"binary_data_size": 4}}]),
]
INVALID: list[tuple[str, dict[str, Any]]] = [  # words of the error, a request
    *((words, in_json(entry)) for words, entries in INVALID_INPUTS for entry in entries),
    ("it has 0", in_json()),
    ("it has 2", in_json(VECTOR, VECTOR)),
    ("id must be a string", in_json(VECTOR, id=7)),
    ("JSON object", in_json(VECTOR, parameters=[1])),
    ("true or false", in_json(VECTOR, parameters={"binary_data_output": 1})),
    ("an output is 'dog'", in_json(VECTOR, outputs=[{"name": "dog"}])),
    ("twice", in_json(VECTOR, outputs=[{"name": "label"}] * 2)),
    # Bodies that are no JSON
    *(("not JSON", body(each)) for each in (b"", b"{", b"[" * 100_000)),
    *((f"{LENGTH}: 0, or", body(each)) for each in (CUT, PLAIN.decode().encode("utf-16"))),
    ("not JSON", body(b'{"id": ' + b"9" * 5000 + b"}")),
    ("JSON object", body(b"[]")),
    ("NaN is not a JSON number", body(b'{"inputs": [NaN]}')),
    # Binary data that do not fit
    *((f"arrived is {len(data)}", binary(IMAGE, data)) for data in (b"", b"xy", b"\xff" * 4)),
    *((f"is {n}, but the number of bytes", binary(IMAGE, elements(b"x"), n)) for n in (6, -1)),
    ("needs 49,152 bytes, but 49,151", binary(VECTOR, ONES.tobytes()[:-1])),
    ("vector[0][0] is nan", binary(VECTOR, (ONES * np.nan).tobytes())),
    *(("length of the JSON", body(b"{}", **{LENGTH: n})) for n in ("3", "-1", "9" * 5000)),
    ("size of vector is missing", body(PLAIN + b"x", **{LENGTH: str(len(PLAIN))})),
    # What does not inflate
    ("complete", body(gzip.compress(b"{}")[:-9], **{"Content-Encoding": "gzip"})),
    ("complete", body(gzip.compress(b"{}") + b"more", **{"Content-Encoding": "gzip"})),
    ("not valid gzip", body(zlib.compress(b"{}"), **{"Content-Encoding": "gzip"})),
    ("not valid deflate", body(b"{}", **{"Content-Encoding": "deflate"})),
]


@pytest.mark.parametrize(("words", "request_"), INVALID, ids=range(len(INVALID)))
def test_a_request_that_is_not_valid_is_told_what_is_wrong(
    infer: Infer, words: str, request_: dict[str, Any]
) -> None:
    refused(infer(**request_), "invalid-inference", words)
