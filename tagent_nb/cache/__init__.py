"""Answers by fingerprint, so that nothing unchanged is paid for again; why a step runs again."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "diskcache_table": "CacheStats",
        "entry": "CacheEntry",
        "fingerprint.bytecode": "Reads code_reads text_reads",
        "fingerprint.components": (
            "ItemKeys SOURCES add_components class_components definition_components input_components "
            "text_digest tool_code unit_key"
        ),
        "fingerprint.explain": "GENERATION differing explain is_earlier uncompared",
        "fingerprint.modules": "is_user_module",
        "fingerprint.values": "LargeValue refusing_large_values remember_digest",
        "store": "ResultCache",
    },
)
