"""`python -m quintain`, the same as the `quintain` command."""

from quintain.cli import main

main()
