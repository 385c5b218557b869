"""Which code is this? Two trainings are the same only if the code that trains is."""

import hashlib
from functools import cache
from importlib import metadata, resources


@cache
def code_version() -> str:
    """Return the package's version and a digest of the trainer's sources, e.g. `0.1.0+3f2a90c1`."""
    digest = hashlib.sha256()
    for source in sorted(resources.files("trainer").iterdir(), key=lambda source: source.name):
        if source.name.endswith(".py"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"{metadata.version('melsearch')}+{digest.hexdigest()[:8]}"
