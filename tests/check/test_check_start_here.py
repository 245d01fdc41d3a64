"""Each check of "Start here" accepts the solution, leaves an untouched stub in peace, and refuses wrong and
wasteful answers.
"""

import os
import subprocess
import sys
import time

import answers_start_here as answers
import psutil
from verdicts import *  # noqa: F403

from course_lib import check
from course_lib.check import start_here as chapter

RIGHT = [
    (check.ping_pong, answers.ping_pong),
    (check.ping_pong, answers.ping_pong_in_int64),
    (check.ping_pong, answers.ping_pong_without_waiting),
    (check.ping_pong, answers.ping_pong_in_numpy),
    (check.my_share, answers.my_share),
    (check.my_share, answers.my_share_strided),
    (check.my_share, answers.my_share_shuffled_alike),
    (check.my_share, answers.my_share_by_splitting),
    (check.average, answers.average),
    (check.average, answers.average_in_place),
    (check.average, answers.average_through_autograd),
    (check.average, answers.average_that_seeds),
    (check.average, answers.average_with_a_buffer),
]
UNTOUCHED = [
    (check.ping_pong, answers.ping_pong_untouched),
    (check.my_share, answers.my_share_untouched),
    (check.average, answers.average_untouched),
]
WRONG = [  # a check, an answer, and words that name its problem
    (
        check.ping_pong,
        answers.ping_pong_without_messages,
        "start 40, 5 rounds: rank 1 must return [41, 43, 45, 47, 49], and returned [1, 3, 5]",
    ),
    (check.ping_pong, answers.ping_pong_without_wait, "start 0, 3 rounds: rank 1 must return [1, 3, 5]"),
    (check.ping_pong, answers.ping_pong_first_game_by_broadcast, "you also used broadcast"),
    (check.ping_pong, answers.ping_pong_in_float16, "5 rounds: rank 1 must return"),
    (check.my_share, answers.my_share_shuffled, "on more than one rank"),
    (check.my_share, answers.my_share_drawn_by_python, "on more than one rank"),
    (check.my_share, answers.my_share_of_known_sizes, "the shares are"),
    (check.my_share, answers.my_share_small_by_messages, "yours sent messages (broadcast)"),
    (
        check.average,
        answers.average_in_float16,
        (
            "gradient 0 is not the average over all ranks. It is near it, or overflows: send and add in the"
            " gradients' own dtype"
        ),
    ),
    (
        check.average,
        answers.average_in_bfloat16,
        (
            "gradient 0 is not the average over all ranks. It is near it, or overflows: send and add in the"
            " gradients' own dtype"
        ),
    ),
    (check.average, answers.average_without_wait, "is not the average over all ranks"),
    (
        check.average,
        answers.average_few_one_by_one,
        "one collective is enough for all gradients together, and you called 2",
    ),
    (check.ping_pong, answers.ping_pong_by_broadcast, "you also used broadcast"),
    (check.ping_pong, answers.ping_pong_with_start_told_first, "rank 0 sent 6 and rank 1 sent 5 times"),
    (check.ping_pong, answers.ping_pong_rank_1_first, "rank 0 must send first"),
    (check.ping_pong, answers.ping_pong_padded, "your largest message has 4000 bytes"),
    (
        check.ping_pong,
        answers.ping_pong_forgets_to_add,
        "rank 1 must return [1, 3, 5], and returned [0.0, 0.0, 0.0]",
    ),
    (
        check.ping_pong,
        answers.ping_pong_keeps_one_tensor,
        "rank 1 must return [1, 3, 5], and returned [tensor([5.]), tensor([5.]), tensor([5.])]",
    ),
    (check.ping_pong, answers.ping_pong_of_objects, "rank 0 sent 10 and rank 1 sent 10 times"),
    (check.ping_pong, answers.ping_pong_returns_the_last, "rank 0 must return [2, 4, 6], and returned 6.0"),
    (check.ping_pong, answers.ping_pong_raises, "rank 1: raised TypeError"),
    (
        check.my_share,
        answers.my_share_loses_the_rest,
        "10 samples on 4 ranks: 2 samples are on no rank (the ranks have 2, 2, 2, 2 samples)",
    ),
    (check.my_share, answers.my_share_rest_to_the_last, "10 samples on 4 ranks: the shares are 2, 2, 2, 4"),
    (check.my_share, answers.my_share_rounded_up, "10 samples on 4 ranks: the shares are 3, 3, 3, 1"),
    (
        check.my_share,
        answers.my_share_everything,
        "12 samples on 4 ranks: 12 samples are on more than one rank",
    ),
    (check.my_share, answers.my_share_overlaps, "10 samples on 4 ranks: 2 samples are on more than one rank"),
    (check.my_share, answers.my_share_told_by_rank_0, "yours sent messages (broadcast)"),
    (check.my_share, answers.my_share_as_a_number, "not a value of type int"),
    (
        check.my_share,
        answers.my_share_of_positions,
        "12 samples on 4 ranks: 0 is not in the batch, which has ",
    ),
    (check.my_share, answers.my_share_as_a_mask, "not a tensor of bool with the shape (12,)"),
    (check.my_share, answers.my_share_as_a_list, "not a value of type list"),
    (check.my_share, answers.my_share_as_a_column, "not a tensor of int64 with the shape (3, 1)"),
    (check.average, answers.average_one_by_one, "you called 4"),
    (check.average, answers.average_is_a_sum, "4 times the average: by what do you divide?"),
    (check.average, answers.average_of_two, "2 times the average"),
    (
        check.average,
        answers.average_of_four_ranks,
        (
            "right on 4 ranks, and not on 2. There, on rank 0: gradient 0 is not the average over all ranks."
            " It is 0.5 times the average: by what do you divide?"
        ),
    ),
    (check.average, answers.average_by_all_gather, "your all_gather sends"),
    (check.average, answers.average_in_double, "your all_reduce sends"),
    (check.average, answers.average_padded, "your all_reduce sends"),
    (check.average, answers.average_in_half, "rank 0: gradient 0 is not the average over all ranks"),
    (check.average, answers.average_by_a_missing_forward, 'is missing the required "forward" function'),
    (check.average, answers.average_to_rank_0, "rank 1: gradient 0 is not the average over all ranks"),
    (check.average, answers.average_without_messages, "rank 0: gradient 0 is not the average over all ranks"),
    (check.average, answers.average_flat, "return a list of tensors"),
]


def test_two_ranks_that_both_wait_are_stopped():
    verdict = check.ping_pong(answers.ping_pong_both_wait)
    told = (
        "your function cannot go on, and was stopped. Each rank waits for another: rank 0 in recv from rank 1"
    )
    assert not verdict.passed and told in repr(verdict)


def test_what_is_left_of_a_process_and_another_one_with_its_number_are_not_alive():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = psutil.Process(process.pid).create_time()
    assert chapter._alive(process.pid, since) and not chapter._alive(process.pid, since - 60)
    process.stdin.close()
    deadline = time.monotonic() + 60
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.pid_exists(process.pid) and not chapter._alive(process.pid, since)
    process.wait()
    assert not chapter._alive(process.pid, since) and chapter._alive(
        os.getpid(), psutil.Process().create_time()
    )


def test_a_process_that_outlives_its_rank_is_found_or_ended():
    before = {process.pid for process in psutil.process_iter()}
    verdict = check.ping_pong(answers.ping_pong_leaves_a_process)
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid not in before and "time.sleep(60)" in " ".join(process.info["cmdline"] or [])
    ]
    for process in left:
        process.kill()
    assert verdict.passed == (not left), verdict
    assert not left or "still running" in repr(verdict)
