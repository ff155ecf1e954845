"""Check /v2 with the clients that people have: tritonclient and KServe's SDK.

    python -m scripts.check_clients

starts the service and has each client do everything it can, in an environment of its own, since
they disagree on what they need. The first time uv fetches them, about 1 GB. Prints a line for each
kind of request; the exit status is 1 if anything failed.
"""

import argparse
import asyncio
import base64
import importlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CLIENTS = {"tritonclient": "tritonclient[http]==2.73.0", "kserve": "kserve==0.21.0"}
PICTURES = ("cat.jpg", "coffee.jpg")
TOLERANCE = 1e-6
INPUTS = {  # shape and datatype of each, for two pictures
    "image": ([2], "BYTES"),
    "pixels": ([2, 64, 64, 3], "UINT8"),
    "vector": ([2, 12288], "FP32"),
}
OUTPUTS = ("cat_probability", "label")
Case = dict[str, Any]


def main() -> None:
    """Start the service, and each client in its environment."""
    # Not at the top: in a client's environment nothing of the project can be imported.
    from tests.server import PYTHON_M_APP, running

    name, style = "python -m scripts.check_clients", argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(name, description=__doc__, formatter_class=style).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # and the service with it
    failed = []
    with TemporaryDirectory() as folder, running(PYTHON_M_APP, log="off", views="one") as server:
        case = Path(folder, "case.json")
        case.write_text(json.dumps(_case(server.url)), encoding="utf-8")
        for client, package in CLIENTS.items():
            print(f"{package}:", flush=True)
            uv = [sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--isolated"]
            uv += ["--python", sys.executable, "--with", package]
            command = [*uv, "python", __file__, client, str(case)]
            done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
            if done.returncode:
                failed.append(client)
                print(done.stderr.decode())
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def _case(url: str) -> Case:
    """What the clients send and have to get: JSON values."""
    from model import DEFAULT_WEIGHTS
    from model.classifier import Classifier
    from model.preprocessing import to_vector

    files = [(REPOSITORY / "examples" / name).read_bytes() for name in PICTURES]
    answers = []
    for data in files:
        with urllib.request.urlopen(f"{url}/predict", data) as response:  # noqa: S310 - our own
            answers.append(json.load(response))
    classifier = Classifier.load(DEFAULT_WEIGHTS)
    pixels = [classifier.read(data).picture.pixels for data in files]  # as the service reads them
    return {
        "url": url,
        "version": answers[0]["model"]["version"],
        "cat_probability": [answer["cat_probability"] for answer in answers],
        "label": [answer["label"] for answer in answers],
        "image": [base64.b64encode(data).decode() for data in files],
        "pixels": [picture.tolist() for picture in pixels],
        "vector": [to_vector(picture).tolist() for picture in pixels],
    }


# --- in a client's environment ------------------------------------------------------------------


def _array(case: Case, name: str, binary: bool) -> Any:
    """An input as an array; in JSON, pictures are base64."""
    numpy = importlib.import_module("numpy")
    if name == "image":
        texts = [text.encode() for text in case[name]]
        return numpy.array([base64.b64decode(text) if binary else text for text in texts], object)
    return numpy.array(case[name], "u1" if name == "pixels" else "f4")


def _compare(case: Case, probabilities: Any, labels: Any) -> None:
    numpy = importlib.import_module("numpy")
    found = numpy.asarray(probabilities, "f4")
    assert found.shape == (len(PICTURES), 1), found.shape
    assert abs(found[:, 0] - case["cat_probability"]).max() <= TOLERANCE, found
    flat = numpy.asarray(labels, object).reshape(-1)
    words = [word.decode() if isinstance(word, bytes) else word for word in flat]
    assert words == case["label"], words


def _refused(kind: type[Exception], send: Callable[[], Any]) -> Any:
    """The exception by which a client says that its request was refused."""
    try:
        send()
    except kind as refused:
        return refused
    raise AssertionError("it was not refused")


def _tritonclient(case: Case) -> None:
    http = importlib.import_module("tritonclient.http")
    refusal = importlib.import_module("tritonclient.utils").InferenceServerException
    client = http.InferenceServerClient(case["url"].removeprefix("http://"))
    version = case["version"]

    def infer(name: str, binary: bool, **options: Any) -> Any:
        tensor = http.InferInput(name, *INPUTS[name])
        tensor.set_data_from_numpy(_array(case, name, binary), binary_data=binary)
        return client.infer("cat", [tensor], request_id="7", **options)

    assert client.is_server_live()
    assert client.is_server_ready()
    known = [("cat", ""), ("cat", version), ("dog", ""), ("cat", "0")]
    assert [client.is_model_ready(*each) for each in known] == [True, True, False, False]
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    for which in ("", version):
        model = client.get_model_metadata("cat", which)
        assert model["versions"] == [version]
        assert [each["name"] for each in model["inputs"]] == list(INPUTS)
        assert [each["name"] for each in model["outputs"]] == list(OUTPUTS)
    print("  health and metadata", flush=True)

    ways = product(INPUTS, (True, False), (None, True, False), (None, "gzip", "deflate"))
    for name, binary, binary_label, compression in ways:
        outputs = None  # all of them, as the server likes
        if binary_label is not None:
            outputs = [http.InferRequestedOutput("cat_probability", binary_data=False)]
            outputs.append(http.InferRequestedOutput("label", binary_data=binary_label))
        result = infer(
            name,
            binary,
            outputs=outputs,
            model_version=version if binary_label else "",
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        _compare(case, *(result.as_numpy(each) for each in OUTPUTS))
        assert result.get_response()["id"] == "7"
        assert result.get_response()["model_version"] == version
    print("  every input in JSON and binary, outputs in both, compressed and not", flush=True)

    label, dog = ([http.InferRequestedOutput(each)] for each in ("label", "dog"))
    assert infer("pixels", True, outputs=label).as_numpy("cat_probability") is None
    case["image"] = [case["image"][0][:6000], case["image"][1]]  # damaged
    for status, words, name, options in (
        ("422", "image[0]", "image", {}),
        ("404", "no version '0'", "pixels", {"model_version": "0"}),
        ("400", "an output is 'dog'", "pixels", {"outputs": dog}),
    ):
        refused = _refused(refusal, lambda: infer(name, True, **options))  # noqa: B023 - now
        assert refused.status() == status, refused.status()
        assert words in refused.message(), refused.message()
    print("  one output of two, and errors", flush=True)


def _kserve(case: Case) -> None:
    kserve = importlib.import_module("kserve")
    types = importlib.import_module("kserve.protocol.infer_type")
    config_type = importlib.import_module("kserve.inference_client").RESTConfig
    url, versioned = case["url"], f"cat/versions/{case['version']}"

    def ask(use: Callable[[Any], Any]) -> Any:
        async def asked() -> Any:
            config = config_type(protocol="v2", timeout=30)
            async with kserve.InferenceRESTClient(config) as client:
                return await use(client)

        return asyncio.run(asked())

    def request(name: str, binary: bool, binary_output: bool) -> Any:
        tensor = kserve.InferInput(name, *INPUTS[name], parameters={})
        tensor.set_data_from_numpy(_array(case, name, binary), binary_data=binary)
        binary_data = {"binary_data": binary_output}
        outputs = [types.RequestedOutput(each, parameters=binary_data) for each in OUTPUTS]
        return kserve.InferRequest("cat", [tensor], request_id="7", request_outputs=outputs)

    assert ask(lambda client: client.is_server_live(url)) is True
    assert ask(lambda client: client.is_server_ready(url)) is True
    for model in ("cat", versioned, "dog"):
        ready = ask(lambda client: client.is_model_ready(url, model))  # noqa: B023 - now
        assert ready is (model != "dog")
    print("  health", flush=True)

    for name, *binary, model in product(INPUTS, (True, False), (True, False), ("cat", versioned)):
        data = request(name, *binary)
        answer = ask(lambda client: client.infer(url, data, model_name=model))  # noqa: B023 - now
        _compare(case, *(answer.get_output_by_name(each).as_numpy() for each in OUTPUTS))
        assert answer.id == "7"
    print("  every input and output in JSON and binary, of any version and of this", flush=True)

    error = importlib.import_module("httpx").HTTPStatusError
    bad = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["QUJD"]}]}
    send = lambda: ask(lambda client: client.infer(url, bad, model_name="cat"))  # noqa: E731
    refused = _refused(error, send)
    assert "image[0]" in str(refused), str(refused)
    assert refused.response.status_code == 415
    print("  an error", flush=True)


CHECKS = {"tritonclient": _tritonclient, "kserve": _kserve}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        CHECKS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    else:
        main()
