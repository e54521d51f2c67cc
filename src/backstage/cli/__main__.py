"""`python -m backstage.cli`."""

from backstage.cli.app import main

main(prog_name="backstage")
