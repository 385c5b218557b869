"""Addresses of databases: what is accepted, and that no password comes out again."""

from pathlib import Path

import pytest

from storage.database import Database, parse_url
from storage.errors import DatabaseRefusedError

SECRET_FILE = "MELSEARCH_STORAGE_PASSWORD_FILE"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_spelling_of_the_scheme_means_the_same(scheme: str) -> None:
    """The schemes that people write all lead to our driver."""
    url = parse_url(f"{scheme}://ann:pw@db.example:6543/search", {})
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host) == ("ann", "pw", "db.example")
    assert (url.port, url.database) == (6543, "search")


@pytest.mark.parametrize("text", ["mysql://h/db", "sqlite:///file.db", "http://h/db"])
def test_another_database_is_refused(text: str) -> None:
    """The message names the setting and what it holds."""
    with pytest.raises(DatabaseRefusedError, match=r"MELSEARCH_STORAGE must be a postgresql://"):
        parse_url(text, {})


@pytest.mark.parametrize(
    "text", ["s3cret", "", "postgresql://ann:s3cret@h:port/db", "postgresql://ann:x@s3cret@h/db"]
)
def test_malformed_url_is_refused_without_its_password(text: str) -> None:
    """What can't be read might be a password, so it is not repeated."""
    with pytest.raises(DatabaseRefusedError, match="MELSEARCH_STORAGE") as error:
        parse_url(text, {})
    assert "s3cret" not in str(error.value)


def test_secret_file_gives_the_password(tmp_path: Path) -> None:
    """The newline that editors leave at the end is no part of the password."""
    secret = tmp_path / "password"
    secret.write_text("p@ss/w:rd\n")
    url = parse_url("postgresql://ann@h/db", {SECRET_FILE: str(secret)})
    assert url.password == "p@ss/w:rd"


def test_password_in_the_url_wins_over_the_file(tmp_path: Path) -> None:
    """The nearer setting wins, and the file need not even be there."""
    url = parse_url("postgresql://ann:near@h/db", {SECRET_FILE: str(tmp_path / "none")})
    assert url.password == "near"


def test_missing_secret_file_is_named(tmp_path: Path) -> None:
    """The message names both the setting and the file."""
    with pytest.raises(DatabaseRefusedError, match=rf"{SECRET_FILE} names .*none, which can't"):
        parse_url("postgresql://ann@h/db", {SECRET_FILE: str(tmp_path / "none")})


def test_binary_secret_file_is_refused(tmp_path: Path) -> None:
    """A file that is no text is refused, its bytes untold."""
    secret = tmp_path / "password"
    secret.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatabaseRefusedError, match="can't be read"):
        parse_url("postgresql://ann@h/db", {SECRET_FILE: str(secret)})


@pytest.mark.parametrize(
    "text", ["postgresql://ann:s3cret@h/db", "postgresql://h/db?user=ann&password=s3cret"]
)
def test_password_is_hidden_in_messages(text: str) -> None:
    """However the password was given, the database's name for people lacks it."""
    url = parse_url(text, {})
    assert url.password == "s3cret"
    database = Database(url)
    assert "s3cret" not in str(database)
    assert "s3cret" not in repr(database.engine)
    database.close()
