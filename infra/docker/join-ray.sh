#!/bin/sh
# Join the Ray cluster as a node that offers no cores, then run a Freshet process on it: a driver needs a node beside it,
# and what it starts belongs on the cluster's workers.
set -eu
ray start --address "$RAY_HEAD" --num-cpus 0 --disable-usage-stats
exec freshet "$@"
