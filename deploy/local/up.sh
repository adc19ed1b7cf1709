#!/bin/sh
# Start a local cluster, or what is dead of it: `up.sh [--nodes 3|5] [--dir .kvorum] ...`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster up "$@"
