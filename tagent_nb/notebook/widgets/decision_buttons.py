"""The buttons below a form, whose clicks bring the values of its fields along.

A front end sends the value of a field that is left, and the click that left it, as two messages. ipykernel
7.4 handles them in either order; a slow kernel gets the click first. What is approved has to be what was
seen, so the click says what the fields say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from tagent_nb.notebook.widgets.widget_style import script

__all__ = ["DecisionButtons"]


class DecisionButtons(anywidget.AnyWidget):
    """A row of buttons.

    A click sends ``{"decision": name of the button, "values": [...]}``: the value of each field, of a
    dropdown its index.

    Args:
        fields: The widgets whose values come along.
        offers: Of each button: name, text, icon (of Font Awesome), tooltip, class.

    Attributes:
        decided: Whether there is nothing left to say; the buttons cannot be pressed then.
    """

    _esm = script("decision_buttons.js")
    fields = traitlets.List(traitlets.Unicode()).tag(sync=True)
    offers = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    decided = traitlets.Bool(False).tag(sync=True)

    def __init__(self, fields: Sequence[Any], offers: Sequence[Sequence[str]]) -> None:
        names = [field.model_id for field in fields]
        super().__init__(fields=names, offers=[list(offer) for offer in offers])
