"""The settings that every command has, and how a value is found and refused.

A value is looked for in this order: a flag (`--ws-port`), the environment (`BRIDGE_WS_PORT`), the file `.env`
in the working directory, the file `.dev/env` that `bridge dev` keeps there while it runs, a file
`BRIDGE_WS_PORT` (any case) in the secrets directory, the default. An empty variable counts as not set. The
secrets directory is `BRIDGE_SECRETS_DIR`, or `/run/secrets` if that exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args, get_origin

import annotated_types
from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableSource

from bridge.addresses import amqp_problem, amqp_secrets, postgres_problem, postgres_secrets, redacted
from bridge.config.names import (
    DEV_ENV_FILE,
    ENV_FILE,
    PREFIX,
    SECRETS_DIR,
    SECRETS_DIR_VARIABLE,
    env_name,
    flag_name,
)
from bridge.core import redaction
from bridge.core.errors import SettingsError

KEYS: Final = ("jwt_secret", "ops_token")
"""Settings that are a secret as a whole."""
_URLS: Final = ("amqp_url", "postgres_dsn")
_SECRET: Final = (*KEYS, *_URLS)


class InvalidSettings(SettingsError):
    """One or more settings are wrong: `problems` holds (the setting as the user writes it, what is wrong)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(*self.problems[0])
        self.args = ("\n".join(f"{setting}: {problem}" for setting, problem in self.problems),)


class CommonSettings(BaseSettings):
    """What every command may need. A wrong value raises InvalidSettings, never a pydantic error."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=(DEV_ENV_FILE, ENV_FILE),
        env_ignore_empty=True,
        # Other programs keep their variables in `.env`, too; `misspelt_variables` finds near misses of ours.
        extra="ignore",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
        str_strip_whitespace=True,
    )

    amqp_url: str = Field(
        "amqp://guest:guest@127.0.0.1:5672/",
        description="Where RabbitMQ is: `amqp://user:password@host:port/vhost`, `amqps://` with TLS; user, password and"
        " vhost are percent-encoded. It may have the parameters `auth`, `interleave`, `happy_eyeballs_delay`,"
        " and with `amqps://` `cafile`, `capath`, `cadata`, `certfile`, `keyfile`, `no_verify_ssl`."
        " `heartbeat` and `name` are accepted and ignored: the bridge has its own.",
    )
    postgres_dsn: str = Field(
        "postgresql://127.0.0.1:5432/bridge",
        description="Where Postgres is: a `postgresql://` URI or libpq's `key=value` words; with TLS by"
        " `sslmode=verify-full`, `sslrootcert`, `sslcert` and `sslkey`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least important level that is logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="How log lines look; `auto`: text on a terminal, JSON otherwise."
    )
    dev: bool = Field(
        False,
        description="For a developer's machine: a short JWT secret will do, or none, and then a random one is made"
        " at each start; and the demo page gives out tokens. Never use it on a network.",
    )

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        unknown = [name for name in values if name not in fields and not name.startswith("_")]
        if unknown:
            raise TypeError(f"there is no setting {', '.join(unknown)}")
        # Before anything is read: an error may quote a secret that was given for another setting.
        for name in KEYS:
            for given in (os.environ.get(env_name(name), "").strip(), str(values.get(name, ""))):
                # Several secrets may be given in one setting, see `TokenSettings`.
                redaction.learn([given, *map(str.strip, given.split(","))])
        try:
            super().__init__(**values)
        except UnreadableSource as error:
            raise SettingsError(SECRETS_DIR_VARIABLE, "a file in it is not UTF-8 text") from error
        except ValidationError as error:
            problems = [
                _in_our_words(type(self), e["loc"], e["msg"], e["type"], e["input"])
                for e in error.errors()
                # The default depends on another setting, which is wrong and is named.
                if e["type"] != "default_factory_not_called"
            ]
            raise InvalidSettings(problems) from error
        except UnicodeDecodeError as error:
            raise SettingsError(ENV_FILE, "UTF-8 text expected") from error
        except OSError as error:
            raise SettingsError(error.filename or ENV_FILE, f"cannot be read: {error.strerror}") from error

    @classmethod
    def load(cls, flags: Mapping[str, object]) -> Self:
        """Make one from the command line's flags (field names, strings or bools) and all other places.

        A problem with the value of a flag names the flag, any other the variable. `_env_file` among the flags
        replaces the two files.
        """
        try:
            return cls(**flags)
        except InvalidSettings as error:
            flagged = {env_name(field): flag_name(field) for field in flags}
            raise InvalidSettings([(flagged.get(n, n), problem) for n, problem in error.problems]) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of the module's docstring, with a secrets directory that the environment may name."""
        sources = (init_settings, env_settings, dotenv_settings)
        directory = os.environ.get(SECRETS_DIR_VARIABLE, "")
        if not directory and not Path(SECRETS_DIR).is_dir():
            return sources
        if directory and not Path(directory).is_dir():
            shown = "this" if _may_be_secret(directory) else repr(directory)
            raise SettingsError(SECRETS_DIR_VARIABLE, f"a directory expected, {shown} is not one")
        return (*sources, SecretsSettingsSource(settings_cls, secrets_dir=directory or SECRETS_DIR))

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redacted(value) if name in _URLS else value

    @field_validator("amqp_url")
    @classmethod
    def _check_amqp_url(cls, value: str) -> str:
        return _no_problem(amqp_problem(value), value)

    @field_validator("postgres_dsn")
    @classmethod
    def _check_postgres_dsn(cls, value: str) -> str:
        return _no_problem(postgres_problem(value), value)

    def model_post_init(self, context: Any) -> None:
        """Register the secrets: no text that leaves the process will show them."""
        for held in (amqp_secrets(self.amqp_url), postgres_secrets(self.postgres_dsn)):
            redaction.learn(held.secrets, held.public)
        redaction.learn([os.environ.get("PGPASSWORD", "")])

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _ignore_case(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value


def expected_value(field: str, info: FieldInfo) -> str:
    """What a value of this setting looks like, in words; empty where the description says it all."""
    kind = info.annotation
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        low = next(m.ge for m in info.metadata if isinstance(m, annotated_types.Ge))
        high = next(m.le for m in info.metadata if isinstance(m, annotated_types.Le))
        return f"a {'whole number' if kind is int else 'number'} from {low} to {high}"
    return ""


def _in_our_words(
    model: type[CommonSettings], loc: tuple[int | str, ...], message: str, kind: str, value: object
) -> tuple[str, str]:
    """Translate a pydantic error: the setting as the environment names it, and what was expected."""
    field = str(loc[0])
    if kind == "value_error":
        problem = message.removeprefix("Value error, ")
        for part in (str(value), *str(value).split(",")):
            if _may_be_secret(part):
                problem = problem.replace(repr(part.strip()), "what is given")
        return env_name(field), redaction.without_known(problem)
    wanted = expected_value(field, model.model_fields[field]) or "text"
    shown = "" if field in _SECRET or _may_be_secret(str(value)) else f", not {value!r}"
    return env_name(field), f"{wanted} expected{shown}"


def _may_be_secret(text: str) -> bool:
    """Whether this looks like an address or a connection string that was given for the wrong setting."""
    return "@" in text or "password" in text.lower()


def _no_problem(problem: str, value: str) -> str:
    if problem:
        raise ValueError(problem)
    return value
