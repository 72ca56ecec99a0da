"""Plain DPO (Rafailov et al. 2023) on the same pairs: the paper's own baseline, section 4.3 and Table 3.

    --config=dpo.py          the paper's baseline: Muffin 13B
    --config=dpo.py:mini     the same code on a model that trains on two CPU cores; every preset of ddpo.py is here too

All other keys, with their sources, are those of ddpo.py.
"""

import runpy
from pathlib import Path

import ml_collections

ddpo_config = runpy.run_path(str(Path(__file__).with_name("ddpo.py")))["get_config"]  # the config beside this one


def get_config(preset: str = "rlhfv_paper") -> ml_collections.ConfigDict:
    c = ddpo_config(preset)
    c.ddpo.gamma = 1.0  # corrected tokens weigh as all others: equation 4 is a plain sum
    c.ddpo.average = False  # equation 4
    # The paper gives one β, 0.5 (section 4.1), and none of its own for this baseline: ddpo.beta stays.
    return c
