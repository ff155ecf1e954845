"""POST /explain and GET /model."""

import base64
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.about import about
from app.routes import ExplanationAnswer, ModelAnswer
from model.classifier import Classifier
from tests.conftest import Service
from tests.data_folder import REPOSITORY
from tests.pictures import SIX, decode


def decoded(png: str) -> Image.Image:
    return decode(base64.b64decode(png, validate=True))


@pytest.mark.parametrize("weights", ["client", "default_client"])
def test_the_map_and_the_bias_sum_to_the_logit_of_predicts_probability(
    request: pytest.FixtureRequest, cat_picture: bytes, weights: str
) -> None:
    client: TestClient = request.getfixturevalue(weights)
    answer = client.post("/explain", content=cat_picture)
    explained = ExplanationAnswer.model_validate_json(answer.content, strict=True)
    predicted = client.post("/predict", content=cat_picture).json()
    assert len(explained.views) == predicted.pop("views")
    assert {name: answer.json()[name] for name in predicted} == predicted
    assert explained.sum + explained.bias == pytest.approx(explained.logit, abs=1e-4)
    assert np.sum(explained.heat) == pytest.approx(explained.sum, abs=5e-3)  # rounded to 6 digits
    probability = 1 / (1 + math.exp(-explained.logit))
    assert probability == pytest.approx(explained.cat_probability, abs=1e-5)
    assert np.shape(explained.heat) == (64, 64)


def test_the_pictures_are_what_the_model_saw_and_the_map_comes_as_a_png_too(
    client: TestClient, classifier: Classifier, cat_picture: bytes
) -> None:
    answer = client.post("/explain", content=cat_picture)
    explained = answer.json()
    seen = classifier.predict(cat_picture).picture
    assert (np.asarray(decoded(explained["picture_png"])) == seen.pixels).all()
    overlay = decoded(explained["overlay_png"])
    assert overlay.width == overlay.height > 64
    assert explained["original"] == {"width": 451, "height": 300, "format": "JPEG"}
    assert answer.headers["vary"] == "Accept"
    browser = "text/html,image/avif,*/*;q=0.8"
    for accept, kind in (
        ("image/PNG;q=0.9", "image/png"),
        ("image/avif,image/*,*/*;q=0.8", "image/png"),
        ("image/png, application/json", "application/json"),
        *((other, "application/json") for other in (browser, "*/*", ";;,,=", "")),
    ):
        chosen = client.post("/explain", content=cat_picture, headers={"Accept": accept})
        assert chosen.headers["content-type"] == kind, accept
        if kind == "image/png":
            assert chosen.content == base64.b64decode(explained["overlay_png"])


def test_each_view_is_shown_with_its_own_probability(
    unsure_service: Service, unsure_path: Path, cat_picture: bytes
) -> None:
    with unsure_service() as client:
        answer = client.post("/explain", content=cat_picture)
        model = client.get("/model").json()
    explained = ExplanationAnswer.model_validate_json(answer.content, strict=True)
    direct = Classifier.load(unsure_path).predict(cat_picture)
    boxes = [view.box for view in explained.views]
    assert boxes == [[*box] for box in SIX.boxes] == model["views"]["boxes"]
    probabilities = np.array([view.cat_probability for view in explained.views])
    logits = np.log(probabilities / (1 - probabilities))
    np.testing.assert_allclose(logits, direct.view_logits, atol=1e-9)
    assert explained.logit == pytest.approx(logits.mean(), abs=1e-4)
    assert explained.sum + explained.bias == pytest.approx(explained.logit, abs=1e-4)
    for view, pixels in zip(explained.views, direct.view_pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(decoded(view.picture_png)), pixels)
    assert answer.json()["picture_png"] == explained.views[0].picture_png
    assert decoded(answer.json()["overlay_png"]).size == (256, 256)


@pytest.mark.parametrize("weights", ["client", "default_client"])
def test_the_model_says_what_it_is(request: pytest.FixtureRequest, weights: str) -> None:
    client: TestClient = request.getfixturevalue(weights)
    answer = client.get("/model")
    model = ModelAnswer.model_validate_json(answer.content, strict=True)
    assert {"name": model.name, "version": model.version} == client.get("/health").json()["model"]
    assert model.classes == ["cat", "non-cat"]
    assert model.bands[0]["from"] == 0
    assert model.limits
    if weights == "client":  # logistic regression that nobody has measured
        assert model.network["parameters"] == 12289
        assert model.weights_png
        assert decoded(model.weights_png).size == (64, 64)
        assert model.metrics == {}
        assert model.learning_curve is None
    else:
        assert 0.9 < model.metrics["test"]["pets"]["roc_auc"] < 1
        assert model.learning_curve
        assert len(model.learning_curve["series"]["balanced accuracy"]) > 2
        share = f"{model.metrics['test']['rooms']['called_first']:.0%}".replace("%", " %")
        assert f"rooms: {share} of the pictures without a cat are called cat." in model.limits


def test_the_courses_weights_have_a_curve_of_costs() -> None:
    model = about(Classifier.load(REPOSITORY / "model" / "logistic.safetensors"))
    assert model["learning_curve"]["x"] == "iteration"
    assert len(model["learning_curve"]["series"]["cost"]) > 2


def test_a_threshold_from_the_settings_is_told_apart_from_the_measured_one(
    service: Service, classifier: Classifier
) -> None:
    with service(threshold=0.8) as client:
        given = client.get("/model").json()
    assert (given["threshold"], given["threshold_rule"]) == (0.8, "set by CAT_THRESHOLD")
    counts = {"pictures": 9, "false_negative": 1, "true_positive": 3, "threshold": 0.5}
    measured = replace(classifier, metadata={"metrics": {"test": counts}})
    limits = about(replace(measured, threshold=0.8))["limits"]
    assert "with a threshold of 50.0 %: 25 % of the cat pictures are missed." in " ".join(limits)
