"""`python -m genward.cli`."""

from genward.cli import main

main()
