"""/v2 as clients of the Open Inference Protocol see it. scripts/check_clients has real ones."""

import base64
import gzip
import json
import random
import re
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
    content = json.dumps({"inputs": inputs, **message}).encode()
    return {"content": content, "headers": {}}


def binary(entry: dict[str, Any], data: bytes, size: int | None = None) -> dict[str, Any]:
    """A request whose tensor follows its JSON; `entry` is the input, and its data are left out."""
    entry = {name: value for name, value in entry.items() if name != "data"}
    entry["parameters"] = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps({"inputs": [entry]}).encode()
    return {"content": head + data, "headers": {LENGTH: str(len(head))}}


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


# --- addresses ----------------------------------------------------------------------------------


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


def test_an_unknown_model_or_version_is_not_found(client: TestClient) -> None:
    for method, end in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
        unknown = client.request(method, f"/v2/models/dog{end}")
        refused(unknown, "not-found", "no model 'dog'; there is cat")
        refused(client.request(method, f"/v2/models/cat/versions/7{end}"), "not-found", "'7'")


def test_other_errors_are_of_the_protocol_too(service: Service) -> None:
    with service(api_keys=("secret",)) as client:
        refused(client.post(INFER, content=b"hi"), "unauthorized")
        client.headers["X-API-Key"] = "secret"
        for method, path in (("POST", "/v2"), ("GET", INFER), ("DELETE", "/v2/health/live")):
            refused(client.request(method, path), "method-not-allowed")
        assert client.get("/v20").headers["content-type"] == "application/problem+json"
        client.app.state.ready = False  # type: ignore[attr-defined]
        assert client.get("/v2/health/live").json() == {"live": True}
        server = refused(client.get("/v2/health/ready"), "not-ready")
        model = refused(client.get("/v2/models/cat/ready"), "not-ready")
    assert (server["live"], server["ready"]) == (True, False)
    assert (model["name"], model["ready"]) == ("cat", False)


# --- inputs -------------------------------------------------------------------------------------


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


