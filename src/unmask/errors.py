"""The one exception users see: a single line that names the thing and the remedy."""

MOST = 440  # characters of a line; a longer one loses its middle
TAIL = 160  # of them at its end, where the remedy stands


def one_line(text: str) -> str:
    """A message that may hold others' words, as one printable line of bounded length."""
    if len(text) > MOST:
        text = f"{text[: MOST - TAIL - 5]} ... {text[-TAIL:]}"
    return "".join(c if c.isprintable() else " " for c in text)


class UnmaskError(Exception):
    """Bad input: a file, recipe, checkpoint, prompt or option that cannot be used.

    The command line prints the message alone and exits with status 2; a server answers 4xx.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
