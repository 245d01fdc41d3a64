"""Two buttons beside a control: one step down, one step up.

On a slider or a list JupyterLab takes the arrow keys for itself: they go to another cell. The space bar on a
button it leaves alone.
"""

from typing import Any

__all__ = ["step_buttons"]


def step_buttons(field: Any, order: int) -> list[Any]:
    """The buttons of one control of ipywidgets that has options.

    Args:
        order: the place in the row, for the field and its buttons (`order` of CSS).
    """
    import ipywidgets as widgets

    def button(sign: str, word: str, by: int):
        made = widgets.Button(
            description=sign,
            tooltip=f"{field.description}: {word}",
            layout=widgets.Layout(width="2.4em", padding="0", order=f"{order}"),
        )

        def click(_):
            field.index = min(max(field.index + by, 0), len(field.options) - 1)

        made.on_click(click)
        return made

    field.layout.order = f"{order}"
    return [button("−", "one step back", -1), button("+", "one step on", 1)]
