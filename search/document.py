"""A TOML file as plain tables, or a message that says where it breaks."""

import tomllib
from pathlib import Path

from search.errors import ConfigError


def read_document(path: Path) -> dict[str, object]:
    """Read a TOML file.

    Raises:
        ConfigError: there is no such file, or it is not UTF-8, or not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no such study file: {path}") from None
    except OSError as error:
        raise ConfigError(f"can't read the study file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"not UTF-8, save it as UTF-8 ({path.name}, line {line})") from error
    except RecursionError:
        raise ConfigError(f"nested too deeply ({path.name})") from None
    except ValueError as error:  # TOMLDecodeError, and numbers with too many digits
        raise ConfigError(f"not TOML: {error} ({path.name})") from error
