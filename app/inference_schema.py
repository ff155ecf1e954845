"""The inputs and outputs of /v2, and what the OpenAPI document says of its messages.

They are no pydantic models: clients leave out the content type, and binary tensors follow the JSON.
"""

from dataclasses import dataclass
from typing import Any

from app import errors

HEADER_LENGTH = "Inference-Header-Content-Length"
MODEL = "cat"  # the name of the model, whatever its artifact is called
MAX_PICTURES = 32
LONGEST_ID = 1000  # characters


@dataclass(frozen=True)
class Spec:
    """A tensor as the model's metadata declare it; -1 in the shape is the number of pictures."""

    name: str
    datatype: str
    shape: tuple[int, ...]


OUTPUTS = (Spec("cat_probability", "FP32", (-1, 1)), Spec("label", "BYTES", (-1, 1)))


def inputs(side: int) -> tuple[Spec, ...]:
    """The inputs of a model that sees side × side pixels; a request has exactly one of them."""
    return (
        Spec("image", "BYTES", (-1,)),
        Spec("pixels", "UINT8", (-1, side, side, 3)),
        Spec("vector", "FP32", (-1, side * side * 3)),
    )


BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
NESTED = "In row-major order, flat or nested as the shape says."
DATA: dict[str, Any] = {"type": "array", "description": NESTED, "items": {}}


def _input(name: str, datatype: str, rank: int, data: dict[str, Any]) -> dict[str, Any]:
    """The schema of one input; rank: how many numbers its shape has, at least."""
    whole = {"type": "integer", "minimum": 1}
    most = rank + (datatype == "BYTES")  # pictures may be a column, too
    return {
        "type": "object",
        "title": name,
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": name},
            "datatype": {"const": datatype},
            "shape": {
                "type": "array",
                "description": f"First the number of pictures, at most {MAX_PICTURES}.",
                "items": whole,
                "minItems": rank,
                "maxItems": most,
            },
            "parameters": {"type": ["object", "null"]},
            "data": {"type": "array", "minItems": 1, **data},
        },
    }


BASE64 = {"type": "string", "format": "byte", "contentEncoding": "base64"}
REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"], "maxLength": LONGEST_ID},
        "parameters": {
            "type": ["object", "null"],
            "properties": {"binary_data_output": {"type": "boolean", "default": False}},
        },
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "oneOf": [
                    _input("image", "BYTES", 1, {"description": "Picture files.", "items": BASE64}),
                    _input("pixels", "UINT8", 4, {"description": NESTED}),
                    _input("vector", "FP32", 2, {"description": NESTED}),
                ]
            },
        },
        "outputs": {
            "type": ["array", "null"],
            "description": "Those wanted; both where there are none.",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"enum": ["cat_probability", "label"]},
                    "parameters": {
                        "type": ["object", "null"],
                        "properties": {"binary_data": {"type": "boolean"}},
                    },
                },
            },
        },
    },
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string", "description": "The request's."},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"enum": ["cat_probability", "label"]},
                    "datatype": {"enum": ["FP32", "BYTES"]},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "parameters": {"type": "object"},
                    "data": DATA,
                },
            },
        },
    },
}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": REQUEST,
                "example": {
                    "inputs": [
                        {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["/9j/4AA…"]}
                    ]
                },
            },
            "application/octet-stream": {"schema": BINARY},
        },
    },
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "description": "The bytes of JSON before binary tensors; 0: the body is one picture.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
}
VERSION: dict[str, Any] = {
    "parameters": [
        {
            "name": "version",
            "in": "path",
            "required": True,
            "description": "The version that is served, as the model's metadata have it.",
            "schema": {"type": "string"},
        }
    ]
}

VERSIONED_INFER = {**INFER, "parameters": INFER["parameters"] + VERSION["parameters"]}


def error_responses(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for problems as they are sent here."""
    documented = errors.responses(*slugs)
    for entry in documented.values():
        media = entry["content"].pop(errors.MEDIA_TYPE)
        for example in media["examples"].values():
            example["value"] = {"error": example["value"]["detail"], **example["value"]}
        named = {"required": ["error"], "properties": {"error": {"type": "string"}}}
        media["schema"] = {"allOf": [media["schema"], named]}
        entry["content"]["application/json"] = media
    return documented


def inference_responses() -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for what `infer` answers."""
    header = {"description": "The bytes of JSON before the tensors.", "schema": {"type": "integer"}}
    good = {
        "description": "The pictures were classified. Where an output was asked for in binary, its"
        " bytes follow the JSON.",
        "headers": {HEADER_LENGTH: header},
        "content": {
            "application/json": {"schema": ANSWER},
            "application/octet-stream": {"schema": BINARY},
        },
    }
    return {
        200: good,
        **error_responses(
            "invalid-inference",
            "unauthorized",
            "not-found",
            "slow-upload",
            "too-large",
            "not-a-picture",
            "format-not-allowed",
            "encoded-body",
            "empty",
            "damaged",
            "too-many-pixels",
            "takes-too-long",
            "crashes-decoder",
            "busy",
            "deadline-passed",
            "stopping",
        ),
    }
