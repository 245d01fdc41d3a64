"""Write the table of symptoms: python -m course_lib.clinic > docs/symptoms.md"""

from course_lib.clinic.families import page

print(page(), end="")
