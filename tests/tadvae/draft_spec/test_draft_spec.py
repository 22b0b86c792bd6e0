"""Specs that are written by looking into files: each converts as it is, or a sentence names the option."""

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from scipy import sparse

from pipelines.cli import questions
from pipelines.cli.main import main
from tadvae.base.errors import UserError
from tadvae.draft_spec.control_labels import is_control_label
from tadvae.draft_spec.dataset import Given
from tadvae.draft_spec.decisions import Question
from tadvae.draft_spec.draft import _flow, _lines, draft_spec, n_guesses
from tadvae.draft_spec.labels import separator_of, suffix_of_guides
from tadvae.store.conversion import plan_store
from tadvae.store.spec import load_spec, load_spec_text


@pytest.fixture
def drafted(tmp_path):
    """Write screens, draft their spec, and read it as `tadvae convert` does: the datasets, and the text."""

    def drafted(*screens, ask=None, **given):
        paths = []
        for i, screen in enumerate(screens):
            paths.append(str(tmp_path / f"screen{i}.h5ad"))
            screen.write_h5ad(paths[-1])
        text = draft_spec(paths, tmp_path, Given(**given), ask)
        (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
        spec = load_spec(tmp_path / "spec.yaml")
        plan_store(spec)
        return spec.datasets, text

    return drafted


@pytest.mark.parametrize(
    "label",
    ["control", "ctrl", "CTRL", "non-targeting", "Non_Targeting", "NT", "NTg7", "NT_1", "NTC", "neg-ctrl",
     "DMSO", "DMSO_TF", "vehicle", "unperturbed", "untreated", "ctrl+ctrl", "NT|NT", "negative control",
     "safe-targeting_3", "scramble", "ctrl101"],
)  # fmt: skip
def test_labels_of_controls(label):
    assert is_control_label(label)


@pytest.mark.parametrize(
    "label", ["KLF1", "NTRK1", "CTRL1A2", "NEGR1", "", "KLF1+ctrl", "IFNB", "WT1B", "MOCS1", "+"]
)
def test_labels_of_others(label):
    assert not is_control_label(label)


def test_every_setting_is_found(screen, drafted):
    screen.obs["lane"] = np.resize(["l1", "l2"], 48)
    screen.obs["n_counts"] = np.ceil(screen.obs.pop("depth"))
    screen.obs["perturbation_type"] = "CRISPR activation"
    screen.obs = screen.obs.rename(columns={"line": "cell_line"})
    (dataset,), text = drafted(screen)
    assert dataset.perturbation.model_dump(exclude_defaults=True) == {
        "column": "condition",
        "control": "control",
        "separator": "+",
    }
    assert dataset.context.column == "cell_line"
    assert dataset.modality == "CRISPRa"
    assert dataset.batch.column == "lane"
    assert dataset.total_counts == "n_counts"
    assert yaml.safe_load(text)["genes"] == {"reference": "none"}
    assert n_guesses(text) == 2  # the library sizes, and that the genes are not human


def test_contexts_without_controls_are_no_contexts(screen, drafted):
    """Training would refuse such a spec."""
    screen.obs = screen.obs.drop(columns="line")
    types = np.where(screen.obs.groupby("condition", observed=True).cumcount() % 2, "B", "T")
    screen.obs["cell_type"] = np.where(screen.obs["condition"] == "control", "B", types)
    (dataset,), text = drafted(screen)
    assert (dataset.context.column, dataset.context.value) == (None, "screen0")
    assert "guessed: no control cells in 'T' of column 'cell_type', so it is not the context" in text
    screen.obs["cell_type"] = types
    (dataset,), text = drafted(screen)
    assert dataset.context.column == "cell_type"


def test_where_counts_are(screen, drafted):
    counts = screen.X.copy()
    screen.X = sparse.csr_matrix(np.log1p(counts.toarray() / counts.sum(axis=1) * 1e4).astype(np.float32))
    screen.layers["spliced"], screen.layers["counts"] = counts, counts
    assert drafted(screen)[0][0].counts.layer == "counts"
    del screen.layers["spliced"], screen.layers["counts"]
    assert drafted(screen)[0][0].values == "log1p"
    screen.raw = screen.copy()
    screen.raw._X = counts
    assert drafted(screen)[0][0].counts.layer == "raw"


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_zarr_folder(screen, tmp_path, form):
    screen.X = form(screen.X.toarray())
    screen.write_zarr(tmp_path / "my screen.zarr")
    spec = load_spec_text(draft_spec([str(tmp_path / "my screen.zarr")], tmp_path, Given()), "x", tmp_path)
    assert spec.datasets[0].name == "my_screen"
    assert spec.datasets[0].perturbation.control == "control"
    plan_store(spec)


def test_fractional_counts_are_rounded_and_marked(screen, drafted):
    screen.X = sparse.csr_matrix(screen.X.toarray() * 40 + 0.25 * (screen.X.toarray() > 2))
    (dataset,), text = drafted(screen)
    assert dataset.counts.round
    assert "guessed: fractional counts" in text


def test_scaled_values_are_refused(screen, drafted):
    screen.X = screen.X.toarray() - 3.5
    with pytest.raises(UserError, match=r"negative values.*raw counts"):
        drafted(screen)


def test_signatures_and_profiles(screen, drafted):
    rows = screen[:4].copy()
    rows.X = rows.X.toarray() / 7.3 + 0.1
    assert drafted(rows)[0][0].kind == "profiles"
    rows.X = rows.X - 1.0
    (dataset,), text = drafted(rows)
    assert dataset.kind == "signatures"
    assert dataset.perturbation.exclude == ["control"]
    assert "guessed: rows of controls" in text


def test_guides_become_targets(screen, drafted, tmp_path):
    screen.obs = pd.DataFrame(
        {"guide": np.resize(["NTg1", "NTg2", "G1g1", "G2g1", "G2g3"], 48)}, screen.obs_names
    )
    ((dataset,), _) = drafted(screen)
    assert dataset.perturbation.control == "NT"
    plan = plan_store(load_spec(tmp_path / "spec.yaml"))
    assert [[target for target, _ in each] for each in plan.perturbations] == [[], ["G1"], ["G2"]]
    screen.obs["gene_target"] = screen.obs["guide"].str.replace(r"g\d$", "", regex=True)
    screen.obs["n_guides"] = 1.0
    dataset = drafted(screen)[0][0]
    assert dataset.perturbation.column == "gene_target"
    assert (dataset.qc.guide, dataset.qc.n_guides) == ("guide", "n_guides")


def test_no_control_needs_an_option(screen, drafted, refused):
    screen.obs["condition"] = screen.obs["condition"].replace({"control": "sham"})
    sentence = refused(drafted, screen)
    assert "--control LABEL" in sentence
    assert "'sham'" in sentence
    assert drafted(screen, controls=("sham",))[0][0].perturbation.control == "sham"
    assert "--control lost" in refused(drafted, screen, controls=("lost",))
    assert "--perturbation no" in refused(drafted, screen, perturbation="no")
    assert "--context no" in refused(drafted, screen, context="no")


def test_a_person_is_asked_and_nothing_is_guessed(screen, drafted):
    screen.obs["condition"] = screen.obs["condition"].replace({"control": "sham"})
    asked = []

    def ask(question):
        asked.append(question)
        return "sham" if "control cells" in question.text else question.choices[0]

    (dataset,), text = drafted(screen, ask=ask)
    assert dataset.perturbation.control == "sham"
    assert ["control cells" in each.text for each in asked].count(True) == 1
    assert all(each.text.count("screen0.h5ad") == 1 for each in asked)
    assert (
        "modality" not in text.split("genes:")[0] or "guessed" not in text.split("modality")[1].split("\n")[0]
    )


def test_several_labels_of_controls(screen, drafted):
    screen.obs["condition"] = screen.obs["condition"].replace({"G1": "DMSO"})
    (dataset,), text = drafted(screen[screen.obs["condition"] != "G1+G2"].copy())
    assert set(dataset.perturbation.controls) == {"control", "DMSO"}
    assert "guessed: all labels that look like those of controls" in text


def test_several_files_in_one_spec(screen, drafted):
    datasets, text = drafted(screen, screen, modality="CRISPRi")
    assert [each.name for each in datasets] == ["screen0", "screen1"]
    assert text.count("path: screen") == 2
    human = screen.copy()
    human.var_names = ["KLF1", "STAT1", "IRF1", "TP53", "MYC", "JUN", "FOS", "GAPDH", "ACTB", "CD4"]
    human.obs["condition"] = (
        human.obs["condition"].astype(str).replace({"G1": "KLF1", "G2": "MYC", "G1+G2": "KLF1+MYC"})
    )
    assert "reference" not in drafted(human)[1]
    with pytest.raises(UserError, match="one spec for the files of each organism"):
        drafted(human, screen)


def test_ensembl_ids_in_a_column_of_var(screen, drafted):
    ids = (105610, 115415, 125347, 141510, 136997, 177606, 170345, 111640, 75624, 10610)
    screen.var["gene_ids"] = [f"ENSG00000{i:06d}" for i in ids]
    assert drafted(screen)[0][0].genes.column == "gene_ids"


class TestHostileFiles:
    def test_no_columns_of_obs(self, screen, drafted):
        screen.obs = pd.DataFrame(index=screen.obs_names)
        (dataset,), text = drafted(screen)
        assert dataset.perturbation is None
        assert "guessed: no column of obs names perturbations (columns: none)" in text

    def test_one_label(self, screen, drafted, refused):
        screen.obs["condition"] = "KLF1"
        assert "--control LABEL" in refused(drafted, screen)
        screen.obs["condition"] = "control"
        assert drafted(screen)[0][0].perturbation.control == "control"

    def test_unused_categories_and_missing_labels(self, screen, drafted):
        labels = screen.obs["condition"].where(np.arange(48) > 2)
        screen.obs["condition"] = pd.Categorical(labels, ["ctrl", "DMSO", *sorted(set(labels.dropna()))])
        (dataset,), text = drafted(screen)
        assert dataset.perturbation.control == "control"
        assert dataset.perturbation.missing == "drop"
        assert "guessed: 3 cells have no label" in text

    def test_names_of_any_letters(self, screen, drafted):
        screen.obs = screen.obs.rename(columns={"line": "cell_type"})
        screen.obs["condition"] = screen.obs["condition"].replace(
            {"G1": "β: #x\n\x1b[2J", "G2": "no", "G1+G2": "007"}
        )
        screen.obs["cell_type"] = screen.obs["cell_type"].replace({"K562": "Zelle ü"})
        screen.obs["größe # 'x'"] = "y"
        (dataset,), text = drafted(screen)
        assert dataset.perturbation.control == "control"
        assert text.replace("\n", "").isprintable()

    def test_a_column_that_occurs_twice(self, screen, drafted, tmp_path):
        import h5py

        screen.write_h5ad(tmp_path / "twice.h5ad")
        with h5py.File(tmp_path / "twice.h5ad", "r+") as file:
            order = list(file["obs"].attrs["column-order"])
            file["obs"].attrs["column-order"] = [*order, "condition"]
        with pytest.raises(UserError, match="no file has such a column"):
            draft_spec([str(tmp_path / "twice.h5ad")], tmp_path, Given(perturbation="condition"))

    def test_data_of_other_files_are_not_read(self, screen, tmp_path, refused):
        import h5py

        screen.write_h5ad(tmp_path / "own.h5ad")
        screen.write_h5ad(tmp_path / "linked.h5ad")
        with h5py.File(tmp_path / "linked.h5ad", "r+") as file:
            file["layers/counts"] = h5py.ExternalLink("own.h5ad", "X")
        sentence = refused(draft_spec, [str(tmp_path / "linked.h5ad")], tmp_path, Given())
        assert "lie in another file" in sentence

    def test_no_anndata(self, tmp_path, refused):
        (tmp_path / "x.h5ad").write_text("no")
        assert "not an .h5ad" in refused(draft_spec, [str(tmp_path / "x.h5ad")], tmp_path, Given())
        assert "no such file" in refused(draft_spec, [str(tmp_path / "y.h5ad")], tmp_path, Given())

    def test_a_gene_twice(self, screen, drafted, refused):
        screen.var_names = ["KLF1", "KLF1", "IRF1", "TP53", "MYC", "JUN", "FOS", "GAPDH", "ACTB", "CD4"]
        assert "duplicate genes" in refused(drafted, screen)

    def test_a_matrix_by_columns_is_not_read_whole(self, screen, drafted, monkeypatch):
        screen.X = sparse.csc_matrix(screen.X)
        monkeypatch.setattr("tadvae.draft_spec.draft.plan_store", lambda spec: pytest.fail("reads all"))
        assert drafted(screen)[0][0].perturbation.control == "control"


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
VALUES = st.one_of(WORDS, st.booleans(), st.integers(-9, 9), st.lists(WORDS, max_size=3))


@settings(max_examples=30, deadline=None)
@for_all(
    st.dictionaries(WORDS, st.one_of(VALUES, st.dictionaries(WORDS, VALUES, min_size=1)), min_size=1), WORDS
)
def test_yaml_of_any_names(data, reason):
    places = [(key,) for key, value in data.items() if not isinstance(value, dict)][:1]
    places += [(key, next(iter(value))) for key, value in data.items() if isinstance(value, dict)][:1]
    reasons = dict.fromkeys(places, reason)
    assert yaml.safe_load("".join(_lines(data, reasons, "", ()))) == data
    assert "\n" not in _flow(reason)


def test_separators_and_suffixes():
    def is_gene(name):
        return name in {"A", "B", "HLA-A", "STAT1"}

    assert separator_of(["A", "B", "A+B", "ctrl"], is_gene) == "+"
    assert separator_of(["A_B", "ctrl"], is_gene) == "_"
    assert separator_of(["HLA-A", "A", "non-targeting"], is_gene) is None
    assert separator_of(["drug-1", "drug-2"], is_gene) is None
    assert suffix_of_guides(["Ag1", "STAT1g2", "NTg1"], is_gene)
    assert suffix_of_guides(["STAT1", "A"], is_gene) is None


def test_the_command(screen, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    screen.write_h5ad("screen.h5ad")
    command = ["init", "screen.h5ad", "--out", "spec.yaml"]

    def ends(words):
        with pytest.raises(SystemExit) as ended:
            main(words)
        return ended.value.code or 0

    assert ends(command) == 0
    assert "tadvae convert spec.yaml" in capsys.readouterr().out
    assert ends(command) == 2
    assert "--force" in capsys.readouterr().err
    assert ends([*command, "--force", "--modality", "CRISPRi"]) == 0
    assert load_spec("spec.yaml").datasets[0].modality == "CRISPRi"
    assert ends(["init", "screen.h5ad", "--out", "spec.txt"]) == 2
    screen.obs["condition"] = "sham"
    screen.write_h5ad("screen.h5ad")
    assert ends(["init", "screen.h5ad", "--out", "new.yaml"]) == 2
    assert not (tmp_path / "new.yaml").exists()


def test_answers_of_a_person(monkeypatch, capsys):
    typed = iter(["9", "x", "2"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert questions.ask(Question("which?", ("a", "b"))) == "b"
    assert capsys.readouterr().out.count("expected a number from 1 to 2") == 2
    monkeypatch.setattr("builtins.input", lambda prompt: "")
    assert questions.ask(Question("which?", ("a", "b"))) == "a"
    monkeypatch.setattr("builtins.input", lambda prompt: " own ")
    assert questions.ask(Question("which?", ("a", "b"), free=True)) == "own"

    def ends(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", ends)
    with pytest.raises(UserError, match="--yes"):
        questions.ask(Question("which?", ("a",)))
