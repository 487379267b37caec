"""Which kind of data a row is, by its fields alone."""

from data_prep.readers import conversation_formats, preference_formats
from data_prep.readers.columns import parse_columns
from data_prep.readers.conversation_formats import is_conversation, is_of_tree
from data_prep.readers.preference_formats import formats_of


def classify(row, text_column: str = "text") -> str:
    """ "preferences", "conversations", "document", or "" for a row with the fields of none of them or not an object.

    The first kind that fits: a conversation with answers to compare is a preference, and a row with text under
    `text_column` is a document only if it is neither, nor one message of a tree.
    """
    if not isinstance(row, dict):
        return ""
    if formats_of(row):
        return "preferences"
    if is_conversation(row):
        return "conversations"
    return "document" if text_column in row and not is_of_tree(row) else ""


def kind_of_columns(columns: dict[str, str] | str | None) -> tuple[str, dict[str, str] | None]:
    """("conversations" or "preferences", {field: column}), by the fields that `columns` names; ("", None) without columns:
    every row is then classified by itself. Raises InputError."""
    known = dict.fromkeys((*conversation_formats.FIELDS, *preference_formats.FIELDS))
    named = parse_columns(columns, known) or {}
    if named.keys() <= set(conversation_formats.FIELDS):
        return ("conversations" if named else ""), parse_columns(columns, conversation_formats.FIELDS)
    return "preferences", parse_columns(columns, preference_formats.FIELDS)
