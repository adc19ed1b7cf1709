#!/bin/sh
# Remove a node from the local cluster for ever: `remove.sh n1 [--keep-data]`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster remove "$@"
