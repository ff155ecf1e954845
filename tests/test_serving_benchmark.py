"""The comparison of servers: its load, its processes, its pictures and its table."""

import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import __main__ as benchmark
from benchmarks.serving import servers
from benchmarks.serving.peers import recipe
from benchmarks.serving.pictures import SIZES, jpeg
from tests.data_folder import REPOSITORY

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


@only_linux
@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk: `apt-get install wrk`")
def test_a_service_is_measured_beside_another_checkout_of_it(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for room in ("app", "model"):
        (other / room).symlink_to(REPOSITORY / room)
    git = ["git", "-C", str(other), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "Other"], check=True)
    commit = servers.service(other).name
    options = ["--rounds", "1", "--seconds", "1", "--size", "small", "--beside", str(other)]
    options += ["--weights", "model/logistic.safetensors"]
    answer = python("-m", "benchmarks.serving", "measure", *options)
    assert answer.returncode == 0, answer.stderr
    assert f"|  | this service | {commit} |" in answer.stdout
    rows = [line.strip("| ").split(" | ") for line in answer.stdout.splitlines() if "small" in line]
    for place in (1, 2):  # this service, the other
        figures = {what: float(row[place - 1].split()[0].replace(",", "")) for what, *row in rows}
        assert figures["small requests/s"] > 5
        assert 0.1 < figures["small CPU ms"] < 100
        assert figures["small p50 ms"] <= figures["small p99 ms"]
        assert 20 < figures["small MB"] < 1000
        assert figures["small errors"] == 0


ORPHANS = """
import os, subprocess, sys, time
from pathlib import Path
from benchmarks.serving import processes
processes.adopt_orphans()
# A child that ignores SIGTERM, in a session of its own, whose parent has ended
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
middle = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
    " start_new_session=True)"
)
outer = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(60)"
command = [sys.executable, "-c", outer, sys.executable, "-c", middle, stubborn]
with processes.running(command, {}, Path.cwd(), Path(os.devnull)) as process:
    while sum("-c" in Path(f"/proc/{pid}/cmdline").read_text() for pid in processes.tree()) != 2:
        time.sleep(0.01)
    assert processes.pss_mb(processes.tree()) > 2
    assert processes.cpu_seconds(processes.tree()) > 0
assert processes.tree() == [], processes.tree()
"""


@only_linux
def test_no_process_of_a_server_outlives_it() -> None:
    answer = python("-c", ORPHANS)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(("number", "kb"), [(0, 17), (1, 166)])
def test_pictures_have_the_bytes_of_photos(number: int, kb: int) -> None:
    data = jpeg(SIZES[number])
    assert len(data) / 1e3 == pytest.approx(kb, rel=0.1)
    with Image.open(BytesIO(data)) as image:
        assert image.size == (SIZES[number].width, SIZES[number].height)


def test_the_recipe_is_logistic_regression_of_the_resized_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.full((12288, 1), 1 / 12288, np.float32)
    np.savez(tmp_path / "weights.npz", weights=weights, bias=np.array([-0.5]))
    monkeypatch.setenv("RECIPE_MODEL", str(tmp_path / "weights.npz"))
    white = BytesIO()
    Image.new("L", (100, 50), 255).save(white, "PNG")
    found = recipe.predict(recipe.load(), white.getvalue())
    assert found == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)


def test_each_peer_is_sent_the_picture_and_has_a_lock() -> None:
    for server in servers.PEER_SERVERS:
        _, body = server.body(b"\xff\xd8picture")
        assert b"\xff\xd8picture" in body
        assert (servers.PEERS / f"{server.name}.txt").is_file()


def test_the_table_has_medians_and_the_medians_of_ratios() -> None:
    rounds = [
        {"this service": {"requests/s": ours}, "fastapi": {"requests/s": peers}}
        for ours, peers in ((300.0, 100.0), (10.0, 1.0), (200.0, 100.0))
    ]
    rounds.append({"this service": {"requests/s": 200.0}})  # the peer failed
    lines = benchmark.table(rounds).splitlines()
    assert lines[0] == "|  | this service | fastapi |"
    assert lines[2] == "| requests/s | 200 | 100 (3.00×) |"
