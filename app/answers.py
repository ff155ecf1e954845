"""The shapes of the answers, for the OpenAPI document. Workers fill them in (`app.work`)."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.inference_schema import LONGEST_ID, MAX_PICTURES

ALL = "all"  # the source of metrics that are not given by source
PNG = "A PNG, in base64."


class ModelName(BaseModel):
    name: str
    version: str = Field(description="12 hex digits that change with whatever decides the answers.")


class _Answer(BaseModel):
    """What /predict and /explain both say."""

    cat_probability: float = Field(
        ge=0, le=1, description="The probability of the model's first class, for ours: cat."
    )
    label: str = Field(description="The first class from the threshold on, else the second.")
    words: str = Field(description="The answer for people, with how sure it is.")
    threshold: float = Field(ge=0, le=1)
    model: ModelName
    warnings: list[str] = Field(
        description="What was done to the picture that its owner may not expect."
    )


class PredictionAnswer(_Answer):
    views: int = Field(
        ge=1,
        description="How many views of the picture were looked at: the whole, and other parts of it"
        " where that left the model unsure.",
    )


class HealthAnswer(BaseModel):
    status: str
    model: ModelName


class LiveAnswer(BaseModel):
    status: str


class MethodAnswer(BaseModel):
    """How the heat map was made."""

    name: str
    description: str


class OriginalAnswer(BaseModel):
    """The picture as it arrived, upright."""

    width: int
    height: int
    format: str


class ViewAnswer(BaseModel):
    """A part of the picture that the model looked at."""

    box: list[float] = Field(
        description="Left, top, right and bottom, as fractions of the upright picture's sides."
    )
    cat_probability: float = Field(ge=0, le=1, description="What this view alone would have given.")
    picture_png: str = Field(description=f"What the model saw of it. {PNG}")


class ExplanationAnswer(_Answer):
    logit: float = Field(
        description="z; the probability is σ(z) = 1 / (1 + e⁻ᶻ). It is `sum` + `bias`."
    )
    bias: float = Field(description="The part of the logit that has no place in the picture.")
    sum: float = Field(description="The sum of the heat map.")
    heat: list[list[float]] = Field(
        description="The heat map: rows of numbers, one for each pixel of `picture_png`, in"
        " logit units. Above 0 a pixel speaks for the first class, below 0 against it."
    )
    method: MethodAnswer
    views: list[ViewAnswer] = Field(
        description="What was looked at, the whole first. The logit is the mean over the views."
    )
    original: OriginalAnswer
    picture_png: str = Field(description=f"What the model saw of the whole. {PNG}")
    overlay_png: str = Field(
        description="The heat map over `picture_png`, in grey and enlarged: orange speaks"
        f" for the first class, blue against it. {PNG}"
    )
    full_colour: float = Field(
        description="Logit units a pixel, either way, from which the overlay has its full colour."
    )


class NetworkAnswer(BaseModel):
    summary: str = Field(description="The layers, counted.")
    parameters: int
    layers: list[dict[str, Any]]


class CurveAnswer(BaseModel):
    x: str = Field(description="What the lines go along: epoch or iteration.")
    series: dict[str, list[tuple[float, float]]]


class ModelAnswer(BaseModel):
    name: str
    version: str
    classes: list[str] = Field(description="The probability is the first one's.")
    threshold: float
    threshold_rule: str | None = Field(description="How the threshold was chosen.")
    bands: list[dict[str, Any]] = Field(description="From which probability on which words.")
    preprocessing: dict[str, Any]
    views: dict[str, Any] = Field(
        description="`boxes`, what of a picture is looked at: left, top, right and bottom, as"
        " fractions of its sides; the others beside the whole where its logit lies between the two"
        " of `unsure`."
    )
    network: NetworkAnswer
    explanation: MethodAnswer
    data: dict[str, Any] = Field(description="What it was trained on and measured with.")
    training: dict[str, Any] = Field(description="The settings of its training.")
    metrics: dict[str, dict[str, dict[str, Any]]] = Field(
        description=f"Split, source, metric; the source is '{ALL}' where sources were not told"
        " apart."
    )
    calibration: dict[str, Any]
    limits: list[str] = Field(description="What it cannot do, as far as the artifact knows.")
    learning_curve: CurveAnswer | None
    weights_png: str | None = Field(
        description=f"Logistic regression's weights as a picture: grey is 0. {PNG}"
    )


class ServerAnswer(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ServerLiveAnswer(BaseModel):
    live: bool


class ServerReadyAnswer(BaseModel):
    live: bool
    ready: bool


class ModelReadyAnswer(BaseModel):
    name: str
    ready: bool


class TensorAnswer(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 for any number of pictures.")
    parameters: dict[str, str]


class ModelMetadataAnswer(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorAnswer] = Field(description="A request has exactly one of them.")
    outputs: list[TensorAnswer]
    parameters: dict[str, str | int | float]


class InferInput(BaseModel):
    name: Literal["image", "pixels", "vector"]
    datatype: Literal["BYTES", "UINT8", "FP32"]
    shape: list[int] = Field(
        min_length=1, max_length=4, description=f"First the pictures, at most {MAX_PICTURES}."
    )
    parameters: dict[str, Any] | None = None
    data: list[Any] = Field(
        description="In row-major order, flat or nested as the shape says; pictures in base64."
    )


class InferWanted(BaseModel):
    name: Literal["cat_probability", "label"]
    parameters: dict[str, Any] | None = Field(None, description="binary_data: true or false.")


class InferRequest(BaseModel):
    id: str | None = Field(None, max_length=LONGEST_ID)
    parameters: dict[str, Any] | None = Field(
        None, description="binary_data_output: true or false."
    )
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferWanted] | None = Field(None, description="Both, where there are none.")


class InferOutput(BaseModel):
    name: Literal["cat_probability", "label"]
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = Field(None, description="Absent where it follows in binary.")


class InferAnswer(BaseModel):
    model_name: str
    model_version: str
    id: str | None = Field(None, description="The request's.")
    outputs: list[InferOutput]
