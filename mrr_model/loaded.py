"""A loaded model and its defaults: what a re-ranker is apart from its scoring. Properties, saving and pickling."""

import pickle
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from mrr_model import checkpoint
from mrr_model.calibration.maps import Calibration
from mrr_model.cascade import CascadeOption
from mrr_model.checkpoint import Checkpoint
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.origin import Origin
from mrr_model.compression import Compression
from mrr_model.inference.engine import InferenceEngine
from mrr_model.inference.windows import LongDocuments
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile
from mrr_model.validation.arguments import callers_level


class LoadedModel:
    """The base of `MatryoshkaReranker`, whose constructor sets the attributes."""

    name: str | Path
    """The model's name, as it was given."""
    model: MatryoshkaModel
    """The model, a torch module."""
    engine: InferenceEngine
    """Tokenizes pairs and runs Plans; for evaluation and integrations."""
    compression: Compression
    """The setting of calls that give none."""
    cascade: CascadeOption
    """The cascade of rankings at that setting that give none."""
    long_documents: LongDocuments
    """What happens to documents that exceed `max_length`, in calls that don't say it."""
    window: int | None
    """Tokens of a window, at most; None for as many as fit."""
    stride: int | None
    """Tokens after which the next window starts; None for half a window."""
    normalize: bool
    """Whether calls that don't say otherwise return probabilities."""
    prompt: str | None
    """The prompt of calls that give none; None for the template's own."""
    _origin: Origin
    _named_dtype: torch.dtype | None
    """The dtype that the user named; it is saved for libraries that open the folder."""

    def save_pretrained(self, path: str | Path) -> None:
        """Save the model, its tokenizer and adapters in this project's own format.

        The setting, lengths, prompt and `normalize` become the defaults of the saved folder; a cascade and what happens
        to long documents do not. Calibration and profile are saved if the weights are still those that they were
        measured with. An error or a kill leaves the folder as it was.

        Raises:
            OSError: If the folder cannot be written to.
        """
        made = self._checkpoint()
        checkpoint.save(made, Path(path), model_card=self._origin.model_card(made))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload re-ranker",
    ) -> str:
        """Upload what `save_pretrained` writes to a hub repository, which is created if it is missing.

        Returns:
            The commit's URL.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's layers; score heads are always float32."""
        return self.model.model.dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.engine.tokenizer

    @property
    def batch_tokens(self) -> int | None:
        """Tokens of a batch at most, padding included; None if device and model decide."""
        return self.engine.batch_tokens

    @property
    def max_length(self) -> int:
        """Tokens of an input at most; `InputTemplate.truncation` says what they bound."""
        return self.engine.encoder.max_length

    @property
    def query_max_length(self) -> int | None:
        """Tokens of a query at most; None for the template's own rule."""
        return self.engine.encoder.query_max_length

    @property
    def num_layers(self) -> int:
        """The model's layers."""
        return self.model.num_layers

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers after which a score can be read, counted from 1."""
        return self.model.matryoshka.exits

    @property
    def merge_layers(self) -> tuple[int, ...]:
        """The layers after which passage tokens can merge."""
        return self.model.matryoshka.merge_layers

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the compensation adapters, such as `vertical` and `horizontal_1_2`."""
        return tuple(self.engine.compensation.adapters)

    @property
    def fingerprint(self) -> str:
        """A hash of weights and adapters as the checkpoint stores them, the same for every dtype they load in."""
        return self._origin.fingerprint(self.model, self.engine.compensation.adapters)

    @property
    def weights_changed(self) -> bool:
        """Whether weights or adapters in memory differ from those that were loaded, as after training."""
        return self._origin.changed(self.model, self.engine.compensation.adapters)

    @property
    def calibration(self) -> Calibration | None:
        """The checkpoint's maps from logits to probabilities; None if it has none."""
        return self._origin.calibration

    @property
    def profile(self) -> Profile | None:
        """What the checkpoint's settings keep and take, as measured; None if that was not measured."""
        return self._origin.profile

    def __repr__(self) -> str:
        return (
            f"MatryoshkaReranker({str(self.name)!r}, {self.compression}, "
            f"{self.num_layers} layers, {self.device}, {self.dtype})"
        )

    def __copy__(self) -> Self:
        """A second object over the same weights."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> bytes:
        # First what may refuse to be pickled, with a reason: hooks on the model would fail without one.
        state = {"compensation": self.engine.compensation, **self.__dict__}
        # As bytes: multiprocessing would share each of some hundred tensors through a file descriptor of its own.
        return pickle.dumps(state, pickle.HIGHEST_PROTOCOL)

    def __setstate__(self, state: bytes) -> None:
        self.__dict__.update(pickle.loads(state))

    def _checkpoint(self) -> Checkpoint:
        """What `save_pretrained` saves."""
        calibration, profile = self.calibration, self.profile
        if (calibration or profile) and self.weights_changed:
            calibration = profile = None
            warnings.warn(
                "the weights have changed since they were loaded, so the calibration and the profile that were "
                "measured with them are not saved.",
                UserWarning,
                stacklevel=callers_level(),
            )
        defaults = Defaults.of(
            self.compression,
            max_length=self.max_length,
            query_max_length=self.query_max_length,
            prompt=self.prompt,
            normalize=self.normalize,
            dtype=str(self._named_dtype).removeprefix("torch.") if self._named_dtype else None,
        )
        return Checkpoint(self.model, self.tokenizer, self.engine.compensation.adapters, calibration, profile, defaults)
