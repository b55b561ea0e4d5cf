"""Signed promotions: Ed25519 signatures, so that a champion that nobody promoted is found out.

The private key is made on the machine that promotes, on first use. A machine that only loads models needs the public
one: `keys/trusted/<id>.pub`, a small text file. The registry's own tags and aliases can be set by anyone who reaches
it; a signature cannot.
"""

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from valle2.errors import ModelError


class Keys:
    """The signing key and the trusted public keys in a folder."""

    def __init__(self, folder: Path) -> None:
        self._private = folder / "promotion.key"
        self._trusted = folder / "trusted"

    def sign(self, text: str) -> str:
        """Sign with this machine's key, which is made on first use.

        Returns:
            `<key id>:<signature>`, both in hexadecimal.
        """
        key = Ed25519PrivateKey.from_private_bytes(self._secret())
        return f"{_identity(key.public_key())}:{key.sign(text.encode()).hex()}"

    def verify(self, text: str, signature: str) -> None:
        """Check a signature.

        Raises:
            ModelError: It is of another text, or of a key that is not trusted here.
        """
        name, _, value = signature.partition(":")
        path = self._trusted / f"{name}.pub"
        if not name.isalnum() or not path.is_file():
            raise ModelError(
                f"promotion signed by key {name[:16] or 'none'}, which is not trusted here; if it should be, copy its "
                f"`keys/trusted/{name[:16]}.pub` from the machine that promoted to {self._trusted}"
            )
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(path.read_text().strip()))
        try:
            key.verify(bytes.fromhex(value), text.encode())
        except (InvalidSignature, ValueError) as error:
            raise ModelError(
                f"the promotion record was altered: key {name[:16]} did not sign it; promote again"
            ) from error

    def _secret(self) -> bytes:
        if not self._private.is_file():
            key = Ed25519PrivateKey.generate()
            public = key.public_key()
            self._trusted.mkdir(parents=True, exist_ok=True)
            text = public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
            (self._trusted / f"{_identity(public)}.pub").write_text(text + "\n")
            secret = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
            building = self._private.with_suffix(f".{os.getpid()}.tmp")
            with os.fdopen(os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secret.hex() + "\n")
            building.replace(self._private)
        return bytes.fromhex(self._private.read_text().strip())


def _identity(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]
