"""What a worker does with a body: plain functions from bytes to the values of an answer.

This is the program of the service's workers (`model.worker.serve`). Every body that arrives is
parsed here, and nowhere else.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from app import MODEL, tensors
from app.about import about, png_text
from app.errors import Problem, too_large
from app.forms import picture_of
from app.tensors import Inference
from model.classifier import Classifier, Prediction
from model.explanation import explain_views, overlay
from model.network import sigmoid
from model.preprocessing import (
    WHOLE,
    InvalidImage,
    Limits,
    PictureReader,
    Reason,
    accepted_formats,
    png,
    preload,
    stored_jpeg,
    to_vector,
)
from model.worker import CannotLoad, Handle, Job, Reply, serve

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
# Between measurements of how unlike training's pictures are: under load a sample says enough.
MEASURING_SECONDS = 0.02

T = TypeVar("T")


def load(weights: str) -> tuple[dict[str, Any], Handle]:
    """Load an artifact, and try all that workers do. Raises CannotLoad."""
    try:
        classifier = Classifier.load(weights)
    except MemoryError:
        raise CannotLoad(f"There is not enough memory to load {weights}.") from None
    preload()
    work = Work(classifier)
    head = {"threshold": None, "views": "all", "max_pixels": 10**8}
    head |= {"header_length": "0", "max_body_bytes": 2**30}
    for kind in ("predict", *work.kinds):
        work([Job({**head, "kind": kind}, classifier.golden[0].picture)])
    return work.description(), work


class Work:
    """Handles jobs: `head["kind"]` says what is wanted."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.kinds = {"explain": self.explain, "infer": self.infer}
        self.kinds |= {"about": self.about, "keep": self.keep}
        self._with_threshold = lru_cache(4)(self._make_with_threshold)
        self._measured = 0.0

    def __call__(self, jobs: Sequence[Job]) -> list[Reply]:
        kind = jobs[0].head["kind"]
        if kind == "predict":
            return self.predict(jobs)
        return [_or_refusal(self.kinds[kind], jobs[0])]  # which comes alone

    def description(self) -> dict[str, Any]:
        """What the front has to know of the model."""
        classifier = self.classifier
        return {
            "name": classifier.name,
            "version": classifier.version,
            "class_names": list(classifier.class_names),
            "threshold": classifier.threshold,
            "formats": accepted_formats(),
            "inputs": [asdict(each) for each in tensors.inputs(classifier.preprocessing.side)],
            "outputs": [asdict(each) for each in tensors.OUTPUTS],
        }

    def _make_with_threshold(self, threshold: float | None) -> Classifier:
        if threshold is None:
            return self.classifier
        metadata = {**self.classifier.metadata, "threshold_rule": "set by CAT_THRESHOLD"}
        return replace(self.classifier, threshold=threshold, metadata=metadata)

    def _classifier(self, job: Job) -> Classifier:
        return self._with_threshold(job.head["threshold"])

    def _read(self, job: Job) -> PictureReader:
        return self._classifier(job).read(_picture(job), _limits(job))

    # --- /predict -------------------------------------------------------------------------------

    def predict(self, jobs: Sequence[Job]) -> list[Reply]:
        """The answers for pictures, each the body or a form's file. Their wholes go through the
        network together."""
        read = [_or_refusal(self._read, job) for job in jobs]
        readers = [each for each in read if isinstance(each, PictureReader)]
        classifier, views = self._classifier(jobs[0]), jobs[0].head["views"]
        answers = iter(classifier.answers(readers, views) if readers else ())
        return [
            each if isinstance(each, Reply) else self._answer(classifier, next(answers))
            for each in read
        ]

    def _answer(self, classifier: Classifier, prediction: Prediction) -> Reply:
        return _json(_prediction(classifier, prediction), **self._facts(prediction))

    def _facts(self, prediction: Prediction) -> dict[str, Any]:
        """What the front logs and counts."""
        return {
            "answers": [[prediction.label, prediction.cat_probability]],
            "distances": self._distances([prediction.picture.pixels]),
        }

    def _distances(self, pictures: Sequence[NDArray[np.uint8]]) -> list[float]:
        """How unlike training's these pictures are, where the artifact can tell."""
        statistics, now = self.classifier.input_statistics, time.monotonic()
        if statistics is None or now < self._measured + MEASURING_SECONDS:
            return []
        self._measured = now
        return [statistics.distance(pixels) for pixels in pictures]

    # --- /explain -------------------------------------------------------------------------------

    def explain(self, job: Job) -> Reply:
        """The answer with its heat map: JSON, or a PNG."""
        classifier = self._classifier(job)
        (prediction,) = classifier.answers([self._read(job)], job.head["views"])
        facts = self._facts(prediction)
        pixels, boxes = prediction.view_pixels, classifier.views.boxes[: prediction.views]
        explanation = explain_views(classifier.layers, pixels, classifier.views)
        over, full_colour = overlay(pixels[0], explanation.heat)
        if job.head.get("format") == "png":
            return Reply({"type": "image/png", **facts}, png(over))
        heat = explanation.heat.astype(float)
        picture, method = prediction.picture, explanation.method
        content = {
            **_prediction(classifier, prediction),
            "logit": explanation.logit,
            "bias": explanation.bias,
            "sum": float(heat.sum()),
            "heat": heat.round(6).tolist(),
            "method": {"name": method.name, "description": method.description},
            "views": [
                {"box": box, "cat_probability": probability, "picture_png": png_text(view)}
                for box, probability, view in zip(
                    boxes, sigmoid(prediction.view_logits).tolist(), pixels, strict=True
                )
            ],
            "original": {name: getattr(picture, name) for name in ("width", "height", "format")},
            "picture_png": png_text(pixels[0]),
            "overlay_png": png_text(over),
            "full_colour": full_colour,
        }
        return _json(content, **facts)

    # --- /feedback ------------------------------------------------------------------------------

    def keep(self, job: Job) -> Reply:
        """The picture as it is kept for training."""
        return Reply({"type": "image/jpeg"}, stored_jpeg(_picture(job), _limits(job)))

    # --- /v2 ------------------------------------------------------------------------------------

    def infer(self, job: Job) -> Reply:
        """The answer to a request of the Open Inference Protocol."""
        classifier, head = self._classifier(job), job.head
        body = tensors.inflate(job.body, head.get("encoding", ""), head["max_body_bytes"])
        side = classifier.preprocessing.side
        inference = tensors.read(body, head.get("header_length"), side)
        probabilities, distances = self._probabilities(classifier, inference, job)
        first, second = classifier.class_names
        labels = [first if p >= classifier.threshold else second for p in probabilities]
        results: dict[str, list[Any]] = {
            "cat_probability": probabilities,
            "label": [label.encode() for label in labels],
        }
        message = {"model_name": MODEL, "model_version": classifier.version}
        if inference.id is not None:
            message["id"] = inference.id
        content, headers = tensors.write(
            message, [(spec, results[spec.name], binary) for spec, binary in inference.outputs]
        )
        answers = list(zip(labels, probabilities, strict=True))
        facts = {"answers": answers, "distances": distances}
        return Reply({"headers": headers, **facts}, content)

    def _probabilities(
        self, classifier: Classifier, inference: Inference, job: Job
    ) -> tuple[list[float], list[float]]:
        """Probabilities, and distances of as many pictures as were measured."""
        data = inference.data
        if isinstance(data, list):
            predictions = [_predict_one(classifier, *each, job) for each in enumerate(data)]
            distances = self._distances([each.picture.pixels for each in predictions])
            return [each.cat_probability for each in predictions], distances
        distances = []
        if inference.input.datatype == "UINT8":
            distances = self._distances(list(data))
            data = to_vector(data)
        _check_range(data)
        return classifier.probabilities(data).tolist(), distances

    # --- /model ---------------------------------------------------------------------------------

    def about(self, job: Job) -> Reply:
        """What is known of the model."""
        classifier = self._classifier(job)
        if job.head["views"] == "one":
            classifier = replace(classifier, views=replace(classifier.views, boxes=(WHOLE,)))
        return _json(about(classifier))


