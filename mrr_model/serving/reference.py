"""The page /docs: the routes of /openapi.json in HTML. It has no script and needs no other address."""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid #8886; padding-top: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }
pre { overflow-x: auto; padding: .75rem; background: #8882; border-radius: .375rem; }
.wide, details { margin: 1rem 0; overflow-x: auto; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The page's Content-Security-Policy."""

Schema = Mapping[str, Any]


def reference_page(openapi: Schema) -> str:
    """Write the page.

    Args:
        openapi: The app's OpenAPI schema.
    """
    title = escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    operations = [
        (method.upper(), path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>',
        f"<h1>{title}</h1><p>{escape(openapi['info'].get('description', ''))}</p>",
        '<p><a href="./">Try it</a> · <a href="openapi.json">OpenAPI schema</a></p><ul>',
        *(f'<li><a href="#{_anchor(method, path)}"><code>{method} {path}</code></a>' for method, path, _ in operations),
        "</ul>",
        *(part for operation in operations for part in _operation(*operation)),
        "</html>",
    ]
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f'<h2 id="{_anchor(method, path)}"><code>{method} {escape(path)}</code></h2>'
    yield f"<p>{_text(operation.get('description') or operation.get('summary', ''))}</p>"
    headers = {each["name"]: {**each["schema"], **each} for each in operation.get("parameters", ())}
    if headers:
        yield "<h3>Headers and parameters</h3>"
        yield _table(headers, required=[name for name, each in headers.items() if each.get("required")])
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    for form in _forms(content.get("schema", {})):
        yield f"<h3>Body: {escape(form.get('title', 'JSON'))}</h3>"
        yield _table(form.get("properties", {}), required=form.get("required", ()))
    for name, example in content.get("examples", {}).items():
        text = json.dumps(example["value"], indent=2, ensure_ascii=False)
        yield f"<details><summary>Example: {escape(name)}</summary><pre>{escape(text)}</pre></details>"
    yield "<h3>Answers</h3><ul>"
    for status, answer in operation.get("responses", {}).items():
        yield f"<li><code>{escape(str(status))}</code> {escape(answer.get('description', ''))}"
    yield "</ul>"


def _table(fields: Mapping[str, Schema], required: Any) -> str:
    rows = [  # what a request must have stands first
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}"
        f"<td>{_default(name, field, required)}<td>{_text(field.get('description', ''))}"
        for name, field in sorted(fields.items(), key=lambda item: item[0] not in required)
    ]
    return f'<div class="wide"><table><tr><th>name<th>type<th>default<th>meaning{"".join(rows)}</table></div>'


def _forms(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf", [schema])) if schema else []


def _type(schema: Schema) -> str:
    """A schema's type in one phrase.

    Example:
        >>> _type({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]})
        'list of string or null'
    """
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(option) for option in schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kinds = schema.get("type") or schema.get("title") or "any"
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _default(name: str, field: Schema, required: Any) -> str:
    if name in required:
        return "required"
    return f"<code>{escape(json.dumps(field['default']))}</code>" if field.get("default") is not None else ""


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _anchor(method: str, path: str) -> str:
    return escape(f"{method.lower()}{path.replace('/', '-')}")
