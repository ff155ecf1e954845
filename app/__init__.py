"""The service. It speaks HTTP in the front; its workers look into what arrives."""

# What both sides know of /v2, the Open Inference Protocol.
MODEL = "cat"  # the name of the model, whatever its artifact is called
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_PICTURES = 32
LONGEST_ID = 1000  # characters
