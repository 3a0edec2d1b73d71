#!/bin/bash
# One rank: what SLURM tells a task, in torch's words. MASTER_ADDR and MASTER_PORT are the job's.
#   srun slurm/rank.sh python pretrain/train.py --config FILE
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
exec "$@"  # signals reach the rank itself
