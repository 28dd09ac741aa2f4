"""A model's input template, found in its tokenizer: from how it writes pairs, or from its chat template.

Whatever is found is compared with the tokenizer on a few pairs, token by token, before it is used.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any, Literal, TypeGuard

from jinja2.exceptions import TemplateError
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from mrr_model.inference.encode import UNLIMITED, PairEncoder
from mrr_model.inference.tokenize import TextTokenizer
from mrr_model.template import SPECIAL_TOKENS, InputTemplate

GIVE_ONE = "Give the model's input template: template=InputTemplate(…), or its JSON file."
"""What to do if none can be had."""

SAMPLE_QUERIES = ("what is a panda?", " who\n", "2", "", "don't (…)", "熊猫 é", "\n\n'Quoted'", "x ")
SAMPLE_PASSAGES = ("The giant panda is a bear.", "\n 12%", "", " 'tis", ".", "大熊猫。ok", "a  b\t\n", ": yes ")
SAMPLE_PROMPTS = ("Find what helps.", " 1\n")
SAMPLE_LONG = ("who wrote it and when? " * 4, "Bees make honey in 7 days. " * 9)

QUERY, PASSAGE, PROMPT = (f" \n<&'\"> The {name} is here.\n\n " for name in ("first", "other", "third"))
"""What a chat template must write as it is, once: texts with all that templates like to trim or to escape."""

SLOTS = {QUERY: "{query}", PASSAGE: "{passage}", PROMPT: "{prompt}"}

STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
"""What sentence-transformers looks for in a chat template that expects a message's content as a list of parts."""

TOKENIZER_OPTIONS = {"padding", "truncation", "max_length", "return_tensors", "restore_suffix"}
"""Options of sentence-transformers' `chat_template` that don't reach the template."""


def pair_template(tokenizer: PreTrainedTokenizerBase, *, pad_token_id: int | None = None) -> InputTemplate:
    """The input template of a model that reads pairs as its tokenizer writes them.

    Args:
        tokenizer: The model's tokenizer.
        pad_token_id: For causal classifiers: their config's. Transformers pools the last token that is not this one, so
            the special tokens at the end that are it are left out. The tokenizer's limit counts them.

    Returns:
        The template: special tokens, order, token types; truncation `longest_first`.

    Raises:
        ValueError: If the tokenizer writes pairs in a way that no template expresses.
    """
    name = f"the tokenizer of {tokenizer.name_or_path!r}"
    _check_side(tokenizer)
    ids, sources, types = _sentinel_pair(tokenizer, name)
    first, second = (0, 1) if sources.index(0) < sources.index(1) else (1, 0)
    runs = re.fullmatch(
        f"(n*){first}+(n*){second}+(n*)", "".join("n" if part is None else str(part) for part in sources)
    )
    if runs is None:
        raise ValueError(f"{name} mixes the texts of a pair. {GIVE_ONE}")
    before, between, after = (_special_pieces(tokenizer, ids[runs.start(run) : runs.end(run)]) for run in (1, 2, 3))
    kept = len(ids)
    while kept > runs.start(3) and ids[kept - 1] == pad_token_id:
        kept -= 1
    after = after[: len(after) - (len(ids) - kept)]
    if first == 0:
        spans = {"query": (*before, "{query}", *between), "passage": ("{passage}",), "prompt": after}
        ends = (0, runs.end(2), runs.start(3), kept)
    else:
        spans = {"query": before, "passage": ("{passage}",), "prompt": (*between, "{query}", *after)}
        ends = (0, runs.end(1), runs.start(2), kept)
    template = InputTemplate.model_validate(
        {**spans, "truncation": "longest_first", "token_types": _span_types(types, ends, name)}
    )
    _check_pairs(tokenizer, template, len(ids) - kept, name)
    return template


