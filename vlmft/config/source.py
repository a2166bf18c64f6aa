"""The registry as Hydra sees it: config groups without files, whose options are expressions (`dataset=A+B*2`)."""

from typing import ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from vlmft.config.registry import Registry
from vlmft.config.roots import Root
from vlmft.errors import ConfigError

GROUPS = {"dataset": "datasets", "eval_dataset": "datasets", "metric": "metrics", "reward": "rewards"}
"""Group on the command line -> folder of the registry that serves it."""

Names = list[str]  # inside the class below, `list` is a method


def options_of(group: str) -> Names:
    """What may be chosen in a virtual group, for messages."""
    return RegistrySource.registry.names(GROUPS[group])


class RegistrySource(ConfigSource):
    """Serves the virtual groups. Hydra makes and copies instances as it likes, so the registry hangs on the class."""

    registry: ClassVar[Registry] = Registry()

    @staticmethod
    def scheme() -> str:
        """Return the scheme of this source's address in the search path."""
        return "registry"

    def available(self) -> bool:
        """Return True: a registry without entries is one, too."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return whether `config_path` is a virtual group, or the place above them."""
        return config_path == "" or config_path in GROUPS

    def is_config(self, config_path: str) -> bool:
        """Return True for every option of a virtual group: what is wrong with one, `load_config` says better."""
        group, _, expression = config_path.partition("/")
        return group in GROUPS and expression != ""

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the chosen entries by name. Raises `ConfigError`, prefixed with the choice."""
        group, _, expression = config_path.partition("/")
        try:
            chosen = self.registry.select(GROUPS[group], expression)
        except ConfigError as error:
            raise ConfigError(*(f"{group}={expression}: {problem}" for problem in error.problems)) from None
        config = OmegaConf.create(chosen)
        for name in chosen:
            # An entry writes only what differs from its spec, so `dataset.A.media_dir=...` may add a field; one that
            # the spec does not know is found when the whole config is validated.
            OmegaConf.set_struct(config[name], False)
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header={"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> Names:
        """Return what may be chosen, for completion, `--help` and `glob()`; not `none`, which `glob(*)` would take."""
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else sorted(GROUPS)
        return [] if results_filter == ObjectType.GROUP else self.registry.names(GROUPS[config_path])


class RootsSearchPath(SearchPathPlugin):
    """Appends the user roots' option files, and the registry, to the places where Hydra looks."""

    roots: ClassVar[tuple[Root, ...]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Extend `search_path`; the built-in root is there already, as the main one."""
        for root in self.roots[1:]:
            if root.conf.is_dir():
                search_path.append(provider=str(root.folder), path=f"file://{root.conf}")
        search_path.append(provider="registry", path="registry://")


def serve(roots: tuple[Root, ...], registry: Registry) -> None:
    """Make Hydra look into these roots and this registry from now on.

    Raises:
        ConfigError: a root has option files for a group that the registry serves; they would hide its entries.
    """
    ConfigError.raise_if(
        f"{root.conf / group}: options of {group} are entries of registry/{kind}/*.yaml, not files in conf/"
        for root in roots
        for group, kind in GROUPS.items()
        if (root.conf / group).is_dir()
    )
    RootsSearchPath.roots, RegistrySource.registry = roots, registry
    for plugin in (RegistrySource, RootsSearchPath):
        Plugins.instance().register(plugin)
