"""Goals and conditions: what they read, and their text."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "coerce": "distinct instance_of is_array key_text short_floats with_index",
        "template": (
            "Reference evaluate group_column literal lookup reads_items references_of render render_pieces "
            "unknown_fields"
        ),
        "views": "DATA_RULE MISSING Record Rows Table delimit plain_text shown_text view",
    },
)
