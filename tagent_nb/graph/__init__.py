"""The dependency graph as DOT, SVG and pictures."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "live": "LiveGraph live_style",
        "picture": "save_picture save_svg to_dot to_svg",
    },
)
