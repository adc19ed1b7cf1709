#!/bin/sh
# Stop the local cluster; --wipe removes its data, too: `down.sh [--wipe]`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster down "$@"
