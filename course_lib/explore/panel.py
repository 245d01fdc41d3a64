"""The frame of all explorers: controls, a picture and a table, drawn anew at each move."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from course_lib.arguments import one_of
from course_lib.explore.by_keyboard import step_buttons
from course_lib.frontend import is_seen
from course_lib.plots.described import in_words
from course_lib.reopened import Display

__all__ = ["Explorer", "laid_out"]

MOST_CONTROLS = 3
DPI = 90
LEGEND_IN = 0.3  # inches below all panels, for a legend of them all
PACKED = 1  # how tightly a picture is, from 0 to 9
SHORT = 10  # letters: beside a slider there is room for no more


class Explorer:
    """A figure with controls. As the last line of a cell it shows itself.

    Args:
        name: of what is explored, for who hears the page.
        choices: the controls: name -> what it can be, in order; text, numbers, or text -> value.
        draw: takes a value for each control, returns the Axes of a new figure, and a table of the same
            numbers.
        act: a name, and what a button of this name does: it takes a value for each control, and `draw` shows
            what has come of it.
        start: the values at first; the first of each where none is named.
    """

    def __init__(
        self,
        name: str,
        choices: Mapping[str, Sequence | Mapping[str, object]],
        draw: Callable[..., tuple[Axes, pd.DataFrame]],
        act: tuple[str, Callable[..., None]] | None = None,
        **start,
    ):
        if len(choices) > MOST_CONTROLS:
            raise ValueError(f"{len(choices)} controls: an explorer has {MOST_CONTROLS} at most.")
        self.name, self._draw, self._act = name, draw, act
        self._display: Display | None = None
        self.choices = {control: _labelled(values) for control, values in choices.items()}
        self.values = {control: next(iter(values.values())) for control, values in self.choices.items()}
        self.values = self._with(start)

    def at(self, **values) -> "Explorer":
        """The same explorer, which begins with these values: explore.memory().at(ranks=64)."""
        other = Explorer(self.name, self.choices, self._draw, self._act)
        other.values = self._with(values)
        return other

    def picture(self, **values) -> tuple[Axes, pd.DataFrame]:
        """The figure for these values (those of the start where none is named), and its table."""
        return self._draw(**self._with(values))

    def _with(self, values: Mapping[str, object]) -> dict[str, object]:
        for control, value in values.items():
            one_of("a control", control, tuple(self.choices))
            labels = self.choices[control]
            if value not in labels.values():
                raise ValueError(
                    f"{control}={value!r}: it must be one of {', '.join(map(repr, labels.values()))}."
                )
        return {**self.values, **values}

    def __repr__(self) -> str:
        ax, table = self.picture()
        plt.close(ax.figure)
        return f"{self._line()}\n{table.to_string()}"

    def _line(self) -> str:
        at = ", ".join(f"{control}: {self._shown(control)}" for control in self.choices)
        return f"{self.name} ({at})"

    def _shown(self, control: str) -> str:
        return next(label for label, value in self.choices[control].items() if value == self.values[control])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if is_seen():
            widget = self._widget()
            self._display = Display(widget, self._line(), widget.children[1].value)
            return
        ax, table = self.picture()
        words = in_words(ax.figure)
        display(
            {"text/plain": words, "image/png": _png(ax)},
            metadata={"image/png": {"alt": words}},
            raw=True,
        )
        display({"text/plain": repr(self), "text/html": table.to_html(border=0, justify="right")}, raw=True)

    def _widget(self):
        import ipywidgets as widgets

        below, fields = widgets.HTML(self._page()), []

        def draw_anew() -> None:
            below.value = self._page()
            if self._display is not None:
                self._display.tell_instead(below.value)

        for control, values in self.choices.items():
            slides = all(
                isinstance(value, (int, float)) and len(label) <= SHORT for label, value in values.items()
            )
            kind = widgets.SelectionSlider if slides else widgets.Dropdown
            field = kind(
                options=list(values.items()),
                value=self.values[control],
                description=control,
                style={"description_width": "initial"},
                layout=widgets.Layout(width="22em"),
            )

            def move(change, control=control):
                self.values[control] = change["new"]
                draw_anew()

            field.observe(move, "value")
            fields.append(field)
        # after the fields, so that who looks for these finds them; `order` puts each beside its own
        count = len(self.choices)
        buttons = [step_buttons(field, number - count) for number, field in enumerate(fields[:count])]
        fields[count:count] = sum(buttons, [])
        row = widgets.HBox(
            fields + self._button(widgets, draw_anew), layout=widgets.Layout(flex_flow="row wrap")
        )
        return widgets.VBox([row, below])

    def _button(self, widgets, draw_anew: Callable[[], None]) -> list:
        """Of an explorer that acts: what does it with the values of this moment, and why it was not done."""
        if self._act is None:
            return []
        name, do = self._act
        button, told = widgets.Button(description=name), widgets.HTML()

        def click(_):
            button.disabled, button.description, told.value = True, f"{name}: wait ...", ""
            try:
                do(**self.values)
            except (Exception, KeyboardInterrupt) as error:  # of a job: what it says is for the learner
                why = str(error).strip().splitlines() or [type(error).__name__]
                told.value = f'<p role="status">Not done: {html.escape(why[0])}</p>'
            finally:
                button.disabled, button.description = False, name
            draw_anew()

        button.on_click(click)
        return [button, told]

    def _page(self) -> str:
        ax, table = self.picture()
        words, picture = in_words(ax.figure), _png(ax)
        rows = _table_html(table)
        return (
            f'<img style="max-width: 100%" alt="{html.escape(words)}" src="data:image/png;base64,{picture}">'
            f"<details open><summary>The same numbers</summary>{rows}</details>"
        )


def _labelled(values: Sequence | Mapping[str, object]) -> dict[str, object]:
    if isinstance(values, Mapping):
        return dict(values)
    return {f"{value:,}" if isinstance(value, int) else str(value): value for value in values}


def _table_html(table: pd.DataFrame) -> str:
    """In a widget, where JupyterLab's own style of a table does not reach."""
    rows = table.to_html(border=0, justify="right")
    for cell in ("th", "td"):
        rows = rows.replace(f"<{cell}>", f'<{cell} style="text-align: right; padding: 0.2em 0 0.2em 1.2em">')
    return f'<div style="line-height: normal; overflow-x: auto">{rows}</div>'


def laid_out(figure: Figure) -> None:
    """Give a figure of one panel or of several its margins, as wide as its texts are now: they move with the
    controls.
    """
    figure.set_layout_engine("none")
    for ax in figure.axes:
        ax.spines[:].set_in_layout(False)  # they lie inside of their ticks' labels, and are slow to measure
    figure.tight_layout(pad=0.8, h_pad=1.6)
    if figure.legends:  # tight_layout could leave room for them, and would measure all texts twice
        figure.subplots_adjust(bottom=figure.subplotpars.bottom + LEGEND_IN / figure.get_figheight())


def _png(ax: Axes) -> str:
    # one for layout and picture: what it has measured of a text it need not measure again
    canvas = FigureCanvasAgg(ax.figure)
    ax.figure.set_dpi(DPI)
    laid_out(ax.figure)
    file = io.BytesIO()
    # savefig draws twice, to lay out what is laid out; and to pack tightly takes longer than to draw
    canvas.print_png(file, pil_kwargs={"compress_level": PACKED})
    plt.close(ax.figure)  # or it would be shown once more under the cell
    return base64.b64encode(file.getvalue()).decode()
