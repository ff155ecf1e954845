"""The service: speaks HTTP, and asks the model room. Imports `model`, never `training`."""

__version__ = "1.0.0"  # also in pyproject.toml, the Dockerfile and the changelog

# What the front and its workers know of /v2, the Open Inference Protocol.
MODEL = "cat"  # the name of the model, whatever its artifact is called
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_PICTURES = 32
