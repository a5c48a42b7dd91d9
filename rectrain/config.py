"""Load a configuration file plus dotted overrides into a typed, frozen object.

Order: the command line over the file over the defaults. Environment and dotenv are never read:
`SEED=7` in a shell must not change a run.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from rectrain.errors import ConfigError
from rectrain.idle import Idle, refuse_idle

__all__ = [
    "Section",
    "dump_config",
    "help_text",
    "load_config",
    "parse_mapping",
    "parse_yaml",
    "yaml_mapping",
]


class Section(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused, no NaN or infinity.

    Describe each field with `Field(description=...)`: `help_text` shows it. A check of one field
    raises ValueError; a check across fields raises ConfigError, which passes through unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def idle(self) -> Iterable[Idle]:
        """Settings without effect as the others stand; asked of the root alone."""
        return ()


T = TypeVar("T", bound=Section)


def load_config(cls: type[T], *, file: str | None, overrides: Sequence[str]) -> T:
    """Read a YAML file, lay the overrides over it, validate.

    Args:
        cls: the section class at the root.
        file: path of a YAML file, or None for the defaults alone.
        overrides: arguments such as `--train.zero_stage=2`, or `--train.zero_stage`, `2`.
            A switch alone means true. A tuple is `[1,2]` or `1,2`. A dictionary is set key by
            key (`--loss_weights.risk=2`) or as `{risk: 2}`, and keeps the file's other keys.

    Raises:
        ConfigError: anything wrong, as one line with the dotted key, the value, the rule, the fix;
            also a setting without effect (see `refuse_idle`).
    """
    given = dict(_parse_overrides(cls, overrides))
    content = yaml_mapping(_read(file), name=file) if file else {}
    config = _validated(cls, content, file=file, given=given)
    refuse_idle(config, config.idle(), given=given)
    return config


def parse_yaml(cls: type[T], text: bytes, *, name: str) -> T:
    """What `dump_config` wrote, back as an object.

    Args:
        cls: the section class at the root.
        text: YAML in UTF-8.
        name: where the text lies, for errors: the path or URI that a user can open.

    Raises:
        ConfigError: as of `load_config`.
    """
    return parse_mapping(cls, yaml_mapping(text, name=name), name=name)


def parse_mapping(cls: type[T], content: Mapping[str, Any], *, name: str) -> T:
    """The object of keys and values.

    Args:
        cls: the section class at the root.
        content: as of a file.
        name: where they stand, for errors.

    Raises:
        ConfigError: as of `load_config`.
    """
    return _validated(cls, content, file=name, given={})


def _validated(
    cls: type[T], content: Mapping[str, Any], *, file: str | None, given: Mapping[str, Any]
) -> T:
    """The object of a file's content under what is given by dotted key."""
    tree: dict[str, Any] = {}
    for key, value in given.items():
        _assign(tree, key, value)
    try:
        return _settle(cls, command_line=tree, from_file=content)
    except ValidationError as error:
        raise _as_config_error(cls, error, file=file, overridden=given) from None


