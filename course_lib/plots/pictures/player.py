"""Pictures one after the other, in one cell's output that needs no kernel and nothing from the network."""

import base64
import html
import io
from collections.abc import Callable

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from course_lib.arguments import instance, whole

__all__ = ["slider"]

_SHOW = (
    "const pictures = this.closest('figure').querySelectorAll('img');"
    " pictures.forEach((picture, number) => picture.hidden = number != this.value);"
    " this.setAttribute('aria-valuetext', pictures[this.value].alt)"
)
_PLAY = (
    "const slider = this.nextElementSibling; clearInterval(this.timer);"
    " if (this.textContent == 'Stop') { this.textContent = 'Play'; return }"
    " this.textContent = 'Stop';"
    " if (slider.value == slider.max) { slider.value = 0; slider.oninput() }"
    " this.timer = setInterval(() => { slider.stepUp(); slider.oninput();"
    " if (slider.value == slider.max) this.onclick() }, 1200)"
)
# where scripts are not allowed, nobody sees controls that cannot work
_IF_SCRIPTS_RUN = "this.parentNode.lastElementChild.hidden = false"


def slider(draw: Callable[[int], Axes], count: int) -> None:
    """Show picture number 0 to count - 1 under a slider with a Play button.

    The output holds all pictures, so it needs no kernel: it works in JupyterLab and on a website. Where a
    page allows no scripts (GitHub, a notebook that is not trusted) there are no controls. A screen reader
    reads the title and the words of the picture that is shown.

    Args:
        draw: draws picture number i and returns its Axes; called once per picture.
    """
    from IPython.display import display

    instance("draw", draw, Callable, "that takes a number and returns Axes")
    pictures = [_picture(draw(number)) for number in range(whole("count", count, most=100))]
    images = [
        f'<img width="420" alt="{html.escape(alt)}" src="data:image/png;base64,{picture}"'
        + (" hidden>" if number else f' onload="{_IF_SCRIPTS_RUN}">')
        for number, (alt, picture) in enumerate(pictures)
    ]
    bar = f'<input type="range" min="0" max="{count - 1}" value="0" style="width: 300px" aria-label="picture"'
    button = f'<button type="button" style="width: 5em" onclick="{_PLAY}">Play</button>'
    controls = f'<div hidden>{button} {bar} oninput="{_SHOW}"></div>'
    output = {
        "text/html": "\n".join(['<figure style="margin: 0">', *images, controls, "</figure>"]),
        "image/png": pictures[0][1],
        "text/plain": f"(a slider steps through {count} pictures)",
    }
    display(output, raw=True)


def _picture(ax: Axes) -> tuple[str, str]:
    """All that is written in a picture, and the picture as a PNG file in base64."""
    title = instance("what draw returns", ax, Axes).get_title(loc="left")
    words = ", ".join(filter(None, [title, *(text.get_text() for text in ax.texts)]))
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", dpi=120)
    plt.close(ax.figure)  # or it would be shown once more under the cell
    return words, base64.b64encode(file.getvalue()).decode()
