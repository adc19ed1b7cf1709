#!/bin/sh
# Stop the local cluster: `down.sh [--wipe] [--dir .kvorum]`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster down "$@"