def dump_config(config: Section) -> str:
    """Return YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def help_text(cls: type[Section]) -> str:
    """Return a table of every dotted key: type, default, description."""
    rows = []
    for key, annotation, info in _leaves(cls):
        default = (
            "required" if info.is_required() else _show(info.get_default(call_default_factory=True))
        )
        rows.append((f"--{key}", _type_text(annotation), default, info.description or ""))
    widths = [min(max(len(row[i]) for row in rows), limit) for i, limit in enumerate((40, 26, 16))]
    lines = []
    for *cells, description in rows:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"  {padded}  {description}".rstrip())
    return "\n".join(lines)


def _settle(cls: type[T], *, command_line: Mapping[str, Any], from_file: Mapping[str, Any]) -> T:
    """Let pydantic-settings merge the two sources; the first one wins."""

    class Sources(BaseSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # Neither the environment nor a dotenv file is among what is returned.
            return tuple(
                InitSettingsSource(settings_cls, init_kwargs={"config": dict(values)})
                for values in (command_line, from_file)
            )

    loader = create_model("Loader", __base__=Sources, config=(cls, ...))
    config = loader().config  # type: ignore[attr-defined]
    assert isinstance(config, cls)
    return config


# ---------------------------------------------------------------- the file


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: the first one would be ignored in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(
            what="--config",
            got=file,
            rule=f"must be a readable file ({error})",
            fix="give the path of a YAML file",
        ) from None


def yaml_mapping(text: bytes, *, name: str) -> dict[str, Any]:
    """The keys and values of YAML in UTF-8, not validated.

    Args:
        text: a mapping, or nothing.
        name: as of `parse_yaml`.

    Raises:
        ConfigError: it is no such text.
    """
    try:
        content = yaml.load(text.decode("utf-8"), _StrictLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            what=f"configuration file {name}",
            got=str(error),
            rule="must be valid YAML in UTF-8, each key once",
            fix="mend the line it names",
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(
            what=f"configuration file {name}",
            got=f"a {type(content).__name__} at the top",
            rule="must hold `key: value` lines with text keys",
            fix="see --help for the keys",
        )
    return content


# ---------------------------------------------------------------- the command line


# What may follow a switch as a word of its own; otherwise `--overwrite` alone means true.
_BOOLS = [[word] for word in ("true", "false", "True", "False", "null")]


def _parse_overrides(cls: type[Section], arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise ConfigError(
                what="command line",
                got=argument,
                rule="takes --section.key=value",
                fix="write it with its key, see --help",
            )
        key, equals, text = argument[2:].partition("=")
        annotation = _resolve(cls, key)
        if annotation is None:
            raise _unknown_key(cls, key, where="on the command line")
        if (section := _section_of(annotation)) is not None:
            raise _not_a_section(key, section, got=text or "no key", where="on the command line")
        if not equals and bool in _members(annotation) and queue[:1] not in _BOOLS:
            text = "true"
        elif not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(
                    what=f"--{key}", got="no value", rule="needs one", fix=f"write --{key}=VALUE"
                )
            text = queue.pop(0)
        yield key, _parse_value(key, text, annotation)


def _parse_value(key: str, text: str, annotation: Any) -> Any:
    """Read one value as its type asks, so that a name such as `2024` stays text."""
    members = _members(annotation)
    if type(None) in members and text in ("None", "null"):
        return None
    scalars = [m for m in members if m is not type(None) and not _is_sequence(m)]
    sequences = [m for m in members if _is_sequence(m)]
    if scalars and not sequences and all(member in (str, Path) for member in scalars):
        return text
    only_text = bool(sequences) and all(set(get_args(s)) <= {str, Ellipsis} for s in sequences)
    if sequences and not text.startswith("[") and ("," in text or not scalars):
        if only_text:  # not through YAML: a path may hold `: `, ` #` or begin with `*`
            return [part.strip() for part in text.split(",") if part.strip()]
        text = f"[{text}]"
    try:
        # BaseLoader leaves every scalar as text.
        value = yaml.load(text, yaml.BaseLoader if only_text else yaml.SafeLoader)
    except yaml.YAMLError:
        raise ConfigError(
            what=f"--{key}",
            got=text,
            rule=f"should be {_type_text(annotation)}",
            fix="check brackets and quotes",
        ) from None
    return text if value is None and text not in ("null", "~") else value


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


# ---------------------------------------------------------------- what the types say


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for member in get_args(annotation) for m in _members(member))
    return (annotation,)


def _is_sequence(member: Any) -> bool:
    return get_origin(member) in (tuple, list, set, frozenset)


def _section_of(annotation: Any) -> type[Section] | None:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, Section):
            return member
    return None


def _resolve(cls: type[Section], dotted: str) -> Any:
    """The annotation at a dotted key, or None where there is no such key."""
    annotation: Any = cls
    for part in dotted.split("."):
        section = _section_of(annotation)
        values = [get_args(m)[1] for m in _members(annotation) if get_origin(m) is dict]
        if section is not None and part in section.model_fields:
            annotation = section.model_fields[part].annotation
        elif values:
            annotation = values[0]
        else:
            return None
    return annotation


def _leaves(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name, info in cls.model_fields.items():
        section = _section_of(info.annotation)
        if section is None:
            yield f"{prefix}{name}", info.annotation, info
        else:
            yield from _leaves(section, f"{prefix}{name}.")


def _type_text(annotation: Any) -> str:
    texts = []
    for member in _members(annotation):
        arguments = get_args(member)
        if member is type(None):
            texts.append("null")
        elif get_origin(member) is Literal:
            texts.extend(str(argument) for argument in arguments)
        elif arguments:
            inner = ",".join("…" if a is Ellipsis else _type_text(a) for a in arguments)
            texts.append(f"{get_origin(member).__name__}[{inner}]")
        else:
            texts.append({str: "text"}.get(member, getattr(member, "__name__", str(member))))
    return "|".join(texts)


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return "[" + ",".join(map(_show, value)) + "]"
    return str(value)


# ---------------------------------------------------------------- failures as one line


def _unknown_key(cls: type[Section], key: str, *, where: str) -> ConfigError:
    known = [leaf for leaf, _, _ in _leaves(cls)]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    # `--zero_stage` for `--train.zero_stage`: the whole last part counts more than likeness.
    same_name = [leaf for leaf in known if leaf.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    nearest = (same_name or close)[:1]
    fix = f"did you mean {nearest[0]}?" if nearest else "see --help for the keys"
    return ConfigError(
        what=f"{key} {where}", got="an unknown key", rule="every key must be known", fix=fix
    )


def _not_a_section(key: str, section: type[Section], *, got: object, where: str) -> ConfigError:
    keys = list(section.model_fields)
    return ConfigError(
        what=f"{key} {where}",
        got=got,
        rule=f"is a section with the keys {', '.join(keys)}",
        fix=f"set the keys one by one, as {key}.{keys[0]}, or leave it out",
    )


def _as_config_error(
    cls: type[Section], error: ValidationError, *, file: str | None, overridden: Mapping[str, Any]
) -> ConfigError:
    """Name the first key that fails; a union's alternatives become one rule."""
    problems: dict[str, list[Any]] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(_dotted(cls, problem["loc"][1:], problem["type"]), []).append(problem)
    key, first = next(iter(problems.items()))
    where = _where(key, file=file, overridden=overridden)
    kind = first[0]["type"]
    section = _section_of(_resolve(cls, key)) if key else cls
    if kind == "extra_forbidden":
        return _unknown_key(cls, key, where=where)
    if kind == "missing":
        leaf = next(_leaves(section, f"{key}."))[0] if section else key
        what = f"{key} in {file}" if file else key
        return ConfigError(what=what, got="nothing", rule="is required", fix=f"add --{leaf}=VALUE")
    if kind == "model_type" and section is not None:
        return _not_a_section(key, section, got=first[0]["input"], where=where)
    # The whole value of a union is the input of the problem that lies least deep.
    value = min(first, key=lambda problem: len(problem["loc"]))["input"]
    messages = dict.fromkeys(p["msg"].removeprefix("Value error, ") for p in first)
    fix = f"set {key} as {_type_text(_resolve(cls, key))}" if not section else "change one of them"
    also = [other for other in problems if other != key]
    return ConfigError(
        what=f"{key} {where}".strip(),
        got=repr(value),
        rule=" or ".join(messages).replace("Input should", "should"),
        fix=f"{fix}; {', '.join(also)} must be mended too" if also else f"{fix}, see --help",
    )


def _where(key: str, *, file: str | None, overridden: Mapping[str, Any]) -> str:
    related = (f"{o}.".startswith(f"{key}.") or f"{key}.".startswith(f"{o}.") for o in overridden)
    if not key or any(related):
        return "on the command line"
    return f"in {file}" if file else "by default"


def _dotted(cls: type[Section], loc: Sequence[str | int], kind: str) -> str:
    """Turn a pydantic location into the dotted key; a union's member names are left out."""
    key = ""
    for depth, part in enumerate(loc):
        candidate = f"{key}.{part}" if key else str(part)
        last_of_unknown = kind == "extra_forbidden" and depth == len(loc) - 1
        if not last_of_unknown and _resolve(cls, candidate) is None:
            break
        key = candidate
    return key
