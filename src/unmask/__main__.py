"""`python -m unmask` is the command line, and so is `unmask`."""

import signal
import sys
from types import FrameType


def leave(number: int, frame: FrameType | None) -> None:
    """Ends the process in order: what is half-written goes."""
    sys.exit(128 + number)


def main() -> None:
    """Runs the command line. Ctrl-C and SIGTERM end it without a traceback, while it is being loaded too."""
    signal.signal(signal.SIGTERM, leave)
    try:
        from unmask.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
