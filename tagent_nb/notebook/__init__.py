"""The only package that knows Jupyter: magics, panel and widgets."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "extension": "load_ipython_extension unload_ipython_extension",
        "session": "current",
    },
)
