"""The book: the committed notebooks as a web site. Nothing is executed, and nothing is fetched, now or by the reader."""

from __future__ import annotations

import html

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.ext.apidoc import main as apidoc
from sphinx.util import logging

logger = logging.getLogger(__name__)

project = "CXR-CLIP"
author = "the cxrclip maintainers"
html_title = "CXR-CLIP, a book that runs"

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["mixes", "apidoc", "**.ipynb_checkpoints"]
if tags.has("paper"):  # noqa: F821 (sphinx defines it): `make pdf` leaves out what paper cannot hold
    exclude_patterns += ["api", "explorer.md"]
    suppress_warnings = ["toc.not_readable", "myst.xref_missing"]
nb_execution_mode = "off"       # the outputs that were committed
nb_output_stderr = "remove"     # progress bars
nb_render_markdown_format = "myst"  # tables in outputs are tables
nb_ipywidgets_js = {}           # no widget is used; the default is a script from the net
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
nitpick_ignore_regex = [("py:.*", r"(?!cxrclip\.).*"),  # with -n: other libraries' inventories would be fetched
                        ("py:class", r"cxrclip\..*\.(T|Item)")]  # type variables

html_theme = "sphinx_book_theme"
html_theme_options = {"use_download_button": True, "show_toc_level": 2, "home_page_in_toc": True,
                      "navbar_persistent": []}
repository_url = ""             # where the repository is published; empty until it is: then the pages get their buttons
if repository_url:              # source, "report an error", Binder (environment.yml) and Colab
    html_theme_options |= {"repository_url": repository_url, "path_to_docs": "notebooks", "repository_branch": "main",
                           "use_repository_button": True, "use_issues_button": True,
                           "launch_buttons": {"binderhub_url": "https://mybinder.org",
                                              "colab_url": "https://colab.research.google.com"}}
html_math_renderer = "mathml"   # the browser draws formulas by itself; MathJax would be fetched from the net
html_static_path = ["book.css", "explorer.js", "explorer_data.js"]
html_css_files = ["book.css"]
html_favicon = "favicon.svg"
html_show_copyright = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system; without it the theme logs an error


def formula(node: nodes.Element, as_block: bool) -> str:
    """LaTeX -> MathML; a formula that docutils cannot read is a warning that names the page."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logger.warning("formula: %s Write it with other commands.", error, location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def inline_math(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    """A formula in the text."""
    translator.body.append(formula(node, as_block=False))
    raise nodes.SkipNode


def block_math(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    """A formula on its own line."""
    translator.body.append(f'<div class="formula">{formula(node, as_block=True)}</div>')
    raise nodes.SkipNode


def keep_as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text (shapes, equations in ASCII): show them as they stand in the source."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    elif any(lines):
        lines[:] = [".. code-block:: text", "", *(f"   {line}" for line in lines)]


def write_library_pages(app: Sphinx) -> None:
    """The library, a page a folder: api/<package>.rst, written anew from the package's files."""
    apidoc(["-q", "--remove-old", "--no-toc", "--maxdepth", "1", "--templatedir", str(app.confdir / "apidoc"),
            "--output-dir", str(app.srcdir / "api"), str(app.confdir.parent / "cxrclip")])


def skip(app: Sphinx, what: str, name: str, obj: object, default: bool, options: object) -> bool | None:
    """The schema's value fills a page; the studies notebook shows it as a table."""
    return True if name == "SCHEMA" else None


def setup(app: Sphinx) -> None:
    """Called by sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline_math, None), block_renderers=(block_math, None))
    app.connect("builder-inited", write_library_pages)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", keep_as_written)
