"""TLS of the gRPC server. Its files are looked at for each connection that begins, so a renewed certificate needs no
restart. What was good is kept while the files are gone or do not fit together, as between two writes."""

from __future__ import annotations

import threading

import grpc
import structlog

from operations.tls_files import Pems, TlsFiles, TlsFilesError

log = structlog.get_logger()


def server_credentials(files: TlsFiles, *, demand_certificate: bool = False) -> grpc.ServerCredentials:
    """With `demand_certificate`, nobody connects without a certificate that `files.client_ca` signed.

    Errors: TlsFilesError.
    """
    current = CurrentCertificate(files)
    return grpc.dynamic_ssl_server_credentials(
        current.configuration(),
        current.renewed,  # type: ignore[arg-type]  # the types leave out that None is an answer: "as before"
        demand_certificate,
    )


class CurrentCertificate:
    """The last good contents of the files. gRPC asks from threads of its own."""

    def __init__(self, files: TlsFiles) -> None:
        """Errors: TlsFilesError."""
        self._files = files
        self._good = files.read()
        self._refused: Pems | str | None = None
        self._lock = threading.Lock()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        pems = self._good
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.client_ca)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What connections get from now on; None if that is what they got before. Says in the log, once, what is
        wrong with files that cannot be used."""
        with self._lock:
            try:
                found = self._files.contents()
            except TlsFilesError as error:
                self._refuse(str(error), error)
                return None
            if found in (self._good, self._refused):
                return None
            try:
                self._files.check(found)
            except TlsFilesError as error:
                self._refuse(found, error)
                return None
            self._good, self._refused = found, None
        log.info("certificate renewed", file=str(self._files.certificate))
        return self.configuration()

    def _refuse(self, what: Pems | str, why: TlsFilesError) -> None:
        if what != self._refused:
            self._refused = what
            log.error("the new certificate cannot be used; the one before stays in use", why=str(why))
