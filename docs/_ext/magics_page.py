"""Writes docs/reference/magics.md from the magics themselves, whenever the documentation is built."""
