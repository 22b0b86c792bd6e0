"""The quality control of a real screen: knock-outs that are known to work, and cells that escaped."""

import pytest
from local_conversion import convert_locally

from tadvae.base.filesystem import Location
from tadvae.draft_spec.dataset import Given
from tadvae.draft_spec.draft import draft_spec
from tadvae.report.screen_qc_page import answer
from tadvae.screen_qc.check import check_screens
from tadvae.screen_qc.thresholds import QcConfig

pytestmark = pytest.mark.slow


def test_papalexi(data, tmp_path):
    path = str(data / "screens" / "papalexi21_thp1_eccite.h5ad")
    (tmp_path / "spec.yaml").write_text(draft_spec([path], tmp_path, Given()))
    store = convert_locally(tmp_path / "spec.yaml", Location.of(tmp_path / "store"))
    found = check_screens(store, QcConfig())
    table = found.perturbations.set_index("perturbation")
    assert len(table) == 25
    assert table["guides"].between(2, 5).all()
    assert set(table["batches"]) == {3}
    # interferon's receptors and their pathway respond; these three targets do nothing here
    assert table.loc[["IFNGR1", "IFNGR2", "JAK2", "STAT1"], "escaped"].between(0.1, 0.4).all()
    assert table.loc[["ATF2", "CAV1", "CD86"], "escaped"].isna().all()
    targets = found.targets.set_index("target")
    assert set(targets["verdict"]) == {"lower, as expected"}
    assert (targets.loc[["JAK2", "STAT1"], "high"] < -1.5).all()
    assert found.datasets["cramers_v"].item() < 0.2
    assert answer(found).startswith(
        "25 perturbations in 1 context; 9 of 9 measured targets change as expected"
    )
