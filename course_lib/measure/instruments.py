"""Instruments that are attached for one step: one that cannot look steps aside, with its reason, and what is
measured goes on unharmed.
"""

from collections.abc import Callable

__all__ = ["Instrument", "Attached", "StepAside", "why"]

Instrument = Callable[[], Callable[[], None]]  # attaches itself, and returns what takes it away again


class StepAside(Exception):
    """An instrument will not look here; the text is the reason."""


class Attached:
    """The instruments that are attached now. `absent`: gets the layers whose instrument cannot be attached or
    taken away, each with the reason.
    """

    def __init__(self, absent: dict[str, str]) -> None:
        self.absent = absent
        self._detach: list[tuple[str, Callable[[], None]]] = []

    def attach(self, instruments: dict[str, Instrument]) -> None:
        """Attach those that can be, by the layer that each measures."""
        for layer, instrument in instruments.items():
            try:
                self._detach.append((layer, instrument()))
            except Exception as error:
                self.absent[layer] = (
                    str(error)
                    if isinstance(error, StepAside)
                    else f"its instrument could not be attached ({why(error)})"
                )

    def detach(self) -> None:
        """Take all away, the last one first."""
        while self._detach:
            layer, detach = self._detach.pop()
            try:
                detach()
            except Exception as error:
                self.absent[layer] = f"its instrument could not be taken away ({why(error)})"


def why(error: BaseException) -> str:
    """What an error says, in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 120 else text[:117] + '...'}"
