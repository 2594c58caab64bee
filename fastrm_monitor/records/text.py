"""Text that every database takes. Knows nothing of tables.

PostgreSQL refuses NUL characters, UTF-8 has no lone surrogates, and the columns have lengths; what a model says obeys
none of this. Everything else, right-to-left marks and SQL included, is stored as it is.
"""

from __future__ import annotations

import hashlib


def clean_text(text: str, limit: int | None = None) -> str:
    """Text without NUL characters and lone surrogates, the latter as U+FFFD, cut to `limit` characters."""
    text = text.replace("\x00", "")
    try:
        text.encode()
    except UnicodeEncodeError:  # by way of UTF-16, because there a pair of surrogates is the character it stands for
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text if limit is None else text[:limit]


def digest_of(name: str) -> str:
    """SHA-256, hexadecimal, of a name that must not be kept itself."""
    return hashlib.sha256(clean_text(name).encode()).hexdigest()
