"""`python -m local_stack.compose_secrets`: writes the secrets that docker-compose.yml mounts, for development.

Each is a file of its own in `secrets/`, because that is how containers are given them. What is there stays, but for
`admin_jwt`, an admin's token for the next twelve hours.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from rich.console import Console

from local_stack.secrets import Secrets, kept_secrets
from local_stack.stack import ROOT


def write_secrets(folder: Path) -> None:
    """Makes the folder and its files, or completes them."""
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = kept_secrets(folder / "kept.json")
    admin_file = folder / "postgres_password"
    admin = admin_file.read_text() if admin_file.exists() else secrets.token_urlsafe(32)
    for name, value in _files(kept, admin).items():
        file = folder / name
        file.write_text(value)
        # Containers see the file as it is here, and their user is not its owner. The folder keeps others out.
        file.chmod(0o644)


def _files(kept: Secrets, admin: str) -> dict[str, str]:
    return {
        "postgres_password": admin,
        "database_url": _url("carillon_api", kept.api_password),
        "engine_url": _url("carillon_engine", kept.engine_password),
        "migration_url": _url("carillon_admin", admin),
        "service_tokens": kept.service_tokens,
        "jwt_secret": kept.jwt_secret,
        "worker_token": kept.worker_token,
        "email_service_token": kept.email_service_token,
        "kpi_service_token": kept.kpi_service_token,
        "signing_keys": kept.signing_keys,
        "email_service_signing_keys": kept.email_service_signing_key,
        "admin_jwt": kept.admin_jwt(),
    }


def _url(user: str, password: str) -> str:
    return f"postgresql://{user}:{password}@postgres:5432/carillon"


if __name__ == "__main__":
    write_secrets(ROOT / "secrets")
    console = Console(highlight=False)
    console.print("wrote secrets/; next: docker compose up --build --detach --wait")
    console.print("an admin's token, good for twelve hours, is in secrets/admin_jwt")
