"""Docstrings are written in Sphinx's markup; the site's is Markdown."""

import re

from griffe import Extension, Object


class SphinxMarkup(Extension):
    """Turns ``:func:`name``` into code and ``.. math::`` into a formula, as mkdocstrings reads each object."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    text = re.sub(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`", r"`\1`", text)
    text = text.replace("``", "`")
    return re.sub(r"\.\. math:: ((?:.+\n?)+?)(?=\n|$)", lambda m: f"\n$$\n{m[1].strip()}\n$$\n", text)
