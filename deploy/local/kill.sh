#!/bin/sh
# End a node of the local cluster with SIGKILL, as a crash would: `kill.sh n1|leader`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster kill "$@"
