"""Make data/digits.npz from the digits that ship inside scikit-learn.

Nobody has to run this: the file is in the repository. To make it again, use an environment of its
own, because the course itself does not need scikit-learn:

    python -m venv /tmp/digits && /tmp/digits/bin/pip install scikit-learn
    /tmp/digits/bin/python data/make_digits.py

The same images and labels always give the same bytes: the archive is not compressed and its dates
are fixed. The script prints the checksum that course_lib/datasets.py and data/README.md name.
"""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parent / "digits.npz"


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """Return an .npz archive whose bytes depend on the arrays alone."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as members:
        for name, array in arrays.items():
            payload = io.BytesIO()
            np.lib.format.write_array(
                payload, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
            )
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # the archive says "made on Unix" wherever it is made
            info.external_attr = 0o644 << 16
            members.writestr(info, payload.getvalue())
    return archive.getvalue()


def main() -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)  # [1797, 8, 8]
    labels = digits.target.astype(np.uint8)  # [1797]
    assert np.array_equal(images, digits.images), "the pixels are whole numbers, so nothing may be lost"
    content = npz_bytes(images=images, labels=labels)
    TARGET.write_bytes(content)
    print(f"{TARGET.name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
