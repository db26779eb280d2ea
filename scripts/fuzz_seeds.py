"""Seeds for the fuzz targets, in fuzz/corpus (which git ignores): of fixtures, and of ../shared/evidence where it is.

Evidence of real hardware takes a fuzzer past the first checks of a parser. It is copied nowhere else.
"""

import base64
import json
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
EVIDENCE = ROOT.parent / "shared" / "evidence"


def seed(target: str, name: str, data: bytes) -> None:
    """Writes one seed."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def fields(*values: bytes) -> bytes:
    """The crate's encoding: each field behind its length, u32 little-endian."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def nvidia() -> None:
    """The first byte picks what the rest is: see fuzz_targets/nvidia.rs."""
    text = (EVIDENCE / "gpu" / "h100.evidence.json").read_bytes()
    seed("nvidia", "json", b"\x01" + text)
    gpu = json.loads(text)[0]
    transcript, pem = base64.b64decode(gpu["evidence"]), base64.b64decode(gpu["certificate"]).decode()
    seed("nvidia", "pem", b"\x01" + pem.encode())
    ends = pem.split("-----END CERTIFICATE-----")[:-1]
    chain = [base64.b64decode("".join(part.split("-----")[-1].split())) for part in ends]
    item = fields(b"bastionai/v1/nvidia-gpu", transcript, bytes([len(chain)]), *chain)
    seed("nvidia", "item", b"\x00" + item)
    response = transcript[37:-96]
    seed("nvidia", "response", b"\x03" + response)
    opaque = 8 + int.from_bytes(response[5:8], "little") + 32 + 2
    seed("nvidia", "opaque", b"\x02" + response[opaque:])
    # The object identifier 2.23.133.5.4.1, then an OCTET STRING with a length of one byte behind 0x81.
    identifier = bytes.fromhex("0606678105050401")
    at = chain[0].index(identifier) + len(identifier)
    length = chain[0][at + 2]
    seed("nvidia", "dice", b"\x04" + chain[0][at + 3 : at + 3 + length])
    broken = (EVIDENCE / "gpu" / "h100-invalid-signature.txt").read_bytes()
    seed("nvidia", "hex", b"\x01" + broken)


def tdx() -> None:
    """Two lengths, a quote, collateral, an event log: see fuzz_targets/tdx.rs."""
    for quote in sorted((EVIDENCE / "tdx").glob("*.quote.bin")):
        data = quote.read_bytes()
        collateral = quote.with_name(quote.name.replace(".quote.bin", ".collateral.json"))
        rest = collateral.read_bytes() if collateral.exists() else b""
        seed("tdx", quote.name, struct.pack("<HH", len(data), len(rest)) + data + rest)


def as_they_are(target: str, folder: Path, pattern: str = "*") -> None:
    """Files that a target reads as they are."""
    for path in sorted(folder.glob(pattern)):
        seed(target, path.name, path.read_bytes())


def main() -> None:
    """Seeds of every target that has some."""
    as_they_are("archive", ROOT / "crates" / "graph" / "tests" / "fixtures", "*.pt2")
    if not EVIDENCE.is_dir():
        print(f"{EVIDENCE} is not there: the targets of evidence start from nothing", file=sys.stderr)
        return
    nvidia()
    tdx()
    for target in ("azure", "tpm_quote"):
        as_they_are(target, EVIDENCE / "azure")
    as_they_are("snp", EVIDENCE / "snp")


if __name__ == "__main__":
    main()
