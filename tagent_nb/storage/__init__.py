"""Where runs are recorded: in memory, in a folder, in SQLite or in Redis."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "backend": (
            "BACKUPS",
            "ENDS",
            "LEASES",
            "ORDER",
            "StorageBackend",
        ),
        "backup.archive": ("BackupInfo",),
        "backup.restore": ("RestoreInfo",),
        "base": ("RunStorage",),
        "document_backend": ("DocumentStore",),
        "file.backend": ("FileStorageBackend",),
        "filesystem": ("trouble",),
        "format.envelope": ("read_record",),
        "format.events": ("RunInfo",),
        "lease": (
            "Holder",
            "Lease",
        ),
        "memory": ("MemoryStorageBackend",),
        "open": (
            "open_storage",
            "register_storage",
        ),
        "record_backend": ("RecordStoreBackend",),
        "redis.backend": ("RedisStorageBackend",),
        "sqlite.backend": ("SQLiteStorageBackend",),
    },
)
