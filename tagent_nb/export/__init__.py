"""A pipeline as a Python module, and other rows for it."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "inputs": "feed",
        "module": "export_module is_own",
    },
)
