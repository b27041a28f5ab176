"""``python -m genie_cli``."""

from genie_cli.app import main

main()
