"""The pictures of an archive on a cluster: a Ray Data job around `model.archive`."""
