"""The text that every Python has: the language reference behind `help("while")`.

Training needs no download with it: some eighty topics, about 465 thousand characters of English
and Python. The wording differs between Python versions, so figures made with it name the version.
"""

import importlib

from aieflow.ops.errors import InputError

TOPICS_MODULE = "pydoc_data.topics"


def default_documents() -> tuple[str, ...]:
    """Every topic of the language reference, in the order of the topics' names.

    Raises InputError where a distribution ships Python without its help texts.
    """
    try:
        topics: object = importlib.import_module(TOPICS_MODULE).topics
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the built-in text is missing from this Python ({TOPICS_MODULE}: {error}): install "
            "Python's full standard library, or give a text with --data"
        ) from error
    if not isinstance(topics, dict):
        raise InputError(
            f"{TOPICS_MODULE}.topics is a {type(topics).__name__}, not a dict of texts: "
            "give a text with --data"
        )
    return tuple(str(topics[name]) for name in sorted(topics))


def default_text() -> str:
    """The topics as one text, a blank line between them."""
    return "\n".join(default_documents())
