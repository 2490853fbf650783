"""Where runs are recorded: in memory, in a folder, in SQLite or in Redis."""

from tagent_nb.lazy_face import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "backend": "BACKUPS ENDS LEASES ORDER",
        "document_backend": "DocumentStore",
        "file.backend": "FileStorageBackend",
        "filesystem": "trouble",
        "format.envelope": "read_record",
        "lease": "Holder Lease",
        "memory": "MemoryStorageBackend",
        "open": "StorageBackend open_storage register_storage",
        "record_backend": "RecordStoreBackend",
        "redis.backend": "RedisStorageBackend",
        "run_info": "BackupInfo RestoreInfo RunInfo",
        "run_storage": "RunStorage",
        "sqlite.backend": "SQLiteStorageBackend",
    },
)
