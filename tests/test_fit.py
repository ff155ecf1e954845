"""`python -m training fit`, from folders of pictures to a file that the service loads."""

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from threadpoolctl import threadpool_limits

from app.main import create_app
from app.settings import Settings
from model.classifier import Classifier, InputStatistics
from model.network import Array, parameters
from model.preprocessing import Views
from tests.data_folder import REPOSITORY
from tests.pictures import encode, write_files, zipped
from training.__main__ import main
from training.fit import read_settings
from training.loop import SCRATCH

SMALL = ("--set", "stages=[4]", "batch=8", "max_lr=0.05", "--threads", "2")
RUN = (*SMALL, "--epochs", "1", "--output")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Look for golden pictures among few, on one thread: tests share the processor with others."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1, user_api="blas"):
        patch.setattr("training.golden.CANDIDATES", 2)
        yield


def blot(rng: np.random.Generator, colour: tuple[int, int, int], side: int) -> bytes:
    """A PNG: noise with a square of one colour somewhere in it."""
    pixels = rng.integers(60, 120, (side, side, 3), np.uint8)
    top, left = rng.integers(4, side - 30, 2)
    pixels[top : top + 26, left : left + 26] = colour
    return encode(Image.fromarray(pixels))


WARM, COLD, GREEN = (230, 120, 60), (60, 120, 230), (60, 230, 90)


def make_data(
    folder: Path,
    each: int,
    *,
    names: tuple[str, str] = ("cat", "non-cat"),
    colours: tuple[tuple[int, int, int], tuple[int, int, int]] = (WARM, COLD),
    seed: int = 0,
) -> Path:
    """Folders of two classes, each picture with a square of its class's colour."""
    rng = np.random.default_rng(seed)
    files = {
        f"{name}/pets-{seed}-{i:03}.png": blot(rng, colour, 70)
        for name, colour in zip(names, colours, strict=True)
        for i in range(each)
    }
    return write_files(folder, files)


