"""Check /v2 with the clients that people have: tritonclient, KServe's SDK and `mlserver infer`.

    python -m scripts.check_clients --environments ~/.cache/cat-clients

starts the service, makes an environment for each client, since they disagree on what they need
(together 1 GB; later runs find them in the folder), and has each do everything it can. Prints a
table; the exit status is 1 if anything failed. Needs the package registry, and uv, which
`make setup` installs.
"""

import argparse
import asyncio
import base64
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CLIENTS = {
    "tritonclient": "tritonclient[http]==2.73.0",
    "kserve": "kserve==0.21.0",
    "mlserver": "mlserver==1.7.1",
}
PICTURES = ("cat.jpg", "coffee.jpg")
TOLERANCE = 1e-6
END = "end"
Check = tuple[str, Callable[[], None]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=Path, help="where they are kept (default: nowhere)")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)  # client, file of the case
    arguments = parser.parse_args()
    if arguments.inside:
        client, case = arguments.inside
        _run_checks(CHECKS[client](json.loads(Path(case).read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.environments or Path(temporary, "environments")).resolve()
        interpreters = {client: _environment(folder / client, client) for client in CLIENTS}
        with _service() as url:
            case = Path(temporary, "case.json")
            case.write_text(json.dumps(_case(url)), encoding="utf-8")
            failed = [
                failure
                for client, python in interpreters.items()
                for failure in _report(client, python, case)
            ]
    print(f"\n{len(failed)} failed" if failed else "\nEverything passed.")
    sys.exit(1 if failed else 0)


# In this process: environments, the service, what is expected of it, the table


def _environment(folder: Path, client: str) -> Path:
    """The Python of an environment with the client, made if it is not there yet."""
    python = folder / "bin" / "python"
    complete = folder / CLIENTS[client].replace("[http]", "")
    if not complete.exists():
        print(f"Installing {CLIENTS[client]} …", flush=True)
        uv = [sys.executable, "-m", "uv", "--quiet"]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([*uv, "pip", "install", "--python", python, CLIENTS[client]], check=True)
        complete.touch()
    return python


@contextmanager
def _service() -> Iterator[str]:
    """The address of the service, started for the time of a with block on a free port."""
    environ = {name: value for name, value in os.environ.items() if name[:4] != "CAT_"}
    process = subprocess.Popen(
        [sys.executable, "-m", "app"],
        cwd=REPOSITORY,
        env=environ | {"CAT_BIND_PORT": "0", "CAT_LOG": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    try:
        log = ""
        for line in process.stdout:
            log += line
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            sys.exit(f"The service did not start:\n{log}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # lest it blocks
        yield found[1]
    finally:
        process.terminate()
        process.wait(20)


def _case(url: str) -> dict[str, Any]:
    """What the clients send and have to get: JSON values."""
    from model.preprocessing import read_picture, to_vector

    files = [(REPOSITORY / "examples" / name).read_bytes() for name in PICTURES]
    answers = []
    for data in files:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", data)) as response:  # noqa: S310 - our own
            answers.append(json.load(response))
    pixels = [read_picture(data).pixels for data in files]
    return {
        "url": url,
        "version": answers[0]["model"]["version"],
        "probabilities": [answer["cat_probability"] for answer in answers],
        "labels": [answer["label"] for answer in answers],
        "image": [base64.b64encode(data).decode() for data in files],
        "pixels": [picture.tolist() for picture in pixels],
        "vector": [to_vector(picture).tolist() for picture in pixels],
    }


def _report(client: str, python: Path, case: Path) -> Iterator[str]:
    """Run a client's checks in its environment, print a line for each, give what failed."""
    command = [str(python), __file__, "--inside", client, str(case)]
    finished = False
    with (
        tempfile.TemporaryFile("w+") as noise,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True) as process,
    ):
        for line in process.stdout or ():
            if not line.startswith("{"):
                continue  # what the client says
            result = json.loads(line)
            finished = result["name"] == END
            if not finished:
                verdict = "FAILED" if result["error"] else "ok"
                print(f"{CLIENTS[client]:<27} {verdict:<7}{result['name']}", flush=True)
            if result["error"]:
                print(result["error"])
                yield result["name"]
        if not finished:
            noise.seek(0)
            print(f"{CLIENTS[client]:<27} FAILED did not get to its end:\n{noise.read()}")
            yield END


# In a client's environment, where nothing of the project can be imported


def _run_checks(checks: Iterable[Check]) -> None:
    for name, check in checks:
        error = None
        try:
            check()
        except Exception:  # noqa: BLE001 - whatever a client raises is what is reported
            error = traceback.format_exc(limit=-3)
        print(json.dumps({"name": name, "error": error}), flush=True)
    print(json.dumps({"name": END, "error": None}))


def _refused(kind: type[Exception], send: Callable[[], Any]) -> Any:
    """The exception by which a client says that its request was refused."""
    try:
        send()
    except kind as refused:
        return refused
    raise AssertionError("it was not refused")


def _compare(case: dict[str, Any], probabilities: Any, labels: Any) -> None:
    numpy = importlib.import_module("numpy")
    found = numpy.asarray(probabilities, "f4")
    assert found.shape == (len(PICTURES), 1), found.shape
    difference = abs(found[:, 0] - case["probabilities"]).max()
    assert difference <= TOLERANCE, f"probabilities differ by {difference}"
    flat = numpy.asarray(labels, object).reshape(-1)
    words = [word.decode() if isinstance(word, bytes) else word for word in flat]
    assert words == case["labels"], words


def _shape(name: str) -> list[int]:
    return {"image": [2], "pixels": [2, 64, 64, 3], "vector": [2, 12288]}[name]


def _array(case: dict[str, Any], name: str, binary: bool) -> Any:
    """An input as an array; in JSON, pictures are base64."""
    numpy = importlib.import_module("numpy")
    if name == "image":
        texts = [text.encode() for text in case[name]]
        return numpy.array([base64.b64decode(text) if binary else text for text in texts], object)
    return numpy.array(case[name], "u1" if name == "pixels" else "f4")


DATATYPES = {"image": "BYTES", "pixels": "UINT8", "vector": "FP32"}


def _tritonclient(case: dict[str, Any]) -> Iterator[Check]:
    http = importlib.import_module("tritonclient.http")
    client = http.InferenceServerClient(case["url"].removeprefix("http://"))
    version = case["version"]

    def infer(name: str, binary: bool, **options: Any) -> Any:
        tensor = http.InferInput(name, _shape(name), DATATYPES[name])
        tensor.set_data_from_numpy(_array(case, name, binary), binary_data=binary)
        return client.infer("cat", [tensor], request_id="7", **options)

    def classify(name: str, binary: bool, **options: Any) -> None:
        result = infer(name, binary, **options)
        _compare(case, result.as_numpy("cat_probability"), result.as_numpy("label"))
        assert result.get_response()["id"] == "7"
        assert result.get_response()["model_version"] == version

    def outputs(*kinds: bool) -> list[Any]:
        names = ("cat_probability", "label")
        return [
            http.InferRequestedOutput(n, binary_data=k) for n, k in zip(names, kinds, strict=True)
        ]

    def health() -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("cat")
        assert client.is_model_ready("cat", version)
        assert not client.is_model_ready("dog")
        assert not client.is_model_ready("cat", "0")

    def metadata() -> None:
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        for which in ("", version):
            model = client.get_model_metadata("cat", which)
            assert model["versions"] == [version]
            assert [each["name"] for each in model["inputs"]] == list(DATATYPES)
            assert [each["name"] for each in model["outputs"]] == ["cat_probability", "label"]

    def one_output() -> None:
        label = http.InferRequestedOutput("label")
        result = infer("pixels", True, outputs=[label])
        assert result.as_numpy("cat_probability") is None
        assert result.as_numpy("label").shape == (2, 1)

    def error(status: str, words: str, send: Callable[[], Any]) -> None:
        utils = importlib.import_module("tritonclient.utils")
        refused = _refused(utils.InferenceServerException, send)
        assert refused.status() == status, refused.status()
        assert words in refused.message(), refused.message()

    def damaged() -> Any:
        tensor = http.InferInput("image", [1], "BYTES")
        picture = base64.b64decode(case["image"][0])[:5000]
        numpy = importlib.import_module("numpy")
        tensor.set_data_from_numpy(numpy.array([picture], object))
        return client.infer("cat", [tensor])

    yield "server and model live and ready", health
    yield "server and model metadata", metadata
    for name in DATATYPES:
        for binary in (True, False):
            kind = f"{name} in {'binary' if binary else 'JSON'}"
            yield f"{kind}, all outputs", partial(classify, name, binary)
            yield (
                f"{kind}, outputs in JSON, this version",
                partial(
                    classify, name, binary, outputs=outputs(False, False), model_version=version
                ),
            )
            yield (
                f"{kind}, one output of two in binary",
                partial(classify, name, binary, outputs=outputs(True, False)),
            )
            for way in ("gzip", "deflate"):
                yield (
                    f"{kind}, {way} both ways",
                    partial(
                        classify,
                        name,
                        binary,
                        request_compression_algorithm=way,
                        response_compression_algorithm=way,
                    ),
                )
    yield "one output of two", one_output
    yield "a damaged picture's error", lambda: error("422", "image[0]", damaged)
    yield (
        "an unknown version's error",
        lambda: error("404", "no version '0'", lambda: infer("pixels", True, model_version="0")),
    )
    yield (
        "an unknown output's error",
        lambda: error(
            "400",
            "no output 'dog'",
            lambda: infer("pixels", True, outputs=[http.InferRequestedOutput("dog")]),
        ),
    )


def _kserve(case: dict[str, Any]) -> Iterator[Check]:
    kserve = importlib.import_module("kserve")
    types = importlib.import_module("kserve.protocol.infer_type")
    client_module = importlib.import_module("kserve.inference_client")
    httpx = importlib.import_module("httpx")
    url, versioned = case["url"], f"cat/versions/{case['version']}"

    def ask(use: Callable[[Any], Any]) -> Any:
        async def asked() -> Any:
            config = client_module.RESTConfig(protocol="v2", timeout=30)
            async with kserve.InferenceRESTClient(config) as client:
                return await use(client)

        return asyncio.run(asked())

    def request(name: str, binary: bool, binary_output: bool) -> Any:
        tensor = kserve.InferInput(name, _shape(name), DATATYPES[name], parameters={})
        tensor.set_data_from_numpy(_array(case, name, binary), binary_data=binary)
        return kserve.InferRequest(
            model_name="cat",
            request_id="7",
            infer_inputs=[tensor],
            request_outputs=[
                types.RequestedOutput(output, parameters={"binary_data": binary_output})
                for output in ("cat_probability", "label")
            ],
        )

    def classify(name: str, binary: bool, binary_output: bool, model: str) -> None:
        data = request(name, binary, binary_output)
        answer = ask(lambda client: client.infer(url, data, model_name=model))
        _compare(
            case, *(answer.get_output_by_name(n).as_numpy() for n in ("cat_probability", "label"))
        )
        assert answer.id == "7"

    def health() -> None:
        assert ask(lambda client: client.is_server_live(url)) is True
        assert ask(lambda client: client.is_server_ready(url)) is True
        assert ask(lambda client: client.is_model_ready(url, "cat")) is True
        assert ask(lambda client: client.is_model_ready(url, versioned)) is True
        assert ask(lambda client: client.is_model_ready(url, "dog")) is False

    def error() -> None:
        data = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["QUJD"]}]}
        refused = _refused(
            httpx.HTTPStatusError,
            lambda: ask(lambda client: client.infer(url, data, model_name="cat")),
        )
        assert "image[0]" in str(refused), str(refused)
        assert refused.response.status_code == 415

    yield "server and model live and ready", health
    for name in DATATYPES:
        for binary in (True, False):
            for binary_output in (True, False):
                for model in ("cat", versioned):
                    kinds = [("JSON", "binary")[kind] for kind in (binary, binary_output)]
                    yield (
                        f"{name} in {kinds[0]}, outputs in {kinds[1]},"
                        f" {'any' if model == 'cat' else 'this'} version",
                        partial(classify, name, binary, binary_output, model),
                    )
    yield "a bad picture's error", error


def _mlserver(case: dict[str, Any]) -> Iterator[Check]:
    # What the program `mlserver` calls; starting it for each check would take minutes
    program = importlib.import_module("mlserver.cli.main").root

    def infer(tensors: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            sent, got = Path(folder, "sent"), Path(folder, "got")
            lines = [json.dumps({"id": str(n), "inputs": [t]}) for n, t in enumerate(tensors)]
            sent.write_text("\n".join(lines), encoding="utf-8")
            command = ["infer", "-u", case["url"].removeprefix("http://"), "-m", "cat"]
            command += ["-i", str(sent), "-o", str(got), "-r", "1", *options]
            program.main(command, standalone_mode=False)
            answers = [json.loads(line) for line in got.read_text(encoding="utf-8").splitlines()]
        return sorted(answers, key=lambda answer: int(answer["parameters"]["batch_index"]))

    def tensor(name: str, data: Any) -> dict[str, Any]:
        shape = [1, *_shape(name)[1:]]
        return {"name": name, "shape": shape, "datatype": DATATYPES[name], "data": data}

    def classify(name: str, flat: bool, *options: str) -> None:
        numpy = importlib.import_module("numpy")
        tensors = [
            tensor(name, numpy.array(element).reshape(-1).tolist() if flat else [element])
            for element in case[name]
        ]
        answers = infer(tensors, *options)
        outputs = [{o["name"]: o["data"] for o in answer["outputs"]} for answer in answers]
        _compare(
            case,
            [output["cat_probability"] for output in outputs],
            [output["label"] for output in outputs],
        )

    def error(*options: str) -> None:
        (answer,) = infer([tensor("image", ["QUJD"])], *options)
        assert "image[0]" in answer["error"]["msg"], answer

    for name in DATATYPES:
        for options in ([], ["-b"], ["-s", "2"], ["-s", "2", "-b"]):
            for flat in (True, False):
                yield (
                    f"{' '.join(['infer', *options])}: {name}, {'flat' if flat else 'nested'}",
                    partial(classify, name, flat, *options),
                )
    yield "infer: a bad picture's error", error
    yield "infer -b: a bad picture's error", lambda: error("-b")


CHECKS = {"tritonclient": _tritonclient, "kserve": _kserve, "mlserver": _mlserver}


if __name__ == "__main__":
    main()
