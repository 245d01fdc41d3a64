"""`from course_lib import run` gives the function, whatever was imported before."""
import subprocess
import sys

import pytest

ORDERS = ["from course_lib import run, about", "from course_lib import check, about, run", "import course_lib.run\nfrom course_lib import about, run",
          "from course_lib.check import Judge\nfrom course_lib.about import about\nfrom course_lib import about, run"]


@pytest.mark.parametrize("imports", ORDERS)
def test_functions_that_carry_their_modules_name(imports):
    code = f"{imports}\nassert run.__module__ == 'course_lib.run' and callable(run) and callable(about), (run, about)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
