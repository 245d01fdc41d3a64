"""How well text in a page can be read: the contrast of each piece, as the page draws it."""

from themes import contrast, seen

__all__ = ["contrasts"]

# Each element with text of its own: its colour, and what lies behind it, from the nearest to the page's own.
_TEXTS = """root => {
  const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const plain = colour => {  // whatever way CSS writes it
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
    return `rgba(${red}, ${green}, ${blue}, ${alpha / 255})`;
  };
  const shown = element => element.checkVisibility({opacityProperty: true, visibilityProperty: true});
  return [...root.querySelectorAll('*')].filter(element => shown(element)
      && !element.closest('svg, script, style, option')
      && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
    const grounds = [], style = getComputedStyle;
    for (let at = element; at; at = at.parentElement) grounds.push(plain(style(at).backgroundColor));
    return {text: element.textContent.trim().slice(0, 60), colour: plain(style(element).color), grounds};
  });
}"""


def contrasts(place) -> list[tuple[float, str]]:
    """The contrast of each text below some places (playwright's Locator), the worst first, with its words."""
    found = []
    for text in (text for one in place.all() for text in one.evaluate(_TEXTS)):
        ground = (255.0, 255.0, 255.0)
        for behind in reversed(text["grounds"]):
            ground = seen(behind, ground)
        found.append((contrast(seen(text["colour"], ground), ground), text["text"]))
    return sorted(found)
