"""Labels that mean "not perturbed" in screens of different labs."""

import re

_WORDS = (
    r"controls?|ctrls?|ctls?|nt|ntc|nts|neg|(neg|negative)(ctrl|control)s?|negative|non?targeting(control)?|"
    r"nontarget|nonpert(urbed)?|scrambled?|safe(targeting|harbou?r)|vehicle|veh|dmso|untreated|unperturbed|"
    r"unstimulated|unstim|nostim(ulation)?|mock|unmodified|unedited|intergenic|aavs1|rosa26|"
    r"(dmso|vehicle|media|medium|pbs|nt|nontargeting|negative|neg)(control|ctrl)?(tf|only)?|wildtype|wt"
)
_CONTROL = re.compile(rf"({_WORDS})((sg|g|guide|grna|sgrna)?\d+)?")
_JOINTS = re.compile(r"[+|,;&]|(?<=\D)_(?=\D)")


def is_control_label(label: str) -> bool:
    """Whether a label is spelt like that of control cells, alone or several times (``ctrl+ctrl``).

    Examples
    --------
    >>> [is_control_label(label) for label in ("non-targeting", "NTg7", "DMSO", "NTRK1")]
    [True, True, True, False]
    """
    text = label.strip().casefold()
    parts = [text, *_JOINTS.split(text)] if text else []
    whole, *pieces = (re.sub(r"[\W_]+", "", part) for part in parts) if parts else ("",)
    if _CONTROL.fullmatch(whole):
        return True
    return len(pieces) > 1 and all(_CONTROL.fullmatch(piece) for piece in pieces)
