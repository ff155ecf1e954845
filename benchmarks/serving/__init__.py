"""The service beside other ways to serve the same picture classifier over HTTP."""
