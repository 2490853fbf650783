"""How states and values look to people: marks, colours and HTML."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "cards": "definition_table step_card step_facts",
        "html": "AS_IT_IS Bundle FONT LINE MONO MUTED TONES escape plain state_mark table",
        "theme": "Colors INPUT KIND_STYLES MISSING STATUS_STYLES StatusStyle",
    },
)
