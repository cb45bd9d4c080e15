"""Writes src/carillon/v1 from protos/: messages, stubs and their types. With --check, only says what differs.

Runs in an environment of its own (requirements/codegen.lock), whose older compiler makes code that protobuf 6 and 7
both import. `make generate` and `make check` call it.
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

CLIENT = Path(__file__).parent
PROTOS = CLIENT.parent.parent / "protos"
GENERATED = CLIENT / "src" / "carillon" / "v1"


def generate(folder: Path) -> None:
    plugins = Path(sys.executable).parent
    files = sorted(str(file.relative_to(PROTOS)) for file in PROTOS.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    command += [f"--plugin={plugins / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    command += [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
    command += [f"--{kind}_out=quiet:{folder}" for kind in ("mypy", "mypy_grpc")]
    subprocess.run([*command, *files], check=True)
    package = folder / "carillon" / "v1"
    (package / "__init__.py").write_text('"""The contract, generated from protos/carillon/v1; never edited."""\n')
    for stub in package.glob("*_pb2_grpc.py"):
        if "class " not in stub.read_text():  # the protoc plugin writes one for files without a service too
            stub.unlink()
            stub.with_suffix(".pyi").unlink()


def differences(fresh: Path) -> list[str]:
    names = {file.name for folder in (fresh, GENERATED) for file in folder.iterdir() if file.is_file()}
    _, changed, missing = filecmp.cmpfiles(fresh, GENERATED, sorted(names), shallow=False)
    return sorted(changed + missing)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "carillon" / "v1"
        stale = differences(fresh)
        if "--check" in sys.argv:
            for name in stale:
                print(f"carillon/v1/{name} is not what protos/ says; run `make generate`")
            return 1 if stale else 0
        for name in stale:
            source, target = fresh / name, GENERATED / name
            target.write_bytes(source.read_bytes()) if source.exists() else target.unlink()
        print(f"{len(stale)} generated files changed")
        return 0


if __name__ == "__main__":
    sys.exit(main())
