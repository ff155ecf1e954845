"""The recipe in BentoML: bentoml serve benchmarks.serving.peers.bentoml_service:Cat"""

import os

import bentoml
from PIL.Image import Image

from benchmarks.serving.peers import recipe


@bentoml.service(
    workers=int(os.environ["WORKERS"]),
    threads=2,
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Cat:
    def __init__(self) -> None:
        self.model = recipe.load()

    @bentoml.api
    def predict(self, image: Image, /) -> dict[str, float]:
        return {"cat_probability": recipe.predict_image(self.model, image)}
