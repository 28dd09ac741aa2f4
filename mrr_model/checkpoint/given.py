"""What the user says of a model in place of its files, from arguments and flags."""

from collections.abc import Sequence
from pathlib import Path

from mrr_model.checkpoint.config import Given
from mrr_model.files.damage import reading
from mrr_model.template import InputTemplate


def given_by(template: InputTemplate | str | Path | None, answers: Sequence[str] | None) -> Given:
    """Read the arguments `template` and `answers`.

    Args:
        template: An input template, its JSON file, or the name of a published one.
        answers: The tokens by which a causal model answers: yes and no, or yes alone.

    Raises:
        TypeError: If an argument is of the wrong type.
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold a template; names the file.

    Example:
        >>> given_by("zerank", ["Yes"])
        Given(template='zerank', answers=('Yes',))
    """
    if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers or ()):
        raise TypeError(f"answers must be a list of one token or two, yes first, got {answers!r}.")
    tokens = None if answers is None else tuple(answers)
    if template is None or isinstance(template, InputTemplate):
        return Given(template, tokens)
    if not isinstance(template, str | Path):
        raise TypeError(f"template must be an InputTemplate, its JSON file or a name, got {type(template).__name__}.")
    file = Path(template)
    if isinstance(template, str) and file.suffix != ".json":
        return Given(template, tokens)
    with reading(file, "See mrr_model.template for its fields."):
        return Given(InputTemplate.model_validate_json(file.read_text(encoding="utf-8-sig")), tokens)