def chat_template(
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
    structured: bool | None = None,
) -> InputTemplate:
    """The input template of a model that reads pairs through its tokenizer's chat template.

    Messages are those of sentence-transformers: one of role `query`, one of role `document`, and before them one of
    role `system` if there is a prompt.

    Args:
        tokenizer: The model's tokenizer.
        system: The model's default prompt; None for what the chat template writes without one.
        options: Variables of the chat template, such as `add_generation_prompt`.
        structured: Whether messages are lists of parts and not strings; None to see it from the chat template.

    Returns:
        The template: its pieces, its default prompt; truncation `end`.

    Raises:
        ValueError: If there is no chat template, or if it drops, repeats or changes a text, or if the tokenizer joins
            what must be in two spans.
    """
    name = f"the chat template of {tokenizer.name_or_path!r}"
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template. {GIVE_ONE}")
    _check_side(tokenizer)
    chat = _Chat(tokenizer, {**(options or {})}, structured, name)
    without = chat.text(QUERY, PASSAGE, None)
    _check_written(without, (QUERY, PASSAGE), name)
    prompted = chat.prompted(without)
    if prompted is None and system is not None:
        raise ValueError(f"{name} does not write its prompt {system!r}. {GIVE_ONE}")
    if prompted is None:
        template = _in_pieces(tokenizer, without, name)
    elif default := _default_prompt(without, prompted):
        template = _in_pieces(tokenizer, prompted, name, default_prompt=system if system is not None else default)
    else:
        try:
            template = _with_optional_prompt(tokenizer, without, prompted, name)
            template = template.model_copy(update={"default_prompt": system})
        except ValueError:
            if system is None:
                raise
            template = _in_pieces(tokenizer, prompted, name, default_prompt=system)
    _check_chats(tokenizer, template, chat, system, name)
    return template


def writes_pairs(tokenizer: PreTrainedTokenizerBase, structured: bool | None = None) -> bool:
    """Whether a tokenizer has a chat template that writes messages of the roles query and document.

    Args:
        tokenizer: The model's tokenizer.
        structured: As for `chat_template`.

    Returns:
        False, too, if the template fails on such messages.
    """
    if not tokenizer.chat_template:
        return False
    chat = _Chat(tokenizer, {}, structured, "the chat template")
    try:
        return len({chat.text(*pair, None) for pair in (("a", "a"), ("b", "a"), ("a", "b"))}) == 3
    except ValueError:
        return False


