#!/bin/sh
# Start a dead node of the local cluster, or stop and start a live one: `restart.sh n1|leader`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster restart "$@"
