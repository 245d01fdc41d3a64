"""Figures of a class: what they show is what the tables say, and guesses never look like measurements."""

import matplotlib.pyplot as plt
import pytest
from class_records import BYTES, CHOICE, EXERCISE, compared, guess, verdict, write
from matplotlib.axes import Axes

from course_lib.classroom.figures import MOST_BARS, draw_guesses, draw_progress, draw_tries
from course_lib.classroom.reading import read_class
from course_lib.plots import MEASURED, MODELLED
from course_lib.plots.described import in_words


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def room_of(folder, *records):
    for number, lines in enumerate(records):
        write(folder, f"learner {number}", *lines)
    return read_class(folder)


def said(*values, measured=1.5, name=BYTES, how="measured"):
    return [(guess(value, name), compared(value, measured, name, how)) for value in values]


def bars(ax: Axes) -> dict[str, float]:
    return dict(
        zip((label.get_text() for label in ax.get_xticklabels()), (bar.get_height() for bar in ax.patches))
    )


def test_numbers_stand_in_order_with_the_measurement_among_them(tmp_path):
    ax = draw_guesses(room_of(tmp_path, *said(2, 2, 1, 1e12)), BYTES)
    assert bars(ax) == {"1": 1, "2": 2, "1e+12": 1}
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [0.5, 0.5] and line.get_color() == MEASURED["color"]
    assert all(bar.get_hatch() and bar.get_facecolor()[:3] != line.get_color() for bar in ax.patches)
    assert "not to scale" in ax.get_xlabel() and "x P" in ax.get_xlabel()


def test_a_right_guess_stands_on_the_measurement_and_a_model_is_dashed(tmp_path):
    ax = draw_guesses(room_of(tmp_path, *said(1, 1.5, how="modelled")), BYTES)
    (line,) = ax.get_lines()
    assert line.get_xdata()[0] == 1 and line.get_color() == MODELLED["color"]
    assert "modelled: 1.5 x P" in [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize(("measured", "at"), [(1.52, 1), (1.51, 0), (1.7, 1.5)])
def test_a_measurement_stands_on_the_nearest_guess_that_counts_as_right(tmp_path, measured, at):
    ax = draw_guesses(room_of(tmp_path, *said(1.5, 1.53, 2, measured=measured)), BYTES)
    assert ax.get_lines()[0].get_xdata()[0] == at


@pytest.mark.parametrize(("measured", "at"), [(0.5, -0.5), (9, 2.5)])
def test_a_measurement_outside_of_all_guesses_stands_beside_them(tmp_path, measured, at):
    ax = draw_guesses(room_of(tmp_path, *said(1, 2, 3, measured=measured)), BYTES)
    assert ax.get_lines()[0].get_xdata()[0] == at and ax.get_xlim()[0] < at < ax.get_xlim()[1]


def test_many_guesses_share_bars_and_none_is_lost(tmp_path):
    values = [-5, 0, *range(1, 30)]
    ax = draw_guesses(room_of(tmp_path, *said(*values)), BYTES)
    assert len(ax.patches) == MOST_BARS and sum(bar.get_height() for bar in ax.patches) == len(values)


def test_choices_with_what_was_measured_and_any_sign_in_them(tmp_path):
    ax = draw_guesses(room_of(tmp_path, *said("5", "5", "3", "$x_{$", measured="3", name=CHOICE)), CHOICE)
    assert bars(ax) == {"5": 2, "$x_{$": 1, "3": 1}
    assert ax.get_lines()[0].get_xdata()[0] == 2
    ax.figure.canvas.draw()  # as text, and not as a formula


def test_one_learner_is_no_learners(tmp_path):
    room = room_of(tmp_path, [*said(2)[0], verdict()])
    for ax in (draw_guesses(room, BYTES), draw_tries(room)):
        words = " ".join(text.get_text() for text in ax.texts)
        assert "1 learner;" in f"{words};" and "1 learners" not in words, words


def test_tries_show_who_solved_and_who_has_not_yet(tmp_path):
    records = [(verdict("shares"), verdict()), (verdict(),), (verdict("shares"),)]
    ax = draw_tries(room_of(tmp_path, *records))
    solved, not_yet = (container.patches[0].get_width() for container in ax.containers)
    assert (solved, not_yet) == (2, 1)
    assert [label.get_text() for label in ax.get_yticklabels()] == [EXERCISE.replace("_", " ")]
    assert "1.5 tries" in [text.get_text() for text in ax.texts]


def test_progress_has_a_row_a_learner_and_ends_with_the_last_chapter_begun(tmp_path):
    ax = draw_progress(room_of(tmp_path, (guess(1),), (guess(1), verdict())))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["learner 1", "learner 0"]
    done, whole = ([bar.get_width() for bar in bars.patches] for bars in ax.containers)
    (chapter,) = [one for one in read_class(tmp_path).chapters if one.name == "start_here"]
    assert [label.get_text() for label in ax.get_xticklabels()] == [chapter.file[:2]]
    asked = len(chapter.predictions) + len(chapter.exercises)
    assert done == pytest.approx([whole[0] * 2 / asked, whole[0] / asked])


def test_they_draw_on_axes_that_they_are_given(tmp_path):
    room = room_of(tmp_path, (guess(1), verdict()))
    for draw in (
        lambda ax: draw_guesses(room, BYTES, ax),
        lambda ax: draw_tries(room, ax),
        lambda ax: draw_progress(room, ax),
    ):
        ax = plt.figure().add_subplot()
        assert draw(ax) is ax


def test_a_class_that_has_just_begun_has_figures_that_say_so(tmp_path):
    room = read_class(tmp_path)
    for ax, words in (
        (draw_guesses(room, BYTES), "in a step? Nobody has guessed yet."),
        (draw_tries(room), "tried so far. Nobody has tried an exercise yet."),
        (draw_progress(room), "the class is. Nobody has joined this class yet."),
    ):
        assert in_words(ax.figure).endswith(words) and not ax.patches
        assert not ax.axison


def test_a_prediction_that_no_chapter_has_is_said(tmp_path):
    with pytest.raises(ValueError, match="prediction="):
        draw_guesses(read_class(tmp_path), "ring")
