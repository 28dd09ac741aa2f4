"""The config of `mrr serve`. Help is made from it: nothing here imports torch or fastapi."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from mrr_model.inference.config import InferenceConfig
from mrr_model.validation.config import Flag

KNOBS = ("depth", "keep_ratio", "target", "cascade")
"""What a request may choose for itself."""
KEY = re.compile(r"[!-+\--~]+")
"""An API key: visible ASCII without commas, so that headers and MRR_API_KEY can hold it."""


class ServeConfig(InferenceConfig):
    """The config of `mrr serve`."""

    help_first: ClassVar[tuple[str, ...]] = ("model", "host", "port")

    model: Annotated[str, Flag(argument=True, metavar="MODEL")] = "mini"
    """mini (shipped), a local folder or a hub id."""
    model_name: Annotated[str | None, Flag(default="the model's")] = None
    """Name that answers and /v1/models show."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 makes the server reachable from other machines: set an API key then."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 for any free one."""

    depth: Annotated[int | None, Flag(default="the model's, else all")] = None
    """Layers to run for requests that don't say it, at most."""
    keep_ratio: Annotated[str | None, Flag(metavar="RATIO|LAYER:RATIO,…", default="the model's, else 1")] = None
    """Share of the passage tokens to keep for requests that don't say it."""
    cascade: Annotated[str | None, Flag(metavar="auto|EXIT:NUMBER,…")] = None
    """Exits at which unpromising documents stop, for requests that don't say it."""
    keep_quality: float | None = None
    """Instead of a setting: the fastest that keeps this share of quality."""
    speedup: float | None = None
    """Instead of a setting: the best that is this many times faster."""
    long_documents: Literal["truncate", "max"] = "truncate"
    """Cut long documents, or score them by their best window."""
    allow_settings: Annotated[str, Flag(metavar="any|none|KNOB,…")] = "any"
    """What requests may choose: any, none, or some of depth, keep_ratio, target, cascade."""
    shed: Annotated[str | None, Flag(metavar="auto|POLICY")] = None
    """Do less per request as the queue grows: auto, or "queue>200ms: speedup=2; queue>500ms: speedup=4"."""

    api_key: Annotated[tuple[str, ...], Flag(metavar="KEY", default="MRR_API_KEY, else none")] = Field(
        default=(), repr=False, exclude=True
    )
    """Key that requests must bring. Repeat it for several keys."""
    cors_origin: Annotated[tuple[str, ...], Flag(metavar="ORIGIN")] = ()
    """Origin whose web pages may call this server. Repeat it for several."""
    max_documents: int = Field(default=10_000, ge=1)
    """Documents per request, at most."""
    max_body_mb: float = Field(default=32, gt=0)
    """Size of a request's body, at most, in MB."""
    max_queue: int = Field(default=20_000, ge=1)
    """Pairs that may wait; requests beyond them get status 429."""
    timeout: float = Field(default=60, gt=0)
    """Seconds within which a request is answered, else status 504. A request may ask for less."""
    read_timeout: float = Field(default=20, gt=0)
    """Seconds within which a request's header and body must arrive."""
    keep_alive: float = Field(default=30, gt=0)
    """Seconds for which idle connections stay open."""
    max_connections: int = Field(default=4096, ge=1)
    """Open connections, at most."""
    shutdown_timeout: float = Field(default=60, gt=0)
    """Seconds for accepted requests to finish after SIGTERM."""

    log_format: Literal["text", "json"] = "text"
    """Form of the access log, on stderr."""
    log_texts: bool = False
    """Write the queries and documents of requests into the log."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.host:
            raise ValueError("--host is empty. Give an address, such as 127.0.0.1 or 0.0.0.0")
        if not {*self.allowed_knobs} <= {*KNOBS}:
            raise ValueError(
                f"--allow-settings must be any, none, or some of {', '.join(KNOBS)} with commas between them, "
                f"got {self.allow_settings!r}"
            )
        if self.shed is not None and self.shed != "auto":
            from mrr_model.serving.shedding import parse_policy

            try:
                parse_policy(self.shed)
            except ValueError as error:
                raise ValueError(f"--shed: {error}") from None
        if not all(KEY.fullmatch(key) for key in self.api_key):
            raise ValueError("--api-key: a key must be visible ASCII characters without spaces and commas")
        return self

    @property
    def allowed_knobs(self) -> tuple[str, ...]:
        """The knobs that requests may use.

        Example:
            >>> ServeConfig(allow_settings="depth, target").allowed_knobs
            ('depth', 'target')
        """
        if self.allow_settings == "any":
            return KNOBS
        return () if self.allow_settings == "none" else tuple(map(str.strip, self.allow_settings.split(",")))

    def with_keys(self, keys: str) -> Self:
        """This config with the keys of the environment variable MRR_API_KEY.

        Args:
            keys: Keys with commas between them; empty for none.

        Raises:
            ValueError: If a key has other characters than visible ASCII; the message shows no key.

        Example:
            >>> ServeConfig().with_keys("one, two").api_key
            ('one', 'two')
        """
        found = tuple(key.strip() for key in keys.split(",") if key.strip())
        if not all(KEY.fullmatch(key) for key in found):
            raise ValueError("MRR_API_KEY: a key must be visible ASCII characters without spaces and commas.")
        return self.model_copy(update={"api_key": found})
