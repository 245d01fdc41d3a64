"""The main experiment without a browser: `make demo`, or `python -m course_lib.demo`. Train the digits with
every strategy and compare them.
"""
