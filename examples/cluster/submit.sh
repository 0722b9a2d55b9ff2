#!/bin/sh
# A run as a job of a Ray cluster, from wherever the head's port 8265 is reached: sh submit.sh RUN.TOML RUN_DIR
# Both paths are those of the cluster, on storage that all machines share. Ray keeps the launch: killed, or on a machine that is
# lost, it is started again up to five times and goes on with the run. `ray job stop ID` stops the run in order; submitted
# again with the same RUN_DIR it goes on.
set -eu
address="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
exec ray job submit --address "$address" -- \
    miles-async launch "$1" --set placement.kind=ray --set placement.launch_restarts=5 --run-dir "$2"
