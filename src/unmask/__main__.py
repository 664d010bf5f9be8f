"""`python -m unmask` is the command line, and so is `unmask`."""

import sys


def main() -> None:
    """Runs the command line. Ctrl-C ends it without a traceback, while it is being loaded too."""
    try:
        from unmask.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
