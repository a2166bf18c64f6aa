"""File formats, one a module: a spec for the registry and the source that it opens."""
