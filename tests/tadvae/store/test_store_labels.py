"""Labels of a screen: what their authors meant, nothing lost, nothing confused, or one sentence."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inspect import describe
from tadvae.base.errors import UserError
from tadvae.genes.reference import GeneReference
from tadvae.store.cell_labels import CellLabels
from tadvae.store.conversion import plan_store
from tadvae.store.labels import longest_names, parse_labels
from tadvae.store.spec import DatasetSpec, is_genetic, load_spec
from tadvae.store.targets import harmonise_targets
from tadvae.store.writer import perturbation_label

GENES = {"HLA-A", "NKX2-1", "TNFSF12", "TNFSF13", "TNFSF12-TNFSF13", "KLF1", "CTRL"}


def dataset(modality="CRISPRi", **perturbation):
    given = {"column": "condition", "control": "ctrl", **perturbation}
    return DatasetSpec(name="s", path="s.h5ad", perturbation=given, modality=modality)


def parse(labels, **perturbation):
    """Targets of each label, None where its cells are dropped."""
    found = parse_labels(
        pd.Series(labels, name="condition"), dataset(**perturbation), "s", GENES.__contains__
    )
    return [targets if kept else None for targets, kept in zip(found.targets, found.keep, strict=True)]


@pytest.mark.parametrize(
    ("label", "separator", "targets"),
    [
        ("KLF1+ctrl", "+", ("KLF1",)),
        ("ctrl + KLF1", "+", ("KLF1",)),
        ("ctrl+ctrl", "+", ()),
        ("(+)-JQ1", "+", ("(+)-JQ1",)),
        ("(+)-JQ1+KLF1", "+", ("(+)-JQ1", "KLF1")),
        ("HLA-A", "-", ("HLA-A",)),
        ("NKX2-1-HLA-A-KLF1", "-", ("HLA-A", "KLF1", "NKX2-1")),
        ("KLF1-non-targeting", "-", ("KLF1",)),
        ("TNFSF12-TNFSF13", "-", ("TNFSF12-TNFSF13",)),
    ],
)
def test_names_are_looked_up_whole(label, separator, targets):
    assert parse(["ctrl", label], separator=separator, control=["ctrl", "non-targeting"]) == [(), targets]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A+B+C", ["A", "B+C"]),  # the longest first name would leave C unknown
        ("A+B+D", ["A+B", "D"]),
        ("X+B+C+Y", ["X", "B+C", "Y"]),
        ("A", ["A"]),
        ("", [""]),
    ],
)
def test_names_with_separators_in_them(text, parts):
    assert longest_names(text.split("+"), "+", {"A", "A+B", "B+C", "D"}.__contains__) == parts


def test_parts_that_are_labels_themselves_are_a_combination():
    labels = ["ctrl", "TNFSF12", "TNFSF13", "TNFSF12-TNFSF13"]
    assert parse(labels, separator="-")[-1] == ("TNFSF12", "TNFSF13")


def test_a_setting_can_name_a_target_with_a_separator():
    labels = ["ctrl", "Na++KLF1", "Na+"]
    found = parse(labels, separator="+", rename={"Na+": "sodium"})
    assert found == [(), ("KLF1", "sodium"), ("sodium",)]


@pytest.mark.parametrize("label", ["control", "Ctrl", "CONTROL", "KLF1+control", "c_trl"])
def test_a_label_spelt_like_a_control(refused, label):
    sentence = refused(parse, ["ctrl", "KLF1", label], separator="+")
    name = label.split("+")[-1]
    assert f"label '{name}'" in sentence
    assert (
        f"is not declared, but spelt like a control; add it to control: [ctrl, {name}] or exclude it"
        in sentence
    )
    assert parse(["ctrl", "KLF1", label], separator="+", exclude=[label])[-1] is None
    both = {"separator": "+", "control": ["ctrl", name]}
    assert parse(["ctrl", "KLF1", label], **both)[-1] == (("KLF1",) if "+" in label else ())


def test_a_gene_that_is_called_like_a_control(refused):
    assert "rename: {CTRL: CTRL}" in refused(parse, ["ctrl", "CTRL"])
    assert parse(["ctrl", "CTRL"], rename={"CTRL": "CTRL"}) == [(), ("CTRL",)]


@pytest.mark.parametrize("new", ["control", "Ctrl"])
def test_a_target_is_not_renamed_to_a_control(refused, new):
    assert "is not declared" in refused(parse, ["ctrl", "NTC"], rename={"NTC": new})
    assert parse(["ctrl", "NTC"], rename={"NTC": "ctrl"}) == [(), ()]


@pytest.mark.parametrize("text", ["nan", "NA", "None", "", " ", "<NA>", "null", "KLF1+nan", "NA+NA"])
def test_text_that_stands_for_a_missing_value(refused, text):
    labels = ["ctrl", "KLF1", text, text, None]
    sentence = refused(parse, labels, separator="+")
    for word in ("3 cells have no value", repr(text.strip()), "label them", "missing: drop"):
        assert word in sentence
    assert parse(labels, separator="+", missing="drop") == [(), ("KLF1",), None, None, None]


def test_a_declared_text_is_a_label():
    assert parse(["None", "KLF1", "NA"], control="None", exclude=["NA"]) == [(), ("KLF1",), None]
    assert parse(["ctrl", "nan"], rename={"nan": "nanobody"}) == [(), ("nanobody",)]


@pytest.mark.parametrize(
    ("labels", "control", "expected"),
    [
        ([0, 1, 2], 0, ["", "1", "2"]),
        ([0.0, 1.0, 2.5], 0, ["", "1", "2.5"]),
        ([0.0, 1.0, 2.5], "0.0", ["", "1", "2.5"]),
        ([True, False, True], False, ["True", "", "True"]),
        (pd.array([True, False], "boolean"), False, ["True", ""]),
        (pd.Categorical([3, 4]), [3], ["", "4"]),
    ],
)
def test_numbers_and_booleans_are_labels(labels, control, expected):
    assert ["+".join(targets) for targets in parse(labels, control=control)] == expected


def test_settings_may_hold_numbers():
    found = parse([0, 1, 2, 3], control=[0], exclude=[3], rename={1: 10})
    assert found == [(), ("10",), ("2",), None]
    spec = DatasetSpec(
        name=2019, path="s.h5ad", context={"value": 37}, modality={"default": "drug", 5: "dose"}
    )
    assert (spec.name, spec.context.value, spec.modality_of("5")) == ("2019", "37", "dose")


def test_a_label_that_yaml_reads_otherwise(refused, write_spec, screen):
    sentence = refused(parse, ["no", "yes"], control=False)
    assert "never holds 'False' (it holds 'no', 'yes', …)" in sentence
    assert "in quotes" in sentence
    spec = write_spec(screen)
    spec.write_text(spec.read_text().replace("control: control", "control: 2020-01-01"))
    assert "in quotes" in refused(load_spec, spec)


def test_a_context_without_a_name(refused, write_spec, screen):
    screen.obs["line"] = screen.obs["line"].replace("A549", "nan")
    assert "24 cells have no value in obs column 'line' (the text 'nan')" in refused(
        plan_store, load_spec(write_spec(screen))
    )


@pytest.mark.parametrize(
    ("modality", "genetic"),
    [
        ("CRISPRi", True),
        ("", True),
        ("unspecified", True),
        ("siRNA", True),
        ("Cas13d", True),
        ("base editing", True),
    ]
    + [(name, False) for name in ("drug", "ligand", "stimulation", "dose", "cytokine", "small molecule")],
)
def test_modalities_that_act_on_genes(modality, genetic):
    assert is_genetic(modality) == genetic


def test_what_is_no_gene_keeps_its_name(write_spec, screen):
    """Each name is an alias of a gene, but only two of the perturbations are about genes."""
    names = ["control", "AP1", "TNFA", "CIS"]
    screen.obs["condition"] = np.tile(names, 12)
    screen.var_names = [*GENES_OF_A_PANEL]
    modality = {"default": "drug", "TNFA": "ligand", "AP1": "CRISPRi"}
    plan = plan_store(load_spec(write_spec(screen, reference="human", modality=modality)))
    assert [perturbation_label(tuple(t for t, _ in item)) for item in plan.perturbations] == [
        "control",
        "CIS",
        "JUN",
        "TNFA",
    ]
    assert plan.target_gene["CIS"] is plan.target_gene["TNFA"] is None
    assert plan.target_gene["JUN"] == "ENSG00000177606"
    assert dict(plan.perturbations[2]) == {"JUN": "CRISPRi"}


GENES_OF_A_PANEL = ["KLF1", "JUN", "FOS", "GATA1", "TP53", "TNF", "CISH", "CEBPA", "CEBPB", "MAP2K6"]


def test_modality_accepts_any_name_of_a_gene(write_spec, screen):
    screen.obs["condition"] = np.tile(["control", "H2AFZ", "JUN", "H2AFZ+JUN"], 12)
    screen.var_names = [*GENES_OF_A_PANEL]
    modality = {"default": "CRISPRi", "ENSG00000164032": "CRISPRa"}
    plan = plan_store(load_spec(write_spec(screen, reference="human", modality=modality)))
    assert plan.perturbations[-1] == (("H2AZ1", "CRISPRa"), ("JUN", "CRISPRi"))


def test_two_perturbations_of_one_name(refused, write_spec, screen):
    screen.obs["condition"] = np.tile(["control", "A+B", "A|B", "A"], 12)
    perturbation = {"column": "condition", "control": "control", "separator": "|"}
    sentence = refused(plan_store, load_spec(write_spec(screen, perturbation=perturbation)))
    assert "two different perturbations would be called 'A+B'" in sentence


def test_cells_of_a_store_add_up(convert_here, write_spec, screen):
    labels = ["control", "(+)-JQ1", "(+)-JQ1+G1", "nan", "G2+control", "1", "G1+(+)-JQ1", "Å\t°[+"]
    screen.obs["condition"] = np.tile(labels, 6)
    perturbation = {"column": "condition", "control": "control", "separator": "+", "missing": "drop"}
    del labels[-1]  # it does not parse: its last target is empty
    screen = screen[screen.obs["condition"].isin(labels)].copy()
    store = convert_here(write_spec(screen, perturbation=perturbation))
    (about,) = describe(str(store.folder))["datasets"]
    assert about["perturbations"] == {"control": 6, "(+)-JQ1": 6, "(+)-JQ1+G1": 12, "G2": 6, "1": 6}
    assert sum(about["perturbations"].values()) == about["n_cells"] == store.manifest.n_cells
    assert store.labels[0]["G1+(+)-JQ1"] == ("(+)-JQ1", "G1")
    assert store.separators == ["+"]


hostile = st.one_of(
    st.sampled_from(
        [
            "ctrl",
            "control",
            "Ctrl",
            "nan",
            "NA",
            "",
            " ",
            "KLF1",
            "HLA-A",
            "AP1",
            "JUN",
            "(+)-JQ1",
            "A+B",
            "A|B",
        ]
    ),
    st.text("AB+|-_ ()[]0.", max_size=6),
    st.text(max_size=4),
    st.integers(-3, 12),
    st.booleans(),
)


@settings(max_examples=60)
@given(
    st.lists(hostile, min_size=1, max_size=6),
    st.sampled_from([None, "+", "|", "-", "_", " "]),
    st.sampled_from([None, r"\d", "_.*"]),
    st.sampled_from(["CRISPRi", "drug"]),
)
def test_perturbations_add_up_to_the_cells(labels, separator, remove, modality):
    """For any labels: all cells are counted under distinct names, or the screen is refused."""
    spec = dataset(modality, separator=separator, remove=remove, missing="drop")
    column = pd.Series(["ctrl", *map(str, labels), "ctrl"], name="condition", dtype=object)
    human = GeneReference.load("human")
    try:
        parsed = parse_labels(column, spec, "s", human.is_official)
        kept = parsed.targets[parsed.keep]
        distinct = sorted(set(kept))
        n = len(kept)
        cells = CellLabels(
            source_row=np.flatnonzero(parsed.keep),
            cell_id=np.full(n, "c"),
            context=np.zeros(n, np.int64),
            contexts=["K562"],
            perturbation=np.array([distinct.index(item) for item in kept]),
            perturbations=distinct,
            batch=np.full(n, ""),
            total_counts=None,
            spelt=parsed.spelt,
        )
        panel = pd.DataFrame({"gene": ["ENSG00000177606"]})
        _, _, (found,) = harmonise_targets([spec], [cells], human, [panel])
    except UserError:
        return
    names = [perturbation_label(found.perturbations[code]) for code in found.perturbation]
    by_item = {found.perturbations[code] for code in found.perturbation}
    assert len(set(names)) == len(by_item)
    assert pd.Series(names).value_counts().sum() == n
    declared = [text for text, kept in zip(column, parsed.keep, strict=True) if kept]
    assert names.count("control") == sum(found.spelt[text.strip()] == () for text in declared)
    for text, code in zip(declared, found.perturbation, strict=True):
        assert found.spelt[text.strip()] == found.perturbations[code]