def _picture(job: Job) -> bytes:
    picture = picture_of(job.body, job.head.get("content_type", ""))
    _check_size(picture, "The picture", job)
    return picture


def _limits(job: Job) -> Limits:
    return Limits(max_pixels=job.head["max_pixels"])


def _check_size(picture: bytes, what: str, job: Job) -> None:
    most = job.head.get("max_bytes", len(picture))
    if len(picture) > most:
        raise too_large(f"{what} has {len(picture):,} bytes", most)


def _predict_one(classifier: Classifier, index: int, picture: bytes, job: Job) -> Prediction:
    _check_size(picture, f"image[{index}]", job)
    try:
        return classifier.predict(picture, _limits(job), job.head["views"])
    except InvalidImage as error:
        raise InvalidImage(error.reason, f"image[{index}]: {error}") from error


def _check_range(rows: NDArray[Any]) -> None:
    wrong = ~((rows >= 0) & (rows <= 1))  # also true for NaN
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise Problem(
            "invalid-inference",
            f"vector[{row}][{column}] is {rows[row, column]:g}, but must be from 0 to 1 (pixels "
            "divided by 255). To send pixels from 0 to 255, use the input `pixels`.",
        )


def _prediction(classifier: Classifier, prediction: Prediction) -> dict[str, Any]:
    return {
        "cat_probability": prediction.cat_probability,
        "label": prediction.label,
        "words": prediction.words,
        "threshold": classifier.threshold,
        "model": {"name": classifier.name, "version": classifier.version},
        "views": prediction.views,
        "warnings": list(prediction.warnings),
    }


def _json(content: dict[str, Any], **facts: Any) -> Reply:
    return Reply({"type": "application/json", **facts}, _encode(content).encode())


def _or_refusal(work: Callable[[Job], T], job: Job) -> T | Reply:
    """What the work gives; what it refuses, as a reply that makes the front refuse it."""
    try:
        return work(job)
    except Problem as error:
        problem = error
    except InvalidImage as error:
        members, detail, kind = {}, str(error), job.head.get("content_type", "")
        if error.reason is Reason.TOO_MANY_PIXELS:
            members = {"limit_pixels": job.head["max_pixels"], "limit_side": Limits().max_side}
        elif "multipart form" in detail and kind and "form-data" not in kind:
            detail = (
                f"The body is a multipart form, but Content-Type is {kind[:40]!r}. Let your HTTP "
                "client set Content-Type: multipart/form-data with its boundary."
            )
        elif "like text" in detail and "form-urlencoded" in kind:
            detail = (
                "The body is a URL-encoded form. Send the file's bytes (`curl --data-binary "
                "@file`), or a multipart form (requests: files=, not data=)."
            )
        problem = Problem(error.reason, detail, **members)
    head = {"problem": problem.type.slug, "detail": problem.detail}
    return Reply({**head, "headers": problem.headers, "members": problem.members})


if __name__ == "__main__":
    serve(load)
