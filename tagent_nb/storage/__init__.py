"""Where runs are recorded: in memory, in a folder, in SQLite or in Redis."""

from tagent_nb.storage.open import open_storage, register_storage

__all__ = ["open_storage", "register_storage"]
