"""What belongs to one learner: a desk with copies of the chapters.

desk.py      copies without outputs; what a learner has touched is never overwritten
kernel.py    the kernel under the course's name
__main__.py  `python -m course_lib.learner`: lay the desk, open it, begin a chapter or an exercise anew
"""
