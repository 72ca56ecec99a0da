"""How every text of the application is written, so that a position counts the same everywhere."""

import unicodedata


def normalized(text: str) -> str:
    """NFC with plain line ends, which is what a browser's text field gives back."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
