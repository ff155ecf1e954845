"""The service: speaks HTTP, and asks the model room. Imports `model`, never `training`."""

__version__ = "1.0.0"  # also in pyproject.toml, the Dockerfile and the changelog
