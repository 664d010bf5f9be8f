"""The one exception users see: a single line that names the thing and the remedy."""


class UnmaskError(Exception):
    """Bad input: a file, recipe, checkpoint, prompt or option that cannot be used.

    The command line prints the message alone and exits with status 2; a server answers 4xx.
    """
