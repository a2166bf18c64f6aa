"""Tiny checkpoints of real classes, one file a family: a folder each, made once and kept in the cache.

`model=tiny_<family>` works in every command, needs no download, and learns simple pictures on a CPU within a minute.
"""

from importlib import import_module
from pathlib import Path

from vlmft.cache import cache_dir, make_once
from vlmft.models.spec import ModelSpec


class TinyCheckpoint(ModelSpec, abstract=True):
    """Goes before a family's class: without a `path`, its checkpoint is the one that the family's factory writes.

    The factory is `build(folder)` in `vlmft.models.tiny.<module of the family>`.
    """

    def folder(self) -> Path:
        """The tiny checkpoint's folder in the cache, made on first use; `path` names another one."""
        from vlmft.models.tiny.shared import FACTORY_VERSION

        if self.path is not None:
            return super().folder()
        family = type(self).__module__.rpartition(".")[2]
        factory = import_module(f"vlmft.models.tiny.{family}")
        return make_once(cache_dir() / "models" / f"tiny_{family}-{FACTORY_VERSION}", factory.build)
