#!/bin/sh
# Show what each node of the local cluster is doing: `status.sh [--json] [--dir .kvorum]`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster status "$@"
