"""Values and events as bytes, and back."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "annotations": "is_model",
        "arrow_tables": "polars_rows",
        "bare_schemas": "bare bare_schema inner_type is_bare is_expression wrapped",
        "classes": "Classes Referred",
        "copies": "FROZEN is_bulky own_copy",
        "event_json": "event_from_dict event_to_dict",
        "labels": "index_from index_of levels_of plain_attributes",
        "scalars": "own_float",
        "schemas": (
            "FORMAT check_format fields_of_class in_order json_schema meaning_of parts_of_type registry "
            "schema_hash sets_of"
        ),
        "signed_pickle": "from_pickle signed_dump signed_load to_pickle",
        "value": (
            "LARGE StoredValue clean decode digest encode examine from_tree notes_to_tree parse to_tree "
            "unreadable"
        ),
    },
)
