"""Compare the service with other ways to serve the same picture classifier over HTTP."""
