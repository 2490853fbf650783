# Made by `python -m tests.stubs` from the table in __init__.py.
from tagent_nb.graph.live import LiveGraph as LiveGraph
from tagent_nb.graph.live import live_style as live_style
from tagent_nb.graph.picture import save_picture as save_picture
from tagent_nb.graph.picture import save_svg as save_svg
from tagent_nb.graph.picture import to_dot as to_dot
from tagent_nb.graph.picture import to_svg as to_svg
