"""Every setting, with its environment variable: argument > environment > `.env` file > default.

Field `flag_rate` is read from `FASTRM_FLAG_RATE`, and so on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fastrm_monitor.errors import FastRMError

DEFAULT_STORE = "sqlite:///fastrm.db"


class Settings(BaseSettings):
    """Settings of monitor, store and dashboard."""

    model_config = SettingsConfigDict(env_prefix="FASTRM_", env_file=".env", extra="ignore", frozen=True)

    proxy: str | None = Field(None, description="Folder of the proxy; monitoring is off without one.")
    store: SecretStr | None = Field(None, description="SQLAlchemy URL of the store; nothing is stored without one.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="Flag answers whose calibrated confidence is below; default: the proxy folder's."
    )
    flag_rate: float = Field(
        0.1, gt=0, lt=1, description="Share of the running traffic to flag while nothing is calibrated."
    )
    flag_score: Literal["token_probability", "map_entropy"] = Field(
        "token_probability", description="Score that the flag rate applies to while nothing is calibrated."
    )
    sample_rate: float = Field(
        0.05, ge=0, le=1, description="Probability of storing an answer whether flagged or not; calibration needs it."
    )
    policy_seconds: float = Field(
        30.0,
        ge=0,
        le=86400,
        description="Seconds between two looks for a newly published policy in the store; 0 is off.",
    )
    queue_size: int = Field(
        2048, ge=1, description="Answers that may wait for telemetry and storage; beyond it unflagged ones go first."
    )
    queue_mb: int = Field(
        256, ge=1, description="MiB of pictures, maps and texts that these answers may take, the ones in delivery too."
    )
    spool: str | None = Field(
        None,
        description="Folder for cases while the store is away; default: `FILE.spool` beside an SQLite `FILE`, else the "
        "user's state folder.",
    )
    spool_mb: int = Field(512, ge=0, description="MiB that may wait there, unflagged cases go first; 0 is no spool.")
    sigterm: bool = Field(
        True, description="Deliver what is queued on SIGTERM, too, where the process has no handler of its own."
    )
    flush_seconds: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="Longest wait for the queue when the process ends; at most as long again where flagged answers "
        "would be lost otherwise.",
    )
    pictures: Literal["thumbnail", "full", "hash", "none"] = Field(
        "thumbnail", description="What is stored of a picture: at most 512 pixels a side, all, its hash only, nothing."
    )
    redact: str | None = Field(
        None,
        description="Function `package.module:function` that takes out of question and answer what must not be kept.",
    )
    retention_days: float = Field(
        0, ge=0, le=36500, description="Days after which the server deletes cases, drift and traffic; 0 keeps them."
    )
    retention_keep_labelled: bool = Field(False, description="Whether cases with a verdict stay all the same.")
    picture_memory: int = Field(
        1024, ge=0, description="MiB of pictures that vLLM's front end keeps until their answers are complete."
    )
    dashboard_url: str = Field(
        "http://127.0.0.1:8501", description="Where reviewers open the dashboard; makes the case link on spans."
    )
    trace_url: str | None = Field(
        None,
        description="Address of a trace where traces are looked at, with `{trace_id}` in it and perhaps `{span_id}`; "
        "makes the trace link of a case.",
    )
    model: str | None = Field(
        None, description="Model that the dashboard asks again to look closer: a folder, a hub id or `embedded`."
    )

    auth: str | None = Field(
        None,
        description="TOML file with the OpenID Connect provider that reviewers sign in with; without one the dashboard "
        "has no sign-in.",
    )
    read_only: bool = Field(
        False, description="Dashboard in which nobody can give verdicts, claim cases or publish thresholds."
    )

    @field_validator("trace_url")
    @classmethod
    def _check_trace_url(cls, url: str | None) -> str | None:
        if url is not None and (
            not url.startswith(("http://", "https://")) or "{trace_id}" not in url or any(map(str.isspace, url))
        ):
            raise ValueError("give an address like https://host/trace/{trace_id}")
        return url


def load_settings(**arguments: object) -> Settings:
    """Settings from arguments (None means not given), environment, `.env` and defaults, in this order.

    Raises:
        FastRMError: a value is out of range or a name is unknown; the message says which.
    """
    unknown = sorted(set(arguments) - set(Settings.model_fields))
    if unknown:
        raise FastRMError(f"There is no setting '{unknown[0]}'; the settings are {', '.join(Settings.model_fields)}.")
    try:
        return Settings(**{name: value for name, value in arguments.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name, reason = str(first["loc"][0]), str(first["msg"]).removeprefix("Value error, ")
        raise FastRMError(f"FASTRM_{name.upper()} ({name}) is not usable: {reason}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FastRMError(f"The file .env in this folder cannot be read ({error}): write it in UTF-8.") from None
