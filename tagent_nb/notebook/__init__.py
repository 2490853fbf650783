"""The only package that knows Jupyter: magics, panel and widgets."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "session": ("current",),
    },
)
