"""`python -m unmask` is the command line."""

from unmask.cli.main import main

main()
