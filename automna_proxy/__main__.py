"""`python -m automna_proxy`: the command without its script."""

from automna_proxy.cli import main

main()
