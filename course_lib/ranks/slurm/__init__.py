"""Ranks on the nodes of a Slurm cluster, behind the same `run`.

group.py    the kernel's side: what a Group of ranks does otherwise there
courier.py  a process beside the kernel: hands the job to Slurm, carries messages, watches the kernel
submit.py   what Slurm is told, by submitit
agent.py    a process on each node: forks its ranks, passes on what they say, ends them
mail.py     messages through files in a folder that kernel and nodes share
ask.py      what Slurm says of a job, and its words in ours
meeting.py  how ranks of several nodes find each other

    kernel <-sockets-> courier <-files in a shared folder-> agent (one a node) <-sockets-> ranks

The kernel and the ranks are the same as on one machine: each holds one end of a socket, and courier and
agents are the cable between them. Files carry it because a shared folder is what every cluster has: no port
of the notebook's machine must be open, and who may write is decided by the folder's mode (0700). Nothing else
of the library imports this package; it is loaded by a job that names `hosts.Slurm`.
"""
