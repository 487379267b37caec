"""The encoding of an HTML page, as browsers find it (WHATWG, Encoding and HTML Standard)."""

import codecs
import re

from data_prep.documents.sections import NotRead, decoded

HEAD = 1 << 16  # bytes in which a page names its encoding
BODY = re.compile(rb"<body[\s>]", re.I)
COMMENT = re.compile(rb"<!--.*?-->", re.S)
CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
XML = re.compile(rb"\s*<\?xml[^>]+encoding\s*=\s*[\"']([\w.:-]+)")
# What an encoding is read as: one that holds it and has what pages really use, such as the quotation marks of Windows.
# A page in which its encoding can be found is not in UTF-16.
READ_AS = {"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
           "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949",
           "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8"}  # fmt: skip


def html_text(data: bytes) -> str:
    """A page decoded as its byte order mark, <meta> or XML declaration says, otherwise as UTF-8. Raises NotRead."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        return decoded(data)
    head = COMMENT.sub(b"", data[:HEAD])
    body = BODY.search(head)
    named = CHARSET.search(head[: body.start()] if body else head) or XML.match(head)
    if not named:
        return decoded(data)
    label = named[1].decode("ascii").lower()
    try:
        encoding = codecs.lookup(re.sub(r"^(x-)+", "", label)).name
        encoding = READ_AS.get(encoding, encoding)
        if encoding == "utf-8":
            return decoded(data)
        text = data.decode(encoding, "undefined in windows" if encoding.startswith("cp") else "strict")
    except (LookupError, UnicodeError):
        name = READ_AS.get(label, label)
        raise NotRead("unreadable", f"it says that it is {name}, and is not: save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _control(error: UnicodeError) -> tuple[str, int]:
    """Bytes for which Windows has no character are the control characters of that number."""
    found = error.object[error.start : error.end]
    if not all(0x80 <= byte < 0xA0 for byte in found):
        raise error
    return found.decode("latin-1"), error.end


codecs.register_error("undefined in windows", _control)
