"""Whether LIBERO and its assets are installed."""

from mistjax.envs.libero.installation import find_assets

try:
    find_assets()
except (ImportError, FileNotFoundError):
    FOUND = False
else:
    FOUND = True
