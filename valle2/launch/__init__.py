"""Who starts the processes of a training: torchrun on this machine, Slurm, or Kubernetes. Read `job` first."""
