"""Plugin for Hydra's search path: ``+recipe=prune_opd``, ``+platform=cpu``."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PruneOPDSearchPath(SearchPathPlugin):
    """Search path of ours, appended, so that nothing of verl's or of the user's is shadowed."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """See ``SearchPathPlugin``."""
        for package in ("recipe.prune_opd.conf", "verl_ext.conf"):
            search_path.append(provider=package, path=f"pkg://{package}")
