"""`python -m backstage`: the command line, where the script `backstage` is not on the path."""

from backstage.cli import main

main(prog_name="backstage")
