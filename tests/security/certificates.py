"""An authority of the test's own."""

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from anabranch.deploy.local.ports import HOST


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of an authority and of what it signed; `stranger` is another's."""

    folder: Path
    authority: trustme.CA

    @classmethod
    def made(cls, folder: Path) -> "Certificates":
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, trustme.CA())
        made.authority.cert_pem.write_to_path(folder / "ca.pem")
        trustme.CA().cert_pem.write_to_path(folder / "stranger.pem")
        made.issue("server")
        return made

    def issue(self, name: str, host: str = HOST) -> Path:
        """Return a PEM file of a key and the certificates that go with it."""
        leaf, path = self.authority.issue_cert(host, "localhost"), self.folder / f"{name}.pem"
        key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), password=None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )  # Kafka reads no other format
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        path.write_bytes(key + chain)
        path.with_suffix(".key").write_bytes(key)
        path.with_suffix(".crt").write_bytes(chain)
        return path

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.pem")

    @property
    def stranger(self) -> str:
        return str(self.folder / "stranger.pem")
