"""`python -m app`: the service on the address and with the workers that the settings name."""

import argparse
import os
import sys

from app.settings import BadSettings, Settings, describe
from app.supervisor import CannotStart, run


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m app",
        description="Serve the cat classifier over HTTP. SIGTERM or Ctrl-C stops the service once"
        " the requests under way are answered, a second time at once; SIGHUP makes it read its"
        " weights again.",
        epilog=f"Settings, from the environment:\n\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        sys.exit(run(Settings.from_env(os.environ)))
    except (BadSettings, CannotStart) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
