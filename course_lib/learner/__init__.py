"""What belongs to one learner: a desk with copies of the chapters, and what they guessed and solved.

desk.py         copies without outputs; what a learner has touched is never overwritten
kernel.py       the kernel under the course's name
predictions.py  `predict`: a guess before the run, answered by the measurement
record.py       guesses and verdicts, lines of JSON in the desk
lines.py        how such lines are added to a file, and read where some are damaged
class_folder.py  what a desk passes on to a teacher, once its learner has joined a class
book.py         the chapters as data: what each asks for, and how long it takes
standing.py     `where_i_stand`: chapter by chapter, what is predicted and solved
__main__.py     `python -m course_lib.learner`: lay the desk, open it, begin anew, where I stand, join a
                class; `lab_settings/` has what JupyterLab is told
"""
