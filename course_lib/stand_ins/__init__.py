"""Modelled, and it says so: compute that sleeps instead of computing, links that make messages wait.

sleeping.py        a network whose layers take a set time and no core
pipelines.py       schedules of a pipeline that run, with stages that sleep
links.py           all_reduces between hosts that wait as long as a slower link would need
links_of_ranks.py  a link for each rank: messages that wait as long as a slower link would need
links_of_hosts.py  a link between hosts, which each step pays for at its end: where there are no linked hosts
messages.py        messages that set out later, and nobody waits for that
"""
