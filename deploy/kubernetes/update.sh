#!/bin/sh
# Apply an overlay to a cluster that runs: `update.sh OVERLAY [-n NAMESPACE] [kubectl's other options]`
# Kubernetes replaces one pod after the other, from the last to the first, and looks at no other before it takes the first one away.
# So all voters have to answer, or all but the last pod's, which goes first: an update that has broken it can be taken back.
set -eu
. "$(dirname "$0")/common.sh"
[ $# -ge 1 ] && [ -d "$1" ] || fail "no such overlay: ${1:-}. Usage: update.sh OVERLAY [-n NAMESPACE]"
overlay=$1
shift
kubectl_options=$*

look
wanted=$(k apply --kustomize "$overlay" --dry-run=server \
    --output 'jsonpath={.items[?(@.kind=="StatefulSet")].spec.replicas}') || fail "nothing is changed"
[ "$wanted" = "$current" ] ||
    fail "there are $current nodes, and $overlay has $wanted: scale-up.sh and scale-down.sh change that, or write replicas: $current there"
down=$(silent) || fail "no leader answers: an update would not help, and nothing is changed"
[ -z "$down" ] || [ "$down" = "$(address_of $((current - 1)))" ] ||
    fail "nothing is changed: an update takes kvorum-$((current - 1)) away, and others do not answer: $down"
k apply --kustomize "$overlay"
k rollout status statefulset kvorum --timeout="${TIMEOUT_SECONDS}s"
wait_for_all
