"""What all tests share."""

import functools
import itertools
import os
import random
import signal
import tempfile
from collections import Counter
from types import SimpleNamespace

import failures
import nbval.kernel
import pytest
from jupyter_client import KernelManager
from nbval.plugin import IPyNbCell
from twins import ends, needed_cells

# Started in the background of a shell (`make test &`), a process ignores SIGINT, and so would the kernels
# that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("verdicts")

# Started from a cell, the tests would take its notebook for theirs (course_lib.frontend).
os.environ.pop("JPY_SESSION_NAME", None)

# Kernels talk through sockets in the file system. A TCP port that is free when a kernel is started may be a
# rank's when the kernel wants to have it.
_folder, _number = tempfile.TemporaryDirectory(prefix="kernels-"), itertools.count()


def kernel_manager(**options) -> KernelManager:
    return KernelManager(transport="ipc", ip=f"{_folder.name}/{next(_number)}", **options)


nbval.kernel.KernelManager = kernel_manager

CASES = os.environ.get("CASES", "0")  # which cases checks are tested with

# What `make test-quick` leaves out, so that what remains answers in five minutes on two cores: files and
# tests that take long beside what they find first.
SLOW = {
    "test_alive.py",
    "test_clinic_cases.py",
    "test_demo.py",
    "test_execute_notebooks.py",
    "test_faults.py",
    "test_faults_elsewhere.py",
    "test_fuzz.py",
    "test_kernel.py",
    "test_linked.py",
    "test_links_of_hosts.py",
    "test_mini_zero_everyday.py",
    "test_slurm.py",
    "test_slurm_faults.py",
    "test_timeline.py",
    "test_website_built.py",
    "test_a_job_whose_rank_was_killed_ends_with_the_same_weights_bit_for_bit",
    "test_a_mistake_of_one_rank_is_told_as_that_and_not_by_the_checks_own_calls",
    "test_a_new_collective_is_one_row",
    "test_a_rank_imports_what_the_notebook_has_imported",
    "test_a_rank_that_needs_on_rank_does_not_load_pandas",
    "test_a_saved_job_is_drawn_where_torch_is_not_installed",
    "test_a_script_runs_under_torchrun",
    "test_a_soak_leaves_nothing_behind",
    "test_a_socket_of_the_learners_own_counts_whichever_way_it_sends",
    "test_a_tcp_store_is_seen_and_files_and_datagrams_are_absent",
    "test_activations_are_what_is_really_held",
    "test_activations_in_flight_are_those_of_theory_by_count_and_in_bytes",
    "test_an_answer_that_ends_in_its_own_process_is_told_with_its_line",
    "test_an_answer_that_is_called_alone_has_printed_too_when_it_raises",
    "test_an_answer_that_waits_for_nobody_is_not_asked_whether_it_waits",
    "test_an_instrument_that_breaks_is_absent_and_the_others_measure",
    "test_at_most_two_units_are_whole_at_once",
    "test_bytes_of_a_block",
    "test_correct_training_stays_correct_and_what_cannot_be_measured_is_absent",
    "test_each_corner_is_drawn_with_a_table",
    "test_fully_shard_sends_four_thirds_of_its_theory_on_gloo",
    "test_in_a_terminal_a_short_job_and_one_that_fails_show_what_was_printed",
    "test_in_a_terminal_it_is_shown_as_the_trial_ends",
    "test_lines_of_ranks_that_have_roles_say_so",
    "test_memory_is_the_closed_form_plus_padding",
    "test_nothing_but_the_line_is_stored_where_no_person_looks_or_nothing_is_printed",
    "test_on_a_busy_machine_the_time_that_ranks_wait_for_a_core_does_not_count",
    "test_parallelize_module_gives_the_same_values_and_bytes",
    "test_plain_pytest_leaves_out_measurements_and_notebooks",
    "test_predictions_cost_a_rank_nothing",
    "test_right_answers_are_accepted",
    "test_single_precision_equals_one_process",
    "test_states_to_the_byte_and_bytes_sent_of_a_training_that_ran",
    "test_sums_and_chunks_are_exact_for_every_size_dtype_and_layout",
    "test_ten_steps_equal_one_process",
    "test_ten_steps_equal_torchs_ddp_and_one_process",
    "test_the_bubble_is_that_of_theory",
    "test_the_fork_server_starts_beside_files_with_names_of_pythons",
    "test_the_ledger_counts_an_all_to_all_of_parts_with_other_sizes_to_the_byte",
    "test_the_ledger_has_a_new_row_too",
    "test_the_next_start_sweeps_what_a_killed_check_has_left",
    "test_the_same_function_runs_under_torchrun",
    "test_the_worst_moment_is_the_measured_one_to_a_tenth",
    "test_torchs_pipeline_has_the_same_gradients_and_bytes",
    "test_two_pipelines_average_their_gradients",
    "test_under_torchrun_the_same_function_starts_again_alike",
    "test_unusual_forwards_and_backwards",
    "test_what_a_cell_defines_can_be_pickled_by_name_in_a_rank",
    "test_what_an_answer_prints_stands_in_the_verdict_also_when_it_raises",
    "test_what_cannot_be_opened_in_a_rank_or_looked_at_is_told",
    "test_what_kernels_keep_in_desks_comes_to_the_teacher",
    "test_what_three_ranks_save_two_ranks_load",
    "test_where_a_person_looks_the_lines_of_the_ranks_stay_below_the_line",
    "test_whether_others_can_still_go_on_is_told_by_what_they_do_and_not_by_a_clock",
    "test_wrong_answers_are_refused_with_the_reason",
    "test_zero_bubble_holds_less_than_gpipe_and_the_last_rank_more_than_under_1f1b",
}

