"""What a teacher needs: desks for a class, and what the class guessed and solved, from the folder that its
learners have joined (`course_lib.learner.class_folder`).

reading.py   `read_class`: a folder of records, without what is damaged or foreign
tables.py    who is where, guesses, tries, what is missed first
topics.py    `talk_about`: what to speak of next
figures.py   the same as figures
desks.py     `lay_class`: a desk for each name of a list
__main__.py  `python -m course_lib.classroom`: lay the desks, marks as CSV
"""
