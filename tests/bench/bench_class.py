"""A class of thirty: desks, real kernels in turn at which the learners guess, compare and are checked, three
records damaged, and what their teacher reads from it.

    python tests/bench/bench_class.py [learners [kernels [folder]]]

With a folder the class stays there: so data/sample_class was made.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "classroom"))

from class_simulation import NAMES, Play, damage, simulate  # noqa: E402

from course_lib.classroom.reading import read_class  # noqa: E402
from course_lib.classroom.tables import guesses, progress, stumbles, times, tries, who_is_where  # noqa: E402
from course_lib.classroom.topics import talk_about  # noqa: E402

PLAYS = (
    Play(
        "start_here",
        {
            "numbers-in-the-list": ("3", "3", "4", "5", "5"),
            "two-ranks-without-change": (
                "each trains on half of each batch",
                "each trains on half of each batch",
                "the same work twice",
                "two trainings that differ",
            ),
            "average-of-two-halves": (
                "equal, up to rounding",
                "equal, up to rounding",
                "near it, but another one",
                "half as long",
            ),
            "bytes-of-four-ranks": (0.75, 1, 1.5, 1.5, 2, 3, 4),
            "held-by-four-ranks": (4, 8, 12, 16, 16, 20),
        },
        {
            "my_share": ("my_share_everything", "my_share_loses_the_rest"),
            "average": ("average_is_a_sum", "average_one_by_one"),
        },
    ),
    Play(
        "one_training_step",
        {
            "momentum-bill": (4, 8, 16, 12, 12),
            "saved-for-backward": (16, 64, 150, 153, 300, 1000),
            "adam-takes-memory": (
                "when it is made",
                "when it is made",
                "in the first backward",
                "in the first optimizer.step()",
            ),
            "peak-of-a-step": ("in forward", "in backward", "in optimizer.step()"),
        },
    ),
    Play("collectives_and_the_ring", {"broadcast-root": (1, 1.5, 2, 3, 3, 4)}),
)


def main() -> None:
    learners, kernels = (
        (int(sys.argv[1]) if len(sys.argv) > 1 else 30),
        (int(sys.argv[2]) if len(sys.argv) > 2 else 6),
    )
    with tempfile.TemporaryDirectory() as folder:
        where = Path(sys.argv[3] if len(sys.argv) > 3 else folder)
        names = list(NAMES[:learners])
        begin = time.perf_counter()
        of_the_class = simulate(where, names, PLAYS, kernels)
        print(f"{learners} learners at {kernels} kernels, in turn: {time.perf_counter() - begin:.0f} s")
        damage(of_the_class, *names[-3:])
        begin = time.perf_counter()
        room = read_class(of_the_class)
        tables = (who_is_where, progress, times, guesses, tries, stumbles, talk_about)
        made = [make(room) for make in tables]
        seconds = time.perf_counter() - begin
        print(
            f"read, and {len(made)} tables made of it: {seconds:.1f} s (with the import of the checks' words)"
        )
        print(room)
        print(times(room).to_string(index=False))


if __name__ == "__main__":
    main()
