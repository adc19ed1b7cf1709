#!/bin/sh
# Add nodes, one at a time, each a voter before the next: `scale-up.sh 5 [-n NAMESPACE] [kubectl's other options]`
# A new pod joins the cluster by itself. Afterwards write the number into the overlay: the next apply sets it.
set -eu
. "$(dirname "$0")/common.sh"
is_number "${1:-}" || fail "how many nodes? Usage: scale-up.sh 5 [-n NAMESPACE]"
target=$1
shift
kubectl_options=$*

look
[ "$target" -ge "$current" ] || fail "there are $current nodes: scale-down.sh makes it $target"
[ "$current" -ge 1 ] || fail "there is no node that others could join"
warn_of_even "$target"
ordinal=0
while [ "$ordinal" -lt "$target" ]; do
    if [ "$ordinal" -ge "$current" ]; then
        # What was removed from the cluster does not come back: its node would stop as soon as it starts.
        if k get persistentvolumeclaim "data-kvorum-$ordinal" >/dev/null 2>&1; then
            fail "the volume of an earlier kvorum-$ordinal is left, and no new node takes it:" \
                "kubectl delete persistentvolumeclaim data-kvorum-$ordinal"
        fi
        k scale statefulset kvorum --current-replicas="$ordinal" --replicas=$((ordinal + 1))
    fi
    wait_for_voter "$ordinal"
    ordinal=$((ordinal + 1))
done
remind "$target"
