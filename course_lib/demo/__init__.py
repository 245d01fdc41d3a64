"""The main experiment without a browser: `make demo`, or `python -m course_lib.demo`. Train the digits with
every strategy and compare them.

strategies.py  the ways to train, as data: how each prepares model and optimizer, and what theory expects
__main__.py    trains with each, prints the table, saves the pictures
"""
