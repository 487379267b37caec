"""Which kind of data a row is, by its fields alone."""

from data_prep.readers.conversation_formats import is_conversation
from data_prep.readers.preference_formats import formats_of


def classify(row, text_column: str = "text") -> str:
    """ "preferences", "conversations", "document" or "": what has the fields of none of them, or is not an object.

    The first kind that fits: answers to be compared make a preference of what would otherwise be a conversation, and a
    document is what has text under `text_column` and nothing else that is known.
    """
    if not isinstance(row, dict):
        return ""
    if formats_of(row):
        return "preferences"
    if is_conversation(row):
        return "conversations"
    return "document" if text_column in row else ""
