"""`python -m app.healthcheck`: exit status 0 if the service on this machine is ready, else 1.

For container health checks, where no other HTTP client is at hand. Imports little: it runs often.
"""

import http.client
import os
import sys

from app.settings import BadSettings, Settings

TIMEOUT_SECONDS = 3
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 – looked up, not bound

if __name__ == "__main__":
    try:
        settings = Settings.from_env(os.environ)
    except BadSettings as error:
        sys.exit(str(error))
    host, port = ANY_ADDRESS.get(settings.bind_host, settings.bind_host), settings.bind_port
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{host}:{port} does not answer: {error}")
    if status != http.client.OK:
        sys.exit(f"{host}:{port} answers {status}")
