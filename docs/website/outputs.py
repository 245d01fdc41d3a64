"""An extension for Sphinx: stored outputs of chapters as they read well without JupyterLab.

Figures get their words as alternative text. A job's line, a prediction and a verdict each look like what they
are, and sentences are wrapped, where tables keep their columns.
"""

import base64
import hashlib
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

__all__ = ["setup"]

A_JOB = re.compile(r".* on (\d+(, \d+)* ranks?|.*hosts?\b.*)")
A_VERDICT = re.compile(r"[\w ]+: (not attempted yet|solved|not yet)")
COLUMNS = re.compile(r"\S {2,}\S|^ {2,}\S", re.MULTILINE)


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", _read_well)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _read_well(app: Sphinx, doctree: nodes.document) -> None:
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    words = alternative_texts(path)
    for image in doctree.findall(nodes.image):
        if alt := words.get(Path(image["uri"]).stem):
            image["alt"] = alt
        image["loading"] = "lazy"
    for output in list(doctree.findall(_is_output)):
        for block in list(output.findall(nodes.literal_block)):
            _dress(block)


def alternative_texts(path: Path) -> dict[str, str]:
    """Of a notebook, for each figure: its words, by the SHA-256 of its picture, as MyST-NB names files."""
    found = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = base64.b64decode("".join(output["data"]["image/png"]))
                found[hashlib.sha256(picture).hexdigest()] = output["metadata"]["image/png"]["alt"]
    return found


def _is_output(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Element) and node.get("nb_element") == "cell_code_output"


def _dress(block: nodes.literal_block) -> None:
    text = block.astext().strip()
    if A_JOB.fullmatch(text):
        block["classes"].append("a-job")
    elif text.startswith("Predict: "):
        paragraph = nodes.paragraph("", "", nodes.strong("", "Predict: "), nodes.Text(text[9:]))
        block.replace_self(nodes.container("", paragraph, classes=["a-prediction"]))
    elif A_VERDICT.match(text):
        block["classes"].append("a-verdict")
    elif not COLUMNS.search(text):
        block["classes"].append("sentences")
