"""`python -m slicewise`, which torchrun needs."""

from slicewise.cli import main

main()
