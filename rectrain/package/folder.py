"""A folder with a manifest that verifies itself and every file beside it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError

from rectrain.errors import PackageError, RectrainError, StorageError
from rectrain.package.parts import (
    ENCODER,
    FULL_TOKENIZER,
    HEADS,
    TASKS,
    ModelParts,
    read_parts,
)
from rectrain.train.storage import Store

__all__ = [
    "CARD",
    "GRAPHS",
    "ITEMS",
    "Package",
    "check_free",
    "entry",
    "open_package",
    "version_of",
    "write_folder",
]

CARD, GRAPHS, ITEMS = "README.md", "graphs/", "items/"
_FORMAT, _KIND, _MANIFEST = 1, "rectrain package", "manifest.json"
_NEEDED = {CARD, TASKS, HEADS, f"{ENCODER}config.json", f"{ENCODER}model.safetensors"}
# The only files that a package may hold: whatever reads them runs no code that stands in them.
_ALLOWED = re.compile(
    r"README\.md|(tasks|policy|golden)\.json|heads\.safetensors|[\w-]+\.png"
    r"|encoder/(README\.md|model\.safetensors|(1_Pooling/)?config\.json)"
    r"|encoder/(modules|sentence_bert_config)\.json"
    r"|(encoder|full_tokenizer)/(tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|(encoder|full_tokenizer)/vocab\.txt"
    r"|graphs/[\w.-]+\.(xml|bin|onnx)"
    r"|items/\w+\.safetensors"
)
_UNUSABLE = (
    *(RectrainError, SafetensorError, AssertionError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
_PUBLISHED = "give the --output of python -m jobs.publish"


class _File(BaseModel, strict=True):
    bytes: NonNegativeInt
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Manifest(BaseModel, strict=True):
    """What is read of a manifest."""

    version: str
    tasks: list[str]
    files: dict[str, _File]


@dataclass(frozen=True)
class Package:
    """A verified package on this machine.

    Attributes:
        path: the folder.
        manifest: its manifest.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def version(self) -> str:
        """SHA-256 of what decides the model's vectors and scores."""
        return str(self.manifest["version"])

    @property
    def sha256(self) -> str:
        """SHA-256 of all that the manifest says, and so of all files; it stands in there too."""
        return hashlib.sha256(_json(self.manifest)).hexdigest()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the model's tasks, in its order."""
        return tuple(self.manifest["tasks"])

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """path -> bytes and sha256, of every file but the manifest."""
        files: Mapping[str, Mapping[str, Any]] = self.manifest["files"]
        return files

    @property
    def graphs(self) -> dict[str, Path]:
        """name -> file of each graph of the encoder: openvino, openvino-int8, onnx, onnx-int8."""
        return {
            Path(file).stem: self.path / file
            for file in self.files
            if file.startswith(GRAPHS) and file.endswith((".xml", ".onnx"))
        }

    @property
    def indexes(self) -> dict[str, Path]:
        """task -> file of its item index."""
        return {Path(f).stem: self.path / f for f in self.files if f.startswith(ITEMS)}

    def read(self) -> ModelParts:
        """The model, its tokenizer, and how rows are encoded for it.

        Raises:
            PackageError: the files are as they were written, but this version can't use them.
        """
        try:
            return read_parts(self.path)
        except _UNUSABLE as error:
            raise _refused(
                self.path,
                f"{type(error).__name__} {error}",
                rule="this version must know what is in it",
                fix=f"use rectrain {self.manifest.get('written_by')}, which wrote it",
            ) from error


