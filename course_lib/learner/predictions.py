"""A prediction is asked before the run, kept, and answered by the measurement.

    guess = predict("ring-bytes", "How many times S does each of 4 ranks send?", unit="x S")
    ...
    guess.compare(sent(job)[0] / S)    # measured 1.50 x S; you said 2.00 (33% too high)

Where nobody guesses, in CI say, both cells print one line that is the same on every machine.
"""

import contextlib
import html
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral

from course_lib.arguments import one_of
from course_lib.frontend import in_kernel, is_seen
from course_lib.learner import record
from course_lib.reopened import Display

__all__ = ["predict", "Guess"]

RIGHT = 0.05  # so near a guess counts as right


def predict(
    name: str,
    question: str,
    unit: str = "",
    *,
    choices: Sequence[str] | None = None,
    guess: float | str | None = None,
) -> "Guess":
    """Ask for a guess: by a field in JupyterLab, in one line elsewhere. Once compared, it is locked.

    Args:
        name: the prediction's own in the whole book, such as "ring-bytes".
        question: one sentence.
        unit: of the number, such as "x S" or "MB".
        choices: what can be chosen, where the answer is no number.
        guess: yours, if you would rather write it here than in the field.

    Errors: ValueError or TypeError where an argument cannot be; what is typed into the field is told beside
    it.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name={name!r}: small letters, digits and hyphens, such as 'ring-bytes'.")
    if choices is not None and (isinstance(choices, str) or len(set(choices)) < max(2, len(choices))):
        raise ValueError(f"choices={choices!r}: give two or more, each another one.")
    asked = Guess(name, question, unit, None if choices is None else tuple(choices))
    if guess is not None:
        asked.say(guess)
    asked.show()
    return asked


class Guess:
    """One prediction of a learner.

    Attributes:
        value: the guess, a number in the prediction's unit or one of its choices; None: none yet.
        locked: whether it has been compared: it stays as it is then.
    """

    def __init__(self, name: str, question: str, unit: str, choices: tuple[str, ...] | None):
        self.name, self.question, self.unit, self.choices = name, question, unit, choices
        self.value: float | str | None = None
        self.locked, self._known = False, False
        self._display: Display | None = None  # of the field
        for line in record.kept():
            if (
                line.get("name") == name
                or line["kind"] == "reset"
                and name in (line.get("predictions") or ())
            ):
                self._read(line)

    def _read(self, line: dict) -> None:
        """Take over what was kept earlier, as far as it is an answer to what is asked now. A chapter that is
        begun anew asks anew.
        """
        self.value = None
        if line["kind"] != "reset" and line.get("guess") is not None:
            with contextlib.suppress(ValueError, TypeError):
                self.value = self._checked(line["guess"])
        self.locked = line["kind"] == "compared" and self.value is not None
        self._known = line["kind"] != "reset" and (self._known or line["kind"] == "compared")

    def say(self, guess: float | str) -> None:
        """Keep a guess; one that has been compared stays.

        Errors: ValueError or TypeError for what is no number, or none of the choices.
        """
        guess = self._checked(guess)
        if self.locked or guess == self.value:
            return
        self.value = guess
        if self._display is not None:
            self._display.tell_instead(html.escape(repr(self)))
        record.keep("guess", name=self.name, guess=guess, unit=self.unit, known=self._known)

    def compare(
        self, measured: float | str, wrong: Mapping[str, str] | None = None, how: str = "measured"
    ) -> None:
        """Print what the run found, what was guessed, and how far apart they are; the guess is locked then.

        Args:
            measured: a number in the prediction's unit, or the choice that holds.
            wrong: for a choice: a sentence on each of the others, that says why it is not so.
            how: "measured", or "modelled" for what sleeps in place of work.

        Errors: ValueError where `measured` is none of the choices, or one of the others has no sentence.
        """
        one_of("how", how, ("measured", "modelled"))
        measured = self._checked(measured)
        if self.choices is not None and set(wrong or {}) != {*self.choices} - {measured}:
            raise ValueError(f"wrong={wrong!r}: give a sentence for each of the other choices.")
        print(self._answer(measured, (wrong or {}).get(self.value), how))
        if not self._known or (self.value is not None and not self.locked):
            record.keep(
                "compared", name=self.name, guess=self.value, measured=measured, unit=self.unit, how=how
            )
        self._known, self.locked = True, self.value is not None
        if self._display is not None:
            self._display.end({"text/plain": repr(self)})
            self._display = None

    def _answer(self, measured, wrong: str | None, how: str) -> str:
        if isinstance(measured, str):
            if self.value in (None, measured):
                return f"{how}: {measured}" + ("" if self.value is None else ", as you said")
            return f"{how}: {measured}; you said: {self.value}. {wrong}"
        found = f"{how} {_number(measured)} {self.unit}".rstrip()
        if self.value is None:
            return found
        said = self.value if isinstance(measured, int) else float(self.value)
        return f"{found}; you said {_number(said)} ({_apart(said, measured)})"

    def _checked(self, value):
        if self.choices is not None:
            one_of(f"the answer to {self.name!r}", value, self.choices)
            return value
        if isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
        try:
            number = math.nan if isinstance(value, (str, bool)) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{value!r}: the answer to {self.name!r} is a number.")
        return number

    def __repr__(self) -> str:
        """One line, for whatever has no field."""
        if self.value is None:
            kind = " / ".join(self.choices) if self.choices else self.unit or "a number"
            return f"Predict: {self.question} ({kind})"
        said = self.value if isinstance(self.value, str) else f"{_number(self.value)} {self.unit}".rstrip()
        return f"Predict: {self.question} You said: {said}" + (", compared." if self.locked else ".")

    def show(self) -> None:
        """The field in a notebook, with this line for readers that have none; the line elsewhere."""
        if not in_kernel():
            print(repr(self))
            return
        from IPython.display import display

        if self.locked:
            display({"text/plain": repr(self)}, raw=True)
        else:
            self._display = Display(self._field(), repr(self), html.escape(repr(self)) if is_seen() else "")

    def _field(self):
        import ipywidgets as widgets

        told = widgets.HTML(layout=widgets.Layout(margin="0 0 0 1em"))
        layout = widgets.Layout(width="max-content")
        if self.choices:
            field = widgets.RadioButtons(options=self.choices, value=self.value, layout=layout)
        else:
            field = widgets.Text(
                value="" if self.value is None else _number(self.value),
                placeholder="your guess",
                continuous_update=False,
                layout=widgets.Layout(width="9em"),
            )

        def say(change):
            try:
                self.say(change["new"] if self.choices else _typed(change["new"]))
            except (TypeError, ValueError):
                said = "a number, please: 1.5 (with a point), 3/2 or 2e6"
            else:
                said = (
                    "it has been compared, and stays" if self.locked else "kept; it may change until the run"
                )
            told.value = f'<span style="color: var(--jp-ui-font-color2)">{said}</span>'

        field.observe(say, "value")
        question = widgets.HTML(
            f'<span style="color: var(--jp-ui-font-color1)">Predict: {html.escape(self.question)}</span>'
        )
        answer = widgets.HBox([field, widgets.Label(self.unit), told])
        return widgets.VBox([question, answer])


def _typed(text: str) -> float:
    """A number as people write it: 1.5, 1,000,000, 2e6, 3/2. No decimal comma: 1,5 may be meant as 1.5."""
    if "," in text and not re.fullmatch(r"\s*[-+]?\d{1,3}(,\d{3})+(\.\d*)?\s*", text):
        raise ValueError(text)
    above, slash, below = text.replace(",", "").partition("/")
    if not slash and above.strip().isdecimal():
        return int(above)
    return float(above) / (float(below) or math.nan) if slash else float(above)


def _number(value: float) -> str:
    """Three digits, and of a whole number all: 1.50, 0.0123, 12,345."""
    if value == 0 or isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _apart(said: float, measured: float) -> str:
    if said == measured:
        return "right"
    if measured <= 0 or said <= 0:
        return f"{_number(abs(said - measured))} too {'high' if said > measured else 'low'}"
    ratio = said / measured
    if abs(ratio - 1) <= RIGHT:
        return f"right within {RIGHT:.0%}"
    if ratio > 1:
        return f"{ratio - 1:.0%} too high" if ratio < 2 else f"{ratio:.3g} times too high"
    return f"{1 - ratio:.0%} too low" if ratio > 0.5 else f"{1 / ratio:.3g} times too low"
