"""Pictures on disk: where they may lie, their size, their pixels."""
