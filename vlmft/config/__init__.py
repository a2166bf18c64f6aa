"""Strings and YAML become checked specs here. The only folder that knows Hydra and OmegaConf."""
