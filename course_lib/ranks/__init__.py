"""Real processes: start them warm, watch them, stop them, explain what went wrong.

one_job.py           one job from the call to its Job
follow.py            its ranks, to their end or to why they must be stopped
output.py            what they print
silent.py            mistakes that raise no error
gathering.py         from the records of single ranks to those of their job
attempts.py          whether a job that has failed starts again, and on how many ranks
options.py           how many ranks, which backend, how long, how often: checked once
launch.py            the kernel's side of a job: ask for ranks, listen to them, end them
fork_server.py       the kernel's side of the fork server
server.py            the fork server and the supervisor of one job (processes beside the kernel)
children.py          processes that are forked and ended, seen from their parent
slurm/               the same on the nodes of a cluster
worker.py            what one rank does, from fork to exit
folder.py            a job's private directory: made and locked, removed, swept up
network.py           several hosts on one machine: namespaces, and a link of a limited rate
holder.py            programs beside the kernel that hold such hosts open
pages.py             the server's memory in large pages, so that a fork costs less
sending.py           what travels: the call on its way out, results on their way home
unsendable.py        the name of the variable that cannot travel
threads.py           names of a rank's threads, for other processes
settings.py          torch's global settings, which do not travel
imports.py           a rank imports what the notebook has imported, from the same file
main_of_children.py  the notebook's names for processes that a rank spawns
devices.py           which backend and device each rank gets
budget.py            whether this machine can hold so many ranks
where.py             where a rank is: answered by the rank itself
diagnose.py          who waits for whom, and which calls don't match
places.py            a place in the learner's own code, in words
errors.py            RankError: a failed job, told rank by rank
outside.py           a call of torch.distributed in the notebook itself, explained
progress.py          a sign of life while a job runs
lines.py             how far each rank is: a line for each, or a few words
panel.py             the same in a notebook, with a button that cancels the job
answers.py           what a page asks that is opened again while a job runs, answered meanwhile
"""
