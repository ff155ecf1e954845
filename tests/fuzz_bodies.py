"""What schemathesis, which tests/test_fuzz_http.py starts, is told beside the OpenAPI document."""

import base64
import os
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.pictures import kinds
from tests.test_fuzz_decoding import damaged

# Out of bytes at random it would never make a picture, and never see what answers one.
pictures = st.sampled_from(sorted(kinds().values())) | damaged() | st.binary()
for media_type in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(media_type, pictures)
schemathesis.openapi.format("byte", pictures.map(lambda data: base64.b64encode(data).decode()))


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, document: dict[str, Any]) -> None:
    """Lead it past what would end nearly every request to /v2 at its first check."""
    paths = document["paths"]
    # A length of the JSON at random fits no body; with a version, requests still have the header.
    del paths["/v2/models/cat/infer"]["post"]["parameters"]
    for path, operations in paths.items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if "{version}" in path and parameter["name"] == "version":
                    parameter["schema"] = {"enum": [os.environ["SERVED_VERSION"]]}
