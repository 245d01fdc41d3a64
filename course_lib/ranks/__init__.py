"""Real processes: start them warm, watch them, stop them, explain what went wrong.

server.py   the fork server and the supervisor of one job (processes beside the kernel)
worker.py   what one rank does, from fork to exit
sending.py  what travels: the call on its way out, results on their way home
unsendable.py  the name of the variable that cannot travel
one_job.py  one job from the call to its Job
launch.py   the kernel's side: ask for ranks, listen to them, end them
devices.py  which backend and device each rank gets
errors.py   RankError: a failed job, told rank by rank
progress.py a sign of life while a job runs
"""