def test_binary_tensors_are_answered_as_those_in_json(
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
        assert probabilities(infer(**binary(entry, data))) == expected


def test_a_column_of_pictures_and_a_body_that_is_one_are_as_good_as_a_row(
    infer: Infer, pictures: list[bytes]
) -> None:
    row = tensor("image", pictures)
    nested = row | {"shape": [len(pictures), 1], "data": [[text] for text in row["data"]]}
    expected = probabilities(infer(**in_json(row)))
    assert probabilities(infer(**in_json(nested))) == expected
    alone = infer(content=pictures[0], headers={LENGTH: "0"})
    assert probabilities(alone) == expected[:1]


def test_base64_is_understood_however_it_is_written(infer: Infer, cat_picture: bytes) -> None:
    expected = probabilities(infer(**in_json(tensor("image", [cat_picture]))))
    data = cat_picture + b"\xff\xfe"  # so that it needs padding
    text, lines = base64.b64encode(data).decode(), base64.encodebytes(data).decode()
    for written in (
        text.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        lines.replace("\n", "\r\n").rstrip("\r\n="),
        f"data:image/jpeg;base64,{text}",
    ):
        assert probabilities(infer(**in_json(tensor("image", [written])))) == expected


def test_as_many_pictures_as_are_allowed_are_answered(infer: Infer, classifier: Classifier) -> None:
    many = np.random.default_rng(1).integers(0, 256, (MAX_PICTURES, SIDE, SIDE, 3), np.uint8)
    found = probabilities(infer(**binary(tensor("pixels", many), many.tobytes())))
    assert found == pytest.approx(classifier.probabilities(to_vector(many)), abs=1e-6)


def test_neither_content_type_nor_compression_changes_the_answer(
    infer: Infer, pictures: list[bytes]
) -> None:
    request = binary(tensor("image", pictures), elements(*pictures))
    expected, content = probabilities(infer(**request)), request["content"]
    for name, value, sent in (
        ("Content-Type", "text/plain", content),
        ("Content-Type", ";;=", content),
        ("Content-Encoding", "GZIP", gzip.compress(content)),
        ("Content-Encoding", "deflate", zlib.compress(content)),
    ):
        headers = request["headers"] | {name: value}
        assert probabilities(infer(content=sent, headers=headers)) == expected


# --- outputs ------------------------------------------------------------------------------------


def test_the_id_comes_back_and_other_parameters_change_nothing(
    infer: Infer, cat_picture: bytes
) -> None:
    entry = tensor("image", [cat_picture]) | {"parameters": {"content_type": "np"}}
    for identity in ("кіт", "\ud83d", "x" * 1000):
        answer = infer(**in_json(entry, id=identity, parameters={"priority": 1}))
        assert answer.json()["id"] == identity
    assert "id" not in infer(**in_json(entry)).json()


def test_outputs_come_as_they_were_asked_for(infer: Infer, pictures: list[bytes]) -> None:
    entry = tensor("image", pictures)
    plain = answered(infer(**in_json(entry, outputs=[], parameters=None, id=None)))
    assert list(plain) == ["cat_probability", "label"]
    assert list(answered(infer(**in_json(entry, outputs=[{"name": "label"}])))) == ["label"]
    numbers = np.array(plain["cat_probability"]["data"], "<f4").tobytes()
    texts = elements(*(label.encode() for label in plain["label"]["data"]))
    in_bytes = (("label", texts), ("cat_probability", numbers))
    for by_default, *choices in (
        *([True, None, None], [True, None, False], [True, False, False]),
        *([False, None, None], [False, True, None], [False, True, True]),
    ):
        wanted, expected, tail = [], [], b""
        for (name, data), choice in zip(in_bytes, choices, strict=True):
            chosen = {} if choice is None else {"parameters": {"binary_data": choice}}
            wanted.append({"name": name, **chosen})
            expected.append(dict(plain[name]))
            if choice or (choice is None and by_default):
                del expected[-1]["data"]
                expected[-1]["parameters"] = {"binary_data_size": len(data)}
                tail += data
        parameters = {"binary_data_output": by_default}
        response = infer(**in_json(entry, outputs=wanted, parameters=parameters))
        end = int(response.headers.get(LENGTH, len(response.content)))
        assert json.loads(response.content[:end])["outputs"] == expected
        assert response.content[end:] == tail
        kind = "octet-stream" if tail else "json"
        assert response.headers["content-type"] == f"application/{kind}"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "body", "slug", "words"),
    [
        ("gzip", gzip.compress(b"{}")[:-9], "invalid-inference", "complete"),
        ("gzip", gzip.compress(b"{}") + b"more", "invalid-inference", "complete"),
        ("gzip", zlib.compress(b"{}"), "invalid-inference", "not valid gzip"),
        ("deflate", b"{}", "invalid-inference", "not valid deflate"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), "encoded-body", "'gzip, gzip'"),
    ],
    ids=range(5),
)
def test_what_does_not_inflate_is_refused(
    infer: Infer, encoding: str, body: bytes, slug: str, words: str
) -> None:
    refused(infer(content=body, headers={"Content-Encoding": encoding}), slug, words)


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
        pixels = refused(
            infer(**in_json(tensor("image", [small, large]))), "too-many-pixels", "[1]"
        )
        assert pixels["limit_pixels"] == 9_999


@pytest.mark.parametrize(
    ("bad", "slug"), [(b"hello, world", "not-a-picture"), (b"", "empty"), (CUT, "damaged")]
)
def test_a_refused_picture_keeps_its_problem_and_is_named(
    infer: Infer, cat_picture: bytes, bad: bytes, slug: str
) -> None:
    refused(infer(**in_json(tensor("image", [cat_picture, bad]))), slug, "image[1]: ")
    request = binary(tensor("image", [b"", b""]), elements(cat_picture, bad))
    refused(infer(**request), slug, "image[1]: ")
    refused(infer(content=bad, headers={LENGTH: "0"}), slug)


