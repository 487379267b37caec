"""Which kind of data a row is, by its fields alone."""

from data_prep.readers.conversation_formats import is_conversation
from data_prep.readers.preference_formats import formats_of


def classify(row, text_column: str = "text") -> str:
    """ "preferences", "conversations", "document", or "" for a row with the fields of none of them or not an object.

    The first kind that fits: a conversation with answers to compare is a preference, and a row with text under
    `text_column` is a document only if it is neither.
    """
    if not isinstance(row, dict):
        return ""
    if formats_of(row):
        return "preferences"
    if is_conversation(row):
        return "conversations"
    return "document" if text_column in row else ""