def fit(*arguments: object) -> int:
    return main(["fit", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that know warm from cold, as a run from scratch wrote them."""
    folder = tmp_path_factory.mktemp("trained")
    output = folder / "warm.safetensors"
    data = make_data(folder / "data", 60)
    gentle = ("--set", "augmentation_strength=0.3", "--epochs", 6)
    assert fit(data, *SMALL, *gentle, "--output", output) == 0
    return output


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("few"), 16)


def tensors(path: Path) -> Array:
    values = parameters(Classifier.load(path).layers).values()
    return np.concatenate([value.ravel() for value in values])


def test_the_result_drops_into_the_service_by_one_setting(trained: Path) -> None:
    settings = Settings.from_env({"CAT_WEIGHTS": str(trained)})
    rng = np.random.default_rng(9)
    with TestClient(create_app(settings)) as client:
        for colour, label in ((WARM, "cat"), (COLD, "non-cat")):
            answer = client.post("/predict", content=blot(rng, colour, 90)).json()
            assert answer["label"] == label


def test_the_weights_file_and_the_report_say_how_it_came_about(trained: Path) -> None:
    assert Classifier.load(trained).views == Views(mirror=True)
    facts = Classifier.load(trained).metadata
    assert facts["training"]["epochs"] == 6
    assert facts["training"]["stages"] == [4]
    assert facts["data"]["training"]["classes"] == {"cat": 48, "non-cat": 48}
    assert facts["data"]["validation"]["sources"] == {"pets": {"cat": 12, "non-cat": 12}}
    assert [row["epoch"] for row in facts["learning_curve"]] == [1, 2, 3, 4, 5, 6]
    assert facts["metrics"]["validation"]["all"]["balanced_accuracy"] == 1
    usual = InputStatistics.from_metadata(facts)
    assert usual
    assert usual.distance(np.zeros((64, 64, 3), np.uint8)) > 1
    assert facts["calibration"]["scale"] == 1  # 24 pictures are too few
    assert "too few" in facts["threshold_rule"]
    assert str(trained.parent) not in json.dumps(facts)  # names of files, not where they lay
    values = tensors(trained)
    np.testing.assert_array_equal(values, values.astype(np.float16))
    folder = trained.with_name("warm-report")
    assert {file.name for file in folder.iterdir()} == {"report.html", "metrics.json", "log.jsonl"}
    assert "warm: cat or non-cat?" in (folder / "report.html").read_text()
    assert not trained.with_name("warm-training").exists()  # what an unfinished run leaves


def test_a_zip_names_of_one_s_own_other_validation_and_views_will_do(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 20, names=("tom", "other tom"))
    files = sorted(data.rglob("*.png"))
    toms = {str(file.relative_to(data)): file.read_bytes() for file in files}
    write_files(tmp_path, {"toms.zip": zipped(toms)})
    apart = make_data(tmp_path / "apart", 6, names=("tom", "other tom"), seed=1)
    output = tmp_path / "tom.safetensors"
    names = ("--classes", "tom", "other tom", "--name", "tom spotter", "--validation", apart)
    assert fit(tmp_path / "toms.zip", *names, *RUN, output, "--set", "views=six") == 0
    classifier = Classifier.load(output)
    assert (classifier.name, classifier.class_names) == ("tom spotter", ("tom", "other tom"))
    assert (len(classifier.views.boxes), classifier.views.mirror) == (6, True)
    training, validation = (classifier.metadata["data"][key] for key in ("training", "validation"))
    assert (training["pictures"], training["files"]) == (40, ["toms.zip"])
    assert (validation["pictures"], validation["files"]) == (12, ["apart"])


def test_a_teacher_softens_the_labels(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 20)
    names = sorted(str(file.relative_to(data)) for file in data.rglob("*.png"))
    table = tmp_path / "teacher.npz"
    logits = np.array([3.0 if name.startswith("cat") else -3.0 for name in names])
    groups = np.tile([0.2, 0.7, 0.1], (len(names), 1))
    np.savez(table, name=names, logit=logits, group_probability=groups)
    output = tmp_path / "taught.safetensors"
    assert fit(data, "--teacher", table, *RUN, output, "--set", "teacher_share=0.3") == 0
    facts = Classifier.load(output).metadata["training"]
    assert (facts["teacher"], facts["teacher_share"]) == ("teacher.npz", 0.3)


def test_fine_tuning_learns_a_camera_of_one_s_own_keeps_the_views_and_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(tmp_path / "mine", 50, colours=(GREEN, COLD), seed=3)
    start, output = tmp_path / "start.safetensors", tmp_path / "mine.safetensors"
    views = Views(((0.0, 0.0, 1.0, 1.0), (0.1, 0.1, 0.9, 0.9)), (-50.0, 50.0), mirror=True)
    before = replace(Classifier.load(trained), views=views).save(start)
    fast = ("--epochs", 12, "--set", "max_lr=0.02", "--threads", 2)
    assert fit(data, "--from", start, "--output", output, *fast) == 0
    assert "clearly better than warm" in capsys.readouterr().out
    after = Classifier.load(output)
    assert after.views == views
    assert after.metadata["started_from"] == {"name": "warm", "version": before.version}
    assert "Is it better than warm?" in (tmp_path / "mine-report" / "report.html").read_text()
    rng = np.random.default_rng(4)
    warm, green = blot(rng, WARM, 80), blot(rng, GREEN, 80)
    assert after.predict(green).cat_probability > before.predict(green).cat_probability
    assert after.predict(warm).label == "cat"  # not forgotten


def test_fine_tuning_that_does_not_help_says_so_and_keeps_what_was_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What it is sure of already, and labels that are wrong as often as right for the rest.
    data = make_data(tmp_path / "same", 20, seed=5)
    make_data(data, 20, colours=(COLD, WARM), seed=6)
    known = make_data(tmp_path / "known", 6, seed=7)
    output = tmp_path / "same.safetensors"
    spoil = ("--epochs", 2, "--validation", known)
    assert fit(data, "--from", trained, "--output", output, *spoil, "--threads", 2) == 0
    assert "The file contains the weights of warm" in capsys.readouterr().out
    np.testing.assert_array_equal(tensors(output), tensors(trained))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[object, ...], Path]:
    """The arguments of a run, and the weights that it writes when nothing comes between."""
    folder = tmp_path_factory.mktemp("unbroken")
    arguments = (make_data(folder / "data", 120), *SMALL, "--epochs", 3)
    assert fit(*arguments, "--output", folder / "model.safetensors") == 0
    return arguments, folder / "model.safetensors"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on_to_the_same_bytes_as_an_unbroken_one(
    number: signal.Signals,
    status: int,
    unbroken: tuple[tuple[object, ...], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, expected = unbroken
    output = tmp_path / "stopped" / "model.safetensors"
    command = [sys.executable, "-m", "training", "fit", *map(str, (*arguments, "--output", output))]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line.startswith("epoch 1/3") for line in process.stdout)
        process.send_signal(number)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert output.exists() == ("Stopped after epoch 1 of 3. To continue, add --resume." in rest)
    assert output.exists() == (number == signal.SIGINT)
    capsys.readouterr()
    assert fit(*arguments, "--output", output) == 1
    assert "contains an unfinished run" in capsys.readouterr().err
    assert fit(*arguments[:-1], 4, "--output", output, "--resume") == 1
    assert "epochs was 3 and is now 4" in capsys.readouterr().err

    unfinished = output.with_name("model-training")
    (unfinished / ".checkpoint.safetensors.0a.tmp").write_bytes(b"")  # as a crash leaves one
    (unfinished / "my checkpoint.safetensors").write_bytes(b"")  # of someone with such a folder
    assert fit(*arguments, "--output", output, "--resume") == 0
    assert [path.name for path in unfinished.iterdir()] == ["my checkpoint.safetensors"]
    assert "epoch 1/3" not in capsys.readouterr().out
    assert output.read_bytes() == expected.read_bytes()
    log = (tmp_path / "stopped" / "model-report" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resume",), "There is no unfinished run"),
        (("--from", "{weights}", "--set", "stages=[4]"), "stages can be set only from scratch"),
        (("--from", "{weights}", "--set", "views=six"), "views can be set only from scratch"),
        (("--set", "start_share=0.5"), "start_share can be set only with --from"),
        (("--from", "{data}/cat/pets-0-000.png"), "cannot be used"),
        (("--from", "{weights}", "--classes", "non-cat", "cat"), "Use --classes cat"),
        (("--from", "{weights}", "--output", "{weights}"), "is also the --from file"),
        (("--set", "stages=[4, 4, 4, 4, 4, 4, 4]"), "at most 6"),
        (("--set", "stages=[]"), "at least 1"),
        (("--set", "shares.web=2"), "there is no source web. The sources are others"),
        (("--set", "seed=0", "views=Some"), "views is 'Some'"),
        (("--set", "epochs=0"), "epochs is 0, but must be greater than or equal to 1"),
        (("--set", "epochs=5", "epochs=many"), "epochs is 'many', but must be a valid integer."),
        (("--set", "epoch=1"), "There is no setting 'epoch'. Did you mean epochs?"),
        (("--set", "peak_rate=0.1"), "There is no setting 'peak_rate'"),
        (("--set", "shares.web=-1"), "shares.web is -1"),
        (("--config", "{data}/cat/pets-0-000.png"), "pets-0-000.png is not TOML"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_training(
    arguments: Sequence[str],
    message: str,
    trained: Path,
    few: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [each.format(weights=trained, data=few) for each in arguments]
    assert fit(few, "--output", tmp_path / "x.safetensors", *given) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_too_few_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(make_data(tmp_path / "data", 14), *RUN, tmp_path / "x.safetensors") == 1
    words = "(10 to train on and 5 to hold back): 14 of 'cat' and 14 of 'non-cat'"
    assert words in capsys.readouterr().err


def test_the_recipe_names_every_setting() -> None:
    recipe = REPOSITORY / "training" / "default.toml"
    every = asdict(SCRATCH).keys() - {"start_share"}  # which is for fine-tuning
    assert tomllib.loads(recipe.read_text()).keys() == every
    assert read_settings(recipe, {}).views == "six"


def test_options_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("epochs = 7\nbatch = 16\nwarm_up = 0.3\n[shares]\nweb = 2\n")
    settings = read_settings(config, {"epochs": 9, "max_lr": None, "shares": {"tiny": 3}})
    assert (settings.epochs, settings.batch, settings.warm_up) == (9, 16, 0.3)
    assert settings.shares == {"web": 2, "tiny": 3}
    assert settings.max_lr == SCRATCH.max_lr
