"""`python -m mmbench`, for where the `mmbench` command is not on the path."""

from mmbench.cli.main import main

main()