def _check_side(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that long texts are cut at their end, the only side that a template knows."""
    if tokenizer.truncation_side != "right":
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} cuts long texts at their beginning (truncation_side "
            f"{tokenizer.truncation_side!r}), which is not supported. Set truncation_side to 'right' in "
            "tokenizer_config.json: short texts then score as before, and long ones are cut at their end."
        )


# Pairs


Source = Literal[0, 1] | None


def _sentinel_pair(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[list[int], Sequence[Source], Sequence[int] | None]:
    """The ids of a pair, the text that each is from (0, 1, or None for special tokens), and the token types."""
    texts = "what is it?", "a panda bear"
    encoded = tokenizer(*texts)
    ids = list(encoded["input_ids"])
    sources: list[Any] = [None] * len(ids)
    if tokenizer.is_fast:
        sources = list(encoded.sequence_ids(0))
    else:
        for source, text in enumerate(texts):
            own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            starts = [start for start in range(len(ids)) if ids[start : start + len(own)] == own]
            if len(starts) == 1:
                sources[starts[0] : starts[0] + len(own)] = [source] * len(own)
    if not {0, 1} <= set(sources):
        raise ValueError(f"{name} does not write both texts of a pair. {GIVE_ONE}")
    types = "token_type_ids" in tokenizer.model_input_names and encoded.get("token_type_ids")
    return ids, sources, types or None


def _special_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Special tokens as pieces of a template: `{cls}`, `{sep}`, `{bos}` or `{eos}`, else as they are."""
    names = {getattr(tokenizer, f"{name}_token_id", None): f"{{{name}}}" for name in ("eos", "bos", "sep", "cls")}
    return tuple(names.get(id_) or str(tokenizer.convert_ids_to_tokens(id_)) for id_ in ids)


def _span_types(types: Sequence[int] | None, ends: Sequence[int], name: str) -> tuple[int, int, int] | None:
    if types is None:
        return None
    found: list[int] = []
    for start, stop in pairwise(ends):
        inside = {*types[start:stop]} or {found[-1] if found else 0}
        if len(inside) != 1:
            raise ValueError(f"{name} gives one span several token types, {sorted(inside)}. {GIVE_ONE}")
        found += inside
    return (found[0], found[1], found[2])


def _check_pairs(tokenizer: PreTrainedTokenizerBase, template: InputTemplate, dropped: int, name: str) -> None:
    """Compare a template with the tokenizer. `dropped`: its last tokens that the template leaves out."""
    lengths = [
        UNLIMITED,
        *((11, 32) if tokenizer.is_fast else ()),
    ]  # slow tokenizers give the odd token to the other text
    pairs = [*product(SAMPLE_QUERIES, SAMPLE_PASSAGES), SAMPLE_LONG, SAMPLE_LONG[::-1]]
    for max_length in lengths:
        theirs = tokenizer(pairs, truncation="longest_first", max_length=max_length)
        ours = PairEncoder(tokenizer, template, max_length - dropped).encode(pairs)
        for index, (texts, pair) in enumerate(zip(pairs, ours, strict=True)):
            ids = theirs["input_ids"][index]
            spans = (pair.query_length, pair.passage_length, pair.prompt_length)
            types = [
                type_ for type_, length in zip(template.token_types or (), spans, strict=False) for _ in range(length)
            ]
            kept = len(ids) - dropped
            if pair.input_ids != ids[:kept] or (types and types != theirs["token_type_ids"][index][:kept]):
                raise ValueError(f"{name} writes the pair {texts!r} in a way that no template expresses. {GIVE_ONE}")


# Chats


class _Chat:
    """A tokenizer's chat template, rendered as sentence-transformers renders pairs."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any], structured: bool | None, name: str
    ) -> None:
        text = tokenizer.chat_template
        if structured is None:
            structured = not isinstance(text, str) or any(pattern in text for pattern in STRUCTURED)
        self.tokenizer, self.structured, self.name = tokenizer, structured, name
        self.options = {key: value for key, value in options.items() if key not in TOKENIZER_OPTIONS}

    def text(self, query: str, passage: str, prompt: str | None) -> str:
        """What the template writes."""
        return str(self._applied(query, passage, prompt, tokenize=False))

    def ids(self, query: str, passage: str, prompt: str | None) -> list[int]:
        """The ids of what it writes, uncut."""
        return list(self._applied(query, passage, prompt, tokenize=True)["input_ids"])

    def suffix(self, prompt: str | None) -> list[int]:
        """The ids that sentence-transformers restores at the end of a cut input."""
        first, second = (self.ids(filler, filler, prompt)[::-1] for filler in ("0", "1 2 3 4"))
        alike = 0
        while alike < min(len(first), len(second)) and first[alike] == second[alike]:
            alike += 1
        return first[:alike][::-1]

    def prompted(self, without: str) -> str | None:
        """What the template writes with a prompt; None if it takes none."""
        written = self.text(QUERY, PASSAGE, PROMPT)
        if written == without:
            return None
        _check_written(written, (QUERY, PASSAGE, PROMPT), self.name)
        return written

    def _applied(self, query: str, passage: str, prompt: str | None, *, tokenize: bool) -> Any:
        roles = {"system": prompt, "query": query, "document": passage}
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.structured else text}
            for role, text in roles.items()
            if text is not None
        ]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=tokenize, return_dict=tokenize, **self.options)
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            first_line = str(error).partition("\n")[0]
            raise ValueError(f"{self.name} fails on a pair ({first_line}). {GIVE_ONE}") from error


def _check_written(written: str, texts: Sequence[str], name: str) -> None:
    """Raise ValueError unless each text is written once, as it is."""
    for text in texts:
        role = SLOTS[text].strip("{}")
        if (count := written.count(text)) > 1:
            raise ValueError(f"{name} writes the {role} {count} times. {GIVE_ONE}")
        if not count:
            changed = "changes (it may trim or escape)" if text.strip()[6:-1] in written else "drops"
            raise ValueError(f"{name} {changed} the {role}. {GIVE_ONE}")
    rest = written
    for text in texts:
        rest = rest.replace(text, "")
    if braces := [slot for slot in (*SLOTS.values(), *SPECIAL_TOKENS) if slot in rest]:
        raise ValueError(f"{name} itself writes {braces[0]}, which has a meaning in templates. {GIVE_ONE}")


def _default_prompt(without: str, prompted: str) -> str:
    """What stands for the prompt in a call that gives none; empty if nothing does."""
    before, after = prompted.split(PROMPT)
    if len(without) > len(before) + len(after) and without.startswith(before) and without.endswith(after):
        return without[len(before) : len(without) - len(after)]
    return ""


def _with_optional_prompt(tokenizer: PreTrainedTokenizerBase, without: str, prompted: str, name: str) -> InputTemplate:
    """A template that writes some text with the prompt and nothing without one."""
    added, position = len(prompted) - len(without), prompted.index(PROMPT)
    starts = [
        start
        for start in range(position, max(0, position + len(PROMPT) - added) - 1, -1)
        if prompted[:start] + prompted[start + added :] == without
    ]
    inside = [start for start in starts if prompted[start : start + added] in (PROMPT, " " + PROMPT)]
    errors: list[str] = []
    for start in starts:
        try:
            return _in_pieces(tokenizer, prompted, name, optional=(start, start + added))
        except ValueError as error:
            errors.append(str(error))
    if inside:
        template = _in_pieces(tokenizer, prompted, name)
        if all("{query}" in piece for piece in (*template.query, *template.prompt) if "{prompt}" in piece):
            return template
    raise ValueError(errors[-1] if errors else f"{name} writes other text around a prompt than without. {GIVE_ONE}")


def _in_pieces(
    tokenizer: PreTrainedTokenizerBase,
    written: str,
    name: str,
    *,
    default_prompt: str | None = None,
    optional: tuple[int, int] | None = None,
) -> InputTemplate:
    """Split what a chat template writes where the tokenizer splits it anyway. `optional`: what becomes one piece."""
    spans = {slot: (written.find(text), written.find(text) + len(text)) for text, slot in SLOTS.items()}
    spans = {slot: span for slot, span in spans.items() if span[0] >= 0}
    stops = sorted([0, *(edge for span in spans.values() for edge in span), len(written)])
    literals = [(start, written[start:stop]) for start, stop in zip(stops[::2], stops[1::2], strict=True)]
    texts = TextTokenizer(tokenizer, [text for _, text in literals])
    splits = sorted({start + split for start, text in literals for split in texts.splits(text)})

    def before(position: int) -> int | None:
        """The last split of the literal that ends here; its beginning if no text precedes it."""
        start = max(stop for stop in stops[::2] if stop <= position)
        found = [split for split in splits if start <= split <= position]
        return found[-1] if found else (0 if start == 0 else None)

    def after(position: int) -> int | None:
        """The first split of the literal that begins here; its end if no text follows it."""
        stop = min(stop for stop in stops[1::2] if stop >= position)
        found = [split for split in splits if position <= split <= stop]
        return found[0] if found else (stop if stop == len(written) else None)

    passage = before(spans["{passage}"][0]), after(spans["{passage}"][1])
    if not _all_found(passage):
        raise ValueError(f"{name} writes the passage so that the tokenizer joins it with other text. {GIVE_ONE}")
    edges = {0, *passage, len(written)}
    if optional is not None:
        if not {*optional} <= {0, *splits, len(written)}:
            raise ValueError(f"{name} writes the prompt so that the tokenizer joins it with other text. {GIVE_ONE}")
        edges |= {*optional}
        held = [spans["{query}"]]
    else:
        others = [span for slot, span in spans.items() if slot != "{passage}"]
        together = len({start < passage[0] for start, _ in others}) == 1
        held = [(min(start for start, _ in others), max(stop for _, stop in others))] if together else others
    edges |= {edge for start, stop in held for edge in (before(start), after(stop)) if edge is not None}
    ordered = sorted(edges)
    pieces: dict[str, list[str]] = {"query": [], "passage": [], "prompt": []}
    for start, stop in pairwise(ordered):
        name_of_span = "query" if stop <= passage[0] else "passage" if stop <= passage[1] else "prompt"
        pieces[name_of_span].append(_slotted(written[start:stop]))
    try:
        return InputTemplate.model_validate({**pieces, "truncation": "end", "default_prompt": default_prompt})
    except ValidationError as error:
        raise ValueError(f"{name} writes a pair in a way that no template expresses. {GIVE_ONE}") from error


def _all_found(positions: tuple[int | None, int | None]) -> TypeGuard[tuple[int, int]]:
    return None not in positions


def _slotted(text: str) -> str:
    for written, slot in SLOTS.items():
        text = text.replace(written, slot)
    return text


def _check_chats(
    tokenizer: PreTrainedTokenizerBase, template: InputTemplate, chat: _Chat, system: str | None, name: str
) -> None:
    """Compare a template with the chat template, with and without a prompt, cut and uncut."""
    pairs = [*product(SAMPLE_QUERIES, SAMPLE_PASSAGES), SAMPLE_LONG]
    encoder = PairEncoder(tokenizer, template, UNLIMITED)
    for prompt in (None, *(SAMPLE_PROMPTS if template.takes_prompt else ())):
        asked = system if prompt is None else prompt
        for texts, pair in zip(pairs, encoder.encode(pairs, prompt), strict=True):
            if pair.input_ids != chat.ids(*texts, asked):
                raise ValueError(f"{name} writes the pair {texts!r} in a way that no template expresses. {GIVE_ONE}")
        whole, suffix = chat.ids(*SAMPLE_LONG, asked), chat.suffix(asked)
        for cut in (1, 40):
            [pair] = encoder.resized(len(whole) - cut).encode([SAMPLE_LONG], prompt)
            if pair.input_ids != [*whole[: len(whole) - cut - len(suffix)], *suffix]:
                raise ValueError(f"{name} is cut in a way that no template expresses. {GIVE_ONE}")
