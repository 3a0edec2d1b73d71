#!/bin/bash
# One attempt of a job: check its nodes, train, and queue the job again where there is more to do.
#   job.sh SUBMISSION PYTHON    within an allocation; SUBMISSION is a folder written by slurm/submit.py
set -u
(($# == 2)) || { echo "usage: job.sh SUBMISSION PYTHON, within an allocation; slurm/submit.py sees to both" >&2; exit 2; }
submission=$1 python=$2
max_fruitless=3        # attempts in a row without a new checkpoint, after which the job ends
max_restarts=3         # of the ranks within an attempt
health_seconds=300

task=${SLURM_ARRAY_TASK_ID:-1}
# One task of an array has the number of the array for its own: by that, scontrol would act on all tasks.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$task}
job=${job:-$SLURM_JOB_ID}
run=$(sed -n "${task}p" "$submission/runs")
config=$submission/$task.yaml
attempts=$submission/attempts-$task

say() { echo "slurm: $*"; }

newest_checkpoint() {
  local found
  found=$(ls "$run/checkpoints" 2>/dev/null | grep -x 'step-[0-9]*' | tail -n 1)
  echo "${found:-none}"
}

nodes() { scontrol show hostnames "$SLURM_JOB_NODELIST"; }

# The nodes, one a line, that did not answer with their name: also one that hangs, or where nothing can be started.
sick_nodes() {
  timeout "$health_seconds" srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --kill-on-bad-exit=0 "$python" "$submission/slurm/health.py" --run "$run" --clock "$(date +%s)" |
    sort | comm -13 - <(nodes | sort)
}

# requeue [NODE,...]: end this attempt and queue the job again, never again on these nodes.
requeue() {
  local fruitless excluded
  fruitless=$(grep -cxF "$(newest_checkpoint)" "$attempts")
  if ((fruitless >= max_fruitless)); then
    say "gave up: $fruitless attempts in a row have added no checkpoint"
    return
  fi
  # Requeueing ends what runs in this job by SIGTERM: also the scontrol behind it.
  trap '' TERM
  scontrol requeue "$job" || return
  if (($#)); then
    excluded=$(scontrol show job "$job" | sed -n 's/.*ExcNodeList=\([^( ]\+\).*/\1,/p')
    scontrol update JobId="$job" ExcNodeList="$excluded$1"
  fi
  say "queued again"
}

cancelled=
trap 'cancelled=yes' TERM

begin=$(newest_checkpoint)
echo "$begin" >>"$attempts"
attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
echo "=== attempt $attempt of job $job, $(date '+%F %T'), on $(nodes | paste -sd ' '), newest checkpoint: $begin"

sick=$(sick_nodes | paste -sd ,)
if [[ -n $cancelled ]]; then
  say "cancelled"
  exit 1
elif [[ -n $sick ]]; then
  say "failed the health check: $sick"
  requeue "$sick"
  exit 1
fi

MASTER_ADDR=$(scontrol show node "$(nodes | sed -n 1p)" --oneliner | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2)
export MASTER_ADDR MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
# Since SLURM 22.05 srun does not take --cpus-per-task from sbatch. A first rank that has saved must not end the others.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 bash "$submission/slurm/rank.sh" \
  "$python" "$submission/pretrain/train.py" --config "$config" --max-restarts "$max_restarts"
code=$?

case $code in
  0) say "done" ;;
  2 | 3) say "ended with code $code: queueing it again would not help" ;;
  *)
    say "training ended with code $code"
    [[ -n $cancelled ]] || requeue
    ;;
esac
exit "$code"
