"""The model card: a README.md beside the weights that says what a model was trained on and how to use it."""

import re
from functools import cache
from importlib import metadata, resources

import numpy as np
from jinja2 import Environment, StrictUndefined, Template

from tadvae.base.documents import dump_yaml
from tadvae.base.filesystem import Location
from tadvae.base.terminal import visible
from tadvae.data.vocabulary import Vocabulary
from tadvae.settings.experiment import ExperimentConfig

CARD = "README.md"
TEMPLATE = "model_card.md.j2"
SHOWN_TARGETS = 200
MARKUP = re.compile(r"[\\`*_\[\]<>|~$@]|(?<=www)\.|(?<=\w):(?=//)")
"""What has a meaning in Markdown and can begin inside a line: also addresses, which become links."""


def write_card(folder: Location, vocabulary: Vocabulary, config: ExperimentConfig) -> None:
    """Write ``README.md`` into a model's folder."""
    (folder / CARD).write_text(model_card(vocabulary, config))


def model_card(vocabulary: Vocabulary, config: ExperimentConfig) -> str:
    """Return the card as Markdown, with the metadata block that model hubs read.

    It has no scores: those belong to a run and its split (``tadvae evaluate``), and a model may be copied
    without them. It names no licence, since that is for the data's owner to choose.
    """
    head = {
        "library_name": "tadvae",
        "tags": ["biology", "single-cell", "perturbation", "pathways", "interpretability"],
    }
    seen = sorted(target.name for target in vocabulary.targets if target.seen)
    shown = ", ".join(seen[:SHOWN_TARGETS]) + (", …" if len(seen) > SHOWN_TARGETS else "")
    genes = len(np.unique(np.concatenate([entry.genes for entry in vocabulary.datasets])))
    first = vocabulary.contexts[0]
    return _template().render(
        head=dump_yaml(head),
        config=config,
        warning=vocabulary.membership.warning,
        origin=vocabulary.origin,
        version=metadata.version("tadvae"),
        n_genes=f"{genes:,}",
        n_pathways=f"{vocabulary.membership.n_pathways:,}",
        n_seen=len(seen),
        datasets=_datasets(vocabulary),
        has_effects=any(entry.has_effects for entry in vocabulary.datasets),
        reads_cells=not all(entry.has_effects for entry in vocabulary.datasets),
        targets=shown or "none",
        example={
            "target": seen[0] if seen else "TARGET",
            "context": first.name,
            "dataset": vocabulary.datasets[first.dataset].name,
        },
    )


def escape_markdown(words: str) -> str:
    """Return a text on one line in which no character has a meaning in Markdown, HTML or a table."""
    line = visible(re.sub(r"\s+", " ", words)).replace("&", "&amp;")
    return MARKUP.sub(r"\\\g<0>", line)


@cache  # each compiles it anew
def _template() -> Template:
    environment = Environment(
        autoescape=False,  # Markdown is no HTML: the filters below escape what comes from data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = escape_markdown
    environment.filters["python"] = repr
    source = resources.files("tadvae").joinpath("resources", TEMPLATE).read_text("utf-8")
    return environment.from_string(source)


def _datasets(vocabulary: Vocabulary) -> list[dict[str, str]]:
    available = vocabulary.available.sum(axis=1)
    rows = []
    for i, entry in enumerate(vocabulary.datasets):
        used = sorted({vocabulary.modalities[m] for m in entry.target_modality.values()})
        rows.append(
            {
                "name": entry.name,
                "kind": entry.kind,
                "n_genes": f"{len(entry.genes):,}",
                "n_pathways": str(int(available[i])),
                "contexts": ", ".join(c.name for c in vocabulary.contexts if c.dataset == i),
                "modalities": ", ".join(used) or "none",
                "n_targets": str(len(entry.target_modality)),
            }
        )
    return rows
