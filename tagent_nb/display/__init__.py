"""How states and values look to people: marks, colours and HTML."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "html": (
            "AS_IT_IS",
            "Bundle",
            "FONT",
            "LINE",
            "MONO",
            "MUTED",
            "TONES",
            "clip",
            "count",
            "definition_table",
            "escape",
            "plain",
            "state_mark",
            "step_card",
            "step_facts",
            "table",
        ),
        "theme": (
            "INPUT",
            "KIND_LOOKS",
            "LOOKS",
            "Look",
            "MISSING",
            "Paint",
        ),
    },
)