def version_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """A package's version: SHA-256 of the names and hashes of the files that decide its scores.

    Args:
        files: path -> bytes and sha256.
    """
    decisive = {
        name: facts["sha256"]
        for name, facts in files.items()
        if name in (HEADS, TASKS)
        or (name.startswith((ENCODER, FULL_TOKENIZER)) and not name.endswith(".md"))
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def entry(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file: bytes and sha256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --- writing ---------------------------------------------------------------------------------


def check_free(root: Path, *, overwrite: bool) -> None:
    """Refuses a place that holds anything but an empty folder, or a package to be replaced.

    Raises:
        PackageError: see above.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    got, fix = "a package that is there already", "give another --output, or --overwrite"
    if not _is_package(root):
        got, fix = "something else that is there", "give another --output"
    elif overwrite:
        return
    raise PackageError(what=f"output {root}", got=got, rule="only packages are replaced", fix=fix)


def _is_package(root: Path) -> bool:
    try:
        return bool(json.loads((root / _MANIFEST).read_bytes())["kind"] == _KIND)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def write_folder(root: Path, facts: Mapping[str, Any], files: Mapping[str, bytes]) -> Package:
    """Writes a draft beside the folder, syncs and renames it, and verifies the result.

    A failure or a kill leaves what was there: in its place, or, if it comes between two renames,
    beside it as .<name>.old-<process>. What another process changed since `facts` were read is not
    overwritten.

    Args:
        root: the folder; is replaced where it is there.
        facts: the manifest's other entries and `files`: path -> bytes and sha256 of every file.
        files: path -> content of the files that are new; the others are those of the folder.

    Raises:
        PackageError: one of the others is no longer what `facts` say.
        StorageError: the folder can't be written.
    """
    listed = dict(sorted(facts["files"].items()))
    assert not _check_names(listed, {*listed, _MANIFEST}), "no files of a package"
    manifest = {"format": _FORMAT, "kind": _KIND, "written_by": _own_version(), **facts}
    parent, drafts = Store.open(str(root.parent)), f".{root.name}.draft-{socket.gethostname()}-"
    name = f"{drafts}{os.getpid()}"
    draft = parent.sub(name)
    try:
        parent.make()
        for left in _abandoned(parent, drafts):
            parent.remove(left)
        for file in listed:
            data = files[file] if file in files else (root / file).read_bytes()
            if entry(data) != listed[file]:
                raise _refused(
                    root,
                    f"{file} altered",
                    rule="it was changed since it was opened, and is left as it is",
                    fix="try again",
                )
            draft.write(file, data)
        draft.write(_MANIFEST, _sealed({**manifest, "files": listed}))
        for folder in {Path(file).parent.as_posix() for file in listed} | {"."}:
            draft.sync(folder)
        _replace(parent, draft=name, name=root.name)
    except OSError as error:
        raise StorageError(
            what=f"output {root}",
            got=error.strerror or error,
            rule="must be a folder that this process can write",
            fix="give another output, or mend its permissions or disk",
        ) from error
    finally:
        parent.remove(name)
    return open_package(root)


def _abandoned(parent: Store, drafts: str) -> list[str]:
    """Drafts that no process of this machine writes any more: it was killed, or is this one."""
    found = [name for name in parent.folders() if re.fullmatch(rf"{re.escape(drafts)}\d+", name)]
    writers = {name: int(name.removeprefix(drafts)) for name in found}
    return [
        name
        for name, process in writers.items()
        if process == os.getpid() or not psutil.pid_exists(process)
    ]


def _replace(parent: Store, *, draft: str, name: str) -> None:
    old = f".{name}.old-{os.getpid()}"
    if parent.exists(name):
        parent.rename(name, old)
    try:
        parent.rename(draft, name)
    except OSError:
        if parent.exists(old):
            parent.rename(old, name)
        raise
    parent.remove(old)


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest with the SHA-256 of all else in it, so that it is verified too."""
    return _json({**manifest, "sha256": hashlib.sha256(_json(manifest)).hexdigest()})


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()  # keys unsorted: tasks have an order


def _own_version() -> str:
    try:
        return version("rectrain")
    except PackageNotFoundError:  # the source alone
        return "0+source"


# --- reading ---------------------------------------------------------------------------------


def open_package(path: Path | str) -> Package:
    """Verifies a package: its manifest, that its files are there and no others, sizes, SHA-256.

    Args:
        path: the folder.

    Raises:
        PackageError: foreign, incomplete, altered, or of a newer format.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise _refused(
            root, "no such folder", rule="a package is a folder of this machine", fix=_PUBLISHED
        )
    try:
        manifest = _read_manifest(root)
        listed = manifest["files"]
        problem = _check_names(listed, set(_found(root)))
        for name in () if problem else listed:
            problem = problem or _check_file(root / name, name, listed[name])
        if not problem and manifest["version"] != version_of(listed):
            problem = "another version", "it is that of the files that decide the scores"
    except OSError as error:
        raise _refused(root, error.strerror or error, rule="must be readable") from error
    if problem:
        raise _refused(root, problem[0], rule=problem[1])
    return Package(root, manifest)


def _read_manifest(root: Path) -> dict[str, Any]:
    rule = f"a package holds a {_MANIFEST} of its own kind"
    if not (root / _MANIFEST).is_file():
        raise _refused(root, f"no {_MANIFEST}", rule=rule, fix=_PUBLISHED)
    data = (root / _MANIFEST).read_bytes()
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(root, f"altered {_MANIFEST}", rule="must be JSON") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise _refused(root, f"another {_MANIFEST}", rule=rule, fix=_PUBLISHED)
    if manifest.get("format") != _FORMAT:
        raise _refused(
            root,
            f"format {manifest.get('format')}",
            rule=f"this version reads format {_FORMAT}",
            fix=f"use rectrain {manifest.get('written_by')}, which wrote it, or newer",
        )
    manifest.pop("sha256", None)
    if data != _sealed(manifest):
        rule = "it holds the SHA-256 of all else in it"
        raise _refused(root, f"altered {_MANIFEST}", rule=rule)
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        wrong = ".".join(map(str, error.errors()[0]["loc"]))
        raise _refused(
            root, f"{_MANIFEST} without a right {wrong}", rule="it names every file"
        ) from error
    return manifest


def _found(root: Path) -> Iterator[str]:
    """All in the folder but plain sub-folders, by path; a folder behind a link is one entry."""
    for folder, names, files in os.walk(root):
        links = [name for name in names if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _check_names(listed: Mapping[str, Any], found: set[str]) -> tuple[str, str] | None:
    """What is wrong with the files' names, and the rule; None where nothing is."""
    for got, names, rule in (
        ("missing", listed.keys() - found, "every file of the manifest is there"),
        ("unexpected", found - {*listed, _MANIFEST}, "only files of the manifest are there"),
        ("foreign", {name for name in listed if not _ALLOWED.fullmatch(name)},
         "only safetensors, JSON, vocabularies, graphs, the cards and pictures, each in its place"),
        ("missing", _NEEDED - listed.keys(), "a package holds a whole model"),
    ):  # fmt: skip
        if names:
            some = ", ".join(sorted(names)[:3])
            return f"{got}: {some}{f' … ({len(names)} files)' if len(names) > 3 else ''}", rule
    return None


def _check_file(path: Path, name: str, facts: Mapping[str, Any]) -> tuple[str, str] | None:
    if not path.is_file():
        return f"{name} that is no file", "every entry is a plain file"
    if path.stat().st_size != facts["bytes"]:
        return f"{name} of {path.stat().st_size:,} bytes", f"{facts['bytes']:,} were written"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            return f"{name} altered", f"its SHA-256 stands in {_MANIFEST}"
    return None


def _refused(
    root: Path,
    got: object,
    *,
    rule: str,
    fix: str = "publish it again (python -m jobs.publish), or copy the whole folder again",
) -> PackageError:
    return PackageError(what=f"package {root}", got=got, rule=rule, fix=fix)
