#!/usr/bin/env python3
"""Cuts the AES-GCM vectors of NIST's CAVP to the groups with an IV of 96 bits and a tag of 128 bits.

cut.py ORIGINALS [DIRECTORY]
    ORIGINALS is the unpacked gcmtestvectors.zip; DIRECTORY, by default its own, gets the cut files.
"""

import hashlib
import pathlib
import re
import sys

# SHA-256 of the originals, whose lines end with CRLF.
ORIGINALS = {
    "gcmDecrypt128.rsp": "0d1f98d0c9e176ede1f3e85484dd13de92c3436ca97df378ec3481e04c19a732",
    "gcmDecrypt256.rsp": "ed318735a517d5a85c82d2846c23dcf56e57a352fb0f0a163d9e7617a7bd12ad",
    "gcmEncryptExtIV128.rsp": "30156236f768b0d81e58a3e5bd3bd79ce294cf9ef0ba0a84cf7b869c89ebd9fd",
    "gcmEncryptExtIV256.rsp": "4448b4998c3f58cd9f5542ddf7c573189a721ff3d3ac24cd5177bb4910a787f8",
}


def cut(text: str) -> str:
    """The file's comments, and the groups that match."""
    head, *groups = re.split(r"(?m)^(?=\[Keylen = )", text)
    kept = [group for group in groups if "[IVlen = 96]\n" in group and "[Taglen = 128]\n" in group]
    return head + "".join(kept)


def main() -> int:
    originals = pathlib.Path(sys.argv[1])
    directory = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(__file__).parent
    for name, digest in ORIGINALS.items():
        data = (originals / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            print(f"{name} is not the original", file=sys.stderr)
            return 1
        (directory / name).write_text(cut(data.decode("ascii").replace("\r\n", "\n")), encoding="ascii", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
