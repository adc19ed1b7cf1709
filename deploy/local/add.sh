#!/bin/sh
# Add a node to the local cluster, and return once it is a voter: `add.sh [--json]`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster add "$@"
