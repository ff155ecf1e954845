"""`python -m app`: the service on the address and with the workers that the settings name."""

import argparse
import os
import signal
import sys

import uvicorn

from app.settings import BadSettings, Settings, describe

# Container engines kill ten seconds after they ask to stop; what is under way gets most of that.
STOP_SECONDS = 7


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m app",
        description="Serve the cat classifier over HTTP.",
        epilog=f"Settings, from the environment:\n\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        settings = Settings.from_env(os.environ)
    except BadSettings as error:
        sys.exit(str(error))
    if settings.workers > 1:
        _check_weights(settings)
    # uvicorn ends with the signal that stopped it; being stopped is no failure of this command.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        "app.main:app",
        host=settings.bind_host,
        port=settings.bind_port,
        workers=settings.workers,
        server_header=False,
        proxy_headers=False,  # anybody could write them
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _check_weights(settings: Settings) -> None:
    """Say once what would keep every worker from starting: uvicorn's supervisor ends with status
    0 when they fail, after each has complained."""
    from app.main import load_classifier
    from model.classifier import BadArtifact

    try:
        load_classifier(settings)
    except BadArtifact as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
