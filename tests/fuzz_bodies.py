"""What schemathesis, which tests/test_fuzz_http.py starts, is told beside the OpenAPI document."""

import schemathesis
from hypothesis import strategies as st

from tests.pictures import kinds
from tests.test_fuzz_decoding import damaged

# Out of bytes at random it would never make a picture, and never see what answers one.
pictures = st.sampled_from(sorted(kinds().values())) | damaged() | st.binary()
for media_type in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(media_type, pictures)