BAD_DATA: list[Any] = [[[0.5] * 7, [0.5] * 5], {}, "0.5"]
VECTOR = tensor("vector", [0.5] * NUMBERS, [1, NUMBERS])
PIXELS = tensor("pixels", [0] * NUMBERS, [1, SIDE, SIDE, 3])
IMAGE = tensor("image", ["QQ=="])
NO_DATA = {name: IMAGE[name] for name in ("name", "shape", "datatype")}
INVALID_INPUTS: list[tuple[str, list[Any]]] = [  # words of the error, inputs
    ("JSON object", [7, IMAGE | {"parameters": 7}]),
    ("no input of the type NoneType. Use one of image, pixels, vector", [{}]),
    ("no input 'dog'", [VECTOR | {"name": "dog"}]),
    (r"no input '\udc80'", [VECTOR | {"name": "\udc80"}]),
    ("FP32, not 'FP64'", [VECTOR | {"datatype": "FP64"}]),
    ("type int", [VECTOR | {"datatype": 7}, tensor("image", [7])]),
    ("must be [-1, 12288]", [VECTOR | {"shape": each} for each in ([NUMBERS], "1", None)]),
    ("must be [-1, 12288]", [VECTOR | {"shape": [n, NUMBERS]} for n in (True, "1", None, 1.0)]),
    ("must be [-1, 12288]", [VECTOR | {"shape": [1, *n]} for n in ([NUMBERS - 1], [NUMBERS, 1])]),
    ("1 to 32 pictures", [VECTOR | {"shape": [n, NUMBERS]} for n in (0, -1, 33)]),
    ("do not match the shape [2, 12288]", [VECTOR | {"shape": [2, NUMBERS]}]),
    ("do not match", [VECTOR | {"data": data} for data in BAD_DATA]),
    ("must be numbers", [VECTOR | {"data": [n] * NUMBERS} for n in ("0.5", True, None)]),
    ("too large for FP32", [VECTOR | {"data": [10**400] * NUMBERS}]),
    ("vector[0][9] is 1.5", [VECTOR | {"data": [0.0] * 9 + [1.5] * (NUMBERS - 9)}]),
    (
        "from 0 to 1 (pixels divided by 255)",
        [VECTOR | {"data": [n] * NUMBERS} for n in (-0.1, 255)],
    ),
    ("must be whole numbers", [PIXELS | {"data": [0.5] * NUMBERS}]),
    ("from 0 to 255", [PIXELS | {"data": [n] * NUMBERS} for n in (256, -1, 10**30)]),
    (
        "image[0] must be a picture file as one base64 string",
        [tensor("image", [t]) for t in ("!", "QQQQQ")],
    ),
    ("image[1] must be", [tensor("image", ["QQ==", "кіт"])]),
    ("after the padding", [tensor("image", ["QQ==QQ=="])]),
    ("do not match", [tensor("image", "QQ==")]),
    ("shape of image must be [-1]", [IMAGE | {"shape": [1, n]} for n in (2, True)]),
    ("not both", [IMAGE | {"parameters": {"binary_data_size": 4}}]),
    ("shared_memory_region", [IMAGE | {"parameters": {"shared_memory_region": "x"}}]),
    ("either data or", [NO_DATA]),
    (f"header {LENGTH}", [NO_DATA | {"parameters": {"binary_data_size": 4}}]),
]
INVALID_MESSAGES: list[tuple[str, dict[str, Any]]] = [  # words of the error, the rest of a request
    *(("no list", {"inputs": inputs}) for inputs in (None, "image", 7)),
    ("it has 0", {"inputs": []}),
    ("it has 2", {"inputs": [VECTOR] * 2}),
    *(("id must be a string", {"id": identity}) for identity in (7, "x" * 1001)),
    *(("JSON object", {"parameters": parameters}) for parameters in ([1], 0)),
    ("true or false", {"parameters": {"binary_data_output": 1}}),
    *(("must be a list", {"outputs": outputs}) for outputs in ({"name": "label"}, {}, False)),
    ("JSON object", {"outputs": ["label"]}),
    ("no output 'dog'", {"outputs": [{"name": "dog"}]}),
    ("twice", {"outputs": [{"name": "label"}] * 2}),
    ("true or false", {"outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}]}),
    ("classification", {"outputs": [{"name": "label", "parameters": {"classification": 1}}]}),
]
NOT_JSON: list[tuple[str, bytes]] = [
    *(("not JSON", body) for body in (b"", b"\xff\xfe", b"{", b"[" * 100_000)),
    ("not JSON", b'{"id": ' + b"9" * 5000 + b"}"),
    ("JSON object", b"[]"),
    ("NaN is not a JSON number", b'{"inputs": [NaN]}'),
    ("Infinity is not a JSON number", b'{"inputs": [-Infinity]}'),
]
ONES = np.ones(NUMBERS, "<f4")
PLAIN: bytes = in_json(VECTOR)["content"]
UNFIT: list[tuple[str, dict[str, Any]]] = [  # words of the error, a request with binary data
    *(("1 in all", binary(IMAGE, data)) for data in (b"", b"xy", b"\xff\xff\xff\xff")),
    ("1 in all", binary(IMAGE, elements(b"x")[:-1])),
    ("1 in all", binary(IMAGE, elements(b"x") + b"y")),
    *((f"is {n}, but 5 bytes follow", binary(IMAGE, elements(b"x"), n)) for n in (6, -1)),
    ("5 bytes follow", binary(IMAGE, elements(b"x"), 10**30)),
    ("needs 49,152 bytes, but 49,151", binary(VECTOR, ONES.tobytes()[:-1])),
    ("vector[0][0] is nan", binary(VECTOR, (ONES * np.nan).tobytes())),
    ("vector[0][0] is inf", binary(VECTOR, (ONES * np.inf).tobytes())),
    *(
        ("length of the JSON", {"content": b"{}", "headers": {LENGTH: length.encode()}})
        for length in ("3", "-1", "²", "9" * 5000)
    ),
    ("1 bytes follow the JSON", {"content": PLAIN + b"x", "headers": {LENGTH: str(len(PLAIN))}}),
]
INVALID = [
    *((words, in_json(entry)) for words, entries in INVALID_INPUTS for entry in entries),
    *((words, in_json(VECTOR, **message)) for words, message in INVALID_MESSAGES),
    *((words, {"content": body}) for words, body in NOT_JSON),
    *UNFIT,
]


@pytest.mark.parametrize(("words", "request_"), INVALID, ids=range(len(INVALID)))
def test_a_request_that_is_not_valid_is_told_what_is_wrong(
    infer: Infer, words: str, request_: dict[str, Any]
) -> None:
    refused(infer(**request_), "invalid-inference", words)


def test_a_valid_request_with_anything_changed_is_answered_or_refused(infer: Infer) -> None:
    rng = random.Random(1)
    others = [b"null", b"-1", b"0.5", b"[]", b"{}", b'"image"', b'"binary_data_size"', b"1e400"]
    whole = [
        binary(IMAGE, elements(picture("GIF", 9, 9))),
        in_json(tensor("image", [b"GIF89a"]), id="1", outputs=[{"name": "label"}]),
    ]
    for request in whole * 30:
        body, headers = request["content"], request["headers"]
        head = body[: int(headers.get(LENGTH, len(body)))]
        token = rng.choice([*re.finditer(rb'"[^"]*"|[\d.]+|[\[{][^\[{}\]]*[\]}]', head)])
        content = body[: token.start()] + rng.choice(others) + body[token.end() :]
        response = infer(content=content, headers=headers)
        if response.status_code != 200:
            assert response.status_code < 500, content[:300]
            refused(response, response.json()["type"].partition("#")[2])


def test_the_api_document_names_every_path_and_every_error(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/cat"} <= set(paths)
    for path in (INFER, "/v2/models/cat/versions/{version}/infer"):
        described = paths[path]["post"]["responses"]
        for status in described.keys() - {"200"}:
            assert list(described[status]["content"]) == ["application/json"], status
        for slug in ("not-found", "invalid-inference", "too-large", "too-many-pixels", "busy"):
            assert f"/problems#{slug}`" in described[str(TYPES[slug].status)]["description"]