# What `make test` leaves to `make test ALL=1`, which `.ci/run` calls: of each exercise's answers all but so
# many, the plainest, which stand first;
PLAINEST = {"test_right_answers_are_accepted": 1, "test_wrong_answers_are_refused_with_the_reason": 2}
# what runs in a browser, and solved twins: checks are tested with answers like theirs;
FOLDERS = {"browser", "solutions"}
# what takes ten seconds or more, and finds what few changes break: files, tests, or one case;
LONG = {
    "test_class_simulation.py",
    "test_faults_elsewhere.py",
    "test_links_of_hosts.py",
    "test_links_of_ranks.py",
    "test_slurm_faults.py",
    "test_a_batch_script_runs_a_chapters_script_across_nodes",
    "test_a_script_runs_under_torchrun",
    "test_an_answer_that_prints_a_lot_leaves_no_file",
    "test_both_are_killed_and_the_next_start_sweeps",
    "test_in_a_terminal_it_is_shown_as_the_trial_ends",
    "test_row_10_the_kernel_is_killed_while_ranks_start_again",
    "test_row_13_a_limit_on_processes_is_told_as_such",
    "test_the_demo_prints_its_table_and_saves_pictures_and_jobs[4]",
    "test_the_next_start_sweeps_what_a_killed_check_has_left",
    "test_the_same_function_runs_under_torchrun",
    "test_torchrun_over_two_hosts_gives_what_run_gives",
    "test_under_torchrun_the_same_function_starts_again_alike",
    "test_what_an_answer_prints_stands_in_the_verdict_also_when_it_raises",
}
# and cells that run a script (failures.TORCHRUN), which take as long.


def pytest_collection_modifyitems(config, items):
    seen = Counter()
    for item in items:
        name = getattr(item, "originalname", "")
        if {item.path.name, name} & SLOW:
            item.add_marker(pytest.mark.slow)
        if name in PLAINEST:
            exercise = item.path, name, item.callspec.params["check"].__name__
            seen[exercise] += 1
        if (
            item.path.parent.name in FOLDERS
            or {item.path.name, name, item.name} & LONG
            or name in PLAINEST
            and seen[exercise] > PLAINEST[name]
            or isinstance(item, IPyNbCell)
            and failures.TORCHRUN in item.cell.source
            and item.cell_num in _ends(item.path)
        ):
            item.add_marker(pytest.mark.thorough)
    cells = [item for item in items if isinstance(item, IPyNbCell) and item.path.parent.name == "solutions"]
    if CASES != "0":  # once a week, they too run as a whole
        return
    if left_out := {item for item in cells if item.cell_num not in _needed(item.path)}:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_configure(config):
    config.pluginmanager.register(failures)  # hooks of this file see no cell of notebooks/


@pytest.fixture(scope="session")
def two_hosts():
    """Two linked hosts to run on. Where the machine cannot make them, a test is skipped, with the reason."""
    from course_lib import hosts

    two = hosts.Linked(2, mbit=200)
    if reason := two.missing():
        pytest.skip(reason)
    return two


_needed, _ends = functools.cache(needed_cells), functools.cache(ends)


@pytest.fixture(autouse=True)
def cases_that_come_again(request, monkeypatch):
    """Checks draw their cases anew in every try. Tests draw them from the test's own name and a number, so
    that one that fails fails again: CASES=7 draws others, CASES=anew other ones each time.
    """
    if request.path.parent.name == "check" and CASES != "anew":
        from course_lib.check import judge

        draw = random.Random(f"{CASES} {request.node.nodeid}")
        monkeypatch.setattr(judge, "secrets", SimpleNamespace(randbelow=draw.randrange))
