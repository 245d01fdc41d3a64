"""Wrong programs that people really publish: run, looked at, explained, and mended.

__main__.py  writes docs/symptoms.md
case.py      what is known of one program, and how it is looked at
families.py  the thirty of them, from symptom to cause
waits.py     programs that wait for ever, or stop
differs.py   programs that end, and are wrong
counted.py   programs whose values may be right
small.py     what these programs share: a model, batches, a loop
patients.py  five programs with a fault, for the exercises
scenes.py    what a patient gets, and what it should learn
visits.py    how a patient is seen
tools.py     the last calls of a rank, by torch's Flight Recorder, and its stack, by py-spy

    from course_lib.clinic.families import CASES
    case = CASES[20]
    print(case.symptom, case.look_at(case.wrong[0]), case.look_at(case.mended), sep="\\n")
"""
