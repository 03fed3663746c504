"""Generates everything that is derived from the schema: `make proto`, and `make check` holds the tree against it.

* `meshwarden/v1/*_pb2.py`, `*_pb2.pyi`, `*_pb2_grpc.py`: the stubs. They are made from a copy of the schema without its
  validation rules and REST routes, so that an application needs grpcio and protobuf and nothing else.
* `meshwarden/v1/schema.binpb`: the schema with rules, routes and comments, which the control plane loads to validate,
  to serve REST and to document it.
* the stubs of the examples' own services.

Source: protobuf's descriptor.proto; buf's `validate.proto` comes out of the protovalidate package, Google's
`annotations.proto` out of googleapis-common-protos.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import grpc_tools
import protovalidate
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
OPTIONS = ("buf/validate/validate.proto", "google/api/annotations.proto")
"""What our files import for options alone."""


def protoc(*arguments: str) -> None:
    """Runs the compiler of grpcio-tools; exits with its message if it fails."""
    # The plugins of mypy-protobuf lie beside this Python, which need not be on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, env={**os.environ, "PATH": path}
    )


def dependencies() -> descriptor_pb2.FileDescriptorSet:
    """The descriptors that our files import."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, timestamp_pb2, field_mask_pb2, http_pb2, annotations_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(protovalidate.ViolationPb.desc().file.proto.to_binary())
    return files


def without_rules(message: object) -> None:
    """Drops the options of every descriptor below `message`, rules and routes, but for redaction and deprecation."""
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.name == "options":
            for unknown_or_extension in [option for option, _ in value.ListFields() if option.is_extension]:
                value.ClearExtension(unknown_or_extension)
            value.DiscardUnknownFields()
        elif field.message_type is not None and field.is_repeated:
            for item in value:
                without_rules(item)


def comments_only(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Keeps of the source information what carries a comment: two per cent of its size."""
    commented = [place for place in file.source_code_info.location if place.leading_comments]
    del file.source_code_info.location[:]
    for place in commented:
        file.source_code_info.location.add(path=place.path, span=place.span, leading_comments=place.leading_comments)


def stubs(names: Iterable[str], *inputs: str, out: Path) -> None:
    """Writes the stubs of the files `names` below `out`."""
    protoc(
        *inputs,
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *names,
    )


def main(out: Path = HERE, examples_out: Path = EXAMPLES) -> None:
    """Writes the derived files below `out` and `examples_out`."""
    include = Path(grpc_tools.__file__).parent / "_proto"
    names = sorted(str(path.relative_to(HERE)) for path in HERE.glob("meshwarden/**/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        known, image, plain = (Path(scratch) / name for name in ("known.binpb", "image.binpb", "plain.binpb"))
        known.write_bytes(dependencies().SerializeToString(deterministic=True))
        protoc(
            f"-I{HERE}",
            f"--descriptor_set_in={known}",
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={image}",
            *names,
        )
        files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
        for file in files.file:
            if file.name in names:
                comments_only(file)
            else:
                file.ClearField("source_code_info")
        target = out / "meshwarden/v1/schema.binpb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files.SerializeToString(deterministic=True))
        for file in files.file:
            file.ClearField("source_code_info")
            without_rules(file)
            for option in OPTIONS:
                if option in file.dependency:
                    file.dependency.remove(option)
        plain.write_bytes(files.SerializeToString(deterministic=True))
        stubs(names, f"--descriptor_set_in={plain}", out=out)
    own = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("meshwarden/**/*.proto"))
    if own:
        stubs(own, f"-I{EXAMPLES}", f"-I{include}", out=examples_out)


def check() -> int:
    """Says which derived files differ from what would be generated now; returns how many."""
    with tempfile.TemporaryDirectory() as scratch:
        roots = {HERE: Path(scratch) / "proto", EXAMPLES: Path(scratch) / "examples"}
        for fresh in roots.values():
            fresh.mkdir()
        main(*roots.values())
        stale = [
            tree / path.relative_to(fresh)
            for tree, fresh in roots.items()
            for path in sorted(fresh.rglob("*.*"))
            if not (tree / path.relative_to(fresh)).is_file()
            or (tree / path.relative_to(fresh)).read_bytes() != path.read_bytes()
        ]
    for path in stale:
        print(f"{path}: not as generated; run `make proto`", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(1 if check() else 0)
    main()
