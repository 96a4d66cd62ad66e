#!/usr/bin/env bash
# Runs a job of Drivetrain: ./spark-submit.sh JOB [options]; --help tells more. The first call prepares everything.
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/env.sh"

if [[ $# == 0 || $1 == -h || $1 == --help ]]; then  # help is there at once, also before anything is prepared
  [[ -x $venv_python ]] && python=$venv_python || python=$(find_python)
  PYTHONPATH=$root/lib exec "$python" -m drivetrain.launch --help
fi
prepare run
use_environment
exec "$venv_python" -m drivetrain.launch "$@"
