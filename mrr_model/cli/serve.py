"""`mrr serve`: a model behind HTTP."""

import os
from functools import partial

from mrr_model.cli.flags import flags_of
from mrr_model.opening import cascade_of, check_needs, check_setting, needs_of, open_model
from mrr_model.serving.config import ServeConfig

KEY_VARIABLE = "MRR_API_KEY"
SERVE_EXTRA = 'pip install "matryoshka-reranker[serve]"'


@flags_of(ServeConfig)
def serve(config: ServeConfig) -> None:
    """Check what can be checked before the model loads, then serve it."""
    check_needs(config)
    check_setting(config)
    cascade = cascade_of(config.cascade)
    if not config.api_key:
        config = config.with_keys(os.environ.get(KEY_VARIABLE, ""))
    from mrr_model.selection.target import Target

    needs = needs_of(config)
    target = Target(**needs) if needs else None
    try:
        from mrr_model.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise ImportError(f"mrr serve needs more packages ({error}): {SERVE_EXTRA}") from error
    run(partial(open_model, config, target, cascade), config)
