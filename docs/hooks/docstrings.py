"""Turn the reStructuredText of the docstrings into the Markdown that the reference page shows."""

import re

import griffe

_MATH_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n+\1 +.*)*)", re.MULTILINE)
_MATH = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":\w+:`(?:~[\w.]*\.)?([^`~]+)`")
_TABLE = re.compile(
    r"^ *=+(?: +=+)+ *\n(?P<head>.+)\n *=+(?: +=+)+ *\n(?P<body>(?:.+\n)+?) *=+(?: +=+)+ *$",
    re.MULTILINE,
)


class RestToMarkdown(griffe.Extension):
    """Convert each docstring before its sections are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object that was just collected."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Convert formulas, roles, simple tables, and the heading of examples."""
    text = _MATH_BLOCK.sub(_math_block, text)
    text = _MATH.sub(lambda match: rf"\({' '.join(match[1].split())}\)", text)
    text = _ROLE.sub(r"`\1`", text)
    text = _TABLE.sub(_table, text)
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


def _math_block(match: re.Match) -> str:
    lines = [line.strip() for line in match[2].splitlines() if line.strip()]
    return "\n".join(
        match[1] + line for line in ("", r"\[\begin{aligned}", *lines, r"\end{aligned}\]", "")
    )


def _table(match: re.Match) -> str:
    rows = [match["head"], *match["body"].splitlines()]
    head, *body = ["| " + " | ".join(re.split(r" {2,}", row.strip())) + " |" for row in rows]
    rule = re.sub(r"[^|]+", " --- ", head)
    return "\n".join([head, rule, *body])
