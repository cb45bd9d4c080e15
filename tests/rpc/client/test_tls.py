"""The client over TLS, with certificates made for the test."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from carillon import Client, SchedulerUnavailable, Tls
from carillon.v1 import job_service_pb2, job_service_pb2_grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class OneJob(job_service_pb2_grpc.JobServiceServicer):
    async def GetJob(self, request: Any, context: Any) -> Any:
        return job_service_pb2.GetJobResponse()


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
    cert_path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    cert, key = self_signed(tmp_path, "scheduler")
    server = grpc.aio.server()
    job_service_pb2_grpc.add_JobServiceServicer_to_server(OneJob(), server)  # type: ignore[abstract]  # one is asked
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}", cert
    await server.stop(None)


async def test_a_trusted_scheduler_is_reached(secured: tuple[str, Path]) -> None:
    target, authority = secured
    async with Client(target, service_token="x.y", tls=Tls(ca=authority), timeout=20) as client:
        await client.get_job("email-service/digest")


async def test_a_scheduler_of_another_authority_is_not(secured: tuple[str, Path], tmp_path: Path) -> None:
    target, _ = secured
    other, _ = self_signed(tmp_path, "other")
    async with Client(target, service_token="x.y", tls=Tls(ca=other), timeout=20) as client:
        with pytest.raises(SchedulerUnavailable):
            await client.get_job("email-service/digest")


def test_half_a_client_certificate_is_refused(tmp_path: Path) -> None:
    cert, _ = self_signed(tmp_path, "client")
    with pytest.raises(ValueError, match="both cert and key"):
        Tls(cert=cert).credentials()
