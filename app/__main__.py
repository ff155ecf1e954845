"""`python -m app`: the service on the address that the settings name."""

import signal

# Until the server handles Ctrl-C, while the imports below take their time, it ends this quietly.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import sys

from app.capacity import plan, workers_for
from app.settings import BadSettings, Settings, describe, in_force
from model.workers import CannotStart


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serve the cat classifier over HTTP. SIGTERM or Ctrl-C finishes open requests\n"
        "and stops the service; a second signal stops it at once. SIGHUP reloads the weights.",
        epilog=f"Settings, from the environment:\n\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--settings", action="store_true", help="print the current settings and exit"
    )
    options = parser.parse_args()
    try:
        settings = Settings.from_env(os.environ)
    except BadSettings as error:
        sys.exit(str(error))
    if options.settings:
        for each in settings.warnings:
            print(each, file=sys.stderr)
        sys.exit(_show("\n".join(in_force(settings, os.environ))))
    workers = workers_for(settings, plan(settings.workers))
    try:
        workers.launch()  # so that the weights are loaded while this process imports its libraries
        from app.main import app
        from app.server import run

        app.state.workers = workers
        sys.exit(run(app))
    except CannotStart as error:
        sys.exit(str(error))


def _show(text: str) -> str | None:
    """Print it; where that fails, why."""
    try:
        print(text, flush=True)
        return None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left of it
        if isinstance(error, BrokenPipeError):  # the reader has seen enough, as `head` does
            sys.exit(1)
        return f"Standard output cannot be written: {error.strerror}."


if __name__ == "__main__":
    main()
