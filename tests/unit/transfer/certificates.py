"""Certificates for tests, made by the openssl program."""

import shutil
import subprocess
from pathlib import Path

import pytest
from warmfleet_proto.channel import Tls

_EXTENSIONS = "subjectAltName=IP:127.0.0.1,DNS:localhost"


def authority(folder: Path, name: str) -> Path:
    """A new authority's certificate; its key lies beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate = folder / f"{name}.pem"
    _openssl("req", "-x509", *_new_key(folder, name), "-out", certificate, "-subj", f"/CN={name}")
    return certificate


def certificate(folder: Path, name: str, signer: Path) -> Tls:
    """Signed by ``signer``, for loopback."""
    request, made = folder / f"{name}.csr", folder / f"{name}.pem"
    extensions = folder / f"{name}.ext"
    extensions.write_text(_EXTENSIONS)
    _openssl("req", *_new_key(folder, name), "-out", request, "-subj", f"/CN={name}")
    signing = ("-CA", signer, "-CAkey", signer.with_suffix(".key"), "-CAcreateserial")
    _openssl("x509", "-req", "-in", request, *signing, "-out", made, "-extfile", extensions)
    return Tls(str(made), str(folder / f"{name}.key"), str(signer))


def _new_key(folder: Path, name: str) -> tuple[str | Path, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    return (*curve, "-keyout", folder / f"{name}.key")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
