"""What an Office file or an EPUB has in it, looked at before any library reads it."""

import re
import zipfile
import zlib
from io import BytesIO

from data_prep.documents.sections import NotRead

MEMBERS = 20_000
UNPACKED = 1 << 28  # bytes, of all members together
OFFICE = (".docx", ".pptx", ".xlsx")
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
BLANK = b" \t\r\n\xef\xbb\xbf\xff\xfe"
DECLARES = re.compile(rb"<!ENTITY", re.I)
DOCTYPE = re.compile(rb"<!(DOCTYPE|ENTITY)", re.I)
LOCKED_TEXT = re.compile(rb"URI\s*=\s*[\"'][^\"']+\.x?html?[\"']", re.I)


def check_archive(data: bytes, ending: str) -> None:
    """Raise NotRead for an archive that is encrypted or broken, unpacks to too much, or has macros or XML entities in it."""
    if data.startswith(OLD_OFFICE):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise NotRead("encrypted", "a password protects it")
        raise NotRead("unreadable", f"a file from before Office 2007: save it as {ending}")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            _check_members(archive, ending)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        EOFError,
        OSError,
        ValueError,
        zlib.error,
    ) as error:
        raise NotRead("unreadable", f"no complete zip archive ({error})") from None


def _check_members(archive: zipfile.ZipFile, ending: str) -> None:
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise NotRead("refused", f"{len(members):,} files in it, at most {MEMBERS:,} are read")
    if (unpacked := sum(member.file_size for member in members)) > UNPACKED:
        raise NotRead("refused", f"unpacks to {unpacked:,} bytes, at most {UNPACKED:,} are read")
    if any(member.flag_bits & 1 for member in members):
        raise NotRead("encrypted", "a password protects it")
    for member in members:
        name = member.filename.lower()
        if name.rsplit("/")[-1].startswith("vbaproject"):
            raise NotRead("refused", f"macros in it ({member.filename}): save it without them")
        if name.endswith((".xml", ".rels", ".opf", ".ncx", ".xhtml", ".html", ".htm", ".vml")):
            _check_xml(member.filename, archive.read(member), ending)


def _check_xml(name: str, content: bytes, ending: str) -> None:
    """Raise NotRead for XML that could name other files or grow: a library's own guard is then never needed."""
    plain = content.replace(b"\0", b"")  # of UTF-16 the ASCII is left
    if (DOCTYPE if ending in OFFICE else DECLARES).search(plain):
        raise NotRead("refused", f"XML entities or a document type in {name}")
    if ending in OFFICE and name.endswith((".xml", ".rels")) and not plain.lstrip(BLANK).startswith(b"<"):
        raise NotRead("unreadable", f"{name} is not XML in UTF-8 or UTF-16")
    if name == "[Content_Types].xml" and b"macroEnabled" in plain:
        raise NotRead("refused", "macros in it: save it without them")
    if name == "META-INF/encryption.xml" and LOCKED_TEXT.search(plain):
        raise NotRead("encrypted", "its text is encrypted (META-INF/encryption.xml)")
