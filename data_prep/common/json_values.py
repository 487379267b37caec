"""Values of Parquet and the Hub as JSON has them: it knows no dates, decimals or bytes, and no NaN."""

import math

AS_TEXT, AS_NULL = "written as text, which JSON has no other form for", "written as null, which was NaN or Infinity"


def json_value(value, changed: set[str]):
    """`value` with types of JSON alone; `changed` gets `AS_TEXT` and `AS_NULL` where that took another value."""
    if isinstance(value, dict):
        return {key: json_value(each, changed) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each, changed) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        changed.add(AS_NULL)
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    changed.add(AS_TEXT)
    return str(value)
