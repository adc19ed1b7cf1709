"""`python -m kvorum.cli`: how a local cluster starts its nodes with its own interpreter."""

from kvorum.cli import main

main()
